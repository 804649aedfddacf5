//! Several processes on one keyring.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use super::support::*;
use crate::*;

const EACH: u32 = 60;

#[test]
#[ignore = "the process that the test here starts twice"]
fn child() {
    let dir = std::env::var_os("KEYRING_DIR").expect("started by a test");
    let base: u32 = std::env::var("KEYRING_BASE").unwrap().parse().unwrap();
    let master = MemoryMaster::new();
    let keyring = open(Path::new(&dir), &master).unwrap();
    for oid in base..base + EACH {
        let (scope, dek) = keyring.add_scope(tablespace(oid), &master).unwrap();
        keyring.set_state(scope.line, state(u64::from(oid), TablespaceState::Encrypted)).unwrap();
        assert!(keyring.dek(scope.line, KeyVersion(1), &master).unwrap().ct_eq(&dek));
    }
}

fn start(dir: &Path, base: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::processes::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("KEYRING_DIR", dir)
        .env("KEYRING_BASE", base.to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn two_processes_add_scopes_while_a_third_reads() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 0, &master);
    let mut children = [start(dir.path(), 20_000), start(dir.path(), 40_000)];
    let mut last = 0;
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        // Readers never wait and never see less than before, or half a record.
        let seen = keyring.scopes().unwrap().len();
        assert!(seen >= last);
        last = seen;
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let scopes = keyring.scopes().unwrap();
    let lines: Vec<_> = scopes.iter().map(|scope| scope.line.0).collect();
    assert_eq!(lines, (1..=u64::from(EACH) * 2).collect::<Vec<_>>(), "no line lost or given twice");
    assert!(scopes.iter().all(|scope| scope.state() == TablespaceState::Encrypted));
    assert!(open(dir.path(), &master).unwrap().verify(&master).problems.is_empty());
    // One generation for making it, one for each of two changes per scope.
    assert_eq!(keyring.info().unwrap().generation, 1 + u64::from(EACH) * 4);
}

#[test]
fn a_writer_that_waits_too_long_gives_up_by_name() {
    let dir = scratch();
    let master = MemoryMaster::new();
    drop(keyring_with(dir.path(), 1, &master));
    let soon = Duration::from_millis(50);
    let impatient = FileStore::open(dir.path()).unwrap().with_lock_deadline(soon);
    let held = FileStore::open(dir.path()).unwrap().lock().unwrap();
    let keyring = Keyring::open_store(Box::new(impatient)).unwrap().unlock(&master).unwrap();
    assert_eq!(keyring.scopes().unwrap().len(), 1, "readers never wait");
    let error = keyring.retire(LineNumber(1), WalPosition(1)).expect_err("locked");
    assert!(matches!(error, KeyringError::LockBusy { .. }), "{error}");
    assert!(error.to_string().contains(dir.path().join("lock").to_str().unwrap()), "{error}");
    drop(held);
    keyring.retire(LineNumber(1), WalPosition(1)).unwrap();
}

#[test]
fn what_root_writes_stays_the_owners() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let dir = scratch();
    let (uid, gid) = (4711, 4712);
    std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 2, &master);
    std::fs::remove_dir(dir.path().join("tmp")).unwrap();
    keyring.retire(LineNumber(1), WalPosition(1)).unwrap();
    let mut folders = vec![dir.path().to_path_buf()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (uid, gid), "{}", entry.path().display());
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 8, "root, lock, tmp, lines, two folders, two records");
}

/// Nothing that is put into the keyring's directory makes a writer, root least of all, touch files elsewhere.
#[test]
fn links_in_the_directory_are_not_followed() {
    use std::os::unix::fs::symlink;

    let scratch = scratch();
    let (dir, elsewhere) = (scratch.path().join("ring"), scratch.path().join("elsewhere"));
    std::fs::create_dir(&elsewhere).unwrap();
    let precious = elsewhere.join("precious");
    std::fs::write(&precious, "as it was").unwrap();
    let master = MemoryMaster::new();
    let keyring = keyring_with(&dir, 1, &master);
    let add = || keyring.add_scope(tablespace(20000), &master).map(drop);

    // A leftover: swept, not written through.
    for name in ["keyring.tde", "0000000000000002.tde"] {
        symlink(&precious, dir.join("tmp").join(name)).unwrap();
    }
    add().unwrap();
    for (place, target) in [("lock", &precious), ("tmp", &elsewhere)] {
        let (place, kept) = (dir.join(place), dir.join("kept"));
        std::fs::rename(&place, &kept).unwrap();
        symlink(target, &place).unwrap();
        add().unwrap_err();
        std::fs::remove_file(&place).unwrap();
        std::fs::rename(&kept, &place).unwrap();
    }
    let root = dir.join("keyring.tde");
    std::fs::rename(&root, dir.join("kept")).unwrap();
    symlink(dir.join("kept"), &root).unwrap();
    assert!(matches!(Keyring::open(&dir), Err(KeyringError::Damaged { .. })));
    assert_eq!(std::fs::read(&precious).unwrap(), b"as it was");
    assert!(elsewhere.join("precious").exists());
}
