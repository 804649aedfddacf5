//! `tde sqlite encrypt` and `tde sqlite decrypt`: VACUUM INTO a file beside the original, compare, replace.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use serde::Serialize;
use sqlite_vfs::offline;

use super::progress::{Progress, Stopped};
use super::replace::{Copy, users_of};
use super::sidecar::{Sidecars, beside};
use super::{Access, Result, SqliteError, Target, at, compare, connect, encrypted, plaintext, uri};
use crate::output::{Output, size};
use crate::{CliResult, Outcome};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
    /// Keep the original under this name, on the same file system
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
}

/// The file cannot be converted now.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{} is locked by another program; close all programs that use it", .0.display())]
    Locked(PathBuf),
    #[error("{} is open in {}; close it there", .path.display(), processes(.users))]
    Open { path: PathBuf, users: Vec<u32> },
    #[error("{} has {links} names (hard links): after the conversion the others would still be the original; remove them", path.display())]
    Links { path: PathBuf, links: u64 },
    #[error("{} exists already; --keep needs another name", .0.display())]
    Kept(PathBuf),
    #[error(
        "{error}, which only the application has; in it, with the VFS registered, run VACUUM INTO 'file:NEW?{parameter}' and put \
         the new file in the place of this one; the original was left as it is"
    )]
    Lacks { error: SqliteError, parameter: &'static str },
    #[error(
        "the converted database has {bad} pages that do not open when they are read from the disk; the original was left as it is"
    )]
    BadCopy { bad: u64 },
}

#[derive(Serialize)]
struct Converted {
    file: String,
    encrypted: bool,
    bytes_before: u64,
    bytes_after: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_id: Option<String>,
    kept: Option<String>,
    milliseconds: u128,
}

/// Parameters of SQLite's URIs: its own VFS, whatever the default is.
const PLAIN: &str = "vfs=unix";

pub(super) fn encrypt(args: &Args, output: &Output) -> CliResult {
    let path = args.target.path()?;
    plaintext(&path)?;
    let access = args.target.login()?;
    // The temporary files of this connection stay in memory.
    convert(&path, PLAIN, "vfs=tde&plain_temp=1", &access, args, output)
}

pub(super) fn decrypt(args: &Args, output: &Output) -> CliResult {
    let path = args.target.path()?;
    drop(encrypted(&path)?);
    let access = args.target.login()?;
    convert(&path, "vfs=tde", "vfs=unix&reserve=0", &access, args, output)
}

fn convert(path: &Path, from: &str, to: &str, access: &Access, args: &Args, output: &Output) -> CliResult {
    access.register()?;
    let start = Instant::now();
    let progress = Progress::new(output)?;
    refuse_names(path, args.keep.as_deref())?;
    Sidecars::of(path)?.refuse_unfinished(path)?;
    // For `Copy::finish`; opened before and closed after the connection, because closing any descriptor of a file drops the
    // process's locks on it.
    let locked = File::options().write(true).open(path);
    let locked = locked.map_err(|source| super::At { path: path.into(), source })?;
    let mut original = lock(path, from)?;
    // Once more, now that nobody else can write.
    Sidecars::of(path)?.refuse_unfinished(path)?;
    refuse_users(path)?;
    let bytes_before = length(path)?;

    let mut copy = Copy::beside(path)?;
    copy_into(path, &mut original, &copy, to, bytes_before, &progress)?;
    let second = connect(copy.path(), to)?;
    let wal_mode: bool = mode_of(&original, path)? == "wal";
    if wal_mode {
        second.pragma_update(None, "journal_mode", "wal").map_err(at(copy.path()))?;
    }
    compare::same((path, &original), (copy.path(), &second), &progress)?;
    second.close().map_err(|(_, error)| at(copy.path())(error))?;
    let file_id = check_on_disk(access, &copy, to, &progress)?;
    if progress.stopped() {
        return Err(Stopped("the database was left as it is").into());
    }
    let bytes_after = length(copy.path())?;
    copy.prepare(path)?;
    refuse_users(path)?;
    copy.exchange(path)?;
    if let Err(open) = refuse_users_of(copy.path(), path) {
        copy.exchange_back(path)?;
        return Err(open);
    }
    copy.finish(path, args.keep.as_deref(), &locked)?;
    // Only now: the lock on the original keeps others away from the name.
    original.close().map_err(|(_, error)| at(path)(error))?;
    drop(locked);

    let done = Converted {
        file: path.display().to_string(),
        encrypted: file_id.is_some(),
        bytes_before,
        bytes_after,
        file_id,
        kept: args.keep.as_ref().map(|keep| keep.display().to_string()),
        milliseconds: start.elapsed().as_millis(),
    };
    output.show(&done, Converted::human)?;
    Ok(Outcome::Good)
}

