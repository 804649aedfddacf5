//! A WAL looked at without SQLite: which frames are live, and whether each of them opens.
//!
//! SQLite's recovery takes the frames from the first one on, as long as each authenticates, carries the header's salts and
//! continues the checksum of the one before; the last commit mark among them is the end. What lies behind may be of an earlier
//! generation, of a transaction that was rolled back, or what a crash has left; nothing tells that from a frame that was changed
//! after the last time that somebody used the WAL. While programs use it, or were killed, its index (`-shm`) says how many
//! frames are live, and then a frame among them that does not open is a fault.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::thread;

use zeroize::Zeroize as _;

use super::{BETWEEN_TRIES, DatabaseFile, KEPT, OfflineError, PageFault, Result, TRIES, open_regular};
use crate::format::page::{self, Closed, Identity, Kind};
use crate::format::wal::{self as format, FRAME_HEADER_LEN, Found, FrameHeader, HEADER_LEN, Header};
use crate::keys::FileKeys;
use crate::wal::WalFault;

/// What a look at every live frame of a WAL found.
#[derive(Debug, Default)]
pub struct WalVerdict {
    /// Length in bytes.
    pub bytes: u64,
    /// Why the WAL as a whole cannot be used.
    pub fault: Option<WalFault>,
    /// Frames up to the last commit, by key version.
    pub good: BTreeMap<u32, u64>,
    /// The pages in them.
    pub pages: BTreeSet<u32>,
    /// Live frames that do not open or do not continue the one before; the first hundred.
    pub bad: Vec<(u32, FrameFault)>,
    /// How many.
    pub bad_count: u64,
    /// Authentic frames of this generation behind the live ones.
    pub stranded: u64,
}

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameFault {
    /// The page in it does not open.
    #[error("{0}")]
    Page(PageFault),
    /// It is not of this generation, or what is behind it does not continue it.
    #[error("its header was changed, or comes from an earlier WAL")]
    Header,
    /// It is not there.
    #[error("the WAL ends before it")]
    Missing,
}

impl WalVerdict {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.bad_count == 0 && self.fault.is_none()
    }

    fn add_bad(&mut self, frame: u32, fault: FrameFault) {
        self.bad_count += 1;
        if self.bad.len() < KEPT {
            self.bad.push((frame, fault));
        }
    }
}

/// A frame that authenticates.
struct Frame {
    page: u32,
    version: u32,
    commit: bool,
    /// Whether it continues the one before; none if that did not open.
    continues: Option<bool>,
    sums: [u32; 2],
}

impl DatabaseFile {
    /// Looks at the WAL beside the database, if there is one with anything in it. Other processes may use it meanwhile; this one must
    /// not, because it would lose SQLite's locks when WAL and index are closed here.
    ///
    /// # Errors
    /// It cannot be read, or `progress`, which is told of each frame, stops it.
    pub fn verify_wal(
        &self,
        keys: &FileKeys,
        mut progress: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Option<WalVerdict>> {
        let path = self.beside("-wal");
        let file = match open_regular(&path) {
            Err(OfflineError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(None);
            }
            opened => opened?,
        };
        let wal = WalFile { database: self, keys, file, path };
        let mut tries = 0;
        let mut seen = None;
        loop {
            let before = wal.header()?;
            let verdict = wal.look(before, &mut progress)?;
            tries += 1;
            // Whoever begins the WAL anew meanwhile makes what was read worthless. What stays bad is bad.
            let same = wal.header()? == before;
            let found = Some(verdict.bad.iter().map(|(frame, _)| *frame).collect::<Vec<_>>());
            if same && (verdict.is_good() || seen == found) || tries == TRIES {
                return Ok((verdict.bytes > 0).then_some(verdict));
            }
            seen = found.filter(|_| same);
            thread::sleep(BETWEEN_TRIES);
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    }
}

struct WalFile<'a> {
    database: &'a DatabaseFile,
    keys: &'a FileKeys,
    file: File,
    path: PathBuf,
}

impl WalFile<'_> {
    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> OfflineError {
        let path = self.path.clone();
        move |source| OfflineError::Io { action, path, source }
    }

    /// Fills `bytes` from `offset`, unless the file ends before.
    fn read(&self, bytes: &mut [u8], offset: u64) -> Result<bool> {
        match self.file.read_exact_at(bytes, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(self.failed("read")(error)),
        }
    }

    /// None if the file is shorter.
    fn header(&self) -> Result<Option<[u8; HEADER_LEN]>> {
        let mut disk = [0; HEADER_LEN];
        Ok(self.read(&mut disk, 0)?.then_some(disk))
    }

