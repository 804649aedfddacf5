use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use hsm_engine::{Hsm, HsmError, Initialize, Pin, Session};
use tempfile::TempDir;

pub(crate) const USER_PIN: &str = "tdepin-1111111111111111111111111111111111111111111111111111111111111111";
pub(crate) const OFFICER_PIN: &str =
    "tdepin-2222222222222222222222222222222222222222222222222222222222222222";
pub(crate) const WRONG_PIN: &str = "tdepin-9999999999999999999999999999999999999999999999999999999999999999";

pub(crate) fn pin(text: &str) -> Pin {
    Pin::from_reader(text.as_bytes()).unwrap()
}

/// A fresh HSM with users `officer` and `user`, and master key `master`.
pub(crate) struct Fixture {
    _scratch: TempDir,
    pub(crate) dir: PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        // Thousands of synced writes: memory is as good as a disk for what is tested here.
        let shm = Path::new("/dev/shm");
        let scratch = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.unwrap();
        let dir = scratch.path().join("hsm");
        Hsm::initialize_dir(&dir, &Initialize::new(&pin(OFFICER_PIN), &pin(USER_PIN))).unwrap();
        Self { _scratch: scratch, dir }
    }

    pub(crate) fn hsm(&self) -> Hsm {
        Hsm::open_dir(&self.dir).unwrap()
    }

    pub(crate) fn login(&self, user: &str, text: &str) -> Result<Session, HsmError> {
        Hsm::open_dir(&self.dir)?.login(user, &pin(text))
    }

    pub(crate) fn user(&self) -> Session {
        self.login("user", USER_PIN).unwrap()
    }

    pub(crate) fn officer(&self) -> Session {
        self.login("officer", OFFICER_PIN).unwrap()
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// All files that hold something, by name.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(&self.dir)
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
            .filter(|(_, bytes)| !bytes.is_empty())
            .collect()
    }

    /// Puts back what [`files`](Self::files) returned, and nothing else.
    pub(crate) fn restore(&self, files: &BTreeMap<String, Vec<u8>>) {
        for name in self.files().keys().filter(|n| !files.contains_key(*n)) {
            fs::remove_file(self.path(name)).unwrap();
        }
        for (name, bytes) in files {
            self.write(name, bytes);
        }
    }

    pub(crate) fn write(&self, file: &str, bytes: &[u8]) {
        fs::write(self.path(file), bytes).unwrap();
        fs::set_permissions(self.path(file), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Looks at everything there is, as every user.
    pub(crate) fn check_everything(&self) -> Result<(), HsmError> {
        let hsm = Hsm::open_dir(&self.dir)?;
        hsm.status()?.audit?;
        hsm.login("officer", &pin(OFFICER_PIN))?.close()?;
        let user = hsm.login("user", &pin(USER_PIN))?;
        user.verify_store()?;
        user.verify_audit(&mut |_| {})?;
        Ok(())
    }
}

/// What the object or log in a file is called in messages.
pub(crate) fn object_of(file: &str) -> &str {
    file.strip_suffix(".obj").unwrap_or(file)
}

/// Sets the CRC-32 at the end of an object, as somebody who edits it on purpose would.
pub(crate) fn fix_crc(bytes: &mut [u8]) {
    let n = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..n]);
    bytes[n..].copy_from_slice(&crc.to_le_bytes());
}
