//! Where the line of a SQLite file is: `by-file/2a/2a41...e7` (24 hex digits, the file id), so that a file is found by
//! its id however many there are.
//!
//! ```text
//!  0  16  line number, hex digits
//! 16   1  newline
//! ```
//!
//! A hint is not trusted: the sealed record that it points to must name the file. A hint that is missing or wrong costs a
//! look at every record, and is then written anew. So it needs neither seal nor fsync.
//!
//! # Write order
//! The hint is in place before the record is (store.rs, steps 1 to 5), both under the lock.
//!
//! | crash after | what is left |
//! |---|---|
//! | the hint | a hint to a line without record, or later to another file's: the same as none |
//! | a power cut that takes the hint alone | no hint: the next look-up reads all records and writes it |

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{KeyringError, Result};
use crate::failpoint;
use crate::ids::LineNumber;
use crate::scope::{Scope, ScopeKind};
use crate::store::{FileStore, Store as _, WriteLock, io_error, read_bounded};
use crate::unlocked::Unlocked;

const BY_FILE: &str = "by-file";

impl FileStore {
    fn hint_path(&self, file_id: &[u8; 12]) -> PathBuf {
        let name = hex::encode(file_id);
        self.shard_of_hints(file_id).join(name)
    }

    fn shard_of_hints(&self, file_id: &[u8; 12]) -> PathBuf {
        self.dir().join(BY_FILE).join(format!("{:02x}", file_id[0]))
    }

    pub(crate) fn read_hint_file(&self, file_id: &[u8; 12]) -> Result<Option<LineNumber>> {
        Ok(read_bounded(&self.hint_path(file_id))?.and_then(|bytes| parse(&bytes)))
    }

    /// Needs no lock: the file is replaced whole, and a file's line never changes.
    pub(crate) fn write_hint_file(&self, file_id: &[u8; 12], line: LineNumber) -> Result<()> {
        let (shard, path) = (self.shard_of_hints(file_id), self.hint_path(file_id));
        if !shard.is_dir() {
            self.make_own_dir(&self.dir().join(BY_FILE))?;
            self.make_own_dir(&shard)?;
        }
        // Whoever mends a hint holds no lock: two of them, be they threads, must not share a name.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.{}.{count}", hex::encode(file_id), std::process::id());
        let written = self.write_tmp(&name, encode(line.0).as_bytes(), false)?;
        fs::rename(written, &path).map_err(io_error("replace", &path))
    }
}

fn encode(line: u64) -> String {
    format!("{line:016x}\n")
}

fn parse(bytes: &[u8]) -> Option<LineNumber> {
    let digits = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
    let line = u64::from_str_radix(digits, 16).ok()?;
    (encode(line).as_bytes() == bytes).then_some(LineNumber(line))
}

impl Unlocked {
    /// The scope of a SQLite file. Reads two files, however many scopes there are; all records only when the hint is
    /// missing, as it is for a file of another keyring.
    ///
    /// # Errors
    /// Of a record that may be the one, when no other is.
    pub fn find_sqlite_file(&self, file_id: &[u8; 12]) -> Result<Option<Scope>> {
        if let Ok(Some(scope)) = self.hinted_sqlite_file(file_id) {
            return Ok(Some(scope));
        }
        let Some(scope) = self.search_sqlite_file(file_id)? else { return Ok(None) };
        // Worth the next look-up's time, and no more: whoever may only read the keyring cannot write it.
        let _unwritten = self.store.write_hint(file_id, scope.line);
        Ok(Some(scope))
    }

    /// As [`find_sqlite_file`](Self::find_sqlite_file), but never reads more than two files: for asking several keyrings
    /// in turn which of them knows a file.
    pub fn hinted_sqlite_file(&self, file_id: &[u8; 12]) -> Result<Option<Scope>> {
        let Some(line) = self.store.read_hint(file_id)? else { return Ok(None) };
        let Some(record) = self.read_line(line)? else { return Ok(None) };
        let scope = record.open(&self.seal, &self.store.line_path(line))?;
        Ok(Some(scope).filter(|scope| is_of(scope, file_id)))
    }

    fn search_sqlite_file(&self, file_id: &[u8; 12]) -> Result<Option<Scope>> {
        // A keyring that vanished has no records either.
        self.root()?;
        let mut unreadable = None;
        for line in self.store.lines()? {
            match self.scope(line) {
                Ok(scope) if is_of(&scope, file_id) => return Ok(Some(scope)),
                Ok(_) => {}
                Err(error) => unreadable = unreadable.or(Some(error)),
            }
        }
        // A record that cannot be read may be the one: not the same as there being none.
        unreadable.map_or(Ok(None), Err)
    }

    /// A file has one line. Under the lock.
    pub(crate) fn refuse_second_line(&self, file_id: &[u8; 12]) -> Result<()> {
        match self.hinted_sqlite_file(file_id)? {
            Some(scope) => {
                Err(KeyringError::ScopeExists { scope: scope.to_string(), state: "in use".into() })
            }
            None => Ok(()),
        }
    }

    pub(crate) fn hint(&self, _lock: &WriteLock, scope: &Scope) -> Result<()> {
        if let ScopeKind::SqliteFile { file_id } = &scope.kind {
            self.store.write_hint(file_id, scope.line)?;
            failpoint::hit("hint-written");
        }
        Ok(())
    }
}

fn is_of(scope: &Scope, wanted: &[u8; 12]) -> bool {
    matches!(&scope.kind, ScopeKind::SqliteFile { file_id } if file_id == wanted)
}
