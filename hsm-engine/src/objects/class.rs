//! Classes of objects and types of keys.

use hsm_primitives::Curve;

use super::{AttributeType, Error, Result};

/// What an object is (`CKO_`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Class {
    Data,
    Certificate,
    PublicKey,
    PrivateKey,
    SecretKey,
}

impl Class {
    /// The class with a PKCS#11 number.
    pub fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Data,
            1 => Self::Certificate,
            2 => Self::PublicKey,
            3 => Self::PrivateKey,
            4 => Self::SecretKey,
            _ => return None,
        })
    }

    /// The PKCS#11 number.
    pub fn number(self) -> u64 {
        self as u64
    }
}

/// Type of a key (`CKK_`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "their names say it")]
pub enum KeyType {
    Rsa,
    Ec,
    GenericSecret,
    Aes,
    /// Ed25519.
    Edwards,
    /// A generic secret for one purpose: HMAC with one hash, or HKDF; by its number.
    Purpose(u64),
}

impl KeyType {
    /// The type with a PKCS#11 number.
    pub fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0x00 => Self::Rsa,
            0x03 => Self::Ec,
            0x10 => Self::GenericSecret,
            0x1F => Self::Aes,
            0x28 | 0x2B..=0x2E | 0x33..=0x36 | 0x42 => Self::Purpose(number),
            0x40 => Self::Edwards,
            _ => return None,
        })
    }

    /// The PKCS#11 number.
    pub fn number(self) -> u64 {
        match self {
            Self::Rsa => 0x00,
            Self::Ec => 0x03,
            Self::GenericSecret => 0x10,
            Self::Aes => 0x1F,
            Self::Edwards => 0x40,
            Self::Purpose(number) => number,
        }
    }

    /// Whether keys of a class can be of this type.
    pub(crate) fn fits(self, class: Class) -> bool {
        match self {
            Self::Rsa | Self::Ec | Self::Edwards => matches!(class, Class::PublicKey | Class::PrivateKey),
            Self::GenericSecret | Self::Aes | Self::Purpose(_) => class == Class::SecretKey,
        }
    }
}

/// DER of the curves' object identifiers, and what else stands for them in `CKA_EC_PARAMS`.
const CURVES: [(Curve, &[u8]); 6] = [
    (Curve::P256, &[0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07]),
    (Curve::P384, &[0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x22]),
    (Curve::P521, &[0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x23]),
    (Curve::Ed25519, &[0x06, 0x03, 0x2B, 0x65, 0x70]),
    // PKCS#11 v3: the printable string "edwards25519", and the number that it had before.
    (Curve::Ed25519, b"\x13\x0Cedwards25519"),
    (Curve::Ed25519, &[0x06, 0x09, 0x2B, 0x06, 0x01, 0x04, 0x01, 0xDA, 0x47, 0x0F, 0x01]),
];

/// The curve that `CKA_EC_PARAMS` names.
pub(crate) fn curve_of(params: &[u8], key_type: KeyType) -> Result<Curve> {
    let curve = CURVES.iter().find(|(_, der)| *der == params).map(|(curve, _)| *curve);
    let curve = curve.ok_or(match params.first() {
        Some(0x06 | 0x13 | 0x30) => Error::CurveNotSupported,
        _ => Error::AttributeValueInvalid(AttributeType::EcParams),
    })?;
    let edwards = curve == Curve::Ed25519;
    if edwards == (key_type == KeyType::Edwards) { Ok(curve) } else { Err(Error::CurveNotSupported) }
}

/// `CKA_EC_PARAMS` of a curve.
pub(crate) fn params_of(curve: Curve) -> Vec<u8> {
    CURVES.iter().find(|(c, _)| *c == curve).map(|(_, der)| der.to_vec()).unwrap_or_default()
}

/// A point in a DER octet string, as `CKA_EC_POINT` has it.
pub(crate) fn point_to_der(point: &[u8]) -> Vec<u8> {
    let mut der = vec![0x04];
    match u8::try_from(point.len()) {
        Ok(short) if short < 0x80 => der.push(short),
        // Points of the curves here are shorter than 256 bytes.
        _ => der.extend_from_slice(&[0x81, (point.len() & 0xFF) as u8]),
    }
    der.extend_from_slice(point);
    der
}

/// The point in a DER octet string, or the bytes themselves where they are none: some callers leave the string out.
pub(crate) fn point_from_der(der: &[u8], curve: Curve) -> &[u8] {
    let plain = match curve {
        Curve::Ed25519 => der.len() == 32,
        _ => {
            matches!(der.first(), Some(2..=4)) && [curve.len() + 1, 2 * curve.len() + 1].contains(&der.len())
        }
    };
    match der {
        _ if plain => der,
        [0x04, 0x81, n, rest @ ..] if usize::from(*n) == rest.len() => rest,
        [0x04, n, rest @ ..] if *n < 0x80 && usize::from(*n) == rest.len() => rest,
        _ => der,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_survive_their_octet_string() {
        for (curve, n) in [(Curve::P256, 65), (Curve::P384, 97), (Curve::P521, 133), (Curve::Ed25519, 32)] {
            let point = [&[4][..], &vec![7; n - 1]].concat();
            let der = point_to_der(&point);
            assert_eq!(point_from_der(&der, curve), point);
            assert_eq!(point_from_der(&point, curve), point);
        }
    }

    #[test]
    fn curves_are_named_by_their_identifiers() {
        assert_eq!(curve_of(&params_of(Curve::P521), KeyType::Ec).unwrap(), Curve::P521);
        assert_eq!(curve_of(b"\x13\x0Cedwards25519", KeyType::Edwards).unwrap(), Curve::Ed25519);
        assert!(matches!(curve_of(&params_of(Curve::P256), KeyType::Edwards), Err(Error::CurveNotSupported)));
        assert!(matches!(curve_of(b"junk", KeyType::Ec), Err(Error::AttributeValueInvalid(_))));
    }
}
