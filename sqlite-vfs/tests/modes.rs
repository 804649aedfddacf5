//! Every page size, journal mode and auto-vacuum mode: the database works, survives, and shows nothing.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rusqlite::backup::Backup;

#[test]
fn page_sizes_journal_modes_and_auto_vacuum() {
    for page_size in [512, 1024, 4096, 65536] {
        for (mode, auto_vacuum) in [
            ("delete", 0),
            ("truncate", 1),
            ("persist", 2),
            ("memory", 0),
            ("wal", 1),
            ("wal", 2),
            ("off", 0),
        ] {
            let scratch = Scratch::new();
            let db = scratch.open("a.db");
            db.execute_batch(&format!(
                "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}; PRAGMA journal_mode={mode};
                 PRAGMA cache_size=10; PRAGMA synchronous=OFF;"
            ))
            .unwrap();
            fill(&db, 800);
            if mode != "off" {
                db.execute_batch(
                    "BEGIN; DELETE FROM t WHERE id%3=0; UPDATE t SET filler=zeroblob(900); ROLLBACK",
                )
                .unwrap();
            }
            db.execute_batch("DELETE FROM t WHERE id%4=0; PRAGMA incremental_vacuum(10)").unwrap();
            let wal = if mode == "wal" { scratch.bytes("a.db-wal") } else { Vec::new() };
            assert!(!has(&wal, CANARY.as_bytes()));
            drop(db);

            let db = scratch.open("a.db");
            assert_healthy(&db, 600);
            assert_eq!(text(&db, "PRAGMA page_size"), page_size.to_string());
            assert_eq!(text(&db, "PRAGMA auto_vacuum"), auto_vacuum.to_string());
            db.execute_batch("VACUUM").unwrap();
            assert_healthy(&db, 600);
            drop(db);
            let bytes = scratch.bytes("a.db");
            assert!(bytes.starts_with(b"TDE\x01"), "{mode} {page_size}");
            assert!(!has(&bytes, CANARY.as_bytes()) && !has(&bytes, b"CREATE TABLE"));
        }
    }
}

#[test]
fn attach_and_vacuum_into_make_encrypted_files() {
    let scratch = Scratch::new();
    let db = scratch.open("main.db");
    fill(&db, 100);
    let (attached, copy) = (scratch.path("attached.db"), scratch.path("copy.db"));
    db.execute_batch(&format!(
        "ATTACH '{}' AS other; CREATE TABLE other.t AS SELECT * FROM main.t; DETACH other; VACUUM INTO '{}'",
        attached.display(),
        copy.display()
    ))
    .unwrap();
    for name in ["attached.db", "copy.db"] {
        assert!(scratch.bytes(name).starts_with(b"TDE\x01"));
        assert_healthy(&scratch.open(name), 100);
    }
    // Another page size comes with VACUUM INTO, too.
    db.execute_batch(&format!("PRAGMA page_size=8192; VACUUM INTO '{}'", scratch.path("big.db").display()))
        .unwrap();
    assert_eq!(text(&scratch.open("big.db"), "PRAGMA page_size"), "8192");
}

#[test]
fn vacuum_into_from_plaintext_encrypts() {
    let scratch = Scratch::new();
    for page_size in [512, 1024, 8192, 65536] {
        let plain =
            open(&format!("file:{}", scratch.path(&format!("plain{page_size}.db")).display())).unwrap();
        plain.execute_batch(&format!("PRAGMA page_size={page_size}; PRAGMA auto_vacuum=1")).unwrap();
        fill(&plain, 200);
        let target = scratch.uri(&format!("{page_size}.db"), "&plain_temp=1");
        plain.execute("VACUUM INTO ?1", [target]).unwrap();
        let db = scratch.open(&format!("{page_size}.db"));
        assert_healthy(&db, 200);
        assert_eq!(text(&db, "PRAGMA page_size"), page_size.to_string());
    }
}

#[test]
fn a_transaction_over_two_files_is_one() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    db.execute_batch(&format!(
        "PRAGMA cache_size=5; CREATE TABLE t(x); ATTACH '{}' AS b; CREATE TABLE b.t(x);
         BEGIN; INSERT INTO main.t VALUES(1); INSERT INTO b.t VALUES(2); COMMIT",
        scratch.path("b.db").display()
    ))
    .unwrap();
    assert_eq!(text(&db, "SELECT (SELECT x FROM main.t) + (SELECT x FROM b.t)"), "3");
}

#[test]
fn without_locks_and_with_a_shared_cache() {
    let scratch = Scratch::new();
    let db = scratch.open_with("nolock.db", "&nolock=1").unwrap();
    fill(&db, 50);
    drop(db);
    assert!(scratch.bytes("nolock.db").starts_with(b"TDE\x01"));
    assert_healthy(&scratch.open("nolock.db"), 50);

    let first = scratch.open_with("shared.db", "&cache=shared").unwrap();
    let second = scratch.open_with("shared.db", "&cache=shared").unwrap();
    // Whoever has come last is who SQLite has told the file about.
    drop((first, scratch.open_with("shared.db", "&cache=shared").unwrap()));
    // Whoever still looks where that connection was finds one of these.
    let _others: Vec<_> = (0..16).map(|_| open("file::memory:").unwrap()).collect();
    fill(&second, 50);
    assert_healthy(&second, 50);
}

#[test]
fn backups_between_encrypted_databases() {
    let scratch = Scratch::new();
    let source = scratch.open("source.db");
    // Pages that were freed and never written: the backup reads them all the same.
    source.execute_batch("PRAGMA cache_size=10").unwrap();
    fill(&source, 500);
    source.execute_batch("DELETE FROM t WHERE id > 100").unwrap();
    let mut target = scratch.open("target.db");
    Backup::new(&source, &mut target).unwrap().run_to_completion(7, std::time::Duration::ZERO, None).unwrap();
    assert_healthy(&target, 100);
    drop(target);
    let (one, other) = (scratch.bytes("source.db"), scratch.bytes("target.db"));
    assert_ne!(one[4..16], other[4..16], "each file has an id of its own");
}

#[test]
fn temporary_files_show_nothing() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    // Everything that can go to a file does; the files are deleted as soon as they are open.
    db.execute_batch("PRAGMA temp_store=FILE; PRAGMA cache_size=5; PRAGMA temp.cache_size=5").unwrap();
    fill(&db, 2000);
    db.execute_batch(
        "CREATE TEMP TABLE copy AS SELECT * FROM t ORDER BY filler;
         CREATE INDEX temp.by_filler ON copy(filler);
         BEGIN; UPDATE copy SET name = name || '-again'; UPDATE OR ROLLBACK t SET name = name; COMMIT;
         BEGIN; UPDATE copy SET name = 'gone'; ROLLBACK;",
    )
    .unwrap();
    let fds: Vec<_> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|fd| {
            let link = fd.unwrap().path();
            let target = std::fs::read_link(&link).ok()?;
            target.to_string_lossy().contains("(deleted)").then_some(link)
        })
        .collect();
    assert!(!fds.is_empty(), "the temporary database is a file");
    for fd in fds {
        assert!(!has(&std::fs::read(fd).unwrap(), CANARY.as_bytes()));
    }
    assert_eq!(text(&db, "SELECT count(*) FROM copy WHERE name LIKE '%-again'"), "2000");
    assert_eq!(text(&db, "PRAGMA temp.integrity_check"), "ok");
}
