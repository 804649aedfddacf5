//! A database file looked at without SQLite: what it is, and whether each of its pages opens.
//!
//! Closing any descriptor of a file gives up all POSIX locks that the process has on it. So a [`DatabaseFile`] must be opened before
//! the first SQLite connection to the file in the process, and dropped after the last one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{ControlFlow, RangeInclusive};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

mod wal;

pub use wal::{FrameFault, WalVerdict};

use crate::format::header::{self, CLEAR_LEN, Found};
use crate::format::page::{self, Closed, Identity, Kind};
use crate::keys::{FileId, FileKeys, KeysError};

/// SQLite leaves the page that holds this byte unused, for its locks.
const LOCK_BYTE: u64 = 1 << 30;
/// Bytes read at once.
const BATCH: usize = 1 << 20;
/// How often a page that does not open is read again: another process may be writing it.
const TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(2);
/// How many bad pages are kept.
const KEPT: usize = 100;

/// What a file is, by its first bytes and its length.
#[derive(Debug)]
#[non_exhaustive]
pub enum Identified {
    /// An encrypted database.
    Encrypted(DatabaseFile),
    /// A plaintext database.
    Plaintext(ClearFacts),
    /// No bytes: SQLite takes it for a database that is yet to be made.
    Empty,
    /// Zeros at its beginning: page 1 was never written, or its write was cut short.
    Torn,
    /// An encrypted database whose clear header names no page size: it was changed, or its write was cut short.
    NoPageSize,
    /// An encrypted database in the format of a later release.
    Later(u8),
    /// Anything else.
    Foreign,
}

/// What the clear bytes 16..40 of a database say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClearFacts {
    /// Page size in bytes.
    pub page_size: u32,
    /// Bytes that SQLite leaves free at the end of each page.
    pub reserved: u8,
    /// Whether it is in WAL mode.
    pub wal_mode: bool,
    /// How often it was changed, as far as SQLite counts.
    pub change_counter: u32,
    /// Pages that hold nothing.
    pub free_pages: u32,
}

impl ClearFacts {
    fn of(header: &[u8; CLEAR_LEN]) -> Option<Self> {
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        Some(Self {
            page_size: header::page_size(header)?,
            reserved: header[20],
            wal_mode: header[18] == 2 || header[19] == 2,
            change_counter: number(24),
            free_pages: number(36),
        })
    }
}

/// A file could not be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OfflineError {
    /// The operating system said no.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A folder, a pipe or a device.
    #[error("{} is no regular file", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// Whoever asked does not want to know any more.
    #[error("stopped before {} was looked at whole", path.display())]
    Stopped {
        /// The file.
        path: PathBuf,
    },
}

type Result<T> = std::result::Result<T, OfflineError>;

/// An encrypted database file, open for reading.
#[derive(Debug)]
pub struct DatabaseFile {
    path: PathBuf,
    file: File,
    id: FileId,
    facts: ClearFacts,
}

/// What is wrong with a page.
#[derive(Debug)]
#[non_exhaustive]
pub enum PageFault {
    /// Changed, moved or replaced.
    NotAuthentic {
        /// The key version in its trailer.
        version: u32,
    },
    /// Never written, or its write was cut short.
    Torn,
    /// The key it names cannot be had.
    Key(KeysError),
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthentic { version } => {
                write!(f, "not authentic (key version {version}): changed, moved or replaced")
            }
            Self::Torn => f.write_str("never written, or its write was cut short"),
            Self::Key(error) => error.fmt(f),
        }
    }
}

/// What a look at every page found.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Pages that opened, by key version.
    pub good: BTreeMap<u32, u64>,
    /// Pages that did not open; the first hundred.
    pub bad: Vec<(u32, PageFault)>,
    /// How many did not open.
    pub bad_count: u64,
    /// Bytes after the last whole page.
    pub rest: u64,
}

impl Verdict {
    /// Whether every byte belongs to a page that opens.
    pub fn is_good(&self) -> bool {
        self.bad_count == 0 && self.rest == 0
    }
}

