//! Seals over metadata, and check values that bind a key to its place.

use aes_gcm_siv::Aes256GcmSiv;
use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use hkdf::Hkdf;
use secret_mem::{LockedBox, SecretBytes};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::error::{KeyringError, Result};
use crate::format::MAX_LEN;
use crate::ids::{KeyVersion, KeyringId, LineNumber};

/// Nonces are random: RFC 8452 section 9 allows far more messages per key than a keyring is ever changed.
pub(crate) const NONCE_LEN: usize = 12;
pub(crate) const TAG_LEN: usize = 16;

const SEAL_INFO: &[u8] = b"tde/keyring/seal/v1";
const CHECK_INFO: &[u8] = b"tde/keyring/kcv/v1";

/// AES-256-GCM-SIV (RFC 8452) under the seal key.
pub(crate) struct Seal {
    key: SecretBytes<32>,
    cipher: LockedBox<Aes256GcmSiv>,
}

impl Seal {
    /// Seal key = HKDF-SHA-256(keyring key, no salt, "tde/keyring/seal/v1").
    pub(crate) fn derive(keyring_key: &SecretBytes<32>) -> Self {
        let mut key = SecretBytes::zeroed();
        expand(keyring_key.expose(), &[SEAL_INFO], key.expose_mut());
        Self::from_key(key)
    }

    pub(crate) fn from_key(key: SecretBytes<32>) -> Self {
        let cipher = secret_mem::wiping_stack(|| LockedBox::new(Aes256GcmSiv::new(key.expose().into())));
        Self { key, cipher }
    }

    pub(crate) fn key(&self) -> &SecretBytes<32> {
        &self.key
    }

    /// Ciphertext with the tag at its end.
    pub(crate) fn seal(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>> {
        let mut buffer = Vec::with_capacity(plaintext.len() + TAG_LEN);
        buffer.extend_from_slice(plaintext);
        // AES-GCM-SIV fails only beyond 2^36 bytes.
        secret_mem::wiping_stack(|| self.cipher.encrypt_in_place(nonce.into(), aad, &mut buffer))
            .map_err(|_| KeyringError::Limit { what: "a keyring file", limit: MAX_LEN })?;
        Ok(buffer)
    }

    /// `None` when the tag does not match.
    pub(crate) fn open(&self, nonce: &[u8; NONCE_LEN], aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = sealed.to_vec();
        secret_mem::wiping_stack(|| self.cipher.decrypt_in_place(nonce.into(), aad, &mut buffer)).ok()?;
        Some(buffer)
    }
}

/// Key check value: HKDF-SHA-256(key, no salt, "tde/keyring/kcv/v1" | keyring id | line u64 LE | version u32 LE),
/// 16 bytes. Line 0 with version 0 is the keyring key itself.
pub(crate) fn key_check(
    key: &SecretBytes<32>,
    keyring: KeyringId,
    line: LineNumber,
    version: KeyVersion,
) -> [u8; 16] {
    let mut check = [0; 16];
    let info: [&[u8]; 4] =
        [CHECK_INFO, keyring.0.as_bytes(), &line.0.to_le_bytes(), &version.0.to_le_bytes()];
    expand(key.expose(), &info, &mut check);
    check
}

/// Line and version under which the keyring key itself is checked.
pub(crate) const KEYRING_KEY: (LineNumber, KeyVersion) = (LineNumber(0), KeyVersion(0));

pub(crate) fn check_matches(expected: &[u8; 16], found: &[u8; 16]) -> bool {
    expected.ct_eq(found).into()
}

/// HKDF-SHA-256 without salt (RFC 5869).
pub(crate) fn expand(ikm: &[u8; 32], info: &[&[u8]], out: &mut [u8]) {
    secret_mem::wiping_stack(|| {
        Hkdf::<Sha256>::new(None, ikm)
            .expand_multi_info(info, out)
            .expect("HKDF-SHA-256 gives up to 8160 bytes; at most 32 are asked for");
    });
}
