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
        WHERE d.oid OPERATOR(pg_catalog.=) $1 AND c.relpersistence OPERATOR(pg_catalog.<>) 't'
            AND (c.relkind OPERATOR(pg_catalog.=) 'r' OR c.relkind OPERATOR(pg_catalog.=) 'i'
                OR c.relkind OPERATOR(pg_catalog.=) 'm' OR c.relkind OPERATOR(pg_catalog.=) 't'
                OR c.relkind OPERATOR(pg_catalog.=) 'S')
            AND (c.reltablespace OPERATOR(pg_catalog.=) $2
                OR c.reltablespace OPERATOR(pg_catalog.=) 0 AND d.dattablespace OPERATOR(pg_catalog.=) $2)
        ORDER BY c.oid USING OPERATOR(pg_catalog.<)";
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

/// What became of a try to lock a relation.
enum Tried {
    Locked(Locked),
    /// It is gone, or its storage is not what was expected.
    Gone,
    /// Somebody else has it.
    Busy,
}

impl Locked {
    /// Does not wait: whoever has the relation may himself wait for jobs to leave the database.
    fn try_open(oid: u32, storage: RelationId) -> Tried {
        // SAFETY: called inside a transaction; the result is null or a valid entry of the relation cache until it is closed.
        let relation = unsafe {
            if !pg_sys::ConditionalLockRelationOid(oid.into(), pg_sys::AccessShareLock as i32) {
                return Tried::Busy;
            }
            pg_sys::try_relation_open(oid.into(), pg_sys::NoLock as i32)
        };
        if relation.is_null() {
            return Tried::Gone;
        }
        let locked = Self(relation);
        if locked.storage() == storage { Tried::Locked(locked) } else { Tried::Gone }
    }

    fn name(&self) -> String {
        // SAFETY: the relation is open, and its catalog row with it; the name ends with a zero.
        let name = unsafe { std::ffi::CStr::from_ptr((*(*self.0).rd_rel).relname.data.as_ptr()) };
        name.to_string_lossy().into_owned()
    }

    fn storage(&self) -> RelationId {
        // SAFETY: the relation is open.
        unsafe { compat::storage_of(&*self.0) }
    }

    fn persistence(&self) -> u8 {
        // SAFETY: the relation is open, and its catalog row with it.
        unsafe { (*(*self.0).rd_rel).relpersistence as u8 }
    }

    fn kind(&self) -> u8 {
        // SAFETY: the relation is open, and its catalog row with it.
        unsafe { (*(*self.0).rd_rel).relkind as u8 }
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
    let mut name = String::new();
    let result = background::try_transaction(|| {
        if !background::try_visit_databases() {
            return Rewritten::Yield;
        }
        let relation = match Locked::try_open(chunk.oid, chunk.storage) {
            Tried::Locked(relation) => relation,
            Tried::Gone => return Rewritten::Gone,
            Tried::Busy => return Rewritten::Locked,
        };
        name = relation.name();
        let fork = fork_number(chunk.fork);
        // An unlogged relation's init fork is logged as any permanent page.
        let permanent = relation.persistence() == b'p' || chunk.fork == Fork::Init;
        let page_kind = PageKind { permanent, sequence: relation.kind() == b'S' && chunk.fork == Fork::Main };
        // SAFETY: the relation cannot be dropped or truncated while it is locked.
        let blocks = unsafe {
            let reln = compat::open_relation(chunk.storage);
            if pg_sys::smgrexists(reln, fork) { pg_sys::smgrnblocks(reln, fork) } else { 0 }
        };
        let end = blocks.min(chunk.first.saturating_add(chunk.blocks));
        // SAFETY: a strategy keeps the pages from pushing everything else out of the buffers.
        let strategy = unsafe { pg_sys::GetAccessStrategy(pg_sys::BufferAccessStrategyType::BAS_BULKWRITE) };
        let mut logged = 0;
        for block in chunk.first..end {
            server::check_for_interrupts();
            // SAFETY: the block exists, and nobody can truncate the relation.
            logged =
                logged.max(unsafe { rewrite_block(chunk.storage, chunk.fork, block, page_kind, strategy) });
        }
        // SAFETY: made above, no longer used.
        unsafe { pg_sys::FreeAccessStrategy(strategy) };
        Rewritten::Blocks(end.saturating_sub(chunk.first), logged)
    });
    result.unwrap_or_else(|error| Rewritten::Failed(name, error))
}

/// What a page belongs to.
#[derive(Clone, Copy)]
struct PageKind {
    /// Its changes are in the WAL.
    permanent: bool,
    /// A sequence's.
    sequence: bool,
}

/// Makes the next `nextval` write WAL. A sequence is ahead in the WAL by up to 32 values, which its page counts (`log_cnt`,
/// commands/sequence.c). An image of the page is not ahead: without this, recovery would end at the image and give values out twice.
fn log_next_value(page: &mut Page) {
    let word = |at: usize| u32::from_ne_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    // The only line pointer, then t_hoff of its tuple; the columns are last_value, log_cnt, is_called.
    let tuple = (word(24) & 0x7fff) as usize;
    if let Some(&length) = page.get(tuple + 22)
        && let Some(log_cnt) =
            page.get_mut(tuple + usize::from(length) + 8..).and_then(|rest| rest.get_mut(..8))
    {
        log_cnt.fill(0);
    }
}

/// Returns where the image ends in the WAL, 0 without one.
///
/// # Safety
/// Inside a transaction; the block exists and the relation is locked.
unsafe fn rewrite_block(
    storage: RelationId,
    fork: Fork,
    block: u32,
    PageKind { permanent, sequence }: PageKind,
    strategy: pg_sys::BufferAccessStrategy,
) -> u64 {
    let map = matches!(fork, Fork::Fsm | Fork::Vm);
    let mut logged = 0;
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
                if sequence {
                    log_next_value(&mut *start.cast::<Page>());
                }
                // With the hole: pd_lower and pd_upper of maps and some metapages do not say where it is.
                logged = pg_sys::log_newpage_buffer(buffer, false);
            }
            pg_sys::CritSectionCount -= 1;
        }
        pg_sys::UnlockReleaseBuffer(buffer);
    }
    logged
}

/// Writes the pages of an unlogged relation out: checkpoints leave them in the buffers.
pub(crate) fn flush_unlogged(oid: u32, storage: RelationId) {
    background::transaction(|| {
        if let Tried::Locked(relation) = Locked::try_open(oid, storage)
            && relation.persistence() == b'u'
        {
            // SAFETY: the relation is open and locked.
            unsafe { pg_sys::FlushRelationBuffers(relation.0) };
        }
    });
}
