//! Looks every now and then whether the HSM still lets this server use its keys.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use keyring::{Keyring, KeyringError, LoginFailure, MasterKeyError, TablespaceState};

use crate::ffi::server;
use crate::key_table::{KeyTable, Lock};
use crate::keys::{self, KeyError};
use crate::{lock, report, settings};

/// What the launcher remembers between two looks.
#[derive(Default)]
pub(crate) struct Watch {
    last: Option<Instant>,
    /// The HSM refused PIN or user: not asked again before the configuration is read again, or it would lock the user.
    refused_at: Option<i64>,
    bad: bool,
}

impl Watch {
    /// Asks the HSM if it is time.
    pub(crate) fn look(&mut self, table: &KeyTable) {
        let Some(interval) = settings::hsm_check_interval() else { return };
        let due = self.last.is_none_or(|last| last.elapsed() >= interval);
        let reloaded = server::reload_time();
        if !due || table.lock() != Lock::Open || self.refused_at == Some(reloaded) {
            return;
        }
        // Not at once: the server has just had the keys.
        if self.last.replace(Instant::now()).is_none() {
            return;
        }
        self.refused_at = None;
        match probe(table) {
            Ok(()) if self.bad => {
                self.bad = false;
                report::hsm_is_back();
            }
            Ok(()) => (),
            Err(error) if !is_no(&error) => {
                self.bad = true;
                report::hsm_is_away(&error);
            }
            Err(error) => {
                self.bad = true;
                self.refused_at = error.is_refused().then_some(reloaded);
                report::hsm_refuses(&error, settings::lock_on_refusal());
                if settings::lock_on_refusal() {
                    lock::lock_in_background();
                }
            }
        }
    }
}

/// How long the launcher may sleep between two looks.
pub(crate) fn pause(longest: Duration) -> Duration {
    settings::hsm_check_interval().map_or(longest, |interval| interval.min(longest))
}

/// Unwraps the keyring's key and one data key under each version of the master key.
fn probe(table: &KeyTable) -> Result<(), KeyError> {
    if table.seal_key().is_none() {
        return Ok(()); // a standby that has yet to be told its keyring
    }
    let hsm = keys::open_hsm()?;
    let keyring = Keyring::open(&settings::keyring_directory())?.unlock(&hsm)?;
    let mut by_version = BTreeMap::new();
    let used = |line: u64| table.lines().any(|known| known.line == line && known.span.alive());
    for scope in keyring.survey()?.scopes {
        if scope.state() == TablespaceState::Retired || !used(scope.line.0) {
            continue;
        }
        if let Some((master, version)) =
            scope.active().and_then(|entry| Some((entry.master_version()?, entry.version)))
        {
            by_version.insert(master, (scope, version));
        }
    }
    for (scope, version) in by_version.values() {
        keyring.dek_of(scope, *version, &hsm)?;
    }
    Ok(())
}

/// Whether the HSM said that the key may not be used, as opposed to not answering.
fn is_no(error: &KeyError) -> bool {
    use MasterKeyError::{Destroyed, Missing, Refused, Wrong};
    let no = |source: &MasterKeyError| {
        matches!(source, Missing { .. } | Wrong { .. } | Destroyed { .. } | Refused(_))
    };
    match error {
        KeyError::Login(error) => matches!(error.failure(), LoginFailure::Refused | LoginFailure::NoKey),
        KeyError::Hsm(source)
        | KeyError::Keyring(KeyringError::HsmAway { source, .. } | KeyringError::MasterKey { source, .. }) => {
            no(source)
        }
        KeyError::Keyring(
            KeyringError::KeyMissing { source: Some(_), .. }
            | KeyringError::KeyDestroyed { source: Some(_), .. }
            | KeyringError::KeyWrong { .. }
            | KeyringError::KeyringKeyWrong { .. }
            | KeyringError::OtherMasterKey { .. },
        ) => true,
        _ => false,
    }
}
