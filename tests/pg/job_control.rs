//! Jobs as people see and steer them: progress, pause, resume, cancel, and going on where they were.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Builder, Cluster};

use crate::filled::{SUMS, assert_encrypted, assert_plain, catch_up, fill, state, sums, wait_until};

/// About 25 pages a second.
fn slow() -> Builder {
    Cluster::builder().fsync().conf("pg_tde.job_cost_limit", "1").conf("pg_tde.job_cost_delay", "40ms")
}

/// Waits until a query gives `t`.
fn wait_for(cluster: &Cluster, query: &str) {
    let begin = Instant::now();
    while cluster.text(query) != "t" {
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "{query}: {:?}\n{}",
            cluster.rows("SELECT * FROM tde.job_progress"),
            cluster.log_since_start()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for_phase(cluster: &Cluster, phase: &str) {
    wait_for(cluster, &format!("SELECT EXISTS (SELECT FROM tde.job_progress WHERE phase = '{phase}')"));
}

fn finish_fast(cluster: &Cluster) {
    cluster.configure("pg_tde.job_cost_delay", "0");
    cluster.run("SELECT pg_reload_conf()");
}

fn job_files(cluster: &Cluster) -> Vec<PathBuf> {
    let entries = fs::read_dir(cluster.data()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("pg_tde.job.")).collect()
}

/// The number after `done` in the file that remembers how far a job is.
fn done_on_disk(cluster: &Cluster) -> Option<i64> {
    let path = job_files(cluster).into_iter().find(|path| path.extension().is_some_and(|e| e == "1"))?;
    let text = fs::read_to_string(path).unwrap();
    text.split_whitespace().skip_while(|word| *word != "done").nth(1).map(|word| word.parse().unwrap())
}

/// After a crash and a restart a job does not start over.
#[test]
fn a_job_goes_on_where_it_was() {
    let mut cluster = slow().start();
    cluster.plain_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 8000);
    let before = sums(&mut cluster.connect("postgres"));
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    for stop in ["crash", "restart"] {
        let begin = Instant::now();
        let begun = done_on_disk(&cluster).unwrap_or(0);
        let done = loop {
            match done_on_disk(&cluster) {
                Some(done) if done > begun => break done,
                _ => thread::sleep(Duration::from_millis(20)),
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
        };
        if stop == "crash" {
            cluster.crash_and_recover()
        } else {
            cluster.restart()
        }
        wait_for_phase(&cluster, "rewriting pages");
        let at = cluster.int("SELECT blocks_done FROM tde.job_progress");
        assert!(at >= done, "it was at {done} and begins again at {at}");
        assert!(cluster.log_since_start().contains("It goes on after"), "{}", cluster.log_since_start());
        assert_eq!(sums(&mut cluster.connect("postgres")), before);
    }
    // A mark that promises too much, as after a restore: the check of the files finds what is missing.
    let path = job_files(&cluster).remove(0);
    cluster.crash();
    let text = fs::read_to_string(&path).unwrap();
    let head: Vec<&str> = text.lines().take(2).collect();
    let text =
        format!("{}\nnext database 4000000000 relation 1 storage 1 fork 0 block 0 done 7\n", head.join("\n"));
    fs::write(&path, format!("{text}crc32 {:08x}\n", crc32(text.as_bytes()))).unwrap();
    cluster.start();
    finish_fast(&cluster);
    wait_until(&cluster, "encrypted");
    let log = cluster.log_since_start();
    assert!(log.contains("It goes on after 7 blocks"), "{log}");
    assert_eq!(sums(&mut cluster.connect("postgres")), before);
    assert_encrypted(&cluster);
    wait_for(&cluster, "SELECT NOT EXISTS (SELECT FROM tde.job_progress)");
    assert_eq!(job_files(&cluster), Vec::<PathBuf>::new());
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// A paused job stays paused until it is resumed; a cancelled one goes back.
#[test]
fn a_job_is_paused_resumed_and_cancelled() {
    let mut cluster = slow().conf("wal_keep_size", "1GB").start();
    cluster.plain_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 6000);
    let before = sums(&mut cluster.connect("postgres"));
    let mut standby = Cluster::standby_of(&cluster);
    for call in ["pause_job(7)", "resume_job(7)", "cancel_job(7)"] {
        let error = cluster.try_run(&format!("SELECT tde.{call}")).expect_err("no such job").to_string();
        assert!(error.contains("there is no job 7"), "{error}");
    }

    // Encrypting, paused over a restart and a crash, resumed.
    let job = cluster.text("SELECT tde.encrypt_tablespace('ts')");
    wait_for(&cluster, "SELECT EXISTS (SELECT FROM tde.job_progress WHERE blocks_done > 20)");
    cluster.run(&format!("SELECT tde.pause_job({job})"));
    wait_for_phase(&cluster, "paused");
    let at = cluster.int("SELECT blocks_done FROM tde.job_progress WHERE paused");
    for stop in ["", "restart", "crash"] {
        match stop {
            "restart" => cluster.restart(),
            "crash" => cluster.crash_and_recover(),
            _ => thread::sleep(Duration::from_millis(500)),
        }
        wait_for_phase(&cluster, "paused");
        if stop.is_empty() {
            assert_eq!(cluster.int("SELECT blocks_done FROM tde.job_progress"), at);
        }
        assert_eq!(state(&cluster), "encrypting");
        assert_eq!(sums(&mut cluster.connect("postgres")), before, "paused, {stop}");
    }
    cluster.run(&format!("SELECT tde.resume_job({job})"));
    wait_for_phase(&cluster, "rewriting pages");
    let now = cluster.int("SELECT blocks_done FROM tde.job_progress");
    assert!(now >= at, "{now} after {at}");

    // Cancelled: in clear again, also when it is paused.
    cluster.run(&format!("SELECT tde.pause_job({job})"));
    wait_for_phase(&cluster, "paused");
    assert_eq!(cluster.text(&format!("SELECT tde.cancel_job({job})")), job);
    assert_eq!(state(&cluster), "decrypting");
    wait_for(&cluster, "SELECT EXISTS (SELECT FROM tde.job_progress WHERE kind = 'decrypt' AND NOT paused)");
    cluster.crash_and_recover();
    assert_eq!(sums(&mut cluster.connect("postgres")), before, "going back");
    wait_until(&cluster, "plain");
    assert_plain(&cluster);
    assert_eq!(sums(&mut cluster.connect("postgres")), before, "gone back");

    // A rotation has no way back; a decryption goes back to another version of the key.
    finish_fast(&cluster);
    cluster.run("SELECT tde.encrypt_tablespace('ts', wait => true)");
    assert_encrypted(&cluster);
    cluster.configure("pg_tde.job_cost_delay", "40ms");
    cluster.run("SELECT pg_reload_conf()");
    let job = cluster.text("SELECT tde.rotate_data_key('ts')");
    let error =
        cluster.try_run(&format!("SELECT tde.cancel_job({job})")).expect_err("no way back").to_string();
    assert!(error.contains("cannot be cancelled"), "{error}");
    finish_fast(&cluster);
    wait_until(&cluster, "encrypted");
    cluster.configure("pg_tde.job_cost_delay", "40ms");
    cluster.run("SELECT pg_reload_conf()");
    let job = cluster.text("SELECT tde.decrypt_tablespace('ts')");
    wait_for(
        &cluster,
        "SELECT EXISTS (SELECT FROM tde.job_progress WHERE kind = 'decrypt' AND blocks_done > 20)",
    );
    cluster.run(&format!("SELECT tde.cancel_job({job})"));
    assert_eq!(state(&cluster), "encrypting");
    wait_for(
        &cluster,
        "SELECT EXISTS (SELECT FROM tde.job_progress WHERE kind = 'encrypt' AND blocks_done > 20)",
    );
    cluster.crash_and_recover();
    assert_eq!(sums(&mut cluster.connect("postgres")), before, "encrypting again");
    wait_until(&cluster, "encrypted");
    assert_encrypted(&cluster);
    assert_eq!(cluster.text("SELECT key_version FROM tde.tablespaces WHERE name = 'ts'"), "3");
    cluster.crash_and_recover();
    assert_eq!(sums(&mut cluster.connect("postgres")), before, "encrypted again");

    catch_up(&cluster, &standby);
    assert_eq!(standby.rows(SUMS).remove(0), before, "on the standby");
    standby.try_run(&format!("SELECT tde.pause_job({job})")).expect_err("a standby");
    standby.crash_and_recover();
    standby.promote();
    assert_eq!(sums(&mut standby.connect("postgres")), before, "promoted");
    assert_encrypted(&standby);
}

/// The view says how far, how fast and until when, and whom a job waits for.
#[test]
fn progress_is_shown() {
    let cluster = slow().conf("max_prepared_transactions", "5").start();
    cluster.plain_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 8000);
    let mut early = cluster.connect("postgres");
    early.run("BEGIN; CREATE TABLE early TABLESPACE ts AS TABLE heap");
    let pid = early.int("SELECT pg_backend_pid()");
    cluster.run("BEGIN; CREATE TABLE prepared TABLESPACE ts AS TABLE heap; PREPARE TRANSACTION 'slowly'");
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    wait_for_phase(&cluster, "waiting for transactions");
    let waits = cluster.text("SELECT waits_for FROM tde.job_progress");
    assert!(
        waits.contains(&format!("process {pid}")) && waits.contains("prepared transaction slowly"),
        "{waits}"
    );
    early.run("COMMIT");
    cluster.run("COMMIT PREPARED 'slowly'");
    wait_for(
        &cluster,
        "SELECT EXISTS (SELECT FROM tde.job_progress WHERE phase = 'rewriting pages' AND datname = 'postgres'
            AND relid IS NOT NULL AND blocks_done BETWEEN 1 AND blocks_total AND mb_per_second < 20
            AND estimated_end BETWEEN now() AND now() + '1 minute' AND waits_for IS NULL
            AND EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = job_progress.pid))",
    );
    finish_fast(&cluster);
    wait_until(&cluster, "encrypted");
    let log = cluster.log_since_start();
    assert!(log.contains("begins: encrypt tablespace") && log.contains("has ended"), "{log}");
}

