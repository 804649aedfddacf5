//! Why the state of a tablespace was not changed.

use std::io;
use std::path::PathBuf;

use keyring::{KeyringError, MasterKeyError};

use crate::job_file::JobFileError;
use crate::key_error::KeyError;
use crate::key_table::TableError;
use crate::needs::StillNeeded;
use crate::settings::UnknownCipher;

/// Why the state of a tablespace was not changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TablespaceError {
    /// Not loaded at server start.
    #[error("pg_tde is not active in this server")]
    NotActive,
    /// No such tablespace.
    #[error("tablespace \"{0}\" does not exist")]
    Unknown(String),
    /// Already encrypted.
    #[error("tablespace \"{0}\" is encrypted already")]
    Encrypted(String),
    /// Not encrypted.
    #[error("tablespace \"{0}\" is not encrypted")]
    NotEncrypted(String),
    /// Another job works on it.
    #[error("tablespace \"{0}\" is being encrypted already")]
    Encrypting(String),
    /// Another job works on it.
    #[error("tablespace \"{name}\" is {state}")]
    Busy {
        /// Its name.
        name: String,
        /// What the job does.
        state: &'static str,
    },
    /// `pg_tde.enforce_encryption`
    #[error("pg_tde.enforce_encryption is on, and tablespace {0} is not encrypted")]
    Enforced(String),
    /// The same.
    #[error("pg_tde.enforce_encryption is on, and tablespace \"{0}\" would not be encrypted any more")]
    EnforcedAlready(String),
    /// No job has that number.
    #[error("there is no job {0} under way")]
    NoJob(u64),
    /// A rotation has no way back.
    #[error("job {0} rotates a data key and cannot be cancelled: pages are under both versions")]
    NotCancellable(u64),
    /// What a job keeps on disk.
    #[error(transparent)]
    JobFile(#[from] JobFileError),
    /// The caller would wait for itself.
    #[error("this transaction has made files in tablespace \"{0}\" itself and cannot wait for the job")]
    OwnFiles(String),
    /// A standby changes nothing by itself.
    #[error("the server is in recovery")]
    InRecovery,
    /// `pg_tde.cipher` or the argument.
    #[error(transparent)]
    Cipher(#[from] UnknownCipher),
    /// What runs cannot be seen.
    #[error("cannot see which statements run: {0}")]
    Activity(pgrx::spi::Error),
    /// A waiting period of less than nothing.
    #[error("the waiting period must not be negative")]
    NegativePeriod,
    /// A key is not destroyed.
    #[error(transparent)]
    Needed(#[from] StillNeeded),
    /// HSM or keyring.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The directory cannot be read.
    #[error("cannot read \"{}\": {source}", path.display())]
    Read {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<KeyringError> for TablespaceError {
    fn from(error: KeyringError) -> Self {
        Self::Key(error.into())
    }
}

impl From<MasterKeyError> for TablespaceError {
    fn from(error: MasterKeyError) -> Self {
        Self::Key(error.into())
    }
}

impl From<TableError> for TablespaceError {
    fn from(error: TableError) -> Self {
        Self::Key(error.into())
    }
}

/// What to do about an error.
pub(crate) fn hint(error: &TablespaceError) -> &'static str {
    match error {
        TablespaceError::NotActive => {
            "Add pg_tde to shared_preload_libraries in postgresql.conf and restart the server."
        }
        TablespaceError::Encrypting(_) | TablespaceError::Busy { .. } => "See tde.jobs.",
        TablespaceError::Enforced(_) => {
            "Name an encrypted tablespace, or set default_tablespace to one; tde.encrypt_tablespace encrypts this one while it is used."
        }
        TablespaceError::Needed(needed) => needed.hint(),
        TablespaceError::NoJob(_) => "See tde.jobs.",
        TablespaceError::NotCancellable(_) => "Pause it with tde.pause_job, or let it end and rotate again.",
        TablespaceError::OwnFiles(_) => "Commit first, or do not ask to wait.",
        TablespaceError::InRecovery => "Run this on the primary server; standbys follow.",
        _ => "",
    }
}
