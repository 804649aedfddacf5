//! The resource manager that brings keyring lines to standbys and through recovery.

use std::ffi::{CStr, c_char};

use keyring::{Imported, KeyringError};
use pgrx::pg_sys::{self, RmgrData, StringInfo, XLogReaderState};
use pgrx::prelude::*;

use super::server;
use crate::key_table::KeyTable;
use crate::keys::KeyError;
use crate::line_facts::{self, LineFacts};
use crate::manifest::Manifest;
use crate::span::OPEN_END;
use crate::{destroy, keys, placeholder, redirected, report, settings, tablespace, wal, wal_keys};

/// Our resource manager's ID, in every WAL that pg_tde ever wrote: never to be changed.
pub(crate) const ID: u8 = 158;

/// Name that the server shows.
const NAME: &CStr = c"pg_tde";

/// Registers the resource manager. Called while libraries are preloaded.
pub(crate) fn register() {
    let manager = RmgrData {
        rm_name: NAME.as_ptr(),
        rm_redo: Some(redo),
        rm_desc: Some(describe),
        rm_identify: Some(identify),
        rm_cleanup: Some(cleanup),
        ..RmgrData::default()
    };
    // SAFETY: the server copies the struct; its name and functions live as long as this library, which is never unloaded.
    unsafe { pg_sys::RegisterCustomRmgr(ID, (&raw const manager).cast_mut()) }
}

/// The record's `info` bits that are ours, and its payload.
///
/// # Safety
/// `reader` holds a decoded record.
unsafe fn record<'a>(reader: *mut XLogReaderState) -> (u8, &'a [u8]) {
    // SAFETY: the caller's promise; the payload stays in place while the callback runs.
    unsafe {
        let record = &*(*reader).record;
        let info = record.header.xl_info & !(pg_sys::XLR_INFO_MASK as u8);
        let length = record.main_data_len as usize;
        let payload =
            if length == 0 { &[] } else { std::slice::from_raw_parts(record.main_data.cast::<u8>(), length) };
        (info, payload)
    }
}

/// `rm_redo`: stores the line in the keyring and puts it into force.
#[pg_guard]
unsafe extern "C-unwind" fn redo(reader: *mut XLogReaderState) {
    // SAFETY: the server passes a decoded record of ours.
    let (info, payload) = unsafe { record(reader) };
    if !matches!(info, wal::KEYRING_LINE | wal::WAL_LINE) {
        report::redo_failed(&format!("unknown record type {info:#04x}"));
        return;
    }
    // The keyring must not get ahead of where recovery may be started again.
    // SAFETY: the server passes a decoded record.
    server::flush_wal(unsafe { (*reader).EndRecPtr });
    let result = if info == wal::WAL_LINE { redo_wal_line(payload) } else { redo_line(payload) };
    if let Err(error) = result {
        report::redo_failed(&report::chain(error.as_ref()));
    }
}

/// Stores root and record in the keyring.
fn import(table: &KeyTable, exported: &[u8], retain: bool) -> Result<Imported, Box<dyn std::error::Error>> {
    let imported = loop {
        let dir = settings::keyring_directory();
        let imported = match retain {
            true => keyring::Keyring::import_and_retain(&dir, exported),
            false => keyring::Keyring::import(&dir, exported),
        };
        match imported {
            // Somebody works on the keyring; an error would end the server.
            Err(KeyringError::LockBusy { .. }) => {
                report::waiting_for_keyring();
                server::wait_in_redo(1000);
            }
            imported => break imported.map_err(KeyError::from)?,
        }
    };
    if imported.adopted {
        table.forget_seal_key();
    }
    Ok(imported)
}

fn redo_wal_line(exported: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let table = tablespace::key_table().ok_or("pg_tde is not active in this server")?;
    wal_keys::refuse_other_timeline(table, exported)?;
    let imported = import(table, exported, false)?;
    // Without redirection this server could not read what follows.
    let wal_table = redirected::table().ok_or(
        "the write-ahead log is encrypted from here on: restart the server, so that it loads the key",
    )?;
    Ok(wal_keys::arrive(table, wal_table, imported.keyring)?)
}

fn redo_line(payload: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
    let (facts, exported) = wal::decode(payload)?;
    let table = tablespace::key_table().ok_or("pg_tde is not active in this server")?;
    // Before the import, which may replace what is here.
    line_facts::check_history(table, &facts, server::replay_position())?;
    // The next recovery may begin before the last page under a key that is destroyed here.
    let ends = facts.iter().map(|facts| facts.span.end).filter(|end| *end != OPEN_END);
    let retain = ends.max().is_some_and(|end| end > server::completed_redo());
    let imported = import(table, exported, retain)?;
    if let Some((named, from)) = line_facts::first_use(&facts).filter(|(_, from)| *from != OPEN_END) {
        Manifest::name(imported.keyring, named, from)?;
    }
    // The newest first: at no time may a tablespace be without a key to write under.
    for facts in facts.iter().rev() {
        if facts.concerns(table, server::replay_position()) {
            facts.add_to(table)?;
        }
    }
    if imported.changed
        && let Err(error) = destroy::settle(table)
    {
        report::destruction_not_settled(&error);
    }
    Ok(())
}

/// `rm_cleanup`: redo has ended; what it could not repair ends the server here, before anybody reads it.
#[pg_guard]
unsafe extern "C-unwind" fn cleanup() {
    let Some(table) = tablespace::key_table() else { return };
    if let Err(torn) = placeholder::settle(table) {
        report::still_torn(&torn, true);
    }
    if let Err(error) = keys::check_end_of_redo(table, server::replay_position()) {
        report::wrong_keyring(&error);
    }
    // At the start of a copy of another server this could not be compared yet.
    if let Err(error) = keys::check_sum(table) {
        report::doubtful_keyring(&error);
    }
}

/// `rm_desc`: what `pg_waldump` and `pg_walinspect` print.
#[pg_guard]
unsafe extern "C-unwind" fn describe(buffer: StringInfo, reader: *mut XLogReaderState) {
    // SAFETY: the server passes a decoded record of ours.
    let (info, payload) = unsafe { record(reader) };
    let text = match info {
        wal::WAL_LINE => format!("keys of the write-ahead log, {} bytes", payload.len()),
        _ => describe_line(wal::decode(payload)),
    };
    // SAFETY: appends `text.len()` bytes to the server's buffer.
    unsafe { pg_sys::appendBinaryStringInfo(buffer, text.as_ptr().cast(), text.len() as _) };
}

fn describe_line(decoded: Result<(Vec<LineFacts>, &[u8]), wal::BadRecord>) -> String {
    match decoded {
        Ok((facts, _)) => {
            // The newest; there is always one.
            facts.last().map_or(String::new(), |newest| {
                let LineFacts { line, version, tablespace, cipher, .. } = newest;
                format!("line {line} version {version} tablespace {tablespace} cipher {cipher}")
            })
        }
        Err(error) => error.to_string(),
    }
}

/// `rm_identify`
#[pg_guard]
unsafe extern "C-unwind" fn identify(info: u8) -> *const c_char {
    match info & !(pg_sys::XLR_INFO_MASK as u8) {
        wal::KEYRING_LINE => wal::KEYRING_LINE_NAME.as_ptr(),
        wal::WAL_LINE => wal::WAL_LINE_NAME.as_ptr(),
        _ => std::ptr::null(),
    }
}
