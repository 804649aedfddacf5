//! Makes the VFS known to SQLite.

use core::ffi::{c_int, c_void};
use core::ptr;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

use super::abi::{SQLITE_OK, sqlite3_file, sqlite3_vfs};
use super::api::{Api, FunctionTable};
use super::file::PARENT_OFFSET;
use super::{report, vfs};
use crate::config::Config;
use crate::keys::Settings;

/// The VFS cannot be registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// A function is missing in the table.
    #[error("the table of SQLite's functions lacks sqlite3_{name}; SQLite 3.39 or newer has it")]
    FunctionMissing {
        /// The function, without `sqlite3_`.
        name: &'static str,
    },
    /// The SQLite library is too old.
    #[error(
        "SQLite {}.{}.{} is too old for an encrypted database; 3.39.0 or newer is needed",
        found / 1_000_000, found / 1000 % 1000, found % 1000
    )]
    TooOld {
        /// Its version number.
        found: i32,
    },
    /// Another copy of SQLite has the VFS.
    #[error(
        "another copy of SQLite in this process uses tde already; two copies cannot share it, link or load only one"
    )]
    SecondSqlite,
    /// The name is in use.
    #[error(
        "a VFS with the name \"{name}\" is registered already, and it is not this one; choose another name"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A zero byte in a name.
    #[error("a VFS name must not contain a zero byte")]
    BadName,
    /// No VFS below.
    #[error("there is no VFS {name} to put tde on", name = name.as_deref().unwrap_or("at all"))]
    NoParent {
        /// Its name; none for the default one.
        name: Option<String>,
    },
    /// SQLite refused.
    #[error("SQLite refused to register the VFS with result code {code}")]
    Refused {
        /// The code.
        code: i32,
    },
}

/// What registering has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// The VFS is there now.
    New,
    /// It was there already, and stays as it was first configured; it became the default if that was asked for.
    Before,
}

/// A registered VFS. Lives as long as the process: SQLite may hold its address anywhere.
pub(super) struct Shim {
    pub(super) api: &'static Api,
    pub(super) parent: *mut sqlite3_vfs,
    pub(super) name: CString,
    pub(super) settings: Settings,
}

// SAFETY: `parent` is a VFS that SQLite itself uses from all threads; nothing else is changed after registration.
unsafe impl Sync for Shim {}
// SAFETY: as above; a `Shim` is tied to no thread.
unsafe impl Send for Shim {}

/// The VFSs registered so far: their names and addresses.
static REGISTERED: Mutex<Vec<(CString, usize)>> = Mutex::new(Vec::new());

/// Whether a VFS is one of ours.
pub(super) fn is_ours(vfs: *const sqlite3_vfs) -> bool {
    let registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    registered.iter().any(|(_, ours)| *ours == vfs.addr())
}

/// Whether one of ours has this name.
pub(super) fn is_our_name(name: &[u8]) -> bool {
    let registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    registered.iter().any(|(ours, _)| ours.as_bytes() == name)
}

/// Registers the VFS with the SQLite whose functions `table` holds.
///
/// # Safety
/// The functions are those of one SQLite library, which stays loaded as long as the process, and so does the code of
/// this crate. SQLite is initialized, or can be.
pub unsafe fn register(table: &FunctionTable, config: Config) -> Result<Registered, RegisterError> {
    // SAFETY: the caller's promise is the one that `register_with` asks for.
    let registered = unsafe { register_with(table, config) };
    if let Err(error) = &registered {
        match Api::bound() {
            Some(api) if !matches!(error, RegisterError::SecondSqlite) => {
                report::report(api, crate::error::sqlite_code::ERROR, error);
            }
            _ => drop(report::keep(error)),
        }
    }
    registered
}

/// # Safety
/// As for [`register`].
unsafe fn register_with(table: &FunctionTable, config: Config) -> Result<Registered, RegisterError> {
    // SAFETY: the caller's promise.
    let api = unsafe { Api::bind(table)? };
    let name = CString::new(config.name).map_err(|_| RegisterError::BadName)?;
    let parent_name = config.parent.map(CString::new).transpose().map_err(|_| RegisterError::BadName)?;

    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, address)) = registered.iter().find(|(ours, _)| *ours == name) {
        // SQLite may have made another VFS its default since, as sqlite3_initialize does.
        let vfs = ptr::with_exposed_provenance_mut(*address);
        // SAFETY: the address is that of a VFS made below, which lives for ever.
        return match unsafe { (api.vfs_register)(vfs, c_int::from(config.make_default)) } {
            SQLITE_OK => Ok(Registered::Before),
            code => Err(RegisterError::Refused { code }),
        };
    }
    // SAFETY: `name` is a C string; a VFS that is found belongs to SQLite's list and is only compared with null.
    if !unsafe { (api.vfs_find)(name.as_ptr()) }.is_null() {
        return Err(RegisterError::NameTaken { name: name.to_string_lossy().into_owned() });
    }
    // SAFETY: the argument is null (the default VFS) or a C string.
    let parent = unsafe { (api.vfs_find)(parent_name.as_deref().map_or(ptr::null(), |name| name.as_ptr())) };
    if parent.is_null() || registered.iter().any(|(_, ours)| *ours == parent.addr()) {
        return Err(RegisterError::NoParent {
            name: parent_name.map(|name| name.to_string_lossy().into_owned()),
        });
    }

    let shim: &'static Shim = Box::leak(Box::new(Shim { api, parent, name, settings: config.keys }));
    // SAFETY: `vfs_find` returned it, so it is a complete VFS of SQLite's list.
    let methods = vfs::methods(unsafe { &*parent });
    let size = PARENT_OFFSET as c_int + methods.parent_file_size.max(size_of::<sqlite3_file>() as c_int);
    let vfs = Box::leak(Box::new(sqlite3_vfs {
        szOsFile: size,
        zName: shim.name.as_ptr(),
        pAppData: ptr::from_ref(shim).cast_mut().cast::<c_void>(),
        ..methods.vfs
    }));
    let address = ptr::from_mut(vfs);
    // SAFETY: the VFS is complete, never moves and is never freed.
    match unsafe { (api.vfs_register)(address, c_int::from(config.make_default)) } {
        SQLITE_OK => {
            registered.push((shim.name.clone(), address.expose_provenance()));
            Ok(Registered::New)
        }
        code => Err(RegisterError::Refused { code }),
    }
}
