//! Traps of SQLite that need processes of their own: locks (G), keys before journals (A), promises of the device (Q). The table of all is
//! docs/testing/sqlite-traps.md.

use std::fs;
use std::path::Path;

use tde_tests::plain_mode;
use tde_tests::sqlite::{Engine, Fault, Refusal, Sqlite};

const BUSY: i32 = 5;

#[test]
fn the_table_of_traps_names_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = fs::read_to_string(root.join("docs/testing/sqlite-traps.md")).unwrap();
    let rows: Vec<_> = table
        .lines()
        .filter(|line| {
            line.starts_with("| **")
                || line.starts_with("| A")
                || line.starts_with("| B")
                || line.starts_with("| O")
        })
        .collect();
    for trap in ('A'..='R').map(String::from).chain((1..=10).map(|n| n.to_string())) {
        assert!(rows.iter().any(|row| row.contains(&format!("**{trap}**"))), "nothing about {trap}");
    }
    let mut seen = 0;
    for name in
        rows.iter().flat_map(|row| row.split('`')).filter(|word| word.as_bytes().get(1) == Some(&b'/'))
    {
        let (folder, rest) = name.split_once('/').unwrap();
        let folder = match folder {
            "U" => "sqlite-vfs/src",
            "V" => "sqlite-vfs/tests",
            "S" => "tests/sqlite",
            _ => "tde-cli/tests",
        };
        let (file, test) = rest.split_once("::").unwrap_or((rest, ""));
        let source = fs::read_to_string(root.join(folder).join(format!("{file}.rs")))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(
            test.is_empty() && source.contains("#[test]") || source.contains(&format!("fn {test}()")),
            "{name}"
        );
        seen += 1;
    }
    assert!(seen > 30, "{seen}");
}

/// Closing any descriptor of a file gives up all of the process's POSIX locks on it.
#[test]
fn nothing_that_a_program_does_beside_its_transaction_loses_its_locks() {
    let sqlite = Sqlite::new();
    for mode in ["DELETE", "WAL"] {
        let name = format!("{mode}.db");
        let uri = sqlite.uri(Engine::Tde, &name, &[]);
        let mut writer = sqlite.worker(Engine::Tde);
        writer.open(0, &uri).unwrap();
        writer.run(&format!("PRAGMA journal_mode = {mode}; CREATE TABLE t (x)"));
        writer.run("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
        let mut other = sqlite.worker(Engine::Tde);
        other.open(0, &uri).unwrap();
        other.run("PRAGMA busy_timeout = 0");
        // In the same process: its own pragmas, another connection that comes and goes, files that are refused.
        let mut beside: Vec<(u32, String)> = Vec::new();
        if !plain_mode() {
            for pragma in ["tde_verify", "tde_status", "tde_key_version", "tde_rotate"] {
                beside.push((1, format!("PRAGMA {pragma}")));
                beside.push((0, format!("PRAGMA {pragma}")));
            }
        }
        beside.push((1, "SELECT count(*) FROM t".into()));
        for (n, sql) in beside {
            if n == 1 {
                writer.open(1, &uri).unwrap();
            }
            writer.sql_on(n, &sql).unwrap_or_else(|e| panic!("{mode}: {sql}: {e}"));
            if n == 1 {
                writer.ask("close 1").unwrap();
            }
            let taken = other.sql("BEGIN IMMEDIATE");
            assert!(
                matches!(&taken, Err(refused) if refused.primary() == BUSY),
                "{mode}: after {sql} another process writes too: {taken:?}"
            );
        }
        writer.run("COMMIT");
        other.run("INSERT INTO t VALUES (2)");
        assert_eq!(writer.text("PRAGMA integrity_check"), "ok");
        assert_eq!(writer.int("SELECT count(*) FROM t"), 2);
    }
}

/// What cannot be opened must be refused before SQLite rolls back, or deletes, what lies beside it.
#[test]
fn who_has_no_key_touches_neither_wal_nor_journal() {
    if plain_mode() {
        return;
    }
    let sqlite = Sqlite::new();
    for (mode, suffix) in [("DELETE", "-journal"), ("WAL", "-wal")] {
        for engine in [Engine::Tde, Engine::Plain] {
            sqlite.clear();
            let uri = sqlite.uri(engine, "k.db", &[]);
            let mut worker = sqlite.faulty_worker(engine, Fault::Kill(150), None);
            worker.open(0, &uri).unwrap();
            let died = worker.sql(&format!(
                "PRAGMA journal_mode = {mode}; PRAGMA cache_size = 5; CREATE TABLE t (x);
                 INSERT INTO t VALUES (zeroblob(60000)); BEGIN; UPDATE t SET x = randomblob(60000);
                 INSERT INTO t VALUES (zeroblob(600000)); COMMIT; INSERT INTO t VALUES (zeroblob(600000))"
            ));
            assert_eq!(died, Err(Refusal::Died), "{mode}");
            drop(worker);
            let files = ["k.db".to_owned(), format!("k.db{suffix}")].map(|name| sqlite.file(&name));
            let before = files.clone().map(|file| fs::read(file).unwrap());
            assert!(before[1].len() > 10_000 && before[1][0] != 0, "{mode}: nothing is unfinished");
            // An encrypted file whose keyring entry is missing; a plaintext one under vfs=tde.
            if engine == Engine::Tde {
                fs::rename(&sqlite.keyring, sqlite.dir().join("away")).unwrap();
            }
            let mut worker = sqlite.worker(Engine::Tde);
            let opened = worker
                .open(0, &sqlite.uri(Engine::Tde, "k.db", &[]))
                .and_then(|_| worker.sql("SELECT count(*) FROM t"));
            assert!(matches!(opened, Err(Refusal::Sqlite { .. })), "{mode}: {opened:?}");
            assert!(worker.finish().0);
            assert!(
                files.clone().map(|file| fs::read(file).unwrap()) == before,
                "{mode} {engine:?}: touched"
            );
            if engine == Engine::Tde {
                fs::rename(sqlite.dir().join("away"), &sqlite.keyring).unwrap();
            }
            let mut worker = sqlite.worker(engine);
            worker.open(0, &uri).unwrap();
            assert_eq!(worker.text("PRAGMA integrity_check"), "ok", "{mode} {engine:?}");
        }
    }
}

#[test]
fn the_device_promises_only_what_holds_for_sealed_pages() {
    if plain_mode() {
        return;
    }
    const KEPT: u32 = 0x1000 | 0x0800 | 0x2000;
    let sqlite = Sqlite::new();
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &sqlite.uri(Engine::Tde, "d.db", &[])).unwrap();
    worker.run("CREATE TABLE t (x)");
    let reply = worker.ask("device 0").unwrap();
    let [flags, sector, version] = [0, 1, 2].map(|i| reply[0][i].parse::<u32>().unwrap());
    assert_eq!(flags & !KEPT, 0, "{flags:#x}");
    assert_eq!(version, 2, "no pages are mapped");
    assert!(sector >= 512);
    assert_eq!(worker.int("PRAGMA mmap_size = 100000000; SELECT count(*) FROM t"), 0);
}
