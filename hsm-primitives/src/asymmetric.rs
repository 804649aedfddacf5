//! RSA and elliptic-curve keys.

use core::fmt;

use secret_mem::{SecretBuf, SecretBytes};

use crate::ffi::{Failed, Pkey, RsaParts};
use crate::{Error, Hash, Result};

/// Shortest modulus of a key, in bits.
pub const MIN_RSA_BITS: u32 = 2048;
/// Longest modulus of a key, in bits.
pub const MAX_RSA_BITS: u32 = 4096;

/// An elliptic curve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Curve {
    P256,
    P384,
    P521,
    /// For EdDSA (RFC 8032) only.
    Ed25519,
}

impl Curve {
    /// Length of a field element and of a scalar, in bytes.
    pub const fn len(self) -> usize {
        match self {
            Self::P256 | Self::Ed25519 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// Always false: an element has a length.
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// How an RSA operation pads its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RsaPadding<'a> {
    /// Not at all; the input is as long as the modulus.
    Raw,
    /// PKCS#1 v1.5 of the input as it is.
    Pkcs1,
    /// PKCS#1 v1.5 of a digest, with its DigestInfo.
    Pkcs1Hash(Hash),
    /// PSS of a digest.
    Pss {
        /// What made the digest.
        hash: Hash,
        /// Of the mask.
        mgf: Hash,
        /// Length of the salt in bytes.
        salt_len: usize,
    },
    /// OAEP, for encryption.
    Oaep {
        /// Of the label.
        hash: Hash,
        /// Of the mask.
        mgf: Hash,
        /// Usually empty.
        label: &'a [u8],
    },
}

/// Numbers of an RSA private key, big-endian.
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "named as in RFC 8017")]
pub struct RsaPrivateNumbers<'a> {
    pub n: &'a [u8],
    pub e: &'a [u8],
    pub d: &'a [u8],
    /// p, q, d mod p-1, d mod q-1, 1/q mod p; all or none.
    pub crt: Option<[&'a [u8]; 5]>,
}

/// A private key, which has its public part too.
pub struct PrivateKey {
    key: Pkey,
    curve: Option<Curve>,
}

/// A public key.
pub struct PublicKey {
    key: Pkey,
    curve: Option<Curve>,
}

impl From<Failed> for Error {
    fn from(_: Failed) -> Self {
        Self::Failed
    }
}

fn bad_key(_: Failed) -> Error {
    Error::BadKey
}

fn mismatch(_: Failed) -> Error {
    Error::Mismatch
}

impl PrivateKey {
    /// Makes an RSA key. Takes up to some seconds at 4096 bits.
    ///
    /// # Errors
    /// [`Error::BadParameters`] for a length outside [`MIN_RSA_BITS`] and [`MAX_RSA_BITS`] or an exponent that is even or below 65537.
    pub fn generate_rsa(bits: u32, exponent: &[u8]) -> Result<Self> {
        check_rsa(bits as usize, exponent).map_err(|_| Error::BadParameters)?;
        Ok(Self { key: Pkey::rsa_generate(bits, exponent)?, curve: None })
    }

