//! What the background jobs are doing, in memory that every process shares.
//!
//! A job exists because a line of the keyring says so (`State::job`); this table only shows how far it is. The launcher claims
//! slots, the job's processes fill them.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::job_file::{JobId, Mark};
use crate::key_table::{LineInfo, State};

/// Jobs that can be under way, or remembered, at a time.
const MAX_JOBS: usize = 32;

/// What a job brings about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Every page encrypted.
    Encrypt = 1,
    /// Every page under the newest version of the key.
    Rotate = 2,
    /// Every page in clear.
    Decrypt = 3,
}

impl Kind {
    /// As views show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Rotate => "rotate",
            Self::Decrypt => "decrypt",
        }
    }

    /// What the job of a tablespace in a state brings about.
    pub(crate) fn of(state: State) -> Option<Self> {
        match state {
            State::Encrypting(_) => Some(Self::Encrypt),
            State::Rotating(_) => Some(Self::Rotate),
            State::Decrypting(_) => Some(Self::Decrypt),
            State::Encrypted(_) => None,
        }
    }
}

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Phase {
    /// Nothing yet.
    Starting = 1,
    /// For transactions that made files before the state changed.
    Waiting = 2,
    /// Pages.
    Rewriting = 3,
    /// So that the files hold what was rewritten.
    Checkpointing = 4,
    /// Reading every file.
    Verifying = 5,
    /// Something failed or remains; it will go on after a pause.
    Pausing = 6,
    /// Finished.
    Done = 7,
    /// Until somebody lets it go on.
    Paused = 8,
}

impl Phase {
    /// As views show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Waiting => "waiting for transactions",
            Self::Rewriting => "rewriting pages",
            Self::Checkpointing => "checkpointing",
            Self::Verifying => "verifying files",
            Self::Pausing => "waiting to try again",
            Self::Done => "done",
            Self::Paused => "paused",
        }
    }

    fn of(word: u32) -> Self {
        let all = [
            Self::Waiting,
            Self::Rewriting,
            Self::Checkpointing,
            Self::Verifying,
            Self::Pausing,
            Self::Done,
            Self::Paused,
        ];
        all.into_iter().find(|phase| *phase as u32 == word).unwrap_or(Self::Starting)
    }
}

/// How the work on one database ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Outcome {
    /// It did not: the process failed.
    Failed = 0,
    /// Every page was rewritten.
    Done = 1,
    /// It stopped at the mark: somebody needs the database for himself, or wants the job to wait or to end.
    Yielded = 2,
}

/// One job. All-zero memory is a free slot.
#[repr(C)]
pub(crate) struct Job {
    line: AtomicU64,
    tablespace: AtomicU32,
    kind: AtomicU32,
    phase: AtomicU32,
    database: AtomicU32,
    relation: AtomicU32,
    outcome: AtomicU32,
    attempts: AtomicU32,
    blocks_done: AtomicU64,
    blocks_total: AtomicU64,
    blocks_verified: AtomicU64,
    /// Seconds since 1970.
    started: AtomicU64,
    launched: AtomicU64,
    /// WAL position at which the job's state began.
    from: AtomicU64,
    pid: AtomicU32,
    /// Somebody wants it to wait.
    paused: AtomicU32,
    /// `from` of a job that somebody has turned back.
    cancelled: AtomicU64,
    /// The log has its beginning.
    announced: AtomicU32,
    /// When the log was told last, in seconds since 1970; 0 before its beginning.
    reported: AtomicU64,
    /// Only what is not as it should be.
    repair: AtomicU32,
    /// Not launched before, in seconds since 1970.
    not_before: AtomicU64,
    /// Where a process that rewrites a database begins or ended; written by that process while it runs, otherwise by the job's.
    mark: [AtomicU32; 5],
    /// Blocks a second of the present phase, and when and where they were counted last (milliseconds since 1970, blocks).
    rate: AtomicU64,
    counted_at: AtomicU64,
    counted: AtomicU64,
}

