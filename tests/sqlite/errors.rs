//! Each cause of a refusal has its own code and its own message, which names the file, and the page where there is one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use tde_tests::sqlite::{Engine, Refusal, Sqlite};
use tde_tests::{command_output, plain_mode};

const PAGE: usize = 1024;
const NAME: &str = "app.db";

/// Opens and reads everything: the code of the refusal, and what SQLite's log said.
fn refusal(sqlite: &Sqlite) -> (i32, String) {
    let mut worker = sqlite.worker(Engine::Tde);
    let outcome = worker
        .open(0, &sqlite.uri(Engine::Tde, NAME, &[]))
        .map(|_| ())
        .and_then(|()| worker.sql("SELECT sum(length(x)) FROM t").map(|_| ()));
    let Err(Refusal::Sqlite { code, .. }) = outcome else { panic!("not refused: {outcome:?}") };
    let log = worker.log_now();
    let line =
        log.lines().find(|line| line.contains(NAME)).unwrap_or_else(|| panic!("{code}: nothing in: {log}"));
    let message = line.splitn(3, ' ').nth(2).unwrap().to_owned();
    (code >> 8, message)
}

#[test]
fn each_cause_is_told_apart() {
    if plain_mode() {
        return;
    }
    let sqlite = Sqlite::new();
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &sqlite.uri(Engine::Tde, NAME, &[])).unwrap();
    worker.run(&format!("PRAGMA page_size = {PAGE}; CREATE TABLE t (x)"));
    worker.run("INSERT INTO t SELECT zeroblob(900) FROM (WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 20) SELECT i FROM s)");
    worker.run("PRAGMA tde_rotate");
    drop(worker);
    let file = sqlite.file(NAME);
    let good = fs::read(&file).unwrap();
    let mut seen = BTreeMap::new();
    let mut check =
        |what: &'static str, place: Option<&str>, words: &[&str], (code, message): (i32, String)| {
            assert!(message.contains(file.to_str().unwrap()), "{what}: no file in: {message}");
            for word in words.iter().chain(place.iter()) {
                assert!(message.contains(word), "{what}: no \"{word}\" in: {message}");
            }
            let first: String = message.replace(file.to_str().unwrap(), "");
            if let Some((other, _)) = seen.insert(code, (what, first)) {
                panic!("{what} has the code {code:#x} of {other}");
            }
        };
    let damaged = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        edit(&mut bytes);
        fs::write(&file, bytes).unwrap();
        let found = refusal(&sqlite);
        fs::write(&file, &good).unwrap();
        found
    };
    let end = 5 * PAGE;
    check(
        "tampered page",
        Some("page 5"),
        &["not authentic", "key version 1"],
        damaged(&|b| b[end - PAGE + 100] ^= 1),
    );
    check("torn page", Some("page 5"), &["cut short"], damaged(&|b| b[end - 512..end].fill(0)));
    let unknown = |b: &mut Vec<u8>| b[end - 4..end].copy_from_slice(&9_u32.to_le_bytes());
    check("unknown key version", Some("page 5"), &["key missing", "version 9"], damaged(&unknown));
    check("missing entry", None, &["keyring entry missing"], damaged(&|b| b[4..16].fill(7)));
    check("not our file", None, &["is not an encrypted SQLite database"], damaged(&|b| b.fill(b'x')));
    check("later format", None, &["newer release"], damaged(&|b| b[3] = 9));
    let plaintext = |b: &mut Vec<u8>| {
        b[..16].copy_from_slice(b"SQLite format 3\0");
    };
    check("plaintext", None, &["plaintext", "tde sqlite encrypt"], damaged(&plaintext));

    // The HSM: of somebody else, away, and one that knows another PIN.
    let moved = sqlite.dir().join("moved");
    let instead = |make: &dyn Fn(&Path)| {
        fs::rename(&sqlite.store, &moved).unwrap();
        make(&sqlite.store);
        let found = refusal(&sqlite);
        let _gone = fs::remove_dir_all(&sqlite.store);
        fs::rename(&moved, &sqlite.store).unwrap();
        found
    };
    check("HSM away", None, &["HSM"], instead(&|_| {}));
    let pin = fs::read(&sqlite.pin_file).unwrap();
    let other_hsm = |store: &Path| {
        fs::remove_file(&sqlite.pin_file).unwrap();
        let mut init = Command::new(Sqlite::tde_program());
        init.args(["hsm", "init", "--store"]).arg(store).arg("--pin-file").arg(&sqlite.pin_file);
        command_output(init.env("LC_ALL", "C"));
    };
    check("wrong key", None, &["key"], instead(&other_hsm));
    check("wrong PIN", None, &["cannot log in"], refusal(&sqlite));
    fs::write(&sqlite.pin_file, pin).unwrap();
    // A key that was destroyed: version 1, while the pages are still under it.
    let hsm = sqlite.hsm();
    let keyring = keyring::Keyring::open(&sqlite.keyring).unwrap().unlock(&hsm).unwrap();
    let line = keyring.scopes().unwrap()[0].line;
    keyring.plan_destruction(line, keyring::KeyVersion(1), 0).unwrap();
    keyring.destroy(line, keyring::KeyVersion(1)).unwrap();
    hsm.close().unwrap();
    check("destroyed key", Some("page 1"), &["key destroyed", "version 1"], refusal(&sqlite));

    let messages: std::collections::BTreeSet<_> = seen.values().map(|(_, message)| message).collect();
    assert_eq!((seen.len(), messages.len()), (11, 11));
}

#[test]
fn a_wal_opens_although_old_frames_behind_its_end_are_under_a_destroyed_key() {
    if plain_mode() {
        return;
    }
    let sqlite = Sqlite::new();
    let uri = sqlite.uri(Engine::Tde, NAME, &[]);
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &uri).unwrap();
    worker.run("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x)");
    for _ in 0..60 {
        worker.run("INSERT INTO t VALUES (zeroblob(3000))");
    }
    // The frames of this generation are longer than the next one, in which everything is under the new key.
    worker.run("PRAGMA wal_checkpoint(RESTART); PRAGMA tde_rotate; DELETE FROM t WHERE rowid > 5; VACUUM");
    let wal = fs::read(sqlite.file("app.db-wal")).unwrap();
    let version = |frame: usize| {
        let end = 32 + (frame + 1) * (24 + 4096);
        u32::from_le_bytes(wal[end - 4..end].try_into().unwrap())
    };
    let frames = (wal.len() - 32) / (24 + 4096);
    assert_eq!((version(0), version(frames - 1)), (2, 1));
    worker.kill();
    let hsm = sqlite.hsm();
    let keyring = keyring::Keyring::open(&sqlite.keyring).unwrap().unlock(&hsm).unwrap();
    let line = keyring.scopes().unwrap()[0].line;
    keyring.plan_destruction(line, keyring::KeyVersion(1), 0).unwrap();
    keyring.destroy(line, keyring::KeyVersion(1)).unwrap();
    hsm.close().unwrap();
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &uri).unwrap();
    assert_eq!(worker.int("SELECT count(*) FROM t"), 5);
    assert_eq!(worker.text("PRAGMA integrity_check"), "ok");
}
