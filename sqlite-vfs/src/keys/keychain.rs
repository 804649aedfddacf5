//! What this process has open: keyrings with their HSM sessions, and the keys of files used lately.
//!
//! There is one for each process, made when it is first needed. A forked child starts with an empty one: it logs in itself, and
//! whatever lock another thread of its parent held while it forked is the parent's alone.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use keyring::{
    Dek, HsmUri, KeyVersion, Keyring, KeyringError, LineNumber, MasterKey as _, NewScope, Owner, Scope,
    ScopeKind, Unlocked,
};
use lru::LruCache;
use page_cipher::CipherId;
use secret_mem::ForkCanary;

use super::hsm::HsmDoor;
use super::pin::PinSource;
use super::{FileId, FileKeys, KeysError};

/// Files whose keys are kept when no connection uses them any more; some 4 KiB of locked memory each.
const HOT_FILES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Dead entries of `Files::live` are swept when it has this many more than there are hot files.
const SWEEP_FROM: usize = 1024;

/// An unlocked keyring and the HSM it was unlocked with.
pub(super) struct OpenKeyring {
    /// Tells openings of one directory apart.
    serial: u64,
    dir: PathBuf,
    unlocked: Unlocked,
    hsm: Arc<HsmDoor>,
}

impl OpenKeyring {
    fn new(dir: PathBuf, unlocked: Unlocked, hsm: Arc<HsmDoor>) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Self { serial: SERIAL.fetch_add(1, Ordering::Relaxed), dir, unlocked, hsm }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn hsm(&self) -> &HsmDoor {
        &self.hsm
    }

    pub(super) fn keyring(&self) -> &Unlocked {
        &self.unlocked
    }

    pub(super) fn scope(&self, line: LineNumber) -> Result<Scope, KeysError> {
        Ok(self.unlocked.scope(line)?)
    }

    pub(super) fn dek(&self, scope: &Scope, version: KeyVersion) -> Result<Dek, KeysError> {
        self.hsm.with(|hsm| self.unlocked.dek_of(scope, version, hsm))
    }

    pub(super) fn add_version(&self, line: LineNumber) -> Result<(Scope, Dek), KeysError> {
        // A session that is of no use any more is noticed here: a version that was added must not be added twice.
        let keyring = self.unlocked.keyring();
        let failed = |source| KeyringError::MasterKey { action: "wrap a data key", keyring, source };
        self.hsm.with(|hsm| hsm.primary_version().map_err(failed))?;
        let session = self.hsm.session()?;
        Ok(self.unlocked.add_version(line, &*session)?)
    }

    /// Changes a record, and lets the HSM know, so that the keyring of before is noticed.
    pub(super) fn change(
        &self,
        change: impl FnOnce(&Unlocked) -> keyring::Result<Scope>,
    ) -> Result<Scope, KeysError> {
        let scope = change(&self.unlocked)?;
        self.hsm.with(|hsm| self.unlocked.remember_generation(hsm))?;
        Ok(scope)
    }

    pub(super) fn add_file(&self, id: FileId) -> Result<(Scope, Dek), KeysError> {
        let new = || NewScope {
            kind: ScopeKind::SqliteFile { file_id: id.0 },
            cipher: CipherId::Aes256GcmSiv,
            initial: None,
        };
        self.hsm.with(|hsm| match self.unlocked.add_scope(new(), hsm) {
            // Made the first time, and only telling the HSM of it failed.
            Err(KeyringError::ScopeExists { .. }) => {
                let scope = self.unlocked.find_sqlite_file(&id.0)?;
                let scope = scope.ok_or(KeyringError::NoSuchLine {
                    keyring: self.unlocked.keyring(),
                    line: LineNumber(0),
                    lines: 0,
                })?;
                let dek = self.unlocked.dek_of(&scope, KeyVersion(1), hsm)?;
                Ok((scope, dek))
            }
            made => made,
        })
    }
}

/// A keyring's directory that somebody named. Whoever opens it holds the lock; others wait for the result.
#[derive(Default)]
struct Slot {
    opened: Mutex<Option<Arc<OpenKeyring>>>,
}

/// Keyrings and files.
pub(super) struct Keychain {
    slots: Mutex<HashMap<PathBuf, Arc<Slot>>>,
    files: Mutex<Files>,
    doors: Mutex<Vec<Arc<HsmDoor>>>,
}

struct Files {
    hot: LruCache<(u64, FileId), Arc<FileKeys>>,
    /// Also of files that fell out of `hot` while connections use them: a file has one `FileKeys`.
    live: HashMap<(u64, FileId), Weak<FileKeys>>,
}

impl Keychain {
    pub(super) fn new() -> Self {
        Self::with_room(HOT_FILES)
    }

    pub(super) fn with_room(files: NonZeroUsize) -> Self {
        let files = Files { hot: LruCache::new(files), live: HashMap::new() };
        Self { slots: Mutex::default(), files: Mutex::new(files), doors: Mutex::default() }
    }

