//! Encrypted SQLite databases for programs that use `rusqlite`, or anything else on `libsqlite3-sys`.
//!
//! Register the VFS once, then open databases with `vfs=tde` in their URI. The first opening makes the keyring.
//!
//! ```
//! use hsm_engine::{Hsm, Initialize, Pin};
//! use rusqlite::Connection;
//!
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path();
//! # let (officer_pin, pin) = (Pin::generate()?, Pin::generate()?);
//! # let hsm = Hsm::initialize_dir(&dir.join("hsm"), &Initialize::new(&officer_pin, &pin))?;
//! # pin.write_new_file(dir.join("pin"))?;
//! # let hsm_uri = format!("soft:{}", dir.join("hsm").display());
//! tde_rusqlite::Vfs::builder()
//!     .keyring(dir.join("keyring"))?
//!     .hsm(&hsm_uri)? // a store that `tde hsm init` has made
//!     .pin_file(dir.join("pin"))
//!     .register()?;
//!
//! let path = dir.join("app.db");
//! let db = Connection::open(format!("file:{}?vfs=tde", path.display()))?;
//! db.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES('secret');")?;
//! drop(db);
//!
//! assert!(std::fs::read(&path)?.starts_with(b"TDE"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::path::{Path, PathBuf};

use libsqlite3_sys as sys;
use sqlite_vfs::ffi::{FunctionTable, register};
pub use sqlite_vfs::ffi::{RegisterError, Registered};
use sqlite_vfs::keys::{HsmUri, HsmUriError, PinCallback, Settings, SettingsError};
pub use sqlite_vfs::{Config, Reason, keys};

/// The VFS, as it will be registered. What is not set here comes from each database's URI or from the environment.
#[derive(Debug)]
#[must_use = "nothing happens before `register`"]
pub struct Vfs {
    config: Config,
    keys: Settings,
}

/// A setting cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The keyring.
    #[error(transparent)]
    Keyring(#[from] SettingsError),
    /// The HSM.
    #[error(transparent)]
    Hsm(#[from] HsmUriError),
}

impl Vfs {
    /// A VFS named `tde` over SQLite's default VFS.
    pub fn builder() -> Self {
        Self { config: Config::default(), keys: Settings::new() }
    }

    /// Another name than `tde`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// The VFS below, if not SQLite's default.
    pub fn parent(mut self, name: impl Into<String>) -> Self {
        self.config.parent = Some(name.into());
        self
    }

    /// Makes it the VFS of databases that name none.
    pub fn make_default(mut self) -> Self {
        self.config.make_default = true;
        self
    }

    /// The directory of the keyring.
    ///
    /// # Errors
    /// A relative path, and there is no current directory.
    pub fn keyring(mut self, dir: impl AsRef<Path>) -> Result<Self, BuildError> {
        self.keys = self.keys.keyring(dir)?;
        Ok(self)
    }

    /// The HSM, for example `soft:/etc/tde/hsm` or `pkcs11:token=NAME?module-path=/usr/lib/vendor.so`.
    ///
    /// # Errors
    /// Not the URI of an HSM.
    pub fn hsm(mut self, uri: &str) -> Result<Self, BuildError> {
        self.keys = self.keys.hsm(uri.parse::<HsmUri>()?);
        Ok(self)
    }

    /// A file with the PIN, readable by its owner only.
    pub fn pin_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.keys = self.keys.pin_file(file);
        self
    }

    /// A command that prints the PIN, run by `/bin/sh`.
    pub fn pin_command(mut self, command: impl Into<String>) -> Self {
        self.keys = self.keys.pin_command(command);
        self
    }

    /// A function that gives the PIN.
    pub fn pin_callback(mut self, callback: PinCallback) -> Self {
        self.keys = self.keys.pin_callback(callback);
        self
    }

    /// Registers it with the SQLite that the program is linked with.
    ///
    /// # Errors
    /// SQLite is too old, the name is in use, or another copy of SQLite in the process has the VFS.
    pub fn register(self) -> Result<Registered, RegisterError> {
        let config = Config { keys: self.keys, ..self.config };
        // SAFETY: all functions are those of the SQLite that libsqlite3-sys links into this program, and this code is
        // part of the program, too.
        unsafe { register(&functions(), config) }
    }
}

/// The text of this thread's last error of the VFS: SQLite's own message names the class of an error only.
pub fn last_error() -> String {
    sqlite_vfs::ffi::last_error(|text| text.to_string_lossy().into_owned())
}

#[allow(clippy::missing_transmute_annotations, reason = "the target is the type of the field")]
fn functions() -> FunctionTable {
    /// Gives a function of libsqlite3-sys the type in the table: the two name SQLite's structs differently.
    macro_rules! same {
        ($function:path as unsafe extern "C" fn($($arg:ty),* $(,)?) $(-> $ret:ty)?) => {
            // SAFETY: same number of arguments, and each has the same representation: pointers to the same struct of
            // SQLite, declared twice, and integers of the same width.
            Some(unsafe {
                core::mem::transmute::<unsafe extern "C" fn($($arg),*) $(-> $ret)?, _>($function)
            })
        };
    }
    use core::ffi::{c_char, c_int, c_void};
    FunctionTable {
        size: size_of::<FunctionTable>(),
        libversion_number: Some(sys::sqlite3_libversion_number),
        vfs_find: same!(
            sys::sqlite3_vfs_find as unsafe extern "C" fn(*const c_char) -> *mut sys::sqlite3_vfs
        ),
        vfs_register: same!(
            sys::sqlite3_vfs_register as unsafe extern "C" fn(*mut sys::sqlite3_vfs, c_int) -> c_int
        ),
        file_control: same!(
            sys::sqlite3_file_control
                as unsafe extern "C" fn(*mut sys::sqlite3, *const c_char, c_int, *mut c_void) -> c_int
        ),
        db_name: same!(
            sys::sqlite3_db_name as unsafe extern "C" fn(*mut sys::sqlite3, c_int) -> *const c_char
        ),
        db_filename: same!(
            sys::sqlite3_db_filename
                as unsafe extern "C" fn(*mut sys::sqlite3, *const c_char) -> *const c_char
        ),
        filename_database: Some(sys::sqlite3_filename_database),
        filename_journal: Some(sys::sqlite3_filename_journal),
        filename_wal: Some(sys::sqlite3_filename_wal),
        uri_parameter: Some(sys::sqlite3_uri_parameter),
        exec: same!(
            sys::sqlite3_exec
                as unsafe extern "C" fn(
                    *mut sys::sqlite3,
                    *const c_char,
                    sys::sqlite3_callback,
                    *mut c_void,
                    *mut *mut c_char,
                ) -> c_int
        ),
        malloc64: Some(sys::sqlite3_malloc64),
        free: Some(sys::sqlite3_free),
        log: Some(sys::sqlite3_log),
    }
}
