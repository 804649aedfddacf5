//! A database made by Debian's SQLite opens in the newest, and back: closed, with a live WAL, with a hot journal.

use std::fs;

use rusqlite::{Connection, OpenFlags};
use tde_tests::plain_mode;
use tde_tests::sqlite::{Engine, Fault, Refusal, Sqlite};

/// The newest SQLite, compiled into this process.
fn newest(sqlite: &Sqlite, name: &str) -> Connection {
    if !plain_mode() {
        let hsm = format!("soft:{}", sqlite.store.display());
        tde_rusqlite::Vfs::builder()
            .keyring(&sqlite.keyring)
            .unwrap()
            .hsm(&hsm)
            .unwrap()
            .pin_file(&sqlite.pin_file)
            .register()
            .unwrap();
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(sqlite.uri(Engine::Tde, name, &[]), flags).unwrap()
}

fn number(db: &Connection, sql: &str) -> i64 {
    db.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|e| panic!("{sql}: {e}"))
}

const FILL: &str = "CREATE TABLE t (id INTEGER PRIMARY KEY, pad TEXT); CREATE INDEX i ON t (pad);
    WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 400)
    INSERT INTO t SELECT i, hex(zeroblob(200)) || i FROM s";

#[test]
fn a_database_goes_from_the_distributions_sqlite_to_the_newest_and_back() {
    let sqlite = Sqlite::new();
    let uri = |name| sqlite.uri(Engine::Tde, name, &[]);

    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &uri("there.db")).unwrap();
    let old = worker.text("SELECT sqlite_version()");
    worker.run(FILL);
    // A WAL whose writer was killed.
    worker.open(0, &uri("wal.db")).unwrap();
    worker.run("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0");
    worker.run(FILL);
    worker.kill();
    // A transaction killed when half of it is in the file.
    let mut worker = sqlite.faulty_worker(Engine::Tde, Fault::Kill(400), None);
    worker.open(0, &uri("hot.db")).unwrap();
    worker.run(FILL);
    assert_eq!(
        worker.sql(
            "PRAGMA cache_size = 10; UPDATE t SET pad = pad || 'new'; UPDATE t SET pad = pad || 'newer'"
        ),
        Err(Refusal::Died)
    );
    drop(worker);
    assert!(fs::metadata(sqlite.file("hot.db-journal")).unwrap().len() > 10_000);

    for name in ["there.db", "wal.db", "hot.db"] {
        let db = newest(&sqlite, name);
        let version: String = db.query_row("SELECT sqlite_version()", [], |row| row.get(0)).unwrap();
        let numbers = |version: &str| version.split('.').map(|n| n.parse().unwrap()).collect::<Vec<u32>>();
        assert!(numbers(&version) > numbers(&old), "{version} is newer than {old}");
        let check: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok", "{name}");
        assert_eq!(
            number(&db, "SELECT count(*) FROM t WHERE pad LIKE '0%' AND pad NOT LIKE '%newer'"),
            400,
            "{name}"
        );
        db.execute_batch("PRAGMA cache_size = 10; UPDATE t SET pad = 'from the newest ' || pad WHERE id % 2")
            .unwrap();
    }

    // Back, with the newest's WAL live: this process does not close it before the other has copied it.
    let db = newest(&sqlite, "wal.db");
    db.execute_batch("PRAGMA wal_autocheckpoint = 0; UPDATE t SET pad = 'again ' || pad WHERE id % 2")
        .unwrap();
    for end in ["", "-wal"] {
        fs::copy(sqlite.file(&format!("wal.db{end}")), sqlite.file(&format!("copy.db{end}"))).unwrap();
    }
    drop(db);
    for (name, expected) in
        [("there.db", "from the newest %"), ("hot.db", "from the newest %"), ("copy.db", "again from the %")]
    {
        let mut worker = sqlite.worker(Engine::Tde);
        worker.open(0, &uri(name)).unwrap();
        assert_eq!(worker.text("PRAGMA integrity_check"), "ok", "{name}");
        assert_eq!(worker.int(&format!("SELECT count(*) FROM t WHERE pad LIKE '{expected}'")), 200, "{name}");
    }
}
