//! Background workers: the launcher, one for each job, one for the database it works on.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;

use pgrx::pg_sys::{self, BgWorkerStartTime, Datum};
use pgrx::prelude::*;

use super::{compat, server};
use crate::{jobs, redirected, report, tablespace, wal_keys};

/// Seconds after which the server starts a launcher that ended with an error.
const RESTART: i32 = 5;
const WAL_WORKER: &str = "pg_tde wal";

unsafe extern "C-unwind" {
    /// tcop/tcopprot.h: notes that the process shall end at the next check for interrupts.
    fn die(signal: c_int);
    /// postmaster/bgworker_internals.h
    fn BackgroundWorkerShmemSize() -> usize;
    /// postmaster/interrupt.h
    fn SignalHandlerForConfigReload(signal: c_int);
}

fn fill(target: &mut [c_char], text: &str) {
    // The rest of the array is zero, the last byte too.
    let room = target.len() - 1;
    for (byte, source) in target[..room].iter_mut().zip(text.bytes()) {
        *byte = source as c_char;
    }
}

fn worker(name: &str, function: &CStr, argument: u64) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as c_int,
        bgw_start_time: BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
        bgw_main_arg: Datum::from(argument),
        ..Default::default()
    };
    fill(&mut worker.bgw_name, name);
    fill(&mut worker.bgw_type, name);
    fill(&mut worker.bgw_library_name, "pg_tde");
    fill(&mut worker.bgw_function_name, &function.to_string_lossy());
    worker
}

/// Registers the launcher. Called while libraries are preloaded.
pub(crate) fn register() {
    let mut launcher = worker("pg_tde launcher", c"pg_tde_launcher", 0);
    launcher.bgw_restart_time = RESTART;
    // On a standby too, where it only keeps house.
    launcher.bgw_start_time = BgWorkerStartTime::BgWorkerStart_ConsistentState;
    // SAFETY: the server copies the struct.
    unsafe { pg_sys::RegisterBackgroundWorker(&raw mut launcher) }
}

/// Registers the process that settles the encryption of the WAL once recovery is over, and then ends.
pub(crate) fn register_wal() {
    let mut settler = worker(WAL_WORKER, c"pg_tde_wal", 0);
    settler.bgw_restart_time = RESTART;
    // SAFETY: the server copies the struct.
    unsafe { pg_sys::RegisterBackgroundWorker(&raw mut settler) }
}

/// Whether the server has a place for the process that [`register_wal`] registered. Called in shmem_startup_hook.
pub(crate) fn wal_worker_has_a_slot() -> bool {
    let mut found = false;
    // SAFETY: shmem.c returns the existing structure of that name and size (postmaster/bgworker.c BackgroundWorkerShmemInit makes it, before
    // the hook is called), which is that long and not changed before there are other processes.
    let slots = unsafe {
        let size = BackgroundWorkerShmemSize();
        let start = pg_sys::ShmemInitStruct(c"Background Worker Data".as_ptr(), size, &raw mut found);
        std::slice::from_raw_parts(start.cast::<u8>(), size)
    };
    slots.windows(WAL_WORKER.len()).any(|bytes| bytes == WAL_WORKER.as_bytes())
}

/// Starts the process of a job; `false` when there is no free worker slot.
pub(crate) fn start_job(slot: usize) -> bool {
    let mut job = worker("pg_tde job", c"pg_tde_job", slot as u64);
    // SAFETY: the server copies the struct; without a notification the handle may be null.
    unsafe { pg_sys::RegisterDynamicBackgroundWorker(&raw mut job, ptr::null_mut()) }
}

/// Lets a process rewrite one database and waits for its end; `false` when there is no free worker slot.
pub(crate) fn rewrite_database(slot: usize, database: u32) -> bool {
    let mut rewriter =
        worker("pg_tde rewriter", c"pg_tde_rewriter", ((slot as u64) << 32) | u64::from(database));
    let mut handle = ptr::null_mut();
    // SAFETY: the server copies the struct and returns a handle in memory of the current context, which outlives its use here.
    unsafe {
        rewriter.bgw_notify_pid = pg_sys::MyProcPid;
        if !pg_sys::RegisterDynamicBackgroundWorker(&raw mut rewriter, &raw mut handle) {
            return false;
        }
        pg_sys::WaitForBackgroundWorkerShutdown(handle);
        pg_sys::pfree(handle.cast());
    }
    true
}

/// Signals as in a backend, and a connection to a database (0: to none).
fn begin(database: u32) {
    // SAFETY: called first thing in a background worker that asked for a connection.
    unsafe {
        compat::handle_signal(pg_sys::SIGTERM as c_int, die);
        compat::handle_signal(pg_sys::SIGHUP as c_int, SignalHandlerForConfigReload);
        pg_sys::BackgroundWorkerUnblockSignals();
        let flags = pg_sys::BGWORKER_BYPASS_ALLOWCONN;
        pg_sys::BackgroundWorkerInitializeConnectionByOid(database.into(), pg_sys::InvalidOid, flags);
    }
    server::ignore_settings_of_database();
}

/// Main function of the launcher.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn pg_tde_launcher(_argument: Datum) {
    begin(0);
    jobs::launch();
}

/// Main function of the process that settles the encryption of the WAL.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn pg_tde_wal(_argument: Datum) {
    begin(0);
    let (Some(keys), Some(wal)) = (tablespace::key_table(), redirected::table()) else { return };
    if let Err(error) = wal_keys::settle(keys, wal) {
        report::wal_not_settled(&error);
    }
}

/// Main function of a job.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn pg_tde_job(argument: Datum) {
    begin(0);
    if let Err(error) = jobs::run(argument.value()) {
        report::job_failed(&error);
    }
}

/// Main function of the process that rewrites a database.
#[unsafe(no_mangle)]
#[pg_guard]
pub unsafe extern "C-unwind" fn pg_tde_rewriter(argument: Datum) {
    let (slot, database) = (argument.value() >> 32, argument.value() as u32);
    begin(database);
    jobs::rewrite(slot, database);
}
