//! How PostgreSQL's WAL segments and temporary files are encrypted.
//!
//! Pure logic, shared by the extension in the server and the library that `tde exec` preloads into stock tools.
//!
//! * [`name`]: which file is what, by its path.
//! * [`header`]: telling by its first page what a segment is stored as.
//! * [`unit`]: encryption by position, XTS in units of 8 KiB.
//! * [`file`]: any offset and length, over whatever reads and writes ([`file::Raw`]).
//! * [`table`]: what an open descriptor is.
//! * [`segment`]: in which mode a segment is read and written.
//! * [`engine`]: all of it together, for one call.
//! * [`handover`]: keys and rules for a program outside of the server.
//!
//! The bytes are described in docs/formats/wal-and-temp-files.md.
#![forbid(unsafe_code)]

pub mod engine;
pub mod file;
pub mod handover;
pub mod header;
pub mod name;
pub mod segment;
pub mod table;
pub mod unit;
