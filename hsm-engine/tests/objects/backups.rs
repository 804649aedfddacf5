//! Backups come back whole, on another host, or not at all.

use std::fs;

use hsm_engine::objects::{AttributeType as A, Iv, Mechanism, Template, Token};
use hsm_engine::{BackupError, Hsm, HsmError, inspect_backup, restore_backup};

use crate::support::{Fixture, OFFICER_PIN, USER_PIN, aes, bytes, pin};

#[test]
fn a_restored_hsm_decrypts_what_the_old_one_encrypted() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let key = aes(&token, &scope, 32, &[A::Token]);
    let mut cipher = token.encrypt(&Mechanism::AesGcm { iv: Iv::Generate, aad: Vec::new() }, key).unwrap();
    let iv = Iv::Given(cipher.iv().unwrap().try_into().unwrap());
    cipher.update(b"text").unwrap();
    let sealed = cipher.finish().unwrap();
    let master = token.session().find_master_key("master").unwrap();
    let data_key = token.session().generate_data_key(&master, hsm_engine::Return::Plaintext).unwrap();

    let hsm = Hsm::open_dir(&f.dir).unwrap();
    let officer = hsm.login("officer", &pin(OFFICER_PIN)).unwrap();
    let (backup, dir) = (f.dir.with_file_name("backup"), f.dir.with_file_name("restored"));
    let info = officer.backup(&backup).unwrap();
    assert_eq!(inspect_backup(&backup).unwrap(), info);
    assert!(
        matches!(officer.backup(&backup), Err(HsmError::Backup(BackupError::Io { .. }))),
        "never over another"
    );
    // What happens afterwards is not in it.
    token.set(key, Template::new().with(A::Label, bytes(b"later"))).unwrap();

    let user = pin(USER_PIN);
    restore_backup(&backup, None, "user", &user, false).unwrap();
    assert!(!dir.exists());
    let wrong = restore_backup(&backup, Some(&dir), "user", &pin(OFFICER_PIN), false);
    assert!(matches!(wrong, Err(HsmError::Backup(BackupError::WrongPin { .. }))));
    let mode = restore_backup(&backup, Some(&dir), "user", &user, true);
    assert!(matches!(mode, Err(HsmError::Backup(BackupError::Mode { found: false, .. }))));
    assert!(!dir.exists());
    restore_backup(&backup, Some(&dir), "user", &user, false).unwrap();

    let restored = Token::open(Hsm::open_dir(&dir).unwrap().login("user", &user).unwrap()).unwrap();
    restored.session().verify_store().unwrap();
    restored.session().verify_audit(&mut |_| {}).unwrap();
    assert_eq!(restored.verify_objects().unwrap(), 1);
    let mut opened = restored.decrypt(&Mechanism::AesGcm { iv, aad: Vec::new() }, key).unwrap();
    opened.update(&sealed).unwrap();
    assert_eq!(opened.finish().unwrap(), b"text");
    let again = restored.session().unwrap(&master, &data_key.wrapped).unwrap();
    assert!(again.ct_eq(&data_key.plaintext.unwrap()));
    let over = restore_backup(&backup, Some(&dir), "user", &user, false);
    assert!(matches!(over, Err(HsmError::Store(_))), "never over another HSM");
}

#[test]
fn a_backup_that_was_changed_cut_or_mixed_restores_nothing() {
    let (f, g) = (Fixture::new(), Fixture::new());
    let mut backups = Vec::new();
    for f in [&f, &g] {
        let token = f.token("user");
        let scope = token.new_scope();
        aes(&token, &scope, 32, &[A::Token]);
        let path = f.dir.with_file_name("backup");
        let hsm = Hsm::open_dir(&f.dir).unwrap();
        hsm.login("officer", &pin(OFFICER_PIN)).unwrap().backup(&path).unwrap();
        backups.push(fs::read(&path).unwrap());
    }
    let (good, other) = (&backups[0], &backups[1]);
    let (path, dir) = (f.dir.with_file_name("bad"), f.dir.with_file_name("restored"));
    let refused = |contents: &[u8], what: &str| {
        fs::write(&path, contents).unwrap();
        let result = restore_backup(&path, Some(&dir), "user", &pin(USER_PIN), false);
        assert!(result.is_err() && !dir.exists(), "{what}: {result:?}");
    };
    for at in (0..good.len()).filter(|at| *at < 100 || at % 97 == 0 || at + 40 > good.len()) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        refused(&bad, &format!("byte {at}"));
    }
    for n in (0..good.len()).step_by(53) {
        refused(&good[..n], &format!("cut to {n}"));
    }
    refused(&[&good[..], &[0]].concat(), "longer");
    // The head or the tail of another HSM's backup.
    refused(&[&other[..48], &good[48..]].concat(), "another head");
    refused(&[&good[..good.len() - 32], &other[other.len() - 32..]].concat(), "another seal");
    let half = good.len().min(other.len()) / 2;
    refused(&[&good[..half], &other[half..]].concat(), "two halves");
    fs::write(&path, good).unwrap();
    restore_backup(&path, Some(&dir), "user", &pin(USER_PIN), false).unwrap();
}
