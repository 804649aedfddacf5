//! `libtde_pkcs11.so`: the HSM in the process for programs that speak PKCS#11 (2.40 function list and 3.0 interfaces).
//!
//! ```text
//! ffi/         everything that touches a caller's pointers: the C functions, templates, mechanism parameters
//! module.rs    what C_Initialize makes: slots and sessions; a forked child starts without
//! slot.rs      one HSM: who is logged in, handles of its objects
//! session.rs   one session: its objects' life time, its search, its operations
//! offer.rs     mechanisms, for C_GetMechanismList
//! settings.rs  which HSMs: TDE_PKCS11_HSM, TDE_HSM or /etc/tde/pkcs11.conf
//! rv.rs        errors as return values
//! ```
//! Keys and policy are the engine's (`hsm_engine::objects`). Nothing is visible before login: the store is sealed under the user's PIN.
//! `CKU_USER` is the URI's user, `CKU_SO` the crypto officer. A PIN `NAME:PIN` logs another user in, and so does `C_LoginUser`.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod ffi;
mod module;
mod offer;
mod rv;
mod session;
mod settings;
mod slot;

pub use ffi::{C_GetFunctionList, C_GetInterface, C_GetInterfaceList};
