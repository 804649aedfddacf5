//! The server's own functions, made safe to call.
//!
//! pgrx turns an `ERROR` raised by any of them into a Rust panic, which `#[pg_guard]` on our entry points turns back into
//! the same `ERROR`. Server processes have one thread.

use std::ffi::{CStr, CString, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use page_cipher::pg::{self, Fork, PAGE_SIZE, Page};
use pgrx::pg_sys;

use crate::ffi::compat::{self, RelationId};

/// Name of our lock tranche, as `pg_stat_activity.wait_event` shows it.
const TRANCHE: &CStr = c"pg_tde_double_write";

/// Sub-object of our locks, so that they are not those of COMMENT ON TABLESPACE and the like.
pub(super) const FILES: u16 = 1; // tde.job_progress names it too

static DOUBLE_WRITE_LOCK: AtomicPtr<pg_sys::LWLockPadded> = AtomicPtr::new(std::ptr::null_mut());
static CONTROL_FILE: AtomicPtr<pg_sys::ControlFileData> = AtomicPtr::new(std::ptr::null_mut());

/// Whether this process replays WAL (the startup process, or a standalone backend in recovery).
pub(crate) fn in_redo() -> bool {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::InRecovery }
}

/// Whether the server as a whole is in recovery.
pub(crate) fn recovery_in_progress() -> bool {
    // SAFETY: reads shared memory that every process is attached to before it touches a page.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Whether redo has passed the point from which the data is consistent. Known to the startup process only.
pub(crate) fn reached_consistency() -> bool {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::reachedConsistency }
}

/// End of the last WAL record that was replayed.
pub(crate) fn replay_position() -> u64 {
    // SAFETY: a null timeline pointer is allowed; the rest is shared memory under its spinlock.
    unsafe { pg_sys::GetXLogReplayRecPtr(std::ptr::null_mut()) }
}

/// Where the WAL ends now, durable or not. Not in recovery.
pub(crate) fn wal_insert_position() -> u64 {
    // SAFETY: reads shared memory under its spinlock.
    unsafe { pg_sys::GetXLogInsertRecPtr() }
}

/// A statement that waits for a job must not hold locks that the job may wait for. Does not return then.
pub(crate) fn refuse_in_transaction_block() {
    // SAFETY: called by a statement; raises an error in a transaction block.
    unsafe { pg_sys::PreventInTransactionBlock(true, c"waiting for a job of pg_tde".as_ptr()) }
}

/// Makes WAL durable up to the end of a record; in recovery: lets no recovery end before it.
pub(crate) fn flush_wal(up_to: u64) {
    // SAFETY: called with the end of an existing record.
    unsafe { pg_sys::XLogFlush(up_to) }
}

/// Inserts a record of our resource manager, makes it durable and returns its end.
pub(crate) fn log_record(info: u8, payload: &[u8]) -> u64 {
    // SAFETY: the payload outlives XLogInsert, which copies it; no buffer is registered.
    unsafe {
        pg_sys::XLogBeginInsert();
        pg_sys::XLogRegisterData(payload.as_ptr().cast_mut().cast(), payload.len() as _);
        let end = pg_sys::XLogInsert(super::rmgr::ID, info);
        pg_sys::XLogFlush(end);
        end
    }
}

/// Inserts a record of our resource manager that may be lost, and that does not keep an idle server's checkpoints going.
pub(crate) fn log_unimportant(info: u8, payload: &[u8]) {
    // SAFETY: as in `log_record`.
    unsafe {
        pg_sys::XLogBeginInsert();
        pg_sys::XLogSetRecordFlags(pg_sys::XLOG_MARK_UNIMPORTANT as u8);
        pg_sys::XLogRegisterData(payload.as_ptr().cast_mut().cast(), payload.len() as _);
        pg_sys::XLogInsert(super::rmgr::ID, info);
    }
}

/// Where redo would begin after a crash now. Not in recovery.
pub(crate) fn redo_position() -> u64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetRedoRecPtr() }
}

/// Where the next record will be inserted. Not in recovery.
pub(crate) fn insert_position() -> u64 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetXLogInsertRecPtr() }
}

/// The timeline that records are inserted in. Not in recovery.
pub(crate) fn insert_timeline() -> u32 {
    // SAFETY: reads shared memory.
    unsafe { pg_sys::GetWALInsertionTimeLine() }
}

