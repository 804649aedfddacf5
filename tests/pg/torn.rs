//! Torn pages: a crash between the two halves of a block's write, for every access method.
//!
//! Nothing is simulated but the tear itself. The pages of a completed checkpoint are kept, the relation is changed, its
//! dirty pages are pushed out by reading another relation over the small buffer pool, the server is killed, and of every
//! block that changed one half is put back. Recovery then has to repair each of them from WAL or from the
//! double-write file. All of it happens in a database whose catalogs lie in the same tablespace, so that their pages are
//! torn as well.

use std::collections::BTreeMap;
use std::path::PathBuf;

use page_cipher::pg::Page;
use tde_tests::files::{OldHalf, pages, relation_files, tear};
use tde_tests::{Cluster, plain_mode};

const DATABASE: &str = "inside";

/// What to build, change and ask for one access method.
struct Scenario {
    /// Creates table `t` (and its index) in the database's tablespace.
    setup: &'static [&'static str],
    /// Changes it after the checkpoint.
    change: &'static [&'static str],
    /// Goes through the index; the answer must be the same after recovery.
    ask: &'static str,
    /// A relation whose pages must be among the torn ones.
    must_tear: &'static str,
    /// The guard without which recovery would fail, which must have been at work.
    guard: Guard,
}

/// What brings torn pages back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guard {
    /// Full-page images in the WAL, as in a plain server.
    Wal,
    /// A placeholder, because redo reads the page before its image comes.
    Placeholder,
    /// The double-write file, because the change is in no WAL record.
    DoubleWrite,
}

fn run(scenario: &Scenario) {
    run_with(scenario, &[]);
}

fn run_with(scenario: &Scenario, settings: &[(&str, &str)]) {
    // A torn page fails PostgreSQL's own checksum, which is no part of this promise in a plain cluster.
    let builder = settings.iter().fold(Cluster::builder(), |b, (name, value)| b.conf(name, value));
    let mut cluster = builder
        .checksums(!plain_mode())
        .fsync()
        .conf("shared_buffers", "1MB")
        .conf("autovacuum", "off")
        .conf("checkpoint_timeout", "1h")
        .conf("max_wal_size", "4GB")
        .conf("full_page_writes", "on")
        .start();
    let dir = cluster.encrypted_tablespace("secure");
    cluster.run(&format!("CREATE DATABASE {DATABASE} TABLESPACE secure STRATEGY wal_log"));
    let extensions = if cluster.has_tde() { "CREATE EXTENSION pg_tde;" } else { "" };
    cluster.connect(DATABASE).run(&format!("{extensions} CREATE EXTENSION bloom; CREATE EXTENSION amcheck"));
    cluster.evict_buffers();

    for old in [OldHalf::Second, OldHalf::First] {
        cluster.connect(DATABASE).run("DROP TABLE IF EXISTS t");
        each(&cluster, scenario.setup);
        cluster.run("CHECKPOINT");
        let before: BTreeMap<PathBuf, Vec<Page>> =
            relation_files(&dir).into_iter().map(|path| (path.clone(), pages(&path))).collect();

        each(&cluster, scenario.change);
        let expected = answers(&cluster, scenario.ask);
        cluster.evict_buffers();
        if scenario.guard == Guard::DoubleWrite && cluster.has_tde() {
            assert!(
                cluster.int("SELECT double_writes FROM tde.stats") > 0,
                "{old:?}: no page was written twice"
            );
        }
        let victim = cluster.file_in(DATABASE, scenario.must_tear).canonicalize().unwrap();
        cluster.crash();

        let mut torn = BTreeMap::new();
        for (path, old_pages) in &before {
            if path.exists() && !old_pages.is_empty() {
                torn.insert(path.canonicalize().unwrap(), tear(path, old_pages, old));
            }
        }
        let hit = torn.get(&victim).is_some_and(|n| *n > 0);
        // A plain page may differ in one half only, and then there is nothing to tear.
        assert!(hit || plain_mode(), "{old:?}: no page of {} was torn: {torn:?}", scenario.must_tear);

        cluster.start();
        if scenario.guard == Guard::Placeholder && cluster.has_tde() {
            assert!(
                cluster.int("SELECT torn_in_recovery FROM tde.stats") > 0,
                "{old:?}: redo met no torn page"
            );
        }
        assert_eq!(answers(&cluster, scenario.ask), expected, "{old:?}");
        check_structure(&cluster);
        // Life goes on: the healed pages take changes, are written and read again.
        each(&cluster, scenario.change);
        let later = answers(&cluster, scenario.ask);
        cluster.restart();
        assert_eq!(answers(&cluster, scenario.ask), later, "{old:?}");
        check_structure(&cluster);
    }
}

fn each(cluster: &Cluster, statements: &[&str]) {
    let mut sql = cluster.connect(DATABASE);
    for statement in statements {
        sql.run(statement);
    }
}

