//! Keys of the WAL: from the keyring into the table, and switching encryption on and off.
//!
//! The keyring has one line for the cluster's WAL, made when the server first starts with `pg_tde.encrypt_wal` on. Its history says from which
//! WAL position on segments in clear are accepted (`encrypting`, `plain`) or not (`encrypted`); a segment counts by its beginning.
//!
//! Switching on, in this order:
//!
//! 1. at the start: line and wrapped key durable in the keyring, state `encrypting` from position 0; line named in the manifest;
//! 2. once recovery is over, in a background worker: the line is in the WAL, which is still in clear, so that nodes and restores that have an older
//!    keyring get it before they need it;
//! 3. new segments are written under the key. The segment in use stays in clear to its end;
//! 4. state `encrypted` from the first segment that cannot be in clear any more, durable, in the table, and in the WAL.
//!
//! A crash before 4 leaves a server that accepts both; the next start goes on. Switching off: at the start, state `plain` from the
//! segment that redo begins in, before anything is written. What is encrypted stays readable; segments in use keep their mode.
//!
//! A state that is set at a position drops later ones, which belong to a timeline that recovery to a point in time left: so what counts is
//! the history of the timeline in use.

use std::path::Path;

use keyring::{
    AnyHsm, DekState, DekVersion, KeyVersion, Keyring, KeyringId, MasterKey, NewScope, Scope, ScopeKind,
    StateChange, TablespaceState, Unlocked, WalPosition,
};
use page_cipher::CipherId;
use wal_cipher::file::Scratch;
use wal_cipher::name::SegmentName;
use wal_cipher::segment::{Found, probe};

use crate::ffi::{background, server};
use crate::key_table::KeyTable;
use crate::keys::{self, KeyError};
use crate::manifest::{Manifest, Named};
use crate::redirected::{self, ServerPolicy};
use crate::wal_table::WalTable;
use crate::{report, settings, staged, wal};
use redirect::Descriptor;

/// The WAL's line among the scopes of a keyring.
pub(crate) fn find(scopes: &[Scope]) -> Option<&Scope> {
    scopes.iter().find(|scope| scope.kind == ScopeKind::PgWal && !scope.is_draft())
}

/// How the manifest names the line.
pub(crate) fn named(scope: &Scope) -> Named {
    Named { tablespace: Named::WAL, line: scope.line.0 }
}

/// Fills the table when the server starts, making the line if it is needed for the first time.
///
/// # Errors
/// Any key that cannot be had.
pub(crate) fn load(
    table: &WalTable,
    unlocked: &Unlocked,
    scopes: &[Scope],
    hsm: &AnyHsm,
    recovers: bool,
) -> Result<(), KeyError> {
    let on = settings::encrypt_wal();
    let scope = match find(scopes) {
        Some(scope) => scope.clone(),
        None if !on => return Ok(()),
        None if recovers => return Err(KeyError::NoWalKey),
        None => make_line(unlocked, hsm)?,
    };
    // Also when it is not new: a crash may have come between the two.
    if !recovers {
        Manifest::name(unlocked.keyring(), named(&scope), 0)?;
    }
    let scope = if on || recovers { scope } else { accept_plain(unlocked, scope)? };
    publish(table, unlocked, &scope, hsm)?;
    // A first switch waits until the line is in the WAL; a standby is told its line by the primary's.
    if on && recovers {
        write_under_newest(table, &scope);
    } else if on && scope.state() == TablespaceState::Encrypted {
        write_under_logged(table, &scope);
    }
    Ok(())
}

/// A crash may have come before the newest version was in the WAL: it waits until it is logged again.
fn write_under_logged(table: &WalTable, scope: &Scope) {
    let usable = |entry: &&DekVersion| !matches!(entry.state, DekState::Destroyed { .. });
    let logged = scope.versions.iter().rev().filter(usable).nth(1).or_else(|| scope.active());
    if let Some(entry) = logged {
        table.set_write_version(entry.version.0);
    }
}

