//! Memory shared between a process and the children it forks.

use core::fmt;
use core::ptr::NonNull;

use super::mapping::Mapping;

/// The system refused to map memory.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot map {bytes} bytes of shared memory for keys; free memory or raise the limit on address space"
)]
pub struct MapError {
    bytes: usize,
    source: std::io::Error,
}

/// Locked, undumpable memory that a process shares with the children it forks afterwards (`MAP_SHARED |
/// MAP_ANONYMOUS`).
///
/// Zero when made, aligned to at least 4096 bytes. It hands out an address only: whoever reads and writes
/// through it must order its accesses against those of all other processes. Dropping it unmaps it from this
/// process alone and does not wipe it, because other processes may still use it; the kernel clears the memory
/// once the last one is gone.
pub struct SharedRegion {
    mapping: Mapping,
}

impl SharedRegion {
    /// Maps `len` bytes. Failure to lock them is recorded for [`lock_failure`](crate::lock_failure) and no
    /// error.
    pub fn new(len: usize) -> Result<Self, MapError> {
        match Mapping::shared(len) {
            Ok(mapping) => Ok(Self { mapping }),
            Err(errno) => Err(MapError { bytes: len, source: errno.into() }),
        }
    }

    /// Address of the first byte; valid for reads and writes of [`len`](Self::len) bytes while `self` lives.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    /// Length in bytes, as asked for.
    #[allow(clippy::len_without_is_empty, reason = "an empty mapping cannot be made")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Locks the region again, for a child after `fork`. Shared pages that the parent holds locked stay out
    /// of swap while the parent lives, so this matters only for a child that outlives it.
    pub fn relock_after_fork(&self) {
        self.mapping.lock();
    }
}

impl fmt::Debug for SharedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedRegion({} bytes, redacted)", self.len())
    }
}
