//! What stands in a job's way: too few workers, files and pages that cannot be rewritten, locks, copies made in the middle.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, command_output, files};

use crate::filled::{SUMS, assert_encrypted, catch_up, fill, state, sums, wait_until};

fn attempts(cluster: &Cluster) -> usize {
    cluster.log_since_start().matches("goes over it again").count()
}

fn wait_for_attempts(cluster: &Cluster, count: usize) {
    let begin = Instant::now();
    while attempts(cluster) < count {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
}

fn wal_bytes(cluster: &Cluster) -> i64 {
    cluster.int("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
}

/// More jobs than workers: each gets its turn, and other workers start.
#[test]
fn many_jobs_share_few_workers() {
    for workers in ["8", "4"] {
        let mut cluster = Cluster::builder()
            .conf("max_worker_processes", workers)
            .conf("pg_tde.job_cost_limit", "16")
            .conf("pg_tde.job_cost_delay", "20ms")
            .start();
        for number in 0..7 {
            cluster.plain_tablespace(&format!("ts{number}"));
            cluster.run(&format!(
                "CREATE TABLE t{number} TABLESPACE ts{number} AS SELECT i, repeat('x', 500) FROM generate_series(1, 1500) i"
            ));
        }
        for number in 0..7 {
            cluster.run(&format!("SELECT tde.encrypt_tablespace('ts{number}')"));
        }
        cluster.restart();
        let begin = Instant::now();
        while cluster.int("SELECT count(*) FROM tde.tablespaces WHERE state = 'encrypted'") < 7 {
            let jobs = cluster.postmaster().children();
            let jobs = jobs.into_iter().filter(|process| process.title().contains("pg_tde job")).count();
            assert!(jobs <= 2, "{jobs} at a time");
            assert!(
                begin.elapsed() < Duration::from_secs(100),
                "{:?}\n{}",
                cluster.rows("SELECT * FROM tde.job_progress"),
                cluster.log_since_start()
            );
            thread::sleep(Duration::from_millis(100));
        }
        for number in 0..7 {
            assert_eq!(cluster.int(&format!("SELECT count(*) FROM t{number}")), 1500);
        }
    }
}

/// Something that cannot be rewritten now keeps a job from ending, but not busy: the WAL does not grow.
#[test]
fn a_job_that_cannot_end_writes_no_wal() {
    let cluster = Cluster::builder().conf("max_prepared_transactions", "5").start();
    let dir = cluster.plain_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 6000);
    let before = sums(&mut cluster.connect("postgres"));
    cluster.run("CHECKPOINT");
    let orphan = files::relation_files(&dir)[0].with_file_name("999999");
    fs::write(&orphan, files::pages(&cluster.file_of("heap"))[0]).unwrap();
    cluster.root().own(&orphan);
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    wait_for_attempts(&cluster, 1);
    let (size, begin) = (cluster.int("SELECT pg_tablespace_size('ts')"), wal_bytes(&cluster));
    wait_for_attempts(&cluster, 3);
    let grown = wal_bytes(&cluster) - begin;
    assert!(grown < size / 4, "{grown} bytes of WAL for a tablespace of {size}");
    fs::remove_file(&orphan).unwrap();
    wait_until(&cluster, "encrypted");

    // A file of a transaction that has not ended is in no catalog.
    cluster.run("BEGIN; CREATE TABLE prepared TABLESPACE ts AS TABLE heap; PREPARE TRANSACTION 'p'");
    let mark = attempts(&cluster);
    cluster.run("SELECT tde.rotate_data_key('ts')");
    wait_for_attempts(&cluster, mark + 1);
    let begin = wal_bytes(&cluster);
    wait_for_attempts(&cluster, mark + 3);
    let grown = wal_bytes(&cluster) - begin;
    assert!(grown < size / 4, "{grown} bytes of WAL for a tablespace of {size}");
    cluster.run("COMMIT PREPARED 'p'");
    wait_until(&cluster, "encrypted");
    assert_eq!(cluster.int("SELECT count(*) FROM prepared"), cluster.int("SELECT count(*) FROM heap"));
    assert_eq!(sums(&mut cluster.connect("postgres")), before);
    assert_encrypted(&cluster);
}

/// A page that cannot be read keeps its own place in clear, and nothing else.
#[test]
fn a_damaged_page_does_not_stop_the_others() {
    let cluster = Cluster::builder().conf("shared_buffers", "1MB").start();
    let dir = cluster.plain_tablespace("ts");
    for name in ["a", "b", "c"] {
        cluster.run(&format!(
            "CREATE TABLE {name} TABLESPACE ts AS SELECT 'canary-{name}-' || i AS secret, repeat('x', 800) FROM generate_series(1, 300) i"
        ));
    }
    cluster.run("CHECKPOINT");
    cluster.evict_buffers();
    let damaged = cluster.file_of("a");
    files::flip(&damaged, 3 * 8192 + 4000);
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    wait_for_attempts(&cluster, 1);
    let log = cluster.log_since_start();
    assert!(log.contains("pg_tde cannot rewrite block 3") && log.contains("(\"a\")"), "{log}");
    for name in ["b", "c"] {
        assert_eq!(files::files_with(&dir, format!("canary-{name}").as_bytes()).len(), 0, "{name}\n{log}");
    }
    let clear = files::pages(&damaged).iter().filter(|page| !files::looks_random(page)).count();
    assert_eq!(clear, 1, "pages of the damaged table in clear");
    assert_eq!(state(&cluster), "encrypting");
    cluster.run("DROP TABLE a");
    wait_until(&cluster, "encrypted");
    assert_encrypted(&cluster);
}

/// A locked table keeps neither other tables nor CREATE DATABASE waiting, and nobody waits for himself.
#[test]
fn a_locked_table_is_left_for_later() {
    let cluster = Cluster::with_tde();
    cluster.plain_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 2000);
    let before = sums(&mut cluster.connect("postgres"));
    let mut locker = cluster.connect("postgres");
    locker.run("BEGIN; LOCK TABLE heap");
    let error = locker.try_run("SELECT tde.encrypt_tablespace('ts', wait => true)").expect_err("a block");
    assert!(error.to_string().contains("transaction block"), "{error}");
    let mut locker = cluster.connect("postgres");
    locker.run("BEGIN; LOCK TABLE heap");
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    let mut sql = cluster.connect("postgres");
    sql.run("SET statement_timeout = '20s'");
    for statement in ["CREATE DATABASE one", "ALTER DATABASE one RENAME TO two", "DROP DATABASE two"] {
        sql.run(statement);
        thread::sleep(Duration::from_millis(300));
    }
    wait_for_attempts(&cluster, 1);
    assert!(files::pages(&cluster.file_of("toasted")).iter().all(files::looks_random));
    locker.run("COMMIT");
    wait_until(&cluster, "encrypted");
    assert_eq!(sums(&mut cluster.connect("postgres")), before);
    assert_encrypted(&cluster);
}

