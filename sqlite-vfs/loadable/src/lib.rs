//! The SQLite VFS as a loadable extension (`.load libtde_sqlite`) and as a C library (`tde_sqlite.h`).
//!
//! Everything is in the crate `sqlite-vfs`; here are only the names that C calls.

use core::ffi::{CStr, c_char, c_int, c_void};
use std::error::Error;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use hsm_engine::{MAX_PIN, Pin};
use secret_mem::SecretBuf;
use sqlite_vfs::Config;
use sqlite_vfs::ffi::{FunctionTable, RegisterError, last_error, register, set_last_error};
use sqlite_vfs::keys::{HsmUri, HsmUriError, Settings, SettingsError};

const SQLITE_OK: c_int = 0;
const SQLITE_ERROR: c_int = 1;
const SQLITE_MISUSE: c_int = 21;
const SQLITE_OK_LOAD_PERMANENTLY: c_int = 1 << 8;

/// `tde_sqlite_pin_callback`
type PinFunction = unsafe extern "C" fn(*mut c_void, *const c_char, *mut c_char, usize) -> c_int;

/// `tde_sqlite_config`
#[repr(C)]
pub struct CConfig {
    size: usize,
    name: *const c_char,
    parent: *const c_char,
    make_default: c_int,
    keyring: *const c_char,
    hsm: *const c_char,
    pin_file: *const c_char,
    pin_command: *const c_char,
    pin_callback: Option<PinFunction>,
    pin_context: *mut c_void,
}

/// A configuration from C cannot be used.
#[derive(Debug, thiserror::Error)]
enum ConfigError {
    /// The struct is another one.
    #[error("{what}.size is {found} instead of {expected}: header and library do not match")]
    Size { what: &'static str, found: usize, expected: usize },
    /// Not text.
    #[error("tde_sqlite_config.{field} is not valid UTF-8")]
    NotText { field: &'static str },
    #[error(transparent)]
    Settings(SettingsError),
    #[error("tde_sqlite_config.hsm: {0}")]
    Hsm(HsmUriError),
    #[error(transparent)]
    Register(RegisterError),
}

/// The program's callback gave none.
#[derive(Debug, thiserror::Error)]
#[error("pin_callback of tde_sqlite_config returned {returned}, not the length of a PIN")]
struct NoPin {
    returned: c_int,
}

/// Entry point of the loadable extension, found by SQLite's naming rule.
///
/// # Safety
/// Called by SQLite: `routines` is its table, `message` null or a place for an error message.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sqlite3_tdesqlite_init(
    _db: *mut c_void,
    message: *mut *mut c_char,
    routines: *const c_void,
) -> c_int {
    let work = || -> Result<(), RegisterError> {
        // SAFETY: SQLite's table, by the caller's promise.
        let table = unsafe { FunctionTable::from_routines(routines)? };
        // SAFETY: the library that the table belongs to has loaded this one; `-z nodelete` keeps this code in memory.
        let registered = unsafe { register(&table, Config::default()) };
        if let Err(error) = &registered
            && !message.is_null()
        {
            // SAFETY: SQLite takes a string from its own allocator there and frees it.
            unsafe { *message = table.string(&error.to_string()) };
        }
        registered.map(drop)
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => SQLITE_OK_LOAD_PERMANENTLY,
        Ok(Err(error)) => {
            set_last_error(&error);
            SQLITE_ERROR
        }
        Err(_) => SQLITE_ERROR,
    }
}

/// `tde_sqlite_register_with` of `tde_sqlite.h`.
///
/// # Safety
/// `functions` is a table of one SQLite library's functions, `config` is null or a configuration whose pointers are
/// null or C strings; the callback may be called from any thread as long as the process runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tde_sqlite_register_with(
    functions: *const FunctionTable,
    config: *const CConfig,
) -> c_int {
    if functions.is_null() {
        return SQLITE_MISUSE;
    }
    let work = || -> Result<(), ConfigError> {
        // SAFETY: not null, and a table by the caller's promise; its size is its first field.
        let size = unsafe { (&raw const (*functions).size).read() };
        check_size("tde_sqlite_functions", size, size_of::<FunctionTable>())?;
        // SAFETY: null, or a configuration by the caller's promise.
        let config = unsafe { read_config(config)? };
        // SAFETY: the table is as long as it should be; the rest is the caller's promise.
        unsafe { register(&*functions, config) }.map(drop).map_err(ConfigError::Register)
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => SQLITE_OK,
        Ok(Err(error)) => {
            set_last_error(&error);
            SQLITE_ERROR
        }
        Err(_) => SQLITE_ERROR,
    }
}

