//! The process that loads a vendor's PKCS#11 library for tde, so that nothing else has to.
//!
//! It is started by `keyring::pkcs11` with a socket as its standard input, answers requests one after the other, and ends when the
//! socket is closed. The PIN and data keys pass through that socket only.
//!
//! ```text
//! serve.rs     requests and answers
//! token.rs     library, slot, login
//! keys.rs      versions of the master key on the token
//! wrap.rs      AES-KW in the three ways that tokens offer
//! data.rs      counters and marks, kept as data objects
//! refusal.rs   what went wrong, and what that means to who asked
//! ```
#![forbid(unsafe_code)]

mod data;
mod keys;
mod refusal;
mod serve;
mod token;
mod wrap;

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, getppid, kill_process};

/// How long the library may take to log out when nobody is there any more.
const GRACE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    // Data keys pass through here: no core dumps, no debugger.
    if let Err(error) = secret_mem::harden_process() {
        eprintln!("tde-pkcs11-agent: {error}");
    }
    let socket = match socket() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("tde-pkcs11-agent: this program is started by tde and pg_tde, not by hand ({error})");
            return ExitCode::from(2);
        }
    };
    let watched = match socket.try_clone() {
        Ok(watched) => watched,
        Err(error) => {
            eprintln!("tde-pkcs11-agent: {error}");
            return ExitCode::from(2);
        }
    };
    std::thread::spawn(move || watch(&watched));
    match serve::run(socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tde-pkcs11-agent: {error}");
            ExitCode::from(1)
        }
    }
}

/// Standard input, which must be a socket.
fn socket() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.peer_addr()?;
    Ok(socket)
}

/// Ends this process if its parent is gone or has closed the socket and the library does not come back from what it is doing. Not by
/// `exit`: that would run the library's clean-up while another thread is inside it.
fn watch(socket: &UnixStream) {
    let parent = getppid();
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
        let closed = matches!(poll(&mut fds, Some(&second)), Ok(count) if count > 0);
        // A forked child of the parent may hold the other end of the socket open.
        if closed || getppid() != parent {
            std::thread::sleep(GRACE);
            // Cannot fail: it is this process.
            let _ended = kill_process(getpid(), Signal::KILL);
        }
    }
}
