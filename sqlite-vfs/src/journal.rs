//! The rollback journal: what SQLite reads and writes there, and what lies on disk instead.
//!
//! # Whose journal
//! The handle that has written a header at offset 0 is the *writer*: it knows each segment and how many
//! records it has written there, until the journal is emptied (cut to 0 bytes, or its header zeroed). Every
//! other handle is a *reader*: it rolls back a hot journal of which it knows nothing, and learns the segments
//! from the headers, in the order in which SQLite asks for them. A reader forgets everything when SQLite
//! begins to look (1 byte or 8 bytes at 0).
//!
//! # By offset
//! Where a byte belongs follows from its offset: headers lie at multiples of the sector size, the records of
//! a segment from one sector after its header, each 8 bytes longer than a page. A page's image begins 4 bytes
//! after a multiple of 8, a header never does, so no length can make one pass for the other, also where a
//! header is as long as a page. Page numbers, record counts, super-journal names and whatever lies elsewhere
//! are handed through.
//!
//! # Records
//! SQLite writes page number, page and checksum one by one; here they are one write, when the page comes: the
//! checksum that goes to disk covers the sealed page, SQLite's own is compared and dropped.
//!
//! | stored checksum | page | is read as |
//! |---|---|---|
//! | right | authentic | the page, and the checksum of its plaintext |
//! | right | not authentic | error |
//! | wrong, or the record is cut off | | *kept* records: error; others: a page of zeros and a checksum that does not fit, so that SQLite ends the rollback there as it does with any journal |
//!
//! *Kept* are the records that this handle wrote, and counted records that were durable before they were
//! counted (a flag in the header). Behind them a PERSIST journal has records of earlier transactions, which
//! must not match.
//!
//! # What a crash leaves
//! 1. Header written with zeros for magic and count, records: not hot, the database is unchanged. SQLite
//!    deletes or ignores the journal.
//! 2. Records synced (`synchronous=FULL`), then magic, count, flag and MAC in one write of 64 bytes within a
//!    sector: before it, as 1; after it, hot with all its records.
//! 3. With `synchronous=NORMAL` there is no sync before the count and the flag is not set. After a power
//!    failure the count may be on disk without its records, which then do not match; the database is
//!    unchanged, as nothing is written there before the sync that follows.
//! 4. The database is being written: hot. Later segments repeat 1 to 3; if their count is not on disk, no
//!    page of theirs was written to the database.
//! 5. End: the file is deleted, cut to 0 or its first 64 bytes zeroed: no longer hot.
//! 6. `synchronous=OFF`: magic and count ffffffff are written first: hot at once, up to the first record that
//!    does not match.

mod fault;
mod layout;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use fault::JournalFault;
use layout::{Layout, Role, Spot};

use crate::database::Database;
use crate::error::{HeaderFault, Place, Result, VfsError};
use crate::format::header::{self, CLEAR_LEN};
use crate::format::journal::{HEADER_LEN, Header, MAGIC, Rejected, SQLITE_HEADER_LEN, checksum};
use crate::format::page::{self, Closed, Identity, Kind};
use crate::keys::{FileKeys, VersionKeys};
use crate::nonce::NonceSource;
use crate::raw::{RawFile, Read};

/// A rollback journal that is open.
pub(crate) struct Journal {
    database: Arc<Database>,
    /// Made at the first write; most handles only look whether a journal is hot.
    nonces: Option<NonceSource>,
    layout: Option<Layout>,
    /// A page number that waits for its page: offset of the record, number.
    pending: Option<(u64, u32)>,
    /// The checksum of the page last read or written: its offset, the value that SQLite knows.
    checksum: Option<(u64, u32)>,
    /// Something was written since the last sync.
    unsynced: bool,
    /// Bytes as on disk, of a record or a header. No plaintext stays here.
    record: Vec<u8>,
}

impl Journal {
    /// The journal of `database`.
    pub(crate) fn new(database: Arc<Database>) -> Self {
        let record = Vec::new();
        Self { database, nonces: None, layout: None, pending: None, checksum: None, unsynced: false, record }
    }

