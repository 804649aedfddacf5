//! Bytes on disk, one module per format.

pub(crate) mod header;
pub(crate) mod journal;
pub(crate) mod page;
pub(crate) mod wal;
