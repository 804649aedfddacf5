//! Rewriting the pages of a tablespace in the background, until all of them are as its state wants them.
//!
//! A job exists because the keyring says `encrypting`, `rotating` or `decrypting`; nothing else needs to survive a crash. A launcher in every server
//! that is not in recovery starts one process for each such line, which runs this order of steps from the beginning, however often it
//! is interrupted:
//!
//! 1. the line with its state is in the WAL and flushed, so that standbys write the images that follow as this server does;
//! 2. a barrier: no process is still writing a page in the way of before;
//! 3. encrypting: every transaction that made files in the tablespace before the change has ended, prepared ones too. From here on the
//!    catalogs show every file that may hold plain pages. (While a tablespace is encrypted nobody takes that lock; files that the catalogs
//!    do not show yet are found in step 6.);
//! 4. in every database that has files there, every page of every relation is logged as an image and marked dirty (`rewrite`);
//! 5. a checkpoint writes them;
//! 6. every page in every file opens under the key, or is in clear with a right checksum;
//! 7. the state `encrypted` is logged, durable in the keyring, and in force: plain pages are refused; or `plain`, after another checkpoint, so
//!    that a page that was read in step 6 cannot be torn over an encrypted one.
//!
//! A page that is not as it should be in step 6 sends the job back to step 4 after a pause. Step 7 is never reached with such a page in a file,
//! whatever was missed before.

use std::time::Duration;

use keyring::{LineNumber, StateChange, TablespaceState, WalPosition};

use crate::ffi::background::JobLock;
use crate::ffi::{background, server, worker};
use crate::job_table::{Job, Kind, Outcome, Phase};
use crate::key_table::{KeyTable, LineInfo, PG_DEFAULT, PG_GLOBAL};
use crate::keys;
use crate::report;
use crate::tablespace::{self, TablespaceError};
use crate::verify::{self, Checked};

/// Between two looks at the lines, while there is something to do and while there is not.
const SHORT_NAP: Duration = Duration::from_secs(1);
const LONG_NAP: Duration = Duration::from_secs(60);
/// A job whose process ended is begun again after this.
const GRACE: Duration = Duration::from_secs(5);
/// For a free slot of a background worker.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// Longest pause before another pass.
const LONGEST_PAUSE: u32 = 60;

/// The launcher: starts a process for each job that has none. Does not return.
pub(crate) fn launch() -> ! {
    loop {
        if let Some(table) = tablespace::key_table() {
            table.jobs.set_launcher(server::pid());
            let tasks: Vec<_> = table.lines().filter_map(|line| Task::of(table, line)).collect();
            for task in &tasks {
                launch_one(table, task);
            }
            background::nap(if tasks.is_empty() { LONG_NAP } else { SHORT_NAP });
        } else {
            background::nap(LONG_NAP);
        }
    }
}

/// What a job has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Task {
    kind: Kind,
    /// The key that it brings every page under, or takes every page from.
    line: LineInfo,
}

impl Task {
    /// What has to be done with this key, if anything.
    fn of(table: &KeyTable, line: LineInfo) -> Option<Self> {
        let state = table.state(line.tablespace)?;
        let of_this = state.job().is_some_and(|job| job.index == line.index);
        let kind = Kind::of(state).filter(|_| of_this && !line.awaited)?;
        Some(Self { kind, line })
    }

    /// Whether it has still to be done.
    fn is_current(&self, table: &KeyTable) -> bool {
        Self::of(table, self.line).is_some_and(|now| now.kind == self.kind)
    }
}

fn launch_one(table: &KeyTable, task: &Task) {
    let line = &task.line;
    let Some(slot) = table.jobs.claim(line, task.kind) else { return };
    let idle = background::transaction(|| background::job_is_idle(line.tablespace));
    if idle && table.jobs.launch(slot, GRACE) {
        // Another try follows.
        if !worker::start_job(slot) {
            report::no_worker(line.line);
        }
    }
}

/// Makes the launcher look at once.
pub(crate) fn wake_launcher(table: &KeyTable) {
    background::wake(table.jobs.launcher());
}

/// Waits in a session until the job of a line is over. Can be cancelled, which the job does not notice.
pub(crate) fn wait(table: &KeyTable, line: u64) {
    while table.lines().any(|now| now.line == line && Task::of(table, now).is_some()) {
        background::doze(Duration::from_millis(100));
    }
}

