//! What a background worker needs of the server: transactions, waiting, barriers, and the locks between jobs and statements.

use std::ffi::c_int;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, pg_sys};

use super::server;

/// Runs `work` in a transaction of its own with a snapshot. An `ERROR` ends the process.
pub(crate) fn transaction<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: called in a background worker outside of any transaction.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = work();
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        result
    }
}

/// [`transaction`], in which an `ERROR` ends the transaction only: what the server said.
pub(crate) fn try_transaction<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    let result = PgTryBuilder::new(AssertUnwindSafe(|| Ok(transaction(work))))
        .catch_others(|error| match error {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
                Err(report.message().to_owned())
            }
            panic @ CaughtError::RustPanic { .. } => panic.rethrow(),
        })
        .execute();
    if result.is_err() {
        // SAFETY: what the main loop of a backend does after an ERROR, in the same place: nothing of the transaction is on the stack.
        unsafe { pg_sys::AbortOutOfAnyTransaction() };
    }
    result
}

/// Sleeps until the time is over or somebody calls [`wake`] for this process.
pub(crate) fn nap(time: Duration) {
    doze(time);
    reload_if_asked();
}

/// [`nap`] inside a transaction.
pub(crate) fn doze(time: Duration) {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let milliseconds = time.as_millis().min(3_600_000) as std::ffi::c_long;
    // SAFETY: this process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
    server::check_for_interrupts();
}

/// Wakes a process that sleeps; one that is gone is left alone.
pub(crate) fn wake(pid: u32) {
    // SAFETY: the result is null or a slot in shared memory, which has a latch whoever owns it by now.
    unsafe {
        let process = pg_sys::BackendPidGetProc(pid.cast_signed());
        if !process.is_null() {
            pg_sys::SetLatch(&raw mut (*process).procLatch);
        }
    }
}

/// Reads the configuration again if somebody asked for it. Outside of transactions.
pub(crate) fn reload_if_asked() {
    // SAFETY: a flag that the signal handler sets.
    unsafe {
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 {
            (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Returns when every process has checked for interrupts since this call, so that none is still writing a page
/// in the way that was in force before.
pub(crate) fn barrier() {
    use pg_sys::ProcSignalBarrierType::PROCSIGNAL_BARRIER_SMGRRELEASE;
    // SAFETY: any process may wait for a barrier; this kind closes files, which are opened again when needed.
    unsafe { pg_sys::WaitForProcSignalBarrier(pg_sys::EmitProcSignalBarrier(PROCSIGNAL_BARRIER_SMGRRELEASE)) }
}

/// Whether every transaction has ended that made files in a tablespace while it was plain.
pub(crate) fn files_are_settled(tablespace: u32) -> bool {
    lock(tablespace, server::FILES, pg_sys::AccessExclusiveLock, false, false)
}

/// Sub-object of the lock that the process of a job holds on its tablespace.
const JOB: u16 = 2;
/// Sub-object of the lock between jobs and statements that need a database without connections.
const DATABASES: u16 = 3;

fn lock(oid: u32, part: u16, mode: u32, session: bool, wait: bool) -> bool {
    let tag = server::lock_tag(oid, part);
    // SAFETY: called inside a transaction; the lock manager copies the tag.
    let result = unsafe { pg_sys::LockAcquire(&raw const tag, mode as c_int, session, !wait) };
    result != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}

/// Whether no process does the job of a tablespace.
pub(crate) fn job_is_idle(tablespace: u32) -> bool {
    lock(tablespace, JOB, pg_sys::AccessExclusiveLock, false, false)
}

/// This process does the job of a tablespace; over when it is dropped.
pub(crate) struct JobLock(u32);

impl JobLock {
    /// `None` while another process does it.
    pub(crate) fn try_acquire(tablespace: u32) -> Option<Self> {
        lock(tablespace, JOB, pg_sys::AccessExclusiveLock, true, false).then(|| Self(tablespace))
    }
}

impl Drop for JobLock {
    /// The end of a process that is in no transaction would leave the lock behind.
    fn drop(&mut self) {
        let tag = server::lock_tag(self.0, JOB);
        // SAFETY: taken in `try_acquire` for the session; the lock manager copies the tag.
        unsafe { pg_sys::LockRelease(&raw const tag, pg_sys::AccessExclusiveLock as c_int, true) };
    }
}

/// Waits until no statement needs databases without connections.
pub(crate) fn wait_for_databases() {
    lock(0, DATABASES, pg_sys::RowExclusiveLock, false, true);
}

/// Whether a job may go on in its database, to the end of the transaction.
pub(crate) fn try_visit_databases() -> bool {
    lock(0, DATABASES, pg_sys::RowExclusiveLock, false, false)
}

/// Makes jobs leave their databases, to the end of the transaction. Statements do not wait for each other.
pub(crate) fn keep_jobs_out_of_databases() {
    lock(0, DATABASES, pg_sys::ShareLock, false, true);
}