/// Bytes of a WAL segment.
pub(crate) fn segment_size() -> u64 {
    // SAFETY: a plain global, set when the control file was read, before libraries are preloaded.
    u64::from(unsafe { pg_sys::wal_segment_size }.unsigned_abs())
}

/// Whether the cluster has data checksums.
pub(crate) fn data_checksums() -> bool {
    // SAFETY: reads the control file's copy in shared memory.
    unsafe { pg_sys::DataChecksumsEnabled() }
}

/// The cluster's identifier from `pg_control`.
pub(crate) fn system_identifier() -> u64 {
    // SAFETY: the control file is read before libraries are preloaded.
    unsafe { pg_sys::GetSystemIdentifier() }
}

/// Redo pointer of the last checkpoint that was completed: where recovery would begin. 0 before shared memory exists.
pub(crate) fn completed_redo() -> u64 {
    let control = CONTROL_FILE.load(Ordering::Relaxed);
    if control.is_null() {
        return 0;
    }
    // SAFETY: points to the control file in shared memory, which is there for the life of this process. The word is
    // aligned, so a read races with the checkpointer's write only in whether it sees the old or the new value.
    unsafe { (&raw const (*control).checkPointCopy.redo).read_volatile() }
}

/// The segment in use ends here.
pub(crate) fn switch_wal() {
    // SAFETY: called by a backend outside of critical sections and of recovery, as pg_switch_wal does.
    unsafe { pg_sys::RequestXLogSwitch(false) };
}

/// Whether an error would end the server.
pub(crate) fn in_critical_section() -> bool {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::CritSectionCount > 0 }
}

/// Whether this process writes out pages of others, and has no statements.
pub(crate) fn writes_for_others() -> bool {
    use pg_sys::BackendType::{B_BG_WRITER, B_CHECKPOINTER};
    // SAFETY: a plain global of this process.
    matches!(unsafe { pg_sys::MyBackendType }, B_BG_WRITER | B_CHECKPOINTER)
}

/// When the configuration was read last.
pub(crate) fn reload_time() -> i64 {
    // SAFETY: a plain global of this process.
    unsafe { (&raw const pg_sys::PgReloadTime).read_volatile() }
}

/// Lets this transaction see anew what others do.
pub(crate) fn clear_activity_snapshot() {
    // SAFETY: called inside a transaction.
    unsafe { pg_sys::pgstat_clear_snapshot() }
}

/// The tablespace of a relation by its OID; that of the database where the catalog says none.
pub(crate) fn tablespace_of(relation: pg_sys::Oid) -> u32 {
    // SAFETY: a catalog look-up inside a transaction, and a plain global.
    let (own, default) = unsafe { (pg_sys::get_rel_tablespace(relation), pg_sys::MyDatabaseTableSpace) };
    if own == pg_sys::InvalidOid { default.to_u32() } else { own.to_u32() }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// A time for people, in UTC.
pub(crate) fn time(unix: u64) -> String {
    format!("{} UTC", pgrx::datum::to_timestamp(unix as f64).to_utc())
}

/// Asks for what [`attach`] finds later. Called while shared memory is sized.
pub(crate) fn request_shared_memory() {
    // SAFETY: called in shmem_request_hook, or before shared memory is created.
    unsafe { pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), 1) }
}

/// Finds our lock and the control file in shared memory that was just created.
pub(crate) fn attach() {
    // SAFETY: called in shmem_startup_hook, where the tranche that was requested exists.
    let start = unsafe { pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr()) };
    DOUBLE_WRITE_LOCK.store(start, Ordering::Relaxed);
    let mut found = false;
    // SAFETY: shmem.c returns the existing structure of that name and size (access/transam/xlog.c XLOGShmemInit makes
    // it); a server with another size raises an error.
    let control = unsafe {
        pg_sys::ShmemInitStruct(
            c"Control File".as_ptr(),
            size_of::<pg_sys::ControlFileData>(),
            &raw mut found,
        )
    };
    if found {
        CONTROL_FILE.store(control.cast(), Ordering::Relaxed);
    }
}

/// Holds the lock on the double-write files; released on drop.
pub(crate) struct Locked(*mut pg_sys::LWLock);

