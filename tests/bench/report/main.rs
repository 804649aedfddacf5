//! Puts what the benchmarks wrote to `target/bench` into one dated report: Markdown, JSON and plots.
//!
//! A full run is written to `docs/benchmarks`, to be kept; a run with `QUICK=1` stays in `target/bench/report`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

mod machine;
mod plot;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use machine::Machine;
use serde::Serialize;
use tde_tests::figures::{Figure, Quantity, Spread, Suite, Table, folder, rounded};

/// In the order of the report.
const SUITES: [&str; 6] = ["kernels", "libraries", "postgres", "sqlite", "keys", "pkcs11"];

#[derive(Serialize)]
struct Report {
    date: String,
    machine: Machine,
    suites: Vec<Suite>,
}

fn main() {
    let suites: Vec<Suite> = SUITES.iter().filter_map(|name| read(name)).collect();
    assert!(!suites.is_empty(), "nothing measured in {}: run make bench", folder().display());
    let report = Report { date: jiff::Zoned::now().date().to_string(), machine: Machine::this(), suites };
    let (to, name) = place(&report);
    fs::create_dir_all(&to).unwrap();
    for suite in &report.suites {
        plot::draw(suite, &to.join(format!("{name}-{}.svg", suite.name)));
    }
    let json = serde_json::to_string_pretty(&report).unwrap() + "\n";
    fs::write(to.join(format!("{name}.json")), json).unwrap();
    let file = to.join(format!("{name}.md"));
    fs::write(&file, markdown(&report, &name)).unwrap();
    println!("report: {}", file.display());
}

fn read(name: &str) -> Option<Suite> {
    let file = folder().join(name).with_extension("json");
    let Ok(text) = fs::read_to_string(&file) else {
        println!("NOT IN THE REPORT: {name}: {} is missing", file.display());
        return None;
    };
    let suite = serde_json::from_str(&text);
    Some(suite.unwrap_or_else(|error| panic!("{}: {error}; run make bench", file.display())))
}

/// Folder and name of the report.
fn place(report: &Report) -> (PathBuf, String) {
    if report.suites.iter().any(|suite| suite.quick) {
        return (folder().join("report"), "quick".to_owned());
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/benchmarks");
    (docs, format!("{}-{}", report.date, report.machine.slug()))
}

fn markdown(report: &Report, name: &str) -> String {
    let mut text = format!("# Benchmarks of {}\n\n{}\n", report.date, report.machine);
    text += "\nEvery ratio is the median of paired runs, the two sides in turns, with the smallest and the largest. \
             *cpu* is the ratio of processor time for the same work, the steadier figure on a busy machine. An aim is \
             what the project wants to reach; one that is missed is marked.\n";
    for suite in &report.suites {
        write!(text, "\n## {}\n\n", suite.title).unwrap();
        for condition in &suite.conditions {
            writeln!(text, "* {condition}").unwrap();
        }
        write!(text, "\n![ratios]({name}-{}.svg)\n", suite.name).unwrap();
        for table in &suite.tables {
            text += &section(table);
        }
    }
    text
}

fn section(table: &Table) -> String {
    let better = match table.quantity {
        Quantity::Speed => "more is better",
        Quantity::Time => "less is better",
    };
    let mut text = format!(
        "\n### {}\n\n| {better} | {} | {} | unit | ratio (min … max) | cpu | aim |\n|---|--:|--:|---|--:|--:|--:|\n",
        table.title, table.baseline, table.subject
    );
    for figure in &table.figures {
        text += &line(figure, table.quantity);
    }
    text
}

fn line(figure: &Figure, quantity: Quantity) -> String {
    let Spread { median, min, max } = figure.ratio;
    let cpu = figure.cpu_ratio.map_or(String::new(), |cpu| format!("{:.2}", cpu.median));
    let aim = match (figure.aim, figure.reached(quantity)) {
        (Some(aim), Some(true)) => format!("{aim:.2}"),
        (Some(aim), _) => format!("{aim:.2} missed"),
        (None, _) => String::new(),
    };
    format!(
        "| {} | {} | {} | {} | **{median:.3}** ({min:.3} … {max:.3}) | {cpu} | {aim} |\n",
        figure.name,
        rounded(figure.baseline),
        rounded(figure.subject),
        figure.unit
    )
}