    /// Reads `buf.len()` bytes at `offset`, as SQLite wrote them.
    pub(crate) fn read(&mut self, raw: &dyn RawFile, buf: &mut [u8], offset: u64) -> Result<Read> {
        match (offset, buf.len()) {
            // Is the journal hot? What is known of it may be of an earlier transaction.
            (0, 1) => self.layout = None,
            (0, 8) if self.layout.as_ref().is_none_or(|layout| layout.role == Role::Reader) => {
                self.layout = None;
                return self.read_magic(raw, buf, offset);
            }
            _ => {}
        }
        let Some(layout) = &self.layout else {
            return raw.read_at(buf, offset);
        };
        if layout.role == Role::Reader && buf.len() == 8 && offset == layout.next_header() {
            return self.read_magic(raw, buf, offset);
        }
        match layout.spot(offset) {
            Spot::Page { start, kept } if buf.len() == layout.geometry.page_size as usize => {
                self.read_page(raw, buf, start, kept)
            }
            Spot::Checksum { .. } if buf.len() == 4 => match self.checksum {
                Some((at, value)) if at == offset => {
                    buf.copy_from_slice(&value.to_be_bytes());
                    Ok(Read::Full)
                }
                // Not behind its page: SQLite looks for a super-journal's name at the end of the file.
                _ => raw.read_at(buf, offset),
            },
            Spot::Number { start, kept } if buf.len() == 4 => match raw.read_at(buf, offset)? {
                Read::Short if kept => Err(fault(raw, JournalFault::Cut { offset: start })),
                read => Ok(read),
            },
            _ => raw.read_at(buf, offset),
        }
    }

    /// Writes what SQLite wants at `offset`.
    pub(crate) fn write(&mut self, raw: &dyn RawFile, data: &[u8], offset: u64) -> Result<()> {
        // A number whose page never came is not missed: the record was never complete.
        let (pending, expected) = (self.pending.take(), self.checksum.take());
        if offset == 0 {
            return self.write_start(raw, data);
        }
        let Some(layout) = self.layout.as_mut().filter(|layout| layout.role == Role::Writer) else {
            return Err(unexpected(raw, data, offset));
        };
        let geometry = layout.geometry;
        let (next_header, next_record) = (layout.next_header(), layout.next_record());
        match (layout.spot(offset), data.len()) {
            _ if layout.is_tail(offset) => self.write_raw(raw, data, offset),
            (_, len) if offset == next_header && len == geometry.header_piece() => {
                self.write_header(raw, data, offset)
            }
            // The super-journal's name, where the next header would be.
            (_, 4) if offset == next_header && offset != next_record => {
                layout.begin_tail(offset);
                self.write_raw(raw, data, offset)
            }
            // A header of an earlier transaction is there. It must not be taken for the next one of this.
            (_, 1) if offset == next_header && data == [0] => self.write_raw(raw, data, offset),
            (Spot::Header, 12) if offset == layout.last().start => self.write_count(raw, data, offset),
            // A sector longer than a page is filled with copies of the header.
            (Spot::HeaderSector, len) if len == geometry.header_piece() => self.write_raw(raw, data, offset),
            (Spot::Number { start, .. }, 4) if (layout.last().start..=next_record).contains(&start) => {
                let number = word(data);
                if number == geometry.lock_page() {
                    layout.begin_tail(offset);
                    return self.write_raw(raw, data, offset);
                }
                self.pending = Some((start, number));
                Ok(())
            }
            (Spot::Page { start, .. }, len) => match pending {
                Some((at, number)) if at == start && len == geometry.page_size as usize => {
                    self.write_page(raw, data, start, number)
                }
                // No page follows: it was the lock page's number, in a build that has moved the lock byte.
                Some((at, number)) if at == start => {
                    layout.begin_tail(at);
                    self.write_raw(raw, &number.to_be_bytes(), at)?;
                    self.write_raw(raw, data, offset)
                }
                _ => Err(unexpected(raw, data, offset)),
            },
            (Spot::Checksum { start }, 4) => match expected {
                Some((at, value)) if at == offset && word(data) == value => {
                    // Not before: for SQLite a record whose checksum it could not write was never there.
                    if start == next_record {
                        layout.last_mut().records += 1;
                    }
                    Ok(())
                }
                _ => Err(unexpected(raw, data, offset)),
            },
            _ => Err(unexpected(raw, data, offset)),
        }
    }

