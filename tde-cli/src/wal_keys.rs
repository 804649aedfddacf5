//! A cluster's WAL keys from its keyring, for what is done with WAL outside of the server.

use std::path::{Path, PathBuf};

use keyring::{DekState, Keyring, MasterKey, Owner, ScopeKind, TablespaceState, Unlocked};
use page_cipher::kdf::{self, Purpose};
use wal_cipher::handover::WalKeys;

use crate::credentials::HsmArgs;

/// The keyring cannot be used for this.
#[derive(Debug, thiserror::Error)]
enum WalKeysError {
    #[error("the keyring in {} does not belong to a PostgreSQL cluster: give the one that pg_tde.keyring names", .0.display())]
    NotOfACluster(PathBuf),
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Logs in, unwraps every version of the WAL's key in the keyring, and logs out. A cluster whose WAL was never encrypted has none.
pub(crate) fn load(directory: &Path, hsm: &HsmArgs) -> Result<WalKeys> {
    let locked = Keyring::open(directory)?;
    let Owner::PgCluster { system_identifier } = locked.info().owner else {
        return Err(WalKeysError::NotOfACluster(directory.into()).into());
    };
    let hsm = hsm.login()?;
    // Leaves no trace in the HSM: it may be a copy of the server's keyring.
    let unlocked = locked.inspect(&hsm)?;
    let keys = unwrap_all(&unlocked, system_identifier, &hsm)?;
    hsm.close()?;
    Ok(keys)
}

fn unwrap_all(unlocked: &Unlocked, system_identifier: u64, hsm: &dyn MasterKey) -> Result<WalKeys> {
    let scopes = unlocked.survey()?.scopes;
    let Some(scope) = scopes.iter().find(|scope| scope.kind == ScopeKind::PgWal && !scope.is_draft()) else {
        return Ok(WalKeys::new(system_identifier, Vec::new()));
    };
    let plain = |state| state != TablespaceState::Encrypted;
    let changes = scope.history.iter().map(|change| (change.from.0, plain(change.state))).collect();
    let mut keys = WalKeys::new(system_identifier, changes);
    for entry in scope.versions.iter().filter(|entry| !matches!(entry.state, DekState::Destroyed { .. })) {
        let dek = unlocked.dek_of(scope, entry.version, hsm)?;
        keys.add(entry.version.0, kdf::derive(&dek, Purpose::PG_WAL, &[]));
    }
    if let Some(active) = scope.active().filter(|_| scope.state() != TablespaceState::Plain) {
        keys.write_under(active.version.0);
    }
    Ok(keys)
}
