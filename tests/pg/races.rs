//! Statements of two sessions that meet in a tablespace: what `tde.tablespaces` says afterwards is true.

use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, SqlError, files};

/// The database waits in the midst of the next change of keys: the PIN command takes its time.
fn slow_pin(cluster: &Cluster) {
    let command = cluster.text("SHOW pg_tde.pin_command");
    cluster.configure("pg_tde.pin_command", &format!("sleep 2; {command}"));
    cluster.run("SELECT pg_reload_conf()");
    while !cluster.text("SHOW pg_tde.pin_command").starts_with("sleep") {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a statement in a session of its own, and returns when that holds the keyring's lock, or waits for it.
fn begin(cluster: &Cluster, sql: &str, granted: bool) -> thread::JoinHandle<Result<(), SqlError>> {
    let mut session = cluster.connect("postgres");
    let pid = session.int("SELECT pg_backend_pid()");
    let sql = sql.to_owned();
    let handle = thread::spawn(move || session.try_run(&sql));
    let locks = format!(
        "SELECT count(*) FROM pg_locks WHERE pid = {pid} AND classid = 'pg_tablespace'::regclass AND objid = 0 AND granted = {granted}"
    );
    let begin = Instant::now();
    while cluster.int(&locks) == 0 {
        assert!(begin.elapsed() < Duration::from_secs(10), "it does not come to the lock");
        thread::sleep(Duration::from_millis(10));
    }
    handle
}

fn fill(cluster: &Cluster, table: &str, tablespace: &str) {
    cluster.run(&format!(
        "CREATE TABLE {table} TABLESPACE {tablespace} AS SELECT i, 'canary-{table}-' || i AS secret FROM generate_series(1, 1000) i"
    ));
}

fn readable(cluster: &Cluster, table: &str) {
    assert_eq!(
        cluster.int(&format!("SELECT count(*) FROM {table} WHERE secret LIKE 'canary-{table}-%'")),
        1000
    );
}

fn state(cluster: &Cluster, tablespace: &str) -> String {
    cluster.text(&format!("SELECT state FROM tde.tablespaces WHERE name = '{tablespace}'"))
}

/// While DROP TABLESPACE waits for the keyring, its name goes over to another tablespace.
#[test]
fn a_tablespace_that_was_renamed_before_the_drop_keeps_its_key() {
    let mut cluster = Cluster::with_tde();
    let kept = cluster.encrypted_tablespace("moved");
    fill(&cluster, "t", "moved");
    cluster.plain_tablespace("other");
    let fresh = cluster.ts_dir().join("fresh");
    std::fs::create_dir(&fresh).unwrap();
    cluster.root().own(&fresh);
    slow_pin(&cluster);
    let encrypt = begin(&cluster, "SELECT tde.encrypt_tablespace('other')", true);
    let drop = begin(&cluster, "DROP TABLESPACE moved", false);
    cluster.run("ALTER TABLESPACE moved RENAME TO kept");
    cluster.run(&format!("CREATE TABLESPACE moved LOCATION '{}'", fresh.display()));
    encrypt.join().unwrap().unwrap();
    drop.join().unwrap().unwrap();
    assert_eq!(cluster.int("SELECT count(*) FROM pg_tablespace WHERE spcname = 'moved'"), 0);
    for pass in 0..2 {
        assert_eq!(
            (state(&cluster, "kept").as_str(), state(&cluster, "other").as_str()),
            ("encrypted", "encrypted")
        );
        readable(&cluster, "t");
        fill(&cluster, &format!("u{pass}"), "kept");
        cluster.run("CHECKPOINT");
        assert!(files::files_with(&kept, b"canary-").is_empty());
        cluster.restart();
    }
    // The retired line of the one that is gone is none of the two.
    assert_eq!(cluster.int("SELECT count(*) FROM tde.keys WHERE state = 'retired'"), 0);
}

#[test]
fn a_tablespace_that_is_dropped_while_it_becomes_encrypted_leaves_a_retired_key() {
    let mut cluster = Cluster::with_tde();
    let dir = cluster.plain_tablespace("gone");
    slow_pin(&cluster);
    let encrypt = begin(&cluster, "SELECT tde.encrypt_tablespace('gone')", true);
    let drop = begin(&cluster, "DROP TABLESPACE gone", false);
    encrypt.join().unwrap().unwrap();
    drop.join().unwrap().unwrap();
    assert_eq!(cluster.int("SELECT count(*) FROM tde.keys WHERE state = 'retired'"), 1);
    cluster.crash_and_recover();
    cluster.run(&format!("CREATE TABLESPACE gone LOCATION '{}'", dir.display()));
    assert_eq!(state(&cluster, "gone"), "plain");
    cluster.run("SELECT tde.encrypt_tablespace('gone')");
    fill(&cluster, "t", "gone");
    cluster.restart();
    readable(&cluster, "t");
}

/// Two sessions want the same: one gets it, the other is told.
#[test]
fn a_tablespace_is_encrypted_once() {
    let cluster = Cluster::with_tde();
    cluster.plain_tablespace("secure");
    slow_pin(&cluster);
    let mut second = cluster.connect("postgres");
    let first = begin(&cluster, "SELECT tde.encrypt_tablespace('secure')", true);
    let error = second.try_run("SELECT tde.encrypt_tablespace('secure')").expect_err("the other was first");
    assert!(error.text.contains("already"), "{error}");
    first.join().unwrap().unwrap();
    assert_eq!(cluster.int("SELECT count(*) FROM tde.keys WHERE scope LIKE '%secure%'"), 1);
}

/// A file made in a transaction that is still open counts as one that is there: a job waits for it.
#[test]
fn a_tablespace_with_an_open_transactions_table_is_encrypted_after_that() {
    let cluster = Cluster::with_tde();
    let dir = cluster.plain_tablespace("busy");
    let mut open = cluster.connect("postgres");
    open.run("BEGIN; CREATE TABLE t (secret text) TABLESPACE busy; INSERT INTO t VALUES ('canary')");
    cluster.run("SELECT tde.encrypt_tablespace('busy')");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(cluster.text("SELECT phase FROM tde.jobs"), "waiting for transactions");
    assert_eq!(state(&cluster, "busy"), "encrypting");
    open.run("COMMIT");
    let begin = Instant::now();
    while state(&cluster, "busy") != "encrypted" {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(cluster.text("SELECT secret FROM t"), "canary");
    assert!(files::files_with(&dir, b"canary").is_empty());
}
