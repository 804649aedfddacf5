//! `tde sqlite verify`: every page of the file, without SQLite.

use std::collections::BTreeMap;

use serde::Serialize;

use super::info::pages_under;
use super::progress::Progress;
use super::sidecar::Sidecars;
use super::{Target, encrypted};
use crate::output::Output;
use crate::{CliResult, Outcome};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

#[derive(Serialize)]
struct Report {
    file: String,
    /// Pages that open, by key version.
    good_pages: BTreeMap<u32, u64>,
    bad_pages: u64,
    /// The first hundred.
    problems: Vec<Problem>,
    /// Changes in there are not looked at.
    wal_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Problem {
    page: Option<u32>,
    what: String,
}

pub(super) fn run(args: &Args, output: &Output) -> CliResult {
    let path = args.target.path()?;
    let file = encrypted(&path)?;
    let keys = args.target.login()?.keys(&path, &file)?;
    let progress = Progress::new(output)?;
    let bar = progress.bar("verifying", file.pages()?.into());
    let verdict = file.verify(&keys, |_| {
        bar.inc(1);
        progress.flow()
    })?;
    bar.finish_and_clear();
    let mut problems: Vec<_> = verdict
        .bad
        .iter()
        .map(|(page, fault)| Problem { page: Some(*page), what: fault.to_string() })
        .collect();
    if verdict.rest > 0 {
        let what = format!("the file ends with {} bytes that are no whole page", verdict.rest);
        problems.push(Problem { page: None, what });
    }
    let report = Report {
        file: path.display().to_string(),
        good_pages: verdict.good.clone(),
        bad_pages: verdict.bad_count,
        problems,
        wal_bytes: Sidecars::of(&path)?.wal.filter(|len| *len > 0),
    };
    output.show(&report, Report::human)?;
    Ok(if verdict.is_good() { Outcome::Good } else { Outcome::Problem })
}

impl Report {
    fn human(&self) -> String {
        let good: Vec<_> =
            self.good_pages.iter().map(|(version, pages)| pages_under(*version, *pages)).collect();
        let good = if good.is_empty() { "no page".to_owned() } else { good.join(", ") };
        let mut text = format!("{}: authentic: {good}.\n", self.file);
        if self.wal_bytes.is_some() {
            text += "There is a WAL, which was not looked at: SQLite checks its pages when it reads them.\n";
        }
        if self.problems.is_empty() {
            return text + "No problems.\n";
        }
        text += &format!("{} bad pages:\n", self.bad_pages);
        for problem in &self.problems {
            text += &match problem.page {
                Some(page) => format!("  page {page}: {}\n", problem.what),
                None => format!("  {}\n", problem.what),
            };
        }
        if self.bad_pages > self.problems.len() as u64 {
            text += &format!("  and {} more\n", self.bad_pages - self.problems.len() as u64);
        }
        text
    }
}
