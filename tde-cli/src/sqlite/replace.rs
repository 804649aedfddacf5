//! Putting a converted copy into the place of the original.
//!
//! | crash | what is left |
//! |---|---|
//! | while the copy is made, compared or synced | the original as it was; `FILE.tde-new`, which the next conversion removes |
//! | after empty journals beside the original were removed | the original as it was: they held nothing |
//! | after the rename | the converted database |
//!
//! A copy that was given up also leaves its entry in the keyring: a key that nothing is encrypted with.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

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

    /// Gives the copy the original's mode and owner, makes it durable, and renames it over the original. `keep` is another name
    /// that the original keeps.
    pub(super) fn place(mut self, original: &Path, keep: Option<&Path>) -> Result<()> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| At { path, source }
        };
        let (old, new) = (fs::metadata(original), fs::metadata(&self.path));
        let (old, new) = (old.map_err(failed(original))?, new.map_err(failed(&self.path))?);
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            chown(&self.path, Some(old.uid()), Some(old.gid())).map_err(failed(&self.path))?;
        }
        fs::set_permissions(&self.path, old.permissions()).map_err(failed(&self.path))?;
        let file = File::open(&self.path).map_err(failed(&self.path))?;
        file.sync_all().map_err(failed(&self.path))?;
        if let Some(keep) = keep {
            fs::hard_link(original, keep).map_err(failed(keep))?;
        }
        // Their names are the new database's from here on.
        for suffix in SUFFIXES {
            remove(&beside(original, suffix))?;
        }
        sync_dir(original)?;
        fs::rename(&self.path, original).map_err(failed(original))?;
        self.placed = true;
        sync_dir(original)
    }
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
