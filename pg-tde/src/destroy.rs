//! Destroying data keys that nothing needs any more, and shredding all keys of a tablespace that is gone.
//!
//! First a destruction is planned: for a waiting period it can be taken back. Then, once nothing that this server can see needs the key
//! (`needs`), in this order:
//!
//! 1. the keyring's record without the wrapped key is durable;
//! 2. the record is in the WAL and flushed, for standbys;
//! 3. the key is wiped from the key table, and by each process from its own memory.
//!
//! A crash after 1 leaves standbys that have the key: every record with a destroyed version is logged once more after each start
//! (`log_again`). After 2, or before 1, there is nothing to make up for: the table is filled from the keyring.
//!
//! A standby may be so far behind with its restartpoints that its own recovery would still need the key. It then retains the record from before
//! (`keyring::Retained`) until the redo pointer of its control file is past the last page under that key (`settle`). So it never waits, and may be
//! promoted meanwhile.

use std::collections::BTreeSet;

use keyring::{DekState, KeyVersion, LineNumber, Scope, ScopeKind, TablespaceState, Unlocked};

use crate::ffi::{background, server};
use crate::key_table::{KeyTable, State};
use crate::keys::{self, KeyError};
use crate::line_facts::LineFacts;
use crate::needs::{self, StillNeeded};
use crate::report;
use crate::span::OPEN_END;
use crate::tablespace::{self, TablespaceError};

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destruction {
    /// It can be taken back.
    Pending,
    /// It cannot.
    Destroyed,
}

impl Destruction {
    /// As `tde.keys` shows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending-destruction",
            Self::Destroyed => "destroyed",
        }
    }
}

/// How a destruction is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// Seconds in which it can be taken back, counted from the plan on.
    pub(crate) waiting: u64,
    /// Do it now; planned before.
    pub(crate) confirm: bool,
}

/// Plans the destruction of a version of a tablespace's key or, confirmed, destroys it.
///
/// # Errors
/// [`StillNeeded`] says what stands in the way.
pub(crate) fn version(name: &str, version: u32, request: Request) -> Result<Destruction, TablespaceError> {
    let table = tablespace::changeable()?;
    let _keyring = server::lock_keyring();
    let keyring = keys::open_keyring(table)?;
    let (scope, version) = (line_of(&keyring, name)?, KeyVersion(version));
    let entry = scope
        .version(version)
        .ok_or_else(|| StillNeeded::NoSuchVersion { name: name.to_owned(), version: version.0 })?;
    let planned = match entry.state {
        DekState::Destroyed { .. } => return Ok(Destruction::Destroyed),
        DekState::Active => {
            return Err(StillNeeded::Active { name: name.to_owned(), version: version.0 }.into());
        }
        DekState::PendingDestruction { not_before } => Some(not_before),
        _ => None,
    };
    let end = end_of(table, &scope, &[version])?;
    if decide(planned, request)? == Destruction::Pending {
        if planned.is_none() {
            change(table, &keyring, &scope, |at| keyring.plan_destruction(scope.line, version, at), request)?;
        }
        return Ok(Destruction::Pending);
    }
    needs::check(end)?;
    change(table, &keyring, &scope, |_| keyring.destroy(scope.line, version), request)?;
    report::key_destroyed(&scope, Some(version));
    Ok(Destruction::Destroyed)
}

/// Takes the planned destruction of a version back.
///
/// # Errors
/// When none is planned.
pub(crate) fn cancel_version(name: &str, version: u32) -> Result<(), TablespaceError> {
    let table = tablespace::changeable()?;
    let _keyring = server::lock_keyring();
    let keyring = keys::open_keyring(table)?;
    let scope = line_of(&keyring, name)?;
    let request = Request { waiting: 0, confirm: false };
    change(table, &keyring, &scope, |_| keyring.cancel_destruction(scope.line, KeyVersion(version)), request)
}

