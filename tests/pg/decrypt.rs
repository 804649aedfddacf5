//! Encrypted tablespaces are stored in clear again while they are used; afterwards any PostgreSQL reads them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use page_cipher::pg::{self, PAGE_SIZE, Page};
use tde_tests::files::{self, read_page, write_page};
use tde_tests::{Cluster, Sql};

use crate::filled::{SUMS, assert_encrypted, assert_plain, catch_up, fill, state, sums, wait_until, work};

/// Killed again and again under load, with and without checksums; then a server without the library reads everything.
#[test]
fn a_tablespace_is_decrypted_while_it_is_used() {
    for checksums in [true, false] {
        let mut cluster = Cluster::builder()
            .fsync()
            .checksums(checksums)
            .conf("pg_tde.job_cost_limit", "64")
            .conf("pg_tde.job_cost_delay", "20ms")
            .start();
        cluster.plain_tablespace("ts");
        cluster.run("SELECT tde.encrypt_tablespace('ts')");
        cluster.run("CREATE DATABASE inside TABLESPACE ts");
        let inside = {
            let mut sql = cluster.connect("inside");
            fill(&mut sql, 1000);
            sums(&mut sql)
        };
        fill(&mut cluster.connect("postgres"), 6000);
        cluster.run("CREATE TABLE ledger (n int, filler text) TABLESPACE ts");
        cluster.try_run("SELECT tde.decrypt_tablespace('pg_default')").expect_err("it is not encrypted");
        cluster.run("SELECT tde.decrypt_tablespace('ts')");
        assert_eq!(state(&cluster), "decrypting");
        assert_eq!(cluster.text("SELECT kind FROM tde.jobs"), "decrypt");
        for statement in ["tde.decrypt_tablespace('ts')", "tde.encrypt_tablespace('ts')"] {
            cluster.try_run(&format!("SELECT {statement}")).expect_err("it is decrypting");
        }
        let mut expected = 0;
        for crash in 0..3 {
            let stop = Arc::new(AtomicBool::new(false));
            let session = cluster.connect("postgres");
            cluster.run("TRUNCATE ledger");
            let client = thread::spawn(move || work(session, stop));
            thread::sleep(Duration::from_millis(150 + 200 * crash));
            cluster.crash();
            expected = client.join().unwrap();
            cluster.start();
            let found = cluster.int("SELECT count(*) FROM ledger");
            assert!(found == expected || found == expected + 1, "{found} of {expected}");
        }
        wait_until(&cluster, "plain");
        let found = cluster.int("SELECT count(*) FROM ledger WHERE filler LIKE 'canary-ledger-%'");
        assert!(found == expected || found == expected + 1, "{found} of {expected}");
        assert_eq!(cluster.text("SELECT tde.is_encrypted('heap')"), "f");
        assert_plain(&cluster);
        assert!(!files::files_with(&cluster.ts_dir().join("ts"), b"canary-row-").is_empty());
        let before = sums(&mut cluster.connect("postgres"));
        assert_eq!(sums(&mut cluster.connect("inside")), inside);
        cluster.crash_and_recover();
        assert_eq!(sums(&mut cluster.connect("postgres")), before, "after a crash");
        assert_plain(&cluster);
        // Stock tools and a stock server.
        cluster.stop();
        if checksums {
            let data = cluster.data().to_str().unwrap().to_owned();
            let checked = cluster.tool_output("pg_checksums", &["--check", "-D", &data]);
            assert!(checked.contains("Bad checksums:  0"), "{checked}");
        }
        cluster.configure("shared_preload_libraries", "");
        cluster.start();
        assert_eq!(sums(&mut cluster.connect("postgres")), before, "without the library");
        assert_eq!(sums(&mut cluster.connect("inside")), inside, "without the library");
        cluster.stop();
        cluster.configure("shared_preload_libraries", "pg_tde");
        cluster.start();
        // And encrypted again, under another key.
        cluster.run("SELECT tde.encrypt_tablespace('ts', wait => true)");
        assert_eq!(sums(&mut cluster.connect("postgres")), before);
        assert_encrypted(&cluster);
        cluster.crash_and_recover();
        assert_eq!(sums(&mut cluster.connect("postgres")), before);
        assert_encrypted(&cluster);
    }
}

