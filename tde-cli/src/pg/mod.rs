//! `tde pg`: PostgreSQL data directories, read without a server.

mod accept_wal;
mod conf;
mod control;
mod coverage;
mod layout;
mod pages;
mod report;
mod settings;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use keyring::{AnyHsm, HsmUri, Keyring, KeyringError, Owner, TablespaceState, Unlocked};

use self::conf::Settings;
use self::control::Control;
use self::coverage::Coverage;
use self::layout::TablespaceDir;
use self::pages::{MAX_NAMED, Mode, Scan, ScopeKeys};
use self::report::{KeyringReport, Report, TablespaceReport};
use crate::credentials::{HsmArgs, KeyringArgs};
use crate::keyring_cmd::facts_of;
use crate::output::{Output, with_causes};
use crate::{CliResult, Outcome};

/// What stays in clear; the threat model in docs/ gives the reasons.
const NOT_ENCRYPTED: [&str; 3] = [
    "the write-ahead log (pg_wal) unless pg_tde.encrypt_wal is on",
    "temporary files (pgsql_tmp) and spilled logical decoding unless pg_tde.encrypt_temp_files is on",
    "transaction status, file names and sizes, the server log",
];

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what is encrypted on disk, what is not, and which settings are missing
    Check(CheckArgs),
    /// Store write-ahead log in clear anew under the cluster's key, so that a server accepts it: once, and on your word
    AcceptWal(accept_wal::AcceptWal),
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    /// The data directory; the server may be running
    #[arg(value_name = "DATADIR", required_unless_present = "pgdata")]
    data: Option<PathBuf>,
    /// The same, as PostgreSQL's own tools take it
    #[arg(short = 'D', long, env = "PGDATA", value_name = "DATADIR")]
    pgdata: Option<PathBuf>,
    #[command(flatten)]
    keyring: KeyringArgs,
    #[command(flatten)]
    hsm: HsmArgs,
    /// postgresql.conf, if it is not where the last start or Debian keeps it
    #[arg(long, value_name = "FILE")]
    config_file: Option<PathBuf>,
}

impl CheckArgs {
    /// The directory named without an option goes before PGDATA.
    fn directory(&self) -> &Path {
        let named = self.data.as_deref().or(self.pgdata.as_deref());
        named.expect("the command line needs one of the two")
    }
}

/// Not something this command can look at.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error("{} is not a PostgreSQL data directory: {reason}. Give the directory that SHOW data_directory names", .path.display())]
    NotADataDirectory { path: PathBuf, reason: String },
    #[error("cannot read {}", .path.display())]
    Unreadable { path: PathBuf, source: io::Error },
}

pub(crate) fn run(command: Command, output: &Output) -> CliResult {
    let args = match command {
        Command::Check(args) => args,
        Command::AcceptWal(args) => return accept_wal::run(&args, output),
    };
    let report = check(&args)?;
    output.show(&report, Report::human)?;
    Ok(if report.problems.is_empty() { Outcome::Good } else { Outcome::Problem })
}

/// The keyring, if it could be unlocked.
struct Keys {
    hsm: AnyHsm,
    keyring: Unlocked,
}

