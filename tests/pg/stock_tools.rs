//! The distribution's tools and contrib modules, unmodified, on encrypted tablespaces.

use std::fs;

use tde_tests::{Cluster, files};

fn filled(checksums: bool) -> Cluster {
    let cluster = Cluster::builder().checksums(checksums).conf("wal_log_hints", "on").start();
    cluster.encrypted_tablespace("secure");
    cluster.run(
        "CREATE TABLE t (id int PRIMARY KEY USING INDEX TABLESPACE secure, secret text, tags int[]) TABLESPACE secure;
         INSERT INTO t SELECT i, 'canary-' || i, ARRAY[i, i % 10] FROM generate_series(1, 5000) i;
         CREATE INDEX t_tags ON t USING gin (tags) TABLESPACE secure;
         CREATE INDEX t_hash ON t USING hash (secret) TABLESPACE secure",
    );
    cluster.run("DELETE FROM t WHERE id % 10 = 0");
    cluster.run("VACUUM (ANALYZE) t");
    cluster.run("CHECKPOINT");
    cluster
}

fn checksum(cluster: &Cluster) -> String {
    cluster.text("SELECT count(*) || md5(string_agg(id || secret, ',' ORDER BY id)) FROM t")
}

#[test]
fn pg_checksums_checks_disables_and_enables() {
    let mut cluster = filled(true);
    let before = checksum(&cluster);
    let data = cluster.data().to_str().unwrap().to_owned();
    cluster.stop();
    let report = cluster.tool_output("pg_checksums", &["--check", "-D", &data]);
    assert!(report.contains("Bad checksums:  0"), "{report}");
    cluster.tool_output("pg_checksums", &["--disable", "-D", &data]);
    cluster.start();
    cluster.run("INSERT INTO t SELECT i, 'without-' || i, '{1}' FROM generate_series(10001, 11000) i");
    cluster.stop();
    // The checksums of encrypted pages are always kept; those of plain pages written meanwhile are made here.
    cluster.tool_output("pg_checksums", &["--enable", "-D", &data]);
    let report = cluster.tool_output("pg_checksums", &["--check", "-D", &data]);
    assert!(report.contains("Bad checksums:  0"), "{report}");
    cluster.start();
    cluster.run("DELETE FROM t WHERE id > 10000");
    assert_eq!(checksum(&cluster), before);
    // It does find damage.
    let file = cluster.file_of("t");
    cluster.stop();
    files::flip(&file, 8192 + 5000);
    let (passed, report) = cluster.try_tool("pg_checksums", &["--check", "-D", &data]);
    assert!(!passed && report.contains("Bad checksums:  1"), "{report}");
}

#[test]
fn pg_basebackup_verifies_and_pg_verifybackup_agrees() {
    let cluster = filled(true);
    let before = checksum(&cluster);
    let mut restored =
        Cluster::backup_of(&cluster, &["--checkpoint=fast", "--manifest-checksums=SHA256"], || ());
    // The test's own line in the configuration is the only file that differs from the manifest.
    let report = cluster
        .tool_output("pg_verifybackup", &["--ignore=postgresql.conf", restored.data().to_str().unwrap()]);
    assert!(report.contains("backup successfully verified"), "{report}");
    restored.start();
    assert_eq!(checksum(&restored), before);
    restored.run("UPDATE t SET secret = secret || '!'");
    restored.crash_and_recover();
    assert_eq!(restored.int("SELECT count(*) FROM t WHERE secret LIKE '%!'"), 4500);
}

#[test]
fn pg_dump_and_restore_move_data_in_and_out() {
    let cluster = filled(true);
    let dump = cluster.ts_dir().join("dump");
    let dump = dump.to_str().unwrap();
    cluster.tool_output("pg_dump", &["-Fc", "-t", "t", "-f", dump, "postgres"]);
    let before = checksum(&cluster);
    cluster.run("DROP TABLE t");
    cluster.tool_output("pg_restore", &["--exit-on-error", "-d", "postgres", dump]);
    assert_eq!(checksum(&cluster), before);
    cluster.run("CHECKPOINT");
    assert!(!files::contains(&fs::read(cluster.file_of("t")).unwrap(), b"canary-"));
    cluster.run("CREATE DATABASE elsewhere");
    cluster.tool_output("pg_restore", &["--exit-on-error", "--no-tablespaces", "-d", "elsewhere", dump]);
    let elsewhere = cluster.connect("elsewhere").int("SELECT count(*) FROM t");
    assert_eq!(elsewhere, cluster.int("SELECT count(*) FROM t"));
}

