//! Changed, moved and swapped pages are refused: an error, never rows.

use std::fs;
use std::path::{Path, PathBuf};

use tde_tests::files::{fix_checksum, flip, read_page, write_page};
use tde_tests::{Cluster, Sql};

const BLOCKS: u32 = 80;
const DATA_CORRUPTED: &str = "XX001";

/// Tables `t` and `u` of 80 blocks in tablespace secure, `o` in another encrypted one, `p` in a plain one.
fn cluster(checksums: bool) -> Cluster {
    let cluster = Cluster::builder().checksums(checksums).conf("autovacuum", "off").start();
    cluster.encrypted_tablespace("secure");
    cluster.encrypted_tablespace("other");
    cluster.plain_tablespace("clear");
    for (table, tablespace) in [("t", "secure"), ("u", "secure"), ("o", "other"), ("p", "clear")] {
        fill(&mut cluster.connect("postgres"), table, tablespace);
        assert_eq!(cluster.int(&format!("SELECT pg_relation_size('{table}') / 8192")), i64::from(BLOCKS));
    }
    cluster
}

/// One row a page.
fn fill(sql: &mut Sql, table: &str, tablespace: &str) {
    sql.run(&format!(
        "CREATE TABLE {table} (id int, secret text) TABLESPACE {tablespace};
         ALTER TABLE {table} ALTER secret SET STORAGE PLAIN;
         INSERT INTO {table} SELECT i, rpad('canary-' || i, 5000, 'z') FROM generate_series(1, {BLOCKS}) i"
    ));
}

fn read_block(sql: &mut Sql, table: &str, block: u32) -> Result<Vec<Vec<String>>, tde_tests::SqlError> {
    sql.try_rows(&format!(
        "SELECT id, secret FROM {table} WHERE ctid >= '({block},0)' AND ctid < '({},0)'",
        block + 1
    ))
}

/// Reading must fail with "data corrupted", and the server must have named the block.
fn refused(cluster: &Cluster, sql: &mut Sql, table: &str, block: u32, what: &str) {
    let mark = cluster.log_mark();
    match read_block(sql, table, block) {
        Ok(rows) => panic!("{what}: block {block} of {table} gave {} rows", rows.len()),
        Err(error) => assert_eq!(error.code, DATA_CORRUPTED, "{what}: {error}"),
    }
    let log = cluster.log_from(mark);
    assert!(log.contains(&format!("block {block}")), "{what}: the log does not name block {block}:\n{log}");
}

fn intact(sql: &mut Sql, table: &str, block: u32) {
    let rows = read_block(sql, table, block).unwrap_or_else(|e| panic!("block {block} of {table}: {e}"));
    assert_eq!(rows[0][0], (block + 1).to_string());
}

/// Every byte of the header, then samples over the page.
fn offsets() -> Vec<u64> {
    let samples = (24..8192).step_by(211).map(|o| o as u64);
    (0..24).chain(samples).chain([8191]).take(BLOCKS as usize - 1).collect()
}

#[test]
fn a_flipped_byte_is_an_error_with_and_without_data_checksums() {
    for checksums in [true, false] {
        let mut cluster = cluster(checksums);
        let file = cluster.file_of("t");
        cluster.stop();
        for (block, offset) in offsets().iter().enumerate() {
            flip(&file, block as u64 * 8192 + offset);
        }
        cluster.start();
        let mut sql = cluster.connect("postgres");
        for (block, offset) in offsets().iter().enumerate() {
            refused(&cluster, &mut sql, "t", block as u32, &format!("byte {offset} flipped"));
        }
        intact(&mut sql, "t", BLOCKS - 1);
        assert_eq!(sql.try_rows("SELECT * FROM t").unwrap_err().code, DATA_CORRUPTED);
        let damaged = cluster
            .rows("SELECT damaged, first_damaged FROM tde.verify_tablespace('secure') WHERE damaged > 0");
        assert_eq!(damaged, [[offsets().len().to_string(), "0".to_owned()]]);
        if checksums {
            let failures = "SELECT checksum_failures FROM pg_stat_database WHERE datname = 'postgres'";
            sql.run("SELECT pg_stat_force_next_flush()");
            assert!(sql.int(failures) > 0, "the server's own statistics must count them");
        }
    }
}

