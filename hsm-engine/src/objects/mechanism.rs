//! Mechanisms as values, their PKCS#11 numbers, and which of them a policy allows.

pub use hsm_primitives::Hash;
pub use hsm_primitives::kdf::{Chain, Part};

use super::{Error, Result};

/// PKCS#11 numbers of mechanisms (`CKM_`).
#[allow(missing_docs, reason = "named as in PKCS#11")]
pub mod number {
    pub const RSA_PKCS_KEY_PAIR_GEN: u64 = 0x0;
    pub const RSA_PKCS: u64 = 0x1;
    pub const RSA_X_509: u64 = 0x3;
    pub const SHA1_RSA_PKCS: u64 = 0x6;
    pub const RSA_PKCS_OAEP: u64 = 0x9;
    pub const RSA_PKCS_PSS: u64 = 0xD;
    pub const SHA1_RSA_PKCS_PSS: u64 = 0xE;
    pub const SHA256_RSA_PKCS: u64 = 0x40;
    pub const SHA384_RSA_PKCS: u64 = 0x41;
    pub const SHA512_RSA_PKCS: u64 = 0x42;
    pub const SHA256_RSA_PKCS_PSS: u64 = 0x43;
    pub const SHA384_RSA_PKCS_PSS: u64 = 0x44;
    pub const SHA512_RSA_PKCS_PSS: u64 = 0x45;
    pub const SHA224_RSA_PKCS: u64 = 0x46;
    pub const SHA224_RSA_PKCS_PSS: u64 = 0x47;
    pub const SHA3_256_RSA_PKCS: u64 = 0x60;
    pub const SHA3_384_RSA_PKCS: u64 = 0x61;
    pub const SHA3_512_RSA_PKCS: u64 = 0x62;
    pub const SHA3_256_RSA_PKCS_PSS: u64 = 0x63;
    pub const SHA3_384_RSA_PKCS_PSS: u64 = 0x64;
    pub const SHA3_512_RSA_PKCS_PSS: u64 = 0x65;
    pub const SHA3_224_RSA_PKCS: u64 = 0x66;
    pub const SHA3_224_RSA_PKCS_PSS: u64 = 0x67;
    pub const SHA_1: u64 = 0x220;
    pub const SHA_1_HMAC: u64 = 0x221;
    pub const SHA_1_HMAC_GENERAL: u64 = 0x222;
    pub const SHA256: u64 = 0x250;
    pub const SHA256_HMAC: u64 = 0x251;
    pub const SHA256_HMAC_GENERAL: u64 = 0x252;
    pub const SHA224: u64 = 0x255;
    pub const SHA224_HMAC: u64 = 0x256;
    pub const SHA224_HMAC_GENERAL: u64 = 0x257;
    pub const SHA384: u64 = 0x260;
    pub const SHA384_HMAC: u64 = 0x261;
    pub const SHA384_HMAC_GENERAL: u64 = 0x262;
    pub const SHA512: u64 = 0x270;
    pub const SHA512_HMAC: u64 = 0x271;
    pub const SHA512_HMAC_GENERAL: u64 = 0x272;
    pub const SHA3_256: u64 = 0x2B0;
    pub const SHA3_256_HMAC: u64 = 0x2B1;
    pub const SHA3_256_HMAC_GENERAL: u64 = 0x2B2;
    pub const SHA3_224: u64 = 0x2B5;
    pub const SHA3_224_HMAC: u64 = 0x2B6;
    pub const SHA3_224_HMAC_GENERAL: u64 = 0x2B7;
    pub const SHA3_384: u64 = 0x2C0;
    pub const SHA3_384_HMAC: u64 = 0x2C1;
    pub const SHA3_384_HMAC_GENERAL: u64 = 0x2C2;
    pub const SHA3_512: u64 = 0x2D0;
    pub const SHA3_512_HMAC: u64 = 0x2D1;
    pub const SHA3_512_HMAC_GENERAL: u64 = 0x2D2;
    pub const GENERIC_SECRET_KEY_GEN: u64 = 0x350;
    pub const SP800_108_COUNTER_KDF: u64 = 0x3AC;
    pub const SP800_108_FEEDBACK_KDF: u64 = 0x3AD;
    pub const SP800_108_DOUBLE_PIPELINE_KDF: u64 = 0x3AE;
    pub const EC_KEY_PAIR_GEN: u64 = 0x1040;
    pub const ECDSA: u64 = 0x1041;
    pub const ECDSA_SHA1: u64 = 0x1042;
    pub const ECDSA_SHA224: u64 = 0x1043;
    pub const ECDSA_SHA256: u64 = 0x1044;
    pub const ECDSA_SHA384: u64 = 0x1045;
    pub const ECDSA_SHA512: u64 = 0x1046;
    pub const ECDSA_SHA3_224: u64 = 0x1047;
    pub const ECDSA_SHA3_256: u64 = 0x1048;
    pub const ECDSA_SHA3_384: u64 = 0x1049;
    pub const ECDSA_SHA3_512: u64 = 0x104A;
    pub const ECDH1_DERIVE: u64 = 0x1050;
    pub const ECDH1_COFACTOR_DERIVE: u64 = 0x1051;
    pub const RSA_AES_KEY_WRAP: u64 = 0x1054;
    pub const EC_EDWARDS_KEY_PAIR_GEN: u64 = 0x1055;
    pub const EDDSA: u64 = 0x1057;
    pub const AES_KEY_GEN: u64 = 0x1080;
    pub const AES_ECB: u64 = 0x1081;
    pub const AES_CBC: u64 = 0x1082;
    pub const AES_CBC_PAD: u64 = 0x1085;
    pub const AES_CTR: u64 = 0x1086;
    pub const AES_GCM: u64 = 0x1087;
    pub const AES_CMAC: u64 = 0x108A;
    pub const AES_CMAC_GENERAL: u64 = 0x108B;
    pub const AES_ECB_ENCRYPT_DATA: u64 = 0x1104;
    pub const AES_CBC_ENCRYPT_DATA: u64 = 0x1105;
    pub const AES_KEY_WRAP: u64 = 0x2109;
    pub const AES_KEY_WRAP_KWP: u64 = 0x210B;
    pub const HKDF_DERIVE: u64 = 0x402A;
    pub const HKDF_KEY_GEN: u64 = 0x402C;
    /// Of this HSM: AES-GCM-SIV, for which PKCS#11 has no number (`CKM_VENDOR_DEFINED | 0x54444501`).
    pub const AES_GCM_SIV: u64 = 0xD444_4501;
}

