//! `tde sqlite rotate`: a new data key, and every page rewritten under it while programs use the database.
//!
//! Pages are rewritten with `UPDATE sqlite_dbpage SET data = data WHERE pgno = ?`, 64 in a transaction, as any other writer would: in WAL mode readers
//! go on, in rollback mode they wait for a moment. There is no state: how far it is stands in the pages' trailers, so that a rotation that was
//! stopped or killed goes on when the command runs again. It is done when no page in the file is under an older key
//! and the WAL, which may hold some, is empty.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde::Serialize;
use sqlite_vfs::offline::DatabaseFile;

use super::convert::is_busy;
use super::progress::{Progress, Stopped};
use super::sidecar::Sidecars;
use super::{Access, At, Result, Target, at, connect, encrypted};
use crate::output::Output;
use crate::{CliResult, Outcome};

/// Pages in one transaction.
const CHUNK: u32 = 64;
/// How long to wait for another program's transaction, and how often, until it is said to block.
const BUSY: Duration = Duration::from_secs(5);
const BUSY_TRIES: u32 = 12;
/// How often to begin again because other programs wrote under the old key meanwhile.
const PASSES: u32 = 5;
const GO_ON: &str = "what was rewritten stays so; run `tde sqlite rotate` again to go on";

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Make a new key even if pages are still under older ones, as after a rotation that was stopped
    #[arg(long)]
    new_key: bool,
    /// Rewrite at most this many MiB a second
    #[arg(long, value_name = "MIB")]
    max_rate: Option<f64>,
}

/// What keeps a rotation from its end.
#[derive(Debug, thiserror::Error)]
enum Blocked {
    #[error("{file} was locked by another program for {seconds} s; {GO_ON}")]
    Busy { file: String, seconds: u64 },
    #[error(
        "the pages of {file} are rewritten, but its WAL cannot be emptied while a program reads from it and may hold pages under \
         the old key; run `tde sqlite rotate` again later"
    )]
    Wal { file: String },
    #[error("programs keep writing to {file} under an older key: do they all run this release? {GO_ON}")]
    OldWriters { file: String },
    #[error("--max-rate must be more than 0")]
    Rate,
}

/// What a rotation did.
#[derive(Serialize)]
pub(crate) struct Rotated {
    file: String,
    pub(crate) key_version: u32,
    /// Whether this went on with a rotation that was under way.
    resumed: bool,
    pub(crate) rewritten_pages: u64,
    pages: BTreeMap<u32, u64>,
    milliseconds: u128,
}

pub(super) fn run(args: &Args, output: &Output) -> CliResult {
    if args.max_rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) {
        return Err(Blocked::Rate.into());
    }
    let path = args.target.path()?;
    let access = args.target.login()?;
    access.register()?;
    let rotation = Rotation { new_key: args.new_key, max_rate: args.max_rate };
    let rotated = rotate(&access, &path, &rotation, &Progress::new(output)?)?;
    output.show(&rotated, |done| {
        let how = if done.resumed { "the rotation to" } else { "rotated to" };
        let end = if done.resumed { " is finished" } else { "" };
        format!(
            "{}: {how} key version {}{end}; {} pages rewritten, none is under an older key.",
            done.file, done.key_version, done.rewritten_pages
        )
    })?;
    Ok(Outcome::Good)
}

/// How a database is rotated.
pub(crate) struct Rotation {
    /// Make a new key even if pages are still under older ones.
    pub(crate) new_key: bool,
    /// MiB a second, more than 0.
    pub(crate) max_rate: Option<f64>,
}

/// Gives a database a new key, unless pages are under older ones, and brings every page under the newest. The VFS of `access` is registered.
///
/// # Errors
/// [`Stopped`] if `progress` says so, and whatever keeps it from its end: calling it again goes on.
pub(crate) fn rotate(
    access: &Access,
    path: &Path,
    rotation: &Rotation,
    progress: &Progress,
) -> Result<Rotated> {
    let start = Instant::now();
    let path = &path.canonicalize().map_err(|source| At { path: path.into(), source })?;
    // Open for longer than the connection: closing it would give up SQLite's locks.
    let file = encrypted(path)?;
    let keys = access.keys(path, &file)?;
    let connection = connect(path, &format!("vfs={}", access.vfs))?;
    connection.busy_timeout(BUSY).map_err(at(path))?;
    // Fails now if page 1 does not open, and recovers what a crash left.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())).map_err(at(path))?;

    let active = keys.active_version();
    let survey = file.versions(|_| progress.flow())?;
    let resumed = !rotation.new_key && survey.keys().any(|version| *version != 0 && *version < active);
    let version = if resumed { active } else { keys.rotate()? };
    let mut work = Work {
        path,
        file: &file,
        connection: &connection,
        progress,
        version,
        rate: rotation.max_rate.map(|rate| rate * 1024.0 * 1024.0),
        rewritten: 0,
    };
    let pages = work.run()?;
    let rewritten_pages = work.rewritten;
    connection.close().map_err(|(_, error)| at(path)(error))?;
    Ok(Rotated {
        file: path.display().to_string(),
        key_version: version,
        resumed,
        rewritten_pages,
        pages,
        milliseconds: start.elapsed().as_millis(),
    })
}

