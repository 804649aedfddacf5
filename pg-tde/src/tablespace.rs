//! Changing how a tablespace is stored.
//!
//! Order of `encrypt` (key durable, then logged, then in force):
//!
//! 1. the line with its wrapped key is durable in the keyring, without a state;
//! 2. an empty tablespace: under its lock, which every transaction that makes a file in a plain one holds shared, it is empty;
//! 3. the line is in the WAL and flushed; the end of that record is the position from which pages are encrypted;
//! 4. a tablespace with data: a checkpoint writes its dirty pages in clear. What is written encrypted from now on was changed after that
//!    position, which tools that compare positions (pg_rewind, incremental backups) rely on;
//! 5. the line is named in the manifest of the data directory;
//! 6. the state with that position is durable in the keyring: `encrypted` if it is empty, else `encrypting`;
//! 7. the line with its state is in the WAL and flushed, and in the key table: every page is written encrypted now;
//! 8. a tablespace with data: a job rewrites its pages (`jobs`).
//!
//! A crash before 6 leaves a line that nothing uses. A crash after it leaves a tablespace that is encrypted here and perhaps
//! not yet on a standby. Therefore every line is logged once for each start of the server, before the first file is made
//! in an encrypted tablespace and before any other line is logged (`log_pending`): whatever the keyring counts, a
//! standby gets.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::OnceLock;

use keyring::{
    DekVersion, KeyringError, LineNumber, MasterKey, NewScope, Rewrapped, Scope, ScopeKind, StateChange,
    TablespaceState, Unlocked, WalPosition,
};
use page_cipher::CipherId;

use crate::ffi::compat::RelationId;
use crate::ffi::server;
use crate::key_table::{KeyTable, LineInfo, Lock, PG_DEFAULT, PG_GLOBAL, State, TableError};
use crate::keys::{self, KeyError};
use crate::line_facts::LineFacts;
use crate::manifest::Manifest;
use crate::span::Span;
pub(crate) use crate::tablespace_error::TablespaceError;
use crate::tablespace_files::{directory, relation_files};
use crate::{jobs, lock, report, settings, wal, wal_keys};

static TABLE: OnceLock<&'static KeyTable> = OnceLock::new();

/// The key table; `None` until keys are loaded at server start.
pub(crate) fn key_table() -> Option<&'static KeyTable> {
    TABLE.get().copied()
}

/// Puts the key table into force, before the server has children.
pub(crate) fn set_key_table(table: &'static KeyTable) {
    // Set once, by the only call in `_PG_init`; a second one would keep the first table.
    TABLE.get_or_init(|| table);
}

/// The key table, where keys and states can be changed.
///
/// # Errors
/// In recovery, and while the keyring is not known to fit where recovery ended.
pub(crate) fn changeable() -> Result<&'static KeyTable, TablespaceError> {
    let table = key_table().ok_or(TablespaceError::NotActive)?;
    if server::recovery_in_progress() {
        return Err(TablespaceError::InRecovery);
    }
    keys::ensure_compared(table)?;
    if table.lock() != Lock::Open {
        return Err(KeyError::Locked.into());
    }
    Ok(table)
}

/// Encrypts a tablespace: everything that is stored in it from now on, and by a job what it holds already. Returns the job's
/// number, `None` when there is nothing to rewrite.
///
/// Takes effect at once and is not undone by ROLLBACK.
///
/// # Errors
/// See [`TablespaceError`].
pub(crate) fn encrypt(name: &str, cipher: CipherId, wait: bool) -> Result<Option<u64>, TablespaceError> {
    let table = changeable()?;
    let oid = server::tablespace_oid(name).ok_or_else(|| TablespaceError::Unknown(name.to_owned()))?;
    refuse_encrypted(table, name, oid)?;
    if wait && server::made_files_in(oid) {
        return Err(TablespaceError::OwnFiles(name.to_owned()));
    }
    if wait {
        server::refuse_in_transaction_block();
    }
    // Dropped relations keep an empty file until the next checkpoint.
    if !relation_files(oid)?.is_empty() {
        server::checkpoint();
    }
    if relation_files(oid)?.is_empty() {
        // Nobody else makes a file while this lock is held. Without it, the job waits for whoever has made one.
        server::lock_tablespace(oid, false);
    }
    let Some(line) = put_to_use(table, name, oid, cipher)? else { return Ok(None) };
    jobs::wake_launcher(table);
    if wait {
        jobs::wait(table, line);
    }
    Ok(Some(line))
}

