//! `tde rotate`: a maintenance run over many PostgreSQL clusters and SQLite files.
//!
//! ```text
//! config   the file: targets, policies, window
//! policy   what is due                                    (pure)
//! window   when something may be started                  (pure)
//! gate     so many at a time, inside the window, until somebody stops the run
//! postgres, sqlite   look at a target, do what is due, say what came of it
//! report   table, JSON, exit code
//! ```
//! A run keeps no state of its own: how far a rotation is stands in the servers' keyrings and in the pages of SQLite files, so that
//! the next run goes on after one that was killed.

mod config;
mod gate;
mod policy;
mod postgres;
mod report;
mod show;
mod sqlite;
mod window;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;

use self::config::{Config, ConfigError};
use self::gate::{Gate, Phase};
use self::report::{Action, BUSY, Entry, FAILED, Report, Result as End, UNFINISHED, WindowReport};
use self::show::Show;
use crate::output::{Output, with_causes};
use crate::{CliResult, Outcome};

#[derive(Args, Debug)]
#[command(
    after_help = "Exit codes: 0 all that was due is done, or nothing was due; 1 something failed, the rest was done; \
    2 the configuration or command line cannot be used; 3 something is due that the window, or somebody's pause, kept from being \
    finished; 4 another run with this configuration is under way; 130 and 143 stopped by Ctrl-C or SIGTERM.\n\
    docs/maintenance.md describes the configuration."
)]
pub(crate) struct RotateArgs {
    /// What to maintain, and how
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Say what would be done and why; change nothing
    #[arg(long)]
    dry_run: bool,
}

/// What all parts of a run share.
struct Run {
    gate: Gate,
    show: Show,
    dry_run: bool,
}

impl Run {
    /// Waits for a turn to do something that is due.
    ///
    /// # Errors
    /// It is not done now; what the report says of it.
    async fn turn(
        &self,
        recorder: &Recorder,
        object: &str,
        action: Action,
        reason: &str,
    ) -> Result<OwnedSemaphorePermit, Entry> {
        if self.dry_run {
            return Err(recorder.entry(object, action, End::Planned, reason.to_owned()));
        }
        self.gate.enter().await.map_err(|phase| {
            // What is under way goes on without this program.
            let end = if action == Action::FinishRotation { End::Running } else { End::NotStarted };
            let why = match phase {
                Phase::Stopped(_) => "the run was stopped",
                _ => "the window is closed",
            };
            recorder.entry(object, action, end, format!("{reason}; {why}"))
        })
    }
}

/// Writes entries of one target.
struct Recorder {
    target: String,
    kind: &'static str,
}

impl Recorder {
    fn new(target: &str, kind: &'static str) -> Self {
        Self { target: target.to_owned(), kind }
    }

    fn entry(&self, object: &str, action: Action, result: End, detail: String) -> Entry {
        let (target, kind, object) = (self.target.clone(), self.kind, object.to_owned());
        Entry { target, kind, object, action, result, detail, seconds: 0.0 }
    }

    fn failed(&self, object: &str, action: Action, error: &(dyn Error + 'static)) -> Entry {
        self.entry(object, action, End::Failed, with_causes(error))
    }
}

pub(crate) fn run(args: &RotateArgs, output: &Output) -> CliResult {
    let config = match Config::read(&args.config) {
        Err(error @ ConfigError::Busy { .. }) => {
            output.error(&error);
            return Ok(Outcome::Code(BUSY));
        }
        read => read?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report = runtime.block_on(maintain(config, args))?;
    output.show(&report, Report::human)?;
    Ok(match report.exit_code {
        0 => Outcome::Good,
        code => Outcome::Code(code),
    })
}

async fn maintain(config: Config, args: &RotateArgs) -> std::io::Result<Report> {
    let started = Timestamp::now();
    let window = config.window.as_ref().map(|window| {
        let end = window.end_if_open(started);
        WindowReport {
            open: end.is_some(),
            ends: end.map(|end| end.to_string()),
            next_opening: window.next_opening(started).map(|opening| opening.to_string()),
        }
    });
    let gate = Gate::new(config.at_most, config.window.as_ref())?;
    let run = Arc::new(Run { gate, show: Show::new(), dry_run: args.dry_run });
    let mut tasks = Vec::new();
    for target in &config.postgresql {
        let (target, run) = (Arc::new(target.clone()), Arc::clone(&run));
        tasks.push((target.name.clone(), "postgresql", tokio::spawn(postgres::run(target, run))));
    }
    for (index, target) in config.sqlite.iter().enumerate() {
        let (target, run) = (Arc::new(target.clone()), Arc::clone(&run));
        tasks.push((target.name.clone(), "sqlite", tokio::spawn(sqlite::run(target, run, index))));
    }
    let mut entries = Vec::new();
    for (name, kind, task) in tasks {
        match task.await {
            Ok(of_target) => entries.extend(of_target),
            // A panic: the other targets are not to suffer.
            Err(error) => entries.push(Recorder::new(&name, kind).failed("target", Action::Look, &error)),
        }
    }
    let exit_code = match run.gate.phase() {
        Phase::Stopped(code) => code,
        _ => report::exit_code(&entries),
    };
    Ok(Report {
        config: args.config.display().to_string(),
        dry_run: args.dry_run,
        started: started.to_string(),
        ended: Timestamp::now().to_string(),
        window,
        entries,
        exit_code,
    })
}

// The codes of this module's help text.
const _: () = assert!(FAILED == 1 && UNFINISHED == 3 && BUSY == 4);
