//! Data survives kill -9 of the postmaster and of single backends.

use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use tde_tests::{Cluster, soak};

fn rounds() -> u32 {
    if soak() { 60 } else { 20 }
}

/// pgbench tables and a table that never changes, all in tablespace secure.
fn loaded_cluster() -> Cluster {
    let cluster =
        Cluster::builder().fsync().conf("checkpoint_timeout", "30s").conf("shared_buffers", "4MB").start();
    cluster.encrypted_tablespace("secure");
    cluster.tool_output(
        "pgbench",
        &["-i", "-q", "-s", "4", "--tablespace=secure", "--index-tablespace=secure", "postgres"],
    );
    cluster.run(
        "CREATE EXTENSION amcheck;
         CREATE TABLE still (id int PRIMARY KEY USING INDEX TABLESPACE secure, secret text) TABLESPACE secure;
         INSERT INTO still SELECT i, md5(i::text) FROM generate_series(1, 20000) i",
    );
    cluster
}

fn load(cluster: &Cluster) -> Child {
    cluster
        .tool("pgbench")
        .args(["-n", "-c", "4", "-j", "2", "-T", "600", "postgres"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Transactions that pgbench saw committed, from its report.
fn acknowledged(load: Child) -> i64 {
    let output = load.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text
        .lines()
        .find(|l| l.contains("transactions actually processed"))
        .unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().last().unwrap().split('/').next().unwrap().parse().unwrap()
}

fn still_checksum(cluster: &Cluster) -> String {
    cluster.text("SELECT md5(string_agg(id || secret, ',' ORDER BY id)) FROM still")
}

/// pgbench's own invariant, every acknowledged transaction, and the structure of heap and indexes.
fn check(cluster: &Cluster, at_least: i64) {
    let sums = cluster.rows(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
                (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
    );
    assert!(sums[0].iter().all(|s| *s == sums[0][3]), "balances differ: {sums:?}");
    let history = cluster.int("SELECT count(*) FROM pgbench_history");
    assert!(history >= at_least, "{at_least} transactions were acknowledged, {history} are there");
    cluster.tool_output("pg_amcheck", &["--heapallindexed", "-d", "postgres"]);
}

#[test]
fn data_survives_kill_9_of_the_postmaster_under_load() {
    let mut cluster = loaded_cluster();
    let checksum = still_checksum(&cluster);
    let mut committed = 0;
    for round in 0..rounds() {
        let load = load(&cluster);
        thread::sleep(Duration::from_millis(1200 + u64::from(round) * 377 % 2000));
        if round % 2 == 1 {
            // Into the middle of a checkpoint's writes.
            let mut sql = cluster.connect("postgres");
            let checkpoint = thread::spawn(move || sql.try_run("CHECKPOINT"));
            thread::sleep(Duration::from_millis(15));
            cluster.crash();
            let _ = checkpoint.join().unwrap();
        } else {
            cluster.crash();
        }
        committed += acknowledged(load);
        cluster.start();
        assert_eq!(still_checksum(&cluster), checksum, "round {round}");
        check(&cluster, committed);
    }
    assert!(committed > 100, "the load was no load: {committed} transactions");
    cluster.restart();
    assert_eq!(still_checksum(&cluster), checksum);
    check(&cluster, committed);
}

#[test]
fn data_survives_kill_9_of_single_backends_under_load() {
    let cluster = loaded_cluster();
    let checksum = still_checksum(&cluster);
    let mut committed = 0;
    for round in 0..rounds() {
        let load = load(&cluster);
        thread::sleep(Duration::from_millis(800 + u64::from(round) * 311 % 1500));
        let victims: Vec<_> = cluster
            .postmaster()
            .children()
            .into_iter()
            .filter(|p| p.title().contains("postgres postgres"))
            .collect();
        let victim = victims.get(round as usize % victims.len().max(1)).expect("a pgbench backend");
        cluster.kill_backend(*victim);
        committed += acknowledged(load);
        assert_eq!(still_checksum(&cluster), checksum, "round {round}");
        check(&cluster, committed);
    }
    assert!(committed > 100, "the load was no load: {committed} transactions");
}

/// Redo makes a missing visibility map itself, as if it were no redo (`vm_extend`).
#[test]
fn recovery_makes_a_visibility_map_that_a_dropped_table_no_longer_has() {
    let mut cluster = Cluster::with_tde();
    cluster.encrypted_tablespace("secure");
    cluster.plain_tablespace("clear");
    for space in ["secure", "clear"] {
        cluster.run(&format!(
            "CREATE TABLE gone_{space} (i int) TABLESPACE {space};
             INSERT INTO gone_{space} SELECT generate_series(1, 1000);
             CREATE TABLE cut_{space} TABLESPACE {space} AS TABLE gone_{space}"
        ));
        for table in ["gone", "cut"] {
            cluster.run(&format!("VACUUM (FREEZE) {table}_{space}"));
        }
    }
    cluster.run("CHECKPOINT");
    for space in ["secure", "clear"] {
        cluster.run(&format!(
            "DELETE FROM gone_{space} WHERE i < 10;
             DROP TABLE gone_{space};
             DELETE FROM cut_{space} WHERE i < 10;
             TRUNCATE cut_{space};
             INSERT INTO cut_{space} VALUES (1)"
        ));
    }
    // A whole restart: a fresh server has logged no key line yet.
    cluster.crash_and_recover();
    for space in ["secure", "clear"] {
        assert_eq!(cluster.int(&format!("SELECT count(*) FROM cut_{space}")), 1);
    }
}
