//! `pg_tde` is taken out of `shared_preload_libraries` of a cluster that holds encrypted data: a stock server reads none of it and
//! damages nothing, and with the library all of it is there again.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use tde_tests::{Cluster, files};

use crate::filled::{SUMS, assert_encrypted, fill, sums, wait_until};

fn contents(cluster: &Cluster) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = files::relation_files(&cluster.ts_dir().join("ts"));
    files.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// What people and autovacuum do. None of it may succeed on an encrypted relation, and none may change its file.
const STATEMENTS: [&str; 21] = [
    SUMS,
    "SELECT * FROM heap",
    "SELECT * FROM heap WHERE secret = 'canary-row-5'",
    "SELECT * FROM toasted",
    "SELECT * FROM mat",
    "SELECT * FROM loose",
    "INSERT INTO heap VALUES (1, 'new')",
    "INSERT INTO loose VALUES (1, 'new')",
    "INSERT INTO toasted VALUES (1, repeat('new', 5000))",
    "UPDATE heap SET id = 1",
    "DELETE FROM heap",
    "COPY heap TO '/dev/null'",
    "VACUUM heap",
    "VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) heap",
    "VACUUM FULL heap",
    "ANALYZE heap",
    "REINDEX TABLE heap",
    "CREATE INDEX ON heap (id)",
    "CLUSTER heap USING i_btree",
    "ALTER TABLE heap ADD more text DEFAULT md5(random()::text)",
    "CREATE TABLE copy TABLESPACE pg_default AS TABLE heap",
];

/// The launcher looks for a new checkpoint every two seconds.
fn wait_for_record(cluster: &Cluster) {
    let redo = cluster.text("SELECT redo_lsn FROM pg_control_checkpoint()");
    let wal = cluster.data().join("pg_wal");
    let arguments = ["-p", wal.to_str().unwrap(), "-s", &redo, "-r", "custom158"];
    for _ in 0..100 {
        // It ends with an error where the WAL ends.
        if cluster.try_tool("pg_waldump", &arguments).1.contains("custom158") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    panic!("no record after the checkpoint at {redo}");
}

#[test]
fn a_stock_server_damages_nothing_and_the_library_reads_it_all_again() {
    for (checksums, crashed, checkpoint) in
        [(true, false, false), (false, false, false), (true, true, false), (true, true, true)]
    {
        let mut cluster = Cluster::builder().checksums(checksums).conf("autovacuum_naptime", "1s").start();
        cluster.plain_tablespace("ts");
        fill(&mut cluster.connect("postgres"), 2000);
        cluster.run("CREATE DATABASE inside TABLESPACE ts");
        cluster.run("SELECT tde.encrypt_tablespace('ts', wait => true)");
        let before = sums(&mut cluster.connect("postgres"));
        if checkpoint {
            cluster.run("CHECKPOINT");
            wait_for_record(&cluster);
        }
        if crashed {
            cluster.run("UPDATE heap SET id = id + 1");
            cluster.run("UPDATE heap SET id = id - 1");
            cluster.crash();
        } else {
            cluster.stop();
        }
        let encrypted = contents(&cluster);
        cluster.configure("shared_preload_libraries", "");
        let started = cluster.try_start();
        if crashed {
            // The WAL has records that only the library understands.
            let log = started.expect_err("it replays what it does not understand").log;
            assert!(log.contains("resource manager with ID 158 not registered"), "{log}");
            assert!(log.contains("shared_preload_libraries"), "{log}");
        } else {
            started.unwrap_or_else(|failure| panic!("{}", failure.log));
            for statement in STATEMENTS {
                let error = cluster.try_run(statement).expect_err(statement);
                assert!(error.to_string().contains("invalid page"), "{statement}: {error}");
            }
            let Err(error) = cluster.try_connect("inside") else { panic!("its catalogs are encrypted") };
            assert!(error.to_string().contains("invalid page"), "{error}");
            // What is in clear works as ever.
            cluster.run("CREATE TABLE elsewhere AS SELECT 1 AS id");
            // What it makes in the tablespace is in clear, which it cannot know to be wrong.
            cluster.run("CREATE TABLE stray TABLESPACE ts AS SELECT 'canary-stray' AS secret");
            std::thread::sleep(std::time::Duration::from_secs(2)); // autovacuum comes by
            cluster.run("CHECKPOINT");
            cluster.restart();
            cluster.stop();
        }
        let now = contents(&cluster);
        // A start after a crash removes unlogged relations, whoever starts.
        let reset = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let number = name.split(['_', '.']).next().unwrap();
            crashed && encrypted.contains_key(&path.with_file_name(format!("{number}_init")))
        };
        let changed: Vec<_> = encrypted
            .iter()
            .filter(|(path, bytes)| now.get(*path).map_or(!reset(path), |now| now != *bytes))
            .collect();
        assert!(changed.is_empty(), "{:?}", changed.iter().map(|(path, _)| path).collect::<Vec<_>>());
        cluster.configure("shared_preload_libraries", "pg_tde");
        cluster.start();
        wait_until(&cluster, "encrypted");
        if !crashed {
            // Named and refused, not read as if it were in order.
            let error = cluster.try_run("SELECT * FROM stray").expect_err("a plain page");
            assert!(error.to_string().contains("invalid page"), "{error}");
            assert!(cluster.log_since_start().contains("pg_tde refuses block 0"));
            let named = "SELECT count(*) FROM tde.verify_tablespace('ts') WHERE relation LIKE '%stray' AND damaged > 0";
            assert_eq!(cluster.int(named), 1);
            cluster.run("DROP TABLE stray");
        }
        assert_eq!(
            sums(&mut cluster.connect("postgres")),
            before,
            "checksums {checksums}, crashed {crashed}"
        );
        // A VACUUM that fails has made an empty visibility map before; one that succeeds writes it encrypted.
        cluster.run("VACUUM (FREEZE)");
        assert_encrypted(&cluster);
        cluster.connect("inside").run("CREATE TABLE again AS SELECT 1 AS id");
        cluster.run("INSERT INTO heap VALUES (1, 'canary-new')");
        cluster.crash_and_recover();
        assert_encrypted(&cluster);
    }
}
