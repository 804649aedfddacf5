//! `tde keyring`: what is in a keyring, whether it is whole, and the way back after a restore.

mod manage;

use std::path::Path;

use clap::Subcommand;
use keyring::{AnyHsm, DekState, Keyring, KeyringError, KeyringInfo, Owner, Scope, ScopeKind, Unlocked};
use serde::Serialize;

use crate::credentials::{HsmArgs, KeyringArgs};
use crate::output::{Output, facts, lines, table, time, with_causes};
use crate::{CliResult, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an empty keyring for SQLite databases
    Create(manage::CreateArgs),
    /// Wrap every data key anew under the newest master-key version; no database is touched
    Rewrap(manage::RewrapArgs),
    /// Write a database's keys, wrapped, to a file that another keyring can take in
    Export(manage::ExportArgs),
    /// Take in a database's keys that another keyring exported
    Import(Box<manage::ImportArgs>),
    /// Show a keyring's keys; without --hsm only what is not sealed
    List {
        #[command(flatten)]
        keyring: KeyringArgs,
        #[command(flatten)]
        hsm: HsmArgs,
    },
    /// Check every seal, unwrap every data key, compare the generation with the HSM's
    Verify {
        #[command(flatten)]
        keyring: KeyringArgs,
        #[command(flatten)]
        hsm: HsmArgs,
    },
    /// After a restore: make the HSM accept a keyring that is older than it remembers, or that is gone for good
    AcceptRestore {
        #[command(flatten)]
        keyring: KeyringArgs,
        #[command(flatten)]
        hsm: HsmArgs,
    },
    /// After pg_upgrade: make the old cluster's keyring the new cluster's
    MoveToCluster {
        #[command(flatten)]
        keyring: KeyringArgs,
        #[command(flatten)]
        hsm: HsmArgs,
        /// The new cluster's "Database system identifier", as pg_controldata shows it
        #[arg(long, value_name = "NUMBER")]
        system_identifier: u64,
    },
}

pub(crate) fn run(command: Command, output: &Output) -> CliResult {
    match command {
        Command::Create(args) => manage::create(&args, output),
        Command::Rewrap(args) => manage::rewrap(&args, output),
        Command::Export(args) => manage::export(&args, output),
        Command::Import(args) => manage::import(&args, output),
        Command::List { keyring, hsm } => list(&keyring, &hsm, output),
        Command::Verify { keyring, hsm } => verify(&keyring, &hsm, output),
        Command::AcceptRestore { keyring, hsm } => accept_restore(&keyring, &hsm, output),
        Command::MoveToCluster { keyring, hsm, system_identifier } => {
            move_to_cluster(&keyring, &hsm, system_identifier, output)
        }
    }
}

#[derive(Serialize)]
struct Listing {
    directory: String,
    #[serde(flatten)]
    facts: Facts,
    /// Absent without the HSM: it is sealed.
    scopes: Option<Vec<ScopeRow>>,
}

/// The root's facts.
#[derive(Serialize)]
pub(crate) struct Facts {
    keyring: String,
    owner: String,
    system_identifier: Option<u64>,
    created: String,
    master_key: String,
    master_key_label: String,
    master_key_version: u32,
    generation: u64,
    lines: u64,
}

impl From<&KeyringInfo> for Facts {
    fn from(info: &KeyringInfo) -> Self {
        let (owner, system_identifier) = match info.owner {
            Owner::PgCluster { system_identifier } => ("postgresql", Some(system_identifier)),
            Owner::Files => ("files", None),
        };
        Self {
            keyring: info.keyring.to_string(),
            owner: owner.into(),
            system_identifier,
            created: time(info.created),
            master_key: info.master_key.to_string(),
            master_key_label: info.master_key_label.clone(),
            master_key_version: info.master_key_version,
            generation: info.generation,
            lines: info.lines,
        }
    }
}

impl Facts {
    fn table(&self, directory: &str) -> String {
        let owner = match self.system_identifier {
            Some(id) => format!("PostgreSQL cluster {id}"),
            None => "single files".to_owned(),
        };
        let master =
            format!("{} ({}), version {}", self.master_key_label, self.master_key, self.master_key_version);
        facts(&[
            ("directory", directory.to_owned()),
            ("keyring", self.keyring.clone()),
            ("owner", owner),
            ("created", self.created.clone()),
            ("master key", master),
            ("generation", self.generation.to_string()),
            ("lines", self.lines.to_string()),
        ])
    }
}

