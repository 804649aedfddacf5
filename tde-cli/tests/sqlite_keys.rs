//! `tde sqlite destroy-key`, `tde sqlite verify` with a WAL, and conversions that need what only an application has.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Bench, Done, flip_byte, secret};
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;

const FRAME: usize = 24 + 4096;

/// An encrypted database with a keyring.
fn encrypted(bench: &Bench) -> PathBuf {
    let file = bench.path("app.db");
    let db = Connection::open(&file).unwrap();
    db.execute_batch(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, x);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
         INSERT INTO t SELECT i, zeroblob(300) FROM n",
    )
    .unwrap();
    drop(db);
    let done = bench.sqlite("encrypt", &file, &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    file
}

fn refused(done: &Done, words: &str) {
    assert!(done.code == 2 && done.err.contains(words), "{words}: {} {}{}", done.code, done.out, done.err);
}

#[test]
fn a_key_is_destroyed_when_nothing_needs_it_and_its_time_has_come() {
    let bench = Bench::new();
    let file = encrypted(&bench);
    let clone = bench.path("clone.db");
    fs::copy(&file, &clone).unwrap();
    let destroy =
        |more: &[&str]| bench.sqlite("destroy-key", &file, &[&["--key-version", "1"], more].concat());
    let state = || {
        let info = bench.sqlite("info", &file, &["--json"]).json();
        info["keys"]["versions"][0]["state"].as_str().unwrap().to_owned()
    };

    refused(&destroy(&[]), "the one that is written under");
    refused(&bench.sqlite("destroy-key", &file, &["--key-version", "7"]), "has no key version 7");
    // A new key, and pages under the old one.
    let db = secret(&bench, &file);
    db.query_row("PRAGMA tde_rotate", [], |_| Ok(())).unwrap();
    db.execute("UPDATE t SET x = 1 WHERE id = 1", []).unwrap();
    refused(&destroy(&[]), "pages of");
    assert_eq!(bench.sqlite("rotate", &file, &[]).code, 0);
    refused(&destroy(&["--confirm"]), "was not planned");
    refused(&destroy(&["--cancel"]), "taken back");

    let planned = destroy(&["--wait-days", "1"]);
    assert!(planned.code == 0 && planned.out.contains("--cancel"), "{}{}", planned.out, planned.err);
    assert_eq!(state(), "pending-destruction");
    let early = destroy(&["--confirm"]);
    assert!(early.code == 2 && early.err.contains("may be destroyed from 20"), "{}", early.err);
    assert_eq!(destroy(&["--cancel"]).code, 0);
    assert_eq!(state(), "decrypt-only");

    assert_eq!(destroy(&["--wait-days", "0"]).code, 0);
    // Planned, and then something is under the old key again.
    let current = fs::read(&file).unwrap();
    drop(db);
    fs::copy(&clone, &file).unwrap();
    refused(&destroy(&["--confirm"]), "pages of");
    fs::write(&file, &current).unwrap();
    flip_byte(&file, 3 * 4096 + 17);
    refused(&destroy(&["--confirm"]), "do not open");
    fs::write(&file, &current).unwrap();
    let db = secret(&bench, &file);
    let done = destroy(&["--confirm"]);
    assert!(done.code == 0 && done.out.contains("is destroyed"), "{}{}", done.out, done.err);
    assert_eq!(state(), "destroyed");
    refused(&destroy(&[]), "was destroyed already");

    // The database goes on; the copy is lost, and says why.
    db.execute("UPDATE t SET x = 2 WHERE id = 2", []).unwrap();
    assert_eq!(bench.sqlite("verify", &file, &[]).code, 0);
    let lost = bench.sqlite("verify", &clone, &[]);
    assert!(lost.code == 1 && lost.out.contains("key destroyed: version 1"), "{}{}", lost.out, lost.err);
}

