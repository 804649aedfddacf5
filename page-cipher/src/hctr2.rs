//! AES-256-HCTR2: a wide-block, length-preserving, tweakable cipher.
//!
//! Paul Crowley, Nathan Huckleberry, Eric Biggers: *Length-preserving encryption with HCTR2*
//! (<https://eprint.iacr.org/2021/1441>). Every bit of the output depends on every bit of the input and of
//! the tweak. Encrypting different data under the same tweak is safe: equal input shows as equal output and
//! nothing else does. There is no authentication tag; what a caller knows about the plaintext beforehand
//! takes its place.

mod portable;

use secret_mem::{LockedBox, SecretBytes};

use crate::kernel::{self, Kernel};
use crate::{CipherId, LengthError};

/// AES-256-HCTR2 with an expanded key in locked memory.
#[derive(Debug)]
pub struct Aes256Hctr2 {
    key: Key,
}

kernel::define_key!(hctr2::Hctr2, 32);

/// A piece of data of a batch, with its tweak.
pub struct Unit<'a> {
    pub(crate) tweak: &'a [u8],
    /// The first block.
    pub(crate) m: &'a mut [u8; 16],
    /// The rest.
    pub(crate) n: &'a mut [u8],
}

impl<'a> Unit<'a> {
    /// `data`, of at least [`MIN_LEN`](Aes256Hctr2::MIN_LEN) bytes, under `tweak`, which may have any length.
    pub fn new(tweak: &'a [u8], data: &'a mut [u8]) -> Result<Self, LengthError> {
        let (m, n) = split(data)?;
        Ok(Self { tweak, m, n })
    }
}

impl Aes256Hctr2 {
    /// Shortest data, in bytes: one block of AES.
    pub const MIN_LEN: usize = 16;

    /// Expands a key.
    pub fn new(key: &SecretBytes<32>) -> Self {
        Self { key: Key::best(key) }
    }

    /// Expands a key for one kernel, to compare kernels. `None` if that does not run here.
    #[doc(hidden)]
    pub fn with_kernel(kernel: Kernel, key: &SecretBytes<32>) -> Option<Self> {
        Key::new(kernel, key).map(|key| Self { key })
    }

    /// Encrypts `data` in place under `tweak`, which may have any length.
    pub fn encrypt(&self, tweak: &[u8], data: &mut [u8]) -> Result<(), LengthError> {
        let (m, n) = split(data)?;
        kernel::with_key!(&self.key, key => key.encrypt(tweak, m, n));
        Ok(())
    }

    /// Decrypts `data` in place under `tweak`.
    pub fn decrypt(&self, tweak: &[u8], data: &mut [u8]) -> Result<(), LengthError> {
        let (m, n) = split(data)?;
        kernel::with_key!(&self.key, key => key.decrypt(tweak, m, n));
        Ok(())
    }

    /// Encrypts several pieces of data in place. Faster than one by one where they follow each other with the same
    /// length.
    pub fn encrypt_batch(&self, units: &mut [Unit<'_>]) {
        for units in batches(units) {
            kernel::with_key!(&self.key, key => key.encrypt_batch(units));
        }
    }

    /// Decrypts several pieces of data in place.
    pub fn decrypt_batch(&self, units: &mut [Unit<'_>]) {
        for units in batches(units) {
            kernel::with_key!(&self.key, key => key.decrypt_batch(units));
        }
    }
}

/// Units that kernels take at a time: of the same length, and single ones of one block.
fn batches<'a, 'b>(units: &'a mut [Unit<'b>]) -> impl Iterator<Item = &'a mut [Unit<'b>]> {
    units.chunk_by_mut(|a, b| a.n.len() == b.n.len() && !a.n.is_empty())
}

/// The first block and the rest: M and N of the paper.
fn split(data: &mut [u8]) -> Result<(&mut [u8; 16], &mut [u8]), LengthError> {
    let len = data.len() as u64;
    data.split_first_chunk_mut().ok_or(LengthError {
        cipher: CipherId::Aes256Hctr2,
        len,
        min: Aes256Hctr2::MIN_LEN as u64,
        max: u64::MAX,
    })
}