/// A base backup has the keyring of before a job began and the manifest of after it, and the WAL between them is about plain pages.
#[test]
fn a_backup_with_an_older_keyring_than_its_manifest_restores() {
    let primary = Cluster::builder().conf("wal_keep_size", "1GB").start();
    primary.plain_tablespace("ts");
    fill(&mut primary.connect("postgres"), 6000);
    let options = ["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf"];
    let mut restored = Cluster::backup_of(&primary, &options, || ());
    primary.run("UPDATE heap SET id = id + 1; INSERT INTO toasted SELECT id, big FROM toasted");
    for tablespace in ["ts", "pg_default"] {
        primary.run(&format!("SELECT tde.encrypt_tablespace('{tablespace}', wait => true)"));
    }
    primary.run("UPDATE heap SET id = id - 1");
    let before = sums(&mut primary.connect("postgres"));
    let manifest = "pg_tde.manifest";
    assert_ne!(
        fs::read(primary.data().join(manifest)).unwrap(),
        fs::read(restored.data().join(manifest)).unwrap()
    );
    let mut copy = std::process::Command::new("cp");
    command_output(copy.args(["-a"]).arg(primary.data().join(manifest)).arg(restored.data().join(manifest)));
    restored.start();
    catch_up(&primary, &restored);
    assert_eq!(restored.rows(SUMS).remove(0), before);
    restored.crash_and_recover();
    restored.promote();
    wait_until(&restored, "encrypted");
    assert_eq!(sums(&mut restored.connect("postgres")), before);
    assert_encrypted(&restored);
    restored.crash_and_recover();
    assert_eq!(sums(&mut restored.connect("postgres")), before);
    // A standby of it knows both keys, and goes on after a restart.
    let mut standby = Cluster::standby_of(&restored);
    catch_up(&restored, &standby);
    standby.crash_and_recover();
    assert_eq!(standby.rows(SUMS).remove(0), before);
}

/// The owner of a database chooses settings and operators for sessions in it; the process of a job, which is a superuser's, uses none of them.
#[test]
fn the_owner_of_a_database_gains_nothing_from_a_job() {
    let cluster = Cluster::with_tde();
    cluster.plain_tablespace("ts");
    cluster.run("CREATE ROLE bob LOGIN");
    cluster.run("CREATE DATABASE bobdb OWNER bob TABLESPACE ts");
    let mut bob = cluster.connect_as("bobdb", "bob").unwrap();
    bob.run(
        "CREATE SCHEMA evil;
         CREATE FUNCTION evil.eq(oid, oid) RETURNS bool LANGUAGE plpgsql AS $$
         BEGIN
             ALTER ROLE bob SUPERUSER;
             RETURN $1::int8 OPERATOR(pg_catalog.=) $2::int8;
         EXCEPTION WHEN OTHERS THEN
             RETURN $1::int8 OPERATOR(pg_catalog.=) $2::int8;
         END $$;
         CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.eq);
         CREATE TABLE mine AS SELECT 'canary-bob' AS secret",
    );
    for setting in [
        "search_path = evil, pg_catalog",
        "statement_timeout = 1",
        "default_transaction_read_only = on",
        "default_transaction_isolation = serializable",
        "role = bob",
    ] {
        bob.run(&format!("ALTER DATABASE bobdb SET {setting}"));
    }
    drop(bob);
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    wait_until(&cluster, "encrypted");
    assert_eq!(cluster.text("SELECT rolsuper FROM pg_roles WHERE rolname = 'bob'"), "f");
    assert_eq!(attempts(&cluster), 0, "{}", cluster.log_since_start());
    assert_encrypted(&cluster);
}
