//! Mechanisms that the module offers, with what `C_GetMechanismInfo` says of them.

use cryptoki_sys as ck;
use hsm_engine::objects::Hash;
use hsm_engine::objects::mechanism::number as n;

/// One mechanism.
pub(crate) struct Offered {
    pub(crate) number: ck::CK_MECHANISM_TYPE,
    /// Smallest and largest key: bytes of symmetric keys, bits of others.
    pub(crate) sizes: (ck::CK_ULONG, ck::CK_ULONG),
    pub(crate) flags: ck::CK_FLAGS,
}

const CRYPT: ck::CK_FLAGS = ck::CKF_ENCRYPT | ck::CKF_DECRYPT;
const WRAPS: ck::CK_FLAGS = ck::CKF_WRAP | ck::CKF_UNWRAP;
const SIGNS: ck::CK_FLAGS = ck::CKF_SIGN | ck::CKF_VERIFY;
const CURVE: ck::CK_FLAGS = ck::CKF_EC_F_P | ck::CKF_EC_NAMEDCURVE | ck::CKF_EC_UNCOMPRESS;

const NONE: (ck::CK_ULONG, ck::CK_ULONG) = (0, 0);
const AES: (ck::CK_ULONG, ck::CK_ULONG) = (16, 32);
const SECRET: (ck::CK_ULONG, ck::CK_ULONG) = (1, 512);
const RSA: (ck::CK_ULONG, ck::CK_ULONG) = (2048, 4096);
const EC: (ck::CK_ULONG, ck::CK_ULONG) = (256, 521);
const ED: (ck::CK_ULONG, ck::CK_ULONG) = (255, 255);

const fn of(
    number: ck::CK_MECHANISM_TYPE,
    sizes: (ck::CK_ULONG, ck::CK_ULONG),
    flags: ck::CK_FLAGS,
) -> Offered {
    Offered { number, sizes, flags }
}

