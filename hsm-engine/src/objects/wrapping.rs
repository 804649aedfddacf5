//! Keys that leave wrapped, come in wrapped, or come from other keys.

use std::sync::Arc;

use hsm_primitives::{Aes, PrivateKey, RsaPadding, kdf};
use secret_mem::SecretBuf;
use zeroize::Zeroizing;

use super::build::{Origin, class_and_type, prescribe};
use super::keys::{self, Material};
use super::mechanism::Use;
use super::object::{Object, ObjectId};
use super::operation::{Cipher, rsa_padding};
use super::template::{Attributes, Parts, Plain, copy_secret};
use super::{
    AttributeType as A, Class, Derive, Error, KeyType, Mechanism, Result, Scope, Template, Token, class,
};

impl Token {
    /// Wraps a key: the bytes of a secret key, PKCS#8 of a private key.
    ///
    /// # Errors
    /// [`Error::KeyUnextractable`]; [`Error::KeyNotWrappable`] if it wants a trusted key, or another one than this, or belongs to
    /// somebody else; what the mechanism cannot take.
    pub fn wrap(&self, mechanism: &Mechanism, wrapping: ObjectId, key: ObjectId) -> Result<Vec<u8>> {
        let with = self.key_for(wrapping, mechanism, Use::Wrap)?;
        let object = self.object(key)?;
        let result = self.wrap_object(mechanism, &with, &object);
        self.0.usage.count(Use::Wrap, result.is_ok());
        result
    }

    fn wrap_object(&self, mechanism: &Mechanism, with: &Arc<Object>, object: &Object) -> Result<Vec<u8>> {
        if !matches!(object.class, Class::SecretKey | Class::PrivateKey) {
            return Err(Error::KeyNotWrappable);
        }
        self.own(object, "wrap it").map_err(|_| Error::KeyNotWrappable)?;
        if !object.flag(A::Extractable) {
            return Err(Error::KeyUnextractable);
        }
        if object.flag(A::WrapWithTrusted) && !with.flag(A::Trusted) {
            return Err(Error::KeyNotWrappable);
        }
        let demanded = with.attributes.get(&A::WrapTemplate).map(Plain::nested).unwrap_or_default();
        if demanded.iter().any(|(a, v)| object.attributes.get(a) != Some(v)) {
            return Err(Error::KeyNotWrappable);
        }
        self.approve_wrap(object)?;
        let secret = object.unwrap(self.wrapper())?;
        let too_long = |_| Error::KeySizeRange;
        match mechanism {
            Mechanism::AesKw => self.aes_of(with)?.kw_wrap(secret.as_slice()).map_err(too_long),
            Mechanism::AesKwp => self.aes_of(with)?.kwp_wrap(secret.as_slice()).map_err(too_long),
            Mechanism::AesCbc { .. } | Mechanism::AesCbcPad { .. } | Mechanism::AesEcb => {
                // Whole blocks: PKCS#11 fills up a secret key with zeros where nothing pads.
                let mut cipher = Cipher::with_key(self, mechanism, Arc::clone(with), Use::Wrap)?;
                let mut plain = Zeroizing::new(secret.as_slice().to_vec());
                if !matches!(mechanism, Mechanism::AesCbcPad { .. }) {
                    if object.class == Class::PrivateKey {
                        return Err(Error::KeyNotWrappable);
                    }
                    let whole = plain.len().next_multiple_of(16);
                    plain.resize(whole, 0);
                }
                let mut out = cipher.update(&plain)?;
                out.extend(cipher.finish()?);
                Ok(out)
            }
            Mechanism::RsaPkcs | Mechanism::RsaOaep { .. } => {
                if object.class == Class::PrivateKey {
                    return Err(Error::KeyNotWrappable);
                }
                let key = with.ready(self.wrapper())?.public()?;
                key.rsa_encrypt(&rsa_padding(mechanism)?, secret.as_slice()).map_err(too_long)
            }
            Mechanism::RsaAesKeyWrap { aes_bits, .. } => {
                let n = aes_len(*aes_bits)?;
                let fresh = SecretBuf::from_fn(n, |out| secret_mem::random(out).map(|()| n))?;
                let key = with.ready(self.wrapper())?.public()?;
                let mut out =
                    key.rsa_encrypt(&rsa_padding(mechanism)?, fresh.as_slice()).map_err(too_long)?;
                out.extend(Aes::new(fresh.as_slice())?.kwp_wrap(secret.as_slice()).map_err(too_long)?);
                Ok(out)
            }
            _ => Err(Error::MechanismInvalid),
        }
    }

