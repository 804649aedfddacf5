//! Mechanisms and their parameters.

use cryptoki_sys as ck;
use hsm_engine::objects::mechanism::number as n;
use hsm_engine::objects::{Chain, Derive, Hash, Iv, Mechanism, Part};

use super::memory::{bytes, get, put};
use crate::offer;
use crate::rv::{Result, Rv};

const INVALID: Rv = Rv(ck::CKR_MECHANISM_INVALID);
const BAD: Rv = Rv(ck::CKR_MECHANISM_PARAM_INVALID);
/// Most parts of an SP 800-108 derivation.
const MAX_PARTS: ck::CK_ULONG = 64;

/// The mechanism's number.
///
/// # Safety
/// `mechanism` is null or valid.
pub(super) unsafe fn number(mechanism: *const ck::CK_MECHANISM) -> Result<ck::CK_MECHANISM_TYPE> {
    // SAFETY: the caller's promise.
    Ok(unsafe { get(mechanism)? }.mechanism)
}

/// The parameter as a structure.
///
/// # Safety
/// The mechanism's parameter is null or valid for its length; `T` has no invalid bit patterns.
unsafe fn parameter<T: Copy>(mechanism: &ck::CK_MECHANISM) -> Result<T> {
    if mechanism.ulParameterLen != size_of::<T>() as ck::CK_ULONG {
        return Err(BAD);
    }
    // SAFETY: as long as a `T`, and valid by the caller's promise.
    unsafe { get(mechanism.pParameter.cast::<T>()) }.map_err(|_| BAD)
}

/// Bytes that a parameter points to.
///
/// # Safety
/// `pointer` is null or valid for `len` bytes.
unsafe fn inner(pointer: *const ck::CK_BYTE, len: ck::CK_ULONG) -> Result<Vec<u8>> {
    // SAFETY: the caller's promise.
    unsafe { bytes(pointer, len) }.map(<[u8]>::to_vec).map_err(|_| BAD)
}

fn none(mechanism: &ck::CK_MECHANISM) -> Result<()> {
    if mechanism.ulParameterLen == 0 { Ok(()) } else { Err(BAD) }
}

/// A hash function.
///
/// # Safety
/// `mechanism` is null or valid.
pub(super) unsafe fn of_digest(mechanism: *const ck::CK_MECHANISM) -> Result<Hash> {
    // SAFETY: the caller's promise.
    let mechanism = unsafe { get(mechanism)? };
    let hash = offer::hash(mechanism.mechanism).ok_or(INVALID)?;
    none(&mechanism).map(|()| hash)
}

/// A mechanism that encrypts or wraps.
///
/// # Safety
/// `mechanism` is null or valid, and so is what its parameter points to.
pub(super) unsafe fn of_cipher(mechanism: *const ck::CK_MECHANISM, encrypts: bool) -> Result<Mechanism> {
    // SAFETY: the caller's promise, here and below.
    let mechanism = &unsafe { get(mechanism)? };
    Ok(match mechanism.mechanism {
        n::AES_KEY_WRAP | n::AES_KEY_WRAP_KWP | n::AES_ECB | n::RSA_PKCS | n::RSA_X_509 => {
            none(mechanism)?;
            match mechanism.mechanism {
                n::AES_KEY_WRAP => Mechanism::AesKw,
                n::AES_KEY_WRAP_KWP => Mechanism::AesKwp,
                n::AES_ECB => Mechanism::AesEcb,
                n::RSA_PKCS => Mechanism::RsaPkcs,
                _ => Mechanism::RsaRaw,
            }
        }
        // SAFETY: as above.
        n::AES_CBC => Mechanism::AesCbc { iv: unsafe { parameter(mechanism)? } },
        // SAFETY: as above.
        n::AES_CBC_PAD => Mechanism::AesCbcPad { iv: unsafe { parameter(mechanism)? } },
        n::AES_CTR => {
            // SAFETY: as above.
            let ctr: ck::CK_AES_CTR_PARAMS = unsafe { parameter(mechanism)? };
            let bits = u32::try_from(ctr.ulCounterBits).map_err(|_| BAD)?;
            Mechanism::AesCtr { counter: ctr.cb, bits }
        }
        // SAFETY: as above.
        n::AES_GCM | n::AES_GCM_SIV => unsafe { gcm(mechanism, encrypts)? },
        n::RSA_PKCS_OAEP => {
            // SAFETY: as above.
            let (hash, mgf, label) = unsafe { oaep(&parameter(mechanism)?)? };
            Mechanism::RsaOaep { hash, mgf, label }
        }
        n::RSA_AES_KEY_WRAP => {
            // SAFETY: as above.
            let both: ck::CK_RSA_AES_KEY_WRAP_PARAMS = unsafe { parameter(mechanism)? };
            // SAFETY: as above.
            let params = unsafe { get(both.pOAEPParams.cast_const()) }.map_err(|_| BAD)?;
            // SAFETY: as above.
            let (hash, mgf, label) = unsafe { oaep(&params)? };
            let aes_bits = u32::try_from(both.ulAESKeyBits).map_err(|_| BAD)?;
            Mechanism::RsaAesKeyWrap { aes_bits, hash, mgf, label }
        }
        _ => return Err(INVALID),
    })
}

