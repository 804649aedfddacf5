//! `tde hsm counters`: what the HSM remembers of keyrings, and an end to remembering.
//!
//! Each keyring has a counter for each place (machine and directory) that it was used in, and nothing removes one by itself: restores,
//! clones and test machines add up to the limit.

use std::path::PathBuf;

use hsm_engine::{MAX_COUNTERS, Session};
use keyring::InstanceId;
use serde::Serialize;

use super::options::{Result, StoreArgs, UserArgs};
use crate::output::{Output, lines, table};
use crate::{CliResult, Outcome};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the counters
    List(ListArgs),
    /// Forget counters of keyrings or places that are gone for good; the audit log keeps their last values
    Forget(ForgetArgs),
}

#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
    /// Only those of keyrings in this directory of this machine
    #[arg(long, value_name = "DIR")]
    place: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct ForgetArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
    /// Their names, as listed. An older copy of a keyring whose counter is forgotten is no longer refused
    #[arg(required = true, value_name = "COUNTER")]
    names: Vec<String>,
}

#[derive(Serialize)]
struct Counters {
    counters: Vec<Row>,
    /// How many there are in all.
    used: usize,
    limit: usize,
}

#[derive(Serialize)]
struct Row {
    name: String,
    value: u64,
}

#[derive(Serialize)]
struct Forgotten {
    forgotten: Vec<Row>,
}

#[derive(Debug, thiserror::Error)]
#[error("the HSM has no counter \"{0}\": see `tde hsm counters list`")]
struct Unknown(String);

pub(super) fn run(command: &Command, output: &Output) -> CliResult {
    match command {
        Command::List(args) => list(args, output),
        Command::Forget(args) => forget(args, output),
    }
}

fn login(store: &StoreArgs, user: &UserArgs) -> Result<Session> {
    Ok(user.login(&store.open()?, store.uri()?)?.0)
}

fn list(args: &ListArgs, output: &Output) -> CliResult {
    let session = login(&args.store, &args.user)?;
    let all = session.counters("")?;
    session.close()?;
    let prefix = match &args.place {
        Some(dir) => format!("keyring/{}/", InstanceId::of(dir)?),
        None => String::new(),
    };
    let used = all.len();
    let shown = all.into_iter().filter(|(name, _)| name.starts_with(&prefix));
    let counters = shown.map(|(name, value)| Row { name, value }).collect();
    output.show(&Counters { counters, used, limit: MAX_COUNTERS }, |view| {
        let mut rows = table(&["counter (keyring/PLACE/ID)", "generation"]);
        for row in &view.counters {
            rows.add_row([&row.name, &row.value.to_string()]);
        }
        format!("{}\n{} of {} are in use.\n", lines(&rows), view.used, view.limit)
    })?;
    Ok(Outcome::Good)
}

fn forget(args: &ForgetArgs, output: &Output) -> CliResult {
    let session = login(&args.store, &args.user)?;
    let mut forgotten = Vec::new();
    for name in &args.names {
        let value = session.forget_counter(name)?.ok_or_else(|| Unknown(name.clone()))?;
        forgotten.push(Row { name: name.clone(), value });
    }
    session.close()?;
    output.show(&Forgotten { forgotten }, |view| {
        view.forgotten
            .iter()
            .map(|row| format!("Forgotten: {}, last at {}.\n", row.name, row.value))
            .collect()
    })?;
    Ok(Outcome::Good)
}
