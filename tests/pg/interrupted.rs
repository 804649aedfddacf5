//! Key changes that are killed, raced or locked out leave one of two states: the old or the new, never plaintext where
//! `tde.tablespaces` says encrypted, never data that a later start refuses.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use tde_tests::{Cluster, Process, files, soak};

fn fill(cluster: &Cluster, table: &str, tablespace: &str) {
    cluster.run(&format!(
        "CREATE TABLE {table} TABLESPACE {tablespace} AS SELECT i, 'canary-{table}-' || i AS secret FROM generate_series(1, 1000) i"
    ));
}

fn readable(cluster: &Cluster, table: &str) {
    let rows = cluster.int(&format!("SELECT count(*) FROM {table} WHERE secret LIKE 'canary-{table}-%'"));
    assert_eq!(rows, 1000, "{table}");
}

fn state(cluster: &Cluster, tablespace: &str) -> String {
    cluster.text(&format!("SELECT state FROM tde.tablespaces WHERE name = '{tablespace}'"))
}

fn in_clear(cluster: &Cluster, table: &str) -> bool {
    cluster.run("CHECKPOINT");
    files::contains(&fs::read(cluster.file_of(table)).unwrap(), b"canary-")
}

/// Kills the backend at many moments of its work, the server restarts itself; what it says then must be true for good.
#[test]
fn a_backend_killed_while_it_encrypts_a_tablespace() {
    let mut cluster =
        Cluster::builder().conf("allow_in_place_tablespaces", "on").conf("wal_keep_size", "512MB").start();
    let begin = Instant::now();
    cluster.plain_tablespace("whole");
    cluster.run("SELECT tde.encrypt_tablespace('whole')");
    let whole = begin.elapsed();
    let rounds = if soak() { 120 } else { 16 };
    let (mut states, mut finished) = (Vec::new(), 0);
    for round in 0..rounds {
        let name = format!("s{round}");
        cluster.run(&format!("CREATE TABLESPACE {name} LOCATION ''"));
        let mut session = cluster.connect("postgres");
        let victim = Process::find(session.int("SELECT pg_backend_pid()") as i32).unwrap();
        let statement = format!("SELECT tde.encrypt_tablespace('{name}')");
        // The session lives until it is killed, also when the statement was done before.
        let work = thread::spawn(move || (session.try_run(&statement).is_ok(), session));
        thread::sleep(whole.mul_f64(1.1 * f64::from(round) / f64::from(rounds)));
        cluster.kill_backend(victim);
        finished += u32::from(work.join().unwrap().0);
        let table = format!("t{round}");
        fill(&cluster, &table, &name);
        let now = state(&cluster, &name);
        assert_eq!(in_clear(&cluster, &table), now == "plain", "round {round}: {now}");
        states.push((table, name, now));
    }
    assert!(finished < rounds, "all {rounds} were done before they were killed");
    // Kills in the middle of logins lock the HSM's user for a while.
    let locked = Instant::now();
    while cluster.try_run("SELECT tde.rotate_master_key()").is_err() {
        assert!(locked.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(500));
    }
    for pass in ["restart", "crash"] {
        if pass == "restart" {
            cluster.restart()
        } else {
            cluster.crash_and_recover()
        }
        for (table, name, then) in &states {
            assert_eq!(state(&cluster, name), *then, "{name} after a {pass}");
            readable(&cluster, table);
        }
        assert!(!cluster.rows("SELECT * FROM tde.keys").is_empty());
    }
    // Another try finishes what was begun; a node that knows the keys from WAL and backup alone agrees.
    cluster.run("CREATE TABLESPACE last LOCATION ''");
    cluster.run("SELECT tde.encrypt_tablespace('last')");
    fill(&cluster, "t_last", "last");
    let mut copy = Cluster::standby_of(&cluster);
    cluster.stop();
    copy.promote();
    for _ in 0..2 {
        for (table, name, then) in &states {
            assert_eq!(state(&copy, name), *then, "{name} on the copy");
            readable(&copy, table);
        }
        readable(&copy, "t_last");
        copy.restart();
    }
}

/// The standby gets every line from WAL; tries that failed on the primary must not leave gaps there.
#[test]
fn failed_tries_to_encrypt_do_not_trouble_a_standby() {
    let primary =
        Cluster::builder().conf("allow_in_place_tablespaces", "on").conf("wal_keep_size", "512MB").start();
    primary.encrypted_tablespace("first");
    let mut standby = Cluster::standby_of(&primary);
    primary.run("CREATE TABLESPACE taken LOCATION ''");
    // The line is made and logged; then the manifest cannot be replaced.
    let obstacle = primary.data().join("pg_tde.manifest.tmp");
    fs::create_dir(&obstacle).unwrap();
    for _ in 0..3 {
        primary
            .try_run("SELECT tde.encrypt_tablespace('taken')")
            .expect_err("the manifest cannot be written");
    }
    fs::remove_dir(&obstacle).unwrap();
    primary.run("CREATE TABLESPACE second LOCATION ''");
    primary.run("SELECT tde.encrypt_tablespace('second')");
    fill(&primary, "t", "second");
    let target = primary.text("SELECT pg_current_wal_flush_lsn()");
    while standby.text(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) != "t" {
        thread::sleep(Duration::from_millis(50));
    }
    standby.promote();
    assert!(standby.int("SELECT count(*) FROM tde.keys") >= 2);
    standby.restart();
    readable(&standby, "t");
    standby.crash_and_recover();
    readable(&standby, "t");
}