/// All of them.
pub(crate) static MECHANISMS: &[Offered] = &[
    of(n::AES_KEY_GEN, AES, ck::CKF_GENERATE),
    of(n::AES_ECB, AES, CRYPT | WRAPS),
    of(n::AES_CBC, AES, CRYPT | WRAPS),
    of(n::AES_CBC_PAD, AES, CRYPT | WRAPS),
    of(n::AES_CTR, AES, CRYPT),
    of(n::AES_GCM, AES, CRYPT),
    of(n::AES_GCM_SIV, AES, CRYPT),
    of(n::AES_KEY_WRAP, AES, WRAPS),
    of(n::AES_KEY_WRAP_KWP, AES, WRAPS),
    of(n::AES_CMAC, AES, SIGNS),
    of(n::AES_CMAC_GENERAL, AES, SIGNS),
    of(n::AES_ECB_ENCRYPT_DATA, AES, ck::CKF_DERIVE),
    of(n::AES_CBC_ENCRYPT_DATA, AES, ck::CKF_DERIVE),
    of(n::GENERIC_SECRET_KEY_GEN, SECRET, ck::CKF_GENERATE),
    of(n::HKDF_DERIVE, SECRET, ck::CKF_DERIVE),
    of(n::SP800_108_COUNTER_KDF, SECRET, ck::CKF_DERIVE),
    of(n::SP800_108_FEEDBACK_KDF, SECRET, ck::CKF_DERIVE),
    of(n::SP800_108_DOUBLE_PIPELINE_KDF, SECRET, ck::CKF_DERIVE),
    of(n::RSA_PKCS_KEY_PAIR_GEN, RSA, ck::CKF_GENERATE_KEY_PAIR),
    of(n::RSA_PKCS, RSA, CRYPT | SIGNS | WRAPS),
    of(n::RSA_X_509, RSA, CRYPT | SIGNS),
    of(n::RSA_PKCS_OAEP, RSA, CRYPT | WRAPS),
    of(n::RSA_AES_KEY_WRAP, RSA, WRAPS),
    of(n::RSA_PKCS_PSS, RSA, SIGNS),
    of(n::SHA224_RSA_PKCS, RSA, SIGNS),
    of(n::SHA256_RSA_PKCS, RSA, SIGNS),
    of(n::SHA384_RSA_PKCS, RSA, SIGNS),
    of(n::SHA512_RSA_PKCS, RSA, SIGNS),
    of(n::SHA3_224_RSA_PKCS, RSA, SIGNS),
    of(n::SHA3_256_RSA_PKCS, RSA, SIGNS),
    of(n::SHA3_384_RSA_PKCS, RSA, SIGNS),
    of(n::SHA3_512_RSA_PKCS, RSA, SIGNS),
    of(n::SHA224_RSA_PKCS_PSS, RSA, SIGNS),
    of(n::SHA256_RSA_PKCS_PSS, RSA, SIGNS),
    of(n::SHA384_RSA_PKCS_PSS, RSA, SIGNS),
    of(n::SHA512_RSA_PKCS_PSS, RSA, SIGNS),
    of(n::SHA3_224_RSA_PKCS_PSS, RSA, SIGNS),
    of(n::SHA3_256_RSA_PKCS_PSS, RSA, SIGNS),
    of(n::SHA3_384_RSA_PKCS_PSS, RSA, SIGNS),
    of(n::SHA3_512_RSA_PKCS_PSS, RSA, SIGNS),
    of(n::EC_KEY_PAIR_GEN, EC, ck::CKF_GENERATE_KEY_PAIR | CURVE),
    of(n::ECDSA, EC, SIGNS | CURVE),
    of(n::ECDSA_SHA224, EC, SIGNS | CURVE),
    of(n::ECDSA_SHA256, EC, SIGNS | CURVE),
    of(n::ECDSA_SHA384, EC, SIGNS | CURVE),
    of(n::ECDSA_SHA512, EC, SIGNS | CURVE),
    of(n::ECDSA_SHA3_224, EC, SIGNS | CURVE),
    of(n::ECDSA_SHA3_256, EC, SIGNS | CURVE),
    of(n::ECDSA_SHA3_384, EC, SIGNS | CURVE),
    of(n::ECDSA_SHA3_512, EC, SIGNS | CURVE),
    of(n::ECDH1_DERIVE, EC, ck::CKF_DERIVE | CURVE),
    of(n::ECDH1_COFACTOR_DERIVE, EC, ck::CKF_DERIVE | CURVE),
    of(n::EC_EDWARDS_KEY_PAIR_GEN, ED, ck::CKF_GENERATE_KEY_PAIR | CURVE),
    of(n::EDDSA, ED, SIGNS | CURVE),
    of(n::SHA224, NONE, ck::CKF_DIGEST),
    of(n::SHA256, NONE, ck::CKF_DIGEST),
    of(n::SHA384, NONE, ck::CKF_DIGEST),
    of(n::SHA512, NONE, ck::CKF_DIGEST),
    of(n::SHA3_224, NONE, ck::CKF_DIGEST),
    of(n::SHA3_256, NONE, ck::CKF_DIGEST),
    of(n::SHA3_384, NONE, ck::CKF_DIGEST),
    of(n::SHA3_512, NONE, ck::CKF_DIGEST),
    of(n::SHA224_HMAC, SECRET, SIGNS),
    of(n::SHA256_HMAC, SECRET, SIGNS),
    of(n::SHA384_HMAC, SECRET, SIGNS),
    of(n::SHA512_HMAC, SECRET, SIGNS),
    of(n::SHA3_224_HMAC, SECRET, SIGNS),
    of(n::SHA3_256_HMAC, SECRET, SIGNS),
    of(n::SHA3_384_HMAC, SECRET, SIGNS),
    of(n::SHA3_512_HMAC, SECRET, SIGNS),
    of(n::SHA224_HMAC_GENERAL, SECRET, SIGNS),
    of(n::SHA256_HMAC_GENERAL, SECRET, SIGNS),
    of(n::SHA384_HMAC_GENERAL, SECRET, SIGNS),
    of(n::SHA512_HMAC_GENERAL, SECRET, SIGNS),
    of(n::SHA3_224_HMAC_GENERAL, SECRET, SIGNS),
    of(n::SHA3_256_HMAC_GENERAL, SECRET, SIGNS),
    of(n::SHA3_384_HMAC_GENERAL, SECRET, SIGNS),
    of(n::SHA3_512_HMAC_GENERAL, SECRET, SIGNS),
];

