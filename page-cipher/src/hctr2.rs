//! AES-256-HCTR2: a wide-block, length-preserving, tweakable cipher.
//!
//! Paul Crowley, Nathan Huckleberry, Eric Biggers: *Length-preserving encryption with HCTR2*
//! (<https://eprint.iacr.org/2021/1441>). Every bit of the output depends on every bit of the input and of
//! the tweak. Encrypting different data under the same tweak is safe: equal input shows as equal output and
//! nothing else does. There is no authentication tag; what a caller knows about the plaintext beforehand
//! takes its place.

mod portable;

use secret_mem::{LockedBox, SecretBytes};

use crate::{CipherId, LengthError};

/// AES-256-HCTR2 with an expanded key in locked memory.
#[derive(Debug)]
pub struct Aes256Hctr2 {
    kernel: LockedBox<Kernel>,
}

/// The implementations that may serve on this machine. All give the same bytes; `Aes256Hctr2::new` picks the
/// fastest.
enum Kernel {
    Portable(portable::Hctr2),
}

/// Encrypt or decrypt.
#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

impl Aes256Hctr2 {
    /// Shortest data, in bytes: one block of AES.
    pub const MIN_LEN: usize = 16;

    /// Expands a key.
    pub fn new(key: &SecretBytes<32>) -> Self {
        let kernel = LockedBox::new_with(|| Kernel::Portable(portable::Hctr2::new(key.expose())));
        Self { kernel }
    }

    /// Encrypts `data` in place under `tweak`, which may have any length.
    pub fn encrypt(&self, tweak: &[u8], data: &mut [u8]) -> Result<(), LengthError> {
        self.run(Direction::Encrypt, tweak, data)
    }

    /// Decrypts `data` in place under `tweak`.
    pub fn decrypt(&self, tweak: &[u8], data: &mut [u8]) -> Result<(), LengthError> {
        self.run(Direction::Decrypt, tweak, data)
    }

    fn run(&self, direction: Direction, tweak: &[u8], data: &mut [u8]) -> Result<(), LengthError> {
        let len = data.len() as u64;
        let Some((head, tail)) = data.split_first_chunk_mut() else {
            let (min, max) = (Self::MIN_LEN as u64, u64::MAX);
            return Err(LengthError { cipher: CipherId::Aes256Hctr2, len, min, max });
        };
        match &*self.kernel {
            Kernel::Portable(hctr2) => hctr2.run(direction, tweak, head, tail),
        }
        Ok(())
    }
}