struct Work<'a> {
    path: &'a Path,
    file: &'a DatabaseFile,
    connection: &'a Connection,
    progress: &'a Progress,
    version: u32,
    /// Bytes a second.
    rate: Option<f64>,
    rewritten: u64,
}

impl Work<'_> {
    /// Until nothing is under an older key. Returns what is under which.
    fn run(&mut self) -> Result<BTreeMap<u32, u64>> {
        for _ in 0..PASSES {
            self.pass()?;
            self.empty_wal()?;
            let pages = self.file.versions(|_| self.progress.flow())?;
            if pages.keys().all(|version| *version >= self.version) {
                return Ok(pages);
            }
        }
        Err(Blocked::OldWriters { file: self.name() }.into())
    }

    /// Page 1 first: from it other programs learn of the new key.
    fn pass(&mut self) -> Result<()> {
        let count = || self.connection.query_row("PRAGMA page_count", [], |row| row.get::<_, u32>(0));
        let last = count().map_err(at(self.path))?;
        let bar = self.progress.bar("rewriting", last.into());
        let mut first = 1;
        while first <= last {
            if self.progress.stopped() {
                bar.abandon();
                return Err(Stopped(GO_ON).into());
            }
            let end = last.min(first.saturating_add(CHUNK - 1));
            if first == 1 || self.file.any_older(first..=end, self.version)? || end > self.file.pages()? {
                let begun = Instant::now();
                let rewritten = self.rewrite(first, end)?;
                self.rewritten += rewritten;
                self.throttle(rewritten, begun);
            }
            bar.inc(u64::from(end - first) + 1);
            let Some(next) = end.checked_add(1) else { break };
            first = next;
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn rewrite(&self, first: u32, end: u32) -> Result<u64> {
        for _ in 0..BUSY_TRIES {
            match self.try_rewrite(first, end) {
                Err(error) if is_busy(&error) => {}
                done => return Ok(done.map_err(at(self.path))?),
            }
            if self.progress.stopped() {
                return Err(Stopped(GO_ON).into());
            }
        }
        let seconds = BUSY.as_secs() * u64::from(BUSY_TRIES);
        Err(Blocked::Busy { file: self.name(), seconds }.into())
    }

    fn try_rewrite(&self, first: u32, end: u32) -> rusqlite::Result<u64> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let done = self.rewrite_each(first, end).and_then(|rewritten| {
            self.connection.execute_batch("COMMIT")?;
            Ok(rewritten)
        });
        if done.is_err() && !self.connection.is_autocommit() {
            // The first error is what counts.
            let _already = self.connection.execute_batch("ROLLBACK");
        }
        done
    }

    /// Page by page: sqlite_dbpage finds a single page at once, but a range by looking at every page.
    fn rewrite_each(&self, first: u32, end: u32) -> rusqlite::Result<u64> {
        let mut rewrite = self.connection.prepare("UPDATE sqlite_dbpage SET data = data WHERE pgno = ?1")?;
        let mut rewritten = 0;
        // SQLite does not let the page that it keeps for its locks be touched.
        for page in (first..=end).filter(|page| !self.file.is_lock_page(*page)) {
            rewritten += rewrite.execute([page])? as u64;
        }
        Ok(rewritten)
    }

    fn throttle(&self, pages: u64, begun: Instant) {
        let Some(rate) = self.rate else { return };
        let bytes = pages as f64 * f64::from(self.file.facts().page_size);
        let until = begun + Duration::from_secs_f64(bytes / rate);
        while !self.progress.stopped() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
    }

    /// Brings what is in the WAL to the database and cuts it off: its frames may be under the old key.
    fn empty_wal(&self) -> Result<()> {
        for _ in 0..BUSY_TRIES {
            let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
            match self.connection.query_row(checkpoint, [], |row| row.get::<_, i64>(0)) {
                Ok(0) if Sidecars::of(self.path)?.wal.is_none_or(|len| len == 0) => return Ok(()),
                Ok(_) => {}
                Err(error) if is_busy(&error) => {}
                Err(error) => return Err(at(self.path)(error).into()),
            }
            if self.progress.stopped() {
                return Err(Stopped(GO_ON).into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(Blocked::Wal { file: self.name() }.into())
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}
