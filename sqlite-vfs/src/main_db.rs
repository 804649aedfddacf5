//! The database file: whole pages sealed and opened, its clear header presented as SQLite's.
//!
//! SQLite reads and writes whole pages, except: the first 100 bytes when it opens the file, 16 bytes at 24 when a
//! transaction begins, and parts of overflow pages in some versions. Another connection may still have another page
//! size in mind. So everything but the aligned single page is served by the page size in the clear header.
//!
//! The file never gets holes. Before a page beyond the end is written, the pages between are written as sealed zeros,
//! so that zeros below the end are always an error (but the lock page, which SQLite never looks at). Page 1 alone may be zero while the first transaction is under way:
//! the journal of such a transaction rolls back to an empty file. A crash while a gap is being filled leaves pages that
//! the transaction's journal cuts off, or that the next checkpoint fills again unless their WAL frames follow.

use std::sync::Arc;

use crate::database::Database;
use crate::error::{HeaderFault, Place, Result, VfsError};
use crate::format::header::{self, CLEAR_LEN, FORMAT, Found};
use crate::format::page::{self, Closed, Identity, Kind};
use crate::keys::{FileKeys, VersionKeys};
use crate::nonce::NonceSource;
use crate::raw::{RawFile, Read};

/// Length of SQLite's own header, which it reads before it knows the page size.
const SQLITE_HEADER_LEN: u64 = 100;

/// No file has more versions of its key (keyring: 4096 a line): a trailer that names more was changed, and the
/// keyring need not be asked.
const MAX_VERSION: u32 = 4096;

/// What a look at the file's beginning has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// No bytes: a database that is yet to be made.
    Empty,
    /// An encrypted database whose keys are at hand.
    Known,
    /// Page 1 is torn or not written yet. Only a hot journal can help.
    Headless,
}

/// The keys used last.
#[derive(Clone)]
struct Cached {
    /// Of [`Database::generation`].
    generation: u32,
    file: Arc<FileKeys>,
    keys: Arc<VersionKeys>,
}

/// An open database file.
pub(crate) struct MainDb<R> {
    raw: R,
    db: Arc<Database>,
    nonces: NonceSource,
    cached: Option<Cached>,
    scratch: Vec<u8>,
    /// Length of the file in bytes, where no other process can have changed it since.
    end: Option<u64>,
}

impl<R: RawFile> MainDb<R> {
    /// Takes over an open file. Nothing is read yet.
    pub(crate) fn new(raw: R, db: Arc<Database>) -> Result<Self> {
        Ok(Self { raw, db, nonces: NonceSource::new()?, cached: None, scratch: Vec::new(), end: None })
    }

    /// What the handles of this file share.
    pub(crate) fn database(&self) -> &Arc<Database> {
        &self.db
    }

    /// The file below.
    pub(crate) fn raw(&self) -> &R {
        &self.raw
    }

    /// Finds out whose file it is, unless that is known. To be called when the file was opened and whenever a shared
    /// lock was taken, because another process may have made the database in between.
    pub(crate) fn look(&mut self) -> Result<State> {
        self.end = None;
        if self.db.is_settled() {
            return Ok(State::Known);
        }
        let mut clear = [0; CLEAR_LEN];
        if self.raw.read_at(&mut clear, 0)? == Read::Short && self.size()? == 0 {
            return Ok(State::Empty);
        }
        self.db.set_empty(false);
        match header::identify(&clear) {
            Found::Zero | Found::Foreign => Ok(State::Headless),
            _ => self.adopt(&clear).map(|_| State::Known),
        }
    }

    /// The error for a file that is [`State::Headless`] and has no journal to mend it.
    pub(crate) fn headless(&self) -> VfsError {
        let file = self.db.path().to_owned();
        let mut clear = [0; CLEAR_LEN];
        match self.raw.read_at(&mut clear, 0) {
            Err(error) => error,
            Ok(_) if header::identify(&clear) == Found::Foreign => VfsError::NotOurs { file },
            Ok(_) => VfsError::Torn { file, place: Place::Page(1) },
        }
    }

    /// A shared lock was taken, all locks were given up or a checkpoint begins: others may have changed the length.
    pub(crate) fn forget_size(&mut self) {
        self.end = None;
    }

    /// Reads any range, as SQLite knows it.
    pub(crate) fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<Read> {
        if let Some(size) = self.db.page_size()
            && buf.len() == size as usize
            && offset.is_multiple_of(u64::from(size))
        {
            let number = page_number(offset, size);
            if number != 1 {
                return self.read_page(buf, number);
            }
        } else if offset >= 16 && offset + buf.len() as u64 <= CLEAR_LEN as u64 {
            return self.raw.read_at(buf, offset);
        }
        self.read_by_header(buf, offset)
    }

