//! The keys of a running server are locked and unlocked, and no page is lost by it; the HSM says no, or is away.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, Process, command_output};

use crate::filled::{SUMS, catch_up, fill, sums};

const LOCKED: &str = "the keys of this server are locked";

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn filled() -> Cluster {
    let cluster = Cluster::builder().fsync().conf("log_min_error_statement", "panic").start();
    cluster.encrypted_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 1500);
    cluster.run("CREATE TABLE ledger (client int, n int) TABLESPACE ts; CREATE TABLE clear (i int)");
    cluster
}

/// Clients that insert into the locked tablespace and go on after errors: what was acknowledged to each.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<thread::JoinHandle<i64>>,
}

impl Load {
    fn begin(cluster: &Cluster) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |client: i32| {
            let (mut sql, stop) = (cluster.connect("postgres"), stop.clone());
            thread::spawn(move || {
                let mut acknowledged = 0;
                while !stop.load(Ordering::Relaxed) {
                    let statement = format!(
                        "BEGIN; INSERT INTO ledger VALUES ({client}, {acknowledged}); \
                         UPDATE heap SET spot = point(id, {client}) WHERE id % 97 = {}; COMMIT",
                        acknowledged % 97
                    );
                    match sql.try_run(&statement) {
                        Ok(()) => acknowledged += 1,
                        Err(error) if error.code.is_empty() => break, // the server is gone
                        Err(error) => {
                            assert!(error.text.contains(LOCKED) || error.code == "25P02", "{error}");
                            let _ = sql.try_run("ROLLBACK");
                            thread::sleep(Duration::from_millis(20));
                        }
                    }
                }
                acknowledged
            })
        };
        let clients = (0..3).map(client).collect();
        Self { stop, clients }
    }

    /// Every acknowledged row is there once.
    fn check(self, end: impl FnOnce()) -> Vec<i64> {
        end();
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().map(|client| client.join().unwrap()).collect()
    }
}

fn assert_ledger(cluster: &Cluster, acknowledged: &[i64]) {
    for (client, expected) in acknowledged.iter().enumerate() {
        let query = format!("SELECT count(DISTINCT n), count(*) FROM ledger WHERE client = {client}");
        let row = cluster.rows(&query).remove(0);
        let found: i64 = row[0].parse().unwrap();
        assert_eq!(row[0], row[1], "client {client}");
        assert!(found == *expected || found == expected + 1, "client {client}: {found} of {expected}");
    }
    cluster.run("CREATE EXTENSION IF NOT EXISTS amcheck");
    cluster.run("SELECT bt_index_check('i_btree', true), verify_heapam('heap'), verify_heapam('ledger')");
    let damaged = cluster.int("SELECT count(*) FROM tde.verify_tablespace('ts') WHERE damaged > 0");
    assert_eq!(damaged, 0);
}

fn assert_locked(cluster: &Cluster) {
    assert_eq!(cluster.text("SELECT tde.is_locked()"), "t");
    for statement in [
        "SELECT count(*) FROM heap",
        "SELECT FROM heap WHERE secret = 'canary-row-5'",
        "INSERT INTO ledger VALUES (9, 9)",
        "UPDATE toasted SET big = ''",
        "VACUUM heap",
        "CREATE TABLE another (i int) TABLESPACE ts",
        "CREATE INDEX ON heap (id)",
        "COPY heap TO '/dev/null'",
        "ALTER TABLE clear SET TABLESPACE ts",
        "SELECT tde.rotate_data_key('ts')",
        "SELECT tde.rotate_master_key()",
        "SELECT * FROM tde.verify_tablespace('ts')",
    ] {
        let error = cluster.try_run(statement).expect_err(statement).to_string();
        assert!(error.contains(LOCKED), "{statement}: {error}");
    }
    cluster.run("INSERT INTO clear VALUES (1); SELECT count(*) FROM clear");
}

