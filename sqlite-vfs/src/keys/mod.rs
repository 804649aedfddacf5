//! Keys of database files: where they come from and which of them is in use.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use page_cipher::gcm_siv::Aes256GcmSiv;
use page_cipher::kdf::{self, Purpose};
use page_cipher::xts::Aes256Xts;
use secret_mem::SecretBytes;

use crate::error::{Reason, Result};

/// The random id in the header of a database file, bytes 4..16. It names the file's scope in the keyring.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(pub [u8; 12]);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileId({self})")
    }
}

/// Working keys of one DEK version of one file.
#[derive(Debug)]
pub struct VersionKeys {
    /// The DEK version, as in page trailers.
    pub version: u32,
    /// Seals pages.
    pub page: Aes256GcmSiv,
    /// Encrypts bytes 8..24 of WAL frame headers; unit = frame number.
    pub wal_frame: Aes256Xts,
    /// Authenticates headers of rollback journals.
    pub journal_mac: SecretBytes<32>,
}

impl VersionKeys {
    /// Derives the working keys from a data key.
    pub fn derive(file: FileId, version: u32, data_key: &SecretBytes<32>) -> Result<Self, KeysError> {
        let page = kdf::derive::<32>(data_key, Purpose::SQLITE_PAGE, &[&file.0]);
        let frame = kdf::derive::<64>(data_key, Purpose::SQLITE_WAL, &[&file.0]);
        Ok(Self {
            version,
            page: Aes256GcmSiv::new(&page),
            wal_frame: Aes256Xts::new(&frame).map_err(|_| KeysError::KeyWrong { file, version })?,
            journal_mac: kdf::derive(data_key, Purpose::SQLITE_JOURNAL, &[&file.0]),
        })
    }
}

/// The keys of one file, shared by all its connections in the process.
#[derive(Debug)]
pub struct FileKeys {
    id: FileId,
    active: AtomicU32,
    known: RwLock<Vec<Arc<VersionKeys>>>,
}

impl FileKeys {
    /// Keys that are all at hand. The last one is active.
    pub fn fixed(id: FileId, known: Vec<Arc<VersionKeys>>) -> Self {
        let active = AtomicU32::new(known.last().map_or(0, |keys| keys.version));
        Self { id, active, known: RwLock::new(known) }
    }

    /// The file's id.
    pub fn file_id(&self) -> FileId {
        self.id
    }

    /// Number of the version that new data is sealed under. No lock.
    pub fn active_version(&self) -> u32 {
        self.active.load(Ordering::Acquire)
    }

    /// Keys that new data is sealed under.
    pub fn active(&self) -> Result<Arc<VersionKeys>, KeysError> {
        self.version(self.active_version())
    }

    /// Keys of one version. One that is not known yet is looked up in the keyring.
    pub fn version(&self, version: u32) -> Result<Arc<VersionKeys>, KeysError> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|keys| keys.version == version);
        found.cloned().ok_or(KeysError::KeyMissing { file: self.id, version })
    }

    /// Another process has sealed a page under `version`: from now on nothing is sealed under an older one.
    pub fn notice(&self, version: u32) {
        self.active.fetch_max(version, Ordering::AcqRel);
    }
}

/// Where the keys of database files come from.
pub trait KeySource: Send + Sync {
    /// Keys of a file that exists. `db` is its path, for messages.
    fn existing(&self, id: FileId, db: &str) -> Result<Arc<FileKeys>, KeysError>;

    /// Whether [`create`](Self::create) could make keys: called when an empty file is opened, so that a missing
    /// configuration shows then and not at the first write.
    fn ready(&self, db: &str) -> Result<(), KeysError>;

    /// Makes the scope of a new file; it is durable when this returns.
    fn create(&self, db: &str) -> Result<Arc<FileKeys>, KeysError>;
}

/// Keys cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The keyring has no such version.
    #[error("key missing: no open keyring has version {version} of the data key of file {file}")]
    KeyMissing {
        /// The file's id.
        file: FileId,
        /// The DEK version.
        version: u32,
    },
    /// The key is not this file's.
    #[error("key wrong: version {version} of the data key of file {file} is not that key")]
    KeyWrong {
        /// The file's id.
        file: FileId,
        /// The DEK version.
        version: u32,
    },
}

impl KeysError {
    /// The extended code.
    pub fn reason(&self) -> Reason {
        match self {
            Self::KeyMissing { .. } => Reason::KeyMissing,
            Self::KeyWrong { .. } => Reason::KeyWrong,
        }
    }
}
