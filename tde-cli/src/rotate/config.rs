//! The file that says what is maintained, and how (docs/maintenance.md).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hsm_engine::pin_command::PinCommand;
use hsm_engine::{Pin, PinError};
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use keyring::HsmUri;
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use super::window::Window;
use crate::server::{self, ConninfoError, Server};

/// Longer than any configuration.
const MAX_BYTES: u64 = 1 << 20;
/// Keys that people might give a secret to.
const SECRETS: [&str; 7] = ["pin", "user_pin", "pin-value", "password", "passphrase", "secret", "pgpassword"];

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigError {
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{} can be written by others (mode {mode:o}), and says which commands run and which servers are changed: chmod go-w",
        path.display()
    )]
    LooseMode { path: PathBuf, mode: u32 },
    #[error("{}: another run with this configuration is under way", path.display())]
    Busy { path: PathBuf },
    #[error("{}{}: {message}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Syntax { path: PathBuf, line: Option<usize>, message: String },
    #[error(
        "{}: {key} holds a secret, which a configuration file must not: name a file (pin_file), a systemd credential (pin_credential) \
         or a command (pin_command) for an HSM's PIN, and a password file (~/.pgpass) for a server's password",
        path.display()
    )]
    Secret { path: PathBuf, key: String },
    #[error("{}: {what}: {message}", path.display())]
    Value { path: PathBuf, what: String, message: String },
    #[error("{}: {what}", path.display())]
    Server { path: PathBuf, what: String, source: ConninfoError },
}

/// Everything that the file says, checked.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) at_most: usize,
    pub(crate) window: Option<Window>,
    pub(crate) postgresql: Vec<Postgres>,
    pub(crate) sqlite: Vec<Sqlite>,
    /// Locked as long as this lives.
    _file: File,
}

/// When keys are too old, and how fast pages are rewritten.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    #[serde(rename = "data_keys_older_than_days")]
    pub(crate) data_keys: Option<f64>,
    #[serde(rename = "master_key_older_than_days")]
    pub(crate) master_key: Option<f64>,
    #[serde(rename = "max_rate_mib")]
    pub(crate) max_rate: Option<f64>,
}

impl Policy {
    fn over(self, lower: Self) -> Self {
        Self {
            data_keys: self.data_keys.or(lower.data_keys),
            master_key: self.master_key.or(lower.master_key),
            max_rate: self.max_rate.or(lower.max_rate),
        }
    }
}

/// A PostgreSQL cluster.
#[derive(Clone, Debug)]
pub(crate) struct Postgres {
    pub(crate) name: String,
    pub(crate) server: Server,
    /// All that are encrypted if none is named.
    pub(crate) tablespaces: Vec<String>,
    pub(crate) wal_key: bool,
    pub(crate) policy: Policy,
}

/// SQLite files under one keyring.
#[derive(Clone, Debug)]
pub(crate) struct Sqlite {
    pub(crate) name: String,
    /// Paths, or patterns.
    pub(crate) files: Vec<String>,
    pub(crate) keyring: PathBuf,
    pub(crate) hsm: HsmUri,
    pub(crate) pin: PinFrom,
    pub(crate) policy: Policy,
}

/// Where the PIN of an HSM comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PinFrom {
    /// Readable by its owner only.
    File(PathBuf),
    /// In a directory that systemd gives to the service alone.
    Credential(PathBuf),
    Command(String),
}

impl PinFrom {
    /// The PIN.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn read(&self) -> Result<Pin, Box<dyn std::error::Error + Send + Sync>> {
        match self {
            Self::File(path) => Ok(Pin::from_file(path)?),
            // Its mode is systemd's business: with an access list for the service's user it seems to be open to its group.
            Self::Credential(path) => {
                let file = File::open(path).map_err(|source| PinError::Io { path: path.clone(), source })?;
                Ok(Pin::from_reader(file)?)
            }
            Self::Command(command) => {
                let (setting, timeout) = ("pin_command", std::time::Duration::from_secs(60));
                Ok(PinCommand { setting, command, timeout, cancelled: &|| false, prepare: &|_| () }.run()?)
            }
        }
    }
}

