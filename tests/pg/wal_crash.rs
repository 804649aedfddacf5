//! kill -9 with encrypted WAL: every acknowledged transaction is there.

use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use tde_tests::{Cluster, files, soak};

use crate::wal::{encrypted, settled};

fn load(cluster: &Cluster) -> Child {
    cluster
        .tool("pgbench")
        .args(["-n", "-c", "4", "-j", "2", "-T", "600", "postgres"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn acknowledged(load: Child) -> i64 {
    let output = load.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // None when the server was gone before pgbench began.
    let line = text.lines().find(|l| l.contains("transactions actually processed"));
    line.map_or(0, |line| line.split_whitespace().last().unwrap().split('/').next().unwrap().parse().unwrap())
}

fn check(cluster: &Cluster, at_least: i64) {
    let sums = cluster.rows(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
                (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
    );
    assert!(sums[0].iter().all(|s| *s == sums[0][3]), "balances differ: {sums:?}");
    let history = cluster.int("SELECT count(*) FROM pgbench_history");
    assert!(history >= at_least, "{at_least} transactions were acknowledged, {history} are there");
}

#[test]
fn every_acknowledged_transaction_survives_kill_9() {
    let mut cluster = encrypted().conf("checkpoint_timeout", "30s").start();
    settled(&cluster);
    cluster.tool_output("pgbench", &["-i", "-q", "-s", "2", "postgres"]);
    let mut committed = 0;
    for round in 0..if soak() { 50 } else { 6 } {
        let load = load(&cluster);
        thread::sleep(Duration::from_millis(700 + round * 377 % 1500));
        cluster.crash();
        committed += acknowledged(load);
        cluster.start();
        check(&cluster, committed);
    }
    assert!(committed > 50, "the load was no load: {committed} transactions");
}

/// The switch is interrupted at many moments, in both directions, under load.
#[test]
fn every_acknowledged_transaction_survives_kill_9_during_a_switch() {
    let mut cluster = encrypted().conf("pg_tde.encrypt_wal", "off").conf("checkpoint_timeout", "30s").start();
    cluster.tool_output("pgbench", &["-i", "-q", "-s", "2", "postgres"]);
    let mut committed = 0;
    for round in 0..if soak() { 40 } else { 8 } {
        cluster.stop();
        cluster.configure("pg_tde.encrypt_wal", if round % 2 == 0 { "on" } else { "off" });
        cluster.start();
        let load = load(&cluster);
        // Some before the switch is complete, some after it.
        thread::sleep(Duration::from_millis(30 + round * 211 % 1300));
        cluster.crash();
        committed += acknowledged(load);
        cluster.start();
        check(&cluster, committed);
    }
    assert!(committed > 20, "the load was no load: {committed} transactions");
}

/// Rot in the middle of what recovery needs: recovery ends at that record and says so, as that of plain PostgreSQL does, and loses no row before it.
#[test]
fn rot_in_the_wal_costs_what_it_costs_without_encryption() {
    for encrypts in [true, false] {
        let builder = if encrypts { encrypted() } else { Cluster::builder().tde(false).fsync().segments(1) };
        let mut cluster = builder.conf("checkpoint_timeout", "1h").start();
        if encrypts {
            settled(&cluster);
        }
        cluster.run("CREATE TABLE t (i int)");
        cluster.run("CHECKPOINT");
        let insert = |from: u32| {
            let to = from + 999;
            cluster.run(&format!(
                "DO $$ BEGIN FOR i IN {from}..{to} LOOP INSERT INTO t VALUES (i); COMMIT; END LOOP; END $$"
            ));
        };
        insert(1);
        let here = cluster.rows("SELECT * FROM pg_walfile_name_offset(pg_current_wal_flush_lsn())");
        insert(1001);
        cluster.crash();
        let segment = cluster.data().join("pg_wal").join(&here[0][0]);
        files::flip(&segment, here[0][1].parse::<u64>().unwrap() + 300);
        cluster.start();
        let (rows, last) = (cluster.int("SELECT count(*) FROM t"), cluster.int("SELECT max(i) FROM t"));
        assert!(
            (1000..1020).contains(&rows) && rows == last,
            "encrypted {encrypts}: {rows} rows, last {last}"
        );
        let log = cluster.log_since_start();
        let said = ["checksum in record", "invalid", "unexpected", "incorrect"]
            .iter()
            .any(|word| log.contains(word));
        assert!(said && log.contains("redo done at"), "{log}");
    }
}