    /// Unwraps a key into a new object.
    ///
    /// # Errors
    /// [`Error::WrappedKeyInvalid`], [`Error::WrappedKeyLenRange`]; what is wrong with the template, which must agree with what the
    /// unwrapping key prescribes.
    pub fn unwrap(
        &self,
        scope: &Scope,
        mechanism: &Mechanism,
        unwrapping: ObjectId,
        wrapped: &[u8],
        template: Template,
    ) -> Result<ObjectId> {
        let with = self.key_for(unwrapping, mechanism, Use::Unwrap)?;
        let mut parts = template.into_parts()?;
        let prescribed = with.attributes.get(&A::UnwrapTemplate).map(Plain::nested).unwrap_or_default();
        prescribe(&mut parts, &prescribed)?;
        let (class, key_type) = class_and_type(&parts, None)?;
        let (Class::SecretKey | Class::PrivateKey, Some(key_type)) = (class, key_type) else {
            return Err(Error::TemplateInconsistent("only secret and private keys are unwrapped"));
        };
        let result = self.unwrap_bytes(mechanism, &with, wrapped, class, &parts).and_then(|secret| {
            let material = unwrapped(class, key_type, secret)?;
            self.make(scope, Origin::Unwrap, class, Some(key_type), parts, &material)
        });
        self.0.usage.count(Use::Unwrap, result.is_ok());
        result
    }

    fn unwrap_bytes(
        &self,
        mechanism: &Mechanism,
        with: &Arc<Object>,
        wrapped: &[u8],
        class: Class,
        parts: &Parts,
    ) -> Result<SecretBuf> {
        use hsm_primitives::Error as P;
        let refused = |e| match e {
            P::BadLength => Error::WrappedKeyLenRange,
            _ => Error::WrappedKeyInvalid,
        };
        let whole = match mechanism {
            Mechanism::AesKw => return self.aes_of(with)?.kw_unwrap(wrapped).map_err(refused),
            Mechanism::AesKwp => return self.aes_of(with)?.kwp_unwrap(wrapped).map_err(refused),
            Mechanism::AesCbc { .. } | Mechanism::AesCbcPad { .. } | Mechanism::AesEcb => {
                let cipher = Cipher::with_key(self, mechanism, Arc::clone(with), Use::Unwrap)?;
                let plain = decrypt_all(cipher, wrapped)?;
                if matches!(mechanism, Mechanism::AesCbcPad { .. }) {
                    return Ok(copy_secret(&plain));
                }
                plain
            }
            Mechanism::RsaPkcs | Mechanism::RsaOaep { .. } => {
                let key = with.ready(self.wrapper())?.private()?;
                return key.rsa_decrypt(&rsa_padding(mechanism)?, wrapped).map_err(refused);
            }
            Mechanism::RsaAesKeyWrap { .. } => {
                let key = with.ready(self.wrapper())?.private()?;
                return unwrap_rsa_aes(key, &rsa_padding(mechanism)?, wrapped);
            }
            _ => return Err(Error::MechanismInvalid),
        };
        // Nothing says where the filling begins but the template.
        let n = match (self.value_len(parts)?, class) {
            (_, Class::PrivateKey) => return Err(Error::MechanismInvalid),
            (Some(n), _) if n <= whole.len() && whole.len() - n < 16 => n,
            (Some(_), _) => return Err(Error::WrappedKeyLenRange),
            (None, _) => whole.len(),
        };
        Ok(copy_secret(&whole[..n]))
    }

    /// Derives a secret key.
    ///
    /// # Errors
    /// What is wrong with the template or the mechanism, or the key may not derive.
    pub fn derive(
        &self,
        scope: &Scope,
        derive: &Derive,
        base: ObjectId,
        template: Template,
    ) -> Result<ObjectId> {
        self.allowed().derive(derive)?;
        let object = self.object(base)?;
        self.permit(&object, derive.number(), Use::Derive)?;
        let mut parts = template.into_parts()?;
        let prescribed = object.attributes.get(&A::DeriveTemplate).map(Plain::nested).unwrap_or_default();
        prescribe(&mut parts, &prescribed)?;
        let result = self.derive_from(scope, derive, &object, parts);
        self.0.usage.count(Use::Derive, result.is_ok());
        result
    }

