//! Keys: made, wrapped, unwrapped, derived; and random bytes.

use cryptoki_sys as ck;
use hsm_engine::objects::{AttributeType, Generate, Value};

use super::memory::{Out, bytes};
use super::objects::make;
use super::{call, mechanism, template};
use crate::rv::{Result, Rv};

/// Most random bytes of one call.
const MAX_RANDOM: ck::CK_ULONG = 1 << 20;

fn generator(number: ck::CK_MECHANISM_TYPE) -> Result<Generate> {
    Ok(match number {
        ck::CKM_AES_KEY_GEN => Generate::Aes,
        ck::CKM_GENERIC_SECRET_KEY_GEN => Generate::GenericSecret,
        ck::CKM_RSA_PKCS_KEY_PAIR_GEN => Generate::Rsa,
        ck::CKM_EC_KEY_PAIR_GEN => Generate::Ec,
        ck::CKM_EC_EDWARDS_KEY_PAIR_GEN => Generate::Edwards,
        _ => return Err(Rv(ck::CKR_MECHANISM_INVALID)),
    })
}

pub(super) unsafe extern "C" fn c_generate_key(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    list: *mut ck::CK_ATTRIBUTE,
    count: ck::CK_ULONG,
    key: *mut ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let token = session.slot.token()?;
        // SAFETY: the caller's promise.
        let (number, template) = unsafe { (mechanism::number(mechanism)?, template::read(list, count)?) };
        let how = generator(number)?;
        if !matches!(how, Generate::Aes | Generate::GenericSecret) {
            return Err(Rv(ck::CKR_MECHANISM_INVALID));
        }
        // SAFETY: the caller's promise.
        unsafe {
            make(&session, &token, [template], [key], |scope, [template]| {
                Ok([token.generate_key(scope, how, template)?])
            })
        }
    })
}

pub(super) unsafe extern "C" fn c_generate_key_pair(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    public_list: *mut ck::CK_ATTRIBUTE,
    public_count: ck::CK_ULONG,
    private_list: *mut ck::CK_ATTRIBUTE,
    private_count: ck::CK_ULONG,
    public_key: *mut ck::CK_OBJECT_HANDLE,
    private_key: *mut ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let token = session.slot.token()?;
        // SAFETY: the caller's promise.
        let number = unsafe { mechanism::number(mechanism)? };
        // SAFETY: the caller's promise.
        let public = unsafe { template::read(public_list, public_count)? };
        // SAFETY: the caller's promise.
        let private = unsafe { template::read(private_list, private_count)? };
        let how = generator(number)?;
        if matches!(how, Generate::Aes | Generate::GenericSecret) {
            return Err(Rv(ck::CKR_MECHANISM_INVALID));
        }
        // SAFETY: the caller's promise.
        unsafe {
            make(
                &session,
                &token,
                [public, private],
                [public_key, private_key],
                |scope, [public, private]| {
                    token.generate_key_pair(scope, how, public, private).map(<[_; 2]>::from)
                },
            )
        }
    })
}

pub(super) unsafe extern "C" fn c_wrap_key(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    wrapping: ck::CK_OBJECT_HANDLE,
    key: ck::CK_OBJECT_HANDLE,
    output: *mut ck::CK_BYTE,
    output_len: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let token = session.slot.token()?;
        // SAFETY: the caller's promise.
        let (read, out) = unsafe { (mechanism::of_cipher(mechanism, true)?, Out::new(output, output_len)?) };
        let by = session.slot.object(wrapping).map_err(|_| Rv(ck::CKR_WRAPPING_KEY_HANDLE_INVALID))?;
        let key = session.slot.object(key).map_err(|_| Rv(ck::CKR_KEY_HANDLE_INVALID))?;
        out.give(&token.wrap(&read, by, key)?)
    })
}

pub(super) unsafe extern "C" fn c_unwrap_key(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    unwrapping: ck::CK_OBJECT_HANDLE,
    wrapped: *mut ck::CK_BYTE,
    wrapped_len: ck::CK_ULONG,
    list: *mut ck::CK_ATTRIBUTE,
    count: ck::CK_ULONG,
    key: *mut ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let token = session.slot.token()?;
        // SAFETY: the caller's promise.
        let (read, wrapped) =
            unsafe { (mechanism::of_cipher(mechanism, false)?, bytes(wrapped, wrapped_len)?) };
        // SAFETY: the caller's promise.
        let template = unsafe { template::read(list, count)? };
        let by = session.slot.object(unwrapping).map_err(|_| Rv(ck::CKR_UNWRAPPING_KEY_HANDLE_INVALID))?;
        // SAFETY: the caller's promise.
        unsafe {
            make(&session, &token, [template], [key], |scope, [template]| {
                Ok([token.unwrap(scope, &read, by, wrapped, template)?])
            })
        }
    })
}

pub(super) unsafe extern "C" fn c_derive_key(
    handle: ck::CK_SESSION_HANDLE,
    mechanism: *mut ck::CK_MECHANISM,
    base: ck::CK_OBJECT_HANDLE,
    list: *mut ck::CK_ATTRIBUTE,
    count: ck::CK_ULONG,
    key: *mut ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let token = session.slot.token()?;
        // A salt may be the value of a key, if that may be read.
        let salt = |handle| match token.get(session.slot.object(handle)?, AttributeType::Value)? {
            Value::Secret(secret) => Ok(secret.as_slice().to_vec()),
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Rv(ck::CKR_KEY_HANDLE_INVALID)),
        };
        // SAFETY: the caller's promise.
        let (read, template) =
            unsafe { (mechanism::of_derivation(mechanism, salt)?, template::read(list, count)?) };
        let base = session.slot.object(base).map_err(|_| Rv(ck::CKR_KEY_HANDLE_INVALID))?;
        // SAFETY: the caller's promise.
        unsafe {
            make(&session, &token, [template], [key], |scope, [template]| {
                Ok([token.derive(scope, &read, base, template)?])
            })
        }
    })
}

/// The operating system's generator needs no seed.
pub(super) unsafe extern "C" fn c_seed_random(
    handle: ck::CK_SESSION_HANDLE,
    _seed: *mut ck::CK_BYTE,
    _len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        module.session(handle)?;
        Err(Rv(ck::CKR_RANDOM_SEED_NOT_SUPPORTED))
    })
}

pub(super) unsafe extern "C" fn c_generate_random(
    handle: ck::CK_SESSION_HANDLE,
    output: *mut ck::CK_BYTE,
    len: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        module.session(handle)?;
        if output.is_null() || len > MAX_RANDOM {
            return Err(Rv(ck::CKR_ARGUMENTS_BAD));
        }
        let mut random = vec![0; usize::try_from(len).map_err(|_| Rv(ck::CKR_ARGUMENTS_BAD))?];
        secret_mem::random(&mut random).map_err(|_| Rv(ck::CKR_RANDOM_NO_RNG))?;
        let mut room = len;
        // SAFETY: `output` is valid for `len` bytes by the caller's promise, `room` is ours.
        unsafe { Out::new(output, &raw mut room)? }.give(&random)
    })
}
