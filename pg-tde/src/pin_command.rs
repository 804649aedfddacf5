//! Runs `pg_tde.pin_command`, as `ssl_passphrase_command` is run, but with a deadline: while libraries are preloaded the
//! postmaster does not react to signals, so a hanging command would hang the server.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use hsm_engine::{Pin, PinError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::ffi::server;

/// How long to wait before looking for a cancel request.
const SLICE: Duration = Duration::from_millis(100);

/// Why there is no PIN.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PinCommandError {
    /// The shell could not be started.
    #[error("pg_tde.pin_command could not be started: {0}")]
    Start(#[source] io::Error),
    /// The deadline passed.
    #[error("pg_tde.pin_command did not print a PIN within {} s and was ended", .0.as_secs())]
    Timeout(Duration),
    /// The server process was asked to stop what it does.
    #[error("pg_tde.pin_command was ended because the statement was cancelled")]
    Cancelled,
    /// It failed.
    #[error("pg_tde.pin_command failed: {0}")]
    Failed(ExitStatus),
    /// What it printed is no PIN.
    #[error("pg_tde.pin_command did not print a usable PIN: {0}")]
    Output(#[source] PinError),
    /// Its end could not be waited for.
    #[error("cannot wait for pg_tde.pin_command: {0}")]
    Wait(#[source] io::Error),
}

/// The running command; ended with all its children when dropped.
struct Running {
    child: Child,
    done: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Fails only if the group is gone already, which is what is wanted.
            let _gone = kill_process_group(group, Signal::KILL);
        }
        // The killed shell ends at once; its status tells nothing more.
        let _status = self.child.wait();
    }
}

/// Reads until a deadline, looking for a cancel request between slices.
struct DeadlineReader<'a> {
    pipe: ChildStdout,
    deadline: Instant,
    cancelled: &'a dyn Fn() -> bool,
}

impl DeadlineReader<'_> {
    /// Waits until there is something to read.
    fn wait(&self) -> io::Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let slice = Timespec::try_from(left.min(SLICE)).map_err(io::Error::other)?;
            let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
            match poll(&mut fds, Some(&slice)) {
                // Not `Interrupted`, which readers retry.
                Ok(0) | Err(rustix::io::Errno::INTR) if (self.cancelled)() => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Ok(0) | Err(rustix::io::Errno::INTR) => (),
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Read for DeadlineReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait()?;
        Ok(rustix::io::read(self.pipe.as_fd(), buffer)?)
    }
}

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
    let deadline = Instant::now() + timeout;
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
    server::close_files_in_child(&mut shell);
    let mut child = shell.spawn().map_err(PinCommandError::Start)?;
    let pipe = child.stdout.take();
    let mut running = Running { child, done: false };
    let Some(pipe) = pipe else {
        return Err(PinCommandError::Start(io::ErrorKind::BrokenPipe.into()));
    };
    let pin = match Pin::from_reader(DeadlineReader { pipe, deadline, cancelled }) {
        Ok(pin) => Ok(pin),
        Err(_) if cancelled() => return Err(PinCommandError::Cancelled),
        Err(_) if Instant::now() >= deadline => return Err(PinCommandError::Timeout(timeout)),
        Err(error) => Err(error),
    };
    let status = loop {
        match running.child.try_wait().map_err(PinCommandError::Wait)? {
            Some(status) => break status,
            None if Instant::now() >= deadline => return Err(PinCommandError::Timeout(timeout)),
            None if cancelled() => return Err(PinCommandError::Cancelled),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    running.done = true;
    // The reason why it printed nothing, if it says so itself.
    if !status.success() {
        return Err(PinCommandError::Failed(status));
    }
    pin.map_err(PinCommandError::Output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quickly(command: &str) -> Result<Pin, PinCommandError> {
        run(command, Duration::from_secs(1), &|| false)
    }

    #[test]
    fn a_printed_line_is_the_pin() {
        assert!(quickly("echo 1234").is_ok());
    }

    #[test]
    fn a_failing_command_says_how_it_failed() {
        assert!(
            matches!(quickly("echo 1234; exit 3"), Err(PinCommandError::Failed(status)) if status.code() == Some(3))
        );
    }

    #[test]
    fn an_empty_answer_is_no_pin() {
        assert!(matches!(quickly("true"), Err(PinCommandError::Output(_))));
    }

    #[test]
    fn a_hanging_command_and_its_children_are_ended_at_the_deadline() {
        let marker = format!("86{:06}", std::process::id());
        let started = Instant::now();
        let result = quickly(&format!("sleep {marker} & sleep {marker}"));
        assert!(matches!(result, Err(PinCommandError::Timeout(_))));
        assert!(started.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(200));
        let alive = Command::new("pgrep").arg("-f").arg(format!("^sleep {marker}")).status().expect("pgrep");
        assert!(!alive.success(), "a child of the PIN command is still there");
    }

    #[test]
    fn the_command_does_not_inherit_open_files() {
        let path = std::env::temp_dir().join(format!("pin-command-test-{}", std::process::id()));
        let file = std::fs::File::create(&path).expect("created");
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).expect("inheritable");
        let command =
            format!("if ls -l /proc/self/fd | grep -q {}; then exit 7; fi; echo 1234", path.display());
        let result = quickly(&command);
        std::fs::remove_file(&path).expect("removed");
        assert!(result.is_ok(), "{result:?}");
    }

    #[test]
    fn a_cancelled_command_is_ended() {
        let started = Instant::now();
        let result = run("sleep 60", Duration::from_secs(60), &|| true);
        assert!(matches!(result, Err(PinCommandError::Cancelled)));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_command_that_prints_and_then_hangs_is_ended_too() {
        assert!(matches!(quickly("echo 1234; exec sleep 60"), Err(PinCommandError::Timeout(_))));
    }
}