// The file as it is written.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    at_most: Option<usize>,
    #[serde(default)]
    policy: Policy,
    window: Option<RawWindow>,
    #[serde(default)]
    postgresql: Vec<RawPostgres>,
    #[serde(default)]
    sqlite: Vec<RawSqlite>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWindow {
    from: String,
    to: String,
    #[serde(default)]
    days: Vec<String>,
    time_zone: Option<String>,
    #[serde(default)]
    pause_running: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPostgres {
    name: Option<String>,
    connect: String,
    #[serde(default)]
    tablespaces: Vec<String>,
    wal_key: Option<bool>,
    #[serde(default)]
    policy: Policy,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSqlite {
    name: Option<String>,
    files: Vec<String>,
    keyring: PathBuf,
    hsm: String,
    pin_file: Option<PathBuf>,
    pin_credential: Option<String>,
    pin_command: Option<String>,
    #[serde(default)]
    policy: Policy,
}

impl Config {
    /// Reads, checks and locks the file, so that two runs do not do the same.
    ///
    /// # Errors
    /// See [`ConfigError`]; none repeats what the file says but names.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let io = |source| ConfigError::Io { path: path.into(), source };
        let mut file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.mode();
        if mode & 0o022 != 0 {
            return Err(ConfigError::LooseMode { path: path.into(), mode: mode & 0o7777 });
        }
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
                return Err(ConfigError::Busy { path: path.into() });
            }
            locked => locked.map_err(|error| io(error.into()))?,
        }
        let mut text = String::new();
        (&mut file).take(MAX_BYTES).read_to_string(&mut text).map_err(io)?;
        let raw = parse(path, &text)?;
        Checked { path }.config(raw, file)
    }
}

/// The errors of the library quote the line, which may hold what somebody took for a place for his PIN.
fn parse(path: &Path, text: &str) -> Result<RawConfig, ConfigError> {
    let syntax = |error: &toml::de::Error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError::Syntax { path: path.into(), line, message: error.message().to_owned() }
    };
    let table: toml::Table = text.parse().map_err(|error| syntax(&error))?;
    if let Some(key) = secret_in(&table, "") {
        return Err(ConfigError::Secret { path: path.into(), key });
    }
    toml::from_str(text).map_err(|error| syntax(&error))
}

/// The first key that sounds like a secret.
fn secret_in(table: &toml::Table, prefix: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let full = format!("{prefix}{key}");
        if SECRETS.contains(&key.to_ascii_lowercase().as_str()) {
            return Some(full);
        }
        let inside = |value: &toml::Value| secret_in(value.as_table()?, &format!("{full}."));
        match value {
            toml::Value::Array(all) => all.iter().find_map(inside),
            other => inside(other),
        }
    })
}

struct Checked<'a> {
    path: &'a Path,
}

