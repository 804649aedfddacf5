//! What SQLite does to a WAL (wal.c), call by call.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::journal::testing::Log;
use crate::raw::Read;

/// `Wal` and the wal-index of wal.c, which all connections share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SqliteWal {
    pub(super) page_size: u32,
    pub(super) big_endian: bool,
    /// `padToSectorBoundary` and the sector size.
    pub(super) pad: Option<u32>,
    pub(super) max_frame: u32,
    sums: [u32; 2],
    pub(super) salts: [u8; 8],
    checkpoints: u32,
    re_checksum: u32,
    /// Page of each frame, from frame 1.
    pub(super) pages: Vec<u32>,
    live: Option<Box<SqliteWal>>,
}

/// What recovery finds: the last committed image of each page, and the number of frames up to the last commit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Recovered {
    pub(super) frames: u32,
    pub(super) db_pages: u32,
    pub(super) pages: BTreeMap<u32, Vec<u8>>,
}

pub(super) fn frame_at(frame: u32, page_size: u32) -> u64 {
    32 + u64::from(frame - 1) * (24 + u64::from(page_size))
}

/// `walChecksumBytes`
pub(super) fn sum(big_endian: bool, mut sums: [u32; 2], data: &[u8]) -> [u32; 2] {
    for pair in data.chunks_exact(8) {
        let word = |at: usize| {
            let bytes = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        sums[0] = sums[0].wrapping_add(word(0)).wrapping_add(sums[1]);
        sums[1] = sums[1].wrapping_add(word(4)).wrapping_add(sums[0]);
    }
    sums
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn get(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl SqliteWal {
    pub(super) fn new(page_size: u32, big_endian: bool, pad: Option<u32>) -> Self {
        Self {
            page_size,
            big_endian,
            pad,
            max_frame: 0,
            sums: [0; 2],
            salts: [0; 8],
            checkpoints: 0,
            re_checksum: 0,
            pages: Vec::new(),
            live: None,
        }
    }

    /// `sqlite3WalBeginWriteTransaction`
    pub(super) fn begin(&mut self) {
        self.live = None;
        self.live = Some(Box::new(self.clone()));
    }

    /// `sqlite3WalUndo`
    pub(super) fn undo(&mut self) {
        *self = *self.live.take().expect("a transaction is under way");
    }

    /// `walRestartHdr`: the whole WAL is in the database.
    pub(super) fn restart(&mut self, salts: [u8; 8]) {
        self.checkpoints += 1;
        self.max_frame = 0;
        self.salts = salts;
        self.pages.clear();
    }

    /// `sqlite3WalSavepoint` and `sqlite3WalSavepointUndo` (as in 3.54)
    pub(super) fn savepoint(&self) -> (u32, [u32; 2]) {
        (self.max_frame, self.sums)
    }

    pub(super) fn undo_to(&mut self, (max_frame, sums): (u32, [u32; 2])) {
        if max_frame < self.max_frame {
            (self.max_frame, self.sums) = (max_frame, sums);
            self.pages.truncate(max_frame as usize);
            if self.re_checksum > max_frame {
                self.re_checksum = 0;
            }
        }
    }

    /// `sqlite3WalFrames`
    pub(super) fn frames(
        &mut self,
        log: &mut dyn Log,
        list: &[(u32, Vec<u8>)],
        commit: Option<u32>,
        sync: bool,
    ) -> Result<()> {
        let first = match &self.live {
            Some(live) if live.max_frame < self.max_frame => live.max_frame + 1,
            _ => 0,
        };
        if self.max_frame == 0 {
            self.write_header(log, sync)?;
        }
        for (at, (number, page)) in list.iter().enumerate() {
            let last = at + 1 == list.len();
            if first != 0 && (!last || commit.is_none()) {
                let found = self.pages.iter().rposition(|page| page == number).map(|at| at as u32 + 1);
                if let Some(frame) = found.filter(|frame| *frame >= first) {
                    if self.re_checksum == 0 || frame < self.re_checksum {
                        self.re_checksum = frame;
                    }
                    log.write(page, frame_at(frame, self.page_size) + 24)?;
                    continue;
                }
            }
            let truncate = commit.filter(|_| last).unwrap_or(0);
            self.append(log, *number, page, truncate, 0)?;
        }
        if let (Some(_), 1..) = (commit, self.re_checksum) {
            self.rewrite_checksums(log)?;
        }
        let Some(truncate) = commit else { return Ok(()) };
        if sync {
            let end = frame_at(self.max_frame + 1, self.page_size);
            let sync_point = self.pad.map_or(end, |sector| end.next_multiple_of(u64::from(sector)));
            let (number, page) = list.last().expect("a commit has a page");
            while frame_at(self.max_frame + 1, self.page_size) < sync_point {
                self.append(log, *number, page, truncate, sync_point)?;
            }
            if sync_point == end {
                log.sync()?;
            }
        }
        self.live = None;
        Ok(())
    }

    fn write_header(&mut self, log: &mut dyn Log, sync: bool) -> Result<()> {
        let mut header = [0; 32];
        put(&mut header, 0, 0x377f_0682 | u32::from(self.big_endian));
        put(&mut header, 4, 3_007_000);
        put(&mut header, 8, self.page_size);
        put(&mut header, 12, self.checkpoints);
        header[16..24].copy_from_slice(&self.salts);
        self.sums = sum(self.big_endian, [0; 2], &header[..24]);
        put(&mut header, 24, self.sums[0]);
        put(&mut header, 28, self.sums[1]);
        log.write(&header, 0)?;
        if sync { log.sync() } else { Ok(()) }
    }

    /// `walWriteOneFrame`
    fn append(
        &mut self,
        log: &mut dyn Log,
        number: u32,
        page: &[u8],
        truncate: u32,
        sync_point: u64,
    ) -> Result<()> {
        let at = frame_at(self.max_frame + 1, self.page_size);
        let header = self.encode(number, truncate, page);
        write_to_log(log, &header, at, sync_point)?;
        write_to_log(log, page, at + 24, sync_point)?;
        self.max_frame += 1;
        self.pages.push(number);
        Ok(())
    }

    /// `walEncodeFrame`
    fn encode(&mut self, number: u32, truncate: u32, page: &[u8]) -> [u8; 24] {
        let mut header = [0; 24];
        put(&mut header, 0, number);
        put(&mut header, 4, truncate);
        if self.re_checksum == 0 {
            header[8..16].copy_from_slice(&self.salts);
            self.sums = sum(self.big_endian, self.sums, &header[..8]);
            self.sums = sum(self.big_endian, self.sums, page);
            put(&mut header, 16, self.sums[0]);
            put(&mut header, 20, self.sums[1]);
        }
        header
    }

    /// `walRewriteChecksums`
    fn rewrite_checksums(&mut self, log: &mut dyn Log) -> Result<()> {
        let before = match self.re_checksum {
            1 => 24,
            frame => frame_at(frame - 1, self.page_size) + 16,
        };
        let mut sums = [0; 8];
        log.read(&mut sums, before)?;
        self.sums = [get(&sums, 0), get(&sums, 4)];
        let first = std::mem::take(&mut self.re_checksum);
        for frame in first..=self.max_frame {
            let mut bytes = vec![0; 24 + self.page_size as usize];
            let at = frame_at(frame, self.page_size);
            assert_eq!(log.read(&mut bytes, at)?, Read::Full);
            let header = self.encode(get(&bytes, 0), get(&bytes, 4), &bytes[24..]);
            log.write(&header, at)?;
        }
        Ok(())
    }

    /// `sqlite3WalReadFrame` of the newest frame of a page
    pub(super) fn read(&self, log: &mut dyn Log, number: u32) -> Result<Option<Vec<u8>>> {
        let Some(at) = self.pages.iter().rposition(|page| *page == number) else { return Ok(None) };
        let mut page = vec![0; self.page_size as usize];
        log.read(&mut page, frame_at(at as u32 + 1, self.page_size) + 24)?;
        Ok(Some(page))
    }
}

/// `walWriteToLog`
fn write_to_log(log: &mut dyn Log, mut data: &[u8], mut at: u64, sync_point: u64) -> Result<()> {
    if at < sync_point && at + data.len() as u64 >= sync_point {
        let (first, rest) = data.split_at((sync_point - at) as usize);
        log.write(first, at)?;
        log.sync()?;
        (at, data) = (sync_point, rest);
        if data.is_empty() {
            return Ok(());
        }
    }
    log.write(data, at)
}

/// `walIndexRecover`; a version other than SQLite's is `SQLITE_CANTOPEN`, here `None`.
pub(super) fn recover(log: &mut dyn Log) -> Result<Option<Recovered>> {
    let mut recovered = Recovered::default();
    let size = log.size();
    if size <= 32 {
        return Ok(Some(recovered));
    }
    let mut header = [0; 32];
    log.read(&mut header, 0)?;
    let (magic, page_size) = (get(&header, 0), get(&header, 8));
    if magic & !1 != 0x377f_0682 || !page_size.is_power_of_two() || !(512..=65536).contains(&page_size) {
        return Ok(Some(recovered));
    }
    let big_endian = magic & 1 != 0;
    let mut sums = sum(big_endian, [0; 2], &header[..24]);
    if sums != [get(&header, 24), get(&header, 28)] {
        return Ok(Some(recovered));
    }
    if get(&header, 4) != 3_007_000 {
        return Ok(None);
    }
    let mut uncommitted = BTreeMap::new();
    for frame in 1..=((size - 32) / (24 + u64::from(page_size))) as u32 {
        let mut bytes = vec![0; 24 + page_size as usize];
        assert_eq!(log.read(&mut bytes, frame_at(frame, page_size))?, Read::Full);
        // walDecodeFrame
        if bytes[8..16] != header[16..24] || get(&bytes, 0) == 0 {
            break;
        }
        sums = sum(big_endian, sum(big_endian, sums, &bytes[..8]), &bytes[24..]);
        if sums != [get(&bytes, 16), get(&bytes, 20)] {
            break;
        }
        uncommitted.insert(get(&bytes, 0), bytes[24..].to_vec());
        if get(&bytes, 4) != 0 {
            recovered.frames = frame;
            recovered.db_pages = get(&bytes, 4);
            recovered.pages.append(&mut uncommitted);
        }
    }
    Ok(Some(recovered))
}
