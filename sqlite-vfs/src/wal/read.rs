//! Reading: headers, frames, pages.

use zeroize::Zeroize;

use super::{Mode, Wal, fault, frame_header_of, unexpected};
use crate::error::{Place, Result, VfsError};
use crate::format::header::{self, CLEAR_LEN, Found};
use crate::format::page::{self, Closed, Identity, Kind};
use crate::format::wal::{self as format, FRAME_HEADER_LEN, FrameHeader, HEADER_LEN};
use crate::raw::{RawFile, Read};
use crate::wal::WalFault;

impl Wal {
    pub(super) fn read_header(&mut self, raw: &dyn RawFile, buf: &mut [u8], offset: u64) -> Result<Read> {
        match (offset, buf.len()) {
            (0, HEADER_LEN) => {
                self.mode = Mode::Recovery;
                match self.header(raw)? {
                    Some(header) => {
                        if self.database.keys().is_none() {
                            self.adopt(raw, header.page_size())?;
                        }
                        buf.copy_from_slice(&header.to_sqlite());
                    }
                    None => return raw.read_at(buf, 0),
                }
            }
            (24, 8) => {
                self.mode = Mode::Rewrite(None);
                let header = self.valid_header(raw)?;
                buf.copy_from_slice(&header.to_sqlite()[24..]);
            }
            _ => return Err(unexpected(raw, buf, offset)),
        }
        Ok(Read::Full)
    }

    /// Page 1 of the database is torn, as after a crash within a checkpoint: an image of it in the WAL says whose file
    /// it is. Tags tell whether that is true.
    fn adopt(&mut self, raw: &dyn RawFile, page_size: u32) -> Result<()> {
        let mut head = [0; FRAME_HEADER_LEN + CLEAR_LEN];
        let mut frame = 1;
        while raw.read_at(&mut head, format::frame_at(frame, page_size))? == Read::Full {
            let (frame_header, clear) = head.split_at(FRAME_HEADER_LEN);
            if frame_header_of(frame_header).page() == 1
                && let Some(Found::Ours(found)) = clear.first_chunk().map(header::identify)
            {
                self.database.adopt(found.id)?;
                self.database.set_page_size(page_size);
                return Ok(());
            }
            frame += 1;
        }
        // Without keys SQLite would take the WAL for empty, and delete it.
        if frame == 1 {
            return Ok(());
        }
        Err(VfsError::Torn { file: self.database.path().to_owned(), place: Place::Page(1) })
    }

