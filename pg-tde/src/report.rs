//! What people read in the log and at the client.

use std::error::Error;

use keyring::{KeyVersion, Scope, WalPosition};
use page_cipher::pg::Fork;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::destroy::Gone;
use crate::double_write::DoubleWriteError;
use crate::ffi::compat::RelationId;
use crate::ffi::server;
use crate::job_table::{Kind, Phase, Progress};
use crate::key_table::{LineInfo, State};
use crate::keys::KeyError;
use crate::page_io::{Cause, Opened, PageAddress, PageError};
use crate::rewrite::Chunk;
use crate::verify::Checked;

/// An error and everything below it, in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Sends a report; does not return from `ERROR` and above.
pub(crate) fn send(level: PgLogLevel, code: PgSqlErrorCode, message: &str, detail: &str, hint: &str) {
    let mut report = ErrorReport::new(code, message.to_owned(), "pg_tde");
    if !detail.is_empty() {
        report = report.set_detail(detail.to_owned());
    }
    if !hint.is_empty() {
        report = report.set_hint(hint.to_owned());
    }
    report.report(level);
}

fn describe(at: PageAddress) -> String {
    let fork = match at.fork {
        Fork::Main => "main",
        Fork::Fsm => "fsm",
        Fork::Vm => "vm",
        Fork::Init => "init",
    };
    format!("block {} of the {fork} fork of relation {}", at.block, at.relation)
}

/// Tells about a page that did not open and is handed to the buffer manager as invalid, or was replaced.
pub(crate) fn opened(at: PageAddress, opened: Opened) {
    let page = describe(at);
    match opened {
        Opened::Page => (),
        Opened::TornMap => send(
            PgLogLevel::LOG,
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            &format!("pg_tde: {page} is torn or in clear; the server rebuilds it"),
            "",
            "",
        ),
        Opened::Placeholder => send(
            PgLogLevel::LOG,
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            &format!("pg_tde: {page} is torn; recovery waits for its image in the WAL"),
            "",
            "",
        ),
        Opened::Refused(cause) => {
            let (detail, hint) = match cause {
                Cause::Damaged { stored, computed } => (
                    format!("The checksum of the encrypted page is {stored:#06x}, its bytes give {computed:#06x}: bit rot or a torn write."),
                    "Restore the page from a backup, or the relation from a dump.",
                ),
                Cause::NotAuthentic => (
                    "The checksum of the encrypted page is right, but the page does not open: it was changed or moved on purpose, or another key encrypted it.".to_owned(),
                    "Compare the file with a backup, and the keyring with the one of the time of the backup.",
                ),
                Cause::Destroyed(gone) => (
                    format!("The page is from when its tablespace was under version {} of its key, which was destroyed.", gone.version),
                    "",
                ),
                Cause::Plain => (
                    "The page is not encrypted although its tablespace is: it was written while pg_tde was not loaded, or put there on purpose.".to_owned(),
                    "If the server ran without pg_tde, rewrite the relation from a dump.",
                ),
            };
            send(
                PgLogLevel::WARNING,
                PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                &format!("pg_tde refuses {page}"),
                &detail,
                hint,
            );
        }
    }
}

/// A page can be neither read nor written. Does not return.
pub(crate) fn page_error(what: &str, at: PageAddress, error: &PageError) -> ! {
    send(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        &format!("pg_tde cannot {what} {}", describe(at)),
        &chain(error),
        "",
    );
    unreachable!("an ERROR does not return");
}

/// A page is under a key that was destroyed. Does not return.
pub(crate) fn page_destroyed(at: PageAddress, gone: Gone) -> ! {
    let Gone { version, at: when } = gone;
    send(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        &format!(
            "pg_tde cannot read {}: version {version} of its tablespace's key was destroyed",
            describe(at)
        ),
        &format!(
            "By its LSN the page is from when that version was in use, and it opens under no other. The version was destroyed at {}.",
            server::time(when)
        ),
        "A backup of the keyring from before that may still have the key. Otherwise restore the relation from a dump.",
    );
    unreachable!("an ERROR does not return");
}

