//! The WAL record that carries a keyring line to standbys and through recovery.
//!
//! ```text
//! info 0x00, "KEYRING_LINE" (little-endian):
//!  0  1  format, 2          1  1  cipher       2  2  number of versions that follow, n
//!  4  4  tablespace OID     8  8  line
//! 16  40n  each version of the data key:
//!      0  4  version        4  4  zero
//!      8  8  WAL position from which pages are written under it
//!     16  8  WAL position from which there are no plain pages, or 2^64 - 1
//!     24  8  WAL position from which pages are written in another way, or 2^64 - 1
//!     32  8  WAL position from which no page is under it, or 2^64 - 1
//!   .   .  the keyring's root and record, sealed, the data keys wrapped (docs/formats/keyring.md)
//! ```
//! The part in clear is what redo needs before any key is at hand; it is compared with the sealed record when the
//! key is unwrapped.

use keyring::{KeyVersion, LineNumber};
use page_cipher::CipherId;

use crate::line_facts::LineFacts;
use crate::span::Span;

/// `info` of the record.
pub(crate) const KEYRING_LINE: u8 = 0x00;
/// `info` of a record that carries the line of the WAL itself: nothing but root and record of the keyring, as above.
pub(crate) const WAL_LINE: u8 = 0x10;
/// Its name.
pub(crate) const WAL_LINE_NAME: &std::ffi::CStr = c"WAL_LINE";
/// Its name in `pg_waldump` and `pg_walinspect`.
pub(crate) const KEYRING_LINE_NAME: &std::ffi::CStr = c"KEYRING_LINE";
const FORMAT: u8 = 2;
const HEADER: usize = 16;
const VERSION: usize = 40;

/// A record that this version cannot read.
#[derive(Debug, thiserror::Error)]
#[error(
    "a WAL record of pg_tde has format {found}, this version knows {FORMAT}: install the version of pg_tde that wrote it"
)]
pub(crate) struct BadRecord {
    found: u8,
}

/// The record of a line; `None` for a line without versions, of which there is none.
pub(crate) fn encode(facts: &[LineFacts], exported: &[u8]) -> Option<Vec<u8>> {
    let first = facts.first()?;
    let count = u16::try_from(facts.len()).ok()?;
    let mut record = Vec::with_capacity(HEADER + facts.len() * VERSION + exported.len());
    record.extend([FORMAT, first.cipher as u8]);
    record.extend(count.to_le_bytes());
    record.extend(first.tablespace.to_le_bytes());
    record.extend(first.line.0.to_le_bytes());
    for LineFacts { version, span, .. } in facts {
        record.extend(version.0.to_le_bytes());
        record.extend([0; 4]);
        for position in [span.start, span.strict, span.closing, span.end] {
            record.extend(position.to_le_bytes());
        }
    }
    record.extend(exported);
    Some(record)
}

/// The facts in clear, at least one, and the exported bytes.
///
/// # Errors
/// [`BadRecord`] when the record is too short or of another format.
pub(crate) fn decode(record: &[u8]) -> Result<(Vec<LineFacts>, &[u8]), BadRecord> {
    let bad = || BadRecord { found: record.first().copied().unwrap_or(0) };
    let (header, rest) = record.split_at_checked(HEADER).ok_or_else(bad)?;
    let count = usize::from(u16::from_le_bytes([header[2], header[3]]));
    let (versions, exported) = rest.split_at_checked(count * VERSION).ok_or_else(bad)?;
    let cipher = CipherId::try_from(header[1]).map_err(|_| bad())?;
    if header[0] != FORMAT || count == 0 {
        return Err(bad());
    }
    let (tablespace, line) = (word(header, 4), LineNumber(long(header, 8)));
    let facts = versions.chunks_exact(VERSION).map(|bytes| LineFacts {
        line,
        version: KeyVersion(word(bytes, 0)),
        tablespace,
        cipher,
        span: Span {
            start: long(bytes, 8),
            strict: long(bytes, 16),
            closing: long(bytes, 24),
            end: long(bytes, 32),
        },
    });
    Ok((facts.collect(), exported))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::OPEN_END;

    fn facts() -> [LineFacts; 2] {
        let (line, version, tablespace) = (LineNumber(3), KeyVersion(1), 16400);
        let span = Span { start: 0x0100_0028, strict: 0x0200_0028, closing: 0x0300_0028, end: OPEN_END };
        let first = LineFacts { line, version, tablespace, cipher: CipherId::Aes256Hctr2, span };
        let span = Span { start: 0x0300_0028, strict: 0x0300_0028, closing: OPEN_END, end: OPEN_END };
        [first, LineFacts { version: KeyVersion(2), span, ..first }]
    }

    #[test]
    fn the_bytes_of_a_record_are_pinned() {
        let record = encode(&facts(), b"sealed").expect("two versions");
        let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
        let expected = [
            "02010200104000000300000000000000",
            "010000000000000028000001000000002800000200000000",
            "2800000300000000ffffffffffffffff",
            "020000000000000028000003000000002800000300000000",
            "ffffffffffffffffffffffffffffffff",
            "7365616c6564",
        ];
        assert_eq!(hex, expected.concat());
        assert_eq!(decode(&record).expect("known format"), (facts().to_vec(), &b"sealed"[..]));
    }

    #[test]
    fn another_format_and_a_short_record_are_refused() {
        let mut record = encode(&facts(), b"").expect("two versions");
        for length in 0..record.len() {
            assert!(decode(&record[..length]).is_err(), "{length} bytes");
        }
        record[0] = 3;
        assert!(decode(&record).is_err());
        assert!(encode(&[], b"").is_none());
    }
}
