//! Jobs over very many, very wide and very large relations.

use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, files, soak};

use crate::filled::assert_encrypted;

/// Waits for every job, and says how long that took.
fn wait_for_jobs(cluster: &Cluster, what: &str) {
    let begin = Instant::now();
    while cluster.int("SELECT count(*) FROM tde.tablespaces WHERE state LIKE '%ing'") > 0 {
        assert!(
            begin.elapsed() < Duration::from_secs(500),
            "{:?}\n{}",
            cluster.rows("SELECT * FROM tde.job_progress"),
            cluster.log_since_start()
        );
        thread::sleep(Duration::from_millis(50));
    }
    println!("{what}: {:.1} s", begin.elapsed().as_secs_f32());
}

/// Two tablespaces at once, one of them with very many small tables: half of them empty, some unlogged.
#[test]
fn very_many_tables_and_two_tablespaces_at_once() {
    let tables = if soak() { 10_000 } else { 600 };
    let mut cluster = Cluster::builder().conf("max_locks_per_transaction", "256").start();
    for name in ["ts", "other"] {
        cluster.plain_tablespace(name);
    }
    for first in (1..=tables).step_by(200) {
        cluster.run(&format!(
            "DO $$ BEGIN FOR i IN {first}..{} LOOP
                 EXECUTE format('CREATE %s TABLE s%s (id int, secret text) TABLESPACE ts', CASE i % 50 WHEN 0 THEN 'UNLOGGED' ELSE '' END, i);
                 IF i % 2 = 0 THEN EXECUTE format('INSERT INTO s%s VALUES (%s, ''canary-%s'')', i, i, i); END IF;
             END LOOP; END $$",
            (first + 199).min(tables)
        ));
    }
    cluster.run("CREATE TABLE beside TABLESPACE other AS SELECT i, 'canary-' || i AS secret FROM generate_series(1, 100000) i");
    cluster.run("CHECKPOINT");
    let sum = "SELECT sum((xpath('/row/s/text()', query_to_xml('SELECT coalesce(sum(id), 0) AS s FROM ' || relname, true, true, '')))[1]::text::bigint)
        FROM pg_class WHERE relname ~ '^s[0-9]+$' AND relkind = 'r'";
    let expected = (1..=tables).filter(|i| i % 2 == 0).sum::<i64>();
    let mut sql = cluster.connect("postgres");
    assert_eq!(sql.int(sum), expected);
    let most_at_once = |statement: &str| {
        for name in ["ts", "other"] {
            cluster.run(&statement.replace("TS", name));
        }
        wait_for_jobs(&cluster, statement);
    };
    most_at_once("SELECT tde.encrypt_tablespace('TS')");
    let dirs = [cluster.ts_dir().join("ts"), cluster.ts_dir().join("other")];
    for dir in &dirs {
        assert_eq!(files::files_with(dir, b"canary").len(), 0);
    }
    assert_eq!(sql.int(sum), expected);
    most_at_once("SELECT tde.rotate_data_key('TS')");
    assert_eq!(sql.int(sum), expected);
    drop(sql);
    cluster.restart();
    assert_eq!(cluster.int(sum), expected);
    assert_eq!(cluster.int("SELECT count(*) FROM beside WHERE secret LIKE 'canary-%'"), 100_000);
    assert_encrypted(&cluster);
    if soak() {
        cluster.run("SELECT tde.decrypt_tablespace('ts', wait => true)");
        assert_eq!(cluster.int(sum), expected);
        assert!(files::files_with(&dirs[0], b"canary-").len() as i64 >= tables / 2 - 1);
    }
}

