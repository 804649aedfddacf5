//! The keys that settings lead to.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use keyring::{HsmUri, KeyringError, Scope, Unlocked};

use super::keychain::{Keychain, OpenKeyring, create_keyring, open_keyring};
use super::pin::PinSource;
use super::{FileId, FileKeys, KeySource, KeysError, Settings};

/// Keys by settings: those of the file name's URI, of the program, and of the environment.
///
/// A file that exists is looked up by its id in the keyring that the settings name; if the URI does not name one (as with
/// ATTACH and VACUUM INTO), also in the other keyrings that the process has open. The key of a new file goes to the keyring
/// that the settings name, or to the only open one. A keyring that does not exist is made for the first new file, unless the HSM
/// knows of one in that place.
pub struct Configured {
    uri: Settings,
    program: Settings,
    /// Tests have their own.
    keychain: Option<Arc<Keychain>>,
}

impl Configured {
    /// Settings of the URI, then those of the program; the environment is looked at when it is needed.
    pub fn new(uri: Settings, program: Settings) -> Self {
        Self { uri, program, keychain: None }
    }

    #[cfg(test)]
    pub(super) fn with_keychain(uri: Settings, program: Settings, keychain: &Arc<Keychain>) -> Self {
        Self { uri, program, keychain: Some(Arc::clone(keychain)) }
    }

    fn keychain(&self) -> Result<&Keychain, KeysError> {
        match &self.keychain {
            Some(keychain) => Ok(keychain),
            None => Keychain::of_this_process(),
        }
    }

    fn settings(&self) -> Result<Settings, KeysError> {
        let settings = self.uri.clone().over(self.program.clone());
        if settings.is_complete() {
            return Ok(settings);
        }
        Ok(settings.over(Settings::from_environment()?))
    }

    /// The keyring that the settings name; `Ok(None)` if there is none in that place.
    fn named(
        &self,
        settings: &Settings,
        dir: &Path,
        make: bool,
    ) -> Result<Option<Arc<OpenKeyring>>, KeysError> {
        self.keychain()?.keyring(dir, || {
            let uri = settings.hsm.clone().ok_or(KeysError::NoHsm)?;
            let pin = pin_of(settings, &uri)?;
            let hsm = self.keychain()?.door(uri, pin);
            let unlocked = match open_keyring(dir, &hsm)? {
                None if make => Some(create_keyring(dir, &hsm)?),
                found => found,
            };
            Ok(unlocked.map(|unlocked| (unlocked, hsm)))
        })
    }

    /// The keys of a file in one keyring, if it knows the file.
    fn find_in(
        &self,
        keyring: &Arc<OpenKeyring>,
        id: FileId,
        find: impl Fn(&Unlocked) -> Result<Option<Scope>, KeyringError>,
    ) -> Result<Option<Arc<FileKeys>>, KeysError> {
        let keychain = self.keychain()?;
        if let Some(keys) = keychain.file(keyring, id) {
            return Ok(Some(keys));
        }
        let Some(scope) = find(keyring.keyring())? else { return Ok(None) };
        let keys = FileKeys::of_scope(id, Arc::clone(keyring), &scope)?;
        Ok(Some(keychain.keep(keyring, keys)))
    }

    /// As `find_in`, in the named keyring. Another keyring may have been put into its place since it was opened.
    fn find_named(
        &self,
        settings: &Settings,
        dir: &Path,
        id: FileId,
    ) -> Result<Option<Arc<FileKeys>>, KeysError> {
        let none_there = || KeysError::NoKeyringThere { file: id, dir: dir.into() };
        let keyring = self.named(settings, dir, false)?.ok_or_else(none_there)?;
        match self.find_in(&keyring, id, |unlocked| unlocked.find_sqlite_file(&id.0)) {
            Err(KeysError::Keyring(error)) if is_another(&error) => {
                self.keychain()?.forget(&keyring);
                let keyring = self.named(settings, dir, false)?.ok_or_else(none_there)?;
                self.find_in(&keyring, id, |unlocked| unlocked.find_sqlite_file(&id.0))
            }
            found => found,
        }
    }