    fn derive_from(&self, scope: &Scope, derive: &Derive, object: &Object, parts: Parts) -> Result<ObjectId> {
        let (class, key_type) = class_and_type(&parts, None).or_else(|e| match e {
            // PKCS#11: a derived key is a generic secret unless the template says otherwise.
            Error::TemplateIncomplete(_) => {
                let mut named = Attributes::new();
                named.extend(parts.attributes.iter().map(|(a, v)| (*a, v.clone())));
                named.entry(A::Class).or_insert(Plain::Number(Class::SecretKey.number()));
                named.entry(A::KeyType).or_insert(Plain::Number(KeyType::GenericSecret.number()));
                class_and_type(&Parts { attributes: named, ..Parts::default() }, None)
            }
            e => Err(e),
        })?;
        let (Class::SecretKey, Some(key_type)) = (class, key_type) else {
            return Err(Error::TemplateInconsistent("what is derived is a secret key"));
        };
        let len = self.value_len(&parts)?;
        let secret = self.derive_bytes(derive, object, len)?;
        keys::check_secret_len(key_type, secret.len())?;
        let sensitive = object.flag(A::AlwaysSensitive);
        let never = object.flag(A::NeverExtractable);
        let origin = Origin::Derive { always_sensitive: sensitive, never_extractable: never };
        self.make(scope, origin, class, Some(key_type), parts, &Material::Secret(secret))
    }

    fn derive_bytes(&self, derive: &Derive, object: &Object, len: Option<usize>) -> Result<SecretBuf> {
        let ready = object.ready(self.wrapper())?;
        let needed = || len.filter(|n| *n > 0).ok_or(Error::TemplateIncomplete(A::ValueLen));
        let generic = || match object.key_type {
            Some(KeyType::GenericSecret | KeyType::Purpose(_)) => Ok(ready.secret()?),
            _ => Err(Error::KeyTypeInconsistent),
        };
        let out_of_range = |_| Error::KeySizeRange;
        match derive {
            Derive::Ecdh { kdf: hash, public, shared } => {
                if object.key_type != Some(KeyType::Ec) {
                    return Err(Error::KeyTypeInconsistent);
                }
                let key = ready.private()?;
                let curve = key.curve().ok_or(Error::KeyTypeInconsistent)?;
                let point = class::point_from_der(public, curve);
                let bad_point = |_| Error::MechanismParamInvalid("the point is not on the key's curve");
                let x = key.ecdh(point).map_err(bad_point)?;
                match hash {
                    Some(hash) => kdf::x963(*hash, x.as_slice(), shared, needed()?).map_err(out_of_range),
                    None if !shared.is_empty() => {
                        Err(Error::MechanismParamInvalid("shared info is for a KDF"))
                    }
                    None => cut(&x, len),
                }
            }
            Derive::Hkdf { hash, extract, expand, salt, info } => {
                let base = &ready.secret()?.bytes;
                let prk = if *extract {
                    kdf::hkdf_extract(*hash, salt, base.as_slice())
                } else {
                    copy_secret(base.as_slice())
                };
                match (extract, expand) {
                    (_, true) => {
                        // PKCS#11 3.0: as long as the hash unless the template says otherwise.
                        let len = len.filter(|n| *n > 0).unwrap_or(hash.len());
                        kdf::hkdf_expand(*hash, prk.as_slice(), info, len).map_err(out_of_range)
                    }
                    (true, false) => cut(&prk, len),
                    (false, false) => Err(Error::MechanismParamInvalid("HKDF extracts, expands or both")),
                }
            }
            Derive::Sp800108 { prf, chain, parts } => {
                let prf = match prf {
                    Some(hash) => kdf::Prf::Hmac(*hash, generic()?.bytes.as_slice()),
                    None if object.key_type == Some(KeyType::Aes) => kdf::Prf::Cmac(ready.secret()?.aes()?),
                    None => return Err(Error::KeyTypeInconsistent),
                };
                kdf::sp800_108(&prf, chain, parts, needed()?).map_err(|e| match e {
                    hsm_primitives::Error::BadParameters => {
                        Error::MechanismParamInvalid("parts are missing, twice there or too long")
                    }
                    _ => Error::KeySizeRange,
                })
            }
            Derive::AesEcbEncryptData { data } | Derive::AesCbcEncryptData { data, .. } => {
                if object.key_type != Some(KeyType::Aes) {
                    return Err(Error::KeyTypeInconsistent);
                }
                let mut text = Zeroizing::new(data.clone());
                let aes = ready.secret()?.aes()?;
                let bad = |_| Error::MechanismParamInvalid("the data is not in whole blocks");
                if data.is_empty() {
                    return Err(Error::MechanismParamInvalid("there is no data"));
                }
                match derive {
                    Derive::AesCbcEncryptData { iv, .. } => aes.cbc_encrypt(&mut iv.clone(), &mut text),
                    _ => aes.ecb_encrypt(&mut text),
                }
                .map_err(bad)?;
                match len {
                    Some(n) if n > text.len() => Err(Error::KeySizeRange),
                    Some(n) => Ok(copy_secret(&text[..n])),
                    None => Ok(copy_secret(&text)),
                }
            }
        }
    }

