//! Key material: how it is wrapped at rest, parsed from templates and shown in attributes.

use std::collections::BTreeMap;

use hsm_primitives::{Aes, Curve, Hash, PrivateKey, PublicKey, RsaPrivateNumbers};
use secret_mem::SecretBuf;

use super::class::{curve_of, params_of, point_from_der, point_to_der};
use super::object::ObjectId;
use super::template::{Attributes, Plain, copy_secret};
use super::{AttributeType as A, Error, KeyType, Result};

/// Longest symmetric key, in bytes.
pub(crate) const MAX_SECRET: usize = 1024;

/// Wraps key material for the store.
pub(crate) trait KeyWrapper {
    fn wrap(&self, secret: &[u8]) -> Result<Vec<u8>>;
    fn unwrap(&self, id: ObjectId, wrapped: &[u8]) -> Result<SecretBuf>;
}

impl KeyWrapper for Aes {
    fn wrap(&self, secret: &[u8]) -> Result<Vec<u8>> {
        if secret.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.kwp_wrap(secret)?)
    }

    fn unwrap(&self, _id: ObjectId, wrapped: &[u8]) -> Result<SecretBuf> {
        if wrapped.is_empty() {
            return Ok(copy_secret(&[]));
        }
        self.kwp_unwrap(wrapped).map_err(|_| Error::WrappedKeyInvalid)
    }
}

/// What an object is made of, before it has attributes.
pub(crate) enum Material {
    /// A symmetric key.
    Secret(SecretBuf),
    Private(PrivateKey),
    Public(PublicKey),
    /// Value of data or a certificate.
    Value(SecretBuf),
}

impl Material {
    /// What is kept wrapped.
    pub(crate) fn to_secret(&self, wrapper: &dyn KeyWrapper) -> Result<Vec<u8>> {
        match self {
            Self::Secret(bytes) | Self::Value(bytes) => wrapper.wrap(bytes.as_slice()),
            Self::Private(key) => wrapper.wrap(key.to_pkcs8()?.as_slice()),
            Self::Public(_) => Ok(Vec::new()),
        }
    }

    /// The attributes that follow from it.
    pub(crate) fn attributes(&self, key_type: Option<KeyType>) -> Result<Attributes> {
        let mut set = Attributes::new();
        let bytes = Plain::Bytes;
        match self {
            Self::Secret(secret) => {
                set.insert(A::ValueLen, Plain::Number(secret.len() as u64));
                set.insert(A::CheckValue, bytes(check_value(key_type, secret.as_slice())?));
            }
            Self::Private(key) => {
                let public = key.public()?;
                public_numbers(&public, &mut set)?;
                set.remove(&A::EcPoint);
                set.remove(&A::ModulusBits);
                set.insert(A::PublicKeyInfo, bytes(public.to_spki()?));
            }
            Self::Public(key) => {
                public_numbers(key, &mut set)?;
                set.insert(A::PublicKeyInfo, bytes(key.to_spki()?));
            }
            Self::Value(_) => {}
        }
        Ok(set)
    }
}

fn public_numbers(key: &PublicKey, set: &mut Attributes) -> Result<()> {
    match key.curve() {
        None => {
            let (n, e) = key.rsa_numbers()?;
            set.insert(A::Modulus, Plain::Bytes(n));
            set.insert(A::PublicExponent, Plain::Bytes(e));
            set.insert(A::ModulusBits, Plain::Number(key.bits() as u64));
        }
        Some(curve) => {
            set.insert(A::EcParams, Plain::Bytes(params_of(curve)));
            set.insert(A::EcPoint, Plain::Bytes(point_to_der(&key.point()?)));
        }
    }
    Ok(())
}

/// `CKA_CHECK_VALUE`: of AES the first bytes of an encrypted block of zeros, of other secrets of their SHA-1.
pub(crate) fn check_value(key_type: Option<KeyType>, secret: &[u8]) -> Result<Vec<u8>> {
    let mut block = match key_type {
        Some(KeyType::Aes) => {
            let mut block = vec![0; 16];
            Aes::new(secret).map_err(|_| Error::KeySizeRange)?.ecb_encrypt(&mut block)?;
            block
        }
        _ => Hash::Sha1.digest(secret),
    };
    block.truncate(3);
    Ok(block)
}

/// Checks the length of a symmetric key.
pub(crate) fn check_secret_len(key_type: KeyType, len: usize) -> Result<()> {
    let good = match key_type {
        KeyType::Aes => matches!(len, 16 | 24 | 32),
        _ => (1..=MAX_SECRET).contains(&len),
    };
    if good { Ok(()) } else { Err(Error::KeySizeRange) }
}

