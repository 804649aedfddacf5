//! SQLite's types, by hand: as much as a VFS needs, as of SQLite 3.39. A test compares them with libsqlite3-sys.
#![allow(non_camel_case_types, non_snake_case, missing_docs, reason = "names and meaning are SQLite's")]

use core::ffi::{c_char, c_int, c_void};

/// A connection, opaque.
#[repr(C)]
pub struct sqlite3 {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct sqlite3_file {
    pub pMethods: *const sqlite3_io_methods,
}

type Close = unsafe extern "C" fn(*mut sqlite3_file) -> c_int;
type Read = unsafe extern "C" fn(*mut sqlite3_file, *mut c_void, c_int, i64) -> c_int;
type Write = unsafe extern "C" fn(*mut sqlite3_file, *const c_void, c_int, i64) -> c_int;
type Truncate = unsafe extern "C" fn(*mut sqlite3_file, i64) -> c_int;
type WithInt = unsafe extern "C" fn(*mut sqlite3_file, c_int) -> c_int;
type FileSize = unsafe extern "C" fn(*mut sqlite3_file, *mut i64) -> c_int;
type CheckReserved = unsafe extern "C" fn(*mut sqlite3_file, *mut c_int) -> c_int;
type FileControl = unsafe extern "C" fn(*mut sqlite3_file, c_int, *mut c_void) -> c_int;
type Ask = unsafe extern "C" fn(*mut sqlite3_file) -> c_int;
type ShmMap = unsafe extern "C" fn(*mut sqlite3_file, c_int, c_int, c_int, *mut *mut c_void) -> c_int;
type ShmLock = unsafe extern "C" fn(*mut sqlite3_file, c_int, c_int, c_int) -> c_int;
type ShmBarrier = unsafe extern "C" fn(*mut sqlite3_file);
type Fetch = unsafe extern "C" fn(*mut sqlite3_file, i64, c_int, *mut *mut c_void) -> c_int;
type Unfetch = unsafe extern "C" fn(*mut sqlite3_file, i64, *mut c_void) -> c_int;

#[repr(C)]
pub struct sqlite3_io_methods {
    pub iVersion: c_int,
    pub xClose: Option<Close>,
    pub xRead: Option<Read>,
    pub xWrite: Option<Write>,
    pub xTruncate: Option<Truncate>,
    pub xSync: Option<WithInt>,
    pub xFileSize: Option<FileSize>,
    pub xLock: Option<WithInt>,
    pub xUnlock: Option<WithInt>,
    pub xCheckReservedLock: Option<CheckReserved>,
    pub xFileControl: Option<FileControl>,
    pub xSectorSize: Option<Ask>,
    pub xDeviceCharacteristics: Option<Ask>,
    // version 2
    pub xShmMap: Option<ShmMap>,
    pub xShmLock: Option<ShmLock>,
    pub xShmBarrier: Option<ShmBarrier>,
    pub xShmUnmap: Option<WithInt>,
    // version 3
    pub xFetch: Option<Fetch>,
    pub xUnfetch: Option<Unfetch>,
}

pub type Proc = unsafe extern "C" fn();
type Open =
    unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, *mut sqlite3_file, c_int, *mut c_int) -> c_int;
type Delete = unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int) -> c_int;
type Access = unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int, *mut c_int) -> c_int;
type FullPathname = unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, c_int, *mut c_char) -> c_int;
type DlOpen = unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char) -> *mut c_void;
type DlError = unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char);
type DlSym = unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void, *const c_char) -> Option<Proc>;
type DlClose = unsafe extern "C" fn(*mut sqlite3_vfs, *mut c_void);
type Buffer = unsafe extern "C" fn(*mut sqlite3_vfs, c_int, *mut c_char) -> c_int;
type Sleep = unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int;
type CurrentTime = unsafe extern "C" fn(*mut sqlite3_vfs, *mut f64) -> c_int;
type CurrentTimeInt64 = unsafe extern "C" fn(*mut sqlite3_vfs, *mut i64) -> c_int;
type SetSystemCall = unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char, Option<Proc>) -> c_int;
type GetSystemCall = unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char) -> Option<Proc>;
type NextSystemCall = unsafe extern "C" fn(*mut sqlite3_vfs, *const c_char) -> *const c_char;