const NOT_READY: PgSqlErrorCode = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;

/// A statement needs a tablespace that is locked. Does not return.
pub(crate) fn locked_statement(tablespace: u32, error: &dyn Error) {
    send(
        PgLogLevel::ERROR,
        NOT_READY,
        &format!("tablespace {tablespace} cannot be used: {error}"),
        "",
        "SELECT tde.unlock()",
    );
}

/// A relation's size is asked for in a tablespace that is locked. Does not return.
pub(crate) fn locked_relation(relation: RelationId, error: &dyn Error) {
    send(
        PgLogLevel::ERROR,
        NOT_READY,
        &format!("relation {relation} cannot be used: {error}"),
        "",
        "SELECT tde.unlock()",
    );
}

/// The keys were wiped, and so many statements of others went on nevertheless.
pub(crate) fn locked(running: i64) {
    let detail = match running {
        0 => String::new(),
        running => format!(
            "{running} statements had not ended; they fail where they need a page that is not in the buffers."
        ),
    };
    log("pg_tde has locked the keys of this server", &detail);
}

/// The keys are back.
pub(crate) fn unlocked() {
    log("pg_tde has unlocked the keys of this server", "");
}

/// The file that asks for it was there, but the keys could not be had.
pub(crate) fn not_unlocked(error: &dyn Error) {
    send(PgLogLevel::WARNING, NOT_READY, "pg_tde cannot unlock the keys of this server", &chain(error), "");
}

/// The HSM has refused the master key, and the server goes on nevertheless.
pub(crate) fn not_locked(error: &dyn Error) {
    send(
        PgLogLevel::WARNING,
        NOT_READY,
        "pg_tde cannot lock the keys of this server",
        &chain(error),
        "It tries again with the next look at the HSM.",
    );
}

/// Redo waits.
pub(crate) fn redo_waits_for_unlock() {
    send(
        PgLogLevel::WARNING,
        NOT_READY,
        "recovery waits: the keys of this server are locked",
        "",
        "It goes on after SELECT tde.unlock().",
    );
}

/// The HSM lets the master key be used again.
pub(crate) fn hsm_is_back() {
    log("pg_tde: the HSM answers, and lets the master key be used", "");
}

/// The HSM does not answer.
pub(crate) fn hsm_is_away(error: &KeyError) {
    send(
        PgLogLevel::WARNING,
        NOT_READY,
        "pg_tde cannot ask the HSM whether it may still use the master key",
        &chain(error),
        "The server goes on with the keys that it has. It could not be started now, and no key be made or rotated.",
    );
}

/// The HSM says no.
pub(crate) fn hsm_refuses(error: &KeyError, locks: bool) {
    send(
        PgLogLevel::WARNING,
        NOT_READY,
        "pg_tde: the HSM does not let this server use the master key",
        &chain(error),
        if locks {
            "The server is being locked, as pg_tde.lock_on_refusal says."
        } else {
            "The server goes on with the keys that it has. It could not be started now."
        },
    );
}

/// A key was destroyed: one version, or all.
pub(crate) fn key_destroyed(scope: &Scope, version: Option<KeyVersion>) {
    let what = version.map_or("every version".to_owned(), |version| format!("version {version}"));
    log(
        &format!("pg_tde has destroyed {what} of the key of {scope}"),
        "Backups of the keyring still have it, wrapped: it is gone for good when they are, or that version of the master key.",
    );
}

/// What was retained of a key that was destroyed is gone.
pub(crate) fn let_go(scope: &Scope) {
    log(&format!("pg_tde no longer retains destroyed keys of {scope}"), "");
}

