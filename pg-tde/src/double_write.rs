//! Pages that the WAL cannot repair when a write of them is torn.
//!
//! PostgreSQL changes a few pages without WAL (the SP-GiST metapage, `PageInit` in heap and others). Torn, such a page is
//! still usable in plain: its header did not change. Encrypted it would be lost whole. Recovery finds an image of
//! every page that was changed under WAL since the last completed checkpoint, so exactly the pages whose `pd_lsn` is
//! not newer than that checkpoint's redo pointer go to a double-write file first.
//!
//! Order of writes: record appended and synced here; then the page written in place. Crash before the
//! sync: the record is cut off by its checksum, the page in place is whole and old. Crash after: if the page in place
//! does not open, the record replaces it before redo begins. A record whose page opens is left alone: it may be older.
//!
//! There are two files, used in turn. A record may be forgotten when a checkpoint that *began* after its page was written
//! has completed, because that checkpoint synced the page. A file is begun anew at most once per completed
//! checkpoint, so its previous contents are two completed checkpoints old, of which the second began later.
//!
//! ```text
//! record (8216 bytes, little-endian):
//!  0  4  magic "TDW1"
//!  4  4  CRC-32 of bytes 8..8216
//!  8  4  tablespace OID     12  4  database OID
//! 16  4  relation number    20  4  block in the main fork
//! 24  8192  the sealed page
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use page_cipher::pg::{self, Fork, PAGE_SIZE, Page, RelationCipher};

use crate::compat::RelationId;
use crate::ffi::server;
use crate::key_table::KeyTable;
use crate::page_io::PageAddress;
use crate::{report, settings};

const MAGIC: [u8; 4] = *b"TDW1";
const HEADER: usize = 24;
const RECORD: usize = HEADER + PAGE_SIZE;
/// Smaller values of `pd_lsn` are no WAL positions: 0, `GistBuildLSN`, fake LSNs of unlogged relations. The first WAL
/// segment is never used, and a segment has at least 1 MiB.
const FIRST_WAL_POSITION: u64 = 1 << 20;

/// Why a page could not be saved or put back.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} \"{}\": {source}", path.display())]
pub(crate) struct DoubleWriteError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn at_path<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DoubleWriteError + 'a {
    move |source| DoubleWriteError { what, path: path.to_owned(), source }
}

fn file_path(index: u64) -> PathBuf {
    settings::keyring_directory().join(format!("double-write.{index}"))
}

/// Whether a page of this address and LSN must be saved before it is written in place.
pub(crate) fn needed(at: PageAddress, lsn: u64) -> bool {
    at.fork == Fork::Main
        && !at.relation.temporary
        && (FIRST_WAL_POSITION..=server::completed_redo()).contains(&lsn)
        && !server::recovery_in_progress()
}

/// Appends a sealed page and makes it durable.
///
/// # Errors
/// When the file cannot be written. The page must not be written in place then.
pub(crate) fn put(table: &KeyTable, at: PageAddress, sealed: &Page) -> Result<(), DoubleWriteError> {
    let _lock = server::lock(server::Lock::DoubleWrite, true);
    let state = &table.double_write;
    let epoch = server::completed_redo();
    let fresh = state.epoch.load(Relaxed) != epoch;
    if fresh {
        state.file.fetch_xor(1, Relaxed);
        state.epoch.store(epoch, Relaxed);
    }
    let path = file_path(state.file.load(Relaxed));
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(at_path("open", &path))?;
    if fresh {
        file.set_len(0).map_err(at_path("truncate", &path))?;
    }
    file.write_all(&encode(at, sealed)).map_err(at_path("write", &path))?;
    file.sync_data().map_err(at_path("sync", &path))
}

fn encode(at: PageAddress, sealed: &Page) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let relation = at.relation;
    for (bytes, value) in record[8..HEADER].chunks_exact_mut(4).zip([
        relation.tablespace,
        relation.database,
        relation.number,
        at.block,
    ]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    record[HEADER..].copy_from_slice(sealed);
    let crc = crc32fast::hash(&record[8..]);
    record[..4].copy_from_slice(&MAGIC);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
    record
}

