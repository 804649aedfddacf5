//! Methods of an open file.

use core::ffi::{c_int, c_void};
use core::panic::AssertUnwindSafe;
use core::slice;
use std::panic::catch_unwind;
use std::sync::atomic::Ordering;

use super::abi::*;
use super::control;
use super::handle::Handle;
use crate::database;
use crate::raw::Read;

/// The shim's part of the memory that SQLite sets aside for a file. The parent's part follows at [`PARENT_OFFSET`].
#[repr(C)]
pub(super) struct ShimFile {
    base: sqlite3_file,
    handle: *mut Handle,
}

/// Where the parent's file begins. SQLite aligns the whole to 8 bytes.
pub(super) const PARENT_OFFSET: usize = size_of::<ShimFile>();

const _: () = assert!(PARENT_OFFSET.is_multiple_of(8));

impl ShimFile {
    /// The file is not open yet.
    pub(super) fn begin(&mut self) {
        self.base.pMethods = core::ptr::null();
        self.handle = core::ptr::null_mut();
    }

    /// The file is open.
    pub(super) fn finish(&mut self, handle: Handle) {
        let shared_memory = handle.parent_version() >= 2;
        self.handle = Box::into_raw(Box::new(handle));
        self.base.pMethods = if shared_memory { &METHODS_2 } else { &METHODS_1 };
    }
}

/// Runs an entry point; a panic, which would be a bug, becomes `code`.
pub(super) fn guard(code: c_int, work: impl FnOnce() -> c_int) -> c_int {
    // Whatever was being changed is behind a lock that is poisoned then, or is not used again.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(code)
}

/// The handle of a file that SQLite calls.
///
/// # Safety
/// `file` is open under this VFS, and the handle is not used after it is closed.
pub(super) unsafe fn handle<'a>(file: *mut sqlite3_file) -> &'a Handle {
    // SAFETY: only files with our methods get here; `finish` has set their handle, which lives until x_close.
    unsafe { &*(*file.cast::<ShimFile>()).handle }
}

/// The file below.
///
/// # Safety
/// `file` is SQLite's memory for a file of this VFS.
pub(super) unsafe fn parent_of(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: by the caller's promise the memory goes on beyond PARENT_OFFSET.
    unsafe { file.cast::<u8>().add(PARENT_OFFSET).cast() }
}

/// Closes the file below.
///
/// # Safety
/// `parent` is open and is not used afterwards.
pub(super) unsafe fn close_parent(parent: *mut sqlite3_file) -> c_int {
    // SAFETY: an open file has methods, and by the caller's promise nobody uses it after this.
    unsafe { (*(*parent).pMethods).xClose.map_or(SQLITE_OK, |close| close(parent)) }
}

unsafe extern "C" fn x_close(file: *mut sqlite3_file) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: SQLite calls this once for a file that was opened here; the handle came from Box::into_raw.
        let handle = unsafe { Box::from_raw((*file.cast::<ShimFile>()).handle) };
        if let Some(part) = handle.main_part() {
            database::forget(part.connection.name().addr());
        }
        drop(handle);
        // SAFETY: the file below is open until here, and SQLite does not use a file after xClose.
        unsafe {
            (*file).pMethods = core::ptr::null();
            close_parent(parent_of(file))
        }
    })
}

unsafe extern "C" fn x_read(file: *mut sqlite3_file, buf: *mut c_void, len: c_int, offset: i64) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the file is open, and SQLite hands over a buffer of `len` bytes that nobody else uses now. It came
        // from C, so its bytes have values, whatever they are.
        let (handle, buf) =
            unsafe { (handle(file), slice::from_raw_parts_mut(buf.cast::<u8>(), len.max(0) as usize)) };
        let outcome =
            handle.check_temporary_files().and_then(|()| handle.lock()?.read(buf, offset.max(0) as u64));
        match outcome {
            Ok(Read::Full) => SQLITE_OK,
            Ok(Read::Short) => SQLITE_IOERR_SHORT_READ,
            Err(error) => handle.code(Err(error)),
        }
    })
}

