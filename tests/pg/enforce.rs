//! With `pg_tde.enforce_encryption` no relation is made outside of encrypted tablespaces, whichever way.

use tde_tests::{Cluster, Sql, files};

const BEFORE: &str = "
    CREATE TABLE plain (id int, secret text) TABLESPACE pg_default;
    INSERT INTO plain SELECT i, 'canary-plain-' || i FROM generate_series(1, 100) i;
    CREATE INDEX plain_secret ON plain (secret) TABLESPACE pg_default;
    CREATE MATERIALIZED VIEW seen TABLESPACE pg_default AS TABLE plain;
    CREATE TABLE bare (id int) TABLESPACE pg_default;
    INSERT INTO bare VALUES (1);
    CREATE UNLOGGED TABLE loose (id int) TABLESPACE pg_default;
    CREATE TABLE safe (id int, secret text) TABLESPACE secure;
    CREATE TABLE parts (id int, secret text) PARTITION BY RANGE (id);
    CREATE INDEX parts_id ON parts (id);
    CREATE TABLE detached (id int, secret text) TABLESPACE secure";

/// Each of these makes a file in a tablespace that is not encrypted.
const REFUSED: &[&str] = &[
    "CREATE TABLE t (id int)",
    "CREATE TABLE t (id int) TABLESPACE pg_default",
    "CREATE TABLE t (id int) TABLESPACE other",
    "CREATE UNLOGGED TABLE t (id int)",
    "CREATE TABLE t AS SELECT 1 AS id",
    "SELECT 1 AS id INTO t",
    "CREATE TABLE t (LIKE plain INCLUDING ALL)",
    "CREATE MATERIALIZED VIEW m AS SELECT 1 AS id",
    "REFRESH MATERIALIZED VIEW seen",
    "CREATE SEQUENCE s",
    "CREATE INDEX ON plain (id)",
    "CREATE INDEX ON safe (id) TABLESPACE pg_default",
    "CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (0) TO (10)",
    "ALTER TABLE parts ATTACH PARTITION detached FOR VALUES FROM (0) TO (10)",
    "CREATE TABLE t (id serial) TABLESPACE secure",
    "ALTER TABLE safe SET TABLESPACE pg_default",
    "ALTER TABLE safe ADD PRIMARY KEY (id)",
    "ALTER TABLE safe ADD COLUMN n int GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE ALL IN TABLESPACE secure SET TABLESPACE other",
    "ALTER TABLE bare ALTER id TYPE bigint",
    "ALTER TABLE plain SET UNLOGGED",
    "ALTER TABLE loose SET LOGGED",
    "TRUNCATE plain",
    "VACUUM FULL plain",
    "CLUSTER plain USING plain_secret",
    "REINDEX TABLE plain",
    "REINDEX INDEX CONCURRENTLY plain_secret",
    "CREATE DATABASE d",
    "CREATE DATABASE d STRATEGY file_copy",
    "CREATE DATABASE d TABLESPACE other",
    "ALTER DATABASE inside SET TABLESPACE other",
    "VACUUM FULL pg_class",
    "REINDEX TABLE pg_shdescription",
    "SELECT tde.decrypt_tablespace('secure')",
];

const ALLOWED: &[&str] = &[
    "CREATE TABLE t1 (id int, secret text) TABLESPACE secure",
    "CREATE TEMP TABLE mine (id int)",
    "SET default_tablespace = secure; CREATE TABLE t2 (id int PRIMARY KEY, secret text UNIQUE)",
    "SET default_tablespace = secure; CREATE TABLE p2 PARTITION OF parts FOR VALUES FROM (10) TO (20)",
    "SET default_tablespace = secure; CREATE MATERIALIZED VIEW m2 AS TABLE safe",
    "ALTER TABLE plain SET TABLESPACE secure",
    "ALTER MATERIALIZED VIEW seen SET TABLESPACE secure",
    "TRUNCATE safe",
    "VACUUM FULL safe",
    "INSERT INTO loose VALUES (1)",
    "CREATE DATABASE d2 TABLESPACE secure",
    "VACUUM",
];

fn refused(sql: &mut Sql, statement: &str) {
    let error = sql.try_run(statement).expect_err(statement).to_string();
    assert!(error.contains("pg_tde"), "{statement}: {error}");
}

#[test]
fn nothing_is_made_outside_of_encrypted_tablespaces() {
    let cluster = Cluster::with_tde();
    cluster.encrypted_tablespace("secure");
    cluster.plain_tablespace("other");
    cluster.run("CREATE DATABASE inside TABLESPACE secure");
    cluster.run(BEFORE);
    cluster.configure("pg_tde.enforce_encryption", "on");
    cluster.run("SELECT pg_reload_conf()");
    let listed = |cluster: &Cluster| {
        cluster.run("CHECKPOINT");
        let mut found = files::relation_files(&cluster.data().join("base"));
        found.extend(files::relation_files(&cluster.ts_dir().join("other")));
        found.retain(|path| {
            // Maps of what is there and catalogs that get their first row are no new relations.
            let number = path.file_name().unwrap().to_str().unwrap().parse();
            number.is_ok_and(|number: u32| number >= 16384) && path.metadata().unwrap().len() > 0
        });
        found
    };
    let before = listed(&cluster);
    for statement in REFUSED {
        refused(&mut cluster.connect("postgres"), statement);
    }
    assert_eq!(listed(&cluster), before, "a file was left in clear");
    for statement in ALLOWED {
        let mut sql = cluster.connect("postgres");
        for part in statement.split("; ") {
            sql.try_run(part).unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }
    // Inside an encrypted database everything is as usual.
    let mut inside = cluster.connect("inside");
    for statement in [
        "CREATE TABLE t (id serial PRIMARY KEY, big text)",
        "TRUNCATE t",
        "VACUUM FULL pg_class",
        "CREATE INDEX ON t (big)",
    ] {
        inside.run(statement);
    }
    // A superuser can make an exception; nobody else can.
    cluster.run("CREATE ROLE somebody LOGIN; GRANT ALL ON SCHEMA public TO somebody");
    let mut somebody = cluster.connect_as("postgres", "somebody").unwrap();
    somebody.try_run("SET pg_tde.enforce_encryption = off").expect_err("no superuser");
    refused(&mut somebody, "CREATE TABLE t (id int)");
    let mut sql = cluster.connect("postgres");
    sql.run("SET pg_tde.enforce_encryption = off");
    sql.run("CREATE TABLE exception (id int)");
    // What is being encrypted already takes new relations.
    cluster.run("SELECT tde.encrypt_tablespace('pg_default', wait => true)");
    for statement in ["CREATE TABLE t (id serial PRIMARY KEY)", "VACUUM FULL pg_class", "TRUNCATE exception"]
    {
        cluster.run(statement);
    }
}
