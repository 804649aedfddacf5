//! Damage to any byte of any file is an error that names what is damaged.

use std::fs;

use hsm_engine::{Damage, HsmError};

use crate::support::{Fixture, OFFICER_PIN, USER_PIN, WRONG_PIN, fix_crc, object_of, pin};

/// A store with something of everything in it, whose audit log is anchored to its end.
fn full() -> Fixture {
    let f = Fixture::new();
    let user = f.user();
    user.rotate_master_key(&user.find_master_key("master").unwrap()).unwrap();
    user.raise_counter("keyring/a", 3).unwrap();
    user.close().unwrap();
    f.check_everything().unwrap();
    f
}

fn assert_named(file: &str, what: &str, result: Result<(), HsmError>) {
    let error = match result {
        Err(e) => e.to_string(),
        Ok(()) => panic!("{file}: {what} was not noticed"),
    };
    assert!(error.contains(object_of(file)), "{file}: {what} gives \"{error}\", which does not name it");
}

#[test]
fn any_flipped_byte_is_noticed_and_named() {
    let f = full();
    let files = f.files();
    assert_eq!(files.len(), 9, "{:?}", files.keys());
    for (file, bytes) in &files {
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1 << (i % 8);
            f.write(file, &changed);
            assert_named(file, &format!("byte {i} flipped"), f.check_everything());
            f.restore(&files);
        }
    }
    f.check_everything().unwrap();
}

#[test]
fn any_shorter_length_is_noticed_and_named() {
    let f = full();
    let files = f.files();
    for (file, bytes) in &files {
        for len in 0..bytes.len() {
            f.write(file, &bytes[..len]);
            assert_named(file, &format!("cut to {len} bytes"), f.check_everything());
            f.restore(&files);
        }
    }
}

#[test]
fn a_byte_more_is_noticed_and_named() {
    let f = full();
    let files = f.files();
    for (file, bytes) in files.iter().filter(|(file, _)| file.ends_with(".obj")) {
        f.write(file, &[bytes, &[0][..]].concat());
        assert_named(file, "one byte more", f.check_everything());
        f.restore(&files);
    }
}

#[test]
fn any_missing_file_is_noticed() {
    let f = full();
    let files = f.files();
    for file in files.keys() {
        fs::remove_file(f.path(file)).unwrap();
        let error = f.check_everything().unwrap_err();
        let text = error.to_string();
        match error {
            HsmError::UnknownUser { user, .. } => assert_eq!(file, &format!("user.{user}.obj")),
            _ => assert!(text.contains(object_of(file)), "{file} removed: {text}"),
        }
        f.restore(&files);
    }
}

/// Somebody who edits a sealed object and sets its checksum is found by the seal.
#[test]
fn an_edit_with_a_right_checksum_breaks_the_seal() {
    let f = full();
    let files = f.files();
    for (file, bytes) in files.iter().filter(|(_, b)| b.starts_with(b"tdeH") && b[7] == 1) {
        for i in 8..bytes.len() - 4 {
            if (16..20).contains(&i) {
                continue; // the length, which is checked before the seal
            }
            let mut changed = bytes.clone();
            changed[i] ^= 0x40;
            fix_crc(&mut changed);
            f.write(file, &changed);
            match f.check_everything() {
                Err(HsmError::Damaged { object, damage: Damage::Seal, .. }) => {
                    assert_eq!(object, object_of(file), "byte {i}");
                }
                other => panic!("{file}, byte {i}: {other:?}"),
            }
            f.restore(&files);
        }
    }
}

#[test]
fn an_edited_label_or_user_record_is_refused() {
    let f = full();
    let files = f.files();
    let edit = |file: &str, from: &[u8], to: &[u8]| {
        let mut bytes = files[file].clone();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        fix_crc(&mut bytes);
        f.write(file, &bytes);
        let result = f.check_everything();
        f.restore(&files);
        result
    };
    // The label is public; the root knows its digest.
    let text = |s: &str| [&(s.len() as u64).to_le_bytes()[..], s.as_bytes()].concat();
    let label = edit("header.obj", &text("tde"), &text("xxx"));
    assert!(
        matches!(label, Err(HsmError::Damaged { ref object, damage: Damage::Seal, .. }) if object == "header")
    );
    // The role is bound to the sealed store key: a user cannot be made an officer by editing (0 officer, 1 user).
    let user = [&text("user")[..], &1_u32.to_le_bytes()].concat();
    let officer = [&text("user")[..], &0_u32.to_le_bytes()].concat();
    assert!(matches!(edit("user.user.obj", &user, &officer), Err(HsmError::WrongPin { .. })));
}

