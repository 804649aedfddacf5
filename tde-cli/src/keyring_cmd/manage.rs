//! Making a keyring, wrapping its keys anew, and bringing a database's keys to another one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use keyring::{HsmUri, Keyring, LineNumber, MasterKey as _, Owner, Unlocked};
use serde::Serialize;

use crate::credentials::{HsmArgs, KeyringArgs};
use crate::output::{Output, facts};
use crate::{CliResult, Outcome};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Longer than any export.
const MAX_EXPORT: u64 = 4 << 20;

#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    keyring: KeyringArgs,
    #[command(flatten)]
    hsm: HsmArgs,
}

#[derive(Serialize)]
struct Created {
    directory: String,
    keyring: String,
    master_key: String,
}

pub(super) fn create(args: &CreateArgs, output: &Output) -> CliResult {
    let directory = args.keyring.directory()?;
    let hsm = args.hsm.login()?;
    let info = Keyring::create(directory, Owner::Files, &hsm)?.info()?;
    hsm.close()?;
    let created = Created {
        directory: directory.display().to_string(),
        keyring: info.keyring.to_string(),
        master_key: info.master_key_label,
    };
    output.show(&created, |made| {
        format!("{}: keyring {} made under master key \"{}\".", made.directory, made.keyring, made.master_key)
    })?;
    Ok(Outcome::Good)
}

#[derive(Args, Debug)]
pub(crate) struct RewrapArgs {
    /// Give the master key a new version first
    #[arg(long)]
    new_version: bool,
    #[command(flatten)]
    keyring: KeyringArgs,
    #[command(flatten)]
    hsm: HsmArgs,
}

#[derive(Serialize)]
struct Rewrapped {
    directory: String,
    /// The oldest master-key version that was met.
    from: Option<u32>,
    to: u32,
    rewrapped: u64,
    already: u64,
    milliseconds: u128,
}

pub(super) fn rewrap(args: &RewrapArgs, output: &Output) -> CliResult {
    let directory = args.keyring.directory()?;
    let mut hsm = args.hsm.login()?;
    let keyring = Keyring::open(directory)?;
    // The keyring of a server is the server's: replicas and its own memory must hear of the change.
    keyring.require_owner(Owner::Files)?;
    let keyring = keyring.unlock(&hsm)?;
    let start = Instant::now();
    if args.new_version {
        hsm.generate_version()?;
    }
    let done = keyring.rewrap_all(&hsm, |_| ControlFlow::Continue(()))?;
    let milliseconds = start.elapsed().as_millis();
    hsm.close()?;
    let directory = directory.display().to_string();
    let (from, to) = (done.from, done.to);
    let (rewrapped, already) = (done.rewrapped, done.already);
    let result = Rewrapped { directory, from, to, rewrapped, already, milliseconds };
    output.show(&result, |done| {
        format!(
            "{}: keys of {} files wrapped anew under master-key version {} in {} ms, {} were already. No database was \
             touched.",
            done.directory, done.rewrapped, done.to, done.milliseconds, done.already
        )
    })?;
    Ok(Outcome::Good)
}

#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The database file, its id as 24 hex digits, or the number of its line in the keyring
    #[arg(value_name = "DATABASE|ID|LINE")]
    what: String,
    /// File to write, which must not exist; the keys in it stay wrapped by the HSM
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    keyring: KeyringArgs,
    #[command(flatten)]
    hsm: HsmArgs,
}

#[derive(Serialize)]
struct Exported {
    scope: String,
    versions: usize,
    output: String,
}

pub(super) fn export(args: &ExportArgs, output: &Output) -> CliResult {
    let hsm = args.hsm.login()?;
    let keyring = Keyring::open(args.keyring.directory()?)?.inspect(&hsm)?;
    let line = find(&keyring, args.keyring.directory()?, &args.what)?;
    let (scope, bytes) = (keyring.scope(line)?, keyring.export(line)?);
    write_new(&args.output, &bytes)?;
    hsm.close()?;
    let exported = Exported {
        scope: scope.to_string(),
        versions: scope.versions.len(),
        output: args.output.display().to_string(),
    };
    output.show(&exported, |done| {
        format!(
            "{} ({} key versions) written to {}.\nTake it in with `tde keyring import {}`, where an HSM with the same master key \
             is at hand (--from-hsm).",
            done.scope, done.versions, done.output, done.output
        )
    })?;
    Ok(Outcome::Good)
}