type Secrets = BTreeMap<A, SecretBuf>;

/// A private key from the numbers of a template.
pub(crate) fn private_from(
    key_type: KeyType,
    attributes: &Attributes,
    secrets: &Secrets,
) -> Result<PrivateKey> {
    let public = |a: A| match attributes.get(&a) {
        Some(Plain::Bytes(bytes)) => Ok(&bytes[..]),
        _ => Err(Error::TemplateIncomplete(a)),
    };
    let secret = |a: A| secrets.get(&a).map(SecretBuf::as_slice).ok_or(Error::TemplateIncomplete(a));
    match key_type {
        KeyType::Rsa => {
            let rest = [A::Prime1, A::Prime2, A::Exponent1, A::Exponent2, A::Coefficient];
            let crt = match rest.iter().filter(|a| secrets.contains_key(a)).count() {
                0 => None,
                5 => Some([
                    secret(rest[0])?,
                    secret(rest[1])?,
                    secret(rest[2])?,
                    secret(rest[3])?,
                    secret(rest[4])?,
                ]),
                _ => return Err(Error::TemplateInconsistent("an RSA key has all of its primes or none")),
            };
            let numbers = RsaPrivateNumbers {
                n: public(A::Modulus)?,
                e: public(A::PublicExponent)?,
                d: secret(A::PrivateExponent)?,
                crt,
            };
            let bits = modulus_bits(numbers.n);
            let key = PrivateKey::from_rsa(&numbers);
            key.map_err(|_| bad_rsa(bits, A::PrivateExponent))
        }
        KeyType::Ec | KeyType::Edwards => {
            let curve = curve_of(public(A::EcParams)?, key_type)?;
            let scalar = secret(A::Value)?;
            PrivateKey::from_scalar(curve, scalar).map_err(|_| Error::AttributeValueInvalid(A::Value))
        }
        _ => Err(Error::TemplateInconsistent("private keys are RSA, EC or Edwards keys")),
    }
}

/// A public key from the numbers of a template.
pub(crate) fn public_from(key_type: KeyType, attributes: &Attributes) -> Result<PublicKey> {
    let bytes = |a: A| match attributes.get(&a) {
        Some(Plain::Bytes(bytes)) => Ok(&bytes[..]),
        _ => Err(Error::TemplateIncomplete(a)),
    };
    match key_type {
        KeyType::Rsa => {
            let n = bytes(A::Modulus)?;
            let key = PublicKey::from_rsa(n, bytes(A::PublicExponent)?);
            key.map_err(|_| bad_rsa(modulus_bits(n), A::Modulus))
        }
        KeyType::Ec | KeyType::Edwards => {
            let curve: Curve = curve_of(bytes(A::EcParams)?, key_type)?;
            let point = point_from_der(bytes(A::EcPoint)?, curve);
            PublicKey::from_point(curve, point).map_err(|_| Error::AttributeValueInvalid(A::EcPoint))
        }
        _ => Err(Error::TemplateInconsistent("public keys are RSA, EC or Edwards keys")),
    }
}

fn modulus_bits(n: &[u8]) -> usize {
    let zeros = n.iter().take_while(|b| **b == 0).count();
    n.get(zeros).map_or(0, |first| 8 * (n.len() - zeros) - first.leading_zeros() as usize)
}

fn bad_rsa(bits: usize, attribute: A) -> Error {
    let range = hsm_primitives::MIN_RSA_BITS as usize..=hsm_primitives::MAX_RSA_BITS as usize;
    if range.contains(&bits) { Error::AttributeValueInvalid(attribute) } else { Error::KeySizeRange }
}

/// A part of a private key that may be shown.
pub(crate) fn secret_attribute(key: &PrivateKey, attribute: A) -> Result<SecretBuf> {
    let at = match (key.curve(), attribute) {
        (None, A::PrivateExponent) | (Some(_), A::Value) => 0,
        (None, A::Prime1) => 1,
        (None, A::Prime2) => 2,
        (None, A::Exponent1) => 3,
        (None, A::Exponent2) => 4,
        (None, A::Coefficient) => 5,
        _ => return Err(Error::AttributeTypeInvalid(attribute)),
    };
    let mut numbers = key.secret_numbers()?;
    if at < numbers.len() { Ok(numbers.swap_remove(at)) } else { Err(Error::AttributeTypeInvalid(attribute)) }
}
