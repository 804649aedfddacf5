//! Journal and WAL under real SQLite: processes killed within a transaction, SQLite without the VFS in between, several
//! connections that write one WAL in turn.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{CANARY, Scratch, has, keys, open, reason, text};
use rusqlite::Connection;

/// Settings of a database and its connections.
#[derive(Debug, Clone, Copy)]
struct Case {
    page_size: u32,
    journal: &'static str,
    psow: u8,
    synchronous: &'static str,
}

fn cases() -> impl Iterator<Item = Case> {
    let modes = ["DELETE", "TRUNCATE", "PERSIST", "WAL"];
    [512, 4096, 65536].into_iter().flat_map(move |page_size| {
        modes.into_iter().flat_map(move |journal| {
            [(0, "FULL"), (1, "FULL"), (0, "NORMAL"), (1, "OFF")]
                .into_iter()
                .map(move |(psow, synchronous)| Case { page_size, journal, psow, synchronous })
        })
    })
}

impl Case {
    fn uri(&self, path: &Path) -> String {
        format!("file:{}?vfs=tde&psow={}", path.display(), self.psow)
    }

    fn connect(&self, path: &Path) -> Connection {
        let db = open(&self.uri(path)).unwrap();
        db.execute_batch(&format!(
            "PRAGMA page_size={}; PRAGMA journal_mode={}; PRAGMA synchronous={}; PRAGMA cache_size=8;
             PRAGMA wal_autocheckpoint=0",
            self.page_size, self.journal, self.synchronous
        ))
        .unwrap();
        db
    }
}

/// Rows of which a transaction touches so many that the cache spills.
fn make(db: &Connection) {
    db.execute_batch(&format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, generation INTEGER, filler TEXT); CREATE INDEX i ON t(generation, filler);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)
         INSERT INTO t SELECT i, 0, printf('{CANARY} %.150c %d', 'x', i * 7919 % 1009) FROM n"
    ))
    .unwrap();
}

/// A transaction with a savepoint that is taken back; `end` is COMMIT or nothing.
fn change(db: &Connection, generation: u32, end: &str) {
    db.execute_batch(&format!(
        "BEGIN; UPDATE t SET generation = {generation}, filler = filler || {generation} WHERE id % 2 = {generation} % 2;
         SAVEPOINT s; DELETE FROM t WHERE id % 3 = 0; UPDATE t SET filler = 'gone'; ROLLBACK TO s; RELEASE s;
         INSERT INTO t(generation, filler)
             SELECT {generation}, printf('{CANARY} %.200c %d', 'y', id) FROM t WHERE id < 100;
         UPDATE t SET generation = {generation} WHERE id > 250; {end}"
    ))
    .unwrap();
}

fn state(db: &Connection) -> String {
    assert_eq!(text(db, "PRAGMA integrity_check"), "ok");
    text(
        db,
        "SELECT count(*) || ' ' || sum(id * generation) || ' ' || sum(length(filler)) || ' ' || sum(unicode(substr(filler, -2))) FROM t",
    )
}

/// The process that [`killed`] starts: commits a transaction, is killed in another.
#[test]
#[ignore = "the process that the tests here start"]
fn child() {
    let argument = |name: &str| std::env::var(name).expect("started by a test");
    let leak = |text: String| -> &'static str { text.leak() };
    let case = Case {
        page_size: argument("LOGS_PAGE_SIZE").parse().unwrap(),
        journal: leak(argument("LOGS_JOURNAL")),
        psow: argument("LOGS_PSOW").parse().unwrap(),
        synchronous: leak(argument("LOGS_SYNCHRONOUS")),
    };
    tde_rusqlite::Vfs::builder().register().unwrap();
    let db = case.connect(Path::new(&argument("LOGS_FILE")));
    change(&db, 1, "COMMIT");
    println!("committed {}", state(&db));
    change(&db, 2, "");
    println!("in the middle");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

/// Runs [`child`] until it is in the middle of its second transaction and kills it. Returns the state it had committed.
fn killed(case: &Case, path: &Path) -> String {
    let dir = keys();
    let mut child: Child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env("TDE_KEYRING", dir.join("keyring"))
        .env("TDE_HSM", format!("soft:{}", dir.join("hsm").display()))
        .env("TDE_PIN_FILE", dir.join("pin"))
        .env("LOGS_FILE", path)
        .env("LOGS_PAGE_SIZE", case.page_size.to_string())
        .env("LOGS_JOURNAL", case.journal)
        .env("LOGS_PSOW", case.psow.to_string())
        .env("LOGS_SYNCHRONOUS", case.synchronous)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut committed = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, state)) = line.split_once("committed ") {
            committed = Some(state.to_owned());
        }
        if line.contains("in the middle") {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    committed.expect("the child committed a transaction")
}

fn copy(scratch: &Scratch, from: &str, to: &str, suffixes: &[&str]) {
    for suffix in suffixes {
        let source = scratch.path(&format!("{from}{suffix}"));
        if source.exists() {
            std::fs::copy(source, scratch.path(&format!("{to}{suffix}"))).unwrap();
        }
    }
}

