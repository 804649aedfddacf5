//! What SQLite's pager does to a journal (pager.c), call by call.

use crate::error::{Result, VfsError};
use crate::format::journal::{MAGIC, checksum};
use crate::journal::testing::Log;
use crate::raw::Read;

/// A page number and a page.
pub(super) type Image = (u32, Vec<u8>);

/// The pager of one transaction.
pub(super) struct Pager {
    pub(super) page_size: u32,
    pub(super) sector: u32,
    pub(super) db_pages: u32,
    pub(super) full_sync: bool,
    pub(super) no_sync: bool,
    pub(super) nonce: u32,
    pub(super) offset: u64,
    pub(super) header: u64,
    pub(super) records: u32,
}

/// What a rollback made of a journal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rollback {
    pub(super) pages: Vec<Image>,
    pub(super) db_pages: Option<u32>,
    pub(super) super_journal: Option<Vec<u8>>,
}

impl Pager {
    pub(super) fn new(page_size: u32, sector: u32) -> Self {
        Self {
            page_size,
            sector,
            db_pages: 1000,
            full_sync: true,
            no_sync: false,
            nonce: 0,
            offset: 0,
            header: 0,
            records: 0,
        }
    }

    /// `journalHdrOffset`
    fn header_offset(&self) -> u64 {
        self.offset.next_multiple_of(u64::from(self.sector))
    }

    /// `writeJournalHdr`
    pub(super) fn write_header(&mut self, log: &mut dyn Log, nonce: u32) -> Result<()> {
        let piece = self.page_size.min(self.sector) as usize;
        self.offset = self.header_offset();
        (self.header, self.nonce, self.records) = (self.offset, nonce, 0);
        let mut header = vec![0; piece];
        if self.no_sync {
            header[..8].copy_from_slice(&MAGIC);
            header[8..12].fill(0xff);
        }
        for (at, field) in [(12, nonce), (16, self.db_pages), (20, self.sector), (24, self.page_size)] {
            header[at..at + 4].copy_from_slice(&field.to_be_bytes());
        }
        for _ in 0..self.sector as usize / piece {
            log.write(&header, self.offset)?;
            self.offset += piece as u64;
        }
        Ok(())
    }

    /// `pagerAddPageToRollbackJournal`
    pub(super) fn add_page(&mut self, log: &mut dyn Log, number: u32, page: &[u8]) -> Result<()> {
        log.write(&number.to_be_bytes(), self.offset)?;
        log.write(page, self.offset + 4)?;
        let sum = checksum(self.nonce, page);
        log.write(&sum.to_be_bytes(), self.offset + 4 + u64::from(self.page_size))?;
        self.offset += u64::from(self.page_size) + 8;
        self.records += 1;
        Ok(())
    }

    /// `syncJournal`
    pub(super) fn sync(&mut self, log: &mut dyn Log, new_header: Option<u32>) -> Result<()> {
        if self.no_sync {
            self.header = self.offset;
            return Ok(());
        }
        let mut magic = [0; 8];
        let next = self.header_offset();
        if log.read(&mut magic, next)? == Read::Full && magic == MAGIC {
            log.write(&[0], next)?;
        }
        if self.full_sync {
            log.sync()?;
        }
        let mut count = [0; 12];
        count[..8].copy_from_slice(&MAGIC);
        count[8..].copy_from_slice(&self.records.to_be_bytes());
        log.write(&count, self.header)?;
        log.sync()?;
        self.header = self.offset;
        match new_header {
            Some(nonce) => self.write_header(log, nonce),
            None => Ok(()),
        }
    }

    /// `writeSuperJournal`
    pub(super) fn write_super(&mut self, log: &mut dyn Log, name: &[u8], lock_page: u32) -> Result<()> {
        if self.full_sync {
            self.offset = self.header_offset();
        }
        let (at, len) = (self.offset, name.len() as u64);
        let sum = name.iter().fold(0_u32, |sum, byte| sum.wrapping_add(*byte as i8 as u32));
        log.write(&lock_page.to_be_bytes(), at)?;
        log.write(name, at + 4)?;
        log.write(&(name.len() as u32).to_be_bytes(), at + 4 + len)?;
        log.write(&sum.to_be_bytes(), at + 8 + len)?;
        log.write(&MAGIC, at + 12 + len)?;
        self.offset += len + 20;
        if log.size() > self.offset {
            log.truncate(self.offset)?;
        }
        Ok(())
    }

    /// `zeroJournalHdr`, the end of a transaction with `journal_mode=PERSIST`
    pub(super) fn zero_header(&mut self, log: &mut dyn Log) -> Result<()> {
        log.write(&[0; 28], 0)?;
        log.sync()?;
        (self.offset, self.header, self.records) = (0, 0, 0);
        Ok(())
    }

    /// `pager_playback_one_page`; `None` is `SQLITE_DONE`.
    fn read_record(
        log: &mut dyn Log,
        offset: &mut u64,
        page_size: u32,
        nonce: Option<u32>,
    ) -> Result<Option<Image>, Stop> {
        let number = word(log, *offset)?;
        let mut page = vec![0; page_size as usize];
        read(log, &mut page, *offset + 4)?;
        *offset += u64::from(page_size) + 8;
        if number == 0 || number == 0x4000_0000 / page_size + 1 {
            return Ok(None);
        }
        let stored = word(log, *offset - 4)?;
        if nonce.is_some_and(|nonce| checksum(nonce, &page) != stored) {
            return Ok(None);
        }
        Ok(Some((number, page)))
    }