    /// That of this process.
    pub(super) fn of_this_process() -> Result<&'static Self, KeysError> {
        /// Ancestors' come first. Theirs are left as they are: a thread that this process does not have may hold their locks.
        struct Process {
            canary: ForkCanary,
            keychain: Keychain,
            child: OnceLock<Box<Process>>,
        }
        static FIRST: OnceLock<Process> = OnceLock::new();
        let canary = ForkCanary::new()?;
        let new = || Process { canary, keychain: Keychain::new(), child: OnceLock::new() };
        let mut process = FIRST.get_or_init(new);
        while !process.canary.is_alive() {
            process = process.child.get_or_init(|| Box::new(new()));
        }
        Ok(&process.keychain)
    }

    /// The HSM behind these settings, logged in to once for all keyrings.
    pub(super) fn door(&self, uri: HsmUri, pin: PinSource) -> Arc<HsmDoor> {
        let mut doors = self.doors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(door) = doors.iter().find(|door| door.is_for(&uri, &pin)) {
            return Arc::clone(door);
        }
        // Callbacks that are made anew for each opening must not pile up: what nobody uses goes.
        doors.retain(|door| Arc::strong_count(door) > 1);
        let door = Arc::new(HsmDoor::new(uri, pin));
        doors.push(Arc::clone(&door));
        door
    }

    /// The keyring in `dir`, opened by `open` unless it is open.
    pub(super) fn keyring(
        &self,
        dir: &Path,
        open: impl FnOnce() -> Result<Option<(Unlocked, Arc<HsmDoor>)>, KeysError>,
    ) -> Result<Option<Arc<OpenKeyring>>, KeysError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(dir.into()).or_default())
        };
        let mut opened = slot.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keyring) = &*opened {
            return Ok(Some(Arc::clone(keyring)));
        }
        let Some((unlocked, hsm)) = open()? else { return Ok(None) };
        Ok(Some(Arc::clone(opened.insert(Arc::new(OpenKeyring::new(dir.into(), unlocked, hsm))))))
    }

    /// Another keyring lies in the directory now: it must be opened again.
    pub(super) fn forget(&self, keyring: &Arc<OpenKeyring>) {
        let slot = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.get(keyring.dir()).map(Arc::clone)
        };
        let Some(slot) = slot else { return };
        let mut opened = slot.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.as_ref().is_some_and(|current| Arc::ptr_eq(current, keyring)) {
            *opened = None;
        }
    }

    /// Every keyring that is open, by directory.
    pub(super) fn open_keyrings(&self) -> Vec<Arc<OpenKeyring>> {
        let slots: Vec<_> = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.values().map(Arc::clone).collect()
        };
        let opened = |slot: Arc<Slot>| slot.opened.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut keyrings: Vec<_> = slots.into_iter().filter_map(opened).collect();
        keyrings.sort_by(|one, other| one.dir.cmp(&other.dir));
        keyrings
    }

    /// Keys that are in use or were lately.
    pub(super) fn file(&self, keyring: &OpenKeyring, id: FileId) -> Option<Arc<FileKeys>> {
        let key = (keyring.serial, id);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = files.hot.get(&key) {
            return Some(Arc::clone(keys));
        }
        let keys = files.live.get(&key)?.upgrade()?;
        files.hot.put(key, Arc::clone(&keys));
        Some(keys)
    }

    /// Takes keys in; returns those that are there already, if another thread was faster.
    pub(super) fn keep(&self, keyring: &OpenKeyring, keys: FileKeys) -> Arc<FileKeys> {
        if let Some(there) = self.file(keyring, keys.file_id()) {
            return there;
        }
        let key = (keyring.serial, keys.file_id());
        let keys = Arc::new(keys);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.live.len() >= files.hot.len() + SWEEP_FROM {
            files.live.retain(|_, keys| keys.strong_count() > 0);
        }
        files.live.insert(key, Arc::downgrade(&keys));
        let displaced = files.hot.push(key, Arc::clone(&keys));
        // Wiping keys takes its time: not under the lock.
        drop(files);
        drop(displaced);
        keys
    }
}

/// Opens the keyring in `dir`; none if there is none.
pub(super) fn open_keyring(dir: &Path, hsm: &HsmDoor) -> Result<Option<Unlocked>, KeysError> {
    let locked = match Keyring::open(dir) {
        Err(KeyringError::NotAKeyring { .. }) if !has_records(dir) => return Ok(None),
        // Another process may have made it between the two looks.
        Err(KeyringError::NotAKeyring { .. }) => Keyring::open(dir)?,
        opened => opened?,
    };
    locked.require_owner(Owner::Files)?;
    drop(locked);
    hsm.with(|session| Keyring::open(dir)?.unlock(session)).map(Some)
}

/// Makes the keyring in `dir`, unless another process was faster.
pub(super) fn create_keyring(dir: &Path, hsm: &HsmDoor) -> Result<Unlocked, KeysError> {
    let session = hsm.session()?;
    match Keyring::create(dir, Owner::Files, &*session) {
        Err(KeyringError::AlreadyExists { .. }) => hsm.with(|session| Keyring::open(dir)?.unlock(session)),
        made => Ok(made?),
    }
}

/// A keyring that lost its root is a damaged one, not none. The root is there before the first record: an empty folder for
/// records belongs to a keyring that is being made, or whose making was interrupted.
fn has_records(dir: &Path) -> bool {
    dir.join("keyring.tde").symlink_metadata().is_ok()
        || match fs::read_dir(dir.join("lines")) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) => error.kind() != ErrorKind::NotFound,
        }
}
