//! One record of the log.
//!
//! ```text
//! 0    4  length of the record in bytes, 96+n (little endian, as all numbers)
//! 4    1  record version, 1
//! 5    1  1 if it has a MAC, else 0
//! 6    2  zero
//! 8    8  sequence, from 1
//! 16   4  boot counter
//! 20   8  time, microseconds since 1970 UTC
//! 28  32  SHA-256 of the record before (bytes 0..92+n of it); of the first: SHA-256("tde/hsm/audit/v1" | HSM id)
//! 60   n  bincode: user name, event, outcome
//! 60+n 32 HMAC-SHA-256 of bytes 0..60+n under a key from the store key, or zeros
//! 92+n  4 CRC-32 (IEEE) of everything before
//! ```

use bincode::{Decode, Encode};
use hmac::{Hmac, KeyInit as _, Mac as _};
use secret_mem::{LockedBox, SecretBytes};
use sha2::{Digest as _, Sha256};

use super::{Event, Outcome};
use crate::format::{self, records::LogStart};
use crate::time::Timestamp;

const VERSION: u8 = 1;
const HEAD: usize = 60;
const MAC: usize = 32;
const CRC: usize = 4;
const GENESIS_LABEL: &[u8] = b"tde/hsm/audit/v1";
/// Longest record, in bytes.
pub(super) const MAX_RECORD: usize = 4096;
/// Shortest record: no payload is empty.
pub(super) const MIN_RECORD: usize = HEAD + MAC + CRC;

/// A record of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Number, from 1, without gaps.
    pub sequence: u64,
    /// How often the machine had booted.
    pub boots: u32,
    /// When.
    pub time: Timestamp,
    /// Whether it has a MAC (which only [`verify`](crate::Session::verify_audit) with a login checks).
    pub has_mac: bool,
    /// Who; empty for the engine itself.
    pub user: String,
    /// What.
    pub event: Event,
    /// With what result.
    pub outcome: Outcome,
}

#[derive(Encode, Decode)]
struct Payload {
    user: String,
    event: Event,
    outcome: Outcome,
}

/// A record as read, with what is needed to check it.
pub(super) struct Parsed<'a> {
    pub(super) record: Record,
    pub(super) previous: [u8; 32],
    /// SHA-256 of this record.
    pub(super) hash: [u8; 32],
    /// Length in bytes.
    pub(super) len: usize,
    bytes: &'a [u8],
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRecord {
    /// They may be the beginning of one.
    Incomplete,
    /// They are not.
    Damaged(&'static str),
}

/// The key of the MACs.
pub(crate) struct AuditKey(LockedBox<Hmac<Sha256>>);

impl AuditKey {
    pub(crate) fn new(key: SecretBytes<32>) -> Self {
        let mac = || Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
        Self(LockedBox::new_with(mac))
    }

    fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::clone(&self.0);
        mac.update(bytes);
        mac
    }
}

/// Where the chain of a new HSM begins.
pub(crate) fn genesis(hsm_id: &[u8; 16]) -> LogStart {
    let previous = Sha256::new().chain_update(GENESIS_LABEL).chain_update(hsm_id).finalize().into();
    LogStart { segment: 1, sequence: 1, previous }
}

impl Record {
    /// Bytes of the record and its hash. `has_mac` is set by whether there is a key.
    pub(super) fn encode(
        &self,
        previous: &[u8; 32],
        key: Option<&AuditKey>,
    ) -> Result<(Vec<u8>, [u8; 32]), usize> {
        let payload = Payload { user: self.user.clone(), event: self.event.clone(), outcome: self.outcome };
        let payload = format::encode(&payload).map_err(|_| usize::MAX)?;
        let len = MIN_RECORD + payload.len();
        if len > MAX_RECORD {
            return Err(len);
        }
        let mut bytes = Vec::with_capacity(len);
        // At most MAX_RECORD.
        bytes.extend_from_slice(&(len as u32).to_le_bytes());
        bytes.extend_from_slice(&[VERSION, u8::from(key.is_some()), 0, 0]);
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.boots.to_le_bytes());
        bytes.extend_from_slice(&self.time.micros().to_le_bytes());
        bytes.extend_from_slice(previous);
        bytes.extend_from_slice(&payload);
        match key {
            Some(key) => {
                let mac = key.mac(&bytes).finalize().into_bytes();
                bytes.extend_from_slice(&mac);
            }
            None => bytes.extend_from_slice(&[0; MAC]),
        }
        let hash = Sha256::digest(&bytes).into();
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Ok((bytes, hash))
    }
}

