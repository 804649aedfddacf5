//! Rewriting pages through shared buffers.

use page_cipher::pg::{self, Fork, PAGE_SIZE, Page};
use pgrx::pg_sys::{self, ForkNumber};
use pgrx::prelude::*;

use super::{background, server};
use crate::ffi::compat::{self, RelationId};
use crate::key_table::PG_GLOBAL;
use crate::rewrite::{Chunk, Rewritten};

/// Every relation of this process's database with storage in a tablespace, by OID, and where its storage is. Temporary ones belong to
/// their sessions.
pub(crate) fn relations_in(tablespace: u32) -> Vec<(u32, RelationId)> {
    let query = "SELECT c.oid, pg_catalog.pg_relation_filenode(c.oid)
        FROM pg_catalog.pg_class c, pg_catalog.pg_database d
        WHERE d.oid = $1 AND c.relkind IN ('r', 'i', 'm', 't', 'S') AND c.relpersistence <> 't'
            AND coalesce(nullif(c.reltablespace, 0), d.dattablespace) = $2
        ORDER BY c.oid";
    // SAFETY: a plain global, set when this process connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    background::transaction(|| {
        Spi::connect(|client| {
            let arguments = [database.into(), pg_sys::Oid::from(tablespace).into()];
            let mut found = Vec::new();
            for row in client.select(query, None, &arguments)? {
                let (Some(oid), Some(number)) = (row.get::<pg_sys::Oid>(1)?, row.get::<pg_sys::Oid>(2)?)
                else {
                    continue; // dropped meanwhile
                };
                let (oid, number) = (oid.to_u32(), number.to_u32());
                // Relations in pg_global belong to no database.
                let database = if tablespace == PG_GLOBAL { 0 } else { database.to_u32() };
                found.push((oid, RelationId { tablespace, database, number, temporary: false }));
            }
            Ok::<_, pgrx::spi::Error>(found)
        })
    })
    .unwrap_or_else(|error| error!("pg_tde cannot list the relations of tablespace {tablespace}: {error}"))
}

/// An open relation, locked until the transaction ends.
struct Locked(pg_sys::Relation);

impl Locked {
    /// `None` when the relation is gone or its storage is not what was expected.
    fn open(oid: u32, storage: RelationId) -> Option<Self> {
        // SAFETY: called inside a transaction; the result is null or a valid entry of the relation cache until it is closed.
        let relation = unsafe { pg_sys::try_relation_open(oid.into(), pg_sys::AccessShareLock as i32) };
        if relation.is_null() {
            return None;
        }
        let locked = Self(relation);
        if locked.storage() == storage { Some(locked) } else { None }
    }

    fn storage(&self) -> RelationId {
        // SAFETY: the relation is open.
        unsafe { compat::storage_of(&*self.0) }
    }

    fn persistence(&self) -> u8 {
        // SAFETY: the relation is open, and its catalog row with it.
        unsafe { (*(*self.0).rd_rel).relpersistence as u8 }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: opened in `open`. After an ERROR the transaction's end closes it, and the relation must be left alone.
        unsafe {
            if !std::thread::panicking() {
                pg_sys::relation_close(self.0, pg_sys::NoLock as i32);
            }
        }
    }
}

fn fork_number(fork: Fork) -> ForkNumber::Type {
    match fork {
        Fork::Main => ForkNumber::MAIN_FORKNUM,
        Fork::Fsm => ForkNumber::FSM_FORKNUM,
        Fork::Vm => ForkNumber::VISIBILITYMAP_FORKNUM,
        Fork::Init => ForkNumber::INIT_FORKNUM,
    }
}

/// Logs an image of every page of a chunk and marks it dirty, in a transaction of its own.
pub(crate) fn rewrite(chunk: Chunk) -> Rewritten {
    background::transaction(|| {
        if !background::try_visit_databases() {
            return Rewritten::Yield;
        }
        let Some(relation) = Locked::open(chunk.oid, chunk.storage) else { return Rewritten::Gone };
        let fork = fork_number(chunk.fork);
        // An unlogged relation's init fork is logged as any permanent page.
        let permanent = relation.persistence() == b'p' || chunk.fork == Fork::Init;
        // SAFETY: the relation cannot be dropped or truncated while it is locked.
        let blocks = unsafe {
            let reln = compat::open_relation(chunk.storage);
            if pg_sys::smgrexists(reln, fork) { pg_sys::smgrnblocks(reln, fork) } else { 0 }
        };
        let end = blocks.min(chunk.first.saturating_add(chunk.blocks));
        // SAFETY: a strategy keeps the pages from pushing everything else out of the buffers.
        let strategy = unsafe { pg_sys::GetAccessStrategy(pg_sys::BufferAccessStrategyType::BAS_BULKWRITE) };
        for block in chunk.first..end {
            server::check_for_interrupts();
            // SAFETY: the block exists, and nobody can truncate the relation.
            unsafe { rewrite_block(chunk.storage, chunk.fork, block, permanent, strategy) };
        }
        // SAFETY: made above, no longer used.
        unsafe { pg_sys::FreeAccessStrategy(strategy) };
        Rewritten::Blocks(end.saturating_sub(chunk.first))
    })
}

/// # Safety
/// Inside a transaction; the block exists and the relation is locked.
unsafe fn rewrite_block(
    storage: RelationId,
    fork: Fork,
    block: u32,
    permanent: bool,
    strategy: pg_sys::BufferAccessStrategy,
) {
    let map = matches!(fork, Fork::Fsm | Fork::Vm);
    // SAFETY: the buffer is pinned, and locked while its page is looked at and changed. The counter is what
    // START_CRIT_SECTION and END_CRIT_SECTION change (miscadmin.h): between them an ERROR ends the server.
    unsafe {
        let buffer = compat::read_page(storage, fork_number(fork), block, map, permanent, strategy);
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
        let start = pg_sys::BufferBlocks.add((buffer as usize - 1) * PAGE_SIZE);
        // A page of zeros looks the same encrypted. One of a map may be zero in the buffer only: it was torn in the file.
        if map || !pg::is_zero(&*start.cast::<Page>()) {
            pg_sys::CritSectionCount += 1;
            pg_sys::MarkBufferDirty(buffer);
            if permanent {
                // With the hole: pd_lower and pd_upper of maps and some metapages do not say where it is.
                pg_sys::log_newpage_buffer(buffer, false);
            }
            pg_sys::CritSectionCount -= 1;
        }
        pg_sys::UnlockReleaseBuffer(buffer);
    }
}

/// Writes the pages of an unlogged relation out: checkpoints leave them in the buffers.
pub(crate) fn flush_unlogged(oid: u32, storage: RelationId) {
    background::transaction(|| {
        if let Some(relation) = Locked::open(oid, storage).filter(|open| open.persistence() == b'u') {
            // SAFETY: the relation is open and locked.
            unsafe { pg_sys::FlushRelationBuffers(relation.0) };
        }
    });
}