    /// Makes a key on a curve.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn generate_ec(curve: Curve) -> Result<Self> {
        let key = match curve {
            Curve::Ed25519 => {
                let seed = SecretBytes::<32>::random().map_err(|_| Error::Failed)?;
                Pkey::ed25519_private(seed.expose())?
            }
            _ => Pkey::ec_generate(curve)?,
        };
        Ok(Self { key, curve: Some(curve) })
    }

    /// Parses PKCS#8.
    ///
    /// # Errors
    /// [`Error::BadKey`]: no key, another kind, a length or curve that is not supported, numbers that do not fit.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self> {
        let key = Pkey::from_pkcs8(der).map_err(bad_key)?;
        let curve = key.kind().map_err(bad_key)?;
        if curve.is_none() {
            check_rsa(key.bits(), &key.rsa_public_parts()?.1)?;
        }
        Ok(Self { key, curve })
    }

    /// From an RSA key's numbers, which are checked against each other.
    ///
    /// # Errors
    /// [`Error::BadKey`].
    pub fn from_rsa(numbers: &RsaPrivateNumbers<'_>) -> Result<Self> {
        let RsaPrivateNumbers { n, e, d, crt } = *numbers;
        let key = Pkey::rsa_private(&RsaParts { n, e, d, crt }).map_err(bad_key)?;
        check_rsa(key.bits(), e)?;
        Ok(Self { key, curve: None })
    }

    /// From a scalar (big-endian) or, for Ed25519, a seed of 32 bytes.
    ///
    /// # Errors
    /// [`Error::BadKey`].
    pub fn from_scalar(curve: Curve, scalar: &[u8]) -> Result<Self> {
        let key = match curve {
            Curve::Ed25519 => Pkey::ed25519_private(scalar),
            _ if scalar.len() > curve.len() + 1 => return Err(Error::BadKey),
            _ => Pkey::ec_private(curve, scalar),
        };
        Ok(Self { key: key.map_err(bad_key)?, curve: Some(curve) })
    }

    /// PKCS#8.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn to_pkcs8(&self) -> Result<SecretBuf> {
        Ok(self.key.to_pkcs8()?)
    }

    /// The curve, or `None` for RSA.
    pub fn curve(&self) -> Option<Curve> {
        self.curve
    }

    /// Length of the modulus or field, in bits.
    pub fn bits(&self) -> usize {
        bits(&self.key, self.curve)
    }

    /// The public part.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn public(&self) -> Result<PublicKey> {
        let key = match self.curve {
            None => {
                let (n, e) = self.key.rsa_public_parts()?;
                Pkey::rsa_public(&n, &e)?
            }
            Some(Curve::Ed25519) => Pkey::ed25519_public(&self.key.ed25519_point()?)?,
            Some(curve) => Pkey::ec_public(curve, &self.key.ec_point()?)?,
        };
        Ok(PublicKey { key, curve: self.curve })
    }

    /// d, then p, q, d mod p-1, d mod q-1, 1/q mod p where the key has them; or the scalar or seed.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn secret_numbers(&self) -> Result<Vec<SecretBuf>> {
        Ok(match self.curve {
            None => self.key.rsa_secret_parts()?,
            Some(Curve::Ed25519) => vec![self.key.ed25519_seed()?],
            Some(_) => vec![self.key.ec_scalar()?],
        })
    }

    /// RSA signature of a digest, or of the input itself where the padding has no hash.
    ///
    /// # Errors
    /// [`Error::BadLength`] for an input that does not fit; [`Error::BadParameters`] for a key or padding that does not.
    pub fn rsa_sign(&self, padding: &RsaPadding<'_>, input: &[u8]) -> Result<Vec<u8>> {
        check_signed(self.curve, self.bits(), padding, input)?;
        let mut out = vec![0; self.bits().div_ceil(8)];
        let n = self.key.rsa_sign(padding, input, &mut out)?;
        out.truncate(n);
        Ok(out)
    }

    /// RSA decryption.
    ///
    /// # Errors
    /// [`Error::BadLength`] for an input that is not as long as the modulus; [`Error::Mismatch`] for anything else.
    pub fn rsa_decrypt(&self, padding: &RsaPadding<'_>, input: &[u8]) -> Result<SecretBuf> {
        let n = self.bits().div_ceil(8);
        if self.curve.is_some() || matches!(padding, RsaPadding::Pkcs1Hash(_) | RsaPadding::Pss { .. }) {
            return Err(Error::BadParameters);
        }
        if input.len() != n {
            return Err(Error::BadLength);
        }
        SecretBuf::from_fn(n, |out| self.key.rsa_decrypt(padding, input, out)).map_err(mismatch)
    }

    /// ECDSA signature of a digest of any length (its leftmost bits count): r and s.
    ///
    /// # Errors
    /// [`Error::BadParameters`] for another kind of key.
    pub fn ecdsa_sign(&self, digest: &[u8]) -> Result<Vec<u8>> {
        let curve = weierstrass(self.curve)?;
        let mut out = vec![0; 2 * curve.len()];
        self.key.ecdsa_sign(digest, &mut out)?;
        Ok(out)
    }

    /// Ed25519 signature of a message.
    ///
    /// # Errors
    /// [`Error::BadParameters`] for another kind of key.
    pub fn eddsa_sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        if self.curve != Some(Curve::Ed25519) {
            return Err(Error::BadParameters);
        }
        let mut out = vec![0; 64];
        let n = self.key.eddsa_sign(message, &mut out)?;
        out.truncate(n);
        Ok(out)
    }

    /// The x coordinate of the shared point (SP 800-56A, no cofactor: these curves have none).
    ///
    /// # Errors
    /// [`Error::BadKey`] for a point that is not on the curve; [`Error::BadParameters`] for another kind of key.
    pub fn ecdh(&self, point: &[u8]) -> Result<SecretBuf> {
        let curve = weierstrass(self.curve)?;
        let peer = Pkey::ec_public(curve, point).map_err(bad_key)?;
        Ok(SecretBuf::from_fn(curve.len(), |out| self.key.ecdh(&peer, out))?)
    }
}

