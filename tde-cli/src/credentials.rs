//! Options that many commands share: which HSM, which PIN, which keyring.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::marker::PhantomData;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Args, Command};
use hsm_engine::pin_command::PinCommand;
use hsm_engine::{Pin, PinError};
use keyring::pkcs11::AgentOptions;
use keyring::{AnyHsm, HsmUri};
use secret_mem::SecretBuf;

/// Which HSM, and how to log in.
#[derive(Args, Clone, Debug)]
pub(crate) struct HsmArgs {
    /// The HSM, such as soft:/var/lib/tde/hsm, soft:DIR?user=NAME&key=LABEL, or pkcs11:token=NAME?module-path=FILE
    #[arg(long, env = "TDE_HSM", value_name = "URI", hide_env_values = true, value_parser = UriParser::<HsmUri>::NEW)]
    pub(crate) hsm: Option<HsmUri>,
    /// File with the PIN of the HSM's user, readable by its owner only ("-" reads standard input)
    #[arg(long, env = "TDE_PIN_FILE", value_name = "FILE")]
    pub(crate) pin_file: Option<PathBuf>,
    /// Command that prints the PIN; --pin-file counts first
    #[arg(long, env = "TDE_PIN_COMMAND", value_name = "COMMAND", hide_env_values = true)]
    pub(crate) pin_command: Option<String>,
}

/// The options do not say enough.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MissingOption {
    #[error("which HSM? Give --hsm URI (or set TDE_HSM), such as --hsm soft:/var/lib/tde/hsm")]
    Hsm,
    #[error(
        "which PIN? Give --pin-file FILE (or set TDE_PIN_FILE) or --pin-command, or run this on a terminal"
    )]
    Pin,
    #[error("which keyring? Give --keyring DIR or set TDE_KEYRING")]
    Keyring,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

impl HsmArgs {
    /// Logs in; an error if no HSM was named.
    pub(crate) fn login(&self) -> Result<AnyHsm> {
        self.login_if_given()?.ok_or_else(|| MissingOption::Hsm.into())
    }

    /// Logs in if an HSM was named.
    pub(crate) fn login_if_given(&self) -> Result<Option<AnyHsm>> {
        let Some(uri) = &self.hsm else { return Ok(None) };
        Ok(Some(AnyHsm::open(uri, self.pin(uri)?, AgentOptions::default())?))
    }

    /// The PIN for `uri`, from where the options say, or from the terminal.
    pub(crate) fn pin(&self, uri: &HsmUri) -> Result<Pin> {
        if let Some(path) = &self.pin_file {
            return Ok(pin_from(path)?);
        }
        let Some(command) = &self.pin_command else {
            return match uri.pin_source() {
                Some(file) => Ok(pin_from(file)?),
                None => ask_pin(&format!("PIN of {}: ", uri.user())),
            };
        };
        let (setting, timeout) = ("the PIN command", Duration::from_secs(60));
        Ok(PinCommand { setting, command, timeout, cancelled: &|| false, prepare: &|_| () }.run()?)
    }
}

/// Parses an HSM's URI. Clap's own parsers print a value that they reject, and somebody may have written a PIN into it.
#[derive(Debug)]
pub(crate) struct UriParser<T>(PhantomData<fn() -> T>);

impl<T> UriParser<T> {
    pub(crate) const NEW: Self = Self(PhantomData);
}

impl<T> Clone for UriParser<T> {
    fn clone(&self) -> Self {
        Self::NEW
    }
}

impl<T> TypedValueParser for UriParser<T>
where
    T: FromStr<Err: std::error::Error> + Clone + Send + Sync + 'static,
{
    type Value = T;

    fn parse_ref(
        &self,
        cmd: &Command,
        _arg: Option<&Arg>,
        value: &OsStr,
    ) -> std::result::Result<T, clap::Error> {
        let refused = |why: &dyn std::fmt::Display| {
            clap::Error::raw(ErrorKind::ValueValidation, format!("the HSM's URI: {why}\n")).with_cmd(cmd)
        };
        let text = value.to_str().ok_or_else(|| refused(&"it is not UTF-8"))?;
        text.parse().map_err(|error| refused(&error))
    }
}

/// Reads a PIN from a file, or from standard input for "-".
pub(crate) fn pin_from(path: &Path) -> std::result::Result<Pin, PinError> {
    if path != Path::new("-") {
        return Pin::from_file(path);
    }
    // `io::stdin()` would keep a copy in its buffer.
    let input = io::stdin().as_fd().try_clone_to_owned();
    let input = input.map_err(|source| PinError::Io { path: path.into(), source })?;
    Pin::from_reader(File::from(input))
}

/// Asks for a PIN on the terminal.
pub(crate) fn ask_pin(prompt: &str) -> Result<Pin> {
    if !io::stdin().is_terminal() {
        return Err(MissingOption::Pin.into());
    }
    let mut typed = rpassword::prompt_password(prompt)?;
    let mut secret = SecretBuf::with_capacity(typed.len());
    let taken = secret.extend_from_slice(typed.as_bytes());
    // The library's copy.
    zeroize::Zeroize::zeroize(&mut typed);
    taken?;
    Ok(Pin::from_secret(secret)?)
}

/// Which keyring.
#[derive(Args, Clone, Debug)]
pub(crate) struct KeyringArgs {
    /// Directory of the keyring
    #[arg(long, env = "TDE_KEYRING", value_name = "DIR")]
    pub(crate) keyring: Option<PathBuf>,
}

impl KeyringArgs {
    pub(crate) fn directory(&self) -> Result<&Path> {
        self.keyring.as_deref().ok_or_else(|| MissingOption::Keyring.into())
    }
}
