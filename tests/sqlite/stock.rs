//! Stock SQLite without the extension opens an encrypted database and closes it: nothing is lost.

use std::fs;

use tde_tests::sqlite::{Disk, Engine, Fault, Refusal, Sqlite, Worker};

const NOT_A_DATABASE: i32 = 26;

fn fill(worker: &mut Worker, uri: &str, mode: &str) {
    worker.open(0, uri).unwrap();
    worker
        .run(&format!("PRAGMA journal_mode = {mode}; PRAGMA cache_size = 10; PRAGMA wal_autocheckpoint = 0"));
    worker.run(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, pad TEXT);
         WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 500)
         INSERT INTO t SELECT i, hex(zeroblob(200)) FROM s",
    );
}

/// What stock SQLite says to every way of using the file.
fn stock_tries(sqlite: &Sqlite, name: &str) {
    for sql in [
        "SELECT * FROM sqlite_schema",
        "PRAGMA integrity_check",
        "CREATE TABLE x (y)",
        "PRAGMA journal_mode = DELETE",
        "VACUUM",
    ] {
        let mut worker = sqlite.worker(Engine::Plain);
        worker.open(0, &sqlite.uri(Engine::Plain, name, &[])).unwrap();
        let refused = worker.sql(sql);
        assert!(
            matches!(&refused, Err(e) if e.primary() == NOT_A_DATABASE || e.primary() == 14)
                || sql.contains("journal_mode"),
            "{sql}: {refused:?}"
        );
        worker.ask("close 0").unwrap();
        assert!(worker.finish().0);
    }
}

#[test]
fn a_live_wal_stays_when_stock_sqlite_opens_the_database() {
    let sqlite = Sqlite::new();
    let uri = sqlite.uri(Engine::Tde, "w.db", &[]);
    let mut worker = sqlite.worker(Engine::Tde);
    fill(&mut worker, &uri, "WAL");
    worker.run("UPDATE t SET pad = 'new' WHERE id = 1");
    worker.kill();
    let files = ["w.db", "w.db-wal"].map(|name| sqlite.file(name));
    let before = files.clone().map(|f| fs::read(f).unwrap());
    assert!(before[1].len() > 100_000);
    stock_tries(&sqlite, "w.db");
    assert_eq!(files.map(|f| fs::read(f).unwrap()), before, "stock SQLite changed the database or its WAL");
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &uri).unwrap();
    assert_eq!(worker.int("SELECT count(*) FROM t"), 500);
    assert_eq!(worker.text("SELECT pad FROM t WHERE id = 1"), "new");
}

#[test]
fn a_hot_journal_is_rolled_back_by_stock_sqlite_without_any_key() {
    let sqlite = Sqlite::new();
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        sqlite.clear();
        let uri = sqlite.uri(Engine::Tde, "j.db", &[]);
        fill(&mut sqlite.worker(Engine::Tde), &uri, mode);
        let before = fs::read(sqlite.file("j.db")).unwrap();
        // Counted once: the transaction dies at two thirds of its operations, when the cache has spilled.
        let log = sqlite.dir().join(format!("log-{mode}"));
        let update = "PRAGMA cache_size = 10; UPDATE t SET pad = pad || 'x'";
        let mut worker = sqlite.faulty_worker(Engine::Tde, Fault::None, Some(&log));
        worker.open(0, &uri).unwrap();
        worker.run(&format!("{update} WHERE 0; BEGIN; {update}; ROLLBACK"));
        let total = Disk::read(&log).operations.len() as u32;
        drop(worker);
        assert_eq!(fs::read(sqlite.file("j.db")).unwrap().len(), before.len());
        let before = fs::read(sqlite.file("j.db")).unwrap();
        let mut worker = sqlite.faulty_worker(Engine::Tde, Fault::Kill(total / 3), None);
        worker.open(0, &uri).unwrap();
        assert_eq!(worker.sql(&format!("PRAGMA journal_mode = {mode}; {update}")), Err(Refusal::Died));
        drop(worker);
        assert!(sqlite.file("j.db-journal").metadata().unwrap().len() > 10_000, "{mode}: a hot journal");
        assert_ne!(fs::read(sqlite.file("j.db")).unwrap(), before, "{mode}: pages were spilled");
        stock_tries(&sqlite, "j.db");
        let after = fs::read(sqlite.file("j.db")).unwrap();
        assert_eq!(after.len(), before.len(), "{mode}: rolled back to its size");
        assert!(fs::metadata(sqlite.file("j.db-journal")).map_or(0, |m| m.len()) <= 512 || mode == "PERSIST");
        // The images in a journal are sealed anew: the same pages, not the same bytes.
        let mut worker = sqlite.worker(Engine::Tde);
        worker.open(0, &uri).unwrap();
        assert_eq!(worker.text("PRAGMA integrity_check"), "ok");
        assert_eq!(worker.int("SELECT count(*) FROM t WHERE length(pad) = 400"), 500);
    }
}

#[test]
fn a_clean_encrypted_database_is_not_a_database_to_stock_sqlite() {
    let sqlite = Sqlite::new();
    let uri = sqlite.uri(Engine::Tde, "c.db", &[]);
    fill(&mut sqlite.worker(Engine::Tde), &uri, "DELETE");
    let before = fs::read(sqlite.file("c.db")).unwrap();
    stock_tries(&sqlite, "c.db");
    assert_eq!(fs::read(sqlite.file("c.db")).unwrap(), before);
}
