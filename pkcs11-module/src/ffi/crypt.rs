//! Encryption, decryption and digests.

use cryptoki_sys as ck;
use hsm_engine::objects::{self, Cipher, Digester, Error, Mechanism, ObjectId, Token};
use zeroize::Zeroizing;

use super::memory::{Out, bytes};
use super::{call, mechanism};
use crate::rv::{Result, Rv};
use crate::session::{Crypt, Digest, Left, Pending, Work, begins, goes_on};

/// Which of a session's operations.
type Operation = fn(&mut Work) -> &mut Option<Crypt>;
type Start = fn(&Token, &Mechanism, ObjectId) -> objects::Result<Cipher>;

fn of_encryption(work: &mut Work) -> &mut Option<Crypt> {
    &mut work.encrypt
}

fn of_decryption(work: &mut Work) -> &mut Option<Crypt> {
    &mut work.decrypt
}

/// # Safety
/// The caller's promise about `mechanism`.
unsafe fn init(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    key: ck::CK_OBJECT_HANDLE,
    operation: Operation,
    encrypts: bool,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        begins(operation(&mut work), mechanism.is_null(), || {
            let token = session.slot.token()?;
            let key = session.slot.object(key).map_err(|_| Rv(ck::CKR_KEY_HANDLE_INVALID))?;
            // SAFETY: the caller's promise.
            let read = unsafe { mechanism::of_cipher(mechanism, encrypts)? };
            let start: Start = if encrypts { Token::encrypt } else { Token::decrypt };
            let cipher = start(&token, &read, key)?;
            if let Some(iv) = cipher.iv().filter(|_| encrypts) {
                // SAFETY: the caller's promise; the nonce that was made goes where the caller's would be.
                unsafe { mechanism::give_iv(mechanism, iv)? };
            }
            Ok(Crypt { state: Pending::Cipher(cipher), parts: false })
        })
    })
}

/// # Safety
/// The caller's promise about input and output.
unsafe fn whole(
    handle: ck::CK_SESSION_HANDLE,
    input: *mut ck::CK_BYTE,
    input_len: ck::CK_ULONG,
    output: *mut ck::CK_BYTE,
    output_len: *mut ck::CK_ULONG,
    operation: Operation,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(operation(&mut work), |crypt| {
            if crypt.parts {
                return Ok(Left::Open(crypt, Err(Rv(ck::CKR_OPERATION_ACTIVE))));
            }
            // SAFETY: the caller's promise.
            let (input, out) = unsafe { (bytes(input, input_len)?, Out::new(output, output_len)?) };
            let result = match crypt.state {
                Pending::Result(result) => result,
                Pending::Cipher(cipher) if out.is_query() => {
                    let len = cipher.output_len(input.len());
                    return Ok(Left::Open(
                        Crypt { state: Pending::Cipher(cipher), parts: false },
                        out.ask(len),
                    ));
                }
                Pending::Cipher(mut cipher) => {
                    let begin = Zeroizing::new(cipher.update(input)?);
                    let end = Zeroizing::new(cipher.finish()?);
                    if begin.is_empty() { end } else { Zeroizing::new([&begin[..], &end].concat()) }
                }
            };
            give(result, false, &out)
        })
    })
}

/// Gives a result, or keeps it for a caller with more room.
fn give(result: Zeroizing<Vec<u8>>, parts: bool, out: &Out) -> Result<Left<Crypt>> {
    if out.fits(result.len()) {
        return out.give(&result).map(|()| Left::Done);
    }
    let answer = out.ask(result.len());
    Ok(Left::Open(Crypt { state: Pending::Result(result), parts }, answer))
}

/// # Safety
/// The caller's promise about input and output.
unsafe fn part(
    handle: ck::CK_SESSION_HANDLE,
    input: *mut ck::CK_BYTE,
    input_len: ck::CK_ULONG,
    output: *mut ck::CK_BYTE,
    output_len: *mut ck::CK_ULONG,
    operation: Operation,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(operation(&mut work), |crypt| {
            // SAFETY: the caller's promise.
            let (input, out) = unsafe { (bytes(input, input_len)?, Out::new(output, output_len)?) };
            let Pending::Cipher(mut cipher) = crypt.state else { return Err(Rv(ck::CKR_OPERATION_ACTIVE)) };
            let needed = cipher.update_len(input.len());
            if out.is_query() || !out.fits(needed) {
                return Ok(Left::Open(Crypt { state: Pending::Cipher(cipher), ..crypt }, out.ask(needed)));
            }
            let result = Zeroizing::new(cipher.update(input)?);
            let given = out.give(&result);
            Ok(Left::Open(Crypt { state: Pending::Cipher(cipher), parts: true }, given))
        })
    })
}

/// # Safety
/// The caller's promise about output.
unsafe fn last(
    handle: ck::CK_SESSION_HANDLE,
    output: *mut ck::CK_BYTE,
    output_len: *mut ck::CK_ULONG,
    operation: Operation,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(operation(&mut work), |crypt| {
            // SAFETY: the caller's promise.
            let out = unsafe { Out::new(output, output_len)? };
            let result = match crypt.state {
                Pending::Result(result) => result,
                Pending::Cipher(cipher) => Zeroizing::new(cipher.finish()?),
            };
            give(result, crypt.parts, &out)
        })
    })
}

