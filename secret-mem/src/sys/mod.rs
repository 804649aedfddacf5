//! The only unsafe code of this crate: mappings, the slots cut from them, and values placed in slots.

mod arena;
mod fork;
mod locked_box;
mod mapping;
mod shared;
#[cfg(test)]
mod tests;

pub(crate) use arena::Slot;
pub use arena::relock_after_fork;
pub use fork::{ForkCanary, ForkCanaryError};
pub use locked_box::LockedBox;
pub use shared::{MapError, SharedRegion};