/// Makes a key and encrypts with it from now on. Returns the line if there is something to rewrite.
fn put_to_use(
    table: &KeyTable,
    name: &str,
    oid: u32,
    cipher: CipherId,
) -> Result<Option<u64>, TablespaceError> {
    let _keyring = server::lock_keyring();
    if server::tablespace_oid(name) != Some(oid) {
        return Err(TablespaceError::Unknown(name.to_owned())); // dropped while we waited
    }
    refuse_encrypted(table, name, oid)?;
    // Before anything is durable that the server could not follow.
    if table.is_full() {
        return Err(TableError::Full.into());
    }
    let hsm = keys::open_hsm()?;
    let keyring = keys::open_keyring(table)?;
    let kind = ScopeKind::PgTablespace { oid, name: name.to_owned() };
    let (scope, dek) = keyring.add_scope(NewScope { kind, cipher, initial: None }, &hsm)?;
    let facts = newest(&scope)?;
    table.set_dek(facts.add_to(table)?, &dek);
    let from = log_pending(table, &keyring)?;
    // Under both locks: whoever copies files past the storage manager holds the keyring's.
    let empty = server::holds_tablespace(oid) && relation_files(oid)?.is_empty();
    if !empty {
        server::checkpoint();
    }
    let state = if empty { TablespaceState::Encrypted } else { TablespaceState::Encrypting };
    refuse_encrypted(table, name, oid)?;
    Manifest::name(keyring.keyring(), facts.named(), from).map_err(KeyError::from)?;
    publish(table, &keyring, scope.line, || {
        keyring.set_state(scope.line, StateChange { from: WalPosition(from), state })
    })?;
    // A failure is made up for at the next start, and the tablespace is encrypted all the same.
    if let Err(error) = keyring.remember_generation(&hsm) {
        report::generation_not_remembered(&error);
    }
    Ok((!empty).then_some(scope.line.0))
}

/// Makes a new version of a tablespace's data key, writes under it from now on, and lets a job rewrite what is under the one before.
/// Returns the job's number.
///
/// Same order as [`encrypt`]: the new version is durable, logged and flushed before a page is written under it. One that was made and never
/// put to use is taken by the next call. Not undone by ROLLBACK.
///
/// # Errors
/// See [`TablespaceError`].
pub(crate) fn rotate_data_key(name: &str, wait: bool) -> Result<u64, TablespaceError> {
    let table = changeable()?;
    if wait {
        server::refuse_in_transaction_block();
    }
    let oid = server::tablespace_oid(name).ok_or_else(|| TablespaceError::Unknown(name.to_owned()))?;
    let line = put_next_to_use(table, name, oid)?;
    jobs::wake_launcher(table);
    if wait {
        jobs::wait(table, line);
    }
    Ok(line)
}

/// Writes a tablespace's pages in clear from now on, and lets a job rewrite those that are encrypted. Returns the job's number.
///
/// The key stays in the keyring, for backups and WAL from before. Not undone by ROLLBACK.
///
/// # Errors
/// See [`TablespaceError`].
pub(crate) fn decrypt(name: &str, wait: bool) -> Result<u64, TablespaceError> {
    let table = changeable()?;
    if wait {
        server::refuse_in_transaction_block();
    }
    let oid = server::tablespace_oid(name).ok_or_else(|| TablespaceError::Unknown(name.to_owned()))?;
    if settings::enforce_encryption() {
        return Err(TablespaceError::EnforcedAlready(name.to_owned()));
    }
    let line = {
        let _keyring = server::lock_keyring();
        let line = encrypted_line(table, name, oid)?;
        begin_decrypting(table, LineNumber(line.line))?;
        line.line
    };
    jobs::wake_launcher(table);
    if wait {
        jobs::wait(table, line);
    }
    Ok(line)
}

/// Writes the pages of a line's tablespace in clear from now on. The caller has [`server::lock_keyring`].
///
/// # Errors
/// See [`TablespaceError`].
pub(crate) fn begin_decrypting(table: &KeyTable, number: LineNumber) -> Result<(), TablespaceError> {
    let keyring = keys::open_keyring(table)?;
    forget_logged(table, number);
    let from = log_pending(table, &keyring)?;
    // As in `encrypt`: what is written in clear was changed after that position. Records in the double-write files are of no use either
    // from here on.
    server::checkpoint();
    publish(table, &keyring, number, || {
        keyring.set_state(number, StateChange { from: WalPosition(from), state: TablespaceState::Decrypting })
    })
}

