//! The WAL: what SQLite reads and writes there, and what lies on disk instead.
//!
//! # No state that could be stale
//! Any number of processes read and append to one WAL in turn. Whatever a handle needs to know of it lies in
//! the frame at hand or in the WAL's header on disk. Only the page size is remembered, which no WAL ever
//! changes, and the salts seen last, which are looked up again when a frame has others.
//!
//! # What SQLite does here
//! | SQLite | bytes | here |
//! |---|---|---|
//! | begins the WAL | write 32 at 0 | another version and checksum go to disk |
//! | recovers | read 32 at 0, then whole frames | *recovery*: a frame that does not open is shown as zeros, which SQLite takes for the end of the WAL |
//! | appends a frame | write 24, then the page | one write of the sealed frame, when the page comes |
//! | overwrites a page of its own transaction | write the page alone | page number from the frame's header, salts from the WAL's |
//! | then renews checksums at the commit | read 8 before the first such frame, then whole frames, write 24 each | *rewrite*: failures are errors |
//! | reads a page | read the page alone | failures are errors |
//! | fills a sector (`psow=0`) | write part of a frame, sync, write the rest | below |
//!
//! While SQLite has overwritten frames and not renewed the checksums, it appends frames with zeros for salts
//! and checksum. Pages are therefore bound to the salts of the WAL's header, not of the frame's.
//!
//! # Frames in two parts
//! Without `psow` SQLite repeats the last frame of a transaction up to the next sector, syncs exactly there
//! and then writes what is left of the frame that crosses the boundary. A part of a page cannot be sealed;
//! but that frame repeats the one before it. So the first part, or the sync that finds a header without its
//! page, makes the whole frame from the one before, checks that what came is its beginning and writes it
//! whole. The rest is compared and dropped.
//!
//! # What a crash leaves
//! 1. In the header: SQLite writes it only when all older frames are in the database. If it is torn, its
//!    checksum is wrong and the WAL counts as empty.
//! 2. In a frame: it does not open, recovery ends before it. Frames of the transaction before it have no
//!    commit mark and do not count.
//! 3. In an overwritten frame or while checksums are renewed: the transaction's last frame is not there yet,
//!    or has zeros for a checksum; recovery ends at the first frame whose checksum does not continue the one
//!    before.
//! 4. In the repeated frames of `psow=0`: the transaction ended before them.
//! 5. In a page of an old generation that was not overwritten: its salts are not the header's.

mod fault;
mod read;
mod split;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

pub use fault::WalFault;
use split::Split;

use crate::database::Database;
use crate::error::{Result, VfsError};
use crate::format::wal::{self as format, FRAME_HEADER_LEN, Found, FrameHeader, HEADER_LEN, Header};
use crate::keys::{FileKeys, VersionKeys};
use crate::nonce::NonceSource;
use crate::raw::{RawFile, Read};

/// A WAL that is open.
pub(crate) struct Wal {
    database: Arc<Database>,
    /// Made at the first write.
    nonces: Option<NonceSource>,
    page_size: Option<u32>,
    /// Salts of the header when it was looked at last.
    salts: Option<[u8; 8]>,
    /// The read transaction in which a read has looked at it: others may begin the WAL anew between two.
    salts_of_read: Option<u32>,
    mode: Mode,
    /// A frame header that waits for its page.
    pending: Option<(u32, FrameHeader)>,
    /// A frame that was written whole when its first part came.
    split: Option<Split>,
    /// A frame as on disk. No plaintext stays here.
    frame: Vec<u8>,
}

/// What whole frames are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// To find the end of the WAL.
    Recovery,
    /// To renew the checksums; the frame read last and its key version.
    Rewrite(Option<(u32, u32)>),
}

/// A key version so far above the newest known one is not a rotation that was missed: the trailer is damaged.
const MAX_VERSIONS_AHEAD: u32 = 1024;