/// Plans the destruction of all keys of a line or, confirmed, destroys them. Only of a tablespace that was dropped or is in clear again.
///
/// # Errors
/// [`StillNeeded`] says what stands in the way.
pub(crate) fn line(number: u64, request: Request) -> Result<Destruction, TablespaceError> {
    let table = tablespace::changeable()?;
    let _keyring = server::lock_keyring();
    let keyring = keys::open_keyring(table)?;
    let scope = keyring.scope(LineNumber(number))?;
    let destroyed = |entry: &keyring::DekVersion| matches!(entry.state, DekState::Destroyed { .. });
    if scope.versions.iter().all(destroyed) {
        return Ok(Destruction::Destroyed);
    }
    // All of them, or they were not planned together.
    let mut planned = Some(0);
    for entry in scope.versions.iter().filter(|entry| !destroyed(entry)) {
        planned = match (entry.state, planned) {
            (DekState::PendingDestruction { not_before }, Some(latest)) => Some(not_before.max(latest)),
            _ => None,
        };
    }
    let over =
        matches!(scope.state(), TablespaceState::Plain | TablespaceState::Retired) && !scope.is_draft();
    if !over {
        let state = scope.state().to_string();
        return Err(StillNeeded::InUse { line: number, kind: scope.kind.to_string(), state }.into());
    }
    if decide(planned, request)? == Destruction::Pending {
        if planned.is_none() {
            change(table, &keyring, &scope, |at| keyring.plan_shredding(scope.line, at), request)?;
        }
        return Ok(Destruction::Pending);
    }
    let versions: Vec<_> = scope.versions.iter().map(|entry| entry.version).collect();
    needs::check(end_of(table, &scope, &versions)?)?;
    change(table, &keyring, &scope, |_| keyring.shred(scope.line), request)?;
    report::key_destroyed(&scope, None);
    Ok(Destruction::Destroyed)
}

/// Takes the planned destruction of all keys of a line back.
///
/// # Errors
/// When none is planned.
pub(crate) fn cancel_line(number: u64) -> Result<(), TablespaceError> {
    let table = tablespace::changeable()?;
    let _keyring = server::lock_keyring();
    let keyring = keys::open_keyring(table)?;
    let scope = keyring.scope(LineNumber(number))?;
    let request = Request { waiting: 0, confirm: false };
    change(table, &keyring, &scope, |_| keyring.cancel_shredding(scope.line), request)
}

/// What a request comes to, by the date until which the planned destruction can be taken back.
fn decide(planned: Option<u64>, request: Request) -> Result<Destruction, StillNeeded> {
    match planned {
        _ if !request.confirm => Ok(Destruction::Pending),
        None => Err(StillNeeded::NotPlanned),
        Some(not_before) if server::unix_now() < not_before => {
            Err(StillNeeded::TooEarly { not_before: server::time(not_before) })
        }
        Some(_) => Ok(Destruction::Destroyed),
    }
}

/// The line of a tablespace's present or last key.
fn line_of(keyring: &Unlocked, name: &str) -> Result<Scope, TablespaceError> {
    let wanted = server::tablespace_oid(name).ok_or_else(|| TablespaceError::Unknown(name.to_owned()))?;
    let of_it = |scope: &Scope| {
        let same = matches!(scope.kind, ScopeKind::PgTablespace { oid, .. } if oid == wanted);
        same && !scope.is_draft() && scope.state() != TablespaceState::Retired
    };
    let newest = keyring.scopes()?.into_iter().rev().find(of_it);
    newest.ok_or_else(|| StillNeeded::NeverEncrypted(name.to_owned()).into())
}

/// The WAL position from which no page is under any of the versions.
fn end_of(table: &KeyTable, scope: &Scope, versions: &[KeyVersion]) -> Result<u64, StillNeeded> {
    let facts = LineFacts::of(scope);
    let ends = facts.iter().filter(|facts| versions.contains(&facts.version)).map(|facts| facts.span.end);
    let end = ends.max().unwrap_or(0);
    if end != OPEN_END {
        return Ok(end);
    }
    let state =
        facts.first().and_then(|facts| table.state(facts.tablespace)).map_or("encrypted", State::name);
    Err(StillNeeded::Pages { scope: scope.kind.to_string(), state, job: scope.line.0 })
}

/// Steps 1 to 3. The caller has [`server::lock_keyring`].
fn change(
    table: &KeyTable,
    keyring: &Unlocked,
    scope: &Scope,
    change: impl FnOnce(u64) -> keyring::Result<Scope>,
    request: Request,
) -> Result<(), TablespaceError> {
    change(server::unix_now().saturating_add(request.waiting))?;
    tablespace::log(keyring, scope.line)?;
    settle(table)?;
    if request.confirm {
        // Each process wipes what it derived from the key.
        background::barrier();
    }
    // A failure is made up for at the next start; the key is destroyed all the same.
    let told = keys::open_hsm().and_then(|hsm| Ok(keyring.remember_generation(&hsm)?));
    if let Err(error) = told {
        report::generation_not_remembered(&error);
    }
    Ok(())
}

