//! General functions, slots and tokens.

use std::ffi::c_void;

use cryptoki_sys as ck;

use super::memory::{get, padded, pin, put};
use super::{begin, call, end, guard};
use crate::offer;
use crate::rv::Rv;

const LIBRARY: ck::CK_VERSION = ck::CK_VERSION { major: 0, minor: 1 };
const MAKER: &str = "tde";

pub(super) unsafe extern "C" fn c_initialize(arguments: *mut c_void) -> ck::CK_RV {
    guard(|| {
        if !arguments.is_null() {
            // SAFETY: not null, so it is a CK_C_INITIALIZE_ARGS (section 5.4).
            let arguments = unsafe { get(arguments.cast::<ck::CK_C_INITIALIZE_ARGS>())? };
            if !arguments.pReserved.is_null() {
                return Err(Rv(ck::CKR_ARGUMENTS_BAD));
            }
            let given = [
                arguments.CreateMutex.is_some(),
                arguments.DestroyMutex.is_some(),
                arguments.LockMutex.is_some(),
                arguments.UnlockMutex.is_some(),
            ];
            let (some, all) = (given.contains(&true), !given.contains(&false));
            if some != all {
                return Err(Rv(ck::CKR_ARGUMENTS_BAD));
            }
            if all && arguments.flags & ck::CKF_OS_LOCKING_OK == 0 {
                return Err(Rv(ck::CKR_CANT_LOCK));
            }
        }
        begin()
    })
}

pub(super) unsafe extern "C" fn c_finalize(reserved: *mut c_void) -> ck::CK_RV {
    guard(|| if reserved.is_null() { end() } else { Err(Rv(ck::CKR_ARGUMENTS_BAD)) })
}

pub(super) unsafe extern "C" fn c_get_info(info: *mut ck::CK_INFO) -> ck::CK_RV {
    call(|_| {
        let made = ck::CK_INFO {
            cryptokiVersion: ck::CK_VERSION { major: 3, minor: 0 },
            manufacturerID: padded(MAKER),
            flags: 0,
            libraryDescription: padded("tde HSM in the process"),
            libraryVersion: LIBRARY,
        };
        // SAFETY: null or valid, by the caller's promise.
        unsafe { put(info, made) }
    })
}

pub(super) unsafe extern "C" fn c_get_slot_list(
    present: ck::CK_BBOOL,
    list: *mut ck::CK_SLOT_ID,
    count: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let slots = (0..).zip(module.slots());
        let there = slots.filter(|(_, slot)| present == ck::CK_FALSE || slot.present().is_ok());
        let ids: Vec<ck::CK_SLOT_ID> = there.map(|(id, _)| id).collect();
        // SAFETY: null or valid, by the caller's promise.
        unsafe { give_list(&ids, list, count) }
    })
}

/// Gives a list of numbers by the convention of section 5.2.
///
/// # Safety
/// `count` is null or valid for reads and writes, `list` is null or valid for writes of `*count` numbers.
unsafe fn give_list(
    numbers: &[ck::CK_ULONG],
    list: *mut ck::CK_ULONG,
    count: *mut ck::CK_ULONG,
) -> crate::rv::Result<()> {
    // SAFETY: the caller's promise.
    let room = unsafe { get(count)? };
    let len = numbers.len() as ck::CK_ULONG;
    // SAFETY: the caller's promise.
    unsafe { put(count, len)? };
    if list.is_null() {
        return Ok(());
    }
    if room < len {
        return Err(Rv(ck::CKR_BUFFER_TOO_SMALL));
    }
    for (index, number) in numbers.iter().enumerate() {
        // SAFETY: within the `room` numbers of the caller.
        unsafe { put(list.add(index), *number)? };
    }
    Ok(())
}

pub(super) unsafe extern "C" fn c_get_slot_info(
    id: ck::CK_SLOT_ID,
    info: *mut ck::CK_SLOT_INFO,
) -> ck::CK_RV {
    call(|module| {
        let slot = module.slot(id)?;
        let present = if slot.present().is_ok() { ck::CKF_TOKEN_PRESENT } else { 0 };
        let made = ck::CK_SLOT_INFO {
            slotDescription: padded(&slot.uri.dir.display().to_string()),
            manufacturerID: padded(MAKER),
            flags: present,
            hardwareVersion: LIBRARY,
            firmwareVersion: LIBRARY,
        };
        // SAFETY: null or valid, by the caller's promise.
        unsafe { put(info, made) }
    })
}