impl Wal {
    /// The WAL of `database`.
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            nonces: None,
            page_size: None,
            salts: None,
            salts_of_read: None,
            mode: Mode::Rewrite(None),
            pending: None,
            split: None,
            frame: Vec::new(),
        }
    }

    /// Reads `buf.len()` bytes at `offset`, as SQLite wrote them.
    pub(crate) fn read(&mut self, raw: &dyn RawFile, buf: &mut [u8], offset: u64) -> Result<Read> {
        self.flush_pending(raw)?;
        if offset < HEADER_LEN as u64 {
            return self.read_header(raw, buf, offset);
        }
        let Some(Spot { frame, byte, page_size }) = self.locate(raw, offset, buf.len())? else {
            return Err(unexpected(raw, buf, offset));
        };
        match (byte, buf.len()) {
            (0, len) if len == FRAME_HEADER_LEN + page_size => self.read_frame(raw, frame, buf),
            (16, 8) => {
                self.mode = Mode::Rewrite(None);
                let header = self.frame_header(raw, frame, page_size)?;
                buf.copy_from_slice(&header.0[16..]);
                Ok(Read::Full)
            }
            (FRAME_HEADER_LEN.., _) => self.read_page(raw, frame, page_size, buf, byte - FRAME_HEADER_LEN),
            _ => Err(unexpected(raw, buf, offset)),
        }
    }

    /// Writes what SQLite wants at `offset`.
    pub(crate) fn write(&mut self, raw: &dyn RawFile, data: &[u8], offset: u64) -> Result<()> {
        if let Some(split) = self.split.take()
            && split.expects(offset)
        {
            self.split = split.accept(data).map_err(|frame| fault(raw, WalFault::Split { frame }))?;
            return Ok(());
        }
        if offset == 0 {
            return self.write_header(raw, data);
        }
        let Some(Spot { frame, byte, page_size }) = self.locate(raw, offset, data.len())? else {
            return Err(unexpected(raw, data, offset));
        };
        match (byte, data.len()) {
            (0, FRAME_HEADER_LEN) => {
                self.flush_pending(raw)?;
                let header = frame_header_of(data);
                if let Mode::Rewrite(Some((read, version))) = self.mode
                    && read == frame
                {
                    self.mode = Mode::Rewrite(None);
                    return self.write_frame_header(raw, frame, header, Some(version));
                }
                self.pending = Some((frame, header));
                Ok(())
            }
            (0, len) if len < FRAME_HEADER_LEN => {
                self.flush_pending(raw)?;
                self.write_split(raw, frame, page_size, data)
            }
            (FRAME_HEADER_LEN, len) => match self.pending.take() {
                Some((at, header)) if at == frame && len == page_size => {
                    self.write_frame(raw, frame, header, data)
                }
                Some((at, header)) if at == frame => {
                    self.write_split(raw, frame, page_size, &header.0)?;
                    self.write(raw, data, offset)
                }
                other if len == page_size => {
                    self.pending = other;
                    self.flush_pending(raw)?;
                    self.overwrite_page(raw, frame, data)
                }
                _ => Err(unexpected(raw, data, offset)),
            },
            _ => Err(unexpected(raw, data, offset)),
        }
    }

    /// Cuts the WAL to `size` bytes.
    pub(crate) fn truncate(&mut self, raw: &dyn RawFile, size: u64) -> Result<()> {
        (self.pending, self.split) = (None, None);
        raw.truncate(size)?;
        if size < HEADER_LEN as u64 {
            (self.page_size, self.salts) = (None, None);
        }
        Ok(())
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&mut self, raw: &dyn RawFile, flags: i32) -> Result<()> {
        if let Some((frame, header)) = self.pending.take() {
            let page_size = self.page_size(raw)?;
            self.write_split(raw, frame, page_size, &header.0)?;
        }
        raw.sync(flags)
    }

    /// The header as it is on disk now; none if SQLite takes the WAL for empty.
    fn header(&mut self, raw: &dyn RawFile) -> Result<Option<Header>> {
        let mut disk = [0; HEADER_LEN];
        if raw.read_at(&mut disk, 0)? == Read::Short {
            return Ok(None);
        }
        match format::identify(&disk) {
            Found::Ours(header) => {
                self.check_page_size(raw, header)?;
                (self.page_size, self.salts) = (Some(header.page_size()), Some(header.salts()));
                Ok(Some(header))
            }
            Found::Plaintext => Err(fault(raw, WalFault::Plaintext)),
            Found::Later(found) => Err(fault(raw, WalFault::Later { found })),
            Found::Invalid => Ok(None),
        }
    }

    fn valid_header(&mut self, raw: &dyn RawFile) -> Result<Header> {
        self.header(raw)?.ok_or_else(|| fault(raw, WalFault::Header))
    }

    fn check_page_size(&self, raw: &dyn RawFile, header: Header) -> Result<()> {
        match self.database.page_size() {
            Some(expected) if expected != header.page_size() => {
                Err(fault(raw, WalFault::PageSize { found: header.page_size(), expected }))
            }
            _ => Ok(()),
        }
    }

    fn page_size(&mut self, raw: &dyn RawFile) -> Result<usize> {
        if self.page_size.is_none() {
            self.valid_header(raw)?;
        }
        self.page_size.map(|size| size as usize).ok_or_else(|| fault(raw, WalFault::Header))
    }

    /// Which frame `len` bytes at `offset`, behind the header, lie in; none if they are not of one frame.
    fn locate(&mut self, raw: &dyn RawFile, offset: u64, len: usize) -> Result<Option<Spot>> {
        let page_size = self.page_size(raw)?;
        let frame_len = format::frame_len(page_size as u32);
        let Some(behind) = offset.checked_sub(HEADER_LEN as u64) else { return Ok(None) };
        let (before, byte) = (behind / frame_len, behind % frame_len);
        let Ok(frame) = u32::try_from(before + 1) else { return Ok(None) };
        let fits = len > 0 && byte + len as u64 <= frame_len;
        Ok(fits.then_some(Spot { frame, byte: byte as usize, page_size }))
    }

    /// Keys of the version in a trailer; none if there is no such version and none can be expected.
    fn keys_of(&self, version: u32) -> Result<Option<(Arc<FileKeys>, Arc<VersionKeys>)>> {
        let Some(keys) = self.database.keys() else { return Ok(None) };
        if version == 0 || version > keys.active_version().saturating_add(MAX_VERSIONS_AHEAD) {
            return Ok(None);
        }
        let of_version = keys.version(version).map_err(|source| self.database.keys_error(source))?;
        Ok(Some((keys, of_version)))
    }

    /// Keys of the file and of the version to write with; an error in a forked child.
    fn keys_to_write(&mut self, raw: &dyn RawFile) -> Result<(Arc<FileKeys>, Arc<VersionKeys>)> {
        self.nonces()?.check_fork(raw.name())?;
        let keys = self.database.keys_to_write()?;
        let active = keys.active().map_err(|source| self.database.keys_error(source))?;
        Ok((keys, active))
    }

    fn nonces(&mut self) -> Result<&mut NonceSource> {
        match &mut self.nonces {
            Some(nonces) => Ok(nonces),
            none => Ok(none.insert(NonceSource::new()?)),
        }
    }
}

/// A place within a frame.
struct Spot {
    frame: u32,
    byte: usize,
    page_size: usize,
}

fn frame_header_of(bytes: &[u8]) -> FrameHeader {
    FrameHeader(*bytes.first_chunk().expect("callers have a whole header"))
}

fn fault(raw: &dyn RawFile, fault: WalFault) -> VfsError {
    VfsError::Wal { file: raw.name().to_owned(), fault }
}

fn unexpected(raw: &dyn RawFile, data: &[u8], offset: u64) -> VfsError {
    fault(raw, WalFault::Unexpected { offset, len: data.len() })
}
