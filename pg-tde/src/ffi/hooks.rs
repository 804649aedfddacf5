//! What stands in the storage manager's slots.
//!
//! A hook itself only calls on: first or last the server's own function, and between that our logic behind
//! `#[pg_guard]`. So an `ERROR` of the server jumps over a frame that has nothing to clean up and arrives with all its
//! fields, as if the hook were not there; a Rust panic of ours becomes an `ERROR` before it leaves our logic.
//!
//! Order of a write: the server flushed the WAL up to the page's LSN; the page is copied and sealed in memory of this
//! process; if the WAL cannot repair a torn write of it, it goes to the double-write file and that is synced; then
//! the sealed page is written where the plain one would be. A crash before the last step leaves the old page,
//! during it a torn one, which the image in the WAL or in the double-write file replaces before anybody reads it.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use page_cipher::pg::{Fork, Page};
use pgrx::pg_sys::{self, BlockNumber, ForkNumber, SMgrRelation};
use pgrx::prelude::*;

use super::server;
use super::smgr_table::{SmgrTable, TableError, phantom_relation};
use crate::ffi::compat::{self, md, md::slot};
use crate::key_table::Lock;
use crate::page_io::{self, Cause, Opened, PageAddress, Sealed};
use crate::process::Process;
use crate::{double_write, lock, report, tablespace, tablespace_error};

/// While set, hooks note that they were reached and do nothing else.
static MARKER_MODE: AtomicU32 = AtomicU32::new(0);
const READ: u32 = 1;
const WRITE: u32 = 2;
const EXTEND: u32 = 4;
const CREATE: u32 = 8;
static REACHED: AtomicU32 = AtomicU32::new(0);

fn marked(hook: u32) -> bool {
    if MARKER_MODE.load(Ordering::Relaxed) == 0 {
        return false;
    }
    REACHED.fetch_or(hook, Ordering::Relaxed);
    true
}

/// Puts the hooks into the server's table and proves that the server's calls arrive at them.
///
/// # Errors
/// When the table is not found exactly once, cannot be changed, or the server does not use it.
pub(crate) fn install() -> Result<(), TableError> {
    let table = SmgrTable::find()?;
    MARKER_MODE.store(1, Ordering::Relaxed);
    table.replace(&[
        (slot::CLOSE, close as *const () as usize),
        (slot::CREATE, create as *const () as usize),
        (slot::EXTEND, extend as *const () as usize),
        (slot::READ, read as *const () as usize),
        (slot::WRITE, write as *const () as usize),
        (slot::NBLOCKS, nblocks as *const () as usize),
    ])?;
    let mut phantom = phantom_relation();
    let mut page = [0u8; page_cipher::pg::PAGE_SIZE];
    let (main, reln, buffer) = (ForkNumber::MAIN_FORKNUM, &raw mut phantom, page.as_mut_ptr());
    // SAFETY: in marker mode the hooks return before they touch anything; smgr.c itself only uses `smgr_which` and, after
    // an extension, `smgr_cached_nblocks` of the phantom.
    unsafe {
        compat::call_smgr_read(reln, main, buffer);
        compat::call_smgr_write(reln, main, buffer);
        pg_sys::smgrextend(reln, main, 0, buffer.cast(), true);
        pg_sys::smgrcreate(reln, main, true);
    }
    MARKER_MODE.store(0, Ordering::Relaxed);
    let reached = REACHED.load(Ordering::Relaxed);
    for (hook, name) in
        [(READ, "smgrread"), (WRITE, "smgrwrite"), (EXTEND, "smgrextend"), (CREATE, "smgrcreate")]
    {
        if reached & hook == 0 {
            return Err(TableError::NotReached(name));
        }
    }
    Ok(())
}

fn fork_of(fork: ForkNumber::Type) -> Fork {
    match fork {
        ForkNumber::FSM_FORKNUM => Fork::Fsm,
        ForkNumber::VISIBILITYMAP_FORKNUM => Fork::Vm,
        ForkNumber::INIT_FORKNUM => Fork::Init,
        _ => Fork::Main,
    }
}

