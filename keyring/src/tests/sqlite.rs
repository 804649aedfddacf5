//! SQLite files: found by their ids, whatever happened to the hints, and moved to other keyrings.

use std::fs;
use std::ops::ControlFlow;

use super::support::*;
use crate::*;

fn files(dir: &std::path::Path, ids: std::ops::RangeInclusive<u8>, master: &MemoryMaster) -> Unlocked {
    let keyring = Keyring::create(dir, Owner::Files, master).expect("a new keyring");
    for id in ids {
        keyring.add_scope(sqlite(id), master).expect("a new scope");
    }
    keyring
}

fn hint(dir: &std::path::Path, id: u8) -> std::path::PathBuf {
    dir.join(format!("by-file/{id:02x}/{}", hex::encode([id; 12])))
}

#[test]
fn a_hint_is_these_bytes() {
    let dir = scratch();
    let master = MemoryMaster::new();
    files(dir.path(), 1..=11, &master);
    let path = dir.path().join("by-file/0b/0b0b0b0b0b0b0b0b0b0b0b0b");
    assert_eq!(fs::read(path).unwrap(), b"000000000000000b\n");
}

#[test]
fn hints_are_never_trusted() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = files(dir.path(), 1..=3, &master);
    let right = fs::read(hint(dir.path(), 2)).unwrap();
    // Swapped, of no line, of no record, torn, empty, not a hint, gone.
    let wrong: [&[u8]; 7] = [
        b"0000000000000003\n",
        b"0000000000000000\n",
        b"00000000000000ff\n",
        b"00000",
        b"",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\n",
        b"+000000000000002\n",
    ];
    for bytes in wrong {
        fs::write(hint(dir.path(), 2), bytes).unwrap();
        let found = keyring.find_sqlite_file(&[2; 12]).unwrap().expect("found by looking at every record");
        assert_eq!(found.line, LineNumber(2), "{bytes:?}");
        assert_eq!(fs::read(hint(dir.path(), 2)).unwrap(), right, "mended after {bytes:?}");
    }
    // A hint to a file's line does not make another file of it.
    fs::create_dir_all(hint(dir.path(), 9).parent().unwrap()).unwrap();
    fs::write(hint(dir.path(), 9), right).unwrap();
    assert!(keyring.find_sqlite_file(&[9; 12]).unwrap().is_none());
    // A link is not followed.
    fs::remove_file(hint(dir.path(), 2)).unwrap();
    std::os::unix::fs::symlink(hint(dir.path(), 3), hint(dir.path(), 2)).unwrap();
    assert_eq!(keyring.find_sqlite_file(&[2; 12]).unwrap().unwrap().line, LineNumber(2));
    assert!(keyring.verify(&master).problems.is_empty());
}

#[test]
fn a_record_that_cannot_be_read_may_be_the_one() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = files(dir.path(), 1..=3, &master);
    let record = keyring.path_of(LineNumber(2));
    let mut bytes = fs::read(&record).unwrap();
    bytes[60] ^= 1;
    fs::write(&record, bytes).unwrap();
    assert_eq!(keyring.find_sqlite_file(&[3; 12]).unwrap().unwrap().line, LineNumber(3));
    for id in [2, 9] {
        let error = keyring.find_sqlite_file(&[id; 12]).expect_err("it may be that one");
        assert!(error.to_string().contains(record.to_str().unwrap()), "{error}");
    }
}

#[test]
fn threads_may_mend_one_hint_at_once() {
    let (dir, master) = (scratch(), MemoryMaster::new());
    let keyring = files(dir.path(), 1..=1, &master);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    keyring.store.write_hint(&[1; 12], LineNumber(1)).unwrap();
                }
            });
        }
    });
    assert_eq!(fs::read(hint(dir.path(), 1)).unwrap(), b"0000000000000001\n");
}

#[test]
fn a_file_has_one_line() {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = files(dir.path(), 1..=1, &master);
    let refused = keyring.add_scope(sqlite(1), &master);
    assert!(matches!(refused, Err(KeyringError::ScopeExists { .. })), "{:?}", refused.err());
}