    /// Writes one page. Everything else is refused.
    pub(crate) fn write(&mut self, data: &[u8], offset: u64) -> Result<()> {
        let size = self.size_to_write(data, offset)?;
        let number = page_number(offset, size);
        if number == 1 {
            header::check_page_one(data).map_err(|what| self.header_fault(what))?;
        }
        if !page::reserve_is_free(data) {
            return Err(VfsError::ReserveInUse { file: self.file(), place: Place::Page(number) });
        }
        self.fill_gap(offset, size)?;
        self.scratch.clear();
        self.scratch.extend_from_slice(data);
        self.seal_and_write(number)?;
        if number == 1 {
            self.db.settle();
        }
        Ok(())
    }

    /// Cuts the file, or extends it with sealed pages.
    pub(crate) fn truncate(&mut self, size: u64) -> Result<()> {
        if let Some(page_size) = self.db.page_size()
            && size > self.length()?
        {
            return self.fill_gap(size, page_size);
        }
        self.raw.truncate(size)?;
        self.end = Some(size);
        if size == 0 {
            self.db.set_empty(true);
        }
        Ok(())
    }

    /// Length of the file in bytes, as SQLite asks for it.
    pub(crate) fn size(&mut self) -> Result<u64> {
        let size = self.length()?;
        if size == 0 {
            self.db.set_empty(true);
        }
        Ok(size)
    }

    fn length(&mut self) -> Result<u64> {
        let length = self.raw.size()?;
        self.end = Some(length);
        Ok(length)
    }

    /// Reads and opens one page of the size that `buf` has.
    pub(crate) fn read_page(&mut self, buf: &mut [u8], number: u32) -> Result<Read> {
        let offset = u64::from(number - 1) * buf.len() as u64;
        if self.raw.read_at(buf, offset)? == Read::Short {
            if buf.iter().all(|byte| *byte == 0) {
                return Ok(Read::Short);
            }
            buf.fill(0);
            return Err(VfsError::Torn { file: self.file(), place: Place::Page(number) });
        }
        match self.open_page(buf, number) {
            Ok(()) => Ok(Read::Full),
            Err(error) => {
                buf.fill(0);
                Err(error)
            }
        }
    }

    fn open_page(&mut self, buf: &mut [u8], number: u32) -> Result<()> {
        let version = page::version(buf);
        let torn = |file| VfsError::Torn { file, place: Place::Page(number) };
        if version == 0 {
            return Err(torn(self.file()));
        }
        if version > MAX_VERSION {
            return Err(VfsError::NotAuthentic { file: self.file(), place: Place::Page(number), version });
        }
        let generation = self.db.generation();
        let Cached { file, keys, .. } = match self.cached_keys() {
            Some(cached) if cached.keys.version == version => cached.clone(),
            _ => match self.db.keys() {
                Some(file) => self
                    .version_keys(generation, file, version)
                    .map_err(|error| error.for_place(Place::Page(number)))?,
                None => return Err(self.headless()),
            },
        };
        let identity = Identity { file: file.file_id(), page: number, kind: Kind::Database };
        match page::open(&keys, identity, buf) {
            Ok(()) => {
                if version > file.active_version() {
                    file.notice(version);
                }
                Ok(())
            }
            Err(Closed::Torn) => Err(torn(self.file())),
            Err(Closed::NotAuthentic) => {
                Err(VfsError::NotAuthentic { file: self.file(), place: Place::Page(number), version })
            }
        }
    }

    /// Serves a range that is no single page, or page 1, by what the header on disk says.
    fn read_by_header(&mut self, buf: &mut [u8], offset: u64) -> Result<Read> {
        buf.fill(0);
        let mut clear = [0; CLEAR_LEN];
        let there = self.raw.read_at(&mut clear, 0)?;
        let end = offset + buf.len() as u64;
        let found = header::identify(&clear);
        if matches!(found, Found::Zero | Found::Foreign) {
            if there == Read::Short && self.length()? == 0 {
                return Ok(Read::Short);
            }
            // A torn page 1: SQLite then takes the page size from the journal, if there is one to roll back.
            if end <= SQLITE_HEADER_LEN {
                return Ok(Read::Full);
            }
            return Err(self.headless());
        }
        let size = self.adopt(&clear)?;
        if end <= SQLITE_HEADER_LEN {
            // Read without any lock, perhaps while page 1 is written: what is authenticated comes with page 1.
            let mut shown = [0; SQLITE_HEADER_LEN as usize];
            header::to_sqlite(&mut clear);
            shown[..CLEAR_LEN].copy_from_slice(&clear);
            buf.copy_from_slice(&shown[offset as usize..end as usize]);
            return Ok(Read::Full);
        }
        if offset == 0 && buf.len() == size as usize {
            return self.read_page(buf, 1);
        }
        let mut whole = std::mem::take(&mut self.scratch);
        whole.resize(size as usize, 0);
        let served = self.read_parts(buf, offset, &mut whole);
        self.scratch = whole;
        if served.is_err() {
            buf.fill(0);
        }
        served
    }

