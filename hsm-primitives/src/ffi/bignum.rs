//! Big-endian numbers in and out of AWS-LC's `BIGNUM`.

use core::ptr::{self, NonNull};

use aws_lc_sys as sys;
use secret_mem::SecretBuf;

use super::{Failed, Result, ok};

/// A number that is owned; wiped when it is freed (AWS-LC overwrites what it frees).
pub(super) struct BigNum(NonNull<sys::BIGNUM>);

impl BigNum {
    pub(super) fn from_be(bytes: &[u8]) -> Result<Self> {
        // SAFETY: `bytes` is valid for reads of its length; a null third argument asks for a new number.
        let raw = unsafe { sys::BN_bin2bn(bytes.as_ptr(), bytes.len(), ptr::null_mut()) };
        NonNull::new(raw).map(Self).ok_or(Failed)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::BIGNUM {
        self.0.as_ptr()
    }

    /// Hands the number to whoever frees it.
    pub(super) fn into_raw(self) -> *mut sys::BIGNUM {
        let raw = self.0.as_ptr();
        core::mem::forget(self);
        raw
    }
}

impl Drop for BigNum {
    fn drop(&mut self) {
        // SAFETY: the number is owned and not used again.
        unsafe { sys::BN_free(self.0.as_ptr()) }
    }
}

/// Length of a number in bytes.
///
/// # Safety
/// `number` is null or points to a number that lives during the call.
pub(super) unsafe fn len(number: *const sys::BIGNUM) -> Result<usize> {
    if number.is_null() {
        return Err(Failed);
    }
    // SAFETY: not null, and by the contract a live number.
    Ok(unsafe { sys::BN_num_bytes(number) } as usize)
}

/// Writes a number big-endian into all of `out`.
///
/// # Safety
/// As [`len`].
pub(super) unsafe fn write(number: *const sys::BIGNUM, out: &mut [u8]) -> Result<()> {
    if number.is_null() {
        return Err(Failed);
    }
    // SAFETY: not null, by the contract a live number; `out` is valid for writes of its length.
    ok(unsafe { sys::BN_bn2bin_padded(out.as_mut_ptr(), out.len(), number) })
}

/// A public number, shortest form.
///
/// # Safety
/// As [`len`].
pub(super) unsafe fn to_vec(number: *const sys::BIGNUM) -> Result<Vec<u8>> {
    // SAFETY: the caller's promise is passed on.
    unsafe {
        let mut out = vec![0; len(number)?];
        write(number, &mut out)?;
        Ok(out)
    }
}

/// A secret number of `n` bytes.
///
/// # Safety
/// As [`len`].
pub(super) unsafe fn to_secret(number: *const sys::BIGNUM, n: usize) -> Result<SecretBuf> {
    SecretBuf::from_fn(n, |out| {
        // SAFETY: the caller's promise is passed on.
        unsafe { write(number, out) }.map(|()| n)
    })
}
