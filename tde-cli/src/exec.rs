//! `tde exec`: a stock PostgreSQL tool on encrypted WAL.
//!
//! The keys go into a pipe that stays open for the tool, a library is preloaded into it that takes them from there
//! (the crate `tde-preload`), and the tool takes the place of this process: so exit codes, signals and terminals are its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use wal_cipher::handover::WalKeys;

use crate::credentials::{HsmArgs, KeyringArgs};
use crate::output::Output;
use crate::{CliResult, wal_keys};

/// Where the library finds the pipe.
const KEYS: &str = "TDE_EXEC_KEYS";
const PRELOAD: &str = "LD_PRELOAD";
const LIBRARY: &str = "libtde_preload.so";
/// Scripts use low descriptors for themselves.
const LOWEST: i32 = 100;

/// What to run.
#[derive(Debug, Args)]
#[command(after_help = "\
pg_waldump, pg_rewind, pg_resetwal, pg_receivewal and pg_basebackup --wal-method=stream read and write encrypted WAL; \
pg_verifybackup, shells and wrapper scripts pass this on to the tools that they start. \
Everything else runs as without tde exec. The exit code is the command's; 2 if it could not be started.")]
pub(crate) struct Exec {
    #[command(flatten)]
    keyring: KeyringArgs,
    #[command(flatten)]
    hsm: HsmArgs,
    /// The tool and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("{LIBRARY} is neither in {} nor in {}: install it with \"make install-files\"", .0.display(), .1.display())]
    NoLibrary(PathBuf, PathBuf),
    #[error("the path {} cannot be preloaded, for it contains a colon or a space: install tde elsewhere", .0.display())]
    Path(PathBuf),
    #[error("cannot hand over the keys: {0}")]
    Pipe(io::Error),
    #[error("cannot run {}: {source}", .command.display())]
    Run { command: PathBuf, source: io::Error },
}

/// Said before the command runs.
#[derive(Debug, thiserror::Error)]
#[error("this cluster's write-ahead log is not encrypted: what the command writes of it stays in clear")]
struct WritesPlain;

/// Returns only if the command could not be started.
pub(crate) fn run(exec: &Exec, output: &Output) -> CliResult {
    let library = library()?;
    let keys = wal_keys::load(exec.keyring.directory()?, &exec.hsm)?;
    if !keys.writes_encrypted() {
        output.warn(&WritesPlain);
    }
    let pipe = hand_over(&keys).map_err(ExecError::Pipe)?;
    drop(keys);
    let mut preload = library.into_os_string();
    if let Some(others) = std::env::var_os(PRELOAD).filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let (program, arguments) = exec.command.split_first().expect("the command line needs a command");
    let mut command = Command::new(program);
    command.args(arguments).env(PRELOAD, preload).env(KEYS, pipe.as_raw_fd().to_string());
    // The command inherits it. Nothing else is started by this process any more.
    rustix::io::fcntl_setfd(&pipe, FdFlags::empty()).map_err(|errno| ExecError::Pipe(errno.into()))?;
    let source = command.exec();
    Err(ExecError::Run { command: program.into(), source }.into())
}

/// A pipe that holds the keys, which the kernel keeps neither on disk nor in swap, and whose other end is closed.
fn hand_over(keys: &WalKeys) -> io::Result<OwnedFd> {
    let bytes = keys.to_bytes();
    let (pipe, end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    if bytes.len() > rustix::pipe::fcntl_getpipe_size(&pipe)? {
        rustix::pipe::fcntl_setpipe_size(&end, bytes.len())?;
    }
    // It fits, so this does not wait for a reader.
    File::from(end).write_all(bytes.as_slice())?;
    Ok(rustix::io::fcntl_dupfd_cloexec(pipe, LOWEST)?)
}

/// Beside this program (where it was built), or in `lib` beside its folder (where it was installed). Not anywhere that the environment names:
/// it gets the keys.
fn library() -> Result<PathBuf, Box<dyn std::error::Error + Send + Sync>> {
    let program = std::env::current_exe()?;
    let folder = program.parent().unwrap_or(Path::new("/"));
    let places = [folder.join(LIBRARY), folder.join("../lib").join(LIBRARY)];
    let found = places.iter().find(|place| place.is_file());
    let Some(found) = found else {
        let [beside, installed] = places;
        return Err(ExecError::NoLibrary(beside, installed).into());
    };
    let path = found.canonicalize()?;
    if path.as_os_str().as_bytes().iter().any(|byte| matches!(byte, b':' | b' ')) {
        return Err(ExecError::Path(path).into());
    }
    // It must be readable, or the dynamic linker would go on without it.
    File::open(&path)?;
    Ok(path)
}
