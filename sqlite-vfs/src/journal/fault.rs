//! What can be wrong with a rollback journal.

use crate::format::journal::Rejected;
use crate::keys::FileId;

/// Why a rollback journal cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalFault {
    /// A header without our padding.
    #[error(
        "the header at {offset} was not written by tde: it is the journal of another database or of a plaintext one; move it away only if you know that it does not belong here"
    )]
    Foreign {
        /// Offset of the header in bytes.
        offset: u64,
    },
    /// A header of a later format.
    #[error(
        "the header at {offset} has format {found}, which this program does not know; use a newer release"
    )]
    Later {
        /// Offset of the header in bytes.
        offset: u64,
        /// Format found.
        found: u8,
    },
    /// The journal of another file.
    #[error(
        "the header at {offset} is of file {found}: the journal of another database lies here; move it away"
    )]
    OtherFile {
        /// Offset of the header in bytes.
        offset: u64,
        /// The file's id in the header.
        found: FileId,
    },
    /// The MAC of a header is wrong.
    #[error("the header at {offset} was changed; restore database and journal from a backup")]
    HeaderChanged {
        /// Offset of the header in bytes.
        offset: u64,
    },
    /// A record that was durable has changed.
    #[error(
        "the record at {offset} was changed after it was complete; restore database and journal from a backup"
    )]
    RecordChanged {
        /// Offset of the record in bytes.
        offset: u64,
    },
    /// The file ends within records that were durable.
    #[error(
        "the file was cut off within its records, at {offset}; restore database and journal from a backup"
    )]
    Cut {
        /// Offset of the record that is not there, in bytes.
        offset: u64,
    },
    /// SQLite wrote something that belongs in no journal.
    #[error(
        "SQLite wrote {len} bytes at {offset}, where they have no place in a journal; nothing was written"
    )]
    Unexpected {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: usize,
    },
}

impl JournalFault {
    /// A header at `offset` that must not be used.
    pub(super) fn of_header(rejected: Rejected, offset: u64) -> Self {
        match rejected {
            Rejected::Foreign => Self::Foreign { offset },
            Rejected::Later(found) => Self::Later { offset, found },
            Rejected::NotAuthentic => Self::HeaderChanged { offset },
        }
    }
}
