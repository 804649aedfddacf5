//! Encrypted SQLite against plain SQLite, side by side, with the same for SQLCipher and SQLite3MultipleCiphers.
//!
//! Each product is compared with plain databases in its own driver, because drivers differ more than ciphers do. Every
//! measurement is a pair of runs, plain and encrypted in turn; printed is the median of the pairs' time ratios: 1.10
//! means ten per cent more time than plain. Point reads, scans and inserts go through a cache (2 MB) that is far
//! smaller than the database. Databases are on a memory file system: what is measured is the processor's work.
//!
//! `speedtest1` is SQLite's own, from Debian's source package, built once and run plain and encrypted.
//!
//! `make bench` runs it on release builds; `QUICK=1` takes fewer and smaller runs. Results also go to
//! `target/bench/sqlite.json`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tde_tests::command_output;
use tde_tests::sqlite::Sqlite;

/// A product in a driver: the package, its variants, and what they are.
struct Product {
    name: &'static str,
    driver: &'static str,
    package: &'static str,
    variants: &'static [(&'static str, &'static str)],
}

const PRODUCTS: [Product; 3] = [
    Product {
        name: "stock SQLite (apsw)",
        driver: "apsw",
        package: "apsw==3.54.1.0",
        variants: &[("tde", "tde, AES-256-GCM-SIV, HSM-wrapped keys")],
    },
    Product {
        name: "SQLite3MultipleCiphers (apsw-sqlite3mc)",
        driver: "sqlite3mc",
        package: "apsw-sqlite3mc==3.54.0.0",
        variants: &[("chacha20", "ChaCha20-Poly1305, passphrase"), ("aegis", "AEGIS-256, passphrase")],
    },
    Product {
        name: "SQLCipher (sqlcipher3)",
        driver: "sqlcipher",
        package: "sqlcipher3==0.6.4",
        variants: &[("raw", "AES-256-CBC + HMAC-SHA-512, raw key")],
    },
];

const WORK: [(&str, &str); 7] = [
    ("insert", "one transaction, checkpoint"),
    ("transactions", "one row each"),
    ("index", "CREATE INDEX"),
    ("point reads", "cache misses"),
    ("scan", "five of them"),
    ("open", "pooled: keys are in the process"),
    ("first open", "of a process, database made"),
];

type Times = BTreeMap<String, [f64; 2]>;

struct Bench {
    sqlite: Sqlite,
    dir: PathBuf,
    pairs: usize,
    rows: u32,
}