#[test]
fn a_wal_is_emptied_before_a_key_is_destroyed() {
    let bench = Bench::new();
    let file = encrypted(&bench);
    let destroy =
        |more: &[&str]| bench.sqlite("destroy-key", &file, &[&["--key-version", "1"], more].concat());
    let db = secret(&bench, &file);
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; UPDATE t SET x = 1").unwrap();
    assert_eq!(bench.sqlite("rotate", &file, &[]).code, 0);
    // A reader keeps the WAL from being emptied.
    db.execute("UPDATE t SET x = 2 WHERE id = 1", []).unwrap();
    let reader = secret(&bench, &file);
    reader.execute_batch("BEGIN").unwrap();
    reader.query_row("SELECT count(*) FROM t", [], |_| Ok(())).unwrap();
    refused(&destroy(&["--wait-days", "0"]), "reads from its WAL");
    reader.execute_batch("COMMIT").unwrap();
    assert_eq!(destroy(&["--wait-days", "0"]).code, 0);
    let done = destroy(&["--confirm"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(fs::metadata(bench.path("app.db-wal")).unwrap().len(), 0, "no frame is left under it");
    db.execute("UPDATE t SET x = 3 WHERE id = 1", []).unwrap();
    assert_eq!(db.query_row("SELECT sum(x) FROM t", [], |row| row.get::<_, i64>(0)).unwrap(), 2002);
}

#[test]
fn a_hot_journal_is_rolled_back_before_a_key_is_destroyed() {
    let bench = Bench::new();
    let file = encrypted(&bench);
    let db = secret(&bench, &file);
    db.execute_batch("PRAGMA cache_size = 5; BEGIN; UPDATE t SET x = randomblob(300)").unwrap();
    // As a killed program leaves it.
    let killed = bench.path("killed.db");
    for suffix in ["", "-journal"] {
        fs::copy(bench.path(&format!("app.db{suffix}")), bench.path(&format!("killed.db{suffix}"))).unwrap();
    }
    drop(db);
    let verified = bench.sqlite("verify", &killed, &[]);
    assert!(verified.out.contains("journal of a transaction"), "{}", verified.out);
    // The copy has the original's key: a new version of the one is one of the other.
    let db = secret(&bench, &file);
    db.query_row("PRAGMA tde_rotate", [], |_| Ok(())).unwrap();
    let destroy =
        |more: &[&str]| bench.sqlite("destroy-key", &killed, &[&["--key-version", "1"], more].concat());
    refused(&destroy(&["--wait-days", "0"]), "pages of");
    assert!(!bench.path("killed.db-journal").exists());
    assert_eq!(bench.sqlite("rotate", &killed, &[]).code, 0);
    assert_eq!(destroy(&["--wait-days", "0"]).code, 0);
    assert_eq!(destroy(&["--confirm"]).code, 0);
    let db = secret(&bench, &killed);
    let whole = "SELECT count(*) FROM t WHERE x = zeroblob(300)";
    assert_eq!(db.query_row(whole, [], |row| row.get::<_, i64>(0)).unwrap(), 2000);
}

/// Copies a database with its WAL, and with the WAL's index if wanted.
fn copy(bench: &Bench, index: bool) -> PathBuf {
    for suffix in ["", "-wal", "-shm"] {
        let to = bench.path(&format!("copy.db{suffix}"));
        if suffix != "-shm" || index {
            fs::copy(bench.path(&format!("app.db{suffix}")), to).unwrap();
        } else if to.exists() {
            fs::remove_file(to).unwrap();
        }
    }
    bench.path("copy.db")
}

fn verify(bench: &Bench, file: &Path) -> (i32, serde_json::Value) {
    let done = bench.sqlite("verify", file, &["--json"]);
    (done.code, done.json())
}

#[test]
fn verify_looks_at_the_wal() {
    let bench = Bench::new();
    let file = encrypted(&bench);
    let db = secret(&bench, &file);
    db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").unwrap();
    for id in 1..=5 {
        db.execute("UPDATE t SET x = zeroblob(9000) WHERE id = ?1", [id * 300]).unwrap();
    }
    let frames = (fs::metadata(bench.path("app.db-wal")).unwrap().len() as usize - 32) / FRAME;
    assert!(frames > 12);
    // Beside the program that writes it, and as it lies there when that was killed.
    for file in [&file, &copy(&bench, true), &copy(&bench, false)] {
        let (code, report) = verify(&bench, file);
        let wal = &report["wal"];
        assert_eq!((code, wal["good_frames"]["1"].as_u64()), (0, Some(frames as u64)), "{report}");
        assert_eq!(wal["stranded_frames"], 0);
    }
    let wal = bench.path("copy.db-wal");
    let body = 32 + 4 * FRAME + 1000;
    // The index says that five frames and more are live.
    for (at, index) in
        [(body, true), (32 + 4 * FRAME, true), (32 + 4 * FRAME + 5, true), (32 + 4 * FRAME + 12, true)]
    {
        let file = copy(&bench, index);
        flip_byte(&wal, at);
        let (code, report) = verify(&bench, &file);
        let first = report["problems"][0]["frame"].as_u64();
        assert!(code == 1 && matches!(first, Some(5 | 6)), "byte {at}: {code} {report}");
        let bad = report["wal"]["bad_frames"].as_u64().unwrap();
        assert!(bad <= 2 && report["problems"].as_array().unwrap().len() as u64 == bad, "{report}");
        let human = bench.sqlite("verify", &file, &[]);
        assert!(human.out.contains("WAL frame "), "{}", human.out);
    }
    // Without it the rest may be what a crash has left; that it is there is said.
    let file = copy(&bench, false);
    flip_byte(&wal, body);
    let (code, report) = verify(&bench, &file);
    assert_eq!((code, report["wal"]["stranded_frames"].as_u64()), (0, Some(frames as u64 - 5)), "{report}");
    // A WAL that was cut, and one of a plaintext database.
    let file = copy(&bench, true);
    let whole = fs::read(&wal).unwrap();
    fs::write(&wal, &whole[..whole.len() - FRAME]).unwrap();
    let (code, report) = verify(&bench, &file);
    assert!(code == 1 && report["problems"][0]["what"].as_str().unwrap().contains("ends before"), "{report}");
    let plain = bench.path("plain.db");
    let other = Connection::open(&plain).unwrap();
    other.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t(x)").unwrap();
    fs::copy(bench.path("plain.db-wal"), &wal).unwrap();
    let (code, report) = verify(&bench, &file);
    assert!(
        code == 1 && report["problems"][0]["what"].as_str().unwrap().contains("plaintext WAL"),
        "{report}"
    );
    // An earlier generation behind the live frames means nothing.
    db.execute_batch("PRAGMA wal_checkpoint(RESTART); UPDATE t SET x = 1 WHERE id = 7").unwrap();
    let (code, report) = verify(&bench, &copy(&bench, true));
    assert_eq!((code, report["wal"]["stranded_frames"].as_u64()), (0, Some(0)), "{report}");
    // A page that a crash within a checkpoint has torn.
    let file = copy(&bench, true);
    let first = fs::read(&wal).unwrap()[32..36].try_into().map(u32::from_be_bytes).unwrap() as usize;
    let mut bytes = fs::read(&file).unwrap();
    bytes[first * 4096 - 100..first * 4096].fill(0);
    fs::write(&file, bytes).unwrap();
    let (code, report) = verify(&bench, &file);
    let problem = &report["problems"][0];
    assert_eq!((code, problem["page"].as_u64()), (1, Some(first as u64)), "{report}");
    assert!(problem["what"].as_str().unwrap().contains("newest image is whole in the WAL"), "{report}");
}

#[test]
fn what_only_the_application_has_is_said_and_can_be_done_there() {
    let bench = Bench::new();
    let application = |file: &Path| {
        let db = Connection::open(file).unwrap();
        db.create_collation("theirs", |a: &str, b: &str| b.cmp(a)).unwrap();
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        db.create_scalar_function("their_own", 1, flags, |_| Ok(1_i64)).unwrap();
        db
    };
    let made = [
        ("collation", "CREATE TABLE t(x TEXT); CREATE INDEX i ON t(x COLLATE theirs)", true),
        ("key", "CREATE TABLE t(x TEXT COLLATE theirs PRIMARY KEY) WITHOUT ROWID", true),
        ("function", "CREATE TABLE t(x); CREATE INDEX i ON t(their_own(x))", false),
        ("check", "CREATE TABLE t(x CHECK (their_own(x) = 1), y AS (their_own(x)))", false),
        ("names", "CREATE TABLE t(rowid, _rowid_, oid); INSERT INTO t VALUES(1, 2, 3)", false),
    ];
    // Registers the VFS.
    drop(secret(&bench, &bench.path("any.db")));
    for (name, sql, must_refuse) in made {
        let file = bench.path(name);
        let db = application(&file);
        db.execute_batch(sql).unwrap();
        for value in ["a", "b", "c"] {
            if name != "names" {
                db.execute("INSERT INTO t(x) VALUES(?1)", [value]).unwrap();
            }
        }
        drop(db);
        let before = fs::read(&file).unwrap();
        let done = bench.sqlite("encrypt", &file, &[]);
        if done.code == 0 {
            assert!(!must_refuse, "{name}");
            assert_eq!(bench.sqlite("verify", &file, &[]).code, 0, "{name}");
            continue;
        }
        refused(&done, "VACUUM INTO 'file:NEW?vfs=tde'");
        assert!(fs::read(&file).unwrap() == before, "{name}");
        assert_ne!(name, "names", "{}", done.err);
        // As it says.
        let new = bench.path(&format!("{name}.new"));
        let (ring, pin) = (bench.path("ring"), bench.path("pin"));
        let uri = format!(
            "file:{}?vfs=tde&plain_temp=1&keyring={}&hsm={}&pin_file={}",
            new.display(),
            ring.display(),
            bench.uri,
            pin.display()
        );
        application(&file).execute("VACUUM INTO ?1", [uri]).unwrap_or_else(|error| {
            panic!("{name}: {error}: {}", tde_rusqlite::last_error());
        });
        assert!(fs::read(&new).unwrap().starts_with(b"TDE"), "{name}");
        assert_eq!(bench.sqlite("verify", &new, &[]).code, 0, "{name}");
    }
}

#[test]
fn a_pipe_is_not_waited_for() {
    let bench = Bench::new();
    drop(encrypted(&bench));
    let pipe = bench.path("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    for command in ["info", "verify", "rotate", "encrypt", "decrypt"] {
        let mut process = bench.sqlite_command(command, &pipe).spawn().unwrap();
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = process.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > Duration::from_secs(20) {
                process.kill().unwrap();
                panic!("{command} waits for a pipe");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(2), "{command}");
    }
}