/// Says what the file at `path` is.
///
/// # Errors
/// It cannot be opened or read.
pub fn identify(path: &Path) -> Result<Identified> {
    let failed = |action| move |source| OfflineError::Io { action, path: path.into(), source };
    let file = open_regular(path)?;
    let len = file.metadata().map_err(failed("look at"))?.len();
    if len == 0 {
        return Ok(Identified::Empty);
    }
    let mut head = [0; CLEAR_LEN];
    if len < CLEAR_LEN as u64 {
        return Ok(Identified::Foreign);
    }
    file.read_exact_at(&mut head, 0).map_err(failed("read"))?;
    Ok(match header::identify(&head) {
        Found::Plaintext => ClearFacts::of(&head).map_or(Identified::Foreign, Identified::Plaintext),
        Found::Zero => Identified::Torn,
        Found::Later(format) => Identified::Later(format),
        Found::Ours(found) => match ClearFacts::of(&head) {
            Some(facts) => {
                Identified::Encrypted(DatabaseFile { path: path.into(), file, id: found.id, facts })
            }
            None => Identified::NoPageSize,
        },
        Found::Foreign => Identified::Foreign,
    })
}

/// Opens a file to read. Never waits for whoever may be at the other end of a pipe.
fn open_regular(path: &Path) -> Result<File> {
    let failed = |action| move |source| OfflineError::Io { action, path: path.into(), source };
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(failed("open"))?;
    if file.metadata().map_err(failed("look at"))?.is_file() {
        Ok(file)
    } else {
        Err(OfflineError::NoFile { path: path.into() })
    }
}

impl DatabaseFile {
    /// The file's id.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// What its clear header says. Not proven before page 1 was verified.
    pub fn facts(&self) -> ClearFacts {
        self.facts
    }

