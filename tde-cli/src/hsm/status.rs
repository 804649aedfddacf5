//! `tde hsm status`.

use std::path::PathBuf;

use hsm_engine::{Failures, Hsm, LockState, MasterKeyInfo, Session, SoftUri, Status};
use serde::Serialize;

use super::options::{Result, StoreArgs, UserArgs};
use crate::output::{Output, facts, lines, table, with_causes};
use crate::{CliResult, Outcome};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    store: StoreArgs,
    /// Name of the user ["user" unless the URI names another]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// File with the user's PIN ("-" reads standard input); a wrong PIN counts towards the user's lock. The one that
    /// TDE_PIN_FILE names is tried only while no login has failed, so that a monitor locks nobody out
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

impl Args {
    /// Logs in if that was asked for, or can do no harm.
    fn login(&self, hsm: &Hsm, uri: &SoftUri) -> Result<Option<Session>> {
        let name = self.user.as_deref().unwrap_or(&uri.user);
        if self.pin_file.is_some() {
            return UserArgs::of(name, self.pin_file.clone())
                .login(hsm, uri)
                .map(|(session, _)| Some(session));
        }
        let Some(file) = std::env::var_os("TDE_PIN_FILE").filter(|file| !file.is_empty()) else {
            return Ok(None);
        };
        let status = hsm.status()?;
        if let Some(user) = status.users.iter().find(|user| user.name == name && user.failed.failures > 0) {
            return Err(NotTried { user: name.into(), failed: user.failed }.into());
        }
        UserArgs::of(name, Some(file.into())).login(hsm, uri).map(|(session, _)| Some(session))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not tried after {failed}: give --pin-file to log in as HSM user \"{user}\" all the same")]
struct NotTried {
    user: String,
    failed: Failures,
}

#[derive(Serialize)]
struct View {
    store: String,
    name: String,
    id: String,
    created: String,
    format: u16,
    users: Vec<UserRow>,
    audit_records: Option<u64>,
    audit_error: Option<String>,
    /// Absent without a PIN: they are sealed.
    master_keys: Option<Vec<KeyRow>>,
    /// Why they are absent although a PIN was given, or what else is wrong.
    master_keys_error: Option<String>,
}

#[derive(Serialize)]
struct UserRow {
    name: String,
    role: String,
    pin: String,
    pin_set: String,
    /// Logins since the last good one.
    failures: u32,
    /// Those among them that were killed before the PIN was known.
    unfinished: u32,
    /// `open`, `until` a time, or `locked` until the officer unlocks.
    lock: &'static str,
    locked_until: Option<String>,
}

#[derive(Serialize)]
struct KeyRow {
    label: String,
    id: String,
    created: String,
    version: u32,
    plaintext_data_keys: bool,
    versions: Vec<VersionRow>,
}

#[derive(Serialize)]
struct VersionRow {
    version: u32,
    state: String,
    created: String,
}

pub(super) fn run(args: &Args, output: &Output) -> CliResult {
    let uri = args.store.uri()?;
    let hsm = args.store.open()?;
    let login = args.login(&hsm, uri).transpose();
    // After the login, so that it is counted in.
    let status = hsm.status()?;
    let mut view = View::new(&hsm, &status);
    match login.map(|login| login.and_then(master_keys)) {
        None => {}
        Some(Ok(keys)) => view.master_keys = Some(keys.iter().map(KeyRow::from).collect()),
        Some(Err(error)) => view.master_keys_error = Some(with_causes(error.as_ref())),
    }
    let whole = view.audit_error.is_none() && view.master_keys_error.is_none();
    output.show(&view, human)?;
    Ok(if whole { Outcome::Good } else { Outcome::Problem })
}

fn master_keys(session: Session) -> Result<Vec<MasterKeyInfo>> {
    session.verify_store()?;
    let keys = session.master_keys()?;
    session.close()?;
    Ok(keys)
}

impl View {
    fn new(hsm: &Hsm, status: &Status) -> Self {
        let users = status.users.iter().map(|u| {
            let (lock, until) = match u.lock {
                LockState::Open => ("open", None),
                LockState::Until(t) => ("until", Some(t.to_string())),
                _ => ("locked", None),
            };
            UserRow {
                name: u.name.clone(),
                role: u.role.to_string(),
                pin: u.pin_kdf.to_string(),
                pin_set: u.pin_set.to_string(),
                failures: u.failed.failures,
                unfinished: u.failed.unfinished,
                lock,
                locked_until: until,
            }
        });
        Self {
            store: hsm.location(),
            name: status.label.clone(),
            id: status.id.to_string(),
            created: status.created.to_string(),
            format: status.format,
            users: users.collect(),
            audit_records: status.audit.as_ref().ok().copied(),
            audit_error: status.audit.as_ref().err().map(|e| with_causes(e)),
            master_keys: None,
            master_keys_error: None,
        }
    }
}

impl From<&MasterKeyInfo> for KeyRow {
    fn from(key: &MasterKeyInfo) -> Self {
        let version = |v: &hsm_engine::KeyVersionInfo| VersionRow {
            version: v.version,
            state: v.state.to_string(),
            created: v.created.to_string(),
        };
        Self {
            label: key.label.clone(),
            id: key.id.to_string(),
            created: key.created.to_string(),
            version: key.versions.last().map_or(0, |v| v.version),
            plaintext_data_keys: key.attributes.plaintext_data_keys,
            versions: key.versions.iter().map(version).collect(),
        }
    }
}

fn human(view: &View) -> String {
    let audit = match (&view.audit_records, &view.audit_error) {
        (Some(n), _) => format!("{n} records"),
        (None, error) => error.clone().unwrap_or_default(),
    };
    let mut text = facts(&[
        ("HSM", format!("{} {}", view.name, view.id)),
        ("Store", format!("{}, format {}", view.store, view.format)),
        ("Created", view.created.clone()),
        ("Audit log", audit),
    ]);
    let mut users =
        table(&["user", "role", "PIN", "PIN set", "wrong PINs", "unfinished logins", "may log in"]);
    for u in &view.users {
        let lock = match (u.lock, &u.locked_until) {
            (_, Some(until)) => format!("from {until}"),
            ("open", None) => "yes".into(),
            _ => format!("no: tde hsm unlock {}", u.name),
        };
        let (wrong, unfinished) = (u.failures - u.unfinished, u.unfinished);
        users.add_row([
            &u.name,
            &u.role,
            &u.pin,
            &u.pin_set,
            &wrong.to_string(),
            &unfinished.to_string(),
            &lock,
        ]);
    }
    text.push('\n');
    text.push_str(&lines(&users));
    text.push('\n');
    match (&view.master_keys, &view.master_keys_error) {
        (Some(keys), _) => {
            let mut rows = table(&["master key", "id", "version", "state", "created"]);
            for key in keys {
                for v in &key.versions {
                    rows.add_row([&key.label, &key.id, &v.version.to_string(), &v.state, &v.created]);
                }
            }
            text.push_str(&lines(&rows));
        }
        (None, Some(error)) => text.push_str(&format!("Master keys: {error}\n")),
        (None, None) => text.push_str("Master keys are sealed: give --pin-file to see them.\n"),
    }
    text
}