/// # Safety
/// `reln` is valid, as in every call of the storage manager.
unsafe fn address(reln: SMgrRelation, fork: ForkNumber::Type, block: BlockNumber) -> PageAddress {
    // SAFETY: the caller's promise.
    let relation = compat::relation_id(unsafe { &*reln });
    PageAddress { relation, fork: fork_of(fork), block }
}

/// Decrypts a page that the storage manager has just read.
///
/// # Safety
/// `reln` is valid and `buffer` points to a page that only this process may touch while it is read.
#[pg_guard]
unsafe extern "C-unwind" fn open_page(
    reln: SMgrRelation,
    fork: ForkNumber::Type,
    block: BlockNumber,
    buffer: *mut c_void,
) {
    let Some(table) = tablespace::key_table() else { return };
    // SAFETY: the caller's promise.
    let (at, page) = unsafe { (address(reln, fork, block), &mut *buffer.cast::<Page>()) };
    match page_io::open(table, at, page) {
        Ok(Opened::Page) => (),
        // Not a page that zero_damaged_pages may wipe: an older keyring may still open it.
        Ok(Opened::Refused(Cause::Destroyed(gone))) if !matches!(at.fork, Fork::Fsm | Fork::Vm) => {
            report::page_destroyed(at, gone);
        }
        Ok(opened) => report::opened(at, opened),
        Err(error) => report::page_error("read", at, &error),
    }
}

/// The page to write instead of the server's: that one itself, or the scratch page of this process with its ciphertext, which stays
/// as it is until the next page is sealed.
///
/// # Safety
/// `reln` is valid and `buffer` points to a page of the server.
#[pg_guard]
unsafe extern "C-unwind" fn seal_page(
    reln: SMgrRelation,
    fork: ForkNumber::Type,
    block: BlockNumber,
    buffer: *const c_void,
    existing: bool,
) -> *const c_void {
    let Some(table) = tablespace::key_table() else { return buffer };
    // SAFETY: the caller's promise.
    let at = unsafe { address(reln, fork, block) };
    // SAFETY: the caller's promise.
    let mut copy = |target: &mut Page| unsafe { server::copy_page(buffer, target) };
    let lsn = match page_io::seal(table, at, &mut copy) {
        Ok(Sealed::Unchanged) => return buffer,
        Ok(Sealed::Scratch { lsn }) => lsn,
        // Never the page in clear.
        Err(error) => report::page_error("write", at, &error),
    };
    Process::with(table, |process| {
        if existing && double_write::needed(table, at, lsn) {
            if let Err(error) = double_write::put(table, at, &process.scratch.0) {
                report::double_write_error(at, &error);
            }
            table.counters(process.pid).double_writes.fetch_add(1, Ordering::Relaxed);
        }
        (&raw const process.scratch.0).cast()
    })
}

/// Makes the WAL hold the key line of an encrypted tablespace, and a plain one stay plain until the transaction ends.
///
/// # Safety
/// `reln` is valid.
#[pg_guard]
unsafe extern "C-unwind" fn before_create(reln: SMgrRelation, fork: ForkNumber::Type, is_redo: bool) {
    let Some(table) = tablespace::key_table() else { return };
    // SAFETY: the caller's promise.
    let relation = compat::relation_id(unsafe { &*reln });
    // `is_redo` is not always true in redo: vm_extend (access/heap/visibilitymap.c) says false there too.
    if is_redo || server::in_redo() {
        if let Err(error) = page_io::key_for_redo(table, relation) {
            report::create_error(relation, &error, "");
        }
        return;
    }
    // The main fork is there, so the line is in the WAL and the tablespace is not empty. No lock may be taken here either:
    // vm_extend and fsm_extend hold the relation's extension lock (lock.c asserts that it is the last one).
    if matches!(fork_of(fork), Fork::Fsm | Fork::Vm) {
        return;
    }
    if let Err(error) = tablespace::before_create(table, relation) {
        report::create_error(relation, &error, tablespace_error::hint(&error));
    }
}

/// `smgr_read`
#[cfg(any(feature = "pg15", feature = "pg16"))]
unsafe extern "C-unwind" fn read(
    reln: SMgrRelation,
    fork: ForkNumber::Type,
    block: BlockNumber,
    buffer: *mut c_void,
) {
    if marked(READ) {
        return;
    }
    // SAFETY: the arguments are passed on as they came; the server hands in a page to fill.
    unsafe {
        md::mdread(reln, fork, block, buffer);
        open_page(reln, fork, block, buffer);
    }
}

