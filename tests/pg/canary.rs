//! No known plaintext in any file of an encrypted tablespace.
//!
//! The same objects are made twice, in a plain and in an encrypted tablespace. Each kind of file has a needle that must
//! be in the plain copy, which shows that the search would find it, and must not be in the encrypted one.

use std::path::{Path, PathBuf};

use page_cipher::pg::PAGE_SIZE;
use tde_tests::{Cluster, files};

/// A file of a relation and bytes that its plain form contains.
struct Canary {
    relation: &'static str,
    fork: &'static str,
    needle: Vec<u8>,
}

fn canary(relation: &'static str, fork: &'static str, needle: impl AsRef<[u8]>) -> Canary {
    Canary { relation, fork, needle: needle.as_ref().to_vec() }
}

const OBJECTS: &str = "
    CREATE SCHEMA {s};
    SET search_path = {s}, public;
    SET default_tablespace = {ts};
    CREATE TABLE heap (id int, secret text, tags text[], area box, spot point, words tsvector) WITH (autovacuum_enabled = off);
    INSERT INTO heap SELECT i, 'canary-row-' || i, ARRAY['canary-tag-' || i % 50, 'x'],
        box(point(i, 1234.5678), point(i + 0.5, 1235.5678)), point(i, 7654.3210), to_tsvector('simple', 'canaryword' || i % 70)
        FROM generate_series(1, 3000) i;
    CREATE INDEX i_btree ON heap (secret);
    CREATE INDEX i_hash ON heap USING hash (secret);
    CREATE INDEX i_gin ON heap USING gin (tags);
    CREATE INDEX i_gin_words ON heap USING gin (words);
    CREATE INDEX i_gist ON heap USING gist (area);
    CREATE INDEX i_spgist ON heap USING spgist (spot);
    CREATE INDEX i_spgist_text ON heap USING spgist (secret);
    CREATE INDEX i_brin ON heap USING brin (secret) WITH (pages_per_range = 1);
    CREATE INDEX i_bloom ON heap USING bloom (id, secret);
    CREATE TABLE toasted (id int, big text);
    ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL;
    INSERT INTO toasted SELECT i, repeat('canary-toast-' || i, 800) FROM generate_series(1, 20) i;
    CREATE UNLOGGED TABLE loose (id int, secret text);
    CREATE INDEX i_loose ON loose (secret);
    CREATE INDEX i_loose_gist ON loose USING spgist (secret);
    INSERT INTO loose SELECT i, 'canary-loose-' || i FROM generate_series(1, 500) i;
    CREATE MATERIALIZED VIEW mat AS SELECT id, 'canary-mat-' || id AS secret FROM heap;
    CREATE TABLE parted (id int, secret text) PARTITION BY RANGE (id);
    CREATE TABLE part_a PARTITION OF parted FOR VALUES FROM (0) TO (500);
    CREATE TABLE part_b PARTITION OF parted FOR VALUES FROM (500) TO (1000);
    CREATE INDEX i_parted ON parted (secret);
    INSERT INTO parted SELECT i, 'canary-part-' || i FROM generate_series(1, 999) i;
    DELETE FROM heap WHERE id % 7 = 0;
    VACUUM heap;
    VACUUM (FREEZE) mat;
";

/// Header bytes 12..20 of every FSM and VM page: lower 24, upper and special 8192, size and version 0x2004.
const MAP_HEADER: [u8; 8] = [24, 0, 0, 32, 0, 32, 4, 32];

fn canaries() -> Vec<Canary> {
    let btree_magic = 0x0005_3162_u32.to_le_bytes();
    let spgist_magic = 0xBA0B_ABEE_u32.to_le_bytes();
    let bloom_magic = 0xDBAC_0DED_u32.to_le_bytes();
    vec![
        canary("heap", "", "canary-row-17"),
        canary("heap", "_fsm", MAP_HEADER),
        canary("heap", "_vm", MAP_HEADER),
        canary("i_btree", "", "canary-row-17"),
        canary("i_gin", "", "canary-tag-17"),
        canary("i_gin_words", "", "canaryword17"),
        canary("i_gist", "", 1234.5678_f64.to_le_bytes()),
        canary("i_spgist", "", 7654.3210_f64.to_le_bytes()),
        canary("i_spgist_text", "", "canary-row-"),
        canary("i_brin", "", "canary-row-"),
        canary("i_bloom", "", bloom_magic),
        canary(
            "(SELECT reltoastrelid::regclass FROM pg_class WHERE oid = 'toasted'::regclass)",
            "",
            "canary-toast-17",
        ),
        canary("loose", "", "canary-loose-17"),
        canary("i_loose", "_init", btree_magic),
        canary("i_loose_gist", "_init", spgist_magic),
        canary("mat", "", "canary-mat-17"),
        canary("part_a", "", "canary-part-17"),
        canary("part_b", "", "canary-part-517"),
        canary("part_a_secret_idx", "", "canary-part-17"),
    ]
}

