//! Data keys are rotated while they are used, and base backups overlap jobs.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use tde_tests::{Cluster, files};

use crate::filled::{SUMS, assert_encrypted, assert_plain, catch_up, fill, state, sums, wait_until, work};

/// The first key is gone from every page afterwards: with only the second, all of them open.
#[test]
fn a_data_key_is_rotated_while_it_is_used() {
    let mut primary = Cluster::builder().fsync().conf("wal_keep_size", "1GB").start();
    primary.plain_tablespace("ts");
    primary.run("SELECT tde.encrypt_tablespace('ts')");
    fill(&mut primary.connect("postgres"), 6000);
    primary.run("CREATE TABLE ledger (n int, filler text) TABLESPACE ts");
    let mut standby = Cluster::standby_of(&primary);
    primary.configure("pg_tde.job_cost_limit", "32");
    primary.configure("pg_tde.job_cost_delay", "20ms");
    primary.run("SELECT pg_reload_conf()");
    primary.try_run("SELECT tde.rotate_data_key('pg_default')").expect_err("it is not encrypted");
    for version in 2..=3 {
        let ciphertext = files::pages(&primary.file_of("toasted"));
        primary.run("TRUNCATE ledger");
        primary.run("SELECT tde.rotate_data_key('ts')");
        assert_eq!(state(&primary), "rotating");
        assert_eq!(primary.text("SELECT kind FROM tde.jobs"), "rotate");
        primary.try_run("SELECT tde.rotate_data_key('ts')").expect_err("it is rotating");
        let mut expected = 0;
        for crash in 0..2 {
            let stop = Arc::new(AtomicBool::new(false));
            let (session, stopped) = (primary.connect("postgres"), stop.clone());
            primary.run("TRUNCATE ledger");
            let client = thread::spawn(move || work(session, stopped));
            thread::sleep(Duration::from_millis(150 + 250 * crash));
            primary.crash();
            expected = client.join().unwrap();
            primary.start();
            let found = primary.int("SELECT count(*) FROM ledger");
            assert!(found == expected || found == expected + 1, "{found} of {expected}");
        }
        standby.crash_and_recover();
        wait_until(&primary, "encrypted");
        let found = primary.int("SELECT count(*) FROM ledger WHERE filler LIKE 'canary-ledger-%'");
        assert!(found == expected || found == expected + 1, "{found} of {expected}");
        assert_eq!(
            primary.text("SELECT key_version FROM tde.tablespaces WHERE name = 'ts'"),
            version.to_string()
        );
        assert_encrypted(&primary);
        let now = files::pages(&primary.file_of("toasted"));
        assert!(
            ciphertext
                .iter()
                .zip(&now)
                .all(|(old, new)| old[10..] != new[10..] || old.iter().all(|b| *b == 0))
        );
        let active =
            "SELECT string_agg(key_state, ',' ORDER BY key_version) FROM tde.keys WHERE scope LIKE '%ts%'";
        assert_eq!(primary.text(active), format!("{}active", "decrypt-only,".repeat(version - 1)));
    }
    let before = sums(&mut primary.connect("postgres"));
    primary.crash_and_recover();
    assert_eq!(sums(&mut primary.connect("postgres")), before);
    catch_up(&primary, &standby);
    assert_eq!(standby.rows(SUMS).remove(0), before, "on the standby");
    // Promoted in the middle of a third rotation.
    primary.run("SELECT tde.rotate_data_key('ts')");
    thread::sleep(Duration::from_millis(700));
    catch_up(&primary, &standby);
    primary.crash();
    standby.promote();
    wait_until(&standby, "encrypted");
    assert_eq!(sums(&mut standby.connect("postgres")), before, "promoted");
    assert_encrypted(&standby);
    standby.restart();
    assert_eq!(sums(&mut standby.connect("postgres")), before);
    assert_eq!(standby.text("SELECT key_version FROM tde.tablespaces WHERE name = 'ts'"), "4");
}

/// A base backup begins before a job and ends after it, or lies within it; encrypting, rotating and decrypting.
#[test]
fn a_base_backup_that_overlaps_a_job_restores() {
    let slow = [("pg_tde.job_cost_limit", "16"), ("pg_tde.job_cost_delay", "60ms")];
    for within in [false, true] {
        let primary = Cluster::builder().conf("wal_keep_size", "1GB").start();
        primary.plain_tablespace("ts");
        fill(&mut primary.connect("postgres"), 6000);
        for (statement, end) in [
            ("SELECT tde.encrypt_tablespace('ts')", "encrypted"),
            ("SELECT tde.rotate_data_key('ts')", "encrypted"),
            ("SELECT tde.decrypt_tablespace('ts')", "plain"),
        ] {
            let assert_done = if end == "plain" { assert_plain } else { assert_encrypted };
            let before = sums(&mut primary.connect("postgres"));
            if within {
                slow.iter().for_each(|(name, value)| primary.configure(name, value));
                primary.run("SELECT pg_reload_conf()");
                thread::sleep(Duration::from_millis(200));
                primary.run(statement);
            }
            let options = ["--checkpoint=fast", "--wal-method=stream", "--max-rate=16M"];
            let mut restored = Cluster::backup_of(&primary, &options, || {
                if !within {
                    primary.run(statement);
                    wait_until(&primary, end);
                }
            });
            restored.start();
            assert_eq!(restored.rows(SUMS).remove(0), before, "{statement}, within: {within}");
            wait_until(&restored, end);
            assert_eq!(sums(&mut restored.connect("postgres")), before, "{statement}, within: {within}");
            assert_done(&restored);
            restored.crash_and_recover();
            assert_eq!(sums(&mut restored.connect("postgres")), before, "{statement}, within: {within}");
            wait_until(&primary, end);
        }
    }
}