impl Checked<'_> {
    fn value(&self, what: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::Value { path: self.path.into(), what: what.to_owned(), message: message.into() }
    }

    fn config(&self, raw: RawConfig, file: File) -> Result<Config, ConfigError> {
        if raw.postgresql.is_empty() && raw.sqlite.is_empty() {
            return Err(self.value("targets", "there is neither a [[postgresql]] nor a [[sqlite]] table"));
        }
        let at_most = raw.at_most.unwrap_or(1);
        if !(1..=1000).contains(&at_most) {
            return Err(self.value("at_most", "must be from 1 to 1000"));
        }
        self.policy("policy", &raw.policy)?;
        let window = raw.window.map(|window| self.window(window)).transpose()?;
        let mut postgresql = Vec::new();
        for (index, one) in raw.postgresql.into_iter().enumerate() {
            postgresql.push(self.postgres(index, one, raw.policy)?);
        }
        let mut sqlite = Vec::new();
        for (index, one) in raw.sqlite.into_iter().enumerate() {
            sqlite.push(self.sqlite(index, one, raw.policy)?);
        }
        let mut names = BTreeSet::new();
        let all = postgresql
            .iter()
            .map(|one: &Postgres| &one.name)
            .chain(sqlite.iter().map(|one: &Sqlite| &one.name));
        for name in all {
            if !names.insert(name) {
                return Err(self.value(
                    "name",
                    format!("\"{name}\" is there twice: give each target a name of its own"),
                ));
            }
        }
        Ok(Config { at_most, window, postgresql, sqlite, _file: file })
    }

    fn policy(&self, what: &str, policy: &Policy) -> Result<(), ConfigError> {
        for (name, days) in [
            ("data_keys_older_than_days", policy.data_keys),
            ("master_key_older_than_days", policy.master_key),
        ] {
            if days.is_some_and(|days| !days.is_finite() || !(0.0..=36_500.0).contains(&days)) {
                return Err(self.value(what, format!("{name} must be from 0 to 36500")));
            }
        }
        if policy.max_rate.is_some_and(|rate| !rate.is_finite() || !(0.1..=10_000.0).contains(&rate)) {
            return Err(self.value(what, "max_rate_mib must be from 0.1 to 10000"));
        }
        Ok(())
    }

    fn window(&self, raw: RawWindow) -> Result<Window, ConfigError> {
        let time = |name: &str, text: &str| {
            let parsed = text.parse::<jiff::civil::Time>();
            parsed
                .map_err(|_| self.value("window", format!("{name} is no time of the day such as \"22:00\"")))
        };
        let (from, to) = (time("from", &raw.from)?, time("to", &raw.to)?);
        if from == to {
            return Err(
                self.value("window", "from and to are the same; leave the window out for the whole day")
            );
        }
        let zone = match &raw.time_zone {
            None => TimeZone::system(),
            Some(name) => TimeZone::get(name)
                .map_err(|_| self.value("window", format!("there is no time zone \"{name}\"")))?,
        };
        let day = |name: &String| {
            let all = [
                Weekday::Monday,
                Weekday::Tuesday,
                Weekday::Wednesday,
                Weekday::Thursday,
                Weekday::Friday,
                Weekday::Saturday,
                Weekday::Sunday,
            ];
            let short = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
            let found =
                short.iter().position(|short| short.eq_ignore_ascii_case(name)).map(|index| all[index]);
            found.ok_or_else(|| {
                self.value("window", format!("\"{name}\" is none of the days {}", short.join(", ")))
            })
        };
        let days = raw.days.iter().map(day).collect::<Result<_, _>>()?;
        Ok(Window { from, to, days, zone, pause_running: raw.pause_running })
    }

    fn postgres(&self, index: usize, raw: RawPostgres, policy: Policy) -> Result<Postgres, ConfigError> {
        let what = raw.name.clone().unwrap_or_else(|| format!("[[postgresql]] number {}", index + 1));
        self.policy(&what, &raw.policy)?;
        // Without an equals sign it would be taken for a database's name.
        if !raw.connect.contains('=') && !raw.connect.contains("://") {
            return Err(self
                .value(&what, "connect is no connection string such as \"host=/run/postgresql port=5432\""));
        }
        let server = server::at(&raw.connect).map_err(|source| ConfigError::Server {
            path: self.path.into(),
            what,
            source,
        })?;
        Ok(Postgres {
            name: raw.name.unwrap_or_else(|| server.name().to_owned()),
            server,
            tablespaces: raw.tablespaces,
            wal_key: raw.wal_key.unwrap_or(true),
            policy: raw.policy.over(policy),
        })
    }

    fn sqlite(&self, index: usize, raw: RawSqlite, policy: Policy) -> Result<Sqlite, ConfigError> {
        let what = raw.name.clone().unwrap_or_else(|| format!("[[sqlite]] number {}", index + 1));
        self.policy(&what, &raw.policy)?;
        let hsm: HsmUri = raw.hsm.parse().map_err(|error| self.value(&what, format!("hsm: {error}")))?;
        let pin = match (raw.pin_file, raw.pin_credential, raw.pin_command) {
            (Some(file), None, None) => PinFrom::File(file),
            (None, Some(name), None) => {
                if name.is_empty() || name.contains('/') {
                    return Err(
                        self.value(&what, "pin_credential is the name of a credential, without a directory")
                    );
                }
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                    self.value(&what, "pin_credential needs a systemd service with LoadCredential= (CREDENTIALS_DIRECTORY is not set)")
                })?;
                PinFrom::Credential(PathBuf::from(directory).join(name))
            }
            (None, None, Some(command)) => PinFrom::Command(command),
            (None, None, None) => match hsm.pin_source() {
                Some(file) => PinFrom::File(file.to_path_buf()),
                None => return Err(self.value(&what, "give one of pin_file, pin_credential and pin_command")),
            },
            _ => return Err(self.value(&what, "give only one of pin_file, pin_credential and pin_command")),
        };
        if raw.files.is_empty() {
            return Err(self.value(&what, "files is empty"));
        }
        if let Some(bad) = raw.files.iter().find(|pattern| glob::Pattern::new(pattern).is_err()) {
            return Err(self.value(&what, format!("files: \"{bad}\" is no pattern")));
        }
        Ok(Sqlite {
            name: raw.name.unwrap_or_else(|| raw.keyring.display().to_string()),
            files: raw.files,
            keyring: raw.keyring,
            hsm,
            pin,
            policy: raw.policy.over(policy),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const WHOLE: &str = r#"
        at_most = 3
        [policy]
        data_keys_older_than_days = 90
        max_rate_mib = 20
        [window]
        from = "22:00"
        to = "05:00"
        days = ["fri", "Sat"]
        time_zone = "Europe/Zurich"
        pause_running = true
        [[postgresql]]
        name = "orders"
        connect = "host=/run/postgresql user=dba"
        tablespaces = ["secure"]
        wal_key = false
        policy = { data_keys_older_than_days = 30, master_key_older_than_days = 365 }
        [[postgresql]]
        connect = "postgresql://dba@db2:5433/postgres"
        [[sqlite]]
        files = ["/srv/*.db"]
        keyring = "/srv/ring"
        hsm = "soft:/etc/tde/hsm"
        pin_file = "/etc/tde/pin"
    "#;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rotate.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        Config::read(&path)
    }

    #[test]
    fn a_target_has_the_common_policy_but_for_what_it_says_itself() {
        let config = read(WHOLE).unwrap();
        assert_eq!(config.at_most, 3);
        let window = config.window.unwrap();
        assert_eq!(
            (window.days.as_slice(), window.pause_running),
            (&[Weekday::Friday, Weekday::Saturday][..], true)
        );
        let [orders, second] = &config.postgresql[..] else { panic!("two servers") };
        assert_eq!((orders.name.as_str(), second.name.as_str()), ("orders", "db2:5433"));
        assert_eq!((orders.wal_key, second.wal_key), (false, true));
        let policy = Policy { data_keys: Some(30.0), master_key: Some(365.0), max_rate: Some(20.0) };
        assert_eq!(orders.policy, policy);
        assert_eq!(second.policy, Policy { data_keys: Some(90.0), master_key: None, max_rate: Some(20.0) });
        assert_eq!(config.sqlite[0].pin, PinFrom::File("/etc/tde/pin".into()));
        assert_eq!(config.sqlite[0].name, "/srv/ring");
    }

    #[test]
    fn secrets_are_refused_and_not_repeated() {
        for (from, to) in [
            ("pin_file = \"/etc/tde/pin\"", "pin = \"87654\""),
            ("pin_file = \"/etc/tde/pin\"", "PIN = 87654"),
            ("wal_key = false", "password = \"87654\""),
            ("user=dba\"", "user=dba password=87654\""),
            ("dba@db2", "dba:87654@db2"),
            ("at_most = 3", "at_most = 3\npin = 87654\nnot toml"),
        ] {
            assert!(WHOLE.contains(from), "{from}");
            let error = read(&WHOLE.replace(from, to)).unwrap_err();
            let text = crate::output::with_causes(&error);
            assert!(!text.contains("87654"), "{text}");
            if !to.contains("not toml") {
                assert!(text.contains("pin_file") || text.contains("password file"), "{text}");
            }
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_place() {
        for (from, to, expected) in [
            ("at_most = 3", "at_most = 0", "at_most: must be from 1"),
            ("at_most = 3", "at_mots = 3", "line 2: unknown field `at_mots`"),
            ("\"22:00\"", "\"25:00\"", "window: from is no time"),
            ("\"05:00\"", "\"22:00\"", "from and to are the same"),
            ("\"fri\"", "\"friday\"", "none of the days"),
            ("Europe/Zurich", "Europe/Nowhere", "no time zone"),
            ("= 90", "= -1", "must be from 0"),
            ("= 20", "= 0", "max_rate_mib must be"),
            ("host=/run/postgresql user=dba", "orders", "connect is no connection string"),
            ("soft:/etc/tde/hsm", "/etc/tde/hsm", "hsm: "),
            ("pin_file = \"/etc/tde/pin\"", "pin_credential = \"a/b\"", "without a directory"),
            ("pin_file = \"/etc/tde/pin\"", "", "give one of pin_file"),
            ("pin_file = \"/etc/tde/pin\"", "pin_file = \"a\"\npin_command = \"b\"", "give only one"),
            ("\"/srv/*.db\"", "\"/srv/[\"", "is no pattern"),
            ("\"/srv/*.db\"", "", "files is empty"),
            ("name = \"orders\"", "name = \"db2:5433\"", "is there twice"),
        ] {
            assert!(WHOLE.contains(from), "{from}");
            let text = crate::output::with_causes(&read(&WHOLE.replacen(from, to, 1)).unwrap_err());
            assert!(text.contains(expected), "{to}: {text}");
        }
        assert!(matches!(read("at_most = 1"), Err(ConfigError::Value { .. })));
    }

    #[test]
    fn the_file_is_the_runs_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rotate.toml");
        fs::write(&path, WHOLE).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        assert!(matches!(Config::read(&path), Err(ConfigError::LooseMode { mode: 0o664, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let first = Config::read(&path).unwrap();
        assert!(matches!(Config::read(&path), Err(ConfigError::Busy { .. })));
        drop(first);
        assert!(Config::read(&path).is_ok());
    }
}
