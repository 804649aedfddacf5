//! An object in memory.

use std::fmt;
use std::sync::OnceLock;

use hsm_primitives::{Aes, Gcm, GcmSiv, PrivateKey, PublicKey};
use secret_mem::SecretBuf;
use uuid::Uuid;

use super::keys::KeyWrapper;
use super::records::{Entry, Record};
use super::template::{Attributes, Plain};
use super::{AttributeType as A, Class, Error, KeyType, Result, class};
use crate::error::Damage;
use crate::time::Timestamp;

/// Names an object; also its `CKA_UNIQUE_ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub(crate) Uuid);

impl ObjectId {
    /// From its UUID.
    pub fn from_uuid(id: Uuid) -> Self {
        Self(id)
    }

    /// Its UUID.
    pub fn uuid(self) -> Uuid {
        self.0
    }

    pub(crate) fn random() -> Result<Self> {
        let mut id = [0; 16];
        secret_mem::random(&mut id)?;
        Ok(Self(uuid::Builder::from_random_bytes(id).into_uuid()))
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An object, from the store or of a session.
pub(crate) struct Object {
    pub(crate) id: ObjectId,
    pub(crate) owner: String,
    pub(crate) created: Timestamp,
    /// Of the stored object; 0 for one of a session.
    pub(crate) revision: u64,
    /// The scope a session object belongs to.
    pub(crate) scope: Option<u64>,
    pub(crate) class: Class,
    pub(crate) key_type: Option<KeyType>,
    pub(crate) attributes: Attributes,
    /// As in [`Record::secret`].
    pub(crate) secret: Vec<u8>,
    pub(crate) shared: Vec<String>,
    pub(crate) quorum_use: u8,
    pub(crate) quorum_manage: u8,
    ready: OnceLock<Ready>,
}

/// A key that was unwrapped and expanded, each form when it is first needed.
pub(crate) enum Ready {
    Secret(SecretKey),
    Private(PrivateKey),
    Public(PublicKey),
}

/// A symmetric key.
pub(crate) struct SecretKey {
    pub(crate) bytes: SecretBuf,
    aes: OnceLock<Aes>,
    gcm: OnceLock<Gcm>,
    gcm_siv: OnceLock<GcmSiv>,
}

impl SecretKey {
    pub(crate) fn aes(&self) -> Result<&Aes> {
        get_or_try(&self.aes, || Aes::new(self.bytes.as_slice()))
    }

    pub(crate) fn gcm(&self) -> Result<&Gcm> {
        get_or_try(&self.gcm, || Gcm::new(self.bytes.as_slice()))
    }

    pub(crate) fn gcm_siv(&self) -> Result<&GcmSiv> {
        get_or_try(&self.gcm_siv, || GcmSiv::new(self.bytes.as_slice()))
    }
}

/// `OnceLock::get_or_try_init`, which is not stable yet; two threads may both compute, one result is kept.
fn get_or_try<T>(cell: &OnceLock<T>, make: impl FnOnce() -> hsm_primitives::Result<T>) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = make().map_err(|_| Error::KeySizeRange)?;
    Ok(cell.get_or_init(|| value))
}

/// Everything of a new object but its id.
pub(crate) struct New {
    pub(crate) owner: String,
    pub(crate) scope: Option<u64>,
    pub(crate) class: Class,
    pub(crate) key_type: Option<KeyType>,
    pub(crate) attributes: Attributes,
    pub(crate) secret: Vec<u8>,
}

impl Object {
    pub(crate) fn new(new: New) -> Result<Self> {
        let id = ObjectId::random()?;
        let New { owner, scope, class, key_type, mut attributes, secret } = new;
        attributes.insert(A::UniqueId, Plain::Bytes(id.to_string().into_bytes()));
        Ok(Self {
            id,
            owner,
            created: Timestamp::now(),
            revision: 0,
            scope,
            class,
            key_type,
            attributes,
            secret,
            shared: Vec::new(),
            quorum_use: 0,
            quorum_manage: 0,
            ready: OnceLock::new(),
        })
    }

    /// The object of a record.
    pub(crate) fn from_record(record: Record, revision: u64) -> Result<Self, Damage> {
        let number = |a: A| match record.attributes.iter().find(|(n, _)| u64::from(*n) == a.number()) {
            Some((_, Plain::Number(n))) => Some(*n),
            _ => None,
        };
        let class = number(A::Class).and_then(Class::from_number).ok_or(Damage::Field("class"))?;
        let key_type = match class {
            Class::Data | Class::Certificate => None,
            _ => {
                let found = number(A::KeyType).and_then(KeyType::from_number).filter(|t| t.fits(class));
                Some(found.ok_or(Damage::Field("key type"))?)
            }
        };
        // Attributes that a later version of the program knows are kept out of sight, but stay in the store.
        let attributes = record.attributes.into_iter();
        let attributes = attributes.filter_map(|(n, v)| Some((A::from_number(u64::from(n))?, v))).collect();
        Ok(Self {
            id: ObjectId(Uuid::from_bytes(record.id)),
            owner: record.owner,
            created: record.created,
            revision,
            scope: None,
            class,
            key_type,
            attributes,
            secret: record.secret,
            shared: record.shared,
            quorum_use: record.quorum_use,
            quorum_manage: record.quorum_manage,
            ready: OnceLock::new(),
        })
    }

