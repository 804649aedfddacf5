//! The structs whose bincode bytes are the payloads of objects. Field order is format: append nothing, reorder
//! nothing without a new format version.

use bincode::{Decode, Encode};

use crate::master_key::{KeyAttributes, KeyVersionState};
use crate::time::Timestamp;
use crate::user::{PinKdf, Rights, Role};

/// Object `header`, public: what the HSM is called. Its digest is in the root.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Header {
    /// Random; in the associated data of every seal.
    pub(crate) hsm_id: [u8; 16],
    pub(crate) label: String,
    pub(crate) created: Timestamp,
}

/// Object `user.NAME`, public: who the user is, and the store key sealed under the user's PIN.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct User {
    pub(crate) public: UserPublic,
    pub(crate) nonce: [u8; 12],
    /// Store key (32 bytes) and tag (16), AES-256-GCM-SIV; the associated data covers `public`.
    pub(crate) sealed_store_key: [u8; 48],
}

/// The part of a user record that the seal of its store key vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct UserPublic {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) rights: Rights,
    pub(crate) created: Timestamp,
    pub(crate) pin_set: Timestamp,
    pub(crate) kdf: PinKdf,
    pub(crate) salt: [u8; 16],
}

/// Object `lockout.NAME`, public, because it is written before the PIN is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Lockout {
    /// Attempts since the last success.
    pub(crate) failures: u32,
    /// Time of the last attempt.
    pub(crate) last: Timestamp,
    /// No attempt before this time.
    pub(crate) not_before: Timestamp,
}

/// Object `root`, sealed, written last in every change: what must exist, and how new it must be at least.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Root {
    /// SHA-256 of the header's payload.
    pub(crate) header_digest: [u8; 32],
    pub(crate) users: Vec<UserEntry>,
    pub(crate) keys: Vec<KeyEntry>,
    /// Lowest revision of the object `counters`.
    pub(crate) counters: u64,
    /// How many times the machine booted, as seen at logins.
    pub(crate) boots: u32,
    /// The kernel's boot id at the last login.
    pub(crate) boot_id: [u8; 16],
    pub(crate) anchor: Anchor,
}

/// A user the root vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct UserEntry {
    pub(crate) name: String,
    pub(crate) revision: u64,
}

/// A master key the root vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct KeyEntry {
    pub(crate) id: [u8; 16],
    pub(crate) label: String,
    pub(crate) revision: u64,
}

/// Where the audit log ended when the root was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Anchor {
    /// Segment of the last record.
    pub(crate) segment: u32,
    /// Its offset in the segment, in bytes.
    pub(crate) offset: u64,
    pub(crate) sequence: u64,
    /// Its SHA-256.
    pub(crate) hash: [u8; 32],
}

/// Object `key.UUID`, sealed: a line of versions of one master key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct KeyLine {
    pub(crate) id: [u8; 16],
    pub(crate) label: String,
    pub(crate) created: Timestamp,
    pub(crate) attributes: KeyAttributes,
    /// In rising order; the last one is the newest.
    pub(crate) versions: Vec<KeyVersion>,
}

/// One version of a master key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct KeyVersion {
    pub(crate) version: u32,
    pub(crate) state: KeyVersionState,
    pub(crate) created: Timestamp,
    /// The key, AES-KW under a key from the store key, so that no decoder ever holds it in clear.
    pub(crate) wrapped: [u8; 40],
}

/// Object `counters`, sealed: numbers that only grow, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Counters {
    pub(crate) values: Vec<(String, u64)>,
}
