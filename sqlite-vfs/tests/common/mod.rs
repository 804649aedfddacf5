//! A scratch folder with an HSM and a keyring, and the VFS registered with the SQLite of this test program.
#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "shared by test programs that use parts of it"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use hsm_engine::{Hsm, Initialize, Pin};
use rusqlite::ffi::ErrorCode;
use rusqlite::{Connection, OpenFlags};

/// Text that must not be found in any file.
pub const CANARY: &str = "Known-Plaintext-Canary";

/// A scratch folder; the HSM and the keyring are shared by all tests of the program.
pub struct Scratch {
    dir: tempfile::TempDir,
}

fn private_dir() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o700)).tempdir().unwrap()
}

/// Registers the VFS once; returns the folder of HSM and keyring.
pub fn keys() -> &'static Path {
    static KEYS: OnceLock<PathBuf> = OnceLock::new();
    KEYS.get_or_init(|| {
        let dir = private_dir().keep();
        let (officer, pin) = (Pin::generate().unwrap(), Pin::generate().unwrap());
        Hsm::initialize_dir(dir.join("hsm"), &Initialize::new(&officer, &pin)).unwrap();
        pin.write_new_file(dir.join("pin")).unwrap();
        tde_rusqlite::Vfs::builder()
            .keyring(dir.join("keyring"))
            .unwrap()
            .hsm(&format!("soft:{}", dir.join("hsm").display()))
            .unwrap()
            .pin_file(dir.join("pin"))
            .register()
            .unwrap();
        dir
    })
}

impl Scratch {
    pub fn new() -> Self {
        keys();
        Self { dir: private_dir() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn uri(&self, name: &str, parameters: &str) -> String {
        format!("file:{}?vfs=tde{parameters}", self.path(name).display())
    }

    pub fn open(&self, name: &str) -> Connection {
        self.open_with(name, "").unwrap()
    }

    pub fn open_with(&self, name: &str, parameters: &str) -> rusqlite::Result<Connection> {
        open(&self.uri(name, parameters))
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }
}

pub fn open(uri: &str) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags)
}

/// The first column of the first row, as text.
pub fn text(db: &Connection, sql: &str) -> String {
    try_text(db, sql).unwrap()
}

pub fn try_text(db: &Connection, sql: &str) -> rusqlite::Result<String> {
    db.query_row(sql, [], |row| {
        Ok(match row.get_ref(0)? {
            rusqlite::types::ValueRef::Integer(i) => i.to_string(),
            rusqlite::types::ValueRef::Text(t) => String::from_utf8_lossy(t).into_owned(),
            other => format!("{other:?}"),
        })
    })
}

/// Rows with the canary, enough for several levels of pages.
pub fn fill(db: &Connection, rows: u32) {
    db.execute_batch(&format!(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, filler BLOB); CREATE INDEX by_name ON t(name);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows})
         INSERT INTO t SELECT i, '{CANARY}-' || i, randomblob(200) FROM n;"
    ))
    .unwrap();
}

pub fn assert_healthy(db: &Connection, rows: u32) {
    assert_eq!(text(db, "SELECT count(*) FROM t"), rows.to_string());
    assert_eq!(text(db, "PRAGMA integrity_check"), "ok");
    assert_eq!(text(db, "PRAGMA tde_verify"), "ok");
}

pub fn has(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// The reason in an extended result code.
pub fn reason(error: &rusqlite::Error) -> u8 {
    match error {
        rusqlite::Error::SqliteFailure(error, _) => (error.extended_code >> 8) as u8,
        other => panic!("no failure of SQLite: {other}"),
    }
}

pub fn primary(error: &rusqlite::Error) -> Option<ErrorCode> {
    error.sqlite_error_code()
}