/// The mechanism of a number.
pub(crate) fn find(number: ck::CK_MECHANISM_TYPE) -> Option<&'static Offered> {
    MECHANISMS.iter().find(|offered| offered.number == number)
}

/// Hash functions. SHA-1 is here too: the engine refuses it unless its policy says otherwise.
pub(crate) const HASHES: [Hash; 9] = [
    Hash::Sha1,
    Hash::Sha224,
    Hash::Sha256,
    Hash::Sha384,
    Hash::Sha512,
    Hash::Sha3_224,
    Hash::Sha3_256,
    Hash::Sha3_384,
    Hash::Sha3_512,
];

/// Numbers of what is made of a hash.
pub(crate) struct Numbers {
    pub(crate) hash: u64,
    pub(crate) hmac: u64,
    pub(crate) hmac_general: u64,
    pub(crate) rsa: u64,
    pub(crate) pss: u64,
    pub(crate) ecdsa: u64,
}

/// The numbers of a hash function.
pub(crate) fn numbers(hash: Hash) -> Numbers {
    // HMAC follows the hash, and HMAC with a length follows that.
    let of =
        |hash, rsa, pss, ecdsa| Numbers { hash, hmac: hash + 1, hmac_general: hash + 2, rsa, pss, ecdsa };
    match hash {
        Hash::Sha1 => of(n::SHA_1, n::SHA1_RSA_PKCS, n::SHA1_RSA_PKCS_PSS, n::ECDSA_SHA1),
        Hash::Sha224 => of(n::SHA224, n::SHA224_RSA_PKCS, n::SHA224_RSA_PKCS_PSS, n::ECDSA_SHA224),
        Hash::Sha256 => of(n::SHA256, n::SHA256_RSA_PKCS, n::SHA256_RSA_PKCS_PSS, n::ECDSA_SHA256),
        Hash::Sha384 => of(n::SHA384, n::SHA384_RSA_PKCS, n::SHA384_RSA_PKCS_PSS, n::ECDSA_SHA384),
        Hash::Sha512 => of(n::SHA512, n::SHA512_RSA_PKCS, n::SHA512_RSA_PKCS_PSS, n::ECDSA_SHA512),
        Hash::Sha3_224 => of(n::SHA3_224, n::SHA3_224_RSA_PKCS, n::SHA3_224_RSA_PKCS_PSS, n::ECDSA_SHA3_224),
        Hash::Sha3_256 => of(n::SHA3_256, n::SHA3_256_RSA_PKCS, n::SHA3_256_RSA_PKCS_PSS, n::ECDSA_SHA3_256),
        Hash::Sha3_384 => of(n::SHA3_384, n::SHA3_384_RSA_PKCS, n::SHA3_384_RSA_PKCS_PSS, n::ECDSA_SHA3_384),
        Hash::Sha3_512 => of(n::SHA3_512, n::SHA3_512_RSA_PKCS, n::SHA3_512_RSA_PKCS_PSS, n::ECDSA_SHA3_512),
    }
}

/// The hash function of a number.
pub(crate) fn hash(number: ck::CK_MECHANISM_TYPE) -> Option<Hash> {
    HASHES.into_iter().find(|hash| numbers(*hash).hash == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_standards_and_each_is_offered_once() {
        assert_eq!(numbers(Hash::Sha256).hmac, ck::CKM_SHA256_HMAC);
        assert_eq!(numbers(Hash::Sha3_512).hmac_general, ck::CKM_SHA3_512_HMAC_GENERAL);
        assert_eq!((n::AES_GCM, n::ECDH1_DERIVE), (ck::CKM_AES_GCM, ck::CKM_ECDH1_DERIVE));
        for (index, offered) in MECHANISMS.iter().enumerate() {
            assert!(MECHANISMS[..index].iter().all(|other| other.number != offered.number));
        }
    }
}
