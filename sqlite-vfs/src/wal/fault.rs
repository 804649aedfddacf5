//! What can be wrong with a WAL.

/// Why a WAL cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalFault {
    /// The WAL of a plaintext database.
    #[error(
        "a plaintext WAL lies beside an encrypted database; it is not used: move it away if it is a remnant of the plaintext database"
    )]
    Plaintext,
    /// A WAL of a later format.
    #[error("the WAL has format {found}, which this program does not know; use a newer release")]
    Later {
        /// Format found.
        found: u8,
    },
    /// The header is not valid although SQLite has begun to use the WAL.
    #[error("the WAL's header was changed while the WAL was in use; close the database and open it again")]
    Header,
    /// The page size is another one than the database's.
    #[error(
        "the WAL has pages of {found} bytes, the database of {expected}; it is the WAL of another database or was changed"
    )]
    PageSize {
        /// Bytes that the WAL names.
        found: u32,
        /// Bytes that the database has.
        expected: u32,
    },
    /// A frame's header is not of this WAL.
    #[error(
        "the header of frame {frame} was changed, or comes from an earlier WAL; restore database and WAL from a backup"
    )]
    FrameHeader {
        /// The frame.
        frame: u32,
    },
    /// A frame that is written in two parts must repeat the one before it.
    #[error(
        "SQLite writes frame {frame} in parts and it does not repeat the frame before it, so that it cannot be sealed; the write was refused"
    )]
    Split {
        /// The frame.
        frame: u32,
    },
    /// SQLite asked for something that is no part of a WAL.
    #[error(
        "SQLite asked for {len} bytes at {offset}, which are no part of a WAL; nothing was read or written"
    )]
    Unexpected {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: usize,
    },
}
