//! Why keys cannot be had.

use std::error::Error;
use std::path::PathBuf;

use keyring::{KeyringError, LoginError, LoginFailure, MasterKeyError};
use secret_mem::{ForkCanaryError, RandomError};

use super::FileId;
use super::pin::PinSourceError;
use super::settings::SettingsError;
use crate::error::Reason;

/// Keys cannot be had. Messages hold their causes: SQLite passes on one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// There is no such version.
    #[error(
        "key missing: version {version} of the data key of file {file} is not known; restore the keyring from a backup that has it"
    )]
    KeyMissing {
        /// The file's id.
        file: FileId,
        /// The DEK version.
        version: u32,
    },
    /// The key is not this file's.
    #[error("key wrong: version {version} of the data key of file {file} is not that key")]
    KeyWrong {
        /// The file's id.
        file: FileId,
        /// The DEK version.
        version: u32,
    },
    /// The keyring, or the HSM through it: missing, wrong, destroyed and away are told apart by its own variants.
    #[error("{}", with_causes(&**.0))]
    Keyring(#[source] Box<KeyringError>),
    /// No keyring has an entry for the file.
    #[error(
        "keyring entry missing: file {file} is not in {}; name its keyring (keyring=DIR or TDE_KEYRING), or bring its keys here with `tde keyring export` and `tde keyring import`",
        list(.searched)
    )]
    NoEntry {
        /// The file's id.
        file: FileId,
        /// The keyrings that were asked.
        searched: Vec<PathBuf>,
    },
    /// Several keyrings have an entry for the file.
    #[error("file {file} is in several keyrings ({}); name the one to use (keyring=DIR)", list(.keyrings))]
    Ambiguous {
        /// The file's id.
        file: FileId,
        /// The keyrings.
        keyrings: Vec<PathBuf>,
    },
    /// A new file, and several keyrings.
    #[error(
        "a new database, and several keyrings are open ({}); name the one to put its key into (keyring=DIR)",
        list(.keyrings)
    )]
    WhichKeyring {
        /// The keyrings.
        keyrings: Vec<PathBuf>,
    },
    /// The directory has no keyring, and the file has a key somewhere.
    #[error("there is no keyring in {}, but file {file} is encrypted: name the right one, or restore it from a backup", dir.display())]
    NoKeyringThere {
        /// The file's id.
        file: FileId,
        /// The directory.
        dir: PathBuf,
    },
    /// No setting names a keyring.
    #[error("no key: no keyring is configured; add keyring=DIR to the URI or set TDE_KEYRING")]
    NoKeyring,
    /// No setting names an HSM.
    #[error("no key: no HSM is configured; add hsm=soft:DIR to the URI or set TDE_HSM (also pkcs11:...)")]
    NoHsm,
    /// No setting says where the PIN is.
    #[error(
        "no key: the HSM's PIN is not configured; add pin_file=FILE to the URI, or set TDE_PIN_FILE or TDE_PIN_COMMAND"
    )]
    NoPin,
    /// A setting cannot be used.
    #[error(transparent)]
    Settings(Box<SettingsError>),
    /// The PIN could not be had.
    #[error("no PIN for the HSM {hsm}: {}", with_causes(&**source))]
    Pin {
        /// The HSM.
        hsm: String,
        /// Why not.
        source: Box<PinSourceError>,
    },
    /// The login failed.
    #[error("{} {hsm}: {}", login_failed(source), with_causes(&**source))]
    Login {
        /// The HSM.
        hsm: String,
        /// What it said.
        source: Box<LoginError>,
    },
    /// Every version was taken out of use.
    #[error(
        "{scope} in keyring {} has no active version of its data key: nothing can be written; make a new one with `tde sqlite rotate`",
        keyring.display()
    )]
    NoActiveVersion {
        /// The scope, in words.
        scope: String,
        /// The keyring.
        keyring: PathBuf,
    },
    /// Forks cannot be noticed.
    #[error(transparent)]
    ForkCanary(#[from] ForkCanaryError),
    /// The operating system gave no random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
}