    /// Length in bytes.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn len(&self) -> Result<u64> {
        let failed = |source| OfflineError::Io { action: "look at", path: self.path.clone(), source };
        Ok(self.file.metadata().map_err(failed)?.len())
    }

    /// Whether there is nothing in it any more.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Whole pages.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn pages(&self) -> Result<u32> {
        let pages = self.len()? / u64::from(self.facts.page_size);
        // SQLite counts pages with 32 bits.
        Ok(u32::try_from(pages).unwrap_or(u32::MAX))
    }

    /// Whether SQLite leaves the page unused, for its locks.
    pub fn is_lock_page(&self, page: u32) -> bool {
        u64::from(page) == LOCK_BYTE / u64::from(self.facts.page_size) + 1
    }

    /// Pages by the key version in their trailers, which anybody can write: a survey, no proof. Version 0 stands for pages that were
    /// never written or whose write was cut short.
    ///
    /// # Errors
    /// The file cannot be read, or `progress`, which is told of each page done, stops it.
    pub fn versions(&self, mut progress: impl FnMut(u32) -> ControlFlow<()>) -> Result<BTreeMap<u32, u64>> {
        let mut versions = BTreeMap::new();
        self.each_page(1..=self.pages()?, &mut progress, |number, bytes| {
            if !self.is_lock_page(number) {
                *versions.entry(page::version(bytes)).or_default() += 1;
            }
        })?;
        Ok(versions)
    }

    /// Whether any of these pages is under an older key version than `version`, by the trailers.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn any_older(&self, pages: RangeInclusive<u32>, version: u32) -> Result<bool> {
        let mut any = false;
        let end = (*pages.end()).min(self.pages()?);
        self.each_page(*pages.start()..=end, &mut |_| ControlFlow::Continue(()), |number, bytes| {
            any |= !self.is_lock_page(number) && page::version(bytes) < version;
        })?;
        Ok(any)
    }

    /// Opens every page with its key, except the one that SQLite keeps for its locks: that holds nothing, is never rewritten, and so stays
    /// under its first key. The WAL is not looked at.
    ///
    /// # Errors
    /// The file cannot be read, or `progress`, which is told of each page done, stops it.
    pub fn verify(
        &self,
        keys: &FileKeys,
        mut progress: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let mut failed = None;
        self.each_page(1..=self.pages()?, &mut progress, |number, bytes| {
            if self.is_lock_page(number) {
                return;
            }
            let version = page::version(bytes);
            // The hundredth bad page is not worth waiting for a writer.
            let opened = if verdict.bad.len() < KEPT {
                self.open_page(keys, number, bytes)
            } else {
                Ok(self.try_open(keys, number, bytes))
            };
            match opened {
                Ok(Ok(())) => *verdict.good.entry(version).or_default() += 1,
                Ok(Err(fault)) => {
                    verdict.bad_count += 1;
                    if verdict.bad.len() < KEPT {
                        verdict.bad.push((number, fault));
                    }
                }
                Err(error) => failed = failed.take().or(Some(error)),
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        verdict.rest = self.len()? % u64::from(self.facts.page_size);
        Ok(verdict)
    }

    /// Opens a page that was read. One that does not open is read again: another process may have been writing it.
    fn open_page(
        &self,
        keys: &FileKeys,
        number: u32,
        bytes: &mut [u8],
    ) -> Result<std::result::Result<(), PageFault>> {
        let mut before = Vec::new();
        for _ in 0..TRIES {
            before.clear();
            before.extend_from_slice(bytes);
            let Err(fault) = self.try_open(keys, number, bytes) else { return Ok(Ok(())) };
            thread::sleep(BETWEEN_TRIES);
            self.read(bytes, number)?;
            if *before == *bytes {
                return Ok(Err(fault));
            }
        }
        Ok(self.try_open(keys, number, bytes))
    }

    fn try_open(&self, keys: &FileKeys, number: u32, bytes: &mut [u8]) -> std::result::Result<(), PageFault> {
        let version = page::version(bytes);
        if version == 0 {
            return Err(PageFault::Torn);
        }
        let keys = keys.version(version).map_err(PageFault::Key)?;
        let identity = Identity { file: self.id, page: number, kind: Kind::Database };
        page::open(&keys, identity, bytes).map_err(|closed| match closed {
            Closed::Torn => PageFault::Torn,
            Closed::NotAuthentic => PageFault::NotAuthentic { version },
        })
    }

    fn read(&self, bytes: &mut [u8], number: u32) -> Result<()> {
        let offset = u64::from(number - 1) * u64::from(self.facts.page_size);
        let failed = |source| OfflineError::Io { action: "read", path: self.path.clone(), source };
        self.file.read_exact_at(bytes, offset).map_err(failed)
    }

    fn each_page(
        &self,
        pages: RangeInclusive<u32>,
        progress: &mut impl FnMut(u32) -> ControlFlow<()>,
        mut look: impl FnMut(u32, &mut [u8]),
    ) -> Result<()> {
        let page_size = self.facts.page_size as usize;
        let mut batch = vec![0; BATCH];
        let (mut next, last) = pages.into_inner();
        while next <= last {
            let count = (BATCH / page_size).min((last - next) as usize + 1);
            let bytes = &mut batch[..count * page_size];
            self.read(bytes, next)?;
            for page in bytes.chunks_exact_mut(page_size) {
                look(next, page);
                if progress(next).is_break() {
                    return Err(OfflineError::Stopped { path: self.path.clone() });
                }
                let Some(following) = next.checked_add(1) else { return Ok(()) };
                next = following;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_page_is_where_sqlite_leaves_it() {
        let file = tempfile::tempfile().unwrap();
        let facts =
            ClearFacts { page_size: 0, reserved: 32, wal_mode: false, change_counter: 1, free_pages: 0 };
        let mut database = DatabaseFile { path: "test".into(), file, id: FileId([0; 12]), facts };
        // PENDING_BYTE_PAGE of SQLite's pager.c: 1 GiB / page size + 1.
        for (page_size, page) in [(512, 2_097_153), (1024, 1_048_577), (4096, 262_145), (65536, 16_385)] {
            database.facts.page_size = page_size;
            assert!(database.is_lock_page(page));
            assert!(!database.is_lock_page(page - 1) && !database.is_lock_page(page + 1));
        }
    }
}
