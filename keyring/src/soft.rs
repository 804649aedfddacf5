//! The HSM in the process as a master key.

use std::fmt;

use hsm_engine::{ErrorKind, Hsm, HsmError, KeyHandle, Pin, Return, Session, SoftUri, Wrapped};
use secret_mem::SecretBytes;
use uuid::Uuid;

use crate::ids::{GenerationId, InstanceId, KeyringId, MasterKeyId};
use crate::master::{MasterKey, MasterKeyError, WrappedKey};

/// One master key of an `hsm_engine` session. A session belongs to the process that logged in: use it there
/// and drop it; a forked child logs in itself.
pub struct SoftHsm {
    session: Session,
    key: KeyHandle,
}

impl SoftHsm {
    /// Logs in to the HSM that `uri` names and finds the master key.
    ///
    /// # Errors
    /// What the HSM says: no store there, wrong PIN, locked user, no key of that label.
    pub fn open(uri: &SoftUri, pin: &Pin) -> Result<Self, HsmError> {
        Self::new(Hsm::open_uri(uri)?.login(&uri.user, pin)?, &uri.key)
    }

    /// Takes a session that is logged in already.
    ///
    /// # Errors
    /// No key of that label.
    pub fn new(session: Session, label: &str) -> Result<Self, HsmError> {
        let key = session.find_master_key(label)?;
        Ok(Self { session, key })
    }

    /// The session, for what is not about data keys.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Which master key.
    pub fn key(&self) -> &KeyHandle {
        &self.key
    }

    /// Logs the session's end and what was used; dropping does so too, but cannot tell when that fails.
    ///
    /// # Errors
    /// The audit log cannot be written.
    pub fn close(self) -> Result<(), HsmError> {
        self.session.close()
    }

    fn error(&self, version: u32) -> impl Fn(HsmError) -> MasterKeyError {
        let key = self.id();
        move |error| match error.kind() {
            ErrorKind::KeyMissing => MasterKeyError::Missing { key, version },
            ErrorKind::KeyWrong => MasterKeyError::Wrong { key, version },
            ErrorKind::KeyDestroyed => MasterKeyError::Destroyed { key, version },
            ErrorKind::Login | ErrorKind::Denied | ErrorKind::Usage => MasterKeyError::Refused(error.into()),
            // A store whose disk is not mounted has no objects either.
            ErrorKind::Damaged if !matches!(error, HsmError::MissingObject { .. }) => {
                MasterKeyError::Damaged(error.into())
            }
            _ => MasterKeyError::Away(error.into()),
        }
    }
}

impl MasterKey for SoftHsm {
    fn id(&self) -> MasterKeyId {
        MasterKeyId(self.key.id().into_bytes())
    }

    fn label(&self) -> &str {
        self.key.label()
    }

    fn primary_version(&self) -> Result<u32, MasterKeyError> {
        self.session.primary_version(&self.key).map_err(self.error(0))
    }

    fn generate_version(&mut self) -> Result<u32, MasterKeyError> {
        self.session.rotate_master_key(&self.key).map_err(self.error(0))
    }

    fn version_created(&self, version: u32) -> Result<Option<u64>, MasterKeyError> {
        let info = self.session.master_key_info(&self.key).map_err(self.error(version))?;
        let found = info.versions.iter().find(|known| known.version == version);
        Ok(found.map(|known| known.created.micros() / 1_000_000))
    }

    fn wrap(&self, key: &SecretBytes<32>) -> Result<WrappedKey, MasterKeyError> {
        let wrapped = self.session.wrap(&self.key, key).map_err(self.error(0))?;
        Ok(WrappedKey { version: wrapped.version, bytes: wrapped.bytes })
    }

    fn unwrap(&self, wrapped: &WrappedKey) -> Result<SecretBytes<32>, MasterKeyError> {
        let version = wrapped.version;
        let wrapped = Wrapped { version, bytes: wrapped.bytes };
        self.session.unwrap(&self.key, &wrapped).map_err(self.error(version))
    }

    fn generate_data_key(&self) -> Result<(SecretBytes<32>, WrappedKey), MasterKeyError> {
        let made = self.session.generate_data_key(&self.key, Return::Plaintext).map_err(self.error(0))?;
        let wrapped = WrappedKey { version: made.wrapped.version, bytes: made.wrapped.bytes };
        let missing = || MasterKeyError::Refused("it gave no plaintext of the data key".into());
        Ok((made.plaintext.ok_or_else(missing)?, wrapped))
    }

    fn generation(&self, of: &GenerationId) -> Result<Option<u64>, MasterKeyError> {
        self.session.counter(&counter_name(of)).map_err(self.error(0))
    }

    fn raise_generation(&self, of: &GenerationId, generation: u64) -> Result<(), MasterKeyError> {
        self.session.raise_counter(&counter_name(of), generation).map_err(self.error(0))?;
        Ok(())
    }

    fn forget_generation(&self, of: &GenerationId) -> Result<(), MasterKeyError> {
        self.session.forget_counter(&counter_name(of)).map_err(self.error(0))?;
        Ok(())
    }

    fn generations_of_instance(&self, at: InstanceId) -> Result<Vec<(KeyringId, u64)>, MasterKeyError> {
        let prefix = format!("keyring/{at}/");
        let counters = self.session.counters(&prefix).map_err(self.error(0))?;
        let keyring = |(name, generation): (String, u64)| {
            let id = Uuid::try_parse(name.strip_prefix(&prefix)?).ok()?;
            Some((KeyringId(id), generation))
        };
        Ok(counters.into_iter().filter_map(keyring).collect())
    }
}

impl fmt::Debug for SoftHsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftHsm").field("key", &self.key).finish_non_exhaustive()
    }
}

/// `keyring/<instance, 32 hex>/<keyring id>`.
fn counter_name(of: &GenerationId) -> String {
    format!("keyring/{}/{}", of.instance, of.keyring)
}
