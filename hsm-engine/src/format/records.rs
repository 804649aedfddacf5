//! The structs whose bincode bytes are the payloads of objects. Field order is format: append nothing, reorder
//! nothing without a new format version.

use bincode::{Decode, Encode};

use crate::error::Damage;
use crate::format::{self, Payload, payloads};
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
    /// Those among them that ended before the PIN was known to be wrong: whoever tried was killed.
    pub(crate) unfinished: u32,
    /// Time of the last attempt.
    pub(crate) last: Timestamp,
    /// No attempt before this time.
    pub(crate) not_before: Timestamp,
}

/// Object `root`, sealed, written last in every change: what must exist, and how new it must be at least.
///
/// An HSM that has neither objects nor a policy writes version 1, which ends before `extension`, so that older programs
/// can open it.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub(crate) log_start: LogStart,
    pub(crate) anchor: Anchor,
    pub(crate) extension: Option<RootExtension>,
}

/// What version 2 of the root adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub(crate) struct RootExtension {
    /// Lowest revision of the object `objects`; 0 if there is none.
    pub(crate) objects: u64,
    /// Lowest revision of the object `policy`; 0 if there is none.
    pub(crate) policy: u64,
}

/// Version 1 of the root.
#[derive(Encode, Decode)]
struct RootV1 {
    header_digest: [u8; 32],
    users: Vec<UserEntry>,
    keys: Vec<KeyEntry>,
    counters: u64,
    boots: u32,
    boot_id: [u8; 16],
    log_start: LogStart,
    anchor: Anchor,
}

impl Root {
    /// The extension, made if it is not there yet.
    pub(crate) fn extended(&mut self) -> &mut RootExtension {
        self.extension.get_or_insert_default()
    }
}

impl Payload for Root {
    fn version(&self) -> u16 {
        if self.extension.is_some() { 2 } else { 1 }
    }

    fn to_payload(&self) -> Result<Vec<u8>, Damage> {
        let Self { header_digest, users, keys, counters, boots, boot_id, log_start, anchor, extension } =
            self.clone();
        let v1 = RootV1 { header_digest, users, keys, counters, boots, boot_id, log_start, anchor };
        match extension {
            None => format::encode(&v1),
            Some(extension) => format::encode(&(v1, extension)),
        }
    }

    fn from_payload(version: u16, bytes: &[u8]) -> Option<Result<Self, Damage>> {
        let parsed = match version {
            1 => format::decode(bytes).map(|v1: RootV1| (v1, None)),
            2 => format::decode(bytes).map(|(v1, extension): (RootV1, RootExtension)| (v1, Some(extension))),
            _ => return None,
        };
        Some(parsed.map(|(v1, extension)| {
            let RootV1 { header_digest, users, keys, counters, boots, boot_id, log_start, anchor } = v1;
            Self { header_digest, users, keys, counters, boots, boot_id, log_start, anchor, extension }
        }))
    }
}

payloads!(Header, User, Lockout, KeyLine, Counters);

/// A user the root vouches for. Role and rights are here too, because an officer who gives the user another PIN cannot
/// open the seal that vouches for those in the user's record.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct UserEntry {
    pub(crate) name: String,
    pub(crate) revision: u64,
    pub(crate) role: Role,
    pub(crate) rights: Rights,
}

/// A master key the root vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct KeyEntry {
    pub(crate) id: [u8; 16],
    pub(crate) label: String,
    pub(crate) revision: u64,
}