/// Waits for the double-write files. `None` before shared memory exists (bootstrap), when there is one process.
pub(crate) fn lock_double_write() -> Option<Locked> {
    let start = DOUBLE_WRITE_LOCK.load(Ordering::Relaxed);
    if start.is_null() {
        return None;
    }
    // SAFETY: a tranche of one lock starts with it; it lives in shared memory as long as this process.
    let lock = unsafe {
        let lock = &raw mut (*start).lock;
        pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
        lock
    };
    Some(Locked(lock))
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: the lock was acquired in `lock_double_write`. After an ERROR the server has reset the hold-off count and will
        // release all locks itself when the transaction aborts.
        unsafe {
            if pg_sys::InterruptHoldoffCount > 0 && pg_sys::LWLockHeldByMe(self.0) {
                pg_sys::LWLockRelease(self.0);
            }
        }
    }
}

/// `pd_lsn` of a page of the main fork as the buffer manager has it; `None` if the page no longer exists.
pub(crate) fn page_lsn(relation: RelationId, block: u32) -> Option<u64> {
    let main = pg_sys::ForkNumber::MAIN_FORKNUM;
    // SAFETY: called where pages may be read; the buffer is pinned and locked while its page is looked at.
    unsafe {
        let reln = compat::open_relation(relation);
        if !pg_sys::smgrexists(reln, main) || pg_sys::smgrnblocks(reln, main) <= block {
            return None;
        }
        let buffer = compat::read_buffer(relation, main, block);
        pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_SHARE as i32);
        let start = pg_sys::BufferBlocks.add((buffer as usize - 1) * PAGE_SIZE);
        let lsn = pg::lsn(&*start.cast::<Page>());
        pg_sys::UnlockReleaseBuffer(buffer);
        Some(lsn)
    }
}

/// Waits, letting the startup process notice a shutdown.
pub(crate) fn wait_in_redo(milliseconds: u32) {
    // SAFETY: both are made for the startup process.
    unsafe {
        pg_sys::pg_usleep(i64::from(milliseconds) * 1000);
        HandleStartupProcInterrupts();
    }
}

/// Waits until the configuration is read again (SIGHUP), letting the startup process notice a shutdown.
pub(crate) fn wait_for_reload_in_redo() {
    // SAFETY: a plain global of this process, changed by HandleStartupProcInterrupts.
    let reloaded = || unsafe { (&raw const pg_sys::PgReloadTime).read_volatile() };
    let before = reloaded();
    while reloaded() == before {
        wait_in_redo(1000);
    }
}

/// Cancels the running statement if somebody asked for it.
pub(crate) fn check_for_interrupts() {
    pgrx::check_for_interrupts!();
}

/// Answers a question in SQL, also on a standby. `None` for NULL and no row.
///
/// # Errors
/// When the server does not answer.
pub(crate) fn ask<T: pgrx::FromDatum + pgrx::IntoDatum>(query: &str) -> Result<Option<T>, pgrx::spi::Error> {
    // Not Spi::get_one, which begins a transaction that writes.
    match pgrx::Spi::connect(|client| client.select(query, Some(1), &[])?.first().get_one::<T>()) {
        Err(pgrx::spi::Error::InvalidPosition) => Ok(None),
        answer => answer,
    }
}

/// Checkpoints now and waits for it.
pub(crate) fn checkpoint() {
    request_checkpoint(0);
}

/// [`checkpoint`], which writes pages of unlogged relations too.
pub(crate) fn checkpoint_everything() {
    const FLUSH_ALL: i32 = 0x0010; // access/xlog.h
    request_checkpoint(FLUSH_ALL);
}

fn request_checkpoint(more: i32) {
    const IMMEDIATE_FORCE_WAIT: i32 = 0x0004 | 0x0008 | 0x0020; // access/xlog.h
    // SAFETY: called by a backend outside any critical section and without locks, as CHECKPOINT does.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| RequestCheckpoint(IMMEDIATE_FORCE_WAIT | more)) }
}

unsafe extern "C-unwind" {
    /// postmaster/bgwriter.h
    fn RequestCheckpoint(flags: i32);
    /// postmaster/startup.h
    fn HandleStartupProcInterrupts();
}

/// Forces a setting for the life of the server, above configuration files and ALTER SYSTEM.
pub(crate) fn force_setting(name: &CStr, value: &CStr) {
    // SAFETY: called while libraries are preloaded; guc.c copies both strings.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_POSTMASTER,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        )
    }
}

