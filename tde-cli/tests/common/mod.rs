//! An HSM, a keyring and the command, for tests of the command line.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hsm_engine::{Hsm, Initialize, Pin, SoftUri};
use keyring::SoftHsm;
use rusqlite::Connection;
use serde_json::Value;

pub struct Bench {
    pub dir: tempfile::TempDir,
    pub uri: SoftUri,
    pin: Pin,
}

/// What the command did.
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Bench {
    pub fn new() -> Self {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let (officer, pin) = (Pin::generate().unwrap(), Pin::generate().unwrap());
        let uri = SoftUri::new(dir.path().join("hsm"));
        Hsm::initialize_dir(&uri.dir, &Initialize::new(&officer, &pin)).unwrap();
        pin.write_new_file(dir.path().join("pin")).unwrap();
        Self { dir, uri, pin }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn login(&self) -> SoftHsm {
        SoftHsm::open(&self.uri, &self.pin).unwrap()
    }

    /// The options that log in.
    pub fn credentials(&self) -> [String; 4] {
        let pin_file = self.path("pin").display().to_string();
        ["--hsm".into(), self.uri.to_string(), "--pin-file".into(), pin_file]
    }

    /// Runs the command with these options and credentials.
    pub fn tde_with_pin(&self, arguments: &[&str]) -> Done {
        let credentials = self.credentials();
        let all: Vec<&str> =
            arguments.iter().copied().chain(credentials.iter().map(String::as_str)).collect();
        tde(&all)
    }

    /// Runs `tde sqlite` on a file, with keyring and credentials.
    pub fn sqlite(&self, command: &str, file: &Path, more: &[&str]) -> Done {
        let ring = self.path("ring");
        let base = ["sqlite", command, file.to_str().unwrap(), "--keyring", ring.to_str().unwrap()];
        self.tde_with_pin(&[&base[..], more].concat())
    }

    /// The same as a process.
    pub fn sqlite_command(&self, command: &str, file: &Path) -> Command {
        let mut process = Command::new(env!("CARGO_BIN_EXE_tde"));
        process.args(["sqlite", command]).arg(file).arg("--keyring").arg(self.path("ring"));
        process.args(self.credentials()).stdout(Stdio::null()).stderr(Stdio::piped()).stdin(Stdio::null());
        process
    }
}

/// Runs the command without any of its environment variables.
pub fn tde(arguments: &[&str]) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tde"));
    command.args(arguments);
    for variable in ["TDE_HSM", "TDE_KEYRING", "TDE_PIN_FILE", "TDE_PIN_COMMAND", "PGDATA"] {
        command.env_remove(variable);
    }
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

impl Done {
    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

pub fn flip_byte(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// A connection through the VFS in this process.
pub fn secret(bench: &Bench, file: &Path) -> Connection {
    static REGISTERED: std::sync::Once = std::sync::Once::new();
    REGISTERED.call_once(|| {
        tde_rusqlite::Vfs::builder().register().unwrap();
    });
    let (ring, pin) = (bench.path("ring"), bench.path("pin"));
    let uri = format!(
        "file:{}?vfs=tde&keyring={}&hsm={}&pin_file={}",
        file.display(),
        ring.display(),
        bench.uri,
        pin.display()
    );
    let db = Connection::open(uri).unwrap_or_else(|error| panic!("{error}: {}", tde_rusqlite::last_error()));
    db.busy_timeout(Duration::from_secs(30)).unwrap();
    db
}