/// An object that is whole but belongs elsewhere is refused.
#[test]
fn objects_cannot_be_swapped_or_put_back() {
    let f = full();
    let user = f.user();
    let second =
        user.create_master_key("second", hsm_engine::KeyAttributes { plaintext_data_keys: true }).unwrap();
    let master = user.find_master_key("master").unwrap();
    user.close().unwrap();
    let files = f.files();
    let file = |id| format!("key.{id}.obj");

    f.write(&file(master.id()), &files[&file(second.id())]);
    assert_named(&file(master.id()), "another key's object", f.check_everything());
    f.restore(&files);

    // From another HSM.
    let other = full();
    f.write("counters.obj", &other.files()["counters.obj"]);
    assert_named("counters.obj", "another HSM's object", f.check_everything());
    f.restore(&files);

    // An old copy of one object, after it was changed.
    let user = f.user();
    user.raise_counter("keyring/a", 9).unwrap();
    user.rotate_master_key(&master).unwrap();
    user.change_pin(&pin(USER_PIN)).unwrap();
    user.close().unwrap();
    let newer = f.files();
    for old in ["counters.obj", &file(master.id()), "user.user.obj"] {
        f.write(old, &files[old]);
        match f.check_everything() {
            Err(HsmError::StaleObject { object, .. }) => assert_eq!(object, object_of(old)),
            other => panic!("{old}: {other:?}"),
        }
        f.restore(&newer);
    }
    f.check_everything().unwrap();
}

#[test]
fn an_unknown_format_is_told_from_damage() {
    let f = full();
    let files = f.files();
    for (file, bytes) in files.iter().filter(|(file, _)| file.ends_with(".obj")) {
        let mut newer = bytes.clone();
        newer[4] = 3;
        fix_crc(&mut newer);
        f.write(file, &newer);
        match f.check_everything() {
            Err(HsmError::UnknownFormat { object, found: 3, supported, .. }) => {
                assert_eq!(supported, if file == "root.obj" { 2 } else { 1 });
                assert_eq!(object, object_of(file));
            }
            other => panic!("{file}: {other:?}"),
        }
        f.restore(&files);
    }
}

/// Whatever somebody writes into the public files, with a right checksum, is refused or harmless: never a panic, and never
/// a way past the PIN.
#[test]
fn hostile_edits_of_public_files_do_no_harm() {
    let f = full();
    let files = f.files();
    for (file, bytes) in &files {
        let public = file.starts_with("user.") || file.starts_with("lockout.") || file.starts_with("header.");
        // Runs of 0xFF make the largest numbers there are, of 0x00 the smallest.
        for (at, fill) in (8..bytes.len() - 4).flat_map(|at| [(at, 0xFF), (at, 0)]).filter(|_| public) {
            let mut changed = bytes.clone();
            let end = (at + 8).min(changed.len() - 4);
            changed[at..end].fill(fill);
            fix_crc(&mut changed);
            f.write(file, &changed);
            let _ = f.check_everything();
            assert!(f.login("user", WRONG_PIN).is_err(), "{file} {at} {fill}");
            let _ = f.login("officer", OFFICER_PIN).and_then(|o| o.reset_pin("user", &pin(USER_PIN)));
            f.restore(&files);
        }
    }
    f.check_everything().unwrap();
}

/// The same for every number in a record of the log, by somebody who also makes its checksum right.
#[test]
fn hostile_edits_of_the_log_are_refused() {
    let f = full();
    let files = f.files();
    let file = "audit.00000001.log";
    let log = &files[file];
    let last = {
        let (mut at, mut len) = (0, 0);
        while at < log.len() {
            len = u32::from_le_bytes(log[at..at + 4].try_into().unwrap()) as usize;
            at += len;
        }
        log.len() - len
    };
    for record in [0, last] {
        let len = u32::from_le_bytes(log[record..record + 4].try_into().unwrap()) as usize;
        for at in 0..len - 4 {
            let mut changed = log.clone();
            let end = (record + at + 8).min(record + len - 4);
            changed[record + at..end].fill(0xFF);
            if changed == *log {
                continue; // the bytes were 0xFF already, as the last of a random MAC may be
            }
            fix_crc(&mut changed[record..record + len]);
            f.write(file, &changed);
            assert!(f.check_everything().is_err(), "record at {record}, byte {at}");
            let _ = f.hsm().verify_audit(&mut |_| {});
            let _ = f.login("user", WRONG_PIN);
            f.restore(&files);
        }
    }
}
