//! A disk that fills up or fails, at every write, sync, truncation and unlink: the statement fails, the database stays sound.

use std::path::Path;
use std::time::{Duration, Instant};

use tde_tests::soak;
use tde_tests::sqlite::{Disk, Engine, Fault, Refusal, Sqlite, Worker};

const STATEMENTS: [&str; 6] = [
    "BEGIN; CREATE TABLE step (n INTEGER); CREATE TABLE t (id INTEGER PRIMARY KEY, pad TEXT); CREATE INDEX t_pad ON t (pad); COMMIT",
    "BEGIN; INSERT INTO step VALUES (1); WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 120)
     INSERT INTO t SELECT i, hex(zeroblob(150)) || i FROM s; COMMIT",
    "BEGIN; UPDATE step SET n = 2; UPDATE t SET pad = pad || id; COMMIT",
    "BEGIN; UPDATE step SET n = 3; DELETE FROM t WHERE id % 3 = 0; SAVEPOINT s; UPDATE t SET pad = 'b' || pad; ROLLBACK TO s; COMMIT",
    "VACUUM",
    "BEGIN; UPDATE step SET n = 4; UPDATE t SET pad = 'c' || pad; COMMIT",
];

/// After which of the statements the database is, if it is sound and in one of these states.
fn state(worker: &mut Worker) -> Result<i64, String> {
    let check = worker.sql("PRAGMA integrity_check").map_err(|e| e.to_string())?;
    if check != [["ok"]] {
        return Err(format!("integrity_check: {check:?}"));
    }
    if worker.int("SELECT count(*) FROM sqlite_schema") == 0 {
        return Ok(-1);
    }
    let step = worker.run("SELECT n FROM step").first().map_or(0, |r| r[0].parse().unwrap());
    let rows = worker.run("SELECT count(*), count(DISTINCT pad), sum(length(pad)) FROM t")[0].join(",");
    let by_index = worker.int("SELECT count(*) FROM t INDEXED BY t_pad WHERE pad > ''");
    let expected = ["0,0,NULL", "120,120,36252", "120,120,36504", "80,80,24336", "80,80,24416"];
    let found = usize::try_from(step).ok().and_then(|s| expected.get(s));
    if found != Some(&rows.as_str()) || by_index.to_string() != rows.split(',').next().unwrap() {
        return Err(format!("step {step} with rows {rows}, {by_index} by index"));
    }
    Ok(step)
}

/// Runs the statements, each tried a second time when it failed. Returns the steps that were confirmed.
fn run(sqlite: &Sqlite, mode: &str, fault: Fault, log: Option<&Path>) -> i64 {
    let mut worker = sqlite.faulty_worker(Engine::Tde, fault, log);
    if let Err(e) = worker.open(0, &sqlite.uri(Engine::Tde, "f.db", &[])) {
        assert!(e != Refusal::Died, "{mode} {fault:?}: died on open");
        return -1;
    }
    let _ =
        worker.sql(&format!("PRAGMA page_size = 1024; PRAGMA journal_mode = {mode}; PRAGMA cache_size = 10"));
    let mut confirmed = -1;
    for (index, sql) in STATEMENTS.iter().enumerate() {
        let mut done = false;
        for _ in 0..2 {
            let begin = Instant::now();
            let result = worker.sql(sql);
            assert!(begin.elapsed() < Duration::from_secs(8), "{mode} {fault:?}: waits in {sql}");
            match result {
                Ok(_) => {
                    confirmed = [0, 0, 2, 3, 3, 4][index].max(i64::from(index > 0));
                    done = true;
                    break;
                }
                Err(Refusal::Died) => panic!("{mode} {fault:?}: the process died in {sql}"),
                Err(e) => {
                    assert!(
                        ![11, 26].contains(&e.primary()),
                        "{mode} {fault:?}: {sql}: {e}: a fault is not damage"
                    );
                    let _ = worker.sql("ROLLBACK");
                }
            }
        }
        // The next transaction is about what this one would have made; VACUUM changes nothing that can be seen.
        if !done && *sql != "VACUUM" {
            break;
        }
    }
    // What this process still sees must be sound too, if the disk lets it see anything.
    if let Ok(rows) = worker.sql("PRAGMA integrity_check") {
        assert_eq!(rows, [["ok"]], "{mode} {fault:?}: in the process that met it");
    }
    let _ = worker.ask("close 0");
    confirmed
}

fn every_operation(fault: fn(u32) -> Fault) {
    let sqlite = Sqlite::new();
    let mut failed = 0;
    for mode in ["DELETE", "TRUNCATE", "PERSIST", "WAL"] {
        let log = sqlite.dir().join(format!("log-{mode}"));
        assert_eq!(run(&sqlite, mode, Fault::None, Some(&log)), 4);
        let total = Disk::read(&log).operations.len() as u32;
        let stride = if soak() { total / 300 } else { total / 30 }.max(1);
        for at in (1..=total).step_by(stride as usize) {
            sqlite.clear();
            let confirmed = run(&sqlite, mode, fault(at), None);
            let mut worker = sqlite.worker(Engine::Tde);
            worker
                .open(0, &sqlite.uri(Engine::Tde, "f.db", &[]))
                .unwrap_or_else(|e| panic!("{mode} {:?}: {e}", fault(at)));
            match state(&mut worker) {
                Ok(found) => {
                    assert!(
                        found >= confirmed,
                        "{mode} {:?}: step {confirmed} was confirmed, {found} found",
                        fault(at)
                    );
                    failed += usize::from(found < 4);
                }
                Err(e) => panic!("{mode} {:?} of {total}: {e}", fault(at)),
            }
            worker.run("CREATE TABLE later (x); INSERT INTO later VALUES (1)");
        }
        sqlite.clear();
    }
    println!("{failed} runs ended early");
}

#[test]
fn a_full_disk_at_any_operation_harms_nothing() {
    every_operation(Fault::Full);
}

#[test]
fn an_io_error_at_any_operation_harms_nothing() {
    every_operation(Fault::Error);
}
