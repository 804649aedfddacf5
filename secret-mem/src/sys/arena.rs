//! Slots of locked memory, allocated without a lock.
//!
//! There is one list of arenas per power-of-two slot size. An arena is a mapping cut into equal slots and a
//! bitmap of the slots in use. Arenas are only ever added at the head of their list and never unmapped, so a
//! reference to one is valid for ever, and every change of state is one atomic operation: a fork at any
//! moment leaves the child with a list and bitmaps that it can use.
//!
//! Every slot that is not in use is all zero.

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::alloc::handle_alloc_error;

use zeroize::Zeroize;

use super::mapping::Mapping;

/// Smaller secrets share this slot size.
const MIN_SLOT: usize = 32;
/// Length of an arena whose slots are not larger. Small: RLIMIT_MEMLOCK is 64 KiB on some systems.
const MIN_ARENA: usize = 16 * 1024;
/// What every mapping is aligned to at least, on every system that Linux runs on.
const MAX_ALIGN: usize = 4096;

/// Heads of the lists; index is the binary logarithm of the slot size.
static ARENAS: [AtomicPtr<Arena>; usize::BITS as usize] =
    [const { AtomicPtr::new(null_mut()) }; usize::BITS as usize];

struct Arena {
    mapping: Mapping,
    /// A power of two that divides the mapping's length.
    slot_size: usize,
    /// One bit per slot, set when in use. Bits beyond the last slot are always set.
    used: Box<[AtomicU64]>,
    /// The arena that was the head of the list before this one.
    next: AtomicPtr<Arena>,
}

impl Arena {
    /// Maps an arena and takes its first slot.
    fn with_first_slot_taken(slot_size: usize) -> Option<Self> {
        let len = slot_size.max(MIN_ARENA);
        let slots = len / slot_size;
        let used = (0..slots.div_ceil(64))
            .map(|word| {
                let slots_here = (slots - word * 64).min(64);
                let beyond = if slots_here == 64 { 0 } else { u64::MAX << slots_here };
                AtomicU64::new(beyond | u64::from(word == 0))
            })
            .collect();
        let mapping = Mapping::private(len).ok()?;
        Some(Self { mapping, slot_size, used, next: AtomicPtr::new(null_mut()) })
    }

    /// Takes a free slot.
    fn take(&self) -> Option<usize> {
        for (index, word) in self.used.iter().enumerate() {
            let mut seen = word.load(Ordering::Relaxed);
            while seen != u64::MAX {
                let bit = (!seen).trailing_zeros();
                // Acquire pairs with the Release in `give_back`: the wipe happened before.
                match word.compare_exchange_weak(seen, seen | 1 << bit, Ordering::Acquire, Ordering::Relaxed)
                {
                    Ok(_) => return Some(index * 64 + bit as usize),
                    Err(now) => seen = now,
                }
            }
        }
        None
    }

    fn give_back(&self, slot: usize) {
        let bit = 1 << (slot % 64);
        let before = self.used[slot / 64].fetch_and(!bit, Ordering::Release);
        debug_assert_ne!(before & bit, 0, "slot was not in use");
    }
}

/// Exclusive use of one slot; wiped and given back on drop.
///
/// Invariants: the bit of `index` in `arena` is set and no other `Slot` has the same arena and index.
pub(crate) struct Slot {
    arena: &'static Arena,
    index: usize,
}

impl Slot {
    /// Takes a zeroed slot that holds `layout`.
    ///
    /// Aborts like any allocation if the system has no memory left.
    ///
    /// # Panics
    /// If the alignment exceeds 4096.
    pub(crate) fn new(layout: Layout) -> Self {
        assert!(layout.align() <= MAX_ALIGN, "locked memory is aligned to at most {MAX_ALIGN} bytes");
        // Cannot overflow: a layout's size is at most isize::MAX.
        let slot_size = layout.size().max(layout.align()).max(MIN_SLOT).next_power_of_two();
        let head = &ARENAS[slot_size.trailing_zeros() as usize];
        for arena in arenas_from(head.load(Ordering::Acquire)) {
            if let Some(index) = arena.take() {
                return Self { arena, index };
            }
        }
        let Some(arena) = Arena::with_first_slot_taken(slot_size) else { handle_alloc_error(layout) };
        let arena: &'static Arena = Box::leak(Box::new(arena));
        let mut first = head.load(Ordering::Relaxed);
        loop {
            arena.next.store(first, Ordering::Relaxed);
            let new = core::ptr::from_ref(arena).cast_mut();
            match head.compare_exchange_weak(first, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return Self { arena, index: 0 },
                Err(now) => first = now,
            }
        }
    }

    /// Start of the slot, aligned to the smaller of its size and 4096 bytes.
    pub(crate) fn start(&self) -> NonNull<u8> {
        // SAFETY: `index` is less than the number of slots (bits beyond it are never free), so the offset
        // lies within the mapping, which is never unmapped.
        unsafe { self.arena.mapping.base().add(self.index * self.arena.slot_size) }
    }

    /// Number of bytes in the slot.
    pub(crate) fn len(&self) -> usize {
        self.arena.slot_size
    }

    /// All bytes of the slot. Only for slots that hold plain bytes (not `LockedBox`, whose value may have
    /// padding).
    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` is valid for `len` bytes for ever, the bytes are initialised (zero from the kernel,
        // then written only as bytes), and by the invariant of `Slot` only `self` reaches them.
        unsafe { slice::from_raw_parts(self.start().as_ptr(), self.len()) }
    }

    /// All bytes of the slot, for writing.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`, and `&mut self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.start().as_ptr(), self.len()) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let start = self.start().as_ptr().cast::<core::mem::MaybeUninit<u8>>();
        // SAFETY: valid for `len` bytes and reached by `self` alone, as in `as_mut_slice`; `MaybeUninit`
        // because a `LockedBox` may have left padding bytes.
        let all = unsafe { slice::from_raw_parts_mut(start, self.len()) };
        all.zeroize();
        self.arena.give_back(self.index);
    }
}

/// The arenas of one list, beginning with its head.
fn arenas_from(head: *mut Arena) -> impl Iterator<Item = &'static Arena> {
    // SAFETY: a pointer in a list is null or came from `Box::leak`, was published with Release and was loaded
    // with Acquire or, being a `next`, is ordered by the Acquire load of the head that leads to it.
    let to_ref = |pointer: *mut Arena| unsafe { pointer.as_ref() };
    core::iter::successors(to_ref(head), move |arena| to_ref(arena.next.load(Ordering::Acquire)))
}

/// Locks this process's copies of all secrets again; for a child after `fork`, to which locks are not passed
/// on.
///
/// A failure is recorded for [`crate::lock_failure`]. [`SharedRegion`](crate::SharedRegion)s have a method of
/// their own.
pub fn relock_after_fork() {
    for head in &ARENAS {
        for arena in arenas_from(head.load(Ordering::Acquire)) {
            arena.mapping.lock();
        }
    }
}
