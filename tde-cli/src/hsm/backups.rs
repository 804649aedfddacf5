//! `tde hsm backup`: the whole HSM in one file, and back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hsm_engine::{BackupInfo, Timestamp, inspect_backup, restore_backup};
use serde::Serialize;

use super::options::{Result, StoreArgs, UserArgs};
use crate::credentials::pin_from;
use crate::output::Output;
use crate::{CliResult, Outcome};

const SUFFIX: &str = ".tdebackup";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Back the HSM up into a directory, as a crypto officer or appliance user; run it daily from a timer
    Create(CreateArgs),
    /// Check a backup with a user's PIN
    Verify(VerifyArgs),
    /// Make an HSM of a backup in a new directory: the same HSM, with the users, PINs and keys of that time
    Restore(RestoreArgs),
}

#[derive(clap::Args, Debug)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
    /// Directory of the backups
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Remove backups of this HSM in the directory that are older; the one just made is always kept
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u16).range(7..=379))]
    keep_days: Option<u16>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Opening {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Any user of the HSM at the time of the backup
    #[arg(long, value_name = "NAME", default_value = "user")]
    user: String,
    /// File with the user's PIN of that time
    #[arg(long, env = "TDE_PIN_FILE", value_name = "FILE")]
    pin_file: PathBuf,
    /// The HSM offers approved algorithms only; a backup of one kind is not restored as the other
    #[arg(long)]
    approved_only: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    opening: Opening,
}

#[derive(clap::Args, Debug)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    opening: Opening,
    /// New or empty directory for the HSM
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
}

#[derive(Serialize)]
struct View {
    backup: String,
    hsm: String,
    made: String,
    approved_only: bool,
    files: u64,
    /// Backups that were removed because they were too old.
    removed: Vec<String>,
}

impl View {
    fn new(file: &Path, info: &BackupInfo, removed: Vec<String>) -> Self {
        Self {
            backup: file.display().to_string(),
            hsm: info.hsm.to_string(),
            made: info.made.to_string(),
            approved_only: info.approved_only,
            files: info.files,
            removed,
        }
    }
}

pub(super) fn run(command: &Command, output: &Output) -> CliResult {
    match command {
        Command::Create(args) => create(args, output),
        Command::Verify(args) => {
            let view = open(&args.opening, None)?;
            output.show(&view, |v| {
                format!("{} is whole: HSM {}, {} files, made {}.", v.backup, v.hsm, v.files, v.made)
            })?;
            Ok(Outcome::Good)
        }
        Command::Restore(args) => {
            let view = open(&args.opening, Some(&args.store))?;
            let dir = args.store.display().to_string();
            output.show(&view, |v| format!("HSM {} of {} is in {dir}.", v.hsm, v.made))?;
            Ok(Outcome::Good)
        }
    }
}

fn open(opening: &Opening, dir: Option<&Path>) -> Result<View> {
    let pin = pin_from(&opening.pin_file)?;
    let info = restore_backup(&opening.file, dir, &opening.user, &pin, opening.approved_only)?;
    Ok(View::new(&opening.file, &info, Vec::new()))
}

fn create(args: &CreateArgs, output: &Output) -> CliResult {
    let session = args.user.login(&args.store.open()?, args.store.uri()?)?.0;
    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%.3fZ");
    let file = args.to.join(format!("{}-{now}{SUFFIX}", session.hsm_id()));
    let info = session.backup(&file)?;
    session.close()?;
    let removed = match args.keep_days {
        Some(days) => remove_old(&args.to, &file, &info, days)?,
        None => Vec::new(),
    };
    output.show(&View::new(&file, &info, removed), |v| {
        let gone: String = v.removed.iter().map(|f| format!("Removed {f}.\n")).collect();
        format!("{}: {} files.\n{gone}", v.backup, v.files)
    })?;
    Ok(Outcome::Good)
}

/// Removes backups of the same HSM that are older; never the one just made.
fn remove_old(dir: &Path, newest: &Path, info: &BackupInfo, days: u16) -> Result<Vec<String>> {
    let age = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
    let Some(oldest) = SystemTime::now().checked_sub(age).map(Timestamp::from) else { return Ok(Vec::new()) };
    let mut removed = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let ours = path.to_string_lossy().ends_with(SUFFIX) && path != newest;
        let same = |found: BackupInfo| found.hsm == info.hsm && found.made < oldest;
        if ours && inspect_backup(&path).is_ok_and(same) {
            fs::remove_file(&path)?;
            removed.push(path.display().to_string());
        }
    }
    removed.sort();
    Ok(removed)
}
