//! What an open file is, and what is done with it.

use core::ffi::{c_char, c_int};
use std::sync::atomic::AtomicI32;
use std::sync::{Arc, Mutex, MutexGuard};

use super::abi::{SQLITE_LOCK_NONE, SQLITE_OK};
use super::connection::Connection;
use super::parent::ParentFile;
use super::register::Shim;
use super::report::report;
use crate::database::Database;
use crate::error::{Result, VfsError};
use crate::journal::Journal;
use crate::main_db::{MainDb, State};
use crate::raw::{RawFile, Read};
use crate::temp::TempFile;
use crate::wal::Wal;

/// An open file of ours.
///
/// SQLite never uses one file from two threads at once, but what it is asked from within a method (`connection.rs`) may
/// come back to the same file. So the state is behind a lock, which is not held then.
pub(super) struct Handle {
    shim: &'static Shim,
    parent_version: c_int,
    kind: Mutex<Kind>,
    main: Option<MainPart>,
}

/// What only a main database has.
pub(super) struct MainPart {
    pub(super) connection: Connection,
    pub(super) database: Arc<Database>,
    /// SQLite's lock level.
    pub(super) lock: AtomicI32,
}

/// What a file is.
pub(super) enum Kind {
    /// Passed through: super-journals hold names only.
    Raw(ParentFile),
    Main(MainDb<ParentFile>),
    Temp(TempFile<ParentFile>),
    Journal(Journal, ParentFile),
    Wal(Wal, ParentFile),
}

impl Handle {
    fn new(shim: &'static Shim, kind: Kind, main: Option<MainPart>) -> Self {
        let parent_version = kind.parent().methods().iVersion;
        Self { shim, parent_version, kind: Mutex::new(kind), main }
    }

    pub(super) fn raw(shim: &'static Shim, parent: ParentFile) -> Self {
        Self::new(shim, Kind::Raw(parent), None)
    }

    pub(super) fn temp(shim: &'static Shim, file: TempFile<ParentFile>) -> Self {
        Self::new(shim, Kind::Temp(file), None)
    }

    pub(super) fn main(
        shim: &'static Shim,
        main: MainDb<ParentFile>,
        name: *const c_char,
        plain_temp: bool,
    ) -> Self {
        let database = main.database().clone();
        let connection = Connection::new(shim.api, name, plain_temp);
        let part = MainPart { connection, database, lock: AtomicI32::new(SQLITE_LOCK_NONE) };
        Self::new(shim, Kind::Main(main), Some(part))
    }

    pub(super) fn journal(shim: &'static Shim, parent: ParentFile, database: Arc<Database>) -> Self {
        Self::new(shim, Kind::Journal(Journal::new(database), parent), None)
    }

    pub(super) fn wal(shim: &'static Shim, parent: ParentFile, database: Arc<Database>) -> Self {
        Self::new(shim, Kind::Wal(Wal::new(database), parent), None)
    }

    /// Version of the methods of the file below.
    pub(super) fn parent_version(&self) -> c_int {
        self.parent_version
    }

    pub(super) fn shim(&self) -> &'static Shim {
        self.shim
    }

    pub(super) fn main_part(&self) -> Option<&MainPart> {
        self.main.as_ref()
    }

    /// The state. After a panic in the middle of a change nothing more is done with the file.
    pub(super) fn lock(&self) -> Result<MutexGuard<'_, Kind>> {
        self.kind
            .lock()
            .map_err(|poisoned| VfsError::Broken { file: poisoned.into_inner().parent().name().to_owned() })
    }

    /// Works with the state of a main database, if it is one.
    pub(super) fn with_main<T>(
        &self,
        work: impl FnOnce(&mut MainDb<ParentFile>) -> Result<T>,
    ) -> Result<Option<T>> {
        match &mut *self.lock()? {
            Kind::Main(main) => work(main).map(Some),
            _ => Ok(None),
        }
    }

    /// The code for an outcome; errors of ours are reported.
    pub(super) fn code(&self, outcome: Result<()>) -> c_int {
        match outcome {
            Ok(()) => SQLITE_OK,
            Err(VfsError::Below { code, .. }) => code,
            Err(error) => report(self.shim.api, error.code_at_io(), &error),
        }
    }

    /// Refuses a main database in a connection whose temporary files would be plaintext. Asked for at every use: with
    /// `nolock` or `immutable` SQLite takes no locks, and with a shared cache any connection may come.
    pub(super) fn check_temporary_files(&self) -> Result<()> {
        match &self.main {
            Some(part) => part.connection.check_temporary_files(part.database.path()),
            None => Ok(()),
        }
    }

    /// SQLite has taken a shared lock: another process may have made the database or changed its length.
    pub(super) fn after_shared_lock(&self) -> Result<()> {
        let Some(part) = &self.main else { return Ok(()) };
        self.check_temporary_files()?;
        if self.with_main(MainDb::look)? == Some(State::Empty) {
            part.connection.reserve_bytes();
        }
        Ok(())
    }
}

impl Kind {
    fn parent(&self) -> &ParentFile {
        match self {
            Self::Raw(parent) | Self::Journal(_, parent) | Self::Wal(_, parent) => parent,
            Self::Main(main) => main.raw(),
            Self::Temp(temp) => temp.raw(),
        }
    }

    pub(super) fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<Read> {
        match self {
            Self::Raw(parent) => parent.read_at(buf, offset),
            Self::Main(main) => main.read(buf, offset),
            Self::Temp(temp) => temp.read(buf, offset),
            Self::Journal(journal, parent) => journal.read(parent, buf, offset),
            Self::Wal(wal, parent) => wal.read(parent, buf, offset),
        }
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) -> Result<()> {
        match self {
            Self::Raw(parent) => parent.write_at(data, offset),
            Self::Main(main) => main.write(data, offset),
            Self::Temp(temp) => temp.write(data, offset),
            Self::Journal(journal, parent) => journal.write(parent, data, offset),
            Self::Wal(wal, parent) => wal.write(parent, data, offset),
        }
    }

    pub(super) fn truncate(&mut self, size: u64) -> Result<()> {
        match self {
            Self::Raw(parent) => parent.truncate(size),
            Self::Main(main) => main.truncate(size),
            Self::Temp(temp) => temp.truncate(size),
            Self::Journal(journal, parent) => journal.truncate(parent, size),
            Self::Wal(wal, parent) => wal.truncate(parent, size),
        }
    }

    pub(super) fn sync(&mut self, flags: c_int) -> Result<()> {
        match self {
            Self::Raw(parent) => parent.sync(flags),
            Self::Main(main) => main.raw().sync(flags),
            Self::Temp(temp) => temp.sync(flags),
            Self::Journal(journal, parent) => journal.sync(parent, flags),
            Self::Wal(wal, parent) => wal.sync(parent, flags),
        }
    }

    pub(super) fn size(&mut self) -> Result<u64> {
        match self {
            Self::Raw(parent) | Self::Journal(_, parent) | Self::Wal(_, parent) => parent.size(),
            Self::Main(main) => main.size(),
            Self::Temp(temp) => Ok(temp.size()),
        }
    }
}
