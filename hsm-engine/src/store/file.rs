//! A store on a directory: one file for each object, log and lock.
//!
//! ```text
//! DIR            0700
//!   NAME.obj     0600   an object; replaced as a whole
//!   NAME.log     0600   a log; appended to
//!   NAME.lock    0600   empty; flock(2) on it is the lock
//!   .NAME.tmp    0600   an object being written; left over by a crash, removed by the next write
//! ```
//!
//! # Write order of an object, and what a crash leaves
//! 1. write `.NAME.tmp`: the old object, and a leftover that nobody reads
//! 2. fsync it: the same
//! 3. rename it to `NAME.obj`: the old or the new object, never a mix
//! 4. fsync the directory: the new object
//!
//! # A log
//! Bytes are appended and fdatasync'ed; a crash leaves any prefix of what was being appended, which the log's
//! format must notice.
//!
//! Every name is resolved from a descriptor of the directory, so the process may change its working directory, and
//! symbolic links are not followed. A process that runs as root on somebody else's store leaves its files to
//! the owner of the directory; otherwise the owner could not read them again. It touches no file of anybody else, so that
//! the owner cannot use it on a hard link.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{self, AtFlags, Dir, FileType, FlockOperation, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use super::{MAX_OBJECT, ObjectName, Store, StoreError, StoreLock};

const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// How often a lock that is held by somebody else is asked for.
const LOCK_POLL: Duration = Duration::from_millis(2);

/// A [`Store`] on a directory that only its owner may enter.
pub struct FileStore {
    path: PathBuf,
    dir: OwnedFd,
    /// Owner of the directory, and so of every file in it.
    owner: Uid,
    /// Owner to give new files to, when root works on somebody else's store.
    give_to: Option<(Uid, Gid)>,
}

impl FileStore {
    /// Makes the directory (its parent must exist) or takes an empty one.
    ///
    /// # Errors
    /// Not empty, open to others, not a directory, or what the system says.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        match fs::mkdir(path, Mode::from_raw_mode(DIR_MODE)) {
            Ok(()) => sync_parent(path)?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(io_error("create directory", path, e)),
        }
        let store = Self::open(path)?;
        if store.is_empty()? { Ok(store) } else { Err(StoreError::NotEmpty { path: path.to_owned() }) }
    }

    /// Opens an existing directory.
    ///
    /// # Errors
    /// Absent, not a directory, open to group or others, owned by somebody else, or what the system says.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = fs::open(path, flags, Mode::empty()).map_err(|e| match e {
            Errno::NOENT => StoreError::NotFound { path: path.to_owned() },
            Errno::NOTDIR => StoreError::WrongType { path: path.to_owned(), want: "directory" },
            e => io_error("open directory", path, e),
        })?;
        let stat = fs::fstat(&dir).map_err(|e| io_error("look at", path, e))?;
        check_mode(path, &stat, DIR_MODE)?;
        let user = rustix::process::geteuid();
        let owner = Uid::from_raw(stat.st_uid);
        if owner != user && !user.is_root() {
            return Err(StoreError::WrongOwner {
                path: path.to_owned(),
                owner: stat.st_uid,
                user: user.as_raw(),
            });
        }
        let give_to = (owner != user).then(|| (owner, Gid::from_raw(stat.st_gid)));
        Ok(Self { path: path.to_owned(), dir, owner, give_to })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens `file` if it exists, checked for type, owner and mode.
    fn open_file(&self, file: &str, flags: OFlags) -> Result<Option<(File, u64)>, StoreError> {
        let path = || self.path.join(file);
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match fs::openat(&self.dir, file, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(StoreError::WrongType { path: path(), want: "regular file" }),
            Err(e) => return Err(io_error("open", path(), e)),
        };
        let stat = fs::fstat(&fd).map_err(|e| io_error("look at", path(), e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StoreError::WrongType { path: path(), want: "regular file" });
        }
        if stat.st_uid != self.owner.as_raw() {
            let (owner, want) = (stat.st_uid, self.owner.as_raw());
            return Err(StoreError::ForeignFile { path: path(), owner, want });
        }
        check_mode(&path(), &stat, FILE_MODE)?;
        Ok(Some((File::from(fd), u64::try_from(stat.st_size).unwrap_or(0))))
    }

    /// Opens `file` for writing, making it if it is absent. Tells whether it was made.
    fn create_file(&self, file: &str) -> Result<(File, u64, bool), StoreError> {
        loop {
            if let Some((f, len)) = self.open_file(file, OFlags::RDWR)? {
                return Ok((f, len, false));
            }
            // Absent a moment ago: another process may make it as well.
            if let Some(f) = self.create_new(file)? {
                return Ok((f, 0, true));
            }
        }
    }

    /// Makes `file`; `None` if it exists.
    fn create_new(&self, file: &str) -> Result<Option<File>, StoreError> {
        let path = || self.path.join(file);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match fs::openat(&self.dir, file, flags, Mode::from_raw_mode(FILE_MODE)) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => return Ok(None),
            Err(e) => return Err(io_error("create", path(), e)),
        };
        if let Some((uid, gid)) = self.give_to {
            fs::fchown(&fd, Some(uid), Some(gid)).map_err(|e| io_error("change owner of", path(), e))?;
        }
        Ok(Some(File::from(fd)))
    }

    fn sync_dir(&self) -> Result<(), StoreError> {
        fs::fsync(&self.dir).map_err(|e| io_error("sync directory", &self.path, e))
    }

    fn write_temp(&self, temp: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = || self.path.join(temp);
        // Always a new file: what a crash left may be a link to something else by now, or belong to root.
        match fs::unlinkat(&self.dir, temp, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(io_error("remove", path(), e)),
        }
        let mut file = self.create_new(temp)?.ok_or_else(|| io_error("create", path(), Errno::EXIST))?;
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        file.write_all(first).map_err(|e| io_err("write", path(), e))?;
        step("put: half written");
        file.write_all(rest).map_err(|e| io_err("write", path(), e))?;
        step("put: written");
        file.sync_all().map_err(|e| io_err("sync", path(), e))?;
        step("put: synced");
        Ok(())
    }
}

