//! Methods of the VFS. Only `xOpen` does something of its own.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use std::sync::Arc;

use super::abi::*;
use super::file::{self, ShimFile};
use super::handle::Handle;
use super::parent::ParentFile;
use super::register::Shim;
use super::report::report;
use crate::database::{self, Database};
use crate::error::{Result, VfsError};
use crate::keys::{Configured, Settings};
use crate::main_db::{MainDb, State};
use crate::temp::TempFile;

/// A VFS that lacks what only registration knows.
pub(super) struct Methods {
    pub(super) vfs: sqlite3_vfs,
    pub(super) parent_file_size: c_int,
}

/// The methods of a shim over `parent`: optional ones are there where the parent has them.
pub(super) fn methods(parent: &sqlite3_vfs) -> Methods {
    let version = parent.iVersion.clamp(1, 3);
    let system_calls = version >= 3;
    let vfs = sqlite3_vfs {
        iVersion: version,
        szOsFile: 0,
        mxPathname: parent.mxPathname,
        pNext: ptr::null_mut(),
        zName: ptr::null(),
        pAppData: ptr::null_mut(),
        xOpen: Some(x_open),
        xDelete: Some(x_delete),
        xAccess: Some(x_access),
        xFullPathname: Some(x_full_pathname),
        xDlOpen: parent.xDlOpen.map(|_| x_dl_open as _),
        xDlError: parent.xDlError.map(|_| x_dl_error as _),
        xDlSym: parent.xDlSym.map(|_| x_dl_sym as _),
        xDlClose: parent.xDlClose.map(|_| x_dl_close as _),
        xRandomness: Some(x_randomness),
        xSleep: Some(x_sleep),
        xCurrentTime: Some(x_current_time),
        xGetLastError: parent.xGetLastError.map(|_| x_get_last_error as _),
        xCurrentTimeInt64: parent
            .xCurrentTimeInt64
            .filter(|_| version >= 2)
            .map(|_| x_current_time_int64 as _),
        xSetSystemCall: parent.xSetSystemCall.filter(|_| system_calls).map(|_| x_set_system_call as _),
        xGetSystemCall: parent.xGetSystemCall.filter(|_| system_calls).map(|_| x_get_system_call as _),
        xNextSystemCall: parent.xNextSystemCall.filter(|_| system_calls).map(|_| x_next_system_call as _),
    };
    Methods { vfs, parent_file_size: parent.szOsFile }
}

/// The shim of a VFS that SQLite calls.
///
/// # Safety
/// `vfs` is one that `register` has made.
unsafe fn shim_of(vfs: *mut sqlite3_vfs) -> &'static Shim {
    // SAFETY: `register` sets pAppData to a leaked `Shim`, and SQLite never changes it.
    unsafe { &*(*vfs).pAppData.cast::<Shim>() }
}

unsafe extern "C" fn x_open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    file::guard(SQLITE_CANTOPEN, || {
        // SAFETY: SQLite calls with the VFS that was registered.
        let shim = unsafe { shim_of(vfs) };
        let shim_file = file.cast::<ShimFile>();
        // SAFETY: SQLite calls with a name that has what `flags` promise behind it.
        if let Err(error) = unsafe { check_new(shim, name, flags) } {
            // SAFETY: as below: SQLite's memory for the file.
            unsafe { (*shim_file).begin() };
            return report(shim.api, error.code_at_open(), &error);
        }
        // SAFETY: SQLite set aside szOsFile bytes at `file`, aligned for its own structs; a file without methods counts
        // as not open.
        unsafe { (*shim_file).begin() };
        // SAFETY: the parent's part of that memory begins at PARENT_OFFSET and is as long as the parent asked for.
        let parent_file = unsafe { file.cast::<u8>().add(file::PARENT_OFFSET).cast::<sqlite3_file>() };
        // SAFETY: as above; the pointer is aligned and nothing else refers to the memory yet.
        unsafe { (*parent_file).pMethods = ptr::null() };
        // SAFETY: `parent` is a registered VFS, every VFS has an xOpen, and the arguments are SQLite's own.
        let code = unsafe {
            match (*shim.parent).xOpen {
                Some(open) => open(shim.parent, name, parent_file, flags, out_flags),
                None => SQLITE_CANTOPEN,
            }
        };
        // SAFETY: `parent_file` was written above and by the parent's xOpen.
        let is_open = !unsafe { (*parent_file).pMethods }.is_null();
        if !is_open {
            return if code == SQLITE_OK { SQLITE_CANTOPEN } else { code };
        }
        let opened = if code == SQLITE_OK {
            // SAFETY: the parent has opened the file, which stays in place until xClose.
            let parent = unsafe { ParentFile::new(parent_file, display_name(name)) };
            // SAFETY: `name` is what SQLite opens the file with, so it has what `flags` promise behind it.
            unsafe { open(shim, parent, name, flags) }
        } else {
            Err(VfsError::Below { file: display_name(name), action: "opening", code })
        };
        match opened {
            Ok(handle) => {
                // SAFETY: `shim_file` is SQLite's memory for this file, without a handle since `begin`.
                unsafe { (*shim_file).finish(handle) };
                SQLITE_OK
            }
            Err(error) => {
                // SAFETY: the file below is open and is not used after this.
                unsafe { file::close_parent(parent_file) };
                match error {
                    VfsError::Below { code, .. } => code,
                    error => report(shim.api, error.code_at_open(), &error),
                }
            }
        }
    })
}

