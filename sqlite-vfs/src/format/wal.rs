//! The WAL as on disk.
//!
//! ```text
//! header                                   integers big-endian, as in SQLite's format
//!  0   4  37 7f 06 82 (checksums over little-endian words) or 37 7f 06 83 (big-endian)
//!  4   4  version 54 44 45 01, "TDE" 1; SQLite is shown 00 2d e2 18 (3007000)
//!  8   4  page size P
//! 12   4  how often the WAL was begun anew
//! 16   8  two salts
//! 24   8  checksum of bytes 0..24, as on disk
//!
//! frame n (from 1), 24 + P bytes, at 32 + (n - 1) * (24 + P)
//!  0   4  page number
//!  4   4  pages of the database after the transaction in its last frame, otherwise 0
//!  8  16  salts (8) and SQLite's checksum of the WAL up to here over plaintext (8): one block of AES-256-XTS under
//!         the DEK version in the page's trailer, tweak = n in little-endian bytes
//! 24   P  the page, sealed (page.rs, kind 2) with n and the header's salts
//! ```
//!
//! SQLite without this VFS finds a version that it does not know and refuses: it neither uses the WAL nor deletes it.
//!
//! SQLite's checksum of a frame begins with that of the frame before, of the first frame with the header's as SQLite
//! sees it. It is recomputed here for the header and for a frame that repeats the one before.

use page_cipher::xts::Aes256Xts;

use super::header::is_page_size;

/// Length of the header in bytes.
pub(crate) const HEADER_LEN: usize = 32;
/// Length of a frame's header in bytes.
pub(crate) const FRAME_HEADER_LEN: usize = 24;
/// Where the encrypted block of a frame header begins.
pub(crate) const BLOCK_AT: usize = 8;

const MAGIC: u32 = 0x377f_0682;
const VERSION_SQLITE: u32 = 3_007_000;
const VERSION_DISK: u32 = 0x5444_4501;

/// What the first 32 bytes of a WAL are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A header of ours.
    Ours(Header),
    /// A valid header of SQLite's: the WAL of a plaintext database.
    Plaintext,
    /// A header of a later format.
    Later(u8),
    /// Anything else, as after a write that was cut short. SQLite takes such a WAL for empty.
    Invalid,
}

/// A valid header, as on disk or as SQLite sees it: only version and checksum differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    bytes: [u8; HEADER_LEN],
}

/// Says what the first bytes of a WAL are.
pub(crate) fn identify(disk: &[u8; HEADER_LEN]) -> Found {
    let header = Header { bytes: *disk };
    if header.field(0) | 1 != MAGIC | 1
        || !is_page_size(header.page_size() as usize)
        || header.checksum() != [header.field(24), header.field(28)]
    {
        return Found::Invalid;
    }
    match header.field(4) {
        VERSION_DISK => Found::Ours(header),
        VERSION_SQLITE => Found::Plaintext,
        other if other >> 8 == VERSION_DISK >> 8 => Found::Later(other as u8),
        _ => Found::Invalid,
    }
}

impl Header {
    /// A header that SQLite wants to write; none if it is no valid one.
    pub(crate) fn from_sqlite(data: &[u8; HEADER_LEN]) -> Option<Self> {
        (identify(data) == Found::Plaintext).then_some(Self { bytes: *data })
    }

    /// The bytes for the disk.
    pub(crate) fn to_disk(self) -> [u8; HEADER_LEN] {
        self.with_version(VERSION_DISK)
    }

    /// The bytes for SQLite.
    pub(crate) fn to_sqlite(self) -> [u8; HEADER_LEN] {
        self.with_version(VERSION_SQLITE)
    }

    /// Page size in bytes.
    pub(crate) fn page_size(&self) -> u32 {
        self.field(8)
    }

    /// The salts that the frames of this generation carry.
    pub(crate) fn salts(&self) -> [u8; 8] {
        let mut salts = [0; 8];
        salts.copy_from_slice(&self.bytes[16..24]);
        salts
    }

    /// The checksum that the first frame's begins with: the header's, as SQLite sees it.
    pub(crate) fn sums(&self) -> [u32; 2] {
        let shown = self.to_sqlite();
        [field(&shown, 24), field(&shown, 28)]
    }

