//! RSA keys from their numbers and back.

use core::ptr::{self, NonNull};

use aws_lc_sys as sys;
use secret_mem::SecretBuf;

use super::bignum::{self, BigNum};
use super::{Failed, Pkey, Result, ok};

/// Numbers of an RSA private key, big-endian.
pub(crate) struct RsaParts<'a> {
    pub(crate) n: &'a [u8],
    pub(crate) e: &'a [u8],
    pub(crate) d: &'a [u8],
    /// p, q, d mod p-1, d mod q-1, 1/q mod p.
    pub(crate) crt: Option<[&'a [u8]; 5]>,
}

/// An owned `RSA`.
struct Rsa(NonNull<sys::RSA>);

impl Drop for Rsa {
    fn drop(&mut self) {
        // SAFETY: the key is owned and not used again.
        unsafe { sys::RSA_free(self.0.as_ptr()) }
    }
}

impl Rsa {
    fn own(raw: *mut sys::RSA) -> Result<Self> {
        match NonNull::new(raw) {
            Some(raw) => Ok(Self(raw)),
            None => Err(ok(0).err().unwrap_or(Failed)),
        }
    }

    fn into_pkey(self) -> Result<Pkey> {
        let key = Pkey::empty()?;
        // SAFETY: both are live; the key takes a reference of its own.
        ok(unsafe { sys::EVP_PKEY_set1_RSA(key.as_ptr(), self.0.as_ptr()) })?;
        Ok(key)
    }
}

impl Pkey {
    pub(crate) fn rsa_generate(bits: u32, exponent: &[u8]) -> Result<Self> {
        let e = BigNum::from_be(exponent)?;
        // SAFETY: takes nothing, returns an owned key or null.
        let rsa = Rsa::own(unsafe { sys::RSA_new() })?;
        let bits = i32::try_from(bits).map_err(|_| Failed)?;
        // SAFETY: the key is live and nobody else's yet, the exponent is live, no callback is given.
        ok(unsafe { sys::RSA_generate_key_ex(rsa.0.as_ptr(), bits, e.as_ptr(), ptr::null_mut()) })?;
        rsa.into_pkey()
    }

    pub(crate) fn rsa_public(n: &[u8], e: &[u8]) -> Result<Self> {
        let (n, e) = (BigNum::from_be(n)?, BigNum::from_be(e)?);
        // SAFETY: both numbers are live; they are copied.
        Rsa::own(unsafe { sys::RSA_new_public_key(n.as_ptr(), e.as_ptr()) })?.into_pkey()
    }

    pub(crate) fn rsa_private(parts: &RsaParts<'_>) -> Result<Self> {
        let number = BigNum::from_be;
        let (n, e, d) = (number(parts.n)?, number(parts.e)?, number(parts.d)?);
        let raw = match parts.crt {
            Some([p, q, dp, dq, qi]) => {
                let (p, q, dp, dq, qi) = (number(p)?, number(q)?, number(dp)?, number(dq)?, number(qi)?);
                // SAFETY: all numbers are live; they are copied.
                unsafe {
                    sys::RSA_new_private_key(
                        n.as_ptr(),
                        e.as_ptr(),
                        d.as_ptr(),
                        p.as_ptr(),
                        q.as_ptr(),
                        dp.as_ptr(),
                        dq.as_ptr(),
                        qi.as_ptr(),
                    )
                }
            }
            // SAFETY: as above.
            None => unsafe { sys::RSA_new_private_key_no_crt(n.as_ptr(), e.as_ptr(), d.as_ptr()) },
        };
        let rsa = Rsa::own(raw)?;
        // SAFETY: the key is live.
        ok(unsafe { sys::RSA_check_key(rsa.0.as_ptr()) })?;
        rsa.into_pkey()
    }

    /// Modulus and public exponent.
    pub(crate) fn rsa_public_parts(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let rsa = self.rsa()?;
        // SAFETY: the key is live as long as `self`, and so are its numbers.
        unsafe { Ok((bignum::to_vec(sys::RSA_get0_n(rsa))?, bignum::to_vec(sys::RSA_get0_e(rsa))?)) }
    }

    /// d, then p, q, d mod p-1, d mod q-1, 1/q mod p where the key has them.
    pub(crate) fn rsa_secret_parts(&self) -> Result<Vec<SecretBuf>> {
        let rsa = self.rsa()?;
        // SAFETY: the key is live as long as `self`, and so are its numbers; some may be null, which is looked at.
        unsafe {
            let numbers = [
                sys::RSA_get0_d(rsa),
                sys::RSA_get0_p(rsa),
                sys::RSA_get0_q(rsa),
                sys::RSA_get0_dmp1(rsa),
                sys::RSA_get0_dmq1(rsa),
                sys::RSA_get0_iqmp(rsa),
            ];
            let there = numbers.into_iter().take_while(|n| !n.is_null());
            there.map(|n| bignum::to_secret(n, bignum::len(n)?)).collect()
        }
    }

    fn rsa(&self) -> Result<*const sys::RSA> {
        // SAFETY: the key is live; the result is null unless it is an RSA key.
        let rsa = unsafe { sys::EVP_PKEY_get0_RSA(self.as_ptr()) };
        if rsa.is_null() { Err(Failed) } else { Ok(rsa) }
    }
}