/// What a job shows of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) line: u64,
    pub(crate) tablespace: u32,
    pub(crate) kind: Kind,
    pub(crate) phase: Phase,
    /// OID of the database whose pages are being rewritten, or 0.
    pub(crate) database: u32,
    /// OID of the relation in it, or 0.
    pub(crate) relation: u32,
    /// Blocks done in this attempt, also those of relations that were dropped meanwhile.
    pub(crate) blocks_done: u64,
    /// Blocks in the files when the attempt began.
    pub(crate) blocks_total: u64,
    /// Blocks that were read and found to be as they should be.
    pub(crate) blocks_verified: u64,
    /// Blocks a second, lately and in the present phase; 0 while that is not known.
    pub(crate) rate: u64,
    /// The job's process, 0 while there is none.
    pub(crate) pid: u32,
    /// Somebody wants it to wait.
    pub(crate) paused: bool,
    /// Passes over the tablespace that did not finish it.
    pub(crate) attempts: u32,
    /// Seconds since 1970.
    pub(crate) started: u64,
}

fn now() -> u64 {
    since_1970().as_secs()
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// Over how long the rate is counted at least, in milliseconds.
const RATE_WINDOW: u64 = 500;

impl Job {
    /// A copy, or `None` for a free slot.
    pub(crate) fn progress(&self) -> Option<Progress> {
        let line = self.line.load(Acquire);
        (line != 0).then(|| Progress {
            line,
            tablespace: self.tablespace.load(Relaxed),
            kind: match self.kind.load(Relaxed) {
                2 => Kind::Rotate,
                3 => Kind::Decrypt,
                _ => Kind::Encrypt,
            },
            phase: Phase::of(self.phase.load(Relaxed)),
            database: self.database.load(Relaxed),
            relation: self.relation.load(Relaxed),
            blocks_done: self.blocks_done.load(Relaxed),
            blocks_total: self.blocks_total.load(Relaxed),
            blocks_verified: self.blocks_verified.load(Relaxed),
            rate: self.rate.load(Relaxed),
            pid: self.pid.load(Relaxed),
            paused: self.is_paused(),
            attempts: self.attempts.load(Relaxed),
            started: self.started.load(Relaxed),
        })
    }

    /// Which job this is, as its files say.
    pub(crate) fn id(&self) -> JobId {
        JobId { line: self.line.load(Acquire), from: self.from.load(Relaxed) }
    }

    /// This process does it.
    pub(crate) fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Relaxed);
    }

    /// Begins another pass over `blocks_total` blocks, at a mark.
    pub(crate) fn begin_pass(&self, blocks_total: u64, mark: Mark) {
        self.set_mark(mark);
        self.blocks_total.store(blocks_total, Relaxed);
        self.blocks_verified.store(0, Relaxed);
        self.begin_counting();
    }

    /// Where a process that rewrites a database begins, or ended.
    pub(crate) fn mark(&self) -> Mark {
        let [database, relation, storage, fork, block] = std::array::from_fn(|i| self.mark[i].load(Acquire));
        Mark { database, relation, storage, fork, block, done: self.blocks_done.load(Relaxed) }
    }

    /// Everything before the mark is done.
    pub(crate) fn set_mark(&self, mark: Mark) {
        let Mark { database, relation, storage, fork, block, done } = mark;
        for (word, value) in self.mark.iter().zip([database, relation, storage, fork, block]) {
            word.store(value, Release);
        }
        self.blocks_done.store(done, Relaxed);
    }

    /// Whether somebody wants it to wait.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Acquire) != 0
    }

    /// Makes it wait, or go on.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused.into(), Release);
    }

    /// Something else has to be done now than this, which a job that takes the slot meanwhile does not mind.
    pub(crate) fn cancel(&self, id: JobId) {
        self.cancelled.store(id.from, Release);
    }

    /// Another attempt is made after this.
    pub(crate) fn again_in(&self, pause: Duration) {
        self.not_before.store(now() + pause.as_secs(), Relaxed);
        self.launched.store(0, Relaxed);
    }

    /// When its process was started last, in seconds since 1970.
    pub(crate) fn launched(&self) -> u64 {
        self.launched.load(Relaxed).max(self.not_before.load(Relaxed))
    }

    /// Whether its process was started so little ago that it may not be there yet.
    pub(crate) fn is_being_launched(&self, grace: Duration) -> bool {
        now() < self.launched.load(Relaxed) + grace.as_secs()
    }

    /// Whether its process may be started; notes that it is being started if so.
    pub(crate) fn launch(&self, grace: Duration) -> bool {
        if self.is_being_launched(grace) || now() < self.not_before.load(Relaxed) {
            return false;
        }
        self.launched.store(now(), Relaxed);
        true
    }

    /// `true` the first time.
    pub(crate) fn announce(&self) -> bool {
        self.reported.store(now(), Relaxed);
        self.announced.swap(1, Relaxed) == 0
    }

    /// Whether the log was told nothing for so long; `true` once each time.
    pub(crate) fn report_is_due(&self, every: Duration) -> bool {
        let last = self.reported.load(Relaxed);
        let due = last != 0 && now() >= last + every.as_secs();
        if due {
            self.reported.store(now(), Relaxed);
        }
        due
    }

    /// Rewrites only what is not as it should be.
    pub(crate) fn set_repair(&self, repair: bool) {
        self.repair.store(repair.into(), Release);
    }

    /// Whether only that is to be rewritten.
    pub(crate) fn is_repair(&self) -> bool {
        self.repair.load(Acquire) != 0
    }

    /// Whether a process that rewrites a database shall stop at the next mark.
    pub(crate) fn must_stop(&self) -> bool {
        self.is_paused() || self.cancelled.load(Acquire) == self.from.load(Acquire)
    }

    /// The rate begins anew: another phase, or the job waited.
    pub(crate) fn begin_counting(&self) {
        self.rate.store(0, Relaxed);
        self.counted_at.store(0, Relaxed);
    }

    /// Notes how many blocks of this phase are done, for the rate.
    fn count(&self, blocks: u64) {
        let now = u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX);
        let last = self.counted_at.load(Relaxed);
        let passed = now.saturating_sub(last);
        if last != 0 && passed < RATE_WINDOW {
            return;
        }
        if last != 0 {
            let fresh = blocks.saturating_sub(self.counted.load(Relaxed)) * 1000 / passed;
            let old = self.rate.load(Relaxed);
            self.rate.store(if old == 0 { fresh } else { (3 * old + fresh) / 4 }, Relaxed);
        }
        self.counted_at.store(now, Relaxed);
        self.counted.store(blocks, Relaxed);
    }

    /// So many blocks more were found to be as they should be.
    pub(crate) fn verified(&self, blocks: u64) {
        self.count(self.blocks_verified.fetch_add(blocks, Relaxed) + blocks);
    }

    /// A pass left something to do.
    pub(crate) fn pass_failed(&self) -> u32 {
        self.attempts.fetch_add(1, Relaxed) + 1
    }

    /// What it does now.
    pub(crate) fn enter(&self, phase: Phase) {
        self.database.store(0, Relaxed);
        self.relation.store(0, Relaxed);
        self.phase.store(phase as u32, Relaxed);
        self.begin_counting();
        if phase == Phase::Done {
            self.pid.store(0, Relaxed);
        }
    }

    /// Where it is.
    pub(crate) fn at(&self, database: u32, relation: u32) {
        self.database.store(database, Relaxed);
        self.relation.store(relation, Relaxed);
    }

    /// So many blocks more.
    pub(crate) fn advance(&self, blocks: u64) {
        self.count(self.blocks_done.fetch_add(blocks, Relaxed) + blocks);
    }

    /// How the work on a database ended. The process that does it says so last.
    pub(crate) fn set_outcome(&self, outcome: Outcome) {
        self.outcome.store(outcome as u32, Release);
    }

    /// What [`Self::set_outcome`] said.
    pub(crate) fn outcome(&self) -> Outcome {
        match self.outcome.load(Acquire) {
            1 => Outcome::Done,
            2 => Outcome::Yielded,
            _ => Outcome::Failed,
        }
    }
}

