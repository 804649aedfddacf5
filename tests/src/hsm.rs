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
    /// `tde hsm init` below `dir`, which is made; the command makes the PIN too.
    pub fn init(root: &PgRoot, dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        root.own(dir);
        let (store, pin_file) = (dir.join("hsm"), dir.join("pin"));
        let mut command = root.command(root.tde());
        command.args(["hsm", "init", "--store"]).arg(&store).arg("--pin-file").arg(&pin_file);
        command_output(&mut command);
        let pin = fs::read_to_string(&pin_file).unwrap().trim().to_owned();
        Self { store, pin_file, pin }
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
