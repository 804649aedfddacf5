//! `tde hsm token`: the master key on a PKCS#11 token of another vendor.

use clap::{Args, Subcommand};
use keyring::pkcs11::{AgentOptions, Pkcs11Hsm, TokenStatus};
use keyring::{HsmUri, LoginError};
use serde::Serialize;

use super::options::Result;
use crate::credentials::{HsmArgs, MissingOption};
use crate::output::{Output, facts};
use crate::{CliResult, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the token and the versions of the master key on it
    Status {
        #[command(flatten)]
        hsm: HsmArgs,
    },
    /// Make the first version of a master key; its label is the URI's object
    CreateKey {
        #[command(flatten)]
        hsm: HsmArgs,
    },
    /// Destroy an old version for good: what is still wrapped under it is lost
    DestroyVersion(DestroyArgs),
}

#[derive(Args, Debug)]
pub(crate) struct DestroyArgs {
    #[command(flatten)]
    hsm: HsmArgs,
    /// The version, which is not the newest
    #[arg(long = "key-version", value_name = "NUMBER")]
    number: u32,
    /// The master key's label once more, so that nobody destroys by mistake
    #[arg(long, value_name = "LABEL")]
    confirm: String,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("--hsm names {0}; this command is for tokens: pkcs11:token=NAME?module-path=FILE")]
    NoToken(HsmUri),
    #[error("--confirm must repeat the master key's label, \"{0}\"")]
    NotConfirmed(String),
}

#[derive(Serialize)]
struct Shown {
    token: String,
    manufacturer: String,
    model: String,
    serial: String,
    library: String,
    wrapping: String,
    master_key: Option<String>,
    master_key_id: Option<String>,
    versions: Vec<Version>,
}

#[derive(Serialize)]
struct Version {
    version: u32,
    destroyed: bool,
}

impl From<TokenStatus> for Shown {
    fn from(status: TokenStatus) -> Self {
        let [token, manufacturer, model, serial] = status.token;
        let (id, label) = status.key.map(|(id, label)| (id.to_string(), label)).unzip();
        let version = |(version, destroyed)| Version { version, destroyed };
        Self {
            token,
            manufacturer,
            model,
            serial,
            library: status.library,
            wrapping: status.wrap,
            master_key: label,
            master_key_id: id,
            versions: status.versions.into_iter().map(version).collect(),
        }
    }
}

pub(super) fn run(command: &Command, output: &Output) -> CliResult {
    let hsm = match command {
        Command::Status { hsm } => open(hsm)?,
        Command::CreateKey { hsm } => {
            let mut hsm = open(hsm)?;
            hsm.create_key().map_err(LoginError::from)?;
            hsm
        }
        Command::DestroyVersion(args) => {
            let hsm = open(&args.hsm)?;
            if args.confirm != hsm.uri().object {
                return Err(Refused::NotConfirmed(hsm.uri().object.clone()).into());
            }
            hsm.destroy_version(args.number).map_err(LoginError::from)?;
            hsm
        }
    };
    let shown = Shown::from(hsm.status().map_err(LoginError::from)?);
    output.show(&shown, human)?;
    Ok(Outcome::Good)
}

fn open(args: &HsmArgs) -> Result<Pkcs11Hsm> {
    let uri = args.hsm.as_ref().ok_or(MissingOption::Hsm)?;
    let HsmUri::Pkcs11(token) = uri else { return Err(Refused::NoToken(uri.clone()).into()) };
    let pin = args.pin(uri)?;
    Ok(Pkcs11Hsm::open_token(token, pin, AgentOptions::default()).map_err(LoginError::from)?)
}

fn human(shown: &Shown) -> String {
    let key = match (&shown.master_key, &shown.master_key_id) {
        (Some(label), Some(id)) => format!("{label} {id}"),
        _ => "none yet: `tde hsm token create-key` makes it".to_owned(),
    };
    let versions: Vec<_> = shown
        .versions
        .iter()
        .map(|v| if v.destroyed { format!("{} (destroyed)", v.version) } else { v.version.to_string() })
        .collect();
    facts(&[
        ("Token", format!("{}, serial {}", shown.token, shown.serial)),
        ("Made by", format!("{} {}", shown.manufacturer, shown.model)),
        ("Library", shown.library.clone()),
        ("Wrapping", shown.wrapping.clone()),
        ("Master key", key),
        ("Versions", versions.join(", ")),
    ])
}