unsafe extern "C" fn x_write(file: *mut sqlite3_file, data: *const c_void, len: c_int, offset: i64) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the file is open, and SQLite hands over `len` bytes that stay as they are during the call.
        let (handle, data) =
            unsafe { (handle(file), slice::from_raw_parts(data.cast::<u8>(), len.max(0) as usize)) };
        let outcome =
            handle.check_temporary_files().and_then(|()| handle.lock()?.write(data, offset.max(0) as u64));
        handle.code(outcome)
    })
}

unsafe extern "C" fn x_truncate(file: *mut sqlite3_file, size: i64) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the file is open.
        let handle = unsafe { handle(file) };
        let outcome = handle.lock().and_then(|mut kind| kind.truncate(size.max(0) as u64));
        handle.code(outcome)
    })
}

unsafe extern "C" fn x_sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the file is open.
        let handle = unsafe { handle(file) };
        let outcome = handle.lock().and_then(|mut kind| kind.sync(flags));
        handle.code(outcome)
    })
}

unsafe extern "C" fn x_file_size(file: *mut sqlite3_file, out: *mut i64) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the file is open.
        let handle = unsafe { handle(file) };
        let size = match handle.check_temporary_files().and_then(|()| handle.lock()?.size()) {
            Ok(size) => size,
            Err(error) => return handle.code(Err(error)),
        };
        if size == 0
            && let Some(part) = handle.main_part()
        {
            // With nolock=1 this is the first that is heard of a transaction.
            part.connection.reserve_bytes();
        }
        // SAFETY: SQLite hands over a place for the result.
        unsafe { out.write(size as i64) };
        SQLITE_OK
    })
}

unsafe extern "C" fn x_lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the file is open, so is the one below.
        let (handle, code) = unsafe { (handle(file), below(file, |m| m.xLock, |f, p| f(p, level))) };
        let Some(part) = handle.main_part().filter(|_| code == SQLITE_OK) else { return code };
        let before = part.lock.load(Ordering::Relaxed);
        if before == SQLITE_LOCK_NONE
            && let Err(error) = handle.after_shared_lock()
        {
            // SAFETY: as above.
            unsafe { below(file, |m| m.xUnlock, |f, p| f(p, SQLITE_LOCK_NONE)) };
            return handle.code(Err(error));
        }
        part.lock.store(before.max(level), Ordering::Relaxed);
        SQLITE_OK
    })
}

unsafe extern "C" fn x_unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    guard(SQLITE_IOERR, || {
        // SAFETY: the file is open, so is the one below.
        let (handle, code) = unsafe { (handle(file), below(file, |m| m.xUnlock, |f, p| f(p, level))) };
        if let Some(part) = handle.main_part() {
            part.lock.fetch_min(level, Ordering::Relaxed);
            if level == SQLITE_LOCK_NONE {
                part.connection.forget_check();
            }
            if level == SQLITE_LOCK_NONE
                && let Err(error) = handle.with_main(|main| {
                    main.forget_size();
                    Ok(())
                })
            {
                return handle.code(Err(error));
            }
        }
        code
    })
}

unsafe extern "C" fn x_file_control(file: *mut sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    // SAFETY: the file is open, and the argument is what SQLite documents for `op`.
    guard(SQLITE_IOERR, || unsafe { control::file_control(file, op, arg) })
}

unsafe extern "C" fn x_device_characteristics(file: *mut sqlite3_file) -> c_int {
    // A sealed page is written whole or is lost, so nothing is atomic or safe to append that was so below; and parts of
    // pages cannot be read for less than the whole.
    const KEPT: c_int =
        SQLITE_IOCAP_POWERSAFE_OVERWRITE | SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN | SQLITE_IOCAP_IMMUTABLE;
    // SAFETY: the file is open, so is the one below.
    KEPT & unsafe { below_or(file, 0, |m| m.xDeviceCharacteristics, |f, p| f(p)) }
}

unsafe extern "C" fn x_sector_size(file: *mut sqlite3_file) -> c_int {
    // A journal header is a sector long, and ours needs 64 bytes.
    const LEAST: c_int = 512;
    // SAFETY: the file is open, so is the one below.
    unsafe { below_or(file, LEAST, |m| m.xSectorSize, |f, p| f(p)) }.max(LEAST)
}