impl Converted {
    fn human(&self) -> String {
        let what = if self.encrypted { "encrypted" } else { "plaintext" };
        let mut text = format!(
            "{}: now {what}, {} (before: {}), every row compared.\n",
            self.file,
            size(self.bytes_after),
            size(self.bytes_before)
        );
        match (&self.kept, self.encrypted) {
            (Some(kept), _) => text += &format!("The original is {kept}.\n"),
            (None, true) => {
                text +=
                    "The plaintext's blocks stay on the disk, and in backups, until they are written over.\n";
            }
            (None, false) => text += "Its key stays in the keyring, for backups.\n",
        }
        text
    }
}

/// A connection that holds the file's exclusive lock until it is closed.
fn lock(path: &Path, parameters: &str) -> Result<Connection> {
    let connection = connect(path, parameters)?;
    // Closing must not remove a WAL by its name, which is the converted database's by then.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(at(path))?;
    let locked = connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT");
    match locked {
        Err(error) if is_busy(&error) => Err(Refused::Locked(path.into()).into()),
        locked => {
            locked.map_err(at(path))?;
            Ok(connection)
        }
    }
}

pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn mode_of(connection: &Connection, path: &Path) -> std::result::Result<String, SqliteError> {
    connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(at(path))
}

fn copy_into(
    path: &Path,
    original: &mut Connection,
    copy: &Copy,
    to: &str,
    bytes: u64,
    progress: &Progress,
) -> Result<()> {
    let bar = progress.bar("copying", bytes);
    let (seen, growing, stop) = (bar.clone(), copy.path().to_path_buf(), progress.clone());
    let look = move || {
        seen.set_position(std::fs::metadata(&growing).map_or(0, |file| file.len()).min(bytes));
        stop.stopped()
    };
    original.progress_handler(10_000, Some(look)).map_err(at(path))?;
    let copied = original.execute("VACUUM INTO ?1", [uri(copy.path(), to)]);
    original.progress_handler(0, None::<fn() -> bool>).map_err(at(path))?;
    bar.finish_and_clear();
    match copied {
        Err(_) if progress.stopped() => Err(Stopped("the database was left as it is").into()),
        copied => Ok(copied.map(drop).map_err(|error| lacking(at(path)(error), to))?),
    }
}

/// Says what can be done where SQLite's copy needs functions, collations or modules that only the application has.
fn lacking(error: SqliteError, to: &str) -> Box<dyn std::error::Error + Send + Sync> {
    const LACKS: [&str; 4] = ["no such collation", "no such function", "unknown function", "no such module"];
    if LACKS.iter().any(|what| error.to_string().contains(what)) {
        let parameter = if to.starts_with(PLAIN) { "vfs=unix&reserve=0" } else { "vfs=tde" };
        return Refused::Lacks { error, parameter }.into();
    }
    error.into()
}

/// The copy as it lies there, without SQLite. Returns its id if it is encrypted.
fn check_on_disk(access: &Access, copy: &Copy, to: &str, progress: &Progress) -> Result<Option<String>> {
    Sidecars::of(copy.path())?.refuse_unfinished(copy.path())?;
    if to.starts_with(PLAIN) {
        plaintext(copy.path())?;
        return Ok(None);
    }
    let file = encrypted(copy.path())?;
    let keys = access.keys(copy.path(), &file)?;
    let bar = progress.bar("verifying", file.pages()?.into());
    let verdict = file.verify(&keys, |_| {
        bar.inc(1);
        progress.flow()
    });
    bar.finish_and_clear();
    match verdict {
        Err(offline::OfflineError::Stopped { .. }) => Err(Stopped("the database was left as it is").into()),
        verdict => {
            let verdict = verdict?;
            if !verdict.is_good() {
                return Err(Refused::BadCopy { bad: verdict.bad_count.max(1) }.into());
            }
            Ok(Some(file.id().to_string()))
        }
    }
}

/// What would be noticed only at the end.
fn refuse_names(path: &Path, keep: Option<&Path>) -> Result<()> {
    let metadata = std::fs::metadata(path).map_err(|source| super::At { path: path.into(), source })?;
    if metadata.nlink() > 1 {
        return Err(Refused::Links { path: path.into(), links: metadata.nlink() }.into());
    }
    match keep {
        Some(keep) if keep.symlink_metadata().is_ok() => Err(Refused::Kept(keep.into()).into()),
        _ => Ok(()),
    }
}

fn refuse_users(path: &Path) -> Result<()> {
    refuse_users_of(path, path)
}

/// `file` is where the original is now, `path` what the user calls it.
fn refuse_users_of(file: &Path, path: &Path) -> Result<()> {
    let mut users = users_of(file)?;
    let shm = beside(path, "-shm");
    if shm.exists() {
        users.extend(users_of(&shm)?);
        users.sort_unstable();
        users.dedup();
    }
    if users.is_empty() { Ok(()) } else { Err(Refused::Open { path: path.into(), users }.into()) }
}

fn processes(users: &[u32]) -> String {
    let list: Vec<_> = users.iter().map(u32::to_string).collect();
    format!("process{} {}", if users.len() == 1 { "" } else { "es" }, list.join(", "))
}

fn length(path: &Path) -> Result<u64> {
    let metadata = std::fs::metadata(path);
    Ok(metadata.map_err(|source| super::At { path: path.into(), source })?.len())
}