/// `None` for a record that was cut off or is not one.
fn decode(record: &[u8; RECORD]) -> Option<(PageAddress, &Page)> {
    let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    if record[..4] != MAGIC || word(4) != crc32fast::hash(&record[8..]) {
        return None;
    }
    let relation = RelationId { tablespace: word(8), database: word(12), number: word(16), temporary: false };
    let page = record[HEADER..].try_into().ok()?;
    Some((PageAddress { relation, fork: Fork::Main, block: word(20) }, page))
}

/// Puts back what a crash tore, before redo begins and before any other process runs, and empties both files.
///
/// # Errors
/// When a file cannot be read, written or synced: recovery must not begin then.
pub(crate) fn replay(table: &KeyTable) -> Result<u64, DoubleWriteError> {
    let mut repaired = 0;
    for index in 0..2 {
        let path = file_path(index);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at_path("open", &path)(error)),
        };
        let mut record = [0; RECORD];
        loop {
            match file.read_exact(&mut record) {
                Ok(()) => (),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(at_path("read", &path)(error)),
            }
            let Some((at, page)) = decode(&record) else { break };
            repaired += u64::from(put_back(table, at, page)?);
        }
    }
    for index in 0..2 {
        let path = file_path(index);
        if path.exists() {
            let file = OpenOptions::new().write(true).open(&path).map_err(at_path("open", &path))?;
            file.set_len(0).map_err(at_path("truncate", &path))?;
            file.sync_all().map_err(at_path("sync", &path))?;
        }
    }
    table.double_write.epoch.store(0, Relaxed);
    Ok(repaired)
}

/// Writes a saved page over the one in place if that one does not open.
fn put_back(table: &KeyTable, at: PageAddress, saved: &Page) -> Result<bool, DoubleWriteError> {
    let (path, block) = server::segment_path(at.relation, at.block);
    let file = match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(file) => file,
        // Dropped since.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(at_path("open", &path)(error)),
    };
    let offset = u64::from(block) * PAGE_SIZE as u64;
    let mut page: Page = [0; PAGE_SIZE];
    match file.read_exact_at(&mut page, offset) {
        Ok(()) => (),
        // Truncated since.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(at_path("read", &path)(error)),
    }
    if !is_torn(table, at, &mut page) {
        return Ok(false);
    }
    file.write_all_at(saved, offset).map_err(at_path("write", &path))?;
    file.sync_data().map_err(at_path("sync", &path))?;
    report::put_back(at);
    Ok(true)
}

/// Whether a page opens under no line its tablespace ever had. Without a line nothing can be said.
fn is_torn(table: &KeyTable, at: PageAddress, page: &mut Page) -> bool {
    if pg::is_zero(page) {
        return false;
    }
    let mut tried = false;
    for line in table.lines().filter(|line| line.tablespace == at.relation.tablespace) {
        let Ok(Some(dek)) = table.dek(line.index) else { return false };
        let Ok(cipher) = RelationCipher::new(line.cipher, &dek, at.relation.database, at.relation.number)
        else {
            return false;
        };
        tried = true;
        if cipher.open(at.fork, at.block, page).is_ok() {
            return false;
        }
    }
    tried
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> PageAddress {
        let relation = RelationId { tablespace: 16400, database: 5, number: 16401, temporary: false };
        PageAddress { relation, fork: Fork::Main, block: 7 }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let page: Page = std::array::from_fn(|i| i as u8);
        let record = encode(address(), &page);
        let (at, saved) = decode(&record).expect("whole");
        assert_eq!((at.relation, at.block, saved), (address().relation, 7, &page));
        assert_eq!(&record[..4], b"TDW1");
        assert_eq!(record[8..24], [0x10, 0x40, 0, 0, 5, 0, 0, 0, 0x11, 0x40, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn a_record_with_any_byte_changed_is_none() {
        let record = encode(address(), &[3; PAGE_SIZE]);
        for position in 0..RECORD {
            let mut changed = record;
            changed[position] ^= 1;
            assert!(decode(&changed).is_none(), "byte {position}");
        }
    }
}
