//! The versions of one file's data key.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use keyring::{KeyVersion, LineNumber, Scope, Unlocked};
use page_cipher::gcm_siv::Aes256GcmSiv;
use page_cipher::kdf::{self, Purpose};
use page_cipher::xts::Aes256Xts;
use secret_mem::SecretBytes;

use super::keychain::OpenKeyring;
use super::{FileId, KeysError};

/// Working keys of one DEK version of one file.
#[derive(Debug)]
pub struct VersionKeys {
    /// The DEK version, as in page trailers.
    pub version: u32,
    /// Seals pages.
    pub page: Aes256GcmSiv,
    /// Encrypts bytes 8..24 of WAL frame headers; unit = frame number.
    pub wal_frame: Aes256Xts,
    /// Authenticates headers of rollback journals.
    pub journal_mac: SecretBytes<32>,
}

impl VersionKeys {
    /// Derives the working keys from a data key.
    ///
    /// # Errors
    /// The derived XTS key is one that the standard forbids, which happens by chance once in 2^256 keys.
    pub fn derive(file: FileId, version: u32, data_key: &SecretBytes<32>) -> Result<Self, KeysError> {
        let page = kdf::derive::<32>(data_key, Purpose::SQLITE_PAGE, &[&file.0]);
        let frame = kdf::derive::<64>(data_key, Purpose::SQLITE_WAL, &[&file.0]);
        Ok(Self {
            version,
            page: Aes256GcmSiv::new(&page),
            wal_frame: Aes256Xts::new(&frame).map_err(|_| KeysError::KeyWrong { file, version })?,
            journal_mac: kdf::derive(data_key, Purpose::SQLITE_JOURNAL, &[&file.0]),
        })
    }
}

/// Where a file's key versions are kept.
pub(super) struct Home {
    pub(super) keyring: Arc<OpenKeyring>,
    pub(super) line: LineNumber,
}

/// The keys of one file, shared by all its connections in the process.
///
/// New data is sealed under the newest version that this process has heard of: from the keyring, from its own
/// [`rotate`](Self::rotate), or from page 1, under which another process has sealed ([`notice`](Self::notice)).
pub struct FileKeys {
    id: FileId,
    active: AtomicU32,
    known: RwLock<Vec<Arc<VersionKeys>>>,
    home: Option<Home>,
}

impl FileKeys {
    /// Keys that are all at hand. The last one is active.
    pub fn fixed(id: FileId, known: Vec<Arc<VersionKeys>>) -> Self {
        let active = AtomicU32::new(known.last().map_or(0, |keys| keys.version));
        Self { id, active, known: RwLock::new(known), home: None }
    }

    /// Keys of a scope in the keyring; its active version is unwrapped now.
    pub(super) fn of_scope(id: FileId, keyring: Arc<OpenKeyring>, scope: &Scope) -> Result<Self, KeysError> {
        let active = active_of(&keyring, scope)?;
        let home = Some(Home { keyring, line: scope.line });
        let keys = Self { id, active: AtomicU32::new(active.0), known: RwLock::new(Vec::new()), home };
        keys.load(scope, active)?;
        Ok(keys)
    }

    /// Keys of a scope that was just made, whose data key is at hand.
    pub(super) fn of_new(
        id: FileId,
        keyring: Arc<OpenKeyring>,
        scope: &Scope,
        data_key: &SecretBytes<32>,
    ) -> Result<Self, KeysError> {
        let version = active_of(&keyring, scope)?.0;
        let known = vec![Arc::new(VersionKeys::derive(id, version, data_key)?)];
        let home = Some(Home { keyring, line: scope.line });
        Ok(Self { id, active: AtomicU32::new(version), known: RwLock::new(known), home })
    }

    /// The file's id.
    pub fn file_id(&self) -> FileId {
        self.id
    }

    /// Number of the version that new data is sealed under. No lock.
    pub fn active_version(&self) -> u32 {
        self.active.load(Ordering::Acquire)
    }

    /// Keys that new data is sealed under.
    ///
    /// # Errors
    /// As [`version`](Self::version).
    pub fn active(&self) -> Result<Arc<VersionKeys>, KeysError> {
        self.version(self.active_version())
    }

    /// Keys of one version. One that is not known yet is looked up in the keyring.
    ///
    /// # Errors
    /// Missing, wrong, destroyed, the HSM away, or a damaged keyring: each its own.
    pub fn version(&self, version: u32) -> Result<Arc<VersionKeys>, KeysError> {
        if let Some(keys) = self.at_hand(version) {
            return Ok(keys);
        }
        let home = self.home(version)?;
        let scope = home.keyring.scope(home.line)?;
        let keys = self.load(&scope, KeyVersion(version))?;
        if let Some(active) = scope.active() {
            self.notice(active.version.0);
        }
        Ok(keys)
    }

