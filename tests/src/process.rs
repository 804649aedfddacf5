//! Processes by id: children, signals, memory; never by name.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::{Pid, Signal};

/// A process, told from a later one with the same id by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    started: u64,
}

impl Process {
    /// The running process `pid`, if there is one.
    pub fn find(pid: i32) -> Option<Self> {
        let (state, _, started) = stat(pid)?;
        (state != 'Z').then_some(Self { pid, started })
    }

    /// The postmaster that runs on data directory `data`: named by its `postmaster.pid`, and really a server of it.
    pub fn of_data_dir(data: &Path) -> Option<Self> {
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let process = Self::find(text.lines().next()?.trim().parse().ok()?)?;
        let cmdline = fs::read(format!("/proc/{}/cmdline", process.pid)).ok()?;
        String::from_utf8_lossy(&cmdline).contains(data.to_str()?).then_some(process)
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        Self::find(self.pid) == Some(*self)
    }

    /// Its direct children that run.
    pub fn children(&self) -> Vec<Self> {
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok())
            .filter(|&pid| stat(pid).is_some_and(|(_, parent, _)| parent == self.pid))
            .filter_map(Self::find)
            .collect()
    }

    /// Processor time, user and system, of the children that it has waited for: of a postmaster's ended backends.
    pub fn reaped_cpu(&self) -> Duration {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 =
            after_name.split_whitespace().skip(13).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }

    /// Its command line: for a PostgreSQL process what `ps` shows, such as `postgres: checkpointer`.
    pub fn title(&self) -> String {
        let raw = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&raw).replace('\0', " ").trim().to_owned()
    }

    /// Sends `signal`; a process that is gone already is left alone.
    pub fn signal(&self, signal: Signal) {
        if self.alive() {
            let pid = Pid::from_raw(self.pid).unwrap();
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// SIGKILL to it and then to its children, as a power cut would; returns when all are gone.
    pub fn kill_with_children(&self) {
        // Stopped first, so that it starts no new child between the listing and the kill.
        self.signal(Signal::STOP);
        let children = self.children();
        self.signal(Signal::KILL);
        for child in &children {
            child.signal(Signal::KILL);
        }
        for process in children.iter().chain([self]) {
            process.wait_gone(Duration::from_secs(20));
        }
    }

    /// Waits until it is gone; panics after `limit`.
    pub fn wait_gone(&self, limit: Duration) {
        let start = Instant::now();
        while self.alive() {
            assert!(
                start.elapsed() < limit,
                "process {} still runs after {limit:?}: {}",
                self.pid,
                self.title()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// State, parent and start time (clock ticks since boot) of process `pid`.
fn stat(pid: i32) -> Option<(char, i32, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields after it are numbers (proc(5)).
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some((state, parent, fields.nth(17)?.parse().ok()?))
}

/// Runs `command` to its end and returns what it printed; panics with all of it when it fails.
pub fn command_output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?} failed ({}):\n{}", output.status, both(&output));
    both(&output)
}

pub(crate) fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
