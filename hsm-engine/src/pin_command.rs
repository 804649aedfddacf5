//! Runs a command that prints a PIN, as PostgreSQL runs `ssl_passphrase_command`, but with a deadline: a program that waits for
//! its PIN reacts to nothing else.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::pin::{Pin, PinError};

/// How long to wait before looking for a cancel request.
const SLICE: Duration = Duration::from_millis(100);

/// A command that prints the PIN, such as one that asks a vault or a TPM.
pub struct PinCommand<'a> {
    /// What the command was given as, for messages.
    pub setting: &'static str,
    /// A command line for `/bin/sh -c`.
    pub command: &'a str,
    /// How long it may take.
    pub timeout: Duration,
    /// Asked ten times a second whether to give up. It must not unwind: a process that ends there would leave the command
    /// running.
    pub cancelled: &'a dyn Fn() -> bool,
    /// The last look at the shell before it is started, to keep files from it.
    pub prepare: &'a dyn Fn(&mut Command),
}

/// Why there is no PIN.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinCommandError {
    /// The shell could not be started.
    #[error("{setting} could not be started: {source}")]
    Start {
        /// What the command was given as.
        setting: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The deadline passed.
    #[error("{setting} did not print a PIN within {} s and was ended", .timeout.as_secs())]
    Timeout {
        /// What the command was given as.
        setting: &'static str,
        /// How long it had.
        timeout: Duration,
    },
    /// The caller gave up.
    #[error("{setting} was ended because the statement was cancelled")]
    Cancelled {
        /// What the command was given as.
        setting: &'static str,
    },
    /// It failed.
    #[error("{setting} failed: {status}")]
    Failed {
        /// What the command was given as.
        setting: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// What it printed is no PIN.
    #[error("{setting} did not print a usable PIN: {source}")]
    Output {
        /// What the command was given as.
        setting: &'static str,
        /// Why not.
        source: PinError,
    },
    /// Its end could not be waited for.
    #[error("cannot wait for {setting}: {source}")]
    Wait {
        /// What the command was given as.
        setting: &'static str,
        /// Why not.
        source: io::Error,
    },
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

impl PinCommand<'_> {
    /// Runs the command in a process group of its own and takes the first line it prints.
    ///
    /// # Errors
    /// See [`PinCommandError`].
    pub fn run(&self) -> Result<Pin, PinCommandError> {
        let Self { setting, timeout, cancelled, .. } = *self;
        let deadline = Instant::now() + timeout;
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(self.command).process_group(0).stdin(Stdio::null()).stdout(Stdio::piped());
        (self.prepare)(&mut shell);
        let mut child = shell.spawn().map_err(|source| PinCommandError::Start { setting, source })?;
        let pipe = child.stdout.take();
        let mut running = Running { child, done: false };
        let Some(pipe) = pipe else {
            return Err(PinCommandError::Start { setting, source: io::ErrorKind::BrokenPipe.into() });
        };
        let pin = match Pin::from_reader(DeadlineReader { pipe, deadline, cancelled }) {
            Ok(pin) => Ok(pin),
            Err(_) if cancelled() => return Err(PinCommandError::Cancelled { setting }),
            Err(_) if Instant::now() >= deadline => {
                return Err(PinCommandError::Timeout { setting, timeout });
            }
            Err(error) => Err(error),
        };
        let status = loop {
            match running.child.try_wait().map_err(|source| PinCommandError::Wait { setting, source })? {
                Some(status) => break status,
                None if Instant::now() >= deadline => {
                    return Err(PinCommandError::Timeout { setting, timeout });
                }
                None if cancelled() => return Err(PinCommandError::Cancelled { setting }),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        running.done = true;
        // The reason why it printed nothing, if it says so itself.
        if !status.success() {
            return Err(PinCommandError::Failed { setting, status });
        }
        pin.map_err(|source| PinCommandError::Output { setting, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(command: &str, seconds: u64, cancelled: bool) -> Result<Pin, PinCommandError> {
        let timeout = Duration::from_secs(seconds);
        PinCommand { setting: "the test", command, timeout, cancelled: &|| cancelled, prepare: &|_| () }.run()
    }

    fn quickly(command: &str) -> Result<Pin, PinCommandError> {
        run(command, 1, false)
    }

    #[test]
    fn a_printed_line_is_the_pin() {
        assert!(quickly("echo 1234").is_ok());
    }

    #[test]
    fn a_failing_command_says_how_it_failed() {
        assert!(
            matches!(quickly("echo 1234; exit 3"), Err(PinCommandError::Failed { status, .. }) if status.code() == Some(3))
        );
    }

    #[test]
    fn an_empty_answer_is_no_pin() {
        assert!(matches!(quickly("true"), Err(PinCommandError::Output { .. })));
    }

    #[test]
    fn a_hanging_command_and_its_children_are_ended_at_the_deadline() {
        let marker = format!("86{:06}", std::process::id());
        let started = Instant::now();
        let result = quickly(&format!("sleep {marker} & sleep {marker}"));
        assert!(matches!(result, Err(PinCommandError::Timeout { .. })));
        assert!(started.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(200));
        let alive = Command::new("pgrep").arg("-f").arg(format!("^sleep {marker}")).status().expect("pgrep");
        assert!(!alive.success(), "a child of the PIN command is still there");
    }

    #[test]
    fn a_cancelled_command_is_ended() {
        let started = Instant::now();
        let result = run("sleep 60", 60, true);
        assert!(matches!(result, Err(PinCommandError::Cancelled { .. })));
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_command_that_prints_and_then_hangs_is_ended_too() {
        assert!(matches!(quickly("echo 1234; exec sleep 60"), Err(PinCommandError::Timeout { .. })));
    }
}
