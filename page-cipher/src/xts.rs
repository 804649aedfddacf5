//! AES-256-XTS: a length-preserving, tweakable cipher (IEEE 1619, NIST SP 800-38E).
//!
//! Every 16-byte block is encrypted on its own under a tweak of its own. So a change to the ciphertext
//! garbles only the blocks it touches, and who sees two ciphertexts under one tweak learns which blocks are
//! equal. Data whose length is no multiple of 16 has its last two blocks joined by ciphertext stealing.

mod portable;

use secret_mem::{LockedBox, SecretBytes};

use crate::kernel::{self, Kernel};
use crate::{CipherId, LengthError};

/// AES-256-XTS with expanded keys in locked memory.
#[derive(Debug)]
pub struct Aes256Xts {
    key: Key,
}

kernel::define_key!(xts::Xts, 64);

/// The two halves of an XTS key are equal, which the standards forbid because it weakens the cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the two halves of an AES-256-XTS key are equal: make a new random key")]
pub struct EqualKeyHalves;

impl Aes256Xts {
    /// Shortest data, in bytes: one block of AES.
    pub const MIN_LEN: usize = 16;
    /// Longest data under one tweak, in bytes: 2^20 blocks (SP 800-38E).
    pub const MAX_LEN: usize = 16 << 20;

    /// Expands a key: the first half encrypts the data, the second half the tweak.
    pub fn new(key: &SecretBytes<64>) -> Result<Self, EqualKeyHalves> {
        check_key(key)?;
        Ok(Self { key: Key::best(key) })
    }

    /// Expands a key for one kernel, to compare kernels. `None` if that does not run here.
    #[doc(hidden)]
    pub fn with_kernel(kernel: Kernel, key: &SecretBytes<64>) -> Result<Option<Self>, EqualKeyHalves> {
        check_key(key)?;
        Ok(Key::new(kernel, key).map(|key| Self { key }))
    }

    /// Encrypts `data` in place under `tweak`, the "data unit number" of the standards in little-endian
    /// bytes.
    pub fn encrypt(&self, tweak: &[u8; 16], data: &mut [u8]) -> Result<(), LengthError> {
        check_length(data)?;
        kernel::with_key!(&self.key, key => key.encrypt(tweak, data));
        Ok(())
    }

    /// Decrypts `data` in place under `tweak`.
    pub fn decrypt(&self, tweak: &[u8; 16], data: &mut [u8]) -> Result<(), LengthError> {
        check_length(data)?;
        kernel::with_key!(&self.key, key => key.decrypt(tweak, data));
        Ok(())
    }
}

fn check_key(key: &SecretBytes<64>) -> Result<(), EqualKeyHalves> {
    let (halves, _) = key.expose().as_chunks::<32>();
    // The outcome of this comparison says nothing about a key that is used afterwards.
    if halves[0] == halves[1] { Err(EqualKeyHalves) } else { Ok(()) }
}

fn check_length(data: &[u8]) -> Result<(), LengthError> {
    if (Aes256Xts::MIN_LEN..=Aes256Xts::MAX_LEN).contains(&data.len()) {
        return Ok(());
    }
    let (min, max) = (Aes256Xts::MIN_LEN as u64, Aes256Xts::MAX_LEN as u64);
    Err(LengthError { cipher: CipherId::Aes256Xts, len: data.len() as u64, min, max })
}
