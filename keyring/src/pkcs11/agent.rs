//! The agent: a process of its own that loads the vendor's library, so that the library's threads, signal handlers, sockets and
//! faults stay out of a database server and of programs that use SQLite.
//!
//! It inherits one end of a socket as its standard input and nothing else. Every request has a deadline; an agent that misses it is
//! ended. It ends by itself when its parent closes the socket or is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, Signal, kill_process_group};
use secret_mem::SecretBuf;

use super::wire::{self, WireError};

/// The agent's file name.
pub const PROGRAM: &str = "tde-pkcs11-agent";
/// The environment variable that says where the agent is.
pub const PROGRAM_VARIABLE: &str = "TDE_PKCS11_AGENT";
/// Where `make install` puts it, and where a distribution would.
const PLACES: [&str; 2] = ["/usr/local/bin", "/usr/bin"];
/// How long to wait before looking for a cancel request.
const SLICE: Duration = Duration::from_millis(100);
/// How long an agent may take to log out when it is no longer needed.
const GRACE: Duration = Duration::from_secs(1);

/// How the agent is started and waited for. Plain functions: what waits inside a database server has no state of its own.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// The agent's program; found by [`find_program`] if not given.
    pub program: Option<PathBuf>,
    /// Asked ten times a second whether to give up. It must not unwind.
    pub cancelled: fn() -> bool,
    /// The last look at the command before it is started, to keep files from it.
    pub prepare: fn(&mut Command),
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { program: None, cancelled: || false, prepare: |_| () }
    }
}

/// Why the agent did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// It is not installed.
    #[error(
        "the PKCS#11 agent {PROGRAM} is in none of {}: install it, or set {PROGRAM_VARIABLE} to where it is",
        places(.searched)
    )]
    NotFound {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// It could not be started.
    #[error("the PKCS#11 agent {} could not be started: {source}", program.display())]
    Start {
        /// Its program.
        program: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It died.
    #[error("the PKCS#11 agent ended unexpectedly ({status}): the vendor's library or somebody ended it")]
    Ended {
        /// How.
        status: ExitStatus,
    },
    /// It did not answer in time and was ended.
    #[error(
        "the HSM did not answer within {} s, and the PKCS#11 agent was ended; x-timeout in the URI sets the time",
        .timeout.as_secs()
    )]
    Timeout {
        /// How long it had.
        timeout: Duration,
    },
    /// The caller gave up.
    #[error("waiting for the HSM was cancelled")]
    Cancelled,
    /// The socket.
    #[error("the PKCS#11 agent cannot be talked to: {0}")]
    Socket(#[from] io::Error),
    /// It speaks another version.
    #[error(transparent)]
    Wire(#[from] WireError),
}

fn places(searched: &[PathBuf]) -> String {
    let places: Vec<_> = searched.iter().map(|place| place.display().to_string()).collect();
    places.join(", ")
}

/// The agent's program: `TDE_PKCS11_AGENT`, beside this program, or where it is installed. PATH is not asked: what it names need not
/// be ours.
///
/// # Errors
/// It is in none of these places.
pub fn find_program() -> Result<PathBuf, AgentError> {
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE).filter(|value| !value.is_empty()) {
        let program = PathBuf::from(program);
        let there = program.is_absolute() && program.is_file();
        return if there { Ok(program) } else { Err(AgentError::NotFound { searched: vec![program] }) };
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let places = beside.into_iter().chain(PLACES.iter().map(PathBuf::from));
    let searched: Vec<_> = places.map(|place| place.join(PROGRAM)).collect();
    match searched.iter().find(|program| program.is_file()) {
        Some(program) => Ok(program.clone()),
        None => Err(AgentError::NotFound { searched }),
    }
}

/// A running agent.
pub(super) struct Agent {
    socket: Option<UnixStream>,
    child: Child,
    /// The process that started it: a forked child must not use or end it.
    parent: u32,
}

impl Agent {
    pub(super) fn start(options: &AgentOptions) -> Result<Self, AgentError> {
        let program = options.program.clone().map_or_else(find_program, Ok)?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = Command::new(&program);
        command
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .current_dir("/")
            .env_remove("TDE_PIN_FILE")
            .env_remove("TDE_PIN_COMMAND")
            .process_group(0);
        (options.prepare)(&mut command);
        let child = command.spawn().map_err(|source| AgentError::Start { program, source })?;
        Ok(Self { socket: Some(ours), child, parent: std::process::id() })
    }

    /// Whether this process started it.
    pub(super) fn is_ours(&self) -> bool {
        self.parent == std::process::id()
    }

    /// Sends a frame and waits for the answer, without its length.
    pub(super) fn call(
        &mut self,
        request: &SecretBuf,
        timeout: Duration,
        cancelled: fn() -> bool,
    ) -> Result<SecretBuf, AgentError> {
        let wait = Wait { deadline: Instant::now() + timeout, timeout, cancelled };
        let answer = match &self.socket {
            Some(socket) => exchange(socket, request, &wait),
            None => Err(io::Error::from(io::ErrorKind::NotConnected).into()),
        };
        match answer {
            // It closed its end: it is dead or dying.
            Err(AgentError::Socket(error)) if is_closed(&error) => {
                self.end(GRACE);
                match self.child.wait() {
                    Ok(status) => Err(AgentError::Ended { status }),
                    Err(error) => Err(error.into()),
                }
            }
            Err(error) => {
                self.end(Duration::ZERO);
                Err(error)
            }
            answer => answer,
        }
    }

    /// Closes the socket, upon which the agent logs out and ends; ends it by force after `grace`.
    fn end(&mut self, grace: Duration) {
        self.socket = None;
        let until = Instant::now() + grace;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                Ok(None) => break,
                // Ended, or no longer ours to wait for.
                Ok(Some(_)) | Err(_) => return,
            }
        }
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Fails only if the group is gone already, which is what is wanted.
            let _gone = kill_process_group(group, Signal::KILL);
        }
        // A process that was killed ends at once; its status tells nothing more.
        let _status = self.child.wait();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.is_ours() {
            self.end(GRACE);
        }
    }
}

