//! Which keyring, which HSM, which PIN.
//!
//! | setting | URI parameter | environment | API |
//! |---|---|---|---|
//! | keyring's directory | `keyring` | `TDE_KEYRING` | [`Settings::keyring`] |
//! | HSM | `hsm` | `TDE_HSM` | [`Settings::hsm`] |
//! | PIN | `pin_file` | `TDE_PIN_FILE`, `TDE_PIN_COMMAND` | [`Settings::pin_file`], [`Settings::pin_command`], [`Settings::pin_callback`] |
//!
//! Each setting by itself is taken from the first of URI, API and environment that has it. Of two environment variables for the
//! PIN the file counts. A PIN itself, and a command, are never taken from a URI: URIs end up in logs, and a URI may come from whoever names
//! the file.
//! For the same reason a URI may name a PKCS#11 module only if root alone can have put it where it is.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use keyring::pkcs11::Pkcs11Uri;
use keyring::{HsmUri, HsmUriError};

use super::pin::{PinCallback, PinSource};

/// What is known of keyring, HSM and PIN; nothing is set at first.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub(super) keyring: Option<PathBuf>,
    pub(super) hsm: Option<HsmUri>,
    pub(super) pin: Option<PinSource>,
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A PIN in a URI.
    #[error(
        "the URI parameter \"{parameter}\" is refused: URIs end up in logs, and may come from whoever names the file; give the PIN by pin_file=FILE, TDE_PIN_FILE, TDE_PIN_COMMAND or the API"
    )]
    PinInUri {
        /// The parameter.
        parameter: &'static str,
    },
    /// The HSM's URI.
    #[error("{from}: {source}")]
    Hsm {
        /// Where it was given.
        from: &'static str,
        /// What is wrong with it.
        source: HsmUriError,
    },
    /// A library that anybody could have put there.
    #[error(
        "the URI parameter \"hsm\" names the PKCS#11 module {}, which is refused because others than root may change it or a folder above it: a URI may come from whoever names the file; name the module in TDE_HSM, TDE_PKCS11_MODULE or by the API", module.display()
    )]
    ModuleInUri {
        /// The library.
        module: PathBuf,
    },
    /// Not text.
    #[error("{from} is not valid UTF-8")]
    NotText {
        /// Where it was given.
        from: &'static str,
    },
    /// A relative path, and no current directory.
    #[error("the keyring's path {} cannot be made absolute: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl Settings {
    /// Nothing is set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The keyring's directory. A relative path counts from the current directory of now.
    ///
    /// # Errors
    /// A relative path, and there is no current directory.
    pub fn keyring(mut self, dir: impl AsRef<Path>) -> Result<Self, SettingsError> {
        let path = dir.as_ref();
        let failed = |source| SettingsError::Path { path: path.into(), source };
        self.keyring = Some(std::path::absolute(path).map_err(failed)?);
        Ok(self)
    }

    /// The HSM.
    pub fn hsm(mut self, uri: impl Into<HsmUri>) -> Self {
        self.hsm = Some(uri.into());
        self
    }

    /// A file with the PIN, readable by its owner only.
    pub fn pin_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.pin = Some(PinSource::File(file.into()));
        self
    }

    /// A command that prints the PIN, run by `/bin/sh`.
    pub fn pin_command(mut self, command: impl Into<String>) -> Self {
        self.pin = Some(PinSource::Command(command.into()));
        self
    }

    /// A function that gives the PIN.
    pub fn pin_callback(mut self, callback: PinCallback) -> Self {
        self.pin = Some(PinSource::Callback(callback));
        self
    }

    /// From `TDE_KEYRING`, `TDE_HSM`, `TDE_PIN_FILE` and `TDE_PIN_COMMAND`; empty ones count as unset.
    ///
    /// # Errors
    /// A value that cannot be used.
    pub fn from_environment() -> Result<Self, SettingsError> {
        Self::from_variables(|name| env::var_os(name))
    }

    pub(super) fn from_variables(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let get = |name| get(name).filter(|value| !value.is_empty());
        let text = |from: &'static str, value: OsString| {
            value.into_string().map_err(|_| SettingsError::NotText { from })
        };
        let mut settings = Self::new();
        if let Some(dir) = get("TDE_KEYRING") {
            settings = settings.keyring(PathBuf::from(dir))?;
        }
        if let Some(uri) = get("TDE_HSM") {
            settings.hsm = Some(parse_hsm("TDE_HSM", &text("TDE_HSM", uri)?)?);
        }
        if let Some(command) = get("TDE_PIN_COMMAND") {
            settings = settings.pin_command(text("TDE_PIN_COMMAND", command)?);
        }
        if let Some(file) = get("TDE_PIN_FILE") {
            settings = settings.pin_file(PathBuf::from(file));
        }
        Ok(settings)
    }

    /// From the parameters of the file name's URI; `get` gives the value of one.
    ///
    /// # Errors
    /// A value that cannot be used, or a parameter that is refused.
    pub fn from_uri(get: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        for parameter in ["pin", "pin_command"] {
            if get(parameter).is_some() {
                return Err(SettingsError::PinInUri { parameter });
            }
        }
        let get = |name| get(name).filter(|value| !value.is_empty());
        let mut settings = Self::new();
        if let Some(dir) = get("keyring") {
            settings = settings.keyring(dir)?;
        }
        if let Some(uri) = get("hsm") {
            let uri = parse_hsm("the URI parameter \"hsm\"", &uri)?;
            if let HsmUri::Pkcs11(Pkcs11Uri { module: Some(module), .. }) = &uri
                && !is_of_the_system(module)
            {
                return Err(SettingsError::ModuleInUri { module: module.clone() });
            }
            settings.hsm = Some(uri);
        }
        if let Some(file) = get("pin_file") {
            settings = settings.pin_file(file);
        }
        Ok(settings)
    }

    /// These, and what they leave open from `lower`.
    pub fn over(self, lower: Self) -> Self {
        Self {
            keyring: self.keyring.or(lower.keyring),
            hsm: self.hsm.or(lower.hsm),
            pin: self.pin.or(lower.pin),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.keyring.is_some() && self.hsm.is_some() && self.pin.is_some()
    }
}

/// Whether only root can have put this file there: it and every folder above it is root's, and nobody else may write.
fn is_of_the_system(file: &Path) -> bool {
    let Ok(file) = file.canonicalize() else { return false };
    file.ancestors()
        .all(|path| path.symlink_metadata().is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o022 == 0))
}

fn parse_hsm(from: &'static str, uri: &str) -> Result<HsmUri, SettingsError> {
    uri.parse().map_err(|source| SettingsError::Hsm { from, source })
}