/// The key of a tablespace that is encrypted and has no job.
fn encrypted_line(table: &KeyTable, name: &str, oid: u32) -> Result<LineInfo, TablespaceError> {
    match table.state(oid) {
        Some(State::Encrypted(line)) if !line.awaited => Ok(line),
        Some(State::Encrypted(_)) | None => Err(TablespaceError::NotEncrypted(name.to_owned())),
        Some(state) => Err(TablespaceError::Busy { name: name.to_owned(), state: state.name() }),
    }
}

fn put_next_to_use(table: &KeyTable, name: &str, oid: u32) -> Result<u64, TablespaceError> {
    let _keyring = server::lock_keyring();
    let number = LineNumber(encrypted_line(table, name, oid)?.line);
    write_under_next(table, number, TablespaceState::Rotating)?;
    Ok(number.0)
}

/// Encrypts a tablespace again that is being decrypted. The caller has [`server::lock_keyring`].
///
/// # Errors
/// See [`TablespaceError`].
pub(crate) fn encrypt_again(table: &KeyTable, number: LineNumber) -> Result<(), TablespaceError> {
    write_under_next(table, number, TablespaceState::Encrypting)
}

/// Writes under a new version of a line's key from now on, or under one that was made and never put to use.
fn write_under_next(
    table: &KeyTable,
    number: LineNumber,
    state: TablespaceState,
) -> Result<(), TablespaceError> {
    if table.is_full() {
        return Err(TableError::Full.into());
    }
    let hsm = keys::open_hsm()?;
    let keyring = keys::open_keyring(table)?;
    let mut scope = keyring.scope(number)?;
    // Also if the next step fails half-way: what the keyring counts, a standby must get.
    forget_logged(table, number);
    let unused = newest(&scope)?.span == Span::UNUSED;
    let dek = if unused {
        keyring.dek_of(&scope, newest(&scope)?.version, &hsm)?
    } else {
        let (with_next, dek) = keyring.add_version(number, &hsm)?;
        scope = with_next;
        dek
    };
    table.set_dek(newest(&scope)?.add_to(table)?, &dek);
    let from = log_pending(table, &keyring)?;
    server::checkpoint();
    publish(table, &keyring, number, || {
        keyring.set_state(number, StateChange { from: WalPosition(from), state })
    })?;
    if let Err(error) = keyring.remember_generation(&hsm) {
        report::generation_not_remembered(&error);
    }
    Ok(())
}

/// Changes the keyring, puts what it says then into force and logs it. The caller has [`server::lock_keyring`].
fn publish(
    table: &KeyTable,
    keyring: &Unlocked,
    line: LineNumber,
    change: impl FnOnce() -> Result<Scope, KeyringError>,
) -> Result<(), TablespaceError> {
    let changed = change();
    // In force before it is logged, and also if that failed half-way: the server must do what the keyring says. If it
    // cannot be read back, only a restart brings the two together.
    if let Err(error) = keys::synchronize(table) {
        report::out_of_step(&error);
    }
    forget_logged(table, line);
    changed?;
    log_pending(table, keyring)?;
    Ok(())
}

/// [`publish`] from a new position in the WAL, which is the end of a record.
///
/// # Errors
/// When the keyring cannot be changed.
pub(crate) fn change_state(
    table: &KeyTable,
    keyring: &Unlocked,
    line: LineNumber,
    change: impl FnOnce(u64) -> Result<Scope, KeyringError>,
) -> Result<(), TablespaceError> {
    forget_logged(table, line);
    let from = log_pending(table, keyring)?;
    publish(table, keyring, line, || change(from))
}

/// The line has to be logged again.
fn forget_logged(table: &KeyTable, line: LineNumber) {
    table.lines().filter(|known| known.line == line.0).for_each(|known| table.set_logged(known.index, false));
}

/// Makes sure that every line is in the WAL and flushed since the server started.
///
/// # Errors
/// When the keyring cannot be read.
pub(crate) fn log_lines(table: &KeyTable) -> Result<(), TablespaceError> {
    let _keyring = server::lock_keyring();
    log_pending(table, &keys::open_keyring(table)?)?;
    Ok(())
}