/// Locked under load, unlocked: nothing is lost, and the pages of before are refused although they are in the buffers.
#[test]
fn a_locked_server_refuses_what_is_encrypted_and_loses_nothing() {
    let mut cluster = filled();
    let mut open = cluster.connect("postgres");
    open.run("BEGIN; DECLARE c CURSOR FOR SELECT * FROM toasted; SELECT 1");
    let before = sums(&mut cluster.connect("postgres"));
    let toasted = before[1].clone();
    for round in 0..3 {
        let load = Load::begin(&cluster);
        thread::sleep(Duration::from_millis(400));
        cluster.run("SELECT tde.lock()");
        let acknowledged = load.check(|| {
            assert_locked(&cluster);
            if round == 0 {
                let error =
                    open.try_run("FETCH 5 FROM c").expect_err("the cursor is on locked rows").to_string();
                assert!(error.contains(LOCKED), "{error}");
            }
            // Checkpoints, the background writer and autovacuum go on meanwhile.
            cluster.try_run("CHECKPOINT").unwrap();
            thread::sleep(Duration::from_millis(300));
            cluster.run("SELECT tde.lock()"); // again
            match round {
                0 => cluster.run("SELECT tde.unlock()"),
                1 => assert_no_key(&cluster),
                _ => (),
            }
            thread::sleep(Duration::from_millis(300));
        });
        match round {
            0 => cluster.run("SELECT tde.unlock()"),
            // A shutdown while locked; a crash while locked.
            1 => {
                cluster.restart();
                assert_eq!(cluster.int("SELECT count(*) FROM loose"), 500, "a clean shutdown");
            }
            _ => cluster.crash_and_recover(),
        }
        assert_eq!(cluster.text("SELECT tde.is_locked()"), "f");
        assert_ledger(&cluster, &acknowledged);
        assert_eq!(sums(&mut cluster.connect("postgres"))[1], toasted);
        cluster.run("TRUNCATE ledger");
    }
    // One process dies while the server is locked: recovery ends the lock.
    cluster.run("INSERT INTO ledger VALUES (0, 0)");
    cluster.run("SELECT tde.lock()");
    cluster.kill_a_backend();
    assert_eq!(cluster.text("SELECT tde.is_locked()"), "f");
    assert_eq!(cluster.int("SELECT count(*) FROM ledger"), 1);
}

/// No process of the server has a data key in its memory. What is derived from it cannot be looked for by its bytes.
fn assert_no_key(cluster: &Cluster) {
    // Copies: what this process writes must not be its own.
    let scratch = tde_tests::Scratch::new();
    let hsm = cluster.hsm();
    for (from, to) in [(hsm.store.as_path(), "hsm"), (&cluster.data().join("pg_tde"), "ring")] {
        let mut copy = std::process::Command::new("cp");
        command_output(copy.arg("-a").arg(from).arg(scratch.path().join(to)));
    }
    let uri = format!("soft:{}", scratch.path().join("hsm").display()).parse().unwrap();
    let pin = hsm_engine::Pin::from_file(&hsm.pin_file).unwrap();
    let master = keyring::SoftHsm::open(&uri, &pin).unwrap();
    let ring = keyring::Keyring::open(&scratch.path().join("ring")).unwrap().unlock(&master).unwrap();
    let dek = ring.dek(keyring::LineNumber(1), keyring::KeyVersion(1), &master).unwrap();
    let postmaster = cluster.postmaster();
    for process in postmaster.children().into_iter().chain([postmaster]) {
        assert!(
            !memory_has(process, dek.expose()),
            "process {} has the key: {}",
            process.pid,
            process.title()
        );
    }
    cluster.run("SELECT tde.unlock()");
    assert!(memory_has(postmaster, dek.expose()), "the search finds a key that is there");
    cluster.run("SELECT tde.lock()");
}

fn memory_has(process: Process, needle: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid)).unwrap_or_default();
    let Ok(memory) = fs::File::open(format!("/proc/{}/mem", process.pid)) else { return false };
    for map in maps.lines().filter(|map| map.contains(" rw")) {
        let (from, to) = map.split(' ').next().unwrap().split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        if memory.read_exact_at(&mut bytes, from).is_ok() && tde_tests::files::contains(&bytes, needle) {
            return true;
        }
    }
    false
}

