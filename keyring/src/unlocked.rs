//! A keyring whose seal key is known: reading.

use std::fmt;
use std::path::{Path, PathBuf};

use secret_mem::SecretBytes;

use crate::error::{KeyringError, Result};
use crate::format::line::LineRecord;
use crate::format::root::{Root, RootFacts};
use crate::ids::{GenerationId, InstanceId, KeyVersion, KeyringId, LineNumber};
use crate::keyring::{KeyringInfo, Owner, info_of, read_root};
use crate::master::{MasterKey, MasterKeyError};
use crate::scope::{DekState, Scope, ScopeKind, TablespaceState};
use crate::seal::{Seal, check_matches, key_check};
use crate::store::Store;
use crate::sum::{Sum, SumKey};

/// A data key in clear, in locked memory.
pub type Dek = SecretBytes<32>;

/// Records found, and lines in use by the root's account that have none (yet).
#[derive(Clone, Debug)]
pub struct Survey {
    /// Every record, by line.
    pub scopes: Vec<Scope>,
    /// Lines without a record.
    pub missing: Vec<LineNumber>,
}

/// An unlocked keyring. Nothing is cached: every call reads the files it needs, so that what other processes
/// write is seen.
pub struct Unlocked {
    pub(crate) store: Box<dyn Store>,
    pub(crate) keyring: KeyringId,
    pub(crate) owner: Owner,
    pub(crate) seal: Seal,
    pub(crate) sum_key: SumKey,
}

impl Unlocked {
    pub(crate) fn new(store: Box<dyn Store>, facts: RootFacts, seal: Seal) -> Self {
        let sum_key = SumKey::derive(seal.key());
        Self { store, keyring: facts.keyring, owner: facts.owner, seal, sum_key }
    }

    /// The keyring's id.
    pub fn keyring(&self) -> KeyringId {
        self.keyring
    }

    /// What the root says now, its seal checked.
    pub fn info(&self) -> Result<KeyringInfo> {
        Ok(info_of(&self.root()?))
    }

    /// Refuses a keyring that was made for something else.
    pub fn require_owner(&self, expected: Owner) -> Result<()> {
        if self.owner != expected {
            let path = self.store.dir().into();
            return Err(KeyringError::ForeignOwner { path, found: self.owner, expected });
        }
        Ok(())
    }

    /// The key that seals metadata; with it [`Keyring::unlock_with_seal_key`](crate::Keyring) needs no HSM.
    pub fn seal_key(&self) -> &SecretBytes<32> {
        self.seal.key()
    }

    /// What the HSM remembers this keyring's generation under.
    pub fn generation_id(&self) -> Result<GenerationId> {
        Ok(GenerationId { instance: InstanceId::of(self.store.dir())?, keyring: self.keyring })
    }

    /// Tells the HSM of the present generation, unless it knows. Changes made without the HSM
    /// (`unlock_with_seal_key`) are told this way afterwards.
    pub fn remember_generation(&self, master: &dyn MasterKey) -> Result<()> {
        let generation = self.root()?.facts.generation;
        self.raise_generation(master, generation)
    }

    pub(crate) fn raise_generation(&self, master: &dyn MasterKey, generation: u64) -> Result<()> {
        let id = self.generation_id()?;
        let keyring = self.keyring;
        let failed = |action| move |source| KeyringError::MasterKey { action, keyring, source };
        let known = master.generation(&id).map_err(failed("read the generation"))?;
        if known.is_some_and(|known| known >= generation) {
            return Ok(());
        }
        master.raise_generation(&id, generation).map_err(failed("remember the generation"))
    }

    /// Every scope, by line. A line without a record is an error, never left out.
    pub fn scopes(&self) -> Result<Vec<Scope>> {
        let survey = self.survey()?;
        if let Some(line) = survey.missing.first().copied() {
            return Err(KeyringError::LineMissing { path: self.store.line_path(line), line });
        }
        Ok(survey.scopes)
    }