#[repr(C)]
pub struct sqlite3_vfs {
    pub iVersion: c_int,
    pub szOsFile: c_int,
    pub mxPathname: c_int,
    pub pNext: *mut sqlite3_vfs,
    pub zName: *const c_char,
    pub pAppData: *mut c_void,
    pub xOpen: Option<Open>,
    pub xDelete: Option<Delete>,
    pub xAccess: Option<Access>,
    pub xFullPathname: Option<FullPathname>,
    pub xDlOpen: Option<DlOpen>,
    pub xDlError: Option<DlError>,
    pub xDlSym: Option<DlSym>,
    pub xDlClose: Option<DlClose>,
    pub xRandomness: Option<Buffer>,
    pub xSleep: Option<Sleep>,
    pub xCurrentTime: Option<CurrentTime>,
    pub xGetLastError: Option<Buffer>,
    // version 2
    pub xCurrentTimeInt64: Option<CurrentTimeInt64>,
    // version 3
    pub xSetSystemCall: Option<SetSystemCall>,
    pub xGetSystemCall: Option<GetSystemCall>,
    pub xNextSystemCall: Option<NextSystemCall>,
}

pub const SQLITE_OK: c_int = 0;
pub const SQLITE_ERROR: c_int = 1;
pub const SQLITE_BUSY: c_int = 5;
pub const SQLITE_NOMEM: c_int = 7;
pub const SQLITE_IOERR: c_int = 10;
pub const SQLITE_NOTFOUND: c_int = 12;
pub const SQLITE_CANTOPEN: c_int = 14;
pub const SQLITE_MISUSE: c_int = 21;
pub const SQLITE_IOERR_SHORT_READ: c_int = SQLITE_IOERR | 2 << 8;
pub const SQLITE_IOERR_NOMEM: c_int = SQLITE_IOERR | 12 << 8;
pub const SQLITE_OK_LOAD_PERMANENTLY: c_int = 1 << 8;

pub const SQLITE_OPEN_CREATE: c_int = 0x04;
pub const SQLITE_OPEN_MAIN_DB: c_int = 0x100;
pub const SQLITE_OPEN_TEMP_DB: c_int = 0x200;
pub const SQLITE_OPEN_TRANSIENT_DB: c_int = 0x400;
pub const SQLITE_OPEN_MAIN_JOURNAL: c_int = 0x800;
pub const SQLITE_OPEN_TEMP_JOURNAL: c_int = 0x1000;
pub const SQLITE_OPEN_SUBJOURNAL: c_int = 0x2000;
pub const SQLITE_OPEN_SUPER_JOURNAL: c_int = 0x4000;
pub const SQLITE_OPEN_WAL: c_int = 0x80000;

pub const SQLITE_ACCESS_EXISTS: c_int = 0;

pub const SQLITE_LOCK_NONE: c_int = 0;
pub const SQLITE_LOCK_SHARED: c_int = 1;

pub const SQLITE_SHM_LOCK: c_int = 2;
pub const SQLITE_SHM_SHARED: c_int = 4;

pub const SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN: c_int = 0x800;
pub const SQLITE_IOCAP_POWERSAFE_OVERWRITE: c_int = 0x1000;
pub const SQLITE_IOCAP_IMMUTABLE: c_int = 0x2000;

pub const SQLITE_FCNTL_SIZE_HINT: c_int = 5;
pub const SQLITE_FCNTL_CHUNK_SIZE: c_int = 6;
pub const SQLITE_FCNTL_FILE_POINTER: c_int = 7;
pub const SQLITE_FCNTL_OVERWRITE: c_int = 11;
pub const SQLITE_FCNTL_VFSNAME: c_int = 12;
pub const SQLITE_FCNTL_PRAGMA: c_int = 14;
pub const SQLITE_FCNTL_VFS_POINTER: c_int = 27;
pub const SQLITE_FCNTL_PDB: c_int = 30;
pub const SQLITE_FCNTL_BEGIN_ATOMIC_WRITE: c_int = 31;
pub const SQLITE_FCNTL_COMMIT_ATOMIC_WRITE: c_int = 32;
pub const SQLITE_FCNTL_ROLLBACK_ATOMIC_WRITE: c_int = 33;
pub const SQLITE_FCNTL_RESERVE_BYTES: c_int = 38;
pub const SQLITE_FCNTL_CKPT_START: c_int = 39;
