//! Putting a converted copy into the place of the original.
//!
//! | crash | what is left |
//! |---|---|
//! | while the copy is made, compared or synced | the original as it was; `FILE.tde-new`, which the next conversion removes |
//! | after empty journals beside the original were removed | the original as it was: they held nothing |
//! | after the two have exchanged their names | the converted database; `FILE.tde-new` is the original |
//! | after the original has its other name, or none | the converted database |
//!
//! # Who still has the original open
//! A program that opened the original before the exchange waits for its lock and would then commit into a file that no name
//! leads to, with a plaintext WAL under the name of the converted database. So after the exchange, still under the
//! lock: whoever is seen to have the original open makes the exchange undone. Processes that this user may not see find a
//! file that is no database any more ([`Copy::finish`]); with `--keep` the original must stay whole, and this last
//! resort does not exist.
//!
//! A copy that was given up also leaves its entry in the keyring: a key that nothing is encrypted with.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::sidecar::{beside, remove};
use super::{At, Result};

/// Files beside a database that belong to it.
const SUFFIXES: [&str; 3] = ["-journal", "-wal", "-shm"];

/// A new file beside the original; removed unless it has taken the original's place.
pub(super) struct Copy {
    path: PathBuf,
    placed: bool,
}

impl Copy {
    /// An empty file that only its owner may read. What an earlier conversion left is removed; the caller holds the original's
    /// exclusive lock, so no other conversion is under way.
    pub(super) fn beside(original: &Path) -> Result<Self> {
        let path = beside(original, ".tde-new");
        for suffix in SUFFIXES {
            remove(&beside(&path, suffix))?;
        }
        remove(&path)?;
        let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
        made.map_err(|source| At { path: path.clone(), source })?;
        Ok(Self { path, placed: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the copy the original's mode and owner and makes it durable. This may take long.
    pub(super) fn prepare(&self, original: &Path) -> Result<()> {
        let (old, new) = (fs::metadata(original), fs::metadata(&self.path));
        let (old, new) = (old.map_err(failed(original))?, new.map_err(failed(&self.path))?);
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            chown(&self.path, Some(old.uid()), Some(old.gid())).map_err(failed(&self.path))?;
        }
        fs::set_permissions(&self.path, old.permissions()).map_err(failed(&self.path))?;
        let file = File::open(&self.path).map_err(failed(&self.path))?;
        Ok(file.sync_all().map_err(failed(&self.path))?)
    }

    /// Exchanges the names of copy and original: from here on [`path`](Self::path) is the original.
    pub(super) fn exchange(&mut self, original: &Path) -> Result<()> {
        // Their names are the new database's from here on.
        for suffix in SUFFIXES {
            remove(&beside(original, suffix))?;
        }
        sync_dir(original)?;
        self.swap(original)?;
        self.placed = true;
        sync_dir(original)
    }

    /// The original has its name again.
    pub(super) fn exchange_back(&mut self, original: &Path) -> Result<()> {
        self.swap(original)?;
        self.placed = false;
        sync_dir(original)
    }

    /// The original gets the name `keep`, or is removed. `locked` is a descriptor of it.
    pub(super) fn finish(self, original: &Path, keep: Option<&Path>, locked: &File) -> Result<()> {
        match keep {
            Some(keep) => fs::rename(&self.path, keep).map_err(failed(keep))?,
            None => {
                locked.write_all_at(NO_DATABASE, 0).map_err(failed(&self.path))?;
                remove(&self.path)?;
            }
        }
        sync_dir(original)
    }

    fn swap(&self, original: &Path) -> Result<()> {
        let swapped = renameat_with(CWD, &self.path, CWD, original, RenameFlags::EXCHANGE);
        Ok(swapped.map_err(|source| failed(original)(source.into()))?)
    }
}

/// In place of an original's first bytes, for programs that wait for its lock.
const NO_DATABASE: &[u8; 16] = b"replaced by tde\0";

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> At {
    let path = path.to_path_buf();
    move |source| At { path, source }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        // What cannot be removed now the next conversion removes, or reports.
        for suffix in SUFFIXES {
            let _left = remove(&beside(&self.path, suffix));
        }
        let _left = remove(&self.path);
    }
}

fn sync_dir(file: &Path) -> Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    Ok(synced.map_err(|source| At { path: dir.into(), source })?)
}

/// Other processes that have the file open, as far as this user may see. Connections that are idle hold no lock, but would go on
/// with the old file.
pub(super) fn users_of(file: &Path) -> Result<Vec<u32>> {
    let wanted = fs::metadata(file).map_err(|source| At { path: file.into(), source })?;
    let mut users = Vec::new();
    let Ok(processes) = fs::read_dir("/proc") else { return Ok(users) };
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        // Another user's process, or one that is gone.
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let same = |entry: fs::DirEntry| {
            let open = fs::metadata(entry.path());
            open.is_ok_and(|open| (open.dev(), open.ino()) == (wanted.dev(), wanted.ino()))
        };
        if descriptors.flatten().any(same) {
            users.push(pid);
        }
    }
    Ok(users)
}
