//! A whole cluster, catalogs included, is encrypted and its data keys are rotated while it works: no error, no row lost or changed, no
//! plaintext left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, files, soak};

use crate::filled::{assert_encrypted_in, fill, sums};
use crate::ledger::Ledger;

/// pgbench again and again, with three more clients that check their rows, until `work` is done.
fn under_load(cluster: &Cluster, ledgers: Vec<Ledger>, work: impl FnOnce()) -> Vec<Ledger> {
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = ledgers.into_iter().map(|ledger| ledger.work(cluster, stop.clone())).collect();
    thread::scope(|scope| {
        let pgbench = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                cluster.tool_output("pgbench", &["-n", "-c", "4", "-T", "3", "postgres"]);
            }
        });
        work();
        stop.store(true, Ordering::Relaxed);
        pgbench.join().expect("pgbench failed");
    });
    let ledgers: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    for ledger in &ledgers {
        assert!(ledger.error.is_none(), "{:?}\n{}", ledger.error, cluster.log_since_start());
    }
    ledgers
}

fn wait_for_jobs(cluster: &Cluster, condition: &str) {
    let begin = Instant::now();
    while cluster.text(&format!("SELECT bool_and({condition}) FROM tde.tablespaces")) != "t" {
        assert!(
            begin.elapsed() < Duration::from_secs(150),
            "{:?}\n{}",
            cluster.rows("SELECT * FROM tde.jobs"),
            cluster.log_since_start()
        );
        thread::sleep(Duration::from_millis(100));
    }
}

/// No plaintext of ours in any file that holds a relation, no page of any tablespace that is not encrypted.
fn nothing_in_clear(cluster: &Cluster, places: &[(&str, PathBuf)]) {
    for (tablespace, dir) in places {
        assert_encrypted_in(cluster, tablespace, dir);
    }
    let known: [&[u8]; 3] = [b"canary", b"pg_catalog", b"pgbench"];
    for (_, dir) in places {
        for path in files::relation_files(dir) {
            let bytes = std::fs::read(&path).unwrap_or_default(); // dropped meanwhile
            let temporary = path.file_name().unwrap().to_str().unwrap().starts_with('t');
            let found = known.iter().find(|word| !temporary && files::contains(&bytes, word));
            assert!(found.is_none(), "{found:?} in {}", path.display());
        }
    }
}

#[test]
fn a_whole_cluster_is_encrypted_and_its_keys_rotated_under_load() {
    let mut cluster = Cluster::builder().fsync().conf("max_worker_processes", "12").start();
    cluster.plain_tablespace("ts");
    cluster.run("CREATE DATABASE more");
    cluster.run("CREATE DATABASE inside TABLESPACE ts");
    cluster.run("CREATE ROLE canary_role");
    cluster.run("COMMENT ON DATABASE more IS 'canary-comment'");
    fill(&mut cluster.connect("postgres"), 3000);
    cluster.connect("more").run(
        "CREATE TABLE catalog_canary AS SELECT 'canary-default-' || i AS secret FROM generate_series(1, 5000) i; ANALYZE",
    );
    cluster.tool_output("pgbench", &["-i", "-q", "-s", if soak() { "20" } else { "3" }, "postgres"]);
    let before = sums(&mut cluster.connect("postgres"));
    let mut ledgers = vec![
        Ledger::new(&cluster, "postgres", "ts"),
        Ledger::new(&cluster, "more", "pg_default"),
        Ledger::new(&cluster, "inside", "pg_default"),
    ];
    cluster.run("CHECKPOINT");
    let dir = |path: &str| -> PathBuf { cluster.data().join(Path::new(path)) };
    let places =
        [("ts", cluster.ts_dir().join("ts")), ("pg_default", dir("base")), ("pg_global", dir("global"))];
    assert!(!files::files_with(&places[1].1, b"canary-default-").is_empty());
    assert!(!files::files_with(&places[2].1, b"canary").is_empty());
    let balanced =
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)
        AND (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(tbalance) FROM pgbench_tellers)";
    let rotations = if soak() { 3 } else { 1 };
    for version in 1..=1 + rotations {
        ledgers = under_load(&cluster, ledgers, || {
            for (tablespace, _) in &places {
                let job = if version == 1 { "encrypt_tablespace" } else { "rotate_data_key" };
                cluster.run(&format!("SELECT tde.{job}('{tablespace}')"));
            }
            wait_for_jobs(&cluster, &format!("state = 'encrypted' AND key_version = {version}"));
        });
        for round in ["at once", "restart", "crash"] {
            match round {
                "restart" => cluster.restart(),
                "crash" => cluster.crash_and_recover(),
                _ => (),
            }
            assert_eq!(cluster.text(balanced), "t", "{round}");
            assert_eq!(sums(&mut cluster.connect("postgres")), before, "{round}");
            ledgers.iter_mut().for_each(|ledger| ledger.check(&cluster, round));
            nothing_in_clear(&cluster, &places);
        }
    }
    assert!(ledgers.iter().all(|ledger| ledger.acknowledged > 100), "the clients did too little");
    // Of templates, too: nobody connects to template0.
    cluster.run("CREATE DATABASE after TEMPLATE template0");
    cluster
        .connect("after")
        .run("CREATE TABLE t AS SELECT 'canary-after' AS secret; CREATE TEMP TABLE mine AS TABLE t");
    nothing_in_clear(&cluster, &places);
    cluster.tool_output("pg_amcheck", &["--all", "--install-missing", "--heapallindexed"]);
    cluster.stop();
    let checked = cluster.tool_output("pg_checksums", &["--check", "-D", cluster.data().to_str().unwrap()]);
    assert!(checked.contains("Bad checksums:  0"), "{checked}");
    // Without the library nothing is read and nothing damaged.
    cluster.configure("shared_preload_libraries", "");
    let refused = cluster.try_start();
    let opened = refused.is_ok().then(|| cluster.try_connect("postgres").map(drop));
    assert!(!matches!(opened, Some(Ok(()))), "a server without pg_tde reads an encrypted cluster");
    if refused.is_ok() {
        cluster.crash();
    }
    cluster.configure("shared_preload_libraries", "pg_tde");
    cluster.start();
    assert_eq!(sums(&mut cluster.connect("postgres")), before, "after a start without the library");
    ledgers.iter_mut().for_each(|ledger| ledger.check(&cluster, "after a start without the library"));
}
