//! Redirects the calls of libc's file functions in the running executable, so that WAL segments and temporary files are encrypted on disk
//! and plain for the program.
//!
//! Shared by the extension in the server and by the library that `tde exec` preloads into stock tools: they differ in which files are theirs,
//! where keys come from and how a refusal is told, which is what a [`Host`] says. What is done with the bytes is the crate `wal-cipher`.
//!
//! * [`Imports`]: the executable's slots of libc's functions, found by its dynamic relocations; unknown paths are refused.
//! * [`install`]: puts the hooks into them; [`reached`] proves it.
//! * [`with_engine`], [`Descriptor`], [`look`]: the same for a host's own calls, past the slots.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
mod ffi;

pub use ffi::calls::{Descriptor, install, look, reached, with_engine};
pub use ffi::slots::{Imports, Redirect, SlotError};

use page_cipher::xts::Aes256Xts;
use wal_cipher::engine::Failure;
use wal_cipher::file::Errno;
use wal_cipher::segment::Policy;
use wal_cipher::table::{Descriptors, Open};

/// The program that runs here: which files are ours, under which keys, and what it wants to be told.
///
/// All calls come from hooks: possibly in a critical section, so without locks, and without allocation unless said otherwise.
pub trait Host: 'static {
    /// Keys and rules of segments.
    type Policy: Policy;

    /// The descriptors of this process.
    fn descriptors() -> &'static Descriptors;

    /// Keys and rules; `None` where there are none (yet).
    fn policy() -> Option<Self::Policy>;

    /// The key of temporary and staged files.
    fn temporary_key() -> Option<&'static Aes256Xts>;

    /// What a file that is opened under this path will be; `None` for one that is not ours.
    ///
    /// # Errors
    /// The `errno` that the program gets instead of a file.
    fn plan(path: &[u8], flags: i32) -> Result<Option<Open>, Errno>;

    /// What must happen before data is written to a file of ours.
    ///
    /// # Errors
    /// It must not be written.
    fn before_write(fd: i32, open: Open, data: &[u8], offset: u64) -> Result<(), Failure> {
        let _ = (fd, open, data, offset);
        Ok(())
    }

    /// Data other than zeros was written to a file that has no name yet.
    fn staged_holds_data() {}

    /// What must happen before a file gets another name. May allocate.
    ///
    /// # Errors
    /// It must not get it.
    fn before_name(from: &[u8], to: &[u8]) -> Result<(), Failure> {
        let _ = (from, to);
        Ok(())
    }

    /// Tells of a failure that no `errno` describes, if it may be told here, and returns the `errno` for the program.
    fn failed(failure: Failure) -> Errno;
}
