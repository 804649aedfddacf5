//! Logging in.
//!
//! # Order, and what a crash leaves
//! Under the user's lock:
//! 1. the failure counter is written with one more login that did not finish: after a crash it stays, until the next right PIN
//! 2. the PIN is verified
//! 3. wrong: the counter says so, and the failure is logged. Right: the counter is cleared, then the login is logged and the root written.
//!
//! Locks are always taken in the order user, store.

use std::time::Duration;

use crate::audit::{self, AuditError, Entry, Event, Outcome, Snapshot};
use crate::error::{HsmError, Result};
use crate::format::records;
use crate::hsm::{boot_id, write_lockout};
use crate::keys::StoreKeys;
use crate::object::{self, Kind, Object};
use crate::pin::Pin;
use crate::policy;
use crate::session::Session;
use crate::store::StoreLock;
use crate::time::Timestamp;
use crate::transaction::{Core, LOCK_WAIT, Transaction, lock_name};
use crate::user::{self, LockState, Role};

/// How long a login waits for other logins of the same user. Each takes the time of its PIN's derivation.
const USER_WAIT: Duration = Duration::from_secs(30);

/// Tells whether the second factor that a login comes with is the person's.
pub(crate) type SecondFactor<'a> = &'a dyn Fn(&policy::Person) -> bool;

pub(crate) fn login(core: &Core, name: &str, pin: &Pin, factor: Option<SecondFactor<'_>>) -> Result<Session> {
    let (keys, user) = authenticate(core, name, pin)?;
    let mut tx = Transaction::begin(core, &keys, LOCK_WAIT)?;
    check_known(core, tx.root(), &user)?;
    let policy = policy::read(core, &keys, tx.root())?.value;
    if let Some(person) = policy.people.iter().find(|p| p.user == name && p.second_factor)
        && !factor.is_some_and(|good| good(person))
    {
        let event = Event::Refused { action: "log in without the second factor".into() };
        tx.log(&[Entry { user: name.into(), event, outcome: Outcome::Refused }])?;
        tx.commit()?;
        return Err(match factor {
            None => HsmError::SecondFactorNeeded { user: name.into() },
            Some(_) => HsmError::BadSignature { user: name.into(), of: "the challenge" },
        });
    }
    let mut entries = Vec::new();
    let boot = boot_id();
    if boot != [0; 16] && boot != tx.root().boot_id {
        let root = tx.root_mut();
        root.boot_id = boot;
        root.boots = root.boots.saturating_add(1);
        entries.push(Entry::ok("", Event::Boot { boots: root.boots }));
    }
    entries.push(Entry::ok(name, Event::Login));
    tx.log(&entries)?;
    tx.commit()?;
    Ok(Session::new(core.clone(), keys, user.value.public))
}

/// Logs an officer in for one purpose: a damaged log, in which no login can be written, gets a new beginning.
///
/// The new segment is written before the root names it; after a crash in between it lies unused.
pub(crate) fn restart_audit(core: &Core, name: &str, pin: &Pin) -> Result<()> {
    let (keys, user) = authenticate(core, name, pin)?;
    let role = user.value.public.role;
    if role != Role::CryptoOfficer {
        let action = "restart the audit log";
        return Err(HsmError::NotAllowed { user: name.into(), role, action });
    }
    let mut tx = Transaction::begin(core, &keys, LOCK_WAIT)?;
    check_known(core, tx.root(), &user)?;
    let (store, anchor) = (core.store(), tx.root().anchor);
    let checked = Snapshot::take(store).and_then(|until| {
        audit::verify(store, tx.root().log_start, Some((&keys.audit, anchor)), until, &mut |_| {})
    });
    let damage = match checked {
        // The next login drops what a crash left.
        Ok(_) | Err(AuditError::Torn { .. }) => return Err(AuditError::Whole.into()),
        Err(e @ AuditError::Store(_)) => return Err(e.into()),
        Err(damage) => damage.to_string(),
    };
    let start = audit::restart(store, &anchor)?;
    let entry = Entry::ok(name, Event::LogRestarted { damage });
    let root = tx.root_mut();
    root.anchor = audit::begin(store, &keys.audit, &start, root.boots, &[entry])?;
    root.log_start = start;
    tx.commit()
}

/// Whether a PIN is the user's; a wrong one counts as in a login.
#[cfg(feature = "objects")]
pub(crate) fn check_pin(core: &Core, name: &str, pin: &Pin) -> Result<()> {
    authenticate(core, name, pin).map(drop)
}

