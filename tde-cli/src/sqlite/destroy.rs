//! `tde sqlite destroy-key`: destroys an old data key of a database, after a waiting period, if nothing needs it.
//!
//! Whether anything needs it is looked at when the destruction is planned and again when it is done, then under SQLite's lock, with the
//! WAL emptied and hot journals rolled back: every page must open under another key. Nobody can see whether copies of the
//! file need the key (`cp` copies share it), so that whoever runs the command must say so.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keyring::{DekState, KeyVersion};
use rusqlite::Connection;
use serde::Serialize;
use sqlite_vfs::keys::FileKeys;
use sqlite_vfs::offline::DatabaseFile;

use super::convert::is_busy;
use super::progress::Progress;
use super::sidecar::Sidecars;
use super::{Result, Target, at, connect, encrypted};
use crate::output::{Output, time};
use crate::{CliResult, Outcome};

const DAY: u64 = 24 * 60 * 60;
/// How long to wait for another program's transaction, and how often.
const BUSY: Duration = Duration::from_secs(2);
const BUSY_TRIES: u32 = 4;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// The version to destroy; `tde sqlite info` lists them
    #[arg(long, value_name = "N")]
    key_version: u32,
    /// How many days the destruction can be taken back
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(..=36_500))]
    wait_days: u32,
    /// Take the planned destruction back
    #[arg(long, conflicts_with_all = ["confirm", "wait_days"])]
    cancel: bool,
    /// Destroy the key, whose waiting period is over: no copy and no backup of the file that must stay readable is under it
    #[arg(long, conflicts_with = "wait_days")]
    confirm: bool,
}

/// The key cannot be destroyed now.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{file} has no key version {version}; `tde sqlite info` lists them")]
    NoSuch { file: String, version: u32 },
    #[error(
        "key version {version} of {file} is the one that is written under; `tde sqlite rotate` makes a new one"
    )]
    Active { file: String, version: u32 },
    #[error("key version {version} of {file} was destroyed already, on {at}")]
    Destroyed { file: String, version: u32, at: String },
    #[error(
        "{pages} pages of {file} are under key version {version}; `tde sqlite rotate` rewrites them under the active one"
    )]
    Needed { file: String, version: u32, pages: u64 },
    #[error(
        "{bad} pages of {file} do not open, so that nobody knows what they need; see `tde sqlite verify`"
    )]
    Bad { file: String, bad: u64 },
    #[error(
        "{file} was locked by another program for {seconds} s, or a program reads from its WAL; try again later"
    )]
    Busy { file: String, seconds: u64 },
    #[error(
        "the destruction of key version {version} of {file} was not planned; run the command without --confirm first"
    )]
    NotPlanned { file: String, version: u32 },
    #[error(
        "key version {version} of {file} may be destroyed from {not_before} on; until then --cancel keeps it"
    )]
    TooEarly { file: String, version: u32, not_before: String },
    #[error("no destruction of key version {version} of {file} is planned that could be taken back")]
    NothingPlanned { file: String, version: u32 },
}

#[derive(Serialize)]
struct Report {
    file: String,
    key_version: u32,
    state: String,
    not_before: Option<String>,
    /// The master-key version that wraps, or wrapped, the key.
    master_key_version: Option<u32>,
}

pub(super) fn run(args: &Args, output: &Output) -> CliResult {
    let path = args.target.path()?;
    // Open for longer than the connection: closing it would give up SQLite's locks.
    let file = encrypted(&path)?;
    let access = args.target.login()?;
    let keys = access.keys(&path, &file)?;
    let work = Work { args, keys: &keys, file: &file, name: path.display().to_string() };
    let before = keys.scope()?;
    let entry = before.version(KeyVersion(args.key_version)).ok_or_else(|| work.no_such())?;
    let master_key_version = entry.master_version();
    match entry.state {
        DekState::Active => return Err(work.active().into()),
        DekState::Destroyed { at } => return Err(work.destroyed(at).into()),
        DekState::PendingDestruction { not_before } if args.confirm && now() < not_before => {
            return Err(work.too_early(not_before).into());
        }
        _ => {}
    }
    let planned = matches!(entry.state, DekState::PendingDestruction { .. });
    let after = if args.cancel {
        if !planned {
            return Err(work.nothing_planned().into());
        }
        keys.cancel_destruction(args.key_version)?
    } else {
        if args.confirm && !planned {
            return Err(work.not_planned().into());
        }
        let progress = Progress::new(output)?;
        access.register()?;
        let connection = connect(&path, "vfs=tde")?;
        connection.busy_timeout(BUSY).map_err(at(&path))?;
        work.lock(&connection, &path)?;
        work.refuse_needed(&progress)?;
        // Still under the lock: nothing can be written under the old key any more.
        let after = match (args.confirm, planned) {
            (true, _) => keys.destroy(args.key_version)?,
            (false, true) => before,
            (false, false) => keys.plan_destruction(args.key_version, work.not_before())?,
        };
        connection.execute_batch("ROLLBACK").map_err(at(&path))?;
        connection.close().map_err(|(_, error)| at(&path)(error))?;
        after
    };
    let state = after.version(KeyVersion(args.key_version)).ok_or_else(|| work.no_such())?.state;
    let report = Report {
        file: work.name.clone(),
        key_version: args.key_version,
        state: state.to_string(),
        not_before: match state {
            DekState::PendingDestruction { not_before } => Some(time(not_before)),
            _ => None,
        },
        master_key_version,
    };
    output.show(&report, Report::human)?;
    Ok(Outcome::Good)
}

