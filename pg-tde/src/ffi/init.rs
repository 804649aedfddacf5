//! Loading into the server.

use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::prelude::*;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

use super::{hooks, io, rmgr, server, shared, utility, worker};
use crate::key_table::Lock;
use crate::{double_write, keys, redirected, report, settings, tablespace};

pgrx::pg_module_magic!();

static ATTACHED: AtomicBool = AtomicBool::new(false);
static mut NEXT_SHMEM_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut NEXT_SHMEM_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Called by the server when it loads the library: once in the postmaster, before it has children, or not at all.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    server::forget_backtraces();
    if !server::preloading() {
        refuse_late_load();
        return;
    }
    if cfg!(feature = "pg18") {
        fatal("pg_tde does not support PostgreSQL 18 yet", "", "Use PostgreSQL 15, 16 or 17.");
    }
    settings::define();
    rmgr::register();
    utility::install();
    worker::register();
    // SAFETY: called once, in a process with one thread.
    unsafe {
        NEXT_SHMEM_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(shmem_request);
        NEXT_SHMEM_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(shmem_startup);
    }
    force_settings();
    if let Err(error) = start() {
        fatal(
            "pg_tde cannot make the keys available",
            &report::chain(error.as_ref()),
            "The server does not start without them, so that nothing is written in clear. Mend what the detail names and start it again.",
        );
    }
    if let Err(error) = hooks::install() {
        fatal(
            "pg_tde cannot hook into this server build",
            &report::chain(&error),
            "Use an unmodified PostgreSQL of the major version that this library was built for, and no other extension that changes the storage manager.",
        );
    }
    if let Some(failure) = secret_mem::lock_failure() {
        report::send(
            PgLogLevel::WARNING,
            PgSqlErrorCode::ERRCODE_WARNING,
            "pg_tde cannot lock its keys in memory: they may be written to swap",
            &report::chain(&failure),
            "Raise the limit of locked memory (LimitMEMLOCK in the systemd unit), or encrypt the swap space.",
        );
    }
}

/// Keys first, in memory that children inherit; then the table goes into force.
fn start() -> Result<(), Box<dyn Error>> {
    let (table, wal) = (shared::key_table()?, shared::wal_table()?);
    wal.accept_plain_everywhere(!settings::encrypt_wal());
    keys::load(table, wal)?;
    tablespace::set_key_table(table);
    // A server that replays another's WAL may learn on its way that it is encrypted.
    if wal.line().is_some() || settings::encrypt_temp_files() || keys::is_copy_of_another_server() {
        redirected::set_up(wal, server::system_identifier(), settings::encrypt_temp_files())?;
        io::install()?;
        worker::register_wal();
    }
    if keys::is_copy_of_another_server() {
        // Redo brings the key of a segment in the one before it: what is read ahead of redo could not be opened.
        server::force_setting(c"recovery_prefetch", c"off");
    }
    Ok(())
}

/// A torn page of ciphertext is lost whole, so the WAL must always hold an image of it.
fn force_settings() {
    // With wal_level "minimal" pages of new relations are written without WAL.
    for (name, value, refused) in [
        (c"full_page_writes", c"on", "off"),
        (c"wal_log_hints", c"on", "off"),
        (c"wal_level", c"replica", "minimal"),
    ] {
        let weak = server::setting(name).as_deref() == Some(refused);
        if weak {
            let (name, value) = (name.to_string_lossy(), value.to_string_lossy());
            report::send(
                PgLogLevel::LOG,
                PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
                &format!("pg_tde sets {name} to {value}"),
                "Without page images in the WAL a crash could lose encrypted pages.",
                "",
            );
        }
        // Also when it is on: a reload must not switch it off. A WAL level above replica stays.
        if weak || refused == "off" {
            server::force_setting(name, value);
        }
    }
}

fn refuse_late_load() {
    let preloaded = server::setting(c"shared_preload_libraries").unwrap_or_default();
    let file = server::setting(c"config_file").unwrap_or_else(|| "postgresql.conf".to_owned());
    if preloaded.split(',').any(|name| name.trim().trim_matches('"').contains("pg_tde")) {
        report::send(
            PgLogLevel::ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "another copy of pg_tde is active in this server",
            "The library file was replaced or is loaded under a second path since the server started.",
            "Restart the server.",
        );
    }
    report::send(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "pg_tde is not active in this server: it must be loaded at server start",
        "",
        &format!("Add pg_tde to shared_preload_libraries in \"{file}\" and restart the server."),
    );
}

fn fatal(message: &str, detail: &str, hint: &str) {
    report::send(PgLogLevel::FATAL, PgSqlErrorCode::ERRCODE_CONFIG_FILE_ERROR, message, detail, hint);
}

/// `shmem_request_hook`
unsafe extern "C-unwind" fn shmem_request() {
    // SAFETY: set once before, in this thread.
    unsafe {
        if let Some(next) = NEXT_SHMEM_REQUEST {
            next();
        }
        request();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    server::request_shared_memory();
}

/// `shmem_startup_hook`: at server start, and again when a backend crash made the postmaster rebuild shared memory. No
/// other process runs and redo has not begun.
unsafe extern "C-unwind" fn shmem_startup() {
    // SAFETY: set once before, in this thread.
    unsafe {
        if let Some(next) = NEXT_SHMEM_STARTUP {
            next();
        }
        attach();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn attach() {
    server::attach();
    let Some(table) = tablespace::key_table() else { return };
    table.placeholders.clear();
    // Recovery needs the keys.
    table.set_lock(Lock::Open);
    table.forget_logged();
    table.set_recovery_from(keys::redo_begins());
    table.set_copied(keys::is_base_backup());
    // Once: the worker ends when it is done, and is not registered again after a crash.
    if settings::encrypt_wal() && !ATTACHED.swap(true, Ordering::Relaxed) && !worker::wal_worker_has_a_slot()
    {
        fatal(
            "pg_tde cannot encrypt the write-ahead log: the server has no free background worker",
            "The worker that completes the switch could not be registered.",
            "Raise max_worker_processes.",
        );
    }
    if let Err(error) = keys::synchronize(table) {
        fatal(
            "pg_tde cannot read the keyring",
            &report::chain(&error),
            "Mend what the detail names and start the server again.",
        );
    }
    if let Err(error) = double_write::replay(table) {
        fatal(
            "pg_tde cannot put back pages that a crash may have torn",
            &report::chain(&error),
            "Mend access to the file and start the server again.",
        );
    }
}
