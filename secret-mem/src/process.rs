//! Protection of a whole process, for programs that are not part of a database server.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// The process could not be protected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HardenError {
    /// Core dumps could not be switched off.
    #[error("cannot set RLIMIT_CORE to 0")]
    CoreLimit(#[source] std::io::Error),
    /// Other processes of the same user can still attach to this one.
    #[error("cannot set PR_SET_DUMPABLE to 0")]
    Dumpable(#[source] std::io::Error),
}

/// Forbids core dumps and debuggers: `RLIMIT_CORE` = 0 and `PR_SET_DUMPABLE` = 0.
///
/// For command-line programs at their start. Never call it inside PostgreSQL: an undumpable postmaster cannot
/// adjust the OOM score of its children. `PR_SET_DUMPABLE` does not survive `execve`; the limit does.
pub fn harden_process() -> Result<(), HardenError> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|errno| HardenError::CoreLimit(errno.into()))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|errno| HardenError::Dumpable(errno.into()))
}