struct Work<'a> {
    args: &'a Args,
    keys: &'a FileKeys,
    file: &'a DatabaseFile,
    name: String,
}

impl Work<'_> {
    /// Begins a write transaction with the WAL emptied. Opening the database has rolled back what a crash has left.
    fn lock(&self, connection: &Connection, path: &std::path::Path) -> Result<()> {
        for _ in 0..BUSY_TRIES {
            match try_lock(connection) {
                Ok(()) if Sidecars::of(path)?.wal.is_none_or(|len| len == 0) => return Ok(()),
                // Another program has written in between.
                Ok(()) => connection.execute_batch("ROLLBACK").map_err(at(path))?,
                Err(error) if is_busy(&error) => {}
                Err(error) => return Err(at(path)(error).into()),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let seconds = BUSY.as_secs() * u64::from(BUSY_TRIES);
        Err(Refused::Busy { file: self.name.clone(), seconds }.into())
    }

    /// Trailers can be changed by anybody, so that pages are opened.
    fn refuse_needed(&self, progress: &Progress) -> Result<()> {
        let bar = progress.bar("verifying", self.file.pages()?.into());
        let verdict = self.file.verify(self.keys, |_| {
            bar.inc(1);
            progress.flow()
        })?;
        bar.finish_and_clear();
        let (file, version) = (self.name.clone(), self.args.key_version);
        if !verdict.is_good() {
            return Err(Refused::Bad { file, bad: verdict.bad_count.max(1) }.into());
        }
        match verdict.good.get(&version) {
            Some(pages) => Err(Refused::Needed { file, version, pages: *pages }.into()),
            None => Ok(()),
        }
    }

    fn not_before(&self) -> u64 {
        now() + u64::from(self.args.wait_days) * DAY
    }

    fn no_such(&self) -> Refused {
        Refused::NoSuch { file: self.name.clone(), version: self.args.key_version }
    }

    fn active(&self) -> Refused {
        Refused::Active { file: self.name.clone(), version: self.args.key_version }
    }

    fn destroyed(&self, at: u64) -> Refused {
        Refused::Destroyed { file: self.name.clone(), version: self.args.key_version, at: time(at) }
    }

    fn too_early(&self, not_before: u64) -> Refused {
        let (file, version) = (self.name.clone(), self.args.key_version);
        Refused::TooEarly { file, version, not_before: time(not_before) }
    }

    fn not_planned(&self) -> Refused {
        Refused::NotPlanned { file: self.name.clone(), version: self.args.key_version }
    }

    fn nothing_planned(&self) -> Refused {
        Refused::NothingPlanned { file: self.name.clone(), version: self.args.key_version }
    }
}

/// Seconds since 1970; 0 if the clock is before that.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

fn try_lock(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    connection.execute_batch("BEGIN IMMEDIATE")
}

impl Report {
    fn human(&self) -> String {
        let (file, version) = (&self.file, self.key_version);
        match (self.state.as_str(), &self.not_before) {
            ("destroyed", _) => format!(
                "{file}: key version {version} is destroyed.\nBackups of the keyring still hold it, wrapped under master-key \
                 version {}: it is gone for good when they are, or when that version of the master key is.\n",
                self.master_key_version.unwrap_or_default()
            ),
            (_, Some(not_before)) => format!(
                "{file}: no page needs key version {version}; it can be destroyed from {not_before} on with --confirm, and until \
                 then kept with --cancel.\nCopies of the file (`cp`, backups) have the same keys: whatever of them is under \
                 version {version} will be lost.\n"
            ),
            _ => format!("{file}: key version {version} stays.\n"),
        }
    }
}
