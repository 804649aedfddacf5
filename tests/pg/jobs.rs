//! Tablespaces that hold data are encrypted while they are used: no row lost, no plaintext left, whatever is killed meanwhile.

use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, files, soak};

use crate::filled::{SUMS, assert_encrypted, fill, state, sums, wait_until, work};

#[test]
fn a_tablespace_with_data_is_encrypted_while_it_is_used() {
    for checksums in [true, false] {
        let mut cluster = Cluster::builder().checksums(checksums).start();
        cluster.plain_tablespace("ts");
        cluster.run("CREATE DATABASE inside TABLESPACE ts");
        cluster.run("CREATE DATABASE other");
        let databases = ["postgres", "inside", "other"];
        let before = databases.map(|name| {
            let mut sql = cluster.connect(name);
            fill(&mut sql, 3000);
            sums(&mut sql)
        });
        cluster.restart(); // so that the pages of unlogged relations are in their files, too
        assert!(!files::files_with(&cluster.ts_dir().join("ts"), b"canary-loose").is_empty());
        let job = cluster.text("SELECT tde.encrypt_tablespace('ts', wait => true)");
        assert_eq!(state(&cluster), "encrypted");
        let shown = cluster.rows("SELECT job, tablespace, phase, blocks_done = blocks_total FROM tde.jobs");
        assert_eq!(shown, [[job.as_str(), "ts", "done", "t"]]);
        assert_encrypted(&cluster);
        for round in ["at once", "restart", "crash"] {
            match round {
                "restart" => cluster.restart(),
                "crash" => cluster.crash_and_recover(),
                _ => (),
            }
            let now = databases.map(|name| sums(&mut cluster.connect(name)));
            assert_eq!(now, before, "{round}");
            assert_encrypted(&cluster);
        }
        let loose = cluster.int("SELECT count(*) FROM loose");
        assert_eq!(loose, 0, "the crash reset it from its init fork");
        cluster.run("INSERT INTO loose VALUES (1, 'canary-loose-again')");
        cluster.restart();
        assert_encrypted(&cluster);
        assert_eq!(cluster.int("SELECT count(*) FROM loose WHERE secret = 'canary-loose-again'"), 1);
    }
}

/// SIGKILL to everything in the middle of the job, again and again; the job goes on after each start by itself.
#[test]
fn a_job_that_is_killed_goes_on_and_loses_nothing() {
    let rounds = if soak() { 25 } else { 6 };
    for round in 0..rounds {
        let mut cluster = Cluster::builder()
            .fsync()
            .conf("pg_tde.job_cost_limit", "64")
            .conf("pg_tde.job_cost_delay", "20ms")
            .start();
        cluster.plain_tablespace("ts");
        fill(&mut cluster.connect("postgres"), 8000);
        cluster.run("CREATE TABLE ledger (n int, filler text) TABLESPACE ts");
        let before = cluster.rows("SELECT count(*) FROM heap");
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut expected = 0;
        cluster.run("SELECT tde.encrypt_tablespace('ts')");
        for crash in 0..3 {
            let session = cluster.connect("postgres");
            let stop = stop.clone();
            cluster.run("TRUNCATE ledger");
            let client = thread::spawn(move || work(session, stop));
            thread::sleep(Duration::from_millis(20 + 170 * round + 60 * crash));
            cluster.crash();
            expected = client.join().unwrap();
            cluster.start();
            // One transaction may have been committed without an answer.
            let found = cluster.int("SELECT count(*) FROM ledger");
            assert!(found == expected || found == expected + 1, "round {round}: {found} of {expected}");
            assert_eq!(cluster.rows("SELECT count(*) FROM heap"), before);
        }
        wait_until(&cluster, "encrypted");
        let found = cluster.int("SELECT count(*) FROM ledger WHERE filler LIKE 'canary-ledger-%'");
        assert!(found == expected || found == expected + 1);
        let sums = sums(&mut cluster.connect("postgres"));
        assert_encrypted(&cluster);
        cluster.crash_and_recover();
        assert_eq!(self::sums(&mut cluster.connect("postgres")), sums);
        assert_encrypted(&cluster);
    }
}

/// One process of the job is killed: the server restarts itself, and the job goes on.
#[test]
fn each_process_of_a_job_may_be_killed() {
    let cluster =
        Cluster::builder().conf("pg_tde.job_cost_limit", "16").conf("pg_tde.job_cost_delay", "20ms").start();
    cluster.plain_tablespace("ts");
    let before = {
        let mut sql = cluster.connect("postgres");
        fill(&mut sql, 8000);
        sums(&mut sql)
    };
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    for title in ["pg_tde rewriter", "pg_tde job", "pg_tde launcher"] {
        let begin = Instant::now();
        let victim = loop {
            let found = cluster.postmaster().children().into_iter().find(|p| p.title().contains(title));
            if let Some(found) = found {
                break found;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "no {title}\n{}", cluster.log_since_start());
            thread::sleep(Duration::from_millis(10));
        };
        cluster.kill_backend(victim);
    }
    wait_until(&cluster, "encrypted");
    assert_eq!(sums(&mut cluster.connect("postgres")), before);
    assert_encrypted(&cluster);
}