fn refuse_encrypted(table: &KeyTable, name: &str, oid: u32) -> Result<(), TablespaceError> {
    match table.state(oid) {
        Some(State::Encrypting(_)) => Err(TablespaceError::Encrypting(name.to_owned())),
        Some(State::Decrypting(_)) => {
            Err(TablespaceError::Busy { name: name.to_owned(), state: "being decrypted" })
        }
        Some(_) => Err(TablespaceError::Encrypted(name.to_owned())),
        None => Ok(()),
    }
}

/// Puts a line's record into the WAL, flushes it and returns its end.
///
/// # Errors
/// When the keyring cannot be read.
pub(crate) fn log(keyring: &Unlocked, line: LineNumber) -> Result<u64, KeyError> {
    Ok(server::log_record(wal::KEYRING_LINE, &record(keyring, line)?))
}

fn record(keyring: &Unlocked, line: LineNumber) -> Result<Vec<u8>, KeyError> {
    let exported = keyring.export(line)?;
    wal::encode(&LineFacts::of(&keyring.scope(line)?), &exported).ok_or(KeyError::Mismatch { line: line.0 })
}

/// Logs one line of an encrypted tablespace again, if there is any. A server without the library that replays the WAL stops at that
/// record: it would write the images that follow in clear into encrypted files.
///
/// # Errors
/// When the keyring cannot be read.
pub(crate) fn log_for_others(table: &KeyTable) -> Result<(), TablespaceError> {
    let Some(line) = table.lines().find(|line| line.span.alive() && !line.awaited) else { return Ok(()) };
    let _keyring = server::lock_keyring();
    let keyring = keys::open_keyring(table)?;
    server::log_unimportant(wal::KEYRING_LINE, &record(&keyring, LineNumber(line.line))?);
    Ok(())
}

/// The newest version of a tablespace's key.
fn newest(scope: &Scope) -> Result<LineFacts, KeyError> {
    LineFacts::of(scope).pop().ok_or(KeyError::Mismatch { line: scope.line.0 })
}

/// Logs every line that was not logged since the server started or the line changed, oldest first, and returns the end of
/// the last record. The caller has [`server::lock_keyring`].
fn log_pending(table: &KeyTable, keyring: &Unlocked) -> Result<u64, KeyError> {
    let mut end = 0;
    let pending: BTreeSet<u64> =
        table.lines().filter(|line| !table.is_logged(line.index)).map(|line| line.line).collect();
    for number in pending {
        end = log(keyring, LineNumber(number))?;
        table.lines().filter(|line| line.line == number).for_each(|line| table.set_logged(line.index, true));
    }
    Ok(end)
}

/// Makes sure that the WAL holds the lines before it holds anything about the first new file in an encrypted tablespace.
///
/// # Errors
/// When the keyring cannot be read. The file must not be made then.
pub(crate) fn before_create(table: &KeyTable, relation: RelationId) -> Result<(), TablespaceError> {
    if table.lines().any(|line| line.tablespace == relation.tablespace) {
        keys::ensure_compared(table)?;
    }
    lock::refuse(table, relation.tablespace)?;
    if !relation.temporary {
        refuse_plain(table, relation.tablespace)?;
    }
    let Some(line) = table.active(relation.tablespace) else {
        if !relation.temporary {
            server::lock_tablespace(relation.tablespace, true);
        }
        return Ok(());
    };
    if table.is_logged(line.index) {
        return Ok(());
    }
    let _keyring = server::lock_keyring();
    let keyring = keys::open_keyring(table)?;
    log_pending(table, &keyring)?;
    Ok(())
}

/// Refuses a tablespace in which new pages are in clear, if that is not wanted.
///
/// # Errors
/// [`TablespaceError::Enforced`]
pub(crate) fn refuse_plain(table: &KeyTable, oid: u32) -> Result<(), TablespaceError> {
    if settings::enforce_encryption() && table.active(oid).is_none() {
        // No look-up of its name: the storage manager is no place for that.
        let name = match oid {
            PG_DEFAULT => "pg_default".to_owned(),
            PG_GLOBAL => "pg_global".to_owned(),
            _ => format!("with OID {oid}"),
        };
        return Err(TablespaceError::Enforced(name));
    }
    Ok(())
}

