//! Everything that touches the server, the only unsafe code of this crate.

pub(crate) mod background;
pub(crate) mod compat;
pub(crate) mod hooks;
pub(crate) mod init;
pub(crate) mod io;
pub(crate) mod pages;
pub(crate) mod rmgr;
pub(crate) mod server;
pub(crate) mod shared;
pub(crate) mod smgr_table;
pub(crate) mod sql;
pub(crate) mod utility;
pub(crate) mod worker;