/// `tde_sqlite_errmsg` of `tde_sqlite.h`.
#[unsafe(no_mangle)]
pub extern "C" fn tde_sqlite_errmsg() -> *const c_char {
    // The text stays in place until this thread's next error replaces it.
    catch_unwind(|| last_error(CStr::as_ptr)).unwrap_or(c"".as_ptr())
}

fn check_size(what: &'static str, found: usize, expected: usize) -> Result<(), ConfigError> {
    if found == expected { Ok(()) } else { Err(ConfigError::Size { what, found, expected }) }
}

/// # Safety
/// `config` is null, or as [`tde_sqlite_register_with`] asks.
unsafe fn read_config(config: *const CConfig) -> Result<Config, ConfigError> {
    let mut result = Config::default();
    if config.is_null() {
        return Ok(result);
    }
    // SAFETY: not null, and the size is the first field.
    let size = unsafe { (&raw const (*config).size).read() };
    check_size("tde_sqlite_config", size, size_of::<CConfig>())?;
    // SAFETY: as long as it should be, and filled by the caller.
    let config = unsafe { &*config };
    // SAFETY: pointers in it are null or C strings.
    let text = |field, pointer| unsafe { text(field, pointer) };
    if let Some(name) = text("name", config.name)? {
        result.name = name;
    }
    result.parent = text("parent", config.parent)?;
    result.make_default |= config.make_default != 0;
    let mut keys = Settings::new();
    if let Some(dir) = text("keyring", config.keyring)? {
        keys = keys.keyring(dir).map_err(ConfigError::Settings)?;
    }
    if let Some(uri) = text("hsm", config.hsm)? {
        keys = keys.hsm(uri.parse::<HsmUri>().map_err(ConfigError::Hsm)?);
    }
    if let Some(callback) = config.pin_callback {
        let context = Context(config.pin_context);
        keys = keys.pin_callback(Arc::new(move |hsm: &HsmUri| ask(callback, &context, hsm)));
    } else if let Some(file) = text("pin_file", config.pin_file)? {
        keys = keys.pin_file(file);
    } else if let Some(command) = text("pin_command", config.pin_command)? {
        keys = keys.pin_command(command);
    }
    result.keys = keys;
    Ok(result)
}

/// # Safety
/// `pointer` is null or a C string.
unsafe fn text(field: &'static str, pointer: *const c_char) -> Result<Option<String>, ConfigError> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| ConfigError::NotText { field })?;
    Ok(Some(text.to_owned()))
}

/// The program's pointer for its callback.
struct Context(*mut c_void);

// SAFETY: the program promises that its callback may be called from any thread; the pointer is only handed back to it.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

fn ask(callback: PinFunction, context: &Context, hsm: &HsmUri) -> Result<Pin, Box<dyn Error + Send + Sync>> {
    let uri = CString::new(hsm.to_string())?;
    let pin = SecretBuf::from_fn(MAX_PIN, |buffer| {
        // SAFETY: the buffer has the length that is passed, the URI is a C string, and both outlive the call.
        let returned = unsafe { callback(context.0, uri.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
        usize::try_from(returned).ok().filter(|len| *len <= buffer.len()).ok_or(NoPin { returned })
    })?;
    Ok(Pin::from_secret(pin)?)
}
