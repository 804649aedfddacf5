//! What must be asked of the connection that a database file belongs to.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::abi::*;
use super::api::Api;
use super::register::{is_our_name, is_ours};
use crate::error::{Result, VfsError};
use crate::format::header::RESERVED;

/// The way from a file to its connection.
pub(super) struct Connection {
    api: &'static Api,
    /// The name that SQLite opened the file with; its address identifies the file.
    name: *const c_char,
    /// Where SQLite keeps the connection that uses the file now. With a shared cache that changes, so it is looked at
    /// for each use.
    place: AtomicPtr<*mut sqlite3>,
    /// Whether plaintext temporary files are allowed.
    plain_temp: bool,
    /// Whether bytes are being reserved: SQLite may ask for the file's length meanwhile.
    reserving: AtomicBool,
    /// The connection whose temporary files were found to be encrypted.
    checked: AtomicPtr<sqlite3>,
}

// SAFETY: `name` and `place` point into SQLite's own structs, which live as long as the file is open and which SQLite
// protects by the connection's (or the shared cache's) mutex; it holds that whenever it calls a method of the file.
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

impl Connection {
    pub(super) fn new(api: &'static Api, name: *const c_char, plain_temp: bool) -> Self {
        let place = AtomicPtr::new(ptr::null_mut());
        Self {
            api,
            name,
            place,
            plain_temp,
            reserving: AtomicBool::new(false),
            checked: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// The address of the name identifies the file.
    pub(super) fn name(&self) -> *const c_char {
        self.name
    }

    /// `SQLITE_FCNTL_PDB` says where the connection is.
    pub(super) fn set_place(&self, place: *mut *mut sqlite3) {
        self.place.store(place, Ordering::Relaxed);
        self.forget_check();
    }

    /// A transaction has ended: the next connection may be another one, even at the same address.
    pub(super) fn forget_check(&self) {
        self.checked.store(ptr::null_mut(), Ordering::Relaxed);
    }

    fn db(&self) -> Option<*mut sqlite3> {
        let place = self.place.load(Ordering::Relaxed);
        if place.is_null() {
            return None;
        }
        // SAFETY: SQLite said that its connection is kept there, and calls the file's methods only while it is.
        let db = unsafe { *place };
        (!db.is_null()).then_some(db)
    }

    /// Refuses a connection whose main database is under another VFS: SQLite opens temporary files under that one.
    pub(super) fn check_temporary_files(&self, file: &str) -> Result<()> {
        let Some(db) = self.db().filter(|_| !self.plain_temp) else { return Ok(()) };
        if self.checked.load(Ordering::Relaxed) == db {
            return Ok(());
        }
        // SQLite opens the temporary schema when it is first named, under the VFS that all temporary files get.
        let main = self.vfs_of(db, ptr::null());
        if !is_ours(main)
            && !self.main_is_above_ours(db, file)?
            && !is_ours(self.vfs_of(db, c"temp".as_ptr()))
        {
            let file = file.to_owned();
            return Err(if self.is_memdb(main) {
                VfsError::MainInMemory { file }
            } else {
                VfsError::PlainTemp { file }
            });
        }
        self.checked.store(db, Ordering::Relaxed);
        Ok(())
    }

    /// The VFS of one of the connection's databases, of the main one if `schema` is null; null if it is not open.
    fn vfs_of(&self, db: *mut sqlite3, schema: *const c_char) -> *mut sqlite3_vfs {
        let mut vfs: *mut sqlite3_vfs = ptr::null_mut();
        // SAFETY: `db` is open, `schema` is null or a C string; this control stores one pointer, or nothing.
        unsafe { (self.api.file_control)(db, schema, SQLITE_FCNTL_VFS_POINTER, (&raw mut vfs).cast()) };
        vfs
    }

    /// Whether this is the VFS that `sqlite3_deserialize` puts a database under, whatever the connection's is.
    fn is_memdb(&self, vfs: *mut sqlite3_vfs) -> bool {
        // SAFETY: the name is a C string; the VFS that is found is only compared.
        !vfs.is_null() && vfs == unsafe { (self.api.vfs_find)(c"memdb".as_ptr()) }
    }

    /// Whether the main database is under another shim that lies on ours.
    fn main_is_above_ours(&self, db: *mut sqlite3, file: &str) -> Result<bool> {
        let mut names: *mut c_char = ptr::null_mut();
        // SAFETY: `db` is open; this control stores a string from sqlite3_malloc or nothing.
        let code = unsafe {
            (self.api.file_control)(db, ptr::null(), SQLITE_FCNTL_VFSNAME, (&raw mut names).cast())
        };
        if names.is_null() {
            return match code {
                // No file, or one that does not know the control.
                SQLITE_ERROR | SQLITE_NOTFOUND => Ok(false),
                SQLITE_OK => Err(failed(file, "naming the VFS", SQLITE_NOMEM)),
                code => Err(failed(file, "naming the VFS", code)),
            };
        }
        // SAFETY: not null, so it is a C string that is ours to free.
        let found = unsafe { CStr::from_ptr(names) }.to_bytes().split(|b| *b == b'/').any(is_our_name);
        // SAFETY: allocated by SQLite, not used after this.
        unsafe { (self.api.free)(names.cast()) };
        Ok(found)
    }

    /// Makes SQLite leave the bytes of the trailer free. Works only while the database is empty.
    pub(super) fn reserve_bytes(&self) {
        let Some(db) = self.db() else { return };
        if self.reserving.swap(true, Ordering::Relaxed) {
            return;
        }
        for schema in self.schemas(db) {
            // SAFETY: `db` is open and `schema` is one of its names.
            if unsafe { (self.api.db_filename)(db, schema) }.addr() != self.name.addr() {
                continue;
            }
            let mut bytes = c_int::from(RESERVED);
            // SAFETY: as above; this control reads and writes one int. Where it has no effect, the page-1 write is
            // refused.
            unsafe {
                (self.api.file_control)(db, schema, SQLITE_FCNTL_RESERVE_BYTES, (&raw mut bytes).cast());
            }
            break;
        }
        self.reserving.store(false, Ordering::Relaxed);
    }

    fn schemas(&self, db: *mut sqlite3) -> impl Iterator<Item = *const c_char> {
        // SAFETY: `db` is open; a number that is too large gives null.
        (0..).map(move |i| unsafe { (self.api.db_name)(db, i) }).take_while(|name| !name.is_null())
    }

    /// During VACUUM, the page size that the database will have, in bytes. Fails when SQLite does not say it.
    pub(super) fn vacuum_page_size(&self, file: &str) -> Result<Option<u32>> {
        let Some(db) = self.db() else { return Ok(None) };
        // VACUUM attaches its new database as "vacuum_db", since 3.51 as "vacuum_" and hexadecimal digits.
        // SAFETY: names of schemas are C strings.
        let is_vacuum =
            |name: &*const c_char| unsafe { CStr::from_ptr(*name) }.to_bytes().starts_with(b"vacuum_");
        let Some(schema) = self.schemas(db).filter(is_vacuum).last() else { return Ok(None) };
        // SAFETY: as above.
        let schema = unsafe { CStr::from_ptr(schema) }.to_string_lossy();
        let Ok(sql) = std::ffi::CString::new(format!("PRAGMA \"{schema}\".page_size")) else {
            return Ok(None);
        };
        let mut size = 0_u32;
        // SAFETY: `db` is open, and SQLite itself runs nested statements during VACUUM; the callback gets the address
        // of `size`, which outlives the call.
        let code = unsafe {
            (self.api.exec)(db, sql.as_ptr(), Some(take_number), (&raw mut size).cast(), ptr::null_mut())
        };
        match code {
            SQLITE_OK if size != 0 => Ok(Some(size)),
            SQLITE_OK => Err(failed(file, "asking for VACUUM's page size", SQLITE_ERROR)),
            code => Err(failed(file, "asking for VACUUM's page size", code)),
        }
    }
}

/// A question to SQLite failed. Without memory it shall say "out of memory" and not "I/O error".
fn failed(file: &str, action: &'static str, code: c_int) -> VfsError {
    let code = if code == SQLITE_NOMEM { SQLITE_IOERR_NOMEM } else { code };
    VfsError::Below { file: file.to_owned(), action, code }
}

/// Stores a statement's first column, a number, at `out`.
unsafe extern "C" fn take_number(
    out: *mut c_void,
    columns: c_int,
    values: *mut *mut c_char,
    _names: *mut *mut c_char,
) -> c_int {
    // SAFETY: SQLite hands over `columns` values, each null or a C string, and `out` as it was given.
    unsafe {
        if columns > 0 && !(*values).is_null() {
            let text = CStr::from_ptr(*values).to_str().unwrap_or_default();
            out.cast::<u32>().write(text.parse().unwrap_or_default());
        }
    }
    SQLITE_OK
}
