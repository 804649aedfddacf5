//! Keys and rules of a cluster's WAL for a program outside of the server, and the bytes in which they are handed to it.
//!
//! ```text
//!  0   8  "TDEWALK1"
//!  8   8  the cluster's system identifier
//! 16   4  version of the key that new segments are written under; 0: in clear
//! 20   4  number of changes    24  4  number of keys    28  4  zero
//! 32  16  for each change, by position:  WAL position 8 | from there on segments in clear are accepted (1) or not (0) 4 | zero 4
//!     72  for each key, the newest last:  version 4 | zero 4 | key 64
//! ```
//! Numbers are little-endian. The bytes live in a pipe from `tde exec` to the tool and nowhere else.

use std::sync::OnceLock;

use page_cipher::xts::Aes256Xts;
use secret_mem::{SecretBuf, SecretBytes};

use crate::segment::Policy;
use crate::table::Mode;

const MAGIC: &[u8; 8] = b"TDEWALK1";
const HEAD: usize = 32;
const CHANGE: usize = 16;
const KEY: usize = 72;
/// Most changes, and most keys: what a line of the keyring holds.
const MOST: usize = 4096;
/// Longest hand-over, in bytes.
pub const LONGEST: usize = HEAD + MOST * (CHANGE + KEY);

/// What a program needs to read and write a cluster's WAL.
pub struct WalKeys {
    system: u64,
    write: Option<u32>,
    changes: Vec<(u64, bool)>,
    keys: Vec<Key>,
}

struct Key {
    version: u32,
    bytes: SecretBytes<64>,
    cipher: OnceLock<Aes256Xts>,
}

/// The bytes are not a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what was handed over is not keys of a write-ahead log")]
pub struct NotKeys;

impl WalKeys {
    /// Rules without keys: what a cluster whose WAL was never encrypted has.
    ///
    /// `changes`: from which WAL position on segments in clear are accepted or not, by position; before the first they are not.
    pub fn new(system_identifier: u64, changes: Vec<(u64, bool)>) -> Self {
        Self { system: system_identifier, write: None, changes, keys: Vec::new() }
    }

    /// Adds a version of the key, 64 bytes as XTS takes them; the newest comes last.
    pub fn add(&mut self, version: u32, bytes: SecretBytes<64>) {
        self.keys.push(Key { version, bytes, cipher: OnceLock::new() });
    }

    /// New segments are written under this version, which was added.
    pub fn write_under(&mut self, version: u32) {
        self.write = Some(version);
    }

    /// Whether new segments are encrypted.
    pub fn writes_encrypted(&self) -> bool {
        self.write.is_some()
    }

    /// The oldest version of the key: what every copy of the keyring has that has the key at all.
    pub fn oldest(&self) -> Option<u32> {
        self.keys.first().map(|key| key.version)
    }

    /// The bytes.
    pub fn to_bytes(&self) -> SecretBuf {
        let length = HEAD + self.changes.len() * CHANGE + self.keys.len() * KEY;
        let mut bytes = SecretBuf::with_capacity(length);
        let mut put = |part: &[u8]| {
            let fits = bytes.extend_from_slice(part);
            debug_assert!(fits.is_ok(), "the length was counted");
        };
        put(MAGIC);
        put(&self.system.to_le_bytes());
        for number in [self.write.unwrap_or(0), self.changes.len() as u32, self.keys.len() as u32, 0] {
            put(&number.to_le_bytes());
        }
        for (position, plain) in &self.changes {
            put(&position.to_le_bytes());
            put(&u64::from(*plain).to_le_bytes());
        }
        for key in &self.keys {
            put(&u64::from(key.version).to_le_bytes());
            put(key.bytes.expose());
        }
        bytes
    }

