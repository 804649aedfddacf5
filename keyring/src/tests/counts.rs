//! Opening one of many scopes, and adding one, touches a handful of files.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::support::*;
use crate::*;

#[derive(Default)]
struct Counts {
    reads: Cell<u32>,
    lists: Cell<u32>,
    writes: Cell<u32>,
}

/// A file store that counts.
struct Counting {
    inner: FileStore,
    counts: Rc<Counts>,
}

fn one_more(count: &Cell<u32>) {
    count.set(count.get() + 1);
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
        self.counts.writes.set(self.counts.writes.get() + records.len() as u32);
        self.inner.replace_lines(lock, records)
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

#[test]
fn one_of_many_scopes_costs_a_few_reads_however_many_there_are() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let filled = Keyring::create(dir.path(), Owner::Files, &master).unwrap();
    for id in 0..=255 {
        filled.add_scope(sqlite(id), &master).unwrap();
    }
    let counts = Rc::new(Counts::default());
    let inner = FileStore::open(dir.path()).unwrap();
    let keyring = Keyring::open_store(Box::new(Counting { inner, counts: Rc::clone(&counts) })).unwrap();
    let keyring = keyring.unlock(&master).unwrap();
    keyring.dek(LineNumber(200), KeyVersion(1), &master).unwrap();
    assert!(counts.reads.get() <= 3, "opening one read {} files", counts.reads.get());
    assert_eq!((counts.lists.get(), counts.writes.get()), (0, 0));

    counts.reads.set(0);
    keyring.add_scope(sqlite(1), &master).unwrap();
    assert!(counts.reads.get() <= 3, "adding one read {} files", counts.reads.get());
    assert_eq!((counts.lists.get(), counts.writes.get()), (0, 1));
}
