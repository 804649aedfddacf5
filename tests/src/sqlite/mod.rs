//! Stock SQLite in processes of its own, with and without the `tde` VFS.
//!
//! * [`Sqlite`]: what a test needs once: the compiled helpers, the extension, a software HSM, a keyring, a folder.
//! * [`Worker`]: a process with the system's SQLite that serves requests; it can be killed and its disk can fail.
//! * [`Disk`]: what that process did to its files, byte by byte, deleted files included.

mod disk;
mod setup;
mod worker;

pub use disk::{Disk, Fault, Operation};
pub use setup::{Engine, Sqlite};
pub use worker::{Refusal, Reply, Worker};
