//! The promises of the API, one test each.

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;

use super::support::*;
use crate::*;

#[test]
fn a_key_made_is_the_key_read_after_reopening() {
    let dir = scratch();
    let dir = dir.path().join("ring");
    let master = MemoryMaster::new();
    let keyring = Keyring::create(&dir, CLUSTER, &master).unwrap();
    let (scope, dek) = keyring.add_scope(tablespace(16384), &master).unwrap();
    assert_eq!((scope.line, scope.record_version), (LineNumber(1), 1));
    let again = open(&dir, &master).unwrap();
    assert_eq!(again.scopes().unwrap(), std::slice::from_ref(&scope));
    assert_eq!(again.find_pg_tablespace(16384).unwrap(), Some(scope));
    assert!(again.find_pg_tablespace(16385).unwrap().is_none());
    assert!(again.dek(LineNumber(1), KeyVersion(1), &master).unwrap().ct_eq(&dek));
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn a_second_keyring_in_the_same_place_is_refused() {
    let dir = scratch();
    let master = MemoryMaster::new();
    keyring_with(dir.path(), 1, &master);
    let refused = Keyring::create(dir.path(), CLUSTER, &master);
    assert!(matches!(refused, Err(KeyringError::AlreadyExists { .. })), "{refused:?}");
    fs::remove_file(dir.path().join("keyring.tde")).unwrap();
    let refused = Keyring::create(dir.path(), CLUSTER, &master);
    assert!(matches!(refused, Err(KeyringError::NotAKeyring { .. })), "{refused:?}");
}

#[test]
fn what_is_no_keyring_of_ours_is_refused_by_name() {
    let dir = scratch();
    let missing = Keyring::open(&dir.path().join("nowhere"));
    assert!(matches!(missing, Err(KeyringError::NotAKeyring { .. })), "{missing:?}");
    let empty = Keyring::open(dir.path());
    assert!(matches!(empty, Err(KeyringError::NotAKeyring { .. })), "{empty:?}");
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 0, &master);
    let other = Owner::PgCluster { system_identifier: 2 };
    assert!(matches!(keyring.require_owner(other), Err(KeyringError::ForeignOwner { .. })));
    assert!(keyring.require_owner(CLUSTER).is_ok());
    assert!(matches!(
        Keyring::open(dir.path()).unwrap().require_owner(Owner::Files),
        Err(KeyringError::ForeignOwner { .. })
    ));
    for mode in [0o755, 0o701, 0o704, 0o770] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        let loose = Keyring::open(dir.path());
        assert!(matches!(loose, Err(KeyringError::LoosePermissions { .. })), "{mode:o}: {loose:?}");
    }
    // initdb -g: the group of a base backup may read.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
    assert!(Keyring::open(dir.path()).is_ok());
}

#[test]
fn missing_wrong_destroyed_and_away_are_four_errors() {
    let dir = scratch();
    let mut master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 2, &master);
    let (line, one) = (LineNumber(1), KeyVersion(1));
    let missing = keyring.dek(line, KeyVersion(2), &master);
    assert!(matches!(missing, Err(KeyringError::KeyMissing { source: None, .. })));
    assert!(matches!(keyring.dek(LineNumber(9), one, &master), Err(KeyringError::NoSuchLine { .. })));
    assert!(matches!(keyring.dek(LineNumber(0), one, &master), Err(KeyringError::NoSuchLine { .. })));

    master.away.set(true);
    assert!(matches!(keyring.dek(line, one, &master), Err(KeyringError::HsmAway { .. })));
    master.away.set(false);
    master.destroyed.push(1);
    assert!(matches!(
        keyring.dek(line, one, &master),
        Err(KeyringError::KeyDestroyed { source: Some(_), .. })
    ));

    let other = MemoryMaster::from_seed(0x77);
    let wrong = keyring.dek(line, one, &other);
    assert!(matches!(wrong, Err(KeyringError::KeyWrong { source: Some(_), .. })));
    let refused = Keyring::open(dir.path()).unwrap().unlock(&other);
    assert!(matches!(refused, Err(KeyringError::OtherMasterKey { .. })), "{refused:?}");

    keyring.set_state(line, state(10, TablespaceState::Encrypted)).unwrap();
    fs::remove_file(keyring.path_of(line)).unwrap();
    assert!(matches!(keyring.scope(line), Err(KeyringError::LineMissing { .. })));
    assert!(matches!(keyring.scopes(), Err(KeyringError::LineMissing { .. })), "never left out");
    assert!(matches!(keyring.find_pg_tablespace(16385), Err(KeyringError::LineMissing { .. })));
    let survey = keyring.survey().unwrap();
    assert_eq!((survey.scopes.len(), survey.missing), (1, vec![line]));
}