    /// Cuts the journal to `size` bytes.
    pub(crate) fn truncate(&mut self, raw: &dyn RawFile, size: u64) -> Result<()> {
        (self.pending, self.checksum) = (None, None);
        raw.truncate(size)?;
        if size == 0 {
            self.layout = None;
        }
        self.unsynced = true;
        Ok(())
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&mut self, raw: &dyn RawFile, flags: i32) -> Result<()> {
        raw.sync(flags)?;
        self.unsynced = false;
        Ok(())
    }

    /// The first 8 bytes of what may be a header.
    fn read_magic(&mut self, raw: &dyn RawFile, buf: &mut [u8], offset: u64) -> Result<Read> {
        self.checksum = None;
        let mut disk = [0; HEADER_LEN];
        let complete = raw.read_at(&mut disk, offset)? == Read::Full;
        let header = Header::from_disk(disk);
        if !complete || !header.has_magic() {
            // SQLite takes a header without the magic for the end and drops the journal. Zeros are that end; anything
            // else in the place of the first header of a hot journal was put there, and so was whatever stands in
            // the place of a magic that the MAC covers.
            let first_changed = offset == 0 && header.is_marked() && !header.is_blank();
            if complete && (first_changed || self.had_magic(&header, offset)) {
                return Err(fault(raw, JournalFault::HeaderChanged { offset }));
            }
            return raw.read_at(buf, offset);
        }
        buf.copy_from_slice(&MAGIC);
        match (self.check_header(&header, offset, raw)?, &mut self.layout) {
            (None, Some(layout)) => layout.push(offset, header),
            (None, None) => self.layout = Some(Layout::new(Role::Reader, header)),
            // Left over from an earlier transaction: with synchronous=NORMAL a power failure may lose the write that
            // made it unrecognizable.
            (Some(_), Some(layout)) if !layout.last().header.is_synced() => buf.fill(0),
            (Some(why), _) => return Err(fault(raw, JournalFault::of_header(why, offset))),
        }
        Ok(Read::Full)
    }

    /// Whether a header without the magic is one of this transaction's whose records were counted.
    fn had_magic(&self, header: &Header, offset: u64) -> bool {
        let Some(keys) = self.database.keys() else { return false };
        if header.check_format().is_err() || header.file() != keys.file_id() {
            return false;
        }
        // Without its key nothing can be said of what may be left over from any earlier transaction.
        let Ok(keys) = self.version(&keys, header.version()) else { return false };
        let first_nonce = self.layout.as_ref().map_or(header.nonce(), |layout| layout.first_nonce);
        header.with_magic().check_mac(&keys, offset, first_nonce).is_ok()
    }

    /// Why a header with the magic must not be used, if so.
    fn check_header(&self, header: &Header, offset: u64, raw: &dyn RawFile) -> Result<Option<Rejected>> {
        if let Err(rejected) = header.check_format() {
            return Ok(Some(rejected));
        }
        let file = header.file();
        let keys = match self.database.keys() {
            Some(keys) if keys.file_id() == file => keys,
            Some(_) if self.database.is_settled() => {
                return Err(fault(raw, JournalFault::OtherFile { offset, found: file }));
            }
            // The database's own header was never written, or is torn.
            _ => self.database.adopt(file)?,
        };
        let keys = self.version(&keys, header.version())?;
        let first_nonce = self.layout.as_ref().map_or(header.nonce(), |layout| layout.first_nonce);
        let rejected = header.check_mac(&keys, offset, first_nonce).err();
        if rejected.is_none() && self.database.page_size().is_none() {
            self.database.set_page_size(header.geometry().page_size);
        }
        Ok(rejected)
    }

