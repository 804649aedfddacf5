//! Signatures and message authentication codes.

use cryptoki_sys as ck;

use super::memory::{Out, bytes};
use super::{call, mechanism};
use crate::rv::{Result, Rv};
use crate::session::{Left, Sign, Verify, begins, goes_on};

pub(super) unsafe extern "C" fn c_sign_init(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    key: ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        begins(&mut work.sign, mechanism.is_null(), || {
            let token = session.slot.token()?;
            let key = session.slot.object(key).map_err(|_| Rv(ck::CKR_KEY_HANDLE_INVALID))?;
            // SAFETY: the caller's promise.
            let read = unsafe { mechanism::of_signature(mechanism)? };
            Ok(Sign { signer: token.sign(&read, key)?, parts: false })
        })
    })
}

pub(super) unsafe extern "C" fn c_sign(
    handle: ck::CK_SESSION_HANDLE,
    input: *mut ck::CK_BYTE,
    input_len: ck::CK_ULONG,
    output: *mut ck::CK_BYTE,
    output_len: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(&mut work.sign, |sign| {
            if sign.parts {
                return Ok(Left::Open(sign, Err(Rv(ck::CKR_OPERATION_ACTIVE))));
            }
            // SAFETY: the caller's promise.
            let (input, out) = unsafe { (bytes(input, input_len)?, Out::new(output, output_len)?) };
            end_signature(sign, &out, Some(input))
        })
    })
}

pub(super) unsafe extern "C" fn c_sign_update(
    handle: ck::CK_SESSION_HANDLE,
    input: *mut ck::CK_BYTE,
    input_len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(&mut work.sign, |mut sign| {
            // SAFETY: the caller's promise.
            sign.signer.update(unsafe { bytes(input, input_len)? })?;
            Ok(Left::Open(Sign { parts: true, ..sign }, Ok(())))
        })
    })
}

pub(super) unsafe extern "C" fn c_sign_final(
    handle: ck::CK_SESSION_HANDLE,
    output: *mut ck::CK_BYTE,
    output_len: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        // SAFETY: the caller's promise.
        goes_on(&mut work.sign, |sign| end_signature(sign, &unsafe { Out::new(output, output_len)? }, None))
    })
}

fn end_signature(mut sign: Sign, out: &Out, input: Option<&[u8]>) -> Result<Left<Sign>> {
    let len = sign.signer.signature_len();
    if !out.fits(len) {
        return Ok(Left::Open(sign, out.ask(len)));
    }
    if let Some(input) = input {
        sign.signer.update(input)?;
    }
    out.give(&sign.signer.finish()?).map(|()| Left::Done)
}

pub(super) unsafe extern "C" fn c_verify_init(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    key: ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        begins(&mut work.verify, mechanism.is_null(), || {
            let token = session.slot.token()?;
            let key = session.slot.object(key).map_err(|_| Rv(ck::CKR_KEY_HANDLE_INVALID))?;
            // SAFETY: the caller's promise.
            let read = unsafe { mechanism::of_signature(mechanism)? };
            Ok(Verify { verifier: token.verify(&read, key)?, parts: false })
        })
    })
}

pub(super) unsafe extern "C" fn c_verify(
    handle: ck::CK_SESSION_HANDLE,
    input: *mut ck::CK_BYTE,
    input_len: ck::CK_ULONG,
    signature: *mut ck::CK_BYTE,
    signature_len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(&mut work.verify, |mut verify| {
            if verify.parts {
                return Ok(Left::Open(verify, Err(Rv(ck::CKR_OPERATION_ACTIVE))));
            }
            // SAFETY: the caller's promise.
            let (input, signature) = unsafe { (bytes(input, input_len)?, bytes(signature, signature_len)?) };
            verify.verifier.update(input)?;
            verify.verifier.finish(signature)?;
            Ok(Left::Done)
        })
    })
}

pub(super) unsafe extern "C" fn c_verify_update(
    handle: ck::CK_SESSION_HANDLE,
    input: *mut ck::CK_BYTE,
    input_len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(&mut work.verify, |mut verify| {
            // SAFETY: the caller's promise.
            verify.verifier.update(unsafe { bytes(input, input_len)? })?;
            Ok(Left::Open(Verify { parts: true, ..verify }, Ok(())))
        })
    })
}

pub(super) unsafe extern "C" fn c_verify_final(
    handle: ck::CK_SESSION_HANDLE,
    signature: *mut ck::CK_BYTE,
    signature_len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        goes_on(&mut work.verify, |verify| {
            // SAFETY: the caller's promise.
            verify.verifier.finish(unsafe { bytes(signature, signature_len)? })?;
            Ok(Left::Done)
        })
    })
}
