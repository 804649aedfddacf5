//! `tde pg accept-wal`: WAL in clear becomes WAL under the cluster's key.
//!
//! A server that encrypts its WAL refuses segments in clear, for whoever can write to `pg_wal` or an archive could have made them up. Those that
//! a tool without `tde exec` wrote, or a standby while it ran with `pg_tde.encrypt_wal` off, are taken over here, once and by the word
//! of somebody who can unlock the keyring: each that would be refused is stored anew under the oldest version of the key that there is. Older copies of
//! the keyring have that one too; the WAL itself may bring them the others.
//!
//! The new file is complete and synced before it takes the old one's name: a crash leaves one or the other, and perhaps a file with the suffix
//! `.tde-accept`, which the next run replaces.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use wal_cipher::file::{Errno, Raw, Scratch, write_at};
use wal_cipher::handover::WalKeys;
use wal_cipher::header::{HEADER, is_first_page_of, is_of_system, position};
use wal_cipher::name::{SegmentName, segment_file};
use wal_cipher::segment::Policy;
use wal_cipher::unit::{Place, UNIT, UnitCipher};

use super::conf::Settings;
use crate::credentials::{HsmArgs, KeyringArgs};
use crate::output::{Output, facts};
use crate::{CliResult, Outcome, wal_keys};

const SUFFIX: &str = ".tde-accept";
/// `EIO` on Linux, where the system gives no number.
const EIO: Errno = 5;

/// What to take over.
#[derive(Args, Debug)]
pub(crate) struct AcceptWal {
    /// A data directory whose server is stopped, or a directory of segments such as an archive
    dir: PathBuf,
    #[command(flatten)]
    keyring: KeyringArgs,
    #[command(flatten)]
    hsm: HsmArgs,
}

#[derive(Debug, thiserror::Error)]
enum AcceptError {
    #[error("{} says that a server runs on this data directory: stop it first", .0.display())]
    Running(PathBuf),
    #[error(
        "the keyring says that new write-ahead log is not encrypted: a server with this keyring accepts it in clear, there is nothing to do"
    )]
    NotEncrypted,
    #[error("cannot {action} {}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

#[derive(Serialize)]
struct Report {
    directory: String,
    key_version: u32,
    accepted: Vec<String>,
    left_as_they_are: u64,
}

/// Takes over every segment in clear of this cluster.
pub(crate) fn run(args: &AcceptWal, output: &Output) -> CliResult {
    let is_cluster = args.dir.join("PG_VERSION").is_file();
    if is_cluster && args.dir.join("postmaster.pid").exists() {
        return Err(AcceptError::Running(args.dir.join("postmaster.pid")).into());
    }
    let keyring = match &args.keyring.keyring {
        None if is_cluster => configured_keyring(&args.dir)?,
        _ => args.keyring.directory()?.to_owned(),
    };
    let keys = wal_keys::load(&keyring, &args.hsm)?;
    let version = match keys.oldest() {
        Some(version) if keys.writes_encrypted() => version,
        _ => return Err(AcceptError::NotEncrypted.into()),
    };
    let folder = if is_cluster { args.dir.join("pg_wal") } else { args.dir.clone() };
    let mut report = Report {
        directory: folder.display().to_string(),
        key_version: version,
        accepted: Vec::new(),
        left_as_they_are: 0,
    };
    for (path, name) in segments(&folder)? {
        if is_refused(&path, name, &keys)? {
            store_anew(&path, name, version, &keys)?;
            report.accepted.push(name.to_string());
        } else {
            report.left_as_they_are += 1;
        }
    }
    output.show(&report, |report| {
        let accepted =
            if report.accepted.is_empty() { "none".to_owned() } else { report.accepted.join(", ") };
        facts(&[
            ("directory", report.directory.clone()),
            ("accepted", accepted),
            ("now under version", report.key_version.to_string()),
            ("left as they are", report.left_as_they_are.to_string()),
        ])
    })?;
    Ok(Outcome::Good)
}