impl PublicKey {
    /// From modulus and public exponent, big-endian.
    ///
    /// # Errors
    /// [`Error::BadKey`].
    pub fn from_rsa(n: &[u8], e: &[u8]) -> Result<Self> {
        let key = Pkey::rsa_public(n, e).map_err(bad_key)?;
        check_rsa(key.bits(), e)?;
        Ok(Self { key, curve: None })
    }

    /// Parses a SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`Error::BadKey`].
    pub fn from_spki(der: &[u8]) -> Result<Self> {
        let key = Pkey::from_spki(der).map_err(bad_key)?;
        let curve = key.kind().map_err(bad_key)?;
        if curve.is_none() {
            check_rsa(key.bits(), &key.rsa_public_parts()?.1)?;
        }
        Ok(Self { key, curve })
    }

    /// From a point: X9.62, compressed or not, or the 32 bytes of RFC 8032.
    ///
    /// # Errors
    /// [`Error::BadKey`] for a point that is not on the curve.
    pub fn from_point(curve: Curve, point: &[u8]) -> Result<Self> {
        let key = match curve {
            Curve::Ed25519 => Pkey::ed25519_public(point),
            _ => Pkey::ec_public(curve, point),
        };
        Ok(Self { key: key.map_err(bad_key)?, curve: Some(curve) })
    }

    /// The curve, or `None` for RSA.
    pub fn curve(&self) -> Option<Curve> {
        self.curve
    }

    /// Length of the modulus or field, in bits.
    pub fn bits(&self) -> usize {
        bits(&self.key, self.curve)
    }

    /// Modulus and exponent of an RSA key.
    ///
    /// # Errors
    /// [`Error::Failed`] for another kind of key.
    pub fn rsa_numbers(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        Ok(self.key.rsa_public_parts()?)
    }

    /// The point of an EC (uncompressed) or Ed25519 key.
    ///
    /// # Errors
    /// [`Error::Failed`] for another kind of key.
    pub fn point(&self) -> Result<Vec<u8>> {
        Ok(match self.curve {
            Some(Curve::Ed25519) => self.key.ed25519_point()?,
            _ => self.key.ec_point()?,
        })
    }

