//! A software HSM made by the `tde` command.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{PgRoot, command_output};

/// The store of a software HSM and the file that holds the PIN of its user, both owned by the servers' user.
pub struct SoftHsm {
    /// The store's folder.
    pub store: PathBuf,
    /// The file with the crypto user's PIN.
    pub pin_file: PathBuf,
    /// The PIN itself, to search for where it must not be.
    pub pin: String,
}

impl SoftHsm {
    /// `tde hsm init` with a PIN of its own below `dir`, which must exist.
    pub fn init(root: &PgRoot, dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        root.own(dir);
        let unique = format!("{:x}", std::process::id() as u64 * 0x9e37_79b9 + dir.as_os_str().len() as u64);
        let hsm = Self {
            store: dir.join("hsm"),
            pin_file: dir.join("pin"),
            pin: format!("pin-of-the-test-{unique}"),
        };
        hsm.write_pin(root, &hsm.pin);
        command_output(
            root.command(root.tde())
                .args(["hsm", "init", "--store"])
                .arg(&hsm.store)
                .arg("--pin-file")
                .arg(&hsm.pin_file),
        );
        hsm
    }

    /// Puts `pin` and a newline into the PIN file, mode 0600.
    pub fn write_pin(&self, root: &PgRoot, pin: &str) {
        use std::os::unix::fs::PermissionsExt;
        fs::write(&self.pin_file, format!("{pin}\n")).unwrap();
        fs::set_permissions(&self.pin_file, fs::Permissions::from_mode(0o600)).unwrap();
        root.own(&self.pin_file);
    }

    /// The settings of a server that uses it.
    pub fn settings(&self) -> Vec<(String, String)> {
        vec![
            ("pg_tde.hsm".into(), format!("soft:{}", self.store.display())),
            ("pg_tde.pin_command".into(), format!("cat {}", self.pin_file.display())),
        ]
    }
}