/// Undoes what the owner of a database may have set for sessions in it. For a process of ours that connects to it as superuser; as
/// autovacuum does (AutoVacWorkerMain in postmaster/autovacuum.c).
pub(crate) fn ignore_settings_of_database() {
    let settings = [
        (c"search_path", c""),
        (c"role", c"none"),
        (c"statement_timeout", c"0"),
        (c"lock_timeout", c"0"),
        (c"idle_in_transaction_session_timeout", c"0"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_deferrable", c"off"),
        (c"synchronous_commit", c"local"),
        (c"row_security", c"on"),
    ];
    for (name, value) in settings {
        // SAFETY: called in a background worker after it has connected; guc.c copies both strings.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            )
        }
    }
}

/// The value of a setting.
pub(crate) fn setting(name: &CStr) -> Option<String> {
    // SAFETY: the server returns null or a string that stays valid until the next call.
    let value = unsafe { pg_sys::GetConfigOption(name.as_ptr(), true, false) };
    // SAFETY: as above.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}

/// Whether libraries are being preloaded by the postmaster (or a standalone server).
pub(crate) fn preloading() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// The data directory.
pub(crate) fn data_directory() -> std::path::PathBuf {
    // SAFETY: set before libraries are preloaded, never null from then on.
    let path = unsafe { CStr::from_ptr(pg_sys::DataDir) };
    std::path::PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path.to_bytes()))
}

/// The OID of a tablespace by name.
pub(crate) fn tablespace_oid(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: a catalog look-up inside a transaction; `missing_ok` is true.
    let oid = unsafe { pg_sys::get_tablespace_oid(name.as_ptr(), true) }.to_u32();
    (oid != 0).then_some(oid)
}

/// Whether the catalog has a tablespace, seen after the statement that runs.
pub(crate) fn tablespace_exists(oid: u32) -> bool {
    // SAFETY: a catalog look-up inside a transaction; the result is a copy or null.
    unsafe {
        pg_sys::CommandCounterIncrement();
        !pg_sys::get_tablespace_name(oid.into()).is_null()
    }
}

/// Copies a page out of a buffer that other processes may set hint bits in meanwhile.
///
/// # Safety
/// `source` points to a page of the server.
pub(crate) unsafe fn copy_page(source: *const c_void, target: &mut Page) {
    // SAFETY: the caller vouches for `source`; `target` is ours, so they do not overlap. A hint bit that changes
    // during the copy is seen or not, as in PageSetChecksumCopy (storage/page/bufpage.c).
    unsafe { std::ptr::copy_nonoverlapping(source.cast::<u8>(), target.as_mut_ptr(), PAGE_SIZE) }
}

/// Path below the data directory of the segment file that holds a block of a fork, and the block in it.
pub(crate) fn segment_path(relation: RelationId, fork: Fork, block: u32) -> (std::path::PathBuf, u32) {
    let base = compat::relation_path(relation)
        + match fork {
            Fork::Main => "",
            Fork::Fsm => "_fsm",
            Fork::Vm => "_vm",
            Fork::Init => "_init",
        };
    let (segment, block) = (block / pg_sys::RELSEG_SIZE, block % pg_sys::RELSEG_SIZE);
    let path = if segment == 0 { base } else { format!("{base}.{segment}") };
    (path.into(), block)
}

/// Makes settings with our prefix that nobody defined an error.
pub(crate) fn reserve_prefix(prefix: &CStr) {
    // SAFETY: the server copies the string.
    unsafe { pg_sys::MarkGUCPrefixReserved(prefix.as_ptr()) }
}

/// Keeps Rust backtraces out of error messages, which go to clients, whatever the environment of the server asks for.
pub(crate) fn forget_backtraces() {
    const NAMES: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];
    let saved = NAMES.map(std::env::var_os);
    // SAFETY: the postmaster has one thread while it preloads libraries.
    unsafe {
        NAMES.iter().for_each(|name| std::env::remove_var(name));
        // This library's copy of the standard library decides at its first capture, for good.
        let _disabled = std::backtrace::Backtrace::capture();
        for (name, value) in NAMES.iter().zip(saved) {
            if let Some(value) = value {
                std::env::set_var(name, value);
            }
        }
    }
}

/// Changes of the keyring and of the state of tablespaces happen one at a time. Can be interrupted.
pub(crate) fn lock_keyring() -> KeyringLock {
    acquire(KEYRING, false);
    KeyringLock(())
}

/// Holds the lock on the keyring; released on drop, so that neither an idle nor a prepared transaction keeps it.
pub(crate) struct KeyringLock(());

impl Drop for KeyringLock {
    fn drop(&mut self) {
        let (tag, mode) = (lock_tag(KEYRING, FILES), lock_mode(false));
        // SAFETY: taken in `lock_keyring`; the lock manager copies the tag.
        unsafe { pg_sys::LockRelease(&raw const tag, mode, false) };
    }
}