/// Pages that were changed and could not be written out: errors, tried again, and the WAL has them.
#[test]
fn pages_that_a_locked_server_cannot_write_are_not_lost() {
    // The third differs from the second in what is killed only.
    let ends = if std::env::var_os("TDE_SOAK").is_some() { 3 } else { 2 };
    for end in ["unlock", "stop", "crash"].into_iter().take(ends) {
        let mut cluster = filled();
        let mut cursor = cluster.connect("postgres");
        // It outlives the patience of lock(), and sets hint bits in one page in the buffers after the other.
        cluster.run(
            "CREATE TABLE fresh (i int, filler text) WITH (fillfactor = 10, autovacuum_enabled = off) TABLESPACE ts;
             ALTER TABLE fresh ALTER filler SET STORAGE PLAIN;
             INSERT INTO fresh SELECT i, repeat('x', 4500) FROM generate_series(1, 150) i",
        );
        let slow = thread::spawn(move || cursor.try_run("SELECT FROM fresh WHERE pg_sleep(0.1) IS NOT NULL"));
        thread::sleep(Duration::from_millis(300));
        let begin = Instant::now();
        cluster.run("SELECT tde.lock()");
        assert!(begin.elapsed() > Duration::from_secs(9), "it waits for statements that run");
        assert!(
            cluster.log_since_start().contains("1 statements had not ended"),
            "{}",
            cluster.log_since_start()
        );
        slow.join().unwrap().unwrap();
        let mark = cluster.log_mark();
        let error = cluster.try_run("CHECKPOINT").expect_err("it has pages to write").to_string();
        assert!(error.contains("checkpoint request failed"), "{error}");
        assert!(cluster.log_from(mark).contains("pg_tde cannot write block"), "{}", cluster.log_from(mark));
        match end {
            "unlock" => {
                cluster.run("SELECT tde.unlock()");
                cluster.run("CHECKPOINT");
            }
            "stop" => {
                // Not a clean shutdown, for nothing can be written; not a lost page either.
                cluster.postmaster().signal(rustix::process::Signal::INT);
                cluster.wait_for_end();
                cluster.start();
            }
            _ => cluster.crash_and_recover(),
        }
        assert!(!cluster.log().contains("PANIC"), "{}", cluster.log());
        cluster.run("CREATE EXTENSION IF NOT EXISTS amcheck; SELECT verify_heapam('heap')");
        assert_eq!(cluster.int("SELECT count(*) FROM fresh"), 150);
        assert_eq!(cluster.int("SELECT count(*) FROM loose"), if end == "unlock" { 500 } else { 0 });
        assert_eq!(cluster.int("SELECT count(*) FROM heap WHERE secret LIKE 'canary-row-%'"), 1286);
        assert_eq!(cluster.int("SELECT count(*) FROM tde.verify_tablespace('ts') WHERE damaged > 0"), 0);
    }
}

/// Every catalog is under the key, so that no session can begin: a file in the data directory unlocks.
#[test]
fn a_server_with_encrypted_catalogs_is_unlocked_by_a_file_or_a_restart() {
    let mut cluster = Cluster::builder().fsync().conf("pg_tde.job_cost_delay", "0").start();
    for name in ["pg_default", "pg_global"] {
        cluster.run(&format!("SELECT tde.encrypt_tablespace('{name}', wait => true)"));
    }
    cluster.run("CREATE TABLE t AS SELECT i FROM generate_series(1, 1000) i");
    for restart in [false, true] {
        cluster.run("SELECT tde.lock()");
        let refused =
            cluster.try_connect("postgres").and_then(|mut sql| sql.try_run("SELECT count(*) FROM t"));
        assert!(refused.expect_err("locked").to_string().contains(LOCKED));
        if restart {
            cluster.restart();
        } else {
            fs::write(cluster.data().join("pg_tde.unlock"), "").unwrap();
            wait_for("unlocked", || cluster.log_since_start().contains("has unlocked the keys"));
            assert!(!cluster.data().join("pg_tde.unlock").exists());
        }
        assert_eq!(cluster.int("SELECT count(*) FROM t"), 1000);
    }
}

