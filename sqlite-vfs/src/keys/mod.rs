//! Keys of database files: where they come from and which of them is in use.
//!
//! ```text
//! Settings     which keyring, which HSM, which PIN: URI over API over environment   (settings.rs, pin.rs)
//! Configured   the KeySource that SQLite's connections use                          (source.rs)
//! Keychain     what this process has open: keyrings, HSM sessions, files in use     (keychain.rs, hsm.rs)
//! FileKeys     the versions of one file's key, shared by all its connections        (file_keys.rs)
//! ```
//!
//! The first opening logs in to the HSM and unwraps the file's key; later ones find both and cost microseconds. A forked
//! child starts with an empty keychain and logs in itself.

mod error;
mod file_keys;
mod hsm;
mod keychain;
mod pin;
mod settings;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

pub use error::KeysError;
pub use keyring::{HsmUri, HsmUriError};

pub use file_keys::{FileKeys, VersionKeys};
pub use pin::{PIN_COMMAND_TIMEOUT, PinCallback, PinSource, PinSourceError};
pub use settings::{Settings, SettingsError};
pub use source::Configured;

/// The random id in the header of a database file, bytes 4..16. It names the file's scope in the keyring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// Where the keys of database files come from.
pub trait KeySource: Send + Sync {
    /// Keys of a file that exists. `db` is its path, for messages.
    ///
    /// # Errors
    /// No keyring knows the file, or a key cannot be had; each for its own reason.
    fn existing(&self, id: FileId, db: &str) -> Result<Arc<FileKeys>, KeysError>;

    /// Whether [`create`](Self::create) could make keys: called when an empty file is opened, so that a missing
    /// configuration shows then and not at the first write.
    ///
    /// # Errors
    /// What `create` would say.
    fn ready(&self, db: &str) -> Result<(), KeysError>;

    /// Makes the scope of a new file; it is durable when this returns.
    ///
    /// # Errors
    /// No keyring to make it in, or the keyring or the HSM refuse.
    fn create(&self, db: &str) -> Result<Arc<FileKeys>, KeysError>;
}
