//! SIGKILL in the middle of a write, a sync, a truncation or an unlink, anywhere in a transaction: what recovery finds
//! is what plain SQLite would have found.
//!
//! Every combination of page size, sector promise (`psow`), journal mode, cache spill and `synchronous` runs the same
//! script on plain SQLite and on an encrypted file. The process dies at an operation of its disk chosen over the whole
//! script, in the middle of it when it is a write; then the database is opened again and must hold a state that plain
//! SQLite can reach: that of the last acknowledged commit or of the one under way.

use std::fs;

use tde_tests::soak;
use tde_tests::sqlite::{Engine, Fault, Sqlite, Worker};

#[derive(Clone, Copy, Debug)]
struct Case {
    page_size: u32,
    psow: bool,
    journal: &'static str,
    spill: bool,
    synchronous: &'static str,
}

const JOURNALS: [&str; 6] = ["DELETE", "TRUNCATE", "PERSIST", "WAL", "MEMORY", "OFF"];

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        JOURNALS.into_iter().flat_map(|journal| {
            [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536].into_iter().flat_map(move |page_size| {
                [true, false].into_iter().flat_map(move |psow| {
                    [true, false].into_iter().flat_map(move |spill| {
                        ["OFF", "NORMAL", "FULL", "EXTRA"].into_iter().map(move |synchronous| Self {
                            page_size,
                            psow,
                            journal,
                            spill,
                            synchronous,
                        })
                    })
                })
            })
        })
    }

    fn parameters(&self) -> &'static [&'static str] {
        if self.psow { &["psow=1"] } else { &["psow=0"] }
    }

    fn settings(&self) -> String {
        // A cache of ten pages spills at once into the file, which then holds half a transaction.
        let cache = if self.spill {
            "PRAGMA cache_size = 10"
        } else {
            "PRAGMA cache_spill = 0; PRAGMA cache_size = 5000"
        };
        format!(
            "PRAGMA page_size = {}; PRAGMA journal_mode = {}; PRAGMA synchronous = {}; {cache};",
            self.page_size, self.journal, self.synchronous
        )
    }

    /// Whether a dead process leaves nothing to roll back with: then plain SQLite promises nothing either.
    fn without_journal(&self) -> bool {
        matches!(self.journal, "MEMORY" | "OFF")
    }
}

/// Rows so wide that every transaction changes a few dozen pages of any size up to 4096, and several of any.
const ROWS: u32 = 150;

/// Each is one transaction. The marker in `step` tells which of them a state is.
fn transactions() -> Vec<String> {
    vec![
        format!(
            "CREATE TABLE step (n INTEGER); INSERT INTO step VALUES (1);
             CREATE TABLE t (id INTEGER PRIMARY KEY, gen INTEGER, pad TEXT); CREATE INDEX t_gen ON t (gen, id);
             WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {ROWS})
             INSERT INTO t SELECT i, 1, hex(zeroblob(100 + i % 7 * 40)) FROM s"
        ),
        "UPDATE step SET n = 2; UPDATE t SET gen = 2, pad = pad || 'two'".into(),
        // Within one transaction pages are written, spilled, and written again; a savepoint makes a statement journal.
        format!(
            "UPDATE step SET n = 3; UPDATE t SET gen = 3; SAVEPOINT s; UPDATE t SET pad = 'x' || pad;
             DELETE FROM t WHERE id % 2 = 0; ROLLBACK TO s; RELEASE s; DELETE FROM t WHERE id > {};
             UPDATE t SET gen = 3, pad = substr(pad, 2)",
            ROWS - 20
        ),
        "UPDATE step SET n = 4; UPDATE t SET gen = 4; INSERT INTO t SELECT id + 1000, 4, pad || pad FROM t".into(),
    ]
}

/// What the database holds, as one line; it must be sound.
fn state(worker: &mut Worker) -> Result<String, String> {
    let one = |worker: &mut Worker, sql: &str| {
        worker
            .sql(sql)
            .map_err(|e| e.to_string())
            .map(|rows| rows.into_iter().flatten().collect::<Vec<_>>().join(","))
    };
    let check = one(worker, "PRAGMA integrity_check")?;
    if check != "ok" {
        return Err(format!("integrity_check: {check}"));
    }
    if one(worker, "SELECT count(*) FROM sqlite_schema")? == "0" {
        return Ok("empty".into());
    }
    let step = one(worker, "SELECT n FROM step")?;
    let rows =
        one(worker, "SELECT count(*), count(DISTINCT gen), max(gen), sum(length(pad)), sum(id) FROM t")?;
    let by_index = one(worker, "SELECT count(*), sum(id) FROM t INDEXED BY t_gen WHERE gen > 0")?;
    Ok(format!("step {step}: {rows}; {by_index}"))
}

/// Runs the script with a fault: how many of the commits were acknowledged (the opening statements are number 0),
/// and whether the worker lived to the end.
fn run_script(
    sqlite: &Sqlite,
    engine: Engine,
    case: &Case,
    fault: Fault,
    log: Option<&std::path::Path>,
) -> (usize, bool) {
    let mut worker = sqlite.faulty_worker(engine, fault, log);
    worker.send(&format!("open 0 {}", sqlite.uri(engine, "k.db", case.parameters())));
    worker.send(&format!("sql 0 {}", case.settings()));
    let script = transactions();
    for sql in &script {
        worker.send(&format!("sql 0 BEGIN; {}; COMMIT", sql.replace('\n', " ")));
    }
    worker.send("close 0");
    let mut acknowledged = 0;
    for request in 0..script.len() + 3 {
        match worker.receive() {
            Ok(_) if request >= 2 => acknowledged += 1,
            Ok(_) => {}
            Err(tde_tests::sqlite::Refusal::Died) => return (acknowledged.min(script.len()), false),
            Err(e) => panic!("{engine:?} {case:?} {fault:?}: request {request}: {e}"),
        }
    }
    let (ended, log) = worker.finish();
    assert!(ended, "{engine:?} {case:?}: {log}");
    (script.len(), true)
}