/// The nonce of authenticated encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Iv {
    /// The engine makes one; the only way to encrypt.
    Generate,
    /// For decryption.
    Given([u8; 12]),
}

/// How to encrypt, sign, wrap and the inverse.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mechanism {
    /// RFC 3394.
    AesKw,
    /// RFC 5649.
    AesKwp,
    /// SP 800-38D, tags of 16 bytes.
    AesGcm {
        /// The nonce.
        iv: Iv,
        /// Authenticated and not encrypted.
        aad: Vec<u8>,
    },
    /// RFC 8452.
    AesGcmSiv {
        /// The nonce.
        iv: Iv,
        /// Authenticated and not encrypted.
        aad: Vec<u8>,
    },
    /// Whole blocks.
    AesCbc {
        /// The IV.
        iv: [u8; 16],
    },
    /// With PKCS#7 padding.
    AesCbcPad {
        /// The IV.
        iv: [u8; 16],
    },
    /// Counter mode.
    AesCtr {
        /// The first counter block.
        counter: [u8; 16],
        /// How many of its low bits count.
        bits: u32,
    },
    /// Whole blocks, each by itself.
    AesEcb,
    /// CMAC of `len` bytes, 16 for the whole.
    AesCmac {
        /// 1 to 16.
        len: usize,
    },
    /// HMAC of `len` bytes.
    Hmac {
        /// Of it.
        hash: Hash,
        /// 1 to the digest's length.
        len: usize,
    },
    /// PKCS#1 v1.5 of the data as it is; also encryption.
    RsaPkcs,
    /// No padding.
    RsaRaw,
    /// PKCS#1 v1.5 of the data's digest.
    RsaPkcsHash {
        /// Of the data.
        hash: Hash,
    },
    /// PSS.
    RsaPss {
        /// Of the data.
        hash: Hash,
        /// Of the mask.
        mgf: Hash,
        /// In bytes.
        salt_len: usize,
        /// The data is a digest already (`CKM_RSA_PKCS_PSS`).
        prehashed: bool,
    },
    /// OAEP.
    RsaOaep {
        /// Of the label.
        hash: Hash,
        /// Of the mask.
        mgf: Hash,
        /// Usually empty.
        label: Vec<u8>,
    },
    /// A fresh AES key under OAEP, and the key under it with KWP.
    RsaAesKeyWrap {
        /// 128, 192 or 256.
        aes_bits: u32,
        /// Of the label.
        hash: Hash,
        /// Of the mask.
        mgf: Hash,
        /// Usually empty.
        label: Vec<u8>,
    },
    /// ECDSA of a digest.
    Ecdsa,
    /// ECDSA of the data's digest.
    EcdsaHash {
        /// Of the data.
        hash: Hash,
    },
    /// Ed25519.
    EdDsa,
}

