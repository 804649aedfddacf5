//! File controls and pragmas.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::abi::*;
use super::file;
use super::handle::Handle;
use crate::error::{Result, VfsError};
use crate::main_db::MainDb;
use crate::status::{self, Pragma};

/// How often a lock that another process holds is asked for, and how long is waited in between: five seconds in all.
const LOCK_TRIES: u32 = 250;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// # Safety
/// `file` is open under this VFS and `arg` is what SQLite documents for `op`.
pub(super) unsafe fn file_control(file: *mut sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    let handle = unsafe { file::handle(file) };
    // SAFETY: the file below gets what this one was given.
    let hand_down = || unsafe { file::below(file, |m| m.xFileControl, |f, p| f(p, op, arg)) };
    match op {
        SQLITE_FCNTL_PDB => {
            if let Some(part) = handle.main_part() {
                part.connection.set_place(arg.cast());
            }
            hand_down()
        }
        // A chunk or a hint would extend the file with zeros, which no page may be.
        SQLITE_FCNTL_SIZE_HINT | SQLITE_FCNTL_CHUNK_SIZE if handle.main_part().is_some() => SQLITE_OK,
        // Not promised by the device characteristics either.
        SQLITE_FCNTL_BEGIN_ATOMIC_WRITE
        | SQLITE_FCNTL_COMMIT_ATOMIC_WRITE
        | SQLITE_FCNTL_ROLLBACK_ATOMIC_WRITE => SQLITE_NOTFOUND,
        SQLITE_FCNTL_CKPT_START => match handle.with_main(|main| {
            main.forget_size();
            Ok(())
        }) {
            Ok(_) => hand_down(),
            Err(error) => handle.code(Err(error)),
        },
        SQLITE_FCNTL_OVERWRITE => match check_overwrite(handle) {
            Ok(()) => hand_down(),
            Err(error) => handle.code(Err(error)),
        },
        SQLITE_FCNTL_VFSNAME => {
            let code = hand_down();
            // SAFETY: for this control `arg` is a place for a string from sqlite3_malloc.
            unsafe { prefix_name(handle, code, arg.cast()) }
        }
        SQLITE_FCNTL_PRAGMA => {
            // SAFETY: for this control `arg` is an array of three strings.
            match unsafe { pragma(file, handle, arg.cast()) } {
                Some(code) => code,
                None => hand_down(),
            }
        }
        _ => hand_down(),
    }
}

/// VACUUM is about to write the whole file anew.
fn check_overwrite(handle: &Handle) -> Result<()> {
    let Some(part) = handle.main_part() else { return Ok(()) };
    let Some(size) = part.connection.vacuum_page_size(part.database.path())? else { return Ok(()) };
    handle.with_main(|main| main.refuse_page_size(size)).map(drop)
}

/// Puts our name before that of the VFS below.
///
/// # Safety
/// `out` is a place for a string that SQLite will free, filled if `code` is `SQLITE_OK`.
unsafe fn prefix_name(handle: &Handle, code: c_int, out: *mut *mut c_char) -> c_int {
    let shim = handle.shim();
    let mut name = shim.name.to_string_lossy().into_owned();
    // SAFETY: by the caller's promise; the old string is freed once and replaced.
    unsafe {
        if code == SQLITE_OK && !(*out).is_null() {
            name.push('/');
            name.push_str(&CStr::from_ptr(*out).to_string_lossy());
            (shim.api.free)((*out).cast());
        }
        *out = shim.api.string(&name);
        if (*out).is_null() { SQLITE_NOMEM } else { SQLITE_OK }
    }
}

/// Runs a pragma of ours: its text result, or error message, goes where SQLite expects it. None if it is not ours.
///
/// # Safety
/// `file` is open under this VFS; `args` has a place for the result, the name and the argument or null.
unsafe fn pragma(file: *mut sqlite3_file, handle: &Handle, args: *mut *mut c_char) -> Option<c_int> {
    // SAFETY: by the caller's promise the name is a C string.
    let name = unsafe { CStr::from_ptr(*args.add(1)) };
    let pragma = Pragma::named(name.to_str().ok()?)?;
    let part = handle.main_part()?;
    let outcome = match pragma {
        Pragma::Status => handle.with_main(status::status),
        Pragma::Rotate => status::rotate(&part.database).map(Some),
        // SAFETY: the file is open.
        Pragma::KeyVersion => unsafe { locked(file, handle, status::key_versions) },
        // SAFETY: the file is open.
        Pragma::Verify => unsafe { locked(file, handle, status::verify) },
    };
    let (text, code) = match outcome {
        Ok(text) => (text.unwrap_or_default(), SQLITE_OK),
        Err(error @ VfsError::Below { code, .. }) => (error.to_string(), code),
        Err(error) => (error.to_string(), SQLITE_ERROR),
    };
    // SAFETY: by the caller's promise the first element takes a string that SQLite frees.
    unsafe { *args = handle.shim().api.string(&text) };
    Some(code)
}

/// Works with the database while no other process can write it in rollback mode.
///
/// # Safety
/// `file` is open under this VFS and `handle` is its handle.
unsafe fn locked<T>(
    file: *mut sqlite3_file,
    handle: &Handle,
    work: impl FnOnce(&mut MainDb<super::parent::ParentFile>) -> Result<T>,
) -> Result<Option<T>> {
    let held = handle.main_part().map_or(SQLITE_LOCK_NONE, |part| part.lock.load(Ordering::Relaxed));
    if held != SQLITE_LOCK_NONE {
        return handle.with_main(work);
    }
    let mut tries = 0;
    let code = loop {
        // SAFETY: the file is open. The lock is given up below, before SQLite takes one itself.
        let code = unsafe { file::below(file, |m| m.xLock, |f, p| f(p, SQLITE_LOCK_SHARED)) };
        tries += 1;
        if code & 0xff != SQLITE_BUSY || tries == LOCK_TRIES {
            break code;
        }
        // The connection's busy handler cannot be reached from here.
        thread::sleep(BETWEEN_TRIES);
    };
    if code != SQLITE_OK {
        let file = handle.main_part().map_or_else(String::new, |part| part.database.path().to_owned());
        return Err(VfsError::Below { file, action: "locking", code });
    }
    let outcome = handle.with_main(|main| main.look().and_then(|_| work(main)));
    // SAFETY: as above.
    unsafe { file::below(file, |m| m.xUnlock, |f, p| f(p, SQLITE_LOCK_NONE)) };
    outcome
}
