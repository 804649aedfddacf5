//! The border to SQLite: the crate's only unsafe code.
//!
//! ```text
//! abi         SQLite's types
//! api         the functions of the SQLite that this process is bound to
//! register    making the VFS known
//! vfs         methods of the VFS: opening files; everything else is handed down
//! file        methods of a file: each locks the handle, calls safe code, turns its error into a code
//! control     file controls and pragmas
//! connection  what must be asked of the connection: reserved bytes, temporary files, page size
//! parent      a file of the VFS below, as safe code sees it
//! report      messages for SQLite's log and for the program
//! ```
//!
//! No panic leaves an entry point, and nothing of SQLite is called while a handle is locked, except files of the VFS
//! below: SQLite may come back to the same handle.

pub mod abi;
mod api;
mod connection;
mod control;
mod file;
mod handle;
mod parent;
mod register;
mod report;
mod vfs;

pub use api::{ExecCallback, FunctionTable};
pub use register::{RegisterError, Registered, register};
pub use report::{last_error, set_last_error};