impl Store for FileStore {
    fn location(&self) -> String {
        self.path.display().to_string()
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.names()?.is_empty())
    }

    fn get(&self, name: &ObjectName) -> Result<Option<Vec<u8>>, StoreError> {
        let file_name = format!("{name}.obj");
        let Some((file, len)) = self.open_file(&file_name, OFlags::RDONLY)? else { return Ok(None) };
        let path = || self.path.join(&file_name);
        if len > MAX_OBJECT as u64 {
            return Err(StoreError::TooLarge { path: path(), len, max: MAX_OBJECT as u64 });
        }
        let mut bytes = Vec::new();
        file.take(MAX_OBJECT as u64 + 1).read_to_end(&mut bytes).map_err(|e| io_err("read", path(), e))?;
        Ok(Some(bytes))
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let (file, temp) = (format!("{name}.obj"), format!(".{name}.tmp"));
        let path = || self.path.join(&file);
        if bytes.len() > MAX_OBJECT {
            let (len, max) = (bytes.len() as u64, MAX_OBJECT as u64);
            return Err(StoreError::TooLarge { path: path(), len, max });
        }
        step("put: begin");
        self.write_temp(&temp, bytes)?;
        fs::renameat(&self.dir, &temp, &self.dir, &file).map_err(|e| io_error("replace", path(), e))?;
        step("put: renamed");
        self.sync_dir()
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let file = format!("{name}.obj");
        match fs::unlinkat(&self.dir, &file, AtFlags::empty()) {
            Ok(()) => self.sync_dir(),
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(io_error("remove", self.path.join(file), e)),
        }
    }

    fn list(&self) -> Result<Vec<ObjectName>, StoreError> {
        self.names_ending(".obj")
    }

    fn logs(&self) -> Result<Vec<ObjectName>, StoreError> {
        self.names_ending(".log")
    }

    fn log_len(&self, name: &ObjectName) -> Result<Option<u64>, StoreError> {
        Ok(self.open_file(&format!("{name}.log"), OFlags::RDONLY)?.map(|(_, len)| len))
    }

    fn log_read(&self, name: &ObjectName, from: u64) -> Result<Vec<u8>, StoreError> {
        let file_name = format!("{name}.log");
        let path = || self.path.join(&file_name);
        let Some((file, len)) = self.open_file(&file_name, OFlags::RDONLY)? else {
            return Err(io_error("open", path(), Errno::NOENT));
        };
        let n = len.saturating_sub(from);
        if n > MAX_OBJECT as u64 {
            return Err(StoreError::TooLarge { path: path(), len: n, max: MAX_OBJECT as u64 });
        }
        // The limit above makes the conversion exact.
        let mut bytes = vec![0; usize::try_from(n).unwrap_or(MAX_OBJECT)];
        file.read_exact_at(&mut bytes, from).map_err(|e| io_err("read", path(), e))?;
        Ok(bytes)
    }

    fn log_append(&self, name: &ObjectName, at: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let file_name = format!("{name}.log");
        let path = || self.path.join(&file_name);
        let (file, len, made) = self.create_file(&file_name)?;
        if len != at {
            return Err(StoreError::LogMoved { path: path(), expected: at, found: len });
        }
        step("append: begin");
        let half = bytes.len() / 2;
        file.write_all_at(&bytes[..half], at).map_err(|e| io_err("write", path(), e))?;
        step("append: half written");
        file.write_all_at(&bytes[half..], at + half as u64).map_err(|e| io_err("write", path(), e))?;
        step("append: written");
        file.sync_data().map_err(|e| io_err("sync", path(), e))?;
        if made { self.sync_dir() } else { Ok(()) }
    }

    fn log_truncate(&self, name: &ObjectName, len: u64) -> Result<(), StoreError> {
        let file_name = format!("{name}.log");
        let path = || self.path.join(&file_name);
        let Some((file, _)) = self.open_file(&file_name, OFlags::RDWR)? else {
            return Err(io_error("open", path(), Errno::NOENT));
        };
        step("truncate: begin");
        file.set_len(len).map_err(|e| io_err("truncate", path(), e))?;
        file.sync_all().map_err(|e| io_err("sync", path(), e))
    }

    fn area(&self, name: &ObjectName) -> Result<Arc<dyn Store>, StoreError> {
        let path = self.path.join(name.as_str());
        let open = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fs::openat(&self.dir, name.as_str(), flags, Mode::empty())
        };
        let dir = match open() {
            Err(Errno::NOENT) => {
                match fs::mkdirat(&self.dir, name.as_str(), Mode::from_raw_mode(DIR_MODE)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(io_error("create directory", path, e)),
                }
                self.sync_dir()?;
                let dir = open().map_err(|e| io_error("open directory", &path, e))?;
                if let Some((uid, gid)) = self.give_to {
                    fs::fchown(&dir, Some(uid), Some(gid))
                        .map_err(|e| io_error("change owner of", &path, e))?;
                }
                dir
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                return Err(StoreError::WrongType { path, want: "directory" });
            }
            other => other.map_err(|e| io_error("open directory", &path, e))?,
        };
        let stat = fs::fstat(&dir).map_err(|e| io_error("look at", &path, e))?;
        if stat.st_uid != self.owner.as_raw() {
            return Err(StoreError::ForeignFile { path, owner: stat.st_uid, want: self.owner.as_raw() });
        }
        check_mode(&path, &stat, DIR_MODE)?;
        Ok(Arc::new(Self { path, dir, owner: self.owner, give_to: self.give_to }))
    }

    fn head(&self, name: &ObjectName) -> Result<Option<Vec<u8>>, StoreError> {
        let file_name = format!("{name}.obj");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match fs::openat(&self.dir, &file_name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(io_error("open", self.path.join(file_name), e)),
        };
        let mut bytes = vec![0; 32];
        let n = rustix::io::pread(&fd, &mut bytes[..], 0)
            .map_err(|e| io_error("read", self.path.join(file_name), e))?;
        bytes.truncate(n);
        Ok(Some(bytes))
    }

    fn lock(&self, name: &ObjectName, wait: Duration) -> Result<StoreLock, StoreError> {
        let file_name = format!("{name}.lock");
        let path = || self.path.join(&file_name);
        let (file, _, _) = self.create_file(&file_name)?;
        let start = Instant::now();
        loop {
            match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(StoreLock::new(FileLock(file.into()))),
                Err(Errno::WOULDBLOCK | Errno::INTR) if start.elapsed() < wait => {
                    std::thread::sleep(LOCK_POLL)
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    let waited_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                    return Err(StoreError::Busy { path: path(), waited_ms });
                }
                Err(e) => return Err(io_error("lock", path(), e)),
            }
        }
    }
}

