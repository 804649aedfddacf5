//! Every byte counts: flipped, cut off, swapped or put back.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::support::*;
use crate::*;

/// A keyring whose two lines have two versions each.
fn small() -> (TempDir, MemoryMaster) {
    let dir = scratch();
    let master = MemoryMaster::new();
    let keyring = keyring_with(dir.path(), 2, &master);
    for line in 1..=2 {
        keyring.add_version(LineNumber(line), &master).unwrap();
        keyring.set_state(LineNumber(line), state(100, TablespaceState::Encrypted)).unwrap();
    }
    (dir, master)
}

fn files(dir: &Path) -> [PathBuf; 3] {
    let line = |line: u64| dir.join(format!("lines/{line:02x}/{line:016x}.tde"));
    [dir.join("keyring.tde"), line(1), line(2)]
}

/// First thing that is wrong with a keyring when everything in it is used.
fn first_problem(dir: &Path, master: &MemoryMaster) -> Option<KeyringError> {
    match open(dir, master) {
        Ok(keyring) => keyring.verify(master).problems.into_iter().next(),
        Err(error) => Some(error),
    }
}

/// Makes the CRC right again, as somebody who forges a file would.
fn fix_crc(bytes: &mut [u8]) {
    if bytes.len() < 20 {
        return;
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..16]);
    hasher.update(&bytes[20..]);
    bytes[16..20].copy_from_slice(&hasher.finalize().to_le_bytes());
}

#[test]
fn a_sound_keyring_has_no_problem() {
    let (dir, master) = small();
    assert!(first_problem(dir.path(), &master).is_none());
}

#[test]
fn every_flipped_bit_is_an_error_that_names_the_file() {
    let (dir, master) = small();
    for file in files(dir.path()) {
        let good = fs::read(&file).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, bad).unwrap();
            let error = first_problem(dir.path(), &master).expect("noticed").to_string();
            assert!(error.contains(file.to_str().unwrap()), "bit {bit} of {}: {error}", file.display());
        }
        fs::write(&file, good).unwrap();
    }
    assert!(first_problem(dir.path(), &master).is_none());
}

#[test]
fn every_flipped_bit_is_noticed_even_with_a_forged_crc() {
    let (dir, master) = small();
    for file in files(dir.path()) {
        let good = fs::read(&file).unwrap();
        for bit in (0..good.len() * 8).filter(|bit| !(16..20).contains(&(bit / 8))) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fix_crc(&mut bad);
            fs::write(&file, bad).unwrap();
            assert!(first_problem(dir.path(), &master).is_some(), "bit {bit} of {}", file.display());
        }
        fs::write(&file, good).unwrap();
    }
}

#[test]
fn every_length_is_an_error_that_names_the_file() {
    let (dir, master) = small();
    for file in files(dir.path()) {
        let good = fs::read(&file).unwrap();
        for len in 0..good.len() {
            fs::write(&file, &good[..len]).unwrap();
            let error = first_problem(dir.path(), &master).expect("noticed");
            assert!(matches!(error, KeyringError::Truncated { .. }), "{len}: {error}");
            assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
        }
        for extra in [1, 20, 4096] {
            let mut longer = good.clone();
            longer.resize(good.len() + extra, 0);
            fs::write(&file, longer).unwrap();
            let error = first_problem(dir.path(), &master).expect("noticed");
            assert!(matches!(error, KeyringError::Damaged { .. }), "{error}");
        }
        fs::write(&file, vec![b'x'; 2 << 20]).unwrap();
        assert!(first_problem(dir.path(), &master).is_some(), "never read whole");
        fs::write(&file, good).unwrap();
    }
}

#[test]
fn records_cannot_be_swapped() {
    let (dir, master) = small();
    let [_, one, two] = files(dir.path());
    fs::copy(&one, dir.path().join("aside")).unwrap();
    fs::rename(&two, &one).unwrap();
    fs::rename(dir.path().join("aside"), &two).unwrap();
    let keyring = open(dir.path(), &master).unwrap();
    for line in [1, 2] {
        let error = keyring.scope(LineNumber(line)).expect_err("the record of another line");
        assert!(matches!(error, KeyringError::Damaged { .. }), "{error}");
    }
}

#[test]
fn a_record_of_another_keyring_is_refused() {
    let (dir, master) = small();
    let (other, _) = small();
    let [_, one, _] = files(dir.path());
    fs::copy(&files(other.path())[1], &one).unwrap();
    let error = open(dir.path(), &master).unwrap().scopes().expect_err("foreign");
    assert!(matches!(error, KeyringError::ForeignKeyring { .. }), "{error}");
}

#[test]
fn wrapped_keys_cannot_be_swapped() {
    let (dir, master) = small();
    let [_, one, two] = files(dir.path());
    // Payload: keyring 16, line 8, record version 8, count 8, then (key version 4, master version 4, key 40).
    let wrapped_at = |index: usize| 20 + 40 + index * 48 + 8;
    let (first, second) = (fs::read(&one).unwrap(), fs::read(&two).unwrap());

    let mut between_records = first.clone();
    between_records[wrapped_at(0)..][..40].copy_from_slice(&second[wrapped_at(0)..][..40]);
    let mut between_versions = first.clone();
    between_versions[wrapped_at(0)..][..40].copy_from_slice(&first[wrapped_at(1)..][..40]);
    for mut bad in [between_records, between_versions] {
        fix_crc(&mut bad);
        fs::write(&one, bad).unwrap();
        let keyring = open(dir.path(), &master).unwrap();
        // It unwraps, for the master key is the same; only the key check value can tell.
        let error = keyring.dek(LineNumber(1), KeyVersion(1), &master).expect_err("not its key");
        assert!(matches!(error, KeyringError::KeyWrong { source: None, .. }), "{error}");
        let error = keyring.rewrap_all(&master, |_| std::ops::ControlFlow::Continue(()));
        assert!(error.is_ok(), "nothing to wrap anew yet");
    }
}

