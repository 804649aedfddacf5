//! Whether the settings are those that encryption needs.

use std::path::Path;

use keyring::HsmUri;
use serde::Serialize;

use super::conf::{Entry, Settings};
use super::control::Control;

/// How a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Ok,
    /// Not as it should be, but pg_tde sees to it at start.
    Forced,
    Missing,
    Wrong,
}

impl Status {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Forced => "forced",
            Self::Missing => "missing",
            Self::Wrong => "wrong",
        }
    }

    pub(crate) fn is_good(self) -> bool {
        matches!(self, Self::Ok | Self::Forced)
    }
}

/// One setting, judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Judged {
    pub(crate) name: &'static str,
    pub(crate) value: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) status: Status,
    pub(crate) advice: Option<String>,
}

impl Judged {
    fn new(name: &'static str, entry: Option<&Entry>, status: Status, advice: Option<&str>) -> Self {
        Self {
            name,
            value: entry.map(|entry| entry.value.clone()),
            source: entry.map(|entry| entry.source.clone()),
            status,
            advice: advice.map(str::to_owned),
        }
    }
}

/// All that encryption needs.
pub(crate) fn judge(settings: &Settings, control: Option<&Control>, data: &Path) -> Vec<Judged> {
    let preloaded = is_preloaded(settings);
    vec![
        preload(settings, preloaded),
        hsm(settings, data),
        pin_command(settings),
        full_page_writes(settings, preloaded),
        hint_logging(settings, control, preloaded),
    ]
}

fn is_preloaded(settings: &Settings) -> bool {
    let libraries = settings.get_list("shared_preload_libraries");
    libraries.iter().any(|library| {
        let file = library.rsplit('/').next().unwrap_or(library);
        file.strip_suffix(".so").unwrap_or(file) == "pg_tde"
    })
}

fn preload(settings: &Settings, preloaded: bool) -> Judged {
    let name = "shared_preload_libraries";
    let entry = settings.get(name);
    if preloaded {
        return Judged::new(name, entry, Status::Ok, None);
    }
    let advice = "add pg_tde to the list and restart the server";
    Judged::new(name, entry, Status::Missing, Some(advice))
}

fn hsm(settings: &Settings, data: &Path) -> Judged {
    let name = "pg_tde.hsm";
    let Some(entry) = settings.get(name).filter(|entry| !entry.value.is_empty()) else {
        let advice = "name the HSM, such as pg_tde.hsm = 'soft:/var/lib/tde/hsm'";
        return Judged::new(name, None, Status::Missing, Some(advice));
    };
    match entry.value.parse::<HsmUri>() {
        Err(error) => Judged::new(name, Some(entry), Status::Wrong, Some(&error.to_string())),
        Ok(uri) if uri.store().is_some_and(|store| is_inside(&data.join(store), data)) => {
            let advice = "the HSM's store is inside the data directory, so every backup would hold the keys \
                          beside the data: move it elsewhere";
            Judged::new(name, Some(entry), Status::Wrong, Some(advice))
        }
        Ok(_) => Judged::new(name, Some(entry), Status::Ok, None),
    }
}

fn is_inside(path: &Path, data: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    canonical(path).starts_with(canonical(data))
}

fn pin_command(settings: &Settings) -> Judged {
    let name = "pg_tde.pin_command";
    let entry = settings.get(name).filter(|entry| !entry.value.is_empty());
    let mut judged = match entry {
        Some(entry) => Judged::new(name, Some(entry), Status::Ok, None),
        None => {
            let advice =
                "name a command that prints the PIN, such as pg_tde.pin_command = 'cat /etc/tde/pin'";
            Judged::new(name, None, Status::Missing, Some(advice))
        }
    };
    // A command may hold a secret, whatever the manual says.
    judged.value = judged.value.map(|_| "(set)".to_owned());
    judged
}

fn full_page_writes(settings: &Settings, preloaded: bool) -> Judged {
    let name = "full_page_writes";
    let entry = settings.get(name);
    if settings.get_bool(name).unwrap_or(true) {
        return Judged::new(name, entry, Status::Ok, None);
    }
    forced(name, entry, preloaded)
}

fn hint_logging(settings: &Settings, control: Option<&Control>, preloaded: bool) -> Judged {
    if control.is_some_and(|control| control.checksums) {
        let mut judged = Judged::new("wal_log_hints", None, Status::Ok, None);
        judged.advice = Some("data checksums are on, which does the same".into());
        return judged;
    }
    let name = "wal_log_hints";
    let entry = settings.get(name);
    if settings.get_bool(name).unwrap_or(false) {
        return Judged::new(name, entry, Status::Ok, None);
    }
    forced(name, entry, preloaded)
}

fn forced(name: &'static str, entry: Option<&Entry>, preloaded: bool) -> Judged {
    if preloaded {
        return Judged::new(name, entry, Status::Forced, Some("pg_tde forces it on at start"));
    }
    let advice = "switch it on: a torn write of an encrypted page loses the whole page";
    Judged::new(name, entry, Status::Missing, Some(advice))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn judged(conf: &str) -> Vec<(&'static str, Status)> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("postgresql.conf"), conf).unwrap();
        let settings = Settings::of_cluster(dir.path(), None, "15");
        let control = Control {
            system_identifier: 1,
            catalog_version: 1,
            wal_log_hints: false,
            blocks_per_file: 131_072,
            checksums: false,
        };
        let all = judge(&settings, Some(&control), dir.path());
        all.into_iter().map(|setting| (setting.name, setting.status)).collect()
    }

    #[test]
    fn a_bare_cluster_misses_everything_but_full_page_writes() {
        let expected = [
            ("shared_preload_libraries", Status::Missing),
            ("pg_tde.hsm", Status::Missing),
            ("pg_tde.pin_command", Status::Missing),
            ("full_page_writes", Status::Ok),
            ("wal_log_hints", Status::Missing),
        ];
        assert_eq!(judged("fsync = on\n"), expected);
    }

    #[test]
    fn a_preloaded_library_forces_what_torn_pages_need() {
        let conf = "shared_preload_libraries = 'pg_stat_statements, $libdir/pg_tde'\nfull_page_writes = off\n\
                    pg_tde.hsm = 'soft:/nowhere/hsm'\npg_tde.pin_command = 'cat /nowhere/pin'\n";
        let expected = [
            ("shared_preload_libraries", Status::Ok),
            ("pg_tde.hsm", Status::Ok),
            ("pg_tde.pin_command", Status::Ok),
            ("full_page_writes", Status::Forced),
            ("wal_log_hints", Status::Forced),
        ];
        assert_eq!(judged(conf), expected);
    }

    #[test]
    fn an_hsm_that_is_none_or_in_the_data_directory_is_wrong() {
        for value in ["pkcs11:x", "vault:x", "soft:", "soft:hsm", "soft:./a/../hsm"] {
            let all = judged(&format!("pg_tde.hsm = '{value}'\n"));
            assert_eq!(all[1], ("pg_tde.hsm", Status::Wrong), "{value}");
        }
        let others = judged("shared_preload_libraries = 'pg_tde_other, my/pg_tdex'\n");
        assert_eq!(others[0].1, Status::Missing);
    }
}
