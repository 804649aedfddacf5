//! Encrypted databases for stock SQLite: a shim over its default VFS.
//!
//! The shim keeps locks, shared memory and syncing SQLite's own and changes only bytes: pages are sealed with
//! AES-256-GCM-SIV in 32 bytes that SQLite leaves free at the end of each, journals and temporary files likewise.
#![deny(unsafe_code)]
#![allow(dead_code, reason = "the FFI that uses it all is under way")]

mod database;
mod error;
mod format;
mod journal;
pub mod keys;
mod nonce;
mod raw;
mod wal;

pub use error::{Reason, Result, VfsError};
pub use journal::JournalFault;
pub use wal::WalFault;