/// A standby follows, crashes, and finishes the job itself when it is promoted in the middle; another is promoted after it.
#[test]
fn a_standby_follows_the_decryption() {
    for promoted_in_the_middle in [true, false] {
        let mut primary = Cluster::builder()
            .conf("wal_keep_size", "1GB")
            .conf("pg_tde.job_cost_limit", "16")
            .conf("pg_tde.job_cost_delay", if promoted_in_the_middle { "100ms" } else { "2ms" })
            .start();
        primary.plain_tablespace("ts");
        primary.run("SELECT tde.encrypt_tablespace('ts')");
        fill(&mut primary.connect("postgres"), 6000);
        let mut standby = Cluster::standby_of(&primary);
        let before = sums(&mut primary.connect("postgres"));
        primary.run("SELECT tde.decrypt_tablespace('ts')");
        thread::sleep(Duration::from_millis(400));
        if !promoted_in_the_middle {
            wait_until(&primary, "plain");
        }
        catch_up(&primary, &standby);
        assert_eq!(standby.rows(SUMS).remove(0), before, "on the standby");
        standby.crash_and_recover();
        assert_eq!(standby.rows(SUMS).remove(0), before, "on the standby after a crash");
        primary.crash();
        assert_eq!(state(&standby), if promoted_in_the_middle { "decrypting" } else { "plain" });
        standby.promote();
        wait_until(&standby, "plain");
        assert_eq!(sums(&mut standby.connect("postgres")), before, "promoted");
        assert_plain(&standby);
        standby.crash_and_recover();
        assert_eq!(sums(&mut standby.connect("postgres")), before, "promoted, after a crash");
    }
}

/// Has the metapage of SP-GiST index `i`, which is never in the WAL, written anew; gives it as it is on disk before and after.
fn rewrite_metapage(cluster: &Cluster, sql: &mut Sql) -> (Page, Page) {
    let index = cluster.file_of("i");
    let before = read_page(&index, 0);
    for _ in 0..20 {
        // It remembers pages with room: not every row changes that.
        sql.run("INSERT INTO t SELECT i, point(random() * 90, random() * 90) FROM generate_series(1, 30) i");
        cluster.evict_buffers();
        let after = read_page(&index, 0);
        if after != before {
            return (before, after);
        }
    }
    panic!("the metapage was not written");
}

/// A page that no WAL record restores is written in clear over an encrypted one, and the write is torn.
#[test]
fn a_page_in_clear_that_is_torn_over_an_encrypted_one_is_put_back() {
    for (checksums, half) in [(true, 0), (true, 1), (false, 0), (false, 1)] {
        let mut cluster = Cluster::builder()
            .fsync()
            .checksums(checksums)
            .conf("shared_buffers", "1MB")
            .conf("autovacuum", "off")
            .conf("checkpoint_timeout", "1h")
            // A block of table t, then a long pause: the job does not reach the index.
            .conf("pg_tde.job_cost_limit", "1")
            .conf("pg_tde.job_cost_delay", "10s")
            .start();
        cluster.encrypted_tablespace("ts");
        cluster.run(
            "CREATE TABLE t (id int, at point) TABLESPACE ts;
             INSERT INTO t SELECT i, point(i % 17, i % 13) FROM generate_series(1, 2000) i;
             CREATE INDEX i ON t USING spgist (at) TABLESPACE ts",
        );
        cluster.evict_buffers();
        let mut sql = cluster.connect("postgres");
        cluster.run("SELECT tde.decrypt_tablespace('ts')");
        let (before, after) = rewrite_metapage(&cluster, &mut sql);
        assert!(files::looks_random(&before) && pg::header_is_valid(&after, pg::Fork::Main));
        let index = cluster.file_of("i");
        cluster.crash();
        assert!(read_page(&index, 0) == after, "somebody wrote the metapage meanwhile");
        let mut torn = after;
        let old = half * PAGE_SIZE / 2..(half + 1) * PAGE_SIZE / 2;
        torn[old.clone()].copy_from_slice(&before[old]);
        write_page(&index, 0, &torn);
        cluster.configure("pg_tde.job_cost_delay", "0");
        cluster.start();
        let log = cluster.log_since_start();
        assert!(log.contains("put back from the double-write file"), "{checksums} {half}:\n{log}");
        wait_until(&cluster, "plain");
        assert_plain(&cluster);
        let mut sql = cluster.connect("postgres");
        sql.run("SET enable_seqscan = off");
        let all = sql.int("SELECT count(*) FROM t");
        assert_eq!(sql.int("SELECT count(*) FROM t WHERE at <@ box '(-1,-1),(99,99)'"), all);
        // What the files still hold of that time does no harm.
        sql.run("INSERT INTO t SELECT i, point(random() * 90, random() * 90) FROM generate_series(1, 300) i");
        let all = sql.int("SELECT count(*) FROM t");
        cluster.evict_buffers();
        cluster.crash_and_recover();
        assert!(!cluster.log_since_start().contains("put back"), "{}", cluster.log_since_start());
        assert_eq!(cluster.int("SELECT count(*) FROM t"), all);
    }
}
