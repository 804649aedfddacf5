//! Bytes on disk, one module per format.

pub(crate) mod header;
pub(crate) mod page;