/// A file name for messages.
fn display_name(name: *const c_char) -> String {
    if name.is_null() {
        return "temporary file".to_owned();
    }
    // SAFETY: SQLite hands xOpen a C string or null.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// Chooses what a file is by SQLite's flags. What is none of the known kinds is refused.
///
/// # Safety
/// `name` is null or the name that SQLite calls xOpen with, together with `flags`.
unsafe fn open(shim: &'static Shim, parent: ParentFile, name: *const c_char, flags: c_int) -> Result<Handle> {
    const TEMPORARY: c_int =
        SQLITE_OPEN_TEMP_DB | SQLITE_OPEN_TRANSIENT_DB | SQLITE_OPEN_TEMP_JOURNAL | SQLITE_OPEN_SUBJOURNAL;
    if name.is_null() || flags & TEMPORARY != 0 {
        return Ok(Handle::temp(shim, TempFile::new(parent)?));
    }
    if flags & SQLITE_OPEN_SUPER_JOURNAL != 0 {
        // Names of journals only; SQLite also reads the tail of other journals through such a handle.
        return Ok(Handle::raw(shim, parent));
    }
    if flags & SQLITE_OPEN_MAIN_DB != 0 {
        // SAFETY: with this flag the name has URI parameters behind it.
        return unsafe { open_main(shim, parent, name) };
    }
    if flags & (SQLITE_OPEN_MAIN_JOURNAL | SQLITE_OPEN_WAL) == 0 {
        return Err(VfsError::NoDatabase { file: display_name(name) });
    }
    // SAFETY: names of journals and WALs lie in one block with their database's name, which this finds.
    let database_name = unsafe { (shim.api.filename_database)(name) };
    let database = database::find(database_name.addr())
        .ok_or_else(|| VfsError::NoDatabase { file: display_name(name) })?;
    if flags & SQLITE_OPEN_WAL != 0 {
        Ok(Handle::wal(shim, parent, database))
    } else {
        Ok(Handle::journal(shim, parent, database))
    }
}

/// Looks for keys before a new database file is made, so that none is left behind when there are none.
///
/// # Safety
/// As for [`open`].
unsafe fn check_new(shim: &Shim, name: *const c_char, flags: c_int) -> Result<()> {
    const NEW_DATABASE: c_int = SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_CREATE;
    if name.is_null() || flags & NEW_DATABASE != NEW_DATABASE || exists(shim, name) {
        return Ok(());
    }
    // SAFETY: with these flags the name has URI parameters behind it.
    unsafe { database_of(shim, name)? }.ready_to_create()
}

/// A database whose file was not looked at yet, with the settings of its name.
///
/// # Safety
/// `name` is a name that SQLite opens a main database with.
unsafe fn database_of(shim: &Shim, name: *const c_char) -> Result<Database> {
    let path = display_name(name);
    // SAFETY: by the caller's promise the name can be asked for URI parameters.
    let from_uri = Settings::from_uri(|key: &str| unsafe { uri_parameter(shim, name, key) })
        .map_err(|source| VfsError::Keys { file: path.clone(), place: None, source: source.into() })?;
    Ok(Database::new(path, Arc::new(Configured::new(from_uri, shim.settings.clone()))))
}

/// Opens a main database: whose it is and its keys are known before SQLite looks at a journal.
///
/// # Safety
/// `name` is a name that SQLite opens a main database with.
unsafe fn open_main(shim: &'static Shim, parent: ParentFile, name: *const c_char) -> Result<Handle> {
    // SAFETY: by the caller's promise the name can be asked for URI parameters.
    let plain_temp = unsafe { uri_parameter(shim, name, "plain_temp") }.is_some_and(|value| value == "1");
    // SAFETY: the caller's promise.
    let database = Arc::new(unsafe { database_of(shim, name)? });
    let mut main = MainDb::new(parent, database.clone())?;
    let mut state = main.look()?;
    // SAFETY: the name is a main database's.
    if state == State::Headless && !unsafe { has_journal(shim, name) } && !main.raw().is_reserved()? {
        // Whoever was making the database has finished in between, or nobody is.
        state = main.look()?;
        if state == State::Headless {
            return Err(main.headless());
        }
    }
    if state == State::Empty {
        database.ready_to_create()?;
    }
    database::remember(name.addr(), database);
    Ok(Handle::main(shim, main, name, plain_temp))
}

/// # Safety
/// `name` is a name that SQLite opens a main database with.
unsafe fn uri_parameter(shim: &Shim, name: *const c_char, key: &str) -> Option<String> {
    let key = std::ffi::CString::new(key).ok()?;
    // SAFETY: by the caller's promise the name has its parameters behind it.
    let value = unsafe { (shim.api.uri_parameter)(name, key.as_ptr()) };
    // SAFETY: SQLite returns null or a C string that lives as long as the name.
    (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
}

/// Whether a rollback journal or a WAL lies beside a database.
///
/// # Safety
/// `name` is a name that SQLite opens a main database with.
unsafe fn has_journal(shim: &Shim, name: *const c_char) -> bool {
    // SAFETY: by the caller's promise the names of journal and WAL lie in one block with this one.
    let beside = unsafe { [(shim.api.filename_journal)(name), (shim.api.filename_wal)(name)] };
    beside.into_iter().any(|path| !path.is_null() && exists(shim, path))
}

/// Whether there is a file of this name, by the VFS below.
fn exists(shim: &Shim, path: *const c_char) -> bool {
    let mut exists = 0;
    // SAFETY: the parent is a registered VFS; `path` is a C string of SQLite's, `exists` outlives the call.
    unsafe {
        (*shim.parent).xAccess.is_some_and(|access| {
            access(shim.parent, path, SQLITE_ACCESS_EXISTS, &raw mut exists) == SQLITE_OK
        }) && exists != 0
    }
}

/// Methods that hand their arguments to the VFS below.
macro_rules! hand_down {
    ($($name:ident => $method:ident ($($arg:ident: $type:ty),*) -> $ret:ty, else $missing:expr;)*) => {
        $(unsafe extern "C" fn $name(vfs: *mut sqlite3_vfs $(, $arg: $type)*) -> $ret {
            // SAFETY: SQLite calls with the VFS that was registered, so its parent is a VFS of SQLite's; the other
            // arguments are SQLite's own.
            unsafe {
                let parent = shim_of(vfs).parent;
                match (*parent).$method {
                    Some(method) => method(parent $(, $arg)*),
                    None => $missing,
                }
            }
        })*
    };
}

hand_down! {
    x_delete => xDelete(name: *const c_char, sync_dir: c_int) -> c_int, else SQLITE_IOERR;
    x_access => xAccess(name: *const c_char, flags: c_int, out: *mut c_int) -> c_int, else SQLITE_IOERR;
    x_full_pathname => xFullPathname(name: *const c_char, len: c_int, out: *mut c_char) -> c_int, else SQLITE_CANTOPEN;
    x_dl_open => xDlOpen(name: *const c_char) -> *mut c_void, else ptr::null_mut();
    x_dl_error => xDlError(len: c_int, out: *mut c_char) -> (), else ();
    x_dl_sym => xDlSym(library: *mut c_void, symbol: *const c_char) -> Option<Proc>, else None;
    x_dl_close => xDlClose(library: *mut c_void) -> (), else ();
    x_randomness => xRandomness(len: c_int, out: *mut c_char) -> c_int, else 0;
    x_sleep => xSleep(microseconds: c_int) -> c_int, else 0;
    x_current_time => xCurrentTime(out: *mut f64) -> c_int, else SQLITE_ERROR;
    x_get_last_error => xGetLastError(len: c_int, out: *mut c_char) -> c_int, else 0;
    x_current_time_int64 => xCurrentTimeInt64(out: *mut i64) -> c_int, else SQLITE_ERROR;
    x_set_system_call => xSetSystemCall(name: *const c_char, call: Option<Proc>) -> c_int, else SQLITE_NOTFOUND;
    x_get_system_call => xGetSystemCall(name: *const c_char) -> Option<Proc>, else None;
    x_next_system_call => xNextSystemCall(name: *const c_char) -> *const c_char, else ptr::null();
}
