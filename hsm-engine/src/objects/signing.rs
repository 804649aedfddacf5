//! Signatures and MACs in parts.

use std::fmt;
use std::sync::Arc;

use hsm_primitives::{Cmac, Curve, Hasher, Mac, RsaPadding};
use zeroize::Zeroizing;

use super::mechanism::Use;
use super::object::{Object, ObjectId, Ready};
use super::operation::MAX_BUFFERED;
use super::{AttributeType, Class, Error, Hash, KeyType, Mechanism, Result, Token};
use crate::pin::Pin;

/// A signature or MAC in the making.
pub struct Signer(Signing);

/// A signature or MAC being checked.
pub struct Verifier(Signing);

struct Signing {
    token: Token,
    key: Arc<Object>,
    purpose: Use,
    state: State,
    /// Whether the key still asks for the PIN.
    wants_pin: bool,
}

enum State {
    Hmac {
        mac: Mac,
        len: usize,
    },
    Cmac {
        mac: Cmac,
        len: usize,
    },
    /// What is signed is a digest of the data.
    Hashed {
        hasher: Hasher,
        how: How,
    },
    /// What is signed is the data.
    Whole {
        data: Zeroizing<Vec<u8>>,
        how: How,
    },
}

#[derive(Clone, Copy)]
enum How {
    Rsa(RsaPadding<'static>),
    Ecdsa,
    EdDsa,
}

impl Token {
    /// Begins a signature or MAC.
    ///
    /// # Errors
    /// The mechanism or its parameters do not fit, or the key may not sign.
    pub fn sign(&self, mechanism: &Mechanism, key: ObjectId) -> Result<Signer> {
        Ok(Signer(Signing::new(self, mechanism, key, Use::Sign)?))
    }

    /// Begins the check of a signature or MAC.
    ///
    /// # Errors
    /// The mechanism or its parameters do not fit, or the key may not verify.
    pub fn verify(&self, mechanism: &Mechanism, key: ObjectId) -> Result<Verifier> {
        Ok(Verifier(Signing::new(self, mechanism, key, Use::Verify)?))
    }
}

impl Signer {
    /// Takes more data.
    ///
    /// # Errors
    /// More than [`MAX_BUFFERED`] for a mechanism that signs the data itself.
    pub fn update(&mut self, data: &[u8]) -> Result<()> {
        self.0.update(data)
    }

    /// Length of the signature or MAC in bytes.
    pub fn signature_len(&self) -> usize {
        self.0.signature_len()
    }

    /// Whether the key asks for the PIN before it signs (`CKA_ALWAYS_AUTHENTICATE`).
    pub fn wants_pin(&self) -> bool {
        self.0.wants_pin
    }

    /// Gives it the PIN. A wrong one counts as in a login.
    ///
    /// # Errors
    /// The PIN is wrong or locked.
    pub fn give_pin(&mut self, pin: &Pin) -> Result<()> {
        self.0.token.check_pin(pin)?;
        self.0.wants_pin = false;
        Ok(())
    }

    /// The signature or MAC.
    ///
    /// # Errors
    /// [`Error::DataLenRange`], [`Error::DataInvalid`], [`Error::PinNeeded`].
    pub fn finish(self) -> Result<Vec<u8>> {
        if self.0.wants_pin {
            return Err(Error::PinNeeded);
        }
        let (token, result) = (self.0.token.clone(), self.0.sign());
        token.0.usage.count(Use::Sign, result.is_ok());
        result
    }
}

impl Verifier {
    /// Takes more data.
    ///
    /// # Errors
    /// As [`Signer::update`].
    pub fn update(&mut self, data: &[u8]) -> Result<()> {
        self.0.update(data)
    }

    /// Length of the signature or MAC in bytes.
    pub fn signature_len(&self) -> usize {
        self.0.signature_len()
    }

