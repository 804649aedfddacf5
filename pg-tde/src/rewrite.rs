//! Rewriting every page of one database that a tablespace holds: an image in the WAL, and dirty.
//!
//! Relations come from the catalog after all transactions have ended that made files before the tablespace changed; what is
//! made later is right from its first page on. A relation is locked against being dropped, truncated or moved for a few
//! blocks at a time, and left alone once its storage is another one.

use std::time::{Duration, Instant};

use page_cipher::pg::Fork;

use crate::ffi::compat::RelationId;
use crate::ffi::{background, pages, server};
use crate::job_table::{Job, Outcome};
use crate::{report, settings};

/// Blocks that are rewritten under one lock of their relation.
const CHUNK: u32 = 128;
/// Between two lines in the log.
const REPORT_EVERY: Duration = Duration::from_secs(60);

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rewritten {
    /// So many blocks, fewer than asked for at the end of the fork.
    Blocks(u32),
    /// The relation is gone, or its storage is another one.
    Gone,
    /// Somebody needs the database for himself.
    Yield,
}

/// Rewrites what the tablespace holds of this process's database.
pub(crate) fn database(job: &Job, database: u32, tablespace: u32) -> Outcome {
    let mut throttle = Throttle::new();
    for (oid, storage) in pages::relations_in(tablespace) {
        job.at(database, oid);
        if !relation(job, oid, storage, &mut throttle) {
            return Outcome::Yielded;
        }
    }
    Outcome::Done
}

/// `false`: somebody needs the database for himself.
fn relation(job: &Job, oid: u32, storage: RelationId, throttle: &mut Throttle) -> bool {
    for fork in [Fork::Main, Fork::Fsm, Fork::Vm, Fork::Init] {
        let mut first = 0;
        loop {
            let wanted = CHUNK.min(settings::job_cost_limit());
            let chunk = Chunk { oid, storage, fork, first, blocks: wanted };
            let blocks = match pages::rewrite(chunk) {
                Rewritten::Blocks(blocks) => blocks,
                Rewritten::Gone => return true,
                Rewritten::Yield => return false,
            };
            job.advance(blocks.into());
            throttle.spend(job, blocks);
            if blocks < wanted {
                break;
            }
            first += blocks;
        }
    }
    pages::flush_unlogged(oid, storage);
    true
}

/// Keeps to `pg_tde.job_cost_limit` blocks between two pauses of `pg_tde.job_cost_delay`.
struct Throttle {
    spent: u32,
    reported: Instant,
}

impl Throttle {
    fn new() -> Self {
        Self { spent: 0, reported: Instant::now() }
    }

    fn spend(&mut self, job: &Job, blocks: u32) {
        background::reload_if_asked();
        self.spent += blocks;
        let delay = settings::job_cost_delay();
        if self.spent >= settings::job_cost_limit() && !delay.is_zero() {
            self.spent = 0;
            background::nap(delay);
        }
        server::check_for_interrupts();
        if self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            if let Some(progress) = job.progress() {
                report::job_progress(&progress);
            }
        }
    }
}
