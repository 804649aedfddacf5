//! What can go wrong, with what, and which code SQLite is given for it.

use secret_mem::{ForkCanaryError, RandomError};

use crate::journal::JournalFault;
use crate::keys::{FileId, KeysError};
use crate::wal::WalFault;

/// Result of the shim's operations.
pub type Result<T, E = VfsError> = std::result::Result<T, E>;

/// Why an operation failed, as the second byte of SQLite's extended result codes.
///
/// The code is `primary | reason << 8`. `primary` is `SQLITE_CANTOPEN` when a file is opened (`SQLITE_NOTADB` if it
/// is not ours) and `SQLITE_IOERR` afterwards. `include/tde_sqlite.h` has the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Reason {
    /// The keyring has no such key.
    KeyMissing = 0xD0,
    /// The key is not the file's.
    KeyWrong = 0xD1,
    /// The key was destroyed on purpose.
    KeyDestroyed = 0xD2,
    /// The HSM cannot be used now.
    HsmAway = 0xD3,
    /// A page, or a part of a journal or WAL, was changed, moved or replaced.
    NotAuthentic = 0xD4,
    /// A page ends in zeros or was never written: a write was cut short.
    Torn = 0xD5,
    /// A plaintext database.
    PlaintextFile = 0xD6,
    /// Not a database of this VFS.
    NotOurs = 0xD7,
    /// The keyring cannot be read or written.
    Keyring = 0xD8,
    /// Settings are missing or contradict each other.
    Config = 0xD9,
    /// The file was opened before a fork.
    Forked = 0xDA,
    /// SQLite asked for something that an encrypted database cannot do.
    Unsupported = 0xDB,
    /// A newer program wrote the file.
    UnknownFormat = 0xDC,
    /// Temporary files of this connection would be plaintext.
    PlainTemp = 0xDD,
    /// The file under this name is another one than the one that was opened.
    OtherFile = 0xDE,
    /// A rollback journal cannot be used.
    Journal = 0xDF,
    /// A WAL cannot be used.
    Wal = 0xE0,
    /// The operating system refused something that safety depends on.
    System = 0xE1,
    /// No keyring has an entry for the file.
    NoEntry = 0xE2,
    /// The HSM answered no: a wrong PIN, a locked user, or no right to use the key.
    HsmRefused = 0xE3,
}

/// Where something that is sealed lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// A page of the database file, or its image in a rollback journal. Pages count from 1.
    Page(u32),
    /// A page in a WAL frame. Frames count from 1.
    Frame {
        /// The page that the frame holds.
        page: u32,
        /// The frame.
        frame: u32,
    },
    /// A unit of a temporary file. Units count from 0.
    TempUnit(u64),
}

impl core::fmt::Display for Place {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Page(page) => write!(f, "page {page}"),
            Self::Frame { page, frame } => write!(f, "page {page} in WAL frame {frame}"),
            Self::TempUnit(unit) => write!(f, "unit {unit}"),
        }
    }
}