    /// The page of the record at `start`, and with it the checksum that SQLite will ask for next.
    fn read_page(&mut self, raw: &dyn RawFile, buf: &mut [u8], start: u64, kept: bool) -> Result<Read> {
        let Some(layout) = &self.layout else { return raw.read_at(buf, start + 4) };
        let (nonce, lock_page) = (layout.nonce_at(start), layout.geometry.lock_page());
        self.record.resize(buf.len() + 8, 0);
        let complete = raw.read_at(&mut self.record, start)? == Read::Full;
        let (number, rest) = self.record.split_at(4);
        let (sealed, stored) = rest.split_at(buf.len());
        let number = word(number);
        let checksum_at = start + 4 + buf.len() as u64;
        self.checksum = None;
        if !complete {
            buf.fill(0);
            return if kept { Err(fault(raw, JournalFault::Cut { offset: start })) } else { Ok(Read::Short) };
        }
        let announces_name = number == 0 || number == lock_page;
        if announces_name || word(stored) != checksum(nonce, sealed) {
            if kept {
                return Err(fault(raw, JournalFault::RecordChanged { offset: start }));
            }
            if announces_name {
                // No record: SQLite ends the rollback here, or reads a super-journal's name of this length.
                buf.copy_from_slice(sealed);
                return Ok(Read::Full);
            }
            buf.fill(0);
            self.checksum = Some((checksum_at, nonce.wrapping_add(1)));
            return Ok(Read::Full);
        }
        buf.copy_from_slice(sealed);
        self.open(raw, number, buf)?;
        self.checksum = Some((checksum_at, checksum(nonce, buf)));
        Ok(Read::Full)
    }

    fn open(&self, raw: &dyn RawFile, number: u32, page: &mut [u8]) -> Result<()> {
        let version = page::version(page);
        let opened = match (self.database.keys(), version) {
            (None, _) | (_, 0) => Err(Closed::Torn),
            (Some(keys), version) => {
                let identity = Identity { file: keys.file_id(), page: number, kind: Kind::Database };
                let keys = self.version(&keys, version);
                page::open(&*keys.map_err(|error| error.for_place(Place::Page(number)))?, identity, page)
            }
        };
        opened.map_err(|closed| {
            let (file, place) = (raw.name().to_owned(), Place::Page(number));
            match closed {
                Closed::Torn => VfsError::Torn { file, place },
                Closed::NotAuthentic => VfsError::NotAuthentic { file, place, version },
            }
        })
    }

    /// A write at offset 0: the journal begins or ends, or the records of its first segment are counted.
    fn write_start(&mut self, raw: &dyn RawFile, data: &[u8]) -> Result<()> {
        if data.len() == SQLITE_HEADER_LEN && data.iter().all(|byte| *byte == 0) {
            self.layout = None;
            return self.write_raw(raw, &[0; HEADER_LEN], 0);
        }
        match &self.layout {
            Some(layout) if data.len() == 12 && layout.role == Role::Writer && layout.last().start == 0 => {
                self.write_count(raw, data, 0)
            }
            _ => self.write_header(raw, data, 0),
        }
    }

    fn write_header(&mut self, raw: &dyn RawFile, data: &[u8], offset: u64) -> Result<()> {
        let layout = self.layout.as_ref().filter(|_| offset != 0);
        let header = Header::from_sqlite(data).filter(|header| {
            let geometry = header.geometry();
            data.len() == geometry.header_piece() && layout.is_none_or(|layout| layout.geometry == geometry)
        });
        let Some(mut header) = header else {
            return Err(unexpected(raw, data, offset));
        };
        let first_nonce = layout.map_or(header.nonce(), |layout| layout.first_nonce);
        let (keys, active) = self.keys_to_write(raw)?;
        header.stamp(&active, keys.file_id(), offset, first_nonce);
        self.record.clear();
        self.record.extend_from_slice(data);
        self.record[..HEADER_LEN].copy_from_slice(header.bytes());
        self.unsynced = true;
        raw.write_at(&self.record, offset)?;
        match &mut self.layout {
            Some(layout) if offset != 0 => layout.push(offset, header),
            layout => *layout = Some(Layout::new(Role::Writer, header)),
        }
        Ok(())
    }