/// Something about a destroyed key could not be done; it is tried again.
pub(crate) fn destruction_not_settled(error: &dyn Error) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        "pg_tde cannot complete the destruction of a key yet",
        &chain(error),
        "It tries again.",
    );
}

/// A page that must be saved first could not be. Does not return.
pub(crate) fn double_write_error(at: PageAddress, error: &DoubleWriteError) -> ! {
    send(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        &format!("pg_tde cannot save {} before writing it", describe(at)),
        &chain(error),
        "Free space or repair access in the data directory.",
    );
    unreachable!("an ERROR does not return");
}

/// A torn page was replaced from the double-write file.
pub(crate) fn put_back(at: PageAddress) {
    send(
        PgLogLevel::LOG,
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        &format!("pg_tde: {} was torn and put back from the double-write file", describe(at)),
        "",
        "",
    );
}

/// No file can be made in an encrypted tablespace now. Does not return.
pub(crate) fn create_error(relation: RelationId, error: &dyn Error, hint: &str) -> ! {
    send(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        &format!("pg_tde cannot make relation {relation}"),
        &chain(error),
        hint,
    );
    unreachable!("an ERROR does not return");
}

/// Redo waits for the HSM.
pub(crate) fn waiting_for_hsm(line: LineInfo, error: &dyn Error) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        &format!("pg_tde waits for the key of tablespace {} (line {})", line.tablespace, line.line),
        &chain(error),
        "Recovery goes on as soon as the HSM answers.",
    );
}

/// A record cannot be replayed; going on would store pages in clear. Does not return.
pub(crate) fn redo_failed(detail: &str) {
    send(
        PgLogLevel::FATAL,
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        "pg_tde cannot replay a change of the keyring",
        detail,
        "A standby uses the keyring of its primary: build it with pg_basebackup, or point pg_tde.keyring to a directory of its own.",
    );
}

/// A page is torn and stays torn. Ends recovery, or the statement of a standby. Does not return.
pub(crate) fn still_torn(error: &dyn Error, in_redo: bool) {
    send(
        if in_redo { PgLogLevel::PANIC } else { PgLogLevel::ERROR },
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        "pg_tde cannot repair a page that was damaged by a crash",
        &chain(error),
        "Restore the relation's files from a backup.",
    );
}

/// The tablespace is gone, but its key line could not be retired.
pub(crate) fn retire_failed(error: &dyn Error) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        "pg_tde cannot retire the key of a tablespace that was dropped",
        &chain(error),
        "The key line stays active in the keyring until the next DROP TABLESPACE; nothing is lost.",
    );
}

/// The keyring does not fit where recovery ended. Ends the server.
pub(crate) fn wrong_keyring(error: &dyn Error) {
    send(
        PgLogLevel::FATAL,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "pg_tde cannot go on with this keyring",
        &chain(error),
        "",
    );
}

/// The keyring does not fit where recovery ended. Ends the statement.
pub(crate) fn keyring_error(error: &dyn Error) -> ! {
    send(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "pg_tde cannot go on with this keyring",
        &chain(error),
        "",
    );
    unreachable!("an ERROR does not return");
}

/// Redo waits for whoever holds the keyring's lock.
pub(crate) fn waiting_for_keyring() {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
        "pg_tde waits for the keyring, which another program has locked",
        "",
        "Recovery goes on as soon as that program ends.",
    );
}

/// The HSM does not know yet how new the keyring is.
pub(crate) fn generation_not_remembered(error: &dyn Error) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_WARNING,
        "pg_tde could not tell the HSM of the keyring's new generation",
        &chain(error),
        "It is told at the next start of the server. Until then an older copy of the keyring would not be noticed.",
    );
}

/// No record of ours follows the last checkpoint.
pub(crate) fn checkpoint_not_marked(error: &dyn Error) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_WARNING,
        "pg_tde could not log a key line after a checkpoint",
        &chain(error),
        "Do not start this server without pg_tde after a crash: it would replay pages in clear into encrypted files.",
    );
}