struct Wait {
    deadline: Instant,
    timeout: Duration,
    cancelled: fn() -> bool,
}

impl Wait {
    /// Waits until the socket can be read from or written to.
    fn ready(&self, socket: &UnixStream, what: PollFlags) -> Result<(), AgentError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::Timeout { timeout: self.timeout });
            }
            let slice = Timespec::try_from(left.min(SLICE)).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(socket, what)], Some(&slice)) {
                Ok(0) | Err(rustix::io::Errno::INTR) if (self.cancelled)() => {
                    return Err(AgentError::Cancelled);
                }
                Ok(0) | Err(rustix::io::Errno::INTR) => (),
                Ok(_) => return Ok(()),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
    }
}

fn exchange(socket: &UnixStream, request: &SecretBuf, wait: &Wait) -> Result<SecretBuf, AgentError> {
    let mut left = request.as_slice();
    while !left.is_empty() {
        wait.ready(socket, PollFlags::OUT)?;
        // Not write(2): that would raise SIGPIPE in programs that have not switched it off.
        match send(socket, left, SendFlags::NOSIGNAL) {
            Ok(sent) => left = &left[sent..],
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => (),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    let mut head = [0; 4];
    receive(socket, &mut head, wait)?;
    SecretBuf::from_fn(wire::frame_length(head)?, |frame| {
        receive(socket, frame, wait)?;
        Ok(frame.len())
    })
}

fn receive(socket: &UnixStream, out: &mut [u8], wait: &Wait) -> Result<(), AgentError> {
    let mut done = 0;
    while done < out.len() {
        wait.ready(socket, PollFlags::IN)?;
        match recv(socket, &mut out[done..], RecvFlags::empty()) {
            Ok((0, _)) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok((count, _)) => done += count,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => (),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(())
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof)
}
