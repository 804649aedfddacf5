//! Statements that would copy files past the storage manager, and the end of a tablespace.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys::{self, NodeTag};
use pgrx::prelude::*;
use pgrx::{PgList, PgLogLevel, PgSqlErrorCode};

use super::{background, server};
use crate::key_table::Lock;
use crate::{keys, lock, placeholder, report, settings, tablespace};

static mut NEXT_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut NEXT_EXECUTOR_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut NEXT_EXECUTOR_START: pg_sys::ExecutorStart_hook_type = None;

/// Chains our hooks before those that are there.
pub(crate) fn install() {
    // SAFETY: called once, while libraries are preloaded, in a process with one thread.
    unsafe {
        NEXT_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
        NEXT_EXECUTOR_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(executor_run);
        NEXT_EXECUTOR_START = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(executor_start);
    }
}

// Declared here because pgrx's own declarations turn an ERROR into a panic and back, which drops fields that clients rely
// on, such as the name of a constraint. The hooks below have nothing to clean up when the server jumps over them.
unsafe extern "C-unwind" {
    /// executor/executor.h
    fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, flags: i32);
    /// executor/executor.h
    #[cfg(not(feature = "pg18"))]
    fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        once: bool,
    );
    /// executor/executor.h
    #[cfg(feature = "pg18")]
    fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
    );
    /// tcop/utility.h
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// On a standby nobody may read a torn page whose image has not come: it looks empty in the buffer.
#[pg_guard]
unsafe extern "C-unwind" fn refuse_torn_pages() {
    if let Some(table) = tablespace::key_table()
        && !table.placeholders.is_empty()
        && server::recovery_in_progress()
        && let Err(torn) = placeholder::settle(table)
    {
        report::still_torn(&torn, false);
    }
}

/// While the server is locked, statements on relations in tablespaces with a key do not run, and cursors on them do not go on, also where
/// pages are in the buffers.
///
/// # Safety
/// `query` is a query that was begun.
#[pg_guard]
unsafe extern "C-unwind" fn refuse_locked(query: *mut pg_sys::QueryDesc) {
    let Some(table) = tablespace::key_table().filter(|table| table.lock() != Lock::Open) else { return };
    // SAFETY: the caller's promise; the range table is a list of range table entries.
    unsafe {
        let entries = PgList::<pg_sys::RangeTblEntry>::from_pg((*(*query).plannedstmt).rtable);
        for entry in entries.iter_ptr() {
            let stored = matches!((*entry).relkind as u8, b'r' | b't' | b'm' | b'S');
            if (*entry).rtekind != pg_sys::RTEKind::RTE_RELATION || !stored {
                continue;
            }
            let tablespace = server::tablespace_of((*entry).relid);
            if let Err(error) = lock::refuse(table, tablespace) {
                report::locked_statement(tablespace, &error);
            }
        }
    }
}

#[cfg(not(feature = "pg18"))]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: the arguments are passed on as they came; the static was set before any child existed.
    unsafe {
        refuse_locked(query);
        match NEXT_EXECUTOR_RUN {
            Some(next) => next(query, direction, count, once),
            None => standard_ExecutorRun(query, direction, count, once),
        }
    }
}

#[cfg(feature = "pg18")]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
) {
    // SAFETY: the arguments are passed on as they came; the static was set before any child existed.
    unsafe {
        refuse_locked(query);
        match NEXT_EXECUTOR_RUN {
            Some(next) => next(query, direction, count),
            None => standard_ExecutorRun(query, direction, count),
        }
    }
}

unsafe extern "C-unwind" fn executor_start(query: *mut pg_sys::QueryDesc, flags: i32) {
    // SAFETY: the arguments are passed on as they came; the static was set before any child existed.
    unsafe {
        refuse_torn_pages();
        match NEXT_EXECUTOR_START {
            Some(next) => next(query, flags),
            None => standard_ExecutorStart(query, flags),
        }
    }
}

/// Whether the statement is about to drop a tablespace.
#[pg_guard]
unsafe extern "C-unwind" fn before_utility(statement: *mut pg_sys::PlannedStmt) -> bool {
    // SAFETY: the server passes a planned utility statement.
    unsafe { before((*statement).utilityStmt) }.is_some()
}

#[pg_guard]
unsafe extern "C-unwind" fn after_drop() {
    if let Err(error) = tablespace::retire_dropped() {
        report::retire_failed(&error);
    }
}

#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the arguments are passed on as they came; the static was set before any child existed.
    unsafe {
        refuse_torn_pages();
        let dropped = before_utility(statement);
        let next = match NEXT_UTILITY {
            Some(next) => next,
            None => standard_ProcessUtility,
        };
        next(statement, query, read_only_tree, context, params, environment, destination, completion);
        if dropped {
            after_drop();
        }
    }
}