fn make_line(unlocked: &Unlocked, hsm: &AnyHsm) -> Result<Scope, KeyError> {
    let initial = Some(StateChange { from: WalPosition(0), state: TablespaceState::Encrypting });
    let new = NewScope { kind: ScopeKind::PgWal, cipher: CipherId::Aes256Xts, initial };
    let (scope, _) = unlocked.add_scope(new, hsm)?;
    Ok(scope)
}

/// The server was started with encryption off: what it writes must be accepted later.
fn accept_plain(unlocked: &Unlocked, scope: Scope) -> Result<Scope, KeyError> {
    let Some(control) = server::control_file().filter(|_| scope.state() == TablespaceState::Encrypted) else {
        return Ok(scope);
    };
    let from = WalPosition(control.redo - control.redo % server::segment_size());
    Ok(unlocked.set_state(scope.line, StateChange { from, state: TablespaceState::Plain })?)
}

/// Unwraps what the table does not have and publishes the history.
fn publish(
    table: &WalTable,
    unlocked: &Unlocked,
    scope: &Scope,
    hsm: &dyn MasterKey,
) -> Result<(), KeyError> {
    for version in missing(table, scope) {
        table.add_version(version.0, &unlocked.dek_of(scope, version, hsm)?)?;
    }
    Ok(table.set_history(scope)?)
}

fn missing(table: &WalTable, scope: &Scope) -> Vec<KeyVersion> {
    let usable = scope.versions.iter().filter(|entry| !matches!(entry.state, DekState::Destroyed { .. }));
    let known = |version: KeyVersion| table.versions().any(|(_, number)| number == version.0);
    usable.map(|entry| entry.version).filter(|version| !known(*version)).collect()
}

fn write_under_newest(table: &WalTable, scope: &Scope) {
    if let Some(active) = scope.active() {
        table.set_write_version(active.version.0);
    }
}

/// Before a line is imported in redo: a keyring outside of the data directory may have versions that only an abandoned timeline knows. The import
/// would let the record with more changes win, and one of the two servers could no longer read its WAL.
///
/// # Errors
/// [`KeyError::OtherTimeline`]; when the keyring cannot be opened.
pub(crate) fn refuse_other_timeline(keys: &KeyTable, exported: &[u8]) -> Result<(), KeyError> {
    // Without the seal key this server has not had a keyring yet.
    let Some(seal_key) = keys.seal_key() else { return Ok(()) };
    let dir = settings::keyring_directory();
    match Keyring::open(&dir)?.unlock_with_seal_key(seal_key)?.diverges_from(exported)? {
        Some(line) => Err(KeyError::OtherTimeline { dir, line: line.0 }),
        None => Ok(()),
    }
}

/// [`arrived`] in redo: waits while the HSM is away. An error there would end the server.
///
/// # Errors
/// When the keyring cannot be used.
pub(crate) fn arrive(keys: &KeyTable, table: &WalTable, keyring: KeyringId) -> Result<(), KeyError> {
    loop {
        match arrived(keys, table, keyring) {
            Err(error) if error.may_pass() => {
                report::waiting_for_wal_key(&error);
                // A wrong PIN does not get right by itself, and trying it again would lock the user.
                if error.is_refused() {
                    server::wait_for_reload_in_redo()
                } else {
                    server::wait_in_redo(15_000)
                }
            }
            result => return result,
        }
    }
}

/// Takes over a line that the WAL brought. The keys first: a state is nothing without them.
///
/// # Errors
/// When the keyring or the HSM cannot be used; a caller in redo waits for the HSM.
fn arrived(keys: &KeyTable, table: &WalTable, keyring: KeyringId) -> Result<(), KeyError> {
    let unlocked = keys::open_keyring(keys)?;
    let scopes = unlocked.survey()?.scopes;
    let Some(scope) = find(&scopes) else { return Ok(()) };
    Manifest::name(keyring, named(scope), 0)?;
    if missing(table, scope).is_empty() {
        table.set_history(scope)?;
    } else {
        publish(table, &unlocked, scope, &keys::open_hsm()?)?;
    }
    if settings::encrypt_wal() {
        write_under_newest(table, scope);
    }
    Ok(())
}

