//! Objects.

use cryptoki_sys as ck;
use hsm_engine::objects::{self, AttributeType, ObjectId, Scope, Template, Token, Value};

use super::memory::put;
use super::{call, template};
use crate::rv::{Result, Rv};
use crate::session::Session;

fn stays(template: &Template) -> bool {
    template.iter().any(|one| matches!(one, (AttributeType::Token, Value::Bool(true))))
}

/// Makes objects and gives their handles. What stays is made in sessions that may write; nothing is made that the caller could not be
/// told of.
///
/// # Safety
/// The pointers are null or valid for a write.
pub(super) unsafe fn make<const N: usize>(
    session: &Session,
    token: &Token,
    templates: [Template; N],
    handles: [*mut ck::CK_OBJECT_HANDLE; N],
    how: impl FnOnce(&Scope, [Template; N]) -> objects::Result<[ObjectId; N]>,
) -> Result<()> {
    if handles.iter().any(|handle| handle.is_null()) {
        return Err(Rv(ck::CKR_ARGUMENTS_BAD));
    }
    let stay = templates.each_ref().map(stays);
    if stay.contains(&true) && !session.writes {
        return Err(Rv(ck::CKR_SESSION_READ_ONLY));
    }
    let mut work = session.work();
    let made = how(work.scope(token), templates)?;
    work.objects.extend(made.iter().zip(stay).filter(|(_, stays)| !stays).map(|(id, _)| *id));
    drop(work);
    for (id, handle) in made.into_iter().zip(handles) {
        // SAFETY: not null, and valid by the caller's promise.
        unsafe { put(handle, session.slot.handle_of(id))? };
    }
    Ok(())
}

fn may_change(session: &Session, token: &Token, id: ObjectId) -> Result<()> {
    let stays = matches!(token.get(id, AttributeType::Token)?, Value::Bool(true));
    if stays && !session.writes { Err(Rv(ck::CKR_SESSION_READ_ONLY)) } else { Ok(()) }
}

pub(super) unsafe extern "C" fn c_create_object(
    handle: ck::CK_SESSION_HANDLE,
    list: *mut ck::CK_ATTRIBUTE,
    count: ck::CK_ULONG,
    object: *mut ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let token = session.slot.token()?;
        // SAFETY: the caller's promise.
        let template = unsafe { template::read(list, count)? };
        // SAFETY: the caller's promise.
        unsafe {
            make(&session, &token, [template], [object], |scope, [template]| {
                Ok([token.create(scope, template)?])
            })
        }
    })
}

pub(super) unsafe extern "C" fn c_copy_object(
    handle: ck::CK_SESSION_HANDLE,
    object: ck::CK_OBJECT_HANDLE,
    list: *mut ck::CK_ATTRIBUTE,
    count: ck::CK_ULONG,
    copy: *mut ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let token = session.slot.token()?;
        let original = session.slot.object(object)?;
        // SAFETY: the caller's promise.
        let template = unsafe { template::read(list, count)? };
        if template.iter().all(|(attribute, _)| *attribute != AttributeType::Token) {
            may_change(&session, &token, original)?;
        }
        // SAFETY: the caller's promise.
        unsafe {
            make(&session, &token, [template], [copy], |scope, [template]| {
                Ok([token.copy(scope, original, template)?])
            })
        }
    })
}

pub(super) unsafe extern "C" fn c_destroy_object(
    handle: ck::CK_SESSION_HANDLE,
    object: ck::CK_OBJECT_HANDLE,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let token = session.slot.token()?;
        let id = session.slot.object(object)?;
        may_change(&session, &token, id)?;
        token.destroy(id)?;
        session.work().objects.remove(&id);
        session.slot.forget_objects([&id]);
        Ok(())
    })
}

pub(super) unsafe extern "C" fn c_get_object_size(
    handle: ck::CK_SESSION_HANDLE,
    object: ck::CK_OBJECT_HANDLE,
    size: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let found = session.slot.token()?.size(session.slot.object(object)?)?;
        // SAFETY: the caller's promise.
        unsafe { put(size, found as ck::CK_ULONG) }
    })
}