    /// A whole frame, to recover or to renew its checksum.
    pub(super) fn read_frame(&mut self, raw: &dyn RawFile, frame: u32, buf: &mut [u8]) -> Result<Read> {
        if raw.read_at(buf, format::frame_at(frame, (buf.len() - FRAME_HEADER_LEN) as u32))? == Read::Short {
            buf.fill(0);
            return Ok(Read::Short);
        }
        let (head, page) = buf.split_at_mut(FRAME_HEADER_LEN);
        let version = page::version(page);
        match (self.open(raw, frame, frame_header_of(head), page), self.mode) {
            (Ok(header), mode) => {
                head.copy_from_slice(&header.0);
                if let Mode::Rewrite(_) = mode {
                    self.mode = Mode::Rewrite(Some((frame, version)));
                }
                Ok(Read::Full)
            }
            // A frame of page 0 is never valid: SQLite ends the recovery here, as with any torn frame.
            (Err(VfsError::NotAuthentic { .. } | VfsError::Torn { .. }), Mode::Recovery) => {
                buf.fill(0);
                Ok(Read::Full)
            }
            // A key is destroyed when nothing needs it any more: what is left is of an earlier generation.
            (Err(VfsError::Keys { source, .. }), Mode::Recovery) if source.is_destroyed() => {
                buf.fill(0);
                Ok(Read::Full)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// The bytes from `from` of the page in a frame.
    pub(super) fn read_page(
        &mut self,
        raw: &dyn RawFile,
        frame: u32,
        page_size: usize,
        buf: &mut [u8],
        from: usize,
    ) -> Result<Read> {
        let mut disk = std::mem::take(&mut self.frame);
        disk.resize(FRAME_HEADER_LEN + page_size, 0);
        let read = self.read_page_with(raw, frame, buf, from, &mut disk);
        self.frame = disk;
        read
    }

    fn read_page_with(
        &mut self,
        raw: &dyn RawFile,
        frame: u32,
        buf: &mut [u8],
        from: usize,
        disk: &mut [u8],
    ) -> Result<Read> {
        let page_size = (disk.len() - FRAME_HEADER_LEN) as u32;
        if raw.read_at(disk, format::frame_at(frame, page_size))? == Read::Short {
            buf.fill(0);
            return Ok(Read::Short);
        }
        let (head, page) = disk.split_at_mut(FRAME_HEADER_LEN);
        let head = frame_header_of(head);
        self.mode = Mode::Rewrite(None);
        if buf.len() == page.len() {
            buf.copy_from_slice(page);
            self.open(raw, frame, head, buf)?;
        } else {
            self.open(raw, frame, head, page)?;
            buf.copy_from_slice(&page[from..from + buf.len()]);
            page.zeroize();
        }
        Ok(Read::Full)
    }

    /// Opens the page of a frame whose header on disk is `head`. Returns the header in clear.
    fn open(
        &mut self,
        raw: &dyn RawFile,
        frame: u32,
        head: FrameHeader,
        page: &mut [u8],
    ) -> Result<FrameHeader> {
        let (number, version) = (head.page(), page::version(page));
        let place = Place::Frame { page: number, frame };
        let file = || raw.name().to_owned();
        let found = self.keys_of(version).map_err(|error| error.for_place(place))?;
        let Some((keys, version_keys)) = found else {
            return Err(VfsError::NotAuthentic { file: file(), place, version });
        };
        let head = FrameHeader::from_disk(head.0, &version_keys.wal_frame, frame);
        let salts = match (head.is_provisional(), self.mode) {
            // A transaction that was never committed.
            (true, Mode::Recovery) => return Err(VfsError::Torn { file: file(), place }),
            (true, _) => self.valid_header(raw)?.salts(),
            // SQLite compares them with the header's.
            (false, Mode::Recovery) => head.salts(),
            (false, _) => self.current_salts(raw, frame, head)?,
        };
        let identity = Identity { file: keys.file_id(), page: number, kind: Kind::Wal { frame, salts } };
        page::open(&version_keys, identity, page).map_err(|closed| match closed {
            Closed::Torn => VfsError::Torn { file: file(), place },
            Closed::NotAuthentic => VfsError::NotAuthentic { file: file(), place, version },
        })?;
        if number == 1 {
            keys.notice(version);
        }
        Ok(head)
    }

    /// The header of a frame, to go on from its checksum.
    pub(super) fn frame_header(
        &mut self,
        raw: &dyn RawFile,
        frame: u32,
        page_size: usize,
    ) -> Result<FrameHeader> {
        let page_size = page_size as u32;
        let at = format::frame_at(frame, page_size);
        let (mut head, mut version) = ([0; FRAME_HEADER_LEN], [0; 4]);
        let read = raw.read_at(&mut head, at)?;
        let read = (read, raw.read_at(&mut version, at + format::frame_len(page_size) - 4)?);
        let version = u32::from_le_bytes(version);
        let (Some((_, keys)), (Read::Full, Read::Full)) = (self.keys_of(version)?, read) else {
            return Err(fault(raw, WalFault::FrameHeader { frame }));
        };
        let head = FrameHeader::from_disk(head, &keys.wal_frame, frame);
        if !head.is_provisional() {
            self.current_salts(raw, frame, head)?;
        }
        Ok(head)
    }

    /// The salts of a frame, which must be those of the WAL's header.
    fn current_salts(&mut self, raw: &dyn RawFile, frame: u32, head: FrameHeader) -> Result<[u8; 8]> {
        let (salts, read) = (head.salts(), Some(self.database.wal_reads()));
        if (self.salts != Some(salts) || self.salts_of_read != read)
            && self.valid_header(raw)?.salts() != salts
        {
            return Err(fault(raw, WalFault::FrameHeader { frame }));
        }
        self.salts_of_read = read;
        Ok(salts)
    }
}