/// What the background worker does once, after recovery.
///
/// # Errors
/// When the keyring cannot be changed; the server starts the worker again.
pub(crate) fn settle(keys: &KeyTable, table: &'static WalTable) -> Result<(), KeyError> {
    let Some(line) = table.line() else { return Ok(()) };
    background::transaction(|| {
        let _lock = server::lock_keyring();
        let unlocked = keys::open_keyring(keys)?;
        let scope = unlocked.scope(keyring::LineNumber(line))?;
        log_line(&unlocked, &scope)?;
        if !settings::encrypt_wal() {
            return Ok(());
        }
        write_under_newest(table, &scope);
        let now = server::insert_position();
        if !allows_plain_at(&scope, now.saturating_add(2 * server::segment_size())) {
            return Ok(());
        }
        let from = WalPosition(first_encrypted(table, now)?);
        let scope =
            unlocked.set_state(scope.line, StateChange { from, state: TablespaceState::Encrypted })?;
        table.set_history(&scope)?;
        log_line(&unlocked, &scope)?;
        report::wal_encrypted_from(from);
        Ok(())
    })
}

fn allows_plain_at(scope: &Scope, position: u64) -> bool {
    scope.state_at(WalPosition(position)) != TablespaceState::Encrypted
}

/// Logs the line for standbys, and for restores with an older keyring. The caller has the keyring lock.
pub(crate) fn log_line(unlocked: &Unlocked, scope: &Scope) -> Result<(), KeyError> {
    server::log_record(wal::WAL_LINE, &unlocked.export(scope.line)?);
    Ok(())
}

/// The first segment whose first page was not written in clear before new segments were encrypted: behind the one in use, and behind
/// what a crash may have left of ones that were used.
fn first_encrypted(table: &'static WalTable, now: u64) -> Result<u64, KeyError> {
    let size = server::segment_size();
    let mut next = now - now % size + size;
    let timeline = server::insert_timeline();
    let mut scratch = Box::new(Scratch::new());
    let directory = Path::new("pg_wal");
    let failed = |source| KeyError::WalDirectory { source };
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let file_name = entry.file_name();
        let name = SegmentName::parse(file_name.as_encoded_bytes());
        let Some(name) = name.filter(|name| name.timeline == timeline && name.position(size) >= next) else {
            continue;
        };
        let Ok(file) = std::fs::File::open(entry.path()) else { continue };
        let raw = Descriptor(staged::number(&file));
        if matches!(probe(&raw, name, &ServerPolicy(table), &mut scratch), Ok(Found::Plain)) {
            next = name.position(size) + size;
        }
    }
    Ok(next)
}

/// Makes a new version of the WAL's data key; segments that are begun from now on are written under it.
///
/// # Errors
/// When there is no line, or the HSM or the keyring cannot be used.
pub(crate) fn rotate(keys: &KeyTable) -> Result<u32, KeyError> {
    let table = redirected::table().ok_or(KeyError::WalPlain)?;
    let line = table.line().ok_or(KeyError::WalPlain)?;
    let _lock = server::lock_keyring();
    // Before anything is durable: a version that cannot be loaded would keep the server from starting.
    table.check_room()?;
    let hsm = keys::open_hsm()?;
    let unlocked = keys::open_keyring(keys)?;
    let (scope, dek) = unlocked.add_version(keyring::LineNumber(line), &hsm)?;
    // Whoever reads this WAL gets the key before the first segment that needs it.
    log_line(&unlocked, &scope)?;
    let version = scope.active().map_or(0, |entry| entry.version.0);
    table.add_version(version, &dek)?;
    if table.write_version().is_some() {
        table.set_write_version(version);
    }
    Ok(version)
}
