//! The store key and what is derived from it.

use secret_mem::SecretBytes;

use crate::audit::AuditKey;
use crate::error::Damage;
use crate::master_key::KeyCipher;
use crate::object::Sealer;
use crate::user::hkdf;

const SEAL_INFO: &[u8] = b"tde/hsm/seal/v1";
const WRAP_INFO: &[u8] = b"tde/hsm/wrap/v1";
#[cfg(feature = "objects")]
const OBJECT_WRAP_INFO: &[u8] = b"tde/hsm/object-wrap/v1";
const AUDIT_INFO: &[u8] = b"tde/hsm/audit/v1";

/// What a login gives a session. Each working key is HKDF-SHA-256(store key, salt = HSM id, info = purpose).
pub(crate) struct StoreKeys {
    pub(crate) store_key: SecretBytes<32>,
    pub(crate) sealer: Sealer,
    /// Wraps master keys inside their sealed objects.
    pub(crate) wrapper: KeyCipher,
    pub(crate) audit: AuditKey,
    /// Wraps key material inside the records of objects.
    #[cfg(feature = "objects")]
    pub(crate) object_wrapper: hsm_primitives::Aes,
}

impl StoreKeys {
    pub(crate) fn derive(store_key: SecretBytes<32>, hsm_id: [u8; 16]) -> Result<Self, Damage> {
        let key = |info| hkdf(store_key.expose(), &hsm_id, info);
        Ok(Self {
            sealer: Sealer::new(&key(SEAL_INFO)?, hsm_id),
            wrapper: KeyCipher::new(&key(WRAP_INFO)?),
            #[cfg(feature = "objects")]
            object_wrapper: hsm_primitives::Aes::new(key(OBJECT_WRAP_INFO)?.expose())
                .map_err(|_| Damage::Field("key length"))?,
            audit: AuditKey::new(key(AUDIT_INFO)?),
            store_key,
        })
    }
}
