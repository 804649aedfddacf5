//! Sessions and logins.

use std::ffi::c_void;

use cryptoki_sys as ck;

use super::call;
use super::memory::{bytes, pin, put};
use crate::rv::{Result, Rv};
use crate::session::{Pending, Session, Work};

pub(super) unsafe extern "C" fn c_open_session(
    slot: ck::CK_SLOT_ID,
    flags: ck::CK_FLAGS,
    _application: *mut c_void,
    _notify: ck::CK_NOTIFY,
    handle: *mut ck::CK_SESSION_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        if handle.is_null() {
            return Err(Rv(ck::CKR_ARGUMENTS_BAD));
        }
        if flags & ck::CKF_SERIAL_SESSION == 0 {
            return Err(Rv(ck::CKR_SESSION_PARALLEL_NOT_SUPPORTED));
        }
        let opened = module.open_session(slot, flags & ck::CKF_RW_SESSION != 0)?;
        // SAFETY: not null, and valid by the caller's promise.
        unsafe { put(handle, opened) }
    })
}

pub(super) unsafe extern "C" fn c_close_session(handle: ck::CK_SESSION_HANDLE) -> ck::CK_RV {
    call(|module| module.close_session(handle))
}

pub(super) unsafe extern "C" fn c_close_all_sessions(slot: ck::CK_SLOT_ID) -> ck::CK_RV {
    call(|module| module.close_all(slot))
}

pub(super) unsafe extern "C" fn c_get_session_info(
    handle: ck::CK_SESSION_HANDLE,
    info: *mut ck::CK_SESSION_INFO,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let writes = if session.writes { ck::CKF_RW_SESSION } else { 0 };
        let made = ck::CK_SESSION_INFO {
            slotID: session.slot_id,
            state: session.state(),
            flags: ck::CKF_SERIAL_SESSION | writes,
            ulDeviceError: 0,
        };
        // SAFETY: null or valid, by the caller's promise.
        unsafe { put(info, made) }
    })
}

pub(super) unsafe extern "C" fn c_login(
    handle: ck::CK_SESSION_HANDLE,
    user: ck::CK_USER_TYPE,
    typed: *mut ck::CK_UTF8CHAR,
    len: ck::CK_ULONG,
) -> ck::CK_RV {
    // SAFETY: the caller's promise; no name is given.
    unsafe { c_login_user(handle, user, typed, len, std::ptr::null_mut(), 0) }
}

pub(super) unsafe extern "C" fn c_login_user(
    handle: ck::CK_SESSION_HANDLE,
    user: ck::CK_USER_TYPE,
    typed: *mut ck::CK_UTF8CHAR,
    len: ck::CK_ULONG,
    name: *mut ck::CK_UTF8CHAR,
    name_len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        match user {
            ck::CKU_SO | ck::CKU_USER => (),
            // SAFETY: the caller's promise.
            ck::CKU_CONTEXT_SPECIFIC => return give_pin(&session, unsafe { pin(typed, len)? }),
            _ => return Err(Rv(ck::CKR_USER_TYPE_INVALID)),
        }
        let (writing, all) = module.session_counts(session.slot_id);
        if user == ck::CKU_SO && writing < all {
            return Err(Rv(ck::CKR_SESSION_READ_ONLY_EXISTS));
        }
        // SAFETY: the caller's promise.
        let (pin, name) = unsafe { (pin(typed, len)?, bytes(name, name_len)?) };
        let name = match name {
            [] => None,
            name => Some(std::str::from_utf8(name).map_err(|_| Rv(ck::CKR_ARGUMENTS_BAD))?),
        };
        session.slot.login(user, name, pin)
    })
}

/// The PIN for one use of a key that asks for it each time.
fn give_pin(session: &Session, typed: &[u8]) -> Result<()> {
    let user = session.slot.token()?.session().user().to_owned();
    let (name, pin) = session.slot.typed(&session.slot.present()?, typed, &user)?;
    if name != user {
        return Err(Rv(ck::CKR_PIN_INCORRECT));
    }
    let mut work = session.work();
    let work = &mut *work;
    if let Some(sign) = work.sign.as_mut().filter(|sign| sign.signer.wants_pin()) {
        return Ok(sign.signer.give_pin(&pin)?);
    }
    match work.decrypt.as_mut().map(|decrypt| &mut decrypt.state) {
        Some(Pending::Cipher(cipher)) if cipher.wants_pin() => Ok(cipher.give_pin(&pin)?),
        _ => Err(Rv(ck::CKR_OPERATION_NOT_INITIALIZED)),
    }
}

pub(super) unsafe extern "C" fn c_logout(handle: ck::CK_SESSION_HANDLE) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        module.logout(&session)
    })
}

pub(super) unsafe extern "C" fn c_session_cancel(
    handle: ck::CK_SESSION_HANDLE,
    flags: ck::CK_FLAGS,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let work: &mut Work = &mut session.work();
        cancel(work, flags)
    })
}

fn cancel(work: &mut Work, flags: ck::CK_FLAGS) -> Result<()> {
    let asked = |flag| flags & flag != 0;
    if asked(ck::CKF_FIND_OBJECTS) {
        work.found = None;
    }
    if asked(ck::CKF_ENCRYPT) {
        work.encrypt = None;
    }
    if asked(ck::CKF_DECRYPT) {
        work.decrypt = None;
    }
    if asked(ck::CKF_DIGEST) {
        work.digest = None;
    }
    if asked(ck::CKF_SIGN) {
        work.sign = None;
    }
    if asked(ck::CKF_VERIFY) {
        work.verify = None;
    }
    Ok(())
}
