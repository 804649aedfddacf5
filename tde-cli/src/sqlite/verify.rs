//! `tde sqlite verify`: every page of the file and every live frame of its WAL, without SQLite.
//!
//! No connection is open in this process meanwhile: closing the files here would cost it SQLite's locks.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlite_vfs::offline::{FrameFault, PageFault, WalVerdict};

use super::info::pages_under;
use super::progress::Progress;
use super::sidecar::{Journal, Sidecars};
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
    wal: Option<Wal>,
    /// Of a transaction under way or cut short: pages in the file may be half of it.
    hot_journal: bool,
}

/// The WAL beside the database.
#[derive(Serialize)]
struct Wal {
    bytes: u64,
    /// Live frames that open, by key version.
    good_frames: BTreeMap<u32, u64>,
    bad_frames: u64,
    /// Authentic frames behind the live ones.
    stranded_frames: u64,
}

#[derive(Serialize)]
struct Problem {
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<u32>,
    /// In the WAL.
    #[serde(skip_serializing_if = "Option::is_none")]
    frame: Option<u32>,
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
    let wal = file.verify_wal(&keys, |_| progress.flow())?;
    let in_wal = |page: &u32| wal.as_ref().is_some_and(|wal| wal.is_good() && wal.pages.contains(page));
    let mut problems: Vec<_> =
        verdict.bad.iter().map(|(page, fault)| page_problem(*page, fault, in_wal(page))).collect();
    if verdict.rest > 0 {
        let what = format!("the file ends with {} bytes that are no whole page", verdict.rest);
        problems.push(Problem { page: None, frame: None, what });
    }
    if let Some(wal) = &wal {
        problems.extend(wal.fault.iter().map(|fault| Problem {
            page: None,
            frame: None,
            what: fault.to_string(),
        }));
        let of_frame = |(frame, fault): &(u32, FrameFault)| Problem {
            page: None,
            frame: Some(*frame),
            what: fault.to_string(),
        };
        problems.extend(wal.bad.iter().map(of_frame));
    }
    let good = verdict.is_good() && wal.as_ref().is_none_or(WalVerdict::is_good);
    let report = Report {
        file: path.display().to_string(),
        good_pages: verdict.good,
        bad_pages: verdict.bad_count,
        problems,
        wal: wal.map(|wal| Wal {
            bytes: wal.bytes,
            good_frames: wal.good,
            bad_frames: wal.bad_count,
            stranded_frames: wal.stranded,
        }),
        hot_journal: Sidecars::of(&path)?.journal == Some(Journal::Hot),
    };
    output.show(&report, Report::human)?;
    Ok(if good { Outcome::Good } else { Outcome::Problem })
}

impl Report {
    fn human(&self) -> String {
        let good: Vec<_> =
            self.good_pages.iter().map(|(version, pages)| pages_under(*version, *pages)).collect();
        let good = if good.is_empty() { "no page".to_owned() } else { good.join(", ") };
        let mut text = format!("{}: authentic: {good}.\n", self.file);
        if let Some(wal) = &self.wal {
            text += &wal.human();
        }
        if self.hot_journal {
            text += "There is a journal of a transaction that is under way or was cut short. If no program is using the database, the next \
                     one that opens it rolls back to whole pages.\n";
        }
        if self.problems.is_empty() {
            return text + "No problems.\n";
        }
        let bad = self.bad_pages + self.wal.as_ref().map_or(0, |wal| wal.bad_frames);
        text += &format!("{bad} bad pages:\n");
        for problem in &self.problems {
            text += &match (problem.page, problem.frame) {
                (Some(page), _) => format!("  page {page}: {}\n", problem.what),
                (None, Some(frame)) => format!("  WAL frame {frame}: {}\n", problem.what),
                (None, None) => format!("  {}\n", problem.what),
            };
        }
        if bad > self.problems.len() as u64 {
            text += &format!("  and {} more\n", bad - self.problems.len() as u64);
        }
        text
    }
}

impl Wal {
    fn human(&self) -> String {
        let frames: u64 = self.good_frames.values().sum();
        if frames == 0 && self.bad_frames == 0 {
            return "There is a WAL without committed frames.\n".to_owned();
        }
        let mut text = format!(
            "WAL: authentic: {frames} committed frames, which are not all in the database file yet.\n"
        );
        if self.stranded_frames > 0 {
            text += &format!(
                "Behind them are {} frames that do not continue them: of a transaction that was rolled back or cut short, unless \
                 frame {} was changed.\n",
                self.stranded_frames,
                frames + self.bad_frames + 1
            );
        }
        text
    }
}

fn page_problem(page: u32, fault: &PageFault, in_wal: bool) -> Problem {
    let mut what = fault.to_string();
    if in_wal {
        what += "; its newest image is whole in the WAL, from which the next checkpoint writes it again";
    }
    Problem { page: Some(page), frame: None, what }
}