/// A standby is locked by itself: replay waits, and goes on; jobs wait too.
#[test]
fn a_locked_standby_waits_and_a_job_goes_on_after_unlocking() {
    let primary = filled();
    let mut standby = Cluster::standby_of(&primary);
    catch_up(&primary, &standby);
    standby.run("SELECT tde.lock()");
    let error = standby.try_run("SELECT count(*) FROM heap").expect_err("locked").to_string();
    assert!(error.contains(LOCKED), "{error}");
    primary.run("UPDATE heap SET spot = point(0, 0)");
    wait_for("redo waits", || standby.log_since_start().contains("recovery waits: the keys"));
    standby.run("SELECT tde.unlock()");
    let before = sums(&mut primary.connect("postgres"));
    catch_up(&primary, &standby);
    assert_eq!(standby.rows(SUMS).remove(0), before);
    standby.run("SELECT tde.lock()");
    primary.run("UPDATE heap SET spot = point(1, 1)");
    standby.crash_and_recover();
    catch_up(&primary, &standby);
    assert_eq!(standby.rows(SUMS).remove(0), sums(&mut primary.connect("postgres")));

    primary.configure("pg_tde.job_cost_limit", "4");
    primary.configure("pg_tde.job_cost_delay", "50ms");
    primary.run("SELECT pg_reload_conf()");
    primary.run("SELECT tde.rotate_data_key('ts')");
    thread::sleep(Duration::from_millis(500));
    primary.run("SELECT tde.lock()");
    thread::sleep(Duration::from_millis(2500));
    let log = primary.log_since_start();
    assert!(!log.contains("cannot rewrite"), "{log}");
    primary.run("SELECT tde.unlock()");
    primary.configure("pg_tde.job_cost_delay", "0");
    primary.run("SELECT pg_reload_conf()");
    crate::filled::wait_until(&primary, "encrypted");
    assert_eq!(sums(&mut primary.connect("postgres"))[1], before[1]);
}

/// The HSM does not answer: the server goes on. It says no: the server is locked, if that is wanted.
#[test]
fn an_hsm_that_is_away_or_says_no_is_noticed() {
    let cluster = Cluster::builder().fsync().conf("pg_tde.hsm_check_interval", "1s").start();
    cluster.encrypted_tablespace("ts");
    cluster.run("CREATE TABLE t TABLESPACE ts AS SELECT i FROM generate_series(1, 1000) i");
    let store = cluster.hsm().store.clone();
    let away = store.with_extension("away");
    fs::rename(&store, &away).unwrap();
    wait_for("away", || cluster.log_since_start().contains("cannot ask the HSM whether it may"));
    assert_eq!(cluster.int("SELECT count(*) FROM t"), 1000);
    fs::rename(&away, &store).unwrap();
    wait_for("back", || cluster.log_since_start().contains("lets the master key be used"));

    cluster.configure("pg_tde.lock_on_refusal", "on");
    cluster.run("SELECT pg_reload_conf()");
    cluster.hsm().write_pin(cluster.root(), "not the PIN at all");
    wait_for("refused", || cluster.log_since_start().contains("does not let this server use the master key"));
    wait_for("locked", || cluster.text("SELECT tde.is_locked()") == "t");
    let error = cluster.try_run("SELECT count(*) FROM t").expect_err("locked").to_string();
    assert!(error.contains(LOCKED), "{error}");
    cluster.try_run("SELECT tde.unlock()").expect_err("the HSM still says no");
    assert_eq!(cluster.text("SELECT tde.is_locked()"), "t");
    cluster.hsm().write_pin(cluster.root(), &cluster.hsm().pin);
    // After wrong PINs the HSM lets its user wait.
    wait_for("unlocked", || cluster.try_run("SELECT tde.unlock()").is_ok());
    assert_eq!(cluster.int("SELECT count(*) FROM t"), 1000);
}

/// What crash recovery needs: the HSM. Without it the server says so, and recovers once it is back.
#[test]
fn crash_recovery_without_the_hsm_is_refused_until_it_is_back() {
    let mut cluster = filled();
    let before = sums(&mut cluster.connect("postgres"));
    let store = cluster.hsm().store.clone();
    let away = store.with_extension("away");
    cluster.run("UPDATE heap SET tags = tags");
    cluster.crash();
    fs::rename(&store, &away).unwrap();
    for _ in 0..2 {
        let failure = cluster.try_start().expect_err("there are no keys");
        let log = failure.log;
        assert!(log.contains("pg_tde cannot make the keys available"), "{log}");
        assert!(log.contains("hsm"), "it names the store: {log}");
        assert!(log.contains("Mend what the detail names and start it again"), "{log}");
    }
    fs::rename(&away, &store).unwrap();
    cluster.start();
    assert_eq!(sums(&mut cluster.connect("postgres")), before);

    // One process dies while the HSM is away: the keys of the running server are enough.
    fs::rename(&store, &away).unwrap();
    cluster.run("UPDATE heap SET tags = tags");
    cluster.kill_a_backend();
    assert_eq!(sums(&mut cluster.connect("postgres")), before);
    fs::rename(&away, &store).unwrap();
}