    /// Continues the checksum `sums` over `data`, in this WAL's byte order.
    pub(crate) fn checksum_on(&self, sums: [u32; 2], data: &[u8]) -> [u32; 2] {
        let word: fn([u8; 4]) -> u32 =
            if self.field(0) & 1 == 0 { u32::from_le_bytes } else { u32::from_be_bytes };
        let (words, _) = data.as_chunks::<4>();
        let (pairs, _) = words.as_chunks::<2>();
        pairs.iter().fold(sums, |[first, second], pair| {
            let first = first.wrapping_add(word(pair[0])).wrapping_add(second);
            let second = second.wrapping_add(word(pair[1])).wrapping_add(first);
            [first, second]
        })
    }

    fn with_version(mut self, version: u32) -> [u8; HEADER_LEN] {
        self.bytes[4..8].copy_from_slice(&version.to_be_bytes());
        let sums = self.checksum();
        put(&mut self.bytes[24..], sums);
        self.bytes
    }

    fn checksum(&self) -> [u32; 2] {
        self.checksum_on([0; 2], &self.bytes[..24])
    }

    fn field(&self, at: usize) -> u32 {
        field(&self.bytes, at)
    }
}

/// A frame header in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader(pub(crate) [u8; FRAME_HEADER_LEN]);

impl FrameHeader {
    /// The page in the frame.
    pub(crate) fn page(&self) -> u32 {
        field(&self.0, 0)
    }

    /// Salts of the WAL's generation.
    pub(crate) fn salts(&self) -> [u8; 8] {
        let mut salts = [0; 8];
        salts.copy_from_slice(&self.0[8..16]);
        salts
    }

    /// Whether SQLite has left out salts and checksum. It does so after it has overwritten an earlier frame of the
    /// same transaction, and fills them in when it commits.
    pub(crate) fn is_provisional(&self) -> bool {
        self.0[BLOCK_AT..].iter().all(|byte| *byte == 0)
    }

    /// Whether a transaction ends with this frame.
    pub(crate) fn is_commit(&self) -> bool {
        field(&self.0, 4) != 0
    }

    /// SQLite's checksum of the WAL up to this frame.
    pub(crate) fn sums(&self) -> [u32; 2] {
        [field(&self.0, 16), field(&self.0, 20)]
    }

    /// What that must be for a frame with this page (in clear) after `before`.
    pub(crate) fn sums_after(&self, wal: &Header, before: [u32; 2], page: &[u8]) -> [u32; 2] {
        wal.checksum_on(wal.checksum_on(before, &self.0[..8]), page)
    }

    /// The header of a frame that repeats this one and its `page` (in clear).
    pub(crate) fn repeated(&self, wal: &Header, page: &[u8]) -> Self {
        let mut next = *self;
        put(&mut next.0[16..], self.sums_after(wal, self.sums(), page));
        next
    }

    /// The bytes for the disk.
    pub(crate) fn to_disk(mut self, cipher: &Aes256Xts, frame: u32) -> [u8; FRAME_HEADER_LEN] {
        cipher.encrypt(&tweak(frame), &mut self.0[BLOCK_AT..]).expect("one block is not too short for XTS");
        self.0
    }

    /// The header as SQLite wrote it. Nothing says whether it is: the page's tag covers page number and salts, SQLite's
    /// checksum the rest.
    pub(crate) fn from_disk(mut disk: [u8; FRAME_HEADER_LEN], cipher: &Aes256Xts, frame: u32) -> Self {
        cipher.decrypt(&tweak(frame), &mut disk[BLOCK_AT..]).expect("one block is not too short for XTS");
        Self(disk)
    }
}

/// Length of a frame in bytes.
pub(crate) fn frame_len(page_size: u32) -> u64 {
    FRAME_HEADER_LEN as u64 + u64::from(page_size)
}

/// Where a frame begins. Frames count from 1.
pub(crate) fn frame_at(frame: u32, page_size: u32) -> u64 {
    HEADER_LEN as u64 + u64::from(frame - 1) * frame_len(page_size)
}

fn tweak(frame: u32) -> [u8; 16] {
    u128::from(frame).to_le_bytes()
}

fn put(bytes: &mut [u8], sums: [u32; 2]) {
    bytes[..4].copy_from_slice(&sums[0].to_be_bytes());
    bytes[4..8].copy_from_slice(&sums[1].to_be_bytes());
}

fn field(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(*bytes[at..].first_chunk().expect("every field lies within the header"))
}