/// A position just after a segment switch is inside the next page's header.
#[test]
fn encrypting_right_after_a_wal_switch() {
    let cluster = Cluster::with_tde();
    for name in ["a", "b", "c"] {
        cluster.plain_tablespace(name);
        cluster.run("SELECT pg_switch_wal()");
        cluster.run(&format!("SELECT tde.encrypt_tablespace('{name}')"));
        cluster.run("SELECT pg_switch_wal()");
        cluster.run(&format!("DROP TABLESPACE {name}"));
    }
}

/// CREATE DATABASE ... FILE_COPY waits for a checkpoint between its checks and its copying: time to encrypt the target.
#[test]
fn a_file_copy_that_races_with_encryption_leaves_no_plaintext() {
    let cluster = Cluster::with_tde();
    let target = cluster.plain_tablespace("target");
    cluster.run("CREATE DATABASE template_canary");
    cluster
        .connect("template_canary")
        .run("CREATE TABLE t AS SELECT 'canary-' || i AS secret FROM generate_series(1, 1000) i");
    let postmaster = cluster.postmaster();
    let checkpointer =
        postmaster.children().into_iter().find(|p| p.title().contains("checkpointer")).unwrap();
    checkpointer.signal(Signal::STOP);
    let start = |sql: &'static str| {
        let mut session = cluster.connect("postgres");
        let handle = thread::spawn(move || session.try_run(sql));
        thread::sleep(Duration::from_millis(700));
        handle
    };
    let copy = start("CREATE DATABASE copy TEMPLATE template_canary TABLESPACE target STRATEGY file_copy");
    let encrypt = start("SELECT tde.encrypt_tablespace('target')");
    checkpointer.signal(Signal::CONT);
    let (copied, encrypted) = (copy.join().unwrap(), encrypt.join().unwrap());
    assert!(copied.is_ok() || encrypted.is_ok(), "both were refused: {copied:?} {encrypted:?}");
    // What was copied before is rewritten by a job.
    let begin = Instant::now();
    while state(&cluster, "target") == "encrypting" {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
    cluster.run("CHECKPOINT");
    let plaintext = !files::files_with(&target, b"canary-").is_empty();
    assert_eq!(plaintext, state(&cluster, "target") == "plain", "copy {copied:?}, encrypt {encrypted:?}");
    if copied.is_ok() {
        assert_eq!(cluster.connect("copy").int("SELECT count(*) FROM t"), 1000);
    }
}

/// Somebody holds the keyring's lock, a stopped `tde` command say: that is no reason for others to wait.
#[test]
fn a_locked_keyring_does_not_stop_work_in_other_tablespaces() {
    let cluster = Cluster::with_tde();
    cluster.encrypted_tablespace("secure");
    cluster.plain_tablespace("clear");
    let lock = fs::File::open(cluster.data().join("pg_tde/lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut session = cluster.connect("postgres");
    let drop = thread::spawn(move || session.try_run("DROP TABLESPACE secure"));
    thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    fill(&cluster, "t", "clear");
    assert!(begin.elapsed() < Duration::from_secs(5), "CREATE TABLE waited {:?}", begin.elapsed());
    flock(&lock, FlockOperation::Unlock).unwrap();
    drop.join().unwrap().unwrap();
    readable(&cluster, "t");
}

/// The PIN command of a backend ends with the backend.
#[test]
fn a_terminated_backend_takes_its_pin_command_along() {
    let cluster = Cluster::with_tde();
    cluster.encrypted_tablespace("secure");
    let marker = cluster.dir().join("hung.pid");
    fs::write(&marker, "").unwrap();
    cluster.root().own(&marker);
    cluster.configure("pg_tde.pin_command", &format!("echo $$ > {}; sleep 300", marker.display()));
    cluster.run("SELECT pg_reload_conf()");
    thread::sleep(Duration::from_millis(300));
    let mut session = cluster.connect("postgres");
    let backend = session.int("SELECT pg_backend_pid()");
    let work = thread::spawn(move || session.try_run("SELECT tde.rotate_master_key()"));
    let begin = Instant::now();
    let command = loop {
        if let Ok(pid) = fs::read_to_string(&marker).unwrap().trim().parse() {
            break Process::find(pid).expect("the PIN command runs");
        }
        assert!(begin.elapsed() < Duration::from_secs(10), "the PIN command did not start");
        thread::sleep(Duration::from_millis(20));
    };
    cluster.run(&format!("SELECT pg_terminate_backend({backend})"));
    // What a backend starts must not hold the client's socket open either: the client learns at once.
    command.wait_gone(Duration::from_secs(5));
    work.join().unwrap().expect_err("it was terminated");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}