    /// Checks the signature or MAC.
    ///
    /// # Errors
    /// [`Error::SignatureInvalid`], [`Error::SignatureLenRange`], [`Error::DataLenRange`].
    pub fn finish(self, signature: &[u8]) -> Result<()> {
        let (token, result) = (self.0.token.clone(), self.0.verify(signature));
        token.0.usage.count(Use::Verify, result.is_ok());
        result
    }
}

impl Signing {
    fn new(token: &Token, mechanism: &Mechanism, key: ObjectId, purpose: Use) -> Result<Self> {
        let key = token.key_for(key, mechanism, purpose)?;
        let ready = key.ready(token.wrapper())?;
        let hashed = |hash: Hash, how: How| State::Hashed { hasher: Hasher::new(hash), how };
        let whole = |how: How| State::Whole { data: Zeroizing::default(), how };
        let wants = |key_type: KeyType| match key.key_type == Some(key_type) {
            // A private key signs, a public one verifies.
            true if (key.class == Class::PrivateKey) == (purpose == Use::Sign) => Ok(()),
            _ => Err(Error::KeyTypeInconsistent),
        };
        let state = match *mechanism {
            Mechanism::Hmac { hash, len } => {
                let own = hmac_type(hash);
                let fits = match key.key_type {
                    Some(KeyType::GenericSecret) => true,
                    Some(KeyType::Purpose(number)) => Some(number) == own,
                    _ => false,
                };
                let bytes = &ready.secret()?.bytes;
                if !fits {
                    return Err(Error::KeyTypeInconsistent);
                }
                if len == 0 || len > hash.len() {
                    return Err(Error::MechanismParamInvalid("a MAC has 1 byte to the whole digest"));
                }
                if token.allowed().approved_only && bytes.len() < 14 {
                    return Err(Error::KeySizeRange);
                }
                State::Hmac { mac: Mac::new(hash, bytes.as_slice()), len }
            }
            Mechanism::AesCmac { len } => {
                if key.key_type != Some(KeyType::Aes) {
                    return Err(Error::KeyTypeInconsistent);
                }
                if !(1..=16).contains(&len) {
                    return Err(Error::MechanismParamInvalid("a MAC has 1 to 16 bytes"));
                }
                ready.secret()?.aes()?;
                State::Cmac { mac: Cmac::new(), len }
            }
            Mechanism::RsaPkcs => wants(KeyType::Rsa).map(|()| whole(How::Rsa(RsaPadding::Pkcs1)))?,
            Mechanism::RsaRaw => wants(KeyType::Rsa).map(|()| whole(How::Rsa(RsaPadding::Raw)))?,
            Mechanism::RsaPkcsHash { hash } => {
                wants(KeyType::Rsa).map(|()| hashed(hash, How::Rsa(RsaPadding::Pkcs1Hash(hash))))?
            }
            Mechanism::RsaPss { hash, mgf, salt_len, prehashed } => {
                wants(KeyType::Rsa)?;
                if salt_len.saturating_add(hash.len() + 2) > (bits(ready) - 1).div_ceil(8) {
                    return Err(Error::MechanismParamInvalid("the salt is too long for this key"));
                }
                let how = How::Rsa(RsaPadding::Pss { hash, mgf, salt_len });
                if prehashed { whole(how) } else { hashed(hash, how) }
            }
            Mechanism::Ecdsa => wants(KeyType::Ec).map(|()| whole(How::Ecdsa))?,
            Mechanism::EcdsaHash { hash } => wants(KeyType::Ec).map(|()| hashed(hash, How::Ecdsa))?,
            Mechanism::EdDsa => wants(KeyType::Edwards).map(|()| whole(How::EdDsa))?,
            _ => return Err(Error::MechanismInvalid),
        };
        let wants_pin = key.flag(AttributeType::AlwaysAuthenticate);
        Ok(Self { token: token.clone(), key, purpose, state, wants_pin })
    }

    fn update(&mut self, data: &[u8]) -> Result<()> {
        match &mut self.state {
            State::Hmac { mac, .. } => mac.update(data),
            State::Cmac { mac, .. } => {
                mac.update(self.key.ready(self.token.wrapper())?.secret()?.aes()?, data);
            }
            State::Hashed { hasher, .. } => hasher.update(data),
            State::Whole { data: whole, .. } if whole.len() + data.len() > MAX_BUFFERED => {
                return Err(Error::DataLenRange);
            }
            State::Whole { data: whole, .. } => whole.extend_from_slice(data),
        }
        Ok(())
    }