#[test]
fn pg_dump_carries_the_extension() {
    let cluster = filled(true);
    let script = cluster.tool_output("pg_dump", &["--schema-only", "postgres"]);
    assert!(script.contains("CREATE EXTENSION IF NOT EXISTS pg_tde"), "{script}");
    cluster.run("CREATE DATABASE copy");
    let file = cluster.ts_dir().join("dump.sql");
    fs::write(&file, script).unwrap();
    cluster
        .tool_output("psql", &["-Xq", "-v", "ON_ERROR_STOP=1", "-d", "copy", "-f", file.to_str().unwrap()]);
    assert_eq!(cluster.connect("copy").text("SELECT tde.is_encrypted('t')"), "t");
}

#[test]
fn pg_amcheck_finds_nothing_wrong_and_damage_when_there_is_some() {
    let mut cluster = filled(true);
    cluster.run("CREATE EXTENSION amcheck");
    cluster.tool_output("pg_amcheck", &["--all", "--heapallindexed", "--parent-check", "--rootdescend"]);
    let file = cluster.file_of("t_pkey");
    cluster.stop();
    files::flip(&file, 8192 + 100);
    cluster.start();
    let (passed, report) = cluster.try_tool("pg_amcheck", &["-d", "postgres", "-t", "t"]);
    assert!(!passed, "{report}");
}

#[test]
fn pageinspect_shows_pages_in_clear_to_the_superuser() {
    let cluster = filled(true);
    cluster.run("CREATE EXTENSION pageinspect");
    let header = cluster
        .rows("SELECT lower, upper, special, pagesize, version FROM page_header(get_raw_page('t', 1))");
    assert_eq!((header[0][2].as_str(), header[0][3].as_str(), header[0][4].as_str()), ("8192", "8192", "4"));
    assert!(
        cluster.int("SELECT count(*) FROM heap_page_items(get_raw_page('t', 1)) WHERE t_xmin IS NOT NULL")
            > 10
    );
    assert_eq!(cluster.text("SELECT magic FROM bt_metap('t_pkey')"), "340322");
    assert_eq!(cluster.text("SELECT magic FROM hash_metapage_info(get_raw_page('t_hash', 0))"), "105121344");
    for fork in ["fsm", "vm"] {
        assert_eq!(
            cluster.text(&format!("SELECT version FROM page_header(get_raw_page('t', '{fork}', 0))")),
            "4"
        );
    }
    assert!(!cluster.rows("SELECT * FROM fsm_page_contents(get_raw_page('t', 'fsm', 0))").is_empty());
}

#[test]
fn pg_prewarm_reads_every_fork_in_every_mode() {
    let mut cluster = filled(true);
    cluster.run("CREATE EXTENSION pg_prewarm");
    let map =
        |c: &Cluster, fork: &str| std::path::PathBuf::from(format!("{}{fork}", c.file_of("t").display()));
    let pages = cluster.int("SELECT pg_relation_size('t') / 8192");
    cluster.restart();
    for mode in ["prefetch", "read", "buffer"] {
        assert_eq!(cluster.int(&format!("SELECT pg_prewarm('t', '{mode}')")), pages);
        for fork in ["fsm", "vm"] {
            assert!(cluster.int(&format!("SELECT pg_prewarm('t', '{mode}', '{fork}')")) >= 1);
        }
    }
    let vm = map(&cluster, "_vm");
    assert!(files::pages(&vm).iter().any(files::looks_random));
}

#[test]
fn pg_visibility_and_its_friends_see_the_truth() {
    let cluster = filled(true);
    cluster.run(
        "CREATE EXTENSION pg_visibility; CREATE EXTENSION pgstattuple; CREATE EXTENSION pg_freespacemap;
         CREATE EXTENSION pg_buffercache; CREATE EXTENSION pg_surgery",
    );
    cluster.run("VACUUM (FREEZE) t");
    let pages = cluster.int("SELECT pg_relation_size('t') / 8192");
    assert_eq!(cluster.int("SELECT all_visible FROM pg_visibility_map_summary('t')"), pages);
    assert_eq!(cluster.int("SELECT count(*) FROM pg_check_frozen('t')"), 0);
    assert_eq!(cluster.int("SELECT count(*) FROM pg_check_visible('t')"), 0);
    cluster.run("SELECT pg_truncate_visibility_map('t')");
    cluster.run("VACUUM t");
    assert_eq!(cluster.int("SELECT all_visible FROM pg_visibility_map_summary('t')"), pages);
    assert_eq!(cluster.int("SELECT tuple_count FROM pgstattuple('t')"), 4500);
    assert!(cluster.int("SELECT leaf_pages FROM pgstatindex('t_pkey')") > 5);
    assert!(cluster.int("SELECT count(*) FROM pg_freespace('t') WHERE avail > 0") > 0);
    assert!(
        cluster.int("SELECT count(*) FROM pg_buffercache WHERE relfilenode = pg_relation_filenode('t')") > 0
    );
}

