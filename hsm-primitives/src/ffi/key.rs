//! A key of AWS-LC, and what is done with it.

use core::ffi::c_int;
use core::mem::MaybeUninit;
use core::ptr::{self, NonNull};

use aws_lc_sys as sys;
use secret_mem::SecretBuf;

use super::bignum::{self, BigNum};
use super::context::{Context, Operation};
use super::{Failed, Result, ok};
use crate::{Curve, RsaPadding};

/// An owned `EVP_PKEY`. AWS-LC overwrites its memory when it is freed.
pub(crate) struct Pkey(NonNull<sys::EVP_PKEY>);

// SAFETY: a key may be moved to another thread: it has no ties to the one that made it, and its reference count is atomic.
unsafe impl Send for Pkey {}
// SAFETY: `&Pkey` only reaches functions that do not change the key, which may run at once (see the folder's essay);
// AWS-LC itself locks the blinding factors of RSA.
unsafe impl Sync for Pkey {}

impl Drop for Pkey {
    fn drop(&mut self) {
        // SAFETY: this reference is owned and not used again.
        unsafe { sys::EVP_PKEY_free(self.0.as_ptr()) }
    }
}

fn nid(curve: Curve) -> Option<c_int> {
    match curve {
        Curve::P256 => Some(sys::NID_X9_62_prime256v1),
        Curve::P384 => Some(sys::NID_secp384r1),
        Curve::P521 => Some(sys::NID_secp521r1),
        Curve::Ed25519 => None,
    }
}

struct EcKey(NonNull<sys::EC_KEY>);

impl Drop for EcKey {
    fn drop(&mut self) {
        // SAFETY: the key is owned and not used again.
        unsafe { sys::EC_KEY_free(self.0.as_ptr()) }
    }
}

impl EcKey {
    fn new(curve: Curve) -> Result<Self> {
        // SAFETY: takes a number, returns an owned key or null.
        let raw = unsafe { sys::EC_KEY_new_by_curve_name(nid(curve).ok_or(Failed)?) };
        NonNull::new(raw).map(Self).ok_or(Failed)
    }

    fn into_pkey(self) -> Result<Pkey> {
        // SAFETY: the key is live.
        ok(unsafe { sys::EC_KEY_check_key(self.0.as_ptr()) })?;
        let key = Pkey::empty()?;
        // SAFETY: both are live; the key takes a reference of its own.
        ok(unsafe { sys::EVP_PKEY_set1_EC_KEY(key.as_ptr(), self.0.as_ptr()) })?;
        Ok(key)
    }

    /// Sets the public point from its bytes, or to `scalar` times the generator.
    fn set_public(&self, from: &dyn Fn(*const sys::EC_GROUP, *mut sys::EC_POINT) -> c_int) -> Result<()> {
        // SAFETY: the key is live, and its group with it. The point is freed once, after its last use; the key copies it.
        unsafe {
            let group = sys::EC_KEY_get0_group(self.0.as_ptr());
            let point = sys::EC_POINT_new(group);
            if point.is_null() {
                return Err(Failed);
            }
            let done =
                ok(from(group, point)).and_then(|()| ok(sys::EC_KEY_set_public_key(self.0.as_ptr(), point)));
            sys::EC_POINT_free(point);
            done
        }
    }
}

impl Pkey {
    pub(super) fn as_ptr(&self) -> *mut sys::EVP_PKEY {
        self.0.as_ptr()
    }

    pub(super) fn empty() -> Result<Self> {
        // SAFETY: takes nothing, returns an owned key or null.
        Self::own(unsafe { sys::EVP_PKEY_new() })
    }

    fn own(raw: *mut sys::EVP_PKEY) -> Result<Self> {
        match NonNull::new(raw) {
            Some(raw) => Ok(Self(raw)),
            None => Err(ok(0).err().unwrap_or(Failed)),
        }
    }

    /// Parses a PKCS#8 PrivateKeyInfo; nothing may follow it.
    pub(crate) fn from_pkcs8(der: &[u8]) -> Result<Self> {
        let mut cbs = sys::CBS { data: der.as_ptr(), len: der.len() };
        // SAFETY: `cbs` describes `der`, which lives during the call.
        let key = Self::own(unsafe { sys::EVP_parse_private_key(&mut cbs) })?;
        if cbs.len == 0 { Ok(key) } else { Err(Failed) }
    }