impl<'a> Parsed<'a> {
    /// The record at the start of `bytes`.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, NoRecord> {
        let Some(len) = bytes.first_chunk::<4>() else { return Err(NoRecord::Incomplete) };
        let len = u32::from_le_bytes(*len) as usize;
        if !(MIN_RECORD..=MAX_RECORD).contains(&len) {
            return Err(NoRecord::Damaged("its length is not valid"));
        }
        let Some(bytes) = bytes.get(..len) else { return Err(NoRecord::Incomplete) };
        let (body, crc) = bytes.split_at(len - CRC);
        if crc32fast::hash(body).to_le_bytes() != crc {
            return Err(NoRecord::Damaged("its checksum does not match"));
        }
        let (head, payload) = body[..len - CRC - MAC].split_at(HEAD);
        if head[4] != VERSION {
            return Err(NoRecord::Damaged(
                "it was written by a version of the program that uses another format",
            ));
        }
        if head[5] > 1 || head[6..8] != [0, 0] {
            return Err(NoRecord::Damaged("its flags are not valid"));
        }
        let payload: Payload =
            format::decode(payload).map_err(|_| NoRecord::Damaged("its payload is not valid"))?;
        let mut previous = [0; 32];
        previous.copy_from_slice(&head[28..60]);
        let u64_at = |i: usize| u64::from_le_bytes(std::array::from_fn(|k| head[i + k]));
        Ok(Self {
            record: Record {
                sequence: u64_at(8),
                boots: u32::from_le_bytes(std::array::from_fn(|k| head[16 + k])),
                time: Timestamp::from_micros(u64_at(20)),
                has_mac: head[5] == 1,
                user: payload.user,
                event: payload.event,
                outcome: payload.outcome,
            },
            previous,
            hash: Sha256::digest(body).into(),
            len,
            bytes: body,
        })
    }

    /// Whether the MAC is right, or rightly absent.
    pub(super) fn authentic(&self, key: &AuditKey) -> bool {
        let (text, mac) = self.bytes.split_at(self.bytes.len() - MAC);
        if self.record.has_mac {
            key.mac(text).verify_slice(mac).is_ok()
        } else {
            self.record.event.may_lack_mac()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Usage;
    use crate::user::Role;

    fn record(event: Event) -> Record {
        Record {
            sequence: 0x0102,
            boots: 3,
            time: Timestamp::from_micros(0x0405),
            has_mac: true,
            user: "u".into(),
            event,
            outcome: Outcome::Ok,
        }
    }

    fn key() -> AuditKey {
        let mut key = SecretBytes::zeroed();
        *key.expose_mut() = [7; 32];
        AuditKey::new(key)
    }

    #[test]
    fn a_record_has_these_bytes() {
        let (bytes, hash) = record(Event::Login).encode(&[0xAA; 32], Some(&key())).unwrap();
        let want = [
            "71000000 01 01 0000 0201000000000000 03000000 0504000000000000",
            &"aa".repeat(32),
            "0100000000000000 75 02000000 00000000",
        ];
        let want = want.concat().replace(' ', "");
        assert_eq!(hex::encode(&bytes[..77]), want);
        let mut mac = Hmac::<Sha256>::new_from_slice(&[7; 32]).unwrap();
        mac.update(&bytes[..77]);
        assert_eq!(bytes[77..109], mac.finalize().into_bytes()[..]);
        assert_eq!(bytes[109..], crc32fast::hash(&bytes[..109]).to_le_bytes());
        assert_eq!(hash[..], Sha256::digest(&bytes[..109])[..]);
        let parsed = Parsed::parse(&bytes).ok().unwrap();
        assert_eq!((parsed.record, parsed.hash, parsed.len), (record(Event::Login), hash, 113));
    }

    /// The number of each event is on disk.
    #[test]
    fn events_have_these_numbers() {
        let (name, label) = (String::new, String::new);
        let events = [
            Event::Initialized { label: label() },
            Event::Boot { boots: 0 },
            Event::Login,
            Event::LoginFailed { failures: 0 },
            Event::Logout(Usage::default()),
            Event::Used(Usage::default()),
            Event::Refused { action: name() },
            Event::UserCreated { name: name(), role: Role::CryptoUser },
            Event::UserUnlocked { name: name() },
            Event::PinReset { name: name() },
            Event::PinChanged,
            Event::MasterKeyCreated { id: [0; 16], label: label() },
            Event::MasterKeyRotated { id: [0; 16], label: label(), version: 0 },
            Event::CounterForgotten { name: name(), value: 0 },
            Event::TailDropped { bytes: 0 },
            Event::LogRestarted { damage: name() },
        ];
        for (event, number) in events.iter().zip(0_u32..) {
            assert_eq!(format::encode(event).unwrap()[..4], number.to_le_bytes(), "{}", event.name());
        }
    }

    #[test]
    fn only_the_events_of_strangers_may_lack_a_mac() {
        for (event, allowed) in [(Event::LoginFailed { failures: 1 }, true), (Event::Login, false)] {
            let (bytes, _) = record(event).encode(&[0; 32], None).unwrap();
            assert_eq!(Parsed::parse(&bytes).ok().unwrap().authentic(&key()), allowed);
        }
    }

    #[test]
    fn a_record_has_a_largest_length() {
        let event = Event::Refused { action: "x".repeat(MAX_RECORD) };
        assert!(record(event).encode(&[0; 32], None).is_err());
    }
}