/// Where the audit log begins: with the HSM, or where an officer restarted it after damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LogStart {
    pub(crate) segment: u32,
    /// Sequence of the first record.
    pub(crate) sequence: u64,
    /// What the first record names as the hash of the one before.
    pub(crate) previous: [u8; 32],
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

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use crate::error::Damage;
    use crate::format::decode;

    /// Pins the bytes of a value, reads them back, and refuses them with a byte more or less.
    fn pin<T: Payload + PartialEq + Debug>(value: &T, want: &str) {
        let bytes = value.to_payload().unwrap();
        assert_eq!(hex::encode(&bytes), want.replace([' ', '\n'], ""));
        let read = |bytes: &[u8]| T::from_payload(value.version(), bytes).unwrap();
        assert_eq!(&read(&bytes).unwrap(), value);
        let more = [&bytes[..], &[0]].concat();
        assert!(matches!(read(&more), Err(Damage::Length { .. })));
        assert_eq!(read(&bytes[..bytes.len() - 1]), Err(Damage::Field("payload")));
        assert!(T::from_payload(3, &bytes).is_none());
    }

    const T1: Timestamp = Timestamp::from_micros(0x0102_0304_0506_0708);
    const T1_HEX: &str = "0807060504030201";

    #[test]
    fn header() {
        let value = Header { hsm_id: [0xAA; 16], label: "tde".into(), created: T1 };
        pin(&value, &format!("{} 0300000000000000 746465 {T1_HEX}", "aa".repeat(16)));
    }

    #[test]
    fn user() {
        let mut value = User {
            public: UserPublic {
                name: "user".into(),
                role: Role::CryptoUser,
                rights: Rights { plaintext_data_keys: true },
                created: T1,
                pin_set: T1,
                kdf: PinKdf::Argon2id { memory_kib: 65536, passes: 3, lanes: 1 },
                salt: [0xBB; 16],
            },
            nonce: [0xCC; 12],
            sealed_store_key: [0xDD; 48],
        };
        let tail = ["bb".repeat(16), "cc".repeat(12), "dd".repeat(48)].concat();
        pin(
            &value,
            &format!(
                "0400000000000000 75736572 01000000 01 {T1_HEX} {T1_HEX} 00000000 00000100 03000000 01000000 {tail}"
            ),
        );
        value.public.role = Role::CryptoOfficer;
        value.public.rights.plaintext_data_keys = false;
        value.public.kdf = PinKdf::Hkdf;
        pin(&value, &format!("0400000000000000 75736572 00000000 00 {T1_HEX} {T1_HEX} 01000000 {tail}"));
    }

    #[test]
    fn lockout() {
        pin(
            &Lockout { failures: 3, unfinished: 2, last: T1, not_before: Timestamp::from_micros(9) },
            &format!("03000000 02000000 {T1_HEX} 0900000000000000"),
        );
    }

    #[test]
    fn root() {
        let value = Root {
            header_digest: [0x11; 32],
            users: vec![UserEntry {
                name: "u".into(),
                revision: 2,
                role: Role::CryptoUser,
                rights: Rights { plaintext_data_keys: true },
            }],
            keys: vec![KeyEntry { id: [0x22; 16], label: "k".into(), revision: 3 }],
            counters: 4,
            boots: 5,
            boot_id: [0x33; 16],
            log_start: LogStart { segment: 9, sequence: 10, previous: [0x77; 32] },
            anchor: Anchor { segment: 6, offset: 7, sequence: 8, hash: [0x44; 32] },
            extension: None,
        };
        let want = [
            &"11".repeat(32),
            "0100000000000000 0100000000000000 75 0200000000000000 01000000 01",
            "0100000000000000",
            &"22".repeat(16),
            "0100000000000000 6b 0300000000000000",
            "0400000000000000 05000000",
            &"33".repeat(16),
            "09000000 0a00000000000000",
            &"77".repeat(32),
            "06000000 0700000000000000 0800000000000000",
            &"44".repeat(32),
        ];
        pin(&value, &want.concat());
        let extended = Root { extension: Some(RootExtension { objects: 0x0a, policy: 0x0b }), ..value };
        pin(&extended, &[&want.concat(), "0a00000000000000 0b00000000000000"].concat());
    }

    #[test]
    fn key_line() {
        let version = |version, state| KeyVersion { version, state, created: T1, wrapped: [0x55; 40] };
        let value = KeyLine {
            id: [0x66; 16],
            label: "k".into(),
            created: T1,
            attributes: KeyAttributes { plaintext_data_keys: true },
            versions: vec![
                version(1, KeyVersionState::Destroyed),
                version(2, KeyVersionState::PendingDestruction(T1)),
                version(3, KeyVersionState::DecryptOnly),
                version(4, KeyVersionState::Active),
            ],
        };
        let rest = format!("{T1_HEX} {}", "55".repeat(40));
        pin(
            &value,
            &format!(
                "{} 0100000000000000 6b {T1_HEX} 01 0400000000000000
                 01000000 03000000 {rest} 02000000 02000000 {T1_HEX} {rest}
                 03000000 01000000 {rest} 04000000 00000000 {rest}",
                "66".repeat(16)
            ),
        );
    }

    #[test]
    fn counters() {
        let value = Counters { values: vec![("a".into(), 1), ("b".into(), u64::MAX)] };
        pin(
            &value,
            "0200000000000000 0100000000000000 61 0100000000000000 0100000000000000 62 ffffffffffffffff",
        );
    }

    /// A length that no object can have is refused before memory is asked for.
    #[test]
    fn absurd_lengths_are_refused() {
        for n in [u64::MAX, 1 << 40, 5 << 20] {
            assert_eq!(decode::<Counters>(&n.to_le_bytes()), Err(Damage::Field("payload")));
        }
    }
}