    /// From [`Self::to_bytes`].
    ///
    /// # Errors
    /// [`NotKeys`]
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NotKeys> {
        let word = |at: usize| {
            let four = bytes.get(at..at + 4)?.first_chunk()?;
            Some(u32::from_le_bytes(*four))
        };
        let long = |at: usize| Some(u64::from(word(at)?) | u64::from(word(at + 4)?) << 32);
        let parse = || {
            if !bytes.starts_with(MAGIC) || word(28)? != 0 {
                return None;
            }
            let (changes, keys) = (word(20)? as usize, word(24)? as usize);
            if changes > MOST || keys > MOST || bytes.len() != HEAD + changes * CHANGE + keys * KEY {
                return None;
            }
            let first_key = HEAD + changes * CHANGE;
            let change = |index| Some((long(HEAD + index * CHANGE)?, long(HEAD + index * CHANGE + 8)? != 0));
            let changes = (0..changes).map(change).collect::<Option<Vec<_>>>()?;
            let mut found = Self::new(long(8)?, changes);
            for at in (0..keys).map(|index| first_key + index * KEY) {
                let mut key = SecretBytes::<64>::zeroed();
                key.expose_mut().copy_from_slice(bytes.get(at + 8..at + KEY)?);
                found.add(word(at)?, key);
            }
            found.write = Some(word(16)?).filter(|version| *version != 0);
            let known = found.write.is_none_or(|write| found.keys.iter().any(|key| key.version == write));
            known.then_some(found)
        };
        parse().ok_or(NotKeys)
    }
}

impl Policy for WalKeys {
    fn key(&self, version: u32) -> Option<&Aes256Xts> {
        let key = self.keys.iter().find(|key| key.version == version)?;
        // Two equal halves from HKDF have a probability of 2^-256.
        Some(key.cipher.get_or_init(|| Aes256Xts::new(&key.bytes).expect("halves of a derived key differ")))
    }

    fn any_version(&self, visit: &mut dyn FnMut(u32) -> bool) {
        self.keys.iter().rev().any(|key| visit(key.version));
    }

    fn new_segments(&self) -> Mode {
        self.write.map_or(Mode::Plain, Mode::Under)
    }

    fn plain_allowed(&self, position: u64) -> bool {
        // Without a key there is nothing to tell forged WAL from.
        let last = self.changes.iter().rev().find(|(from, _)| *from <= position);
        last.map_or(self.keys.is_empty(), |(_, plain)| *plain)
    }

    fn system_identifier(&self) -> Option<u64> {
        Some(self.system)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> WalKeys {
        let mut keys = WalKeys::new(0x0102_0304_0506_0708, vec![(0, true), (0x100_0000, false)]);
        for version in [1, 3] {
            let mut bytes = SecretBytes::<64>::zeroed();
            bytes.expose_mut().iter_mut().zip(version as u8..).for_each(|(byte, value)| *byte = value);
            keys.add(version, bytes);
        }
        keys.write_under(3);
        keys
    }

    #[test]
    fn the_bytes_are_pinned() {
        let keys = example();
        let bytes = keys.to_bytes();
        let bytes = bytes.as_slice();
        assert_eq!(bytes.len(), 32 + 2 * 16 + 2 * 72);
        let head = [8, 7, 6, 5, 4, 3, 2, 1, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!((&bytes[..8], &bytes[8..32]), (&MAGIC[..], &head[..]));
        assert_eq!(bytes[32..48], [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[48..64], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[64..76], [1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(bytes[136..148], [3, 0, 0, 0, 0, 0, 0, 0, 3, 4, 5, 6]);
    }

    #[test]
    fn what_is_handed_over_comes_back() {
        let keys = WalKeys::from_bytes(example().to_bytes().as_slice()).expect("keys");
        let policy = &keys;
        assert_eq!(policy.new_segments(), Mode::Under(3));
        assert_eq!(policy.system_identifier(), Some(0x0102_0304_0506_0708));
        assert!(policy.key(1).is_some() && policy.key(3).is_some() && policy.key(2).is_none());
        let mut order = Vec::new();
        policy.any_version(&mut |version| {
            order.push(version);
            false
        });
        assert_eq!((order, keys.oldest()), (vec![3, 1], Some(1)));
        let allowed = [0, 0xFF_FFFF, 0x100_0000, u64::MAX].map(|at| policy.plain_allowed(at));
        assert_eq!(allowed, [true, true, false, false]);
        let none = WalKeys::from_bytes(WalKeys::new(5, Vec::new()).to_bytes().as_slice()).expect("no keys");
        assert!(!none.writes_encrypted() && none.plain_allowed(7));
    }

    #[test]
    fn anything_else_is_refused() {
        let bytes = example().to_bytes();
        let whole = bytes.as_slice();
        for length in 0..whole.len() {
            assert!(WalKeys::from_bytes(&whole[..length]).is_err(), "{length} bytes");
        }
        // Magic, numbers of changes and keys, the zeros, a key that new segments would need.
        for at in [0, 7, 16, 20, 24, 27, 28] {
            let mut changed = whole.to_vec();
            changed[at] ^= 4;
            assert!(WalKeys::from_bytes(&changed).is_err(), "byte {at}");
        }
    }
}
