//! The beginning, before `main`, the only unsafe code of this crate.

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::fs::File;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::catch_unwind;

use redirect::SlotError;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};
use secret_mem::SecretBuf;
use wal_cipher::handover::{self, NotKeys, WalKeys};

use crate::host::{self, ThisTool, say};
use crate::tool::Tool;

/// Names the descriptor of the pipe with the keys.
const KEYS: &str = "TDE_EXEC_KEYS";
const PRELOAD: &str = "LD_PRELOAD";
/// As the `tde` command: it could not be done.
const CANNOT: i32 = 2;

/// Why the tool must not run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("the library is preloaded without keys: run the tool with \"tde exec -- TOOL\"")]
    NoPipe,
    #[error(
        "the keys cannot be taken over, a program between \"tde exec\" and this tool may have closed them: {0}"
    )]
    Pipe(#[from] Errno),
    #[error(transparent)]
    NotKeys(#[from] NotKeys),
    #[error("the keys cannot be read: {0}")]
    Read(#[from] secret_mem::ReadError),
    #[error("this build of the tool cannot be redirected: {0}")]
    Slots(#[from] SlotError),
    #[error("this process cannot be protected: {0}")]
    Harden(#[from] secret_mem::HardenError),
}

/// Called by the dynamic linker when every library is loaded, with what `main` gets.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = start;

extern "C" fn start(count: c_int, arguments: *const *const c_char, _environment: *const *const c_char) {
    let outcome = catch_unwind(|| {
        let arguments: Vec<&[u8]> = (0..usize::try_from(count).unwrap_or(0))
            // SAFETY: glibc passes `main`'s arguments: `count` NUL-terminated strings that live as long as the process.
            .map(|index| unsafe { CStr::from_ptr(*arguments.add(index)) }.to_bytes())
            .collect();
        begin(&arguments)
    });
    match outcome {
        Ok(Ok(())) => (),
        Ok(Err(error)) => {
            say(&error.to_string());
            std::process::exit(CANNOT);
        }
        // The panic's own message was printed.
        Err(_) => std::process::exit(CANNOT),
    }
}

fn begin(arguments: &[&[u8]]) -> Result<(), StartError> {
    let executable = std::env::current_exe().unwrap_or_default();
    let program = executable.file_name().unwrap_or_default().as_bytes();
    let pipe = std::env::var_os(KEYS).and_then(|text| text.to_str()?.parse::<i32>().ok());
    let Some(tool) = Tool::of(program, arguments) else {
        if program == b"postgres" {
            // It has keys of its own, and lives long.
            forget_keys();
            pipe.map(take);
        } else if pipe.is_some() {
            secret_mem::harden_process()?;
        }
        return Ok(());
    };
    let pipe = take(pipe.ok_or(StartError::NoPipe)?);
    secret_mem::harden_process()?;
    let keys = read_keys(&pipe?)?;
    forget_keys();
    let required = tool.required();
    host::become_tool(tool, keys);
    redirect::install::<ThisTool>(required)?;
    // SAFETY: registers a function without arguments that stays as long as the library, which is never unloaded.
    unsafe { libc::pthread_atfork(None, None, Some(relock)) };
    Ok(())
}

/// pg_basebackup streams WAL in a child of its own; the kernel does not pass memory locks on.
extern "C" fn relock() {
    secret_mem::relock_after_fork();
}

/// The pipe as an owned descriptor, if it is open.
fn take(pipe: i32) -> Result<OwnedFd, StartError> {
    // SAFETY: asked only whether it is open; nothing is kept.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(pipe) })?;
    // SAFETY: it is open, and `tde exec` left it for this library: nothing else in this process, which has not begun yet, owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(pipe) })
}

/// Reads a copy: a shell or pg_verifybackup may start another tool that needs them too.
fn read_keys(pipe: &OwnedFd) -> Result<WalKeys, StartError> {
    let (copy, end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::pipe::fcntl_setpipe_size(&end, rustix::pipe::fcntl_getpipe_size(pipe)?)?;
    rustix::pipe::tee(pipe, &end, handover::LONGEST, SpliceFlags::NONBLOCK)?;
    drop(end);
    let bytes = SecretBuf::read_from(File::from(copy), handover::LONGEST)?;
    Ok(WalKeys::from_bytes(bytes.as_slice())?)
}

/// Programs that this one starts get neither the keys nor the library.
fn forget_keys() {
    let others = std::env::var_os(PRELOAD).map(|list| without_first(&list)).filter(|list| !list.is_empty());
    // SAFETY: before `main` there is one thread.
    unsafe {
        std::env::remove_var(KEYS);
        match others {
            Some(others) => std::env::set_var(PRELOAD, others),
            None => std::env::remove_var(PRELOAD),
        }
    }
}

/// `tde exec` puts this library before those that were there.
fn without_first(list: &OsStr) -> OsString {
    let mut parts = list.as_bytes().splitn(2, |byte| matches!(byte, b':' | b' '));
    parts.next();
    OsString::from_vec(parts.next().unwrap_or_default().to_vec())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn libraries_that_were_preloaded_before_stay() {
        for (list, rest) in
            [("/a/x.so", ""), ("/a/x.so:/b.so", "/b.so"), ("/a/x.so /b.so:/c.so", "/b.so:/c.so")]
        {
            assert_eq!(without_first(OsStr::new(list)), OsStr::new(rest), "{list}");
        }
    }

    #[test]
    fn keys_can_be_read_more_than_once() {
        let (pipe, end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        assert!(matches!(read_keys(&pipe), Err(StartError::Pipe(Errno::AGAIN))));
        let keys = WalKeys::new(7, vec![(0, true)]);
        File::from(end).write_all(keys.to_bytes().as_slice()).expect("written");
        for _ in 0..3 {
            assert_eq!(read_keys(&pipe).expect("keys").to_bytes().as_slice(), keys.to_bytes().as_slice());
        }
    }
}