/// Every way the shim can refuse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfsError {
    /// The VFS below failed; its code is handed on unchanged.
    #[error("{file}: {action} failed with SQLite result code {code}")]
    Below {
        /// The file.
        file: String,
        /// What was tried, one word.
        action: &'static str,
        /// SQLite's result code.
        code: i32,
    },
    /// Keys cannot be had.
    #[error("{file}: {}{source}", .place.map_or_else(String::new, |place| format!("{place}: ")))]
    Keys {
        /// The database file.
        file: String,
        /// What is sealed under the key, if it is about one.
        place: Option<Place>,
        /// Why.
        source: KeysError,
    },
    /// A tag is wrong.
    #[error(
        "{file}: {place} is not authentic (key version {version}): it was changed, moved here from elsewhere or sealed under another key; restore it from a backup"
    )]
    NotAuthentic {
        /// The file.
        file: String,
        /// Where in it.
        place: Place,
        /// Key version in the trailer.
        version: u32,
    },
    /// Zeros where a sealed page must be.
    #[error(
        "{file}: {place} was never written or its end is zero, as after a write that was cut short; restore it from a backup"
    )]
    Torn {
        /// The file.
        file: String,
        /// Where in it.
        place: Place,
    },
    /// A plaintext database.
    #[error(
        "{file} is a plaintext SQLite database; open it without vfs=tde, or convert it with `tde sqlite encrypt`"
    )]
    PlaintextFile {
        /// The file.
        file: String,
    },
    /// Not a database of this VFS.
    #[error("{file} is not an encrypted SQLite database of tde: its first bytes are something else")]
    NotOurs {
        /// The file.
        file: String,
    },
    /// A newer program wrote the file.
    #[error(
        "{file} has format version {found}, this program knows {known}; use a newer release, nothing was touched"
    )]
    UnknownFormat {
        /// The file.
        file: String,
        /// Version found.
        found: u8,
        /// Version known.
        known: u8,
    },
    /// Another file lies under the name than the one that was opened.
    #[error("{file} is now file {found}, but was {expected} when it was opened; close it and open it again")]
    OtherFile {
        /// The file.
        file: String,
        /// The id that was expected.
        expected: FileId,
        /// The id in the header.
        found: FileId,
    },
    /// Bytes 16..40 of page 1 cannot be those of an encrypted database.
    #[error("{file}: {what}")]
    Header {
        /// The file.
        file: String,
        /// What is wrong, with what to do.
        what: HeaderFault,
    },
    /// SQLite writes bytes into the space that page trailers need.
    #[error(
        "{file}: {place} uses the last 32 bytes that encryption needs; the pages come from a database without them: use `tde sqlite encrypt`, or VACUUM INTO"
    )]
    ReserveInUse {
        /// The file.
        file: String,
        /// The page.
        place: Place,
    },
    /// A read or write that is no page of this database.
    #[error(
        "{file}: SQLite asked for {len} bytes at {offset}, which does not fit pages of {page_size} bytes; nothing was written"
    )]
    Misplaced {
        /// The file.
        file: String,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: usize,
        /// Page size in bytes, 0 if not known yet.
        page_size: u32,
    },
    /// The handle was opened in a parent process.
    #[error("{file} was opened before a fork; a child process must open its own connection")]
    Forked {
        /// The file.
        file: String,
    },
    /// The connection's main database is not on this VFS, so its temporary files would not be encrypted.
    #[error(
        "{file}: the connection's main database is not under vfs=tde, so sorter and temporary files would be plaintext; open the main database under vfs=tde (also `file::memory:?vfs=tde`), or allow it with the URI parameter plain_temp=1"
    )]
    PlainTemp {
        /// The file.
        file: String,
    },
    /// The connection's main database lies in memory, so that it does not show where temporary files go.
    #[error(
        "{file}: the connection's main database was replaced by sqlite3_deserialize (or is under vfs=memdb), which hides whether temporary files would be encrypted; run `PRAGMA temp.page_size` first if the connection was opened under vfs=tde, or attach before deserializing"
    )]
    MainInMemory {
        /// The file.
        file: String,
    },
    /// A rollback journal cannot be used.
    #[error("{file}: {fault}")]
    Journal {
        /// The journal.
        file: String,
        /// Why.
        fault: JournalFault,
    },
    /// A WAL cannot be used.
    #[error("{file}: {fault}")]
    Wal {
        /// The WAL.
        file: String,
        /// Why.
        fault: WalFault,
    },
    /// A journal or WAL whose database was not opened under this VFS.
    #[error("{file}: its database is not open under vfs=tde, so it has no key")]
    NoDatabase {
        /// The journal or WAL.
        file: String,
    },
    /// There is nothing to rotate.
    #[error("{file} is still empty and has no key; write something first")]
    NoKeysYet {
        /// The database file.
        file: String,
    },
    /// A bug has left a handle half changed.
    #[error("{file}: an earlier operation broke off in the middle; close the connection and open it again")]
    Broken {
        /// The file.
        file: String,
    },
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// Forks cannot be noticed.
    #[error(transparent)]
    ForkCanary(#[from] ForkCanaryError),
}

/// What is wrong with the header that SQLite wants to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// No SQLite header.
    #[error("page 1 does not begin with SQLite's header; nothing was written")]
    Magic,
    /// The page size is none.
    #[error("page 1 names no page size that SQLite knows; nothing was written")]
    PageSize,
    /// The page size changes.
    #[error(
        "the page size of an encrypted database cannot be changed in place ({from} to {to}); use VACUUM INTO a new file after PRAGMA page_size"
    )]
    PageSizeChange {
        /// Bytes so far.
        from: u32,
        /// Bytes asked for.
        to: u32,
    },
    /// Not 32 reserved bytes.
    #[error(
        "page 1 has {found} reserved bytes a page, encryption needs 32; a backup from a plaintext database cannot be taken into an encrypted one: use `tde sqlite encrypt`, or VACUUM INTO"
    )]
    Reserve {
        /// Byte 20.
        found: u8,
    },
}