fn main() {
    let quick = std::env::var("QUICK").is_ok_and(|v| !v.is_empty() && v != "0");
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/bench");
    fs::create_dir_all(&target).unwrap();
    let memory = Path::new("/dev/shm");
    let dir =
        if memory.is_dir() { memory } else { &target }.join(format!("tde-bench-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let (pairs, rows) = if quick { (3, 100_000) } else { (7, 300_000) };
    let bench = Bench { sqlite: Sqlite::new(), dir, pairs, rows };
    println!("SQLite: {pairs} pairs each, {rows} rows, 4 KiB pages, WAL, synchronous=NORMAL, 2 MB cache");

    let mut report = serde_json::Map::new();
    for product in &PRODUCTS {
        let Some(packages) = install(&target, product) else { continue };
        for (variant, what) in product.variants {
            println!("\n{}: {what}", product.name);
            println!("{:46} {:>10} {:>10}   time ratio (min … max)   cpu ratio", "", "plain ms", "encrypted");
            let results = bench.compare(product.driver, variant, &packages);
            report.insert(format!("{} {variant}", product.driver), results);
        }
    }
    if let Some(speedtest) = speedtest1() {
        report.insert("speedtest1".into(), bench.speedtest1(&speedtest, if quick { 15 } else { 50 }));
    }
    let file = target.join("sqlite.json");
    let all = json!({ "quick": quick, "pairs": pairs, "rows": rows, "results": report });
    fs::write(&file, serde_json::to_string_pretty(&all).unwrap()).unwrap();
    fs::remove_dir_all(&bench.dir).unwrap();
    println!("\nwritten to {}", file.display());
}

/// Each driver in a folder of its own: two of them have the same module name.
fn install(target: &Path, product: &Product) -> Option<PathBuf> {
    let folder = target.join("python").join(product.package);
    if !folder.exists() {
        let fresh = folder.with_extension("new");
        let _ = fs::remove_dir_all(&fresh);
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target"]);
        let output = pip.arg(&fresh).arg(product.package).output().unwrap();
        if !output.status.success() {
            println!(
                "\nNOT MEASURED: {}: {}",
                product.package,
                String::from_utf8_lossy(&output.stderr).trim()
            );
            return None;
        }
        fs::rename(fresh, &folder).unwrap();
    }
    Some(folder)
}

/// SQLite's benchmark from its source package, if that can be had.
fn speedtest1() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sqlite-suite.sh");
    let work = format!("/var/tmp/tde-sqlite-suite-{}", rustix::process::getuid().as_raw());
    let mut command = Command::new(script);
    command
        .arg(&work)
        .arg(Sqlite::extension().with_extension("a"))
        .arg(Sqlite::tde_program())
        .arg("speedtest1");
    let output = command.output().unwrap();
    if output.status.success() {
        return Some(Path::new(&work).join("build/speedtest1"));
    }
    println!("\nNOT MEASURED: speedtest1: {}", String::from_utf8_lossy(&output.stderr).trim());
    None
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

impl Bench {
    fn file(&self) -> PathBuf {
        for entry in fs::read_dir(&self.dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        self.dir.join("bench.db")
    }

    fn run(&self, driver: &str, variant: &str, packages: &Path) -> Times {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/sqlite_workload.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(driver).arg(variant).arg(self.file()).arg(self.rows.to_string());
        if variant == "tde" {
            command.arg(Sqlite::extension());
        }
        command.envs(self.sqlite.environment()).env("PYTHONPATH", packages).env("SQLITE_TMPDIR", &self.dir);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{driver} {variant}: {}", String::from_utf8_lossy(&output.stderr));
        let times: BTreeMap<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
        let pair = |v: &Value| Some([v.get(0)?.as_f64()?, v.get(1)?.as_f64()?]);
        times.iter().filter_map(|(name, v)| Some((name.clone(), pair(v)?))).collect()
    }

    fn compare(&self, driver: &str, variant: &str, packages: &Path) -> Value {
        let mut samples: [Vec<Times>; 2] = [Vec::new(), Vec::new()];
        for pair in 0..self.pairs {
            for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
                samples[side].push(self.run(driver, ["plain", variant][side], packages));
            }
        }
        let mut results = serde_json::Map::new();
        for (name, what) in WORK {
            let of = |side: usize, which: usize| samples[side].iter().map(move |t| t[name][which]);
            results.insert(name.into(), print_line(&format!("{name} ({what})"), &of));
        }
        Value::Object(results)
    }

    fn speedtest1(&self, program: &Path, size: u32) -> Value {
        println!("\nspeedtest1 --size {size}, stock SQLite of the distribution's source");
        let run = |encrypted: bool| {
            let file = self.file();
            let mut command = Command::new(program);
            command.args(["--size", &size.to_string(), "--journal", "wal"]).arg(file);
            command.envs(self.sqlite.environment()).env("SQLITE_TMPDIR", &self.dir);
            if encrypted {
                command.env("TDE_SUITE", "1");
            }
            let text = command_output(&mut command);
            let total = text.lines().find(|l| l.contains("TOTAL")).unwrap();
            let seconds: f64 =
                total.split_whitespace().last().unwrap().trim_end_matches('s').parse().unwrap();
            let head = fs::read(self.dir.join("bench.db")).unwrap();
            assert_eq!(head.starts_with(b"TDE"), encrypted);
            [seconds; 2]
        };
        let mut samples: [Vec<[f64; 2]>; 2] = [Vec::new(), Vec::new()];
        for pair in 0..self.pairs {
            for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
                samples[side].push(run(side == 1));
            }
        }
        print_line("TOTAL", &|side, which| samples[side].iter().map(move |t| t[which]))
    }
}

/// Prints the median times of both sides and the ratios of the pairs.
fn print_line<I: Iterator<Item = f64>>(name: &str, of: &dyn Fn(usize, usize) -> I) -> Value {
    let ratios = |which| {
        let mut all: Vec<f64> = of(1, which).zip(of(0, which)).map(|(e, p)| e / p.max(1e-9)).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let (time, cpu) = (ratios(0), ratios(1));
    let [plain, encrypted] = [0, 1].map(|side| median(of(side, 0).collect()) * 1000.0);
    println!(
        "{name:46} {plain:>10.3} {encrypted:>10.3}   {:.3} ({:.3} … {:.3})      {:.3}",
        median(time.clone()),
        time[0],
        time[time.len() - 1],
        median(cpu.clone()),
    );
    json!({
        "plain_ms": plain, "encrypted_ms": encrypted, "time_ratio": median(time.clone()), "time_ratios": time,
        "cpu_ratio": median(cpu.clone()), "cpu_ratios": cpu,
    })
}
