//! `tde sqlite`: encrypts, decrypts, rotates and checks database files.

mod compare;
mod convert;
mod destroy;
mod info;
mod progress;
mod replace;
mod rotate;
mod sidecar;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, Subcommand};
use keyring::HsmUri;
use rusqlite::{Connection, OpenFlags};
use sqlite_vfs::keys::{Configured, FileKeys, KeySource as _, PinCallback, Settings};
use sqlite_vfs::offline::{self, ClearFacts, DatabaseFile, Identified};

pub(crate) use self::progress::{Progress, Stopped};
pub(crate) use self::rotate::{Rotation, rotate};
use crate::CliResult;
use crate::credentials::{HsmArgs, KeyringArgs, MissingOption};
use crate::output::Output;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Encrypt a plaintext database that no program has open
    Encrypt(convert::Args),
    /// Make an encrypted database that no program has open plaintext again
    Decrypt(convert::Args),
    /// Give a database a new data key and rewrite every page under it, while programs use it
    Rotate(rotate::Args),
    /// Destroy an old data key, after a waiting period, if no page needs it any more
    DestroyKey(destroy::Args),
    /// Open every page on disk, and every committed frame of the WAL
    Verify(verify::Args),
    /// Show what a file is; with --keyring and --hsm also its keys
    Info(info::Args),
}

pub(crate) fn run(command: Command, output: &Output) -> CliResult {
    match command {
        Command::Encrypt(args) => convert::encrypt(&args, output),
        Command::Decrypt(args) => convert::decrypt(&args, output),
        Command::Rotate(args) => rotate::run(&args, output),
        Command::DestroyKey(args) => destroy::run(&args, output),
        Command::Verify(args) => verify::run(&args, output),
        Command::Info(args) => info::run(&args, output),
    }
}

/// Which file, and where its keys are.
#[derive(Args, Clone, Debug)]
pub(crate) struct Target {
    /// The database file
    pub(crate) file: PathBuf,
    #[command(flatten)]
    keyring: KeyringArgs,
    #[command(flatten)]
    hsm: HsmArgs,
}

/// What a file is, if that is not what the command needs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotThat {
    #[error("{0} is a plaintext database; `tde sqlite encrypt` encrypts it")]
    Plaintext(String),
    #[error("{0} is encrypted already")]
    Encrypted(String),
    #[error("{0} is empty: SQLite makes the database in it when the first table is made")]
    Empty(String),
    #[error(
        "the first page of {0} is zero: it was never written, or its write was cut short; restore the file from a backup"
    )]
    Torn(String),
    #[error(
        "the header of {0} names no page size: it was changed, or its write was cut short; restore the file from a backup"
    )]
    NoPageSize(String),
    #[error("{path} has format version {format}, which this program does not know; use a newer release")]
    Later { path: String, format: u8 },
    #[error("{0} is no SQLite database, neither plaintext nor encrypted by tde")]
    Foreign(String),
}

impl Target {
    /// The file itself, links to it resolved: it is what will be replaced.
    fn path(&self) -> Result<PathBuf> {
        self.file.canonicalize().map_err(|source| At { path: self.file.clone(), source }.into())
    }

    /// Whether the options name keyring and HSM.
    fn names_keys(&self) -> bool {
        self.keyring.keyring.is_some() && self.hsm.hsm.is_some()
    }

    /// Logs in, which may ask for a PIN.
    fn login(&self) -> Result<Access> {
        let args = self.hsm.clone();
        let hsm = args.hsm.clone().ok_or(MissingOption::Hsm)?;
        let access = Access::new(self.keyring.directory()?, hsm, Arc::new(move |uri| args.pin(uri)));
        access.ready(&self.file.display().to_string())?;
        Ok(access)
    }
}

/// Where keys come from; logged in.
pub(crate) struct Access {
    keyring: PathBuf,
    hsm: HsmUri,
    /// One for both ways to the keys, so that they share one login.
    ask: PinCallback,
    /// Its name in this program's SQLite.
    vfs: String,
}

impl Access {
    /// Nothing happens before [`ready`](Self::ready).
    pub(crate) fn new(keyring: &Path, hsm: HsmUri, ask: PinCallback) -> Self {
        Self { keyring: keyring.to_path_buf(), hsm, ask, vfs: "tde".to_owned() }
    }

