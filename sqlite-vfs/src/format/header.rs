//! The first 40 bytes of an encrypted database, which stay in clear.
//!
//! ```text
//!  0   3  "TDE"
//!  3   1  format version, 1
//!  4  12  file id, random
//! 16  24  bytes 16..40 of SQLite's own header: page size, reserved bytes, change counter, page count, freelist
//! ```
//!
//! SQLite reads bytes 16..40 all the time and before it knows the page size. Page 1's tag covers all 40 bytes.

use crate::error::HeaderFault;
use crate::keys::FileId;

/// Length of the clear header in bytes.
pub(crate) const CLEAR_LEN: usize = 40;
/// Format version of the file.
pub(crate) const FORMAT: u8 = 1;
/// Bytes that SQLite leaves free at the end of each page; byte 20 of its header.
pub(crate) const RESERVED: u8 = 32;

const MAGIC: &[u8; 3] = b"TDE";
const SQLITE_MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The clear header of an encrypted database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClearHeader {
    /// The file's id.
    pub(crate) id: FileId,
    /// Page size in bytes; none if the field holds no page size that SQLite knows.
    pub(crate) page_size: Option<u32>,
}

/// What the first bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// An encrypted database.
    Ours(ClearHeader),
    /// A plaintext SQLite database.
    Plaintext,
    /// Zeros: page 1 was never written, or its write was cut short.
    Zero,
    /// An encrypted database in a later format.
    Later(u8),
    /// Anything else.
    Foreign,
}

/// Says what the first bytes of a file are.
pub(crate) fn identify(disk: &[u8; CLEAR_LEN]) -> Found {
    if disk[..3] == *MAGIC && disk[3] != 0 {
        if disk[3] != FORMAT {
            return Found::Later(disk[3]);
        }
        let mut id = [0; 12];
        id.copy_from_slice(&disk[4..16]);
        return Found::Ours(ClearHeader { id: FileId(id), page_size: page_size(disk) });
    }
    if disk[..16] == *SQLITE_MAGIC {
        Found::Plaintext
    } else if disk.iter().all(|byte| *byte == 0) {
        Found::Zero
    } else {
        Found::Foreign
    }
}

/// The page size that a header names, in bytes, if it is one. SQLite's header and ours have it in the same place.
pub(crate) fn page_size(header: &[u8; CLEAR_LEN]) -> Option<u32> {
    // A big-endian number of bytes; 1 stands for 65536.
    let size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        size => u32::from(size),
    };
    is_page_size(size as usize).then_some(size)
}

/// Whether SQLite has pages of `len` bytes.
pub(crate) fn is_page_size(len: usize) -> bool {
    (512..=65536).contains(&len) && len.is_power_of_two()
}

/// Whether `plain` begins as SQLite's own databases do.
pub(crate) fn is_sqlite(plain: &[u8; CLEAR_LEN]) -> bool {
    plain[..16] == *SQLITE_MAGIC
}

/// Checks page 1 as SQLite wants to write it: nothing that could not be read back may reach the disk.
pub(crate) fn check_page_one(plain: &[u8]) -> Result<(), HeaderFault> {
    let header = plain.first_chunk::<CLEAR_LEN>().ok_or(HeaderFault::Magic)?;
    if !is_sqlite(header) {
        return Err(HeaderFault::Magic);
    }
    let to = page_size(header).ok_or(HeaderFault::PageSize)?;
    if to as usize != plain.len() {
        return Err(HeaderFault::PageSizeChange { from: plain.len() as u32, to });
    }
    match header[20] {
        RESERVED => Ok(()),
        found => Err(HeaderFault::Reserve { found }),
    }
}

/// Replaces SQLite's magic by ours, in place.
pub(crate) fn to_disk(header: &mut [u8; CLEAR_LEN], id: FileId) {
    header[..3].copy_from_slice(MAGIC);
    header[3] = FORMAT;
    header[4..16].copy_from_slice(&id.0);
}

/// Replaces our magic and the file id by SQLite's magic, in place.
pub(crate) fn to_sqlite(header: &mut [u8; CLEAR_LEN]) {
    header[..16].copy_from_slice(SQLITE_MAGIC);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sqlite_header() -> [u8; CLEAR_LEN] {
        let mut header = [0; CLEAR_LEN];
        header[..16].copy_from_slice(b"SQLite format 3\0");
        header[16..24].copy_from_slice(&[0x10, 0x00, 2, 2, 32, 64, 32, 32]);
        header[27] = 9;
        header
    }

    #[test]
    fn bytes_are_pinned() {
        let mut header = sqlite_header();
        to_disk(&mut header, FileId(*b"twelve bytes"));
        assert_eq!(
            hex::encode(header),
            "544445017477656c7665206279746573100002022040202000000009000000000000000000000000"
        );
        let Found::Ours(found) = identify(&header) else { panic!("not ours") };
        assert_eq!(found, ClearHeader { id: FileId(*b"twelve bytes"), page_size: Some(4096) });
        to_sqlite(&mut header);
        assert_eq!(header, sqlite_header());
    }

    #[test]
    fn other_files_are_told_apart() {
        assert_eq!(identify(&sqlite_header()), Found::Plaintext);
        assert_eq!(identify(&[0; CLEAR_LEN]), Found::Zero);
        assert_eq!(identify(&[7; CLEAR_LEN]), Found::Foreign);
        let mut later = sqlite_header();
        to_disk(&mut later, FileId([1; 12]));
        later[3] = 2;
        assert_eq!(identify(&later), Found::Later(2));
    }

    #[test]
    fn page_sizes_are_those_of_sqlite() {
        let with = |high, low| {
            let mut header = sqlite_header();
            header[16..18].copy_from_slice(&[high, low]);
            page_size(&header)
        };
        assert_eq!(with(0, 1), Some(65536));
        assert_eq!(with(2, 0), Some(512));
        assert_eq!(with(0x80, 0), Some(32768));
        for (high, low) in [(0, 0), (1, 0), (0x10, 1), (0x30, 0)] {
            assert_eq!(with(high, low), None);
        }
    }
}
