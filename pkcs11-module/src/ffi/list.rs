//! Function lists and interfaces: what a program finds by the three exported functions. Nothing else is exported, so that another module's
//! `C_Login` in the same process is never taken for ours.

use std::ffi::CStr;
use std::ptr;

use cryptoki_sys as ck;

use super::memory::{get, put};
use super::{crypt, general, guard, keys, objects, sessions, signing};
use crate::rv::{Result, Rv};

/// Functions that this module does not have. Section 5.1 of the standard wants an entry all the same.
mod absent {
    use std::ffi::c_void;

    use cryptoki_sys as ck;

    /// Declares functions that say so.
    macro_rules! absent {
        ($code:ident: $($name:ident($($type:ty),*);)*) => {
            $(pub(super) unsafe extern "C" fn $name($(_: $type),*) -> ck::CK_RV {
                super::super::call(|_| Err(crate::rv::Rv(ck::$code)))
            })*
        };
    }

    absent! { CKR_FUNCTION_NOT_PARALLEL:
        c_get_function_status(ck::CK_SESSION_HANDLE);
        c_cancel_function(ck::CK_SESSION_HANDLE);
    }

    absent! { CKR_FUNCTION_NOT_SUPPORTED:
        c_get_operation_state(ck::CK_SESSION_HANDLE, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_set_operation_state(ck::CK_SESSION_HANDLE, *mut ck::CK_BYTE, ck::CK_ULONG, ck::CK_OBJECT_HANDLE, ck::CK_OBJECT_HANDLE);
        c_sign_recover_init(ck::CK_SESSION_HANDLE, *mut ck::CK_MECHANISM, ck::CK_OBJECT_HANDLE);
        c_sign_recover(ck::CK_SESSION_HANDLE, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_verify_recover_init(ck::CK_SESSION_HANDLE, *mut ck::CK_MECHANISM, ck::CK_OBJECT_HANDLE);
        c_verify_recover(ck::CK_SESSION_HANDLE, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_digest_encrypt_update(ck::CK_SESSION_HANDLE, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_decrypt_digest_update(ck::CK_SESSION_HANDLE, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_sign_encrypt_update(ck::CK_SESSION_HANDLE, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_decrypt_verify_update(ck::CK_SESSION_HANDLE, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_message_encrypt_init(ck::CK_SESSION_HANDLE, *mut ck::CK_MECHANISM, ck::CK_OBJECT_HANDLE);
        c_encrypt_message(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_encrypt_message_begin(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG);
        c_encrypt_message_next(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG, ck::CK_FLAGS);
        c_message_encrypt_final(ck::CK_SESSION_HANDLE);
        c_message_decrypt_init(ck::CK_SESSION_HANDLE, *mut ck::CK_MECHANISM, ck::CK_OBJECT_HANDLE);
        c_decrypt_message(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_decrypt_message_begin(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG);
        c_decrypt_message_next(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG, ck::CK_FLAGS);
        c_message_decrypt_final(ck::CK_SESSION_HANDLE);
        c_message_sign_init(ck::CK_SESSION_HANDLE, *mut ck::CK_MECHANISM, ck::CK_OBJECT_HANDLE);
        c_sign_message(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_sign_message_begin(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG);
        c_sign_message_next(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, *mut ck::CK_ULONG);
        c_message_sign_final(ck::CK_SESSION_HANDLE);
        c_message_verify_init(ck::CK_SESSION_HANDLE, *mut ck::CK_MECHANISM, ck::CK_OBJECT_HANDLE);
        c_verify_message(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG);
        c_verify_message_begin(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG);
        c_verify_message_next(ck::CK_SESSION_HANDLE, *mut c_void, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG, *mut ck::CK_BYTE, ck::CK_ULONG);
        c_message_verify_final(ck::CK_SESSION_HANDLE);
    }
}

/// The list of PKCS#11 2.40.
static LIST: ck::CK_FUNCTION_LIST = ck::CK_FUNCTION_LIST {
    version: ck::CK_VERSION { major: 2, minor: 40 },
    C_Initialize: Some(general::c_initialize),
    C_Finalize: Some(general::c_finalize),
    C_GetInfo: Some(general::c_get_info),
    C_GetFunctionList: Some(get_function_list),
    C_GetSlotList: Some(general::c_get_slot_list),
    C_GetSlotInfo: Some(general::c_get_slot_info),
    C_GetTokenInfo: Some(general::c_get_token_info),
    C_GetMechanismList: Some(general::c_get_mechanism_list),
    C_GetMechanismInfo: Some(general::c_get_mechanism_info),
    C_InitToken: Some(general::c_init_token),
    C_InitPIN: Some(general::c_init_pin),
    C_SetPIN: Some(general::c_set_pin),
    C_OpenSession: Some(sessions::c_open_session),
    C_CloseSession: Some(sessions::c_close_session),
    C_CloseAllSessions: Some(sessions::c_close_all_sessions),
    C_GetSessionInfo: Some(sessions::c_get_session_info),
    C_GetOperationState: Some(absent::c_get_operation_state),
    C_SetOperationState: Some(absent::c_set_operation_state),
    C_Login: Some(sessions::c_login),
    C_Logout: Some(sessions::c_logout),
    C_CreateObject: Some(objects::c_create_object),
    C_CopyObject: Some(objects::c_copy_object),
    C_DestroyObject: Some(objects::c_destroy_object),
    C_GetObjectSize: Some(objects::c_get_object_size),
    C_GetAttributeValue: Some(objects::c_get_attribute_value),
    C_SetAttributeValue: Some(objects::c_set_attribute_value),
    C_FindObjectsInit: Some(objects::c_find_objects_init),
    C_FindObjects: Some(objects::c_find_objects),
    C_FindObjectsFinal: Some(objects::c_find_objects_final),
    C_EncryptInit: Some(crypt::c_encrypt_init),
    C_Encrypt: Some(crypt::c_encrypt),
    C_EncryptUpdate: Some(crypt::c_encrypt_update),
    C_EncryptFinal: Some(crypt::c_encrypt_final),
    C_DecryptInit: Some(crypt::c_decrypt_init),
    C_Decrypt: Some(crypt::c_decrypt),
    C_DecryptUpdate: Some(crypt::c_decrypt_update),
    C_DecryptFinal: Some(crypt::c_decrypt_final),
    C_DigestInit: Some(crypt::c_digest_init),
    C_Digest: Some(crypt::c_digest),
    C_DigestUpdate: Some(crypt::c_digest_update),
    C_DigestKey: Some(crypt::c_digest_key),
    C_DigestFinal: Some(crypt::c_digest_final),
    C_SignInit: Some(signing::c_sign_init),
    C_Sign: Some(signing::c_sign),
    C_SignUpdate: Some(signing::c_sign_update),
    C_SignFinal: Some(signing::c_sign_final),
    C_SignRecoverInit: Some(absent::c_sign_recover_init),
    C_SignRecover: Some(absent::c_sign_recover),
    C_VerifyInit: Some(signing::c_verify_init),
    C_Verify: Some(signing::c_verify),
    C_VerifyUpdate: Some(signing::c_verify_update),
    C_VerifyFinal: Some(signing::c_verify_final),
    C_VerifyRecoverInit: Some(absent::c_verify_recover_init),
    C_VerifyRecover: Some(absent::c_verify_recover),
    C_DigestEncryptUpdate: Some(absent::c_digest_encrypt_update),
    C_DecryptDigestUpdate: Some(absent::c_decrypt_digest_update),
    C_SignEncryptUpdate: Some(absent::c_sign_encrypt_update),
    C_DecryptVerifyUpdate: Some(absent::c_decrypt_verify_update),
    C_GenerateKey: Some(keys::c_generate_key),
    C_GenerateKeyPair: Some(keys::c_generate_key_pair),
    C_WrapKey: Some(keys::c_wrap_key),
    C_UnwrapKey: Some(keys::c_unwrap_key),
    C_DeriveKey: Some(keys::c_derive_key),
    C_SeedRandom: Some(keys::c_seed_random),
    C_GenerateRandom: Some(keys::c_generate_random),
    C_GetFunctionStatus: Some(absent::c_get_function_status),
    C_CancelFunction: Some(absent::c_cancel_function),
    C_WaitForSlotEvent: Some(general::c_wait_for_slot_event),
};

/// The list of PKCS#11 3.0.
static LIST_3_0: ck::CK_FUNCTION_LIST_3_0 = ck::CK_FUNCTION_LIST_3_0 {
    version: ck::CK_VERSION { major: 3, minor: 0 },
    C_Initialize: Some(general::c_initialize),
    C_Finalize: Some(general::c_finalize),
    C_GetInfo: Some(general::c_get_info),
    C_GetFunctionList: Some(get_function_list),
    C_GetSlotList: Some(general::c_get_slot_list),
    C_GetSlotInfo: Some(general::c_get_slot_info),
    C_GetTokenInfo: Some(general::c_get_token_info),
    C_GetMechanismList: Some(general::c_get_mechanism_list),
    C_GetMechanismInfo: Some(general::c_get_mechanism_info),
    C_InitToken: Some(general::c_init_token),
    C_InitPIN: Some(general::c_init_pin),
    C_SetPIN: Some(general::c_set_pin),
    C_OpenSession: Some(sessions::c_open_session),
    C_CloseSession: Some(sessions::c_close_session),
    C_CloseAllSessions: Some(sessions::c_close_all_sessions),
    C_GetSessionInfo: Some(sessions::c_get_session_info),
    C_GetOperationState: Some(absent::c_get_operation_state),
    C_SetOperationState: Some(absent::c_set_operation_state),
    C_Login: Some(sessions::c_login),
    C_Logout: Some(sessions::c_logout),
    C_CreateObject: Some(objects::c_create_object),
    C_CopyObject: Some(objects::c_copy_object),
    C_DestroyObject: Some(objects::c_destroy_object),
    C_GetObjectSize: Some(objects::c_get_object_size),
    C_GetAttributeValue: Some(objects::c_get_attribute_value),
    C_SetAttributeValue: Some(objects::c_set_attribute_value),
    C_FindObjectsInit: Some(objects::c_find_objects_init),
    C_FindObjects: Some(objects::c_find_objects),
    C_FindObjectsFinal: Some(objects::c_find_objects_final),
    C_EncryptInit: Some(crypt::c_encrypt_init),
    C_Encrypt: Some(crypt::c_encrypt),
    C_EncryptUpdate: Some(crypt::c_encrypt_update),
    C_EncryptFinal: Some(crypt::c_encrypt_final),
    C_DecryptInit: Some(crypt::c_decrypt_init),
    C_Decrypt: Some(crypt::c_decrypt),
    C_DecryptUpdate: Some(crypt::c_decrypt_update),
    C_DecryptFinal: Some(crypt::c_decrypt_final),
    C_DigestInit: Some(crypt::c_digest_init),
    C_Digest: Some(crypt::c_digest),
    C_DigestUpdate: Some(crypt::c_digest_update),
    C_DigestKey: Some(crypt::c_digest_key),
    C_DigestFinal: Some(crypt::c_digest_final),
    C_SignInit: Some(signing::c_sign_init),
    C_Sign: Some(signing::c_sign),
    C_SignUpdate: Some(signing::c_sign_update),
    C_SignFinal: Some(signing::c_sign_final),
    C_SignRecoverInit: Some(absent::c_sign_recover_init),
    C_SignRecover: Some(absent::c_sign_recover),
    C_VerifyInit: Some(signing::c_verify_init),
    C_Verify: Some(signing::c_verify),
    C_VerifyUpdate: Some(signing::c_verify_update),
    C_VerifyFinal: Some(signing::c_verify_final),
    C_VerifyRecoverInit: Some(absent::c_verify_recover_init),
    C_VerifyRecover: Some(absent::c_verify_recover),
    C_DigestEncryptUpdate: Some(absent::c_digest_encrypt_update),
    C_DecryptDigestUpdate: Some(absent::c_decrypt_digest_update),
    C_SignEncryptUpdate: Some(absent::c_sign_encrypt_update),
    C_DecryptVerifyUpdate: Some(absent::c_decrypt_verify_update),
    C_GenerateKey: Some(keys::c_generate_key),
    C_GenerateKeyPair: Some(keys::c_generate_key_pair),
    C_WrapKey: Some(keys::c_wrap_key),
    C_UnwrapKey: Some(keys::c_unwrap_key),
    C_DeriveKey: Some(keys::c_derive_key),
    C_SeedRandom: Some(keys::c_seed_random),
    C_GenerateRandom: Some(keys::c_generate_random),
    C_GetFunctionStatus: Some(absent::c_get_function_status),
    C_CancelFunction: Some(absent::c_cancel_function),
    C_WaitForSlotEvent: Some(general::c_wait_for_slot_event),
    C_GetInterfaceList: Some(get_interface_list),
    C_GetInterface: Some(get_interface),
    C_LoginUser: Some(sessions::c_login_user),
    C_SessionCancel: Some(sessions::c_session_cancel),
    C_MessageEncryptInit: Some(absent::c_message_encrypt_init),
    C_EncryptMessage: Some(absent::c_encrypt_message),
    C_EncryptMessageBegin: Some(absent::c_encrypt_message_begin),
    C_EncryptMessageNext: Some(absent::c_encrypt_message_next),
    C_MessageEncryptFinal: Some(absent::c_message_encrypt_final),
    C_MessageDecryptInit: Some(absent::c_message_decrypt_init),
    C_DecryptMessage: Some(absent::c_decrypt_message),
    C_DecryptMessageBegin: Some(absent::c_decrypt_message_begin),
    C_DecryptMessageNext: Some(absent::c_decrypt_message_next),
    C_MessageDecryptFinal: Some(absent::c_message_decrypt_final),
    C_MessageSignInit: Some(absent::c_message_sign_init),
    C_SignMessage: Some(absent::c_sign_message),
    C_SignMessageBegin: Some(absent::c_sign_message_begin),
    C_SignMessageNext: Some(absent::c_sign_message_next),
    C_MessageSignFinal: Some(absent::c_message_sign_final),
    C_MessageVerifyInit: Some(absent::c_message_verify_init),
    C_VerifyMessage: Some(absent::c_verify_message),
    C_VerifyMessageBegin: Some(absent::c_verify_message_begin),
    C_VerifyMessageNext: Some(absent::c_verify_message_next),
    C_MessageVerifyFinal: Some(absent::c_message_verify_final),
};

const NAME: &CStr = c"PKCS 11";
/// Newest first: the first is what a program gets that names no version.
const VERSIONS: [ck::CK_VERSION; 2] = [LIST_3_0.version, LIST.version];

struct Interfaces([ck::CK_INTERFACE; 2]);

// SAFETY: the pointers in it are to constants, which no thread writes.
unsafe impl Sync for Interfaces {}

static INTERFACES: Interfaces = Interfaces([
    ck::CK_INTERFACE {
        pInterfaceName: NAME.as_ptr().cast_mut().cast(),
        pFunctionList: ptr::from_ref(&LIST_3_0).cast_mut().cast(),
        flags: 0,
    },
    ck::CK_INTERFACE {
        pInterfaceName: NAME.as_ptr().cast_mut().cast(),
        pFunctionList: ptr::from_ref(&LIST).cast_mut().cast(),
        flags: 0,
    },
]);

/// `C_GetFunctionList` of the standard.
///
/// # Safety
/// `list` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut ck::CK_FUNCTION_LIST) -> ck::CK_RV {
    // SAFETY: the caller's promise.
    unsafe { get_function_list(list) }
}

/// `C_GetInterfaceList` of the standard.
///
/// # Safety
/// `count` is null or valid for reads and writes, `list` is null or valid for writes of `*count` interfaces.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterfaceList(
    list: *mut ck::CK_INTERFACE,
    count: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    // SAFETY: the caller's promise.
    unsafe { get_interface_list(list, count) }
}

/// `C_GetInterface` of the standard.
///
/// # Safety
/// `name` is null or a C string, `version` is null or valid, `interface` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterface(
    name: *mut ck::CK_UTF8CHAR,
    version: *mut ck::CK_VERSION,
    interface: *mut *mut ck::CK_INTERFACE,
    flags: ck::CK_FLAGS,
) -> ck::CK_RV {
    // SAFETY: the caller's promise.
    unsafe { get_interface(name, version, interface, flags) }
}

unsafe extern "C" fn get_function_list(list: *mut *mut ck::CK_FUNCTION_LIST) -> ck::CK_RV {
    // SAFETY: the caller's promise.
    guard(|| unsafe { put(list, ptr::from_ref(&LIST).cast_mut()) })
}

unsafe extern "C" fn get_interface_list(list: *mut ck::CK_INTERFACE, count: *mut ck::CK_ULONG) -> ck::CK_RV {
    guard(|| {
        // SAFETY: the caller's promise.
        let room = unsafe { get(count.cast_const())? };
        let all = &INTERFACES.0;
        // SAFETY: the caller's promise.
        unsafe { put(count, all.len() as ck::CK_ULONG)? };
        if list.is_null() {
            return Ok(());
        }
        if room < all.len() as ck::CK_ULONG {
            return Err(Rv(ck::CKR_BUFFER_TOO_SMALL));
        }
        for (index, interface) in all.iter().enumerate() {
            // SAFETY: within the caller's `room` interfaces.
            unsafe { put(list.add(index), *interface)? };
        }
        Ok(())
    })
}

unsafe extern "C" fn get_interface(
    name: *mut ck::CK_UTF8CHAR,
    version: *mut ck::CK_VERSION,
    interface: *mut *mut ck::CK_INTERFACE,
    flags: ck::CK_FLAGS,
) -> ck::CK_RV {
    guard(|| {
        // SAFETY: the caller's promise.
        let index = unsafe { find(name, version, flags)? };
        // SAFETY: the caller's promise.
        unsafe { put(interface, ptr::from_ref(&INTERFACES.0[index]).cast_mut()) }
    })
}

/// # Safety
/// As [`C_GetInterface`].
unsafe fn find(
    name: *const ck::CK_UTF8CHAR,
    version: *const ck::CK_VERSION,
    flags: ck::CK_FLAGS,
) -> Result<usize> {
    let none = Rv(ck::CKR_FUNCTION_FAILED);
    // SAFETY: not null, and a C string by the caller's promise.
    if !name.is_null() && unsafe { CStr::from_ptr(name.cast()) } != NAME {
        return Err(none);
    }
    // Fork-safe interfaces stay initialised in a child; this one starts anew there.
    if flags != 0 {
        return Err(none);
    }
    if version.is_null() {
        return Ok(0);
    }
    // SAFETY: not null, and valid by the caller's promise.
    let wanted = unsafe { get(version)? };
    let same = |version: &ck::CK_VERSION| (version.major, version.minor) == (wanted.major, wanted.minor);
    VERSIONS.iter().position(same).ok_or(none)
}
