//! What the background jobs are doing, in memory that every process shares.
//!
//! A job exists because a line of the keyring says so (`State::job`); this table only shows how far it is. The launcher claims
//! slots, the job's processes fill them.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
        }
    }

    fn of(word: u32) -> Self {
        let all =
            [Self::Waiting, Self::Rewriting, Self::Checkpointing, Self::Verifying, Self::Pausing, Self::Done];
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
    /// Somebody needs the database for himself.
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
    /// Seconds since 1970.
    started: AtomicU64,
    launched: AtomicU64,
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
    /// Passes over the tablespace that did not finish it.
    pub(crate) attempts: u32,
    /// Seconds since 1970.
    pub(crate) started: u64,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

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
            attempts: self.attempts.load(Relaxed),
            started: self.started.load(Relaxed),
        })
    }

    /// Begins another pass over `blocks_total` blocks.
    pub(crate) fn begin_pass(&self, blocks_total: u64) {
        self.blocks_done.store(0, Relaxed);
        self.blocks_total.store(blocks_total, Relaxed);
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
    }

    /// Where it is.
    pub(crate) fn at(&self, database: u32, relation: u32) {
        self.database.store(database, Relaxed);
        self.relation.store(relation, Relaxed);
    }

    /// So many blocks more.
    pub(crate) fn advance(&self, blocks: u64) {
        self.blocks_done.fetch_add(blocks, Relaxed);
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

    /// The job in a slot.
    pub(crate) fn get(&self, slot: usize) -> Option<&Job> {
        self.jobs.get(slot)
    }

    /// All that are under way or remembered.
    pub(crate) fn all(&self) -> impl Iterator<Item = Progress> + '_ {
        self.jobs.iter().filter_map(Job::progress)
    }

    /// The slot of a line's job, begun anew if that has ended, or another. Only for the launcher. `None` when all are taken.
    pub(crate) fn claim(&self, line: &LineInfo, kind: Kind) -> Option<usize> {
        let find = |wanted: &dyn Fn(Option<Progress>) -> bool| {
            self.jobs.iter().position(|job| wanted(job.progress()))
        };
        let of_line = |ended: bool| {
            find(&|job| job.is_some_and(|job| job.line == line.line && (job.phase == Phase::Done) == ended))
        };
        if let Some(slot) = of_line(false) {
            return Some(slot);
        }
        let slot = of_line(true)
            .or_else(|| find(&|job| job.is_none()))
            .or_else(|| find(&|job| job.is_some_and(|job| job.phase == Phase::Done)))?;
        let job = &self.jobs[slot];
        job.line.store(0, Release);
        job.tablespace.store(line.tablespace, Relaxed);
        job.kind.store(kind as u32, Relaxed);
        job.enter(Phase::Starting);
        job.begin_pass(0);
        job.attempts.store(0, Relaxed);
        job.started.store(now(), Relaxed);
        job.launched.store(0, Relaxed);
        job.line.store(line.line, Release);
        Some(slot)
    }

    /// Whether the process of a job was started less than `grace` ago; notes that it is being started if not.
    pub(crate) fn launch(&self, slot: usize, grace: Duration) -> bool {
        let (job, now) = (&self.jobs[slot], now());
        if now < job.launched.load(Relaxed) + grace.as_secs() {
            return false;
        }
        job.launched.store(now, Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use page_cipher::CipherId;

    use super::*;
    use crate::ffi::shared;
    use crate::key_table::{OPEN_END, Span};

    fn line(number: u64) -> LineInfo {
        let span = Span { start: 100, strict: OPEN_END, closing: OPEN_END, end: OPEN_END };
        let (index, version, tablespace, awaited) = (0, 1, 16400, false);
        LineInfo { index, line: number, version, tablespace, cipher: CipherId::Aes256Hctr2, span, awaited }
    }

    #[test]
    fn a_line_keeps_its_slot_and_only_finished_jobs_make_room() {
        let jobs = &shared::key_table().expect("a mapping").jobs;
        for number in 1..=MAX_JOBS as u64 {
            assert_eq!(jobs.claim(&line(number), Kind::Encrypt), Some(number as usize - 1));
        }
        assert_eq!(jobs.claim(&line(3), Kind::Encrypt), Some(2));
        assert_eq!(jobs.claim(&line(99), Kind::Rotate), None);
        jobs.get(4).expect("a slot").enter(Phase::Done);
        assert_eq!(jobs.claim(&line(99), Kind::Rotate), Some(4));
        assert_eq!(jobs.all().filter(|job| job.phase == Phase::Starting).count(), MAX_JOBS);
        assert_eq!(
            jobs.all().filter(|job| job.kind == Kind::Rotate).map(|job| job.line).collect::<Vec<_>>(),
            [99]
        );
        jobs.get(4).expect("a slot").enter(Phase::Done);
        assert_eq!(jobs.claim(&line(99), Kind::Encrypt), Some(4));
        assert_eq!(jobs.all().filter(|job| job.kind == Kind::Rotate).count(), 0);
    }

    #[test]
    fn a_job_is_not_launched_twice_in_a_row() {
        let jobs = &shared::key_table().expect("a mapping").jobs;
        let slot = jobs.claim(&line(1), Kind::Encrypt).expect("room");
        assert!(jobs.launch(slot, Duration::from_secs(60)));
        assert!(!jobs.launch(slot, Duration::from_secs(60)));
        assert!(jobs.launch(slot, Duration::ZERO));
    }
}