/// The engine makes nonces: a caller leaves twelve zero bytes for it, into which it is put.
///
/// # Safety
/// As [`of_cipher`].
unsafe fn gcm(mechanism: &ck::CK_MECHANISM, encrypts: bool) -> Result<Mechanism> {
    // SAFETY: the caller's promise.
    let gcm: ck::CK_GCM_PARAMS = unsafe { parameter(mechanism)? };
    // SAFETY: the caller's promise.
    let (iv, aad) = unsafe { (inner(gcm.pIv, gcm.ulIvLen)?, inner(gcm.pAAD, gcm.ulAADLen)?) };
    let iv = <[u8; 12]>::try_from(iv).map_err(|_| BAD)?;
    let iv = match encrypts {
        true if iv == [0; 12] => Iv::Generate,
        true => return Err(BAD),
        false => Iv::Given(iv),
    };
    if gcm.ulTagBits != 128 {
        return Err(BAD);
    }
    Ok(match mechanism.mechanism {
        n::AES_GCM => Mechanism::AesGcm { iv, aad },
        _ => Mechanism::AesGcmSiv { iv, aad },
    })
}

/// Puts the nonce that was made where the caller left room for it.
///
/// # Safety
/// `mechanism` was read by [`of_cipher`] in the same call.
pub(super) unsafe fn give_iv(mechanism: *const ck::CK_MECHANISM, iv: &[u8]) -> Result<()> {
    // SAFETY: the caller's promise.
    let mechanism = &unsafe { get(mechanism)? };
    if !matches!(mechanism.mechanism, n::AES_GCM | n::AES_GCM_SIV) {
        return Ok(());
    }
    // SAFETY: the caller's promise.
    let gcm: ck::CK_GCM_PARAMS = unsafe { parameter(mechanism)? };
    if gcm.ulIvLen != iv.len() as ck::CK_ULONG {
        return Err(BAD);
    }
    for (index, byte) in iv.iter().enumerate() {
        // SAFETY: within the `ulIvLen` bytes of the caller's buffer.
        unsafe { put(gcm.pIv.add(index), *byte)? };
    }
    Ok(())
}

/// # Safety
/// What the parameters point to is valid.
unsafe fn oaep(params: &ck::CK_RSA_PKCS_OAEP_PARAMS) -> Result<(Hash, Hash, Vec<u8>)> {
    let hash = offer::hash(params.hashAlg).ok_or(BAD)?;
    let mgf = mgf(params.mgf)?;
    let label = match params.source {
        ck::CKZ_DATA_SPECIFIED => {
            // SAFETY: the caller's promise.
            unsafe { inner(params.pSourceData.cast_const().cast(), params.ulSourceDataLen)? }
        }
        0 if params.ulSourceDataLen == 0 => Vec::new(),
        _ => return Err(BAD),
    };
    Ok((hash, mgf, label))
}

