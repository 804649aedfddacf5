//! One operation with a key.

use core::ffi::c_int;
use core::ptr::{self, NonNull};

use aws_lc_sys as sys;

use super::{Failed, Pkey, Result, md, ok};
use crate::{Hash, RsaPadding};

/// An `EVP_PKEY_CTX`, which holds a reference to its key.
pub(super) struct Context(NonNull<sys::EVP_PKEY_CTX>);

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is owned and not used again.
        unsafe { sys::EVP_PKEY_CTX_free(self.0.as_ptr()) }
    }
}

/// Which operation a context is for.
#[derive(Clone, Copy)]
pub(super) enum Operation {
    Sign,
    Verify,
    Encrypt,
    Decrypt,
    Derive,
}

impl Context {
    pub(super) fn new(key: &Pkey, operation: Operation) -> Result<Self> {
        // SAFETY: the key is live and the context takes a reference of its own; no engine is given.
        let raw = unsafe { sys::EVP_PKEY_CTX_new(key.as_ptr(), ptr::null_mut()) };
        let context = Self(NonNull::new(raw).ok_or(Failed)?);
        // SAFETY: the context is live and not shared.
        ok(unsafe {
            match operation {
                Operation::Sign => sys::EVP_PKEY_sign_init(raw),
                Operation::Verify => sys::EVP_PKEY_verify_init(raw),
                Operation::Encrypt => sys::EVP_PKEY_encrypt_init(raw),
                Operation::Decrypt => sys::EVP_PKEY_decrypt_init(raw),
                Operation::Derive => sys::EVP_PKEY_derive_init(raw),
            }
        })?;
        Ok(context)
    }

    /// Sets padding and digests of an RSA operation.
    pub(super) fn pad(&self, padding: &RsaPadding<'_>) -> Result<()> {
        let ctx = self.0.as_ptr();
        let set = |mode: i32| {
            // SAFETY: the context is live and not shared.
            ok(unsafe { sys::EVP_PKEY_CTX_set_rsa_padding(ctx, mode as c_int) })
        };
        let mgf1 = |hash: Hash| {
            // SAFETY: as above; digests are constants.
            ok(unsafe { sys::EVP_PKEY_CTX_set_rsa_mgf1_md(ctx, md(hash)) })
        };
        let signature = |hash: Hash| {
            // SAFETY: as above.
            ok(unsafe { sys::EVP_PKEY_CTX_set_signature_md(ctx, md(hash)) })
        };
        match *padding {
            RsaPadding::Raw => set(sys::RSA_NO_PADDING),
            RsaPadding::Pkcs1 => set(sys::RSA_PKCS1_PADDING),
            RsaPadding::Pkcs1Hash(hash) => {
                set(sys::RSA_PKCS1_PADDING)?;
                signature(hash)
            }
            RsaPadding::Pss { hash, mgf, salt_len } => {
                set(sys::RSA_PKCS1_PSS_PADDING)?;
                signature(hash)?;
                mgf1(mgf)?;
                let salt_len = c_int::try_from(salt_len).map_err(|_| Failed)?;
                // SAFETY: as above.
                ok(unsafe { sys::EVP_PKEY_CTX_set_rsa_pss_saltlen(ctx, salt_len) })
            }
            RsaPadding::Oaep { hash, mgf, label } => {
                set(sys::RSA_PKCS1_OAEP_PADDING)?;
                // SAFETY: as above.
                ok(unsafe { sys::EVP_PKEY_CTX_set_rsa_oaep_md(ctx, md(hash)) })?;
                mgf1(mgf)?;
                self.oaep_label(label)
            }
        }
    }

    fn oaep_label(&self, label: &[u8]) -> Result<()> {
        if label.is_empty() {
            return Ok(());
        }
        // SAFETY: `label` is valid for reads of its length.
        let copy = unsafe { sys::OPENSSL_memdup(label.as_ptr().cast(), label.len()) };
        if copy.is_null() {
            return Err(Failed);
        }
        // SAFETY: the copy was made by AWS-LC's allocator, and the context owns it if this succeeds.
        let set = unsafe { sys::EVP_PKEY_CTX_set0_rsa_oaep_label(self.0.as_ptr(), copy.cast(), label.len()) };
        if set != 1 {
            // SAFETY: the context did not take it, so it is still ours, and it is not used again.
            unsafe { sys::OPENSSL_free(copy) };
        }
        ok(set)
    }

    /// Signs `input` into `out`; the length written.
    pub(super) fn sign(&self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        let mut len = out.len();
        // SAFETY: `len` says how much room `out` has; `input` is valid for reads of its length.
        ok(unsafe {
            sys::EVP_PKEY_sign(self.0.as_ptr(), out.as_mut_ptr(), &mut len, input.as_ptr(), input.len())
        })?;
        Ok(len)
    }

    pub(super) fn verify(&self, input: &[u8], signature: &[u8]) -> Result<()> {
        // SAFETY: both slices are valid for reads of their lengths.
        ok(unsafe {
            sys::EVP_PKEY_verify(
                self.0.as_ptr(),
                signature.as_ptr(),
                signature.len(),
                input.as_ptr(),
                input.len(),
            )
        })
    }

    pub(super) fn encrypt(&self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        let mut len = out.len();
        // SAFETY: as in `sign`.
        ok(unsafe {
            sys::EVP_PKEY_encrypt(self.0.as_ptr(), out.as_mut_ptr(), &mut len, input.as_ptr(), input.len())
        })?;
        Ok(len)
    }

    pub(super) fn decrypt(&self, input: &[u8], out: &mut [u8]) -> Result<usize> {
        let mut len = out.len();
        // SAFETY: as in `sign`.
        ok(unsafe {
            sys::EVP_PKEY_decrypt(self.0.as_ptr(), out.as_mut_ptr(), &mut len, input.as_ptr(), input.len())
        })?;
        Ok(len)
    }

    pub(super) fn derive(&self, peer: &Pkey, out: &mut [u8]) -> Result<usize> {
        let mut len = out.len();
        // SAFETY: both keys are live, and the context takes a reference to the peer.
        ok(unsafe { sys::EVP_PKEY_derive_set_peer(self.0.as_ptr(), peer.as_ptr()) })?;
        // SAFETY: as in `sign`.
        ok(unsafe { sys::EVP_PKEY_derive(self.0.as_ptr(), out.as_mut_ptr(), &mut len) })?;
        Ok(len)
    }
}
