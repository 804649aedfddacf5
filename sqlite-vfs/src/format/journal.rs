//! The rollback journal as on disk.
//!
//! A journal is a row of segments. Each begins with a header that fills one sector and goes on with records; the next
//! header lies at the next multiple of the sector size. Integers are big-endian as in SQLite's format, except where
//! it says little-endian.
//!
//! ```text
//! header, at a multiple of the sector size S
//!  0   8  d9 d5 05 f9 20 a1 63 d7, or zeros until the records are counted
//!  8   4  number of records; ffffffff: as many as the file holds
//! 12   4  nonce of the record checksums
//! 16   4  pages of the database before the transaction
//! 20   4  sector size S
//! 24   4  page size P
//! 28   2  "TJ"                          from here to 64: padding for SQLite
//! 30   1  format, 1
//! 31   1  flags: bit 0: the records were durable before they were counted
//! 32   4  DEK version of the MAC, little-endian
//! 36  12  file id
//! 48  16  MAC: first half of HMAC-SHA-256 over bytes 0..48, the header's offset (8, little-endian) and the nonce of
//!         the header at 0 (4)
//! 64      zeros up to the shorter of S and P; if P < S, SQLite repeats what it wrote (without the padding) up to S
//!
//! record, P + 8 bytes, from S bytes after the header
//!  0   4  page number
//!  4   P  the page, sealed as in the database file (page.rs)
//! 4+P  4  checksum: the nonce plus every 200th byte of the sealed page (those at P-200, P-400, ... down to 1)
//! ```
//!
//! The checksum covers ciphertext, so that any SQLite can roll the journal back without a key. In a transaction over
//! several files the name of the super-journal follows the last record, or lies where the next header would be; it
//! stays as SQLite writes it: lock page number (4), name (n), n (4), sum of the name's bytes (4), the magic (8).

use hmac::{Hmac, KeyInit, Mac};
use secret_mem::wiping_stack;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::header::is_page_size;
use crate::keys::{FileId, VersionKeys};

/// First bytes of a header whose records count.
pub(crate) const MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];
/// Bytes of a header that mean something.
pub(crate) const HEADER_LEN: usize = 64;
/// Bytes of a header that are SQLite's.
pub(crate) const SQLITE_HEADER_LEN: usize = 28;
/// Bytes of a record besides the page.
pub(crate) const RECORD_EXTRA: u64 = 8;
/// The record count that stands for "up to the end of the file".
pub(crate) const TO_END: u32 = u32::MAX;

const TAG: &[u8; 2] = b"TJ";
const FORMAT: u8 = 1;
const SYNCED: u8 = 1;
const MAC_AT: usize = 48;
const MAC_LEN: usize = HEADER_LEN - MAC_AT;
/// Smallest sector: a header must hold our padding.
const MIN_SECTOR: u32 = 64;
const MAX_SECTOR: u32 = 65536;
/// The byte of a database file that locks are taken on; its page is never journaled.
const LOCK_BYTE: u64 = 0x4000_0000;

/// A header that was read or is about to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    bytes: [u8; HEADER_LEN],
}

/// Why a header does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// No padding of ours: written without this VFS.
    Foreign,
    /// Padding of a later format.
    Later(u8),
    /// The MAC is wrong.
    NotAuthentic,
}

impl Header {
    /// What SQLite writes at the beginning of a segment; none if it is no header, or its sizes are out of range.
    pub(crate) fn from_sqlite(data: &[u8]) -> Option<Self> {
        let mut bytes = [0; HEADER_LEN];
        bytes[..SQLITE_HEADER_LEN].copy_from_slice(data.get(..SQLITE_HEADER_LEN)?);
        let header = Self { bytes };
        let magic_fits = header.has_magic() || header.bytes[..8] == [0; 8];
        (magic_fits && header.sizes_are_valid()).then_some(header)
    }

    /// Bytes as on disk; not checked.
    pub(crate) fn from_disk(bytes: [u8; HEADER_LEN]) -> Self {
        Self { bytes }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8; HEADER_LEN] {
        &self.bytes
    }

    /// Whether the records count.
    pub(crate) fn has_magic(&self) -> bool {
        self.bytes[..8] == MAGIC
    }

    /// Whether the place of the magic is empty: the records do not count yet, or no longer.
    pub(crate) fn is_blank(&self) -> bool {
        self.bytes[..8] == [0; 8]
    }

    /// The header with its magic put back.
    pub(crate) fn with_magic(mut self) -> Self {
        self.bytes[..8].copy_from_slice(&MAGIC);
        self
    }

    /// Whether the padding bears our mark, whatever the rest says.
    pub(crate) fn is_marked(&self) -> bool {
        self.bytes[28..30] == *TAG
    }

    /// Number of records, or [`TO_END`].
    pub(crate) fn count(&self) -> u32 {
        self.field(8)
    }

    /// Nonce of the record checksums.
    pub(crate) fn nonce(&self) -> u32 {
        self.field(12)
    }