    /// `pager_playback`: of a hot journal, or of the pager's own transaction.
    pub(super) fn roll_back(&mut self, log: &mut dyn Log, hot: bool) -> Result<Rollback> {
        let mut rollback = Rollback::default();
        if hot {
            let mut first = [0];
            log.read(&mut first, 0)?;
            if first == [0] {
                return Ok(rollback);
            }
            self.header = log.size();
        }
        let size = log.size();
        rollback.super_journal = read_super(log)?;
        self.offset = 0;
        match self.play_back(log, hot, size, &mut rollback) {
            Ok(()) | Err(Stop::Short) => {}
            Err(Stop::Error(error)) => return Err(error),
        }
        assert_eq!(rollback.super_journal, read_super(log)?);
        Ok(rollback)
    }

    fn play_back(
        &mut self,
        log: &mut dyn Log,
        hot: bool,
        size: u64,
        rollback: &mut Rollback,
    ) -> Result<(), Stop> {
        loop {
            // readJournalHdr
            self.offset = self.header_offset();
            let at = self.offset;
            if at + u64::from(self.sector) > size {
                return Ok(());
            }
            if hot || at != self.header {
                let mut magic = [0; 8];
                read(log, &mut magic, at)?;
                if magic != MAGIC {
                    return Ok(());
                }
            }
            let (mut count, nonce) = (word(log, at + 8)?, word(log, at + 12)?);
            let db_pages = word(log, at + 16)?;
            if at == 0 {
                (self.sector, self.page_size) = (word(log, 20)?, word(log, 24)?);
                rollback.db_pages = Some(db_pages);
            }
            self.offset += u64::from(self.sector);
            let left = ((size - self.offset) / (u64::from(self.page_size) + 8)) as u32;
            let unfinished = count == 0 && !hot && self.header + u64::from(self.sector) == self.offset;
            if count == u32::MAX || unfinished {
                count = left;
            }
            for _ in 0..count {
                match Self::read_record(log, &mut self.offset, self.page_size, Some(nonce))? {
                    Some(image) => rollback.pages.push(image),
                    None => {
                        self.offset = size;
                        break;
                    }
                }
            }
        }
    }

    /// The main journal's part of `pagerPlaybackSavepoint`: from record offset `from` in the segment before the header
    /// at `next_header`, then the segments from there.
    pub(super) fn roll_back_savepoint(
        &mut self,
        log: &mut dyn Log,
        from: u64,
        next_header: Option<u64>,
    ) -> Result<Vec<Image>> {
        let (size, mut images) = (self.offset, Vec::new());
        self.offset = from;
        let done = |result: Result<Option<Image>, Stop>| match result {
            Ok(Some(image)) => Ok(image),
            Ok(None) | Err(Stop::Short) => panic!("no record of this transaction ends a rollback"),
            Err(Stop::Error(error)) => Err(error),
        };
        while self.offset < next_header.unwrap_or(size) {
            images.push(done(Self::read_record(log, &mut self.offset, self.page_size, None))?);
        }
        while self.offset < size {
            self.offset = self.header_offset();
            let at = self.offset;
            let mut magic = [0; 8];
            if at != self.header {
                log.read(&mut magic, at)?;
                assert_eq!(magic, MAGIC);
            }
            let Ok(mut count) = word(log, at + 8) else { panic!("a header is there") };
            self.offset += u64::from(self.sector);
            if count == 0 && at == self.header {
                count = ((size - self.offset) / (u64::from(self.page_size) + 8)) as u32;
            }
            for _ in 0..count {
                if self.offset < size {
                    images.push(done(Self::read_record(log, &mut self.offset, self.page_size, None))?);
                }
            }
        }
        self.offset = size;
        Ok(images)
    }
}

enum Stop {
    Short,
    Error(VfsError),
}

impl From<VfsError> for Stop {
    fn from(error: VfsError) -> Self {
        Self::Error(error)
    }
}

fn read(log: &mut dyn Log, buf: &mut [u8], offset: u64) -> Result<(), Stop> {
    match log.read(buf, offset)? {
        Read::Full => Ok(()),
        Read::Short => Err(Stop::Short),
    }
}

fn word(log: &mut dyn Log, offset: u64) -> Result<u32, Stop> {
    let mut word = [0; 4];
    read(log, &mut word, offset)?;
    Ok(u32::from_be_bytes(word))
}

/// `readSuperJournal`, as in SQLite 3.54: the name is read before the magic is looked at.
fn read_super(log: &mut dyn Log) -> Result<Option<Vec<u8>>> {
    let size = log.size();
    if size < 16 {
        return Ok(None);
    }
    let mut end = [0; 16];
    log.read(&mut end[..4], size - 16)?;
    let len = u64::from(u32::from_be_bytes([end[0], end[1], end[2], end[3]]));
    if len == 0 || len >= 4096 || len > size - 16 {
        return Ok(None);
    }
    log.read(&mut end[4..8], size - 12)?;
    log.read(&mut end[8..], size - 8)?;
    let mut name = vec![0; len as usize];
    log.read(&mut name, size - 16 - len)?;
    let sum = name.iter().fold(0_u32, |sum, byte| sum.wrapping_add(*byte as i8 as u32));
    Ok((end[8..] == MAGIC && end[4..8] == sum.to_be_bytes()).then_some(name))
}
