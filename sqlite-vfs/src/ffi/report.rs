//! Messages: to SQLite's error log and, for the calling thread, to the program.

use core::ffi::{CStr, c_int};
use std::cell::RefCell;
use std::error::Error;
use std::ffi::CString;
use std::fmt::Write as _;
use std::io::Write as _;

use super::api::Api;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Logs an error and keeps its text; returns `code`, so that entry points can end with it.
pub(super) fn report(api: &Api, code: c_int, error: &dyn Error) -> c_int {
    let message = keep(error);
    api.log_message(code, &message);
    copy_to_log(&message);
    code
}

/// If this environment variable is set, messages also go to standard error (`stderr`) or are appended to the file that
/// it names: many languages have no way to SQLite's error log.
const LOG_VARIABLE: &str = "TDE_SQLITE_LOG";

fn copy_to_log(message: &CStr) {
    let Some(target) = std::env::var_os(LOG_VARIABLE).filter(|target| !target.is_empty()) else { return };
    let line = format!("{}\n", message.to_string_lossy());
    // A log that cannot be written must not turn into another error of the database.
    if target == "stderr" {
        let _ = std::io::stderr().write_all(line.as_bytes());
    } else if let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(target) {
        let _ = file.write_all(line.as_bytes());
    }
}

/// Keeps the text of an error for [`last_error`].
pub(super) fn keep(error: &dyn Error) -> CString {
    let mut text = format!("tde: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        // Some errors quote their cause already.
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    // File names may not contain zero bytes, so no message does.
    let message = CString::new(text.replace('\0', "")).unwrap_or_default();
    LAST.with(|last| last.replace(message.clone()));
    message
}

/// The text of the last error of this thread, empty if there was none. `show` must not call back.
pub fn last_error<R>(show: impl FnOnce(&CStr) -> R) -> R {
    LAST.with(|last| show(&last.borrow()))
}

/// Makes the text of `error` the last one of this thread.
pub fn set_last_error(error: &dyn Error) {
    drop(keep(error));
}
