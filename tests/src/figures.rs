//! Figures of the benchmarks: what was compared with what, in one form for the screen, for JSON and for the report.
//!
//! A benchmark never prints a time by itself: every figure is a comparison of two subjects that took turns in one run,
//! and its ratio is the median of the pairs' ratios with the smallest and the largest.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Median, smallest and largest of several values.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Self { median, min: sorted[0], max: sorted[sorted.len() - 1] }
    }
}

/// What the two columns of a table hold.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantity {
    /// Work in a unit of time: a ratio above 1 is good.
    Speed,
    /// Time for a piece of work: a ratio below 1 is good.
    Time,
}

/// One line: a workload on both subjects.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Figure {
    /// The workload.
    pub name: String,
    /// Unit of both columns.
    pub unit: String,
    /// Median of what it is compared with.
    pub baseline: f64,
    /// Median of what is measured.
    pub subject: f64,
    /// Subject over baseline, pair by pair.
    pub ratio: Spread,
    /// The same for the processor time of a piece of work, where it was taken: the steadier figure on a busy machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<Spread>,
    /// The ratio that the project aims at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aim: Option<f64>,
}

impl Figure {
    /// From the pairs' values, in the order in which they were taken.
    pub fn paired(name: &str, unit: &str, baseline: &[f64], subject: &[f64]) -> Self {
        assert_eq!(baseline.len(), subject.len(), "{name}: every run has its partner");
        Self {
            name: name.to_owned(),
            unit: unit.to_owned(),
            baseline: Spread::of(baseline.iter().copied()).median,
            subject: Spread::of(subject.iter().copied()).median,
            ratio: ratios(baseline, subject),
            cpu_ratio: None,
            aim: None,
        }
    }

    /// With the processor time of the same runs, for one piece of work.
    #[must_use]
    pub fn with_cpu(mut self, baseline: &[f64], subject: &[f64]) -> Self {
        self.cpu_ratio = Some(ratios(baseline, subject));
        self
    }

    /// With the ratio that the project aims at.
    #[must_use]
    pub fn with_aim(mut self, aim: impl Into<Option<f64>>) -> Self {
        self.aim = aim.into();
        self
    }

    /// Whether the aim is reached; nothing without an aim.
    pub fn reached(&self, quantity: Quantity) -> Option<bool> {
        self.aim.map(|aim| match quantity {
            Quantity::Speed => self.ratio.median >= aim,
            Quantity::Time => self.ratio.median <= aim,
        })
    }
}

fn ratios(baseline: &[f64], subject: &[f64]) -> Spread {
    // A clock that has not ticked must not give an infinite ratio.
    Spread::of(subject.iter().zip(baseline).map(|(s, b)| s / b.max(1e-12)))
}

/// Workloads on the same two subjects.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Table {
    /// What is compared.
    pub title: String,
    /// Heading of the first column.
    pub baseline: String,
    /// Heading of the second column.
    pub subject: String,
    /// What the columns hold.
    pub quantity: Quantity,
    /// The lines.
    pub figures: Vec<Figure>,
}

impl Table {
    /// An empty table; prints its heading, because a line takes minutes to come.
    pub fn begin(title: &str, baseline: &str, subject: &str, quantity: Quantity) -> Self {
        let kind = match quantity {
            Quantity::Speed => "speed ratio",
            Quantity::Time => "time ratio",
        };
        println!("\n{title}");
        println!("{:44} {baseline:>12} {subject:>12}   {kind:>11} (min … max)   cpu ratio", "");
        Self {
            title: title.to_owned(),
            baseline: baseline.to_owned(),
            subject: subject.to_owned(),
            quantity,
            figures: Vec::new(),
        }
    }

    /// Adds a line and prints it.
    pub fn add(&mut self, figure: Figure) {
        let Spread { median, min, max } = figure.ratio;
        let cpu = figure.cpu_ratio.map_or(String::new(), |cpu| format!("{:.3}", cpu.median));
        println!(
            "{:44} {:>12} {:>12}   {median:>11.3} ({min:.3} … {max:.3})   {cpu:>9}   {}",
            figure.name,
            rounded(figure.baseline),
            rounded(figure.subject),
            figure.unit
        );
        self.figures.push(figure);
    }
}

/// Four digits or whole numbers.
pub fn rounded(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 10.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// What one benchmark program found out.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Suite {
    /// Name of its JSON file.
    pub name: String,
    /// Heading in the report.
    pub title: String,
    /// Short runs, for a first impression only.
    pub quick: bool,
    /// What was measured and how, a sentence each.
    pub conditions: Vec<String>,
    /// The tables.
    pub tables: Vec<Table>,
}

impl Suite {
    /// Writes `target/bench/NAME.json`.
    pub fn write(&self) {
        let file = folder().join(&self.name).with_extension("json");
        fs::write(&file, serde_json::to_string_pretty(self).unwrap() + "\n").unwrap();
        println!("\nwritten to {}", file.display());
    }
}

/// Where benchmarks leave their results.
pub fn folder() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/bench");
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Whether `QUICK=1` asked for a first impression.
pub fn quick() -> bool {
    std::env::var_os("QUICK").is_some_and(|v| !v.is_empty() && v != "0")
}

/// Runs both subjects in turn, `pairs` times: the second of a pair finds warmer caches, so the sides change places.
pub fn in_turns<T>(pairs: usize, mut run: impl FnMut(usize) -> T) -> [Vec<T>; 2] {
    let mut samples = [Vec::new(), Vec::new()];
    for pair in 0..pairs {
        for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            samples[side].push(run(side));
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_pairs_not_of_the_sides() {
        let figure = Figure::paired("x", "ms", &[1.0, 10.0, 4.0], &[2.0, 10.0, 2.0]).with_aim(1.0);
        assert_eq!(figure.ratio, Spread { median: 1.0, min: 0.5, max: 2.0 });
        assert_eq!((figure.baseline, figure.subject), (4.0, 2.0));
        assert_eq!(figure.reached(Quantity::Time), Some(true));
        assert_eq!(Spread::of([1.0, 2.0]).median, 1.5);
    }

    #[test]
    fn the_sides_change_places() {
        let mut order = Vec::new();
        let samples = in_turns(2, |side| order.push(side));
        assert_eq!(order, [0, 1, 1, 0]);
        assert_eq!(samples.map(|s| s.len()), [2, 2]);
    }
}