    /// Parses a SubjectPublicKeyInfo; nothing may follow it.
    pub(crate) fn from_spki(der: &[u8]) -> Result<Self> {
        let mut cbs = sys::CBS { data: der.as_ptr(), len: der.len() };
        // SAFETY: `cbs` describes `der`, which lives during the call.
        let key = Self::own(unsafe { sys::EVP_parse_public_key(&mut cbs) })?;
        if cbs.len == 0 { Ok(key) } else { Err(Failed) }
    }

    /// PKCS#8 PrivateKeyInfo.
    pub(crate) fn to_pkcs8(&self) -> Result<SecretBuf> {
        self.marshal(
            |cbb, key| {
                // SAFETY: `marshal` hands over a live builder and key.
                unsafe { sys::EVP_marshal_private_key(cbb, key) }
            },
            |bytes| {
                SecretBuf::from_fn(bytes.len(), |out| {
                    out.copy_from_slice(bytes);
                    Ok(bytes.len())
                })
            },
        )
    }

    /// SubjectPublicKeyInfo.
    pub(crate) fn to_spki(&self) -> Result<Vec<u8>> {
        self.marshal(
            |cbb, key| {
                // SAFETY: `marshal` hands over a live builder and key.
                unsafe { sys::EVP_marshal_public_key(cbb, key) }
            },
            |bytes| Ok(bytes.to_vec()),
        )
    }

