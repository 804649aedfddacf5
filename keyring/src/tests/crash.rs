//! Processes killed at each step of a write, then the keyring opened again.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

use super::support::*;
use crate::*;

/// Runs one action of `action` below in a child that dies at `kill_at`.
pub(super) fn run_child(dir: &Path, action: &str, kill_at: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::crash::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("KEYRING_KILL_AT", kill_at)
        .env("KEYRING_DIR", dir)
        .env("KEYRING_ACTION", action)
        .output()
        .unwrap()
        .status
}

#[test]
#[ignore = "the process that the tests here start and kill"]
fn child() {
    let dir = std::env::var_os("KEYRING_DIR").expect("started by a test");
    let dir = Path::new(&dir);
    let mut master = MemoryMaster::new();
    let action = std::env::var("KEYRING_ACTION").unwrap();
    if action == "create" {
        Keyring::create(dir, CLUSTER, &master).unwrap();
        return;
    }
    if let Some(file) = action.strip_prefix("retain ") {
        Keyring::import_and_retain(dir, &fs::read(file).unwrap()).unwrap();
        return;
    }
    if let Some(file) = action.strip_prefix("import ") {
        Keyring::import(dir, &fs::read(file).unwrap()).unwrap();
        return;
    }
    let keyring = open(dir, &master).unwrap();
    match action.as_str() {
        "add" => drop(keyring.add_scope(tablespace(30000), &master).unwrap()),
        "add-file" => drop(keyring.add_scope(sqlite(7), &master).unwrap()),
        "set" => drop(keyring.set_state(LineNumber(1), state(50, TablespaceState::Encrypted)).unwrap()),
        "rewrap" => {
            master.generate_version().unwrap();
            keyring.rewrap_all(&master, |_| std::ops::ControlFlow::Continue(())).unwrap();
        }
        other => panic!("no such action: {other}"),
    }
}

const STEPS: [&str; 4] = ["record-written", "root-written", "record-renamed", "root-renamed"];

fn tmp_files(dir: &Path) -> usize {
    fs::read_dir(dir.join("tmp")).unwrap().count()
}

#[test]
fn killed_at_each_step_of_adding_a_scope() {
    for (step, kill_at) in STEPS.iter().enumerate() {
        let dir = scratch();
        let master = MemoryMaster::new();
        let before = keyring_with(dir.path(), 2, &master);
        let known = before.scopes().unwrap();
        assert_eq!(run_child(dir.path(), "add", kill_at).signal(), Some(9), "{kill_at}");

        // A reader sees the old state or the new one, and everything known before.
        let keyring = open(dir.path(), &master).unwrap();
        let found = keyring.scopes().unwrap();
        assert_eq!(found[..2], known[..], "{kill_at}");
        assert_eq!(found.len(), if step < 2 { 2 } else { 3 }, "{kill_at}");
        keyring.check_sum().unwrap_or_else(|error| panic!("{kill_at}: {error}"));
        assert!(keyring.verify(&master).problems.is_empty(), "{kill_at}");

        // The next writer mends it.
        let (scope, _) = keyring.add_scope(tablespace(30001), &master).unwrap();
        assert_eq!(scope.line, LineNumber(if step < 2 { 3 } else { 4 }), "{kill_at}");
        assert_eq!(tmp_files(dir.path()), 0, "{kill_at}");
        assert_eq!(keyring.info().unwrap().lines, scope.line.0, "{kill_at}");
        let problems = keyring.verify(&master).problems;
        assert!(problems.is_empty(), "{kill_at}: {problems:?}");
    }
}

#[test]
fn killed_at_each_step_of_adding_a_file() {
    let steps = std::iter::once("hint-written").chain(STEPS);
    for (step, kill_at) in steps.enumerate() {
        let dir = scratch();
        let master = MemoryMaster::new();
        let keyring = Keyring::create(dir.path(), Owner::Files, &master).unwrap();
        keyring.add_scope(sqlite(1), &master).unwrap();
        assert_eq!(run_child(dir.path(), "add-file", kill_at).signal(), Some(9), "{kill_at}");
        // Found as soon as its record is in place, by its hint alone.
        let found = open(dir.path(), &master).unwrap().hinted_sqlite_file(&[7; 12]).unwrap();
        assert_eq!(found.is_some(), step >= 3, "{kill_at}");
        // The line goes to another file, or to this one after all.
        keyring.add_scope(sqlite(8), &master).unwrap();
        let again = keyring.add_scope(sqlite(7), &master);
        assert_eq!(again.is_ok(), found.is_none(), "{kill_at}");
        for id in [1, 7, 8] {
            let scope = keyring.find_sqlite_file(&[id; 12]).unwrap().expect("found");
            keyring.dek_of(&scope, KeyVersion(1), &master).unwrap();
        }
        assert_eq!(tmp_files(dir.path()), 0, "{kill_at}");
        let problems = keyring.verify(&master).problems;
        assert!(problems.is_empty(), "{kill_at}: {problems:?}");
    }
}

