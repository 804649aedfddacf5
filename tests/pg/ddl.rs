//! Everything that moves, copies or rewrites relations.

use std::fs;

use tde_tests::{Cluster, Sql, SqlError, files, plain_mode};

/// `secure` (encrypted), `clear` (plain), and table `t` with index, TOAST and canaries in `clear`.
fn cluster() -> Cluster {
    let cluster = Cluster::builder().start();
    cluster.encrypted_tablespace("secure");
    cluster.plain_tablespace("clear");
    table(&mut cluster.connect("postgres"), "t", "clear");
    cluster
}

fn table(sql: &mut Sql, name: &str, tablespace: &str) {
    sql.run(&format!(
        "CREATE TABLE {name} (id int PRIMARY KEY USING INDEX TABLESPACE {tablespace}, secret text, big text) TABLESPACE {tablespace};
         ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL;
         INSERT INTO {name} SELECT i, 'canary-' || i, CASE WHEN i % 50 = 0 THEN repeat('canary-big-' || i, 400) END
         FROM generate_series(1, 3000) i"
    ));
}

fn checksum(cluster: &Cluster, table: &str) -> String {
    cluster.text(&format!("SELECT count(*) || md5(string_agg({table}::text, ',' ORDER BY id)) FROM {table}"))
}

/// The relation's file, after a checkpoint, is ciphertext (or is not), and `tde.is_encrypted` says so.
fn encrypted(cluster: &Cluster, relation: &str) -> bool {
    cluster.run("CHECKPOINT");
    let pages = files::pages(&cluster.file_of(relation));
    let written: Vec<_> = pages.iter().filter(|p| p.iter().any(|b| *b != 0)).collect();
    assert!(!written.is_empty(), "{relation} has no page");
    let random = written.iter().filter(|p| files::looks_random(p)).count();
    assert!(
        random == 0 || random == written.len(),
        "{relation}: {random} of {} pages are ciphertext",
        written.len()
    );
    if cluster.has_tde() {
        let told = cluster.text(&format!("SELECT tde.is_encrypted('{relation}')"));
        assert_eq!(told == "t", random > 0, "tde.is_encrypted('{relation}')");
    }
    random > 0
}

fn toast_of(cluster: &Cluster, table: &str) -> String {
    cluster.text(&format!("SELECT reltoastrelid::regclass FROM pg_class WHERE oid = '{table}'::regclass"))
}

fn must_fail(result: Result<(), SqlError>, words: &[&str]) {
    let error = result.expect_err("must be refused");
    for word in words {
        assert!(error.text.contains(word), "no {word:?} in: {error}");
    }
}

#[test]
fn tables_indexes_toast_and_matviews_move_in_and_out() {
    let mut cluster = cluster();
    let before = checksum(&cluster, "t");
    assert!(!encrypted(&cluster, "t"));
    cluster.run("ALTER TABLE t SET TABLESPACE secure; ALTER INDEX t_pkey SET TABLESPACE secure");
    let toast = toast_of(&cluster, "t");
    for relation in ["t", "t_pkey", &toast] {
        assert!(encrypted(&cluster, relation), "{relation}");
    }
    assert_eq!(checksum(&cluster, "t"), before);
    cluster.crash_and_recover();
    assert_eq!(checksum(&cluster, "t"), before);

    cluster.run("CREATE MATERIALIZED VIEW m TABLESPACE clear AS SELECT * FROM t; CREATE UNIQUE INDEX m_id ON m (id) TABLESPACE clear");
    cluster.run("ALTER MATERIALIZED VIEW m SET TABLESPACE secure; ALTER INDEX m_id SET TABLESPACE secure");
    cluster.run("REFRESH MATERIALIZED VIEW CONCURRENTLY m");
    cluster.run("REFRESH MATERIALIZED VIEW m");
    assert!(encrypted(&cluster, "m") && encrypted(&cluster, "m_id"));
    assert_eq!(checksum(&cluster, "m").len(), before.len());

    cluster.run("ALTER TABLE t SET TABLESPACE clear; ALTER INDEX t_pkey SET TABLESPACE clear");
    assert!(!encrypted(&cluster, "t") && !encrypted(&cluster, "t_pkey"));
    assert_eq!(checksum(&cluster, "t"), before);
    cluster.run("ALTER TABLE ALL IN TABLESPACE clear SET TABLESPACE secure");
    cluster.run("ALTER INDEX ALL IN TABLESPACE clear SET TABLESPACE secure");
    assert!(encrypted(&cluster, "t") && encrypted(&cluster, "t_pkey"));
    cluster.restart();
    assert_eq!(checksum(&cluster, "t"), before);
}