    fn aes_of<'a>(&self, object: &'a Object) -> Result<&'a Aes> {
        if object.key_type != Some(KeyType::Aes) {
            return Err(Error::KeyTypeInconsistent);
        }
        object.ready(self.wrapper())?.secret()?.aes()
    }
}

/// PKCS#11 on ECDH and HKDF without a length: all of it; with one: bytes are cut from the leading end.
fn cut(secret: &SecretBuf, len: Option<usize>) -> Result<SecretBuf> {
    let bytes = secret.as_slice();
    match len {
        None => Ok(copy_secret(bytes)),
        Some(n) if n == 0 || n > bytes.len() => Err(Error::KeySizeRange),
        Some(n) => Ok(copy_secret(&bytes[bytes.len() - n..])),
    }
}

fn aes_len(bits: u32) -> Result<usize> {
    match bits {
        128 | 192 | 256 => Ok(bits as usize / 8),
        _ => Err(Error::MechanismParamInvalid("AES keys have 128, 192 or 256 bits")),
    }
}

fn decrypt_all(mut cipher: Cipher, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
    let refused = |e| match e {
        Error::EncryptedDataInvalid => Error::WrappedKeyInvalid,
        Error::EncryptedDataLenRange | Error::DataLenRange => Error::WrappedKeyLenRange,
        e => e,
    };
    let mut plain = Zeroizing::new(cipher.update(wrapped).map_err(refused)?);
    let end = Zeroizing::new(cipher.finish().map_err(refused)?);
    plain.extend_from_slice(&end);
    Ok(plain)
}

fn unwrap_rsa_aes(key: &PrivateKey, padding: &RsaPadding<'_>, wrapped: &[u8]) -> Result<SecretBuf> {
    let n = key.bits().div_ceil(8);
    let (sealed, rest) = wrapped.split_at_checked(n).ok_or(Error::WrappedKeyLenRange)?;
    let invalid = |_| Error::WrappedKeyInvalid;
    let fresh = key.rsa_decrypt(padding, sealed).map_err(invalid)?;
    let aes = Aes::new(fresh.as_slice()).map_err(invalid)?;
    aes.kwp_unwrap(rest).map_err(|e| match e {
        hsm_primitives::Error::BadLength => Error::WrappedKeyLenRange,
        _ => Error::WrappedKeyInvalid,
    })
}

/// What unwrapped bytes are.
fn unwrapped(class: Class, key_type: KeyType, secret: SecretBuf) -> Result<Material> {
    if class == Class::SecretKey {
        keys::check_secret_len(key_type, secret.len()).map_err(|_| Error::WrappedKeyInvalid)?;
        return Ok(Material::Secret(secret));
    }
    let key = PrivateKey::from_pkcs8(secret.as_slice()).map_err(|_| Error::WrappedKeyInvalid)?;
    let found = match key.curve() {
        None => KeyType::Rsa,
        Some(hsm_primitives::Curve::Ed25519) => KeyType::Edwards,
        Some(_) => KeyType::Ec,
    };
    if found == key_type { Ok(Material::Private(key)) } else { Err(Error::WrappedKeyInvalid) }
}