#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// What `tde keyring export` wrote
    file: PathBuf,
    /// The HSM that the export comes from, if it is another one
    #[arg(long, value_name = "URI")]
    from_hsm: Option<HsmUri>,
    /// File with the PIN of that HSM's user
    #[arg(long, value_name = "FILE", requires = "from_hsm")]
    from_pin_file: Option<PathBuf>,
    #[command(flatten)]
    keyring: KeyringArgs,
    #[command(flatten)]
    hsm: HsmArgs,
}

#[derive(Serialize)]
struct Imported {
    directory: String,
    scope: String,
    new_versions: Vec<u32>,
}

pub(super) fn import(args: &ImportArgs, output: &Output) -> CliResult {
    let directory = args.keyring.directory()?;
    let bytes = read_bounded(&args.file)?;
    let ours = args.hsm.login()?;
    let theirs = match &args.from_hsm {
        Some(uri) => {
            let from =
                HsmArgs { hsm: Some(uri.clone()), pin_file: args.from_pin_file.clone(), pin_command: None };
            Some(from.login()?)
        }
        None => None,
    };
    let keyring = Keyring::open(directory)?.unlock(&ours)?;
    let adopted = keyring.adopt(&bytes, theirs.as_ref().unwrap_or(&ours), &ours)?;
    if let Some(theirs) = theirs {
        theirs.close()?;
    }
    ours.close()?;
    let imported = Imported {
        directory: directory.display().to_string(),
        scope: adopted.scope.to_string(),
        new_versions: adopted.new_versions.iter().map(|version| version.0).collect(),
    };
    output.show(&imported, |done| {
        let versions: Vec<_> = done.new_versions.iter().map(u32::to_string).collect();
        let what = match versions.len() {
            0 => "nothing new".to_owned(),
            1 => format!("key version {}", versions[0]),
            _ => format!("key versions {}", versions.join(", ")),
        };
        facts(&[("keyring", done.directory.clone()), ("scope", done.scope.clone()), ("taken in", what)])
    })?;
    Ok(Outcome::Good)
}

/// What cannot be exported.
#[derive(Debug, thiserror::Error)]
enum NoSuch {
    #[error("{0} is neither a database file nor the id of one (24 hex digits) nor a line number")]
    Thing(String),
    #[error("{file} is not an encrypted database")]
    NotEncrypted { file: PathBuf },
    #[error("{dir} has no keys of file {id}")]
    File { dir: PathBuf, id: String },
    #[error("{file} is longer than any export")]
    TooLong { file: PathBuf },
}

fn find(keyring: &Unlocked, directory: &Path, what: &str) -> Result<LineNumber> {
    if let Ok(number) = what.parse() {
        return Ok(LineNumber(number));
    }
    let mut id = [0; 12];
    if hex::decode_to_slice(what, &mut id).is_err() {
        id = file_id(Path::new(what))?;
    }
    let found = keyring.find_sqlite_file(&id)?;
    let none = || NoSuch::File { dir: directory.into(), id: hex::encode(id) };
    Ok(found.ok_or_else(none)?.line)
}

fn file_id(path: &Path) -> Result<[u8; 12]> {
    // Not waiting for whoever may be at the other end of a pipe.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut file = match File::options().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(NoSuch::Thing(path.display().to_string()).into());
        }
        opened => opened?,
    };
    let mut head = [0; 16];
    let ours = file.read_exact(&mut head).is_ok() && head.starts_with(b"TDE");
    let mut id = [0; 12];
    id.copy_from_slice(&head[4..]);
    if ours { Ok(id) } else { Err(NoSuch::NotEncrypted { file: path.into() }.into()) }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_EXPORT + 1).read_to_end(&mut bytes))
        .map_err(|source| FileError { path: path.into(), source })?;
    if bytes.len() as u64 > MAX_EXPORT {
        return Err(NoSuch::TooLong { file: path.into() }.into());
    }
    Ok(bytes)
}

#[derive(Debug, thiserror::Error)]
#[error("{path}")]
struct FileError {
    path: PathBuf,
    source: std::io::Error,
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| FileError { path: path.into(), source };
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    Ok(())
}