    /// SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub fn to_spki(&self) -> Result<Vec<u8>> {
        Ok(self.key.to_spki()?)
    }

    /// Verifies an RSA signature; `input` as in [`PrivateKey::rsa_sign`].
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::BadLength`], [`Error::BadParameters`].
    pub fn rsa_verify(&self, padding: &RsaPadding<'_>, input: &[u8], signature: &[u8]) -> Result<()> {
        check_signed(self.curve, self.bits(), padding, input)?;
        self.key.rsa_verify(padding, input, signature).map_err(mismatch)
    }

    /// RSA encryption.
    ///
    /// # Errors
    /// [`Error::BadLength`] for an input that does not fit; [`Error::BadParameters`].
    pub fn rsa_encrypt(&self, padding: &RsaPadding<'_>, input: &[u8]) -> Result<Vec<u8>> {
        let n = self.bits().div_ceil(8);
        let longest = match *padding {
            RsaPadding::Raw => n,
            RsaPadding::Pkcs1 => n.saturating_sub(11),
            RsaPadding::Oaep { hash, .. } => n.saturating_sub(2 * hash.len() + 2),
            RsaPadding::Pkcs1Hash(_) | RsaPadding::Pss { .. } => return Err(Error::BadParameters),
        };
        if self.curve.is_some() {
            return Err(Error::BadParameters);
        }
        if input.len() > longest || *padding == RsaPadding::Raw && input.len() != n {
            return Err(Error::BadLength);
        }
        let mut out = vec![0; n];
        let len = self.key.rsa_encrypt(padding, input, &mut out)?;
        out.truncate(len);
        Ok(out)
    }

    /// Verifies an ECDSA signature (r and s) of a digest.
    ///
    /// # Errors
    /// [`Error::Mismatch`]; [`Error::BadLength`] for a signature of another length; [`Error::BadParameters`].
    pub fn ecdsa_verify(&self, digest: &[u8], signature: &[u8]) -> Result<()> {
        if signature.len() != 2 * weierstrass(self.curve)?.len() {
            return Err(Error::BadLength);
        }
        self.key.ecdsa_verify(digest, signature).map_err(mismatch)
    }

    /// Verifies an Ed25519 signature.
    ///
    /// # Errors
    /// As [`ecdsa_verify`](Self::ecdsa_verify).
    pub fn eddsa_verify(&self, message: &[u8], signature: &[u8]) -> Result<()> {
        if self.curve != Some(Curve::Ed25519) {
            return Err(Error::BadParameters);
        }
        if signature.len() != 64 {
            return Err(Error::BadLength);
        }
        self.key.eddsa_verify(message, signature).map_err(mismatch)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(redacted)")
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublicKey").field("curve", &self.curve).field("bits", &self.bits()).finish()
    }
}

fn bits(key: &Pkey, curve: Option<Curve>) -> usize {
    match curve {
        None => key.bits(),
        Some(Curve::P521) => 521,
        Some(curve) => 8 * curve.len(),
    }
}

fn weierstrass(curve: Option<Curve>) -> Result<Curve> {
    curve.filter(|&c| c != Curve::Ed25519).ok_or(Error::BadParameters)
}

/// Length of the modulus; an odd exponent from 65537 (FIPS 186-5 A.1.1) that fits 32 bits, so that nobody is stalled by it. Keys
/// that come from elsewhere may have 3.
fn check_rsa(bits: usize, exponent: &[u8]) -> Result<()> {
    let exponent = exponent.iter().try_fold(0_u64, |n, &b| n.checked_mul(256).map(|n| n + u64::from(b)));
    let good = exponent.is_some_and(|e| e % 2 == 1 && e >= 3 && e <= u64::from(u32::MAX));
    if (MIN_RSA_BITS as usize..=MAX_RSA_BITS as usize).contains(&bits) && good {
        Ok(())
    } else {
        Err(Error::BadKey)
    }
}

fn check_signed(curve: Option<Curve>, bits: usize, padding: &RsaPadding<'_>, input: &[u8]) -> Result<()> {
    let n = bits.div_ceil(8);
    let fits = match *padding {
        _ if curve.is_some() => return Err(Error::BadParameters),
        RsaPadding::Oaep { .. } => return Err(Error::BadParameters),
        RsaPadding::Raw => input.len() == n,
        RsaPadding::Pkcs1 => input.len() + 11 <= n,
        RsaPadding::Pkcs1Hash(hash) => input.len() == hash.len(),
        RsaPadding::Pss { hash, salt_len, .. } => {
            if salt_len.saturating_add(hash.len() + 2) > (bits - 1).div_ceil(8) {
                return Err(Error::BadParameters);
            }
            input.len() == hash.len()
        }
    };
    if fits { Ok(()) } else { Err(Error::BadLength) }
}
