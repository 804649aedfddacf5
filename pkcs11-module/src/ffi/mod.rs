//! Everything that touches a caller's pointers.
//!
//! A caller of PKCS#11 promises that pointers are null or valid for the lengths beside them, for the time of the call, and that no
//! other thread writes there meanwhile (PKCS#11 3.0, sections 3.2 and 5.1). Every `unsafe` block here relies on that promise and says on which part of it.
//! No panic leaves a function: what is left of an operation then is the error `CKR_GENERAL_ERROR`.

mod crypt;
mod general;
mod keys;
mod list;
mod mechanism;
mod memory;
mod objects;
mod sessions;
mod signing;
mod template;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use cryptoki_sys as ck;

use crate::module::Module;
use crate::rv::{Result, Rv};
use crate::settings;

pub use list::{C_GetFunctionList, C_GetInterface, C_GetInterfaceList};

/// What `C_Initialize` made, null before and after. What was made is never freed, because another thread may be in a call that uses it; it
/// is emptied by `C_Finalize` and then a few hundred bytes.
static MODULE: AtomicPtr<Module> = AtomicPtr::new(ptr::null_mut());

/// The module, if it is initialised in this process.
fn module() -> Result<&'static Module> {
    let module = MODULE.load(Ordering::Acquire);
    // SAFETY: null, or from `Box::into_raw` in `begin` and never freed.
    let module = unsafe { module.as_ref() }.ok_or(Rv(ck::CKR_CRYPTOKI_NOT_INITIALIZED))?;
    if module.is_of_this_process() { Ok(module) } else { Err(Rv(ck::CKR_CRYPTOKI_NOT_INITIALIZED)) }
}

/// Makes the module. A forked child makes its own and leaves its parent's alone, but for the names of its HSMs: servers clear the environment
/// of their workers.
fn begin() -> Result<()> {
    let before = MODULE.load(Ordering::Acquire);
    if module().is_ok() {
        return Err(Rv(ck::CKR_CRYPTOKI_ALREADY_INITIALIZED));
    }
    // SAFETY: null, or from `Box::into_raw` below and never freed; only what never changes is read.
    let parent = unsafe { before.as_ref() };
    let made = Box::into_raw(Box::new(Module::new(parent.map_or_else(settings::hsms, Module::hsms))?));
    if MODULE.compare_exchange(before, made, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: made above and given to nobody.
        drop(unsafe { Box::from_raw(made) });
        return Err(Rv(ck::CKR_CRYPTOKI_ALREADY_INITIALIZED));
    }
    Ok(())
}

fn end() -> Result<()> {
    let ended = module()?;
    let pointer = ptr::from_ref(ended).cast_mut();
    match MODULE.compare_exchange(pointer, ptr::null_mut(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            ended.finalize();
            Ok(())
        }
        Err(_) => Err(Rv(ck::CKR_CRYPTOKI_NOT_INITIALIZED)),
    }
}

/// Runs a function of the standard.
fn guard(work: impl FnOnce() -> Result<()>) -> ck::CK_RV {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => ck::CKR_OK,
        Ok(Err(Rv(code))) => code,
        Err(_) => ck::CKR_GENERAL_ERROR,
    }
}

/// Runs a function that needs `C_Initialize` to have been called.
fn call(work: impl FnOnce(&'static Module) -> Result<()>) -> ck::CK_RV {
    guard(|| work(module()?))
}
