//! A keyring whose seal key is known: writing. Every change re-reads under the lock, then commits one record
//! and the root that counts it (store.rs says in which order, and what a crash leaves).

use crate::error::{KeyringError, Result};
use crate::format::line::LineRecord;
use crate::format::root::{Root, RootFacts};
use crate::ids::{KeyVersion, LineNumber};
use crate::keyring::unix_now;
use crate::master::{MasterKey, WrappedKey};
use crate::scope::{DekState, DekVersion, NewScope, Scope, ScopeKind, StateChange, TablespaceState};
use crate::seal::key_check;
use crate::store::WriteLock;
use crate::sum::Sum;
use crate::unlocked::{Dek, Unlocked};

impl Unlocked {
    /// Makes a line with a first data key. When it returns, the record is durable and data may be written
    /// under the key.
    ///
    /// A cluster's line without an initial state is a draft: whatever fails before its first state is set (the
    /// HSM, the server, the WAL) leaves a line that nothing was written under, that other nodes need not have, and
    /// beside which another may be made.
    pub fn add_scope(&self, new: NewScope, master: &dyn MasterKey) -> Result<(Scope, Dek)> {
        let (dek, wrapped) = self.generate(master)?;
        let lock = self.store.lock()?;
        let root = self.root()?;
        self.refuse_duplicate(&new.kind)?;
        let line = self.free_line(&root)?;
        let version = KeyVersion(1);
        let now = unix_now();
        let scope = Scope {
            keyring: self.keyring,
            line,
            record_version: 1,
            kind: new.kind,
            cipher: new.cipher,
            created: now,
            versions: vec![self.new_version(line, version, &dek, wrapped)],
            history: new.initial.into_iter().collect(),
        };
        let facts = RootFacts { next_line: LineNumber(line.0 + 1), ..root.facts.clone() };
        self.hint(&lock, &scope)?;
        let generation = self.commit(&lock, Root { facts, ..root }, None, &scope)?;
        drop(lock);
        self.raise_generation(master, generation)?;
        Ok((scope, dek))
    }

    /// Adds a data-key version; the one active so far becomes `DecryptOnly`.
    pub fn add_version(&self, line: LineNumber, master: &dyn MasterKey) -> Result<(Scope, Dek)> {
        let (dek, wrapped) = self.generate(master)?;
        let (scope, generation) = self.change(line, |scope| {
            let newest = scope.versions.last().map_or(0, |entry| entry.version.0);
            for entry in scope.versions.iter_mut().filter(|entry| entry.state == DekState::Active) {
                entry.state = DekState::DecryptOnly;
            }
            let entry = self.new_version(line, KeyVersion(newest + 1), &dek, wrapped);
            scope.versions.push(entry);
            Ok(())
        })?;
        self.raise_generation(master, generation)?;
        Ok((scope, dek))
    }

    /// Records the tablespace's state from a WAL position on. Needs no HSM; setting what holds already
    /// changes nothing.
    ///
    /// Entries beyond that position are dropped: a server never goes back within a timeline, so they
    /// belong to one that was abandoned.
    pub fn set_state(&self, line: LineNumber, change: StateChange) -> Result<Scope> {
        let scope = self.scope(line)?;
        if scope.state() == change.state && scope.state_at(change.from) == change.state {
            return Ok(scope);
        }
        let (scope, _) = self.change(line, |scope| {
            scope.history.retain(|entry| entry.from < change.from);
            if scope.state() != change.state {
                scope.history.push(change);
            }
            Ok(())
        })?;
        Ok(scope)
    }

    /// Marks the line of a dropped tablespace. Its keys stay, for old backups. Needs no HSM.
    pub fn retire(&self, line: LineNumber, from: crate::WalPosition) -> Result<Scope> {
        self.set_state(line, StateChange { from, state: TablespaceState::Retired })
    }

    /// Plans a data-key version's destruction for `not_before` (seconds since 1970) or later. Only a version
    /// that nothing new is written under.
    pub fn plan_destruction(&self, line: LineNumber, version: KeyVersion, not_before: u64) -> Result<Scope> {
        let to = DekState::PendingDestruction { not_before };
        self.change_version(line, version, to, |entry, _| {
            matches!(entry.state, DekState::DecryptOnly | DekState::PendingDestruction { .. })
        })
    }

