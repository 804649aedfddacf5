//! `tde hsm unlock`, `reset-pin` and `change-pin`.

use std::path::{Path, PathBuf};

use hsm_engine::Pin;
use serde::Serialize;

use super::options::{NewPin, OfficerArgs, Result, StoreArgs, UserArgs, new_pin, warn_if_beside};
use crate::credentials::ask_pin;
use crate::output::Output;
use crate::{CliResult, Outcome};

#[derive(clap::Args, Debug)]
pub(crate) struct UnlockArgs {
    /// The user to unlock
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    officer: OfficerArgs,
}

#[derive(clap::Args, Debug)]
pub(crate) struct ResetPinArgs {
    /// The user to give another PIN
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    officer: OfficerArgs,
    #[command(flatten)]
    new: NewPinArgs,
}

#[derive(clap::Args, Debug)]
pub(crate) struct ChangePinArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    user: UserArgs,
    #[command(flatten)]
    new: NewPinArgs,
}

#[derive(clap::Args, Debug)]
struct NewPinArgs {
    /// File with the new PIN; made with a generated PIN if it does not exist
    #[arg(long, value_name = "FILE")]
    new_pin_file: Option<PathBuf>,
}

#[derive(Serialize)]
struct Unlocked {
    unlocked: String,
}

#[derive(Serialize)]
struct Changed {
    user: String,
    pin_file: Option<String>,
    pin_file_made: bool,
}

pub(super) fn unlock(args: &UnlockArgs, output: &Output) -> CliResult {
    let hsm = args.store.open()?;
    let session = args.officer.login(&hsm)?;
    session.unlock_user(&args.name)?;
    session.close()?;
    output.show(&Unlocked { unlocked: args.name.clone() }, |u| {
        format!("User {} may log in again.", u.unlocked)
    })?;
    Ok(Outcome::Good)
}

pub(super) fn reset_pin(args: &ResetPinArgs, output: &Output) -> CliResult {
    let hsm = args.store.open()?;
    let session = args.officer.login(&hsm)?;
    let new = args.new.read(&args.name, output)?;
    session.reset_pin(&args.name, &new.pin)?;
    session.close()?;
    args.new.report(&args.name, &new, &args.store.uri()?.dir, output)
}

pub(super) fn change_pin(args: &ChangePinArgs, output: &Output) -> CliResult {
    let uri = args.store.uri()?;
    let hsm = args.store.open()?;
    let (session, old) = args.user.login(&hsm, uri)?;
    let name = args.user.name(uri);
    let new = args.new.read(name, output)?;
    if new.pin.same(&old) {
        return Err(NewPinError::Same.into());
    }
    session.change_pin(&new.pin)?;
    session.close()?;
    args.new.report(name, &new, &uri.dir, output)
}

impl NewPinArgs {
    fn read(&self, user: &str, output: &Output) -> Result<NewPin> {
        if let Some(file) = &self.new_pin_file {
            return new_pin(file, output);
        }
        let pin = ask_pin(&format!("New PIN of HSM user \"{user}\": "))?;
        let again: Pin = ask_pin("Once more: ")?;
        if pin.same(&again) { Ok(NewPin { pin, made: false }) } else { Err(NewPinError::Different.into()) }
    }

    fn report(&self, user: &str, new: &NewPin, store: &Path, output: &Output) -> CliResult {
        if let Some(file) = &self.new_pin_file {
            warn_if_beside(file, store, output);
        }
        let changed = Changed {
            user: user.into(),
            pin_file: self.new_pin_file.as_ref().map(|f| f.display().to_string()),
            pin_file_made: new.made,
        };
        output.show(&changed, |c| match &c.pin_file {
            Some(file) if c.pin_file_made => {
                format!("User {} has a new PIN, generated and kept in {file}.", c.user)
            }
            Some(file) => format!("User {} has the PIN that is in {file}.", c.user),
            None => format!("User {} has a new PIN.", c.user),
        })?;
        Ok(Outcome::Good)
    }
}

#[derive(Debug, thiserror::Error)]
enum NewPinError {
    #[error("the two new PINs differ; nothing was changed")]
    Different,
    #[error("the new PIN is the old one; nothing was changed")]
    Same,
}