/// The answer through the index and the answer of a sequential scan, which must agree.
fn answers(cluster: &Cluster, ask: &str) -> Vec<Vec<String>> {
    let mut sql = cluster.connect(DATABASE);
    sql.run("SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off");
    let by_scan = sql.rows(ask);
    sql.run("RESET ALL; SET enable_seqscan = off");
    assert_eq!(sql.rows(ask), by_scan, "index and table differ: {ask}");
    by_scan
}

fn check_structure(cluster: &Cluster) {
    cluster.tool_output("pg_amcheck", &["--heapallindexed", "-d", DATABASE]);
    if cluster.has_tde() {
        let damaged = cluster.rows("SELECT * FROM tde.verify_tablespace('secure') WHERE damaged > 0");
        assert!(damaged.is_empty(), "{damaged:?}");
    }
}

/// Long bucket chains, so that VACUUM first works on overflow pages only (the primary page is registered without an
/// image), then on the primary page: hash records DELETE, SQUEEZE and MOVE_PAGE_CONTENTS.
#[test]
fn torn_hash_pages_are_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int, k int)",
            "INSERT INTO t SELECT i, i % 4 FROM generate_series(1, 8000) i",
            "CREATE INDEX i ON t USING hash (k)",
        ],
        change: &[
            "DELETE FROM t WHERE id BETWEEN 5000 AND 7000",
            "VACUUM t",
            "DELETE FROM t WHERE id < 700 AND id % 3 = 0",
            "VACUUM t",
            "INSERT INTO t SELECT i, i % 4 FROM generate_series(1, 900) i",
        ],
        ask: "SELECT k, count(*), sum(id) FROM t WHERE k = 1 OR k = 2 OR k = 3 GROUP BY k ORDER BY k",
        must_tear: "i",
        guard: Guard::Placeholder,
    });
}

/// The metapage is changed by every insert and never WAL-logged (spgutils.c, SpGistUpdateMetaPage).
#[test]
fn torn_spgist_pages_are_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int, at point)",
            "INSERT INTO t SELECT i, point(i % 173, i % 97) FROM generate_series(1, 3000) i",
            "CREATE INDEX i ON t USING spgist (at)",
        ],
        change: &[
            "INSERT INTO t SELECT i, point(i % 61, i % 89) FROM generate_series(1, 2000) i",
            "DELETE FROM t WHERE id % 5 = 0",
            "VACUUM t",
            "INSERT INTO t SELECT i, point(i % 67, i % 71) FROM generate_series(1, 300) i",
        ],
        ask: "SELECT count(*), sum(id) FROM t WHERE at <@ box '(10,10),(60,60)'",
        must_tear: "i",
        guard: Guard::DoubleWrite,
    });
}

/// Nothing but the metapage: a single insert whose page it remembers.
#[test]
fn a_torn_spgist_metapage_is_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int, at point)",
            "INSERT INTO t SELECT i, point(i % 173, i % 97) FROM generate_series(1, 3000) i",
            "CREATE INDEX i ON t USING spgist (at)",
        ],
        change: &["INSERT INTO t VALUES (1, point(1, 1))"],
        ask: "SELECT count(*), sum(id) FROM t WHERE at <@ box '(0,0),(60,60)'",
        must_tear: "i",
        guard: Guard::DoubleWrite,
    });
}

/// Built without WAL, the metapage keeps LSN 0 for ever.
#[test]
fn a_torn_spgist_metapage_of_an_index_built_without_wal_is_healed() {
    run_with(
        &Scenario {
            setup: &[
                "CREATE TABLE t (id int, at point)",
                "INSERT INTO t SELECT i, point(i % 173, i % 97) FROM generate_series(1, 3000) i",
                "CREATE INDEX i ON t USING spgist (at)",
            ],
            change: &["INSERT INTO t VALUES (1, point(1, 1))"],
            ask: "SELECT count(*), sum(id) FROM t WHERE at <@ box '(0,0),(60,60)'",
            must_tear: "i",
            guard: Guard::DoubleWrite,
        },
        &[("wal_level", "minimal"), ("max_wal_senders", "0"), ("wal_skip_threshold", "0")],
    );
}

#[test]
fn torn_btree_pages_are_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int, secret text)",
            "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 4000) i",
            "CREATE INDEX i ON t (secret)",
        ],
        change: &[
            "INSERT INTO t SELECT i, md5((i + 70000)::text) FROM generate_series(1, 2000) i",
            "DELETE FROM t WHERE id % 3 = 0",
            "VACUUM t",
            "UPDATE t SET secret = md5(secret) WHERE id % 7 = 0",
        ],
        ask: "SELECT count(*), sum(id), md5(string_agg(secret, '' ORDER BY secret)) FROM t WHERE secret > '2'",
        must_tear: "i",
        guard: Guard::Wal,
    });
}

