//! The files beside a database: rollback journal, WAL and its index.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{At, Result};

/// Rollback journal and WAL of a database, as they lie there.
#[derive(Debug)]
pub(super) struct Sidecars {
    /// Length of the WAL in bytes.
    pub(super) wal: Option<u64>,
    pub(super) journal: Option<Journal>,
}

/// A rollback journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Journal {
    /// It begins with zeros, as after a transaction in journal mode PERSIST, or is empty.
    Done,
    /// It has a header: of a transaction under way, or of one that was cut short.
    Hot,
}

/// Why a database cannot be converted now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfinished {
    #[error(
        "{} holds changes that are not in the database yet; close all programs that use it, or run \
         `PRAGMA wal_checkpoint(TRUNCATE)` in one of them", .0.display()
    )]
    Wal(PathBuf),
    #[error(
        "{} is the journal of a transaction that is under way or was cut short; close all programs that use the database, and \
         open it once with SQLite (such as `PRAGMA quick_check`), which rolls back what is unfinished", .0.display()
    )]
    Journal(PathBuf),
}

impl Sidecars {
    pub(super) fn of(database: &Path) -> Result<Self> {
        let (wal, journal) = (beside(database, "-wal"), beside(database, "-journal"));
        Ok(Self { wal: length(&wal)?, journal: journal_state(&journal)? })
    }

    /// Refuses changes that are not in the database file.
    pub(super) fn refuse_unfinished(&self, database: &Path) -> std::result::Result<(), Unfinished> {
        if self.wal.is_some_and(|len| len > 0) {
            return Err(Unfinished::Wal(beside(database, "-wal")));
        }
        match self.journal {
            Some(Journal::Hot) => Err(Unfinished::Journal(beside(database, "-journal"))),
            _ => Ok(()),
        }
    }
}

/// The file whose name is the database's and `suffix`.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes a file; it need not be there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => Err(At { path: path.into(), source }.into()),
        _ => Ok(()),
    }
}

fn length(path: &Path) -> Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(At { path: path.into(), source }.into()),
    }
}

/// As SQLite decides it: a journal whose first byte is zero is none.
fn journal_state(path: &Path) -> Result<Option<Journal>> {
    // Not waiting for whoever may be at the other end of a pipe.
    let flags = OFlags::NONBLOCK.bits() as i32;
    let mut file = match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(At { path: path.into(), source }.into()),
    };
    let mut first = [0];
    let read = file.read(&mut first).map_err(|source| At { path: path.into(), source })?;
    Ok(Some(if read == 1 && first[0] != 0 { Journal::Hot } else { Journal::Done }))
}
