//! Locking: the running server forgets its keys until somebody, or the HSM, gives them back.
//!
//! A page that cannot be written must never be lost, and the server never be ended by it. So, in this order:
//!
//! 1. `locking`: no statement runs, and no cursor goes on, that names a relation in a tablespace with a key, and nobody asks for the size of one, which every scan, insertion
//!    and vacuum does;
//! 2. statements that run end, or some seconds pass;
//! 3. a checkpoint writes what they changed, pages of unlogged relations too;
//! 4. `locked`: the keys are wiped from the key table, and no new one is unwrapped;
//! 5. a barrier: every process has wiped the ciphers that it derived (`Process::forget_wiped`).
//!
//! Whoever still changes a page in the buffers cannot write it out: that is an ERROR of the process that tries, a checkpoint fails and is tried
//! again, and the WAL, whose own key stays, has the change. Redo waits. A crash, of the server or of one process, ends the lock: recovery needs the keys, and unwraps
//! them if the HSM lets it.

use std::time::{Duration, Instant};

use crate::ffi::{background, server};
use crate::jobs;
use crate::key_table::{KeyTable, Lock};
use crate::keys::{self, KeyError};
use crate::report;
use crate::tablespace::{self, TablespaceError};
use keyring::{KeyVersion, LineNumber};

/// How long statements that run are waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Without a look at them.
const MOMENT: Duration = Duration::from_secs(2);

/// Wipes the keys of tablespaces from this server's memory. One that is locked already is left alone.
///
/// # Errors
/// When the server cannot be asked what runs. It is not locked then.
pub(crate) fn lock(wait: Wait) -> Result<(), TablespaceError> {
    let table = tablespace::key_table().ok_or(TablespaceError::NotActive)?;
    keys::ensure_compared(table)?;
    // Changes of state, which need keys, are over. A standby makes none, and may not take this lock.
    let _keyring = (!server::recovery_in_progress()).then(server::lock_keyring);
    if table.lock() == Lock::Locked {
        return Ok(());
    }
    let undo = Undo(table);
    table.set_lock(Lock::Locking);
    let running = match wait {
        Wait::Statements => wait_for_statements()?,
        Wait::Moment => {
            background::doze(MOMENT);
            0
        }
    };
    server::checkpoint_everything();
    background::barrier();
    wipe(table);
    std::mem::forget(undo);
    background::barrier();
    report::locked(running);
    Ok(())
}

/// What is waited for before the keys are wiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Statements that run.
    Statements,
    /// They cannot be seen without a database.
    Moment,
}

/// An error before the keys are wiped leaves the server as it was.
struct Undo(&'static KeyTable);

impl Drop for Undo {
    fn drop(&mut self) {
        self.0.set_lock(Lock::Open);
    }
}

fn wipe(table: &KeyTable) {
    table.set_lock(Lock::Locked);
    table.lines().for_each(|line| table.forget_dek(line.index));
}

/// How many statements of others go on after [`PATIENCE`].
fn wait_for_statements() -> Result<i64, TablespaceError> {
    const ACTIVE: &str = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_get_activity(NULL) \
        WHERE state OPERATOR(pg_catalog.=) 'active' AND pid OPERATOR(pg_catalog.<>) pg_catalog.pg_backend_pid() \
        AND backend_type OPERATOR(pg_catalog.=) ANY ('{client backend,parallel worker,autovacuum worker}')";
    let begin = Instant::now();
    loop {
        server::clear_activity_snapshot();
        let active = server::ask::<i64>(ACTIVE).map_err(TablespaceError::Activity)?.unwrap_or(0);
        if active == 0 || begin.elapsed() >= PATIENCE {
            return Ok(active);
        }
        background::doze(Duration::from_millis(50));
    }
}

/// Asks the HSM for the keys again.
///
/// # Errors
/// When the HSM or the keyring cannot be used. The server stays locked then.
pub(crate) fn unlock() -> Result<(), TablespaceError> {
    let table = tablespace::key_table().ok_or(TablespaceError::NotActive)?;
    let _keyring = (!server::recovery_in_progress()).then(server::lock_keyring);
    Ok(give_back(table)?)
}

fn give_back(table: &KeyTable) -> Result<(), KeyError> {
    if table.lock() == Lock::Open {
        return Ok(());
    }
    let hsm = keys::open_hsm()?;
    let keyring = keys::open_keyring(table)?;
    let mut deks = Vec::new();
    for line in table.lines().filter(|line| !line.awaited) {
        let scope = keyring.scope(LineNumber(line.line))?;
        match keyring.dek_of(&scope, KeyVersion(line.version), &hsm) {
            Ok(dek) => deks.push((line.index, dek)),
            // No page is under it any more.
            Err(_) if !line.span.alive() => (),
            Err(error) => return Err(error.into()),
        }
    }
    for (index, dek) in &deks {
        table.set_dek(*index, dek);
    }
    table.set_lock(Lock::Open);
    jobs::wake_launcher(table);
    report::unlocked();
    Ok(())
}

/// Unlocks a server whose catalogs are encrypted, so that no session can, if somebody who may write to the data directory has left a file there.
pub(crate) fn unlock_by_file(table: &KeyTable) {
    let path = server::data_directory().join("pg_tde.unlock");
    if table.lock() != Lock::Locked || !path.exists() {
        return;
    }
    if let Err(error) = std::fs::remove_file(&path) {
        report::not_unlocked(&error);
        return;
    }
    if let Err(error) = give_back(table) {
        report::not_unlocked(&error);
    }
}

/// Locks from the launcher, which is in no transaction.
pub(crate) fn lock_in_background() {
    if let Err(error) = background::transaction(|| lock(Wait::Moment)) {
        report::not_locked(&error);
    }
}

/// Whether the server is locked, or being locked.
pub(crate) fn is_on() -> bool {
    tablespace::key_table().is_some_and(|table| table.lock() != Lock::Open)
}

/// Refuses what needs pages of a tablespace that has a key, or waits in redo.
///
/// # Errors
/// [`KeyError::Locked`]
pub(crate) fn refuse(table: &KeyTable, tablespace: u32) -> Result<(), KeyError> {
    if table.lock() == Lock::Open || table.state(tablespace).is_none() || server::in_critical_section() {
        return Ok(());
    }
    if server::in_redo() {
        wait_in_redo(table);
        return Ok(());
    }
    Err(KeyError::Locked)
}

/// Redo goes on when the keys are back.
pub(crate) fn wait_in_redo(table: &KeyTable) {
    if table.lock() == Lock::Locked {
        report::redo_waits_for_unlock();
    }
    while table.lock() == Lock::Locked {
        server::wait_in_redo(500);
    }
}