#[test]
fn no_known_plaintext_in_any_file_of_an_encrypted_tablespace() {
    let mut cluster = Cluster::builder().conf("autovacuum", "off").start();
    cluster.run("CREATE EXTENSION bloom");
    let clear = cluster.plain_tablespace("clear");
    let secure = cluster.encrypted_tablespace("secure");
    for (schema, tablespace) in [("in_clear", "clear"), ("in_secure", "secure")] {
        // psql sends one statement at a time, as VACUUM wants it.
        let script = OBJECTS.replace("{s}", schema).replace("{ts}", tablespace);
        let file = cluster.dir().join(format!("{schema}.sql"));
        std::fs::write(&file, script).unwrap();
        cluster.tool_output("psql", &["-Xq", "-v", "ON_ERROR_STOP=1", "-f", file.to_str().unwrap()]);
    }
    let mut canaries = canaries();
    // A hash index holds hash codes only, each as a datum of eight bytes.
    let code = cluster.int("SELECT hashtext('canary-row-17')") as u32;
    canaries.push(canary("i_hash", "", [code.to_le_bytes(), [0; 4]].concat()));
    // Sequences and catalogs follow the default tablespace of their database.
    for (database, tablespace) in [("outside", "clear"), ("inside", "secure")] {
        cluster.run(&format!("CREATE DATABASE {database} TABLESPACE {tablespace} STRATEGY wal_log"));
        cluster.connect(database).run(
            "CREATE SEQUENCE seq START 1234567890123456789;
             SELECT nextval('seq');
             CREATE UNLOGGED SEQUENCE loose_seq START 1234567890123456789;
             CREATE TABLE canary_catalog_entry (secret text);
             INSERT INTO canary_catalog_entry SELECT 'canary-inside-' || i FROM generate_series(1, 100) i;
             ANALYZE",
        );
    }

    cluster.run("CHECKPOINT");
    // A checkpoint leaves the pages of unlogged relations in the buffers, unless it is that of a shutdown.
    let (unlogged, logged): (Vec<_>, Vec<_>) =
        canaries.into_iter().partition(|c| c.relation == "loose" && c.fork.is_empty());
    check(&cluster, &logged, &clear, &secure, "after CHECKPOINT");
    let canaries: Vec<_> = logged.into_iter().chain(unlogged).collect();

    cluster.restart();
    check(&cluster, &canaries, &clear, &secure, "after restart");

    cluster.crash_and_recover();
    cluster.run("INSERT INTO in_clear.loose SELECT i, 'canary-loose-' || i FROM generate_series(1, 500) i");
    cluster.run("INSERT INTO in_secure.loose SELECT i, 'canary-loose-' || i FROM generate_series(1, 500) i");
    cluster.restart();
    check(&cluster, &canaries, &clear, &secure, "after a crash, with unlogged relations reset");
}

fn check(cluster: &Cluster, canaries: &[Canary], clear: &Path, secure: &Path, when: &str) {
    let plain =
        |c: &&Canary| !files::contains(&std::fs::read(file(cluster, "in_clear", c)).unwrap(), &c.needle);
    let missed: Vec<_> = canaries.iter().filter(plain).map(|c| (c.relation, c.fork)).collect();
    assert!(missed.is_empty(), "{when}: the search would not find {missed:?}");
    for c in canaries {
        let encrypted = std::fs::read(file(cluster, "in_secure", c)).unwrap();
        assert!(encrypted.len() >= PAGE_SIZE, "{when}: {} {} is empty", c.relation, c.fork);
        assert!(!files::contains(&encrypted, &c.needle), "{when}: plaintext in {} {}", c.relation, c.fork);
    }
    let number = 1_234_567_890_123_456_789_i64.to_le_bytes();
    let sequences = |dir| files::files_with(dir, &number).len();
    assert!(sequences(clear) >= 2, "{when}: sequence and init fork of the unlogged one");
    assert_eq!(sequences(secure), 0, "{when}: a sequence in clear");
    assert!(!files::files_with(clear, b"canary").is_empty());
    assert_eq!(files::files_with(secure, b"canary"), Vec::<PathBuf>::new(), "{when}");
    assert_eq!(files::files_with(secure, b"pg_catalog"), Vec::<PathBuf>::new(), "{when}: catalog pages");

    let mut structured = (0, 0);
    for path in files::relation_files(clear) {
        structured.0 += files::pages(&path).iter().filter(|p| files::looks_random(p)).count();
    }
    assert_eq!(structured.0, 0, "{when}: a plain page looks random to this test");
    for path in files::relation_files(secure) {
        for (block, page) in files::pages(&path).iter().enumerate() {
            if page.iter().any(|b| *b != 0) {
                assert!(files::looks_random(page), "{when}: {} block {block} has structure", path.display());
                structured.1 += 1;
            }
        }
    }
    assert!(structured.1 > 300, "{when}: only {} pages looked at", structured.1);
}

fn file(cluster: &Cluster, schema: &str, c: &Canary) -> PathBuf {
    let mut sql = cluster.connect("postgres");
    sql.run(&format!("SET search_path = {schema}, public"));
    let relation =
        if c.relation.starts_with('(') { c.relation.to_owned() } else { format!("'{}'", c.relation) };
    let path = sql.text(&format!("SELECT pg_relation_filepath({relation}::regclass)"));
    cluster.data().join(format!("{path}{}", c.fork))
}