    /// Magic and record count of the last segment, and with them flag and MAC: one write within a sector.
    fn write_count(&mut self, raw: &dyn RawFile, data: &[u8], offset: u64) -> Result<()> {
        let Some((magic_and_count, layout)) = data.first_chunk::<12>().zip(self.layout.as_ref()) else {
            return Err(unexpected(raw, data, offset));
        };
        let mut header = layout.last().header;
        header.set_count(magic_and_count, !self.unsynced);
        if !header.has_magic() || header.count() > layout.last().records {
            return Err(unexpected(raw, data, offset));
        }
        let first_nonce = layout.first_nonce;
        let (keys, active) = self.keys_to_write(raw)?;
        header.stamp(&active, keys.file_id(), offset, first_nonce);
        self.write_raw(raw, header.bytes(), offset)?;
        if let Some(layout) = &mut self.layout {
            layout.last_mut().header = header;
        }
        Ok(())
    }

    /// A record, in one write.
    fn write_page(&mut self, raw: &dyn RawFile, data: &[u8], start: u64, number: u32) -> Result<()> {
        let (file, place) = (raw.name(), Place::Page(number));
        if number == 1 && !data.first_chunk::<CLEAR_LEN>().is_some_and(header::is_sqlite) {
            return Err(VfsError::Header { file: file.to_owned(), what: HeaderFault::Magic });
        }
        if !page::reserve_is_free(data) {
            return Err(VfsError::ReserveInUse { file: file.to_owned(), place });
        }
        let (keys, active) = self.keys_to_write(raw)?;
        let nonce = self.nonces()?.next(file)?;
        let Some(layout) = &self.layout else { return Err(unexpected(raw, data, start + 4)) };
        let checksum_nonce = layout.nonce_at(start);

        self.record.clear();
        self.record.extend_from_slice(&number.to_be_bytes());
        self.record.extend_from_slice(data);
        let identity = Identity { file: keys.file_id(), page: number, kind: Kind::Database };
        page::seal(&active, identity, nonce, &mut self.record[4..]);
        let sealed = checksum(checksum_nonce, &self.record[4..]);
        self.record.extend_from_slice(&sealed.to_be_bytes());

        self.unsynced = true;
        raw.write_at(&self.record, start)?;
        self.checksum = Some((start + 4 + data.len() as u64, checksum(checksum_nonce, data)));
        Ok(())
    }

    /// Bytes that are SQLite's own, or already as they belong on disk.
    fn write_raw(&mut self, raw: &dyn RawFile, data: &[u8], offset: u64) -> Result<()> {
        self.unsynced = true;
        raw.write_at(data, offset)
    }

    /// Keys of the file and of the version to write with; an error in a forked child.
    fn keys_to_write(&mut self, raw: &dyn RawFile) -> Result<(Arc<FileKeys>, Arc<VersionKeys>)> {
        self.nonces()?.check_fork(raw.name())?;
        let keys = self.database.keys_to_write()?;
        let active = keys.active().map_err(|source| self.database.keys_error(source))?;
        Ok((keys, active))
    }

    fn version(&self, keys: &FileKeys, version: u32) -> Result<Arc<VersionKeys>> {
        keys.version(version).map_err(|source| self.database.keys_error(source))
    }

    fn nonces(&mut self) -> Result<&mut NonceSource> {
        match &mut self.nonces {
            Some(nonces) => Ok(nonces),
            none => Ok(none.insert(NonceSource::new()?)),
        }
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(*bytes.first_chunk().expect("callers have looked at the length"))
}

fn fault(raw: &dyn RawFile, fault: JournalFault) -> VfsError {
    VfsError::Journal { file: raw.name().to_owned(), fault }
}

fn unexpected(raw: &dyn RawFile, data: &[u8], offset: u64) -> VfsError {
    fault(raw, JournalFault::Unexpected { offset, len: data.len() })
}