    /// Under another name than `tde`, registered: a program may have several.
    pub(crate) fn named(mut self, vfs: String) -> Result<Self> {
        self.vfs = vfs;
        self.register()?;
        Ok(self)
    }

    /// Logs in and unlocks the keyring; `what` is to be done with it.
    pub(crate) fn ready(&self, what: &str) -> Result<()> {
        Ok(self.source()?.ready(what)?)
    }

    fn source(&self) -> Result<Configured> {
        let settings = Settings::new().keyring(&self.keyring)?.hsm(self.hsm.clone());
        Ok(Configured::new(settings.pin_callback(Arc::clone(&self.ask)), Settings::new()))
    }

    /// The keys of an encrypted file.
    pub(crate) fn keys(&self, path: &Path, file: &DatabaseFile) -> Result<Arc<FileKeys>> {
        Ok(self.source()?.existing(file.id(), &path.display().to_string())?)
    }

    /// Makes the VFS known to this program's SQLite, with these keys.
    fn register(&self) -> Result<()> {
        let vfs = tde_rusqlite::Vfs::builder()
            .name(&self.vfs)
            .keyring(&self.keyring)?
            .hsm(&self.hsm.to_string())?;
        vfs.pin_callback(Arc::clone(&self.ask)).register()?;
        Ok(())
    }
}

fn encrypted(path: &Path) -> Result<DatabaseFile> {
    match offline::identify(path)? {
        Identified::Encrypted(file) => Ok(file),
        other => Err(not_encrypted(path, &other).into()),
    }
}

/// What a file is that should be encrypted.
pub(crate) fn not_encrypted(path: &Path, what: &Identified) -> NotThat {
    match what {
        Identified::Plaintext(_) => NotThat::Plaintext(path.display().to_string()),
        other => neither(path, other),
    }
}

fn plaintext(path: &Path) -> Result<ClearFacts> {
    match offline::identify(path)? {
        Identified::Plaintext(facts) => Ok(facts),
        Identified::Encrypted(_) => Err(NotThat::Encrypted(path.display().to_string()).into()),
        other => Err(neither(path, &other).into()),
    }
}

fn neither(path: &Path, what: &Identified) -> NotThat {
    let path = path.display().to_string();
    match what {
        Identified::Empty => NotThat::Empty(path),
        Identified::Torn => NotThat::Torn(path),
        Identified::NoPageSize => NotThat::NoPageSize(path),
        Identified::Later(format) => NotThat::Later { path, format: *format },
        _ => NotThat::Foreign(path),
    }
}

/// An error of the operating system's, with the file.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
pub(crate) struct At {
    pub(crate) path: PathBuf,
    pub(crate) source: std::io::Error,
}

/// An error of SQLite's, with the file, and with what the VFS has to say about it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {text}", path.display())]
pub(crate) struct SqliteError {
    path: PathBuf,
    text: String,
}

/// Names the file in an error of SQLite's.
fn at(path: &Path) -> impl Fn(rusqlite::Error) -> SqliteError {
    let path = path.to_path_buf();
    move |error| {
        let text = error.to_string();
        let said = tde_rusqlite::last_error();
        let extended = error.sqlite_error().map_or(0, |error| error.extended_code);
        // Codes of the VFS have a reason in their second byte that SQLite does not give.
        let text = if extended >> 8 >= 0xD0 && !said.is_empty() { said } else { text };
        SqliteError { path: path.clone(), text }
    }
}

/// `file:...?vfs=...` for a path of any bytes.
fn uri(path: &Path, parameters: &str) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-+,=:@~ ".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            uri += &format!("%{byte:02X}");
        }
    }
    uri + "?" + parameters
}

/// A connection to a database that exists.
fn connect(path: &Path, parameters: &str) -> std::result::Result<Connection, SqliteError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri(path, parameters), flags).map_err(at(path))?;
    // What the VFS may not see of a plaintext database's temporary files must not reach the disk.
    connection.execute_batch("PRAGMA temp_store = MEMORY").map_err(at(path))?;
    Ok(connection)
}
