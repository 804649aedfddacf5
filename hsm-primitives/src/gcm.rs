//! Authenticated encryption: AES-GCM (SP 800-38D) and AES-GCM-SIV (RFC 8452).

use core::fmt;

use ::aes::Aes192;
use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::array::typenum::U12;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm, KeyInit as _};
use aes_gcm_siv::{Aes128GcmSiv, Aes256GcmSiv};
use secret_mem::{LockedBox, wiping_stack};

use crate::{Error, Result};

/// Length of a nonce in bytes.
pub const AEAD_NONCE: usize = 12;
/// Length of a tag in bytes.
pub const AEAD_TAG: usize = 16;

/// AES-GCM with a key of 16, 24 or 32 bytes, 12-byte nonces and 16-byte tags.
pub struct Gcm(LockedBox<GcmKeys>);

/// AES-GCM-SIV with a key of 16 or 32 bytes.
pub struct GcmSiv(LockedBox<SivKeys>);

enum GcmKeys {
    Aes128(Aes128Gcm),
    Aes192(AesGcm<Aes192, U12>),
    Aes256(Aes256Gcm),
}

enum SivKeys {
    Aes128(Aes128GcmSiv),
    Aes256(Aes256GcmSiv),
}

macro_rules! seal_and_open {
    ($type:ty, $keys:ident { $($variant:ident),+ }) => {
        impl $type {
            /// Encrypts in place; the tag.
            ///
            /// # Errors
            /// [`Error::BadLength`] beyond the mode's limits.
            pub fn seal(&self, nonce: &[u8; AEAD_NONCE], aad: &[u8], data: &mut [u8]) -> Result<[u8; AEAD_TAG]> {
                let nonce = (*nonce).into();
                let tag = wiping_stack(|| match &*self.0 {
                    $($keys::$variant(c) => c.encrypt_inout_detached(&nonce, aad, data.into()),)+
                });
                tag.map(Into::into).map_err(|_| Error::BadLength)
            }

            /// Decrypts in place what [`seal`](Self::seal) made.
            ///
            /// # Errors
            /// [`Error::Mismatch`]; `data` then holds nothing readable.
            pub fn open(
                &self,
                nonce: &[u8; AEAD_NONCE],
                aad: &[u8],
                data: &mut [u8],
                tag: &[u8; AEAD_TAG],
            ) -> Result<()> {
                let (nonce, tag) = ((*nonce).into(), (*tag).into());
                wiping_stack(|| match &*self.0 {
                    $($keys::$variant(c) => c.decrypt_inout_detached(&nonce, aad, data.into(), &tag),)+
                })
                .map_err(|_| Error::Mismatch)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($type), "(redacted)"))
            }
        }
    };
}

seal_and_open!(Gcm, GcmKeys { Aes128, Aes192, Aes256 });
seal_and_open!(GcmSiv, SivKeys { Aes128, Aes256 });

impl Gcm {
    /// Expands a key.
    ///
    /// # Errors
    /// [`Error::BadKey`] unless it has 16, 24 or 32 bytes.
    pub fn new(key: &[u8]) -> Result<Self> {
        let bad = |_| Error::BadKey;
        Ok(Self(match key.len() {
            16 => {
                let key = key.try_into().map_err(bad)?;
                LockedBox::new_with(|| GcmKeys::Aes128(Aes128Gcm::new(key)))
            }
            24 => {
                let key = key.try_into().map_err(bad)?;
                LockedBox::new_with(|| GcmKeys::Aes192(AesGcm::new(key)))
            }
            _ => {
                let key = key.try_into().map_err(bad)?;
                LockedBox::new_with(|| GcmKeys::Aes256(Aes256Gcm::new(key)))
            }
        }))
    }
}

impl GcmSiv {
    /// Expands a key.
    ///
    /// # Errors
    /// [`Error::BadKey`] unless it has 16 or 32 bytes.
    pub fn new(key: &[u8]) -> Result<Self> {
        let bad = |_| Error::BadKey;
        Ok(Self(if key.len() == 16 {
            let key = key.try_into().map_err(bad)?;
            LockedBox::new_with(|| SivKeys::Aes128(Aes128GcmSiv::new(key)))
        } else {
            let key = key.try_into().map_err(bad)?;
            LockedBox::new_with(|| SivKeys::Aes256(Aes256GcmSiv::new(key)))
        }))
    }
}