#[test]
fn rewrites_stay_encrypted() {
    let mut cluster = cluster();
    cluster.run("ALTER TABLE t SET TABLESPACE secure; ALTER INDEX t_pkey SET TABLESPACE secure");
    let before = checksum(&cluster, "t");
    for statement in [
        "CLUSTER t USING t_pkey",
        "VACUUM FULL t",
        "REINDEX TABLE t",
        "REINDEX TABLE CONCURRENTLY t",
        "REINDEX (TABLESPACE clear) INDEX t_pkey",
        "REINDEX (TABLESPACE secure) INDEX t_pkey",
        "ALTER TABLE t ALTER id TYPE bigint",
        "ALTER TABLE t SET UNLOGGED",
        "ALTER TABLE t SET LOGGED",
    ] {
        cluster.run(statement);
        assert_eq!(checksum(&cluster, "t"), before, "{statement}");
        let pkey_in_clear = statement.contains("TABLESPACE clear");
        if !statement.contains("UNLOGGED") {
            assert!(encrypted(&cluster, "t"), "{statement}");
            assert_eq!(encrypted(&cluster, "t_pkey"), !pkey_in_clear, "{statement}");
        }
    }
    cluster.crash_and_recover();
    assert_eq!(checksum(&cluster, "t"), before);
    cluster.run("TRUNCATE t");
    assert_eq!(cluster.int("SELECT count(*) FROM t"), 0);
    cluster.run("INSERT INTO t SELECT i, 'canary-' || i FROM generate_series(1, 100) i");
    // Truncated within the transaction that also fills it.
    cluster.run(
        "BEGIN; TRUNCATE t; INSERT INTO t SELECT i, 'canary-' || i FROM generate_series(1, 200) i; COMMIT",
    );
    cluster.run("BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'canary'); ROLLBACK");
    cluster.crash_and_recover();
    assert_eq!(cluster.int("SELECT count(*) FROM t"), 200);
    assert!(encrypted(&cluster, "t"));
}

#[test]
fn databases_in_an_encrypted_tablespace_work_with_wal_log_only() {
    let mut cluster = cluster();
    cluster.run("CREATE DATABASE inside TABLESPACE secure");
    table(&mut cluster.connect("inside"), "t", "secure");
    cluster
        .connect("inside")
        .run("CREATE TABLE by_default (secret text); INSERT INTO by_default VALUES ('canary-default')");
    cluster.run("CREATE DATABASE copy TEMPLATE inside TABLESPACE secure STRATEGY wal_log");
    cluster.run("CREATE DATABASE outside TEMPLATE inside TABLESPACE clear STRATEGY wal_log");
    let count =
        |c: &Cluster, db: &str| c.connect(db).int("SELECT count(*) FROM t WHERE secret LIKE 'canary%'");
    for database in ["inside", "copy", "outside"] {
        assert_eq!(count(&cluster, database), 3000, "{database}");
    }
    cluster.crash_and_recover();
    for database in ["inside", "copy", "outside"] {
        assert_eq!(count(&cluster, database), 3000, "{database}");
    }
    assert!(files::files_with(&cluster.ts_dir().join("secure"), b"canary").is_empty());
    cluster.run("DROP DATABASE copy");
    cluster.run("ALTER DATABASE inside RENAME TO renamed");
    assert_eq!(count(&cluster, "renamed"), 3000);
}

/// Files copied byte by byte would be under the wrong relation key, or plain in an encrypted place.
#[test]
fn file_copy_and_alter_database_set_tablespace_are_refused_before_anything_is_copied() {
    let cluster = cluster();
    cluster.run("CREATE DATABASE inside TABLESPACE secure STRATEGY wal_log");
    cluster.run("CREATE DATABASE outside TABLESPACE clear STRATEGY wal_log");
    cluster.run("CREATE DATABASE mixed STRATEGY wal_log");
    cluster.connect("mixed").run("CREATE TABLE m (id int) TABLESPACE secure; INSERT INTO m VALUES (1)");
    let listing = |c: &Cluster| {
        let folders = fs::read_dir(c.ts_dir().join("secure")).unwrap().flatten();
        let mut all: Vec<_> =
            folders.flat_map(|d| fs::read_dir(d.path()).unwrap().flatten()).map(|e| e.path()).collect();
        all.sort();
        all
    };
    let before = listing(&cluster);
    for statement in [
        "CREATE DATABASE x TEMPLATE outside TABLESPACE secure STRATEGY file_copy",
        "CREATE DATABASE x TEMPLATE inside STRATEGY file_copy",
        "CREATE DATABASE x TEMPLATE inside TABLESPACE clear STRATEGY file_copy",
        "CREATE DATABASE x TEMPLATE mixed STRATEGY file_copy",
        // A template's relations may move into an encrypted tablespace meanwhile.
        "CREATE DATABASE x TEMPLATE outside TABLESPACE clear STRATEGY file_copy",
    ] {
        must_fail(cluster.try_run(statement), &["WAL_LOG"]);
    }
    for statement in [
        "ALTER DATABASE inside SET TABLESPACE clear",
        "ALTER DATABASE inside SET TABLESPACE pg_default",
        "ALTER DATABASE outside SET TABLESPACE secure",
    ] {
        must_fail(cluster.try_run(statement), &["encrypted"]);
    }
    assert_eq!(listing(&cluster), before);
    assert_eq!(cluster.int("SELECT count(*) FROM pg_database WHERE datname = 'x'"), 0);
    cluster.run("CREATE DATABASE z TEMPLATE outside STRATEGY DEFAULT");
    // Nothing of this concerns a database that touches no encrypted tablespace.
    cluster.run("ALTER DATABASE outside SET TABLESPACE pg_default");
}

