//! Rewriting the pages of a tablespace in the background, until all of them are as its state wants them.
//!
//! While a job waits for something (transactions, workers, a person, another attempt) it has no process, so that it keeps no worker
//! from others.
//!
//! A job exists because the keyring says `encrypting`, `rotating` or `decrypting`; nothing else needs to survive a crash. A launcher in every server
//! that is not in recovery starts one process for each such line, which runs this order of steps from the beginning, however often it
//! is interrupted (in step 4 it goes on at its mark, see `job_file`):
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
//! A page that is not as it should be in step 6 sends the job back to step 4, for the relations concerned only, and then after a pause. Step 7 is never reached with such a page in a file,
//! whatever was missed before.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use keyring::{LineNumber, StateChange, TablespaceState, WalPosition};

use crate::destroy;
use crate::ffi::background::JobLock;
use crate::ffi::{background, server, worker};
use crate::job_file::{self, JobId, Mark};
use crate::job_table::{Job, Kind, Outcome, Phase};
use crate::key_table::{KeyTable, LineInfo, PG_DEFAULT, PG_GLOBAL};
use crate::keys;
use crate::lock;
use crate::report;
use crate::tablespace::{self, TablespaceError};
use crate::tablespace_files;
use crate::verify::{self, Checked, GoOn};
use crate::watch::{self, Watch};
use crate::{rewrite, settings};

/// Between two looks at the lines, while there is something to do and while there is not.
const SHORT_NAP: Duration = Duration::from_secs(1);
const LONG_NAP: Duration = Duration::from_secs(60);
/// While nothing but new checkpoints is waited for.
const CHECKPOINT_NAP: Duration = Duration::from_secs(2);
/// Between two tries to get a lock.
const LOCK_NAP: Duration = Duration::from_millis(200);
/// A job whose process ended is begun again after this.
const GRACE: Duration = Duration::from_secs(5);
/// For a free slot of a background worker.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// Jobs that work at the same time; one while workers are scarce, which is remembered for a while.
const AT_A_TIME: usize = 2;
const LACK: Duration = Duration::from_secs(60);
/// Between two looks at keys that were destroyed and are retained.
const SETTLE: Duration = Duration::from_secs(10);

/// The launcher: starts processes for jobs, a few at a time. Does not return.
pub(crate) fn launch() -> ! {
    let (mut marked, mut house) = (0, House::default());
    loop {
        if let Some(table) = tablespace::key_table() {
            table.jobs.set_launcher(server::pid());
            background::reload_if_asked();
            keep_house(table, &mut house);
            if server::recovery_in_progress() {
                background::nap(SHORT_NAP);
                continue;
            }
            mark_checkpoint(table, &mut marked);
            if lock::is_on() {
                background::nap(SHORT_NAP);
                continue;
            }
            let tasks: Vec<_> = table.lines().filter_map(|line| Task::of(table, line)).collect();
            launch_all(table, &tasks);
            report_all(table);
            background::nap(match (tasks.is_empty(), table.lines().next()) {
                (false, _) => SHORT_NAP,
                (true, Some(_)) => watch::pause(CHECKPOINT_NAP),
                (true, None) => watch::pause(LONG_NAP),
            });
        } else {
            background::nap(LONG_NAP);
        }
    }
}

/// Puts a record of ours soon after each position where redo may begin; `marked` is the last such position.
fn mark_checkpoint(table: &KeyTable, marked: &mut u64) {
    let redo = server::redo_position();
    if redo > *marked {
        *marked = redo;
        if let Err(error) = background::transaction(|| tablespace::log_for_others(table)) {
            report::checkpoint_not_marked(&error);
        }
    }
}

/// What the launcher does besides.
#[derive(Default)]
struct House {
    logged: bool,
    settled: Option<Instant>,
    watch: Watch,
}

