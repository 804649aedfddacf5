//! Where records are kept, and how they get there whole.
//!
//! # Layout
//! ```text
//! keyring/              0700
//!   keyring.tde         the root
//!   lines/2a/000000000000002a.tde   one record per line; the folder is the low byte of the line
//!   by-file/2a/...      where the line of a SQLite file is (hints.rs)
//!   retained/           records whose keys a standby may still recover with (retained.rs)
//!   tmp/                records on their way; swept under the lock
//!   lock                flock(2) by whoever writes
//! ```
//! Other files in the directory are left alone.
//!
//! # Write order
//! A change is one record and the root that counts it. Under the lock:
//!
//! 1. `tmp/<record>` written and fsynced,
//! 2. `tmp/keyring.tde` written and fsynced,
//! 3. the record renamed into place, its folder fsynced,
//! 4. the root renamed into place, the keyring's folder fsynced,
//! 5. (by the caller) the HSM told of the new generation.
//!
//! | crash after | what is left | who mends it |
//! |---|---|---|
//! | 1, 2 | the old state; files in `tmp/` | the next writer removes them, root first |
//! | 3 | new record, old root; `tmp/keyring.tde` without `tmp/<record>` | readers accept the newer record; the next writer does step 4 |
//! | 4 | the new state; the HSM remembers one generation less | accepted: not older; the next unlocking tells it |
//!
//! Readers take no lock: each file is replaced whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags};

use crate::error::{KeyringError, Result};
use crate::failpoint;
use crate::format::MAX_LEN;
use crate::format::root::Root;
use crate::ids::LineNumber;
use crate::instance::place;
use crate::retained::Retained;

/// How long a writer waits for another one before it gives up.
pub const LOCK_DEADLINE: Duration = Duration::from_secs(60);
/// A batch of at least this many records is made durable with one syncfs(2) instead of one fsync(2) each.
const SYNCFS_FROM: usize = 32;

const ROOT: &str = "keyring.tde";
const LINES: &str = "lines";
const TMP: &str = "tmp";
const RETAINED: &str = "retained";
const LOCK: &str = "lock";
/// Temporary name of a root that comes without a record: never taken for step 2.
const ROOT_ALONE: &str = "root-alone.tde";

/// Reads and writes whole records. Implementations need not be fast, but `commit` must be atomic and
/// durable when it returns.
pub trait Store: Send + Sync {
    /// Bytes of the root; `None` if there is none.
    fn read_root(&self) -> Result<Option<Vec<u8>>>;
    /// Bytes of one record; `None` if there is none.
    fn read_line(&self, line: LineNumber) -> Result<Option<Vec<u8>>>;
    /// Every line that has a record, ascending.
    fn lines(&self) -> Result<Vec<LineNumber>>;
    /// Which line may be that of a SQLite file; `None` if nobody noted it.
    fn read_hint(&self, file_id: &[u8; 12]) -> Result<Option<LineNumber>>;
    /// Notes the line of a SQLite file, atomically; need not be durable.
    fn write_hint(&self, file_id: &[u8; 12], line: LineNumber) -> Result<()>;
    /// Waits for the write lock and mends what a crashed writer left.
    fn lock(&self) -> Result<WriteLock>;
    /// Replaces a record and the root that counts it, in this order.
    fn commit(&self, lock: &WriteLock, line: LineNumber, record: &[u8], root: &[u8]) -> Result<()>;
    /// Replaces the root alone.
    fn replace_root(&self, lock: &WriteLock, root: &[u8]) -> Result<()>;
    /// Replaces records without the root: for changes that the root does not count (re-wrapping). Each
    /// record is replaced atomically; after a crash some are and some are not.
    fn replace_lines(&self, lock: &WriteLock, records: &[(LineNumber, Vec<u8>)]) -> Result<()>;
    /// Keeps a copy of a record, durably. A store that cannot loses nothing but the time that a standby has to recover with old keys.
    fn retain(&self, lock: &WriteLock, of: Retained, record: &[u8]) -> Result<()>;
    /// Every record that is kept.
    fn retained(&self) -> Result<Vec<Retained>>;
    /// Bytes of one; `None` if there is none.
    fn read_retained(&self, of: Retained) -> Result<Option<Vec<u8>>>;
    /// Removes one.
    fn forget_retained(&self, lock: &WriteLock, of: Retained) -> Result<()>;
    /// How errors name one.
    fn retained_path(&self, of: Retained) -> PathBuf;
    /// How errors name a line's record.
    fn line_path(&self, line: LineNumber) -> PathBuf;
    /// How errors name the root.
    fn root_path(&self) -> PathBuf;
    /// The directory: its absolute path, links on the way to it resolved.
    fn dir(&self) -> &Path;
}