/// The keyring was changed, but the server cannot do what it says. Ends all processes; the restart reads the keyring.
pub(crate) fn out_of_step(error: &dyn Error) {
    send(
        PgLogLevel::PANIC,
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        "pg_tde changed the keyring but cannot read it back",
        &chain(error),
        "",
    );
}

/// Redo waits for a PIN that the HSM accepts.
pub(crate) fn waiting_for_reload(line: LineInfo, error: &dyn Error) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION,
        &format!("pg_tde waits for the key of tablespace {} (line {})", line.tablespace, line.line),
        &chain(error),
        "Mend pg_tde.pin_command or the HSM user, then reload the configuration (pg_ctl reload). Until then the HSM is not asked again.",
    );
}

/// The keyring may not be as new as it should be.
pub(crate) fn doubtful_keyring(error: &dyn Error) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        "pg_tde finds the keyring not as it should be at the end of recovery",
        &chain(error),
        "The next start of the server would refuse it. Compare it with a backup.",
    );
}

fn log(message: &str, detail: &str) {
    send(PgLogLevel::LOG, PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message, detail, "");
}

/// A job begins, for the first time or again.
pub(crate) fn job_started(line: &LineInfo, kind: Kind, done: u64) {
    let LineInfo { line, version, tablespace, .. } = line;
    let kind = kind.name();
    let goes_on = if done > 0 { format!("It goes on after {done} blocks.") } else { String::new() };
    log(
        &format!("pg_tde job {line} begins: {kind} tablespace {tablespace} under key version {version}"),
        &goes_on,
    );
}

/// A job waits for a person.
pub(crate) fn job_paused(line: u64) {
    log(&format!("pg_tde job {line} is paused"), "tde.resume_job lets it go on.");
}

/// A job waits for transactions.
pub(crate) fn job_waits(line: u64, tablespace: u32) {
    log(
        &format!(
            "pg_tde job {line} waits for transactions that made files in tablespace {tablespace} before it began"
        ),
        "tde.job_progress names them.",
    );
}

/// How far a job is could not be written down.
pub(crate) fn mark_not_saved(error: &dyn Error) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        "pg_tde cannot write down how far a job is",
        &chain(error),
        "After a crash it goes on where it was written down last.",
    );
}

/// A job goes on.
pub(crate) fn job_progress(job: &Progress) {
    let Progress { line, blocks_total, database, relation, rate, .. } = job;
    let (done, verb) = match job.phase {
        Phase::Verifying => (job.blocks_verified, "verified"),
        Phase::Rewriting => (job.blocks_done, "rewritten"),
        other => {
            let message = format!("pg_tde job {line} with tablespace {} is {}", job.tablespace, other.name());
            return log(&message, &format!("{} of {blocks_total} blocks are rewritten.", job.blocks_done));
        }
    };
    let percent = (done * 100).checked_div(*blocks_total).unwrap_or(100).min(100);
    let left = blocks_total.saturating_sub(done).checked_div(*rate);
    let left = left.map_or(String::new(), |seconds| format!(", about {seconds} seconds left"));
    log(
        &format!("pg_tde job {line} has {verb} {percent} % of tablespace {}", job.tablespace),
        &format!(
            "{done} of {blocks_total} blocks, {rate} a second{left}; now in relation {relation} of database {database}."
        ),
    );
}

/// A job ends, and leaves its tablespace in this state.
pub(crate) fn job_ended(line: &LineInfo, kind: Kind, state: Option<State>) {
    let LineInfo { line, version, tablespace, .. } = line;
    let what = match (kind, state) {
        (Kind::Encrypt | Kind::Rotate, Some(State::Encrypted(_))) => {
            format!("is encrypted under key version {version}")
        }
        (Kind::Decrypt, None) => "is in clear, or was dropped".to_owned(),
        (_, None) => "was dropped meanwhile".to_owned(),
        (_, Some(state)) => format!("is {} now", state.name()),
    };
    log(&format!("pg_tde job {line} has ended: tablespace {tablespace} {what}"), "");
}

