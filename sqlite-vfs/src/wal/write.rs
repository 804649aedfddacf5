//! Writing: headers, frames, pages, frames in two parts.

use zeroize::Zeroizing;

use super::split::Split;
use super::{Mode, Wal, fault, frame_header_of, unexpected};
use crate::error::{Place, Result, VfsError};
use crate::format::header;
use crate::format::page::{self, Identity, Kind};
use crate::format::wal::{self as format, FRAME_HEADER_LEN, FrameHeader, Header};
use crate::raw::{RawFile, Read};
use crate::wal::WalFault;

impl Wal {
    pub(super) fn write_header(&mut self, raw: &dyn RawFile, data: &[u8]) -> Result<()> {
        let Some(header) = data.as_array().and_then(Header::from_sqlite) else {
            return Err(unexpected(raw, data, 0));
        };
        self.check_page_size(raw, header)?;
        self.keys_to_write(raw)?;
        self.pending = None;
        raw.write_at(&header.to_disk(), 0)?;
        self.mode = Mode::Rewrite(None);
        (self.page_size, self.salts) = (Some(header.page_size()), Some(header.salts()));
        Ok(())
    }

    /// A frame, in one write.
    pub(super) fn write_frame(
        &mut self,
        raw: &dyn RawFile,
        frame: u32,
        head: FrameHeader,
        data: &[u8],
    ) -> Result<()> {
        self.check_page(raw, frame, head.page(), data)?;
        let salts = if head.is_provisional() { self.valid_header(raw)?.salts() } else { head.salts() };
        let (keys, active) = self.keys_to_write(raw)?;
        let nonce = self.nonces()?.next(raw.name())?;
        self.frame.clear();
        self.frame.extend_from_slice(&head.to_disk(&active.wal_frame, frame));
        self.frame.extend_from_slice(data);
        let identity = Identity { file: keys.file_id(), page: head.page(), kind: Kind::Wal { frame, salts } };
        page::seal(&active, identity, nonce, &mut self.frame[FRAME_HEADER_LEN..]);
        self.salts = Some(salts);
        raw.write_at(&self.frame, format::frame_at(frame, data.len() as u32))
    }

    /// Another page image in a frame whose header stays.
    pub(super) fn overwrite_page(&mut self, raw: &dyn RawFile, frame: u32, data: &[u8]) -> Result<()> {
        let head = self.frame_header(raw, frame, data.len())?;
        self.write_frame(raw, frame, head, data)
    }

    /// The header of a frame whose page stays. `version` is the page's key version, if it is known.
    pub(super) fn write_frame_header(
        &mut self,
        raw: &dyn RawFile,
        frame: u32,
        head: FrameHeader,
        version: Option<u32>,
    ) -> Result<()> {
        let page_size = self.page_size(raw)? as u32;
        let at = format::frame_at(frame, page_size);
        let version = match version {
            Some(version) => version,
            None => {
                let mut version = [0; 4];
                raw.read_at(&mut version, at + format::frame_len(page_size) - 4)?;
                u32::from_le_bytes(version)
            }
        };
        let (_, active) = self.keys_to_write(raw)?;
        // Without a page the header means nothing, under whichever version.
        let keys = self.keys_of(version)?.map_or(active, |(_, keys)| keys);
        raw.write_at(&head.to_disk(&keys.wal_frame, frame), at)
    }

    /// A header that was followed by something else than its page.
    pub(super) fn flush_pending(&mut self, raw: &dyn RawFile) -> Result<()> {
        match self.pending.take() {
            Some((frame, head)) => self.write_frame_header(raw, frame, head, None),
            None => Ok(()),
        }
    }

    /// The first part of a frame that repeats the one before.
    pub(super) fn write_split(
        &mut self,
        raw: &dyn RawFile,
        frame: u32,
        page_size: usize,
        part: &[u8],
    ) -> Result<()> {
        let wal = self.valid_header(raw)?;
        let Some(before) = frame.checked_sub(1).filter(|before| *before > 0) else {
            return Err(fault(raw, WalFault::Split { frame }));
        };
        let mut plain = Zeroizing::new(vec![0; FRAME_HEADER_LEN + page_size]);
        self.mode = Mode::Rewrite(None);
        if self.read_frame(raw, before, &mut plain)? == Read::Short {
            return Err(fault(raw, WalFault::Split { frame }));
        }
        let (head, page) = plain.split_at_mut(FRAME_HEADER_LEN);
        let next = frame_header_of(head).repeated(&wal, page);
        head.copy_from_slice(&next.0);
        if !plain.starts_with(part) {
            return Err(fault(raw, WalFault::Split { frame }));
        }
        self.mode = Mode::Rewrite(None);
        self.write_frame(raw, frame, next, &plain[FRAME_HEADER_LEN..])?;
        self.split = Some(Split::new(frame, format::frame_at(frame, page_size as u32), plain, part.len()));
        Ok(())
    }

    /// What SQLite must not do to a page that is going to be sealed.
    fn check_page(&self, raw: &dyn RawFile, frame: u32, number: u32, data: &[u8]) -> Result<()> {
        let file = || raw.name().to_owned();
        if number == 1 {
            header::check_page_one(data).map_err(|what| VfsError::Header { file: file(), what })?;
        }
        if !page::reserve_is_free(data) {
            let place = Place::Frame { page: number, frame };
            return Err(VfsError::ReserveInUse { file: file(), place });
        }
        Ok(())
    }
}