    fn signature_len(&self) -> usize {
        let how = match &self.state {
            State::Hmac { len, .. } | State::Cmac { len, .. } => return *len,
            State::Hashed { how, .. } | State::Whole { how, .. } => how,
        };
        let bits = self.key.ready(self.token.wrapper()).map_or(0, bits);
        match how {
            How::Rsa(_) => bits.div_ceil(8),
            How::Ecdsa => 2 * bits.div_ceil(8),
            How::EdDsa => 64,
        }
    }

    fn sign(self) -> Result<Vec<u8>> {
        let ready = self.key.ready(self.token.wrapper())?;
        let (input, how) = match self.state {
            State::Hmac { mac, len } => {
                let mut out = mac.finish();
                out.truncate(len);
                return Ok(out);
            }
            State::Cmac { mac, len } => {
                return Ok(mac.finish(ready.secret()?.aes()?)[..len].to_vec());
            }
            State::Hashed { hasher, how } => (Zeroizing::new(hasher.finish()), how),
            State::Whole { data, how } => (data, how),
        };
        let key = ready.private()?;
        Ok(match how {
            How::Rsa(padding) => key.rsa_sign(&padding, &fill(&padding, &input, key.bits()))?,
            How::Ecdsa => key.ecdsa_sign(&input)?,
            How::EdDsa => key.eddsa_sign(&input)?,
        })
    }

    fn verify(self, signature: &[u8]) -> Result<()> {
        debug_assert_eq!(self.purpose, Use::Verify);
        if signature.len() != self.signature_len() {
            return Err(Error::SignatureLenRange);
        }
        let ready = self.key.ready(self.token.wrapper())?;
        let (input, how) = match self.state {
            State::Hmac { mac, .. } => {
                return if mac.verify(signature) { Ok(()) } else { Err(Error::SignatureInvalid) };
            }
            State::Cmac { mac, .. } => {
                let good = mac.verify(ready.secret()?.aes()?, signature);
                return if good { Ok(()) } else { Err(Error::SignatureInvalid) };
            }
            State::Hashed { hasher, how } => (Zeroizing::new(hasher.finish()), how),
            State::Whole { data, how } => (data, how),
        };
        let key = ready.public()?;
        let verified = match how {
            How::Rsa(padding) => key.rsa_verify(&padding, &fill(&padding, &input, key.bits()), signature),
            How::Ecdsa => key.ecdsa_verify(&input, signature),
            How::EdDsa => key.eddsa_verify(&input, signature),
        };
        verified.map_err(|e| match e {
            hsm_primitives::Error::Mismatch => Error::SignatureInvalid,
            other => other.into(),
        })
    }
}

/// PKCS#11: a raw RSA input that is shorter than the modulus gets zeros in front.
fn fill(padding: &RsaPadding<'_>, input: &[u8], bits: usize) -> Zeroizing<Vec<u8>> {
    let n = bits.div_ceil(8);
    let mut filled = Zeroizing::new(Vec::with_capacity(n.max(input.len())));
    if *padding == RsaPadding::Raw {
        filled.resize(n.saturating_sub(input.len()), 0);
    }
    filled.extend_from_slice(input);
    filled
}

fn bits(ready: &Ready) -> usize {
    let (curve, bits) = match ready {
        Ready::Private(key) => (key.curve(), key.bits()),
        Ready::Public(key) => (key.curve(), key.bits()),
        Ready::Secret(_) => return 0,
    };
    if curve == Some(Curve::P521) { 521 } else { bits }
}

/// The key type that is for HMAC with one hash only.
fn hmac_type(hash: Hash) -> Option<u64> {
    Some(match hash {
        Hash::Sha1 => 0x28,
        Hash::Sha224 => 0x2E,
        Hash::Sha256 => 0x2B,
        Hash::Sha384 => 0x2C,
        Hash::Sha512 => 0x2D,
        Hash::Sha3_224 => 0x33,
        Hash::Sha3_256 => 0x34,
        Hash::Sha3_384 => 0x35,
        Hash::Sha3_512 => 0x36,
    })
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("key", &self.0.key.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("key", &self.0.key.id).finish_non_exhaustive()
    }
}
