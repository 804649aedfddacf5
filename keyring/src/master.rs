//! The master key as the keyring needs it: a door to an HSM, a KMS or the engine in the process.

use std::error::Error;

use secret_mem::SecretBytes;

use crate::ids::{GenerationId, InstanceId, KeyringId, MasterKeyId};

/// A 256-bit key wrapped with AES-KW (RFC 3394: 32 + 8 bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// Version of the master key it is wrapped under.
    pub version: u32,
    /// The wrapped bytes.
    pub bytes: [u8; 40],
}

/// Why the master key did not answer. Missing, wrong, destroyed and away stay apart: each needs another act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MasterKeyError {
    /// The HSM has no such master key or version.
    #[error(
        "the HSM has no version {version} of master key {key}: is it the right HSM, or one restored from an old backup?"
    )]
    Missing {
        /// Master key.
        key: MasterKeyId,
        /// Version asked for.
        version: u32,
    },
    /// AES-KW's integrity check failed: another key wrapped it, or it was changed.
    #[error(
        "version {version} of master key {key} did not wrap this data key, or the wrapped bytes were changed"
    )]
    Wrong {
        /// Master key.
        key: MasterKeyId,
        /// Version asked for.
        version: u32,
    },
    /// The version was destroyed on purpose.
    #[error("version {version} of master key {key} was destroyed")]
    Destroyed {
        /// Master key.
        key: MasterKeyId,
        /// Version asked for.
        version: u32,
    },
    /// The HSM cannot be reached, is busy, or its store cannot be read.
    #[error("the HSM does not answer")]
    Away(#[source] Box<dyn Error + Send + Sync>),
    /// Something the HSM keeps is damaged or was changed. Waiting does not help.
    #[error("the HSM's store is damaged")]
    Damaged(#[source] Box<dyn Error + Send + Sync>),
    /// The HSM answered no: wrong PIN, locked user, or no right to use the key.
    #[error("the HSM refused")]
    Refused(#[source] Box<dyn Error + Send + Sync>),
}

/// Wraps data keys under a master key that never leaves its HSM, and remembers generations.
///
/// Called in PostgreSQL backends too: no threads, no output, no panics. Data keys arrive and leave in locked
/// memory only.
pub trait MasterKey {
    /// Stable id of the master key, the same for all its versions.
    fn id(&self) -> MasterKeyId;

    /// Name that people know it by; kept in the keyring as a hint.
    fn label(&self) -> &str;

    /// The version that wraps from now on.
    fn primary_version(&self) -> Result<u32, MasterKeyError>;

    /// Makes a new version the primary one and returns its number. Older versions still unwrap.
    fn generate_version(&mut self) -> Result<u32, MasterKeyError>;

    /// When a version was made, in seconds since 1970; `None` if there is no such version, or the HSM does not say.
    fn version_created(&self, version: u32) -> Result<Option<u64>, MasterKeyError> {
        let _ = version;
        Ok(None)
    }

    /// Wraps under the primary version.
    fn wrap(&self, key: &SecretBytes<32>) -> Result<WrappedKey, MasterKeyError>;

    /// Unwraps under the version that the wrapped key names.
    fn unwrap(&self, wrapped: &WrappedKey) -> Result<SecretBytes<32>, MasterKeyError>;

    /// A new random data key made inside the HSM, in clear and wrapped under the primary version.
    fn generate_data_key(&self) -> Result<(SecretBytes<32>, WrappedKey), MasterKeyError>;

    /// The newest generation it was told of; `None` if it never heard of this keyring at this place.
    fn generation(&self, of: &GenerationId) -> Result<Option<u64>, MasterKeyError>;

    /// Remembers `generation` durably, unless it remembers a higher one already.
    fn raise_generation(&self, of: &GenerationId, generation: u64) -> Result<(), MasterKeyError>;

    /// Forgets what it remembers, and says so in its audit log: a restore is being accepted.
    fn forget_generation(&self, of: &GenerationId) -> Result<(), MasterKeyError>;

    /// Every keyring it was told of at this place: a server whose keyring directory vanished must not start
    /// with a new, empty one.
    fn generations_of_instance(&self, at: InstanceId) -> Result<Vec<(KeyringId, u64)>, MasterKeyError>;
}
