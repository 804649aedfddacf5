//! The functions of schema `tde`; their declarations are in `sql/`.

#![allow(clippy::type_complexity)] // a row type is as long as its columns

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use keyring::DekState;
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

use crate::destroy::{self, Request};
use crate::key_table::{Counters, KeyTable, State};
use crate::span::OPEN_END;
use crate::tablespace::{self, TablespaceError};
use crate::verify::{self, Checked};
use crate::{jobs, keys, lock, redirected, report, settings, tablespace_error};

fn fail(error: &TablespaceError) -> ! {
    report::send(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        &report::chain(error),
        "",
        tablespace_error::hint(error),
    );
    unreachable!("an ERROR does not return")
}

fn table() -> &'static KeyTable {
    let Some(table) = tablespace::key_table() else { fail(&TablespaceError::NotActive) };
    match keys::ensure_compared(table) {
        Ok(()) => table,
        Err(error) => fail(&error.into()),
    }
}

/// `tde.encrypt_tablespace(name text, cipher text, wait boolean)`: the job, NULL since an empty tablespace needs none.
#[pg_extern(sql = false)]
fn encrypt_tablespace(name: &str, cipher: Option<&str>, wait: bool) -> Option<i64> {
    let cipher = match cipher {
        Some(cipher) => settings::parse_cipher(cipher),
        None => settings::cipher(),
    };
    let done =
        cipher.map_err(TablespaceError::from).and_then(|cipher| tablespace::encrypt(name, cipher, wait));
    match done {
        Ok(job) => job.map(u64::cast_signed),
        Err(error) => fail(&error),
    }
}

/// `tde.rotate_data_key(name text, wait boolean)`: the job.
#[pg_extern(sql = false)]
fn rotate_data_key(name: &str, wait: bool) -> i64 {
    match tablespace::rotate_data_key(name, wait) {
        Ok(job) => job.cast_signed(),
        Err(error) => fail(&error),
    }
}

/// `tde.decrypt_tablespace(name text, wait boolean)`: the job.
#[pg_extern(sql = false)]
fn decrypt_tablespace(name: &str, wait: bool) -> i64 {
    match tablespace::decrypt(name, wait) {
        Ok(job) => job.cast_signed(),
        Err(error) => fail(&error),
    }
}

/// `tde.pause_job(job bigint)`
#[pg_extern(sql = false)]
fn pause_job(job: i64) {
    jobs::pause(job.cast_unsigned()).unwrap_or_else(|error| fail(&error));
}

/// `tde.resume_job(job bigint)`
#[pg_extern(sql = false)]
fn resume_job(job: i64) {
    jobs::resume(job.cast_unsigned()).unwrap_or_else(|error| fail(&error));
}

/// `tde.cancel_job(job bigint)`: the job that goes back.
#[pg_extern(sql = false)]
fn cancel_job(job: i64) -> i64 {
    jobs::cancel(job.cast_unsigned()).unwrap_or_else(|error| fail(&error)).cast_signed()
}

/// `tde.destroy_key_version(name text, key_version integer, waiting_period interval, confirm boolean)`: the key's state.
#[pg_extern(sql = false)]
fn destroy_key_version(
    name: &str,
    key_version: i32,
    waiting_period: Interval,
    confirm: bool,
) -> &'static str {
    let done = destroy_request(waiting_period, confirm)
        .and_then(|request| destroy::version(name, key_version.cast_unsigned(), request));
    done.unwrap_or_else(|error| fail(&error)).name()
}

/// `tde.cancel_key_destruction(name text, key_version integer)`
#[pg_extern(sql = false)]
fn cancel_key_destruction(name: &str, key_version: i32) {
    destroy::cancel_version(name, key_version.cast_unsigned()).unwrap_or_else(|error| fail(&error));
}

/// `tde.shred_keys(line bigint, waiting_period interval, confirm boolean)`: the keys' state.
#[pg_extern(sql = false)]
fn shred_keys(line: i64, waiting_period: Interval, confirm: bool) -> &'static str {
    let done = destroy_request(waiting_period, confirm)
        .and_then(|request| destroy::line(line.cast_unsigned(), request));
    done.unwrap_or_else(|error| fail(&error)).name()
}

/// `tde.cancel_shred_keys(line bigint)`
#[pg_extern(sql = false)]
fn cancel_shred_keys(line: i64) {
    destroy::cancel_line(line.cast_unsigned()).unwrap_or_else(|error| fail(&error));
}

