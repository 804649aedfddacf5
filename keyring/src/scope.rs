//! Scopes, their data-key versions and states: the dictionary without any bytes or files.

use std::fmt;

use page_cipher::CipherId;

use crate::ids::{KeyVersion, KeyringId, LineNumber, WalPosition};
use crate::master::WrappedKey;

/// Longest tablespace name kept, in bytes (PostgreSQL's own limit is 63).
pub(crate) const MAX_NAME: usize = 255;
/// Most versions of data key one line may hold.
pub(crate) const MAX_VERSIONS: usize = 4096;
/// Most state changes one line may hold.
pub(crate) const MAX_HISTORY: usize = 4096;

/// What a line of data keys belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScopeKind {
    /// A PostgreSQL tablespace.
    PgTablespace {
        /// The tablespace's OID in its cluster.
        oid: u32,
        /// The tablespace's name when the line was made; a hint for people, tablespaces can be renamed.
        name: String,
    },
    /// A SQLite database, by the random id in its file header.
    SqliteFile {
        /// Bytes 4..16 of the database file.
        file_id: [u8; 12],
    },
    /// The write-ahead log of a PostgreSQL cluster.
    PgWal,
}

impl fmt::Display for ScopeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PgTablespace { oid, name } => write!(f, "tablespace \"{name}\" (OID {oid})"),
            Self::SqliteFile { file_id } => write!(f, "SQLite file {}", hex::encode(file_id)),
            Self::PgWal => f.write_str("write-ahead log"),
        }
    }
}

/// What may be done with one version of a data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DekState {
    /// New data is written under it; exactly the newest version of a line.
    Active,
    /// Old pages and old backups are read with it.
    DecryptOnly,
    /// As `DecryptOnly`, and may be destroyed once the date has passed.
    PendingDestruction {
        /// Seconds since 1970-01-01 UTC.
        not_before: u64,
    },
    /// The wrapped key is gone. It stays in the record, so that reading under it names the reason.
    Destroyed {
        /// Seconds since 1970-01-01 UTC.
        at: u64,
    },
}

impl fmt::Display for DekState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::DecryptOnly => "decrypt-only",
            Self::PendingDestruction { .. } => "pending-destruction",
            Self::Destroyed { .. } => "destroyed",
        })
    }
}

/// State of a tablespace from one WAL position on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum TablespaceState {
    /// Pages are plain.
    Plain = 0,
    /// Pages are plain or under the active key.
    Encrypting = 1,
    /// Every page is under the active key.
    Encrypted = 2,
    /// Pages are under the active or the previous key.
    Rotating = 3,
    /// Pages are under the active key or plain.
    Decrypting = 4,
    /// The tablespace was dropped; its keys stay for old backups.
    Retired = 5,
}

impl TablespaceState {
    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Plain,
            1 => Self::Encrypting,
            2 => Self::Encrypted,
            3 => Self::Rotating,
            4 => Self::Decrypting,
            5 => Self::Retired,
            _ => return None,
        })
    }
}

impl fmt::Display for TablespaceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Encrypting => "encrypting",
            Self::Encrypted => "encrypted",
            Self::Rotating => "rotating",
            Self::Decrypting => "decrypting",
            Self::Retired => "retired",
        })
    }
}

/// A state and the WAL position it counts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// Position of the WAL record that logged the change.
    pub from: WalPosition,
    /// The state from there on.
    pub state: TablespaceState,
}

/// One version of a line's data key, without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DekVersion {
    /// Its number.
    pub version: KeyVersion,
    /// What may be done with it.
    pub state: DekState,
    /// When it was made, in seconds since 1970-01-01 UTC.
    pub created: u64,
    pub(crate) check: [u8; 16],
    /// Absent once destroyed.
    pub(crate) wrapped: Option<WrappedKey>,
}

impl DekVersion {
    /// The master-key version this key is wrapped under; none once it is destroyed.
    pub fn master_version(&self) -> Option<u32> {
        self.wrapped.map(|wrapped| wrapped.version)
    }
}

/// One scope as its record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub(crate) keyring: KeyringId,
    /// Line number.
    pub line: LineNumber,
    /// Counts every change of the record but re-wrapping, from 1.
    pub record_version: u64,
    /// What the keys belong to.
    pub kind: ScopeKind,
    /// How its data is encrypted.
    pub cipher: CipherId,
    /// When the scope was made, in seconds since 1970-01-01 UTC.
    pub created: u64,
    /// Every version of the data key, oldest first; never empty.
    pub versions: Vec<DekVersion>,
    /// State changes by WAL position, oldest first. Empty means `Plain` so far.
    pub history: Vec<StateChange>,
}

impl Scope {
    /// The keyring this scope is in.
    pub fn keyring(&self) -> KeyringId {
        self.keyring
    }

    /// The version that new data is written under; none when the newest was destroyed.
    pub fn active(&self) -> Option<&DekVersion> {
        self.versions.iter().rev().find(|entry| entry.state == DekState::Active)
    }

    /// One version, if the line has it.
    pub fn version(&self, version: KeyVersion) -> Option<&DekVersion> {
        self.versions.iter().find(|entry| entry.version == version)
    }

    /// Newest state; `Plain` without history.
    pub fn state(&self) -> TablespaceState {
        self.history.last().map_or(TablespaceState::Plain, |change| change.state)
    }

    /// State that held at `position`: a standby, or a server in recovery, is as far as it has replayed, not
    /// as far as the record (pg-traps 11).
    pub fn state_at(&self, position: WalPosition) -> TablespaceState {
        let before = self.history.iter().rev().find(|change| change.from <= position);
        before.map_or(TablespaceState::Plain, |change| change.state)
    }

    /// Whether the line was made but never put to use: nothing is encrypted under its keys. Every line of a
    /// cluster begins so, until its first state is set; lines of single files are in use at once.
    pub fn is_draft(&self) -> bool {
        !matches!(self.kind, ScopeKind::SqliteFile { .. }) && self.history.is_empty()
    }

    /// The lowest master-key version any of its keys is wrapped under.
    pub fn oldest_master_version(&self) -> Option<u32> {
        self.versions.iter().filter_map(DekVersion::master_version).min()
    }
}

/// `line 3, tablespace "secure" (OID 16385)`: how errors name a scope.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, {}", self.line, self.kind)
    }
}

/// What a new scope is made from.
#[derive(Clone, Debug)]
pub struct NewScope {
    /// What the keys will belong to.
    pub kind: ScopeKind,
    /// How its data will be encrypted.
    pub cipher: CipherId,
    /// First state, when its WAL position is known already. Without it the line of a cluster is a draft until
    /// `Unlocked::set_state`.
    pub initial: Option<StateChange>,
}