/// A standby follows by WAL position; promoted in the middle, it finishes the job itself.
#[test]
fn a_standby_follows_and_finishes_the_job_when_it_is_promoted() {
    for promoted_at in ["rewriting pages", "done"] {
        let mut primary = Cluster::builder().conf("wal_keep_size", "1GB").start();
        primary.plain_tablespace("ts");
        fill(&mut primary.connect("postgres"), 8000);
        let mut standby = Cluster::standby_of(&primary);
        if promoted_at != "done" {
            primary.configure("pg_tde.job_cost_limit", "16");
            primary.configure("pg_tde.job_cost_delay", "50ms");
            primary.run("SELECT pg_reload_conf()");
        }
        primary.run("SELECT tde.encrypt_tablespace('ts')");
        let phase =
            format!("SELECT count(*) FROM tde.jobs WHERE phase = '{promoted_at}' AND blocks_done > 50");
        let begin = Instant::now();
        while primary.int(&phase) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", primary.log_since_start());
            thread::sleep(Duration::from_millis(20));
        }
        let before = sums(&mut primary.connect("postgres"));
        let target = primary.text("SELECT pg_current_wal_flush_lsn()");
        while standby.text(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) != "t" {
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(standby.rows(SUMS).remove(0), before, "on the standby");
        standby.crash_and_recover();
        assert_eq!(standby.rows(SUMS).remove(0), before, "on the standby after a crash");
        primary.crash();
        standby.promote();
        wait_until(&standby, "encrypted");
        assert_eq!(sums(&mut standby.connect("postgres")), before, "promoted");
        assert_encrypted(&standby);
        standby.crash_and_recover();
        assert_eq!(sums(&mut standby.connect("postgres")), before);
    }
}

/// What happens to tables in the middle of the job: dropped, rewritten, truncated, moved out and in, made.
#[test]
fn tables_and_databases_change_under_the_job() {
    let cluster = Cluster::builder()
        .conf("pg_tde.job_cost_limit", "16")
        .conf("pg_tde.job_cost_delay", "10ms")
        .conf("max_prepared_transactions", "5")
        .start();
    cluster.plain_tablespace("ts");
    cluster.run("CREATE DATABASE inside TABLESPACE ts");
    cluster.run("CREATE DATABASE victim TABLESPACE ts");
    let mut sql = cluster.connect("postgres");
    fill(&mut sql, 5000);
    for name in ["dropped", "rewritten", "truncated", "moved_out", "clustered"] {
        sql.run(&format!("CREATE TABLE {name} TABLESPACE ts AS TABLE heap"));
    }
    sql.run("CREATE TABLE moved_in TABLESPACE pg_default AS TABLE heap");
    sql.run("CREATE INDEX ON clustered (secret)");
    let before = sums(&mut sql);
    // Made before and not committed: the job waits for both.
    let mut early = cluster.connect("postgres");
    early.run("BEGIN; CREATE TABLE early TABLESPACE ts AS TABLE heap; CREATE TEMP TABLE scratch TABLESPACE ts AS TABLE heap");
    cluster.run("BEGIN; CREATE TABLE prepared TABLESPACE ts AS TABLE heap; PREPARE TRANSACTION 'p'");
    let mut temporary = cluster.connect("postgres");
    temporary.run("SET temp_buffers = '800kB'; CREATE TEMP TABLE mine TABLESPACE ts AS TABLE heap");
    let count = temporary.int("SELECT count(*) FROM mine");
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(cluster.text("SELECT phase FROM tde.jobs"), "waiting for transactions");
    early.run("COMMIT");
    cluster.run("COMMIT PREPARED 'p'");
    let mut moments = 0;
    for statement in [
        "DROP TABLE dropped",
        "ALTER TABLE rewritten ALTER id TYPE bigint",
        "TRUNCATE truncated",
        "ALTER TABLE moved_out SET TABLESPACE pg_default",
        "ALTER TABLE moved_in SET TABLESPACE ts",
        "CLUSTER clustered USING clustered_secret_idx",
        "VACUUM FULL mat",
        "REINDEX TABLE heap",
        "CREATE TABLE late TABLESPACE ts AS TABLE heap",
        "CREATE DATABASE made TEMPLATE inside",
        "ALTER DATABASE inside RENAME TO renamed",
        "DROP DATABASE victim",
    ] {
        moments += cluster.int("SELECT count(*) FROM tde.jobs WHERE phase <> 'done'");
        cluster.run(statement);
        assert_eq!(temporary.int("SELECT count(*) FROM mine"), count, "{statement}");
        temporary.run("UPDATE mine SET secret = secret || 'x' WHERE id % 10 = 0");
    }
    assert!(moments > 6, "the job was over too soon to show anything: {moments}");
    wait_until(&cluster, "encrypted");
    assert_eq!(temporary.int("SELECT count(*) FROM mine WHERE secret LIKE 'canary%'"), count);
    drop(temporary);
    drop(early);
    thread::sleep(Duration::from_millis(300));
    assert_eq!(sums(&mut cluster.connect("postgres")), before);
    for table in ["early", "prepared", "rewritten", "moved_out", "moved_in", "clustered", "late"] {
        assert_eq!(cluster.int(&format!("SELECT count(*) FROM {table}")), count, "{table}");
    }
    assert_encrypted(&cluster);
}

/// A job that fails is begun again by itself, also when it fails outside of a transaction.
#[test]
fn a_job_that_fails_is_begun_again() {
    let cluster = Cluster::with_tde();
    let dir = cluster.plain_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 1000);
    let before = sums(&mut cluster.connect("postgres"));
    // A file that the server may not read.
    let obstacle = files::relation_files(&dir)[0].with_file_name("999999");
    std::fs::write(&obstacle, [0; 8192]).unwrap();
    std::fs::set_permissions(&obstacle, std::fs::Permissions::from_mode(0o000)).unwrap();
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    let begin = Instant::now();
    while cluster.log_since_start().matches("pg_tde job failed").count() < 2 {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(state(&cluster), "encrypting");
    std::fs::remove_file(&obstacle).unwrap();
    wait_until(&cluster, "encrypted");
    assert_eq!(sums(&mut cluster.connect("postgres")), before);
    assert_encrypted(&cluster);
}