/// All jobs of the running server.
#[repr(C)]
pub(crate) struct JobTable {
    /// Process that starts jobs, 0 while there is none.
    launcher: AtomicU32,
    /// When there was no worker for a job, in seconds since 1970.
    lacked: AtomicU64,
    jobs: [Job; MAX_JOBS],
}

impl JobTable {
    /// The process that starts jobs.
    pub(crate) fn launcher(&self) -> u32 {
        self.launcher.load(Acquire)
    }

    /// This process starts jobs.
    pub(crate) fn set_launcher(&self, pid: u32) {
        self.launcher.store(pid, Release);
    }

    /// Jobs of lines that have none any more.
    pub(crate) fn without(&self, lines: impl Fn(u64) -> bool) -> impl Iterator<Item = &Job> {
        self.jobs
            .iter()
            .filter(move |job| job.progress().is_some_and(|job| job.phase != Phase::Done && !lines(job.line)))
    }

    /// There is no worker for a job.
    pub(crate) fn lack_workers(&self) {
        self.lacked.store(now(), Relaxed);
    }

    /// Whether that was so lately.
    pub(crate) fn lacked_workers(&self, lately: Duration) -> bool {
        now() < self.lacked.load(Relaxed) + lately.as_secs()
    }

    /// The job in a slot.
    pub(crate) fn get(&self, slot: usize) -> Option<&Job> {
        self.jobs.get(slot)
    }

