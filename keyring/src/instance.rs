//! Which copy of a keyring this is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::ids::InstanceId;

impl InstanceId {
    /// SHA-256(machine id | 0 | path of `dir`, see `place`), the first 16 bytes. `dir` need not exist, but its
    /// parent must. Machines without an id (some containers) count with an empty one.
    pub fn of(dir: &Path) -> Result<Self> {
        let place = place(dir).map_err(crate::store::io_error("find", dir))?;
        let mut hasher = Sha256::new();
        hasher.update(machine_id());
        hasher.update([0]);
        hasher.update(place.as_os_str().as_encoded_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Ok(Self(id))
    }
}

/// Absolute path of a keyring's directory: links on the way to it are resolved, but not one in its own place. Who puts a link
/// there, to an old copy or to an empty directory, must not make it a place that the HSM never heard of.
pub(crate) fn place(dir: &Path) -> io::Result<PathBuf> {
    let Some(name) = dir.file_name() else { return dir.canonicalize() };
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(parent.canonicalize()?.join(name))
}

/// machine-id(5); the second place is where D-Bus keeps it without systemd.
fn machine_id() -> String {
    let paths = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
    let read = |path| fs::read_to_string(path).ok().map(|id: String| id.trim().to_owned());
    paths.into_iter().filter_map(read).find(|id| !id.is_empty()).unwrap_or_default()
}