    /// Takes a planned destruction back.
    pub fn cancel_destruction(&self, line: LineNumber, version: KeyVersion) -> Result<Scope> {
        self.change_version(line, version, DekState::DecryptOnly, |entry, _| {
            matches!(entry.state, DekState::PendingDestruction { .. })
        })
    }

    /// Destroys a version whose waiting period is over: its wrapped key leaves the record. It is gone for
    /// good only when no backup of the keyring holds it under a master-key version that still exists.
    pub fn destroy(&self, line: LineNumber, version: KeyVersion) -> Result<Scope> {
        let now = unix_now();
        let scope = self.scope(line)?;
        let state = scope.version(version).map(|entry| entry.state);
        if let Some(DekState::PendingDestruction { not_before }) = state
            && now < not_before
        {
            return Err(KeyringError::TooEarly { scope: scope.to_string(), version, not_before });
        }
        self.change_version(line, version, DekState::Destroyed { at: now }, |entry, now| {
            matches!(entry.state, DekState::PendingDestruction { not_before } if now >= not_before)
        })
    }

    /// Plans the destruction of every version of a tablespace's key, for `not_before` (seconds since 1970) or later. Only of a
    /// tablespace that was dropped or is in clear again: nothing is written under its keys any more.
    pub fn plan_shredding(&self, line: LineNumber, not_before: u64) -> Result<Scope> {
        let to = DekState::PendingDestruction { not_before };
        self.change_all(line, to, |entry, _| !matches!(entry.state, DekState::Destroyed { .. }))
    }

    /// Takes the planned destruction of all versions back. None is written under again.
    pub fn cancel_shredding(&self, line: LineNumber) -> Result<Scope> {
        self.change_all(line, DekState::DecryptOnly, |entry, _| {
            matches!(entry.state, DekState::PendingDestruction { .. })
        })
    }

    /// Destroys every version, in one step. All must be planned and their waiting periods over.
    pub fn shred(&self, line: LineNumber) -> Result<Scope> {
        let now = unix_now();
        let scope = self.scope(line)?;
        for entry in &scope.versions {
            match entry.state {
                DekState::PendingDestruction { not_before } if now < not_before => {
                    let (scope, version) = (scope.to_string(), entry.version);
                    return Err(KeyringError::TooEarly { scope, version, not_before });
                }
                DekState::Active | DekState::DecryptOnly => {
                    let (to, scope) = (DekState::Destroyed { at: now }, scope.to_string());
                    return Err(KeyringError::BadTransition {
                        scope,
                        version: entry.version,
                        from: entry.state,
                        to,
                    });
                }
                _ => {}
            }
        }
        self.change_all(line, DekState::Destroyed { at: now }, |entry, now| {
            matches!(entry.state, DekState::PendingDestruction { not_before } if now >= not_before)
        })
    }

    /// Changes the versions that `concerned` picks, at least one, of a line that nothing is written under.
    fn change_all(
        &self,
        line: LineNumber,
        to: DekState,
        concerned: impl Fn(&DekVersion, u64) -> bool,
    ) -> Result<Scope> {
        let (scope, _) = self.change(line, |scope| {
            let name = scope.to_string();
            let over = matches!(scope.state(), TablespaceState::Plain | TablespaceState::Retired)
                && matches!(scope.kind, ScopeKind::PgTablespace { .. })
                && !scope.history.is_empty();
            if !over {
                return Err(KeyringError::StillUsed { scope: name, state: scope.state().to_string() });
            }
            let now = unix_now();
            let mut changed = false;
            for entry in scope.versions.iter_mut().filter(|entry| concerned(entry, now)) {
                set_state_of(entry, to);
                changed = true;
            }
            match scope.versions.last() {
                Some(newest) if !changed => {
                    let (version, from) = (newest.version, newest.state);
                    Err(KeyringError::BadTransition { scope: name, version, from, to })
                }
                _ => Ok(()),
            }
        })?;
        Ok(scope)
    }

    fn change_version(
        &self,
        line: LineNumber,
        version: KeyVersion,
        to: DekState,
        allowed: impl Fn(&DekVersion, u64) -> bool,
    ) -> Result<Scope> {
        let (scope, _) = self.change(line, |scope| {
            let name = scope.to_string();
            let Some(entry) = scope.versions.iter_mut().find(|entry| entry.version == version) else {
                return Err(KeyringError::KeyMissing { scope: name, version, source: None });
            };
            if !allowed(entry, unix_now()) {
                return Err(KeyringError::BadTransition { scope: name, version, from: entry.state, to });
            }
            set_state_of(entry, to);
            Ok(())
        })?;
        Ok(scope)
    }

