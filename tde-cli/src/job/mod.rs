//! `tde job`: the jobs of a PostgreSQL server, as people see and steer them.

mod view;
mod watch;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

pub(crate) use self::view::{Job, KEEP_UP, Kind, PHASE_PAUSED};
use crate::output::Output;
use crate::server::{ConnectArgs, Server, ServerError, Session};
use crate::{CliResult, Outcome};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Subcommand)]
#[command(
    after_help = "Exit codes: 0 all is well; 1 a job that was watched did not end as it was begun, or there is no such job; \
    2 it could not be done; 130 watching was stopped with Ctrl-C (the job goes on).\n\
    Environment: PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD, PGPASSFILE, PGOPTIONS, PGCONNECT_TIMEOUT."
)]
pub(crate) enum Command {
    /// Show jobs that rewrite pages: under way, and those that ended lately
    List(ListArgs),
    /// Show how far jobs are until they end; Ctrl-C leaves them running
    Watch(WatchArgs),
    /// Make a job wait, also after a restart of the server
    Pause(OneArgs),
    /// Let a paused job go on
    Resume(OneArgs),
    /// Turn a job back: decrypt what was being encrypted, encrypt again what was being decrypted
    Cancel(OneArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    server: ConnectArgs,
}

#[derive(Args, Debug)]
pub(crate) struct WatchArgs {
    /// Numbers of jobs, as `tde job list` shows them [default: all that are under way]
    #[arg(value_name = "JOB")]
    jobs: Vec<i64>,
    /// Seconds between two looks [default: 1 on a terminal, otherwise 10]
    #[arg(long, value_name = "SECONDS")]
    interval: Option<f64>,
    #[command(flatten)]
    server: ConnectArgs,
}

#[derive(Args, Debug)]
pub(crate) struct OneArgs {
    /// The job's number, as `tde job list` shows it
    #[arg(value_name = "JOB")]
    job: i64,
    #[command(flatten)]
    server: ConnectArgs,
}

/// The command line asks for what there is not.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error("--interval must be at least 0.1")]
    Interval,
}

pub(crate) fn run(command: Command, output: &Output) -> CliResult {
    // One thread is enough for one connection.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::List(args) => list(&args, output).await,
            Command::Watch(args) => {
                let interval = match args.interval {
                    Some(seconds) if seconds.is_finite() && (0.1..=86_400.0).contains(&seconds) => {
                        Some(Duration::from_secs_f64(seconds))
                    }
                    Some(_) => return Err(JobError::Interval.into()),
                    None => None,
                };
                watch::run(&Server::of(&args.server)?, &args.jobs, interval, output).await
            }
            Command::Pause(args) => steer(&args, Steer::Pause, output).await,
            Command::Resume(args) => steer(&args, Steer::Resume, output).await,
            Command::Cancel(args) => steer(&args, Steer::Cancel, output).await,
        }
    })
}

async fn list(args: &ListArgs, output: &Output) -> CliResult {
    let session = Session::open(&Server::of(&args.server)?).await?;
    let jobs = Job::all(&session).await?;
    output.show(&jobs, |jobs| view::table_of(jobs))?;
    Ok(Outcome::Good)
}

/// What to do with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Steer {
    Pause,
    Resume,
    Cancel,
}

impl Steer {
    /// Does it.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub(crate) async fn apply(self, session: &Session, job: i64) -> std::result::Result<(), ServerError> {
        let sql = match self {
            Self::Pause => "SELECT tde.pause_job($1)::text",
            Self::Resume => "SELECT tde.resume_job($1)::text",
            Self::Cancel => "SELECT tde.cancel_job($1)::text",
        };
        session.rows(sql, &[&job]).await.map(drop)
    }
}

#[derive(Serialize)]
struct Steered {
    job: i64,
    action: Steer,
}

async fn steer(args: &OneArgs, action: Steer, output: &Output) -> CliResult {
    let session = Session::open(&Server::of(&args.server)?).await?;
    let job = args.job;
    // The server's own error says what is wrong with a number, too; this one is told from the others by its exit code.
    let known = Job::all(&session).await?.into_iter().any(|known| known.job == job && !known.is_done());
    if !known {
        output
            .problem(&format!("{}: there is no job {job} under way; see `tde job list`", session.name()))?;
        return Ok(Outcome::Problem);
    }
    action.apply(&session, job).await?;
    output.show(&Steered { job, action }, |_| match action {
        Steer::Pause => {
            format!("Job {job} waits at its next mark until `tde job resume {job}`, also after a restart.")
        }
        Steer::Resume => format!("Job {job} goes on."),
        Steer::Cancel => format!("Job {job} goes back; `tde job watch {job}` shows how far it is."),
    })?;
    Ok(Outcome::Good)
}
