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
//! The same holds for pages that are written in clear while a tablespace is decrypted: torn over an encrypted page they are
//! lost whole, too. They are written with a checksum, by which a whole one is known.
//!
//! There are two files, used in turn. A record may be forgotten when a checkpoint that *began* after its page was written
//! has completed, because that checkpoint synced the page. A file is begun anew at most once per completed
//! checkpoint, so its previous contents are two completed checkpoints old, of which the second began later. What is still there of
//! older ones is told by the WAL position of the record, which is before the one where redo begins: the page in place may be
//! newer and in a form that was not known then.
//!
//! ```text
//! record (8240 bytes, little-endian):
//!  0  4  magic "TDW2"
//!  4  4  CRC-32 of bytes 8..8240
//!  8  4  tablespace OID     12  4  database OID
//! 16  4  relation number    20  4  block
//! 24  8  sequence number, counted since the server started: the highest of a page is its newest
//! 32  8  where the WAL ended when the record was made
//! 40  4  fork: 0 main, 2 visibility map        44  4  zero
//! 48  8192  the page as it will be in the relation's file
//! ```

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use page_cipher::pg::{self, Fork, PAGE_SIZE, Page, RelationCipher};

use crate::ffi::compat::RelationId;
use crate::ffi::server;
use crate::key_table::{KeyTable, LineInfo, State};
use crate::page_io::PageAddress;
use crate::report;

const MAGIC: [u8; 4] = *b"TDW2";
/// Of another version of pg_tde.
const OTHER_MAGIC: [u8; 4] = *b"TDW1";
const HEADER: usize = 48;
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
    server::data_directory().join(format!("pg_tde.double-write.{index}"))
}

/// Whether a page of this address and LSN must be saved before it is written in place.
pub(crate) fn needed(table: &KeyTable, at: PageAddress, lsn: u64) -> bool {
    let fork = match at.fork {
        Fork::Main => true,
        // A torn one is known by its checksum and rebuilt. While plain pages without checksums are encrypted it would be taken for
        // whole, and say that rows are visible which are not.
        Fork::Vm => {
            let state = table.state(at.relation.tablespace);
            !server::data_checksums() && matches!(state, Some(State::Encrypting(_)))
        }
        Fork::Fsm | Fork::Init => false,
    };
    fork && !at.relation.temporary
        && (FIRST_WAL_POSITION..=server::completed_redo()).contains(&lsn)
        && !server::recovery_in_progress()
}

/// Appends a page as it will be written and makes it durable.
///
/// # Errors
/// When the file cannot be written. The page must not be written in place then.
pub(crate) fn put(table: &KeyTable, at: PageAddress, sealed: &Page) -> Result<(), DoubleWriteError> {
    let _lock = server::lock_double_write();
    let state = &table.double_write;
    let epoch = server::completed_redo();
    let fresh = state.epoch.load(Relaxed) != epoch;
    if fresh {
        state.file.fetch_xor(1, Relaxed);
        state.epoch.store(epoch, Relaxed);
    }
    let path = file_path(state.file.load(Relaxed));
    let file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(fresh)
        .mode(0o600)
        .open(&path)
        .map_err(at_path("open", &path))?;
    // Whole records only: what a failed write left behind would end the reading of the file.
    let length = file.metadata().map_err(at_path("look at", &path))?.len() / RECORD as u64 * RECORD as u64;
    let sequence = state.sequence.fetch_add(1, Relaxed) + 1;
    let position = server::wal_insert_position();
    file.write_all_at(&encode(at, Stamp { sequence, position }, sealed), length)
        .map_err(at_path("write", &path))?;
    file.sync_data().map_err(at_path("sync", &path))?;
    if length == 0 {
        let directory = server::data_directory();
        File::open(&directory).and_then(|file| file.sync_all()).map_err(at_path("sync", &directory))?;
    }
    Ok(())
}

/// When a record was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    sequence: u64,
    position: u64,
}

/// Visibility map; the others are the main fork.
const VM: u32 = 2;

fn encode(at: PageAddress, stamp: Stamp, sealed: &Page) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    let relation = at.relation;
    for (bytes, value) in record[8..24].chunks_exact_mut(4).zip([
        relation.tablespace,
        relation.database,
        relation.number,
        at.block,
    ]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    record[24..32].copy_from_slice(&stamp.sequence.to_le_bytes());
    record[32..40].copy_from_slice(&stamp.position.to_le_bytes());
    let fork = if at.fork == Fork::Vm { VM } else { 0 };
    record[40..44].copy_from_slice(&fork.to_le_bytes());
    record[HEADER..].copy_from_slice(sealed);
    let crc = crc32fast::hash(&record[8..]);
    record[..4].copy_from_slice(&MAGIC);
    record[4..8].copy_from_slice(&crc.to_le_bytes());
    record
}

/// A record as read.
struct Record {
    at: PageAddress,
    stamp: Stamp,
    page: Box<Page>,
}

/// `None` for a record that was cut off or is not one.
fn decode(record: &[u8; RECORD]) -> Option<Record> {
    let word = |at: usize| u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    if record[..4] != MAGIC || word(4) != crc32fast::hash(&record[8..]) {
        return None;
    }
    let relation = RelationId { tablespace: word(8), database: word(12), number: word(16), temporary: false };
    let mut page = Box::new([0; PAGE_SIZE]);
    page.copy_from_slice(&record[HEADER..]);
    Some(Record {
        at: PageAddress {
            relation,
            fork: if word(40) == VM { Fork::Vm } else { Fork::Main },
            block: word(20),
        },
        stamp: Stamp { sequence: long(24), position: long(32) },
        page,
    })
}