#[test]
fn an_older_keyring_is_refused_until_the_restore_is_accepted() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 1, &master);
    let old = fs::read(dir.path().join("keyring.tde")).unwrap();
    keyring.add_scope(tablespace(20000), &master).unwrap();
    fs::write(dir.path().join("keyring.tde"), old).unwrap();
    let refused = open(dir.path(), &master);
    assert!(
        matches!(refused, Err(KeyringError::OldGeneration { found: 2, remembered: 3, .. })),
        "{refused:?}"
    );
    let accepted = Keyring::open(dir.path()).unwrap().accept_restore(&master).unwrap();
    assert_eq!(accepted, AcceptedRestore { generation: 2, remembered: Some(3) });
    let keyring = open(dir.path(), &master).unwrap();
    // The record that the old root does not count keeps its key: new lines go beyond it.
    let (scope, _) = keyring.add_scope(tablespace(20001), &master).unwrap();
    assert_eq!(scope.line, LineNumber(3));
    assert_eq!(keyring.scopes().unwrap().len(), 3);
}

#[test]
fn a_clone_elsewhere_has_generations_of_its_own() {
    let dir = scratch();
    let (here, there) = (dir.path().join("a"), dir.path().join("b"));
    let master = MemoryMaster::new();
    let keyring = keyring_with(&here, 1, &master);
    let copied = std::process::Command::new("cp").arg("-a").args([&here, &there]).status().unwrap();
    assert!(copied.success());
    keyring.add_scope(tablespace(20000), &master).unwrap();
    assert!(open(&there, &master).is_ok());
    let id = InstanceId::of(&there).unwrap();
    assert_eq!(master.generations_of_instance(id).unwrap(), [(keyring.keyring(), 2)]);
    fs::remove_dir_all(&there).unwrap();
    assert_eq!(InstanceId::of(&there).unwrap(), id, "a directory that vanished keeps its instance");
    // Looking at a copy leaves no trace.
    let aside = dir.path().join("c");
    assert!(std::process::Command::new("cp").arg("-a").args([&here, &aside]).status().unwrap().success());
    Keyring::open(&aside).unwrap().inspect(&master).unwrap();
    assert!(master.generations_of_instance(InstanceId::of(&aside).unwrap()).unwrap().is_empty());
}

#[test]
fn state_is_a_history_by_wal_position() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 1, &master);
    let line = LineNumber(1);
    assert_eq!(keyring.scope(line).unwrap().state(), TablespaceState::Plain);
    keyring.set_state(line, state(100, TablespaceState::Encrypted)).unwrap();
    keyring.set_state(line, state(200, TablespaceState::Rotating)).unwrap();
    let scope = keyring.set_state(line, state(300, TablespaceState::Encrypted)).unwrap();
    let version = scope.record_version;
    for (position, expected) in [
        (0, TablespaceState::Plain),
        (99, TablespaceState::Plain),
        (100, TablespaceState::Encrypted),
        (250, TablespaceState::Rotating),
        (u64::MAX, TablespaceState::Encrypted),
    ] {
        assert_eq!(scope.state_at(WalPosition(position)), expected, "{position}");
    }
    let same = keyring.set_state(line, state(400, TablespaceState::Encrypted)).unwrap();
    assert_eq!(same.record_version, version, "nothing to write");
    // Back in time: 200 and 300 belong to an abandoned timeline.
    let scope = keyring.set_state(line, state(150, TablespaceState::Decrypting)).unwrap();
    assert_eq!(scope.state_at(WalPosition(350)), TablespaceState::Decrypting);
    assert_eq!(scope.history.len(), 2);
}

