//! What the double-write file holds is the newest copy of a page, whatever happened to the file before.
//!
//! The SP-GiST metapage is changed by every insert and never WAL-logged, so each write of it goes there first.

use std::fs;
use std::path::{Path, PathBuf};

use page_cipher::pg::{PAGE_SIZE, Page};
use tde_tests::files::{read_page, write_page};
use tde_tests::{Builder, Cluster};

fn builder() -> Builder {
    Cluster::builder()
        .fsync()
        .conf("shared_buffers", "1MB")
        .conf("autovacuum", "off")
        .conf("checkpoint_timeout", "1h")
        .conf("max_wal_size", "4GB")
}

/// Makes table `t` with SP-GiST index `i`; gives the index's file.
fn index(cluster: &Cluster) -> PathBuf {
    cluster.encrypted_tablespace("secure");
    cluster.run(
        "CREATE TABLE t (id int, at point) TABLESPACE secure;
         INSERT INTO t SELECT i, point(i % 17, i % 13) FROM generate_series(1, 50) i;
         CREATE INDEX i ON t USING spgist (at) TABLESPACE secure",
    );
    cluster.evict_buffers();
    cluster.run("CHECKPOINT");
    cluster.file_of("i")
}

/// Has the metapage written anew; gives it as it is on disk then.
fn written_again(cluster: &Cluster, index: &Path) -> Page {
    let before = read_page(index, 0);
    for _ in 0..20 {
        // It remembers pages with room: not every row changes that.
        cluster
            .run("INSERT INTO t SELECT i, point(random() * 90, random() * 90) FROM generate_series(1, 30) i");
        cluster.evict_buffers();
        let after = read_page(index, 0);
        if after != before {
            return after;
        }
    }
    panic!("the metapage was not written");
}

/// Kills the server, tears the metapage, and expects it back as it was.
fn torn_and_back(cluster: &mut Cluster, index: &Path, older: &Page, newest: &Page) {
    cluster.crash();
    assert!(read_page(index, 0) == *newest, "somebody wrote the metapage meanwhile");
    let mut torn = *newest;
    torn[PAGE_SIZE / 2..].copy_from_slice(&older[PAGE_SIZE / 2..]);
    write_page(index, 0, &torn);
    cluster.start();
    assert!(cluster.log_since_start().contains("put back from the double-write file"));
    assert!(read_page(index, 0) == *newest, "another copy than the newest was put back");
    let mut sql = cluster.connect("postgres");
    let all = sql.int("SELECT count(*) FROM t");
    sql.run("SET enable_seqscan = off");
    assert_eq!(sql.int("SELECT count(*) FROM t WHERE at <@ box '(-1,-1),(99,99)'"), all);
}

/// Each checkpoint changes the file in use: the newest copy is in one or in the other.
#[test]
fn the_newest_copy_is_put_back_whichever_file_it_is_in() {
    let mut cluster = builder().start();
    let index = index(&cluster);
    for epochs in 1..=3 {
        let mut copies = Vec::new();
        for _ in 0..epochs {
            cluster.run("CHECKPOINT");
            copies.extend([written_again(&cluster, &index), written_again(&cluster, &index)]);
        }
        let [.., older, newest] = &copies[..] else { panic!("two copies an epoch") };
        torn_and_back(&mut cluster, &index, older, newest);
    }
}

/// A disk that is full for a while: the page is not written then, and what the failed write left behind does no harm.
#[test]
fn a_write_that_failed_half_way_does_not_hide_later_ones() {
    let mut cluster = builder().start();
    let index = index(&cluster);
    // So many copies that the file is longer than the others that the checkpointer has to write.
    for _ in 0..20 {
        written_again(&cluster, &index);
    }
    let files = [0, 1].map(|n| cluster.data().join(format!("pg_tde.double-write.{n}")));
    let length = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.len());
    let file = files.iter().max_by_key(|path| length(path)).unwrap();
    let whole = length(file);
    assert!(whole >= 20 * 8192, "{whole}");

    let checkpointer =
        cluster.postmaster().children().into_iter().find(|p| p.title().contains("checkpointer")).unwrap();
    // A limit for files stands in for a disk without room: the server is told of both in the same way. As the servers'
    // user, who may do that to its own processes.
    let limit = |bytes: &str| {
        let mut command = cluster.root().command("/usr/bin/prlimit");
        command.args(["--pid", &checkpointer.pid.to_string(), &format!("--fsize={bytes}:unlimited")]);
        tde_tests::command_output(&mut command);
    };
    let before = read_page(&index, 0);
    cluster.run("INSERT INTO t VALUES (8, point(4, 4))");
    limit(&(whole + 4000).to_string());
    let mark = cluster.log_mark();
    cluster.try_run("CHECKPOINT").expect_err("the disk is full");
    let log = cluster.log_from(mark);
    assert!(log.contains("pg_tde cannot save block 0") && log.contains("HINT:  Free space"), "{log}");
    assert!(length(file) > whole && length(file) % 8240 != 0, "nothing was left behind");
    assert!(read_page(&index, 0) == before, "the page was written although it could not be saved");
    limit("unlimited");

    let older = written_again(&cluster, &index);
    let newest = written_again(&cluster, &index);
    torn_and_back(&mut cluster, &index, &older, &newest);
}

/// A standby whose configuration was copied uses the same keyring; what it does at its start must not touch the primary's copies.
#[test]
fn a_standby_with_the_same_keyring_leaves_the_primarys_copies_alone() {
    let mut cluster = builder().create();
    cluster.configure("pg_tde.keyring", cluster.dir().join("keyring").to_str().unwrap());
    cluster.start();
    cluster.run("CREATE EXTENSION pg_tde");
    let index = index(&cluster);
    let mut standby = Cluster::standby_of(&cluster);
    let older = written_again(&cluster, &index);
    let newest = written_again(&cluster, &index);
    standby.restart();
    assert_eq!(standby.text("SHOW pg_tde.keyring"), cluster.text("SHOW pg_tde.keyring"));
    torn_and_back(&mut cluster, &index, &older, &newest);
}