/// Calls a method of the file below; a missing one is an error.
///
/// # Safety
/// `file` is open under this VFS.
pub(super) unsafe fn below<F>(
    file: *mut sqlite3_file,
    pick: impl FnOnce(&sqlite3_io_methods) -> Option<F>,
    call: impl FnOnce(F, *mut sqlite3_file) -> c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { below_or(file, SQLITE_IOERR, pick, call) }
}

/// Calls a method of the file below, or gives `missing`.
///
/// # Safety
/// `file` is open under this VFS.
unsafe fn below_or<F>(
    file: *mut sqlite3_file,
    missing: c_int,
    pick: impl FnOnce(&sqlite3_io_methods) -> Option<F>,
    call: impl FnOnce(F, *mut sqlite3_file) -> c_int,
) -> c_int {
    // SAFETY: the file below is open as long as this one is, and its methods lie in a static.
    let (parent, methods) = unsafe {
        let parent = parent_of(file);
        (parent, &*(*parent).pMethods)
    };
    pick(methods).map_or(missing, |method| call(method, parent))
}

/// Methods that hand their arguments to the file below.
macro_rules! hand_down {
    ($($name:ident => $method:ident ($($arg:ident: $type:ty),*), else $missing:expr;)*) => {
        $(unsafe extern "C" fn $name(file: *mut sqlite3_file $(, $arg: $type)*) -> c_int {
            // SAFETY: the file is open, so is the one below; the arguments are SQLite's own.
            unsafe { below_or(file, $missing, |m| m.$method, |f, p| f(p $(, $arg)*)) }
        })*
    };
}

hand_down! {
    x_check_reserved_lock => xCheckReservedLock(out: *mut c_int), else SQLITE_IOERR;
    x_shm_map => xShmMap(region: c_int, size: c_int, extend: c_int, out: *mut *mut c_void), else SQLITE_IOERR;
    x_shm_unmap => xShmUnmap(delete: c_int), else SQLITE_IOERR;
}

unsafe extern "C" fn x_shm_lock(file: *mut sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    guard(SQLITE_IOERR, || {
        // SQLite's wal.c: locks 0, 1 and 2 are for writing, checkpoints and recovery; the others are read marks.
        const FIRST_READ_MARK: c_int = 3;
        const TAKE_SHARED: c_int = SQLITE_SHM_LOCK | SQLITE_SHM_SHARED;
        // SAFETY: the file is open, so is the one below; the arguments are SQLite's own.
        let (handle, code) =
            unsafe { (handle(file), below(file, |m| m.xShmLock, |f, p| f(p, offset, count, flags))) };
        if code == SQLITE_OK
            && flags & TAKE_SHARED == TAKE_SHARED
            && offset >= FIRST_READ_MARK
            && let Some(part) = handle.main_part()
        {
            part.database.begin_wal_read();
        }
        code
    })
}

unsafe extern "C" fn x_shm_barrier(file: *mut sqlite3_file) {
    let call = |barrier: unsafe extern "C" fn(*mut sqlite3_file), parent| {
        // SAFETY: called below with the open file below.
        unsafe { barrier(parent) };
        SQLITE_OK
    };
    // SAFETY: the file is open, so is the one below.
    unsafe { below_or(file, SQLITE_OK, |m| m.xShmBarrier, call) };
}

static METHODS_1: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(x_close),
    xRead: Some(x_read),
    xWrite: Some(x_write),
    xTruncate: Some(x_truncate),
    xSync: Some(x_sync),
    xFileSize: Some(x_file_size),
    xLock: Some(x_lock),
    xUnlock: Some(x_unlock),
    xCheckReservedLock: Some(x_check_reserved_lock),
    xFileControl: Some(x_file_control),
    xSectorSize: Some(x_sector_size),
    xDeviceCharacteristics: Some(x_device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// With shared memory, for WAL. Version 3 would map pages, which are ciphertext.
static METHODS_2: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 2,
    xShmMap: Some(x_shm_map),
    xShmLock: Some(x_shm_lock),
    xShmBarrier: Some(x_shm_barrier),
    xShmUnmap: Some(x_shm_unmap),
    ..METHODS_1
};
