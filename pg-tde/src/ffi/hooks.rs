//! What stands in the storage manager's slots.
//!
//! Order of a write: the server flushed the WAL up to the page's LSN; the page is copied and sealed in memory of this
//! process; if the WAL cannot repair a torn write of it, it goes to the double-write file and that is synced; then
//! the sealed page is written where the plain one would be. A crash before the last step leaves the old page,
//! during it a torn one, which the image in the WAL or in the double-write file replaces before anybody reads it.

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use page_cipher::pg::{Fork, Page};
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::{self, BlockNumber, ForkNumber, SMgrRelation};
use pgrx::prelude::*;

use super::server::{self, Lock};
use super::smgr_table::{SmgrTable, TableError, phantom_relation};
use crate::compat::{self, md, md::slot};
use crate::key_table::KeyTable;
use crate::page_io::{self, Opened, PageAddress, Sealed};
use crate::process::Process;
use crate::{double_write, key_table, report, tablespace};

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
        (slot::CREATE, create as *const () as usize),
        (slot::EXTEND, extend as *const () as usize),
        (slot::READ, read as *const () as usize),
        (slot::WRITE, write as *const () as usize),
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
/// `buffer` points to a page that only this process may touch while it is read.
unsafe fn open_page(table: &'static KeyTable, at: PageAddress, buffer: *mut c_void) {
    // SAFETY: the caller's promise.
    let page = unsafe { &mut *buffer.cast::<Page>() };
    match page_io::open(table, at, page) {
        Ok(Opened::Page) => (),
        Ok(opened) => report::opened(at, opened),
        Err(error) => report::page_error("read", at, &error),
    }
}

/// `smgr_read`
#[pg_guard]
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
    // SAFETY: the arguments are passed on as they came.
    unsafe { pg_guard_ffi_boundary(|| md::mdread(reln, fork, block, buffer)) };
    if let Some(table) = tablespace::key_table() {
        // SAFETY: the server hands in a page to fill.
        unsafe { open_page(table, address(reln, fork, block), buffer) };
    }
}

/// `smgr_readv`
#[pg_guard]
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
    // SAFETY: the arguments are passed on as they came.
    unsafe { pg_guard_ffi_boundary(|| md::mdreadv(reln, fork, block, buffers, blocks)) };
    let Some(table) = tablespace::key_table() else { return };
    for index in 0..blocks {
        // SAFETY: the server hands in `blocks` pages to fill.
        unsafe { open_page(table, address(reln, fork, block + index), *buffers.add(index as usize)) };
    }
}

/// What a write hook does with one page; `put` writes the page it is given.
///
/// # Safety
/// `buffer` points to a page of the server.
unsafe fn write_page(
    at: PageAddress,
    existing: bool,
    buffer: *const c_void,
    put: &mut dyn FnMut(*const c_void),
) {
    let Some(table) = tablespace::key_table() else { return put(buffer) };
    // SAFETY: the caller's promise.
    let mut copy = |target: &mut Page| unsafe { server::copy_page(buffer, target) };
    let lsn = match page_io::seal(table, at, &mut copy) {
        Ok(Sealed::Unchanged) => return put(buffer),
        Ok(Sealed::Scratch { lsn }) => lsn,
        Err(error) => return report::page_error("write", at, &error),
    };
    let sealed: *const Page = Process::with(table, |process| &raw const process.scratch.0);
    if existing && double_write::needed(at, lsn) {
        // SAFETY: the scratch page belongs to this process and nothing writes to it before `put` is done.
        if let Err(error) = double_write::put(table, at, unsafe { &*sealed }) {
            report::double_write_error(at, &error);
        }
        table.counters(std::process::id()).double_writes.fetch_add(1, Ordering::Relaxed);
    }
    put(sealed.cast());
}

/// `smgr_write`
#[pg_guard]
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
    let mut put =
        |page| unsafe { pg_guard_ffi_boundary(|| md::mdwrite(reln, fork, block, page, skip_fsync)) };
    // SAFETY: the server hands in a page.
    unsafe { write_page(address(reln, fork, block), true, buffer, &mut put) };
}

/// `smgr_writev`: one page at a time, since there is one scratch page.
#[pg_guard]
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
        // SAFETY: the arguments are passed on as they came, but for the page.
        let mut put = |page: *const c_void| unsafe {
            pg_guard_ffi_boundary(|| md::mdwritev(reln, fork, block + index, &raw const page, 1, skip_fsync))
        };
        // SAFETY: the server hands in `blocks` pages.
        unsafe {
            write_page(address(reln, fork, block + index), true, *buffers.add(index as usize), &mut put)
        };
    }
}

/// `smgr_extend`
#[pg_guard]
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
    let mut put =
        |page| unsafe { pg_guard_ffi_boundary(|| md::mdextend(reln, fork, block, page, skip_fsync)) };
    // SAFETY: the server hands in a page.
    unsafe { write_page(address(reln, fork, block), false, buffer, &mut put) };
}

/// `smgr_create`: no file may appear in a tablespace while its state changes.
#[pg_guard]
unsafe extern "C-unwind" fn create(reln: SMgrRelation, fork: ForkNumber::Type, is_redo: bool) {
    if marked(CREATE) {
        return;
    }
    // SAFETY: the arguments are passed on as they came.
    let create = || unsafe { pg_guard_ffi_boundary(|| md::mdcreate(reln, fork, is_redo)) };
    let Some(table) = tablespace::key_table() else { return create() };
    // SAFETY: `reln` is valid, as in every call of the storage manager.
    let relation = unsafe { address(reln, fork, 0) }.relation;
    if is_redo || relation.tablespace < key_table::FIRST_USER_OID {
        return create();
    }
    if let Err(error) = tablespace::before_create(table, relation) {
        report::create_error(relation, &error);
    }
    let lock = if server::holds(Lock::State) { None } else { server::lock(Lock::State, false) };
    create();
    drop(lock);
}