#[test]
fn killed_at_each_step_of_a_state_change() {
    for (step, kill_at) in STEPS.iter().enumerate() {
        let dir = scratch();
        let master = MemoryMaster::new();
        let keyring = keyring_with(dir.path(), 2, &master);
        assert_eq!(run_child(dir.path(), "set", kill_at).signal(), Some(9), "{kill_at}");
        let changed = keyring.scope(LineNumber(1)).unwrap().state() == TablespaceState::Encrypted;
        assert_eq!(changed, step >= 2, "{kill_at}");
        keyring.check_sum().unwrap_or_else(|error| panic!("{kill_at}: {error}"));
        // Crash upon crash: the other line next, at every step again.
        for again in STEPS {
            assert_eq!(run_child(dir.path(), "set", again).signal().or(Some(9)), Some(9));
            assert_eq!(run_child(dir.path(), "add", again).signal(), Some(9), "{kill_at} {again}");
            keyring.check_sum().unwrap_or_else(|error| panic!("{kill_at} {again}: {error}"));
        }
        keyring.retire(LineNumber(2), WalPosition(70)).unwrap();
        let problems = keyring.verify(&master).problems;
        assert!(problems.is_empty(), "{kill_at}: {problems:?}");
        assert_eq!(tmp_files(dir.path()), 0);
    }
}

#[test]
fn killed_while_a_keyring_is_made() {
    let dir = scratch();
    let ring = dir.path().join("ring");
    assert_eq!(run_child(&ring, "create", "root-alone-written").signal(), Some(9));
    let master = MemoryMaster::new();
    assert!(matches!(Keyring::open(&ring), Err(KeyringError::NotAKeyring { .. })));
    keyring_with(&ring, 1, &master);
    assert_eq!(tmp_files(&ring), 0);
    assert!(open(&ring, &master).unwrap().verify(&master).problems.is_empty());
}

#[test]
fn killed_while_rewrapping() {
    for kill_at in ["batch-written", "batch-renaming", "root-alone-written"] {
        let dir = scratch();
        let mut master = MemoryMaster::new();
        let keyring = keyring_with(dir.path(), 40, &master);
        let deks: Vec<_> =
            (1..=40).map(|line| keyring.dek(LineNumber(line), KeyVersion(1), &master).unwrap()).collect();
        assert_eq!(run_child(dir.path(), "rewrap", kill_at).signal(), Some(9), "{kill_at}");
        master.generate_version().unwrap();
        let keyring = open(dir.path(), &master).unwrap();
        assert!(keyring.verify(&master).problems.is_empty(), "{kill_at}");
        let done = keyring.rewrap_all(&master, |_| std::ops::ControlFlow::Continue(())).unwrap();
        assert!(done.complete);
        master.destroyed.push(1);
        for (line, dek) in (1..=40).zip(&deks) {
            assert!(keyring.dek(LineNumber(line), KeyVersion(1), &master).unwrap().ct_eq(dek), "{kill_at}");
        }
        assert_eq!(tmp_files(dir.path()), 0);
        assert!(keyring.verify(&master).problems.is_empty(), "{kill_at}");
    }
}

#[test]
fn killed_while_importing() {
    let master = MemoryMaster::new();
    let primary = scratch();
    let keyring = keyring_with(primary.path(), 2, &master);
    let exports: Vec<_> = (1..=2).map(|line| keyring.export(LineNumber(line)).unwrap()).collect();
    let file = primary.path().join("export");
    for kill_at in STEPS {
        let standby = scratch();
        let ring = standby.path().join("ring");
        for export in &exports {
            fs::write(&file, export).unwrap();
            let action = format!("import {}", file.display());
            // The root is written only once: the second record comes alone.
            let _ = run_child(&ring, &action, kill_at);
            Keyring::import(&ring, export).unwrap();
        }
        let there = open(&ring, &master).unwrap();
        assert_eq!(there.scopes().unwrap(), keyring.scopes().unwrap(), "{kill_at}");
        assert!(there.verify(&master).problems.is_empty(), "{kill_at}");
        assert_eq!(tmp_files(&ring), 0, "{kill_at}");
    }
}

#[test]
fn a_full_disk_fails_the_change_and_nothing_else() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 1, &master);
    keyring.set_state(LineNumber(1), state(10, TablespaceState::Encrypted)).unwrap();
    let known = (keyring.info().unwrap(), keyring.scopes().unwrap());
    for action in ["add", "rewrap"] {
        // No file may grow; writing then fails as on a full disk, for the signal is ignored.
        let full = r#"trap "" XFSZ; ulimit -f 0; exec "$0" "$@""#;
        let done = Command::new("sh")
            .args(["-c", full])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "tests::crash::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env("KEYRING_DIR", dir.path())
            .env("KEYRING_ACTION", action)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(!done.status.success() && said.contains("write"), "{action}: {said}");
        assert_eq!((keyring.info().unwrap(), keyring.scopes().unwrap()), known, "{action}");
        assert!(keyring.verify(&master).problems.is_empty(), "{action}");
    }
    keyring.retire(LineNumber(1), WalPosition(20)).unwrap();
    assert_eq!(tmp_files(dir.path()), 0);
}

#[test]
fn a_leftover_of_before_a_restore_is_not_rolled_forward() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 1, &master);
    let stale = fs::read(dir.path().join("keyring.tde")).unwrap();
    keyring.add_scope(tablespace(30000), &master).unwrap();
    fs::write(dir.path().join("tmp/keyring.tde"), stale).unwrap();
    fs::write(dir.path().join("tmp/nonsense"), "x").unwrap();
    keyring.retire(LineNumber(1), WalPosition(1)).unwrap();
    assert_eq!(keyring.info().unwrap().lines, 2);
    assert_eq!(tmp_files(dir.path()), 0);
    // A copy tool that leaves empty folders out.
    fs::remove_dir(dir.path().join("tmp")).unwrap();
    keyring.add_scope(tablespace(30001), &master).unwrap();
    assert!(keyring.verify(&master).problems.is_empty());
}