#[test]
fn rewrapping_never_launders_a_swapped_key() {
    let (dir, mut master) = small();
    let [_, one, _] = files(dir.path());
    let mut bad = fs::read(&one).unwrap();
    bad.copy_within(20 + 40 + 48 + 8..20 + 40 + 48 + 48, 20 + 40 + 8);
    fix_crc(&mut bad);
    fs::write(&one, &bad).unwrap();
    let keyring = open(dir.path(), &master).unwrap();
    master.generate_version().unwrap();
    let error = keyring.rewrap_all(&master, |_| std::ops::ControlFlow::Continue(()));
    assert!(matches!(error, Err(KeyringError::KeyWrong { source: None, .. })), "{error:?}");
    assert_eq!(fs::read(&one).unwrap(), bad, "left as it was");
}

#[test]
fn the_keyring_key_of_another_keyring_is_wrong() {
    let (dir, master) = small();
    let (other, _) = small();
    let root = dir.path().join("keyring.tde");
    let (mut bytes, theirs) = (fs::read(&root).unwrap(), fs::read(other.path().join("keyring.tde")).unwrap());
    assert_eq!(bytes.len(), theirs.len());
    // The end of the payload: wrapped key 40, nonce 12, tag 16.
    let at = bytes.len() - 68;
    bytes[at..at + 40].copy_from_slice(&theirs[at..at + 40]);
    fix_crc(&mut bytes);
    fs::write(&root, bytes).unwrap();
    let error = open(dir.path(), &master).expect_err("wrong key");
    assert!(matches!(error, KeyringError::KeyringKeyWrong { source: None, .. }), "{error}");
}

#[test]
fn an_old_record_put_back_is_noticed_by_the_sum_alone() {
    let (dir, master) = small();
    let [_, one, two] = files(dir.path());
    let keyring = open(dir.path(), &master).unwrap();
    let old = fs::read(&one).unwrap();
    keyring.set_state(LineNumber(1), state(200, TablespaceState::Decrypting)).unwrap();
    keyring.set_state(LineNumber(2), state(200, TablespaceState::Decrypting)).unwrap();
    keyring.check_sum().unwrap();
    fs::write(&one, &old).unwrap();
    // It is authentic, so reading it alone cannot tell.
    assert_eq!(keyring.scope(LineNumber(1)).unwrap().state(), TablespaceState::Encrypted);
    assert!(matches!(keyring.check_sum(), Err(KeyringError::RolledBack { .. })));
    let problems = keyring.verify(&master).problems;
    assert!(matches!(problems[..], [KeyringError::RolledBack { .. }]), "{problems:?}");
    // A writer does not make it look right again.
    keyring.set_state(LineNumber(2), state(300, TablespaceState::Plain)).unwrap();
    assert!(keyring.check_sum().is_err());
    fs::remove_file(&two).unwrap();
    assert!(matches!(keyring.check_sum(), Err(KeyringError::LineMissing { .. })));
}

#[test]
fn a_stray_file_among_the_records_is_named() {
    let (dir, master) = small();
    fs::write(dir.path().join("lines/01/0000000000000001.tde.bak"), "x").unwrap();
    let error = open(dir.path(), &master).unwrap().scopes().expect_err("stray");
    assert!(error.to_string().contains("0000000000000001.tde.bak"), "{error}");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (dir, master) = small();
    for file in files(dir.path()) {
        let good = fs::read(&file).unwrap();
        let mut newer = good.clone();
        newer[8] = 2;
        fix_crc(&mut newer);
        fs::write(&file, &newer).unwrap();
        let error = first_problem(dir.path(), &master).expect("refused");
        assert!(matches!(error, KeyringError::UnknownFormat { found: 2, supported: 1, .. }), "{error}");
        assert_eq!(fs::read(&file).unwrap(), newer);
        fs::write(&file, good).unwrap();
    }
}

/// A link in the keyring's place does not make it another place.
#[test]
fn an_old_copy_behind_a_link_is_noticed() {
    let scratch = scratch();
    let (dir, old) = (scratch.path().join("ring"), scratch.path().join("old"));
    let master = MemoryMaster::new();
    let keyring = keyring_with(&dir, 1, &master);
    assert!(std::process::Command::new("cp").arg("-a").arg(&dir).arg(&old).status().unwrap().success());
    keyring.add_version(LineNumber(1), &master).unwrap();
    let known = InstanceId::of(&dir).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    std::os::unix::fs::symlink(&old, &dir).unwrap();
    let refused = Keyring::open(&dir).unwrap().unlock(&master);
    assert!(matches!(refused, Err(KeyringError::OldGeneration { .. })), "{refused:?}");
    // Nor does a link to where nothing is.
    std::fs::remove_file(&dir).unwrap();
    std::os::unix::fs::symlink(scratch.path(), &dir).unwrap();
    assert_eq!(InstanceId::of(&dir).unwrap(), known);
}