/// Whoever writes the disk can also compute page checksums, which have no key.
#[test]
fn a_flipped_byte_under_a_repaired_checksum_is_an_error() {
    let mut cluster = cluster(true);
    let file = cluster.file_of("t");
    cluster.stop();
    for (block, offset) in offsets().iter().enumerate() {
        flip(&file, block as u64 * 8192 + offset);
        fix_checksum(&file, block as u32);
    }
    cluster.start();
    let mut sql = cluster.connect("postgres");
    for (block, offset) in offsets().iter().enumerate() {
        if (8..10).contains(offset) {
            intact(&mut sql, "t", block as u32);
        } else {
            refused(
                &cluster,
                &mut sql,
                "t",
                block as u32,
                &format!("byte {offset} flipped, checksum repaired"),
            );
        }
    }
    // A setting that lets plain damaged pages pass must not let ciphertext pass for a page.
    sql.run("SET ignore_checksum_failure = on");
    refused(&cluster, &mut sql, "t", 0, "with ignore_checksum_failure");
}

#[test]
fn a_page_from_elsewhere_is_an_error() {
    let mut cluster = cluster(true);
    cluster.run("CREATE DATABASE inside TABLESPACE secure STRATEGY wal_log");
    fill(&mut cluster.connect("inside"), "t", "secure");
    let target = cluster.file_of("t");
    let foreign = cluster.file_in("inside", "t");
    let (u, o, p) = (cluster.file_of("u"), cluster.file_of("o"), cluster.file_of("p"));
    cluster.stop();
    let put = |from: &Path, from_block: u32, to_block: u32| {
        write_page(&target, to_block, &read_page(from, from_block));
        fix_checksum(&target, to_block);
    };
    let sources: [(&str, &PathBuf, u32, u32); 5] = [
        ("another block of the same table", &target, 60, 1),
        ("the same block of another table", &u, 2, 2),
        ("the same block of another tablespace, under its key", &o, 3, 3),
        ("the same block of a table in another database", &foreign, 4, 4),
        ("a plain page of a plain tablespace", &p, 5, 5),
    ];
    for (_, from, from_block, to_block) in &sources {
        put(from, *from_block, *to_block);
    }
    cluster.start();
    let mut sql = cluster.connect("postgres");
    for (what, _, _, block) in &sources {
        refused(&cluster, &mut sql, "t", *block, what);
    }
    intact(&mut sql, "t", 60);
    // The warning tells tampering from bit rot: here every checksum was right.
    let log = cluster.log_since_start();
    assert!(log.contains("The checksum of the encrypted page is right"), "{log}");
    assert!(log.contains("is not encrypted although its tablespace is"), "{log}");
}

#[test]
fn a_file_swapped_for_another_is_an_error() {
    let mut cluster = cluster(true);
    let (t, u, o) = (cluster.file_of("t"), cluster.file_of("u"), cluster.file_of("o"));
    cluster.stop();
    let keep = fs::read(&t).unwrap();
    fs::write(&t, fs::read(&u).unwrap()).unwrap();
    fs::write(&u, keep).unwrap();
    fs::write(&o, fs::read(&t).unwrap()).unwrap();
    cluster.start();
    let mut sql = cluster.connect("postgres");
    for table in ["t", "u", "o"] {
        refused(&cluster, &mut sql, table, 0, "files swapped");
        refused(&cluster, &mut sql, table, BLOCKS - 1, "files swapped");
    }
}

#[test]
fn damage_in_an_index_is_an_error_and_in_a_map_heals() {
    let mut cluster = cluster(true);
    cluster.run("CREATE INDEX i ON t (id) TABLESPACE secure");
    let mut sql = cluster.connect("postgres");
    sql.run("DELETE FROM t WHERE id % 2 = 0");
    sql.run("VACUUM t");
    let index = cluster.file_of("i");
    let heap = cluster.file_of("t");
    cluster.stop();
    flip(&index, 8192 + 4000);
    for fork in ["_fsm", "_vm"] {
        flip(&PathBuf::from(format!("{}{fork}", heap.display())), 4000);
    }
    cluster.start();
    let mut sql = cluster.connect("postgres");
    // Maps are read by whoever wants to, not only by those who would rebuild them.
    sql.run("CREATE EXTENSION pg_prewarm");
    for fork in ["fsm", "vm"] {
        assert!(sql.int(&format!("SELECT pg_prewarm('t', 'buffer', '{fork}')")) > 0);
    }
    sql.run("SET enable_seqscan = off; SET enable_bitmapscan = off");
    assert_eq!(sql.try_rows("SELECT secret FROM t WHERE id = 7").unwrap_err().code, DATA_CORRUPTED);
    let mut sql = cluster.connect("postgres");
    sql.run("DROP INDEX i");
    assert_eq!(sql.int("SELECT count(*) FROM t"), i64::from(BLOCKS) / 2);
    sql.run("VACUUM t");
    sql.run("INSERT INTO t VALUES (1000, 'again')");
    assert_eq!(sql.int("SELECT count(*) FROM t"), i64::from(BLOCKS) / 2 + 1);
}
