//! Objects of the store: an envelope around a payload that is public or sealed.
//!
//! ```text
//! 0    4  magic "tdeH"
//! 4    2  format version, 1, or 2 for a root with an extension (little endian, as all numbers)
//! 6    1  kind: 1 header, 2 user, 3 lockout, 4 root, 5 master key, 6 counters, 7 policy, 8 directory of objects, 9 page of it,
//!         10 object
//! 7    1  0 public, 1 sealed
//! 8    8  revision, from 1; one more with every write
//! 16   4  n, length of the payload in bytes (sealed: ciphertext and tag of 16)
//! 20  12  nonce (public: zeros)
//! 32   n  payload
//! 32+n 4  CRC-32 (IEEE) of everything before
//! ```
//! Sealed: AES-256-GCM-SIV (RFC 8452) under a key from the store key, random nonce, associated data
//! `"tde/hsm/object/v1" | HSM id | bytes 0..32 | object name`. A public object is only protected against rot here;
//! what vouches for it is said where its payload is described.
//!
//! Bytes 0..6 and the place of the CRC stay the same in later versions, so that an unknown version and damage can be
//! told apart.

use aes_gcm_siv::aead::AeadInOut as _;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit as _, Nonce, Tag};
use secret_mem::{LockedBox, SecretBytes};

use crate::error::{Damage, HsmError, Result};
use crate::format::Payload;
use crate::store::{ObjectName, Store};

const MAGIC: [u8; 4] = *b"tdeH";
/// Newest format version this program reads and writes.
pub(crate) const FORMAT: u16 = 2;
const HEADER: usize = 32;
const CRC: usize = 4;
const TAG: usize = 16;
const AAD_LABEL: &[u8] = b"tde/hsm/object/v1";

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(dead_code, reason = "the feature `objects` writes the last ones")]
pub(crate) enum Kind {
    Header = 1,
    User = 2,
    Lockout = 3,
    Root = 4,
    MasterKey = 5,
    Counters = 6,
    Policy = 7,
    Directory = 8,
    Page = 9,
    Key = 10,
}

impl Kind {
    /// Newest version of the envelope of such objects.
    fn newest(self) -> u16 {
        if self == Self::Root { FORMAT } else { 1 }
    }

    fn sealed(self) -> bool {
        !matches!(self, Self::Header | Self::User | Self::Lockout)
    }
}

/// A decoded object.
#[derive(Debug)]
pub(crate) struct Object<T> {
    pub(crate) revision: u64,
    pub(crate) value: T,
}

impl<T> Object<T> {
    /// What replaces this object. Whoever edits a public object may have left it the highest revision there is.
    pub(crate) fn next<U>(&self, value: U) -> Object<U> {
        Object { revision: self.revision.saturating_add(1), value }
    }
}

/// Seals and opens objects of one HSM.
pub(crate) struct Sealer {
    cipher: LockedBox<Aes256GcmSiv>,
    hsm_id: [u8; 16],
}

impl Sealer {
    pub(crate) fn new(key: &SecretBytes<32>, hsm_id: [u8; 16]) -> Self {
        Self { cipher: LockedBox::new_with(|| Aes256GcmSiv::new(key.expose().into())), hsm_id }
    }

    /// Reads a sealed object; `None` if it is absent.
    pub(crate) fn get<T: Payload>(
        &self,
        store: &dyn Store,
        kind: Kind,
        name: &ObjectName,
    ) -> Result<Option<Object<T>>> {
        let Some(bytes) = store.get(name)? else { return Ok(None) };
        let damaged = |d| damaged(store, name, d);
        let envelope = Envelope::parse(store, kind, name, &bytes)?;
        let mut payload = envelope.payload.to_vec();
        self.open(&bytes[..HEADER], name, &mut payload).map_err(damaged)?;
        let value = envelope.decode(store, name, &payload)?;
        Ok(Some(Object { revision: envelope.revision, value }))
    }

    /// Writes a sealed object.
    pub(crate) fn put<T: Payload>(
        &self,
        store: &dyn Store,
        kind: Kind,
        name: &ObjectName,
        object: &Object<T>,
    ) -> Result<()> {
        let payload = object.value.to_payload().map_err(|d| damaged(store, name, d))?;
        let mut nonce = [0; 12];
        secret_mem::random(&mut nonce)?;
        let bytes = self.seal(object.value.version(), kind, name, object.revision, payload, nonce);
        Ok(store.put(name, &bytes)?)
    }

    fn seal(
        &self,
        version: u16,
        kind: Kind,
        name: &ObjectName,
        revision: u64,
        mut payload: Vec<u8>,
        nonce: [u8; 12],
    ) -> Vec<u8> {
        let head = header(version, kind, revision, payload.len() + TAG, nonce);
        let aad = self.aad(&head, name);
        let tag = self
            .cipher
            .encrypt_inout_detached(&Nonce::from(nonce), &aad, payload.as_mut_slice().into())
            .expect("payloads are far below the 2^36 bytes that RFC 8452 allows");
        payload.extend_from_slice(&tag);
        finish(head, &payload)
    }

