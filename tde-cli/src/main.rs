//! The `tde` command: the HSM, keyrings, SQLite databases, jobs of servers, maintenance runs, and what is encrypted on a disk.
//!
//! Exit codes: 0 all is well, 1 a problem was found, 2 it could not be done or was asked for wrongly; `tde job` and `tde rotate` have more.
#![forbid(unsafe_code)]

mod credentials;
mod exec;
mod hsm;
mod job;
mod keyring_cmd;
mod output;
mod pg;
mod rotate;
mod scan;
mod server;
mod sqlite;
mod wal_keys;

use std::error::Error;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use keyring::KeyringError;
use sqlite_vfs::keys::KeysError;

use crate::output::Output;

/// Transparent data encryption for PostgreSQL and SQLite.
#[derive(Debug, Parser)]
#[command(name = "tde", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Exit codes: 0 all is well, 1 a problem was found, 2 it could not be done.\n\
    Environment: TDE_HSM, TDE_PIN_FILE, TDE_PIN_COMMAND and TDE_KEYRING stand in for the options of the same names.")]
struct Cli {
    /// Print JSON instead of tables
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The HSM that keeps the master keys
    #[command(subcommand)]
    Hsm(hsm::Command),
    /// Keyrings: the wrapped data keys
    #[command(subcommand)]
    Keyring(keyring_cmd::Command),
    /// PostgreSQL data directories
    #[command(subcommand)]
    Pg(pg::Command),
    /// Jobs of a PostgreSQL server that encrypt, decrypt or rotate
    #[command(subcommand)]
    Job(job::Command),
    /// Rotate what is older than a policy allows, over many PostgreSQL clusters and SQLite files
    Rotate(rotate::RotateArgs),
    /// SQLite databases
    #[command(subcommand)]
    Sqlite(sqlite::Command),
    /// Search a directory for texts that must not be readable in it
    Scan(scan::Scan),
    /// Run a stock PostgreSQL tool on encrypted WAL: tde exec -- pg_waldump ...
    Exec(exec::Exec),
    /// Print a script that completes this command in a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// What a command came to, if it could be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Exit code 0.
    Good,
    /// Exit code 1; the command said what.
    Problem,
    /// An exit code that the command documents.
    Code(u8),
}

/// An error is only printed, with its causes, and made an exit code.
pub(crate) type CliResult = Result<Outcome, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    if let Err(error) = secret_mem::harden_process() {
        output.warn(&error);
    }
    let result = run(cli.command, &output);
    if let Some(failure) = secret_mem::lock_failure() {
        output.warn(&failure);
    }
    match result {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Problem) => ExitCode::from(1),
        Ok(Outcome::Code(code)) => ExitCode::from(code),
        Err(error) if output::is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            output.error(error.as_ref());
            ExitCode::from(exit_code(error.as_ref()))
        }
    }
}

fn run(command: Command, output: &Output) -> CliResult {
    match command {
        Command::Hsm(command) => hsm::run(command, output),
        Command::Keyring(command) => keyring_cmd::run(command, output),
        Command::Pg(command) => pg::run(command, output),
        Command::Job(command) => job::run(command, output),
        Command::Rotate(args) => rotate::run(&args, output),
        Command::Sqlite(command) => sqlite::run(command, output),
        Command::Scan(scan) => scan::run(&scan, output),
        Command::Exec(exec) => exec::run(&exec, output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tde", &mut script);
            output.raw(&script)?;
            Ok(Outcome::Good)
        }
    }
}

/// Damage and the like is a problem found; what could not be tried at all is not.
fn exit_code(error: &(dyn Error + 'static)) -> u8 {
    let by_keys = || match error.downcast_ref::<KeysError>() {
        Some(KeysError::Keyring(error)) => Some(&**error),
        _ => None,
    };
    match error.downcast_ref::<KeyringError>().or_else(by_keys) {
        Some(error) if is_problem(error) => 1,
        _ => 2,
    }
}

/// Whether the keyring itself is what is wrong.
fn is_problem(error: &KeyringError) -> bool {
    matches!(
        error,
        KeyringError::KeyMissing { .. }
            | KeyringError::KeyWrong { .. }
            | KeyringError::HsmDamaged { .. }
            | KeyringError::KeyDestroyed { .. }
            | KeyringError::KeyringKeyWrong { .. }
            | KeyringError::Truncated { .. }
            | KeyringError::Damaged { .. }
            | KeyringError::SealMismatch { .. }
            | KeyringError::ForeignKeyring { .. }
            | KeyringError::ForeignOwner { .. }
            | KeyringError::Vanished { .. }
            | KeyringError::OldGeneration { .. }
            | KeyringError::RolledBack { .. }
            | KeyringError::LoosePermissions { .. }
            | KeyringError::LineMissing { .. }
            | KeyringError::Conflict { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
