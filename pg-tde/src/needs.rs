//! What still needs a data key: redo, WAL that is kept, base backups.
//!
//! All of it is about one WAL position, from which no page is under the key (the end of the job that rewrote them, which read every file; or
//! the drop of the tablespace). Whatever begins before it may meet pages under the key. Archives, backups taken by other programs, and
//! sessions between `pg_backup_start` and `pg_backup_stop` cannot be seen from here; who destroys a key answers for them.

use std::path::Path;
use std::time::{Duration, Instant};

use keyring::WalPosition;
use wal_cipher::name::SegmentName;

use crate::ffi::{background, server};
use crate::keys;

/// How long slots that are in use are waited for.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);

/// Why a key is not destroyed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum StillNeeded {
    /// Nobody ever encrypted it.
    #[error("tablespace \"{0}\" never had a key")]
    NeverEncrypted(String),
    /// There is no such version.
    #[error("the key of tablespace \"{name}\" has no version {version}; tde.keys lists them")]
    NoSuchVersion {
        /// The tablespace.
        name: String,
        /// The version.
        version: u32,
    },
    /// Pages are written under it.
    #[error("version {version} is the newest of the key of tablespace \"{name}\"")]
    Active {
        /// The tablespace.
        name: String,
        /// The version.
        version: u32,
    },
    /// The line belongs to a tablespace that is encrypted.
    #[error(
        "line {line} is the key of {kind}, which is {state}: all of its keys are destroyed only once it was dropped or decrypted"
    )]
    InUse {
        /// The line.
        line: u64,
        /// What it belongs to.
        kind: String,
        /// Its state.
        state: String,
    },
    /// A job has not rewritten all pages.
    #[error("pages of {scope} may be under that key: it is {state} (job {job})")]
    Pages {
        /// What it belongs to.
        scope: String,
        /// Its state.
        state: &'static str,
        /// The job.
        job: u64,
    },
    /// Destroying takes two steps.
    #[error("its destruction was not planned: call this without confirm first")]
    NotPlanned,
    /// The waiting period is not over.
    #[error("it may be destroyed from {not_before} on; until then its destruction can be cancelled")]
    TooEarly {
        /// The date.
        not_before: String,
    },
    /// The latest checkpoint is too old.
    #[error("recovery would begin at {redo}, and pages were under that key until {end}")]
    Redo {
        /// Redo pointer.
        redo: WalPosition,
        /// From here on none was.
        end: WalPosition,
    },
    /// WAL is kept.
    #[error("WAL from {from} on is kept in pg_wal ({why}), and pages were under that key until {end}")]
    Wal {
        /// Beginning of the oldest segment.
        from: WalPosition,
        /// What keeps it.
        why: String,
        /// From here on none was.
        end: WalPosition,
    },
    /// `pg_wal` cannot be read.
    #[error("cannot see what WAL is kept: {path}: {source}")]
    Unreadable {
        /// File or directory.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The server does not answer a question about itself.
    #[error("cannot ask the server for {what}: {error}")]
    Unknown {
        /// What was asked.
        what: &'static str,
        /// Why.
        error: pgrx::spi::Error,
    },
    /// `pg_basebackup` is running.
    #[error("a base backup is being taken (process {0})")]
    BackupRunning(i32),
    /// A backup that was taken before.
    #[error(
        "the base backup \"{label}\" ({file}) began at {start}, and pages were under that key until {end}"
    )]
    Backup {
        /// Its label.
        label: String,
        /// Its history file.
        file: String,
        /// Where it began.
        start: WalPosition,
        /// From here on none was.
        end: WalPosition,
    },
}

impl StillNeeded {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Active { .. } => {
                "tde.rotate_data_key makes a newer one; the keys of a tablespace that was dropped or decrypted are destroyed with tde.shred_keys."
            }
            Self::Pages { .. } => "See tde.jobs.",
            Self::Redo { .. } => "CHECKPOINT, and try again.",
            Self::Wal { .. } => {
                "Let the archiver and the standbys catch up or drop the slot, lower wal_keep_size, and try again after a checkpoint."
            }
            Self::BackupRunning(_) => "Try again when it is done.",
            Self::Backup { .. } => {
                "Once the key is destroyed that backup can be restored with a backup of the keyring only that has the key. Take a new base backup, which removes the file, or remove it."
            }
            Self::InUse { .. } => "tde.destroy_key_version destroys single versions.",
            _ => "",
        }
    }
}