    fn marshal<T>(
        &self,
        write: impl Fn(*mut sys::CBB, *const sys::EVP_PKEY) -> c_int,
        read: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Result<T> {
        let mut cbb = MaybeUninit::<sys::CBB>::uninit();
        let (mut bytes, mut len) = (ptr::null_mut(), 0);
        // SAFETY: `CBB_zero` initialises the builder, after which the others may be called in this order; `CBB_cleanup` may
        // follow any of them. On success `bytes` is `len` bytes of AWS-LC's allocator, freed (and overwritten) after use.
        unsafe {
            let cbb = cbb.as_mut_ptr();
            sys::CBB_zero(cbb);
            let done = ok(sys::CBB_init(cbb, 256))
                .and_then(|()| ok(write(cbb, self.0.as_ptr())))
                .and_then(|()| ok(sys::CBB_finish(cbb, &mut bytes, &mut len)));
            if let Err(e) = done {
                sys::CBB_cleanup(cbb);
                return Err(e);
            }
            let result = read(core::slice::from_raw_parts(bytes, len));
            sys::OPENSSL_free(bytes.cast());
            result
        }
    }

    /// What kind of key it is: a curve, or `None` for RSA.
    pub(crate) fn kind(&self) -> Result<Option<Curve>> {
        // SAFETY: the key is live.
        match unsafe { sys::EVP_PKEY_id(self.0.as_ptr()) } {
            sys::EVP_PKEY_RSA => Ok(None),
            sys::EVP_PKEY_ED25519 => Ok(Some(Curve::Ed25519)),
            sys::EVP_PKEY_EC => {
                let key = self.ec()?;
                // SAFETY: the key is live, and its group with it.
                let name = unsafe { sys::EC_GROUP_get_curve_name(sys::EC_KEY_get0_group(key)) };
                let curves = [Curve::P256, Curve::P384, Curve::P521];
                curves.into_iter().find(|&c| nid(c) == Some(name)).map(Some).ok_or(Failed)
            }
            _ => Err(Failed),
        }
    }

    /// Length of the modulus or of the field, in bits.
    pub(crate) fn bits(&self) -> usize {
        // SAFETY: the key is live.
        usize::try_from(unsafe { sys::EVP_PKEY_bits(self.0.as_ptr()) }).unwrap_or(0)
    }

    pub(crate) fn ec_generate(curve: Curve) -> Result<Self> {
        let key = EcKey::new(curve)?;
        // SAFETY: the key is live and nobody else's yet.
        ok(unsafe { sys::EC_KEY_generate_key(key.0.as_ptr()) })?;
        key.into_pkey()
    }

    pub(crate) fn ec_private(curve: Curve, scalar: &[u8]) -> Result<Self> {
        let (key, scalar) = (EcKey::new(curve)?, BigNum::from_be(scalar)?);
        // SAFETY: both are live; the number is copied.
        ok(unsafe { sys::EC_KEY_set_private_key(key.0.as_ptr(), scalar.as_ptr()) })?;
        key.set_public(&|group, point| {
            // SAFETY: group and point are live; two nulls leave out the second product, the third asks for a context of its own.
            unsafe {
                sys::EC_POINT_mul(group, point, scalar.as_ptr(), ptr::null(), ptr::null(), ptr::null_mut())
            }
        })?;
        key.into_pkey()
    }

    /// From a point, compressed or not.
    pub(crate) fn ec_public(curve: Curve, point: &[u8]) -> Result<Self> {
        let key = EcKey::new(curve)?;
        key.set_public(&|group, out| {
            // SAFETY: group and point are live, `point` is valid for reads of its length.
            unsafe { sys::EC_POINT_oct2point(group, out, point.as_ptr(), point.len(), ptr::null_mut()) }
        })?;
        key.into_pkey()
    }

    /// The uncompressed public point of an EC key.
    pub(crate) fn ec_point(&self) -> Result<Vec<u8>> {
        let key = self.ec()?;
        let mut out = vec![0; 1 + 2 * self.bits().div_ceil(8)];
        // SAFETY: the key is live, and its group and point with it; `out` is valid for writes of its length.
        let n = unsafe {
            let (group, point) = (sys::EC_KEY_get0_group(key), sys::EC_KEY_get0_public_key(key));
            let form = sys::point_conversion_form_t::POINT_CONVERSION_UNCOMPRESSED;
            sys::EC_POINT_point2oct(group, point, form, out.as_mut_ptr(), out.len(), ptr::null_mut())
        };
        if n == out.len() { Ok(out) } else { Err(Failed) }
    }

    /// The private scalar of an EC key, as long as the field.
    pub(crate) fn ec_scalar(&self) -> Result<SecretBuf> {
        // SAFETY: the key is live, and its number (null if there is none) with it.
        unsafe { bignum::to_secret(sys::EC_KEY_get0_private_key(self.ec()?), self.bits().div_ceil(8)) }
    }

    pub(crate) fn ed25519_private(seed: &[u8]) -> Result<Self> {
        // SAFETY: `seed` is valid for reads of its length; no engine is given.
        Self::own(unsafe {
            sys::EVP_PKEY_new_raw_private_key(
                sys::EVP_PKEY_ED25519,
                ptr::null_mut(),
                seed.as_ptr(),
                seed.len(),
            )
        })
    }

    pub(crate) fn ed25519_public(point: &[u8]) -> Result<Self> {
        // SAFETY: `point` is valid for reads of its length; no engine is given.
        Self::own(unsafe {
            sys::EVP_PKEY_new_raw_public_key(
                sys::EVP_PKEY_ED25519,
                ptr::null_mut(),
                point.as_ptr(),
                point.len(),
            )
        })
    }

    pub(crate) fn ed25519_point(&self) -> Result<Vec<u8>> {
        let (mut out, mut len) = (vec![0; 32], 32);
        // SAFETY: the key is live; `len` says how much room `out` has.
        ok(unsafe { sys::EVP_PKEY_get_raw_public_key(self.0.as_ptr(), out.as_mut_ptr(), &mut len) })?;
        if len == 32 { Ok(out) } else { Err(Failed) }
    }

    pub(crate) fn ed25519_seed(&self) -> Result<SecretBuf> {
        SecretBuf::from_fn(32, |out| {
            let mut len = out.len();
            // SAFETY: the key is live; `len` says how much room `out` has.
            ok(unsafe { sys::EVP_PKEY_get_raw_private_key(self.0.as_ptr(), out.as_mut_ptr(), &mut len) })?;
            Ok(len)
        })
    }

    pub(crate) fn rsa_sign(&self, padding: &RsaPadding<'_>, input: &[u8], out: &mut [u8]) -> Result<usize> {
        let context = Context::new(self, Operation::Sign)?;
        context.pad(padding)?;
        context.sign(input, out)
    }

    pub(crate) fn rsa_verify(&self, padding: &RsaPadding<'_>, input: &[u8], signature: &[u8]) -> Result<()> {
        let context = Context::new(self, Operation::Verify)?;
        context.pad(padding)?;
        context.verify(input, signature)
    }

    pub(crate) fn rsa_encrypt(
        &self,
        padding: &RsaPadding<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        let context = Context::new(self, Operation::Encrypt)?;
        context.pad(padding)?;
        context.encrypt(input, out)
    }

    pub(crate) fn rsa_decrypt(
        &self,
        padding: &RsaPadding<'_>,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize> {
        let context = Context::new(self, Operation::Decrypt)?;
        context.pad(padding)?;
        context.decrypt(input, out)
    }

    /// The x coordinate of the shared point; its length.
    pub(crate) fn ecdh(&self, peer: &Self, out: &mut [u8]) -> Result<usize> {
        Context::new(self, Operation::Derive)?.derive(peer, out)
    }

    /// ECDSA of a digest: r and s, each as long as the order.
    pub(crate) fn ecdsa_sign(&self, digest: &[u8], out: &mut [u8]) -> Result<()> {
        let key = self.ec()?;
        let half = out.len() / 2;
        // SAFETY: the key is live, `digest` is valid for reads of its length. The signature is freed once, after its numbers,
        // which live as long as it does, were written.
        unsafe {
            let signature = sys::ECDSA_do_sign(digest.as_ptr(), digest.len(), key);
            if signature.is_null() {
                return ok(0);
            }
            let (mut r, mut s) = (ptr::null(), ptr::null());
            sys::ECDSA_SIG_get0(signature, &mut r, &mut s);
            let (first, second) = out.split_at_mut(half);
            let done = bignum::write(r, first).and_then(|()| bignum::write(s, second));
            sys::ECDSA_SIG_free(signature);
            done
        }
    }

    pub(crate) fn ecdsa_verify(&self, digest: &[u8], signature: &[u8]) -> Result<()> {
        let key = self.ec()?;
        let (r, s) = signature.split_at(signature.len() / 2);
        let (r, s) = (BigNum::from_be(r)?, BigNum::from_be(s)?);
        // SAFETY: the key is live, `digest` is valid for reads of its length. The signature owns the numbers once they are set
        // (nothing else fails there: both are not null) and is freed once, after its last use.
        unsafe {
            let parsed = sys::ECDSA_SIG_new();
            if parsed.is_null() {
                return Err(Failed);
            }
            let done = ok(sys::ECDSA_SIG_set0(parsed, r.into_raw(), s.into_raw()))
                .and_then(|()| ok(sys::ECDSA_do_verify(digest.as_ptr(), digest.len(), parsed, key)));
            sys::ECDSA_SIG_free(parsed);
            done
        }
    }

    /// Ed25519 (RFC 8032) of a message.
    pub(crate) fn eddsa_sign(&self, message: &[u8], out: &mut [u8]) -> Result<usize> {
        let mut len = out.len();
        self.with_md_ctx(|ctx, key| {
            // SAFETY: context and key are live; a null digest is what Ed25519 wants; `len` says how much room `out` has.
            unsafe {
                let null = ptr::null_mut();
                ok(sys::EVP_DigestSignInit(ctx, ptr::null_mut(), ptr::null(), null, key))?;
                ok(sys::EVP_DigestSign(ctx, out.as_mut_ptr(), &mut len, message.as_ptr(), message.len()))
            }
        })?;
        Ok(len)
    }

    pub(crate) fn eddsa_verify(&self, message: &[u8], signature: &[u8]) -> Result<()> {
        self.with_md_ctx(|ctx, key| {
            // SAFETY: context and key are live; a null digest is what Ed25519 wants; both slices are valid for reads.
            unsafe {
                let null = ptr::null_mut();
                ok(sys::EVP_DigestVerifyInit(ctx, ptr::null_mut(), ptr::null(), null, key))?;
                let (sig, len) = (signature.as_ptr(), signature.len());
                ok(sys::EVP_DigestVerify(ctx, sig, len, message.as_ptr(), message.len()))
            }
        })
    }

    fn with_md_ctx<T>(
        &self,
        f: impl FnOnce(*mut sys::EVP_MD_CTX, *mut sys::EVP_PKEY) -> Result<T>,
    ) -> Result<T> {
        // SAFETY: the context is owned here and freed once, after its last use.
        unsafe {
            let ctx = sys::EVP_MD_CTX_new();
            if ctx.is_null() {
                return Err(Failed);
            }
            let result = f(ctx, self.0.as_ptr());
            sys::EVP_MD_CTX_free(ctx);
            result
        }
    }

    fn ec(&self) -> Result<*const sys::EC_KEY> {
        // SAFETY: the key is live; the result is null unless it is an EC key.
        let key = unsafe { sys::EVP_PKEY_get0_EC_KEY(self.0.as_ptr()) };
        if key.is_null() { Err(Failed) } else { Ok(key) }
    }
}
