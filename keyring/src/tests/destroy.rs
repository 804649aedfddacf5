//! Keys that are destroyed, here and on a standby that may still recover with them.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use super::crash::run_child;
use super::support::*;
use crate::*;

const LINE: LineNumber = LineNumber(1);
const ONE: KeyVersion = KeyVersion(1);
const TWO: KeyVersion = KeyVersion(2);

/// A line with two versions on a primary and its standby, and the export that destroys the first.
fn rotated(
    primary: &std::path::Path,
    standby: &std::path::Path,
    master: &MemoryMaster,
) -> (Unlocked, Dek, Vec<u8>) {
    let keyring = keyring_with(primary, 1, master);
    keyring.set_state(LINE, state(10, TablespaceState::Encrypted)).unwrap();
    keyring.add_version(LINE, master).unwrap();
    keyring.plan_destruction(LINE, ONE, 0).unwrap();
    let first = keyring.dek(LINE, ONE, master).unwrap();
    Keyring::import(standby, &keyring.export(LINE).unwrap()).unwrap();
    keyring.destroy(LINE, ONE).unwrap();
    let export = keyring.export(LINE).unwrap();
    (keyring, first, export)
}

fn destroyed(result: Result<Dek>) -> bool {
    matches!(result, Err(KeyringError::KeyDestroyed { source: None, .. }))
}

#[test]
fn a_standby_keeps_a_destroyed_key_as_long_as_it_may_recover_with_it() {
    let (primary, standby) = (scratch(), scratch());
    let mut master = MemoryMaster::new();
    let (keyring, first, export) = rotated(primary.path(), standby.path(), &master);
    assert!(destroyed(keyring.dek(LINE, ONE, &master)));
    Keyring::import_and_retain(standby.path(), &export).unwrap();
    // Replayed again, there is nothing to retain any more, and nothing is lost.
    assert!(!Keyring::import_and_retain(standby.path(), &export).unwrap().changed);
    let there = open(standby.path(), &master).unwrap();
    assert_eq!(there.scopes().unwrap(), keyring.scopes().unwrap());
    assert!(there.dek(LINE, ONE, &master).unwrap().ct_eq(&first));
    // Another version, destroyed as well before the first was let go.
    keyring.add_version(LINE, &master).unwrap();
    let second = keyring.dek(LINE, TWO, &master).unwrap();
    Keyring::import_and_retain(standby.path(), &keyring.export(LINE).unwrap()).unwrap();
    assert_eq!(there.retained().unwrap().len(), 1, "a new version drops no key");
    keyring.plan_destruction(LINE, TWO, 0).unwrap();
    keyring.destroy(LINE, TWO).unwrap();
    Keyring::import_and_retain(standby.path(), &keyring.export(LINE).unwrap()).unwrap();
    assert!(there.dek(LINE, ONE, &master).unwrap().ct_eq(&first));
    assert!(there.dek(LINE, TWO, &master).unwrap().ct_eq(&second));
    master.generate_version().unwrap();
    there.rewrap_all(&master, |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert!(there.verify(&master).problems.is_empty());
    let retained = there.retained().unwrap();
    assert_eq!(
        retained.iter().map(|of| there.retained_versions(*of).unwrap()).collect::<Vec<_>>(),
        [vec![ONE, TWO], vec![TWO, KeyVersion(3)]]
    );
    for of in retained {
        there.forget_retained(of).unwrap();
    }
    assert!(there.retained().unwrap().is_empty());
    assert!(destroyed(there.dek(LINE, ONE, &master)) && destroyed(there.dek(LINE, TWO, &master)));
    assert!(there.dek(LINE, KeyVersion(3), &master).is_ok());
}

#[test]
fn without_need_nothing_is_retained() {
    let (primary, standby) = (scratch(), scratch());
    let master = MemoryMaster::new();
    let (_, _, export) = rotated(primary.path(), standby.path(), &master);
    Keyring::import(standby.path(), &export).unwrap();
    let there = open(standby.path(), &master).unwrap();
    assert!(there.retained().unwrap().is_empty() && destroyed(there.dek(LINE, ONE, &master)));
}

#[test]
fn killed_at_each_step_of_retaining() {
    let steps = [
        "retained-written",
        "retained-renamed",
        "record-written",
        "root-written",
        "record-renamed",
        "root-renamed",
    ];
    for kill_at in steps {
        let (primary, standby, files) = (scratch(), scratch(), scratch());
        let master = MemoryMaster::new();
        let (_, first, export) = rotated(primary.path(), standby.path(), &master);
        let file = files.path().join("export");
        fs::write(&file, &export).unwrap();
        let action = format!("retain {}", file.display());
        assert_eq!(run_child(standby.path(), &action, kill_at).signal(), Some(9), "{kill_at}");
        let there = open(standby.path(), &master).unwrap();
        assert!(there.dek(LINE, ONE, &master).unwrap().ct_eq(&first), "{kill_at}");
        // Recovery comes by again.
        Keyring::import_and_retain(standby.path(), &export).unwrap();
        assert!(there.dek(LINE, ONE, &master).unwrap().ct_eq(&first), "{kill_at}");
        assert_eq!(there.retained().unwrap().len(), 1, "{kill_at}");
        assert_eq!(fs::read_dir(standby.path().join("tmp")).unwrap().count(), 0, "{kill_at}");
        assert!(there.verify(&master).problems.is_empty(), "{kill_at}");
    }
}

#[test]
fn all_keys_of_a_dropped_tablespace_are_destroyed_together() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 2, &master);
    keyring.set_state(LINE, state(10, TablespaceState::Encrypted)).unwrap();
    keyring.add_version(LINE, &master).unwrap();
    let used = keyring.plan_shredding(LINE, 0);
    assert!(matches!(used, Err(KeyringError::StillUsed { .. })), "{used:?}");
    let draft = keyring.plan_shredding(LineNumber(2), 0);
    assert!(matches!(draft, Err(KeyringError::StillUsed { .. })), "{draft:?}");
    keyring.retire(LINE, WalPosition(20)).unwrap();
    assert!(matches!(keyring.shred(LINE), Err(KeyringError::BadTransition { .. })), "not planned");
    keyring.plan_shredding(LINE, u64::MAX).unwrap();
    assert!(matches!(keyring.shred(LINE), Err(KeyringError::TooEarly { .. })));
    keyring.cancel_shredding(LINE).unwrap();
    assert!(matches!(keyring.cancel_shredding(LINE), Err(KeyringError::BadTransition { .. })));
    keyring.plan_shredding(LINE, 0).unwrap();
    let scope = keyring.shred(LINE).unwrap();
    assert!(scope.versions.iter().all(|entry| matches!(entry.state, DekState::Destroyed { .. })));
    assert!(destroyed(keyring.dek(LINE, ONE, &master)) && destroyed(keyring.dek(LINE, TWO, &master)));
    assert!(matches!(keyring.plan_shredding(LINE, 0), Err(KeyringError::BadTransition { .. })));
    assert!(open(dir.path(), &master).unwrap().verify(&master).problems.is_empty());
}
