//! The functions of the one SQLite that this process uses the shim with.
//!
//! They come as a table: from `sqlite3_api_routines` of the library that loads the extension, or from whoever links
//! SQLite. So the shim binds to exactly the SQLite that calls it, however many are in the process.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::abi::{Proc, sqlite3, sqlite3_vfs};
use super::register::RegisterError;

/// Callback of `sqlite3_exec`.
pub type ExecCallback = unsafe extern "C" fn(*mut c_void, c_int, *mut *mut c_char, *mut *mut c_char) -> c_int;

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident, $index:literal: $type:ty;)*) => {
        /// Functions of a SQLite library, as a program hands them over. `tde_sqlite.h` has the same struct.
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct FunctionTable {
            /// Length of the table in bytes, so that later versions can be longer.
            pub size: usize,
            $($(#[$doc])* pub $name: Option<$type>,)*
        }

        /// The same functions, all of them there.
        #[derive(Clone, Copy)]
        pub(crate) struct Api {
            $(pub(super) $name: $type,)*
        }

        impl FunctionTable {
            /// Takes the functions from a `sqlite3_api_routines`.
            ///
            /// # Safety
            /// `routines` is the table that SQLite 3.39 or newer hands to an extension, or one of an older SQLite;
            /// its version is looked at before anything that an older one lacks.
            pub unsafe fn from_routines(routines: *const c_void) -> Result<Self, RegisterError> {
                // SAFETY: `sqlite3_api_routines` is a struct of function pointers only, which never loses members;
                // `libversion_number` has been in it since SQLite 3.3.
                let version = unsafe {
                    let function = routines.cast::<Option<Proc>>().add(LIBVERSION_NUMBER).read();
                    function.map(|f| core::mem::transmute::<Proc, unsafe extern "C" fn() -> c_int>(f)())
                };
                check_version(version.ok_or(RegisterError::FunctionMissing { name: "libversion_number" })?)?;
                // SAFETY: from 3.39 on the table reaches beyond the last index used here, and the function at each
                // index has the type given for it (sqlite3ext.h; a test compares offsets).
                Ok(unsafe {
                    Self {
                        size: size_of::<Self>(),
                        $($name: routines
                            .cast::<Option<Proc>>()
                            .add($index)
                            .read()
                            .map(|f| core::mem::transmute::<Proc, $type>(f)),)*
                    }
                })
            }

            fn complete(&self) -> Result<Api, RegisterError> {
                Ok(Api {
                    $($name: self.$name.ok_or(RegisterError::FunctionMissing { name: stringify!($name) })?,)*
                })
            }
        }
    };
}

const LIBVERSION_NUMBER: usize = 67;

functions! {
    /// `sqlite3_libversion_number`.
    libversion_number, 67: unsafe extern "C" fn() -> c_int;
    /// `sqlite3_vfs_find`.
    vfs_find, 141: unsafe extern "C" fn(*const c_char) -> *mut sqlite3_vfs;
    /// `sqlite3_vfs_register`.
    vfs_register, 142: unsafe extern "C" fn(*mut sqlite3_vfs, c_int) -> c_int;
    /// `sqlite3_file_control`.
    file_control, 127: unsafe extern "C" fn(*mut sqlite3, *const c_char, c_int, *mut c_void) -> c_int;
    /// `sqlite3_db_name`.
    db_name, 264: unsafe extern "C" fn(*mut sqlite3, c_int) -> *const c_char;
    /// `sqlite3_db_filename`.
    db_filename, 180: unsafe extern "C" fn(*mut sqlite3, *const c_char) -> *const c_char;
    /// `sqlite3_filename_database`.
    filename_database, 246: unsafe extern "C" fn(*const c_char) -> *const c_char;
    /// `sqlite3_filename_journal`.
    filename_journal, 247: unsafe extern "C" fn(*const c_char) -> *const c_char;
    /// `sqlite3_filename_wal`.
    filename_wal, 248: unsafe extern "C" fn(*const c_char) -> *const c_char;
    /// `sqlite3_uri_parameter`.
    uri_parameter, 189: unsafe extern "C" fn(*const c_char, *const c_char) -> *const c_char;
    /// `sqlite3_exec`.
    exec, 55: unsafe extern "C" fn(*mut sqlite3, *const c_char, Option<ExecCallback>, *mut c_void, *mut *mut c_char) -> c_int;
    /// `sqlite3_malloc64`.
    malloc64, 197: unsafe extern "C" fn(u64) -> *mut c_void;
    /// `sqlite3_free`.
    free, 58: unsafe extern "C" fn(*mut c_void);
    /// `sqlite3_log`.
    log, 167: unsafe extern "C" fn(c_int, *const c_char, ...);
}

/// The oldest SQLite that has what the shim needs (`sqlite3_db_name`).
const OLDEST: c_int = 3_039_000;

fn check_version(found: c_int) -> Result<(), RegisterError> {
    if found >= OLDEST { Ok(()) } else { Err(RegisterError::TooOld { found }) }
}

static API: OnceLock<Api> = OnceLock::new();

impl Api {
    /// Binds the process to the SQLite of `table`, or finds that it is bound to it already.
    ///
    /// # Safety
    /// The functions are those of one SQLite library, which stays loaded.
    pub(super) unsafe fn bind(table: &FunctionTable) -> Result<&'static Self, RegisterError> {
        let api = table.complete()?;
        // SAFETY: the caller vouches for the function.
        check_version(unsafe { (api.libversion_number)() })?;
        let bound = API.get_or_init(|| api);
        // Another copy of SQLite has another registry of VFSs, other locks and other memory: the two must not meet.
        if core::ptr::fn_addr_eq(bound.vfs_register, api.vfs_register) {
            Ok(bound)
        } else {
            Err(RegisterError::SecondSqlite)
        }
    }

    /// The SQLite that this process is bound to, if any.
    pub(super) fn bound() -> Option<&'static Self> {
        API.get()
    }

    /// Writes to SQLite's error log.
    pub(super) fn log_message(&self, code: c_int, message: &CStr) {
        // SAFETY: the format takes one C string, which lives for the call.
        unsafe { (self.log)(code, c"%s".as_ptr(), message.as_ptr()) };
    }

    /// A copy of `text` in SQLite's memory, for SQLite to free; null if there is no memory.
    pub(super) fn string(&self, text: &str) -> *mut c_char {
        // SAFETY: the function is SQLite's (`bind`).
        unsafe { string(self.malloc64, text) }
    }
}

