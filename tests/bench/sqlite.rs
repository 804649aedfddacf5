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

use serde_json::Value;
use tde_tests::command_output;
use tde_tests::figures::{Figure, Quantity, Suite, Table, folder, in_turns, quick};
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

/// Workload, what it is, and the time ratio that the project aims at.
const WORK: [(&str, &str, Option<f64>); 7] = [
    ("insert", "one transaction, checkpoint", Some(1.15)),
    ("transactions", "one row each", None),
    ("index", "CREATE INDEX", None),
    ("point reads", "cache misses", Some(1.12)),
    ("scan", "five of them", Some(1.25)),
    ("open", "pooled: keys are in the process", None),
    ("first open", "of a process, database made", None),
];

type Times = BTreeMap<String, [f64; 2]>;

struct Bench {
    sqlite: Sqlite,
    dir: PathBuf,
    pairs: usize,
    rows: u32,
}

fn main() {
    let target = folder();
    let memory = Path::new("/dev/shm");
    let dir =
        if memory.is_dir() { memory } else { &target }.join(format!("tde-bench-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    let (pairs, rows) = if quick() { (3, 100_000) } else { (7, 300_000) };
    let bench = Bench { sqlite: Sqlite::new(), dir, pairs, rows };

    let mut tables = Vec::new();
    for product in &PRODUCTS {
        let Some(packages) = install(&target, product) else { continue };
        for (variant, what) in product.variants {
            let table = Table::begin(&format!("{}: {what}", product.name), "plain", variant, Quantity::Time);
            tables.push(bench.compare(table, product.driver, variant, &packages));
        }
    }
    if let Some(speedtest) = speedtest1() {
        tables.push(bench.speedtest1(&speedtest, if quick() { 15 } else { 50 }));
    }
    fs::remove_dir_all(&bench.dir).unwrap();
    Suite {
        name: "sqlite".to_owned(),
        title: "SQLite: encrypted against plain in the same driver, and the same for others".to_owned(),
        quick: quick(),
        conditions: vec![
            format!("{rows} rows, 4 KiB pages, WAL, synchronous=NORMAL, 2 MB cache, on a memory file system"),
            format!("{pairs} pairs each"),
        ],
        tables,
    }
    .write();
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

    fn compare(&self, mut table: Table, driver: &str, variant: &str, packages: &Path) -> Table {
        let samples = in_turns(self.pairs, |side| self.run(driver, ["plain", variant][side], packages));
        for (name, what, aim) in WORK {
            // The others have no aim.
            let aim = aim.filter(|_| variant == "tde");
            let of = |side: usize| samples[side].iter().map(|t| t[name]).collect::<Vec<_>>();
            table.add(figure(&format!("{name} ({what})"), [&of(0), &of(1)]).with_aim(aim));
        }
        table
    }

    fn speedtest1(&self, program: &Path, size: u32) -> Table {
        let title = format!("speedtest1 --size {size}, stock SQLite of the distribution's source");
        let mut table = Table::begin(&title, "plain", "tde", Quantity::Time);
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
        let samples = in_turns(self.pairs, |side| run(side == 1));
        table.add(figure("TOTAL", [&samples[0], &samples[1]]));
        table
    }
}

/// From pairs of seconds on the clock and of the processor.
fn figure(name: &str, [plain, encrypted]: [&[[f64; 2]]; 2]) -> Figure {
    let of = |side: &[[f64; 2]], which: usize| side.iter().map(|t| t[which] * 1000.0).collect::<Vec<_>>();
    Figure::paired(name, "ms", &of(plain, 0), &of(encrypted, 0)).with_cpu(&of(plain, 1), &of(encrypted, 1))
}
