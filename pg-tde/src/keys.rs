//! From the HSM and the keyring into the key table.

use std::collections::BTreeMap;
use std::path::Path;

use hsm_engine::Pin;
use keyring::pkcs11::AgentOptions;
use keyring::{
    AnyHsm, DekState, HsmUri, InstanceId, KeyVersion, Keyring, KeyringError, LineNumber, MasterKey, Owner,
    Scope, Unlocked, WalPosition,
};

use crate::ffi::server;
pub(crate) use crate::key_error::KeyError;
use crate::key_table::{KeyTable, LineInfo, Lock};
use crate::line_facts::{LineFacts, first_use};
use crate::manifest::{Manifest, Named};
use crate::pin_command::{self, PinCommandError};
use crate::span::OPEN_END;
use crate::wal_table::WalTable;
use crate::{lock, report, settings, wal_keys};

/// Logs in to the HSM that `pg_tde.hsm` names, with the PIN that `pg_tde.pin_command` prints.
///
/// # Errors
/// See [`KeyError`].
pub(crate) fn open_hsm() -> Result<AnyHsm, KeyError> {
    let uri: HsmUri = settings::hsm().ok_or(KeyError::NoHsm)?.parse()?;
    if let Some(store) = uri.store() {
        refuse_store_in_data_directory(store)?;
    }
    let pin = pin_for(&uri)?;
    // A vendor's library runs in a process of its own, without the server's files.
    let options = AgentOptions {
        program: settings::pkcs11_agent(),
        cancelled: give_up,
        prepare: server::close_files_in_child,
    };
    Ok(AnyHsm::open(&uri, pin, options)?)
}

/// Whether a backend that waits for the HSM shall stop. Must not unwind.
fn give_up() -> bool {
    !server::preloading() && server::cancel_requested()
}

/// What `pg_tde.pin_command` prints, or what is in the file that the URI names.
fn pin_for(uri: &HsmUri) -> Result<Pin, KeyError> {
    let command = match (settings::pin_command(), uri.pin_source()) {
        (Some(command), _) => command,
        (None, Some(file)) => return Ok(Pin::from_file(file)?),
        (None, None) => return Err(KeyError::NoPinCommand),
    };
    let pin = match pin_command::run(&command, settings::pin_command_timeout(), &give_up) {
        Err(error @ PinCommandError::Cancelled { .. }) if !server::in_redo() => {
            server::check_for_interrupts();
            return Err(error.into());
        }
        pin => pin?,
    };
    Ok(pin)
}

fn refuse_store_in_data_directory(store: &Path) -> Result<(), KeyError> {
    let data = server::data_directory();
    let resolve = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if resolve(store).starts_with(resolve(&data)) {
        return Err(KeyError::StoreInDataDirectory(store.to_owned()));
    }
    Ok(())
}

/// Fills the table when the server starts, making the keyring on the very first start.
///
/// # Errors
/// Any key that cannot be had: the server must not start then.
pub(crate) fn load(table: &KeyTable, wal: &WalTable) -> Result<(), KeyError> {
    let hsm = open_hsm()?;
    let dir = settings::keyring_directory();
    let recovers = is_copy_of_another_server();
    let manifest = Manifest::read()?;
    let unlocked = if is_keyring(&dir) {
        let locked = Keyring::open(&dir)?;
        locked.require_owner(owner())?;
        locked.unlock(&hsm)?
    } else {
        refuse_vanished(&dir, &hsm, manifest.as_ref())?;
        if recovers && settings::encrypt_wal() {
            return Err(KeyError::NoWalKey);
        }
        if recovers {
            // A standby takes over the keyring of the server whose WAL it replays.
            return Ok(());
        }
        Keyring::create(&dir, owner(), &hsm)?
    };
    table.set_seal_key(unlocked.seal_key());
    // The copy of a running server's files may have gaps, which the WAL fills.
    let scopes = if recovers { unlocked.survey()?.scopes } else { unlocked.scopes()? };
    if !recovers {
        unlocked.check_sum()?;
    }
    check_manifest(table, manifest, &unlocked, &scopes, recovers)?;
    let redo = redo_begins();
    for scope in scopes.iter().filter(|scope| !scope.is_draft()) {
        for facts in LineFacts::of(scope).into_iter().filter(|facts| facts.span.end > redo) {
            let index = facts.add_to(table)?;
            match unlocked.dek_of(scope, facts.version, &hsm) {
                Ok(dek) => table.set_dek(index, &dek),
                // No page is under it any more: recovery may do without it, and says so if it cannot.
                Err(_) if !facts.span.alive() => (),
                Err(error) => return Err(error.into()),
            }
        }
    }
    wal_keys::load(wal, &unlocked, &scopes, &hsm, recovers)?;
    match server::control_file().filter(|_| !recovers).and_then(|control| control.end) {
        // Nothing will be replayed, so redo will not end either.
        Some(end) => check_end_of_redo(table, end),
        None => Ok(()),
    }
}