/// A job from its beginning to its end, in a process of its own.
///
/// # Errors
/// When the keyring or a file cannot be read or changed. The launcher begins the job again.
pub(crate) fn run(slot: usize) -> Result<(), TablespaceError> {
    let table = tablespace::key_table().ok_or(TablespaceError::NotActive)?;
    let Some((job, progress)) = table.jobs.get(slot).and_then(|job| Some((job, job.progress()?))) else {
        return Ok(());
    };
    let oid = progress.tablespace;
    keys::ensure_compared(table)?;
    let Some(_lock) = background::transaction(|| JobLock::try_acquire(oid)) else {
        return Ok(()); // it runs already
    };
    let tasks = table.lines().filter(|line| line.line == progress.line);
    let mut tasks = tasks.filter_map(|line| Task::of(table, line));
    let Some(task) = tasks.find(|task| task.kind == progress.kind) else {
        job.enter(Phase::Done);
        return Ok(());
    };
    report::job_started(&task.line, task.kind);
    job.enter(Phase::Starting);
    background::transaction(|| tablespace::log_lines(table))?;
    background::barrier();
    if task.kind == Kind::Encrypt {
        job.enter(Phase::Waiting);
        background::transaction(|| server::lock_tablespace(oid, false));
    }
    while task.is_current(table) {
        match pass(table, job, slot, &task)? {
            Pass::Clean => {
                background::transaction(|| finish(table, &task))?;
                break;
            }
            Pass::Remaining(found) => {
                if !task.is_current(table) {
                    break; // dropped or cancelled meanwhile
                }
                let attempts = job.pass_failed();
                report::job_remaining(&task.line, task.kind, found.as_ref());
                job.enter(Phase::Pausing);
                background::nap(Duration::from_secs(attempts.saturating_mul(2).min(LONGEST_PAUSE).into()));
            }
        }
    }
    job.enter(Phase::Done);
    report::job_ended(&task.line, task.kind, table.state(oid));
    Ok(())
}

/// What a pass over the tablespace leaves.
enum Pass {
    /// Every page is as it should be.
    Clean,
    /// A page is not, the first of these; or a database could not be worked on.
    Remaining(Option<Checked>),
}

fn pass(table: &KeyTable, job: &Job, slot: usize, task: &Task) -> Result<Pass, TablespaceError> {
    let line = &task.line;
    let files = match tablespace::relation_files(line.tablespace) {
        Ok(files) => files,
        // Dropped, or about to be.
        Err(_) if !tablespace::has_directory(line.tablespace) => return Ok(Pass::Remaining(None)),
        Err(error) => return Err(error),
    };
    job.begin_pass(files.iter().map(|file| verify::blocks(file)).sum());
    let failed = if line.tablespace == PG_GLOBAL {
        // Shared catalogs are the same from every database; one that takes connections will do.
        !tablespace::databases_in(PG_DEFAULT)?
            .into_iter()
            .any(|database| rewrite_database(job, slot, database))
    } else {
        // All of them, whatever fails.
        let databases = tablespace::databases_in(line.tablespace)?;
        databases.into_iter().filter(|&database| !rewrite_database(job, slot, database)).count() > 0
    };
    job.enter(Phase::Checkpointing);
    server::checkpoint();
    job.enter(Phase::Verifying);
    let found = match task.kind {
        Kind::Encrypt | Kind::Rotate => verify::first_not_encrypted(table, line)?,
        Kind::Decrypt => verify::first_not_plain(table, line)?,
    };
    match found {
        Some(found) => Ok(Pass::Remaining(Some(found))),
        None if failed => Ok(Pass::Remaining(None)),
        None => Ok(Pass::Clean),
    }
}

/// `false` when the process that should do it failed; the log says why.
fn rewrite_database(job: &Job, slot: usize, database: u32) -> bool {
    loop {
        // Whoever needs databases without connections goes first.
        background::transaction(background::wait_for_databases);
        job.enter(Phase::Rewriting);
        job.at(database, 0);
        job.set_outcome(Outcome::Failed);
        if !worker::rewrite_database(slot, database) {
            job.enter(Phase::Pausing);
            if let Some(progress) = job.progress() {
                report::no_worker(progress.line);
            }
            background::nap(LONGEST_WAIT);
            continue;
        }
        match job.outcome() {
            Outcome::Done => return true,
            Outcome::Failed => return false,
            Outcome::Yielded => (),
        }
    }
}

/// Every page in the files is as it should be: from now on nothing else is accepted.
fn finish(table: &KeyTable, task: &Task) -> Result<(), TablespaceError> {
    let state = match task.kind {
        Kind::Encrypt | Kind::Rotate => TablespaceState::Encrypted,
        Kind::Decrypt => {
            server::checkpoint();
            TablespaceState::Plain
        }
    };
    let _keyring = server::lock_keyring();
    if !task.is_current(table) {
        return Ok(()); // dropped or cancelled meanwhile
    }
    let keyring = keys::open_keyring(table)?;
    let number = LineNumber(task.line.line);
    tablespace::change_state(table, &keyring, number, |from| {
        keyring.set_state(number, StateChange { from: WalPosition(from), state })
    })
}
