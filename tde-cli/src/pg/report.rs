//! The result of `tde pg check`, for people and for programs.

use serde::Serialize;

use super::coverage::Coverage;
use super::pages::{BadPage, PageCounts};
use super::settings::Judged;
use crate::keyring_cmd::Facts;
use crate::output::{facts, lines, size, table};

/// What a data directory holds and lacks.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) data_directory: String,
    pub(crate) version: String,
    pub(crate) system_identifier: Option<u64>,
    pub(crate) checksums: Option<bool>,
    pub(crate) running: bool,
    pub(crate) keyring: KeyringReport,
    pub(crate) tablespaces: Vec<TablespaceReport>,
    pub(crate) coverage: Coverage,
    pub(crate) settings_file: Option<String>,
    pub(crate) settings: Vec<Judged>,
    pub(crate) not_encrypted_in_this_release: &'static [&'static str],
    /// What is wrong; exit code 1 if there is anything.
    pub(crate) problems: Vec<String>,
    /// What should be known, but is not wrong.
    pub(crate) notes: Vec<String>,
}

#[derive(Serialize)]
pub(crate) struct KeyringReport {
    pub(crate) directory: String,
    /// Whether there is one.
    pub(crate) present: bool,
    /// Whether its keys could be used.
    pub(crate) unlocked: bool,
    pub(crate) facts: Option<Facts>,
}

#[derive(Serialize)]
pub(crate) struct TablespaceReport {
    pub(crate) oid: u32,
    pub(crate) name: Option<String>,
    pub(crate) location: Option<String>,
    /// As the keyring says; absent if it was not unlocked.
    pub(crate) state: Option<String>,
    /// As the pages say: empty, plain, encrypted or mixed.
    pub(crate) content: &'static str,
    pub(crate) files: u64,
    pub(crate) temporary_files: u64,
    pub(crate) bytes: u64,
    pub(crate) pages: PageCounts,
    /// The first of them; `pages.damaged` counts all.
    pub(crate) bad_pages: Vec<BadPage>,
    /// The first files with plain pages.
    pub(crate) plain_files: Vec<String>,
}

impl Report {
    pub(crate) fn human(&self) -> String {
        let mut text = self.head();
        text += &self.tablespace_table();
        text += &self.settings_table();
        text +=
            &format!("\nNot encrypted in this release: {}.\n", self.not_encrypted_in_this_release.join("; "));
        for (title, list) in [("Notes", &self.notes), ("Problems", &self.problems)] {
            if !list.is_empty() {
                text += &format!("\n{title}\n");
                for item in list {
                    text += &format!("  {item}\n");
                }
            }
        }
        if self.problems.is_empty() {
            text += "\nNo problems.\n";
        }
        text
    }

    fn head(&self) -> String {
        let yes = |on: Option<bool>| on.map_or("unknown", |on| if on { "on" } else { "off" });
        let keyring = match (self.keyring.present, self.keyring.unlocked) {
            (false, _) => "none".to_owned(),
            (true, true) => format!("{} (unlocked)", self.keyring.directory),
            (true, false) => format!("{} (not unlocked)", self.keyring.directory),
        };
        let identifier = self.system_identifier.map_or("unknown".to_owned(), |id| id.to_string());
        facts(&[
            ("data directory", self.data_directory.clone()),
            ("PostgreSQL", format!("{}, {}", self.version, if self.running { "running" } else { "stopped" })),
            ("system identifier", identifier),
            ("data checksums", yes(self.checksums).to_owned()),
            ("keyring", keyring),
        ])
    }

    fn tablespace_table(&self) -> String {
        let mut rows = table(&[
            "tablespace",
            "oid",
            "state",
            "content",
            "files",
            "size",
            "zero",
            "plain",
            "encrypted",
            "opened",
            "damaged",
        ]);
        for space in &self.tablespaces {
            rows.add_row([
                space.name.clone().unwrap_or_default(),
                space.oid.to_string(),
                space.state.clone().unwrap_or_default(),
                space.content.to_owned(),
                space.files.to_string(),
                size(space.bytes),
                space.pages.zero.to_string(),
                space.pages.plain.to_string(),
                space.pages.encrypted.to_string(),
                if self.keyring.unlocked { space.pages.opened.to_string() } else { "-".to_owned() },
                space.pages.damaged.to_string(),
            ]);
        }
        format!("\n{}", lines(&rows))
    }

    fn settings_table(&self) -> String {
        let mut rows = table(&["setting", "status", "value", "where", "advice"]);
        for setting in &self.settings {
            let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
            rows.add_row([
                setting.name.to_owned(),
                setting.status.name().to_owned(),
                or_empty(&setting.value),
                or_empty(&setting.source),
                or_empty(&setting.advice),
            ]);
        }
        format!("\n{}", lines(&rows))
    }
}
