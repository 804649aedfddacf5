//! PostgreSQL's own regression suite gives the same results in an encrypted tablespace as in a plain one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tde_tests::{Cluster, PgRoot, Scratch, command_output, files, plain_mode};

/// The tests of the suite, from the source package of the installed server, or where `TDE_PG_SOURCE` says that they lie unpacked.
fn source(scratch: &Path) -> PathBuf {
    if let Some(unpacked) = std::env::var_os("TDE_PG_SOURCE").filter(|dir| !dir.is_empty()) {
        return Path::new(&unpacked).join("src/test");
    }
    let root = scratch.join("source");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("regress-source.sh");
    command_output(Command::new(script).arg(&root).arg(PgRoot::get().major().to_string()));
    root.join("src/test")
}

/// One of PostgreSQL's suites.
struct Suite<'a> {
    /// The folder below `src/test`, and the packaged program that runs it.
    folder: &'a str,
    program: &'a str,
    schedule: &'a str,
    /// How many tests there are at least.
    tests: usize,
}

const REGRESS: Suite =
    Suite { folder: "regress", program: "regress/pg_regress", schedule: "parallel_schedule", tests: 190 };
const ISOLATION: Suite = Suite {
    folder: "isolation",
    program: "isolation/pg_isolation_regress",
    schedule: "isolation_schedule",
    tests: 100,
};

/// C functions that the suite's SQL calls.
fn libraries(source: &Path, scratch: &Path) -> PathBuf {
    let dir = scratch.join("lib");
    fs::create_dir(&dir).unwrap();
    let ask = |what: &str| PgRoot::get().installed(what);
    command_output(
        Command::new("gcc")
            .args(["-O1", "-fPIC", "-shared", "-w"])
            .arg(format!("-I{}", ask("--includedir-server").display()))
            .arg(source.join("regress/regress.c"))
            .arg("-o")
            .arg(dir.join("regress.so")),
    );
    for module in ["autoinc.so", "refint.so"] {
        fs::copy(ask("--pkglibdir").join(module), dir.join(module)).unwrap();
    }
    dir
}

/// What each test printed, and how many of them pg_regress called failed.
struct Results {
    printed: BTreeMap<String, String>,
    summary: String,
    /// Files in the tablespace when all was done.
    files: usize,
}

fn run(suite: &Suite, source: &Path, libraries: &Path, encrypted: bool) -> Results {
    let tests = source.join(suite.folder);
    // Both clusters look alike from SQL but for pg_tde itself.
    let cluster = Cluster::builder()
        .conf("max_prepared_transactions", "2")
        .conf("shared_buffers", "32MB")
        .conf("bytea_output", "hex")
        .conf("max_wal_size", "2GB")
        .conf("checkpoint_timeout", "30s")
        .conf("autovacuum_naptime", "10s")
        .conf("timezone", "PST8PDT")
        .conf("datestyle", "Postgres, MDY")
        .start();
    let dir = if encrypted { cluster.encrypted_tablespace("area") } else { cluster.plain_tablespace("area") };
    cluster.run("CREATE DATABASE regression TEMPLATE template0 TABLESPACE area STRATEGY wal_log");
    let out = cluster.ts_dir().join("out");
    fs::create_dir(&out).unwrap();
    cluster.root().own(&out);
    let program = PgRoot::get().installed("--pkglibdir").join("pgxs/src/test").join(suite.program);
    let mut command = cluster.tool(program.to_str().unwrap());
    command
        .arg(format!("--inputdir={}", tests.display()))
        .arg(format!("--outputdir={}", out.display()))
        .arg(format!("--dlpath={}", libraries.display()))
        .arg(format!("--bindir={}", cluster.root().bin("").display()))
        .arg(format!("--schedule={}", tests.join(suite.schedule).display()))
        .args(["--use-existing", "--dbname=regression", "--max-concurrent-tests=20"])
        .args(["--host", cluster.dir().join("sock").to_str().unwrap(), "--port=5432", "--user=postgres"]);
    // Its exit code counts differences from the expected output, which both runs may have.
    let output = command.output().unwrap();
    // From version 16 on a summary that is not good goes to standard error.
    let report =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    let summary = report.lines().rev().find(|l| l.contains("tests passed") || l.contains("tests failed"));
    let summary = summary.unwrap_or_else(|| panic!("pg_regress did not finish:\n{report}")).trim().to_owned();
    let printed = fs::read_dir(out.join("results"))
        .unwrap()
        .flatten()
        .filter(|e| e.path().extension().is_some_and(|x| x == "out"))
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                String::from_utf8_lossy(&fs::read(e.path()).unwrap()).into_owned(),
            )
        })
        .collect();
    if encrypted && !plain_mode() {
        cluster.run("CHECKPOINT");
        let damaged = cluster.rows("SELECT * FROM tde.verify_tablespace('area') WHERE damaged > 0");
        assert!(damaged.is_empty(), "{damaged:?}");
    }
    Results { printed, summary, files: files::files_below(&dir).len() }
}

/// The first lines in which two outputs differ.
fn difference(a: &str, b: &str) -> Option<String> {
    if a == b {
        return None;
    }
    let at = a
        .lines()
        .zip(b.lines())
        .position(|(a, b)| a != b)
        .unwrap_or(a.lines().count().min(b.lines().count()));
    let show = |text: &str| text.lines().skip(at.saturating_sub(3)).take(12).collect::<Vec<_>>().join("\n  ");
    Some(format!("line {}:\n plain:\n  {}\n encrypted:\n  {}", at + 1, show(a), show(b)))
}

fn compare(suite: &Suite) {
    let scratch = Scratch::new();
    let source = source(scratch.path());
    let libraries = libraries(&source, scratch.path());
    let plain = run(suite, &source, &libraries, false);
    let encrypted = run(suite, &source, &libraries, true);
    println!("plain: {}\nencrypted: {}", plain.summary, encrypted.summary);
    assert!(plain.printed.len() > suite.tests, "{} tests ran", plain.printed.len());
    assert!(encrypted.files > 300, "the tablespace holds {} files", encrypted.files);
    let names: Vec<_> = encrypted.printed.keys().collect();
    assert_eq!(names, plain.printed.keys().collect::<Vec<_>>());
    let differences: Vec<_> = plain
        .printed
        .iter()
        .filter_map(|(name, text)| difference(text, &encrypted.printed[name]).map(|d| format!("{name} {d}")))
        .collect();
    assert!(differences.is_empty(), "{} tests differ:\n{}", differences.len(), differences.join("\n\n"));
    assert_eq!(plain.summary, encrypted.summary);
}

#[test]
fn the_servers_own_regression_suite_cannot_tell_the_difference() {
    compare(&REGRESS);
}

#[test]
#[ignore = "minutes for schedules that wait on purpose: part of make soak"]
fn the_servers_own_isolation_suite_cannot_tell_the_difference() {
    compare(&ISOLATION);
}
