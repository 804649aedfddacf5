//! Failovers in the middle of jobs: stock `pg_rewind` brings the old primary back, and standbys of standbys follow.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, SoftHsm, command_output, soak};

use crate::filled::{SUMS, assert_encrypted, assert_plain, catch_up, fill, state, sums, wait_until};
use crate::ledger::Ledger;

const BIG: &str = "SELECT count(*) || ' ' || sum(id::bigint) || ' ' || sum(hashtext(filler)) FROM big";

/// Waits until the job of tablespace `ts` has rewritten some pages, and lets it stand still there. Standbys do not know of that.
fn pause_in_the_middle(cluster: &Cluster) {
    let begin = Instant::now();
    while cluster
        .int("SELECT coalesce(max(blocks_done), 0) FROM tde.job_progress WHERE phase = 'rewriting pages'")
        < 60
    {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(10));
    }
    cluster.run("SELECT tde.pause_job(job) FROM tde.job_progress");
}

fn accept_restore(cluster: &Cluster, hsm: &SoftHsm) {
    let mut command = cluster.root().command(cluster.root().tde());
    command.args(["keyring", "accept-restore", "--keyring"]).arg(cluster.data().join("pg_tde"));
    command.arg("--hsm").arg(format!("soft:{}", hsm.store.display())).arg("--pin-file").arg(&hsm.pin_file);
    command_output(&mut command);
}

fn set_pace(cluster: &Cluster, delay: &str) {
    cluster.configure("pg_tde.job_cost_delay", delay);
    cluster.run("SELECT pg_reload_conf()");
}

/// The old primary follows the new one from now on.
fn rewind(old: &mut Cluster, new: &Cluster) -> String {
    let conf = fs::read(old.data().join("postgresql.conf")).unwrap();
    let socket = new.dir().join("sock");
    let source = format!("host={} port=5432 user=postgres dbname=postgres", socket.display());
    let target = old.data().to_str().unwrap().to_owned();
    let said = old.tool_output(
        "pg_rewind",
        &["--target-pgdata", &target, "--source-server", &source, "--write-recovery-conf", "--progress"],
    );
    fs::write(old.data().join("postgresql.conf"), conf).unwrap();
    said
}