    /// Page and sector size.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { page_size: self.field(24), sector: self.field(20) }
    }

    /// Whether the records were durable before they were counted.
    pub(crate) fn is_synced(&self) -> bool {
        self.bytes[31] & SYNCED != 0
    }

    /// DEK version of the MAC.
    pub(crate) fn version(&self) -> u32 {
        u32::from_le_bytes(*self.part(32))
    }

    /// The file whose journal this is, as the padding says.
    pub(crate) fn file(&self) -> FileId {
        FileId(*self.part(36))
    }

    /// Replaces magic and count by what SQLite writes there.
    pub(crate) fn set_count(&mut self, magic_and_count: &[u8; 12], synced: bool) {
        self.bytes[..12].copy_from_slice(magic_and_count);
        self.bytes[31] = if synced { SYNCED } else { 0 };
    }

    /// Fills in the padding, with the flags that [`set_count`](Self::set_count) left.
    pub(crate) fn stamp(&mut self, keys: &VersionKeys, file: FileId, offset: u64, first_nonce: u32) {
        self.bytes[28..30].copy_from_slice(TAG);
        self.bytes[30] = FORMAT;
        self.bytes[32..36].copy_from_slice(&keys.version.to_le_bytes());
        self.bytes[36..48].copy_from_slice(&file.0);
        let mac = self.mac(keys, offset, first_nonce);
        self.bytes[MAC_AT..].copy_from_slice(&mac);
    }

    /// Whether the padding is ours, of this format.
    pub(crate) fn check_format(&self) -> Result<(), Rejected> {
        match (&self.bytes[28..30] == TAG, self.bytes[30]) {
            (true, FORMAT) => Ok(()),
            (true, later) => Err(Rejected::Later(later)),
            (false, _) => Err(Rejected::Foreign),
        }
    }

    /// Checks the MAC; `keys` are of [`version`](Self::version).
    pub(crate) fn check_mac(
        &self,
        keys: &VersionKeys,
        offset: u64,
        first_nonce: u32,
    ) -> Result<(), Rejected> {
        let mac = self.mac(keys, offset, first_nonce);
        let authentic: bool = self.bytes[MAC_AT..].ct_eq(&mac).into();
        if authentic && self.sizes_are_valid() { Ok(()) } else { Err(Rejected::NotAuthentic) }
    }

    fn mac(&self, keys: &VersionKeys, offset: u64, first_nonce: u32) -> [u8; MAC_LEN] {
        wiping_stack(|| {
            let mut mac = Hmac::<Sha256>::new_from_slice(keys.journal_mac.expose())
                .expect("HMAC takes keys of any length");
            mac.update(&self.bytes[..MAC_AT]);
            mac.update(&offset.to_le_bytes());
            mac.update(&first_nonce.to_be_bytes());
            let mut first_half = [0; MAC_LEN];
            first_half.copy_from_slice(&mac.finalize().into_bytes()[..MAC_LEN]);
            first_half
        })
    }

    fn sizes_are_valid(&self) -> bool {
        let Geometry { page_size, sector } = self.geometry();
        is_page_size(page_size as usize)
            && sector.is_power_of_two()
            && (MIN_SECTOR..=MAX_SECTOR).contains(&sector)
    }

    fn field(&self, at: usize) -> u32 {
        u32::from_be_bytes(*self.part(at))
    }

    fn part<const N: usize>(&self, at: usize) -> &[u8; N] {
        self.bytes[at..].first_chunk().expect("every field lies within the header")
    }
}

/// Sizes that hold for the whole journal, from the header at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Page size in bytes.
    pub(crate) page_size: u32,
    /// Sector size in bytes.
    pub(crate) sector: u32,
}

impl Geometry {
    /// Length of a record in bytes.
    pub(crate) fn record_len(self) -> u64 {
        u64::from(self.page_size) + RECORD_EXTRA
    }

    /// Length of the pieces that SQLite writes a header in.
    pub(crate) fn header_piece(self) -> usize {
        self.page_size.min(self.sector) as usize
    }

    /// Where record `index` of the segment at `start` begins.
    pub(crate) fn record_at(self, start: u64, index: u32) -> u64 {
        start + u64::from(self.sector) + u64::from(index) * self.record_len()
    }

    /// Where a header that follows `end` lies.
    pub(crate) fn header_after(self, end: u64) -> u64 {
        end.next_multiple_of(u64::from(self.sector))
    }

    /// Number of the page that is never journaled. As a page number it announces a super-journal's name.
    pub(crate) fn lock_page(self) -> u32 {
        (LOCK_BYTE / u64::from(self.page_size)) as u32 + 1
    }
}

/// SQLite's checksum of a page in a journal record.
pub(crate) fn checksum(nonce: u32, page: &[u8]) -> u32 {
    let mut sum = nonce;
    let mut at = page.len().saturating_sub(200);
    while at > 0 {
        sum = sum.wrapping_add(u32::from(page[at]));
        at = at.saturating_sub(200);
    }
    sum
}
