//! Payloads of the store's objects: what bincode makes of the structs in [`records`].
//!
//! bincode 2, fixed-size little-endian integers. So a `u32` is 4 bytes, a `String` or `Vec` is a `u64` count and its
//! elements, an `enum` is a `u32` number and its fields, an array is its elements. Nothing may follow the value.
//! Bytes on disk: `docs/formats/hsm-store.md`, pinned by the tests of this module.

pub(crate) mod records;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use crate::error::Damage;
use crate::store::MAX_OBJECT;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_OBJECT>> =
    bincode::config::standard().with_fixed_int_encoding().with_limit::<MAX_OBJECT>();

/// Bytes of `value`.
///
/// # Errors
/// [`Damage::Length`] if they are more than an object may have.
pub(crate) fn encode<T: Encode>(value: &T) -> Result<Vec<u8>, Damage> {
    // The structs hold nothing that bincode cannot encode; only the limit is left.
    bincode::encode_to_vec(value, CONFIG)
        .map_err(|_| Damage::Length { expected: MAX_OBJECT as u64, found: u64::MAX })
}

/// The value that all of `bytes` encode.
pub(crate) fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, Damage> {
    match bincode::decode_from_slice::<T, _>(bytes, CONFIG) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(Damage::Length { expected: used as u64, found: bytes.len() as u64 }),
        Err(_) => Err(Damage::Field("payload")),
    }
}

/// What an object's payload may be. Most have one form; one that has grown names its version in the envelope.
pub(crate) trait Payload: Sized {
    /// Version of the envelope that says which form it has.
    fn version(&self) -> u16 {
        1
    }

    /// Bytes of the payload.
    fn to_payload(&self) -> Result<Vec<u8>, Damage>;

    /// The value of a payload, or `None` if this program does not know the version.
    fn from_payload(version: u16, bytes: &[u8]) -> Option<Result<Self, Damage>>;
}

/// Payloads with one form.
macro_rules! payloads {
    ($($t:ty),* $(,)?) => {
        $(impl $crate::format::Payload for $t {
            fn to_payload(&self) -> Result<Vec<u8>, $crate::error::Damage> {
                $crate::format::encode(self)
            }

            fn from_payload(version: u16, bytes: &[u8]) -> Option<Result<Self, $crate::error::Damage>> {
                (version == 1).then(|| $crate::format::decode(bytes))
            }
        })*
    };
}
pub(crate) use payloads;