/// As [`lock_keyring`] to the end of the transaction: shared, for statements that copy files past the storage manager, or
/// exclusive.
pub(crate) fn lock_keyring_to_end(shared: bool) {
    acquire(KEYRING, shared);
}

/// A tablespace whose files are made (`shared`) or must not change, to the end of the transaction. Can be interrupted.
pub(crate) fn lock_tablespace(oid: u32, shared: bool) {
    acquire(oid, shared);
}

/// Whether this transaction keeps others from making files in a plain tablespace.
pub(crate) fn holds_tablespace(oid: u32) -> bool {
    let tag = lock_tag(oid, FILES);
    // SAFETY: looks at this process's own locks.
    unsafe { compat::holds_lock(&raw const tag, lock_mode(false)) }
}

/// Whether this transaction made files in a tablespace while it was plain.
pub(crate) fn made_files_in(oid: u32) -> bool {
    let tag = lock_tag(oid, FILES);
    // SAFETY: looks at this process's own locks.
    unsafe { compat::holds_lock(&raw const tag, lock_mode(true)) }
}

/// No tablespace has this OID.
const KEYRING: u32 = 0;

fn lock_mode(shared: bool) -> pg_sys::LOCKMODE {
    let mode = if shared { pg_sys::AccessShareLock } else { pg_sys::AccessExclusiveLock };
    mode as pg_sys::LOCKMODE
}

/// SET_LOCKTAG_OBJECT (storage/lock.h).
pub(super) fn lock_tag(oid: u32, part: u16) -> pg_sys::LOCKTAG {
    pg_sys::LOCKTAG {
        locktag_field1: 0,
        locktag_field2: pg_sys::TableSpaceRelationId.to_u32(),
        locktag_field3: oid,
        locktag_field4: part,
        locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
        locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
    }
}

/// Not LockSharedObject, which would also process invalidations, for which smgrcreate is no place.
fn acquire(oid: u32, shared: bool) {
    let tag = lock_tag(oid, FILES);
    // SAFETY: called inside a transaction; the lock manager copies the tag.
    unsafe { pg_sys::LockAcquire(&raw const tag, lock_mode(shared), false, false) };
}

/// Whether somebody asked this process to cancel its statement or to end.
pub(crate) fn cancel_requested() -> bool {
    // SAFETY: flags that signal handlers of this process set.
    unsafe {
        (&raw const pg_sys::QueryCancelPending).read_volatile() != 0
            || (&raw const pg_sys::ProcDiePending).read_volatile() != 0
    }
}

/// This process, without a system call.
pub(crate) fn pid() -> u32 {
    // SAFETY: a plain global, set when the process begins.
    unsafe { pg_sys::MyProcPid }.unsigned_abs()
}

/// What the control file on disk says.
pub(crate) struct Control {
    /// Redo pointer of the last completed checkpoint.
    pub(crate) redo: u64,
    /// End of the history, if the server was shut down and nothing will be replayed.
    pub(crate) end: Option<u64>,
}

/// Reads the control file; `None` if it is not whole, which the server will refuse by itself.
pub(crate) fn control_file() -> Option<Control> {
    let mut whole = false;
    // SAFETY: reads the control file below DataDir into memory of the current context; raises an error if it cannot.
    let control = unsafe { &*pg_sys::get_controlfile(pg_sys::DataDir, &raw mut whole) };
    // Not DB_SHUTDOWNED_IN_RECOVERY, after which WAL is replayed again.
    let stopped = control.state == pg_sys::DBState::DB_SHUTDOWNED;
    whole.then(|| Control { redo: control.checkPointCopy.redo, end: stopped.then_some(control.checkPoint) })
}

/// Keeps the descriptors of this process, its client's socket among them, from the program that `command` will start.
pub(crate) fn close_files_in_child(command: &mut std::process::Command) {
    let close = || {
        const FIRST: libc::c_uint = 3;
        // SAFETY: marks descriptors of the child, which has one thread, to be closed when the program starts. Both
        // calls may be made between fork and exec.
        unsafe {
            let flag = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
            if libc::close_range(FIRST, libc::c_uint::MAX, flag) != 0 {
                // Linux before 5.11
                for descriptor in 3..65_536 {
                    libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
                }
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes only calls that are allowed between fork and exec, and does not allocate.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, close) };
}
