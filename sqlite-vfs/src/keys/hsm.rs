//! One HSM as this process is logged in to it.

use std::sync::{Arc, Mutex, PoisonError};

use keyring::pkcs11::AgentOptions;
use keyring::{AnyHsm, HsmUri, KeyringError, LoginFailure, MasterKeyError};

use super::KeysError;
use super::pin::PinSource;

/// Logs in when it is first needed, keeps the session, and logs in again when the HSM does not know the session any more or was
/// away. Threads that need it at the same time wait for one login.
pub(super) struct HsmDoor {
    uri: HsmUri,
    pin: PinSource,
    session: Mutex<Option<Arc<AnyHsm>>>,
}

impl HsmDoor {
    pub(super) fn new(uri: HsmUri, pin: PinSource) -> Self {
        Self { uri, pin, session: Mutex::new(None) }
    }

    /// Whether this is the door for these settings.
    pub(super) fn is_for(&self, uri: &HsmUri, pin: &PinSource) -> bool {
        self.uri == *uri && self.pin.is(pin)
    }

    pub(super) fn uri(&self) -> &HsmUri {
        &self.uri
    }

    /// The session, logged in if need be.
    pub(super) fn session(&self) -> Result<Arc<AnyHsm>, KeysError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = &*session {
            return Ok(Arc::clone(session));
        }
        let hsm = || self.uri.to_string();
        let pin = self
            .pin
            .ask(&self.uri)
            .map_err(|source| KeysError::Pin { hsm: hsm(), source: Box::new(source) })?;
        let opened = AnyHsm::open(&self.uri, pin, AgentOptions::default())
            .map_err(|source| KeysError::Login { hsm: hsm(), source: Box::new(source) })?;
        Ok(Arc::clone(session.insert(Arc::new(opened))))
    }

    /// Does something with the session; once more with a new one, if this one is of no use any more.
    pub(super) fn with<T>(&self, run: impl Fn(&AnyHsm) -> Result<T, KeyringError>) -> Result<T, KeysError> {
        let session = self.session()?;
        let failed = match run(&session) {
            Err(error) if session_may_be_stale(&error) => error,
            done => return Ok(done?),
        };
        self.forget(&session);
        drop(session);
        match self.session() {
            Ok(session) => Ok(run(&session)?),
            // What it was needed for tells more than that it is still away.
            Err(KeysError::Login { source, .. }) if source.failure() == LoginFailure::Away => {
                Err(failed.into())
            }
            Err(error) => Err(error),
        }
    }

    fn forget(&self, stale: &Arc<AnyHsm>) {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.as_ref().is_some_and(|current| Arc::ptr_eq(current, stale)) {
            *session = None;
        }
    }
}

/// The HSM was restored or moved, or was away for a moment: a new login may help. It never does for a key that is missing, wrong or
/// destroyed.
fn session_may_be_stale(error: &KeyringError) -> bool {
    match error {
        KeyringError::HsmAway { .. } | KeyringError::HsmDamaged { .. } => true,
        KeyringError::MasterKey { source, .. } => {
            matches!(
                source,
                MasterKeyError::Away(_) | MasterKeyError::Damaged(_) | MasterKeyError::Refused(_)
            )
        }
        _ => false,
    }
}
