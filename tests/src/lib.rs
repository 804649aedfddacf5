//! Real PostgreSQL servers for tests: the distribution's own programs, run from a private copy.
//!
//! * [`PgRoot`]: a copy of the installed PostgreSQL with the `pg_tde` under test installed into it.
//! * [`Cluster`]: a server of that copy in a scratch folder: start, stop, kill, configure, read its log and files.
//! * [`Sql`]: a connection that speaks text, with errors that keep detail and hint.
//! * [`Stepper`]: stops a process after a chosen change of a file.
//! * [`SoftHsm`]: a software HSM made by the `tde` command.
//! * [`Token`]: a PKCS#11 token of SoftHSM2 or of our module, and modules that hang or crash.
//! * [`sqlite`]: stock SQLite in processes of its own, on disks that can fail.
//! * [`figures`]: what benchmarks measured, for the screen, JSON and the report.
//! * [`files`]: what an attacker or a power cut does to files: flip, copy, tear, search.
//!
//! Servers run as user `postgres` when the tests run as root, listen on a Unix socket only, and live below
//! `/var/tmp/tde-tests-UID` (`TDE_TESTS_DIR` names another folder). A failed test leaves its folder there.
//!
//! `TDE_TESTS_PLAIN=1` runs the scenarios on plain tablespaces of a server without pg_tde: a developer's way to see
//! that a scenario itself is right. `TDE_SOAK=1` runs the long versions.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test helper that cannot go on should stop its test")]

pub mod figures;
pub mod files;
pub mod sqlite;

mod cluster;
mod hsm;
mod process;
mod root;
mod scratch;
mod sql;
mod stepper;
mod token;

pub use cluster::{Builder, Cluster, StartFailure};
pub use hsm::SoftHsm;
pub use process::{Process, command_output};
pub use root::PgRoot;
pub use scratch::Scratch;
pub use sql::{Sql, SqlError};
pub use stepper::Stepper;
pub use token::{Maker, Token};

/// Whether the scenarios run without encryption, to test the scenarios themselves.
pub fn plain_mode() -> bool {
    std::env::var_os("TDE_TESTS_PLAIN").is_some_and(|v| !v.is_empty() && v != "0")
}

/// Whether the long versions of the tests were asked for.
pub fn soak() -> bool {
    std::env::var_os("TDE_SOAK").is_some_and(|v| !v.is_empty() && v != "0")
}