/// Refuses what would copy ciphertext under another name; `Some` for a tablespace that is about to be dropped.
///
/// # Safety
/// `node` is a utility statement.
unsafe fn before(node: *mut pg_sys::Node) -> Option<()> {
    let table = tablespace::key_table()?;
    if server::recovery_in_progress() {
        return None; // the server itself refuses these statements
    }
    // SAFETY: the caller's promise.
    let tag = unsafe { (*node).type_ };
    let concerned =
        [NodeTag::T_DropTableSpaceStmt, NodeTag::T_CreatedbStmt, NodeTag::T_AlterDatabaseStmt].contains(&tag);
    if concerned && let Err(error) = keys::ensure_compared(table) {
        report::keyring_error(&error);
    }
    // SAFETY: the tag says what the node is.
    unsafe {
        match tag {
            NodeTag::T_DropTableSpaceStmt => {
                // Waits for a tde.encrypt_tablespace under way; later this wait could be cancelled half-way.
                server::lock_keyring_to_end(false);
                Some(())
            }
            NodeTag::T_DropdbStmt => {
                background::keep_jobs_out_of_databases();
                None
            }
            NodeTag::T_RenameStmt
                if (*node.cast::<pg_sys::RenameStmt>()).renameType == pg_sys::ObjectType::OBJECT_DATABASE =>
            {
                background::keep_jobs_out_of_databases();
                None
            }
            NodeTag::T_CreatedbStmt => {
                background::keep_jobs_out_of_databases();
                let options = (*node.cast::<pg_sys::CreatedbStmt>()).options;
                let copies_files =
                    option(options, c"strategy").is_some_and(|value| value.eq_ignore_ascii_case("file_copy"));
                if copies_files {
                    server::lock_keyring_to_end(true);
                    refuse_copy_in_clear();
                }
                if copies_files && table.lines().any(|line| line.span.alive()) {
                    refuse(
                        "CREATE DATABASE with strategy FILE_COPY is not possible while a tablespace is encrypted",
                        "It copies files, and a page decrypts only in its own relation. Use the default strategy, WAL_LOG.",
                    );
                }
                None
            }
            NodeTag::T_AlterDatabaseStmt => {
                let alter = node.cast::<pg_sys::AlterDatabaseStmt>();
                let target = option((*alter).options, c"tablespace")?;
                let database = CStr::from_ptr((*alter).dbname).to_str().ok()?;
                background::keep_jobs_out_of_databases();
                server::lock_keyring_to_end(true);
                refuse_copy_in_clear();
                let touched = [server::tablespace_oid(&target), database_tablespace(database)];
                if touched.into_iter().flatten().any(|oid| table.state(oid).is_some()) {
                    refuse(
                        "ALTER DATABASE ... SET TABLESPACE is not possible from or to an encrypted tablespace",
                        "It copies files, and a page decrypts only in its own relation. Create a database in the tablespace (CREATE DATABASE ... TEMPLATE ... TABLESPACE ...) or move relations with ALTER TABLE ... SET TABLESPACE.",
                    );
                }
                None
            }
            _ => None,
        }
    }
}

/// Copies of files are made only where nothing is encrypted.
fn refuse_copy_in_clear() {
    if settings::enforce_encryption() {
        refuse(
            "files of databases are not copied while pg_tde.enforce_encryption is on",
            "Use CREATE DATABASE with strategy WAL_LOG and an encrypted tablespace.",
        );
    }
}

fn refuse(message: &str, hint: &str) {
    report::send(PgLogLevel::ERROR, PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, message, "", hint);
}

/// The text of an option in a list of `DefElem`.
///
/// # Safety
/// `options` is such a list, or null.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<String> {
    // SAFETY: the caller's promise; defGetString returns a string in memory of the statement.
    unsafe {
        let options = PgList::<pg_sys::DefElem>::from_pg(options);
        let element = options.iter_ptr().find(|element| CStr::from_ptr((**element).defname) == name)?;
        if (*element).arg.is_null() {
            return None; // DEFAULT
        }
        Some(CStr::from_ptr(pg_sys::defGetString(element)).to_string_lossy().into_owned())
    }
}

/// The default tablespace of a database, or `None` when there is no such database.
fn database_tablespace(name: &str) -> Option<u32> {
    let query = "SELECT dattablespace FROM pg_catalog.pg_database WHERE datname OPERATOR(pg_catalog.=) $1::pg_catalog.name";
    // A database that does not exist is reported by the statement itself.
    let oid = Spi::get_one_with_args::<pg_sys::Oid>(query, &[name.into()]);
    oid.ok().flatten().map(|oid| oid.to_u32())
}