/// Unlocks by itself and not only by closing: a child that another thread forked meanwhile has the file open, too.
struct FileLock(OwnedFd);

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing unlocks as well, unless there is such a child.
        let _ = fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl FileStore {
    /// Names of everything in the directory.
    fn names(&self) -> Result<Vec<String>, StoreError> {
        let err = |e| io_error("list", &self.path, e);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.dir).map_err(err)? {
            let entry = entry.map_err(err)?;
            let name = entry.file_name().to_string_lossy();
            if name != "." && name != ".." {
                names.push(name.into_owned());
            }
        }
        Ok(names)
    }

    /// Names of everything of one kind, sorted.
    fn names_ending(&self, suffix: &str) -> Result<Vec<ObjectName>, StoreError> {
        let names = self.names()?;
        let names = names.iter().filter_map(|n| n.strip_suffix(suffix));
        let mut names: Vec<_> = names.filter_map(|n| ObjectName::new(n).ok()).collect();
        names.sort();
        Ok(names)
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileStore").field(&self.path).finish()
    }
}

fn check_mode(path: &Path, stat: &Stat, want: u32) -> Result<(), StoreError> {
    let mode = stat.st_mode & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(StoreError::LooseMode { path: path.to_owned(), mode, want })
}

/// Makes a new directory's entry durable.
fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(parent, flags, Mode::empty())
        .and_then(fs::fsync)
        .map_err(|e| io_error("sync directory", parent, e))
}

fn io_error(action: &'static str, path: impl Into<PathBuf>, e: Errno) -> StoreError {
    io_err(action, path, e.into())
}

fn io_err(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> StoreError {
    StoreError::Io { action, path: path.into(), source }
}

/// A place where a test may kill this process.
#[inline]
fn step(_name: &str) {
    #[cfg(test)]
    crate::crash_tests::step(_name);
}
