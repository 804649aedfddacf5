//! A sealed page: as in the database file, in a rollback journal's records and in WAL frames.
//!
//! ```text
//! P-32  12  nonce
//! P-20  16  tag
//!  P-4   4  DEK version, little-endian
//! ```
//!
//! `P` is the page size. The bytes before the trailer are AES-256-GCM-SIV ciphertext; page 1 has 40 clear bytes
//! before it (`header.rs`). SQLite sees the trailer as zeros.
//!
//! Associated data, integers little-endian:
//!
//! ```text
//!  0   1  kind: 1 database file and rollback journal, 2 WAL
//!  1   1  format version of the file
//!  2  12  file id
//! 14   4  page number
//! 18   4  page size
//! 22   4  DEK version
//!     12  WAL only: frame number (4), the two salts of the frame header as SQLite writes them (8)
//!     40  page 1 only: the clear header as on disk
//! ```

use page_cipher::gcm_siv::{NONCE_LEN, TAG_LEN};

use super::header::{self, CLEAR_LEN, FORMAT};
use crate::keys::{FileId, VersionKeys};

/// Bytes at the end of a page that do not belong to SQLite.
pub(crate) const TRAILER_LEN: usize = 32;

const _: () = assert!(TRAILER_LEN == NONCE_LEN + TAG_LEN + 4 && TRAILER_LEN == header::RESERVED as usize);

/// What a page is bound to, besides file, size and key version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The database file, or a record of the rollback journal (the same bytes).
    Database,
    /// A WAL frame.
    Wal {
        /// Frame number, from 1.
        frame: u32,
        /// Salts of the frame header, in clear.
        salts: [u8; 8],
    },
}

/// Which page of which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The file.
    pub(crate) file: FileId,
    /// Page number, from 1.
    pub(crate) page: u32,
    /// Where the page lies.
    pub(crate) kind: Kind,
}

/// A page does not open. The buffer has been wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// The trailer is zero.
    Torn,
    /// The tag is wrong.
    NotAuthentic,
}

/// SQLite leaves the page that holds this byte to its locks: it never reads or writes it.
const LOCK_BYTE: u64 = 1 << 30;

/// Whether a page is the one that SQLite leaves to its locks.
pub(crate) fn is_lock_page(number: u32, page_size: u32) -> bool {
    u64::from(number - 1) == LOCK_BYTE / u64::from(page_size)
}

/// The DEK version in the trailer of a page on disk. Zero is never a version: such a page is torn or was never
/// written.
///
/// # Panics
/// If `page` is shorter than a trailer.
pub(crate) fn version(page: &[u8]) -> u32 {
    let (_, version) = page.split_last_chunk().expect("a page is longer than its trailer");
    u32::from_le_bytes(*version)
}

/// Whether SQLite has left the trailer's bytes alone.
pub(crate) fn reserve_is_free(plain: &[u8]) -> bool {
    plain[plain.len() - TRAILER_LEN..].iter().all(|byte| *byte == 0)
}

/// Seals a page of SQLite's in place. Page 1 must begin with a SQLite header.
pub(crate) fn seal(keys: &VersionKeys, identity: Identity, nonce: [u8; NONCE_LEN], page: &mut [u8]) {
    let mut body = Body::of(page, identity.page);
    if let Some(header) = &mut body.header {
        header::to_disk(header, identity.file);
    }
    let (aad, len) = associated_data(identity, body.page_size, keys.version, body.header.as_deref());
    let tag = keys.page.seal(&nonce, &aad[..len], body.data).expect("a page is shorter than GCM-SIV's limit");
    body.trailer[..NONCE_LEN].copy_from_slice(&nonce);
    body.trailer[NONCE_LEN..][..TAG_LEN].copy_from_slice(&tag);
    body.trailer[NONCE_LEN + TAG_LEN..].copy_from_slice(&keys.version.to_le_bytes());
}

/// Opens a page in place, as SQLite wrote it, with zeros for the trailer. `keys` are of the [`version`] that the
/// page names.
pub(crate) fn open(keys: &VersionKeys, identity: Identity, page: &mut [u8]) -> Result<(), Closed> {
    let body = Body::of(page, identity.page);
    if body.trailer.iter().all(|byte| *byte == 0) {
        page.fill(0);
        return Err(Closed::Torn);
    }
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&body.trailer[..NONCE_LEN]);
    let mut tag = [0; TAG_LEN];
    tag.copy_from_slice(&body.trailer[NONCE_LEN..][..TAG_LEN]);
    let (aad, len) = associated_data(identity, body.page_size, keys.version, body.header.as_deref());
    if keys.page.open(&nonce, &aad[..len], body.data, &tag).is_err() {
        page.fill(0);
        return Err(Closed::NotAuthentic);
    }
    if let Some(header) = body.header {
        header::to_sqlite(header);
    }
    body.trailer.fill(0);
    Ok(())
}

/// The parts of a page.
struct Body<'a> {
    page_size: u32,
    header: Option<&'a mut [u8; CLEAR_LEN]>,
    data: &'a mut [u8],
    trailer: &'a mut [u8; TRAILER_LEN],
}

impl<'a> Body<'a> {
    fn of(page: &'a mut [u8], number: u32) -> Self {
        let page_size = page.len() as u32; // at most 65536
        let (page, trailer) = page.split_last_chunk_mut().expect("a page is longer than its trailer");
        if number != 1 {
            return Self { page_size, header: None, data: page, trailer };
        }
        let (header, data) = page.split_first_chunk_mut().expect("a page is longer than the header");
        Self { page_size, header: Some(header), data, trailer }
    }
}

