//! What the HSM computes with beyond its store: RSA, elliptic curves, AES modes, MACs, key derivation.
//!
//! * [`PrivateKey`], [`PublicKey`]: RSA, P-256, P-384, P-521 and Ed25519, computed by AWS-LC.
//! * [`Aes`] and its modes: ECB, CBC, CTR, CMAC, key wrap, GCM, GCM-SIV.
//! * [`Hash`], [`Hasher`], [`Mac`]: SHA-1 (for what is old), SHA-2, SHA-3, HMAC.
//! * [`kdf`]: HKDF, SP 800-108, the KDFs of X9.63.
//!
//! No I/O, no clock, no policy: what may be done with which key is decided by the caller. Symmetric keys live in `secret_mem`
//! types. Private keys of AWS-LC live in its own allocations, which are overwritten when they are freed but may reach swap.
//! Why these libraries: `docs/decisions/0012-primitives-of-the-hsm.md`.
//!
//! ```
//! use hsm_primitives::{Curve, Hash, PrivateKey};
//!
//! let key = PrivateKey::generate_ec(Curve::P256)?;
//! let digest = Hash::Sha256.digest(b"message");
//! let signature = key.ecdsa_sign(&digest)?;
//! key.public()?.ecdsa_verify(&digest, &signature)?;
//! # Ok::<(), hsm_primitives::Error>(())
//! ```
#![deny(unsafe_code)]

mod aes;
mod asymmetric;
#[allow(unsafe_code)]
mod ffi;
mod gcm;
mod hash;
pub mod kdf;

pub use crate::aes::{Aes, CBC_BLOCK, Cmac, CtrStream};
pub use crate::asymmetric::{
    Curve, MAX_RSA_BITS, MIN_RSA_BITS, PrivateKey, PublicKey, RsaPadding, RsaPrivateNumbers,
};
pub use crate::gcm::{AEAD_NONCE, AEAD_TAG, Gcm, GcmSiv};
pub use crate::hash::{Hash, Hasher, Mac};

/// An operation that was not done. Never says why a decryption failed: that is all an attacker wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are no key of this kind, or not a valid one.
    #[error("the bytes are not a valid key of this kind")]
    BadKey,
    /// The input has a length the operation cannot take.
    #[error("the input has a length this operation cannot take")]
    BadLength,
    /// A signature, tag or padding does not match.
    #[error("a signature, tag or padding does not match")]
    Mismatch,
    /// The parameters do not fit each other or the key.
    #[error("the parameters do not fit the key")]
    BadParameters,
    /// Computing failed.
    #[error("the computation failed")]
    Failed,
}

/// Result of this crate's functions.
pub type Result<T, E = Error> = core::result::Result<T, E>;
