//! `tde hsm`: makes and looks after the HSM that lives in the processes that use it.

mod audit;
mod backups;
mod counters;
mod init;
mod keys;
mod options;
mod people;
mod quorum;
mod status;
mod token;
mod users;

use clap::Subcommand;
use hsm_engine::{ErrorKind, HsmError};

use crate::output::Output;
use crate::{CliResult, Outcome};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an HSM with a crypto officer, a crypto user and a first master key
    Init(init::Args),
    /// Show an HSM's users and the length of its audit log; with a PIN also its master keys
    Status(status::Args),
    /// As the crypto officer, let a user in again who is locked after wrong PINs
    Unlock(users::UnlockArgs),
    /// As the crypto officer, give a user another PIN
    ResetPin(users::ResetPinArgs),
    /// Change a user's own PIN
    ChangePin(users::ChangePinArgs),
    /// What the HSM remembers of keyrings: how new each was in each place
    #[command(subcommand)]
    Counters(counters::Command),
    /// The users
    #[command(subcommand)]
    User(people::Command),
    /// Keys and other objects
    #[command(subcommand)]
    Key(keys::Command),
    /// Approvals of several people for what one alone must not do
    #[command(subcommand)]
    Quorum(quorum::Command),
    /// Backups
    #[command(subcommand)]
    Backup(backups::Command),
    /// The audit log
    #[command(subcommand)]
    Audit(audit::Command),
    /// A PKCS#11 token of another vendor that holds the master key
    #[command(subcommand)]
    Token(token::Command),
}

pub(crate) fn run(command: Command, output: &Output) -> CliResult {
    let result = match command {
        Command::Init(args) => init::run(&args, output),
        Command::Status(args) => status::run(&args, output),
        Command::Unlock(args) => users::unlock(&args, output),
        Command::ResetPin(args) => users::reset_pin(&args, output),
        Command::ChangePin(args) => users::change_pin(&args, output),
        Command::Counters(command) => counters::run(&command, output),
        Command::User(command) => people::run(&command, output),
        Command::Key(command) => keys::run(&command, output),
        Command::Quorum(command) => quorum::run(&command, output),
        Command::Backup(command) => backups::run(&command, output),
        Command::Audit(command) => audit::run(&command, output),
        Command::Token(command) => token::run(&command, output),
    };
    match result {
        Err(error) if is_damage(error.as_ref()) => {
            output.error(error.as_ref());
            Ok(Outcome::Problem)
        }
        other => other,
    }
}

/// Whether the HSM itself is what is wrong, which is a problem found; anything else could not be tried.
fn is_damage(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<HsmError>().is_some_and(|e| e.kind() == ErrorKind::Damaged)
}