const MAX_AAD: usize = 26 + 12 + CLEAR_LEN;

fn associated_data(
    identity: Identity,
    page_size: u32,
    version: u32,
    header: Option<&[u8; CLEAR_LEN]>,
) -> ([u8; MAX_AAD], usize) {
    let mut aad = [0; MAX_AAD];
    aad[1] = FORMAT;
    aad[2..14].copy_from_slice(&identity.file.0);
    aad[14..18].copy_from_slice(&identity.page.to_le_bytes());
    aad[18..22].copy_from_slice(&page_size.to_le_bytes());
    aad[22..26].copy_from_slice(&version.to_le_bytes());
    let mut len = 26;
    aad[0] = match identity.kind {
        Kind::Database => 1,
        Kind::Wal { frame, salts } => {
            aad[26..30].copy_from_slice(&frame.to_le_bytes());
            aad[30..38].copy_from_slice(&salts);
            len = 38;
            2
        }
    };
    if let Some(header) = header {
        aad[len..len + CLEAR_LEN].copy_from_slice(header);
        len += CLEAR_LEN;
    }
    (aad, len)
}

#[cfg(test)]
mod tests {
    use secret_mem::SecretBytes;

    use super::*;

    const FILE: FileId = FileId([0xA5; 12]);

    fn keys(version: u32) -> VersionKeys {
        let Ok(dek) = SecretBytes::fill_with(|bytes| {
            bytes.fill(version as u8);
            Ok::<(), core::convert::Infallible>(())
        });
        VersionKeys::derive(FILE, version, &dek).unwrap()
    }

    fn database(page: u32) -> Identity {
        Identity { file: FILE, page, kind: Kind::Database }
    }

    /// Page 1 of an empty database with 512-byte pages.
    fn page_one() -> Vec<u8> {
        let mut page = vec![0; 512];
        page[..16].copy_from_slice(b"SQLite format 3\0");
        page[16..24].copy_from_slice(&[2, 0, 1, 1, 32, 64, 32, 32]);
        page[100] = 13;
        page
    }

    #[test]
    fn bytes_are_pinned() {
        let mut page = page_one();
        seal(&keys(3), database(1), [7; 12], &mut page);
        assert_eq!(
            hex::encode(&page[..64]),
            "54444501a5a5a5a5a5a5a5a5a5a5a5a502000101204020200000000000000000\
             00000000000000009d2c194feb18cd91823fe712176774b25deae6dda0a313fd"
        );
        assert_eq!(hex::encode(&page[480..492]), "07".repeat(12));
        assert_eq!(hex::encode(&page[508..]), "03000000");
    }

    #[test]
    fn pages_open_as_they_were() {
        for (number, size) in [(1, 512), (2, 512), (1, 65536), (9, 65536), (7, 4096)] {
            let mut plain: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            if number == 1 {
                plain[..512].copy_from_slice(&page_one());
            }
            plain[size - TRAILER_LEN..].fill(0);
            for kind in [Kind::Database, Kind::Wal { frame: 5, salts: [8; 8] }] {
                let identity = Identity { file: FILE, page: number, kind };
                let mut page = plain.clone();
                seal(&keys(1), identity, [1; 12], &mut page);
                assert_eq!(version(&page), 1);
                assert!(!page.windows(16).any(|w| plain[100..].starts_with(w)), "plaintext in a sealed page");
                open(&keys(1), identity, &mut page).unwrap();
                assert!(page == plain);
            }
        }
    }

    #[test]
    fn every_bit_and_every_binding_counts() {
        let mut sealed = page_one();
        seal(&keys(1), database(1), [1; 12], &mut sealed);
        let refused = |page: &[u8], keys: &VersionKeys, identity| {
            let mut page = page.to_vec();
            let closed = open(keys, identity, &mut page).unwrap_err();
            assert!(page.iter().all(|byte| *byte == 0), "something was handed out");
            closed
        };
        for byte in 0..508 {
            let mut page = sealed.clone();
            page[byte] ^= 0x10;
            assert_eq!(refused(&page, &keys(1), database(1)), Closed::NotAuthentic, "byte {byte}");
        }
        assert_eq!(refused(&sealed, &keys(2), database(1)), Closed::NotAuthentic);
        assert_eq!(refused(&sealed, &keys(1), database(2)), Closed::NotAuthentic);
        let other = Identity { file: FileId([1; 12]), ..database(1) };
        assert_eq!(refused(&sealed, &keys(1), other), Closed::NotAuthentic);
        let wal = |frame, salts| Identity { kind: Kind::Wal { frame, salts }, ..database(4) };
        assert_eq!(refused(&sealed, &keys(1), Identity { page: 1, ..wal(1, [0; 8]) }), Closed::NotAuthentic);

        let mut framed = vec![1; 512];
        seal(&keys(1), wal(1, [0; 8]), [1; 12], &mut framed);
        assert_eq!(refused(&framed, &keys(1), wal(2, [0; 8])), Closed::NotAuthentic);
        assert_eq!(refused(&framed, &keys(1), wal(1, [1; 8])), Closed::NotAuthentic);
        assert_eq!(refused(&[0; 512], &keys(1), database(5)), Closed::Torn);
    }
}