fn configured_keyring(data: &Path) -> Result<PathBuf, Box<dyn std::error::Error + Send + Sync>> {
    let settings = Settings::of_cluster(data, None, &super::major_version(data)?);
    let configured = settings.get("pg_tde.keyring").map_or("pg_tde", |entry| entry.value.as_str());
    Ok(data.join(configured))
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> AcceptError + 'a {
    move |source| AcceptError::Io { action, path: path.into(), source }
}

fn segments(folder: &Path) -> Result<Vec<(PathBuf, SegmentName)>, AcceptError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("read", folder))? {
        let path = entry.map_err(failed("read", folder))?.path();
        let base = path.file_name().map_or(&[][..], |name| name.as_encoded_bytes());
        if let Some((name, _)) = segment_file(base) {
            found.push((path, name));
        }
    }
    found.sort();
    Ok(found)
}

/// A segment of this cluster where none is accepted in clear, or one that waits to be used again and still holds an older one.
fn is_refused(path: &Path, name: SegmentName, keys: &WalKeys) -> Result<bool, AcceptError> {
    let mut page = [0; HEADER];
    let file = File::open(path).map_err(failed("open", path))?;
    match file.read_exact_at(&mut page, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        result => result.map_err(failed("read", path))?,
    }
    let system = keys.system_identifier();
    if is_first_page_of(name, system, &page) {
        return Ok(!keys.plain_allowed(position(&page)));
    }
    Ok(system.is_some_and(|system| is_of_system(system, &page)))
}

struct NewFile<'a>(&'a File);

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().unwrap_or(EIO)
}

impl Raw for NewFile<'_> {
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        self.0.read_at(buffer, offset).map_err(|error| errno(&error))
    }

    fn write(&self, data: &[u8], offset: u64) -> Result<usize, Errno> {
        self.0.write_at(data, offset).map_err(|error| errno(&error))
    }

    fn size(&self) -> Result<u64, Errno> {
        Ok(self.0.metadata().map_err(|error| errno(&error))?.len())
    }

    fn set_size(&self, size: u64) -> Result<(), Errno> {
        self.0.set_len(size).map_err(|error| errno(&error))
    }
}

fn store_anew(path: &Path, name: SegmentName, version: u32, keys: &WalKeys) -> Result<(), AcceptError> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(SUFFIX);
    let staged = PathBuf::from(staged);
    let old = File::open(path).map_err(failed("open", path))?;
    let meta = old.metadata().map_err(failed("read", path))?;
    let making = || failed("write", &staged);
    let new = File::options().read(true).write(true).create(true).truncate(true).open(&staged);
    let new = new.map_err(making())?;
    new.set_permissions(fs::Permissions::from_mode(meta.mode())).map_err(making())?;
    fchown(new.as_fd(), Some(meta.uid()), Some(meta.gid())).map_err(making())?;
    new.set_len(meta.len()).map_err(making())?;
    let key = keys.key(version).expect("the version that new segments are written under is known");
    let cipher = UnitCipher { key, place: Place::Segment(name) };
    let (mut scratch, mut unit) = (Box::new(Scratch::new()), vec![0; UNIT]);
    for at in (0..meta.len()).step_by(UNIT) {
        let part = &mut unit[..UNIT.min((meta.len() - at) as usize)];
        old.read_exact_at(part, at).map_err(failed("read", path))?;
        // What was not written stays space that was not written, and takes its place on the disk.
        let written = if part.iter().all(|byte| *byte == 0) {
            new.write_at(part, at).map_err(making())?
        } else {
            let written = write_at(&NewFile(&new), cipher, part, at, &mut scratch);
            written.map_err(io::Error::from_raw_os_error).map_err(making())?
        };
        if written < part.len() {
            return Err(making()(io::ErrorKind::StorageFull.into()));
        }
    }
    new.sync_all().map_err(making())?;
    fs::rename(&staged, path).map_err(failed("replace", path))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}
