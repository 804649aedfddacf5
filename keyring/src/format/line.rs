//! `lines/<2 hex>/<16 hex>.tde`, one scope. Payload in this order:
//!
//! ```text
//! keyring id 16 | line u64 | record version u64
//! wrapped  u64 count, then each: key version u32 | master-key version u32 | data key under AES-KW 40
//! nonce    12
//! sealed   u64 length, AES-256-GCM-SIV of the metadata, tag (16) at its end;
//!          AAD "TDEKLINE" | format version u16 | keyring id 16 | line u64 | record version u64
//!
//! metadata kind tag u32 (0 tablespace: OID u32, name; 1 SQLite file: id 12; 2 WAL) | cipher u8 | created u64
//!          | u64 count, versions: version u32 | state tag u32 (0 active, 1 decrypt-only, 2 pending: date u64,
//!            3 destroyed: date u64) | created u64 | key check 16
//!          | u64 count, history: WAL position u64 | state u8
//! ```
//!
//! `wrapped` is outside the seal: AES-KW covers it, and the key check inside the seal binds each key to its
//! line and version, so a data key can be wrapped anew without being seen.

use std::path::Path;

use bincode::{Decode, Encode};
use page_cipher::CipherId;
use uuid::Uuid;

use super::root::Wrapped;
use super::{FORMAT_VERSION, FrameKind, decode, encode, frame, unframe};
use crate::error::{KeyringError, Result};
use crate::ids::{KeyVersion, KeyringId, LineNumber, WalPosition};
use crate::master::WrappedKey;
use crate::scope::{
    DekState, DekVersion, MAX_HISTORY, MAX_NAME, MAX_VERSIONS, Scope, ScopeKind, StateChange, TablespaceState,
};
use crate::seal::{NONCE_LEN, Seal};

/// A record whose seal has not been opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LineRecord {
    pub(crate) keyring: KeyringId,
    pub(crate) line: LineNumber,
    pub(crate) record_version: u64,
    /// Oldest first, without destroyed versions.
    pub(crate) wrapped: Vec<(KeyVersion, WrappedKey)>,
    pub(crate) nonce: [u8; NONCE_LEN],
    pub(crate) sealed: Vec<u8>,
}

#[derive(Encode, Decode)]
struct Payload {
    keyring: [u8; 16],
    line: u64,
    record_version: u64,
    wrapped: Vec<(u32, Wrapped)>,
    nonce: [u8; NONCE_LEN],
    sealed: Vec<u8>,
}

#[derive(Encode, Decode)]
struct Metadata {
    kind: Kind,
    cipher: u8,
    created: u64,
    versions: Vec<Version>,
    history: Vec<(u64, u8)>,
}

#[derive(Encode, Decode)]
enum Kind {
    PgTablespace { oid: u32, name: String },
    SqliteFile([u8; 12]),
    PgWal,
}

#[derive(Encode, Decode)]
struct Version {
    version: u32,
    state: VersionState,
    created: u64,
    check: [u8; 16],
}

#[derive(Encode, Decode)]
enum VersionState {
    Active,
    DecryptOnly,
    PendingDestruction(u64),
    Destroyed(u64),
}

impl LineRecord {
    /// Seals a scope under a fresh nonce.
    pub(crate) fn seal(scope: &Scope, seal: &Seal) -> Result<Self> {
        let mut nonce = [0; NONCE_LEN];
        secret_mem::random(&mut nonce)?;
        Self::seal_with(scope, seal, nonce)
    }

    pub(crate) fn seal_with(scope: &Scope, seal: &Seal, nonce: [u8; NONCE_LEN]) -> Result<Self> {
        check_limits(scope)?;
        let metadata = encode(&metadata_of(scope))?;
        let aad = aad(scope.keyring, scope.line, scope.record_version);
        let sealed = seal.seal(&nonce, &aad, &metadata)?;
        let wrapped =
            scope.versions.iter().filter_map(|entry| Some((entry.version, entry.wrapped?))).collect();
        Ok(Self {
            keyring: scope.keyring,
            line: scope.line,
            record_version: scope.record_version,
            wrapped,
            nonce,
            sealed,
        })
    }

    /// Opens the seal. `path` names the record in errors.
    pub(crate) fn open(&self, seal: &Seal, path: &Path) -> Result<Scope> {
        let mismatch = || KeyringError::SealMismatch { path: path.into() };
        let aad = aad(self.keyring, self.line, self.record_version);
        let metadata = seal.open(&self.nonce, &aad, &self.sealed).ok_or_else(mismatch)?;
        let damaged = |what| KeyringError::Damaged { path: path.into(), what };
        let metadata: Metadata =
            decode(&metadata).ok_or_else(|| damaged("its sealed metadata cannot be decoded"))?;
        let scope = self.scope_of(metadata).ok_or_else(|| damaged("its sealed metadata makes no sense"))?;
        // The list of wrapped keys is outside the seal: it must be exactly what the metadata expects.
        let expected =
            scope.versions.iter().filter(|entry| !matches!(entry.state, DekState::Destroyed { .. }));
        if !expected.map(|entry| entry.version).eq(self.wrapped.iter().map(|(version, _)| *version)) {
            return Err(mismatch());
        }
        Ok(scope)
    }

