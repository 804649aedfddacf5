//! Records travelling to other nodes.

use std::fs;
use std::ops::ControlFlow;

use super::support::*;
use crate::*;

#[test]
fn a_standby_without_a_keyring_gets_the_primarys() {
    let (primary, standby) = (scratch(), scratch());
    let ring = standby.path().join("ring");
    let master = MemoryMaster::new();
    let keyring = keyring_with(primary.path(), 3, &master);
    for line in 1..=3 {
        keyring.set_state(LineNumber(line), state(line * 10, TablespaceState::Encrypted)).unwrap();
    }
    // Redo has no HSM.
    let exports: Vec<_> = (1..=3).map(|line| keyring.export(LineNumber(line)).unwrap()).collect();
    for (export, first) in [(&exports[2], true), (&exports[0], false), (&exports[1], false)] {
        let imported = Keyring::import(&ring, export).unwrap();
        assert_eq!((imported.changed, imported.adopted), (true, first));
        let again = Keyring::import(&ring, export).unwrap();
        assert_eq!((again.changed, again.adopted), (false, false), "idempotent");
    }
    let there = open(&ring, &master).unwrap();
    assert_eq!(there.scopes().unwrap(), keyring.scopes().unwrap());
    there.require_owner(CLUSTER).unwrap();
    for line in (1..=3).map(LineNumber) {
        let (here, there) =
            (keyring.dek(line, KeyVersion(1), &master), there.dek(line, KeyVersion(1), &master));
        assert!(here.unwrap().ct_eq(&there.unwrap()));
    }
    assert!(there.verify(&master).problems.is_empty());
}

#[test]
fn gaps_while_replaying_are_seen_but_do_not_stop_recovery() {
    let (primary, standby) = (scratch(), scratch());
    let master = MemoryMaster::new();
    let keyring = keyring_with(primary.path(), 4, &master);
    for line in 1..=3 {
        keyring.set_state(LineNumber(line), state(10, TablespaceState::Encrypted)).unwrap();
    }
    Keyring::import(standby.path(), &keyring.export(LineNumber(3)).unwrap()).unwrap();
    // Line 4 was never put to use, so it never travels and is never missed.
    let there = open(standby.path(), &master).unwrap();
    let survey = there.survey().unwrap();
    assert_eq!((survey.scopes.len(), survey.missing), (1, vec![LineNumber(1), LineNumber(2)]));
    assert!(there.find_pg_tablespace_in_recovery(16386).unwrap().is_some());
    assert!(matches!(there.scopes(), Err(KeyringError::LineMissing { .. })));
    for line in 1..=2 {
        Keyring::import(standby.path(), &keyring.export(LineNumber(line)).unwrap()).unwrap();
    }
    assert_eq!(there.scopes().unwrap().len(), 3);
    there.check_sum().unwrap();
}

#[test]
fn the_newer_version_wins_in_any_order() {
    let (primary, standby) = (scratch(), scratch());
    let mut master = MemoryMaster::new();
    let keyring = keyring_with(primary.path(), 1, &master);
    let line = LineNumber(1);
    let mut exports = vec![keyring.export(line).unwrap()];
    for position in [10, 20, 30] {
        let to = if position == 20 { TablespaceState::Rotating } else { TablespaceState::Encrypted };
        keyring.set_state(line, state(position, to)).unwrap();
        exports.push(keyring.export(line).unwrap());
    }
    master.generate_version().unwrap();
    keyring.rewrap_all(&master, |_| ControlFlow::Continue(())).unwrap();
    exports.push(keyring.export(line).unwrap());
    for order in [[4, 3, 2, 1, 0], [0, 1, 2, 3, 4], [2, 4, 0, 3, 1], [3, 0, 4, 4, 3]] {
        for index in order {
            Keyring::import(standby.path(), &exports[index]).unwrap();
        }
        let there = open(standby.path(), &master).unwrap();
        assert_eq!(there.scopes().unwrap(), keyring.scopes().unwrap(), "{order:?}");
        assert_eq!(there.info().unwrap(), keyring.info().unwrap(), "{order:?}");
        assert!(there.verify(&master).problems.is_empty(), "{order:?}");
        fs::remove_dir_all(standby.path().join("lines")).unwrap();
        fs::remove_file(standby.path().join("keyring.tde")).unwrap();
    }
}