#[test]
fn vacuumdb_reindexdb_and_clusterdb_do_their_work() {
    let cluster = filled(true);
    let before = checksum(&cluster);
    cluster.tool_output("vacuumdb", &["--full", "--analyze", "-t", "t", "postgres"]);
    cluster.tool_output("reindexdb", &["-t", "t", "postgres"]);
    cluster.tool_output("reindexdb", &["--concurrently", "-t", "t", "postgres"]);
    cluster.run("ALTER TABLE t CLUSTER ON t_pkey");
    cluster.tool_output("clusterdb", &["-t", "t", "postgres"]);
    assert_eq!(checksum(&cluster), before);
}

#[test]
fn single_user_mode_reads_and_writes_encrypted_tables() {
    let mut cluster = filled(true);
    cluster.stop();
    let data = cluster.data().to_str().unwrap().to_owned();
    let script = cluster.ts_dir().join("single.sql");
    fs::write(
        &script,
        "SELECT count(*) AS before FROM t;\nINSERT INTO t VALUES (90001, 'canary-single', '{1}');\n",
    )
    .unwrap();
    let mut command = cluster.tool("postgres");
    command.args(["--single", "-D", &data, "postgres"]).stdin(fs::File::open(&script).unwrap());
    let printed = tde_tests::command_output(&mut command);
    assert!(printed.contains("before = \"4500\""), "{printed}");
    // The postmaster's own question about settings loads the library, too.
    assert!(cluster.tool_output("postgres", &["-C", "shared_memory_size", "-D", &data]).lines().count() >= 1);
    cluster.start();
    assert_eq!(cluster.int("SELECT count(*) FROM t WHERE secret = 'canary-single'"), 1);
    cluster.run("CHECKPOINT");
    assert!(files::files_with(&cluster.ts_dir().join("secure"), b"canary-").is_empty());
}

#[test]
fn logical_decoding_sees_changes_of_encrypted_tables() {
    let cluster = Cluster::builder().conf("wal_level", "logical").start();
    cluster.encrypted_tablespace("secure");
    cluster.run(
        "CREATE TABLE t (id int PRIMARY KEY USING INDEX TABLESPACE secure, secret text) TABLESPACE secure",
    );
    cluster.run("SELECT pg_create_logical_replication_slot('s', 'test_decoding')");
    cluster.plain_tablespace("later");
    if cluster.has_tde() {
        cluster.run("SELECT tde.encrypt_tablespace('later')");
    }
    cluster.run("INSERT INTO t SELECT i, 'canary-' || i FROM generate_series(1, 100) i");
    cluster.run("UPDATE t SET secret = 'changed' WHERE id = 7");
    let changes = "SELECT count(*) FROM pg_logical_slot_get_changes('s', NULL, NULL) WHERE data LIKE 'table public.t:%'";
    assert_eq!(cluster.int(changes), 101);
}

/// The old primary goes on alone after the standby was promoted, and is rewound to follow it.
#[test]
fn pg_rewind_brings_an_old_primary_back() {
    let mut old =
        Cluster::builder().fsync().conf("wal_keep_size", "512MB").conf("wal_log_hints", "on").start();
    old.encrypted_tablespace("secure");
    old.run(
        "CREATE TABLE t (id int PRIMARY KEY USING INDEX TABLESPACE secure, secret text) TABLESPACE secure;
         INSERT INTO t SELECT i, 'canary-' || i FROM generate_series(1, 5000) i",
    );
    old.run("CHECKPOINT");
    let mut new = Cluster::standby_of(&old);
    let target = old.text("SELECT pg_current_wal_flush_lsn()");
    while new.text(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) != "t" {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    new.promote();
    new.run("UPDATE t SET secret = 'new-' || id WHERE id % 2 = 0");
    old.run("UPDATE t SET secret = 'lost-' || id WHERE id % 3 = 0; INSERT INTO t SELECT i, 'lost' FROM generate_series(6000, 9000) i");
    new.run("CHECKPOINT");
    let expected = checksum(&new);
    old.stop();
    new.stop();
    // Tablespaces of the two are different folders; pg_rewind follows the links of each.
    let conf = fs::read(old.data().join("postgresql.conf")).unwrap();
    let (source, target) = (new.data().to_str().unwrap().to_owned(), old.data().to_str().unwrap().to_owned());
    old.tool_output("pg_rewind", &["--source-pgdata", &source, "--target-pgdata", &target]);
    fs::write(old.data().join("postgresql.conf"), conf).unwrap();
    let _ = fs::remove_file(old.data().join("standby.signal"));
    old.start();
    new.start();
    assert_eq!(checksum(&old), expected);
    assert_eq!(checksum(&new), expected);
}
