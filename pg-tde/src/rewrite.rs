//! Rewriting every page of one database that a tablespace holds: an image in the WAL, and dirty.
//!
//! Relations come from the catalog after all transactions have ended that made files before the tablespace changed; what is
//! made later is right from its first page on. A relation is locked against being dropped, truncated or moved for a few
//! blocks at a time, and left alone once its storage is another one.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use page_cipher::pg::Fork;

use crate::ffi::compat::RelationId;
use crate::ffi::{background, pages, server};
use crate::job_file::Mark;
use crate::job_table::{Job, Outcome};
use crate::{job_file, lock, report, settings};

/// Blocks that are rewritten under one lock of their relation.
const CHUNK: u32 = 128;
/// How often a locked relation is tried before it is left for later, and the pause between.
const LOCKED_TRIES: u32 = 50;
const LOCK_NAP: Duration = Duration::from_millis(100);
/// Pages of a relation that cannot be rewritten, before the rest of it is left for later.
const MAX_FAILURES: u32 = 20;
/// Between two marks on disk.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// A few blocks of a relation's fork.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    /// OID of the relation.
    pub(crate) oid: u32,
    /// Where its storage must be: anything else was made after the change.
    pub(crate) storage: RelationId,
    /// The fork.
    pub(crate) fork: Fork,
    /// First block.
    pub(crate) first: u32,
    /// How many.
    pub(crate) blocks: u32,
}

/// What became of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rewritten {
    /// So many blocks, fewer than asked for at the end of the fork, and where their images end in the WAL.
    Blocks(u32, u64),
    /// The relation is gone, or its storage is another one.
    Gone,
    /// Somebody needs the database for himself.
    Yield,
    /// Somebody else has locked the relation.
    Locked,
    /// The server reported an error: the relation's name, and what it said.
    Failed(String, String),
}

const FORKS: [Fork; 4] = [Fork::Main, Fork::Fsm, Fork::Vm, Fork::Init];

/// Rewrites what the tablespace holds of this process's database: from the job's mark on, or only certain files.
pub(crate) fn database(job: &Job, database: u32, tablespace: u32, only: Option<&BTreeSet<u32>>) -> Outcome {
    let mut work = Work { job, marks: only.is_none(), pace: Pace::new(), complete: true };
    for (oid, storage) in pages::relations_in(tablespace) {
        if only.is_some_and(|numbers| !numbers.contains(&storage.number)) {
            continue;
        }
        let mark = job.mark();
        // A mark in another database is in one that comes before: those behind it are not begun.
        let begun = only.is_none() && mark.database == storage.database;
        if begun && oid < mark.relation {
            continue;
        }
        let begun = begun && oid == mark.relation && storage.number == mark.storage;
        let from = if begun { (mark.fork as usize, mark.block) } else { (0, 0) };
        job.at(database, oid);
        if !work.relation(oid, storage, from) {
            return Outcome::Yielded;
        }
    }
    if work.complete { Outcome::Done } else { Outcome::Failed }
}

struct Work<'a> {
    job: &'a Job,
    /// Whether the job's mark moves along.
    marks: bool,
    pace: Pace,
    /// Nothing was left out.
    complete: bool,
}

impl Work<'_> {
    /// `false`: it stopped at the job's mark.
    fn relation(&mut self, oid: u32, storage: RelationId, from: (usize, u32)) -> bool {
        let (first_fork, mut first) = from;
        let (mut locked, mut failures, mut single) = (0, 0, 0);
        for (number, fork) in FORKS.into_iter().enumerate().skip(first_fork) {
            loop {
                if self.job.must_stop() || lock::is_on() {
                    self.pace.save(self.job, self.marks);
                    return false;
                }
                // Around a page that cannot be rewritten, one after the other.
                let wanted = if single > 0 { 1 } else { CHUNK.min(settings::job_cost_limit()) };
                let chunk = Chunk { oid, storage, fork, first, blocks: wanted };
                let (blocks, end) = match pages::rewrite(chunk) {
                    Rewritten::Blocks(blocks, end) => (blocks, end),
                    Rewritten::Gone => return true,
                    Rewritten::Yield => return false,
                    Rewritten::Locked if locked < LOCKED_TRIES => {
                        locked += 1;
                        background::nap(LOCK_NAP);
                        continue;
                    }
                    Rewritten::Failed(..) if wanted > 1 => {
                        single = wanted;
                        continue;
                    }
                    Rewritten::Failed(name, error) if failures < MAX_FAILURES => {
                        report::not_rewritten(&chunk, &name, &error);
                        self.complete = false;
                        failures += 1;
                        (1, 0)
                    }
                    // Another time.
                    Rewritten::Locked | Rewritten::Failed(..) => {
                        self.complete = false;
                        return true;
                    }
                };
                single = single.saturating_sub(1);
                first += blocks;
                self.job.advance(blocks.into());
                if self.marks {
                    let (relation, block, done) = (oid, first, self.job.mark().done);
                    let (database, storage, fork) = (storage.database, storage.number, number as u32);
                    self.job.set_mark(Mark { database, relation, storage, fork, block, done });
                }
                self.pace.spend(self.job, blocks, end, self.marks);
                if blocks < wanted {
                    break;
                }
            }
            first = 0;
        }
        pages::flush_unlogged(oid, storage);
        true
    }
}

/// Keeps to `pg_tde.job_cost_limit` blocks between two pauses of `pg_tde.job_cost_delay`, and saves the mark.
struct Pace {
    spent: u32,
    saved: Instant,
    /// Where the images end that this process has logged.
    end: u64,
}

impl Pace {
    fn new() -> Self {
        Self { spent: 0, saved: Instant::now(), end: 0 }
    }

    fn spend(&mut self, job: &Job, blocks: u32, end: u64, marks: bool) {
        background::reload_if_asked();
        self.end = self.end.max(end);
        self.spent += blocks;
        let delay = settings::job_cost_delay();
        if self.spent >= settings::job_cost_limit() && !delay.is_zero() {
            self.spent = 0;
            background::nap(delay);
        }
        server::check_for_interrupts();
        if self.saved.elapsed() >= SAVE_EVERY {
            self.save(job, marks);
        }
    }

    /// The WAL first: what the mark calls done must survive a crash.
    fn save(&mut self, job: &Job, marks: bool) {
        self.saved = Instant::now();
        if !marks {
            return;
        }
        server::flush_wal(self.end);
        if let Err(error) = job_file::save_mark(job.id(), job.mark()) {
            report::mark_not_saved(&error);
        }
    }
}