impl FunctionTable {
    /// A copy of `text` in SQLite's memory, for SQLite to free; null if there is no memory.
    ///
    /// # Safety
    /// `malloc64` is null or SQLite's.
    pub unsafe fn string(&self, text: &str) -> *mut c_char {
        // SAFETY: the caller's promise.
        self.malloc64.map_or(core::ptr::null_mut(), |malloc| unsafe { string(malloc, text) })
    }
}

/// # Safety
/// `malloc` allocates as `malloc(3)` does.
unsafe fn string(malloc: unsafe extern "C" fn(u64) -> *mut c_void, text: &str) -> *mut c_char {
    // SAFETY: any size may be asked for.
    let copy = unsafe { malloc(text.len() as u64 + 1) }.cast::<u8>();
    if !copy.is_null() {
        // SAFETY: `copy` has room for the text and a terminator and overlaps nothing.
        unsafe {
            copy.copy_from_nonoverlapping(text.as_ptr(), text.len());
            copy.add(text.len()).write(0);
        }
    }
    copy.cast()
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use libsqlite3_sys as sys;

    use super::super::abi;
    use super::*;

    /// What SQLite has handed to the extension below.
    static TABLE: OnceLock<FunctionTable> = OnceLock::new();

    unsafe extern "C" fn take_table(
        _db: *mut sys::sqlite3,
        _message: *mut *mut c_char,
        routines: *const sys::sqlite3_api_routines,
    ) -> c_int {
        // SAFETY: SQLite calls with its table.
        let table = unsafe { FunctionTable::from_routines(routines.cast()) };
        c_int::from(table.map(|table| TABLE.set(table)).is_err())
    }

    #[test]
    fn functions_of_an_extension_are_those_of_sqlite() {
        let mut db = core::ptr::null_mut();
        // SAFETY: SQLite's documented use: a statically linked extension, a connection that is opened and closed.
        unsafe {
            assert_eq!(sys::sqlite3_auto_extension(Some(take_table)), 0);
            assert_eq!(sys::sqlite3_open(c":memory:".as_ptr(), &raw mut db), 0);
            assert_eq!(sys::sqlite3_close(db), 0);
            sys::sqlite3_cancel_auto_extension(Some(take_table));
        }
        let table = TABLE.get().unwrap();
        macro_rules! same {
            ($($name:ident = $function:ident),*) => {
                $(assert_eq!(
                    table.$name.map(|f| f as *const ()),
                    Some(sys::$function as *const ()),
                    stringify!($name)
                );)*
            };
        }
        same!(
            libversion_number = sqlite3_libversion_number,
            vfs_find = sqlite3_vfs_find,
            vfs_register = sqlite3_vfs_register,
            file_control = sqlite3_file_control,
            db_name = sqlite3_db_name,
            db_filename = sqlite3_db_filename,
            filename_database = sqlite3_filename_database,
            filename_journal = sqlite3_filename_journal,
            filename_wal = sqlite3_filename_wal,
            uri_parameter = sqlite3_uri_parameter,
            exec = sqlite3_exec,
            malloc64 = sqlite3_malloc64,
            free = sqlite3_free,
            log = sqlite3_log
        );
    }

    #[test]
    fn types_are_those_of_sqlite() {
        macro_rules! check {
            ($type:ident: $($field:ident),*) => {
                assert_eq!(size_of::<abi::$type>(), size_of::<sys::$type>());
                $(assert_eq!(offset_of!(abi::$type, $field), offset_of!(sys::$type, $field), stringify!($field));)*
            };
        }
        check!(sqlite3_file: pMethods);
        check!(sqlite3_io_methods: iVersion, xClose, xRead, xWrite, xTruncate, xSync, xFileSize, xLock, xUnlock,
            xCheckReservedLock, xFileControl, xSectorSize, xDeviceCharacteristics, xShmMap, xShmLock, xShmBarrier,
            xShmUnmap, xFetch, xUnfetch);
        check!(sqlite3_vfs: iVersion, szOsFile, mxPathname, pNext, zName, pAppData, xOpen, xDelete, xAccess,
            xFullPathname, xDlOpen, xDlError, xDlSym, xDlClose, xRandomness, xSleep, xCurrentTime, xGetLastError,
            xCurrentTimeInt64, xSetSystemCall, xGetSystemCall, xNextSystemCall);
        macro_rules! same { ($($name:ident),*) => { $(assert_eq!(abi::$name, sys::$name, stringify!($name));)* } }
        same!(
            SQLITE_OPEN_MAIN_DB,
            SQLITE_OPEN_TEMP_DB,
            SQLITE_OPEN_TRANSIENT_DB,
            SQLITE_OPEN_MAIN_JOURNAL,
            SQLITE_OPEN_TEMP_JOURNAL,
            SQLITE_OPEN_SUBJOURNAL,
            SQLITE_OPEN_SUPER_JOURNAL,
            SQLITE_OPEN_WAL,
            SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN,
            SQLITE_IOCAP_POWERSAFE_OVERWRITE,
            SQLITE_IOCAP_IMMUTABLE,
            SQLITE_FCNTL_SIZE_HINT,
            SQLITE_FCNTL_CHUNK_SIZE,
            SQLITE_FCNTL_FILE_POINTER,
            SQLITE_FCNTL_OVERWRITE,
            SQLITE_FCNTL_VFSNAME,
            SQLITE_FCNTL_PRAGMA,
            SQLITE_FCNTL_VFS_POINTER,
            SQLITE_FCNTL_PDB,
            SQLITE_FCNTL_BEGIN_ATOMIC_WRITE,
            SQLITE_FCNTL_COMMIT_ATOMIC_WRITE,
            SQLITE_FCNTL_ROLLBACK_ATOMIC_WRITE,
            SQLITE_FCNTL_RESERVE_BYTES,
            SQLITE_FCNTL_CKPT_START,
            SQLITE_IOERR_SHORT_READ,
            SQLITE_LOCK_SHARED,
            SQLITE_SHM_LOCK,
            SQLITE_SHM_SHARED
        );
    }
}
