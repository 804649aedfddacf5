//! What a job keeps on disk: `pg_tde.job.LINE`, how far it is, and `pg_tde.job.LINE.paused`, that somebody wants it to wait.
//!
//! Both are hints and no authority. The keyring says what has to be done, and a job reads every file before it ends: a mark that is older or
//! newer than the data, as after a restore, costs another pass and nothing else. Each names the WAL position at which its job
//! began, so that a file left over from another job is not taken for this one's.
//!
//! ```text
//! pg_tde job 1
//! line 3 from 0000000001A2B3C8
//! next database 5 relation 16401 storage 16405 fork 0 block 1280 done 4096      not in .paused
//! crc32 1f2e3d4c                   of everything before this line
//! ```
//! Order of writes: the WAL with the images of all pages before the mark is flushed, then a temporary file is written and synced, then it is
//! renamed and the directory synced. A crash leaves the mark before or this one, and redo rewrites what either names as done.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::ffi::server;

const HEAD: &str = "pg_tde job 1";

/// Where a job goes on: everything before it is rewritten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// OID of the database, 0 in `pg_global`. Databases are gone through in this order.
    pub(crate) database: u32,
    /// OID of the relation. So are relations.
    pub(crate) relation: u32,
    /// The file number its storage had: another one was made after the change.
    pub(crate) storage: u32,
    /// Number of the fork.
    pub(crate) fork: u32,
    /// The next block.
    pub(crate) block: u32,
    /// Blocks done before it.
    pub(crate) done: u64,
}

impl Mark {
    /// Behind every database.
    pub(crate) const COMPLETE: Self =
        Self { database: u32::MAX, relation: 0, storage: 0, fork: 0, block: 0, done: 0 };

    /// Whether every relation was gone through.
    pub(crate) fn is_complete(&self) -> bool {
        self.database == u32::MAX
    }
}

/// Which job a file belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JobId {
    /// Line in the keyring.
    pub(crate) line: u64,
    /// WAL position at which its state began.
    pub(crate) from: u64,
}

/// Why a file of a job cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} \"{}\": {source}", path.display())]
pub(crate) struct JobFileError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(what: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> JobFileError {
    move |source| JobFileError { what, path, source }
}

fn mark_path(line: u64) -> PathBuf {
    server::data_directory().join(format!("pg_tde.job.{line}"))
}

fn paused_path(line: u64) -> PathBuf {
    server::data_directory().join(format!("pg_tde.job.{line}.paused"))
}

fn text(id: JobId, mark: Option<Mark>) -> String {
    let mut text = format!("{HEAD}\nline {} from {:016X}\n", id.line, id.from);
    if let Some(Mark { database, relation, storage, fork, block, done }) = mark {
        text.push_str(&format!(
            "next database {database} relation {relation} storage {storage} fork {fork} block {block} done {done}\n"
        ));
    }
    let crc = crc32fast::hash(text.as_bytes());
    text.push_str(&format!("crc32 {crc:08x}\n"));
    text
}

/// `None` for anything that [`text`] would not have written.
fn parse(bytes: &str) -> Option<(JobId, Option<Mark>)> {
    let mut lines = bytes.lines();
    if lines.next()? != HEAD {
        return None;
    }
    let (line, from) = lines.next()?.strip_prefix("line ")?.split_once(" from ")?;
    let id = JobId { line: line.parse().ok()?, from: u64::from_str_radix(from, 16).ok()? };
    let mark = match lines.next()?.strip_prefix("next ") {
        Some(mark) => Some(parse_mark(mark)?),
        None => None,
    };
    (text(id, mark) == bytes).then_some((id, mark))
}

fn parse_mark(text: &str) -> Option<Mark> {
    let words: Vec<_> = text.split(' ').collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1)?.parse::<u64>().ok()
    };
    let small = |name: &str| u32::try_from(value(name)?).ok();
    Some(Mark {
        database: small("database")?,
        relation: small("relation")?,
        storage: small("storage")?,
        fork: small("fork")?,
        block: small("block")?,
        done: value("done")?,
    })
}

fn read(path: PathBuf) -> Result<Option<(JobId, Option<Mark>)>, JobFileError> {
    match fs::read_to_string(&path) {
        // A damaged hint is none.
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn write(path: PathBuf, text: &str) -> Result<(), JobFileError> {
    let replace = || {
        // One writer for each name: the job's process, or a statement under the keyring's lock.
        let temporary = path.with_added_extension("tmp");
        let mut file =
            File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(server::data_directory())?.sync_all()
    };
    replace().map_err(failed("write", path.clone()))
}

/// The file of a job that came after it is left alone.
fn remove_if_of(id: JobId, path: PathBuf) -> Result<(), JobFileError> {
    if read(path.clone())?.is_some_and(|(of, _)| of.from > id.from) {
        return Ok(());
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed
            .and_then(|()| File::open(server::data_directory())?.sync_all())
            .map_err(failed("remove", path)),
    }
}

/// Where this job goes on, if it has been under way before.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn mark(id: JobId) -> Result<Option<Mark>, JobFileError> {
    Ok(read(mark_path(id.line))?.filter(|(of, _)| *of == id).and_then(|(_, mark)| mark))
}

/// Remembers where this job goes on. The WAL up to there is flushed.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn save_mark(id: JobId, mark: Mark) -> Result<(), JobFileError> {
    write(mark_path(id.line), &text(id, Some(mark)))
}

/// Forgets how far this job was: a pass begins anew, or it is over.
///
/// # Errors
/// When the file cannot be removed.
pub(crate) fn forget_mark(id: JobId) -> Result<(), JobFileError> {
    remove_if_of(id, mark_path(id.line))
}

/// Whether somebody wants this job to wait.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn is_paused(id: JobId) -> Result<bool, JobFileError> {
    Ok(read(paused_path(id.line))?.is_some_and(|(of, _)| of == id))
}

/// Makes this job wait, also after a restart.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn pause(id: JobId) -> Result<(), JobFileError> {
    write(paused_path(id.line), &text(id, None))
}

/// Lets this job go on.
///
/// # Errors
/// When the file cannot be removed.
pub(crate) fn resume(id: JobId) -> Result<(), JobFileError> {
    remove_if_of(id, paused_path(id.line))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: JobId = JobId { line: 3, from: 0x01a2_b3c8 };
    const MARK: Mark =
        Mark { database: 5, relation: 16401, storage: 16405, fork: 0, block: 1280, done: 4096 };

    #[test]
    fn the_text_is_pinned_and_comes_back() {
        assert_eq!(
            text(ID, Some(MARK)),
            "pg_tde job 1\nline 3 from 0000000001A2B3C8\nnext database 5 relation 16401 storage 16405 fork 0 block 1280 done 4096\ncrc32 f7910afb\n"
        );
        assert_eq!(text(ID, None), "pg_tde job 1\nline 3 from 0000000001A2B3C8\ncrc32 0e9dbb27\n");
        assert_eq!(parse(&text(ID, Some(MARK))), Some((ID, Some(MARK))));
        assert_eq!(parse(&text(ID, None)), Some((ID, None)));
    }

    #[test]
    fn a_changed_or_missing_byte_makes_it_no_mark() {
        let text = text(ID, Some(MARK));
        for position in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[position] ^= 1;
            let changed = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(parse(&changed), None, "byte {position}");
            assert_eq!(parse(&text[..position]), None, "{position} bytes");
        }
    }
}
