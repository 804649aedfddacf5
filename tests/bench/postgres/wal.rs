//! Encrypted WAL and temporary files against plain ones: two servers, for both are settings of a server.

use tde_tests::Cluster;
use tde_tests::figures::{Figure, Quantity, Table, in_turns};

use super::workloads::Sample;
use super::{Bench, Effort};

/// The tablespace is in clear on both sides: what is measured is the WAL and the temporary files.
const SPACE: &str = "clear";

/// The table of this module; none if `TDE_BENCH` asks for nothing in it.
pub(crate) fn run(effort: &Effort) -> Option<Table> {
    type Work = fn(&Bench<'_>, &str) -> Sample;
    let work: [(&str, &str, f64, Work); 4] = [
        ("WAL: pgbench read-write", "tps", 0.97, |b, s| b.pgbench(s, 2, &[])),
        ("WAL: COPY storm", "rows/s", 0.90, |b, s| b.copy_storm(s)),
        ("temporary files: sort that spills", "rows/s", 0.95, |b, s| b.spilling_sort(s)),
        ("temporary files: hash join that spills", "rows/s", 0.95, |b, s| b.spilling_join(s)),
    ];
    let wanted = |name: &str| std::env::var("TDE_BENCH").map_or(true, |word| name.contains(&word));
    if !work.iter().any(|(name, ..)| wanted(name)) {
        return None;
    }
    let clusters = ["off", "on"].map(|encrypted| server(effort, encrypted));
    let title = "WAL and temporary files encrypted, tablespaces in clear on both sides";
    let mut table = Table::begin(title, "plain", "encrypted", Quantity::Speed);
    for (name, unit, aim, work) in work.into_iter().filter(|(name, ..)| wanted(name)) {
        let one = |side: usize| {
            let cluster = &clusters[side];
            cluster.run("CHECKPOINT");
            work(&Bench { cluster, effort, table: None }, SPACE)
        };
        for side in [0, 1] {
            one(side); // does not count
        }
        let samples = in_turns(effort.pairs, one);
        let of = |side: usize, value: fn(&Sample) -> f64| samples[side].iter().map(value).collect::<Vec<_>>();
        let figure = Figure::paired(name, unit, &of(0, |s| s.speed), &of(1, |s| s.speed));
        table.add(figure.with_cpu(&of(0, |s| s.cpu), &of(1, |s| s.cpu)).with_aim(aim));
    }
    Some(table)
}

fn server(effort: &Effort, encrypted: &str) -> Cluster {
    let cluster = Cluster::builder()
        .fsync()
        .conf("shared_buffers", "256MB")
        .conf("max_wal_size", "4GB")
        .conf("checkpoint_timeout", "30min")
        .conf("max_parallel_workers_per_gather", "0")
        .conf("autovacuum", "off")
        .conf("pg_tde.encrypt_wal", encrypted)
        .conf("pg_tde.encrypt_temp_files", encrypted)
        .start();
    super::write_csv(&cluster, effort);
    super::fill_space(&cluster, effort, SPACE);
    let mut sql = cluster.connect(SPACE);
    sql.run(&format!(
        "CREATE TABLE sorted AS SELECT i, md5(i::text) AS secret FROM generate_series(1, {}) i",
        effort.rows
    ));
    sql.run("VACUUM (FREEZE, ANALYZE) sorted");
    // The segment in use when the switch came is in clear to its end.
    sql.run("SELECT pg_switch_wal()");
    if encrypted == "on" {
        assert_eq!(
            cluster.text("SELECT key_version FROM tde.wal_status()"),
            "1",
            "the switch is not complete"
        );
    }
    cluster
}
