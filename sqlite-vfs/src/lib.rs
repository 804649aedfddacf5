//! Encrypted databases for stock SQLite: a shim over its default VFS.
//!
//! The shim keeps locks, shared memory and syncing SQLite's own and changes only bytes: pages are sealed with
//! AES-256-GCM-SIV in 32 bytes that SQLite leaves free at the end of each, journals and temporary files likewise.
#![deny(unsafe_code)]

mod config;
mod database;
mod error;
#[allow(unsafe_code)]
pub mod ffi;
mod format;
mod journal;
pub mod keys;
mod main_db;
mod nonce;
pub mod offline;
mod raw;
mod status;
mod temp;
mod wal;

pub use config::{Config, DEFAULT_VARIABLE, VFS_NAME};
pub use error::{Reason, Result, VfsError};
pub use journal::JournalFault;
pub use wal::WalFault;