#[test]
fn unlogged_relations_are_reset_by_a_crash_and_work_again() {
    let mut cluster = cluster();
    cluster.run(
        "CREATE UNLOGGED TABLE l (id int PRIMARY KEY USING INDEX TABLESPACE secure, secret text) TABLESPACE secure;
         CREATE INDEX l_gin ON l USING gin (to_tsvector('simple', secret)) TABLESPACE secure;
         CREATE INDEX l_gist ON l USING gist (box(point(id, id), point(id, id))) TABLESPACE secure;
         CREATE INDEX l_spgist ON l USING spgist (secret) TABLESPACE secure;
         CREATE INDEX l_brin ON l USING brin (id) TABLESPACE secure;
         CREATE INDEX l_hash ON l USING hash (secret) TABLESPACE secure;
         CREATE UNLOGGED SEQUENCE l_seq;
         ALTER TABLE l SET (autovacuum_enabled = off);
         INSERT INTO l SELECT i, 'canary-' || i FROM generate_series(1, 2000) i",
    );
    for round in 0..2 {
        cluster.crash_and_recover();
        assert_eq!(cluster.int("SELECT count(*) FROM l"), 0, "round {round}");
        cluster.run("INSERT INTO l SELECT i, 'canary-' || i FROM generate_series(1, 2000) i");
        let mut sql = cluster.connect("postgres");
        sql.run("SET enable_seqscan = off");
        assert_eq!(sql.int("SELECT count(*) FROM l WHERE secret = 'canary-77'"), 1);
        assert_eq!(sql.int("SELECT count(*) FROM l WHERE id BETWEEN 5 AND 9"), 5);
        assert_eq!(
            sql.int("SELECT count(*) FROM l WHERE box(point(id, id), point(id, id)) && box '(3,3),(4,4)'"),
            2
        );
        drop(sql);
        cluster.restart();
        assert_eq!(cluster.int("SELECT count(*) FROM l"), 2000, "kept by a clean restart");
        assert!(encrypted(&cluster, "l") && encrypted(&cluster, "l_spgist"));
    }
}

#[test]
fn temporary_relations_are_encrypted_too() {
    let cluster = Cluster::builder().conf("temp_buffers", "800kB").start();
    let secure = cluster.encrypted_tablespace("secure");
    let mut sql = cluster.connect("postgres");
    sql.run(
        "SET temp_tablespaces = secure; SET temp_buffers = '800kB';
         CREATE TEMP TABLE tmp (id int PRIMARY KEY, secret text);
         INSERT INTO tmp SELECT i, 'canary-' || i FROM generate_series(1, 50000) i",
    );
    assert_eq!(sql.text("SELECT pg_relation_filepath('tmp') LIKE 'pg_tblspc/%/t%'"), "t");
    let found = files::files_with(&secure, b"canary-");
    assert!(found.is_empty(), "{found:?}");
    assert!(
        files::files_below(&secure).iter().any(|f| f.metadata().unwrap().len() > 1_000_000),
        "nothing was written out"
    );
    assert_eq!(sql.int("SELECT count(*) FROM tmp WHERE secret = 'canary-' || id"), 50000);
    sql.run("DROP TABLE tmp");
}

