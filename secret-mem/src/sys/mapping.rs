//! One anonymous mapping, locked into memory and kept out of core dumps.

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};

use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MlockFlags, ProtFlags, madvise, mlock, mlock_with, mmap_anonymous, munmap,
};

use crate::lock::{self, LockFailure};

/// Owns `len` bytes at `base`, readable and writable, zero when made, aligned to at least 4096 bytes.
/// Unmapped on drop.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a `Mapping` owns its address range like a `Box<[u8]>`; it only hands out the raw base address, and
// whoever dereferences that proves the absence of races itself.
unsafe impl Send for Mapping {}
// SAFETY: as above: no method of `&Mapping` reads or writes the mapped bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps memory that becomes a private copy in a forked child.
    pub(crate) fn private(len: usize) -> Result<Self, Errno> {
        Self::new(len, MapFlags::PRIVATE)
    }

    /// Maps memory that a forked child shares with its parent.
    pub(crate) fn shared(len: usize) -> Result<Self, Errno> {
        Self::new(len, MapFlags::SHARED)
    }

    fn new(len: usize, flags: MapFlags) -> Result<Self, Errno> {
        // SAFETY: with a null address and without MAP_FIXED the kernel picks a range that overlaps nothing.
        let base = unsafe { mmap_anonymous(null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)? };
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let mapping = Self { base, len };
        mapping.keep_out_of_dumps();
        mapping.lock();
        Ok(mapping)
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn address(&self) -> *mut c_void {
        self.base.as_ptr().cast()
    }

    /// Keeps the range out of swap; a failure is recorded for [`crate::lock_failure`].
    pub(crate) fn lock(&self) {
        // ONFAULT: pages that no secret has touched yet need no memory.
        // SAFETY: the range is a live mapping of our own; locking changes neither contents nor protection.
        let locked = unsafe { mlock_with(self.address(), self.len, MlockFlags::ONFAULT) };
        // Any failure is tried again: seccomp filters answer an unknown mlock2 with ENOSYS or EPERM.
        // SAFETY: as above.
        let locked = locked.or_else(|_| unsafe { mlock(self.address(), self.len) });
        if let Err(errno) = locked {
            lock::record(LockFailure::Lock { bytes: self.len, errno: errno.raw_os_error() });
        }
    }

    fn keep_out_of_dumps(&self) {
        // SAFETY: the range is a live mapping of our own, and MADV_DONTDUMP only sets a flag on it.
        let advised = unsafe { madvise(self.address(), self.len, Advice::LinuxDontDump) };
        if let Err(errno) = advised {
            lock::record(LockFailure::DontDump { bytes: self.len, errno: errno.raw_os_error() });
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped in `new` with this length and nothing borrows from a `Mapping` that is
        // being dropped.
        let unmapped = unsafe { munmap(self.address(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping cannot fail");
    }
}
