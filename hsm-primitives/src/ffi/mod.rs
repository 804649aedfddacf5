//! AWS-LC behind safe types. Nothing outside this folder is `unsafe`.
//!
//! What every block relies on, beside the pointers it is given: a slice's pointer is valid for reads (or writes, if it is
//! `&mut`) of its length; AWS-LC allows an `EVP_PKEY`, `RSA`, `EC_KEY` or `EC_GROUP` to be used by several threads at once
//! as long as nobody changes it (`include/openssl/evp.h`, `rsa.h`, `ec_key.h`), and nothing here changes one after it is made.

mod bignum;
mod context;
mod key;
mod rsa;

pub(crate) use key::Pkey;
pub(crate) use rsa::RsaParts;

use aws_lc_sys as sys;

use crate::Hash;

/// AWS-LC refused or failed. Its reasons stay inside: they may tell apart what a caller must not learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

pub(crate) type Result<T, E = Failed> = core::result::Result<T, E>;

/// The result of a function that returns 1 for success.
fn ok(code: core::ffi::c_int) -> Result<()> {
    if code == 1 {
        return Ok(());
    }
    // SAFETY: only touches the error queue of this thread.
    unsafe { sys::ERR_clear_error() };
    Err(Failed)
}

/// The digest of AWS-LC.
fn md(hash: Hash) -> *const sys::EVP_MD {
    // SAFETY: these functions take nothing and return a pointer to a constant.
    unsafe {
        match hash {
            Hash::Sha1 => sys::EVP_sha1(),
            Hash::Sha224 => sys::EVP_sha224(),
            Hash::Sha256 => sys::EVP_sha256(),
            Hash::Sha384 => sys::EVP_sha384(),
            Hash::Sha512 => sys::EVP_sha512(),
            Hash::Sha3_224 => sys::EVP_sha3_224(),
            Hash::Sha3_256 => sys::EVP_sha3_256(),
            Hash::Sha3_384 => sys::EVP_sha3_384(),
            Hash::Sha3_512 => sys::EVP_sha3_512(),
        }
    }
}