fn destroy_request(waiting: Interval, confirm: bool) -> Result<Request, TablespaceError> {
    let seconds = waiting.as_micros() / 1_000_000;
    let waiting = u64::try_from(seconds).map_err(|_| TablespaceError::NegativePeriod)?;
    Ok(Request { waiting, confirm })
}

/// `tde.lock()`
#[pg_extern(sql = false)]
fn lock_keys() {
    lock::lock(lock::Wait::Statements).unwrap_or_else(|error| fail(&error));
}

/// `tde.unlock()`
#[pg_extern(sql = false)]
fn unlock_keys() {
    lock::unlock().unwrap_or_else(|error| fail(&error));
}

/// `tde.is_locked()`
#[pg_extern(sql = false)]
fn is_locked() -> bool {
    lock::is_on()
}

/// `tde.tablespace_is_encrypted(tablespace oid)`
#[pg_extern(sql = false)]
fn tablespace_is_encrypted(tablespace: pg_sys::Oid) -> bool {
    matches!(table().state(tablespace.to_u32()), Some(State::Encrypted(_) | State::Rotating(_)))
}

/// `tde.rotate_master_key()`: the new version.
#[pg_extern(sql = false)]
fn rotate_master_key() -> i32 {
    match tablespace::rotate_master_key() {
        Ok(rewrapped) => rewrapped.to.cast_signed(),
        Err(error) => fail(&error),
    }
}

/// `tde.rotate_wal_key()`: the new version.
#[pg_extern(sql = false)]
fn rotate_wal_key() -> i32 {
    match tablespace::rotate_wal_key() {
        Ok(version) => version.cast_signed(),
        Err(error) => fail(&error),
    }
}

/// `tde.wal_status()`
#[pg_extern(sql = false)]
fn wal_status() -> TableIterator<
    'static,
    (name!(line, Option<i64>), name!(key_version, Option<i32>), name!(accepts_plain, bool)),
> {
    let row = match redirected::table() {
        None => (None, None, true),
        Some(table) => (
            table.line().map(u64::cast_signed),
            table.write_version().map(u32::cast_signed),
            table.plain_allowed(u64::MAX),
        ),
    };
    TableIterator::once(row)
}

/// A WAL position as text, NULL where there is none.
fn position(at: u64) -> Option<String> {
    (at != OPEN_END).then(|| keyring::WalPosition(at).to_string())
}