/// Opens what a dead process left behind.
fn recover(sqlite: &Sqlite, engine: Engine, case: &Case) -> Result<String, String> {
    let mut worker = sqlite.worker(engine);
    worker.open(0, &sqlite.uri(engine, "k.db", case.parameters())).map_err(|e| e.to_string())?;
    let found = state(&mut worker)?;
    // It must also take writes again.
    worker
        .sql("CREATE TABLE after (x); INSERT INTO after VALUES (1); DROP TABLE after")
        .map_err(|e| e.to_string())?;
    Ok(found)
}

/// The states between the transactions.
fn states(sqlite: &Sqlite, engine: Engine, case: &Case) -> Vec<String> {
    let mut worker = sqlite.worker(engine);
    worker.open(0, &sqlite.uri(engine, "k.db", case.parameters())).unwrap();
    worker.run(&case.settings());
    let mut all = vec!["empty".to_owned()];
    for sql in transactions() {
        worker.run(&format!("BEGIN; {sql}; COMMIT"));
        all.push(state(&mut worker).unwrap());
    }
    drop(worker);
    sqlite.clear();
    all
}

/// How many operations the whole script has.
fn operations(sqlite: &Sqlite, engine: Engine, case: &Case) -> u32 {
    let log = sqlite.dir().join("log");
    let (_, ended) = run_script(sqlite, engine, case, Fault::None, Some(&log));
    assert!(ended);
    let count = tde_tests::sqlite::Disk::read(&log).operations.len();
    fs::remove_file(&log).unwrap();
    sqlite.clear();
    count.try_into().unwrap()
}

/// Operation, commits acknowledged before it, and what the recovery found.
type Killed = (u32, usize, Result<String, String>);

/// Where both died at the same operation, rows that the encrypted file still gives are those that the plain one gives.
fn in_step(case: &Case, [plain, encrypted]: &[Vec<Killed>; 2], problems: &mut Vec<String>) {
    if plain.iter().map(|k| (k.0, k.1)).ne(encrypted.iter().map(|k| (k.0, k.1))) {
        return;
    }
    for ((at, _, plain), (_, _, encrypted)) in plain.iter().zip(encrypted) {
        match (plain, encrypted) {
            (Ok(plain), Ok(encrypted)) if plain != encrypted => {
                problems.push(format!("{case:?} killed at {at}: plain {plain:?}, encrypted {encrypted:?}"));
            }
            _ => {}
        }
    }
}

/// Kills at up to `points` operations spread over the script; returns what each recovery found.
fn kill(sqlite: &Sqlite, engine: Engine, case: &Case, points: u32, phase: u32) -> Vec<Killed> {
    let total = operations(sqlite, engine, case);
    let step = (total / points).max(1);
    (1 + phase % step..=total)
        .step_by(step as usize)
        .map(|at| {
            let (acknowledged, ended) = run_script(sqlite, engine, case, Fault::Kill(at), None);
            assert!(!ended || at > total, "{case:?}: operation {at} of {total} did not come");
            let found = recover(sqlite, engine, case);
            sqlite.clear();
            (at, acknowledged, found)
        })
        .collect()
}

#[test]
fn a_killed_process_leaves_a_state_that_plain_sqlite_would_reach() {
    let sqlite = Sqlite::new();
    let all: Vec<Case> = Case::all().collect();
    // Without the long run: every combination of two settings still occurs.
    let (stride, points) = if soak() { (1, 12) } else { (11, 4) };
    let (mut kills, mut rolled_back, mut problems) = (0, 0, Vec::new());
    for (index, case) in all.iter().enumerate().step_by(stride) {
        let expected = states(&sqlite, Engine::Plain, case);
        assert_eq!(states(&sqlite, Engine::Tde, case), expected, "{case:?}: without a kill");
        let results = [Engine::Plain, Engine::Tde].map(|e| kill(&sqlite, e, case, points, index as u32 * 5));
        in_step(case, &results, &mut problems);
        for (engine, results) in [Engine::Plain, Engine::Tde].into_iter().zip(results) {
            for (at, acknowledged, found) in results {
                kills += 1;
                let allowed = &expected[acknowledged..(acknowledged + 2).min(expected.len())];
                match &found {
                    Ok(state) if allowed.contains(state) => rolled_back += usize::from(*state == allowed[0]),
                    // Without a journal a broken transaction stays broken; an error says so.
                    _ if case.without_journal() => {}
                    other => problems.push(format!(
                        "{engine:?} {case:?} killed at {at}, {acknowledged} acknowledged: {other:?}, not of {allowed:?}"
                    )),
                }
            }
        }
    }
    assert!(problems.is_empty(), "{} of {kills}:\n{}", problems.len(), problems.join("\n"));
    assert!(rolled_back > kills / 4, "only {rolled_back} of {kills} kills were rolled back");
    println!("{kills} kills, {rolled_back} found the state before the transaction");
}