pub(super) unsafe extern "C" fn c_get_token_info(
    id: ck::CK_SLOT_ID,
    info: *mut ck::CK_TOKEN_INFO,
) -> ck::CK_RV {
    call(|module| {
        let slot = module.slot(id)?;
        let hsm = slot.present()?;
        let (writing, all) = module.session_counts(id);
        let serial: String = hsm.id().simple().to_string().chars().take(16).collect();
        let made = ck::CK_TOKEN_INFO {
            label: padded(hsm.label()),
            manufacturerID: padded(MAKER),
            model: padded("software HSM"),
            serialNumber: padded(&serial),
            flags: ck::CKF_RNG
                | ck::CKF_LOGIN_REQUIRED
                | ck::CKF_USER_PIN_INITIALIZED
                | ck::CKF_TOKEN_INITIALIZED
                | slot.lock_flags(&hsm),
            ulMaxSessionCount: crate::module::MAX_SESSIONS as ck::CK_ULONG,
            ulSessionCount: all as ck::CK_ULONG,
            ulMaxRwSessionCount: crate::module::MAX_SESSIONS as ck::CK_ULONG,
            ulRwSessionCount: writing as ck::CK_ULONG,
            ulMaxPinLen: hsm_engine::MAX_PIN as ck::CK_ULONG,
            ulMinPinLen: hsm_engine::MIN_NEW_PIN as ck::CK_ULONG,
            ulTotalPublicMemory: ck::CK_UNAVAILABLE_INFORMATION,
            ulFreePublicMemory: ck::CK_UNAVAILABLE_INFORMATION,
            ulTotalPrivateMemory: ck::CK_UNAVAILABLE_INFORMATION,
            ulFreePrivateMemory: ck::CK_UNAVAILABLE_INFORMATION,
            hardwareVersion: LIBRARY,
            firmwareVersion: LIBRARY,
            utcTime: padded(""),
        };
        // SAFETY: null or valid, by the caller's promise.
        unsafe { put(info, made) }
    })
}

pub(super) unsafe extern "C" fn c_get_mechanism_list(
    id: ck::CK_SLOT_ID,
    list: *mut ck::CK_MECHANISM_TYPE,
    count: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        module.slot(id)?.present()?;
        let numbers: Vec<_> = offer::MECHANISMS.iter().map(|offered| offered.number).collect();
        // SAFETY: null or valid, by the caller's promise.
        unsafe { give_list(&numbers, list, count) }
    })
}

pub(super) unsafe extern "C" fn c_get_mechanism_info(
    id: ck::CK_SLOT_ID,
    number: ck::CK_MECHANISM_TYPE,
    info: *mut ck::CK_MECHANISM_INFO,
) -> ck::CK_RV {
    call(|module| {
        module.slot(id)?.present()?;
        let offered = offer::find(number).ok_or(Rv(ck::CKR_MECHANISM_INVALID))?;
        let (least, most) = offered.sizes;
        let made = ck::CK_MECHANISM_INFO { ulMinKeySize: least, ulMaxKeySize: most, flags: offered.flags };
        // SAFETY: null or valid, by the caller's promise.
        unsafe { put(info, made) }
    })
}

/// HSMs are made by `tde hsm init`.
pub(super) unsafe extern "C" fn c_init_token(
    id: ck::CK_SLOT_ID,
    _pin: *mut ck::CK_UTF8CHAR,
    _len: ck::CK_ULONG,
    _label: *mut ck::CK_UTF8CHAR,
) -> ck::CK_RV {
    call(|module| {
        module.slot(id)?;
        Err(Rv(ck::CKR_FUNCTION_NOT_SUPPORTED))
    })
}

pub(super) unsafe extern "C" fn c_init_pin(
    session: ck::CK_SESSION_HANDLE,
    new: *mut ck::CK_UTF8CHAR,
    len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(session)?;
        if !session.slot.is_officer() {
            return Err(Rv(ck::CKR_USER_NOT_LOGGED_IN));
        }
        // SAFETY: the caller's promise.
        let new = session.slot.chosen(&session.slot.present()?, unsafe { pin(new, len)? })?;
        Ok(session.slot.token()?.session().reset_pin(&session.slot.uri.user, &new)?)
    })
}

pub(super) unsafe extern "C" fn c_set_pin(
    session: ck::CK_SESSION_HANDLE,
    old: *mut ck::CK_UTF8CHAR,
    old_len: ck::CK_ULONG,
    new: *mut ck::CK_UTF8CHAR,
    new_len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(session)?;
        if !session.writes {
            return Err(Rv(ck::CKR_SESSION_READ_ONLY));
        }
        // SAFETY: the caller's promise.
        let (old, new) = unsafe { (pin(old, old_len)?, pin(new, new_len)?) };
        let user = match session.slot.token() {
            Ok(token) => token.session().user().to_owned(),
            Err(_) => session.slot.uri.user.clone(),
        };
        let hsm = session.slot.present()?;
        let ((user, old), new) = (session.slot.typed(&hsm, old, &user)?, session.slot.chosen(&hsm, new)?);
        // Proves the old PIN, and that lock-out counts.
        let login = hsm.login(&user, &old)?;
        login.change_pin(&new)?;
        Ok(login.close()?)
    })
}

pub(super) unsafe extern "C" fn c_wait_for_slot_event(
    flags: ck::CK_FLAGS,
    _slot: *mut ck::CK_SLOT_ID,
    _reserved: *mut c_void,
) -> ck::CK_RV {
    call(|_| {
        let waits = flags & ck::CKF_DONT_BLOCK == 0;
        Err(Rv(if waits { ck::CKR_FUNCTION_NOT_SUPPORTED } else { ck::CKR_NO_EVENT }))
    })
}