/// Retires the key line of every tablespace that is gone. The keys stay in the keyring for old backups.
///
/// Asks the catalog and the files, not the name in the statement, which may have been renamed since it was looked up. The caller has
/// [`server::lock_keyring_to_end`] since before the drop: waiting for it now could be cancelled.
///
/// # Errors
/// When the keyring cannot be changed; the tablespace is gone all the same.
pub(crate) fn retire_dropped() -> Result<(), TablespaceError> {
    let table = key_table().ok_or(TablespaceError::NotActive)?;
    for line in table.lines().filter(|line| line.span.alive() && !line.awaited) {
        if server::tablespace_exists(line.tablespace) {
            continue;
        }
        let path = directory(line.tablespace);
        match std::fs::symlink_metadata(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => retire(table, line)?,
            Err(source) => return Err(TablespaceError::Read { path, source }),
            Ok(_) => (),
        }
    }
    Ok(())
}

fn retire(table: &KeyTable, line: LineInfo) -> Result<(), TablespaceError> {
    let keyring = keys::open_keyring(table)?;
    let from = WalPosition(log(&keyring, LineNumber(line.line))?);
    let changed = keyring.retire(LineNumber(line.line), from);
    keys::synchronize(table)?;
    changed?;
    forget_logged(table, LineNumber(line.line));
    log_pending(table, &keyring)?;
    Ok(())
}

/// Makes a new version of the master key and wraps every data key under it. No page is touched. After a rotation that was
/// interrupted only the rest is wrapped.
///
/// # Errors
/// See [`TablespaceError`]. Keys that are not wrapped anew yet stay usable under the old version; calling this
/// again goes on.
pub(crate) fn rotate_master_key() -> Result<Rewrapped, TablespaceError> {
    let table = changeable()?;
    let mut hsm = keys::open_hsm()?;
    let _keyring = server::lock_keyring();
    let keyring = keys::open_keyring(table)?;
    // A rotation that was interrupted goes on; only a finished one makes room for another version.
    let oldest = keyring.survey()?.scopes.iter().filter_map(Scope::oldest_master_version).min();
    let oldest = oldest.unwrap_or(u32::MAX).min(keyring.info()?.master_key_version);
    if oldest >= hsm.primary_version()? {
        hsm.generate_version()?;
    }
    let rewrapped = keyring.rewrap_all(&hsm, |_| {
        server::check_for_interrupts();
        ControlFlow::Continue(())
    })?;
    // Every record, also those that the table no longer needs: a standby keeps them for old backups too.
    for scope in keyring.survey()?.scopes {
        if scope.kind == ScopeKind::PgWal && !scope.is_draft() {
            wal_keys::log_line(&keyring, &scope)?;
        }
        if !LineFacts::of(&scope).is_empty() {
            log(&keyring, scope.line)?;
        }
    }
    Ok(rewrapped)
}

/// A version of the master key.
pub(crate) struct MasterVersion {
    pub(crate) version: u32,
    /// Seconds since 1970, if the HSM says.
    pub(crate) created: Option<u64>,
    /// Keys of this keyring that are wrapped under it, the keyring's own not counted.
    pub(crate) data_keys: u64,
    pub(crate) newest: bool,
}

/// Versions that this keyring needs, and the newest.
///
/// # Errors
/// See [`TablespaceError`].
pub(crate) fn master_key_versions() -> Result<Vec<MasterVersion>, TablespaceError> {
    let table = key_table().ok_or(TablespaceError::NotActive)?;
    let hsm = keys::open_hsm()?;
    let keyring = keys::open_keyring(table)?;
    let newest = hsm.primary_version()?;
    let mut needed = BTreeMap::from([(newest, 0), (keyring.info()?.master_key_version, 0)]);
    for scope in keyring.survey()?.scopes {
        for version in scope.versions.iter().filter_map(DekVersion::master_version) {
            *needed.entry(version).or_default() += 1;
        }
    }
    let of = |(version, data_keys)| {
        let created = hsm.version_created(version)?;
        Ok(MasterVersion { version, created, data_keys, newest: version == newest })
    };
    needed.into_iter().map(of).collect()
}

/// Makes a new version of the WAL's data key.
///
/// # Errors
/// See [`TablespaceError`].
pub(crate) fn rotate_wal_key() -> Result<u32, TablespaceError> {
    let table = key_table().ok_or(TablespaceError::NotActive)?;
    if server::recovery_in_progress() {
        return Err(TablespaceError::InRecovery);
    }
    Ok(wal_keys::rotate(table)?)
}