#[test]
fn a_file_moves_to_a_keyring_under_another_master_key() {
    let (here, there) = (scratch(), scratch());
    let (mut master, other) = (MemoryMaster::from_seed(0x11), MemoryMaster::from_seed(0x77));
    let source = files(here.path(), 1..=3, &master);
    let target = files(there.path(), 8..=9, &other);
    let line = source.find_sqlite_file(&[2; 12]).unwrap().unwrap().line;
    source.add_version(line, &master).unwrap();
    master.generate_version().unwrap();
    source.rewrap_all(&master, |_| ControlFlow::Continue(())).unwrap();
    let export = source.export(line).unwrap();

    let refused = target.adopt(&export, &other, &other);
    assert!(matches!(refused, Err(KeyringError::OtherMasterKey { .. })), "{refused:?}");
    let adopted = target.adopt(&export, &master, &other).unwrap();
    assert_eq!(adopted.new_versions, [KeyVersion(1), KeyVersion(2)]);
    assert_eq!(adopted.scope.line, LineNumber(3));
    let found = target.find_sqlite_file(&[2; 12]).unwrap().unwrap();
    assert_eq!(found, adopted.scope);
    assert_eq!(found.active().unwrap().version, KeyVersion(2));
    let same = |version| {
        let ours = target.dek(found.line, KeyVersion(version), &other).unwrap();
        ours.ct_eq(&source.dek(line, KeyVersion(version), &master).unwrap())
    };
    assert!(same(1) && same(2));
    assert!(target.verify(&other).problems.is_empty());
    // Again: nothing to do. After a rotation there: what is new.
    let generation = target.info().unwrap().generation;
    assert!(target.adopt(&export, &master, &other).unwrap().new_versions.is_empty());
    assert_eq!(target.info().unwrap().generation, generation);
    source.add_version(line, &master).unwrap();
    let newer = target.adopt(&source.export(line).unwrap(), &master, &other).unwrap();
    assert_eq!(newer.new_versions, [KeyVersion(3)]);
    let states: Vec<_> = newer.scope.versions.iter().map(|version| version.state).collect();
    assert_eq!(states, [DekState::DecryptOnly, DekState::DecryptOnly, DekState::Active]);
    assert!(same(3));
    // Both rotated: version 4 is two keys.
    target.add_version(found.line, &other).unwrap();
    source.add_version(line, &master).unwrap();
    let refused = target.adopt(&source.export(line).unwrap(), &master, &other);
    assert!(matches!(refused, Err(KeyringError::KeysDiffer { version: KeyVersion(4), .. })), "{refused:?}");
    assert!(target.verify(&other).problems.is_empty());
}

#[test]
fn what_was_destroyed_is_not_brought_back_and_moves_as_destroyed() {
    let (here, there) = (scratch(), scratch());
    let master = MemoryMaster::new();
    let source = files(here.path(), 1..=1, &master);
    let line = LineNumber(1);
    source.add_version(line, &master).unwrap();
    let before = source.export(line).unwrap();
    source.plan_destruction(line, KeyVersion(1), 1).unwrap();
    source.destroy(line, KeyVersion(1)).unwrap();
    let after = source.export(line).unwrap();
    let target = files(there.path(), 9..=9, &master);
    let adopted = target.adopt(&after, &master, &master).unwrap().scope;
    let gone = target.dek_of(&adopted, KeyVersion(1), &master);
    assert!(matches!(gone, Err(KeyringError::KeyDestroyed { .. })), "{:?}", gone.err());
    // An older export does not bring it back.
    assert!(target.adopt(&before, &master, &master).unwrap().new_versions.is_empty());
    assert!(target.dek(adopted.line, KeyVersion(1), &master).is_err());
    target.dek(adopted.line, KeyVersion(2), &master).unwrap();
}

#[test]
fn only_files_move_and_only_into_keyrings_of_files() {
    let (cluster, ring) = (scratch(), scratch());
    let master = MemoryMaster::new();
    let theirs = keyring_with(cluster.path(), 1, &master);
    let ours = files(ring.path(), 1..=1, &master);
    let tablespace = theirs.export(LineNumber(1)).unwrap();
    let refused = ours.adopt(&tablespace, &master, &master);
    assert!(matches!(refused, Err(KeyringError::BadTransfer { .. })), "{refused:?}");
    let refused = theirs.adopt(&ours.export(LineNumber(1)).unwrap(), &master, &master);
    assert!(matches!(refused, Err(KeyringError::ForeignOwner { .. })), "{refused:?}");
    let mut bad = ours.export(LineNumber(1)).unwrap();
    let last = bad.len() - 1;
    bad[last] ^= 1;
    assert!(matches!(ours.adopt(&bad, &master, &master), Err(KeyringError::BadTransfer { .. })));
}
