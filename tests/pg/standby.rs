//! Standbys by stock `pg_basebackup`: streaming, killed, promoted.

use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, files};

fn primary() -> Cluster {
    Cluster::builder()
        .fsync()
        .conf("wal_keep_size", "256MB")
        .conf("max_prepared_transactions", "4")
        // A tablespace made while the standby streams lies inside each data directory: both are on one machine.
        .conf("allow_in_place_tablespaces", "on")
        .start()
}

fn fill(cluster: &Cluster, table: &str, tablespace: &str) {
    cluster.run(&format!(
        "CREATE TABLE {table} (id int PRIMARY KEY USING INDEX TABLESPACE {tablespace}, secret text) TABLESPACE {tablespace};
         CREATE INDEX {table}_h ON {table} USING hash (secret) TABLESPACE {tablespace};
         INSERT INTO {table} SELECT i, 'canary-{table}-' || i FROM generate_series(1, 5000) i"
    ));
}

fn churn(cluster: &Cluster, table: &str) {
    cluster.run(&format!("UPDATE {table} SET secret = secret || '+' WHERE id % 3 = 0"));
    cluster.run(&format!("DELETE FROM {table} WHERE id % 11 = 0"));
    cluster.run(&format!("VACUUM {table}"));
}

fn checksum(cluster: &Cluster, table: &str) -> String {
    cluster.text(&format!("SELECT count(*) || md5(string_agg(id || secret, ',' ORDER BY id)) FROM {table}"))
}

