//! Secrets of fixed length.

use core::fmt;

use subtle::ConstantTimeEq;

use crate::random::{RandomError, random};
use crate::sys::LockedBox;

/// `N` secret bytes, such as a key, in locked memory; wiped on drop.
///
/// Deliberately neither `Clone` nor `Deref`: every place that looks at the bytes says
/// [`expose`](Self::expose).
pub struct SecretBytes<const N: usize>(LockedBox<[u8; N]>);

impl<const N: usize> SecretBytes<N> {
    /// All bytes zero, to be filled in place through [`expose_mut`](Self::expose_mut).
    pub fn zeroed() -> Self {
        Self(LockedBox::zeroed_bytes())
    }

    /// Bytes from the operating system's generator.
    pub fn random() -> Result<Self, RandomError> {
        Self::fill_with(|bytes| random(bytes))
    }

    /// Lets `fill` write the bytes in place; they are zero before. On an error what was written is wiped.
    pub fn fill_with<E>(fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        let mut secret = Self::zeroed();
        fill(secret.expose_mut())?;
        Ok(secret)
    }

    /// The bytes. Do not copy them out of locked memory.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    /// The bytes, to be written in place.
    pub fn expose_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }

    /// Compares in time that depends on `N` alone.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.expose()[..].ct_eq(&other.expose()[..]).into()
    }
}

impl<const N: usize> fmt::Debug for SecretBytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes<{N}>(redacted)")
    }
}