    fn open(&self, head: &[u8], name: &ObjectName, payload: &mut Vec<u8>) -> Result<(), Damage> {
        let Some(n) = payload.len().checked_sub(TAG) else {
            return Err(Damage::Length { expected: TAG as u64, found: payload.len() as u64 });
        };
        let (text, tag) = payload.split_at_mut(n);
        let tag = Tag::try_from(&*tag).map_err(|_| Damage::Seal)?;
        let nonce = Nonce::try_from(&head[20..HEADER]).map_err(|_| Damage::Seal)?;
        let aad = self.aad(head, name);
        self.cipher.decrypt_inout_detached(&nonce, &aad, text.into(), &tag).map_err(|_| Damage::Seal)?;
        payload.truncate(n);
        Ok(())
    }

    fn aad(&self, head: &[u8], name: &ObjectName) -> Vec<u8> {
        [AAD_LABEL, &self.hsm_id, head, name.as_str().as_bytes()].concat()
    }
}

/// Reads a public object; `None` if it is absent.
pub(crate) fn get_public<T: Payload>(
    store: &dyn Store,
    kind: Kind,
    name: &ObjectName,
) -> Result<Option<Object<T>>> {
    let Some(bytes) = store.get(name)? else { return Ok(None) };
    let envelope = Envelope::parse(store, kind, name, &bytes)?;
    let value = envelope.decode(store, name, envelope.payload)?;
    Ok(Some(Object { revision: envelope.revision, value }))
}

/// Writes a public object.
pub(crate) fn put_public<T: Payload>(
    store: &dyn Store,
    kind: Kind,
    name: &ObjectName,
    object: &Object<T>,
) -> Result<()> {
    let payload = object.value.to_payload().map_err(|d| damaged(store, name, d))?;
    let bytes =
        finish(header(object.value.version(), kind, object.revision, payload.len(), [0; 12]), &payload);
    Ok(store.put(name, &bytes)?)
}

/// A public object from its bytes; `None` if they are not one that this program writes.
pub(crate) fn parse_public<T: Payload>(kind: Kind, bytes: &[u8]) -> Option<Object<T>> {
    let (head, rest) = bytes.split_first_chunk::<HEADER>()?;
    let (payload, crc) = rest.split_last_chunk::<CRC>()?;
    let whole = crc32fast::hash(&bytes[..HEADER + payload.len()]) == u32::from_le_bytes(*crc);
    let as_written = head[..4] == MAGIC && head[6] == kind as u8 && head[7] == 0;
    if !(whole && as_written) || length_field(head) != payload.len() as u64 {
        return None;
    }
    let revision = u64::from_le_bytes(head[8..16].try_into().ok()?);
    let value = T::from_payload(u16::from_le_bytes([head[4], head[5]]), payload)?.ok()?;
    Some(Object { revision, value })
}

/// The revision that an object's envelope claims; `None` if there is no object. Nothing vouches for it.
#[cfg(feature = "objects")]
pub(crate) fn revision_hint(store: &dyn Store, name: &ObjectName) -> Result<Option<u64>> {
    let Some(head) = store.head(name)? else { return Ok(None) };
    let field = head.get(8..16).and_then(|bytes| bytes.try_into().ok());
    Ok(Some(field.map_or(0, u64::from_le_bytes)))
}

/// The error that an object which must exist does not.
pub(crate) fn missing(store: &dyn Store, name: &ObjectName) -> HsmError {
    HsmError::MissingObject { store: store.location(), object: name.to_string() }
}

/// The error that an object is damaged.
pub(crate) fn damaged(store: &dyn Store, name: &ObjectName, damage: Damage) -> HsmError {
    HsmError::Damaged { store: store.location(), object: name.to_string(), damage }
}