pub(super) unsafe extern "C" fn c_encrypt_init(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    key: ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    // SAFETY: the caller's promise.
    unsafe { init(handle, mechanism, key, of_encryption, true) }
}

pub(super) unsafe extern "C" fn c_decrypt_init(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    key: ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    // SAFETY: the caller's promise.
    unsafe { init(handle, mechanism, key, of_decryption, false) }
}

/// Declares functions that pass their arguments on.
macro_rules! passes {
    ($($name:ident($($arg:ident: $type:ty),*) = $to:ident, $operation:ident;)*) => {
        $(pub(super) unsafe extern "C" fn $name(handle: ck::CK_SESSION_HANDLE, $($arg: $type),*) -> ck::CK_RV {
            // SAFETY: the caller's promise.
            unsafe { $to(handle, $($arg,)* $operation) }
        })*
    };
}

passes! {
    c_encrypt(input: *mut ck::CK_BYTE, len: ck::CK_ULONG, output: *mut ck::CK_BYTE, room: *mut ck::CK_ULONG) = whole, of_encryption;
    c_encrypt_update(input: *mut ck::CK_BYTE, len: ck::CK_ULONG, output: *mut ck::CK_BYTE, room: *mut ck::CK_ULONG) = part, of_encryption;
    c_encrypt_final(output: *mut ck::CK_BYTE, room: *mut ck::CK_ULONG) = last, of_encryption;
    c_decrypt(input: *mut ck::CK_BYTE, len: ck::CK_ULONG, output: *mut ck::CK_BYTE, room: *mut ck::CK_ULONG) = whole, of_decryption;
    c_decrypt_update(input: *mut ck::CK_BYTE, len: ck::CK_ULONG, output: *mut ck::CK_BYTE, room: *mut ck::CK_ULONG) = part, of_decryption;
    c_decrypt_final(output: *mut ck::CK_BYTE, room: *mut ck::CK_ULONG) = last, of_decryption;
}

pub(super) unsafe extern "C" fn c_digest_init(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        begins(&mut work.digest, mechanism.is_null(), || {
            // SAFETY: not null, and valid by the caller's promise.
            let hash = unsafe { mechanism::of_digest(mechanism)? };
            let allowed = session.slot.token().map(|token| token.allowed()).unwrap_or_default();
            if !allowed.hash(hash) {
                return Err(Rv(ck::CKR_MECHANISM_INVALID));
            }
            Ok(Digest { digester: Digester::new(hash), len: hash.len(), parts: false })
        })
    })
}

pub(super) unsafe extern "C" fn c_digest(
    handle: ck::CK_SESSION_HANDLE,
    input: *mut ck::CK_BYTE,
    input_len: ck::CK_ULONG,
    output: *mut ck::CK_BYTE,
    output_len: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(&mut work.digest, |digest| {
            if digest.parts {
                return Ok(Left::Open(digest, Err(Rv(ck::CKR_OPERATION_ACTIVE))));
            }
            // SAFETY: the caller's promise.
            let (input, out) = unsafe { (bytes(input, input_len)?, Out::new(output, output_len)?) };
            end_digest(digest, &out, input)
        })
    })
}

pub(super) unsafe extern "C" fn c_digest_update(
    handle: ck::CK_SESSION_HANDLE,
    input: *mut ck::CK_BYTE,
    input_len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(&mut work.digest, |mut digest| {
            // SAFETY: the caller's promise.
            digest.digester.update(unsafe { bytes(input, input_len)? });
            Ok(Left::Open(Digest { parts: true, ..digest }, Ok(())))
        })
    })
}

pub(super) unsafe extern "C" fn c_digest_key(
    handle: ck::CK_SESSION_HANDLE,
    key: ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(&mut work.digest, |mut digest| {
            let key = session.slot.object(key).map_err(|_| Rv(ck::CKR_KEY_HANDLE_INVALID))?;
            let digested = session.slot.token()?.digest_key(&mut digest.digester, key);
            digested.map_err(|error| match error {
                Error::AttributeSensitive(_) | Error::KeyTypeInconsistent => Rv(ck::CKR_KEY_INDIGESTIBLE),
                error => error.into(),
            })?;
            Ok(Left::Open(Digest { parts: true, ..digest }, Ok(())))
        })
    })
}

pub(super) unsafe extern "C" fn c_digest_final(
    handle: ck::CK_SESSION_HANDLE,
    output: *mut ck::CK_BYTE,
    output_len: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        // SAFETY: the caller's promise.
        goes_on(&mut work.digest, |digest| end_digest(digest, &unsafe { Out::new(output, output_len)? }, &[]))
    })
}

fn end_digest(digest: Digest, out: &Out, input: &[u8]) -> Result<Left<Digest>> {
    let len = digest.len;
    if !out.fits(len) {
        return Ok(Left::Open(digest, out.ask(len)));
    }
    let mut digester = digest.digester;
    digester.update(input);
    out.give(&digester.finish()).map(|()| Left::Done)
}