#[test]
fn another_keyring_is_adopted_only_while_there_are_no_lines() {
    let (primary, empty, used) = (scratch(), scratch(), scratch());
    let master = MemoryMaster::new();
    let keyring = keyring_with(primary.path(), 1, &master);
    let export = keyring.export(LineNumber(1)).unwrap();
    keyring_with(empty.path(), 0, &master);
    assert!(Keyring::import(empty.path(), &export).unwrap().adopted);
    assert_eq!(open(empty.path(), &master).unwrap().keyring(), keyring.keyring());

    let own = keyring_with(used.path(), 1, &master);
    let before = own.scopes().unwrap();
    let refused = Keyring::import(used.path(), &export);
    assert!(matches!(refused, Err(KeyringError::ForeignKeyring { .. })), "{refused:?}");
    assert_eq!(own.scopes().unwrap(), before);
}

#[test]
fn two_servers_that_changed_the_same_line_are_told_apart() {
    let (one, two) = (scratch(), scratch());
    let master = MemoryMaster::new();
    let first = keyring_with(one.path(), 1, &master);
    Keyring::import(two.path(), &first.export(LineNumber(1)).unwrap()).unwrap();
    let second = open(two.path(), &master).unwrap();
    first.set_state(LineNumber(1), state(10, TablespaceState::Encrypted)).unwrap();
    second.set_state(LineNumber(1), state(10, TablespaceState::Encrypting)).unwrap();
    let refused = Keyring::import(two.path(), &first.export(LineNumber(1)).unwrap());
    assert!(matches!(refused, Err(KeyringError::Conflict { record_version: 2, .. })), "{refused:?}");
}

/// Where `import` would let the record with more changes win.
#[test]
fn keys_that_two_servers_made_for_the_same_line_are_told_apart() {
    let (one, two) = (scratch(), scratch());
    let master = MemoryMaster::new();
    let line = LineNumber(1);
    let first = keyring_with(one.path(), 1, &master);
    let old = first.export(line).unwrap();
    Keyring::import(two.path(), &old).unwrap();
    let second = open(two.path(), &master).unwrap();
    assert_eq!(second.diverges_from(&old).unwrap(), None);
    first.add_version(line, &master).unwrap();
    let rotated = first.export(line).unwrap();
    assert_eq!(second.diverges_from(&rotated).unwrap(), None, "one of them went on");
    assert_eq!(first.diverges_from(&old).unwrap(), None, "replayed again");
    second.add_version(line, &master).unwrap();
    assert_eq!(second.diverges_from(&rotated).unwrap(), Some(line), "as many changes");
    second.add_version(line, &master).unwrap();
    assert_eq!(second.diverges_from(&rotated).unwrap(), Some(line), "more here");
    assert_eq!(first.diverges_from(&second.export(line).unwrap()).unwrap(), Some(line), "more there");
    assert_eq!(second.diverges_from(&old).unwrap(), None);
}

#[test]
fn every_flipped_bit_and_length_of_an_export_is_refused() {
    let (primary, standby) = (scratch(), scratch());
    let ring = standby.path().join("ring");
    let master = MemoryMaster::new();
    let export = keyring_with(primary.path(), 1, &master).export(LineNumber(1)).unwrap();
    for bit in 0..export.len() * 8 {
        let mut bad = export.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(Keyring::import(&ring, &bad), Err(KeyringError::BadTransfer { .. })), "bit {bit}");
    }
    for len in 0..export.len() {
        let cut = Keyring::import(&ring, &export[..len]);
        assert!(matches!(cut, Err(KeyringError::BadTransfer { .. })), "length {len}");
    }
    assert!(!ring.exists(), "nothing was made of it");
}