fn mgf(number: ck::CK_RSA_PKCS_MGF_TYPE) -> Result<Hash> {
    Ok(match number {
        1 => Hash::Sha1,
        2 => Hash::Sha256,
        3 => Hash::Sha384,
        4 => Hash::Sha512,
        5 => Hash::Sha224,
        6 => Hash::Sha3_224,
        7 => Hash::Sha3_256,
        8 => Hash::Sha3_384,
        9 => Hash::Sha3_512,
        _ => return Err(BAD),
    })
}

/// A mechanism that signs or authenticates.
///
/// # Safety
/// As [`of_cipher`].
pub(super) unsafe fn of_signature(mechanism: *const ck::CK_MECHANISM) -> Result<Mechanism> {
    // SAFETY: the caller's promise, here and below.
    let mechanism = &unsafe { get(mechanism)? };
    let number = mechanism.mechanism;
    match number {
        n::RSA_PKCS => return none(mechanism).map(|()| Mechanism::RsaPkcs),
        n::RSA_X_509 => return none(mechanism).map(|()| Mechanism::RsaRaw),
        n::ECDSA => return none(mechanism).map(|()| Mechanism::Ecdsa),
        n::AES_CMAC => return none(mechanism).map(|()| Mechanism::AesCmac { len: 16 }),
        n::AES_CMAC_GENERAL => {
            // SAFETY: as above.
            return unsafe { mac_len(mechanism, 16) }.map(|len| Mechanism::AesCmac { len });
        }
        n::EDDSA => {
            // Parameters only ask for variants that are not offered.
            return none(mechanism).map(|()| Mechanism::EdDsa);
        }
        n::RSA_PKCS_PSS => {
            // SAFETY: as above.
            let (hash, mgf, salt_len) = unsafe { pss(mechanism)? };
            return Ok(Mechanism::RsaPss { hash, mgf, salt_len, prehashed: true });
        }
        _ => (),
    }
    for hash in offer::HASHES {
        let of = offer::numbers(hash);
        if number == of.hmac {
            return none(mechanism).map(|()| Mechanism::Hmac { hash, len: hash.len() });
        }
        if number == of.hmac_general {
            // SAFETY: as above.
            return unsafe { mac_len(mechanism, hash.len()) }.map(|len| Mechanism::Hmac { hash, len });
        }
        if number == of.rsa {
            return none(mechanism).map(|()| Mechanism::RsaPkcsHash { hash });
        }
        if number == of.ecdsa {
            return none(mechanism).map(|()| Mechanism::EcdsaHash { hash });
        }
        if number == of.pss {
            // SAFETY: as above.
            let (given, mgf, salt_len) = unsafe { pss(mechanism)? };
            let mechanism = Mechanism::RsaPss { hash, mgf, salt_len, prehashed: false };
            return if given == hash { Ok(mechanism) } else { Err(BAD) };
        }
    }
    Err(INVALID)
}

/// # Safety
/// As [`parameter`].
unsafe fn mac_len(mechanism: &ck::CK_MECHANISM, most: usize) -> Result<usize> {
    // SAFETY: the caller's promise.
    let len: ck::CK_ULONG = unsafe { parameter(mechanism)? };
    usize::try_from(len).ok().filter(|len| (1..=most).contains(len)).ok_or(BAD)
}

/// # Safety
/// As [`parameter`].
unsafe fn pss(mechanism: &ck::CK_MECHANISM) -> Result<(Hash, Hash, usize)> {
    // SAFETY: the caller's promise.
    let pss: ck::CK_RSA_PKCS_PSS_PARAMS = unsafe { parameter(mechanism)? };
    let salt = usize::try_from(pss.sLen).map_err(|_| BAD)?;
    Ok((offer::hash(pss.hashAlg).ok_or(BAD)?, mgf(pss.mgf)?, salt))
}

