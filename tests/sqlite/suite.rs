//! SQLite's own tests with every file encrypted: those of Debian's source package.
//!
//! The short form takes a choice of files; `make test-sqlite-suite` runs everything. See `sqlite-suite.sh`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tde_tests::sqlite::Sqlite;
use tde_tests::{plain_mode, soak};

/// Where programs and results of plain SQLite stay between runs.
fn work() -> PathBuf {
    let dir = std::env::var_os("TDE_SQLITE_SUITE_DIR").map_or_else(
        || format!("/var/tmp/tde-sqlite-suite-{}", rustix::process::getuid().as_raw()).into(),
        PathBuf::from,
    );
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Runs the script to an extent; `None` when the source package cannot be had, which is said aloud.
fn script(extent: &str) -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sqlite-suite.sh");
    let output = Command::new(&script)
        .arg(work())
        .arg(Sqlite::extension().with_extension("a"))
        .arg(Sqlite::tde_program())
        .arg(extent)
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(3) {
        eprintln!("NOT RUN: {text}");
        return None;
    }
    assert!(output.status.success(), "{text}");
    println!("{text}");
    Some(text)
}

#[test]
fn sqlites_own_suite_passes_on_encrypted_files() {
    if plain_mode() {
        return;
    }
    if let Some(text) = script(if soak() { "full" } else { "short" }) {
        let summary = text.lines().last().unwrap();
        let cases: u32 = summary.split(' ').nth(3).unwrap().parse().unwrap();
        assert!(cases > 10_000, "{summary}");
    }
}

#[test]
fn sqlites_concurrency_tests_pass_on_encrypted_files() {
    if plain_mode() {
        return;
    }
    script(if soak() { "concurrency-full" } else { "concurrency" });
}
