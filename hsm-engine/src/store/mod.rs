//! Where the engine keeps its objects: a trait, and [`FileStore`] on a directory.
//!
//! A store knows names and bytes, nothing of their meaning. Everything in it is either sealed or meant to be public.

mod file;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use file::FileStore;

/// Largest object a store takes, in bytes.
pub const MAX_OBJECT: usize = 4 << 20;

/// Name of an object, a log or a lock: 1 to 80 characters of `a-z 0-9 . _ -`, not starting with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`StoreError::BadName`] if it breaks the rule above.
    pub fn new(name: impl Into<String>) -> Result<Self, StoreError> {
        let name = name.into();
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if name.is_empty() || name.len() > 80 || name.starts_with('.') || !name.bytes().all(ok) {
            return Err(StoreError::BadName { name });
        }
        Ok(Self(name))
    }

    /// A name that is written in this program and follows the rule.
    pub(crate) fn fixed(name: &'static str) -> Self {
        debug_assert!(Self::new(name).is_ok(), "{name}");
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Named objects that are replaced as a whole, logs that only grow, and advisory locks.
///
/// Locks exclude other processes and other holders in this process; they end with their holder, however it ends.
pub trait Store: Send + Sync + fmt::Debug {
    /// Where the store is, for messages.
    fn location(&self) -> String;
    /// Whether the store holds nothing at all.
    fn is_empty(&self) -> Result<bool, StoreError>;
    /// Bytes of an object; `None` if there is none. Never a mix of old and new.
    fn get(&self, name: &ObjectName) -> Result<Option<Vec<u8>>, StoreError>;
    /// Creates or replaces an object. Durable when it returns; after a crash the object is the old or the new one.
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError>;
    /// Removes an object if it is there. Durable when it returns.
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;
    /// Names of all objects, sorted.
    fn list(&self) -> Result<Vec<ObjectName>, StoreError>;
    /// Names of all logs, sorted.
    fn logs(&self) -> Result<Vec<ObjectName>, StoreError>;
    /// Length of a log in bytes; `None` if there is none.
    fn log_len(&self, name: &ObjectName) -> Result<Option<u64>, StoreError>;
    /// Bytes of a log from `from` to its end.
    fn log_read(&self, name: &ObjectName, from: u64) -> Result<Vec<u8>, StoreError>;
    /// Appends to a log of `at` bytes, making it if `at` is 0. Durable when it returns; after a crash any
    /// prefix of `bytes` may be there.
    fn log_append(&self, name: &ObjectName, at: u64, bytes: &[u8]) -> Result<(), StoreError>;
    /// Cuts a log to `len` bytes.
    fn log_truncate(&self, name: &ObjectName, len: u64) -> Result<(), StoreError>;
    /// A store within this one, for many objects of one kind; made if it is not there. Its objects, logs and locks are its own.
    fn area(&self, name: &ObjectName) -> Result<Arc<dyn Store>, StoreError>;
    /// The first bytes of an object, at most 32; `None` if there is none. Cheap, so that a reader can ask each time
    /// whether something changed.
    fn head(&self, name: &ObjectName) -> Result<Option<Vec<u8>>, StoreError>;
    /// Takes the exclusive lock `name`, waiting up to `wait`.
    fn lock(&self, name: &ObjectName, wait: Duration) -> Result<StoreLock, StoreError>;
}

/// A held lock; dropping it lets go.
#[must_use = "the lock is let go at once if this is dropped"]
pub struct StoreLock(#[allow(dead_code, reason = "held for its drop")] Box<dyn Send + Sync>);

impl StoreLock {
    /// A lock that is held as long as `holder` lives.
    pub fn new(holder: impl Send + Sync + 'static) -> Self {
        Self(Box::new(holder))
    }
}

impl fmt::Debug for StoreLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreLock")
    }
}

/// An error of a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refused.
    #[error("HSM store: cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is no store at this place.
    #[error("there is no HSM store at {}; `tde hsm init --store DIR --pin-file FILE` makes one", .path.display())]
    NotFound {
        /// The directory.
        path: PathBuf,
    },
    /// Others than the owner may read or write.
    #[error("{} has mode {mode:04o} and must not be open to group or others: `chmod {want:04o} {}`", .path.display(), .path.display())]
    LooseMode {
        /// The directory or file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// A mode that would do.
        want: u32,
    },
    /// Somebody else owns it.
    #[error("{} belongs to user id {owner}, this process runs as {user}: run it as the owner", .path.display())]
    WrongOwner {
        /// The directory or file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// This process' effective user.
        user: u32,
    },
    /// A file in the store is not its owner's.
    #[error("{} belongs to user id {owner}, but the HSM store to {want}: `chown {want} {}`, if it is a file of the store", .path.display(), .path.display())]
    ForeignFile {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Owner of the store.
        want: u32,
    },
    /// Neither directory nor regular file where one belongs (a symbolic link, a device).
    #[error("{} is not a {want}", .path.display())]
    WrongType {
        /// The path.
        path: PathBuf,
        /// What belongs there.
        want: &'static str,
    },
    /// A new store needs an empty place.
    #[error("{} is not empty; a new HSM store needs an empty or new directory", .path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Another process holds the lock for too long.
    #[error("HSM store is busy: {} is held by another process for more than {waited_ms} ms; try again", .path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long this process waited, in milliseconds.
        waited_ms: u64,
    },
    /// An object is larger than any that is ever written.
    #[error("{} has {len} bytes, more than the {max} an object may have", .path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// A log is not as long as its writer believes.
    #[error("{} has {found} bytes where {expected} were expected: it was changed by something that takes no lock", .path.display())]
    LogMoved {
        /// The file.
        path: PathBuf,
        /// Length expected, in bytes.
        expected: u64,
        /// Length found, in bytes.
        found: u64,
    },
    /// Not a name a store takes.
    #[error("\"{name}\" is not a name for an object: 1 to 80 of a-z 0-9 . _ -, not starting with a dot")]
    BadName {
        /// The name.
        name: String,
    },
}
