//! AES-256-GCM-SIV: authenticated encryption that tolerates a repeated nonce (RFC 8452).
//!
//! A nonce used twice shows whether two plaintexts with the same associated data are equal, and nothing else.
//! Nonces are chosen at random by the caller.

use aes_gcm_siv::aead::array::Array;
use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use secret_mem::{LockedBox, SecretBytes};
use zeroize::Zeroize;

use crate::{CipherId, LengthError};

/// Length of a nonce in bytes.
pub const NONCE_LEN: usize = 12;
/// Length of a tag in bytes.
pub const TAG_LEN: usize = 16;
/// Longest data, and longest associated data, in bytes (RFC 8452, section 6).
pub const MAX_LEN: u64 = 1 << 36;

/// AES-256-GCM-SIV with an expanded key in locked memory.
#[derive(Debug)]
pub struct Aes256GcmSiv {
    cipher: LockedBox<aes_gcm_siv::Aes256GcmSiv>,
}

/// Data could not be opened. The buffer has been wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Data, tag, nonce or associated data were changed, or the key is another one.
    #[error("the authentication tag does not match: the data was changed or sealed under another key")]
    NotAuthentic,
    /// Too long to have been sealed.
    #[error(transparent)]
    Length(#[from] LengthError),
}

impl Aes256GcmSiv {
    /// Expands a key.
    pub fn new(key: &SecretBytes<32>) -> Self {
        Self { cipher: LockedBox::new_with(|| aes_gcm_siv::Aes256GcmSiv::new(key.expose().into())) }
    }

    /// Encrypts `data` in place and returns the tag that authenticates it together with `aad`, which stays in
    /// clear.
    ///
    /// On an error `data` is as it was.
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], LengthError> {
        check_length(aad, data)?;
        let nonce = Array::from(*nonce);
        match self.cipher.encrypt_inout_detached(&nonce, aad, data.into()) {
            Ok(tag) => Ok(tag.0),
            // The crate's only reason to fail is a length that was checked above.
            Err(aes_gcm_siv::aead::Error) => Err(length_error(data.len() as u64)),
        }
    }

    /// Decrypts `data` in place if `tag` is right; otherwise wipes it, so that nothing unauthenticated can be
    /// used.
    pub fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), OpenError> {
        let (nonce, tag) = (Array::from(*nonce), Array::from(*tag));
        let opened = match check_length(aad, data) {
            Ok(()) => self
                .cipher
                .decrypt_inout_detached(&nonce, aad, (&mut *data).into(), &tag)
                .map_err(|_| OpenError::NotAuthentic),
            Err(error) => Err(error.into()),
        };
        if opened.is_err() {
            data.zeroize();
        }
        opened
    }
}

fn check_length(aad: &[u8], data: &[u8]) -> Result<(), LengthError> {
    let longest = aad.len().max(data.len()) as u64;
    if longest > MAX_LEN { Err(length_error(longest)) } else { Ok(()) }
}

fn length_error(len: u64) -> LengthError {
    LengthError { cipher: CipherId::Aes256GcmSiv, len, min: 0, max: MAX_LEN }
}
