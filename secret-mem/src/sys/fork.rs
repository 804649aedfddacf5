//! A page that is zero in a forked child: the proof that a process is still the one that made something.

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// The word that the kernel clears in a child. Null until it is first needed; never unmapped.
static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());

/// Counts the processes of a line of forks. A child starts with its parent's count, so the word that it takes
/// differs from those of its ancestors.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A page that a forked child sees cleared could not be set up (`MADV_WIPEONFORK`, Linux 4.14).
#[derive(Debug, thiserror::Error)]
#[error("cannot set up a page that fork clears (MADV_WIPEONFORK needs Linux 4.14 or newer)")]
pub struct ForkCanaryError(#[source] std::io::Error);

/// Dies in a child made by `fork`: what must not be used in two processes (a generator of nonces, a session) holds
/// one and asks it before each use.
///
/// Asking costs two loads from memory and no system call. A thread, or a child made after the canary died and that
/// makes one of its own, has a live one.
#[derive(Debug, Clone, Copy)]
pub struct ForkCanary {
    epoch: u64,
}

impl ForkCanary {
    /// A canary of the process that calls.
    pub fn new() -> Result<Self, ForkCanaryError> {
        let word = word().map_err(|errno| ForkCanaryError(errno.into()))?;
        let epoch = word.load(Ordering::Relaxed);
        if epoch != 0 {
            return Ok(Self { epoch });
        }
        // The first one in this process. Of several threads that come here, one wins and all use its number.
        let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        let epoch = match word.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => fresh,
            Err(others) => others,
        };
        Ok(Self { epoch })
    }

    /// False in a child that was forked after this canary was made.
    pub fn is_alive(self) -> bool {
        match NonNull::new(WORD.load(Ordering::Acquire)) {
            // SAFETY: `WORD` only ever holds null or the base of a page that `word` mapped and that is never
            // unmapped. A child has the page too, zero-filled, which is a valid `AtomicU64`.
            Some(word) => unsafe { word.as_ref() }.load(Ordering::Relaxed) == self.epoch,
            None => false,
        }
    }
}

fn word() -> Result<&'static AtomicU64, rustix::io::Errno> {
    let mut page = WORD.load(Ordering::Acquire);
    if page.is_null() {
        let made = map()?;
        page = match WORD.compare_exchange(null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            // Another thread was faster; our page stays mapped, which happens at most once a thread.
            Err(others) => others,
        };
    }
    // SAFETY: as in `is_alive`: a page that stays mapped for ever, aligned, zero-filled or written as `AtomicU64`.
    Ok(unsafe { &*page })
}

fn map() -> Result<*mut AtomicU64, rustix::io::Errno> {
    const LEN: usize = 4096;
    // SAFETY: with a null address and without MAP_FIXED the kernel picks a range that overlaps nothing.
    let base =
        unsafe { mmap_anonymous(null_mut(), LEN, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)? };
    // SAFETY: the range was mapped above with this length, private and anonymous as MADV_WIPEONFORK asks.
    unsafe { madvise(base.cast::<c_void>(), LEN, Advice::LinuxWipeOnFork)? };
    Ok(base.cast())
}