/// Steps 1 and 2, and of step 3 the counter.
fn authenticate(core: &Core, name: &str, pin: &Pin) -> Result<(StoreKeys, Object<records::User>)> {
    // Before the lock, so that an unknown name leaves no lock file.
    read_user(core, name)?;
    let _lock = lock_user(core, name)?;
    let user = read_user(core, name)?;
    let role = user.value.public.role;
    let attempt = count_attempt(core, name, role)?;

    let record = user::record_name(name)?;
    let damaged = |d| object::damaged(core.store(), &record, d);
    let opened = user::open_store_key(&user.value, pin, core.hsm_id(), user.revision).map_err(damaged)?;
    let Some(store_key) = opened else { return Err(wrong_pin(core, name, role, &attempt)?) };
    let cleared = attempt.next(records::Lockout::cleared());
    write_lockout(core, name, &cleared)?;
    Ok((StoreKeys::derive(store_key, *core.hsm_id()).map_err(damaged)?, user))
}

/// Checks a user who gave the right PIN against the root.
fn check_known(core: &Core, root: &records::Root, user: &Object<records::User>) -> Result<()> {
    let name = &user.value.public.name;
    match root.users.iter().find(|u| u.name == *name) {
        Some(entry) => core.check_revision(&user::record_name(name)?, user.revision, entry.revision),
        // A record the root does not know was put there from outside, or its creation was interrupted.
        None => Err(HsmError::UnknownUser { store: core.store().location(), user: name.clone() }),
    }
}

/// Step 1: refuses or counts.
fn count_attempt(core: &Core, name: &str, role: Role) -> Result<Object<records::Lockout>> {
    let old = read_lockout(core, name)?;
    let now = Timestamp::now();
    let failed = old.value.failed();
    match old.value.state(role, now) {
        LockState::Open => {}
        LockState::Until(until) => {
            // The clock was set back: from now on the wait counts by the new one.
            if let Some(rebased) = old.value.rebased(now) {
                write_lockout(core, name, &old.next(rebased))?;
            }
            return Err(HsmError::LockedUntil { user: name.into(), failed, until });
        }
        LockState::Hard => return Err(HsmError::LockedHard { user: name.into(), failed }),
    }
    let attempt = old.next(old.value.attempt(now));
    write_lockout(core, name, &attempt)?;
    Ok(attempt)
}

/// Step 3 for a wrong PIN: logs it and makes the error.
fn wrong_pin(core: &Core, name: &str, role: Role, attempt: &Object<records::Lockout>) -> Result<HsmError> {
    let attempt = attempt.next(attempt.value.verified());
    write_lockout(core, name, &attempt)?;
    let failed = attempt.value.failed();
    let failures = failed.failures;
    let entry = Entry { user: name.into(), event: Event::LoginFailed { failures }, outcome: Outcome::Failed };
    let store = core.store();
    let _lock = store.lock(&lock_name(), LOCK_WAIT)?;
    let tail = audit::tail_without_key(store)?;
    audit::append(store, None, &tail, tail.boots, &[entry])?;
    let (not_before, locked) = match attempt.value.state(role, Timestamp::now()) {
        LockState::Open => (None, false),
        LockState::Until(t) => (Some(t), false),
        LockState::Hard => (None, true),
    };
    Ok(HsmError::WrongPin { user: name.into(), failed, not_before, locked })
}

pub(crate) fn lock_user(core: &Core, name: &str) -> Result<StoreLock> {
    Ok(core.store().lock(&user::record_name(name)?, USER_WAIT)?)
}

/// A user's record.
///
/// # Errors
/// [`HsmError::UnknownUser`], also for names no user can have.
pub(crate) fn read_user(core: &Core, name: &str) -> Result<Object<records::User>> {
    let unknown = || HsmError::UnknownUser { store: core.store().location(), user: name.into() };
    user::check_name(name).map_err(|_| unknown())?;
    let object = user::record_name(name)?;
    let user: Object<records::User> =
        object::get_public(core.store(), Kind::User, &object)?.ok_or_else(unknown)?;
    if user.value.public.name != name {
        return Err(object::damaged(core.store(), &object, crate::error::Damage::Field("user name")));
    }
    Ok(user)
}

pub(crate) fn read_lockout(core: &Core, name: &str) -> Result<Object<records::Lockout>> {
    let object = user::lockout_name(name)?;
    object::get_public(core.store(), Kind::Lockout, &object)?
        .ok_or_else(|| object::missing(core.store(), &object))
}