    /// The job of a line, unless it has ended.
    pub(crate) fn of_line(&self, line: u64) -> Option<&Job> {
        self.jobs.iter().find(|job| {
            job.progress().is_some_and(|progress| progress.line == line && progress.phase != Phase::Done)
        })
    }

    /// All that are under way or remembered.
    pub(crate) fn all(&self) -> impl Iterator<Item = Progress> + '_ {
        self.jobs.iter().filter_map(Job::progress)
    }

    /// The slot of a line's job, begun anew if that has ended or something else has to be done by now, or another. Only for the launcher.
    /// `idle`: whether the job has no process. `None` when all are taken.
    pub(crate) fn claim(
        &self,
        line: &LineInfo,
        kind: Kind,
        from: u64,
        idle: &dyn Fn() -> bool,
    ) -> Option<usize> {
        let find = |wanted: &dyn Fn(Option<Progress>) -> bool| {
            self.jobs.iter().position(|job| wanted(job.progress()))
        };
        let of_line = |ended: bool| {
            find(&|job| job.is_some_and(|job| job.line == line.line && (job.phase == Phase::Done) == ended))
        };
        if let Some(slot) = of_line(false) {
            let job = &self.jobs[slot];
            let same = job.id().from == from && job.progress().is_some_and(|job| job.kind == kind);
            // What had to be done before is over; if it still has a process, that will notice.
            if same || !idle() {
                return Some(slot);
            }
            job.enter(Phase::Done);
        }
        let slot = of_line(true)
            .or_else(|| find(&|job| job.is_none()))
            .or_else(|| find(&|job| job.is_some_and(|job| job.phase == Phase::Done)))?;
        let job = &self.jobs[slot];
        job.line.store(0, Release);
        job.tablespace.store(line.tablespace, Relaxed);
        job.kind.store(kind as u32, Relaxed);
        job.enter(Phase::Starting);
        job.begin_pass(0, Mark::default());
        job.attempts.store(0, Relaxed);
        job.from.store(from, Release);
        job.pid.store(0, Relaxed);
        job.paused.store(0, Relaxed);
        job.cancelled.store(0, Relaxed);
        job.announced.store(0, Relaxed);
        job.reported.store(0, Relaxed);
        job.not_before.store(0, Relaxed);
        job.started.store(now(), Relaxed);
        job.launched.store(0, Relaxed);
        job.line.store(line.line, Release);
        Some(slot)
    }
}

