//! Encrypted against plain, side by side in one cluster.
//!
//! Every measurement is a pair, one run on a plain and one on an encrypted tablespace, in alternating order. A speed
//! ratio of 1 means that encryption costs nothing, 0.95 that the encrypted side does 95 units of work while the plain
//! side does 100. The ratio of processor time for the same work (1.05: five per cent more) is the steadier figure on a
//! busy machine.
//!
//! `make bench` runs it on release builds; `QUICK=1` takes shorter and fewer runs. Results also go to
//! `target/bench/postgres.json`. `TDE_BENCH=word` measures only the workloads whose name contains the word.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

mod jobs;
mod wal;
mod workloads;

use tde_tests::figures::{Figure, Quantity, Suite, Table, in_turns, quick};
use tde_tests::{Cluster, Sql};
use workloads::Sample;

const SPACES: [&str; 2] = ["clear", "secure"];

/// How much to measure.
struct Effort {
    pairs: usize,
    seconds: u32,
    scale: u32,
    rows: u32,
}

fn main() {
    let effort = if quick() {
        Effort { pairs: 3, seconds: 2, scale: 8, rows: 200_000 }
    } else {
        Effort { pairs: 7, seconds: 12, scale: 20, rows: 1_000_000 }
    };
    let mut cluster = Cluster::builder()
        .fsync()
        .conf("shared_buffers", "1GB")
        .conf("max_wal_size", "8GB")
        .conf("checkpoint_timeout", "30min")
        .conf("max_parallel_workers_per_gather", "0")
        .conf("max_parallel_maintenance_workers", "0")
        .conf("autovacuum", "off")
        .conf("maintenance_work_mem", "256MB")
        .conf("max_connections", "100")
        .start();
    prepare(&cluster, &effort);
    let conditions = vec![
        format!("{}, stock, fsync on", cluster.text("SELECT split_part(version(), ' on ', 1)")),
        format!(
            "pages under {}; plain and encrypted tablespace in the same cluster, {} pairs each",
            cluster.text("SELECT cipher FROM tde.tablespaces WHERE name = 'secure'"),
            effort.pairs
        ),
        format!("pgbench scale {}, two clients; tables of {} rows", effort.scale, effort.rows),
    ];

    let mut bench = Bench { cluster: &cluster, effort: &effort, table: None };
    bench.begin("In memory (1 GB of shared buffers)");
    bench.run("pgbench read-write", "tps", 0.99, |b, s| b.pgbench(s, 2, &[]));
    bench.run("pgbench select-only", "tps", 0.99, |b, s| b.pgbench(s, 2, &["-S"]));
    bench.run("pgbench select-only, 32 clients", "tps", 0.99, |b, s| b.pgbench(s, 32, &["-S"]));
    bench.run("COPY load", "rows/s", 0.93, Bench::copy);
    bench.run("CREATE INDEX", "rows/s", 0.93, Bench::create_index);
    bench.run("CREATE TABLE AS", "rows/s", 0.93, Bench::create_table_as);
    bench.run("ALTER TABLE, rewrite", "rows/s", 0.88, Bench::alter_rewrite);
    bench.run("UPDATE of every row", "rows/s", 0.88, Bench::update_all);
    bench.run("VACUUM FULL", "rows/s", 0.93, Bench::vacuum_full);
    bench.run("2,000 small tables, made and read", "tables/s", 0.93, Bench::small_tables);
    let mut tables = bench.table.into_iter().collect::<Vec<_>>();
    tables.extend(jobs::run(&cluster, &effort));

    // Far less than the tables: every page is read from the kernel's cache and decrypted.
    cluster.configure("shared_buffers", "32MB");
    cluster.restart();
    let mut bench = Bench { cluster: &cluster, effort: &effort, table: None };
    bench.begin("Beyond shared buffers (32 MB), from the kernel's cache");
    bench.run("pgbench select-only", "tps", 0.97, |b, s| b.pgbench(s, 2, &["-S"]));
    bench.run("pgbench read-write", "tps", 0.97, |b, s| b.pgbench(s, 2, &[]));
    bench.run("sequential scan", "rows/s", 0.93, Bench::scan);
    tables.extend(bench.table);

    drop(cluster);
    tables.extend(wal::run(&effort));

    Suite {
        name: "postgres".to_owned(),
        title: "PostgreSQL: encrypted tablespace against a plain one".to_owned(),
        quick: quick(),
        conditions,
        tables,
    }
    .write();
}

fn prepare(cluster: &Cluster, effort: &Effort) {
    cluster.encrypted_tablespace("secure");
    write_csv(cluster, effort);
    SPACES.iter().for_each(|space| fill_space(cluster, effort, space));
}

/// The rows that are loaded.
fn write_csv(cluster: &Cluster, effort: &Effort) {
    let csv = cluster.ts_dir().join("rows.csv");
    cluster.run(&format!(
        "COPY (SELECT i, md5(i::text), i % 1000, now(), repeat(md5((i * 7)::text), 3) FROM generate_series(1, {}) i) TO '{}'",
        effort.rows,
        csv.display()
    ));
}

/// A database with pgbench's tables in tablespace `space`; `clear` is made.
fn fill_space(cluster: &Cluster, effort: &Effort, space: &str) {
    if space == "clear" {
        cluster.plain_tablespace(space);
    }
    cluster.run(&format!("CREATE DATABASE {space}"));
    let tables = [format!("--tablespace={space}"), format!("--index-tablespace={space}")];
    let scale = effort.scale.to_string();
    cluster.tool_output("pgbench", &["-i", "-q", "-s", &scale, &tables[0], &tables[1], space]);
    cluster.connect(space).run(&format!("SET default_tablespace = {space}; CREATE TABLE loaded (id int)"));
}

/// A server, and the table that its figures go to.
struct Bench<'a> {
    cluster: &'a Cluster,
    effort: &'a Effort,
    table: Option<Table>,
}

impl Bench<'_> {
    fn begin(&mut self, title: &str) {
        self.table = Some(Table::begin(title, "plain", "encrypted", Quantity::Speed));
    }

    /// Measures a workload after a run of each side that does not count.
    fn run(&mut self, name: &str, unit: &str, aim: f64, work: impl Fn(&Self, &str) -> Sample) {
        if std::env::var("TDE_BENCH").is_ok_and(|word| !name.contains(&word)) {
            // Later workloads need the table.
            if name.starts_with("COPY") {
                SPACES.iter().for_each(|space| {
                    work(self, space);
                });
            }
            return;
        }
        SPACES.iter().for_each(|space| {
            work(self, space);
        });
        let samples = in_turns(self.effort.pairs, |side| {
            self.cluster.run("CHECKPOINT");
            work(self, SPACES[side])
        });
        let of = |side: usize, value: fn(&Sample) -> f64| samples[side].iter().map(value).collect::<Vec<_>>();
        let figure = Figure::paired(name, unit, &of(0, |s| s.speed), &of(1, |s| s.speed))
            .with_cpu(&of(0, |s| s.cpu), &of(1, |s| s.cpu))
            .with_aim(aim);
        self.table.as_mut().unwrap().add(figure);
    }

    fn connect(&self, space: &str) -> Sql {
        let mut sql = self.cluster.connect(space);
        sql.run(&format!("SET default_tablespace = {space}"));
        sql
    }
}