impl Mechanism {
    /// Its PKCS#11 number.
    pub fn number(&self) -> u64 {
        use number as n;
        match self {
            Self::AesKw => n::AES_KEY_WRAP,
            Self::AesKwp => n::AES_KEY_WRAP_KWP,
            Self::AesGcm { .. } => n::AES_GCM,
            Self::AesGcmSiv { .. } => n::AES_GCM_SIV,
            Self::AesCbc { .. } => n::AES_CBC,
            Self::AesCbcPad { .. } => n::AES_CBC_PAD,
            Self::AesCtr { .. } => n::AES_CTR,
            Self::AesEcb => n::AES_ECB,
            Self::AesCmac { len: 16 } => n::AES_CMAC,
            Self::AesCmac { .. } => n::AES_CMAC_GENERAL,
            Self::Hmac { hash, len } => hash_numbers(*hash).hmac + u64::from(*len != hash.len()),
            Self::RsaPkcs => n::RSA_PKCS,
            Self::RsaRaw => n::RSA_X_509,
            Self::RsaPkcsHash { hash } => hash_numbers(*hash).rsa,
            Self::RsaPss { prehashed: true, .. } => n::RSA_PKCS_PSS,
            Self::RsaPss { hash, .. } => hash_numbers(*hash).pss,
            Self::RsaOaep { .. } => n::RSA_PKCS_OAEP,
            Self::RsaAesKeyWrap { .. } => n::RSA_AES_KEY_WRAP,
            Self::Ecdsa => n::ECDSA,
            Self::EcdsaHash { hash } => hash_numbers(*hash).ecdsa,
            Self::EdDsa => n::EDDSA,
        }
    }

    /// The hash functions in it.
    fn hashes(&self) -> Vec<Hash> {
        match self {
            Self::Hmac { hash, .. } | Self::RsaPkcsHash { hash } | Self::EcdsaHash { hash } => vec![*hash],
            Self::RsaPss { hash, mgf, .. }
            | Self::RsaOaep { hash, mgf, .. }
            | Self::RsaAesKeyWrap { hash, mgf, .. } => vec![*hash, *mgf],
            _ => Vec::new(),
        }
    }
}

/// Numbers of what is made of a hash.
pub(crate) struct HashNumbers {
    pub(crate) hmac: u64,
    pub(crate) rsa: u64,
    pub(crate) pss: u64,
    pub(crate) ecdsa: u64,
}

