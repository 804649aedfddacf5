//! Any HSM that settings may name: the one in the process, or a PKCS#11 token.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hsm_engine::{ErrorKind, HsmError, Pin, SoftUri, UriError};
use secret_mem::SecretBytes;

use crate::ids::{GenerationId, InstanceId, KeyringId, MasterKeyId};
use crate::master::{MasterKey, MasterKeyError, WrappedKey};
use crate::pkcs11::{self, AgentOptions, Pkcs11Error, Pkcs11Hsm, Pkcs11Uri, Pkcs11UriError};
use crate::soft::SoftHsm;

/// Where the master key lives: `soft:DIRECTORY` or `pkcs11:...`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HsmUri {
    /// The HSM in the process.
    Soft(SoftUri),
    /// A token.
    Pkcs11(Pkcs11Uri),
}

/// Text that names no HSM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HsmUriError {
    /// Another scheme. The text is not repeated beyond it: it might hold a PIN.
    #[error(
        "\"{scheme}\" names no kind of HSM: use soft:DIRECTORY, as in soft:/var/lib/tde/hsm, or pkcs11:token=NAME?module-path=FILE"
    )]
    Scheme {
        /// What stands before the first colon.
        scheme: String,
    },
    /// Of the HSM in the process.
    #[error(transparent)]
    Soft(#[from] UriError),
    /// Of a token.
    #[error(transparent)]
    Pkcs11(#[from] Pkcs11UriError),
}

impl HsmUri {
    /// The store's directory, if the store is one.
    pub fn store(&self) -> Option<&Path> {
        match self {
            Self::Soft(uri) => Some(&uri.dir),
            Self::Pkcs11(_) => None,
        }
    }

    /// File with the PIN that the URI itself names.
    pub fn pin_source(&self) -> Option<&PathBuf> {
        match self {
            Self::Soft(_) => None,
            Self::Pkcs11(uri) => uri.pin_source.as_ref(),
        }
    }

    /// Who logs in, in words.
    pub fn user(&self) -> String {
        match self {
            Self::Soft(uri) => format!("HSM user \"{}\"", uri.user),
            Self::Pkcs11(uri) => format!("token \"{}\"", uri.token.as_deref().unwrap_or("(the only one)")),
        }
    }
}

impl From<SoftUri> for HsmUri {
    fn from(uri: SoftUri) -> Self {
        Self::Soft(uri)
    }
}

impl From<Pkcs11Uri> for HsmUri {
    fn from(uri: Pkcs11Uri) -> Self {
        Self::Pkcs11(uri)
    }
}

impl FromStr for HsmUri {
    type Err = HsmUriError;

    fn from_str(text: &str) -> Result<Self, HsmUriError> {
        if text.starts_with(pkcs11::SCHEME) {
            return Ok(Self::Pkcs11(text.parse()?));
        }
        match text.parse() {
            Ok(uri) => Ok(Self::Soft(uri)),
            Err(UriError::Scheme { uri }) => {
                let scheme = uri.split([':', '?']).next().unwrap_or_default().to_owned();
                Err(HsmUriError::Scheme { scheme })
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl fmt::Display for HsmUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Soft(uri) => uri.fmt(f),
            Self::Pkcs11(uri) => uri.fmt(f),
        }
    }
}

/// Nobody is logged in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// The HSM in the process.
    #[error(transparent)]
    Soft(#[from] HsmError),
    /// A token.
    #[error(transparent)]
    Pkcs11(#[from] Pkcs11Error),
}

/// What to do about a [`LoginError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoginFailure {
    /// Wait: the HSM is away, or the user must wait after wrong PINs.
    Away,
    /// Change PIN or user: the HSM refused them.
    Refused,
    /// The HSM has no such master key.
    NoKey,
    /// The HSM's store is damaged.
    Damaged,
    /// Change the settings.
    Settings,
}

impl LoginError {
    /// What to do about it.
    pub fn failure(&self) -> LoginFailure {
        match self {
            // Not a wrong PIN: to try it again and again would lock the user.
            Self::Soft(HsmError::LockedUntil { .. }) => LoginFailure::Away,
            Self::Soft(error) => match error.kind() {
                ErrorKind::HsmAway => LoginFailure::Away,
                ErrorKind::Login | ErrorKind::Denied => LoginFailure::Refused,
                ErrorKind::KeyMissing => LoginFailure::NoKey,
                ErrorKind::Damaged => LoginFailure::Damaged,
                _ => LoginFailure::Settings,
            },
            Self::Pkcs11(error) if error.is_away() => LoginFailure::Away,
            Self::Pkcs11(Pkcs11Error::Refused(_)) => LoginFailure::Refused,
            Self::Pkcs11(Pkcs11Error::NoKey(_) | Pkcs11Error::Key(..)) => LoginFailure::NoKey,
            Self::Pkcs11(_) => LoginFailure::Settings,
        }
    }
}

/// A master key of whichever HSM the settings name, logged in to.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnyHsm {
    /// In the process.
    Soft(SoftHsm),
    /// On a token.
    Pkcs11(Pkcs11Hsm),
}

impl AnyHsm {
    /// Logs in and finds the master key.
    ///
    /// # Errors
    /// See [`LoginError::failure`].
    pub fn open(uri: &HsmUri, pin: Pin, options: AgentOptions) -> Result<Self, LoginError> {
        Ok(match uri {
            HsmUri::Soft(uri) => Self::Soft(SoftHsm::open(uri, &pin)?),
            HsmUri::Pkcs11(uri) => Self::Pkcs11(Pkcs11Hsm::open(uri, pin, options)?),
        })
    }

    /// Logs out, and says if that could not be recorded.
    ///
    /// # Errors
    /// The audit log of the HSM in the process cannot be written.
    pub fn close(self) -> Result<(), HsmError> {
        match self {
            Self::Soft(hsm) => hsm.close(),
            Self::Pkcs11(_) => Ok(()),
        }
    }

    fn master(&self) -> &dyn MasterKey {
        match self {
            Self::Soft(hsm) => hsm,
            Self::Pkcs11(hsm) => hsm,
        }
    }
}

impl MasterKey for AnyHsm {
    fn id(&self) -> MasterKeyId {
        self.master().id()
    }

    fn label(&self) -> &str {
        self.master().label()
    }

    fn primary_version(&self) -> Result<u32, MasterKeyError> {
        self.master().primary_version()
    }

    fn generate_version(&mut self) -> Result<u32, MasterKeyError> {
        match self {
            Self::Soft(hsm) => hsm.generate_version(),
            Self::Pkcs11(hsm) => hsm.generate_version(),
        }
    }

    fn version_created(&self, version: u32) -> Result<Option<u64>, MasterKeyError> {
        self.master().version_created(version)
    }

    fn wrap(&self, key: &SecretBytes<32>) -> Result<WrappedKey, MasterKeyError> {
        self.master().wrap(key)
    }

    fn unwrap(&self, wrapped: &WrappedKey) -> Result<SecretBytes<32>, MasterKeyError> {
        self.master().unwrap(wrapped)
    }

    fn generate_data_key(&self) -> Result<(SecretBytes<32>, WrappedKey), MasterKeyError> {
        self.master().generate_data_key()
    }

    fn generation(&self, of: &GenerationId) -> Result<Option<u64>, MasterKeyError> {
        self.master().generation(of)
    }

    fn raise_generation(&self, of: &GenerationId, generation: u64) -> Result<(), MasterKeyError> {
        self.master().raise_generation(of, generation)
    }

    fn forget_generation(&self, of: &GenerationId) -> Result<(), MasterKeyError> {
        self.master().forget_generation(of)
    }

    fn generations_of_instance(&self, at: InstanceId) -> Result<Vec<(KeyringId, u64)>, MasterKeyError> {
        self.master().generations_of_instance(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scheme_has_its_hsm() {
        let soft: HsmUri = "soft:/h?user=pg".parse().unwrap();
        assert!(matches!(&soft, HsmUri::Soft(uri) if uri.user == "pg"));
        let token: HsmUri = "pkcs11:token=t".parse().unwrap();
        assert!(matches!(&token, HsmUri::Pkcs11(uri) if uri.token.as_deref() == Some("t")));
        assert_eq!((soft.to_string(), token.store()), ("soft:/h?user=pg".into(), None));
        let error = "vault:/x?token=98765".parse::<HsmUri>().unwrap_err().to_string();
        assert!(error.contains("\"vault\"") && error.contains("soft:"), "{error}");
        assert!(!error.contains("98765"));
    }
}