fn wait_for_replay(primary: &Cluster, standby: &Cluster) {
    // A commit that wrote WAL flushes what VACUUM left for later.
    primary.run("SELECT pg_logical_emit_message(true, 'flush', '')");
    let target = primary.text("SELECT pg_current_wal_flush_lsn()");
    let begin = Instant::now();
    while standby.text(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) != "t" {
        assert!(begin.elapsed() < Duration::from_secs(60), "replay stuck:\n{}", standby.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
}

fn promote(standby: &Cluster) {
    standby.promote();
}

fn same(primary: &Cluster, standby: &Cluster, tables: &[&str]) {
    for table in tables {
        assert_eq!(checksum(primary, table), checksum(standby, table), "{table}");
    }
}

/// Every page of the standby's encrypted relation is ciphertext.
fn is_ciphertext(cluster: &Cluster, table: &str) {
    cluster.run("CHECKPOINT");
    let mut seen = 0;
    for page in files::pages(&cluster.file_of(table)) {
        if page.iter().any(|b| *b != 0) {
            assert!(files::looks_random(&page), "{table} has structure");
            seen += 1;
        }
    }
    assert!(seen > 10, "{table}: {seen} pages");
}

#[test]
fn a_standby_follows_tablespaces_encrypted_before_and_after_it_was_built_and_takes_over() {
    let primary = primary();
    primary.encrypted_tablespace("before");
    primary.plain_tablespace("made_before");
    fill(&primary, "b", "before");

    let mut standby = Cluster::standby_of(&primary);
    churn(&primary, "b");
    if primary.has_tde() {
        primary.run("SELECT tde.encrypt_tablespace('made_before')");
    }
    fill(&primary, "m", "made_before");
    primary.run("CREATE TABLESPACE after LOCATION ''");
    if primary.has_tde() {
        primary.run("SELECT tde.encrypt_tablespace('after')");
    }
    fill(&primary, "a", "after");
    churn(&primary, "a");
    // A restartpoint of the standby writes what the primary's last checkpoint covers.
    primary.run("CHECKPOINT");
    wait_for_replay(&primary, &standby);
    same(&primary, &standby, &["b", "m", "a"]);
    for table in ["b", "m", "a"] {
        is_ciphertext(&standby, table);
        assert_eq!(standby.text(&format!("SELECT tde.is_encrypted('{table}')")), "t");
    }

    // The standby is killed and replays again, keys included.
    primary.run("CREATE TABLE marker (id int) TABLESPACE before");
    churn(&primary, "m");
    standby.crash_and_recover();
    wait_for_replay(&primary, &standby);
    same(&primary, &standby, &["b", "m", "a"]);

    // A key that reached the standby by WAL only, a prepared transaction across promotion.
    primary.run("BEGIN; INSERT INTO a VALUES (100001, 'canary-prepared'); PREPARE TRANSACTION 'p'");
    wait_for_replay(&primary, &standby);
    let expected: Vec<String> = ["b", "m", "a"].iter().map(|t| checksum(&primary, t)).collect();
    let _machine = primary_is_lost(primary);
    promote(&standby);
    let now: Vec<String> = ["b", "m", "a"].iter().map(|t| checksum(&standby, t)).collect();
    assert_eq!(now, expected);
    standby.run("COMMIT PREPARED 'p'");
    assert_eq!(standby.int("SELECT count(*) FROM a WHERE secret = 'canary-prepared'"), 1);
    churn(&standby, "a");
    let written = checksum(&standby, "a");
    standby.crash_and_recover();
    assert_eq!(checksum(&standby, "a"), written);
    standby.restart();
    assert_eq!(checksum(&standby, "a"), written);
    // The new primary makes keys of its own.
    standby.run("CREATE TABLESPACE own LOCATION ''");
    if standby.has_tde() {
        standby.run("SELECT tde.encrypt_tablespace('own')");
    }
    fill(&standby, "o", "own");
    is_ciphertext(&standby, "o");
}

/// The primary dies with its machine, but its HSM is a service that stays: it is shared with the standby.
fn primary_is_lost(mut primary: Cluster) -> Cluster {
    primary.crash();
    primary
}

/// The server's own check that redo gives the page that the primary had, for every record of every access method.
#[test]
fn redo_on_a_standby_gives_the_same_pages() {
    let primary =
        Cluster::builder().conf("wal_consistency_checking", "all").conf("wal_keep_size", "512MB").start();
    primary.encrypted_tablespace("secure");
    let standby = Cluster::standby_of(&primary);
    primary.run("CREATE EXTENSION bloom");
    fill(&primary, "a", "secure");
    for (name, using) in [
        ("g", "gin ((ARRAY[id, id % 10]))"),
        ("s", "spgist (secret)"),
        ("r", "brin (id)"),
        ("b", "bloom (id, secret)"),
    ] {
        primary.run(&format!("CREATE INDEX a_{name} ON a USING {using} TABLESPACE secure"));
    }
    primary.run("CREATE INDEX a_gist ON a USING gist (point(id, id)) TABLESPACE secure");
    for _ in 0..3 {
        churn(&primary, "a");
        primary.run(
            "INSERT INTO a SELECT i, 'again-' || i FROM generate_series(1, 5000) i ON CONFLICT DO NOTHING",
        );
        primary.run("CHECKPOINT");
    }
    wait_for_replay(&primary, &standby);
    same(&primary, &standby, &["a"]);
    assert!(!standby.log().contains("inconsistent page"), "{}", standby.log());
}

/// Keys and pages of a base backup that was under way while a tablespace was encrypted and the master key rotated.
#[test]
fn a_base_backup_taken_during_key_changes_recovers() {
    let primary = primary();
    primary.encrypted_tablespace("before");
    primary.plain_tablespace("during");
    fill(&primary, "b", "before");
    let options = ["--checkpoint=fast", "--max-rate=12M", "--wal-method=stream"];
    let mut restored = Cluster::backup_of(&primary, &options, || {
        if primary.has_tde() {
            primary.run("SELECT tde.encrypt_tablespace('during')");
            primary.run("SELECT tde.rotate_master_key()");
        }
        fill(&primary, "d", "during");
        churn(&primary, "b");
        let open = primary.int("SELECT count(*) FROM pg_stat_progress_basebackup");
        assert_eq!(open, 1, "the backup ended before the keys changed: throttle it more");
    });
    restored.start();
    same(&primary, &restored, &["b", "d"]);
    is_ciphertext(&restored, "d");
}

/// A key that came through the WAL needs the HSM; a PIN that is refused must neither end the standby nor lock the user.
#[test]
fn a_standby_with_a_wrong_pin_waits_for_a_right_one_and_asks_the_hsm_once() {
    let primary = primary();
    primary.encrypted_tablespace("before");
    fill(&primary, "b", "before");
    let standby = Cluster::standby_of(&primary);
    let right = standby.text("SHOW pg_tde.pin_command");
    let tries = primary.dir().join("tries");
    standby.configure("pg_tde.pin_command", &format!("echo x >> {}; echo wrong-pin", tries.display()));
    standby.run("SELECT pg_reload_conf()");
    let mark = standby.log_mark();
    primary.run("CREATE TABLESPACE later LOCATION ''");
    primary.run("SELECT tde.encrypt_tablespace('later')");
    fill(&primary, "l", "later");

    let begin = Instant::now();
    while !standby.log_from(mark).contains("pg_tde waits for the key of tablespace") {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", standby.log_from(mark));
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(Duration::from_secs(5));
    assert_eq!(checksum(&primary, "b"), checksum(&standby, "b"), "readers of other tablespaces do not wait");
    let asked = std::fs::read_to_string(&tries).unwrap().lines().count();
    assert_eq!(asked, 1, "{}", standby.log_from(mark));

    standby.configure("pg_tde.pin_command", &right);
    standby.run("SELECT pg_reload_conf()");
    wait_for_replay(&primary, &standby);
    same(&primary, &standby, &["b", "l"]);
}

/// A page that is damaged on the standby's disk, that redo reads before it is consistent, and that no image in the WAL
/// replaces: in the buffer it looks empty, so nobody may see it, by whatever statement, and nobody may promote it.
#[test]
fn a_damaged_page_that_recovery_cannot_repair_is_never_read_as_an_empty_one() {
    let primary = Cluster::builder().fsync().conf("wal_keep_size", "256MB").conf("autovacuum", "off").start();
    primary.encrypted_tablespace("secure");
    // Long bucket chains: the next VACUUM changes overflow pages only, and names the primary pages without an image.
    primary.run(
        "CREATE TABLE t (id int, k int) TABLESPACE secure;
         INSERT INTO t SELECT i, i % 4 FROM generate_series(1, 8000) i;
         CREATE INDEX i ON t USING hash (k) TABLESPACE secure",
    );
    let mut standby = Cluster::standby_of(&primary);
    let index = standby.file_of("i");
    primary.run("CHECKPOINT");
    wait_for_replay(&primary, &standby);
    standby.run("CHECKPOINT");
    primary.run("DELETE FROM t WHERE id BETWEEN 5000 AND 7000");
    primary.run("VACUUM t");
    wait_for_replay(&primary, &standby);
    // Where it has come is where it will be consistent; what it replayed since its checkpoint it will replay again.
    standby.stop();
    let whole = std::fs::read(&index).unwrap();
    for block in 0..whole.len() as u64 / 8192 {
        files::flip(&index, block * 8192 + 5000);
    }
    standby.start();
    for statement in ["COPY t TO STDOUT", "SELECT count(*) FROM t", "COPY (SELECT 1) TO STDOUT", "VACUUM t"] {
        let (passed, said) = standby.try_tool("psql", &["-Xq", "-c", statement]);
        assert!(
            !passed && said.contains("cannot repair a page that was damaged by a crash"),
            "{statement}: {said}"
        );
    }
    // It ends by itself before it has said whether it was promoted.
    let _ =
        standby.tool("pg_ctl").args(["promote", "-D", standby.data().to_str().unwrap()]).output().unwrap();
    standby.wait_for_end();
    let log = standby.log_since_start();
    assert!(log.contains("PANIC:  pg_tde cannot repair a page"), "{log}");

    // The file from a backup, and all is well.
    std::fs::write(&index, whole).unwrap();
    standby.start();
    promote_if_needed(&standby);
    let mut sql = standby.connect("postgres");
    sql.run("SET enable_seqscan = off");
    assert_eq!(
        sql.int("SELECT count(*) FROM t WHERE k = 1"),
        primary.int("SELECT count(*) FROM t WHERE k = 1")
    );
}

fn promote_if_needed(standby: &Cluster) {
    if standby.text("SELECT pg_is_in_recovery()") == "t" {
        promote(standby);
    }
}

/// The primary is killed in the middle of the load; every transaction that it acknowledged is on the standby that takes over.
#[test]
fn a_primary_killed_under_load_loses_nothing_that_was_acknowledged() {
    let mut primary = primary();
    primary.encrypted_tablespace("secure");
    let bench = |options: &[&str]| {
        let mut command = primary.tool("pgbench");
        command.args(options).arg("postgres");
        command
    };
    tde_tests::command_output(
        bench(&["-i", "-q", "-s", "2", "--tablespace=secure", "--index-tablespace=secure"])
            .stdout(std::process::Stdio::null()),
    );
    let mut standby = Cluster::standby_of(&primary);
    primary.run("ALTER SYSTEM SET synchronous_standby_names = '*'");
    primary.run("ALTER SYSTEM SET synchronous_commit = 'remote_apply'");
    primary.run("SELECT pg_reload_conf()");
    let begin = Instant::now();
    while primary.text("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != "1" {
        assert!(begin.elapsed() < Duration::from_secs(20), "no synchronous standby");
        thread::sleep(Duration::from_millis(50));
    }
    let load = bench(&["-n", "-c", "4", "-j", "2", "-T", "600"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // A standby that dies and comes back in between, and a key that is made under load.
    thread::sleep(Duration::from_secs(2));
    standby.crash_and_recover();
    primary.run("CREATE TABLESPACE later LOCATION ''");
    if primary.has_tde() {
        primary.run("SELECT tde.encrypt_tablespace('later')");
    }
    fill(&primary, "l", "later");
    thread::sleep(Duration::from_secs(2));
    primary.crash();
    let report = String::from_utf8_lossy(&load.wait_with_output().unwrap().stdout).into_owned();
    let line =
        report.lines().find(|line| line.contains("actually processed")).unwrap_or_else(|| panic!("{report}"));
    let acknowledged: i64 =
        line.split_whitespace().last().unwrap().split('/').next().unwrap().parse().unwrap();
    assert!(acknowledged > 20, "{acknowledged} transactions");
    promote(&standby);
    for pass in 0..2 {
        let sums = standby.rows(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
                    (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)",
        );
        assert!(sums[0].iter().all(|sum| *sum == sums[0][3]), "pass {pass}: {sums:?}");
        assert!(standby.int("SELECT count(*) FROM pgbench_history") >= acknowledged, "pass {pass}");
        assert_eq!(standby.int("SELECT count(*) FROM l WHERE secret LIKE 'canary-l-%'"), 5000, "pass {pass}");
        is_ciphertext(&standby, "pgbench_accounts");
        standby.crash_and_recover();
    }
}