#[test]
fn a_killed_transaction_is_rolled_back_by_sqlite_with_and_without_the_vfs() {
    let (mut hot, mut spilled) = (0, 0);
    for case in cases() {
        let scratch = Scratch::new();
        make(&case.connect(&scratch.path("a.db")));
        let committed = killed(&case, &scratch.path("a.db"));
        for suffix in ["", "-wal", "-journal"] {
            let file = scratch.path(&format!("a.db{suffix}"));
            if file.exists() {
                assert!(
                    !has(&std::fs::read(file).unwrap(), CANARY.as_bytes()),
                    "{case:?}: plaintext in {suffix}"
                );
            }
        }
        copy(&scratch, "a.db", "stock.db", &["", "-wal", "-journal"]);
        assert_eq!(state(&case.connect(&scratch.path("a.db"))), committed, "{case:?}");

        let journal = scratch.path("stock.db-journal");
        let was_hot = std::fs::read(&journal).is_ok_and(|bytes| bytes.first().is_some_and(|byte| *byte != 0));
        let wal = std::fs::read(scratch.path("stock.db-wal")).ok();
        spilled += usize::from(wal.as_ref().is_some_and(|wal| wal.len() > 100_000));
        let stock = Connection::open(scratch.path("stock.db")).unwrap();
        stock.execute_batch("SELECT * FROM sqlite_schema").unwrap_err();
        drop(stock);
        assert_eq!(
            std::fs::read(scratch.path("stock.db-wal")).ok(),
            wal,
            "{case:?}: stock SQLite touched the WAL"
        );
        if was_hot {
            hot += 1;
            let now = std::fs::read(&journal).unwrap_or_default();
            assert!(now.first().is_none_or(|byte| *byte == 0), "{case:?}: stock SQLite left the journal hot");
        }
        let db = case.connect(&scratch.path("stock.db"));
        assert_eq!(state(&db), committed, "{case:?}: after stock SQLite");
        assert_eq!(text(&db, "PRAGMA tde_verify"), "ok", "{case:?}");
    }
    assert!(hot >= 24 && spilled >= 8, "only {hot} hot journals and {spilled} spilled WALs");
}

/// Connections write in turn, with spills, savepoints and rollbacks; what a recovery makes of the files is what they see.
#[test]
fn connections_write_one_wal_in_turn() {
    for (page_size, psow) in [(512, 0), (512, 1), (4096, 0), (4096, 1), (65536, 0)] {
        let case = Case { page_size, journal: "WAL", psow, synchronous: "FULL" };
        let scratch = Scratch::new();
        let path = scratch.path("a.db");
        make(&case.connect(&path));
        let connections = [case.connect(&path), case.connect(&path)];
        for generation in 1..=6 {
            let db = &connections[generation as usize % 2];
            change(db, generation, if generation % 3 == 2 { "ROLLBACK" } else { "COMMIT" });
            let seen = state(&connections[1 - generation as usize % 2]);
            assert_eq!(state(db), seen);
            if generation == 3 {
                text(db, "PRAGMA wal_checkpoint(RESTART)");
            }
            // A crash: the files without the wal-index.
            copy(&scratch, "a.db", "crash.db", &["", "-wal"]);
            let crashed = case.connect(&scratch.path("crash.db"));
            assert_eq!(state(&crashed), seen, "{case:?} generation {generation}");
            drop(crashed);
            for suffix in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(scratch.path(&format!("crash.db{suffix}")));
            }
        }
    }
}

/// A rotation in the middle: frames of two key versions in one WAL.
#[test]
fn a_wal_of_two_key_versions_is_recovered() {
    let case = Case { page_size: 4096, journal: "WAL", psow: 1, synchronous: "NORMAL" };
    let scratch = Scratch::new();
    let path = scratch.path("a.db");
    let db = case.connect(&path);
    make(&db);
    change(&db, 1, "COMMIT");
    text(&db, "PRAGMA tde_rotate");
    change(&db, 2, "COMMIT");
    let seen = state(&db);
    copy(&scratch, "a.db", "crash.db", &["", "-wal"]);
    assert_eq!(state(&case.connect(&scratch.path("crash.db"))), seen);
}

/// The leavings of a plaintext database beside an encrypted one are errors, and stay.
#[test]
fn plaintext_logs_are_refused() {
    let scratch = Scratch::new();
    let case = Case { page_size: 4096, journal: "WAL", psow: 1, synchronous: "NORMAL" };
    make(&case.connect(&scratch.path("a.db")));
    let plain = Connection::open(scratch.path("plain.db")).unwrap();
    plain.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE p(x)").unwrap();
    copy(&scratch, "plain.db", "a.db", &["-wal"]);
    let before = scratch.bytes("a.db-wal");
    let db = open(&case.uri(&scratch.path("a.db"))).unwrap();
    let error = db.execute_batch("SELECT * FROM t").unwrap_err();
    assert_eq!(reason(&error), 0xE0, "{error}");
    drop(db);
    assert_eq!(scratch.bytes("a.db-wal"), before);
}