    /// Every scope there is. For a server in recovery only: the copy of a running server's directory may
    /// have gaps until its log has been replayed.
    pub fn survey(&self) -> Result<Survey> {
        // The root first: what it counts is there already.
        let facts = self.root()?.facts;
        let lines = self.store.lines()?;
        let scopes: Result<Vec<_>> = lines.iter().map(|line| self.scope(*line)).collect();
        Ok(Survey { scopes: scopes?, missing: missing_lines(&facts, &lines) })
    }

    /// One scope; reads one file.
    pub fn scope(&self, line: LineNumber) -> Result<Scope> {
        let record = self.read_line(line)?.ok_or_else(|| self.no_record(line))?;
        record.open(&self.seal, &self.store.line_path(line))
    }

    /// The scope of a tablespace: the newest line of this OID that is not retired.
    pub fn find_pg_tablespace(&self, oid: u32) -> Result<Option<Scope>> {
        Ok(newest_of(self.scopes()?, oid))
    }

    /// As [`find_pg_tablespace`](Self::find_pg_tablespace), for a server in recovery (see
    /// [`survey`](Self::survey)).
    pub fn find_pg_tablespace_in_recovery(&self, oid: u32) -> Result<Option<Scope>> {
        Ok(newest_of(self.survey()?.scopes, oid))
    }

    /// Unwraps one version of a line's data key.
    pub fn dek(&self, line: LineNumber, version: KeyVersion, master: &dyn MasterKey) -> Result<Dek> {
        self.dek_of(&self.scope(line)?, version, master)
    }

    /// As [`dek`](Self::dek), for a scope that was read already; reads no file unless the key was destroyed.
    ///
    /// A key that was destroyed is still had where the record from before is retained (`retained.rs`).
    pub fn dek_of(&self, scope: &Scope, version: KeyVersion, master: &dyn MasterKey) -> Result<Dek> {
        match unwrap_dek(scope, version, master, &self.store.line_path(scope.line)) {
            Err(destroyed @ KeyringError::KeyDestroyed { source: None, .. }) => {
                self.retained_dek(scope.line, version, master)?.ok_or(destroyed)
            }
            unwrapped => unwrapped,
        }
    }

    /// The file a line's record is in, for messages.
    pub fn path_of(&self, line: LineNumber) -> PathBuf {
        self.store.line_path(line)
    }

    /// Compares all records with the root's sum: an older record put back is noticed here (and only here,
    /// see docs/formats/keyring.md). A single record newer than the root is a change under way or
    /// interrupted, and accepted.
    pub fn check_sum(&self) -> Result<()> {
        const TRIES: usize = 5;
        for _ in 0..TRIES {
            let before = self.root()?.facts;
            let scopes = self.scopes()?;
            if self.adds_up(before.sum, &scopes) {
                return Ok(());
            }
            if self.root()?.facts.generation == before.generation {
                break;
            }
        }
        Err(KeyringError::RolledBack { path: self.store.dir().into() })
    }

    fn adds_up(&self, expected: Sum, scopes: &[Scope]) -> bool {
        let total = scopes.iter().map(|scope| self.term(scope)).fold(Sum::default(), Sum::plus);
        if total == expected {
            return true;
        }
        // One record newer than the root: before, it was a version older, or a draft or absent.
        scopes.iter().any(|scope| {
            let others = total.minus(self.term(scope));
            let before = self.sum_key.term(scope.line, scope.record_version - 1);
            others == expected || others.plus(before) == expected
        })
    }

    /// What a record counts in the sum: a draft nothing, for nothing is lost with it.
    pub(crate) fn term(&self, scope: &Scope) -> Sum {
        if scope.is_draft() { Sum::default() } else { self.sum_key.term(scope.line, scope.record_version) }
    }

    /// The root as it is now, of this keyring and with a right seal.
    pub(crate) fn root(&self) -> Result<Root> {
        let root = read_root(self.store.as_ref())?;
        let found = root.facts.keyring;
        if found != self.keyring {
            let path = self.store.root_path();
            return Err(KeyringError::ForeignKeyring { path, found, expected: self.keyring });
        }
        root.check_seal(&self.seal, &self.store.root_path())?;
        Ok(root)
    }