struct Envelope<'a> {
    version: u16,
    revision: u64,
    payload: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn parse(store: &dyn Store, kind: Kind, name: &ObjectName, bytes: &'a [u8]) -> Result<Self> {
        let damaged = |d| damaged(store, name, d);
        let found = bytes.len() as u64;
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(damaged(Damage::Length { expected: (HEADER + CRC) as u64, found }));
        };
        let Some((payload, crc)) = rest.split_last_chunk::<CRC>() else {
            return Err(damaged(Damage::Length { expected: (HEADER + CRC) as u64, found }));
        };
        if head[..4] != MAGIC {
            return Err(damaged(Damage::Magic));
        }
        // Before the length: the checksum ends every version's objects, the length is this version's own.
        if crc32fast::hash(&bytes[..HEADER + payload.len()]) != u32::from_le_bytes(*crc) {
            return Err(damaged(match length_field(head) {
                n if n != payload.len() as u64 => {
                    Damage::Length { expected: n + (HEADER + CRC) as u64, found }
                }
                _ => Damage::Checksum,
            }));
        }
        let version = u16::from_le_bytes([head[4], head[5]]);
        if !(1..=kind.newest()).contains(&version) {
            return Err(unknown_format(store, name, version, kind.newest()));
        }
        if length_field(head) != payload.len() as u64 {
            return Err(damaged(Damage::Field("length")));
        }
        if head[6] != kind as u8 || head[7] != u8::from(kind.sealed()) {
            return Err(damaged(Damage::Field("kind")));
        }
        let revision = u64::from_le_bytes([
            head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15],
        ]);
        if revision == 0 {
            return Err(damaged(Damage::Field("revision")));
        }
        Ok(Self { version, revision, payload })
    }

    /// The value of the payload once it is open.
    fn decode<T: Payload>(&self, store: &dyn Store, name: &ObjectName, payload: &[u8]) -> Result<T> {
        T::from_payload(self.version, payload)
            .ok_or_else(|| unknown_format(store, name, self.version, FORMAT))?
            .map_err(|d| damaged(store, name, d))
    }
}

fn unknown_format(store: &dyn Store, name: &ObjectName, found: u16, supported: u16) -> HsmError {
    HsmError::UnknownFormat { store: store.location(), object: name.to_string(), found, supported }
}

fn length_field(head: &[u8; HEADER]) -> u64 {
    u64::from(u32::from_le_bytes([head[16], head[17], head[18], head[19]]))
}

fn header(version: u16, kind: Kind, revision: u64, payload: usize, nonce: [u8; 12]) -> [u8; HEADER] {
    let mut head = [0; HEADER];
    head[..4].copy_from_slice(&MAGIC);
    head[4..6].copy_from_slice(&version.to_le_bytes());
    head[6] = kind as u8;
    head[7] = u8::from(kind.sealed());
    head[8..16].copy_from_slice(&revision.to_le_bytes());
    // `format::encode` keeps payloads below 4 MiB.
    head[16..20].copy_from_slice(&(payload as u32).to_le_bytes());
    head[20..].copy_from_slice(&nonce);
    head
}

fn finish(head: [u8; HEADER], payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&head, payload].concat();
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::records::Lockout;
    use crate::time::Timestamp;

    fn sealer() -> Sealer {
        let mut key = SecretBytes::zeroed();
        *key.expose_mut() = [7; 32];
        Sealer::new(&key, [9; 16])
    }

    #[test]
    fn a_sealed_object_has_these_bytes() {
        let name = ObjectName::new("counters").unwrap();
        let bytes = sealer().seal(1, Kind::Counters, &name, 0x0102, b"payload".to_vec(), [3; 12]);
        let (head, rest) = bytes.split_at(HEADER);
        assert_eq!(hex::encode(head), "7464654801000601020100000000000017000000030303030303030303030303");
        assert_eq!(hex::encode(rest), SEALED);
        let mut payload = rest[..rest.len() - CRC].to_vec();
        sealer().open(head, &name, &mut payload).unwrap();
        assert_eq!(payload, b"payload");
    }

    #[test]
    fn a_public_object_has_these_bytes() {
        let epoch = Timestamp::from_micros(0);
        let payload =
            Lockout { failures: 1, unfinished: 0, last: epoch, not_before: epoch }.to_payload().unwrap();
        let bytes = finish(header(1, Kind::Lockout, 5, payload.len(), [0; 12]), &payload);
        assert_eq!(
            hex::encode(bytes),
            "7464654801000300050000000000000018000000000000000000000000000000\
             010000000000000000000000000000000000000000000000ebd5bed9"
        );
    }

    #[test]
    fn the_seal_binds_name_kind_revision_and_hsm() {
        let name = ObjectName::new("counters").unwrap();
        let bytes = sealer().seal(1, Kind::Counters, &name, 2, b"payload".to_vec(), [3; 12]);
        let open = |sealer: &Sealer, head: &[u8], name: &str| {
            let mut payload = bytes[HEADER..bytes.len() - CRC].to_vec();
            sealer.open(head, &ObjectName::new(name).unwrap(), &mut payload)
        };
        let head = &bytes[..HEADER];
        assert_eq!(open(&sealer(), head, "counters"), Ok(()));
        assert_eq!(open(&sealer(), head, "counterz"), Err(Damage::Seal));
        for at in 0..HEADER {
            let mut changed = head.to_vec();
            changed[at] ^= 1;
            assert_eq!(open(&sealer(), &changed, "counters"), Err(Damage::Seal), "byte {at}");
        }
        let other = Sealer { hsm_id: [8; 16], ..sealer() };
        assert_eq!(open(&other, head, "counters"), Err(Damage::Seal));
    }

    /// Ciphertext, tag and checksum.
    const SEALED: &str = "2ad41fb298bf0d19dba2b194a1e775e7bdf8994181fe7fe8ffdaf9";
}
