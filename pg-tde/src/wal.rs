//! The WAL record that carries a keyring line to standbys and through recovery.
//!
//! ```text
//! info 0x00, "KEYRING_LINE" (little-endian):
//!  0  1  format, 2          1  1  cipher       2  2  zero
//!  4  4  tablespace OID     8  8  line        16  4  version of the data key   20  4  zero
//! 24  8  WAL position from which pages are written under this line
//! 32  8  WAL position at which the tablespace was dropped, or 2^64 - 1
//! 40  8  WAL position from which there are no plain pages, or 2^64 - 1
//! 48  .  the keyring's root and record, sealed, the data key wrapped (docs/formats/keyring.md)
//! ```
//! The part in clear is what redo needs before any key is at hand; it is compared with the sealed record when the
//! key is unwrapped.

use keyring::{KeyVersion, LineNumber};
use page_cipher::CipherId;

use crate::key_table::Span;
use crate::keys::LineFacts;

/// `info` of the record.
pub(crate) const KEYRING_LINE: u8 = 0x00;
/// Its name in `pg_waldump` and `pg_walinspect`.
pub(crate) const KEYRING_LINE_NAME: &std::ffi::CStr = c"KEYRING_LINE";
const FORMAT: u8 = 2;
const HEADER: usize = 48;

/// A record that this version cannot read.
#[derive(Debug, thiserror::Error)]
#[error(
    "a WAL record of pg_tde has format {found}, this version knows {FORMAT}: install the version of pg_tde that wrote it"
)]
pub(crate) struct BadRecord {
    found: u8,
}

/// The record of a line.
pub(crate) fn encode(facts: &LineFacts, exported: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER + exported.len());
    record.extend([FORMAT, facts.cipher as u8, 0, 0]);
    record.extend(facts.tablespace.to_le_bytes());
    record.extend(facts.line.0.to_le_bytes());
    record.extend(facts.version.0.to_le_bytes());
    record.extend([0; 4]);
    for position in [facts.span.start, facts.span.end, facts.span.strict] {
        record.extend(position.to_le_bytes());
    }
    record.extend(exported);
    record
}

/// The facts in clear and the exported bytes.
///
/// # Errors
/// [`BadRecord`] when the record is too short or of another format.
pub(crate) fn decode(record: &[u8]) -> Result<(LineFacts, &[u8]), BadRecord> {
    let bad = BadRecord { found: record.first().copied().unwrap_or(0) };
    let Some((header, exported)) = record.split_at_checked(HEADER) else { return Err(bad) };
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let Ok(cipher) = CipherId::try_from(header[1]) else { return Err(bad) };
    if header[0] != FORMAT {
        return Err(bad);
    }
    let facts = LineFacts {
        line: LineNumber(long(8)),
        version: KeyVersion(word(16)),
        tablespace: word(4),
        cipher,
        span: Span { start: long(24), end: long(32), strict: long(40) },
    };
    Ok((facts, exported))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_table::OPEN_END;

    fn facts() -> LineFacts {
        LineFacts {
            line: LineNumber(3),
            version: KeyVersion(1),
            tablespace: 16400,
            cipher: CipherId::Aes256Hctr2,
            span: Span { start: 0x0100_0028, strict: 0x0200_0028, end: OPEN_END },
        }
    }

    #[test]
    fn the_bytes_of_a_record_are_pinned() {
        let record = encode(&facts(), b"sealed");
        let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "0201000010400000030000000000000001000000000000002800000100000000ffffffffffffffff28000002000000007365616c6564"
        );
        assert_eq!(decode(&record).expect("known format"), (facts(), &b"sealed"[..]));
    }

    #[test]
    fn another_format_and_a_short_record_are_refused() {
        let mut record = encode(&facts(), b"");
        for length in 0..HEADER {
            assert!(decode(&record[..length]).is_err(), "{length} bytes");
        }
        record[0] = 3;
        assert!(decode(&record).is_err());
    }
}