/// Held while writing; the lock goes with it.
pub struct WriteLock {
    _held: Box<dyn Send>,
}

impl WriteLock {
    /// Wraps whatever gives the lock up when it is dropped.
    pub fn new(held: impl Send + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

/// Unlocks by itself and not only by closing: a child that another thread forked meanwhile has the file open, too.
struct HeldLock(OwnedFd);

impl Drop for HeldLock {
    fn drop(&mut self) {
        // Closing unlocks as well, unless there is such a child.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Records as files of one directory.
#[derive(Debug)]
pub struct FileStore {
    dir: PathBuf,
    lock_deadline: Duration,
}

impl FileStore {
    /// An existing directory. Refuses one that others may read or its group may write; a group that reads
    /// is tolerated, for PostgreSQL's own group access (`initdb -g`) gives it to base backups.
    pub fn open(dir: &Path) -> Result<Self> {
        let found = place(dir).and_then(|place| Ok((fs::metadata(&place)?, place)));
        let (metadata, dir) = match found {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(KeyringError::NotAKeyring { path: dir.into(), reason: "it does not exist" });
            }
            Err(error) => return Err(io_error("open", dir)(error)),
        };
        if !metadata.is_dir() {
            return Err(KeyringError::NotAKeyring { path: dir, reason: "it is not a directory" });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o027 != 0 {
            return Err(KeyringError::LoosePermissions { path: dir, mode });
        }
        Ok(Self { dir, lock_deadline: LOCK_DEADLINE })
    }

    /// The directory, made (0700) with its folders if need be; the root is written last, by the caller.
    pub fn create(dir: &Path) -> Result<Self> {
        make_dir(dir)?;
        let store = Self::open(dir)?;
        store.make_own_dir(&store.dir.join(LINES))?;
        store.make_own_dir(&store.dir.join(TMP))?;
        sync_dir(&store.dir)?;
        if let Some(parent) = store.dir.parent() {
            sync_dir(parent)?;
        }
        Ok(store)
    }

    /// Another limit than [`LOCK_DEADLINE`] on waiting for other writers.
    pub fn with_lock_deadline(self, lock_deadline: Duration) -> Self {
        Self { lock_deadline, ..self }
    }

    fn tmp(&self, name: &str) -> PathBuf {
        self.dir.join(TMP).join(name)
    }

    pub(crate) fn write_tmp(&self, name: &str, bytes: &[u8], sync: bool) -> Result<PathBuf> {
        let path = self.tmp(name);
        // Always a new file: one that is there may be a link to something else.
        remove(&path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("create", &path))?;
        self.give_to_owner(&file, &path)?;
        file.write_all(bytes).map_err(io_error("write", &path))?;
        if sync {
            file.sync_all().map_err(io_error("fsync", &path))?;
        }
        Ok(path)
    }

    /// Root may work on a server's keyring: the files stay the server's. Only for what was just made.
    fn give_to_owner(&self, file: &File, path: &Path) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let owner = fs::metadata(&self.dir).map_err(io_error("look at", &self.dir))?;
        fchown(file, Some(owner.uid()), Some(owner.gid())).map_err(io_error("change the owner of", path))
    }

    fn make_shard(&self, line: LineNumber) -> Result<PathBuf> {
        let lines = self.dir.join(LINES);
        let shard = lines.join(shard_name(line));
        if !shard.is_dir() {
            self.make_own_dir(&lines)?;
            self.make_own_dir(&shard)?;
            sync_dir(&lines)?;
        }
        Ok(shard)
    }

    pub(crate) fn make_own_dir(&self, path: &Path) -> Result<()> {
        if !make_dir(path)? {
            return real_dir(path);
        }
        let dir = no_link(OFlags::DIRECTORY).open(path).map_err(io_error("open", path))?;
        self.give_to_owner(&dir, path)
    }

    fn open_lock(&self) -> Result<File> {
        let path = self.dir.join(LOCK);
        loop {
            match no_link(OFlags::empty()).write(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                opened => return opened.map_err(io_error("open", &path)),
            }
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                // Another writer was faster.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io_error("create", &path)(error)),
                Ok(file) => {
                    self.give_to_owner(&file, &path)?;
                    return Ok(file);
                }
            }
        }
    }

    /// Mends what a crash left (see the table above). Called with the lock held.
    fn sweep(&self) -> Result<()> {
        let tmp = self.dir.join(TMP);
        // What is in it is going to be removed.
        if tmp.is_symlink() {
            real_dir(&tmp)?;
        }
        let entries = match fs::read_dir(&tmp) {
            Ok(entries) => entries,
            // A copy tool may leave empty folders out.
            Err(error) if error.kind() == ErrorKind::NotFound => return self.make_own_dir(&tmp),
            Err(error) => return Err(io_error("list", &tmp)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("list", &tmp))?;
            if entry.file_type().map_err(io_error("look at", &tmp))?.is_symlink() {
                // No writer made it.
                remove(&entry.path())?;
                continue;
            }
            names.push(entry.file_name());
        }
        if names.is_empty() {
            return Ok(());
        }
        let root_pending = names.iter().any(|name| name == ROOT);
        if root_pending && self.record_is_in_place(&names)? && self.pending_root_is_newer()? {
            return self.move_root(&self.tmp(ROOT));
        }
        // The root first: alone it would look like step 3.
        if root_pending {
            remove(&self.tmp(ROOT))?;
            sync_dir(&tmp)?;
        }
        for name in names.iter().filter(|name| *name != ROOT) {
            remove(&tmp.join(name))?;
        }
        sync_dir(&tmp)
    }

    /// Whether step 3 was reached: no record waits in `tmp/`, or (on a file system whose rename is not
    /// atomic over a power cut) the one waiting is in place as well.
    fn record_is_in_place(&self, names: &[std::ffi::OsString]) -> Result<bool> {
        for name in names.iter().filter(|name| *name != ROOT && *name != ROOT_ALONE) {
            let Some(line) = name.to_str().and_then(parse_line_name) else { continue };
            let waiting = read_bounded(&self.dir.join(TMP).join(name))?;
            if waiting != self.read_line(line)? {
                return Ok(false);
            }
            remove(&self.dir.join(TMP).join(name))?;
        }
        Ok(true)
    }

    /// False for a leftover beside a root that was restored since.
    fn pending_root_is_newer(&self) -> Result<bool> {
        let path = self.tmp(ROOT);
        let Some(pending) = read_bounded(&path)?.and_then(|bytes| Root::from_bytes(&bytes, &path).ok())
        else {
            return Ok(false);
        };
        let path = self.root_path();
        let Some(current) = self.read_root()? else { return Ok(true) };
        let current = Root::from_bytes(&current, &path)?.facts;
        let pending = pending.facts;
        Ok(pending.keyring != current.keyring || pending.generation > current.generation)
    }

    fn move_root(&self, from: &Path) -> Result<()> {
        let root = self.root_path();
        fs::rename(from, &root).map_err(io_error("replace", &root))?;
        sync_dir(&self.dir)
    }
}

impl Store for FileStore {
    fn read_root(&self) -> Result<Option<Vec<u8>>> {
        read_bounded(&self.root_path())
    }

    fn read_line(&self, line: LineNumber) -> Result<Option<Vec<u8>>> {
        read_bounded(&self.line_path(line))
    }

    fn lines(&self) -> Result<Vec<LineNumber>> {
        let lines = self.dir.join(LINES);
        let mut found = Vec::new();
        for shard in list(&lines)? {
            let shard = lines.join(shard);
            for name in list(&shard)? {
                let line = name.to_str().and_then(parse_line_name);
                let line = line.filter(|line| self.line_path(*line) == shard.join(&name));
                // A stray file may be a record under a wrong name: silence could hide a key.
                let stray =
                    || KeyringError::Damaged { path: shard.join(&name), what: "its name is not a line's" };
                found.push(line.ok_or_else(stray)?);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn read_hint(&self, file_id: &[u8; 12]) -> Result<Option<LineNumber>> {
        self.read_hint_file(file_id)
    }

    fn write_hint(&self, file_id: &[u8; 12], line: LineNumber) -> Result<()> {
        self.write_hint_file(file_id, line)
    }

    fn lock(&self) -> Result<WriteLock> {
        let path = self.dir.join(LOCK);
        let file = OwnedFd::from(self.open_lock()?);
        let start = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io_error("lock", &path)(error.into())),
            }
            // Polled, because a backend blocked in flock(2) could not be ended politely.
            let waited = start.elapsed();
            if waited > self.lock_deadline {
                return Err(KeyringError::LockBusy { path, waited });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let held = HeldLock(file);
        self.sweep()?;
        Ok(WriteLock::new(held))
    }

    fn commit(&self, _lock: &WriteLock, line: LineNumber, record: &[u8], root: &[u8]) -> Result<()> {
        let shard = self.make_shard(line)?;
        let record = self.write_tmp(&line_name(line), record, true)?;
        failpoint::hit("record-written");
        let root = self.write_tmp(ROOT, root, true)?;
        sync_dir(&self.dir.join(TMP))?;
        failpoint::hit("root-written");
        let path = self.line_path(line);
        fs::rename(&record, &path).map_err(io_error("replace", &path))?;
        sync_dir(&shard)?;
        failpoint::hit("record-renamed");
        self.move_root(&root)?;
        failpoint::hit("root-renamed");
        Ok(())
    }

    fn replace_root(&self, _lock: &WriteLock, root: &[u8]) -> Result<()> {
        let root = self.write_tmp(ROOT_ALONE, root, true)?;
        failpoint::hit("root-alone-written");
        self.move_root(&root)
    }

    fn replace_lines(&self, _lock: &WriteLock, records: &[(LineNumber, Vec<u8>)]) -> Result<()> {
        let together = records.len() >= SYNCFS_FROM;
        let mut written = Vec::with_capacity(records.len());
        for (line, bytes) in records {
            self.make_shard(*line)?;
            written.push((*line, self.write_tmp(&line_name(*line), bytes, !together)?));
        }
        if together {
            let tmp = self.dir.join(TMP);
            let dir = File::open(&tmp).map_err(io_error("open", &tmp))?;
            rustix::fs::syncfs(&dir).map_err(|error| io_error("syncfs", &tmp)(error.into()))?;
        }
        failpoint::hit("batch-written");
        let mut shards = Vec::new();
        for (line, from) in written {
            let path = self.line_path(line);
            fs::rename(&from, &path).map_err(io_error("replace", &path))?;
            failpoint::hit("batch-renaming");
            shards.push(shard_name(line));
        }
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            sync_dir(&self.dir.join(LINES).join(shard))?;
        }
        Ok(())
    }

    fn retain(&self, _lock: &WriteLock, of: Retained, record: &[u8]) -> Result<()> {
        let dir = self.dir.join(RETAINED);
        self.make_own_dir(&dir)?;
        sync_dir(&self.dir)?;
        let tmp = self.write_tmp(&format!("retained-{}", retained_name(of)), record, true)?;
        failpoint::hit("retained-written");
        let path = self.retained_path(of);
        fs::rename(&tmp, &path).map_err(io_error("replace", &path))?;
        sync_dir(&dir)?;
        failpoint::hit("retained-renamed");
        Ok(())
    }

    fn retained(&self) -> Result<Vec<Retained>> {
        let names = list(&self.dir.join(RETAINED))?;
        let mut found: Vec<_> = names.iter().filter_map(|name| parse_retained_name(name.to_str()?)).collect();
        found.sort_unstable();
        Ok(found)
    }

    fn read_retained(&self, of: Retained) -> Result<Option<Vec<u8>>> {
        read_bounded(&self.retained_path(of))
    }

    fn forget_retained(&self, _lock: &WriteLock, of: Retained) -> Result<()> {
        remove(&self.retained_path(of))?;
        sync_dir(&self.dir.join(RETAINED))
    }

    fn retained_path(&self, of: Retained) -> PathBuf {
        self.dir.join(RETAINED).join(retained_name(of))
    }

    fn line_path(&self, line: LineNumber) -> PathBuf {
        self.dir.join(LINES).join(shard_name(line)).join(line_name(line))
    }

    fn root_path(&self) -> PathBuf {
        self.dir.join(ROOT)
    }

    fn dir(&self) -> &Path {
        &self.dir
    }
}

fn shard_name(line: LineNumber) -> String {
    format!("{:02x}", line.0 & 0xFF)
}

fn line_name(line: LineNumber) -> String {
    format!("{:016x}.tde", line.0)
}

fn parse_line_name(name: &str) -> Option<LineNumber> {
    let digits = name.strip_suffix(".tde").filter(|digits| digits.len() == 16)?;
    let line = LineNumber(u64::from_str_radix(digits, 16).ok()?);
    (line_name(line) == name).then_some(line)
}

/// `LINE-RECORD_VERSION.tde`, 16 hexadecimal digits each.
fn retained_name(of: Retained) -> String {
    format!("{:016x}-{:016x}.tde", of.line.0, of.record_version)
}

fn parse_retained_name(name: &str) -> Option<Retained> {
    let (line, version) = name.strip_suffix(".tde")?.split_once('-')?;
    let number = |digits: &str| u64::from_str_radix(digits, 16).ok();
    let of = Retained { line: LineNumber(number(line)?), record_version: number(version)? };
    (retained_name(of) == name).then_some(of)
}

fn list(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("list", dir)(error)),
    };
    entries.map(|entry| Ok(entry.map_err(io_error("list", dir))?.file_name())).collect()
}

pub(crate) fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>> {
    let not_ours = || KeyringError::Damaged { path: path.into(), what: "it is not a regular file" };
    // Without O_NONBLOCK a FIFO would hang here.
    let file = match no_link(OFlags::NONBLOCK).read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) if is_link(&error) => return Err(not_ours()),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    if !file.metadata().map_err(io_error("look at", path))?.is_file() {
        return Err(not_ours());
    }
    let mut bytes = Vec::new();
    file.take(MAX_LEN as u64 + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() > MAX_LEN {
        return Err(KeyringError::Damaged { path: path.into(), what: "it is longer than any keyring file" });
    }
    Ok(Some(bytes))
}

/// Opens what is there, but no symbolic link.
fn no_link(more: OFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    // Open flags are small positive numbers on every system.
    options.read(true).custom_flags((OFlags::NOFOLLOW | more).bits().cast_signed());
    options
}

fn is_link(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::LOOP)
}

/// Makes a directory; false if it was there.
fn make_dir(path: &Path) -> Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io_error("create", path)(error)),
    }
}

/// Refuses anything but a directory, a link to one included.
fn real_dir(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("look at", path))?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(KeyringError::Damaged { path: path.into(), what: "it is not a directory" })
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("fsync", path))
}

pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyringError {
    let path = path.to_path_buf();
    move |source| KeyringError::Io { action, path, source }
}
