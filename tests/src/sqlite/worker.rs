//! The worker process (`sqlite/c/worker.c`) and its line protocol.

use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// SQLite's extended result code and message.
    Sqlite {
        /// The extended result code.
        code: i32,
        /// The message.
        message: String,
    },
    /// The process is gone.
    Died,
}

impl Refusal {
    /// The primary result code, 0 when the process is gone.
    pub fn primary(&self) -> i32 {
        match self {
            Self::Sqlite { code, .. } => code & 0xff,
            Self::Died => 0,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { code, message } => {
                write!(f, "{message} ({} | {} << 8)", code & 0xff, code >> 8)
            }
            Self::Died => f.write_str("the worker is gone"),
        }
    }
}

/// The rows of a request, every column as text, NULL as "NULL".
pub type Reply = Result<Vec<Vec<String>>, Refusal>;

/// A process with SQLite in it.
pub struct Worker {
    child: Child,
    requests: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
    log: Option<thread::JoinHandle<String>>,
    log_so_far: mpsc::Receiver<String>,
}

impl Worker {
    pub(super) fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let replies = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, log_so_far) = mpsc::channel();
        let log = thread::spawn(move || {
            let mut all = String::new();
            for line in stderr.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned() + "\n";
                all.push_str(&line);
                // The test may have dropped its end already.
                let _ = send.send(line);
            }
            all
        });
        Self { requests: child.stdin.take(), child, replies, log: Some(log), log_so_far }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a request without waiting; one that cannot be sent any more is dropped.
    pub fn send(&mut self, request: &str) {
        assert!(!request.contains('\n'), "one line: {request}");
        let requests = self.requests.as_mut().expect("finish() was not called");
        // A worker that was killed has closed its end: the reply says so.
        let _ = requests.write_all(format!("{request}\n").as_bytes()).and_then(|()| requests.flush());
    }

    /// The next reply.
    pub fn receive(&mut self) -> Reply {
        let mut rows = Vec::new();
        loop {
            let mut line = Vec::new();
            self.replies.read_until(b'\n', &mut line).unwrap();
            let line = String::from_utf8_lossy(&line);
            let Some(line) = line.strip_suffix('\n') else { return Err(Refusal::Died) };
            if let Some(row) = line.strip_prefix("= ") {
                rows.push(row.split('\x1f').map(str::to_owned).collect());
            } else if let Some(error) = line.strip_prefix("error ") {
                let (code, message) = error.split_once(' ').unwrap();
                return Err(Refusal::Sqlite { code: code.parse().unwrap(), message: message.to_owned() });
            } else if line == "=" {
                rows.push(Vec::new());
            } else {
                assert!(line.starts_with("ok ") || line.starts_with("forked "), "reply {line:?}");
                if let Some(code) = line.strip_prefix("forked ") {
                    rows.push(vec![code.to_owned()]);
                }
                return Ok(rows);
            }
        }
    }

    /// Sends a request and waits for its reply.
    pub fn ask(&mut self, request: &str) -> Reply {
        self.send(request);
        self.receive()
    }

    /// Opens connection `n`.
    pub fn open(&mut self, n: u32, uri: &str) -> Reply {
        self.ask(&format!("open {n} {uri}"))
    }

    /// Runs statements on connection 0; line ends become blanks.
    pub fn sql(&mut self, text: &str) -> Reply {
        self.sql_on(0, text)
    }

    /// Runs statements on connection `n`.
    pub fn sql_on(&mut self, n: u32, text: &str) -> Reply {
        self.ask(&format!("sql {n} {}", text.replace('\n', " ")))
    }

    /// Statements that must succeed.
    pub fn run(&mut self, text: &str) -> Vec<Vec<String>> {
        self.sql(text).unwrap_or_else(|e| panic!("{text}: {e}\nlog:\n{}", self.log_now()))
    }

    /// The first column of the first row.
    pub fn text(&mut self, text: &str) -> String {
        let rows = self.run(text);
        rows.first().and_then(|r| r.first()).unwrap_or_else(|| panic!("{text}: no row")).clone()
    }

    /// The first column of the first row as a number.
    pub fn int(&mut self, text: &str) -> i64 {
        let value = self.text(text);
        value.parse().unwrap_or_else(|e| panic!("{text}: {value:?}: {e}"))
    }

    /// What it has written to SQLite's log since the last call. Log lines come before the reply of the request they belong to.
    pub fn log_now(&mut self) -> String {
        // The lines are in the pipe already; their reader may be a moment late.
        thread::sleep(std::time::Duration::from_millis(30));
        self.log_so_far.try_iter().collect()
    }

    /// SIGKILL, and its end waited for.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Closes its input and waits for its end: whether it ended by itself, and all of its log.
    pub fn finish(mut self) -> (bool, String) {
        drop(self.requests.take());
        let mut rest = Vec::new();
        self.replies.read_to_end(&mut rest).unwrap();
        let ended = self.child.wait().unwrap().success();
        (ended, self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.requests.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
