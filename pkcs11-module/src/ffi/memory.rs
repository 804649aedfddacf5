//! A caller's memory.

use std::ptr;
use std::slice;

use cryptoki_sys as ck;
use hsm_engine::MAX_PIN;

use crate::rv::{Result, Rv};

/// Longest input of one call, in bytes.
const MAX_INPUT: usize = 1 << 30;

/// The caller's bytes.
///
/// # Safety
/// `pointer` is null or valid for `len` bytes while the result is used.
pub(super) unsafe fn bytes<'a>(pointer: *const ck::CK_BYTE, len: ck::CK_ULONG) -> Result<&'a [u8]> {
    let len = usize::try_from(len).ok().filter(|len| *len <= MAX_INPUT).ok_or(Rv(ck::CKR_ARGUMENTS_BAD))?;
    if len == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() {
        return Err(Rv(ck::CKR_ARGUMENTS_BAD));
    }
    // SAFETY: not null, valid for `len` bytes by the caller's promise, and shorter than `isize::MAX`.
    Ok(unsafe { slice::from_raw_parts(pointer, len) })
}

/// Writes one value.
///
/// # Safety
/// `pointer` is null or valid for a write of a `T`.
pub(super) unsafe fn put<T>(pointer: *mut T, value: T) -> Result<()> {
    if pointer.is_null() {
        return Err(Rv(ck::CKR_ARGUMENTS_BAD));
    }
    // SAFETY: not null, and valid for a write by the caller's promise. Unaligned pointers are tolerated.
    unsafe { pointer.write_unaligned(value) };
    Ok(())
}

/// Reads a structure of the standard.
///
/// # Safety
/// `pointer` is null or valid for a read of a `T`, which has no invalid bit patterns.
pub(super) unsafe fn get<T: Copy>(pointer: *const T) -> Result<T> {
    if pointer.is_null() {
        return Err(Rv(ck::CKR_ARGUMENTS_BAD));
    }
    // SAFETY: not null, and valid for a read by the caller's promise. Unaligned pointers are tolerated.
    Ok(unsafe { pointer.read_unaligned() })
}

/// A PIN as it was typed.
///
/// # Safety
/// As [`bytes`].
pub(super) unsafe fn pin<'a>(pointer: *const ck::CK_UTF8CHAR, len: ck::CK_ULONG) -> Result<&'a [u8]> {
    // Without a PIN the token would have to ask for it itself, by a keypad.
    if pointer.is_null() {
        return Err(Rv(ck::CKR_ARGUMENTS_BAD));
    }
    // A user's name may stand before it.
    if usize::try_from(len).map_or(true, |len| len > 2 * MAX_PIN) {
        return Err(Rv(ck::CKR_PIN_LEN_RANGE));
    }
    // SAFETY: the caller's promise.
    unsafe { bytes(pointer, len) }
}

/// Where a function puts its result: the convention of section 5.2 of the standard. Without a buffer only the length is asked for.
pub(super) struct Out {
    buffer: *mut ck::CK_BYTE,
    room: usize,
    len: *mut ck::CK_ULONG,
}

impl Out {
    /// # Safety
    /// `len` is null or valid for reads and writes, `buffer` is null or valid for writes of `*len` bytes, until this value is gone.
    pub(super) unsafe fn new(buffer: *mut ck::CK_BYTE, len: *mut ck::CK_ULONG) -> Result<Self> {
        // SAFETY: the caller's promise.
        let room = unsafe { get(len)? };
        let room = if buffer.is_null() { 0 } else { usize::try_from(room).unwrap_or(usize::MAX) };
        Ok(Self { buffer, room, len })
    }

    /// Whether only the length is asked for.
    pub(super) fn is_query(&self) -> bool {
        self.buffer.is_null()
    }

    /// Whether that many bytes have room.
    pub(super) fn fits(&self, len: usize) -> bool {
        !self.is_query() && len <= self.room
    }

    /// Says how long the result is.
    pub(super) fn say(&self, len: usize) -> Result<()> {
        // SAFETY: valid for a write, by the promise to `new`.
        unsafe { put(self.len, len as ck::CK_ULONG) }
    }

    /// Says how long the result will be to a caller who asks for that, or who has too little room.
    pub(super) fn ask(&self, len: usize) -> Result<()> {
        self.say(len)?;
        if self.is_query() { Ok(()) } else { Err(Rv(ck::CKR_BUFFER_TOO_SMALL)) }
    }

    /// Gives the result, or says how much room it needs.
    pub(super) fn give(&self, result: &[u8]) -> Result<()> {
        self.say(result.len())?;
        if self.is_query() {
            return Ok(());
        }
        if !self.fits(result.len()) {
            return Err(Rv(ck::CKR_BUFFER_TOO_SMALL));
        }
        // SAFETY: valid for `room` bytes, which are enough, by the promise to `new`; the result is our own memory.
        unsafe { ptr::copy_nonoverlapping(result.as_ptr(), self.buffer, result.len()) };
        Ok(())
    }
}

/// Text of fixed length, filled with blanks and without a terminator.
pub(super) fn padded<const N: usize>(text: &str) -> [ck::CK_UTF8CHAR; N] {
    let mut out = [b' '; N];
    let mut len = text.len().min(N);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    out[..len].copy_from_slice(&text.as_bytes()[..len]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_follows_the_convention() {
        let (mut buffer, mut len) = ([0u8; 4], 4);
        // SAFETY: both are valid while `out` lives.
        let out = unsafe { Out::new(ptr::null_mut(), &raw mut len) }.unwrap();
        out.give(b"hello").unwrap();
        assert_eq!(len, 5);
        len = 4;
        // SAFETY: as above.
        let out = unsafe { Out::new(buffer.as_mut_ptr(), &raw mut len) }.unwrap();
        assert_eq!(out.give(b"hello"), Err(Rv(ck::CKR_BUFFER_TOO_SMALL)));
        assert_eq!(out.give(b"abc"), Ok(()));
        assert_eq!((len, &buffer), (3, b"abc\0"));
        // SAFETY: null is allowed.
        assert!(unsafe { Out::new(buffer.as_mut_ptr(), ptr::null_mut()) }.is_err());
        assert_eq!(&padded::<6>("aé"), "aé   ".as_bytes());
        assert_eq!(&padded::<2>("aé"), b"a ");
    }
}