fn check(args: &CheckArgs) -> Result<Report, Box<dyn std::error::Error + Send + Sync>> {
    let data = args.directory();
    let version = major_version(data)?;
    let settings = Settings::of_cluster(data, args.config_file.as_deref(), &version);
    let (mut problems, mut notes) = (Vec::new(), settings.problems.clone());
    let control = match Control::read(data) {
        Ok(control) => Some(control),
        Err(error) => {
            problems.push(with_causes(&error));
            None
        }
    };
    let running = data.join("postmaster.pid").exists();
    let (keyring, keys) = open_keyring(args, &settings, control.as_ref(), &mut problems)?;
    let mode = Mode {
        blocks_per_file: control.map_or(131_072, |control| control.blocks_per_file),
        checksums: control.is_some_and(|control| control.checksums),
        running,
    };
    let catalog_version = control.map(|control| control.catalog_version);
    let mut tablespaces = Vec::new();
    for space in layout::tablespaces(data, &version, catalog_version)? {
        tablespaces.push(check_tablespace(&space, keys.as_ref(), mode, &mut problems)?);
    }
    let enforced = settings.get("pg_tde.enforce_encryption").is_some_and(|entry| is_on(&entry.value));
    let judged = settings::judge(&settings, control.as_ref(), data);
    let in_use = keyring.present || tablespaces.iter().any(|space| space.pages.encrypted > 0);
    let coverage = Coverage::of(&tablespaces, enforced);
    coverage.judge(in_use, &mut problems, &mut notes);
    let unset: Vec<_> = judged.iter().filter(|setting| !setting.status.is_good()).collect();
    if in_use {
        problems.extend(unset.iter().map(|setting| {
            let advice = setting.advice.as_deref().unwrap_or_default();
            format!("{} is {}: {advice}", setting.name, setting.status.name())
        }));
    } else if !unset.is_empty() {
        let names: Vec<_> = unset.iter().map(|setting| setting.name).collect();
        notes.push(format!("nothing is encrypted here; before that can be, set {}", names.join(", ")));
    }
    if settings.file.is_none() {
        notes.push("postgresql.conf was not found: give --config-file".to_owned());
    }
    if running {
        notes.push(
            "the server is running: pages that it holds in memory may be newer than the disk's".to_owned(),
        );
    }
    if keyring.present && !keyring.unlocked {
        notes.push("without --hsm and --pin-file pages are told by their form alone, not opened".to_owned());
    }
    if let Some(keys) = keys {
        keys.hsm.close()?;
    }
    Ok(Report {
        data_directory: data.display().to_string(),
        version,
        system_identifier: control.map(|control| control.system_identifier),
        checksums: control.map(|control| control.checksums),
        running,
        keyring,
        tablespaces,
        coverage,
        settings_file: settings.file.map(|file| file.display().to_string()),
        settings: judged,
        not_encrypted_in_this_release: &NOT_ENCRYPTED,
        problems,
        notes,
    })
}

/// `PG_VERSION`, such as "15".
fn major_version(data: &Path) -> Result<String, CheckError> {
    let not = |reason: String| CheckError::NotADataDirectory { path: data.into(), reason };
    if !data.is_dir() {
        return Err(not(if data.exists() { "it is a file" } else { "it does not exist" }.to_owned()));
    }
    let path = data.join("PG_VERSION");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(not("it has no PG_VERSION".to_owned()));
        }
        Err(source) => return Err(CheckError::Unreadable { path, source }),
    };
    let version = text.trim();
    if !version.bytes().all(|byte| byte.is_ascii_digit()) || version.is_empty() {
        return Err(not(format!("its PG_VERSION is \"{version}\"")));
    }
    if !data.join("global").is_dir() || !data.join("base").is_dir() {
        return Err(not("it has no base and global; is it a tablespace or a part of one?".to_owned()));
    }
    Ok(version.to_owned())
}

/// The keyring named on the command line, or by `pg_tde.keyring`, or the default below the data directory.
fn open_keyring(
    args: &CheckArgs,
    settings: &Settings,
    control: Option<&Control>,
    problems: &mut Vec<String>,
) -> Result<(KeyringReport, Option<Keys>), Box<dyn std::error::Error + Send + Sync>> {
    let configured = settings.get("pg_tde.keyring").map_or("pg_tde", |entry| entry.value.as_str());
    let directory = args.keyring.keyring.clone().unwrap_or_else(|| args.directory().join(configured));
    let shown = directory.display().to_string();
    let mut report = KeyringReport { directory: shown, present: false, unlocked: false, facts: None };
    let locked = match Keyring::open(&directory) {
        Ok(keyring) => keyring,
        Err(error @ KeyringError::NotAKeyring { .. }) => {
            // Lines without a root, or one that was asked for.
            if args.keyring.keyring.is_some() || directory.join("lines").exists() {
                problems.push(with_causes(&error));
            }
            return Ok((report, None));
        }
        Err(error) => {
            report.present = true;
            problems.push(with_causes(&error));
            return Ok((report, None));
        }
    };
    report.present = true;
    report.facts = Some((&locked.info()).into());
    if let Some(control) = control {
        let owner = Owner::PgCluster { system_identifier: control.system_identifier };
        if let Err(error) = locked.require_owner(owner) {
            problems.push(with_causes(&error));
        }
    }
    let Some(hsm) = login(args, settings)? else { return Ok((report, None)) };
    let unlocked = locked.inspect(&hsm).and_then(|keyring| Ok((facts_of(&keyring)?, keyring)));
    match unlocked {
        Ok((facts, keyring)) => {
            report.unlocked = true;
            report.facts = Some(facts);
            Ok((report, Some(Keys { hsm, keyring })))
        }
        Err(error) => {
            problems.push(with_causes(&error));
            hsm.close()?;
            Ok((report, None))
        }
    }
}

