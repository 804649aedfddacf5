//! Helpers, HSM, keyring and folders of a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use hsm_engine::{Pin, SoftUri};
use keyring::{Keyring, Owner, SoftHsm};

use crate::sqlite::{Fault, Worker};
use crate::{Scratch, command_output, plain_mode, root};

/// Whether a worker's databases are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Stock SQLite alone: the control.
    Plain,
    /// The same with the extension loaded; every database is opened with `vfs=tde`.
    Tde,
}

impl Engine {
    /// Whether files are really encrypted: with `TDE_TESTS_PLAIN=1` nothing is.
    pub fn encrypts(self) -> bool {
        self == Self::Tde && !plain_mode()
    }
}

/// The compiled helpers, shared by the tests of this process.
struct Helpers {
    worker: PathBuf,
    disk: PathBuf,
    _scratch: Scratch,
}

fn helpers() -> &'static Helpers {
    static HELPERS: OnceLock<Helpers> = OnceLock::new();
    HELPERS.get_or_init(|| {
        let scratch = Scratch::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("sqlite/c");
        let (worker, disk) = (scratch.path().join("worker"), scratch.path().join("disk.so"));
        let gcc = |output: &Path, input: &str, options: &[&str]| {
            command_output(
                Command::new("gcc")
                    .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
                    .arg(output)
                    .arg(source.join(input))
                    .args(options),
            );
        };
        gcc(&worker, "worker.c", &["-lsqlite3"]);
        gcc(&disk, "disk.c", &["-shared", "-fPIC", "-ldl", "-lpthread"]);
        Helpers { worker, disk, _scratch: scratch }
    })
}

/// A software HSM with a keyring for files and a folder for databases, gone with the value.
pub struct Sqlite {
    scratch: Scratch,
    /// The store of the software HSM.
    pub store: PathBuf,
    /// The file with its user's PIN.
    pub pin_file: PathBuf,
    /// The folder of the keyring.
    pub keyring: PathBuf,
    /// The folder of the databases, their journals, and (by SQLITE_TMPDIR) temporary files.
    pub data: PathBuf,
}

impl Sqlite {
    /// `tde hsm init`, and an empty keyring.
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let dir = |name: &str| {
            let dir = scratch.path().join(name);
            fs::create_dir(&dir).unwrap();
            dir
        };
        let data = dir("data");
        let (store, pin_file, keyring) =
            (scratch.path().join("hsm"), scratch.path().join("pin"), scratch.path().join("keyring"));
        let mut init = Command::new(Self::tde_program());
        init.args(["hsm", "init", "--store"]).arg(&store).arg("--pin-file").arg(&pin_file);
        command_output(init.env("LC_ALL", "C"));
        let hsm = Self::login(&store, &pin_file);
        Keyring::create(&keyring, Owner::Files, &hsm).unwrap();
        hsm.close().unwrap();
        Self { scratch, store, pin_file, keyring, data }
    }

    fn login(store: &Path, pin_file: &Path) -> SoftHsm {
        SoftHsm::open(&SoftUri::new(store), &Pin::from_file(pin_file).unwrap()).unwrap()
    }

    /// A session of the HSM.
    pub fn hsm(&self) -> SoftHsm {
        Self::login(&self.store, &self.pin_file)
    }

    /// The `tde` command under test.
    pub fn tde_program() -> PathBuf {
        root::build_dir().join("tde")
    }

    /// The extension under test.
    pub fn extension() -> PathBuf {
        root::build_dir().join("libtde_sqlite.so")
    }

    /// The folder that goes away with this value.
    pub fn dir(&self) -> &Path {
        self.scratch.path()
    }

    /// A file in the folder of the databases.
    pub fn file(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }

    /// The URI under which `engine` opens `name`, with further parameters such as `psow=0`.
    pub fn uri(&self, engine: Engine, name: &str, parameters: &[&str]) -> String {
        let mut all = parameters.join("&");
        if engine.encrypts() {
            all = format!("vfs=tde&{all}");
        }
        format!("file:{}?{}", self.file(name).display(), all.trim_end_matches('&'))
    }

    /// The environment that configures the VFS.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("TDE_HSM", format!("soft:{}", self.store.display())),
            ("TDE_KEYRING", self.keyring.display().to_string()),
            ("TDE_PIN_FILE", self.pin_file.display().to_string()),
        ]
    }

    /// A command that runs `program` so configured, temporary files in the data folder.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command
            .env_clear()
            .envs(self.environment())
            .env("SQLITE_TMPDIR", &self.data)
            .env("LC_ALL", "C")
            .env("PATH", "/usr/bin:/bin")
            .current_dir(&self.data);
        command
    }

    /// A worker on a healthy disk.
    pub fn worker(&self, engine: Engine) -> Worker {
        Worker::spawn(self.worker_command(engine))
    }

    /// A worker whose disk is watched and may fail.
    pub fn faulty_worker(&self, engine: Engine, fault: Fault, log: Option<&Path>) -> Worker {
        let mut command = self.worker_command(engine);
        command.env("LD_PRELOAD", &helpers().disk).env("DISK_DIR", &self.data).envs(fault.environment());
        if let Some(log) = log {
            command.env("DISK_LOG", log);
        }
        Worker::spawn(command)
    }

    fn worker_command(&self, engine: Engine) -> Command {
        let mut command = self.command(&helpers().worker);
        if engine.encrypts() {
            command.arg(Self::extension());
        }
        command
    }

    /// Removes everything in the folder of the databases.
    pub fn clear(&self) {
        for entry in fs::read_dir(&self.data).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

impl Default for Sqlite {
    fn default() -> Self {
        Self::new()
    }
}
