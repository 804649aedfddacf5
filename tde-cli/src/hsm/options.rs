//! Options that several `tde hsm` commands share.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use hsm_engine::{DEFAULT_OFFICER, Hsm, Pin, PinError, Session, SoftUri, UriError};

use crate::credentials::{UriParser, ask_pin, pin_from};
use crate::output::Output;

pub(super) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// A human PIN below this length is warned about.
const SHORT: usize = 12;

/// Which HSM: a directory, or the URI that other commands take.
#[derive(Clone, Debug)]
pub(super) struct Store(pub(super) SoftUri);

impl FromStr for Store {
    type Err = UriError;

    fn from_str(text: &str) -> std::result::Result<Self, UriError> {
        // With TDE_HSM set for a token, its URI is no directory's name.
        if text.starts_with("soft:") || text.starts_with("pkcs11:") {
            text.parse().map(Self)
        } else {
            Ok(Self(SoftUri::new(text)))
        }
    }
}

/// Which HSM.
#[derive(Args, Clone, Debug)]
pub(super) struct StoreArgs {
    /// Directory of the HSM's store, or its URI (soft:DIR)
    #[arg(long, env = "TDE_HSM", value_name = "DIR", hide_env_values = true, value_parser = UriParser::<Store>::NEW)]
    store: Option<Store>,
}

impl StoreArgs {
    pub(super) fn uri(&self) -> Result<&SoftUri> {
        Ok(&self.store.as_ref().ok_or(Missing)?.0)
    }

    pub(super) fn open(&self) -> Result<Hsm> {
        Ok(Hsm::open_uri(self.uri()?)?)
    }
}

/// As which user, with which PIN.
#[derive(Args, Clone, Debug)]
pub(super) struct UserArgs {
    /// Name of the user ["user" unless the URI names another]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// File with the user's PIN, readable by its owner only ("-" reads standard input)
    #[arg(long, env = "TDE_PIN_FILE", value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

impl UserArgs {
    pub(super) fn name<'a>(&'a self, uri: &'a SoftUri) -> &'a str {
        self.user.as_deref().unwrap_or(&uri.user)
    }

    /// Logs in; asks for the PIN if no file is given.
    pub(super) fn login(&self, hsm: &Hsm, uri: &SoftUri) -> Result<(Session, Pin)> {
        let name = self.name(uri);
        let pin = pin_or_ask(self.pin_file.as_deref(), name)?;
        Ok((hsm.login(name, &pin)?, pin))
    }

    /// Logs in if a file is given.
    pub(super) fn login_if_given(&self, hsm: &Hsm, uri: &SoftUri) -> Option<Result<Session>> {
        self.pin_file.as_ref().map(|_| self.login(hsm, uri).map(|(session, _)| session))
    }

    pub(super) fn of(name: &str, pin_file: Option<PathBuf>) -> Self {
        Self { user: Some(name.into()), pin_file }
    }
}

/// As which officer, with which PIN.
#[derive(Args, Clone, Debug)]
pub(super) struct OfficerArgs {
    /// Name of the crypto officer
    #[arg(long, value_name = "NAME", default_value = DEFAULT_OFFICER)]
    officer: String,
    /// File with the officer's PIN, readable by its owner only ("-" reads standard input)
    #[arg(long, value_name = "FILE")]
    officer_pin_file: Option<PathBuf>,
}

impl OfficerArgs {
    pub(super) fn name(&self) -> &str {
        &self.officer
    }

    pub(super) fn pin(&self) -> Result<Pin> {
        pin_or_ask(self.officer_pin_file.as_deref(), &self.officer)
    }

    pub(super) fn login(&self, hsm: &Hsm) -> Result<Session> {
        Ok(hsm.login(&self.officer, &self.pin()?)?)
    }
}

fn pin_or_ask(file: Option<&Path>, user: &str) -> Result<Pin> {
    match file {
        Some(file) => Ok(pin_from(file)?),
        None => ask_pin(&format!("PIN of HSM user \"{user}\": ")),
    }
}

/// A PIN that is about to be set, and whether its file was made for it.
pub(super) struct NewPin {
    pub(super) pin: Pin,
    pub(super) made: bool,
}

/// Reads a new PIN from `file`; makes both if the file does not exist.
pub(super) fn new_pin(file: &Path, output: &Output) -> Result<NewPin> {
    match pin_from(file) {
        Ok(pin) => {
            if !pin.is_generated() && pin.len() < SHORT {
                output.warn(&PinWarning::Short { file: file.into(), len: pin.len() });
            }
            Ok(NewPin { pin, made: false })
        }
        Err(PinError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let pin = Pin::generate()?;
            pin.write_new_file(file)?;
            Ok(NewPin { pin, made: true })
        }
        Err(e) => Err(e.into()),
    }
}

/// Warns if whoever takes the disk with the store also takes the PIN.
pub(super) fn warn_if_beside(file: &Path, store: &Path, output: &Output) {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev()).ok();
    if file != Path::new("-") && device(file).is_some() && device(file) == device(store) {
        output.warn(&PinWarning::SameFileSystem { file: file.into(), store: store.into() });
    }
}

#[derive(Debug, thiserror::Error)]
#[error("which HSM? Give --store DIR or set TDE_HSM")]
struct Missing;

#[derive(Debug, thiserror::Error)]
enum PinWarning {
    #[error(
        "PIN file {} is on the same file system as the HSM's store {}: whoever gets that disk or a backup of it has both; \
         keep the PIN elsewhere, such as in a systemd credential", .file.display(), .store.display()
    )]
    SameFileSystem { file: PathBuf, store: PathBuf },
    #[error(
        "the PIN in {} has only {len} bytes: whoever copies the store can try them all; a file that does not exist yet \
         is made with a PIN that nobody can guess", .file.display()
    )]
    Short { file: PathBuf, len: usize },
}