impl From<KeyringError> for KeysError {
    fn from(error: KeyringError) -> Self {
        match error {
            KeyringError::Random(error) => Self::Random(error),
            other => Self::Keyring(Box::new(other)),
        }
    }
}

impl From<SettingsError> for KeysError {
    fn from(error: SettingsError) -> Self {
        Self::Settings(Box::new(error))
    }
}

impl KeysError {
    /// Whether this data key was destroyed by itself, not with the master key of everything.
    pub(crate) fn is_destroyed(&self) -> bool {
        let Self::Keyring(error) = self else { return false };
        matches!(**error, KeyringError::KeyDestroyed { source: None, .. })
    }

    /// The extended code.
    pub fn reason(&self) -> Reason {
        match self {
            Self::KeyMissing { .. } | Self::NoActiveVersion { .. } => Reason::KeyMissing,
            Self::KeyWrong { .. } => Reason::KeyWrong,
            Self::Keyring(error) => reason_of(error),
            Self::NoEntry { .. } | Self::NoKeyringThere { .. } => Reason::NoEntry,
            Self::Ambiguous { .. }
            | Self::WhichKeyring { .. }
            | Self::NoKeyring
            | Self::NoHsm
            | Self::NoPin
            | Self::Settings(_) => Reason::Config,
            Self::Pin { .. } => Reason::HsmRefused,
            Self::Login { source, .. } => reason_of_login(source.failure()),
            Self::ForkCanary(_) | Self::Random(_) => Reason::System,
        }
    }
}

fn reason_of_login(failure: LoginFailure) -> Reason {
    match failure {
        LoginFailure::NoKey => Reason::KeyMissing,
        LoginFailure::Refused => Reason::HsmRefused,
        _ => Reason::HsmAway,
    }
}

fn reason_of(error: &KeyringError) -> Reason {
    match error {
        KeyringError::KeyMissing { .. } => Reason::KeyMissing,
        KeyringError::KeyWrong { .. }
        | KeyringError::KeyringKeyWrong { .. }
        | KeyringError::OtherMasterKey { .. } => Reason::KeyWrong,
        KeyringError::KeyDestroyed { .. } => Reason::KeyDestroyed,
        KeyringError::HsmAway { source: MasterKeyError::Refused(_), .. }
        | KeyringError::MasterKey { source: MasterKeyError::Refused(_), .. } => Reason::HsmRefused,
        KeyringError::HsmAway { .. }
        | KeyringError::HsmDamaged { .. }
        | KeyringError::MasterKey { source: MasterKeyError::Away(_) | MasterKeyError::Damaged(_), .. } => {
            Reason::HsmAway
        }
        KeyringError::MasterKey { source: MasterKeyError::Missing { .. }, .. } => Reason::KeyMissing,
        KeyringError::MasterKey { source: MasterKeyError::Wrong { .. }, .. } => Reason::KeyWrong,
        KeyringError::MasterKey { source: MasterKeyError::Destroyed { .. }, .. } => Reason::KeyDestroyed,
        _ => Reason::Keyring,
    }
}

fn login_failed(error: &LoginError) -> &'static str {
    match error.failure() {
        LoginFailure::Refused | LoginFailure::NoKey | LoginFailure::Settings => "cannot log in to the HSM",
        LoginFailure::Damaged => "HSM damaged:",
        _ => "HSM away:",
    }
}

/// `what: why: why`, without saying twice what an error repeats of its cause.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

fn list(paths: &[PathBuf]) -> String {
    match paths {
        [] => "any open keyring (none is open)".into(),
        [one] => format!("keyring {}", one.display()),
        many => {
            let names: Vec<_> = many.iter().map(|path| path.display().to_string()).collect();
            format!("keyrings {}", names.join(", "))
        }
    }
}
