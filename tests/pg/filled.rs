//! A tablespace with every kind of relation, what its rows must be, and what its files may hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use page_cipher::pg::{self, Fork};
use tde_tests::{Cluster, Sql, files};

/// Every kind of relation, in tablespace `ts` of the database that `sql` is connected to.
pub(crate) fn fill(sql: &mut Sql, rows: u32) {
    sql.run("SET default_tablespace = ts");
    sql.run(&format!(
        "CREATE TABLE heap (id int, secret text, tags text[], spot point) WITH (autovacuum_enabled = off);
         INSERT INTO heap SELECT i, 'canary-row-' || i, ARRAY['canary-tag-' || i % 50], point(i, 1) FROM generate_series(1, {rows}) i;
         CREATE INDEX i_btree ON heap (secret);
         CREATE INDEX i_hash ON heap USING hash (secret);
         CREATE INDEX i_gin ON heap USING gin (tags);
         CREATE INDEX i_gist ON heap USING gist (spot);
         CREATE INDEX i_spgist ON heap USING spgist (secret);
         CREATE INDEX i_brin ON heap USING brin (secret);
         CREATE TABLE toasted (id int, big text);
         ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL;
         INSERT INTO toasted SELECT i, repeat('canary-toast-' || i, 800) FROM generate_series(1, 20) i;
         CREATE UNLOGGED TABLE loose (id int, secret text);
         CREATE INDEX i_loose ON loose (secret);
         CREATE INDEX i_loose_gist ON loose USING gist (point(id, 1));
         INSERT INTO loose SELECT i, 'canary-loose-' || i FROM generate_series(1, 500) i;
         CREATE MATERIALIZED VIEW mat AS SELECT id, 'canary-mat-' || id AS secret FROM heap;
         CREATE TABLE empty (id int, secret text);
         CREATE INDEX i_empty ON empty (secret)"
    ));
    sql.run("DELETE FROM heap WHERE id % 7 = 0");
    sql.run("VACUUM heap");
}

/// What the rows of [`fill`] give, found through a scan and through an index.
pub(crate) const SUMS: &str = "SELECT (SELECT count(*) || ' ' || sum(hashtext(h::text)) FROM heap h),
    (SELECT count(*) || ' ' || sum(hashtext(t::text)) FROM toasted t),
    (SELECT count(*) || ' ' || sum(hashtext(m::text)) FROM mat m)";

pub(crate) fn sums(sql: &mut Sql) -> Vec<String> {
    sql.run("CREATE EXTENSION IF NOT EXISTS amcheck");
    sql.run("SELECT bt_index_check('i_btree', true), verify_heapam('heap'), verify_heapam('toasted')");
    sql.rows(SUMS).remove(0)
}

pub(crate) fn state(cluster: &Cluster) -> String {
    cluster.text("SELECT state FROM tde.tablespaces WHERE name = 'ts'")
}

pub(crate) fn wait_until(cluster: &Cluster, expected: &str) {
    let begin = Instant::now();
    while state(cluster) != expected {
        assert!(
            begin.elapsed() < Duration::from_secs(90),
            "it stays {}\n{}",
            state(cluster),
            cluster.log_since_start()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// No plaintext of ours, no page that is not encrypted. Buffers of unlogged relations are written out by a checkpoint of a shutdown only.
pub(crate) fn assert_encrypted(cluster: &Cluster) {
    assert_encrypted_in(cluster, "ts", &cluster.ts_dir().join("ts"));
}

pub(crate) fn assert_encrypted_in(cluster: &Cluster, tablespace: &str, dir: &Path) {
    cluster.run("CHECKPOINT");
    let relation_files: Vec<_> = files::relation_files(dir)
        .into_iter()
        .filter(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('t'))
        .collect();
    assert!(!relation_files.is_empty());
    for path in &relation_files {
        for (block, page) in files::pages(path).iter().enumerate() {
            let zero = page.iter().all(|byte| *byte == 0);
            assert!(zero || files::looks_random(page), "{} block {block} is in clear", path.display());
        }
    }
    assert_eq!(files::files_with(dir, b"canary"), Vec::<PathBuf>::new());
    let damaged =
        cluster.rows(&format!("SELECT * FROM tde.verify_tablespace('{tablespace}') WHERE damaged > 0"));
    assert!(damaged.is_empty(), "{damaged:?}");
}

/// A client that keeps changing rows and knows what they must be. Returns how many statements were acknowledged.
pub(crate) fn work(mut sql: Sql, stop: Arc<AtomicBool>) -> i64 {
    let mut acknowledged = 0;
    while !stop.load(Ordering::Relaxed) {
        let statement = format!(
            "BEGIN; INSERT INTO ledger VALUES ({acknowledged}, 'canary-ledger-' || repeat('x', {}));
             UPDATE heap SET secret = 'canary-updated-' || id WHERE id % 997 = {}; COMMIT",
            acknowledged % 900,
            acknowledged % 997
        );
        match sql.try_run(&statement) {
            Ok(()) => acknowledged += 1,
            Err(_) => break, // killed
        }
    }
    acknowledged
}

/// Every page is what PostgreSQL writes, with a right checksum if there are any.
pub(crate) fn assert_plain(cluster: &Cluster) {
    cluster.run("CHECKPOINT");
    let checksums = cluster.text("SHOW data_checksums") == "on";
    let mut seen = 0;
    for path in files::relation_files(&cluster.ts_dir().join("ts")) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with('t') {
            continue;
        }
        let (name, segment) = name.split_once('.').unwrap_or((&name, "0"));
        let first = segment.parse::<u32>().unwrap() * 131_072;
        let fork = match name.split_once('_') {
            Some((_, "fsm")) => Fork::Fsm,
            Some((_, "vm")) => Fork::Vm,
            _ => Fork::Main,
        };
        for (block, page) in files::pages(&path).iter().enumerate() {
            let zero = page.iter().all(|byte| *byte == 0);
            let right = page[8..10] == pg::checksum(page, first + block as u32).to_ne_bytes();
            let plain = pg::header_is_valid(page, fork) && (right || !checksums);
            assert!(zero || plain, "{} block {block} is not in clear", path.display());
            seen += usize::from(!zero);
        }
    }
    assert!(seen > 0, "no pages");
}

/// Waits until a standby has replayed what its primary has flushed.
pub(crate) fn catch_up(primary: &Cluster, standby: &Cluster) {
    let target = primary.text("SELECT pg_current_wal_flush_lsn()");
    let begin = Instant::now();
    while standby.text(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) != "t" {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "it does not catch up:\n{}",
            standby.log_since_start()
        );
        thread::sleep(Duration::from_millis(20));
    }
}