/// Makes sure that this is the keyring of this data directory, and as new as it.
fn check_manifest(
    table: &KeyTable,
    manifest: Option<Manifest>,
    unlocked: &Unlocked,
    scopes: &[Scope],
    recovers: bool,
) -> Result<(), KeyError> {
    let (keyring, dir) = (unlocked.keyring(), settings::keyring_directory());
    // The WAL's line counts from the first segment that names it.
    let of_wal = wal_keys::find(scopes).map(|scope| (wal_keys::named(scope), 0));
    let of_tablespaces = scopes.iter().filter_map(|scope| first_use(&LineFacts::of(scope)));
    let lines: BTreeMap<_, _> = of_tablespaces.chain(of_wal).collect();
    let Some(manifest) = manifest else {
        let lines = lines.into_iter().filter(|(_, from)| *from != OPEN_END).collect();
        return Ok(Manifest { keyring, lines }.write()?);
    };
    if manifest.keyring != keyring {
        return Err(KeyError::OtherKeyring { dir, found: keyring, expected: manifest.keyring });
    }
    let used = scopes.iter().filter(|scope| !scope.is_draft()).flat_map(LineFacts::of);
    let unknown = used.map(|facts| facts.named()).find(|named| !manifest.lines.contains_key(named));
    if let Some(Named { line, tablespace }) = unknown.filter(|_| !recovers) {
        return Err(KeyError::NotInManifest { dir, line, tablespace });
    }
    let missing = manifest.lines.iter().filter(|(named, _)| !lines.contains_key(named));
    for (&Named { line, tablespace }, &from) in missing {
        if !recovers {
            return Err(match tablespace {
                Named::WAL => KeyError::WalLineLost { dir, line },
                tablespace => KeyError::LineLost { dir, line, tablespace },
            });
        }
        // Segments that need it are refused until it is there.
        if tablespace != Named::WAL {
            table.add_awaited(line, tablespace, from)?;
        }
    }
    Ok(())
}

/// Brings the table up to the keyring after a process was killed, perhaps between a change of the one and of the other.
///
/// # Errors
/// When the keyring cannot be read.
pub(crate) fn synchronize(table: &KeyTable) -> Result<(), KeyError> {
    let Some(seal_key) = table.seal_key() else { return Ok(()) };
    let keyring = Keyring::open(&settings::keyring_directory())?.unlock_with_seal_key(seal_key)?;
    for scope in keyring.survey()?.scopes.iter().filter(|scope| !scope.is_draft()) {
        // The newest first: at no time may a tablespace be without a key to write under.
        for facts in LineFacts::of(scope).into_iter().rev() {
            let known = table.lines().any(|line| facts.is_of(&line));
            // Keys that ended before this server started were left out on purpose.
            if known || facts.span.alive() {
                facts.add_to(table)?;
            }
        }
    }
    Ok(())
}

/// Compares the records of the keyring with its sum: an older record that was put back does not fit.
///
/// # Errors
/// When the keyring cannot be read, or a record is not the newest.
pub(crate) fn check_sum(table: &KeyTable) -> Result<(), KeyError> {
    let Some(seal_key) = table.seal_key() else { return Ok(()) };
    let keyring = Keyring::open(&settings::keyring_directory())?.unlock_with_seal_key(seal_key)?;
    Ok(keyring.check_sum()?)
}

