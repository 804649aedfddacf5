//! Encrypted against plain, side by side in one cluster.
//!
//! Every measurement is a pair, one run on a plain and one on an encrypted tablespace, in alternating order; what is
//! printed is the median of the pairs' ratios with the smallest and the largest. A speed ratio of 1 means that encryption
//! costs nothing, 0.95 that the encrypted side does 95 units of work while the plain side does 100. The ratio of
//! processor time for the same work (1.05: five per cent more) is the steadier figure on a busy machine.
//!
//! `make bench` runs it on release builds; `QUICK=1` takes shorter and fewer runs. Results also go to
//! `target/bench/postgres.json`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};
use tde_tests::Cluster;

const SPACES: [&str; 2] = ["clear", "secure"];

/// How much to measure.
struct Effort {
    pairs: usize,
    seconds: u32,
    scale: u32,
    rows: u32,
}

/// One side of a pair: work done in a second of wall-clock time, and processor seconds for one unit of it.
#[derive(Clone, Copy)]
struct Sample {
    speed: f64,
    cpu: f64,
}

fn main() {
    let quick = std::env::var("QUICK").is_ok_and(|v| !v.is_empty() && v != "0");
    let effort = if quick {
        Effort { pairs: 3, seconds: 4, scale: 10, rows: 300_000 }
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
        .start();
    println!(
        "{}, {} pairs each, pgbench scale {}",
        cluster.text("SELECT split_part(version(), ' on ', 1)"),
        effort.pairs,
        effort.scale
    );
    prepare(&cluster, &effort);
    println!("\n{:34} {:>11} {:>11}   speed ratio (min … max)   cpu ratio", "", "plain", "encrypted");

    let mut results = vec![
        measure(&cluster, &effort, "pgbench read-write", "tps", |c, s| pgbench(c, s, &effort, &[])),
        measure(&cluster, &effort, "pgbench select-only, in memory", "tps", |c, s| {
            pgbench(c, s, &effort, &["-S"])
        }),
        measure(&cluster, &effort, "COPY load", "rows/s", |c, s| copy(c, s, effort.rows)),
        measure(&cluster, &effort, "CREATE INDEX", "rows/s", |c, s| create_index(c, s, effort.rows)),
        measure(&cluster, &effort, "VACUUM FULL", "rows/s", |c, s| vacuum_full(c, s, effort.rows)),
    ];
    // Far less than the tables: every page is read from the kernel's cache and decrypted.
    cluster.configure("shared_buffers", "32MB");
    cluster.restart();
    results.push(measure(&cluster, &effort, "pgbench select-only, 32 MB buffers", "tps", |c, s| {
        pgbench(c, s, &effort, &["-S"])
    }));
    results.push(measure(&cluster, &effort, "sequential scan, 32 MB buffers", "rows/s", |c, s| {
        scan(c, s, effort.rows)
    }));

    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/bench");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("postgres.json");
    let report = json!({
        "server": cluster.text("SELECT version()"), "quick": quick, "pairs": effort.pairs,
        "cipher": cluster.text("SELECT cipher FROM tde.tablespaces WHERE name = 'secure'"), "results": results,
    });
    fs::write(&file, serde_json::to_string_pretty(&report).unwrap()).unwrap();
    println!("\nwritten to {}", file.display());
}

fn prepare(cluster: &Cluster, effort: &Effort) {
    cluster.plain_tablespace("clear");
    cluster.encrypted_tablespace("secure");
    let csv = cluster.ts_dir().join("rows.csv");
    cluster.run(&format!(
        "COPY (SELECT i, md5(i::text), i % 1000, now(), repeat(md5((i * 7)::text), 3) FROM generate_series(1, {}) i) TO '{}'",
        effort.rows,
        csv.display()
    ));
    for space in SPACES {
        cluster.run(&format!("CREATE DATABASE {space}"));
        let tables = [format!("--tablespace={space}"), format!("--index-tablespace={space}")];
        let scale = effort.scale.to_string();
        cluster.tool_output("pgbench", &["-i", "-q", "-s", &scale, &tables[0], &tables[1], space]);
        copy(cluster, space, effort.rows);
    }
}

/// Runs alternating pairs and prints their line.
fn measure(
    cluster: &Cluster,
    effort: &Effort,
    name: &str,
    unit: &str,
    run: impl Fn(&Cluster, &str) -> Sample,
) -> Value {
    let mut samples: [Vec<Sample>; 2] = [Vec::new(), Vec::new()];
    for space in SPACES {
        run(cluster, space);
    }
    for pair in 0..effort.pairs {
        // The second of a pair finds warmer caches and more WAL behind it: the sides take turns.
        for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            cluster.run("CHECKPOINT");
            samples[side].push(run(cluster, SPACES[side]));
        }
    }
    let ratios = |of: fn(&Sample) -> f64| -> Vec<f64> {
        let mut all: Vec<f64> = samples[1].iter().zip(&samples[0]).map(|(e, p)| of(e) / of(p)).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (speed, cpu) = (ratios(|s| s.speed), ratios(|s| s.cpu));
    let [plain, encrypted] =
        [0, 1].map(|side: usize| median(samples[side].iter().map(|s| s.speed).collect()));
    println!(
        "{name:34} {plain:>11.0} {encrypted:>11.0}   {:.3} ({:.3} … {:.3})      {:.3}   {unit}",
        median(speed.clone()),
        speed[0],
        speed[speed.len() - 1],
        median(cpu.clone()),
    );
    json!({
        "workload": name, "unit": unit, "plain": plain, "encrypted": encrypted,
        "speed_ratio": median(speed.clone()), "speed_ratios": speed, "cpu_ratio": median(cpu.clone()), "cpu_ratios": cpu,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// `work` returns how many units it did; the backends it used must have ended.
fn sample(cluster: &Cluster, work: impl FnOnce() -> f64) -> Sample {
    let postmaster = cluster.postmaster();
    let (cpu, begin) = (postmaster.reaped_cpu(), Instant::now());
    let units = work();
    let elapsed = begin.elapsed().as_secs_f64();
    // The postmaster reaps a backend shortly after its client has gone.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let cpu = (postmaster.reaped_cpu() - cpu).as_secs_f64().max(0.01);
    Sample { speed: units / elapsed, cpu: cpu / units }
}

fn pgbench(cluster: &Cluster, space: &str, effort: &Effort, options: &[&str]) -> Sample {
    let seconds = effort.seconds.to_string();
    let fixed = ["-n", "-c", "2", "-j", "1", "-M", "prepared", "-T", &seconds];
    sample(cluster, || {
        let report = cluster.tool_output("pgbench", &[&fixed, options, &[space]].concat());
        let line = report.lines().find(|l| l.contains("transactions actually processed")).unwrap();
        line.rsplit(' ').next().unwrap().split('/').next().unwrap().parse().unwrap()
    })
}

fn copy(cluster: &Cluster, space: &str, rows: u32) -> Sample {
    let csv = cluster.ts_dir().join("rows.csv");
    cluster.connect(space).run("DROP TABLE IF EXISTS loaded");
    sample(cluster, || {
        cluster.connect(space).run(&format!(
            "CREATE TABLE loaded (id int, secret text, k int, at timestamptz, filler text) TABLESPACE {space};
             COPY loaded FROM '{}'; CHECKPOINT",
            csv.display()
        ));
        f64::from(rows)
    })
}

fn create_index(cluster: &Cluster, space: &str, rows: u32) -> Sample {
    cluster.connect(space).run("DROP INDEX IF EXISTS by_secret");
    sample(cluster, || {
        let statement = format!("CREATE INDEX by_secret ON loaded (secret) TABLESPACE {space}; CHECKPOINT");
        cluster.connect(space).run(&statement);
        f64::from(rows)
    })
}

fn vacuum_full(cluster: &Cluster, space: &str, rows: u32) -> Sample {
    sample(cluster, || {
        let mut sql = cluster.connect(space);
        sql.run("VACUUM FULL loaded");
        sql.run("CHECKPOINT");
        f64::from(rows)
    })
}

fn scan(cluster: &Cluster, space: &str, rows: u32) -> Sample {
    const TIMES: u32 = 5;
    sample(cluster, || {
        let mut sql = cluster.connect(space);
        for _ in 0..TIMES {
            assert_eq!(sql.int("SELECT count(*) FROM loaded"), i64::from(rows));
        }
        f64::from(rows * TIMES)
    })
}