/// A mechanism that derives.
///
/// # Safety
/// As [`of_cipher`].
pub(super) unsafe fn of_derivation(
    mechanism: *const ck::CK_MECHANISM,
    salt_of: impl Fn(ck::CK_OBJECT_HANDLE) -> Result<Vec<u8>>,
) -> Result<Derive> {
    // SAFETY: the caller's promise, here and below.
    let mechanism = &unsafe { get(mechanism)? };
    Ok(match mechanism.mechanism {
        // The cofactor of every curve here is 1.
        n::ECDH1_DERIVE | n::ECDH1_COFACTOR_DERIVE => {
            // SAFETY: as above.
            let ecdh: ck::CK_ECDH1_DERIVE_PARAMS = unsafe { parameter(mechanism)? };
            // SAFETY: as above.
            let public = unsafe { inner(ecdh.pPublicData, ecdh.ulPublicDataLen)? };
            // SAFETY: as above.
            let shared = unsafe { inner(ecdh.pSharedData, ecdh.ulSharedDataLen)? };
            let kdf = match ecdh.kdf {
                ck::CKD_NULL => None,
                2 => Some(Hash::Sha1),
                5 => Some(Hash::Sha224),
                6 => Some(Hash::Sha256),
                7 => Some(Hash::Sha384),
                8 => Some(Hash::Sha512),
                0xA => Some(Hash::Sha3_224),
                0xB => Some(Hash::Sha3_256),
                0xC => Some(Hash::Sha3_384),
                0xD => Some(Hash::Sha3_512),
                _ => return Err(BAD),
            };
            Derive::Ecdh { kdf, public, shared }
        }
        n::HKDF_DERIVE => {
            // SAFETY: as above.
            let hkdf: ck::CK_HKDF_PARAMS = unsafe { parameter(mechanism)? };
            let salt = match hkdf.ulSaltType {
                ck::CKF_HKDF_SALT_NULL => Vec::new(),
                // SAFETY: as above.
                ck::CKF_HKDF_SALT_DATA => unsafe { inner(hkdf.pSalt, hkdf.ulSaltLen)? },
                ck::CKF_HKDF_SALT_KEY => salt_of(hkdf.hSaltKey)?,
                _ => return Err(BAD),
            };
            Derive::Hkdf {
                hash: offer::hash(hkdf.prfHashMechanism).ok_or(BAD)?,
                extract: hkdf.bExtract != 0,
                expand: hkdf.bExpand != 0,
                salt,
                // SAFETY: as above.
                info: unsafe { inner(hkdf.pInfo, hkdf.ulInfoLen)? },
            }
        }
        // SAFETY: as above.
        n::SP800_108_COUNTER_KDF | n::SP800_108_FEEDBACK_KDF | n::SP800_108_DOUBLE_PIPELINE_KDF => unsafe {
            sp800_108(mechanism)?
        },
        n::AES_ECB_ENCRYPT_DATA => {
            // SAFETY: as above.
            let data: ck::CK_KEY_DERIVATION_STRING_DATA = unsafe { parameter(mechanism)? };
            // SAFETY: as above.
            Derive::AesEcbEncryptData { data: unsafe { inner(data.pData, data.ulLen)? } }
        }
        n::AES_CBC_ENCRYPT_DATA => {
            // SAFETY: as above.
            let cbc: ck::CK_AES_CBC_ENCRYPT_DATA_PARAMS = unsafe { parameter(mechanism)? };
            // SAFETY: as above.
            Derive::AesCbcEncryptData { iv: cbc.iv, data: unsafe { inner(cbc.pData, cbc.length)? } }
        }
        _ => return Err(INVALID),
    })
}

