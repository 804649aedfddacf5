//! What the pragmas say and do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use crate::database::Database;
use crate::error::{Place, Result, VfsError};
use crate::format::header::FORMAT;
use crate::format::page;
use crate::main_db::{MainDb, State};
use crate::raw::{RawFile, Read};

/// The pragmas of this VFS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pragma {
    /// `tde_status`
    Status,
    /// `tde_key_version`
    KeyVersion,
    /// `tde_rotate`
    Rotate,
    /// `tde_verify`
    Verify,
}

impl Pragma {
    /// The pragma of this name, whatever its case.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let known = [
            ("tde_status", Self::Status),
            ("tde_key_version", Self::KeyVersion),
            ("tde_rotate", Self::Rotate),
            ("tde_verify", Self::Verify),
        ];
        known.into_iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, pragma)| pragma)
    }
}

/// How often a page that does not open is read again: in WAL mode a checkpoint may be writing it.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);
/// How many bad pages are listed.
const LISTED: usize = 100;
/// Bytes read at once.
const BATCH: usize = 256 * 1024;

/// Whose file it is, its keys and its size: lines of `key: value`.
pub(crate) fn status<R: RawFile>(main: &mut MainDb<R>) -> Result<String> {
    let state = main.look()?;
    let size = main.raw().size()?;
    let db = main.database();
    let mut out = String::new();
    let mut line = |key: &str, value: &dyn core::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{key}: {value}");
    };
    line("file", &db.path());
    line(
        "state",
        match state {
            State::Known => &"encrypted",
            State::Empty => &"empty, will be encrypted",
            State::Headless => &"page 1 is lost",
        },
    );
    line("cipher", &"aes-256-gcm-siv");
    line("format", &FORMAT);
    if let Some(page_size) = db.page_size() {
        line("page_size", &page_size);
        line("pages", &(size / u64::from(page_size)));
    }
    if let Some(keys) = db.keys() {
        line("file_id", &keys.file_id());
        line("key_version", &keys.active_version());
        if let Some(dir) = keys.keyring_dir() {
            line("keyring", &dir.display());
        }
        if let Some(hsm) = keys.hsm() {
            line("hsm", &hsm);
        }
    }
    match secret_mem::lock_failure() {
        None => line("key_memory", &"locked"),
        Some(failure) => line("key_memory", &failure),
    }
    out.pop();
    Ok(out)
}

/// Makes a new version of the file's data key; what is written from now on is sealed under it.
pub(crate) fn rotate(db: &Database) -> Result<String> {
    let keys = db.keys().ok_or_else(|| VfsError::NoKeysYet { file: db.path().to_owned() })?;
    let version = keys.rotate().map_err(|source| db.keys_error(source))?;
    Ok(format!(
        "key version {version} is active; `tde sqlite rotate` rewrites the pages under older versions, VACUUM does so too"
    ))
}

/// The active version and how many pages are under each, by the trailers on disk.
pub(crate) fn key_versions<R: RawFile>(main: &mut MainDb<R>) -> Result<String> {
    let mut pages = BTreeMap::<u32, u64>::new();
    each_page(main, |_, number, bytes, page_size| {
        if !page::is_lock_page(number, page_size) {
            *pages.entry(page::version(bytes)).or_default() += 1;
        }
        Ok(())
    })?;
    let active = main.database().keys().map_or(0, |keys| keys.active_version());
    let mut out = format!("active: {active}");
    for (version, count) in pages {
        // Writing to a String cannot fail.
        let _ = write!(out, "\nversion {version}: {count} pages");
    }
    Ok(out)
}

/// Opens every page on disk: "ok", or the pages that do not open.
///
/// Frames of the WAL are not looked at.
pub(crate) fn verify<R: RawFile>(main: &mut MainDb<R>) -> Result<String> {
    let mut bad = Vec::new();
    let mut count = 0_u64;
    let rest = each_page(main, |main, number, bytes, page_size| {
        if page::is_lock_page(number, page_size) {
            return Ok(());
        }
        if let Err(error) = read_patiently(main, bytes, number) {
            count += 1;
            if bad.len() < LISTED {
                bad.push(error.to_string());
            }
        }
        Ok(())
    })?;
    if rest != 0 {
        count += 1;
        bad.push(format!("the file ends with {rest} bytes that are no whole page"));
    }
    if count == 0 {
        return Ok("ok".to_owned());
    }
    if count > bad.len() as u64 {
        bad.push(format!("and {} more pages", count - bad.len() as u64));
    }
    Ok(bad.join("\n"))
}

fn read_patiently<R: RawFile>(main: &mut MainDb<R>, page: &mut [u8], number: u32) -> Result<()> {
    let mut tries = 1;
    loop {
        match main.read_page(page, number) {
            Ok(Read::Full) => return Ok(()),
            // Cut off since the scan began.
            Ok(Read::Short) => return Ok(()),
            Err(VfsError::NotAuthentic { .. } | VfsError::Torn { .. }) if tries < TRIES => {
                tries += 1;
                thread::sleep(BETWEEN_TRIES);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Shows every page as it is on disk; returns how many bytes follow the last whole one.
fn each_page<R: RawFile>(
    main: &mut MainDb<R>,
    mut look: impl FnMut(&mut MainDb<R>, u32, &mut [u8], u32) -> Result<()>,
) -> Result<u64> {
    let size = main.raw().size()?;
    let Some(page_size) = main.database().page_size() else {
        let (file, place) = (main.database().path().to_owned(), Place::Page(1));
        return if size == 0 { Ok(0) } else { Err(VfsError::Torn { file, place }) };
    };
    let page_bytes = page_size as usize;
    let mut batch = vec![0; BATCH.max(page_bytes)];
    let mut offset = 0;
    while size - offset >= u64::from(page_size) {
        let len = (size - offset).min(batch.len() as u64) as usize / page_bytes * page_bytes;
        main.raw().read_at(&mut batch[..len], offset)?;
        for (i, page) in batch[..len].chunks_exact_mut(page_bytes).enumerate() {
            let number = (offset / u64::from(page_size)) as u32 + 1 + i as u32;
            look(main, number, page, page_size)?;
        }
        offset += len as u64;
    }
    Ok(size - offset)
}