/// `tde.tablespace_lines()`
#[pg_extern(sql = false)]
fn tablespace_lines() -> TableIterator<
    'static,
    (
        name!(line, i64),
        name!(tablespace, pg_sys::Oid),
        name!(cipher, String),
        name!(key_version, i32),
        name!(encrypted_from, Option<String>),
        name!(dropped_at, Option<String>),
        name!(unwrapped, bool),
        name!(state, &'static str),
    ),
> {
    let table = table();
    // One row a line: the newest version that was put to use.
    let mut newest = BTreeMap::new();
    for line in table.lines().filter(|line| line.span.end != 0) {
        let known = newest.entry(line.line).or_insert(line);
        if known.version < line.version {
            *known = line;
        }
    }
    let rows: Vec<_> = newest
        .into_values()
        .map(|line| {
            let of_it = table.lines().filter(|other| other.line == line.line && other.span.end != 0);
            let first = of_it.min_by_key(|other| other.version).unwrap_or(line);
            let state = if line.span.alive() { table.state(line.tablespace) } else { None };
            (
                line.line.cast_signed(),
                pg_sys::Oid::from(line.tablespace),
                line.cipher.to_string(),
                line.version.cast_signed(),
                position(first.span.start),
                position(line.span.end),
                matches!(table.dek(line.index), Ok(Some(_))),
                state.map_or("ended", State::name),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// `tde.job_table()`
#[pg_extern(sql = false)]
fn job_table() -> TableIterator<
    'static,
    (
        name!(job, i64),
        name!(tablespace, pg_sys::Oid),
        name!(kind, &'static str),
        name!(phase, &'static str),
        name!(database, Option<pg_sys::Oid>),
        name!(relation, Option<pg_sys::Oid>),
        name!(blocks_done, i64),
        name!(blocks_total, i64),
        name!(blocks_verified, i64),
        name!(blocks_per_second, i64),
        name!(pid, Option<i32>),
        name!(paused, bool),
        name!(attempts, i32),
        name!(started, TimestampWithTimeZone),
    ),
> {
    let oid = |number: u32| (number != 0).then(|| pg_sys::Oid::from(number));
    let rows: Vec<_> = table()
        .jobs
        .all()
        .map(|job| {
            (
                job.line.cast_signed(),
                pg_sys::Oid::from(job.tablespace),
                job.kind.name(),
                job.phase.name(),
                oid(job.database),
                oid(job.relation),
                job.blocks_done.min(job.blocks_total).cast_signed(),
                job.blocks_total.cast_signed(),
                job.blocks_verified.min(job.blocks_total).cast_signed(),
                job.rate.cast_signed(),
                (job.pid != 0).then(|| job.pid.cast_signed()),
                job.paused,
                job.attempts.cast_signed(),
                pgrx::datum::to_timestamp(job.started as f64),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// `tde.key_versions()`
#[pg_extern(sql = false)]
fn key_versions() -> TableIterator<
    'static,
    (
        name!(line, i64),
        name!(scope, String),
        name!(state, String),
        name!(cipher, String),
        name!(key_version, i32),
        name!(key_state, String),
        name!(created, TimestampWithTimeZone),
        name!(master_key_version, Option<i32>),
        name!(destroy_after, Option<TimestampWithTimeZone>),
    ),
> {
    let keyring = match keys::open_keyring(table()) {
        Ok(keyring) => keyring,
        Err(error) => fail(&error.into()),
    };
    // A standby may not have all lines yet.
    let scopes = match keyring.survey() {
        Ok(survey) => survey.scopes,
        Err(error) => fail(&error.into()),
    };
    let mut rows = Vec::new();
    for scope in &scopes {
        for entry in &scope.versions {
            rows.push((
                scope.line.0.cast_signed(),
                scope.kind.to_string(),
                scope.state().to_string(),
                scope.cipher.to_string(),
                entry.version.0.cast_signed(),
                entry.state.to_string(),
                pgrx::datum::to_timestamp(entry.created as f64),
                entry.master_version().map(u32::cast_signed),
                match entry.state {
                    DekState::PendingDestruction { not_before } => {
                        Some(pgrx::datum::to_timestamp(not_before as f64))
                    }
                    _ => None,
                },
            ));
        }
    }
    TableIterator::new(rows)
}

/// `tde.master_key_versions()`
#[pg_extern(sql = false)]
fn master_key_versions() -> TableIterator<
    'static,
    (
        name!(version, i32),
        name!(created, Option<TimestampWithTimeZone>),
        name!(data_keys, i64),
        name!(newest, bool),
    ),
> {
    let versions = match tablespace::master_key_versions() {
        Ok(versions) => versions,
        Err(error) => fail(&error),
    };
    TableIterator::new(versions.into_iter().map(|one| {
        let created = one.created.map(|seconds| pgrx::datum::to_timestamp(seconds as f64));
        (one.version.cast_signed(), created, one.data_keys.cast_signed(), one.newest)
    }))
}

/// `tde.counters()`
#[pg_extern(sql = false)]
fn counters() -> TableIterator<
    'static,
    (
        name!(pages_encrypted, i64),
        name!(pages_decrypted, i64),
        name!(pages_refused, i64),
        name!(torn_maps, i64),
        name!(double_writes, i64),
        name!(torn_in_recovery, i64),
    ),
> {
    let total = |pick: fn(&Counters) -> &AtomicU64| table().total(pick).cast_signed();
    TableIterator::once((
        total(|counters| &counters.sealed),
        total(|counters| &counters.opened),
        total(|counters| &counters.refused),
        total(|counters| &counters.torn_maps),
        total(|counters| &counters.double_writes),
        total(|counters| &counters.placeholders),
    ))
}

/// `tde.check_files(name text)`
#[pg_extern(sql = false)]
fn check_files(
    name: &str,
) -> TableIterator<
    'static,
    (
        name!(database, pg_sys::Oid),
        name!(relfilenode, pg_sys::Oid),
        name!(fork, String),
        name!(blocks, i64),
        name!(zero_blocks, i64),
        name!(damaged, i64),
        name!(first_damaged, Option<i64>),
        name!(detail, Option<String>),
    ),
> {
    let checked: Vec<Checked> = match verify::tablespace(name) {
        Ok(checked) => checked,
        Err(error) => fail(&error),
    };
    TableIterator::new(checked.into_iter().map(|row| {
        (
            pg_sys::Oid::from(row.database),
            pg_sys::Oid::from(row.number),
            row.fork.to_owned(),
            row.blocks.cast_signed(),
            row.zero_blocks.cast_signed(),
            row.damaged.cast_signed(),
            row.first.as_ref().map(|first| i64::from(first.block)),
            row.first.map(|first| first.detail),
        )
    }))
}
