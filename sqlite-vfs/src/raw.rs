//! A file of the VFS below, as the state machines see it.

use crate::error::Result;

/// How much of a read was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// Every byte.
    Full,
    /// The file ended before; the missing bytes are zero in the buffer.
    Short,
}

/// A file that is open in the VFS below. Bytes are as on disk.
///
/// Calls on one file never overlap: SQLite serializes them, and the handle that owns the file is behind a lock.
pub(crate) trait RawFile: Send {
    /// Reads `buf.len()` bytes at `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<Read>;

    /// Writes all of `data` at `offset`.
    fn write_at(&self, data: &[u8], offset: u64) -> Result<()>;

    /// Cuts the file to `size` bytes.
    fn truncate(&self, size: u64) -> Result<()>;

    /// Makes what was written durable. `flags` are SQLite's `SQLITE_SYNC_*`.
    fn sync(&self, flags: i32) -> Result<()>;

    /// Length in bytes.
    fn size(&self) -> Result<u64>;

    /// The file's path for messages.
    fn name(&self) -> &str;
}
