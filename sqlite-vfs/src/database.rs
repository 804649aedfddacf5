//! What the handles of one connection to one file share: database, rollback journal and WAL.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};

use crate::error::{Place, Result, VfsError};
use crate::keys::{FileId, FileKeys, KeySource, KeysError};

/// One open database file: whose it is, its keys and its page size.
///
/// Made when SQLite opens the file; its journal and WAL find it by the address of the file name, which SQLite keeps in
/// the same block of memory as theirs.
pub(crate) struct Database {
    path: String,
    source: Arc<dyn KeySource>,
    /// None while the file is empty, or its header is torn and no journal has named it.
    keys: RwLock<Option<Arc<FileKeys>>>,
    /// Counts how often `keys` became others, so that handles can keep what they have.
    generation: AtomicU32,
    /// Counts read transactions in WAL mode.
    wal_reads: AtomicU32,
    /// Whether `keys` are those of a header that was seen on disk (or authenticated in a journal). Until then another
    /// process may still be the one that makes the file.
    settled: AtomicBool,
    /// Whether the file had no bytes when it was last looked at. Only then may keys be made for it.
    empty: AtomicBool,
    /// Zero while unknown.
    page_size: AtomicU32,
}

impl Database {
    /// A database whose keys are not known yet.
    pub(crate) fn new(path: String, source: Arc<dyn KeySource>) -> Self {
        Self {
            path,
            source,
            keys: RwLock::new(None),
            generation: AtomicU32::new(0),
            wal_reads: AtomicU32::new(0),
            settled: AtomicBool::new(false),
            empty: AtomicBool::new(false),
            page_size: AtomicU32::new(0),
        }
    }

    /// The database file's path, for messages.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Keys, if it is known whose file it is. A lock that only handles of this connection take.
    pub(crate) fn keys(&self) -> Option<Arc<FileKeys>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes whenever [`keys`](Self::keys) gives others than before.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// A read transaction begins in WAL mode: another process may have begun the WAL anew since the last one.
    pub(crate) fn begin_wal_read(&self) {
        self.wal_reads.fetch_add(1, Ordering::AcqRel);
    }

    /// Changes with each read transaction in WAL mode: what is known of the WAL holds only as long as this does.
    pub(crate) fn wal_reads(&self) -> u32 {
        self.wal_reads.load(Ordering::Acquire)
    }

    /// Whether a header on disk has confirmed whose file it is.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// A header on disk, of the database or of its journal, says that the file is `id`.
    pub(crate) fn adopt(&self, id: FileId) -> Result<Arc<FileKeys>> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*keys {
            if known.file_id() == id {
                self.settled.store(true, Ordering::Release);
                return Ok(known.clone());
            }
            if self.is_settled() {
                let (file, expected) = (self.path.clone(), known.file_id());
                return Err(VfsError::OtherFile { file, expected, found: id });
            }
        }
        let found = self.source.existing(id, &self.path).map_err(|source| self.keys_error(source))?;
        *keys = Some(found.clone());
        self.generation.fetch_add(1, Ordering::Release);
        self.settled.store(true, Ordering::Release);
        Ok(found)
    }

    /// Keys to write with: of a file that is still empty they are made now.
    ///
    /// SQLite writes only under its RESERVED lock (where it locks at all), and has looked at the header since.
    pub(crate) fn keys_to_write(&self) -> Result<Arc<FileKeys>> {
        if let Some(known) = self.keys() {
            return Ok(known);
        }
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*keys {
            return Ok(known.clone());
        }
        if !self.is_empty() {
            return Err(VfsError::Torn { file: self.path.clone(), place: Place::Page(1) });
        }
        let made = self.source.create(&self.path).map_err(|source| self.keys_error(source))?;
        *keys = Some(made.clone());
        self.generation.fetch_add(1, Ordering::Release);
        Ok(made)
    }

    /// Page 1 was written: what file it is stays.
    pub(crate) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
        self.empty.store(false, Ordering::Release);
    }

    /// Whether the file had no bytes when it was last looked at.
    pub(crate) fn is_empty(&self) -> bool {
        self.empty.load(Ordering::Acquire)
    }

    /// The file has no bytes, or has some. An empty file may be made anew by another process, with another id and
    /// another page size.
    pub(crate) fn set_empty(&self, empty: bool) {
        self.empty.store(empty, Ordering::Release);
        if empty {
            self.settled.store(false, Ordering::Release);
            self.page_size.store(0, Ordering::Release);
        }
    }

    /// Whether keys for a new file could be made.
    pub(crate) fn ready_to_create(&self) -> Result<()> {
        self.source.ready(&self.path).map_err(|source| self.keys_error(source))
    }

    /// Page size in bytes, if known.
    pub(crate) fn page_size(&self) -> Option<u32> {
        Some(self.page_size.load(Ordering::Acquire)).filter(|size| *size != 0)
    }

    /// The page size of the file is known now, or is another one.
    pub(crate) fn set_page_size(&self, size: u32) {
        self.page_size.store(size, Ordering::Release);
    }

    /// A key error with this file's name.
    pub(crate) fn keys_error(&self, source: KeysError) -> VfsError {
        VfsError::Keys { file: self.path.clone(), place: None, source }
    }
}

/// The databases that are open now, by the address of the name that SQLite opened them with. It is looked at when a
/// file is opened or closed, never to read or write.
static OPEN: LazyLock<Mutex<HashMap<usize, Arc<Database>>>> = LazyLock::new(Mutex::default);

/// Makes `database` known under the address of its name, until [`forget`].
pub(crate) fn remember(name_address: usize, database: Arc<Database>) {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).insert(name_address, database);
}

/// The database that was opened with the name at this address.
pub(crate) fn find(name_address: usize) -> Option<Arc<Database>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).get(&name_address).cloned()
}

/// The database's file was closed.
pub(crate) fn forget(name_address: usize) {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&name_address);
}