    fn scope_of(&self, metadata: Metadata) -> Option<Scope> {
        let wrapped_of =
            |version| self.wrapped.iter().find(|(candidate, _)| *candidate == version).map(|(_, key)| *key);
        let versions = metadata.versions.into_iter().map(|entry| {
            let version = KeyVersion(entry.version);
            let state = match entry.state {
                VersionState::Active => DekState::Active,
                VersionState::DecryptOnly => DekState::DecryptOnly,
                VersionState::PendingDestruction(not_before) => DekState::PendingDestruction { not_before },
                VersionState::Destroyed(at) => DekState::Destroyed { at },
            };
            let wrapped =
                if matches!(state, DekState::Destroyed { .. }) { None } else { wrapped_of(version) };
            DekVersion { version, state, created: entry.created, check: entry.check, wrapped }
        });
        let versions: Vec<_> = versions.collect();
        let ascending = versions.windows(2).all(|pair| pair[0].version < pair[1].version);
        let history: Option<Vec<_>> = metadata.history.into_iter().map(change_of).collect();
        (ascending && !versions.is_empty()).then_some(())?;
        Some(Scope {
            keyring: self.keyring,
            line: self.line,
            record_version: self.record_version,
            kind: match metadata.kind {
                Kind::PgTablespace { oid, name } => ScopeKind::PgTablespace { oid, name },
                Kind::SqliteFile(file_id) => ScopeKind::SqliteFile { file_id },
                Kind::PgWal => ScopeKind::PgWal,
            },
            cipher: CipherId::try_from(metadata.cipher).ok()?,
            created: metadata.created,
            versions,
            history: history?,
        })
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let wrapped = self
            .wrapped
            .iter()
            .map(|(version, key)| (version.0, Wrapped { master_version: key.version, bytes: key.bytes }));
        let payload = Payload {
            keyring: *self.keyring.0.as_bytes(),
            line: self.line.0,
            record_version: self.record_version,
            wrapped: wrapped.collect(),
            nonce: self.nonce,
            sealed: self.sealed.clone(),
        };
        frame(FrameKind::Line, &payload)
    }

    /// Checks structure and CRC; the seal needs a key (`open`).
    pub(crate) fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let payload: Payload = unframe(FrameKind::Line, bytes).map_err(|error| error.at(path))?;
        let wrapped = payload.wrapped.into_iter().map(|(version, key)| {
            (KeyVersion(version), WrappedKey { version: key.master_version, bytes: key.bytes })
        });
        Ok(Self {
            keyring: KeyringId(Uuid::from_bytes(payload.keyring)),
            line: LineNumber(payload.line),
            record_version: payload.record_version,
            wrapped: wrapped.collect(),
            nonce: payload.nonce,
            sealed: payload.sealed,
        })
    }

    /// The lowest master-key version in use; what makes one of two equal records the re-wrapped one.
    pub(crate) fn oldest_master_version(&self) -> u32 {
        self.wrapped.iter().map(|(_, key)| key.version).min().unwrap_or(u32::MAX)
    }
}

fn change_of((position, state): (u64, u8)) -> Option<StateChange> {
    Some(StateChange { from: WalPosition(position), state: TablespaceState::from_u8(state)? })
}

fn metadata_of(scope: &Scope) -> Metadata {
    let versions = scope.versions.iter().map(|entry| Version {
        version: entry.version.0,
        state: match entry.state {
            DekState::Active => VersionState::Active,
            DekState::DecryptOnly => VersionState::DecryptOnly,
            DekState::PendingDestruction { not_before } => VersionState::PendingDestruction(not_before),
            DekState::Destroyed { at } => VersionState::Destroyed(at),
        },
        created: entry.created,
        check: entry.check,
    });
    Metadata {
        kind: match &scope.kind {
            ScopeKind::PgTablespace { oid, name } => Kind::PgTablespace { oid: *oid, name: name.clone() },
            ScopeKind::SqliteFile { file_id } => Kind::SqliteFile(*file_id),
            ScopeKind::PgWal => Kind::PgWal,
        },
        cipher: scope.cipher as u8,
        created: scope.created,
        versions: versions.collect(),
        history: scope.history.iter().map(|change| (change.from.0, change.state as u8)).collect(),
    }
}

fn check_limits(scope: &Scope) -> Result<()> {
    let name_len = match &scope.kind {
        ScopeKind::PgTablespace { name, .. } => name.len(),
        ScopeKind::SqliteFile { .. } | ScopeKind::PgWal => 0,
    };
    for (what, len, limit) in [
        ("the length of a tablespace's name in bytes", name_len, MAX_NAME),
        ("the number of data-key versions of a line", scope.versions.len(), MAX_VERSIONS),
        ("the number of state changes of a line", scope.history.len(), MAX_HISTORY),
    ] {
        if len > limit {
            return Err(KeyringError::Limit { what, limit });
        }
    }
    Ok(())
}

fn aad(keyring: KeyringId, line: LineNumber, record_version: u64) -> Vec<u8> {
    let mut aad = FrameKind::Line.magic().to_vec();
    aad.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    aad.extend_from_slice(keyring.0.as_bytes());
    aad.extend_from_slice(&line.0.to_le_bytes());
    aad.extend_from_slice(&record_version.to_le_bytes());
    aad
}
