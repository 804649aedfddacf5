//! The root's sum over all records: a record put back to an older version is noticed.
//!
//! Sum = the total modulo 2^256 of a keyed hash of (line, record version) over all lines (MSet-Add-Hash,
//! Clarke et al., ASIACRYPT 2003), so that a change of one record costs one subtraction and one addition however
//! many records there are. It is only compared by who reads all records anyway.

use hmac::{Hmac, KeyInit, Mac};
use secret_mem::SecretBytes;
use sha2::Sha256;

use crate::ids::LineNumber;
use crate::seal::expand;

const SUM_INFO: &[u8] = b"tde/keyring/sum/v1";

/// A number modulo 2^256, least significant limb first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum([u64; 4]);

impl Sum {
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut limbs = [0; 4];
        for (limb, chunk) in limbs.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *limb = u64::from_le_bytes(*chunk);
        }
        Self(limbs)
    }

    pub(crate) fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, limb) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *chunk = limb.to_le_bytes();
        }
        bytes
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        let mut carry = false;
        let mut limbs = [0; 4];
        for (limb, (a, b)) in limbs.iter_mut().zip(self.0.into_iter().zip(other.0)) {
            let (partial, first) = a.overflowing_add(b);
            let (total, second) = partial.overflowing_add(u64::from(carry));
            *limb = total;
            carry = first || second;
        }
        Self(limbs)
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        let complement = Self(other.0.map(|limb| !limb)).plus(Self([1, 0, 0, 0]));
        self.plus(complement)
    }
}

/// Hashes records for the sum, under HKDF-SHA-256(seal key, "tde/keyring/sum/v1").
pub(crate) struct SumKey(SecretBytes<32>);

impl SumKey {
    pub(crate) fn derive(seal_key: &SecretBytes<32>) -> Self {
        let mut key = SecretBytes::zeroed();
        expand(seal_key.expose(), &[SUM_INFO], key.expose_mut());
        Self(key)
    }

    /// HMAC-SHA-256 of line u64 LE | record version u64 LE; version 0 (no record yet) counts nothing.
    pub(crate) fn term(&self, line: LineNumber, record_version: u64) -> Sum {
        if record_version == 0 {
            return Sum::default();
        }
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.expose()).expect("HMAC takes keys of every length");
        mac.update(&line.0.to_le_bytes());
        mac.update(&record_version.to_le_bytes());
        Sum::from_bytes(mac.finalize().into_bytes().into())
    }
}
