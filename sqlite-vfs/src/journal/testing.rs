//! Files, keys and pages for the tests of journal and WAL.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use secret_mem::SecretBytes;

use super::Journal;
use crate::database::Database;
use crate::error::{Result, VfsError};
use crate::keys::{FileId, FileKeys, KeySource, KeysError, VersionKeys};
use crate::raw::{RawFile, Read};
use crate::wal::Wal;

pub(crate) const FILE: FileId = FileId([0xA5; 12]);

pub(crate) fn keys(version: u32) -> Arc<VersionKeys> {
    let Ok(dek) = SecretBytes::fill_with(|bytes| {
        bytes.fill(version as u8);
        Ok::<(), core::convert::Infallible>(())
    });
    Arc::new(VersionKeys::derive(FILE, version, &dek).unwrap())
}

/// A keyring that knows one file.
struct OneFile(Arc<FileKeys>);

impl KeySource for OneFile {
    fn existing(&self, id: FileId, _: &str) -> Result<Arc<FileKeys>, KeysError> {
        if id == FILE { Ok(self.0.clone()) } else { Err(KeysError::KeyMissing { file: id, version: 1 }) }
    }

    fn ready(&self, _: &str) -> Result<(), KeysError> {
        Ok(())
    }

    fn create(&self, _: &str) -> Result<Arc<FileKeys>, KeysError> {
        Ok(self.0.clone())
    }
}

/// A database whose header has been read. The last of `versions` is active.
pub(crate) fn database(versions: &[u32], page_size: u32) -> Arc<Database> {
    let database = unknown_database(versions);
    database.adopt(FILE).unwrap();
    database.set_page_size(page_size);
    database
}

/// A database whose first page cannot be read.
pub(crate) fn unknown_database(versions: &[u32]) -> Arc<Database> {
    let known = versions.iter().map(|version| keys(*version)).collect();
    Arc::new(Database::new("test.db".into(), Arc::new(OneFile(Arc::new(FileKeys::fixed(FILE, known))))))
}

/// A file in memory that several handles may have open, and that can be full.
#[derive(Clone, Default)]
pub(crate) struct MemFile {
    bytes: Arc<Mutex<Vec<u8>>>,
    writes: Arc<AtomicUsize>,
    room: Arc<Mutex<Option<usize>>>,
}

impl MemFile {
    pub(crate) fn with(bytes: &[u8]) -> Self {
        Self { bytes: Arc::new(Mutex::new(bytes.to_vec())), ..Self::default() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        change(&mut self.bytes.lock().unwrap());
    }

    /// How many writes there were.
    pub(crate) fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }

    /// After `writes` more, one is cut short and fails, as do all others.
    pub(crate) fn fill_up_after(&self, writes: Option<usize>) {
        *self.room.lock().unwrap() = writes;
    }
}

impl RawFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<Read> {
        let bytes = self.bytes.lock().unwrap();
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let len = from.len().min(buf.len());
        buf[..len].copy_from_slice(&from[..len]);
        buf[len..].fill(0);
        Ok(if len == buf.len() { Read::Full } else { Read::Short })
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let mut room = self.room.lock().unwrap();
        let full = *room == Some(0);
        if let Some(left) = room.as_mut() {
            *left = left.saturating_sub(1);
        }
        let data = if full { &data[..data.len() / 2] } else { data };
        let mut bytes = self.bytes.lock().unwrap();
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
        if full {
            return Err(VfsError::Below { file: self.name().into(), action: "write", code: 13 });
        }
        Ok(())
    }

    fn truncate(&self, size: u64) -> Result<()> {
        self.bytes.lock().unwrap().resize(size as usize, 0);
        Ok(())
    }

    fn sync(&self, _: i32) -> Result<()> {
        Ok(())
    }

    fn size(&self) -> Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn name(&self) -> &str {
        "test.db-log"
    }
}

/// A file of the operating system.
pub(crate) struct DiskFile(pub(crate) std::fs::File);

impl DiskFile {
    fn done<T>(result: std::io::Result<T>) -> Result<T> {
        result.map_err(|_| VfsError::Below { file: "disk".into(), action: "access", code: 10 })
    }
}

impl RawFile for DiskFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<Read> {
        let mut done = 0;
        while done < buf.len() {
            match Self::done(std::os::unix::fs::FileExt::read_at(
                &self.0,
                &mut buf[done..],
                offset + done as u64,
            ))? {
                0 => {
                    buf[done..].fill(0);
                    return Ok(Read::Short);
                }
                n => done += n,
            }
        }
        Ok(Read::Full)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        Self::done(std::os::unix::fs::FileExt::write_all_at(&self.0, data, offset))
    }

    fn truncate(&self, size: u64) -> Result<()> {
        Self::done(self.0.set_len(size))
    }

    fn sync(&self, _: i32) -> Result<()> {
        Self::done(self.0.sync_data())
    }

    fn size(&self) -> Result<u64> {
        Self::done(self.0.metadata()).map(|metadata| metadata.len())
    }

    fn name(&self) -> &str {
        "disk"
    }
}

/// What SQLite has open: a file as it is, or one behind a state machine.
pub(crate) trait Log {
    fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<Read>;
    fn write(&mut self, data: &[u8], offset: u64) -> Result<()>;
    fn truncate(&mut self, size: u64) -> Result<()>;
    fn sync(&mut self) -> Result<()>;
    fn size(&self) -> u64;
}

impl<F: RawFile> Log for F {
    fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<Read> {
        self.read_at(buf, offset)
    }

    fn write(&mut self, data: &[u8], offset: u64) -> Result<()> {
        self.write_at(data, offset)
    }

    fn truncate(&mut self, size: u64) -> Result<()> {
        RawFile::truncate(self, size)
    }

    fn sync(&mut self) -> Result<()> {
        RawFile::sync(self, 2)
    }

    fn size(&self) -> u64 {
        RawFile::size(self).unwrap()
    }
}

/// A state machine and its file.
pub(crate) struct Sealed<M, F = MemFile>(pub(crate) M, pub(crate) F);

macro_rules! log_through {
    ($machine:ty) => {
        impl<F: RawFile> Log for Sealed<$machine, F> {
            fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<Read> {
                self.0.read(&self.1, buf, offset)
            }

            fn write(&mut self, data: &[u8], offset: u64) -> Result<()> {
                self.0.write(&self.1, data, offset)
            }

            fn truncate(&mut self, size: u64) -> Result<()> {
                self.0.truncate(&self.1, size)
            }

            fn sync(&mut self) -> Result<()> {
                self.0.sync(&self.1, 2)
            }

            fn size(&self) -> u64 {
                self.1.size().unwrap()
            }
        }
    };
}
log_through!(Journal);
log_through!(Wal);

/// Reproducible choices.
pub(crate) struct Dice(ChaCha20Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha20Rng::seed_from_u64(seed))
    }

    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.0.next_u32() % n
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// A page as SQLite has it in its cache.
    pub(crate) fn page(&mut self, number: u32, size: u32) -> Vec<u8> {
        let mut page = vec![0; size as usize];
        let used = size as usize - 32;
        self.0.fill_bytes(&mut page[..used]);
        if number == 1 {
            page[..16].copy_from_slice(b"SQLite format 3\0");
            let size = if size == 65536 { 1 } else { size as u16 };
            page[16..18].copy_from_slice(&size.to_be_bytes());
            page[20] = 32;
        }
        page
    }
}
