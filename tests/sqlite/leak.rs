//! No known plaintext in any file that the process ever wrote, deleted temporary files included.
//!
//! The worker's writes are recorded below it. Each workload runs on plain SQLite first, where the search must find its
//! canaries in the kind of file it is about, and then on an encrypted database, where it must find none. Checksums
//! that SQLite makes of plaintext are searched for too.

use std::collections::BTreeSet;
use std::fs;

use tde_tests::files::contains;
use tde_tests::sqlite::{Disk, Engine, Fault, Sqlite};

const CANARY: &str = "canary";

/// Statements, and the kinds of files in which plain SQLite then shows the canary.
struct Workload {
    name: &'static str,
    settings: &'static str,
    sql: &'static str,
    shows_in: &'static [&'static str],
}

const ROWS: &str = "CREATE TABLE canary_schema (id INTEGER PRIMARY KEY, secret TEXT, k INTEGER);
     CREATE INDEX canary_index ON canary_schema (secret);
     WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 600)
     INSERT INTO canary_schema SELECT i, 'canary-row-' || i || hex(zeroblob(100)), i % 10 FROM s;
     UPDATE canary_schema SET secret = 'canary-again-' || secret WHERE k < 5; DELETE FROM canary_schema WHERE k = 7";

const WORKLOADS: [Workload; 14] = [
    Workload { name: "delete", settings: "PRAGMA journal_mode = DELETE", sql: ROWS, shows_in: &["main", "journal"] },
    Workload { name: "truncate", settings: "PRAGMA journal_mode = TRUNCATE", sql: ROWS, shows_in: &["main", "journal"] },
    Workload { name: "persist", settings: "PRAGMA journal_mode = PERSIST", sql: ROWS, shows_in: &["main", "journal"] },
    Workload { name: "memory", settings: "PRAGMA journal_mode = MEMORY", sql: ROWS, shows_in: &["main"] },
    Workload { name: "off", settings: "PRAGMA journal_mode = OFF", sql: ROWS, shows_in: &["main"] },
    Workload { name: "wal", settings: "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 20", sql: ROWS, shows_in: &["main", "wal"] },
    Workload {
        name: "exclusive wal",
        settings: "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL",
        sql: ROWS,
        shows_in: &["main", "wal"],
    },
    Workload {
        name: "sorter",
        settings: "PRAGMA temp_store = FILE; PRAGMA cache_size = 10",
        sql: "CREATE TABLE n (i INTEGER); WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 6000)
              INSERT INTO n SELECT i FROM s;
              SELECT count(*) FROM (SELECT 'canary-sorted-' || (i * 7919 % 6007) || hex(zeroblob(200)) AS c FROM n ORDER BY c LIMIT -1 OFFSET 1);
              SELECT length(group_concat(c)) FROM (SELECT DISTINCT 'canary-distinct-' || (i % 500) || hex(zeroblob(300)) AS c FROM n)",
        shows_in: &["temporary"],
    },
    Workload {
        name: "index build",
        settings: "PRAGMA temp_store = FILE; PRAGMA cache_size = 10",
        sql: "CREATE TABLE t (a TEXT); WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 4000)
              INSERT INTO t SELECT 'canary-key-' || (i * 7919 % 4001) || hex(zeroblob(200)) FROM s;
              CREATE INDEX i ON t (a)",
        shows_in: &["main", "temporary"],
    },
    Workload {
        name: "temporary table",
        settings: "PRAGMA temp_store = FILE; PRAGMA cache_size = 10; PRAGMA temp.cache_size = 5",
        sql: "CREATE TEMP TABLE tt (a TEXT, b BLOB); CREATE INDEX temp.ti ON tt (a);
              WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 2000)
              INSERT INTO tt SELECT 'canary-temp-' || i, zeroblob(300) FROM s;
              BEGIN; UPDATE tt SET a = 'canary-temp-new' || a; ROLLBACK; SELECT count(*) FROM tt WHERE a LIKE 'canary%'",
        shows_in: &["temporary"],
    },
    Workload {
        name: "statement journal",
        settings: "PRAGMA temp_store = FILE; PRAGMA cache_size = 10; PRAGMA journal_mode = DELETE",
        sql: "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT UNIQUE);
              WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 3000)
              INSERT INTO t SELECT i, 'canary-statement-' || i || hex(zeroblob(100)) FROM s;
              BEGIN; SAVEPOINT one; UPDATE t SET a = 'canary-later-' || a; SAVEPOINT two; UPDATE t SET a = a || 'z'; ROLLBACK TO two;
              INSERT OR IGNORE INTO t SELECT id + 2000, a FROM t; ROLLBACK TO one; COMMIT",
        shows_in: &["main", "journal", "temporary"],
    },
    Workload {
        name: "vacuum",
        settings: "PRAGMA temp_store = FILE; PRAGMA cache_size = 10",
        sql: "CREATE TABLE t (a TEXT); WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 3000)
              INSERT INTO t SELECT 'canary-vacuum-' || i || hex(zeroblob(100)) FROM s; DELETE FROM t WHERE rowid % 2; VACUUM",
        shows_in: &["main", "journal", "temporary"],
    },
    Workload {
        name: "auto_vacuum and secure_delete",
        settings: "PRAGMA auto_vacuum = FULL; PRAGMA secure_delete = ON",
        sql: ROWS,
        shows_in: &["main", "journal"],
    },
    Workload {
        name: "small pages, psow=0",
        settings: "PRAGMA page_size = 512; PRAGMA journal_mode = WAL; PRAGMA cache_size = 10; PRAGMA wal_autocheckpoint = 50",
        sql: ROWS,
        shows_in: &["main", "wal"],
    },
];