#[test]
fn a_retired_tablespace_frees_its_oid_and_keeps_its_keys() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = Keyring::create(dir.path(), CLUSTER, &master).unwrap();
    let new = NewScope { initial: Some(state(10, TablespaceState::Encrypted)), ..tablespace(16384) };
    let (first, dek) = keyring.add_scope(new.clone(), &master).unwrap();
    let twice = keyring.add_scope(new.clone(), &master);
    assert!(matches!(twice, Err(KeyringError::ScopeExists { .. })));
    keyring.retire(first.line, WalPosition(20)).unwrap();
    assert!(keyring.find_pg_tablespace(16384).unwrap().is_none());
    let (second, _) = keyring.add_scope(new, &master).unwrap();
    assert_eq!(keyring.find_pg_tablespace(16384).unwrap().unwrap().line, second.line);
    assert!(keyring.dek(first.line, KeyVersion(1), &master).unwrap().ct_eq(&dek));
}

#[test]
fn a_line_that_was_never_put_to_use_is_not_missed() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 3, &master);
    keyring.set_state(LineNumber(2), state(10, TablespaceState::Encrypted)).unwrap();
    assert!(keyring.scope(LineNumber(1)).unwrap().is_draft());
    fs::remove_file(keyring.path_of(LineNumber(1))).unwrap();
    assert_eq!(keyring.scopes().unwrap().len(), 2);
    keyring.check_sum().unwrap();
    assert!(keyring.verify(&master).problems.is_empty());
    // A line that was put to use is missed, and stays so when it is plain again.
    keyring.set_state(LineNumber(2), state(20, TablespaceState::Plain)).unwrap();
    assert!(!keyring.scope(LineNumber(2)).unwrap().is_draft());
    fs::remove_file(keyring.path_of(LineNumber(2))).unwrap();
    assert!(matches!(keyring.scopes(), Err(KeyringError::LineMissing { line: LineNumber(2), .. })));
    // So is one of a single file, which is in use at once.
    let (files, ring) = (scratch(), Owner::Files);
    let keyring = Keyring::create(files.path(), ring, &master).unwrap();
    let (scope, _) = keyring.add_scope(sqlite(1), &master).unwrap();
    fs::remove_file(keyring.path_of(scope.line)).unwrap();
    assert!(matches!(keyring.scopes(), Err(KeyringError::LineMissing { .. })));
}

#[test]
fn metadata_changes_need_no_hsm() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 1, &master);
    let seal_key = secret_mem::SecretBytes::fill_with::<()>(|out| {
        out.copy_from_slice(keyring.seal_key().expose());
        Ok(())
    });
    drop(keyring);
    master.away.set(true);
    let keyring = Keyring::open(dir.path()).unwrap().unlock_with_seal_key(seal_key.unwrap()).unwrap();
    keyring.retire(LineNumber(1), WalPosition(5)).unwrap();
    assert_eq!(keyring.scope(LineNumber(1)).unwrap().state(), TablespaceState::Retired);
    master.away.set(false);
    let keyring = open(dir.path(), &master).unwrap();
    let generation = keyring.info().unwrap().generation;
    assert_eq!(master.generation(&keyring.generation_id().unwrap()).unwrap(), Some(generation));
    let wrong = Keyring::open(dir.path()).unwrap().unlock_with_seal_key(secret_mem::SecretBytes::zeroed());
    assert!(matches!(wrong, Err(KeyringError::SealMismatch { .. })), "{wrong:?}");
}