    fn look(
        &self,
        disk: Option<[u8; HEADER_LEN]>,
        progress: &mut impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<WalVerdict> {
        let bytes = self.file.metadata().map_err(self.failed("look at"))?.len();
        let mut verdict = WalVerdict { bytes, ..WalVerdict::default() };
        let expected = self.database.facts.page_size;
        let header = match disk.as_ref().map(format::identify) {
            // SQLite takes it for empty.
            None | Some(Found::Invalid) => return Ok(verdict),
            Some(Found::Ours(header)) if header.page_size() == expected => header,
            other => {
                verdict.fault = Some(match other {
                    Some(Found::Ours(header)) => WalFault::PageSize { found: header.page_size(), expected },
                    Some(Found::Later(found)) => WalFault::Later { found },
                    _ => WalFault::Plaintext,
                });
                return Ok(verdict);
            }
        };
        self.look_at_frames(&header, verdict, progress)
    }

    fn look_at_frames(
        &self,
        header: &Header,
        mut verdict: WalVerdict,
        progress: &mut impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<WalVerdict> {
        let indexed = self.live_by_index(header);
        let mut buffer = vec![0; format::frame_len(header.page_size()) as usize];
        // Of the transaction at hand: what counts only with its commit.
        let mut open = Vec::new();
        let mut sums = Some(header.sums());
        let mut frame = 1;
        loop {
            let live = indexed.is_some_and(|last| frame <= last);
            if !self.read(&mut buffer, format::frame_at(frame, header.page_size()))? {
                if live {
                    verdict.add_bad(frame, FrameFault::Missing);
                }
                break;
            }
            let opened = self.open(header, frame, &mut buffer, sums);
            buffer.as_mut_slice().zeroize();
            match opened {
                Ok(found) if found.continues.unwrap_or(live) => {
                    sums = Some(found.sums);
                    open.push((found.version, found.page));
                    if found.commit {
                        for (version, page) in open.drain(..) {
                            *verdict.good.entry(version).or_default() += 1;
                            verdict.pages.insert(page);
                        }
                    }
                }
                outcome if live => {
                    sums = outcome.as_ref().ok().map(|found| found.sums);
                    verdict.add_bad(frame, outcome.err().unwrap_or(FrameFault::Header));
                }
                Ok(_) => {
                    verdict.stranded += 1;
                    sums = None;
                    open.clear();
                }
                Err(_) => {
                    sums = None;
                    open.clear();
                }
            }
            if progress(frame).is_break() {
                return Err(OfflineError::Stopped { path: self.path.clone() });
            }
            let Some(next) = frame.checked_add(1) else { break };
            frame = next;
        }
        Ok(verdict)
    }

    /// Opens a frame. `before` is the checksum of the one before, if that is known.
    fn open(
        &self,
        header: &Header,
        frame: u32,
        bytes: &mut [u8],
        before: Option<[u32; 2]>,
    ) -> std::result::Result<Frame, FrameFault> {
        let (head, page) = bytes.split_at_mut(FRAME_HEADER_LEN);
        let version = page::version(page);
        let torn = || FrameFault::Page(PageFault::Torn);
        if version == 0 {
            return Err(torn());
        }
        let keys = self.keys.version(version).map_err(|error| FrameFault::Page(PageFault::Key(error)))?;
        let head = *head.first_chunk().ok_or_else(torn)?;
        let head = FrameHeader::from_disk(head, &keys.wal_frame, frame);
        if head.salts() != header.salts() {
            return Err(FrameFault::Header);
        }
        let kind = Kind::Wal { frame, salts: header.salts() };
        let identity = Identity { file: self.database.id, page: head.page(), kind };
        page::open(&keys, identity, page).map_err(|closed| match closed {
            Closed::Torn => torn(),
            Closed::NotAuthentic => FrameFault::Page(PageFault::NotAuthentic { version }),
        })?;
        let continues = before.map(|before| head.sums_after(header, before, page) == head.sums());
        Ok(Frame { page: head.page(), version, commit: head.is_commit(), continues, sums: head.sums() })
    }

    /// How many frames are live by the WAL's index, if there is one and it is this WAL's.
    fn live_by_index(&self, header: &Header) -> Option<u32> {
        let index = open_regular(&self.database.beside("-shm")).ok()?;
        let mut both = [0; 2 * INDEX_LEN];
        index.read_exact_at(&mut both, 0).ok()?;
        let (one, other) = both.split_at(INDEX_LEN);
        let words: Vec<u32> = one.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        let sums = words[..10].as_chunks::<2>().0.iter().fold([0_u32; 2], |[first, second], [a, b]| {
            let first = first.wrapping_add(*a).wrapping_add(second);
            [first, second.wrapping_add(*b).wrapping_add(first)]
        });
        let whole = one == other && sums == [words[10], words[11]] && one[12] == 1;
        (whole && one[32..40] == header.salts()).then_some(words[4])
    }
}

/// The header of a WAL's index (SQLite's `WalIndexHdr`, in the machine's byte order; there are two of them in a row): at 12
/// whether it is in use, at 16 the number of live frames, at 32 the WAL's salts, at 40 a checksum of all that.
const INDEX_LEN: usize = 48;