fn kind(path: &str) -> &'static str {
    match path {
        p if p.ends_with("-journal") => "journal",
        p if p.ends_with("-wal") => "wal",
        p if p.ends_with("-shm") => "shm",
        p if p.contains("etilqs") => "temporary",
        _ => "main",
    }
}

/// The kinds of files into which the canary was written at any time.
fn shown(
    sqlite: &Sqlite,
    engine: Engine,
    workload: &Workload,
) -> (BTreeSet<&'static str>, BTreeSet<&'static str>) {
    sqlite.clear();
    let log = sqlite.dir().join("log");
    let _ = fs::remove_file(&log);
    let mut worker = sqlite.faulty_worker(engine, Fault::None, Some(&log));
    let parameters: &[&str] = if workload.name.contains("psow=0") { &["psow=0"] } else { &[] };
    worker.open(0, &sqlite.uri(engine, "l.db", parameters)).unwrap();
    worker.run(workload.settings);
    worker.run(workload.sql);
    let mut found = BTreeSet::new();
    // Shared memory is mapped, not written.
    if let Ok(shm) = fs::read(sqlite.file("l.db-shm"))
        && contains(&shm, CANARY.as_bytes())
    {
        found.insert("shm");
    }
    worker.ask("close 0").unwrap();
    let (ended, messages) = worker.finish();
    assert!(ended, "{messages}");
    let mut written = BTreeSet::new();
    for (path, _, bytes) in Disk::read(&log).writes() {
        written.insert(kind(path));
        if contains(bytes, CANARY.as_bytes()) || contains(bytes, b"SQLite format 3") {
            found.insert(kind(path));
        }
    }
    (found, written)
}

#[test]
fn no_plaintext_in_any_file_ever_written() {
    let sqlite = Sqlite::new();
    for workload in &WORKLOADS {
        let name = workload.name;
        let (plain, plain_written) = shown(&sqlite, Engine::Plain, workload);
        let expected: BTreeSet<_> = workload.shows_in.iter().copied().collect();
        assert!(plain.is_superset(&expected), "{name}: the search found the canary only in {plain:?}");
        let (encrypted, written) = shown(&sqlite, Engine::Tde, workload);
        assert_eq!(written, plain_written, "{name}: kinds of files");
        if Engine::Tde.encrypts() {
            assert!(encrypted.is_empty(), "{name}: plaintext in {encrypted:?}");
        }
    }
}

#[test]
fn no_checksum_of_plaintext_in_wal_or_journal() {
    let sqlite = Sqlite::new();
    for engine in [Engine::Plain, Engine::Tde] {
        let mut worker = sqlite.worker(engine);
        worker.open(0, &sqlite.uri(engine, "w.db", &[])).unwrap();
        worker.run("PRAGMA page_size = 4096; PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0");
        worker.run(ROWS);
        let presented = hex::decode(&worker.ask("shown 0 wal").unwrap()[0][0]).unwrap();
        let raw = fs::read(sqlite.file("w.db-wal")).unwrap();
        assert_eq!(presented.len(), raw.len());
        let frames = (presented.len() - 32) / 4120;
        assert!(frames > 30, "{frames} frames");
        let mut same = 0;
        for frame in 0..frames {
            let at = 32 + frame * 4120;
            assert_eq!(presented[at..at + 8], raw[at..at + 8], "page number and commit mark stay clear");
            same += usize::from(presented[at + 16..at + 24] == raw[at + 16..at + 24]);
            let checksum = &presented[at + 16..at + 24];
            if engine.encrypts() {
                assert!(!contains(&raw, checksum), "checksum of frame {frame} is in the file");
            }
        }
        assert_eq!(
            same,
            if engine.encrypts() { 0 } else { frames },
            "{engine:?}: frames with their checksum in clear"
        );
        worker.ask("close 0").unwrap();

        worker.open(0, &sqlite.uri(engine, "j.db", &[])).unwrap();
        worker.run("PRAGMA page_size = 4096; PRAGMA journal_mode = PERSIST; PRAGMA cache_size = 5000");
        worker.run(ROWS);
        worker.run("BEGIN; UPDATE canary_schema SET secret = secret || 'q'");
        let presented = hex::decode(&worker.ask("shown 0 journal").unwrap()[0][0]).unwrap();
        let raw = fs::read(sqlite.file("j.db-journal")).unwrap();
        let (mut same, mut records) = (0, 0);
        let mut at = 512;
        while at + 4104 <= presented.len() && presented[at..at + 4] == raw[at..at + 4] {
            if presented[at..at + 4] == [0; 4] {
                break;
            }
            same += usize::from(presented[at + 4100..at + 4104] == raw[at + 4100..at + 4104]);
            records += 1;
            at += 4104;
        }
        assert!(records > 20, "{engine:?}: {records} records");
        assert!(
            if engine.encrypts() { same == 0 } else { same == records },
            "{engine:?}: {same} of {records} in clear"
        );
        worker.run("ROLLBACK");
        worker.ask("close 0").unwrap();
        sqlite.clear();
    }
}