#[test]
fn partitions_move_and_new_ones_inherit() {
    let mut cluster = cluster();
    cluster.run(
        "CREATE TABLE p (id int, secret text) PARTITION BY RANGE (id) TABLESPACE secure;
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
         CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (1000) TO (2000) TABLESPACE clear;
         CREATE TABLE p3 (id int, secret text) TABLESPACE clear;
         CREATE INDEX p_id ON p (id);
         INSERT INTO p SELECT i, 'canary-' || i FROM generate_series(0, 1999) i;
         INSERT INTO p3 SELECT i, 'canary-' || i FROM generate_series(2000, 2999) i",
    );
    assert!(encrypted(&cluster, "p1") && !encrypted(&cluster, "p2") && !encrypted(&cluster, "p3"));
    cluster.run("ALTER TABLE p2 SET TABLESPACE secure; ALTER TABLE p3 SET TABLESPACE secure");
    cluster.run("ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (2000) TO (3000)");
    assert!(encrypted(&cluster, "p2") && encrypted(&cluster, "p3"));
    cluster.crash_and_recover();
    assert_eq!(cluster.int("SELECT count(*) FROM p WHERE secret = 'canary-' || id"), 3000);
    cluster.run("ALTER TABLE p DETACH PARTITION p1");
    cluster.run("DROP TABLE p1");
    assert_eq!(cluster.int("SELECT count(*) FROM p"), 2000);
}

/// One row a page, a second segment file; frozen and without WAL, so that neither load nor scan logs a gigabyte.
#[test]
fn a_relation_of_more_than_one_segment_works() {
    let mut cluster = Cluster::builder().conf("wal_level", "minimal").conf("max_wal_senders", "0").start();
    cluster.encrypted_tablespace("secure");
    cluster.run(
        "BEGIN;
         CREATE TABLE big (id int, secret text) WITH (autovacuum_enabled = off) TABLESPACE secure;
         ALTER TABLE big ALTER secret SET STORAGE PLAIN;
         COPY big FROM PROGRAM
           'seq 0 131999 | awk ''{ printf \"%d\\tcanary-%d-%s\\n\", $1, $1, pad }'' pad=$(printf %05000d 0)' (FREEZE);
         COMMIT",
    );
    let first = cluster.file_of("big");
    let second = format!("{}.1", first.display());
    assert_eq!(fs::metadata(&first).unwrap().len(), 1 << 30);
    // PostgreSQL 16 and later extend by more than they need.
    assert!(fs::metadata(&second).unwrap().len() >= (132_000 - 131_072) * 8192);
    assert!(plain_mode() || !files::contains(&fs::read(&second).unwrap(), b"canary"));
    let around = "SELECT string_agg(left(secret, 13), ' ' ORDER BY id) FROM big WHERE ctid IN ('(131071,1)', '(131072,1)', '(131999,1)')";
    let expected = "canary-131071 canary-131072 canary-131999";
    assert_eq!(cluster.text(around), expected);
    cluster.run("UPDATE big SET secret = 'changed' WHERE ctid = '(131500,1)'");
    cluster.crash_and_recover();
    assert_eq!(cluster.text(around), expected);
    assert_eq!(cluster.text("SELECT count(*) || ' ' || sum(id) FROM big"), "132000 8711934000");
    cluster.run("DELETE FROM big WHERE ctid >= '(131000,0)'");
    cluster.run("VACUUM big");
    assert_eq!(cluster.int("SELECT pg_relation_size('big') / 8192"), 131_000);
    assert_eq!(cluster.int("SELECT count(*) FROM big"), 131_000);
}

/// Relations of a transaction that rolls back.
#[test]
fn rolled_back_relations_leave_nothing_behind() {
    let mut cluster = cluster();
    let listing = |c: &Cluster| files::files_below(&c.ts_dir().join("secure")).len();
    let before = listing(&cluster);
    for _ in 0..3 {
        let mut sql = cluster.connect("postgres");
        sql.run("BEGIN");
        table(&mut sql, "gone", "secure");
        sql.run("SAVEPOINT s; ALTER TABLE t SET TABLESPACE secure; ROLLBACK TO s; ROLLBACK");
    }
    cluster.run("CHECKPOINT");
    cluster.crash_and_recover();
    cluster.run("CHECKPOINT");
    assert_eq!(listing(&cluster), before);
    assert_eq!(cluster.int("SELECT count(*) FROM t"), 3000);
}

#[test]
fn encrypt_tablespace_refuses_what_it_cannot_do_and_says_what_to_do() {
    let cluster = cluster();
    let encrypt = |name: &str| cluster.try_run(&format!("SELECT tde.encrypt_tablespace('{name}')"));
    must_fail(encrypt("nowhere"), &["nowhere"]);
    must_fail(encrypt("secure"), &["secure", "already"]);
    let own_files = "BEGIN; CREATE TABLE own TABLESPACE clear AS TABLE t; SELECT tde.encrypt_tablespace('clear', wait => true)";
    must_fail(cluster.try_run(own_files), &["clear", "Commit first"]);
    let state = cluster.text("SELECT string_agg(state, ',' ORDER BY name) FROM tde.tablespaces");
    assert_eq!(state, "plain,plain,plain,encrypted");
}