/// A pass over the tablespace left something to do.
pub(crate) fn job_remaining(line: &LineInfo, kind: Kind, found: Option<&Checked>) {
    let is_not = match kind {
        Kind::Encrypt => "encrypted",
        Kind::Rotate => "under the new key",
        Kind::Decrypt => "in clear",
    };
    let (detail, hint) = match found {
        Some(file) => (
            format!(
                "Block {} of the {} fork of relation file {} in database {} is not {is_not} yet.",
                file.first.as_ref().map_or(0, |first| first.block),
                file.fork,
                file.number,
                file.database
            ),
            "Messages before this one name pages that cannot be rewritten. A file that is always named without one may belong to a relation that is locked or not committed yet, or to none: then it was left by a crash, or its database can no longer be connected to. Only if you have made sure of that, move it away, or drop that database.",
        ),
        None => ("Its directory cannot be read.".to_owned(), "It may be about to be dropped."),
    };
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_WARNING,
        &format!(
            "pg_tde job {} is not done with tablespace {} and goes over it again",
            line.line, line.tablespace
        ),
        &detail,
        hint,
    );
}

/// A job cannot go on. Ends the process; the launcher begins the job again.
pub(crate) fn job_failed(error: &dyn Error) -> ! {
    send(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        "pg_tde job failed",
        &chain(error),
        "It begins again by itself.",
    );
    unreachable!("an ERROR does not return");
}

/// A page cannot be rewritten; the job goes on behind it.
pub(crate) fn not_rewritten(chunk: &Chunk, relation: &str, error: &str) {
    let at = PageAddress { relation: chunk.storage, fork: chunk.fork, block: chunk.first };
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        &format!("pg_tde cannot rewrite {} (\"{relation}\")", describe(at)),
        error,
        "Restore the page or the relation, or drop it. The job goes on and comes back to it.",
    );
}

/// A job waits for a background worker.
pub(crate) fn no_worker(line: u64) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        &format!("pg_tde job {line} waits: all background workers are taken"),
        "",
        "Raise max_worker_processes. pg_tde needs one for itself and two for each job that runs.",
    );
}

/// A segment of WAL is not accepted. Does not return when `fatal`.
pub(crate) fn segment_refused(name: &str, why: &str, fatal: bool) {
    send(
        if fatal { PgLogLevel::FATAL } else { PgLogLevel::LOG },
        PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
        &format!("pg_tde refuses WAL segment {name}: it {why}"),
        "It was put there on purpose, or by a program that does not know the keys (pg_basebackup that streams WAL, pg_receivewal), or the keyring is older than it.",
        "Restore it from the archive, or the keyring that belongs to it; take base backups with --wal-method=fetch or through tde exec; WAL in clear that you trust: tde pg accept-wal.",
    );
}

/// The encryption of the WAL could not be settled. Does not return: the process is started again.
pub(crate) fn wal_not_settled(error: &KeyError) {
    send(
        PgLogLevel::FATAL,
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        "pg_tde cannot record how the write-ahead log is stored; it tries again",
        &chain(error),
        "",
    );
}

/// The switch to encrypted WAL is complete.
pub(crate) fn wal_encrypted_from(position: WalPosition) {
    send(
        PgLogLevel::LOG,
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        &format!("pg_tde: the write-ahead log is encrypted from {position} on"),
        "",
        "",
    );
}

/// The key of a line of WAL cannot be had yet; redo waits.
pub(crate) fn waiting_for_wal_key(error: &KeyError) {
    send(
        PgLogLevel::WARNING,
        PgSqlErrorCode::ERRCODE_WARNING,
        "recovery waits for the key of the write-ahead log",
        &chain(error),
        "Make the HSM available, or mend the setting that the detail names and reload.",
    );
}
