//! Which copy of a keyring this is.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{KeyringError, Result};
use crate::ids::InstanceId;

impl InstanceId {
    /// SHA-256(machine id | 0 | canonical path of `dir`), the first 16 bytes. `dir` need not exist, but its
    /// parent must. Machines without an id (some containers) count with an empty one.
    pub fn of(dir: &Path) -> Result<Self> {
        let canonical = match dir.canonicalize() {
            Ok(canonical) => canonical,
            Err(error) => {
                let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
                    return Err(KeyringError::Io { action: "find", path: dir.into(), source: error });
                };
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                let io_error = crate::store::io_error("find", parent);
                parent.canonicalize().map_err(io_error)?.join(name)
            }
        };
        let mut hasher = Sha256::new();
        hasher.update(machine_id());
        hasher.update([0]);
        hasher.update(canonical.as_os_str().as_encoded_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Ok(Self(id))
    }
}

/// machine-id(5); the second place is where D-Bus keeps it without systemd.
fn machine_id() -> String {
    let paths = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
    let read = |path| fs::read_to_string(path).ok().map(|id: String| id.trim().to_owned());
    paths.into_iter().filter_map(read).find(|id| !id.is_empty()).unwrap_or_default()
}