pub(super) unsafe extern "C" fn c_get_attribute_value(
    handle: ck::CK_SESSION_HANDLE,
    object: ck::CK_OBJECT_HANDLE,
    list: *mut ck::CK_ATTRIBUTE,
    count: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        if list.is_null() || count == 0 {
            return Err(Rv(ck::CKR_ARGUMENTS_BAD));
        }
        let token = session.slot.token()?;
        let id = session.slot.object(object)?;
        // Whether it is there at all, before any attribute is said to be missing.
        token.get(id, AttributeType::Class)?;
        let mut result = Ok(());
        for index in 0..usize::try_from(count).map_err(|_| Rv(ck::CKR_ARGUMENTS_BAD))? {
            // SAFETY: within the caller's attributes.
            let attribute = unsafe { list.add(index) };
            // SAFETY: valid, by the caller's promise.
            let number = unsafe { (&raw const (*attribute).type_).read_unaligned() };
            let kind = AttributeType::from_number(number).ok_or(Rv(ck::CKR_ATTRIBUTE_TYPE_INVALID));
            let value = kind.and_then(|kind| Ok(token.get(id, kind)?));
            // SAFETY: valid, by the caller's promise.
            let written = unsafe { template::write(attribute, value) };
            // All are tried; one of the errors is told.
            result = result.and(written);
        }
        result
    })
}

pub(super) unsafe extern "C" fn c_set_attribute_value(
    handle: ck::CK_SESSION_HANDLE,
    object: ck::CK_OBJECT_HANDLE,
    list: *mut ck::CK_ATTRIBUTE,
    count: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let token = session.slot.token()?;
        let id = session.slot.object(object)?;
        // SAFETY: the caller's promise.
        let template = unsafe { template::read(list, count)? };
        may_change(&session, &token, id)?;
        Ok(token.set(id, template)?)
    })
}

pub(super) unsafe extern "C" fn c_find_objects_init(
    handle: ck::CK_SESSION_HANDLE,
    list: *mut ck::CK_ATTRIBUTE,
    count: ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        if work.found.is_some() {
            return Err(Rv(ck::CKR_OPERATION_ACTIVE));
        }
        // SAFETY: the caller's promise.
        let template = match unsafe { template::read(list, count) } {
            // No object has an attribute that this HSM does not know.
            Err(Rv(ck::CKR_ATTRIBUTE_TYPE_INVALID)) => {
                work.found = Some(Vec::new());
                return Ok(());
            }
            read => read?,
        };
        // Nothing is visible before login.
        let Ok(token) = session.slot.token() else {
            work.found = Some(Vec::new());
            return Ok(());
        };
        let ids = token.find(work.scope(&token), &template)?;
        work.found = Some(ids.into_iter().rev().map(|id| session.slot.handle_of(id)).collect());
        Ok(())
    })
}

pub(super) unsafe extern "C" fn c_find_objects(
    handle: ck::CK_SESSION_HANDLE,
    objects: *mut ck::CK_OBJECT_HANDLE,
    room: ck::CK_ULONG,
    count: *mut ck::CK_ULONG,
) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        let mut work = session.work();
        let found = work.found.as_mut().ok_or(Rv(ck::CKR_OPERATION_NOT_INITIALIZED))?;
        if (objects.is_null() && room > 0) || count.is_null() {
            return Err(Rv(ck::CKR_ARGUMENTS_BAD));
        }
        let mut given = 0;
        while given < room
            && let Some(object) = found.pop()
        {
            // SAFETY: within the caller's `room` handles.
            unsafe { put(objects.add(given as usize), object)? };
            given += 1;
        }
        // SAFETY: not null, and valid by the caller's promise.
        unsafe { put(count, given) }
    })
}

pub(super) unsafe extern "C" fn c_find_objects_final(handle: ck::CK_SESSION_HANDLE) -> ck::CK_RV {
    call(|module| {
        let session = module.session(handle)?;
        session.work().found.take().map(drop).ok_or(Rv(ck::CKR_OPERATION_NOT_INITIALIZED))
    })
}
