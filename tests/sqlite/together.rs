//! One transaction over an encrypted and a plain file, killed at every operation: both roll back or neither does.

use tde_tests::sqlite::{Disk, Engine, Fault, Refusal, Sqlite, Worker};

const FILL: &str = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 60)
                    INSERT INTO t SELECT i, 1, hex(zeroblob(200)) FROM s";

fn prepare(sqlite: &Sqlite) {
    sqlite.clear();
    let mut worker = sqlite.worker(Engine::Tde);
    for (n, engine, name) in [(0, Engine::Tde, "secret.db"), (1, Engine::Plain, "plain.db")] {
        worker.open(n, &sqlite.uri(engine, name, &[])).unwrap();
        worker.sql_on(n, "CREATE TABLE t (id INTEGER PRIMARY KEY, gen INTEGER, pad TEXT)").unwrap();
        worker.sql_on(n, FILL).unwrap();
    }
}

fn transaction(worker: &mut Worker, sqlite: &Sqlite) -> Result<(), Refusal> {
    worker.open(0, &sqlite.uri(Engine::Tde, "secret.db", &[]))?;
    worker.sql(&format!("ATTACH 'file:{}?vfs=unix' AS p", sqlite.file("plain.db").display()))?;
    worker.sql("PRAGMA main.cache_size = 10; PRAGMA p.cache_size = 10")?;
    worker.sql("BEGIN; UPDATE main.t SET gen = 2, pad = pad || 'n'; UPDATE p.t SET gen = 2, pad = pad || 'n'; COMMIT")?;
    worker.ask("close 0").map(|_| ())
}

/// The generation of all rows of a file, which must be sound.
fn generation(worker: &mut Worker, uri: &str) -> i64 {
    worker.open(0, uri).unwrap_or_else(|e| panic!("{uri}: {e}"));
    assert_eq!(worker.text("PRAGMA integrity_check"), "ok", "{uri}");
    assert_eq!(worker.int("SELECT count(*) FROM t"), 60, "{uri}");
    assert_eq!(worker.int("SELECT count(DISTINCT gen) FROM t"), 1, "{uri}");
    let generation = worker.int("SELECT max(gen) FROM t");
    worker.ask("close 0").unwrap();
    generation
}

#[test]
fn a_killed_transaction_over_a_plain_and_an_encrypted_file_rolls_both_back() {
    let sqlite = Sqlite::new();
    prepare(&sqlite);
    let log = sqlite.dir().join("log");
    transaction(&mut sqlite.faulty_worker(Engine::Tde, Fault::None, Some(&log)), &sqlite).unwrap();
    let disk = Disk::read(&log);
    assert!(disk.opened.values().any(|path| path.contains("-mj")), "no super-journal: {:?}", disk.opened);
    let total = disk.operations.len() as u32;
    let mut seen = [0, 0];
    for at in 1..=total {
        prepare(&sqlite);
        let died = transaction(&mut sqlite.faulty_worker(Engine::Tde, Fault::Kill(at), None), &sqlite);
        assert_eq!(died, Err(Refusal::Died), "operation {at} of {total}");
        let mut generations = Vec::new();
        // Whichever file is opened first: the plain one by stock SQLite without the extension.
        let order = [(Engine::Plain, "plain.db"), (Engine::Tde, "secret.db")];
        for index in if at % 2 == 0 { [0, 1] } else { [1, 0] } {
            let (engine, name) = order[index];
            generations.push(generation(&mut sqlite.worker(engine), &sqlite.uri(engine, name, &[])));
        }
        assert_eq!(
            generations[0], generations[1],
            "killed at {at} of {total}: one file rolled back, the other not"
        );
        seen[generations[0] as usize - 1] += 1;
    }
    assert!(seen[0] > total / 4 && seen[1] > 0, "rolled back and kept: {seen:?}");
}