    /// In every open keyring: first with two reads each, then by looking at every record.
    fn find_open(&self, id: FileId) -> Result<Option<Arc<FileKeys>>, KeysError> {
        let open = self.keychain()?.open_keyrings();
        for thorough in [false, true] {
            let mut found = Vec::new();
            for keyring in &open {
                let keys = self.find_in(keyring, id, |unlocked| {
                    if thorough {
                        return unlocked.find_sqlite_file(&id.0);
                    }
                    // A record that cannot be read must not hide a good one in another keyring; the thorough look reports it.
                    Ok(unlocked.hinted_sqlite_file(&id.0).unwrap_or(None))
                })?;
                found.extend(keys.map(|keys| (keyring, keys)));
            }
            // One keyring under two paths is one keyring.
            let distinct: BTreeSet<_> =
                found.iter().map(|(keyring, _)| keyring.keyring().keyring()).collect();
            if distinct.len() > 1 {
                let keyrings = found.iter().map(|(keyring, _)| keyring.dir().into()).collect();
                return Err(KeysError::Ambiguous { file: id, keyrings });
            }
            if let Some((_, keys)) = found.into_iter().next() {
                return Ok(Some(keys));
            }
        }
        Ok(None)
    }

    /// The keyring for a new file.
    fn for_new(&self, make: bool) -> Result<Option<Arc<OpenKeyring>>, KeysError> {
        let settings = self.settings()?;
        if let Some(dir) = &settings.keyring {
            return self.named(&settings, dir, make);
        }
        let mut open = self.keychain()?.open_keyrings();
        match (open.pop(), open.len()) {
            (Some(only), 0) => Ok(Some(only)),
            (None, _) => Err(KeysError::NoKeyring),
            (Some(last), _) => {
                let mut keyrings: Vec<_> = open.iter().map(|keyring| keyring.dir().into()).collect();
                keyrings.push(last.dir().into());
                Err(KeysError::WhichKeyring { keyrings })
            }
        }
    }
}

impl KeySource for Configured {
    fn existing(&self, id: FileId, _db: &str) -> Result<Arc<FileKeys>, KeysError> {
        let settings = self.settings()?;
        let named = match &settings.keyring {
            Some(dir) => self.find_named(&settings, dir, id),
            None => Ok(None),
        };
        if self.uri.keyring.is_some() || matches!(named, Ok(Some(_))) {
            let searched = settings.keyring.into_iter().collect();
            return named?.ok_or(KeysError::NoEntry { file: id, searched });
        }
        if let Some(keys) = self.find_open(id)? {
            return Ok(keys);
        }
        named?;
        let open = self.keychain()?.open_keyrings();
        if settings.keyring.is_none() && open.is_empty() {
            return Err(KeysError::NoKeyring);
        }
        let searched = open.iter().map(|keyring| keyring.dir().to_path_buf());
        Err(KeysError::NoEntry { file: id, searched: searched.collect() })
    }

    fn ready(&self, _db: &str) -> Result<(), KeysError> {
        if self.for_new(false)?.is_some() {
            return Ok(());
        }
        // It will be made with the first key: log in now, so that a wrong PIN shows now.
        let settings = self.settings()?;
        let uri = settings.hsm.clone().ok_or(KeysError::NoHsm)?;
        let pin = pin_of(&settings, &uri)?;
        self.keychain()?.door(uri, pin).session().map(drop)
    }

    fn create(&self, _db: &str) -> Result<Arc<FileKeys>, KeysError> {
        let keyring = self.for_new(true)?.ok_or(KeysError::NoKeyring)?;
        let mut id = [0; 12];
        secret_mem::random(&mut id)?;
        let id = FileId(id);
        let (scope, data_key) = keyring.add_file(id)?;
        let keys = FileKeys::of_new(id, Arc::clone(&keyring), &scope, &data_key)?;
        Ok(self.keychain()?.keep(&keyring, keys))
    }
}

/// Where the settings say that the PIN is, or else the HSM's URI (`pin-source`).
fn pin_of(settings: &Settings, uri: &HsmUri) -> Result<PinSource, KeysError> {
    let by_uri = || uri.pin_source().map(|file| PinSource::File(file.clone()));
    settings.pin.clone().or_else(by_uri).ok_or(KeysError::NoPin)
}

/// Whether a keyring's files may be those of another one.
fn is_another(error: &KeyringError) -> bool {
    matches!(error, KeyringError::ForeignKeyring { .. } | KeyringError::SealMismatch { .. })
}