/// Makes sure that nothing this server knows of begins before the end of a key.
///
/// # Errors
/// The first thing that does.
pub(crate) fn check(end: u64) -> Result<(), StillNeeded> {
    refuse_running_backup()?;
    refuse_known_backups(end)?;
    // The segment that holds the end goes with the first checkpoint in a later one.
    if server::completed_redo() < end || oldest_segment()?.is_some_and(|oldest| oldest < end) {
        server::switch_wal();
        wait_for_slots(server::insert_position())?;
        server::checkpoint();
    }
    let (redo, end) = (WalPosition(server::completed_redo()), WalPosition(end));
    if redo < end {
        return Err(StillNeeded::Redo { redo, end });
    }
    match oldest_segment()? {
        Some(oldest) if oldest < end.0 => {
            Err(StillNeeded::Wal { from: WalPosition(oldest), why: keeper(oldest, end)?, end })
        }
        _ => Ok(()),
    }
}

/// Standbys that stream get a moment to fetch the rest of the segment, which their slots would keep otherwise.
fn wait_for_slots(position: u64) -> Result<(), StillNeeded> {
    let query = format!(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_replication_slots \
         WHERE active AND restart_lsn OPERATOR(pg_catalog.<) '{}'::pg_catalog.pg_lsn",
        WalPosition(position - position % server::segment_size())
    );
    let begin = Instant::now();
    while begin.elapsed() < SLOT_PATIENCE {
        let behind = server::ask::<i64>(&query)
            .map_err(|error| StillNeeded::Unknown { what: "replication slots", error })?;
        if behind == Some(0) {
            break;
        }
        background::doze(Duration::from_millis(50));
    }
    Ok(())
}

fn wal_directory() -> std::path::PathBuf {
    server::data_directory().join("pg_wal")
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> StillNeeded {
    let path = path.display().to_string();
    move |source| StillNeeded::Unreadable { path: path.clone(), source }
}

/// Where the oldest WAL in `pg_wal` begins, on whatever timeline.
fn oldest_segment() -> Result<Option<u64>, StillNeeded> {
    let (directory, size) = (wal_directory(), server::segment_size());
    let mut oldest = None;
    for entry in std::fs::read_dir(&directory).map_err(unreadable(&directory))? {
        let name = entry.map_err(unreadable(&directory))?.file_name();
        if let Some(name) = SegmentName::parse(name.as_encoded_bytes()) {
            let position = name.position(size);
            oldest = Some(oldest.map_or(position, |known: u64| known.min(position)));
        }
    }
    Ok(oldest)
}

/// What keeps the oldest WAL.
fn keeper(oldest: u64, end: WalPosition) -> Result<String, StillNeeded> {
    let query = format!(
        "SELECT pg_catalog.string_agg(slot_name::pg_catalog.text, ', ') FROM pg_catalog.pg_replication_slots \
         WHERE restart_lsn OPERATOR(pg_catalog.<) '{end}'::pg_catalog.pg_lsn"
    );
    let failed = |what| move |error| StillNeeded::Unknown { what, error };
    if let Some(slots) = server::ask::<String>(&query).map_err(failed("replication slots"))? {
        return Ok(format!("replication slots: {slots}"));
    }
    let kept = server::setting(c"wal_keep_size").filter(|size| size != "0");
    if let Some(size) = kept {
        return Ok(format!("wal_keep_size is {size} MB"));
    }
    let status = wal_directory().join("archive_status");
    let waits = std::fs::read_dir(&status).map_err(unreadable(&status))?.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.as_encoded_bytes().strip_suffix(b".ready").and_then(SegmentName::parse);
        name.is_some_and(|name| name.position(server::segment_size()) <= oldest)
    });
    Ok(if waits { "it is not archived yet" } else { "until the next checkpoint" }.to_owned())
}

/// Where a running `pg_basebackup` began is not known.
fn refuse_running_backup() -> Result<(), StillNeeded> {
    let query = "SELECT pg_catalog.min(pid) FROM pg_catalog.pg_stat_progress_basebackup";
    let pid =
        server::ask::<i32>(query).map_err(|error| StillNeeded::Unknown { what: "base backups", error })?;
    pid.map_or(Ok(()), |pid| Err(StillNeeded::BackupRunning(pid)))
}

/// Backups that ended have left a history file.
fn refuse_known_backups(end: u64) -> Result<(), StillNeeded> {
    let directory = wal_directory();
    for entry in std::fs::read_dir(&directory).map_err(unreadable(&directory))? {
        let path = entry.map_err(unreadable(&directory))?.path();
        if path.extension().is_none_or(|extension| extension != "backup") {
            continue;
        }
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            text => text.map_err(unreadable(&path))?,
        };
        // One that says nothing may be from any time.
        let start = keys::labelled_start(&text).unwrap_or(0);
        if start < end {
            let label =
                text.lines().find_map(|line| line.strip_prefix("LABEL: ")).unwrap_or_default().to_owned();
            let file = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
            return Err(StillNeeded::Backup {
                label,
                file,
                start: WalPosition(start),
                end: WalPosition(end),
            });
        }
    }
    Ok(())
}
