//! One key per purpose: HKDF-SHA-256 (RFC 5869) from a 256-bit data key.
//!
//! A data key is never used for anything but this. It is uniformly random already, so there is no salt, and
//! the info begins with a purpose string, so keys for different purposes or ids are independent of each
//! other.

use core::convert::Infallible;

use hkdf::Hkdf;
use secret_mem::{SecretBytes, wiping_stack};
use sha2::Sha256;

/// What a derived key is for. Every purpose of this crate's formats is listed here, so that no two share a
/// string.
///
/// A purpose string must not be the beginning of another, because ids of any value follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose(&'static str);

impl Purpose {
    /// Pages of one PostgreSQL relation, format 1. Ids: cipher number (1 byte), database OID, relation file
    /// number (4 bytes each, little-endian).
    pub const PG_PAGE: Self = Self("tde/pg/page/v1");
    /// Pages of one SQLite database, in the file, its rollback journal and its WAL, format 1. Ids: file id (12
    /// bytes).
    pub const SQLITE_PAGE: Self = Self("tde/sqlite/page/v1");
    /// Salts and checksums in the WAL's frame headers of one SQLite database, format 1. Ids: file id (12 bytes).
    pub const SQLITE_WAL: Self = Self("tde/sqlite/wal/v1");
    /// MAC of the headers of a SQLite database's rollback journal, format 1. Ids: file id (12 bytes).
    pub const SQLITE_JOURNAL: Self = Self("tde/sqlite/journal/v1");
    /// WAL segments of a PostgreSQL cluster, format 1. No ids: one data key belongs to one cluster's WAL.
    pub const PG_WAL: Self = Self("tde/pg/wal/v1");
    /// Temporary files of a PostgreSQL server, format 1; from a key that lives as long as the server. No ids.
    pub const PG_TEMPORARY: Self = Self("tde/pg/temporary/v1");
}

/// Derives a key of `N` bytes: `HKDF-SHA-256(ikm = key, no salt, info = purpose || ids[0] || ids[1] ...)`.
///
/// The caller passes ids of fixed lengths, so that different ids cannot give the same info. `N` is at most
/// 8160, the limit of RFC 5869; more does not compile.
///
/// # Panics
/// If there are more than 7 ids.
pub fn derive<const N: usize>(key: &SecretBytes<32>, purpose: Purpose, ids: &[&[u8]]) -> SecretBytes<N> {
    const { assert!(N <= 255 * 32, "HKDF-SHA-256 gives at most 8160 bytes") };
    let Ok(derived) = wiping_stack(|| {
        SecretBytes::fill_with(|out| {
            let hkdf = Hkdf::<Sha256>::new(None, key.expose());
            expand(&hkdf, purpose, ids, out);
            Ok::<(), Infallible>(())
        })
    });
    derived
}

fn expand(hkdf: &Hkdf<Sha256>, purpose: Purpose, ids: &[&[u8]], out: &mut [u8]) {
    const MAX_IDS: usize = 7;
    let mut info: [&[u8]; 1 + MAX_IDS] = [&[]; 1 + MAX_IDS];
    info[0] = purpose.0.as_bytes();
    info[1..=ids.len()].copy_from_slice(ids);
    // The only error is an output too long, which `derive` rules out at compile time.
    hkdf.expand_multi_info(&info, out).expect("output is at most 8160 bytes");
}
