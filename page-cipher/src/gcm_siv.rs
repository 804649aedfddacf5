//! AES-256-GCM-SIV: authenticated encryption that tolerates a repeated nonce (RFC 8452).
//!
//! A nonce used twice shows whether two plaintexts with the same associated data are equal, and nothing else.
//! Nonces are chosen at random by the caller.

mod portable;

use secret_mem::{LockedBox, SecretBytes};
use zeroize::Zeroize;

use crate::kernel::{self, Kernel};
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
    key: Key,
}

kernel::define_key!(gcm_siv::GcmSiv, 32);

/// A message of a batch.
pub struct Message<'a> {
    /// Different for every message under a key, as far as chance allows.
    pub nonce: &'a [u8; NONCE_LEN],
    /// Authenticated with the data; stays in clear.
    pub aad: &'a [u8],
    /// Encrypted in place.
    pub data: &'a mut [u8],
    /// Set when the message is sealed.
    pub tag: [u8; TAG_LEN],
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
        Self { key: Key::best(key) }
    }

    /// Expands a key for one kernel, to compare kernels. `None` if that does not run here.
    #[doc(hidden)]
    pub fn with_kernel(kernel: Kernel, key: &SecretBytes<32>) -> Option<Self> {
        Key::new(kernel, key).map(|key| Self { key })
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
        Ok(kernel::with_key!(&self.key, key => key.seal(nonce, aad, data)))
    }

    /// Encrypts several messages in place and sets their tags. Faster than one by one where they follow each other with
    /// the same length.
    ///
    /// On an error all are as they were.
    pub fn seal_batch(&self, messages: &mut [Message<'_>]) -> Result<(), LengthError> {
        for message in &*messages {
            check_length(message.aad, message.data)?;
        }
        for messages in messages.chunk_by_mut(|a, b| a.data.len() == b.data.len()) {
            if messages[0].data.is_empty() {
                for message in messages {
                    message.tag = self.seal(message.nonce, message.aad, message.data)?;
                }
            } else {
                kernel::with_key!(&self.key, key => key.seal_batch(messages));
            }
        }
        Ok(())
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
        let opened = match check_length(aad, data) {
            Ok(()) if kernel::with_key!(&self.key, key => key.open(nonce, aad, data, tag)) => return Ok(()),
            Ok(()) => OpenError::NotAuthentic,
            Err(error) => error.into(),
        };
        data.zeroize();
        Err(opened)
    }
}

fn check_length(aad: &[u8], data: &[u8]) -> Result<(), LengthError> {
    let len = aad.len().max(data.len()) as u64;
    if len > MAX_LEN {
        return Err(LengthError { cipher: CipherId::Aes256GcmSiv, len, min: 0, max: MAX_LEN });
    }
    Ok(())
}