/// Whether a version was destroyed.
fn is_destroyed(scope: &Scope, version: KeyVersion) -> bool {
    scope.version(version).is_some_and(|entry| matches!(entry.state, DekState::Destroyed { .. }))
}

/// Lets retained records go that the next recovery will not need, and wipes destroyed keys from the key table.
///
/// # Errors
/// When the keyring cannot be read or changed.
pub(crate) fn settle(table: &KeyTable) -> Result<(), KeyError> {
    let Some(seal_key) = table.seal_key() else { return Ok(()) };
    let keyring =
        keyring::Keyring::open(&crate::settings::keyring_directory())?.unlock_with_seal_key(seal_key)?;
    let redo = server::completed_redo();
    let mut retained = BTreeSet::new();
    for of in keyring.retained()? {
        let scope = keyring.scope(of.line)?;
        let facts = LineFacts::of(&scope);
        let mut versions = keyring.retained_versions(of)?;
        versions.retain(|version| {
            let end = facts.iter().find(|facts| facts.version == *version).map_or(0, |facts| facts.span.end);
            is_destroyed(&scope, *version) && end > redo
        });
        if versions.is_empty() {
            keyring.forget_retained(of)?;
            report::let_go(&scope);
        }
        retained.extend(versions.into_iter().map(|version| (of.line.0, version.0)));
    }
    for line in table.lines().filter(|line| !line.span.alive() && table.has_dek(line.index)) {
        let scope = keyring.scope(LineNumber(line.line))?;
        if is_destroyed(&scope, KeyVersion(line.version)) && !retained.contains(&(line.line, line.version)) {
            table.forget_dek(line.index);
        }
    }
    Ok(())
}

/// [`settle`], where there is anything that is retained.
///
/// # Errors
/// As [`settle`].
pub(crate) fn settle_retained(table: &KeyTable) -> Result<(), KeyError> {
    let Some(seal_key) = table.seal_key() else { return Ok(()) };
    let keyring =
        keyring::Keyring::open(&crate::settings::keyring_directory())?.unlock_with_seal_key(seal_key)?;
    if keyring.retained()?.is_empty() { Ok(()) } else { settle(table) }
}

/// Logs every record with a destroyed version: a crash may have kept it from the WAL.
///
/// # Errors
/// When the keyring cannot be read.
pub(crate) fn log_again(table: &KeyTable) -> Result<(), TablespaceError> {
    keys::ensure_compared(table)?;
    let _keyring = server::lock_keyring();
    let keyring = keys::open_keyring(table)?;
    for scope in keyring.survey()?.scopes {
        let destroyed = scope.versions.iter().any(|entry| matches!(entry.state, DekState::Destroyed { .. }));
        if destroyed && !LineFacts::of(&scope).is_empty() {
            tablespace::log(&keyring, scope.line)?;
        }
    }
    Ok(())
}

/// A destroyed key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone {
    /// Its version.
    pub(crate) version: u32,
    /// When it was destroyed, in seconds since 1970.
    pub(crate) at: u64,
}

/// The destroyed key that a page of a tablespace was probably under, by its LSN: pages are under the version that was in force after they
/// were changed. `None` also when the keyring cannot be read, which whoever needs it will say.
pub(crate) fn key_of_page(table: &KeyTable, tablespace: u32, lsn: u64) -> Option<Gone> {
    let seal_key = table.seal_key()?;
    let keyring = keyring::Keyring::open(&crate::settings::keyring_directory()).ok()?;
    let keyring = keyring.unlock_with_seal_key(seal_key).ok()?;
    let scopes = keyring.survey().ok()?.scopes;
    let facts =
        scopes.iter().flat_map(|scope| LineFacts::of(scope).into_iter().map(move |facts| (scope, facts)));
    let of_it = facts.filter(|(_, facts)| facts.tablespace == tablespace && facts.span.closing > lsn);
    let (scope, facts) = of_it.min_by_key(|(_, facts)| facts.span.closing)?;
    match scope.version(facts.version)?.state {
        DekState::Destroyed { at } => Some(Gone { version: facts.version.0, at }),
        _ => None,
    }
}
