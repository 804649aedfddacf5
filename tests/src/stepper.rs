//! Stopping a process after a chosen change of a file.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::{Process, Scratch};

/// System calls that change files or make changes durable; a question mark: not on every architecture.
const CALLS: &str = "write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,?rename,?renameat,?renameat2,?unlink,?unlinkat,?link,?linkat";

/// `strace` on one process: it lists the process's changes of files, and can stop the process after one of them.
pub struct Stepper {
    strace: Child,
    process: Process,
    output: PathBuf,
    _scratch: Scratch,
}

impl Stepper {
    /// Attaches to `process`, which stops (SIGSTOP) after so many changes from now on, if asked. `None` when it is gone already.
    pub fn attach(process: Process, stop_after: Option<usize>) -> Option<Self> {
        let scratch = Scratch::new();
        let output = scratch.path().join("calls");
        let mut command = Command::new("strace");
        command.args(["-y", "-s", "0", "-e", &format!("trace={CALLS}"), "-o"]).arg(&output);
        if let Some(count) = stop_after {
            command.arg("-e").arg(format!("inject={CALLS}:signal=SIGSTOP:when={count}"));
        }
        command.arg("-p").arg(process.pid.to_string());
        let mut strace = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("strace: {error}: run 'make setup'"));
        let mut said = BufReader::new(strace.stderr.take().expect("it is piped")).lines();
        let first = said.next().transpose().unwrap().unwrap_or_default();
        if first.contains("attached") {
            // Whatever else it says must not fill the pipe.
            std::thread::spawn(move || said.count());
            return Some(Self { strace, process, output, _scratch: scratch });
        }
        assert!(!process.alive(), "strace -p {}: {first}", process.pid);
        let _ = strace.wait();
        None
    }

    /// The changes so far, one a line, as strace shows them.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        text.lines().filter(|line| !line.starts_with(['-', '+'])).map(str::to_owned).collect()
    }

    /// Whether the process stands still.
    pub fn stopped(&self) -> bool {
        fs::read_to_string(&self.output).unwrap_or_default().contains("--- stopped by SIGSTOP")
    }

    /// Whether the process has ended.
    pub fn ended(&self) -> bool {
        !self.process.alive()
    }
}

impl Drop for Stepper {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
