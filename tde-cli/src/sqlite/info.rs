//! `tde sqlite info`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use serde::Serialize;
use sqlite_vfs::keys::FileKeys;
use sqlite_vfs::offline::{self, ClearFacts, DatabaseFile, Identified};

use super::sidecar::{Journal, Sidecars};
use super::{Result, Target, neither};
use crate::output::{Output, facts, lines, size, table, time};
use crate::{CliResult, Outcome};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    target: Target,
}

#[derive(Serialize)]
struct Info {
    file: String,
    encrypted: bool,
    bytes: u64,
    page_size: u32,
    pages: u64,
    free_pages: u32,
    reserved_bytes: u8,
    journal_mode: &'static str,
    change_counter: u32,
    wal_bytes: Option<u64>,
    journal: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file_id: Option<String>,
    /// Pages in the database file by the key version in their trailers; 0 is a page that was never written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pages_by_key_version: Option<BTreeMap<u32, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Keys>,
}

#[derive(Serialize)]
struct Keys {
    keyring: String,
    line: u64,
    hsm: Option<String>,
    active: u32,
    versions: Vec<Version>,
}

#[derive(Serialize)]
struct Version {
    version: u32,
    state: String,
    master_key_version: Option<u32>,
    created: String,
}

pub(super) fn run(args: &Args, output: &Output) -> CliResult {
    let path = args.target.path()?;
    let info = match offline::identify(&path)? {
        Identified::Plaintext(clear) => facts_of(&path, clear)?,
        Identified::Encrypted(file) => {
            let mut info = facts_of(&path, file.facts())?;
            info.encrypted = true;
            info.file_id = Some(file.id().to_string());
            info.pages_by_key_version = Some(file.versions(|_| ControlFlow::Continue(()))?);
            if args.target.names_keys() {
                info.keys = Some(keys_of(&args.target, &path, &file)?);
            }
            info
        }
        other => return Err(neither(&path, &other).into()),
    };
    output.show(&info, Info::human)?;
    Ok(Outcome::Good)
}

fn facts_of(path: &Path, clear: ClearFacts) -> Result<Info> {
    let bytes = std::fs::metadata(path)?.len();
    let sidecars = Sidecars::of(path)?;
    Ok(Info {
        file: path.display().to_string(),
        encrypted: false,
        bytes,
        page_size: clear.page_size,
        pages: bytes / u64::from(clear.page_size),
        free_pages: clear.free_pages,
        reserved_bytes: clear.reserved,
        journal_mode: if clear.wal_mode { "wal" } else { "rollback journal" },
        change_counter: clear.change_counter,
        wal_bytes: sidecars.wal,
        journal: sidecars.journal.map(|journal| match journal {
            Journal::Done => "finished",
            Journal::Hot => "of a transaction under way or cut short",
        }),
        file_id: None,
        pages_by_key_version: None,
        keys: None,
    })
}

fn keys_of(target: &Target, path: &Path, file: &DatabaseFile) -> Result<Keys> {
    let keys = target.login()?.keys(path, file)?;
    let scope = keys.scope()?;
    let versions = scope.versions.iter().map(|version| Version {
        version: version.version.0,
        state: version.state.to_string(),
        master_key_version: version.master_version(),
        created: time(version.created),
    });
    Ok(Keys {
        keyring: keyring_of(&keys),
        line: scope.line.0,
        hsm: keys.hsm(),
        active: keys.active_version(),
        versions: versions.collect(),
    })
}

fn keyring_of(keys: &FileKeys) -> String {
    keys.keyring_dir().map(|dir| dir.display().to_string()).unwrap_or_default()
}

impl Info {
    fn human(&self) -> String {
        let mut rows = vec![
            ("file", self.file.clone()),
            ("encrypted", if self.encrypted { "yes, AES-256-GCM-SIV" } else { "no" }.to_owned()),
            ("size", format!("{} ({} pages of {} bytes)", size(self.bytes), self.pages, self.page_size)),
            ("free pages", self.free_pages.to_string()),
            ("journal mode", self.journal_mode.to_owned()),
        ];
        if let Some(bytes) = self.wal_bytes {
            rows.push(("wal", size(bytes)));
        }
        if let Some(journal) = self.journal {
            rows.push(("journal", journal.to_owned()));
        }
        if let Some(id) = &self.file_id {
            rows.push(("file id", id.clone()));
        }
        if let Some(pages) = &self.pages_by_key_version {
            let all: Vec<_> = pages.iter().map(|(version, pages)| pages_under(*version, *pages)).collect();
            rows.push(("keys in use", all.join(", ")));
        }
        let Some(keys) = &self.keys else {
            return facts(&rows);
        };
        rows.push(("keyring", format!("{} line {}", keys.keyring, keys.line)));
        rows.extend(keys.hsm.iter().map(|hsm| ("hsm", hsm.clone())));
        let mut versions = table(&["key", "state", "master key", "created", "pages"]);
        for version in &keys.versions {
            let pages = self.pages_by_key_version.as_ref().and_then(|pages| pages.get(&version.version));
            versions.add_row([
                version.version.to_string(),
                version.state.clone(),
                version.master_key_version.map(|version| version.to_string()).unwrap_or_default(),
                version.created.clone(),
                pages.copied().unwrap_or_default().to_string(),
            ]);
        }
        format!("{}\n{}", facts(&rows), lines(&versions))
    }
}

/// `12 pages under version 3`.
pub(super) fn pages_under(version: u32, pages: u64) -> String {
    let pages = if pages == 1 { "1 page".to_owned() } else { format!("{pages} pages") };
    if version == 0 { format!("{pages} never written") } else { format!("{pages} under version {version}") }
}
