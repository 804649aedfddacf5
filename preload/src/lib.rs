//! The library that `tde exec` preloads: stock PostgreSQL tools read and write encrypted WAL.
//!
//! * [`tool`]: which program this is, and which of its files are encrypted or decrypted on the way.
//! * [`host`]: how the redirected calls of the crate `redirect` ask for it.
//! * `ffi`: the beginning, before `main`: keys from the pipe that `tde exec` leaves open, hooks into the executable's slots.
//!
//! In any other program (a shell, a wrapper script, `pg_verifybackup`) the library does nothing but keep the pipe for the programs that it
//! starts. A tool takes the keys, and what a tool starts (`restore_command`, `postgres --single`) gets neither the library nor the pipe.
//!
//! A known tool whose keys or calls cannot be had does not run: nothing is ever written in clear instead.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod ffi;
mod host;
mod tool;