/// `smgr_readv`
#[cfg(any(feature = "pg17", feature = "pg18"))]
unsafe extern "C-unwind" fn read(
    reln: SMgrRelation,
    fork: ForkNumber::Type,
    block: BlockNumber,
    buffers: *mut *mut c_void,
    blocks: BlockNumber,
) {
    if marked(READ) {
        return;
    }
    // SAFETY: the arguments are passed on as they came; the server hands in `blocks` pages to fill.
    unsafe {
        md::mdreadv(reln, fork, block, buffers, blocks);
        for index in 0..blocks {
            open_page(reln, fork, block + index, *buffers.add(index as usize));
        }
    }
}

/// `smgr_write`
#[cfg(any(feature = "pg15", feature = "pg16"))]
unsafe extern "C-unwind" fn write(
    reln: SMgrRelation,
    fork: ForkNumber::Type,
    block: BlockNumber,
    buffer: *const c_void,
    skip_fsync: bool,
) {
    if marked(WRITE) {
        return;
    }
    // SAFETY: the arguments are passed on as they came, but for the page.
    unsafe {
        let page = seal_page(reln, fork, block, buffer, true);
        md::mdwrite(reln, fork, block, page, skip_fsync);
    }
}

/// `smgr_writev`: one page at a time, since there is one scratch page.
#[cfg(any(feature = "pg17", feature = "pg18"))]
unsafe extern "C-unwind" fn write(
    reln: SMgrRelation,
    fork: ForkNumber::Type,
    block: BlockNumber,
    buffers: *const *const c_void,
    blocks: BlockNumber,
    skip_fsync: bool,
) {
    if marked(WRITE) {
        return;
    }
    for index in 0..blocks {
        // SAFETY: the arguments are passed on as they came, but for the page; the server hands in `blocks` pages.
        unsafe {
            let page = seal_page(reln, fork, block + index, *buffers.add(index as usize), true);
            md::mdwritev(reln, fork, block + index, &raw const page, 1, skip_fsync);
        }
    }
}

/// `smgr_extend`
unsafe extern "C-unwind" fn extend(
    reln: SMgrRelation,
    fork: ForkNumber::Type,
    block: BlockNumber,
    buffer: *const c_void,
    skip_fsync: bool,
) {
    if marked(EXTEND) {
        return;
    }
    // SAFETY: the arguments are passed on as they came, but for the page.
    unsafe {
        let page = seal_page(reln, fork, block, buffer, false);
        md::mdextend(reln, fork, block, page, skip_fsync);
    }
}

/// Refuses, or in redo lets wait, whoever needs pages while the server is locked: nearly everybody asks for the size of a relation
/// first, also when its pages are in the buffers.
///
/// # Safety
/// `reln` is valid.
#[pg_guard]
unsafe extern "C-unwind" fn before_nblocks(reln: SMgrRelation) {
    let Some(table) = tablespace::key_table().filter(|table| table.lock() != Lock::Open) else { return };
    // SAFETY: the caller's promise.
    let relation = compat::relation_id(unsafe { &*reln });
    if !relation.temporary
        && let Err(error) = lock::refuse(table, relation.tablespace)
    {
        report::locked_relation(relation, &error);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_close() {
    if tablespace::key_table().is_some() {
        Process::wipe_here();
    }
}

/// `smgr_nblocks`
unsafe extern "C-unwind" fn nblocks(reln: SMgrRelation, fork: ForkNumber::Type) -> BlockNumber {
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        before_nblocks(reln);
        md::mdnblocks(reln, fork)
    }
}

/// `smgr_close`
unsafe extern "C-unwind" fn close(reln: SMgrRelation, fork: ForkNumber::Type) {
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        before_close();
        md::mdclose(reln, fork);
    }
}

/// `smgr_create`
unsafe extern "C-unwind" fn create(reln: SMgrRelation, fork: ForkNumber::Type, is_redo: bool) {
    if marked(CREATE) {
        return;
    }
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        before_create(reln, fork, is_redo);
        md::mdcreate(reln, fork, is_redo);
    }
}