    /// Another process has sealed page 1 under `version`, and the page was authentic: from now on nothing is sealed under
    /// an older one.
    pub fn notice(&self, version: u32) {
        self.active.fetch_max(version, Ordering::AcqRel);
    }

    /// Makes a new version and seals under it from now on. Pages that are not written again stay under their old version,
    /// which the keyring keeps. Returns the new version's number; it is durable.
    ///
    /// # Errors
    /// The keyring cannot be written, or the HSM cannot be used.
    pub fn rotate(&self) -> Result<u32, KeysError> {
        let home = self.home(self.active_version())?;
        let (scope, data_key) = home.keyring.add_version(home.line)?;
        let version = active_of(&home.keyring, &scope)?.0;
        self.keep(Arc::new(VersionKeys::derive(self.id, version, &data_key)?));
        self.notice(version);
        Ok(version)
    }

    /// What the keyring says about the file now: its versions and their states.
    ///
    /// # Errors
    /// The keyring cannot be read.
    pub fn scope(&self) -> Result<Scope, KeysError> {
        let home = self.home(self.active_version())?;
        home.keyring.scope(home.line)
    }

    /// Plans the destruction of an old version for `not_before` (seconds since 1970) or later. Until then it can be taken back.
    ///
    /// # Errors
    /// The version is the active one, or destroyed already; the keyring cannot be written.
    pub fn plan_destruction(&self, version: u32, not_before: u64) -> Result<Scope, KeysError> {
        let home = self.home(version)?;
        let plan = |keyring: &Unlocked| keyring.plan_destruction(home.line, KeyVersion(version), not_before);
        home.keyring.change(plan)
    }

    /// Takes a planned destruction back.
    ///
    /// # Errors
    /// None was planned; the keyring cannot be written.
    pub fn cancel_destruction(&self, version: u32) -> Result<Scope, KeysError> {
        let home = self.home(version)?;
        home.keyring.change(|keyring| keyring.cancel_destruction(home.line, KeyVersion(version)))
    }

    /// Destroys a version whose time has come. Whether anything needs it is for the caller to know. What has the key in memory keeps
    /// it there.
    ///
    /// # Errors
    /// It was not planned, or it is too early; the keyring cannot be written.
    pub fn destroy(&self, version: u32) -> Result<Scope, KeysError> {
        let home = self.home(version)?;
        home.keyring.change(|keyring| keyring.destroy(home.line, KeyVersion(version)))
    }

    /// Directory of the keyring that the keys come from.
    pub fn keyring_dir(&self) -> Option<&std::path::Path> {
        self.home.as_ref().map(|home| home.keyring.dir())
    }

    /// The HSM that unwraps the keys, as a URI.
    pub fn hsm(&self) -> Option<String> {
        self.home.as_ref().map(|home| home.keyring.hsm().uri().to_string())
    }

    fn home(&self, version: u32) -> Result<&Home, KeysError> {
        self.home.as_ref().ok_or(KeysError::KeyMissing { file: self.id, version })
    }

    fn at_hand(&self, version: u32) -> Option<Arc<VersionKeys>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|keys| keys.version == version).cloned()
    }

    /// Unwraps one version of `scope` and keeps it.
    fn load(&self, scope: &Scope, version: KeyVersion) -> Result<Arc<VersionKeys>, KeysError> {
        let home = self.home(version.0)?;
        let data_key = home.keyring.dek(scope, version)?;
        Ok(self.keep(Arc::new(VersionKeys::derive(self.id, version.0, &data_key)?)))
    }

    fn keep(&self, keys: Arc<VersionKeys>) -> Arc<VersionKeys> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = known.iter().find(|there| there.version == keys.version) {
            return Arc::clone(there);
        }
        known.push(Arc::clone(&keys));
        keys
    }
}

fn active_of(keyring: &OpenKeyring, scope: &Scope) -> Result<KeyVersion, KeysError> {
    let none = || KeysError::NoActiveVersion { scope: scope.to_string(), keyring: keyring.dir().into() };
    Ok(scope.active().ok_or_else(none)?.version)
}

impl fmt::Debug for FileKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let active = self.active_version();
        f.debug_struct("FileKeys").field("id", &self.id).field("active", &active).finish_non_exhaustive()
    }
}
