//! Secrets of variable length.

use core::alloc::Layout;
use core::fmt;
use std::io::{self, ErrorKind, Read};

use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::sys::Slot;

/// A secret whose length is not known beforehand, such as a PIN, in locked memory; wiped on drop.
///
/// The capacity is fixed when it is made, so the secret is never copied to grow.
pub struct SecretBuf {
    slot: Slot,
    len: usize,
    capacity: usize,
}

/// There is no room for more bytes in a [`SecretBuf`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret is longer than the {capacity} bytes that were set aside for it")]
pub struct Full {
    /// The capacity in bytes.
    pub capacity: usize,
}

/// A secret could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The input is longer than allowed.
    #[error("the secret is longer than {max} bytes")]
    TooLong {
        /// The largest length allowed, in bytes.
        max: usize,
    },
    /// Reading failed.
    #[error("cannot read the secret")]
    Io(#[from] io::Error),
}

impl SecretBuf {
    /// An empty secret with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        // Larger than any address space is a bug in the caller, as with `Vec`.
        let layout = Layout::array::<u8>(capacity).expect("capacity exceeds isize::MAX");
        Self { slot: Slot::new(layout), len: 0, capacity }
    }

    /// Lets `fill` write up to `capacity` bytes in place (zero before) and return how many of them count.
    ///
    /// # Panics
    /// If `fill` returns more than `capacity`.
    pub fn from_fn<E>(capacity: usize, fill: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<Self, E> {
        let mut buf = Self::with_capacity(capacity);
        let len = fill(&mut buf.slot.as_mut_slice()[..capacity])?;
        assert!(len <= capacity, "{len} bytes cannot have been written to {capacity}");
        buf.truncate_unused(len);
        Ok(buf)
    }

    /// Reads `reader` to its end; refuses more than `max` bytes.
    pub fn read_from(mut reader: impl Read, max: usize) -> Result<Self, ReadError> {
        // Room for one byte more shows whether there is more.
        let mut buf = Self::with_capacity(max + 1);
        while buf.len <= max {
            match reader.read(&mut buf.slot.as_mut_slice()[buf.len..=max]) {
                Ok(0) => {
                    buf.capacity = max;
                    return Ok(buf);
                }
                Ok(count) => buf.len += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ReadError::TooLong { max })
    }

    /// Appends one byte.
    pub fn push(&mut self, byte: u8) -> Result<(), Full> {
        self.extend_from_slice(&[byte])
    }

    /// Appends all of `bytes`, or nothing if there is no room for all.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.len() > self.capacity - self.len {
            return Err(Full { capacity: self.capacity });
        }
        let end = self.len + bytes.len();
        self.slot.as_mut_slice()[self.len..end].copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// Removes and wipes the last byte, for an editor's backspace. False if there was none.
    pub fn pop(&mut self) -> bool {
        let some = self.len > 0;
        self.truncate_unused(self.len.saturating_sub(1));
        some
    }

    /// Removes one newline (`\n` or `\r\n`) from the end, if there is one.
    pub fn trim_newline(&mut self) {
        let bytes = self.as_slice();
        let len = bytes.strip_suffix(b"\r\n").or(bytes.strip_suffix(b"\n")).map_or(bytes.len(), <[u8]>::len);
        self.truncate_unused(len);
    }

    /// The bytes. Do not copy them out of locked memory.
    pub fn as_slice(&self) -> &[u8] {
        &self.slot.as_slice()[..self.len]
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is zero.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Compares in time that depends on the lengths alone.
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.as_slice().ct_eq(other.as_slice()).into()
    }

    /// Sets the length and wipes what is beyond it.
    fn truncate_unused(&mut self, len: usize) {
        self.len = len;
        self.slot.as_mut_slice()[len..].zeroize();
    }
}

impl fmt::Debug for SecretBuf {
    /// Shows not even the length: it says much about a PIN.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBuf(redacted)")
    }
}
