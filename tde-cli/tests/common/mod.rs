//! An HSM, a keyring and the command, for tests of the command line.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hsm_engine::{Hsm, Initialize, Pin, SoftUri};
use keyring::SoftHsm;
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
}

/// Runs the command without any of its environment variables.
pub fn tde(arguments: &[&str]) -> Done {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tde"));
    command.args(arguments);
    for variable in ["TDE_HSM", "TDE_KEYRING", "TDE_PIN_FILE", "TDE_PIN_COMMAND", "PGDATA"] {
        command.env_remove(variable);
    }
    let Output { status, stdout, stderr } = command.stdin(std::process::Stdio::null()).output().unwrap();
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
