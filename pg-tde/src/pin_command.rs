//! Runs `pg_tde.pin_command`, without the server's open files and with a deadline: while libraries are preloaded the
//! postmaster does not react to signals, so a hanging command would hang the server.

use std::time::Duration;

use hsm_engine::Pin;
use hsm_engine::pin_command::PinCommand;
pub(crate) use hsm_engine::pin_command::PinCommandError;

use crate::ffi::server;

/// Runs the command in a process group of its own and takes the first line it prints.
///
/// `cancelled` is asked ten times a second whether to give up. It must not unwind: a process that ends there would leave the
/// command running.
///
/// # Errors
/// See [`PinCommandError`].
pub(crate) fn run(
    command: &str,
    timeout: Duration,
    cancelled: &dyn Fn() -> bool,
) -> Result<Pin, PinCommandError> {
    let prepare = &server::close_files_in_child;
    PinCommand { setting: "pg_tde.pin_command", command, timeout, cancelled, prepare }.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_does_not_inherit_open_files() {
        let path = std::env::temp_dir().join(format!("pin-command-test-{}", std::process::id()));
        let file = std::fs::File::create(&path).expect("created");
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).expect("inheritable");
        let command =
            format!("if ls -l /proc/self/fd | grep -q {}; then exit 7; fi; echo 1234", path.display());
        let result = run(&command, Duration::from_secs(10), &|| false);
        std::fs::remove_file(&path).expect("removed");
        assert!(result.is_ok(), "{result:?}");
    }
}