/// Makes sure that redo ended where the keyring is: a keyring from a later time knows changes that did not happen here.
///
/// # Errors
/// [`KeyError::Future`] names the first such line.
pub(crate) fn check_end_of_redo(table: &KeyTable, position: u64) -> Result<(), KeyError> {
    for line in table.lines() {
        if line.awaited {
            let (dir, line, tablespace) = (settings::keyring_directory(), line.line, line.tablespace);
            return Err(KeyError::LineLost { dir, line, tablespace });
        }
        let last = line.span.last();
        if last > position {
            let dir = settings::keyring_directory();
            return Err(KeyError::Future {
                dir,
                line: line.line,
                at: WalPosition(last),
                end: WalPosition(position),
            });
        }
    }
    table.set_compared();
    Ok(())
}

/// [`check_end_of_redo`], for a recovery that found nothing to replay: the server tells no resource manager of its end, so
/// whoever first needs a line asks here. Lines must not change before.
///
/// # Errors
/// [`KeyError::Future`], [`KeyError::LineLost`]
pub(crate) fn ensure_compared(table: &KeyTable) -> Result<(), KeyError> {
    if table.is_compared() || server::recovery_in_progress() {
        return Ok(());
    }
    check_end_of_redo(table, server::replay_position())?;
    // As at the end of redo: at the start of a copy of another server the records could not be compared yet.
    if let Err(error) = check_sum(table) {
        report::doubtful_keyring(&error);
    }
    Ok(())
}