#[cfg(test)]
mod tests {
    use page_cipher::CipherId;

    use super::*;
    use crate::ffi::shared;
    use crate::span::{OPEN_END, Span};

    fn line(number: u64) -> LineInfo {
        let span = Span { start: 100, strict: OPEN_END, closing: OPEN_END, end: OPEN_END };
        let (index, version, tablespace, awaited) = (0, 1, 16400, false);
        LineInfo { index, line: number, version, tablespace, cipher: CipherId::Aes256Hctr2, span, awaited }
    }

    #[test]
    fn a_line_keeps_its_slot_and_only_finished_jobs_make_room() {
        let jobs = &shared::key_table().expect("a mapping").jobs;
        for number in 1..=MAX_JOBS as u64 {
            assert_eq!(jobs.claim(&line(number), Kind::Encrypt, 100, &|| true), Some(number as usize - 1));
        }
        assert_eq!(jobs.claim(&line(3), Kind::Encrypt, 100, &|| true), Some(2));
        assert_eq!(jobs.claim(&line(99), Kind::Rotate, 100, &|| true), None);
        jobs.get(4).expect("a slot").enter(Phase::Done);
        assert_eq!(jobs.claim(&line(99), Kind::Rotate, 100, &|| true), Some(4));
        assert_eq!(jobs.all().filter(|job| job.phase == Phase::Starting).count(), MAX_JOBS);
        assert_eq!(
            jobs.all().filter(|job| job.kind == Kind::Rotate).map(|job| job.line).collect::<Vec<_>>(),
            [99]
        );
        // Something else has to be done: not while the process of before is there.
        assert_eq!(jobs.claim(&line(3), Kind::Decrypt, 200, &|| false), Some(2));
        assert_eq!(jobs.get(2).and_then(Job::progress).map(|job| job.kind), Some(Kind::Encrypt));
        assert_eq!(jobs.claim(&line(3), Kind::Decrypt, 200, &|| true), Some(2));
        assert_eq!(jobs.get(2).and_then(Job::progress).map(|job| job.kind), Some(Kind::Decrypt));
        assert_eq!(jobs.without(|line| line != 7).count(), 1);
        jobs.get(4).expect("a slot").enter(Phase::Done);
        assert_eq!(jobs.claim(&line(99), Kind::Encrypt, 100, &|| true), Some(4));
        assert_eq!(jobs.all().filter(|job| job.kind == Kind::Rotate).count(), 0);
    }

    /// Whoever turns a job back changes the state first: the launcher may take the slot for the new job before the old one is told.
    #[test]
    fn cancelling_a_job_does_not_stop_the_one_that_took_its_slot() {
        let jobs = &shared::key_table().expect("a mapping").jobs;
        let slot = jobs.claim(&line(1), Kind::Encrypt, 100, &|| true).expect("room");
        let job = jobs.get(slot).expect("claimed");
        let encrypting = job.id();
        assert_eq!(jobs.claim(&line(1), Kind::Decrypt, 200, &|| true), Some(slot));
        job.cancel(encrypting);
        assert!(!job.must_stop(), "the new job");
        job.cancel(job.id());
        assert!(job.must_stop());
        assert_eq!(jobs.claim(&line(1), Kind::Encrypt, 300, &|| true), Some(slot));
        assert!(!job.must_stop(), "what was cancelled before");
    }

    #[test]
    fn a_job_is_not_launched_twice_in_a_row() {
        let jobs = &shared::key_table().expect("a mapping").jobs;
        let slot = jobs.claim(&line(1), Kind::Encrypt, 100, &|| true).expect("room");
        let job = jobs.get(slot).expect("claimed");
        assert!(job.launch(Duration::from_secs(60)));
        assert!(!job.launch(Duration::from_secs(60)));
        assert!(job.launch(Duration::ZERO));
        job.again_in(Duration::from_secs(60));
        assert!(!job.launch(Duration::ZERO));
        job.again_in(Duration::ZERO);
        assert!(job.launch(Duration::from_secs(60)));
    }
}