/// Destroyed keys reach the WAL, and go for good.
fn keep_house(table: &KeyTable, house: &mut House) {
    if !house.logged && !server::recovery_in_progress() {
        match background::transaction(|| destroy::log_again(table)) {
            Ok(()) => house.logged = true,
            Err(error) => report::destruction_not_settled(&error),
        }
    }
    lock::unlock_by_file(table);
    house.watch.look(table);
    if house.settled.is_none_or(|last| last.elapsed() >= SETTLE) {
        house.settled = Some(Instant::now());
        if let Err(error) = destroy::settle_retained(table) {
            report::destruction_not_settled(&error);
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
        Self::of(table, self.line).is_some_and(|now| now.id() == self.id())
    }

    /// How its files name it.
    fn id(&self) -> JobId {
        let span = self.line.span;
        let from = match self.kind {
            Kind::Encrypt | Kind::Rotate => span.start,
            Kind::Decrypt => span.closing,
        };
        JobId { line: self.line.line, from }
    }

    /// The task of a job in the table, unless something else has to be done by now.
    fn in_slot(table: &KeyTable, job: &Job) -> Option<Self> {
        let (kind, id) = (job.progress()?.kind, job.id());
        let mut tasks = table.lines().filter_map(|line| Self::of(table, line));
        tasks.find(|task| task.kind == kind && task.id() == id)
    }

    /// The files of the tablespace, or of one database's directory in it, that are not as they should be in the end.
    fn unfinished(
        &self,
        table: &KeyTable,
        directory: Option<u32>,
        go_on: GoOn<'_>,
    ) -> Result<Vec<Checked>, TablespaceError> {
        match self.kind {
            Kind::Encrypt | Kind::Rotate => verify::not_encrypted(table, &self.line, directory, go_on),
            Kind::Decrypt => verify::not_plain(table, &self.line, directory, go_on),
        }
    }

    /// The task of a job that people name by its number.
    fn of_job(table: &KeyTable, number: u64) -> Result<Self, TablespaceError> {
        let mut tasks = table.lines().filter_map(|line| Self::of(table, line));
        tasks.find(|task| task.line.line == number).ok_or(TablespaceError::NoJob(number))
    }
}

/// Each job needs a worker for itself and one for the database it works on. Those that have waited longest go first.
fn launch_all(table: &KeyTable, tasks: &[Task]) {
    let idle = |tablespace: u32| background::transaction(|| background::job_is_idle(tablespace));
    for job in table.jobs.without(|line| tasks.iter().any(|task| task.line.line == line)) {
        if job.progress().is_some_and(|job| idle(job.tablespace)) {
            job.enter(Phase::Done); // dropped while it waited
        }
    }
    let mut jobs = Vec::new();
    for task in tasks {
        let idle = || idle(task.line.tablespace);
        let Some(slot) = table.jobs.claim(&task.line, task.kind, task.id().from, &idle) else { continue };
        let Some(job) = table.jobs.get(slot) else { continue };
        jobs.push((job.launched(), slot, job, task));
    }
    jobs.sort_by_key(|(launched, ..)| *launched);
    let mut running = jobs
        .iter()
        .filter(|(_, _, job, task)| job.is_being_launched(GRACE) || !idle(task.line.tablespace))
        .count();
    let limit = if table.jobs.lacked_workers(LACK) { 1 } else { AT_A_TIME };
    for (_, slot, job, task) in jobs {
        if running >= limit {
            return;
        }
        // Whatever the file says: one that cannot be read is the job's to report.
        let paused = job.is_paused() || job_file::is_paused(task.id()).unwrap_or(false);
        if paused
            && job.progress().is_some_and(|now| now.phase != Phase::Paused)
            && idle(task.line.tablespace)
        {
            job.set_paused(true);
            job.enter(Phase::Paused);
        }
        if paused || !idle(task.line.tablespace) || !job.launch(GRACE) {
            continue;
        }
        running += 1;
        if !worker::start_job(slot) {
            // Another try follows.
            report::no_worker(task.line.line);
            return;
        }
    }
}

/// Tells the log how far jobs are: here, because a job may wait for a checkpoint or a lock for long, or have no process at all.
fn report_all(table: &KeyTable) {
    let every = settings::job_log_interval();
    for progress in table.jobs.all() {
        // Those that wait for a person or for transactions say so themselves.
        let silent = matches!(progress.phase, Phase::Paused | Phase::Done | Phase::Waiting);
        let job = (!silent).then(|| table.jobs.of_line(progress.line)).flatten();
        if job.is_some_and(|job| job.report_is_due(every)) {
            report::job_progress(&progress);
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

/// Makes a job wait at the next mark, also after a restart of this server. Other servers do not know of it.
///
/// # Errors
/// When there is no such job, or that cannot be remembered.
pub(crate) fn pause(number: u64) -> Result<(), TablespaceError> {
    let table = tablespace::changeable()?;
    let _keyring = server::lock_keyring();
    job_file::pause(Task::of_job(table, number)?.id())?;
    if let Some(job) = table.jobs.of_line(number) {
        job.set_paused(true);
    }
    Ok(())
}

/// Lets a job go on; one that was not paused is left alone.
///
/// # Errors
/// When there is no such job, or that cannot be remembered.
pub(crate) fn resume(number: u64) -> Result<(), TablespaceError> {
    let table = tablespace::changeable()?;
    let _keyring = server::lock_keyring();
    job_file::resume(Task::of_job(table, number)?.id())?;
    if let Some(job) = table.jobs.of_line(number) {
        job.set_paused(false);
        job.again_in(Duration::ZERO);
    }
    wake_launcher(table);
    Ok(())
}

/// Turns a job back: what was being encrypted is decrypted, and what was being decrypted is encrypted again under a new version of
/// its key. Returns the job that does that.
///
/// # Errors
/// When there is no such job, or it rotates a key: pages are under both versions, and going back would be another rotation.
pub(crate) fn cancel(number: u64) -> Result<u64, TablespaceError> {
    let table = tablespace::changeable()?;
    {
        let _keyring = server::lock_keyring();
        let task = Task::of_job(table, number)?;
        match task.kind {
            Kind::Encrypt => tablespace::begin_decrypting(table, LineNumber(number))?,
            Kind::Decrypt => tablespace::encrypt_again(table, LineNumber(number))?,
            Kind::Rotate => return Err(TablespaceError::NotCancellable(number)),
        }
        if let Some(job) = table.jobs.of_line(number) {
            job.cancel(task.id());
        }
    }
    wake_launcher(table);
    Ok(number)
}

/// One attempt at a job, in a process of its own, which ends whenever there is something to wait for.
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
    let Some(task) = Task::in_slot(table, job) else {
        job.enter(Phase::Done);
        return Ok(());
    };
    let work = Work { table, job, slot, task };
    job.set_pid(server::pid());
    let end = work.attempt();
    job.set_pid(0);
    match end? {
        End::Over => {
            job_file::forget_mark(task.id())?;
            job_file::resume(task.id())?;
            job.enter(Phase::Done);
            report::job_ended(&task.line, task.kind, table.state(oid));
        }
        End::Paused => {
            job.enter(Phase::Paused);
            report::job_paused(task.line.line);
        }
        End::Again(pause) => job.again_in(pause),
    }
    wake_launcher(table);
    Ok(())
}

/// One database of a job, in a process that is connected to it.
pub(crate) fn rewrite(slot: usize, database: u32) {
    let Some(table) = tablespace::key_table() else { return };
    let Some(job) = table.jobs.get(slot) else { return };
    let Some(task) = Task::in_slot(table, job) else { return };
    let directory = if task.line.tablespace == PG_GLOBAL { 0 } else { database };
    let mut go_on = |_| !job.must_stop() && !lock::is_on();
    let unfinished = || task.unfinished(table, Some(directory), &mut go_on);
    let only = match job.is_repair().then(unfinished).transpose() {
        Ok(found) => found.map(|found| found.iter().map(|file| file.number).collect()),
        Err(error) => report::job_failed(&error),
    };
    let outcome = rewrite::database(job, database, task.line.tablespace, only.as_ref());
    job.set_outcome(outcome);
}

/// How an attempt ended.
enum End {
    /// Nothing is left to do: it is done, cancelled, or the tablespace was dropped.
    Over,
    /// Somebody wants it to wait.
    Paused,
    /// Something has to happen first; another attempt follows after this.
    Again(Duration),
}

/// What the process of a job works with.
struct Work {
    table: &'static KeyTable,
    job: &'static Job,
    slot: usize,
    task: Task,
}

impl Work {
    /// Why the job has to stop here, if it has to.
    fn stop(&self) -> Option<End> {
        if lock::is_on() {
            return Some(End::Again(Duration::from_secs(2)));
        }
        match (self.task.is_current(self.table), self.job.is_paused()) {
            (false, _) => Some(End::Over),
            (true, true) => Some(End::Paused),
            (true, false) => None,
        }
    }

    fn attempt(&self) -> Result<End, TablespaceError> {
        let Self { table, job, task, .. } = self;
        let line = &task.line;
        if job_file::is_paused(task.id())? {
            return Ok(End::Paused);
        }
        let mark = job_file::mark(task.id())?.unwrap_or_default();
        if job.announce() {
            report::job_started(line, task.kind, mark.done);
        }
        background::transaction(|| tablespace::log_lines(table))?;
        background::barrier();
        if task.kind == Kind::Encrypt && !self.makers_have_ended() {
            return Ok(self.stop().unwrap_or(End::Again(Duration::ZERO)));
        }
        let files = match tablespace_files::relation_files(line.tablespace) {
            Ok(files) => files,
            // Dropped, or about to be.
            Err(_) if !tablespace_files::has_directory(line.tablespace) => return Ok(self.again(None)),
            Err(error) => return Err(error),
        };
        job.begin_pass(files.iter().map(|file| verify::blocks(file)).sum(), mark);
        if !mark.is_complete() {
            job.set_repair(false);
            let databases = tablespace_files::databases_in(self.connect_to())?;
            let behind = |database: &u32| line.tablespace == PG_GLOBAL || *database >= mark.database;
            if let Some(end) = self.rewrite(databases.into_iter().filter(behind))? {
                return Ok(end);
            }
        }
        let mut remaining = Vec::new();
        for repair in [false, true] {
            if repair {
                // Only what is not as it should be: relations that were locked, or that the catalogs did not show yet.
                job.set_repair(true);
                let databases: BTreeSet<u32> = match line.tablespace {
                    PG_GLOBAL => tablespace_files::databases_in(PG_DEFAULT)?,
                    _ => remaining.iter().map(|file: &Checked| file.database).collect(),
                };
                if let Some(end) = self.rewrite(databases.into_iter())? {
                    return Ok(end);
                }
            }
            job.enter(Phase::Checkpointing);
            server::checkpoint();
            if !repair && !mark.is_complete() {
                let done = job.mark().done;
                job_file::save_mark(task.id(), Mark { done, ..Mark::COMPLETE })?;
            }
            job.enter(Phase::Verifying);
            remaining = self.verify()?;
            if let Some(end) = self.stop() {
                return Ok(end);
            }
            if remaining.is_empty() {
                background::transaction(|| finish(table, task))?;
                return Ok(End::Over);
            }
        }
        Ok(self.again(remaining.first()))
    }

    /// Another attempt after a pause that grows, since it reads every file.
    fn again(&self, found: Option<&Checked>) -> End {
        if let Some(end) = self.stop() {
            return end;
        }
        let attempts = self.job.pass_failed();
        report::job_remaining(&self.task.line, self.task.kind, found);
        self.job.enter(Phase::Pausing);
        End::Again(Duration::from_secs(1 << attempts.min(9)))
    }

    /// Whoever has made files before the change may still make plain pages that the catalogs do not show. Nobody new takes that lock.
    /// `false` after `pg_tde.job_log_interval`.
    fn makers_have_ended(&self) -> bool {
        self.job.enter(Phase::Waiting);
        let LineInfo { line, tablespace, .. } = self.task.line;
        let begin = Instant::now();
        while !background::transaction(|| background::files_are_settled(tablespace)) {
            if self.stop().is_some() {
                return false;
            }
            if begin.elapsed() >= settings::job_log_interval() {
                report::job_waits(line, tablespace);
                return false;
            }
            background::nap(LOCK_NAP);
        }
        true
    }

    /// Shared catalogs are the same from every database.
    fn connect_to(&self) -> u32 {
        match self.task.line.tablespace {
            PG_GLOBAL => PG_DEFAULT,
            other => other,
        }
    }

    /// Every database, whatever fails; of `pg_global` the first that can be connected to. `Some` when the job has to stop.
    fn rewrite(&self, databases: impl Iterator<Item = u32>) -> Result<Option<End>, TablespaceError> {
        for database in databases {
            match self.rewrite_database(database) {
                Rewritten::Done if self.task.line.tablespace == PG_GLOBAL => break,
                Rewritten::Done | Rewritten::Failed => (),
                Rewritten::Stopped(end) => return Ok(Some(end)),
            }
        }
        Ok(None)
    }

    fn rewrite_database(&self, database: u32) -> Rewritten {
        let Self { job, slot, .. } = *self;
        loop {
            if let Some(end) = self.stop() {
                return Rewritten::Stopped(end);
            }
            // Whoever needs databases without connections goes first.
            background::transaction(background::wait_for_databases);
            job.enter(Phase::Rewriting);
            job.at(database, 0);
            job.set_outcome(Outcome::Failed);
            if !worker::rewrite_database(slot, database) {
                // Not while holding a worker oneself: others may wait for that.
                self.table.jobs.lack_workers();
                report::no_worker(self.task.line.line);
                job.enter(Phase::Pausing);
                return Rewritten::Stopped(End::Again(LONGEST_WAIT));
            }
            match job.outcome() {
                Outcome::Done => return Rewritten::Done,
                Outcome::Failed => return Rewritten::Failed,
                Outcome::Yielded => (),
            }
        }
    }

    /// The files that are not as they should be.
    fn verify(&self) -> Result<Vec<Checked>, TablespaceError> {
        let job = self.job;
        self.task.unfinished(self.table, None, &mut |blocks| {
            job.verified(blocks);
            background::reload_if_asked();
            self.stop().is_none()
        })
    }
}

/// What became of a database.
enum Rewritten {
    Done,
    /// Something in it could not be rewritten, which the log explains.
    Failed,
    Stopped(End),
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
