//! Removes what cryptographic code leaves behind on the stack.

use zeroize::Zeroize;

/// How much of the stack is wiped. Key expansions and HKDF of the crates in use need less than half of it.
const WIPED_BYTES: usize = 8 * 1024;

/// Runs `f` and then overwrites the 8 KiB of stack in which it ran, whether it returns or panics.
///
/// Libraries that expand keys return them by value and leave copies in dead stack frames. The result of `f`
/// must not hold secrets by value: it is returned through the caller's own frame, which is not wiped.
pub fn wiping_stack<R>(f: impl FnOnce() -> R) -> R {
    struct WipeOnDrop;
    impl Drop for WipeOnDrop {
        fn drop(&mut self) {
            wipe();
        }
    }
    let _wipe = WipeOnDrop;
    call(f)
}

/// A frame of its own, so that everything `f` leaves behind is below the caller's frame.
#[inline(never)]
fn call<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[inline(never)]
fn wipe() {
    let mut stack = [0_u64; WIPED_BYTES / 8];
    stack.zeroize();
}
