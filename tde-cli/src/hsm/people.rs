//! `tde hsm user`: who there is, and making and removing them.

use std::path::PathBuf;

use clap::ValueEnum;
use hsm_engine::{Rights, Role};
use serde::Serialize;
use uuid::Uuid;

use super::options::{OfficerArgs, StoreArgs, new_pin, warn_if_beside};
use crate::output::{Output, lines, table};
use crate::{CliResult, Outcome};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the users
    List(ListArgs),
    /// As the crypto officer, make a user
    Create(CreateArgs),
    /// As the crypto officer, remove a user
    Delete(DeleteArgs),
}

#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(clap::Args, Debug)]
pub(crate) struct CreateArgs {
    /// The new user
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    officer: OfficerArgs,
    /// What the user is for
    #[arg(long, value_enum, default_value = "crypto-user")]
    role: RoleName,
    /// File with the user's PIN; made with a generated PIN if it does not exist
    #[arg(long, value_name = "FILE")]
    new_pin_file: PathBuf,
    /// A crypto user may be given data keys in clear, as databases need them
    #[arg(long)]
    plaintext_data_keys: bool,
    /// Id of a request that was approved, where the HSM asks for approvals
    #[arg(long, value_name = "ID")]
    request: Option<Uuid>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct DeleteArgs {
    /// The user to remove
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    officer: OfficerArgs,
    /// Id of a request that was approved, where the HSM asks for approvals
    #[arg(long, value_name = "ID")]
    request: Option<Uuid>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleName {
    CryptoOfficer,
    CryptoUser,
    Auditor,
    ApplianceUser,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::CryptoOfficer => Self::CryptoOfficer,
            RoleName::CryptoUser => Self::CryptoUser,
            RoleName::Auditor => Self::Auditor,
            RoleName::ApplianceUser => Self::ApplianceUser,
        }
    }
}

#[derive(Serialize)]
struct Users {
    users: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    role: String,
    pin: String,
    created: String,
}

#[derive(Serialize)]
struct Created {
    user: String,
    role: String,
    pin_file: String,
    pin_file_made: bool,
}

#[derive(Serialize)]
struct Deleted {
    deleted: String,
}

pub(super) fn run(command: &Command, output: &Output) -> CliResult {
    match command {
        Command::List(args) => list(args, output),
        Command::Create(args) => create(args, output),
        Command::Delete(args) => delete(args, output),
    }
}

fn list(args: &ListArgs, output: &Output) -> CliResult {
    let users = args.store.open()?.status()?.users.into_iter().map(|u| Row {
        role: u.role.to_string(),
        pin: u.pin_kdf.to_string(),
        created: u.created.to_string(),
        name: u.name,
    });
    output.show(&Users { users: users.collect() }, |view| {
        let mut rows = table(&["user", "role", "pin", "made"]);
        for row in &view.users {
            rows.add_row([&row.name, &row.role, &row.pin, &row.created]);
        }
        lines(&rows)
    })?;
    Ok(Outcome::Good)
}

fn create(args: &CreateArgs, output: &Output) -> CliResult {
    let hsm = args.store.open()?;
    let session = args.officer.login(&hsm)?;
    let new = new_pin(&args.new_pin_file, output)?;
    if let Some(request) = args.request {
        session.present(request);
    }
    let (role, rights) = (args.role.into(), Rights { plaintext_data_keys: args.plaintext_data_keys });
    session.create_user(&args.name, role, rights, &new.pin)?;
    session.close()?;
    warn_if_beside(&args.new_pin_file, &args.store.uri()?.dir, output);
    let created = Created {
        user: args.name.clone(),
        role: role.to_string(),
        pin_file: args.new_pin_file.display().to_string(),
        pin_file_made: new.made,
    };
    output.show(&created, |c| format!("User {} is a {}; the PIN is in {}.", c.user, c.role, c.pin_file))?;
    Ok(Outcome::Good)
}

fn delete(args: &DeleteArgs, output: &Output) -> CliResult {
    let hsm = args.store.open()?;
    let session = args.officer.login(&hsm)?;
    if let Some(request) = args.request {
        session.present(request);
    }
    session.delete_user(&args.name)?;
    session.close()?;
    output.show(&Deleted { deleted: args.name.clone() }, |d| format!("User {} is removed.", d.deleted))?;
    Ok(Outcome::Good)
}