/// # Safety
/// As [`of_cipher`].
unsafe fn sp800_108(mechanism: &ck::CK_MECHANISM) -> Result<Derive> {
    let (prf, count, list, chain) = if mechanism.mechanism == n::SP800_108_FEEDBACK_KDF {
        // SAFETY: the caller's promise, here and below.
        let kdf: ck::CK_SP800_108_FEEDBACK_KDF_PARAMS = unsafe { parameter(mechanism)? };
        if kdf.ulAdditionalDerivedKeys != 0 {
            return Err(BAD);
        }
        // SAFETY: as above.
        let iv = unsafe { inner(kdf.pIV, kdf.ulIVLen)? };
        (kdf.prfType, kdf.ulNumberOfDataParams, kdf.pDataParams, Chain::Feedback(iv))
    } else {
        // SAFETY: as above.
        let kdf: ck::CK_SP800_108_KDF_PARAMS = unsafe { parameter(mechanism)? };
        if kdf.ulAdditionalDerivedKeys != 0 {
            return Err(BAD);
        }
        let counter = mechanism.mechanism == n::SP800_108_COUNTER_KDF;
        let chain = if counter { Chain::Counter } else { Chain::DoublePipeline };
        (kdf.prfType, kdf.ulNumberOfDataParams, kdf.pDataParams, chain)
    };
    let prf = match prf {
        n::AES_CMAC => None,
        number => {
            Some(offer::HASHES.into_iter().find(|hash| offer::numbers(*hash).hmac == number).ok_or(BAD)?)
        }
    };
    if count > MAX_PARTS || list.is_null() {
        return Err(BAD);
    }
    let mut parts = Vec::new();
    for index in 0..count as usize {
        // SAFETY: within the caller's `count` parts.
        let part = unsafe { get(list.add(index).cast_const())? };
        // SAFETY: the caller's promise.
        parts.push(unsafe { part_of(&part, &chain)? });
    }
    Ok(Derive::Sp800108 { prf, chain, parts })
}

/// # Safety
/// The part's value is null or valid for its length.
unsafe fn part_of(part: &ck::CK_PRF_DATA_PARAM, chain: &Chain) -> Result<Part> {
    let value = part.pValue.cast_const();
    let as_mechanism =
        ck::CK_MECHANISM { mechanism: 0, pParameter: part.pValue, ulParameterLen: part.ulValueLen };
    let width = |bits: ck::CK_ULONG| {
        let bytes =
            usize::try_from(bits / 8).ok().filter(|bytes| bits.is_multiple_of(8) && (1..=8).contains(bytes));
        bytes.ok_or(BAD)
    };
    Ok(match part.type_ {
        // The iteration variable is a counter in counter mode, what the chain says in the others.
        ck::CK_SP800_108_ITERATION_VARIABLE if *chain != Chain::Counter => Part::Chained,
        ck::CK_SP800_108_ITERATION_VARIABLE | ck::CK_SP800_108_COUNTER => {
            // SAFETY: the caller's promise.
            let counter: ck::CK_SP800_108_COUNTER_FORMAT = unsafe { parameter(&as_mechanism)? };
            let bytes = width(counter.ulWidthInBits)?;
            Part::Counter { bytes, little_endian: counter.bLittleEndian != 0 }
        }
        ck::CK_SP800_108_DKM_LENGTH => {
            // SAFETY: the caller's promise.
            let length: ck::CK_SP800_108_DKM_LENGTH_FORMAT = unsafe { parameter(&as_mechanism)? };
            if length.dkmLengthMethod != ck::CK_SP800_108_DKM_LENGTH_SUM_OF_KEYS {
                return Err(BAD);
            }
            Part::Length { bytes: width(length.ulWidthInBits)?, little_endian: length.bLittleEndian != 0 }
        }
        // SAFETY: the caller's promise.
        ck::CK_SP800_108_BYTE_ARRAY => Part::Bytes(unsafe { inner(value.cast(), part.ulValueLen)? }),
        _ => return Err(BAD),
    })
}