#[derive(Serialize)]
struct ScopeRow {
    line: u64,
    kind: &'static str,
    name: String,
    oid: Option<u32>,
    cipher: String,
    state: String,
    created: String,
    record_version: u64,
    keys: Vec<KeyRow>,
}

#[derive(Serialize)]
struct KeyRow {
    version: u32,
    state: String,
    master_key_version: Option<u32>,
    created: String,
    /// When a planned destruction may happen, or when it did.
    date: Option<String>,
}

impl From<&Scope> for ScopeRow {
    fn from(scope: &Scope) -> Self {
        let (kind, name, oid) = match &scope.kind {
            ScopeKind::PgTablespace { oid, name } => ("tablespace", name.clone(), Some(*oid)),
            ScopeKind::SqliteFile { file_id } => ("sqlite", hex::encode(file_id), None),
            ScopeKind::PgWal => ("wal", String::new(), None),
            other => ("other", other.to_string(), None),
        };
        let keys = scope.versions.iter().map(|key| KeyRow {
            version: key.version.0,
            state: key.state.to_string(),
            master_key_version: key.master_version(),
            created: time(key.created),
            date: match key.state {
                DekState::PendingDestruction { not_before } => Some(time(not_before)),
                DekState::Destroyed { at } => Some(time(at)),
                _ => None,
            },
        });
        Self {
            line: scope.line.0,
            kind,
            name,
            oid,
            cipher: scope.cipher.to_string(),
            // States are of tablespaces; a file is in use from the first.
            state: if kind == "sqlite" { "in-use".into() } else { scope.state().to_string() },
            created: time(scope.created),
            record_version: scope.record_version,
            keys: keys.collect(),
        }
    }
}

impl Listing {
    fn human(&self) -> String {
        let head = self.facts.table(&self.directory);
        let Some(scopes) = &self.scopes else {
            return format!(
                "{head}\nWhat the keys belong to is sealed: give --hsm and --pin-file to see it.\n"
            );
        };
        if scopes.is_empty() {
            return format!("{head}\nNo keys yet.\n");
        }
        let header =
            ["line", "kind", "name", "oid", "cipher", "state", "key", "key state", "master", "created"];
        let mut rows = table(&header);
        for scope in scopes {
            for (index, key) in scope.keys.iter().enumerate() {
                let first = |text: String| if index == 0 { text } else { String::new() };
                let state = match &key.date {
                    Some(date) => format!("{} {date}", key.state),
                    None => key.state.clone(),
                };
                rows.add_row([
                    first(scope.line.to_string()),
                    first(scope.kind.to_owned()),
                    first(scope.name.clone()),
                    first(scope.oid.map(|oid| oid.to_string()).unwrap_or_default()),
                    first(scope.cipher.clone()),
                    first(scope.state.clone()),
                    key.version.to_string(),
                    state,
                    key.master_key_version.map(|version| version.to_string()).unwrap_or_default(),
                    key.created.clone(),
                ]);
            }
        }
        format!("{head}\n{}", lines(&rows))
    }
}

fn list(args: &KeyringArgs, hsm: &HsmArgs, output: &Output) -> CliResult {
    let directory = args.directory()?;
    let keyring = Keyring::open(directory)?;
    let mut listing = Listing {
        directory: directory.display().to_string(),
        facts: Facts::from(&keyring.info()),
        scopes: None,
    };
    if let Some(hsm) = hsm.login_if_given()? {
        let unlocked = keyring.inspect(&hsm)?;
        listing.scopes = Some(unlocked.scopes()?.iter().map(ScopeRow::from).collect());
        hsm.close()?;
    }
    output.show(&listing, Listing::human)?;
    Ok(Outcome::Good)
}

#[derive(Serialize)]
struct Verification {
    directory: String,
    #[serde(flatten)]
    facts: Option<Facts>,
    records: u64,
    data_keys: u64,
    destroyed_keys: u64,
    problems: Vec<String>,
}

impl Verification {
    fn human(&self) -> String {
        let mut text = match &self.facts {
            Some(facts) => facts.table(&self.directory),
            None => format!("{}\n", self.directory),
        };
        text += &format!(
            "\n{} records have right seals, {} data keys unwrap and match, {} were destroyed on purpose.\n",
            self.records, self.data_keys, self.destroyed_keys
        );
        if self.problems.is_empty() {
            return text + "No problems.\n";
        }
        text += &format!("\n{} problems:\n", self.problems.len());
        for problem in &self.problems {
            text += &format!("  {problem}\n");
        }
        text
    }
}

