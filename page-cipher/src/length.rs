//! Lengths that a cipher cannot handle.

/// Data of this length cannot be encrypted or decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{cipher} takes {min} to {max} bytes at a time, not {len}")]
pub struct LengthError {
    /// The cipher's name.
    pub cipher: crate::CipherId,
    /// The length asked for, in bytes.
    pub len: u64,
    /// The smallest length possible, in bytes.
    pub min: u64,
    /// The largest length allowed, in bytes.
    pub max: u64,
}