fn is_keyring(dir: &Path) -> bool {
    // A directory that cannot be looked into is not taken for a missing one: opening it then says why.
    !matches!(std::fs::read_dir(dir), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
        && (dir.join("keyring.tde").exists() || dir.join("lines").exists())
}

fn refuse_vanished(dir: &Path, hsm: &AnyHsm, manifest: Option<&Manifest>) -> Result<(), KeyError> {
    let dir = dir.to_owned();
    if let Some(manifest) = manifest {
        return Err(KeyError::NotFound { dir, keyring: manifest.keyring });
    }
    let instance = InstanceId::of(&dir)?;
    match hsm.generations_of_instance(instance)?.into_iter().max_by_key(|(_, generation)| *generation) {
        // Generation 1 is an empty keyring: nothing is lost with it.
        Some((keyring, generation)) if generation > 1 => Err(KeyError::Vanished { dir, keyring, generation }),
        _ => Ok(()),
    }
}

fn owner() -> Owner {
    Owner::PgCluster { system_identifier: server::system_identifier() }
}

/// Whether the files come from a backup or another server, so that the WAL may still bring keyring records.
pub(crate) fn is_copy_of_another_server() -> bool {
    let data = server::data_directory();
    ["backup_label", "standby.signal", "recovery.signal"].iter().any(|name| data.join(name).exists())
}

/// The files come from a base backup and are newer than where redo begins; the keys that came with them may be older than the files.
pub(crate) fn is_base_backup() -> bool {
    server::data_directory().join("backup_label").exists()
}

/// Where redo is about to begin: as the label of the backup says, or the control file. 0 if neither can be read.
pub(crate) fn redo_begins() -> u64 {
    if is_base_backup() {
        let label = std::fs::read_to_string(server::data_directory().join("backup_label"));
        return label.ok().and_then(|label| labelled_start(&label)).unwrap_or(0);
    }
    server::control_file().map_or(0, |control| control.redo)
}

/// `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)` (access/transam/xlogbackup.c).
pub(crate) fn labelled_start(label: &str) -> Option<u64> {
    let rest = label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: "))?;
    let (high, low) = rest.split(' ').next()?.split_once('/')?;
    let half = |text| u64::from(u32::from_str_radix(text, 16).unwrap_or(0));
    Some(half(high) << 32 | half(low))
}

/// The keyring with the seal key of the table, or with the HSM if that key is not known yet.
fn unlocked_for(table: &KeyTable, hsm: &AnyHsm) -> Result<Unlocked, KeyError> {
    let locked = Keyring::open(&settings::keyring_directory())?;
    Ok(match table.seal_key() {
        Some(seal_key) => locked.unlock_with_seal_key(seal_key)?,
        None => {
            let unlocked = locked.unlock(hsm)?;
            table.set_seal_key(unlocked.seal_key());
            unlocked
        }
    })
}

/// The keyring for changes of state, which need no HSM while the seal key is known.
///
/// # Errors
/// When the keyring cannot be opened.
pub(crate) fn open_keyring(table: &KeyTable) -> Result<Unlocked, KeyError> {
    let locked = Keyring::open(&settings::keyring_directory())?;
    match table.seal_key() {
        Some(seal_key) => Ok(locked.unlock_with_seal_key(seal_key)?),
        None => unlocked_for(table, &open_hsm()?),
    }
}

/// Unwraps the key of a line that came through the WAL and publishes it. The startup process waits while the HSM is
/// away: an error there would end the server.
///
/// # Errors
/// See [`KeyError`].
pub(crate) fn unwrap_line(table: &KeyTable, line: LineInfo) -> Result<(), KeyError> {
    loop {
        match try_unwrap_line(table, line) {
            // A wrong PIN does not get right by itself, and trying it again would lock the user.
            Err(error) if server::in_redo() && error.is_refused() => {
                report::waiting_for_reload(line, &error);
                server::wait_for_reload_in_redo();
            }
            Err(error) if server::in_redo() && error.is_away() => {
                report::waiting_for_hsm(line, &error);
                server::wait_in_redo(15_000);
            }
            Err(KeyError::Locked) if server::in_redo() => lock::wait_in_redo(table),
            result => return result,
        }
    }
}

fn try_unwrap_line(table: &KeyTable, line: LineInfo) -> Result<(), KeyError> {
    if table.lock() == Lock::Locked {
        return Err(KeyError::Locked);
    }
    if line.awaited {
        let (dir, line, tablespace) = (settings::keyring_directory(), line.line, line.tablespace);
        return Err(KeyError::LineLost { dir, line, tablespace });
    }
    if table.dek(line.index)?.is_some() {
        return Ok(()); // another process was faster
    }
    let dir = settings::keyring_directory();
    if !is_keyring(&dir) {
        return Err(KeyError::NoKeyring { dir, line: line.line });
    }
    refuse_destroyed(table, line)?;
    let hsm = open_hsm()?;
    let unlocked = unlocked_for(table, &hsm)?;
    let scope = unlocked.scope(LineNumber(line.line))?;
    let same = LineFacts::of(&scope).iter().any(|facts| {
        facts.is_of(&line)
            && (facts.tablespace, facts.cipher) == (line.tablespace, line.cipher)
            && facts.span.merged(line.span).is_some()
    });
    if !same {
        return Err(KeyError::Mismatch { line: line.line });
    }
    let dek = unlocked.dek_of(&scope, KeyVersion(line.version), &hsm)?;
    // Without a lock: whoever else does this now writes the same bytes.
    table.set_dek(line.index, &dek);
    // Locked since: the keys are wiped already.
    if table.lock() == Lock::Locked {
        table.forget_dek(line.index);
        return Err(KeyError::Locked);
    }
    Ok(())
}

/// A key that is gone is no reason to ask the HSM, for each page again.
fn refuse_destroyed(table: &KeyTable, line: LineInfo) -> Result<(), KeyError> {
    let Some(seal_key) = table.seal_key() else { return Ok(()) };
    let keyring = Keyring::open(&settings::keyring_directory())?.unlock_with_seal_key(seal_key)?;
    let (scope, version) = (keyring.scope(LineNumber(line.line))?, KeyVersion(line.version));
    let destroyed =
        scope.version(version).is_some_and(|entry| matches!(entry.state, DekState::Destroyed { .. }));
    if destroyed && !keyring.retained()?.iter().any(|of| of.line.0 == line.line) {
        let scope = scope.to_string();
        return Err(KeyringError::KeyDestroyed { scope, version, source: None }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_label_says_where_redo_begins() {
        let label = "START WAL LOCATION: 1A/2000028 (file 00000001000000000000001A)\nCHECKPOINT LOCATION: 1A/2000060\n";
        assert_eq!(labelled_start(label), Some(0x1a_0200_0028));
        assert_eq!(labelled_start("CHECKPOINT LOCATION: 1A/2000060\n"), None);
    }
}