pub(crate) fn hash_numbers(hash: Hash) -> HashNumbers {
    use number as n;
    let of = |hash, rsa, pss, ecdsa| HashNumbers { hmac: hash + 1, rsa, pss, ecdsa };
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

/// How to make a key. Sizes and curves come from the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "their names say it")]
pub enum Generate {
    Aes,
    GenericSecret,
    Rsa,
    /// P-256, P-384, P-521.
    Ec,
    /// Ed25519.
    Edwards,
}

impl Generate {
    /// Its PKCS#11 number.
    pub fn number(self) -> u64 {
        match self {
            Self::Aes => number::AES_KEY_GEN,
            Self::GenericSecret => number::GENERIC_SECRET_KEY_GEN,
            Self::Rsa => number::RSA_PKCS_KEY_PAIR_GEN,
            Self::Ec => number::EC_KEY_PAIR_GEN,
            Self::Edwards => number::EC_EDWARDS_KEY_PAIR_GEN,
        }
    }
}

/// How to derive a key from another.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Derive {
    /// ECDH (SP 800-56A).
    Ecdh {
        /// What makes a key of the shared point; `None` takes its x coordinate, cut from the left as PKCS#11 says.
        kdf: Option<Hash>,
        /// The other side's point, plain or in a DER octet string.
        public: Vec<u8>,
        /// Shared info of the KDF.
        shared: Vec<u8>,
    },
    /// HKDF (RFC 5869).
    Hkdf {
        /// Of it.
        hash: Hash,
        /// Whether to extract.
        extract: bool,
        /// Whether to expand.
        expand: bool,
        /// Of the extraction; empty for none.
        salt: Vec<u8>,
        /// Of the expansion.
        info: Vec<u8>,
    },
    /// SP 800-108; the pseudorandom function is HMAC, or CMAC for an AES key.
    Sp800108 {
        /// The hash of HMAC, or `None` for CMAC.
        prf: Option<Hash>,
        /// The mode.
        chain: Chain,
        /// What is hashed.
        parts: Vec<Part>,
    },
    /// The data encrypted with AES-ECB.
    AesEcbEncryptData {
        /// Whole blocks.
        data: Vec<u8>,
    },
    /// The data encrypted with AES-CBC.
    AesCbcEncryptData {
        /// The IV.
        iv: [u8; 16],
        /// Whole blocks.
        data: Vec<u8>,
    },
}

impl Derive {
    /// Its PKCS#11 number.
    pub fn number(&self) -> u64 {
        match self {
            Self::Ecdh { .. } => number::ECDH1_DERIVE,
            Self::Hkdf { .. } => number::HKDF_DERIVE,
            Self::Sp800108 { chain: Chain::Counter, .. } => number::SP800_108_COUNTER_KDF,
            Self::Sp800108 { chain: Chain::Feedback(_), .. } => number::SP800_108_FEEDBACK_KDF,
            Self::Sp800108 { chain: Chain::DoublePipeline, .. } => number::SP800_108_DOUBLE_PIPELINE_KDF,
            Self::AesEcbEncryptData { .. } => number::AES_ECB_ENCRYPT_DATA,
            Self::AesCbcEncryptData { .. } => number::AES_CBC_ENCRYPT_DATA,
        }
    }

    fn hash(&self) -> Option<Hash> {
        match self {
            Self::Ecdh { kdf: hash, .. } | Self::Sp800108 { prf: hash, .. } => *hash,
            Self::Hkdf { hash, .. } => Some(*hash),
            Self::AesEcbEncryptData { .. } | Self::AesCbcEncryptData { .. } => None,
        }
    }
}

/// What an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Encrypt,
    Decrypt,
    Sign,
    Verify,
    Wrap,
    Unwrap,
    Derive,
}

/// Which mechanisms an HSM offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowed {
    /// Only what NIST approves.
    pub approved_only: bool,
    /// Also SHA-1.
    pub legacy: bool,
}

impl Allowed {
    /// Whether a hash function may be used to protect something new. OAEP and MGF1 with SHA-1 are sound and stay allowed,
    /// except where only what is approved is.
    pub fn hash(self, hash: Hash) -> bool {
        hash != Hash::Sha1 || self.legacy && !self.approved_only
    }

    pub(crate) fn mechanism(self, mechanism: &Mechanism, purpose: Use) -> Result<()> {
        let oaep = matches!(mechanism, Mechanism::RsaOaep { .. } | Mechanism::RsaAesKeyWrap { .. });
        let hashes = mechanism.hashes().iter().all(|&h| self.hash(h) || oaep && !self.approved_only);
        let encryption = matches!(purpose, Use::Encrypt | Use::Decrypt | Use::Wrap | Use::Unwrap);
        let approved = match mechanism {
            Mechanism::AesGcmSiv { .. } | Mechanism::RsaRaw => false,
            Mechanism::RsaPkcs => !encryption,
            _ => true,
        };
        if hashes && (approved || !self.approved_only) { Ok(()) } else { Err(Error::MechanismInvalid) }
    }

    pub(crate) fn derive(self, derive: &Derive) -> Result<()> {
        let approved = !matches!(derive, Derive::AesEcbEncryptData { .. } | Derive::AesCbcEncryptData { .. });
        let hash = derive.hash().is_none_or(|h| self.hash(h));
        if hash && (approved || !self.approved_only) { Ok(()) } else { Err(Error::MechanismInvalid) }
    }
}
