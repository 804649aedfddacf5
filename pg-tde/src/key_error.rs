//! Why a key cannot be had.

use std::path::PathBuf;

use hsm_engine::PinError;
use keyring::{HsmUriError, KeyringError, KeyringId, LoginError, LoginFailure, MasterKeyError, WalPosition};

use crate::key_table::TableError;
use crate::manifest::ManifestError;
use crate::pin_command::PinCommandError;
use crate::wal_table::WalTableFull;

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KeyError {
    /// Somebody has locked the server.
    #[error("the keys of this server are locked: tde.unlock() gives them back")]
    Locked,
    /// `pg_tde.hsm` is empty.
    #[error(
        "pg_tde.hsm is not set: set it in postgresql.conf to soft:DIRECTORY, a store made by \"tde hsm init\", or to pkcs11:token=NAME?module-path=FILE, and restart the server"
    )]
    NoHsm,
    /// `pg_tde.pin_command` is empty.
    #[error(
        "pg_tde.pin_command is not set: set it in postgresql.conf to a command that prints the PIN of the HSM user"
    )]
    NoPinCommand,
    /// `pg_tde.hsm` cannot be read.
    #[error("pg_tde.hsm is not usable: {0}")]
    Uri(#[from] HsmUriError),
    /// The HSM's store would be in every base backup, beside what its keys protect.
    #[error("the HSM store \"{}\" is inside the data directory: move it elsewhere, or every backup carries the master key along", .0.display())]
    StoreInDataDirectory(PathBuf),
    /// The PIN command.
    #[error(transparent)]
    Pin(#[from] PinCommandError),
    /// The PIN file that the HSM's URI names.
    #[error("pin-source of pg_tde.hsm is not usable: {0}")]
    PinFile(#[from] PinError),
    /// The HSM.
    #[error("the HSM cannot be used: {0}")]
    Hsm(#[from] MasterKeyError),
    /// Logging in to the HSM.
    #[error("the HSM cannot be used: {0}")]
    Login(#[from] LoginError),
    /// The keyring.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The key table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The HSM knows of a keyring here, but there is none.
    #[error("there is no keyring in \"{}\", but the HSM remembers keyring {keyring} (generation {generation}) there: restore the directory from a backup, or run \"tde keyring accept-restore\" if it is gone on purpose", dir.display())]
    Vanished {
        /// Where it should be.
        dir: PathBuf,
        /// Its id.
        keyring: KeyringId,
        /// The generation that was seen last.
        generation: u64,
    },
    /// The data directory has a keyring, but it is not where `pg_tde.keyring` says.
    #[error("there is no keyring in \"{}\", but this data directory belongs to keyring {keyring}: set pg_tde.keyring to where it is, or restore it from a backup", dir.display())]
    NotFound {
        /// Where it should be.
        dir: PathBuf,
        /// Its id.
        keyring: KeyringId,
    },
    /// The keyring is another one.
    #[error("the keyring in \"{}\" is {found}, but this data directory belongs to keyring {expected}: set pg_tde.keyring to where that one is", dir.display())]
    OtherKeyring {
        /// Where it is.
        dir: PathBuf,
        /// Its id.
        found: KeyringId,
        /// The id in the manifest.
        expected: KeyringId,
    },
    /// The keyring is older than the data directory.
    #[error("the keyring in \"{}\" has no line {line} for tablespace {tablespace}, which this data directory uses: restore a newer copy of the keyring", dir.display())]
    LineLost {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
        /// OID of the tablespace.
        tablespace: u32,
    },
    /// Recovery to a point in time with a keyring from after it.
    #[error("the keyring in \"{}\" knows a change of line {line} at {at}, but recovery ended at {end}: restore the keyring from the backup that was recovered, and recover again", dir.display())]
    Future {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
        /// When it was changed.
        at: WalPosition,
        /// Where recovery ended.
        end: WalPosition,
    },
    /// The keyring is newer than the data directory.
    #[error("the keyring in \"{}\" uses line {line} for tablespace {tablespace}, of which this data directory knows nothing: restore the keyring that belongs to it", dir.display())]
    NotInManifest {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
        /// OID of the tablespace.
        tablespace: u32,
    },
    /// `pg_tde.encrypt_wal` is on, but only a primary can make the key.
    #[error(
        "pg_tde.encrypt_wal is on, but the keyring has no key for the write-ahead log, and only a primary makes one: start this server with pg_tde.encrypt_wal off until the primary has run with it on; then stop it, run \"tde pg accept-wal DATADIR\", and switch it on"
    )]
    NoWalKey,
    /// There is no key of the WAL to rotate.
    #[error("the write-ahead log was never encrypted: set pg_tde.encrypt_wal to on and restart the server")]
    WalPlain,
    /// The keyring is older than the data directory.
    #[error("the keyring in \"{}\" has no line {line} for the write-ahead log, which this data directory uses: restore a newer copy of the keyring", dir.display())]
    WalLineLost {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
    },
    /// More than shared memory holds.
    #[error(transparent)]
    WalTable(#[from] WalTableFull),
    /// `pg_wal` cannot be read.
    #[error("cannot read the directory \"pg_wal\": {source}")]
    WalDirectory {
        /// Why.
        source: std::io::Error,
    },
    /// The manifest of the data directory.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A server that replays another's WAL gets its keyring from there.
    #[error("there is no keyring in \"{}\" although key line {line} is known", dir.display())]
    NoKeyring {
        /// Where it should be.
        dir: PathBuf,
        /// The line.
        line: u64,
    },
    /// The keyring went through something that the WAL knows nothing of.
    #[error("the keyring in \"{}\" knows another history of line {line} than the write-ahead log: it is from a timeline that was abandoned; restore the keyring of the server whose WAL is replayed here", dir.display())]
    OtherTimeline {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
    },
    /// A record does not say what the WAL said.
    #[error(
        "line {line} of the keyring is not what the write-ahead log said of it: the keyring is from elsewhere"
    )]
    Mismatch {
        /// The line.
        line: u64,
    },
}

impl KeyError {
    /// Whether the HSM refused the PIN or the user, until somebody changes either.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Login(error) if error.failure() == LoginFailure::Refused)
    }

    /// Whether waiting, or a change of settings, may help.
    pub(crate) fn may_pass(&self) -> bool {
        self.is_away() || self.is_refused()
    }

    /// Whether the key was destroyed on purpose.
    pub(crate) fn is_destroyed(&self) -> bool {
        matches!(self, Self::Keyring(KeyringError::KeyDestroyed { .. }))
    }

    /// Whether waiting may help.
    pub(crate) fn is_away(&self) -> bool {
        match self {
            Self::Hsm(MasterKeyError::Away(_))
            | Self::Keyring(KeyringError::HsmAway { .. })
            | Self::Pin(_) => true,
            Self::Login(error) => error.failure() == LoginFailure::Away,
            _ => false,
        }
    }
}
