//! Moving the keys of one SQLite file to another keyring, also under another HSM: what `Unlocked::export` gave is unwrapped
//! with the HSM that it came from and wrapped by the one here.
//!
//! The file keeps its id and its key versions; keyring, line number, check values and wrappings are those of the new place. The
//! source is left as it is: it still opens the file, until its keys are destroyed there.

use std::path::Path;

use crate::error::{KeyringError, Result};
use crate::format::line::LineRecord;
use crate::format::root::{Root, RootFacts};
use crate::format::transfer::Transfer;
use crate::ids::{KeyVersion, LineNumber};
use crate::keyring::{Owner, unwrap_keyring_key};
use crate::master::{MasterKey, WrappedKey};
use crate::scope::{DekState, DekVersion, Scope, ScopeKind};
use crate::seal::{Seal, key_check};
use crate::unlocked::{Dek, Unlocked, unwrap_dek};

/// What adopting a scope did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The scope as it is here now.
    pub scope: Scope,
    /// Key versions that were not here before; none if the export was known already.
    pub new_versions: Vec<KeyVersion>,
}

/// A version from the export, unwrapped.
struct Received {
    version: DekVersion,
    dek: Option<Dek>,
}

impl Unlocked {
    /// Takes in the keys of a SQLite file that another keyring exported. `theirs` unwraps them, `ours` wraps them here; both may
    /// be the same. Of a file that is known here only newer versions are taken, as after a rotation there.
    ///
    /// # Errors
    /// Not an export of a SQLite file's scope; a keyring that is not for files; one of the HSMs; or
    /// [`KeysDiffer`](KeyringError::KeysDiffer), when both keyrings gave the same version number to different keys.
    pub fn adopt(&self, export: &[u8], theirs: &dyn MasterKey, ours: &dyn MasterKey) -> Result<Adopted> {
        self.require_owner(Owner::Files)?;
        let (scope, received) = open_export(export, theirs)?;
        let ScopeKind::SqliteFile { file_id } = &scope.kind else {
            return Err(KeyringError::BadTransfer { what: "it is not of a SQLite file" });
        };
        let lock = self.store.lock()?;
        let root = self.root()?;
        let known = self.find_sqlite_file(file_id)?;
        let line = known.as_ref().map_or_else(|| self.free_line(&root), |known| Ok(known.line))?;
        let mut new_versions = Vec::new();
        for Received { mut version, dek } in received {
            let here = known.as_ref().and_then(|known| known.version(version.version));
            if let (Some(known), Some(_)) = (&known, here) {
                self.same_key(known, version.version, dek.as_ref(), ours)?;
                continue;
            }
            if let Some(dek) = &dek {
                version.wrapped = Some(self.wrap_proven(dek, ours)?);
                version.check = key_check(dek, self.keyring, line, version.version);
            }
            new_versions.push(version);
        }
        let numbers: Vec<_> = new_versions.iter().map(|version| version.version).collect();
        let merged = match &known {
            Some(known) if new_versions.is_empty() => {
                return Ok(Adopted { scope: known.clone(), new_versions: numbers });
            }
            Some(known) => merge(known, new_versions),
            None => Scope {
                keyring: self.keyring,
                line,
                record_version: 1,
                versions: new_versions,
                history: Vec::new(),
                ..scope
            },
        };
        self.hint(&lock, &merged)?;
        let next_line = root.facts.next_line.max(LineNumber(line.0 + 1));
        let facts = RootFacts { next_line, ..root.facts.clone() };
        let generation = self.commit(&lock, Root { facts, ..root }, known.as_ref(), &merged)?;
        drop(lock);
        self.raise_generation(ours, generation)?;
        Ok(Adopted { scope: merged, new_versions: numbers })
    }

    /// Versions that both sides have must be the same key. What was destroyed here stays so.
    fn same_key(
        &self,
        known: &Scope,
        version: KeyVersion,
        dek: Option<&Dek>,
        ours: &dyn MasterKey,
    ) -> Result<()> {
        let here = known.version(version).filter(|here| here.wrapped.is_some());
        let (Some(_), Some(dek)) = (here, dek) else { return Ok(()) };
        if self.dek_of(known, version, ours)?.ct_eq(dek) {
            return Ok(());
        }
        Err(KeyringError::KeysDiffer { scope: known.to_string(), version })
    }

    fn wrap_proven(&self, dek: &Dek, ours: &dyn MasterKey) -> Result<WrappedKey> {
        let keyring = self.keyring;
        let failed = |source| KeyringError::MasterKey { action: "wrap a data key", keyring, source };
        let wrapped = ours.wrap(dek).map_err(failed)?;
        if ours.unwrap(&wrapped).map_err(failed)?.ct_eq(dek) {
            return Ok(wrapped);
        }
        let file = self.store.root_path();
        Err(KeyringError::KeyringKeyWrong { file, keyring, source: None })
    }
}

/// Checks seals and keys of an export, as its own keyring would.
fn open_export(export: &[u8], theirs: &dyn MasterKey) -> Result<(Scope, Vec<Received>)> {
    let transfer = Transfer::from_bytes(export)?;
    let name = Path::new("the exported record");
    let root = Root::from_bytes(&transfer.root, name)?;
    let record = LineRecord::from_bytes(&transfer.line, name)?;
    if root.facts.keyring != record.keyring {
        return Err(KeyringError::BadTransfer { what: "its root and record are of two keyrings" });
    }
    let seal = Seal::derive(&unwrap_keyring_key(name, &root, theirs)?);
    root.check_seal(&seal, name)?;
    let scope = record.open(&seal, name)?;
    let mut received = Vec::with_capacity(scope.versions.len());
    for version in &scope.versions {
        let destroyed = matches!(version.state, DekState::Destroyed { .. });
        let dek = if destroyed { None } else { Some(unwrap_dek(&scope, version.version, theirs, name)?) };
        received.push(Received { version: version.clone(), dek });
    }
    Ok((scope, received))
}

/// The newest version alone stays active.
fn merge(known: &Scope, more: Vec<DekVersion>) -> Scope {
    let mut scope = known.clone();
    scope.record_version += 1;
    scope.versions.extend(more);
    scope.versions.sort_by_key(|version| version.version);
    let newest = scope.versions.last().map(|version| version.version);
    for version in &mut scope.versions {
        if version.state == DekState::Active && Some(version.version) != newest {
            version.state = DekState::DecryptOnly;
        }
    }
    scope
}
