//! Neither adding nor using an object costs more the more there are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hsm_engine::objects::{AttributeType as A, Generate, Template, Token, Value};
use hsm_engine::store::{FileStore, ObjectName, Store, StoreError, StoreLock};
use hsm_engine::{Hsm, Initialize};

use crate::support::{OFFICER_PIN, USER_PIN, bytes, pin, yes};

#[derive(Debug, Default)]
struct Counts {
    read: AtomicUsize,
    written: AtomicUsize,
    bytes: AtomicUsize,
}

/// A store that counts what is read and written.
#[derive(Debug)]
struct Counting(Arc<dyn Store>, Arc<Counts>);

impl Store for Counting {
    fn location(&self) -> String {
        self.0.location()
    }
    fn is_empty(&self) -> Result<bool, StoreError> {
        self.0.is_empty()
    }
    fn get(&self, name: &ObjectName) -> Result<Option<Vec<u8>>, StoreError> {
        self.1.read.fetch_add(1, Ordering::Relaxed);
        self.0.get(name)
    }
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.1.written.fetch_add(1, Ordering::Relaxed);
        self.1.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        self.0.put(name, bytes)
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.0.delete(name)
    }
    fn list(&self) -> Result<Vec<ObjectName>, StoreError> {
        self.0.list()
    }
    fn logs(&self) -> Result<Vec<ObjectName>, StoreError> {
        self.0.logs()
    }
    fn log_len(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        self.0.log_len(name)
    }
    fn log_read(&self, name: &ObjectName, from: u64) -> Result<Vec<u8>, StoreError> {
        self.0.log_read(name, from)
    }
    fn log_append(&self, name: &ObjectName, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.1.written.fetch_add(1, Ordering::Relaxed);
        self.1.bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        self.0.log_append(name, at, bytes)
    }
    fn log_truncate(&self, name: &ObjectName, len: u64) -> Result<(), StoreError> {
        self.0.log_truncate(name, len)
    }
    fn area(&self, name: &ObjectName) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(Self(self.0.area(name)?, Arc::clone(&self.1))))
    }
    fn head(&self, name: &ObjectName) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.head(name)
    }
    fn lock(&self, name: &ObjectName, wait: Duration) -> Result<StoreLock, StoreError> {
        self.0.lock(name, wait)
    }
}

/// 100,000 objects in the long form of this test, 3,000 otherwise.
#[test]
fn adding_and_using_an_object_touches_a_handful_of_files_however_many_there_are() {
    let many = if std::env::var_os("TDE_SOAK").is_some() { 100_000 } else { 3_000 };
    let shm = std::path::Path::new("/dev/shm");
    let scratch = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap();
    let dir = scratch.path().join("hsm");
    Hsm::initialize_dir(&dir, &Initialize::new(&pin(OFFICER_PIN), &pin(USER_PIN))).unwrap();
    let counts = Arc::new(Counts::default());
    let open = || {
        let store = Counting(Arc::new(FileStore::open(&dir).unwrap()), Arc::clone(&counts));
        Token::open(Hsm::open(store).unwrap().login("user", &pin(USER_PIN)).unwrap()).unwrap()
    };
    let token = open();
    let scope = token.new_scope();
    let add = |n: usize| {
        let t = Template::new()
            .with(A::Token, yes())
            .with(A::Label, bytes(format!("key {n}").as_bytes()))
            .with(A::ValueLen, Value::Number(32));
        token.generate_key(&scope, Generate::Aes, t).unwrap()
    };
    let begun = Instant::now();
    let first = add(0);
    for n in 1..many {
        add(n);
    }
    println!("{many} objects: {:?} each", begun.elapsed() / many as u32);

    let take = |n: &AtomicUsize| n.swap(0, Ordering::Relaxed);
    take(&counts.read);
    take(&counts.written);
    take(&counts.bytes);
    add(many);
    assert_eq!(take(&counts.written), 5, "log, object, page, directory, root");
    let bytes_written = take(&counts.bytes);
    // A page has 1 of 512 of the entries, of some 58 bytes.
    assert!(bytes_written < 12_000 + many / 512 * 70 * 2, "{bytes_written}");
    assert!(take(&counts.read) < 10);

    let begun = Instant::now();
    let token = open();
    let opening = begun.elapsed();
    let read = take(&counts.read);
    assert!(read < 10, "{read}");
    let begun = Instant::now();
    token.get(first, A::Label).unwrap();
    let using = begun.elapsed();
    assert!(take(&counts.read) <= 5);
    let scope = token.new_scope();
    let by_label = Template::new().with(A::Label, bytes(format!("key {}", many / 2).as_bytes()));
    let begun = Instant::now();
    assert_eq!(token.find(&scope, &by_label).unwrap().len(), 1);
    let finding = begun.elapsed();
    assert!(take(&counts.read) <= 520, "all pages, the first time, and no object");
    let begun = Instant::now();
    assert_eq!(token.find(&scope, &by_label).unwrap().len(), 1);
    println!(
        "opening {opening:?}, first use {using:?}, first search {finding:?}, next {:?}",
        begun.elapsed()
    );
    assert_eq!(take(&counts.read), 0);
}