    /// Opens page after page into `whole` and copies what lies in the range.
    fn read_parts(&mut self, buf: &mut [u8], offset: u64, whole: &mut [u8]) -> Result<Read> {
        let size = whole.len();
        let mut read = Read::Full;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let skip = (at % size as u64) as usize;
            let part = (size - skip).min(buf.len() - done);
            if self.read_page(whole, page_number(at, size as u32))? == Read::Short {
                read = Read::Short;
            }
            buf[done..done + part].copy_from_slice(&whole[skip..skip + part]);
            done += part;
        }
        Ok(read)
    }

    /// Takes identity and page size from a header on disk; returns the page size.
    fn adopt(&mut self, clear: &[u8; CLEAR_LEN]) -> Result<u32> {
        let file = || self.db.path().to_owned();
        match header::identify(clear) {
            Found::Ours(found) => {
                self.db.adopt(found.id)?;
                let size = found.page_size.ok_or_else(|| VfsError::NotAuthentic {
                    file: file(),
                    place: Place::Page(1),
                    version: 0,
                })?;
                self.db.set_page_size(size);
                Ok(size)
            }
            Found::Plaintext => Err(VfsError::PlaintextFile { file: file() }),
            Found::Later(found) => Err(VfsError::UnknownFormat { file: file(), found, known: FORMAT }),
            Found::Zero | Found::Foreign => Err(self.headless()),
        }
    }

    /// The page size for a write of this length at this place.
    fn size_to_write(&mut self, data: &[u8], offset: u64) -> Result<u32> {
        let len = data.len() as u32; // SQLite writes less than 2 GiB
        let misplaced = |file, page_size| VfsError::Misplaced { file, offset, len: data.len(), page_size };
        if !header::is_page_size(data.len()) || !offset.is_multiple_of(u64::from(len)) {
            return Err(misplaced(self.file(), self.db.page_size().unwrap_or(0)));
        }
        match self.db.page_size() {
            Some(size) if size == len => Ok(len),
            Some(size) if self.length()? != 0 => Err(misplaced(self.file(), size)),
            None if !self.db.is_empty() && self.db.keys().is_none() => Err(self.headless()),
            // Empty, or page 1 is lost and a journal writes it back.
            _ => {
                self.db.set_page_size(len);
                Ok(len)
            }
        }
    }

    /// The page size is to change.
    pub(crate) fn refuse_page_size(&self, to: u32) -> Result<()> {
        match self.db.page_size() {
            Some(from) if from != to => Err(self.header_fault(HeaderFault::PageSizeChange { from, to })),
            _ => Ok(()),
        }
    }

    fn header_fault(&self, what: HeaderFault) -> VfsError {
        VfsError::Header { file: self.file(), what }
    }

    /// Writes sealed zero pages from the end of the file up to `offset`. Page 1 is left out, because SQLite writes it
    /// itself, and the lock page, because nothing would ever rewrite it under another key.
    fn fill_gap(&mut self, offset: u64, size: u32) -> Result<()> {
        if self.end.is_some_and(|end| offset <= end) {
            return Ok(());
        }
        let end = self.length()?;
        // A part of a page at the end is what a failed write has left.
        let mut at = end - end % u64::from(size);
        while at < offset {
            let number = page_number(at, size);
            if number != 1 && !page::is_lock_page(number, size) {
                self.scratch.clear();
                self.scratch.resize(size as usize, 0);
                self.seal_and_write(number)?;
            }
            at += u64::from(size);
        }
        Ok(())
    }

    /// Seals the page in `scratch` and writes it in its place.
    fn seal_and_write(&mut self, number: u32) -> Result<()> {
        self.nonces.check_fork(self.db.path())?;
        let Cached { file, keys, .. } = match self.cached_keys() {
            Some(cached) if cached.keys.version == cached.file.active_version() => cached.clone(),
            _ => {
                let file = self.db.keys_to_write()?;
                let active = file.active_version();
                self.version_keys(self.db.generation(), file, active)?
            }
        };
        let identity = Identity { file: file.file_id(), page: number, kind: Kind::Database };
        let nonce = self.nonces.next(self.db.path())?;
        page::seal(&keys, identity, nonce, &mut self.scratch);
        let offset = u64::from(number - 1) * self.scratch.len() as u64;
        self.raw.write_at(&self.scratch, offset)?;
        let end = offset + self.scratch.len() as u64;
        self.end = self.end.map(|before| before.max(end));
        Ok(())
    }

    /// The keys used last, if they are still the file's. No lock.
    fn cached_keys(&self) -> Option<&Cached> {
        self.cached.as_ref().filter(|cached| cached.generation == self.db.generation())
    }

    /// Keys of one version, which are kept for the next page.
    fn version_keys(&mut self, generation: u32, file: Arc<FileKeys>, version: u32) -> Result<Cached> {
        let keys = file.version(version).map_err(|source| self.db.keys_error(source))?;
        let cached = Cached { generation, file, keys };
        self.cached = Some(cached.clone());
        Ok(cached)
    }

    fn file(&self) -> String {
        self.db.path().to_owned()
    }
}

/// Number of the page that holds the byte at `offset`.
fn page_number(offset: u64, page_size: u32) -> u32 {
    // SQLite's page numbers have 32 bits.
    (offset / u64::from(page_size)) as u32 + 1
}

#[cfg(test)]
mod tests;
