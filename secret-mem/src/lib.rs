//! Locked, undumpable, self-wiping memory for key material.
//!
//! * [`SecretBytes`]: a secret of fixed length, such as a 32-byte key.
//! * [`SecretBuf`]: a secret of bounded length, such as a PIN.
//! * [`LockedBox`]: any value, such as an expanded cipher.
//! * [`SharedRegion`]: memory that a process shares with the children it forks.
//! * [`ForkCanary`]: dies in a forked child, for what must not be used in two processes.
//! * [`wiping_stack`]: for library code that leaves key material on the stack.
//! * [`random`]: bytes from the operating system's generator.
//!
//! The first three live in slots of mappings that are kept out of swap (`mlock2`) and out of core dumps
//! (`MADV_DONTDUMP`). A freed slot is wiped before it is used again. Arenas are never unmapped, so the memory
//! held is the largest amount that was in use at one time.
//!
//! Locking may fail, usually because of `RLIMIT_MEMLOCK`. That never stops a program: the secret is stored
//! all the same and [`lock_failure`] tells why, so that a caller can warn once.
//!
//! # Fork
//! A child keeps a private copy of every secret of its parent, except what is in a [`SharedRegion`]. The
//! allocator takes no lock, so a child may use it even if another thread of the parent was allocating during
//! the fork. The kernel does not pass memory locks on to a child; [`relock_after_fork`] takes them again.
//! `MADV_DONTDUMP` is inherited.
//!
//! # Example
//! ```
//! use secret_mem::SecretBytes;
//!
//! let key = SecretBytes::<32>::random()?;
//! assert_ne!(key.expose(), &[0; 32]);
//! assert_eq!(format!("{key:?}"), "SecretBytes<32>(redacted)");
//! if let Some(failure) = secret_mem::lock_failure() {
//!     eprintln!("warning: {failure}");
//! }
//! # Ok::<(), secret_mem::RandomError>(())
//! ```
#![deny(unsafe_code)]

mod buf;
mod bytes;
mod lock;
mod process;
mod random;
mod stack;
#[allow(unsafe_code)]
mod sys;

pub use buf::{Full, ReadError, SecretBuf};
pub use bytes::SecretBytes;
pub use lock::{LockFailure, lock_failure};
pub use process::{HardenError, harden_process};
pub use random::{RandomError, random};
pub use stack::wiping_stack;
pub use sys::{ForkCanary, ForkCanaryError, LockedBox, MapError, SharedRegion, relock_after_fork};
