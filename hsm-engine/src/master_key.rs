//! Master keys: lines of versions that wrap data keys and never leave the HSM.

use std::fmt;

use aes_kw::{KeyInit as _, KwAes256};
use bincode::{Decode, Encode};
use secret_mem::{LockedBox, SecretBytes, wiping_stack};
use uuid::Uuid;

use crate::error::{Damage, HsmError, Result};
use crate::format::records;
use crate::store::ObjectName;
use crate::time::Timestamp;

/// Most versions one master key may have.
pub const MAX_VERSIONS: usize = 4096;

/// State of a version of a master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum KeyVersionState {
    /// Wraps and unwraps; the newest version.
    Active,
    /// Unwraps what it wrapped; wraps nothing new.
    DecryptOnly,
    /// Still there, refused for use, and destroyed at the time given unless that is cancelled.
    PendingDestruction(Timestamp),
    /// Its key is gone.
    Destroyed,
}

impl fmt::Display for KeyVersionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("active"),
            Self::DecryptOnly => f.write_str("decrypt-only"),
            Self::PendingDestruction(at) => write!(f, "pending destruction at {at}"),
            Self::Destroyed => f.write_str("destroyed"),
        }
    }
}

/// What may be done with a master key. No attribute ever lets the key itself out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct KeyAttributes {
    /// Data keys may be returned in clear to users who have the same right.
    pub plaintext_data_keys: bool,
}

/// Names a master key of an HSM. Holds no key material.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyHandle {
    pub(crate) id: Uuid,
    pub(crate) label: String,
}

impl KeyHandle {
    /// A handle from what was written down elsewhere, such as in a keyring. It is checked at its first use.
    pub fn new(id: Uuid, label: impl Into<String>) -> Self {
        Self { id, label: label.into() }
    }

    /// UUID of the line of versions; stays the same through rotations.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Label, for people.
    pub fn label(&self) -> &str {
        &self.label
    }
}

/// A 32-byte key wrapped by a version of a master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrapped {
    /// Version of the master key.
    pub version: u32,
    /// RFC 3394: 8 bytes of integrity check value and 32 of key.
    pub bytes: [u8; 40],
}

/// A new data key.
#[derive(Debug)]
pub struct DataKey {
    /// The data key wrapped by the newest version.
    pub wrapped: Wrapped,
    /// The data key itself, if it was asked for and is allowed.
    pub plaintext: Option<SecretBytes<32>>,
}

/// What [`generate_data_key`](crate::Session::generate_data_key) returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// The wrapped key alone.
    WrappedOnly,
    /// Also the key in clear. Needs the user's right and the master key's attribute.
    Plaintext,
}

/// How a key is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mechanism {
    /// AES-256 key wrap (RFC 3394, NIST SP 800-38F KW).
    AesKw,
}

/// Public facts of a master key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MasterKeyInfo {
    /// UUID of the line.
    pub id: Uuid,
    /// Label.
    pub label: String,
    /// When the line was made.
    pub created: Timestamp,
    /// What may be done with it.
    pub attributes: KeyAttributes,
    /// All versions, oldest first.
    pub versions: Vec<KeyVersionInfo>,
}

/// Public facts of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyVersionInfo {
    /// Number, from 1.
    pub version: u32,
    /// State.
    pub state: KeyVersionState,
    /// When it was made.
    pub created: Timestamp,
}

/// A version's expanded cipher, in locked memory.
pub(crate) struct KeyCipher(LockedBox<KwAes256>);

impl KeyCipher {
    pub(crate) fn new(key: &SecretBytes<32>) -> Self {
        Self(LockedBox::new_with(|| KwAes256::new(key.expose().into())))
    }

    pub(crate) fn wrap(&self, key: &SecretBytes<32>) -> [u8; 40] {
        let mut out = [0; 40];
        wiping_stack(|| self.0.wrap_key(key.expose(), &mut out).map(drop))
            .expect("32 bytes wrap into 40 (RFC 3394 section 2.2.1)");
        out
    }

    /// `None` if the integrity check fails.
    pub(crate) fn unwrap(&self, wrapped: &[u8; 40]) -> Option<SecretBytes<32>> {
        SecretBytes::fill_with(|out| wiping_stack(|| self.0.unwrap_key(wrapped, out).map(drop))).ok()
    }
}

/// Object of a line.
pub(crate) fn object_name(id: Uuid) -> Result<ObjectName> {
    Ok(ObjectName::new(format!("key.{id}"))?)
}

/// Checks a label: 1 to 64 bytes of printable text without control characters.
pub(crate) fn check_label(label: &str) -> Result<()> {
    if (1..=64).contains(&label.len()) && !label.chars().any(char::is_control) {
        return Ok(());
    }
    Err(HsmError::InvalidName {
        what: "label",
        name: label.into(),
        rule: "1 to 64 bytes without control characters",
    })
}

impl records::KeyLine {
    /// Checks what must hold of every line that was written.
    pub(crate) fn check(&self, id: Uuid) -> Result<(), Damage> {
        let rising = self.versions.iter().zip(1..).all(|(v, n)| v.version == n);
        let one_active = self.versions.iter().filter(|v| v.state == KeyVersionState::Active).count() <= 1;
        if self.id != *id.as_bytes() {
            Err(Damage::Field("key id"))
        } else if self.versions.is_empty() || !rising || !one_active {
            Err(Damage::Field("key versions"))
        } else {
            Ok(())
        }
    }

    pub(crate) fn uuid(&self) -> Uuid {
        Uuid::from_bytes(self.id)
    }

    /// The newest version, which wraps new keys.
    pub(crate) fn primary(&self) -> Result<&records::KeyVersion> {
        let newest = self.versions.last().map_or(0, |v| v.version);
        let v = self.version(newest)?;
        match v.state {
            KeyVersionState::Active => Ok(v),
            KeyVersionState::Destroyed => Err(self.destroyed(newest)),
            state => Err(self.bad_state(newest, state, "wrap")),
        }
    }

    /// The version that unwraps what it wrapped.
    pub(crate) fn for_unwrap(&self, version: u32) -> Result<&records::KeyVersion> {
        let v = self.version(version)?;
        match v.state {
            KeyVersionState::Active | KeyVersionState::DecryptOnly => Ok(v),
            KeyVersionState::Destroyed => Err(self.destroyed(version)),
            state @ KeyVersionState::PendingDestruction(_) => Err(self.bad_state(version, state, "unwrap")),
        }
    }

    fn version(&self, version: u32) -> Result<&records::KeyVersion> {
        let newest = self.versions.last().map_or(0, |v| v.version);
        self.versions.iter().find(|v| v.version == version).ok_or_else(|| HsmError::NoSuchKeyVersion {
            id: self.uuid(),
            label: self.label.clone(),
            version,
            newest,
        })
    }

    fn destroyed(&self, version: u32) -> HsmError {
        HsmError::KeyDestroyed { id: self.uuid(), label: self.label.clone(), version }
    }

    fn bad_state(&self, version: u32, state: KeyVersionState, action: &'static str) -> HsmError {
        HsmError::KeyState { id: self.uuid(), label: self.label.clone(), version, state, action }
    }

    pub(crate) fn info(&self) -> MasterKeyInfo {
        let info = |v: &records::KeyVersion| KeyVersionInfo {
            version: v.version,
            state: v.state,
            created: v.created,
        };
        MasterKeyInfo {
            id: self.uuid(),
            label: self.label.clone(),
            created: self.created,
            attributes: self.attributes,
            versions: self.versions.iter().map(info).collect(),
        }
    }
}
