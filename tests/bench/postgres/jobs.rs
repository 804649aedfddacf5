//! Jobs that rewrite pages: how fast they are beside `VACUUM FULL`, which rewrites a table too, and what they cost whoever works meanwhile.

use std::time::{Duration, Instant};

use tde_tests::Cluster;
use tde_tests::figures::{Figure, Quantity, Table, in_turns};

use super::{Bench, Effort};

/// In a tablespace that is encrypted, rotated and decrypted, and in one that stays plain.
const MOVED: &str = "moving";
/// What `throttled` sets: at most 25 MiB a second.
const THROTTLE: [(&str, &str); 2] = [("pg_tde.job_cost_limit", "64"), ("pg_tde.job_cost_delay", "20ms")];
const UNTHROTTLED: [(&str, &str); 2] = [("pg_tde.job_cost_limit", "256"), ("pg_tde.job_cost_delay", "0")];

/// The tables of this module; empty if `TDE_BENCH` asks for none of them.
pub(crate) fn run(cluster: &Cluster, effort: &Effort) -> Vec<Table> {
    let wanted = |name: &str| std::env::var("TDE_BENCH").map_or(true, |word| name.contains(&word));
    let rates = ["encrypting a tablespace", "rotating its data key"];
    let load = "pgbench read-write during a throttled rotation";
    if !rates.iter().chain([&load]).any(|name| wanted(name)) {
        return Vec::new();
    }
    cluster.plain_tablespace(MOVED);
    let megabytes = if effort.pairs < 5 { 256 } else { 1024 };
    for (table, tablespace) in [("moved", MOVED), ("still", "pg_default")] {
        cluster.run(&format!(
            "CREATE TABLE {table} TABLESPACE {tablespace} AS
             SELECT i, repeat(md5(i::text), 24) AS filler FROM generate_series(1, {}) i",
            megabytes * 1280
        ));
    }
    cluster.run("VACUUM (FREEZE) moved");
    cluster.run("VACUUM (FREEZE) still");
    set(cluster, &UNTHROTTLED);
    let mut tables = Vec::new();
    let title = "Jobs, unthrottled, against VACUUM FULL of a plain table of the same size";
    let mut table = Table::begin(title, "VACUUM FULL", "job", Quantity::Speed);
    for name in rates.into_iter().filter(|name| wanted(name)) {
        let rotates = name.starts_with("rotating");
        if rotates {
            cluster.run(&format!("SELECT tde.encrypt_tablespace('{MOVED}', wait => true)"));
        }
        let side = |side: usize| match (side, rotates) {
            (0, _) => rate(cluster, "still", "VACUUM FULL still"),
            (_, true) => {
                rate(cluster, "moved", &format!("SELECT tde.rotate_data_key('{MOVED}', wait => true)"))
            }
            (_, false) => {
                let rate = rate(
                    cluster,
                    "moved",
                    &format!("SELECT tde.encrypt_tablespace('{MOVED}', wait => true)"),
                );
                cluster.run(&format!("SELECT tde.decrypt_tablespace('{MOVED}', wait => true)"));
                rate
            }
        };
        for one in [0, 1] {
            side(one); // does not count
        }
        let [full, job] = in_turns(effort.pairs, side);
        table.add(Figure::paired(name, "MB/s", &full, &job).with_aim(0.6));
        if rotates {
            cluster.run(&format!("SELECT tde.decrypt_tablespace('{MOVED}', wait => true)"));
        }
    }
    tables.push(table);
    if wanted(load) {
        cluster.run(&format!("SELECT tde.encrypt_tablespace('{MOVED}', wait => true)"));
        let effort = Effort { seconds: effort.seconds.max(6), ..*effort };
        let bench = Bench { cluster, effort: &effort, table: None };
        let title = "Work beside a job of at most 25 MiB a second in another tablespace";
        let mut table = Table::begin(title, "alone", "beside a job", Quantity::Speed);
        bench.pgbench("secure", 2, &[]);
        let [alone, beside] = in_turns(effort.pairs, |side| {
            cluster.run("CHECKPOINT");
            if side == 0 {
                return bench.pgbench("secure", 2, &[]).speed;
            }
            set(cluster, &THROTTLE);
            cluster.run(&format!("SELECT tde.rotate_data_key('{MOVED}')"));
            let speed = bench.pgbench("secure", 2, &[]).speed;
            assert_eq!(
                cluster.int("SELECT count(*) FROM tde.job_progress"),
                1,
                "the job ended before pgbench"
            );
            set(cluster, &UNTHROTTLED);
            wait_for_the_end(cluster);
            speed
        });
        table.add(Figure::paired(load, "tps", &alone, &beside).with_aim(0.9));
        tables.push(table);
    }
    tables
}

fn set(cluster: &Cluster, settings: &[(&str, &str)]) {
    settings.iter().for_each(|(name, value)| cluster.configure(name, value));
    cluster.run("SELECT pg_reload_conf()");
}

/// Megabytes of `table` in a second, the way to the disk included.
fn rate(cluster: &Cluster, table: &str, statement: &str) -> f64 {
    let mut sql = cluster.connect("postgres");
    sql.run("CHECKPOINT");
    let megabytes = sql.int(&format!("SELECT pg_table_size('{table}')")) as f64 / 1e6;
    let begin = Instant::now();
    sql.run(statement);
    sql.run("CHECKPOINT");
    megabytes / begin.elapsed().as_secs_f64()
}

fn wait_for_the_end(cluster: &Cluster) {
    while cluster.int("SELECT count(*) FROM tde.job_progress") > 0 {
        std::thread::sleep(Duration::from_millis(100));
    }
}