/// A sequence is ahead in the WAL by some values; the image that a job logs of it is not.
#[test]
fn no_value_of_a_sequence_is_given_out_twice() {
    let mut cluster = slow().conf("autovacuum", "off").start();
    cluster.plain_tablespace("ts");
    cluster.run("CREATE DATABASE inside TABLESPACE ts");
    let last = |cluster: &Cluster| {
        cluster.connect("inside").int("SELECT max(nextval('numbers')) FROM generate_series(1, 7)")
    };
    {
        let mut sql = cluster.connect("inside");
        sql.run("CREATE SEQUENCE numbers; CREATE TABLE later AS SELECT i, repeat('x', 500) FROM generate_series(1, 3000) i");
    }
    let sequence = cluster.connect("inside").int("SELECT 'numbers'::regclass::oid::bigint");
    for statement in ["encrypt_tablespace('ts')", "rotate_data_key('ts')", "decrypt_tablespace('ts')"] {
        last(&cluster);
        cluster.configure("pg_tde.job_cost_delay", "40ms");
        cluster.restart();
        cluster.run(&format!("SELECT tde.{statement}"));
        wait_for(
            &cluster,
            &format!(
                "SELECT EXISTS (SELECT FROM tde.job_progress WHERE relid > {sequence} AND relid IS NOT NULL)"
            ),
        );
        let given = last(&cluster);
        cluster.crash_and_recover();
        let next = last(&cluster) - 6;
        assert!(next > given, "{statement}: {given} was given out, and {next} comes next");
        finish_fast(&cluster);
        wait_for(&cluster, "SELECT NOT EXISTS (SELECT FROM tde.tablespaces WHERE state LIKE '%ing')");
    }
}