/// With a PIN file alone, the server's own HSM is used.
fn login(
    args: &CheckArgs,
    settings: &Settings,
) -> Result<Option<AnyHsm>, Box<dyn std::error::Error + Send + Sync>> {
    let mut hsm = args.hsm.clone();
    if hsm.hsm.is_none()
        && hsm.pin_file.is_some()
        && let Some(entry) = settings.get("pg_tde.hsm").filter(|entry| !entry.value.is_empty())
    {
        let mut uri: HsmUri = entry.value.parse()?;
        // The server's working directory is the data directory.
        if let HsmUri::Soft(uri) = &mut uri {
            uri.dir = args.directory().join(&uri.dir);
        }
        hsm.hsm = Some(uri);
    }
    hsm.login_if_given()
}

/// What PostgreSQL takes for true (utils/adt/bool.c), without its abbreviations.
fn is_on(value: &str) -> bool {
    ["on", "true", "yes", "1"].iter().any(|on| value.eq_ignore_ascii_case(on))
}

fn check_tablespace(
    space: &TablespaceDir,
    keys: Option<&Keys>,
    mode: Mode,
    problems: &mut Vec<String>,
) -> Result<TablespaceReport, Box<dyn std::error::Error + Send + Sync>> {
    let scope_keys = keys.and_then(|keys| keys_of(keys, space.oid, problems));
    let scan = pages::scan(space, scope_keys.as_ref(), mode)?;
    let scope = scope_keys.as_ref().map(|keys| &keys.scope);
    let state = keys.map(|_| scope.map_or(TablespaceState::Plain, keyring::Scope::state));
    let keyring_name = scope.and_then(|scope| match &scope.kind {
        keyring::ScopeKind::PgTablespace { name, .. } => Some(name.clone()),
        _ => None,
    });
    let name = space.name.map(str::to_owned).or(keyring_name);
    judge_tablespace(space, name.as_deref(), state, &scan, problems);
    Ok(TablespaceReport {
        oid: space.oid,
        name,
        location: space.location.as_ref().map(|path| path.display().to_string()),
        state: state.map(|state| state.to_string()),
        content: scan.pages.content(),
        files: scan.files,
        temporary_files: scan.temporary_files,
        bytes: scan.bytes,
        pages: scan.pages,
        bad_pages: scan.bad,
        plain_files: scan.plain_files,
    })
}

fn keys_of(keys: &Keys, oid: u32, problems: &mut Vec<String>) -> Option<ScopeKeys> {
    match keys.keyring.find_pg_tablespace(oid) {
        Ok(scope) => {
            let found = ScopeKeys::unwrap_all(&keys.keyring, scope?, &keys.hsm);
            problems.extend(found.problems.iter().map(|problem| with_causes(problem)));
            Some(found)
        }
        Err(error) => {
            let text = with_causes(&error);
            // The keyring as a whole is what is wrong: once is enough.
            if !problems.contains(&text) {
                problems.push(text);
            }
            None
        }
    }
}

fn judge_tablespace(
    space: &TablespaceDir,
    name: Option<&str>,
    state: Option<TablespaceState>,
    scan: &Scan,
    problems: &mut Vec<String>,
) {
    let what = match name {
        Some(name) => format!("tablespace {name} ({})", space.oid),
        None => format!("tablespace {}", space.oid),
    };
    if space.location.is_some() && !space.path.is_dir() {
        problems.push(format!("{what}: {} is missing", space.path.display()));
    }
    let pages = &scan.pages;
    let where_plain = || {
        let (first, count) = (&scan.plain_files[0], scan.plain_files.len());
        if count > 1 { format!("{first} and {} other files", count - 1) } else { first.clone() }
    };
    match state {
        Some(TablespaceState::Encrypted | TablespaceState::Rotating) if pages.plain > 0 => {
            problems.push(format!(
                "{what} is encrypted but holds {} plain pages, in {}",
                pages.plain,
                where_plain()
            ));
        }
        Some(TablespaceState::Plain) if pages.encrypted > 0 => {
            let encrypted = pages.encrypted;
            problems
                .push(format!("{what} holds {encrypted} encrypted pages but the keyring says it is plain"));
        }
        None if pages.content() == "mixed" => {
            problems.push(format!(
                "{what} holds both plain and encrypted pages; plain ones in {}",
                where_plain()
            ));
        }
        _ => {}
    }
    for bad in &scan.bad {
        problems.push(format!("{} block {}: {}", bad.file, bad.block, bad.reason));
    }
    if pages.damaged > MAX_NAMED as u64 {
        problems
            .push(format!("{what}: {} damaged pages in all, the first {MAX_NAMED} are named", pages.damaged));
    }
}