#[test]
fn torn_gin_pages_are_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int, tags int[])",
            "INSERT INTO t SELECT i, ARRAY[i % 100, i % 7 + 1000, i] FROM generate_series(1, 3000) i",
            "CREATE INDEX i ON t USING gin (tags)",
        ],
        change: &[
            "INSERT INTO t SELECT i, ARRAY[i % 90, i % 5 + 1000, i] FROM generate_series(1, 2000) i",
            "DELETE FROM t WHERE id % 4 = 0",
            "VACUUM t",
            "INSERT INTO t SELECT i, ARRAY[i % 90, 1003] FROM generate_series(1, 300) i",
        ],
        ask: "SELECT count(*), sum(id) FROM t WHERE tags @> '{1003}'",
        must_tear: "i",
        guard: Guard::Wal,
    });
}

#[test]
fn torn_gist_pages_are_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int, area box)",
            "INSERT INTO t SELECT i, box(point(i % 200, i % 31), point(i % 200 + 2, i % 31 + 2)) FROM generate_series(1, 3000) i",
            "CREATE INDEX i ON t USING gist (area)",
        ],
        change: &[
            "INSERT INTO t SELECT i, box(point(i % 100, i % 37), point(i % 100 + 2, i % 37 + 2)) FROM generate_series(1, 2000) i",
            "DELETE FROM t WHERE id % 4 = 0",
            "VACUUM t",
            "INSERT INTO t SELECT i, box(point(i, i), point(i + 1, i + 1)) FROM generate_series(1, 300) i",
        ],
        ask: "SELECT count(*), sum(id) FROM t WHERE area && box '(20,5),(90,20)'",
        must_tear: "i",
        guard: Guard::Wal,
    });
}

#[test]
fn torn_brin_pages_are_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int, secret text)",
            "INSERT INTO t SELECT i, md5((i / 100)::text) FROM generate_series(1, 6000) i",
            "CREATE INDEX i ON t USING brin (secret) WITH (pages_per_range = 1)",
        ],
        change: &[
            "INSERT INTO t SELECT i, md5((i / 50)::text) FROM generate_series(1, 3000) i",
            "UPDATE t SET secret = secret || 'longer' WHERE id % 50 = 0",
            "VACUUM t",
            "DELETE FROM t WHERE id % 9 = 0",
            "SELECT brin_summarize_new_values('i')",
        ],
        ask: "SELECT count(*), sum(id) FROM t WHERE secret BETWEEN '3' AND '9'",
        must_tear: "i",
        guard: Guard::Wal,
    });
}

#[test]
fn torn_bloom_pages_are_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int, a int, b int)",
            "INSERT INTO t SELECT i, i % 100, i % 77 FROM generate_series(1, 3000) i",
            "CREATE INDEX i ON t USING bloom (a, b)",
        ],
        change: &[
            "INSERT INTO t SELECT i, i % 90, i % 71 FROM generate_series(1, 2000) i",
            "DELETE FROM t WHERE id % 4 = 0",
            "VACUUM t",
            "INSERT INTO t SELECT i, i % 90, i % 71 FROM generate_series(1, 300) i",
        ],
        ask: "SELECT count(*), sum(id) FROM t WHERE a = 5 AND b = 12",
        must_tear: "i",
        guard: Guard::Wal,
    });
}

/// Heap with TOAST, free space map and visibility map.
#[test]
fn torn_heap_toast_fsm_and_vm_pages_are_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int PRIMARY KEY, big text)",
            "ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
            "INSERT INTO t SELECT i, repeat(md5(i::text), 40 + i % 70) FROM generate_series(1, 1500) i",
            "VACUUM (FREEZE) t",
        ],
        change: &[
            "UPDATE t SET big = repeat(md5(big), 60) WHERE id % 3 = 0",
            "DELETE FROM t WHERE id % 5 = 0",
            "VACUUM t",
            "INSERT INTO t SELECT i, repeat('n', 3000) FROM generate_series(1, 1500) i ON CONFLICT (id) DO UPDATE SET big = 'upserted'",
        ],
        ask: "SELECT count(*), sum(length(big)), md5(string_agg(big, '' ORDER BY id)) FROM t WHERE id > 0",
        must_tear: "t",
        guard: Guard::Wal,
    });
}

/// Reading sets hint bits: pages change without a record of their own, but for the image that hint logging writes.
#[test]
fn pages_torn_by_hint_bits_are_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id int, secret text)",
            "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 4000) i",
            "CREATE INDEX i ON t (id)",
            "CHECKPOINT",
            "UPDATE t SET secret = 'x' WHERE id % 400 = 0",
        ],
        change: &["SELECT count(*) FROM t", "SELECT count(*) FROM t"],
        ask: "SELECT count(*), sum(id), min(secret) FROM t WHERE id > 0",
        must_tear: "t",
        guard: Guard::Wal,
    });
}

#[test]
fn a_torn_sequence_is_healed() {
    run(&Scenario {
        setup: &[
            "CREATE TABLE t (id serial PRIMARY KEY, secret text)",
            "INSERT INTO t (secret) VALUES ('first')",
        ],
        change: &["INSERT INTO t (secret) SELECT 'more' FROM generate_series(1, 200)"],
        ask: "SELECT count(*), sum(id), max(id) FROM t WHERE id > 0",
        must_tear: "t_id_seq",
        guard: Guard::Wal,
    });
}