/// Result codes of SQLite that the shim returns by itself.
pub(crate) mod sqlite_code {
    pub(crate) const ERROR: i32 = 1;
    pub(crate) const IOERR: i32 = 10;
    pub(crate) const CANTOPEN: i32 = 14;
    pub(crate) const NOTADB: i32 = 26;
}

impl VfsError {
    /// Names what a key was needed for.
    pub(crate) fn for_place(mut self, needed_for: Place) -> Self {
        if let Self::Keys { place, .. } = &mut self {
            *place = Some(needed_for);
        }
        self
    }

    /// Why, as a number; none if the VFS below gave the code.
    pub fn reason(&self) -> Option<Reason> {
        Some(match self {
            Self::Below { .. } => return None,
            Self::Keys { source, .. } => source.reason(),
            Self::NotAuthentic { .. } => Reason::NotAuthentic,
            Self::Torn { .. } => Reason::Torn,
            Self::PlaintextFile { .. } => Reason::PlaintextFile,
            Self::NotOurs { .. } => Reason::NotOurs,
            Self::UnknownFormat { .. } => Reason::UnknownFormat,
            Self::OtherFile { .. } => Reason::OtherFile,
            Self::Header { .. } | Self::ReserveInUse { .. } | Self::Misplaced { .. } => Reason::Unsupported,
            Self::Forked { .. } => Reason::Forked,
            Self::PlainTemp { .. } | Self::MainInMemory { .. } => Reason::PlainTemp,
            Self::Journal { .. } => Reason::Journal,
            Self::Wal { .. } => Reason::Wal,
            Self::NoDatabase { .. } => Reason::Config,
            Self::NoKeysYet { .. } => Reason::Unsupported,
            Self::Broken { .. } | Self::Random(_) | Self::ForkCanary(_) => Reason::System,
        })
    }

    /// The extended result code when a file is opened.
    pub fn code_at_open(&self) -> i32 {
        match self {
            Self::PlaintextFile { .. } | Self::NotOurs { .. } => self.code(sqlite_code::NOTADB),
            _ => self.code(sqlite_code::CANTOPEN),
        }
    }

    /// The extended result code of reads, writes, locks and syncs. `SQLITE_IOERR` is what makes SQLite's pager give up
    /// a transaction.
    pub fn code_at_io(&self) -> i32 {
        self.code(sqlite_code::IOERR)
    }

    fn code(&self, primary: i32) -> i32 {
        match (self, self.reason()) {
            (Self::Below { code, .. }, _) => *code,
            (_, Some(reason)) => primary | i32::from(reason as u8) << 8,
            (_, None) => primary,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn the_c_header_has_the_same_numbers() {
        let header = include_str!("../include/tde_sqlite.h");
        let reasons = [
            ("KEY_MISSING", Reason::KeyMissing),
            ("KEY_WRONG", Reason::KeyWrong),
            ("KEY_DESTROYED", Reason::KeyDestroyed),
            ("HSM_AWAY", Reason::HsmAway),
            ("NOT_AUTHENTIC", Reason::NotAuthentic),
            ("TORN", Reason::Torn),
            ("PLAINTEXT_FILE", Reason::PlaintextFile),
            ("NOT_OURS", Reason::NotOurs),
            ("KEYRING", Reason::Keyring),
            ("CONFIG", Reason::Config),
            ("FORKED", Reason::Forked),
            ("UNSUPPORTED", Reason::Unsupported),
            ("UNKNOWN_FORMAT", Reason::UnknownFormat),
            ("PLAIN_TEMP", Reason::PlainTemp),
            ("OTHER_FILE", Reason::OtherFile),
            ("JOURNAL", Reason::Journal),
            ("WAL", Reason::Wal),
            ("SYSTEM", Reason::System),
            ("NO_ENTRY", Reason::NoEntry),
            ("HSM_REFUSED", Reason::HsmRefused),
        ];
        for (name, reason) in reasons {
            let line = header.lines().find(|line| line.starts_with(&format!("#define TDE_SQLITE_{name} ")));
            let number = format!("0x{:X}", reason as u8);
            assert!(line.is_some_and(|line| line.contains(&number)), "{name} {number}");
        }
        assert_eq!(header.matches("  0xD").count() + header.matches("  0xE").count(), reasons.len());
    }
}
