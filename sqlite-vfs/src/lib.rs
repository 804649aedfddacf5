//! Encrypted databases for stock SQLite: a shim over its default VFS.
//!
//! The shim keeps locks, shared memory and syncing SQLite's own and changes only bytes: pages are sealed with
//! AES-256-GCM-SIV in 32 bytes that SQLite leaves free at the end of each, journals and temporary files likewise.
//! Programs use it through `tde-rusqlite` (Rust), `tde_sqlite.h` (C) or as a loadable extension; this crate links no
//! SQLite and is given the functions of the one that it serves.
//!
//! ```text
//! ffi          the border to SQLite: VFS, files, file controls       (the only unsafe code)
//! database     what a database, its journal and its WAL share
//! main_db      the database file        \
//! journal      the rollback journal      | bytes in, bytes out, over `raw::RawFile`
//! wal          the write-ahead log       |
//! temp         temporary files          /
//! format       bytes on disk, one module per format
//! keys         which keyring, which HSM, which PIN; the keys of each file
//! status       what the pragmas say and do
//! offline      a database file without SQLite
//! error        what can go wrong, and the codes that SQLite is given
//! ```
//!
//! Bytes on disk: docs/formats/sqlite-file.md, sqlite-journal.md, sqlite-wal.md.
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