    /// Applies `edit` to a record under the lock. Returns it with the new generation.
    fn change(&self, line: LineNumber, edit: impl FnOnce(&mut Scope) -> Result<()>) -> Result<(Scope, u64)> {
        let lock = self.store.lock()?;
        let root = self.root()?;
        let before = self.scope(line)?;
        let mut scope = before.clone();
        edit(&mut scope)?;
        scope.record_version += 1;
        let generation = self.commit(&lock, root, Some(&before), &scope)?;
        Ok((scope, generation))
    }

    /// Seals and commits `scope` and the root, which counts `before` so far.
    pub(crate) fn commit(
        &self,
        lock: &WriteLock,
        root: Root,
        before: Option<&Scope>,
        scope: &Scope,
    ) -> Result<u64> {
        let Root { mut facts, wrapped, .. } = root;
        facts.generation += 1;
        let before = before.map_or(Sum::default(), |before| self.term(before));
        facts.sum = facts.sum.minus(before).plus(self.term(scope));
        match (facts.drafts.binary_search(&scope.line), scope.is_draft()) {
            (Ok(index), false) => drop(facts.drafts.remove(index)),
            (Err(index), true) => facts.drafts.insert(index, scope.line),
            _ => {}
        }
        let generation = facts.generation;
        let record = LineRecord::seal(scope, &self.seal)?.to_bytes()?;
        let root = Root::sealed(facts, wrapped, &self.seal)?.to_bytes()?;
        self.store.commit(lock, scope.line, &record, &root)?;
        Ok(generation)
    }

    /// Never one that has a record: a root older than its records would otherwise cost a key.
    pub(crate) fn free_line(&self, root: &Root) -> Result<LineNumber> {
        let mut line = root.facts.next_line;
        while self.store.read_line(line)?.is_some() {
            line.0 += 1;
        }
        Ok(line)
    }

    fn generate(&self, master: &dyn MasterKey) -> Result<(Dek, WrappedKey)> {
        let keyring = self.keyring;
        let failed = |source| KeyringError::MasterKey { action: "make a data key", keyring, source };
        let (dek, wrapped) = master.generate_data_key().map_err(failed)?;
        // What cannot be unwrapped again must not become the only copy of a key.
        let again = master.unwrap(&wrapped).map_err(failed)?;
        if !again.ct_eq(&dek) {
            let file = self.store.root_path();
            return Err(KeyringError::KeyringKeyWrong { file, keyring, source: None });
        }
        Ok((dek, wrapped))
    }

    fn new_version(
        &self,
        line: LineNumber,
        version: KeyVersion,
        dek: &Dek,
        wrapped: WrappedKey,
    ) -> DekVersion {
        DekVersion {
            version,
            state: DekState::Active,
            created: unix_now(),
            check: key_check(dek, self.keyring, line, version),
            wrapped: Some(wrapped),
        }
    }

    /// One live line per tablespace and per WAL; drafts do not count. One per SQLite file.
    fn refuse_duplicate(&self, kind: &ScopeKind) -> Result<()> {
        let same = |other: &ScopeKind| match (kind, other) {
            (ScopeKind::PgTablespace { oid, .. }, ScopeKind::PgTablespace { oid: other, .. }) => oid == other,
            (ScopeKind::PgWal, ScopeKind::PgWal) => true,
            _ => false,
        };
        if let ScopeKind::SqliteFile { file_id } = kind {
            return self.refuse_second_line(file_id);
        }
        for scope in self.survey()?.scopes.into_iter().filter(|scope| same(&scope.kind)) {
            let state = scope.state();
            if !matches!(state, TablespaceState::Plain | TablespaceState::Retired) {
                let (scope, state) = (scope.to_string(), state.to_string());
                return Err(KeyringError::ScopeExists { scope, state });
            }
        }
        Ok(())
    }
}

fn set_state_of(entry: &mut DekVersion, to: DekState) {
    entry.state = to;
    if matches!(to, DekState::Destroyed { .. }) {
        entry.wrapped = None;
    }
}