fn verify(args: &KeyringArgs, hsm: &HsmArgs, output: &Output) -> CliResult {
    let directory = args.directory()?;
    let hsm = hsm.login()?;
    let report = Keyring::open(directory)?.inspect(&hsm)?.verify(&hsm);
    let verification = Verification {
        directory: directory.display().to_string(),
        facts: report.info.as_ref().map(Facts::from),
        records: report.scopes,
        data_keys: report.deks,
        destroyed_keys: report.destroyed,
        problems: report.problems.iter().map(|problem| with_causes(problem)).collect(),
    };
    hsm.close()?;
    output.show(&verification, Verification::human)?;
    Ok(if verification.problems.is_empty() { Outcome::Good } else { Outcome::Problem })
}

#[derive(Serialize)]
struct Accepted {
    directory: String,
    generation: u64,
    remembered_before: Option<u64>,
}

fn accept_restore(args: &KeyringArgs, hsm: &HsmArgs, output: &Output) -> CliResult {
    let directory = args.directory()?;
    let hsm = hsm.login()?;
    let keyring = match Keyring::open(directory) {
        Err(error @ KeyringError::NotAKeyring { .. }) => return accept_loss(directory, hsm, error, output),
        opened => opened?,
    };
    let accepted = keyring.accept_restore(&hsm)?;
    hsm.close()?;
    let accepted = Accepted {
        directory: directory.display().to_string(),
        generation: accepted.generation,
        remembered_before: accepted.remembered,
    };
    output.show(&accepted, |accepted| {
        let directory = &accepted.directory;
        match accepted.remembered_before {
            Some(before) if before > accepted.generation => format!(
                "{directory}: generation {} accepted; the HSM remembered {before}. Its audit log has it.",
                accepted.generation
            ),
            _ => format!("{directory}: generation {} needed no acceptance.", accepted.generation),
        }
    })?;
    Ok(Outcome::Good)
}

#[derive(Serialize)]
struct Moved {
    directory: String,
    system_identifier_before: u64,
    system_identifier: u64,
}

fn move_to_cluster(args: &KeyringArgs, hsm: &HsmArgs, system_identifier: u64, output: &Output) -> CliResult {
    let directory = args.directory()?;
    let hsm = hsm.login()?;
    let before = Keyring::open(directory)?.unlock(&hsm)?.move_to_cluster(system_identifier, &hsm)?;
    hsm.close()?;
    let directory = directory.display().to_string();
    let moved = Moved { directory, system_identifier_before: before, system_identifier };
    output.show(&moved, |moved| {
        let Moved { directory, system_identifier_before: before, system_identifier: now } = moved;
        format!("{directory}: belonged to PostgreSQL cluster {before}, belongs to {now} now.")
    })?;
    Ok(Outcome::Good)
}

#[derive(Serialize)]
struct Forgotten {
    directory: String,
    forgotten: Vec<ForgottenKeyring>,
}

#[derive(Serialize)]
struct ForgottenKeyring {
    keyring: String,
    generation: u64,
}

/// There is no keyring, and the HSM may still expect one: as after an `initdb` in the place of another cluster.
fn accept_loss(directory: &Path, hsm: AnyHsm, error: KeyringError, output: &Output) -> CliResult {
    let forgotten = match Keyring::accept_loss(directory, &hsm) {
        Ok(forgotten) if !forgotten.is_empty() => forgotten,
        // What is wrong is what was found first.
        Ok(_) | Err(KeyringError::AlreadyExists { .. }) => return Err(error.into()),
        Err(error) => return Err(error.into()),
    };
    hsm.close()?;
    let keyring = |(keyring, generation): (keyring::KeyringId, u64)| ForgottenKeyring {
        keyring: keyring.to_string(),
        generation,
    };
    let forgotten = Forgotten {
        directory: directory.display().to_string(),
        forgotten: forgotten.into_iter().map(keyring).collect(),
    };
    output.show(&forgotten, |forgotten| {
        let directory = &forgotten.directory;
        let line = |one: &ForgottenKeyring| {
            format!(
                "{directory}: there is no keyring. The HSM expected {} (generation {}) and forgot it; its audit \
                 log has it.\n",
                one.keyring, one.generation
            )
        };
        forgotten.forgotten.iter().map(line).collect()
    })?;
    Ok(Outcome::Good)
}

/// Used by `tde pg check`, which opens a keyring by the way.
pub(crate) fn facts_of(keyring: &Unlocked) -> keyring::Result<Facts> {
    Ok(Facts::from(&keyring.info()?))
}
