//! Opening one of many scopes, and adding one, touches a handful of files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::support::*;
use crate::*;

#[derive(Default)]
struct Counts {
    reads: AtomicU32,
    lists: AtomicU32,
    writes: AtomicU32,
    hints: AtomicU32,
}

/// A file store that counts.
struct Counting {
    inner: FileStore,
    counts: Arc<Counts>,
}

fn one_more(count: &AtomicU32) {
    count.fetch_add(1, Relaxed);
}

impl Store for Counting {
    fn read_root(&self) -> Result<Option<Vec<u8>>> {
        one_more(&self.counts.reads);
        self.inner.read_root()
    }
    fn read_line(&self, line: LineNumber) -> Result<Option<Vec<u8>>> {
        one_more(&self.counts.reads);
        self.inner.read_line(line)
    }
    fn lines(&self) -> Result<Vec<LineNumber>> {
        one_more(&self.counts.lists);
        self.inner.lines()
    }
    fn read_hint(&self, file_id: &[u8; 12]) -> Result<Option<LineNumber>> {
        one_more(&self.counts.reads);
        self.inner.read_hint(file_id)
    }
    fn write_hint(&self, file_id: &[u8; 12], line: LineNumber) -> Result<()> {
        one_more(&self.counts.hints);
        self.inner.write_hint(file_id, line)
    }
    fn lock(&self) -> Result<WriteLock> {
        self.inner.lock()
    }
    fn commit(&self, lock: &WriteLock, line: LineNumber, record: &[u8], root: &[u8]) -> Result<()> {
        one_more(&self.counts.writes);
        self.inner.commit(lock, line, record, root)
    }
    fn replace_root(&self, lock: &WriteLock, root: &[u8]) -> Result<()> {
        one_more(&self.counts.writes);
        self.inner.replace_root(lock, root)
    }
    fn replace_lines(&self, lock: &WriteLock, records: &[(LineNumber, Vec<u8>)]) -> Result<()> {
        self.counts.writes.fetch_add(records.len() as u32, Relaxed);
        self.inner.replace_lines(lock, records)
    }
    fn retain(&self, lock: &WriteLock, of: Retained, record: &[u8]) -> Result<()> {
        one_more(&self.counts.writes);
        self.inner.retain(lock, of, record)
    }
    fn retained(&self) -> Result<Vec<Retained>> {
        one_more(&self.counts.lists);
        self.inner.retained()
    }
    fn read_retained(&self, of: Retained) -> Result<Option<Vec<u8>>> {
        one_more(&self.counts.reads);
        self.inner.read_retained(of)
    }
    fn forget_retained(&self, lock: &WriteLock, of: Retained) -> Result<()> {
        self.inner.forget_retained(lock, of)
    }
    fn retained_path(&self, of: Retained) -> PathBuf {
        self.inner.retained_path(of)
    }
    fn line_path(&self, line: LineNumber) -> PathBuf {
        self.inner.line_path(line)
    }
    fn root_path(&self) -> PathBuf {
        self.inner.root_path()
    }
    fn dir(&self) -> &Path {
        self.inner.dir()
    }
}

fn counting(dir: &Path, master: &MemoryMaster) -> (Unlocked, Arc<Counts>) {
    let counts = Arc::new(Counts::default());
    let inner = FileStore::open(dir).unwrap();
    let keyring = Keyring::open_store(Box::new(Counting { inner, counts: Arc::clone(&counts) })).unwrap();
    let keyring = keyring.unlock(master).unwrap();
    counts.reads.store(0, Relaxed);
    (keyring, counts)
}

#[test]
fn one_of_many_scopes_costs_a_few_reads_however_many_there_are() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let filled = Keyring::create(dir.path(), Owner::Files, &master).unwrap();
    for id in 1..=255 {
        filled.add_scope(sqlite(id), &master).unwrap();
    }
    let (keyring, counts) = counting(dir.path(), &master);
    keyring.dek(LineNumber(200), KeyVersion(1), &master).unwrap();
    assert_eq!(counts.reads.swap(0, Relaxed), 1);
    let scope = keyring.find_sqlite_file(&[200; 12]).unwrap().unwrap();
    keyring.dek_of(&scope, KeyVersion(1), &master).unwrap();
    assert_eq!(counts.reads.swap(0, Relaxed), 2, "the hint and the record");
    assert!(keyring.hinted_sqlite_file(&[0; 12]).unwrap().is_none());
    assert_eq!(counts.reads.swap(0, Relaxed), 1, "the hint that is not there");
    assert_eq!((counts.lists.load(Relaxed), counts.writes.load(Relaxed)), (0, 0));

    keyring.add_scope(sqlite(0), &master).unwrap();
    let reads = counts.reads.load(Relaxed);
    assert!(reads <= 4, "adding one read {reads} files: root twice, no hint, no record");
    let written = (counts.lists.load(Relaxed), counts.writes.load(Relaxed), counts.hints.load(Relaxed));
    assert_eq!(written, (0, 1, 1));
}

#[test]
fn a_lost_hint_costs_one_look_at_every_record() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let filled = Keyring::create(dir.path(), Owner::Files, &master).unwrap();
    for id in 1..=20 {
        filled.add_scope(sqlite(id), &master).unwrap();
    }
    let (keyring, counts) = counting(dir.path(), &master);
    std::fs::remove_dir_all(dir.path().join("by-file")).unwrap();
    let found = keyring.find_sqlite_file(&[20; 12]).unwrap().unwrap();
    assert_eq!(found.line, LineNumber(20));
    assert!(counts.reads.swap(0, Relaxed) >= 20);
    assert_eq!(keyring.find_sqlite_file(&[20; 12]).unwrap().unwrap(), found);
    assert_eq!(counts.reads.swap(0, Relaxed), 2, "mended");
}