#[test]
fn key_versions_go_through_their_states() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 1, &master);
    let (line, one, two) = (LineNumber(1), KeyVersion(1), KeyVersion(2));
    let (scope, _) = keyring.add_version(line, &master).unwrap();
    assert_eq!(scope.active().unwrap().version, two);
    assert_eq!(scope.version(one).unwrap().state, DekState::DecryptOnly);
    let active = keyring.plan_destruction(line, two, 0);
    assert!(matches!(active, Err(KeyringError::BadTransition { .. })), "{active:?}");
    let unplanned = keyring.destroy(line, one);
    assert!(matches!(unplanned, Err(KeyringError::BadTransition { .. })), "{unplanned:?}");
    keyring.plan_destruction(line, one, u64::MAX).unwrap();
    let early = keyring.destroy(line, one);
    assert!(matches!(early, Err(KeyringError::TooEarly { .. })), "{early:?}");
    assert!(keyring.dek(line, one, &master).is_ok(), "still readable while it waits");
    keyring.cancel_destruction(line, one).unwrap();
    keyring.plan_destruction(line, one, 0).unwrap();
    keyring.destroy(line, one).unwrap();
    let gone = keyring.dek(line, one, &master);
    assert!(matches!(gone, Err(KeyringError::KeyDestroyed { source: None, .. })));
    let twice = keyring.cancel_destruction(line, one);
    assert!(matches!(twice, Err(KeyringError::BadTransition { .. })), "{twice:?}");
    assert!(keyring.dek(line, two, &master).is_ok());
    assert!(open(dir.path(), &master).unwrap().verify(&master).problems.is_empty());
}

#[test]
fn rewrapping_moves_every_key_to_the_new_master_version() {
    let dir = scratch();
    let mut master = MemoryMaster::new();
    let keyring = Keyring::create(dir.path(), Owner::Files, &master).unwrap();
    let made: Vec<_> = (0..70).map(|id| keyring.add_scope(sqlite(id), &master).unwrap()).collect();
    let before = keyring.info().unwrap();
    assert_eq!(master.generate_version().unwrap(), 2);
    // Stopped at once, and taken up again.
    let stopped = keyring.rewrap_all(&master, |_| ControlFlow::Break(())).unwrap();
    assert!(!stopped.complete);
    let mut seen = Vec::new();
    let done = keyring
        .rewrap_all(&master, |progress| {
            seen.push((progress.done, progress.total));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((done.from, done.to, done.complete), (Some(1), 2, true));
    assert_eq!((stopped.rewrapped + done.rewrapped, done.rewrapped + done.already), (70, 70));
    assert_eq!(seen.last(), Some(&(70, 70)));
    let after = keyring.info().unwrap();
    assert_eq!((before.generation, after.master_key_version), (after.generation, 2));
    // Nothing needs version 1 any more.
    master.destroyed.push(1);
    let keyring = open(dir.path(), &master).unwrap();
    for (scope, dek) in made {
        let now = keyring.scope(scope.line).unwrap();
        assert_eq!((now.record_version, now.oldest_master_version()), (1, Some(2)));
        assert!(keyring.dek(scope.line, KeyVersion(1), &master).unwrap().ct_eq(&dek));
    }
    assert!(keyring.verify(&master).problems.is_empty());
    let idle = keyring.rewrap_all(&master, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((idle.rewrapped, idle.already, idle.complete), (0, 70, true));
}

#[test]
fn the_hot_cache_evicts_the_least_recently_used() {
    let ring = KeyringId(uuid::Uuid::nil());
    let mut hot = HotDeks::new(2.try_into().unwrap());
    let key = || secret_mem::SecretBytes::random().unwrap();
    for line in 1..=2 {
        hot.insert(ring, LineNumber(line), KeyVersion(1), key());
    }
    assert!(hot.get(ring, LineNumber(1), KeyVersion(1)).is_some());
    hot.get_or_fetch::<()>(ring, LineNumber(3), KeyVersion(1), || Ok(key())).unwrap();
    assert!(hot.get(ring, LineNumber(2), KeyVersion(1)).is_none(), "evicted");
    assert_eq!(hot.len(), 2);
    assert!(hot.get_or_fetch(ring, LineNumber(4), KeyVersion(1), || Err("away")).is_err());
    assert!(hot.get_or_fetch::<()>(ring, LineNumber(1), KeyVersion(1), || panic!("held")).is_ok());
    hot.forget(ring, LineNumber(1), KeyVersion(1));
    assert_eq!(hot.len(), 1);
    hot.clear();
    assert!(hot.is_empty());
}