/// As many columns as a row can have that are all in the TOAST table; eight such tables are 3,200 columns.
#[test]
fn three_thousand_columns_that_are_all_toasted() {
    let cluster = Cluster::builder().conf("max_wal_size", "1GB").start();
    let dir = cluster.plain_tablespace("ts");
    let rows = if soak() { 20 } else { 1 };
    let columns: Vec<String> = (0..400).map(|c| format!("c{c} text STORAGE EXTERNAL")).collect();
    let columns = columns.join(", ").replace(" STORAGE EXTERNAL", "");
    let values: Vec<String> =
        (0..400).map(|c| format!("repeat('canary-{c}-' || i || '-', 190 + {c} % 50)")).collect();
    let mut sums = Vec::new();
    for table in 0..8 {
        cluster.run(&format!("CREATE TABLE w{table} ({columns}) TABLESPACE ts"));
        let external: Vec<String> = (0..400).map(|c| format!("ALTER c{c} SET STORAGE EXTERNAL")).collect();
        cluster.run(&format!("ALTER TABLE w{table} {}", external.join(", ")));
        cluster.run(&format!(
            "INSERT INTO w{table} SELECT {} FROM generate_series(1, {rows}) i",
            values.join(", ")
        ));
        sums.push(format!("(SELECT sum(hashtext(w::text)) FROM w{table} w)"));
    }
    let sums = format!("SELECT {}", sums.join(", "));
    let toasted = "SELECT sum(pg_relation_size(reltoastrelid)) FROM pg_class WHERE relname ~ '^w[0-7]$'";
    assert!(cluster.int(toasted) > 8 * 400 * 2000 * rows);
    let before = cluster.rows(&sums);
    for function in ["encrypt_tablespace", "rotate_data_key"] {
        cluster.run(&format!("SELECT tde.{function}('ts', wait => true)"));
        assert_eq!(cluster.rows(&sums), before, "{function}");
        assert_encrypted(&cluster);
    }
    cluster.run("SELECT tde.decrypt_tablespace('ts', wait => true)");
    assert_eq!(cluster.rows(&sums), before, "decrypted");
    assert!(!files::files_with(&dir, b"canary-399-").is_empty());
}

/// A table of 2 GB has three segment files; the short form has one.
#[test]
fn a_large_table() {
    let mut cluster = Cluster::builder()
        .conf("max_wal_size", "2GB")
        .conf("shared_buffers", "128MB")
        .conf("autovacuum", "off")
        .start();
    let dir = cluster.plain_tablespace("ts");
    let rows = if soak() { 2_300_000 } else { 60_000 };
    cluster.run(&format!(
        "CREATE TABLE big TABLESPACE ts AS SELECT id, 'canary-' || repeat(md5(id::text), 28) AS filler FROM generate_series(1, {rows}) id"
    ));
    cluster.run("CREATE INDEX i_big ON big (id) TABLESPACE ts");
    cluster.run("DELETE FROM big WHERE id % 101 = 0");
    cluster.run("VACUUM (FREEZE) big");
    cluster.run("CHECKPOINT");
    if soak() {
        assert!(cluster.file_of("big").with_extension("2").exists(), "it is smaller than 2 GB");
    }
    let sum = "SELECT count(*) || ' ' || sum(id::bigint) || ' ' || sum(hashtext(filler)) FROM big";
    let before = cluster.text(sum);
    let found = "SET enable_seqscan = off; SELECT count(*) FROM big WHERE id IN (1, 102, 2000, 59999)";
    for function in ["encrypt_tablespace", "rotate_data_key", "decrypt_tablespace"] {
        cluster.run(&format!("SELECT tde.{function}('ts')"));
        wait_for_jobs(&cluster, function);
        assert_eq!(cluster.text(sum), before, "{function}");
        assert_eq!(cluster.int(found), 4, "{function}");
        cluster.run("CHECKPOINT");
        if function == "decrypt_tablespace" {
            continue;
        }
        let clear = files::relation_files(&dir).into_iter().filter(|path| {
            // The files are too large for a look at each page; the server has opened all of them.
            let step = if soak() { 997 } else { 7 };
            let blocks = path.metadata().unwrap().len() / 8192;
            (0..blocks).step_by(step).any(|block| {
                let page = files::read_page(path, block as u32);
                page.iter().any(|byte| *byte != 0) && !files::looks_random(&page)
            })
        });
        assert_eq!(clear.collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new(), "{function}");
        let damaged = "SELECT count(*) FROM tde.verify_tablespace('ts') WHERE damaged > 0";
        assert_eq!(cluster.int(damaged), 0, "{function}");
        cluster.crash_and_recover();
        assert_eq!(cluster.text(sum), before, "{function}");
    }
    cluster.stop();
    cluster.configure("shared_preload_libraries", "");
    cluster.start();
    assert_eq!(cluster.text(sum), before, "without the library");
}