    pub(crate) fn to_record(&self) -> Record {
        Record {
            id: self.id.0.into_bytes(),
            owner: self.owner.clone(),
            created: self.created,
            attributes: self.attributes.iter().map(|(a, v)| (*a as u32, v.clone())).collect(),
            secret: self.secret.clone(),
            shared: self.shared.clone(),
            quorum_use: self.quorum_use,
            quorum_manage: self.quorum_manage,
        }
    }

    pub(crate) fn to_entry(&self, revision: u64) -> Entry {
        let hash = |a: A| super::directory::short_hash(self.bytes(a));
        Entry {
            id: self.id.0.into_bytes(),
            revision,
            class: self.class as u8,
            visibility: if !self.flag(A::Private) { 2 } else { u8::from(!self.shared.is_empty()) },
            owner: super::directory::short_hash(self.owner.as_bytes()),
            label: hash(A::Label),
            cka_id: hash(A::Id),
        }
    }

    /// A copy with other attributes, which is another version of the same object.
    pub(crate) fn changed(&self, attributes: Attributes) -> Self {
        Self {
            attributes,
            owner: self.owner.clone(),
            secret: self.secret.clone(),
            shared: self.shared.clone(),
            ready: OnceLock::new(),
            ..*self
        }
    }

    /// A yes-or-no attribute; no if it is not there.
    pub(crate) fn flag(&self, attribute: A) -> bool {
        matches!(self.attributes.get(&attribute), Some(Plain::Bool(true)))
    }

    /// Bytes of an attribute; none if it is not there.
    pub(crate) fn bytes(&self, attribute: A) -> &[u8] {
        match self.attributes.get(&attribute) {
            Some(Plain::Bytes(bytes)) => bytes,
            _ => &[],
        }
    }

    pub(crate) fn is_token(&self) -> bool {
        self.scope.is_none()
    }

    pub(crate) fn is_key(&self) -> bool {
        self.key_type.is_some()
    }

    /// Whether the key material may be shown in clear.
    pub(crate) fn shows_secret(&self) -> bool {
        match self.class {
            Class::Data | Class::Certificate => true,
            Class::PublicKey => false,
            _ => !self.flag(A::Sensitive) && self.flag(A::Extractable),
        }
    }

    /// Key material or value, in clear for a moment.
    pub(crate) fn unwrap(&self, wrapper: &dyn KeyWrapper) -> Result<SecretBuf> {
        wrapper.unwrap(self.id, &self.secret)
    }

    /// The key, unwrapped and parsed the first time.
    pub(crate) fn ready(&self, wrapper: &dyn KeyWrapper) -> Result<&Ready> {
        if let Some(ready) = self.ready.get() {
            return Ok(ready);
        }
        let made = self.make_ready(wrapper)?;
        Ok(self.ready.get_or_init(|| made))
    }

    fn make_ready(&self, wrapper: &dyn KeyWrapper) -> Result<Ready> {
        let damaged = |_| Error::DataInvalid;
        Ok(match (self.class, self.key_type) {
            (Class::SecretKey, _) => Ready::Secret(SecretKey {
                bytes: self.unwrap(wrapper)?,
                aes: OnceLock::new(),
                gcm: OnceLock::new(),
                gcm_siv: OnceLock::new(),
            }),
            (Class::PrivateKey, _) => {
                let pkcs8 = self.unwrap(wrapper)?;
                Ready::Private(PrivateKey::from_pkcs8(pkcs8.as_slice()).map_err(damaged)?)
            }
            (Class::PublicKey, Some(KeyType::Rsa)) => Ready::Public(
                PublicKey::from_rsa(self.bytes(A::Modulus), self.bytes(A::PublicExponent))
                    .map_err(damaged)?,
            ),
            (Class::PublicKey, Some(key_type)) => {
                let curve = class::curve_of(self.bytes(A::EcParams), key_type)?;
                let point = class::point_from_der(self.bytes(A::EcPoint), curve);
                Ready::Public(PublicKey::from_point(curve, point).map_err(damaged)?)
            }
            _ => return Err(Error::KeyTypeInconsistent),
        })
    }
}

impl Ready {
    pub(crate) fn secret(&self) -> Result<&SecretKey> {
        if let Self::Secret(key) = self { Ok(key) } else { Err(Error::KeyTypeInconsistent) }
    }

    pub(crate) fn private(&self) -> Result<&PrivateKey> {
        if let Self::Private(key) = self { Ok(key) } else { Err(Error::KeyTypeInconsistent) }
    }

    pub(crate) fn public(&self) -> Result<&PublicKey> {
        if let Self::Public(key) = self { Ok(key) } else { Err(Error::KeyTypeInconsistent) }
    }
}