/// Roles change in the middle of a job, both servers go on with it, and the old primary is rewound.
#[test]
fn pg_rewind_after_a_failover_in_the_middle_of_a_job() {
    let mut old = Cluster::builder()
        .conf("wal_keep_size", "4GB")
        .conf("max_wal_size", if soak() { "4GB" } else { "1GB" })
        .conf("pg_tde.job_cost_limit", "16")
        .start();
    let hsm =
        SoftHsm { store: old.hsm().store.clone(), pin_file: old.hsm().pin_file.clone(), pin: String::new() };
    old.plain_tablespace("ts");
    old.run("CREATE DATABASE inside TABLESPACE ts");
    old.run("CREATE DATABASE beside");
    fill(&mut old.connect("postgres"), 3000);
    fill(&mut old.connect("inside"), 1000);
    let mut ledgers = vec![
        Ledger::new(&old, "postgres", "ts"),
        Ledger::new(&old, "inside", "ts"),
        Ledger::new(&old, "beside", "ts"),
    ];
    // In a long run larger than a segment file; with free space and visibility maps.
    let rows = if soak() { 1_250_000 } else { 20_000 };
    old.run(&format!(
        "CREATE TABLE big TABLESPACE ts AS SELECT id, repeat(md5(id::text), 28) AS filler FROM generate_series(1, {rows}) id"
    ));
    old.run("CREATE INDEX i_big ON big (id) TABLESPACE ts");
    old.run("DELETE FROM big WHERE id % 11 = 0");
    old.run("VACUUM (FREEZE) big");
    let segments = if soak() { 2 } else { 1 };
    assert!(old.int("SELECT pg_relation_size('big') / (1::bigint << 30)") + 1 >= segments, "it is too small");
    let mut new = Cluster::standby_of(&old);
    let mut before = sums(&mut old.connect("postgres"));
    let jobs = [
        ("encrypt_tablespace", "encrypting", "encrypted"),
        ("rotate_data_key", "rotating", "encrypted"),
        ("decrypt_tablespace", "decrypting", "plain"),
    ];
    for (number, (function, busy, end)) in jobs.into_iter().enumerate() {
        set_pace(&old, "30ms");
        set_pace(&new, "1ms");
        old.run(&format!("SELECT tde.{function}('ts')"));
        pause_in_the_middle(&old);
        catch_up(&old, &new);
        assert_eq!(state(&new), busy);
        new.promote();
        // Two histories from here on.
        old.run(&format!(
            "UPDATE heap SET secret = 'lost-{number}' WHERE id % 3 = 0; DELETE FROM big WHERE id % 5 = 0"
        ));
        old.run("VACUUM big");
        old.run("CREATE TABLE lost TABLESPACE ts AS TABLE heap; DROP TABLE loose");
        set_pace(&old, "0");
        old.run("SELECT tde.resume_job(job) FROM tde.job_progress");
        if number != 1 {
            wait_until(&old, end);
        }
        old.run("CHECKPOINT");
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let clients: Vec<_> = ledgers.into_iter().map(|ledger| ledger.work(&new, stop.clone())).collect();
        new.run("DELETE FROM big WHERE id % 7 = 0");
        new.run("VACUUM big");
        new.run("CREATE TABLE IF NOT EXISTS gained TABLESPACE ts AS TABLE heap");
        wait_until(&new, end);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        ledgers = clients.into_iter().map(|client| client.join().unwrap()).collect();
        new.run("CHECKPOINT");
        old.stop();
        let said = rewind(&mut old, &new);
        assert!(said.contains("Done!"), "{said}");
        if let Err(failure) = old.try_start() {
            // The HSM remembers a keyring that this history has never seen.
            assert!(failure.log.contains("tde keyring accept-restore"), "{}", failure.log);
            accept_restore(&old, &hsm);
            old.start();
        }
        for pass in ["at once", "crash"] {
            if pass == "crash" {
                old.crash_and_recover();
            }
            catch_up(&new, &old);
            assert_eq!(old.rows(SUMS).remove(0), before, "{function}, {pass}");
            assert_eq!(old.text(BIG), new.text(BIG), "{function}, {pass}");
            assert_eq!(
                old.text("SELECT to_regclass('lost') IS NULL AND to_regclass('loose') IS NOT NULL"),
                "t"
            );
            assert_eq!(state(&old), end, "{function}, {pass}");
            for ledger in &mut ledgers {
                ledger.check(&new, function);
                ledger.check_copy(&old, function);
            }
        }
        // A restartpoint writes what was replayed.
        new.run("CHECKPOINT");
        catch_up(&new, &old);
        if end == "plain" {
            assert_plain(&old)
        } else {
            assert_encrypted(&old)
        }
        before = sums(&mut new.connect("postgres"));
        std::mem::swap(&mut old, &mut new);
    }
    // The one that was rewound last takes over.
    old.crash();
    new.promote();
    assert_eq!(sums(&mut new.connect("postgres")), before);
    new.run("SELECT tde.encrypt_tablespace('ts', wait => true)");
    assert_eq!(sums(&mut new.connect("postgres")), before);
    assert_encrypted(&new);
}

/// A standby of a standby: its upstream is promoted in the middle of each job and ends it.
#[test]
fn a_cascading_standby_follows_a_promotion_in_the_middle_of_a_job() {
    for (function, busy, end) in [
        ("encrypt_tablespace", "encrypting", "encrypted"),
        ("rotate_data_key", "rotating", "encrypted"),
        ("decrypt_tablespace", "decrypting", "plain"),
    ] {
        let mut primary = Cluster::builder()
            .conf("wal_keep_size", "1GB")
            .conf("pg_tde.job_cost_limit", "16")
            .conf("pg_tde.job_cost_delay", "40ms")
            .start();
        primary.plain_tablespace("ts");
        if function != "encrypt_tablespace" {
            primary.run("SELECT tde.encrypt_tablespace('ts')");
        }
        fill(&mut primary.connect("postgres"), 4000);
        let before = sums(&mut primary.connect("postgres"));
        let upstream = Cluster::standby_of(&primary);
        let mut cascading = Cluster::standby_of(&upstream);
        primary.run(&format!("SELECT tde.{function}('ts')"));
        pause_in_the_middle(&primary);
        catch_up(&primary, &cascading);
        assert_eq!(state(&cascading), busy);
        assert_eq!(cascading.rows(SUMS).remove(0), before, "in the middle");
        cascading.crash();
        primary.crash();
        upstream.promote();
        cascading.start();
        set_pace(&upstream, "0");
        wait_until(&upstream, end);
        catch_up(&upstream, &cascading);
        assert_eq!(state(&cascading), end);
        assert_eq!(cascading.rows(SUMS).remove(0), before, "at the end");
        cascading.crash_and_recover();
        cascading.promote();
        assert_eq!(sums(&mut cascading.connect("postgres")), before, "promoted");
        if end == "plain" { assert_plain(&cascading) } else { assert_encrypted(&cascading) }
    }
}