    pub(crate) fn read_line(&self, line: LineNumber) -> Result<Option<LineRecord>> {
        let Some(bytes) = self.store.read_line(line)? else { return Ok(None) };
        let path = self.store.line_path(line);
        let record = LineRecord::from_bytes(&bytes, &path)?;
        if record.keyring != self.keyring {
            let (found, expected) = (record.keyring, self.keyring);
            return Err(KeyringError::ForeignKeyring { path, found, expected });
        }
        if record.line != line || record.record_version == 0 {
            return Err(KeyringError::Damaged { path, what: "it holds the record of another line" });
        }
        Ok(Some(record))
    }

    /// Why a line has no record: lost, or never made.
    pub(crate) fn no_record(&self, line: LineNumber) -> KeyringError {
        match self.root() {
            Ok(root) if line.0 == 0 || line >= root.facts.next_line => {
                let lines = root.facts.next_line.0 - 1;
                KeyringError::NoSuchLine { keyring: self.keyring, line, lines }
            }
            Ok(_) => KeyringError::LineMissing { path: self.store.line_path(line), line },
            Err(error) => error,
        }
    }

    pub(crate) fn key_error(
        &self,
        scope: &Scope,
        version: KeyVersion,
        source: MasterKeyError,
    ) -> KeyringError {
        key_error(scope, version, source, &self.store.line_path(scope.line))
    }
}

impl fmt::Debug for Unlocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dir = self.store.dir();
        f.debug_struct("Unlocked").field("dir", &dir).field("keyring", &self.keyring).finish_non_exhaustive()
    }
}

/// Unwraps one version of a scope's data key and compares it with its check value. `file` names the record in errors.
pub(crate) fn unwrap_dek(
    scope: &Scope,
    version: KeyVersion,
    master: &dyn MasterKey,
    file: &Path,
) -> Result<Dek> {
    let missing = || KeyringError::KeyMissing { scope: scope.to_string(), version, source: None };
    let entry = scope.version(version).ok_or_else(missing)?;
    if matches!(entry.state, DekState::Destroyed { .. }) {
        return Err(KeyringError::KeyDestroyed { scope: scope.to_string(), version, source: None });
    }
    let wrapped = entry.wrapped.ok_or_else(missing)?;
    let dek = master.unwrap(&wrapped).map_err(|error| key_error(scope, version, error, file))?;
    let check = key_check(&dek, scope.keyring, scope.line, version);
    if !check_matches(&entry.check, &check) {
        let (scope, file) = (scope.to_string(), file.into());
        return Err(KeyringError::KeyWrong { scope, version, file, source: None });
    }
    Ok(dek)
}

/// Keeps missing, wrong, destroyed and away apart.
fn key_error(scope: &Scope, version: KeyVersion, source: MasterKeyError, file: &Path) -> KeyringError {
    let (scope, file) = (scope.to_string(), file.to_path_buf());
    match source {
        MasterKeyError::Missing { .. } => KeyringError::KeyMissing { scope, version, source: Some(source) },
        MasterKeyError::Wrong { .. } => KeyringError::KeyWrong { scope, version, file, source: Some(source) },
        MasterKeyError::Destroyed { .. } => {
            KeyringError::KeyDestroyed { scope, version, source: Some(source) }
        }
        MasterKeyError::Damaged(_) => KeyringError::HsmDamaged { scope, version, source },
        MasterKeyError::Away(_) | MasterKeyError::Refused(_) => {
            KeyringError::HsmAway { scope, version, source }
        }
    }
}

/// Lines in use that have no record. A draft's absence is no loss: it never left the server that made it.
pub(crate) fn missing_lines(facts: &RootFacts, lines: &[LineNumber]) -> Vec<LineNumber> {
    let absent = |line: &LineNumber| lines.binary_search(line).is_err();
    let in_use = |line: &LineNumber| facts.drafts.binary_search(line).is_err();
    (1..facts.next_line.0).map(LineNumber).filter(|line| absent(line) && in_use(line)).collect()
}

fn newest_of(scopes: Vec<Scope>, wanted: u32) -> Option<Scope> {
    let live = |scope: &Scope| {
        let same = matches!(scope.kind, ScopeKind::PgTablespace { oid, .. } if oid == wanted);
        same && scope.state() != TablespaceState::Retired
    };
    scopes.into_iter().rev().find(live)
}