/// Puts back what a crash tore, before redo begins and before any other process runs, and empties both files.
///
/// # Errors
/// When a file cannot be read, written or synced: recovery must not begin then.
pub(crate) fn replay(table: &KeyTable) -> Result<u64, DoubleWriteError> {
    let mut newest = Newest::new();
    for index in 0..2 {
        read_records(&file_path(index), table.recovery_from(), &mut newest)?;
    }
    let mut repaired = 0;
    for record in newest.values() {
        repaired += u64::from(put_back(table, record.at, &record.page)?);
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

/// The newest record of each page.
type Newest = HashMap<(RelationId, bool, u32), Record>;

/// Collects the newest record of every page that was made since a WAL position. What follows a record that is not whole was never
/// relied on.
fn read_records(path: &Path, since: u64, newest: &mut Newest) -> Result<(), DoubleWriteError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at_path("open", path)(error)),
    };
    let mut bytes = [0; RECORD];
    loop {
        match file.read_exact(&mut bytes) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(at_path("read", path)(error)),
        }
        let Some(record) = decode(&bytes) else {
            if bytes.starts_with(&OTHER_MAGIC) {
                let text = "it was written by an older version of pg_tde, which has to recover this server";
                return Err(at_path("use", path)(io::Error::other(text)));
            }
            return Ok(());
        };
        let key = (record.at.relation, record.at.fork == Fork::Vm, record.at.block);
        let older = record.stamp.position < since
            || newest.get(&key).is_some_and(|known| known.stamp.sequence > record.stamp.sequence);
        if !older {
            newest.insert(key, record);
        }
    }
}

/// Writes a saved page over the one in place if that one does not open.
fn put_back(table: &KeyTable, at: PageAddress, saved: &Page) -> Result<bool, DoubleWriteError> {
    let (path, block) = server::segment_path(at.relation, at.fork, at.block);
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

/// Whether a page opens under no line its tablespace had since redo began, and is not a whole one in clear. Without a line nothing can
/// be said.
fn is_torn(table: &KeyTable, at: PageAddress, page: &mut Page) -> bool {
    if pg::is_zero(page) {
        return false;
    }
    let mut tried = false;
    // Decrypted again, or dropped: the file is newer than any record.
    let Some(state) = table.state(at.relation.tablespace) else { return false };
    let mixed = matches!(state, State::Encrypting(_) | State::Decrypting(_));
    if mixed
        && pg::header_is_valid(page, at.fork)
        && page[8..10] == pg::checksum(page, at.block).to_ne_bytes()
    {
        return false;
    }
    // Keys from before the redo may be destroyed, and no page is under them.
    let since = table.recovery_from();
    let of_it = |line: &LineInfo| line.tablespace == at.relation.tablespace && line.span.end > since;
    for line in table.lines().filter(of_it) {
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

    fn stamp(sequence: u64) -> Stamp {
        Stamp { sequence, position: 0x0102_0304 }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let page: Page = std::array::from_fn(|i| i as u8);
        for (fork, byte) in [(Fork::Main, 0), (Fork::Vm, 2)] {
            let bytes = encode(PageAddress { fork, ..address() }, stamp(9), &page);
            let record = decode(&bytes).expect("whole");
            assert_eq!((record.at.relation, record.at.fork, record.at.block), (address().relation, fork, 7));
            assert_eq!((record.stamp, *record.page), (stamp(9), page));
            assert_eq!(&bytes[..4], b"TDW2");
            let header = [0x10, 0x40, 0, 0, 5, 0, 0, 0, 0x11, 0x40, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(bytes[8..32], header);
            assert_eq!(bytes[32..48], [4, 3, 2, 1, 0, 0, 0, 0, byte, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(bytes.len(), 8240);
        }
    }

    #[test]
    fn a_record_with_any_byte_changed_is_none() {
        let record = encode(address(), stamp(1), &[3; PAGE_SIZE]);
        for position in 0..RECORD {
            let mut changed = record;
            changed[position] ^= 1;
            assert!(decode(&changed).is_none(), "byte {position}");
        }
    }

    fn read_back(name: &str, bytes: &[u8], since: u64) -> Result<Newest, DoubleWriteError> {
        let path = std::env::temp_dir().join(format!("double-write-{name}-{}", std::process::id()));
        std::fs::write(&path, bytes).expect("written");
        let mut newest = Newest::new();
        let read = read_records(&path, since, &mut newest);
        std::fs::remove_file(&path).expect("removed");
        read.map(|()| newest)
    }

    #[test]
    fn the_newest_record_of_a_page_counts_wherever_it_stands() {
        let mut bytes = Vec::new();
        for (sequence, byte) in [(5, 5), (7, 7), (6, 6)] {
            bytes.extend(encode(address(), stamp(sequence), &[byte; PAGE_SIZE]));
        }
        bytes.extend(&encode(address(), stamp(8), &[8; PAGE_SIZE])[..RECORD - 1]); // cut off by a crash
        let newest = read_back("newest", &bytes, 0).expect("read");
        let record = newest.get(&(address().relation, false, 7)).expect("there");
        assert_eq!((record.stamp.sequence, record.page[0]), (7, 7));
    }

    #[test]
    fn a_record_from_before_the_redo_is_left_out() {
        let bytes = encode(address(), stamp(1), &[1; PAGE_SIZE]);
        assert_eq!(read_back("old", &bytes, stamp(1).position).expect("read").len(), 1);
        assert_eq!(read_back("old", &bytes, stamp(1).position + 1).expect("read").len(), 0);
    }

    #[test]
    fn a_file_of_another_version_is_an_error() {
        let mut bytes = encode(address(), stamp(1), &[1; PAGE_SIZE]);
        bytes[..4].copy_from_slice(&OTHER_MAGIC);
        assert!(read_back("other", &bytes, 0).is_err());
    }
}
