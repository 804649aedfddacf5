//! `tde hsm init`.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;

use hsm_engine::store::StoreError;
use hsm_engine::{DEFAULT_KEY, DEFAULT_USER, Hsm, HsmError, Initialize, Pin, SoftUri};
use serde::Serialize;
use zeroize::Zeroize as _;

use super::options::{NewPin, Result, StoreArgs, new_pin, warn_if_beside};
use crate::output::{Output, facts};
use crate::{CliResult, Outcome};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    store: StoreArgs,
    /// File with the crypto user's PIN; made with a generated PIN if it does not exist
    #[arg(long, env = "TDE_PIN_FILE", value_name = "FILE")]
    pin_file: PathBuf,
    /// File with the crypto officer's PIN, likewise; without it the officer's PIN is generated and printed once
    #[arg(long, value_name = "FILE")]
    officer_pin_file: Option<PathBuf>,
    /// Label of the first master key
    #[arg(long, value_name = "TEXT", default_value = DEFAULT_KEY)]
    label: String,
    /// What the HSM is called
    #[arg(long, value_name = "TEXT", default_value = "tde")]
    name: String,
}

#[derive(Serialize)]
struct Made {
    store: String,
    uri: String,
    id: String,
    name: String,
    officer: String,
    user: String,
    master_key: String,
    master_key_id: String,
    pin_file: String,
    /// Whether the file and a generated PIN in it are new.
    pin_file_made: bool,
    officer_pin_file: Option<String>,
    officer_pin_file_made: bool,
    /// Only if it is in no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    officer_pin: Option<Revealed>,
}

/// A PIN that is about to be shown; wiped when that is done.
struct Revealed(String);

impl Serialize for Revealed {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Drop for Revealed {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The HSM is made, but nobody saw what only this report says.
#[derive(Debug, thiserror::Error)]
enum NotShown {
    #[error(
        "the HSM is made, but its report cannot be printed; the crypto officer's PIN was shown on the terminal"
    )]
    OnTerminal(#[source] io::Error),
    #[error(
        "the HSM in {store} is made, but nobody saw its crypto officer's PIN: remove {store} and begin again, with \
         --officer-pin-file"
    )]
    Lost {
        store: String,
        #[source]
        source: io::Error,
    },
}

pub(super) fn run(args: &Args, output: &Output) -> CliResult {
    let uri = args.store.uri()?;
    refuse_existing(&uri.dir)?;
    let user = new_pin(&args.pin_file, output)?;
    let officer = match &args.officer_pin_file {
        Some(file) => new_pin(file, output)?,
        None => NewPin { pin: Pin::generate()?, made: false },
    };
    let init = Initialize {
        label: &args.name,
        master_key: Some(&args.label),
        ..Initialize::new(&officer.pin, &user.pin)
    };
    let hsm = Hsm::initialize_dir(&uri.dir, &init)?;
    // Proves that it opens, before anything relies on it.
    let session = hsm.login(init.user, &user.pin)?;
    let key = session.find_master_key(&args.label)?;
    session.close()?;
    warn_if_beside(&args.pin_file, &uri.dir, output);

    let made = Made {
        store: hsm.location(),
        uri: SoftUri { key: args.label.clone(), ..SoftUri::new(std::path::absolute(&uri.dir)?) }.to_string(),
        id: hsm.id().to_string(),
        name: hsm.label().into(),
        officer: init.officer.into(),
        user: DEFAULT_USER.into(),
        master_key: args.label.clone(),
        master_key_id: key.id().to_string(),
        pin_file: args.pin_file.display().to_string(),
        pin_file_made: user.made,
        officer_pin_file: args.officer_pin_file.as_ref().map(|f| f.display().to_string()),
        officer_pin_file_made: officer.made,
        officer_pin: match args.officer_pin_file {
            Some(_) => None,
            None => Some(revealed(&officer.pin)?),
        },
    };
    match (output.show(&made, human), &made.officer_pin) {
        (Ok(()), _) => Ok(Outcome::Good),
        (Err(error), None) => Err(error.into()),
        (Err(source), Some(pin)) if on_terminal(pin).is_ok() => Err(NotShown::OnTerminal(source).into()),
        (Err(source), Some(_)) => Err(NotShown::Lost { store: made.store, source }.into()),
    }
}

/// Before a PIN file is made for nothing.
fn refuse_existing(dir: &std::path::Path) -> Result<()> {
    match Hsm::open_dir(dir) {
        Ok(_) => Err(HsmError::AlreadyInitialized { store: dir.display().to_string() }.into()),
        Err(HsmError::NotInitialized { .. } | HsmError::Store(StoreError::NotFound { .. })) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn revealed(pin: &Pin) -> Result<Revealed> {
    let mut bytes = Vec::with_capacity(pin.len());
    pin.reveal(&mut bytes)?;
    Ok(Revealed(String::from_utf8(bytes)?))
}

/// Shows the officer's PIN to whoever sits there, although standard output goes nowhere.
fn on_terminal(pin: &Revealed) -> io::Result<()> {
    let mut terminal = File::options().write(true).open("/dev/tty")?;
    write!(terminal, "The crypto officer's PIN, shown only now:\n\n    {}\n\n", pin.0)
}

fn human(made: &Made) -> String {
    let file = |path: &str, new| {
        if new { format!("{path}  (made, with a generated PIN)") } else { path.to_owned() }
    };
    let officer_pin = match &made.officer_pin_file {
        Some(path) => file(path, made.officer_pin_file_made),
        None => "printed below".into(),
    };
    let mut text = facts(&[
        ("HSM", format!("{} {}", made.name, made.id)),
        ("Store", made.store.clone()),
        ("URI", made.uri.clone()),
        ("Crypto user", made.user.clone()),
        ("  PIN file", file(&made.pin_file, made.pin_file_made)),
        ("Crypto officer", made.officer.clone()),
        ("  PIN", officer_pin),
        ("Master key", format!("{} {}", made.master_key, made.master_key_id)),
    ]);
    if let Some(pin) = &made.officer_pin {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\nThe crypto officer's PIN is shown only now. Write it down and keep it apart from this machine;\n\
             without it a locked user can only wait and a lost PIN cannot be replaced:\n\n    {}\n",
            pin.0
        );
    }
    text
}
