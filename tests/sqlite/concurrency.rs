//! Many processes on one file, in rollback and WAL mode: no update is lost, no reader sees half a transaction.

use std::thread;

use tde_tests::soak;
use tde_tests::sqlite::{Engine, Refusal, Sqlite, Worker};

const ACCOUNTS: i64 = 40;
const BUSY: i32 = 5;

/// Moves money between two accounts; says whether it was done.
fn transfer(worker: &mut Worker, round: i64) -> bool {
    let (from, to) = (round * 7 % ACCOUNTS + 1, round * 13 % ACCOUNTS + 1);
    let sql = format!(
        "BEGIN IMMEDIATE; UPDATE account SET cents = cents - 1, moves = moves + 1, pad = hex(zeroblob(300 + {round} % 100)) WHERE id = {from};
         UPDATE account SET cents = cents + 1, moves = moves + 1 WHERE id = {to}; COMMIT"
    );
    match worker.sql(&sql) {
        Ok(_) => true,
        Err(e) if e.primary() == BUSY => {
            let _ = worker.sql("ROLLBACK");
            false
        }
        Err(e) => panic!("{e}\n{}", worker.log_now()),
    }
}

fn processes(mode: &str) {
    let sqlite = Sqlite::new();
    let uri = sqlite.uri(Engine::Tde, "c.db", &[]);
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &uri).unwrap();
    worker.run(&format!(
        "PRAGMA journal_mode = {mode}; CREATE TABLE account (id INTEGER PRIMARY KEY, cents INTEGER, moves INTEGER, pad TEXT);
         WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {ACCOUNTS})
         INSERT INTO account SELECT i, 1000, 0, hex(zeroblob(300)) FROM s"
    ));
    let rounds: i64 = if soak() { 2000 } else { 150 };
    let moved: i64 = thread::scope(|scope| {
        let writers: Vec<_> = (0..4_i64)
            .map(|n| {
                let (sqlite, uri) = (&sqlite, &uri);
                scope.spawn(move || {
                    let mut worker = sqlite.worker(Engine::Tde);
                    worker.open(0, uri).unwrap();
                    worker.run(
                        "PRAGMA wal_autocheckpoint = 30; PRAGMA cache_size = 10; PRAGMA synchronous = OFF",
                    );
                    let mut moved = 0;
                    for round in 0..rounds {
                        moved += i64::from(transfer(&mut worker, round * 4 + n));
                        // Connections come and go.
                        if round % 50 == 49 {
                            worker.ask("close 0").unwrap();
                            worker.open(0, uri).unwrap();
                        }
                    }
                    moved
                })
            })
            .collect();
        for _ in 0..2 {
            let (sqlite, uri) = (&sqlite, &uri);
            scope.spawn(move || {
                let mut worker = sqlite.worker(Engine::Tde);
                worker.open(0, uri).unwrap();
                for _ in 0..rounds {
                    match worker.sql("SELECT sum(cents), sum(moves) % 2, count(*) FROM account") {
                        Ok(rows) => assert_eq!(
                            rows[0],
                            [(ACCOUNTS * 1000).to_string(), "0".into(), ACCOUNTS.to_string()]
                        ),
                        Err(e) if e.primary() == BUSY => {}
                        Err(e) => panic!("reader: {e}\n{}", worker.log_now()),
                    }
                }
            });
        }
        writers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    assert_eq!(
        worker.int("SELECT sum(moves) FROM account"),
        2 * moved,
        "{mode}: every confirmed transfer counts once"
    );
    assert_eq!(worker.text("PRAGMA integrity_check"), "ok");
    assert!(moved > rounds, "{mode}: {moved} transfers");
}

#[test]
fn many_processes_in_rollback_mode() {
    processes("DELETE");
}

#[test]
fn many_processes_in_wal_mode() {
    processes("WAL");
}

#[test]
fn a_first_transaction_raced_by_many_processes_makes_one_database() {
    let sqlite = Sqlite::new();
    for round in 0..if soak() { 50 } else { 6 } {
        let uri = sqlite.uri(Engine::Tde, &format!("new{round}.db"), &[]);
        let mut workers: Vec<Worker> = (0..4).map(|_| sqlite.worker(Engine::Tde)).collect();
        for worker in &mut workers {
            worker.open(0, &uri).unwrap();
        }
        for (n, worker) in workers.iter_mut().enumerate() {
            worker.send(&format!(
                "sql 0 BEGIN IMMEDIATE; CREATE TABLE IF NOT EXISTS t (n INTEGER, pad TEXT); INSERT INTO t VALUES ({n}, hex(zeroblob(3000))); COMMIT"
            ));
        }
        for worker in &mut workers {
            worker.receive().unwrap_or_else(|e| panic!("round {round}: {e}\n{}", worker.log_now()));
        }
        for worker in &mut workers {
            assert_eq!(worker.int("SELECT count(*) FROM t"), 4, "round {round}");
            assert_eq!(worker.text("PRAGMA integrity_check"), "ok");
        }
    }
}

#[test]
fn a_forked_child_writes_nothing_under_a_wiped_key() {
    let sqlite = Sqlite::new();
    let uri = sqlite.uri(Engine::Tde, "f.db", &[]);
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &uri).unwrap();
    worker.run("CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (1)");
    // The rest of what was sent is the child's.
    for request in [
        "fork",
        "sql 0 INSERT INTO t VALUES (2)",
        &format!("open 1 {uri}"),
        "sql 1 INSERT INTO t VALUES (3)",
        "exit",
    ] {
        worker.send(request);
    }
    let inherited = worker.receive();
    if Engine::Tde.encrypts() {
        assert!(matches!(inherited, Err(Refusal::Sqlite { .. })), "the inherited connection: {inherited:?}");
    }
    worker.receive().unwrap_or_else(|e| panic!("the child opens anew: {e}"));
    worker.receive().unwrap_or_else(|e| panic!("the child writes through its own connection: {e}"));
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &uri).unwrap();
    assert_eq!(worker.text("PRAGMA integrity_check"), "ok");
    let rows = worker.run("SELECT n FROM t ORDER BY n");
    if Engine::Tde.encrypts() {
        assert_eq!(rows, [["1"], ["3"]]);
    }
}
