//! A value of any type in a slot of locked memory.

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut};
use core::ptr;
use core::slice;

use zeroize::Zeroize;

use super::arena::Slot;

/// Owns a `T` in locked, undumpable memory: like `Box<T>`, but the memory is wiped when the value is dropped.
///
/// Meant for values that are secret as a whole, such as an expanded cipher. What `T` itself points to is not
/// covered. `T` may be of any size and aligned to at most 4096 bytes.
pub struct LockedBox<T> {
    /// Invariant: holds an initialised `T` at its start.
    slot: Slot,
    /// Owns a `T`: `Send` and `Sync` only if `T` is.
    value: PhantomData<T>,
}

impl<T> LockedBox<T> {
    /// Moves `value` into locked memory and wipes the copy on the stack that was moved from.
    ///
    /// The compiler may have made further copies on the way here; [`new_with`](Self::new_with) reaches those
    /// too.
    pub fn new(value: T) -> Self {
        const { assert!(align_of::<T>() <= 4096, "locked memory is aligned to at most 4096 bytes") };
        let slot = Slot::new(Layout::new::<T>());
        let mut source = MaybeUninit::new(value);
        // SAFETY: the source is initialised and no longer used as a `T` afterwards. The target is as large as
        // a `T` and aligned like one: `Slot::new` was given its layout. A fresh slot belongs to nobody else.
        unsafe { ptr::copy_nonoverlapping(source.as_ptr(), slot.start().as_ptr().cast(), 1) };
        slice::from_mut(&mut source).zeroize();
        Self { slot, value: PhantomData }
    }

    /// Makes a value with `make` and moves it into locked memory, leaving no copy on the stack
    /// (see [`wiping_stack`](crate::wiping_stack)).
    pub fn new_with(make: impl FnOnce() -> T) -> Self {
        crate::wiping_stack(|| Self::new(make()))
    }

    fn pointer(&self) -> *mut T {
        self.slot.start().as_ptr().cast()
    }
}

impl<const N: usize> LockedBox<[u8; N]> {
    /// N zero bytes, without a copy on the stack.
    pub(crate) fn zeroed_bytes() -> Self {
        // A fresh slot is all zero, which is an initialised `[u8; N]`.
        Self { slot: Slot::new(Layout::new::<[u8; N]>()), value: PhantomData }
    }
}

impl<T> Deref for LockedBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: by the invariant of `slot` there is an initialised `T`, aligned and valid while `self`
        // lives, and `&self` keeps `&mut` access away.
        unsafe { &*self.pointer() }
    }
}

impl<T> DerefMut for LockedBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { &mut *self.pointer() }
    }
}

impl<T> Drop for LockedBox<T> {
    fn drop(&mut self) {
        // The slot itself is wiped when the field `slot` is dropped, even if the destructor of `T` panics.
        // SAFETY: the value is initialised, valid for writes, and not used again.
        unsafe { ptr::drop_in_place(self.pointer()) }
    }
}

impl<T> fmt::Debug for LockedBox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LockedBox(redacted)")
    }
}
