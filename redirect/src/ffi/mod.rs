//! Everything that touches the executable and libc, the only unsafe code of this crate.

pub(crate) mod calls;
pub(crate) mod slots;
