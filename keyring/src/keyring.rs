//! A keyring as it lies there: structure and checksums, no keys.

use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use secret_mem::SecretBytes;
use uuid::Uuid;

use crate::error::{KeyringError, Result};
use crate::format::root::{Root, RootFacts};
use crate::ids::{GenerationId, InstanceId, KeyringId, LineNumber, MasterKeyId};
use crate::master::{MasterKey, MasterKeyError};
use crate::seal::{KEYRING_KEY, Seal, check_matches, key_check};
use crate::store::{FileStore, Store};
use crate::sum::Sum;
use crate::unlocked::Unlocked;

/// What a keyring was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A PostgreSQL cluster: tablespaces and WAL.
    PgCluster {
        /// The cluster's system identifier (`pg_control`), the same on all its nodes.
        system_identifier: u64,
    },
    /// Single files, such as SQLite databases.
    Files,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PgCluster { system_identifier } => {
                write!(f, "the PostgreSQL cluster with system identifier {system_identifier}")
            }
            Self::Files => f.write_str("single files"),
        }
    }
}

/// What the root says in clear. Not proven before the keyring is unlocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyringInfo {
    /// The keyring's id.
    pub keyring: KeyringId,
    /// What it was made for.
    pub owner: Owner,
    /// When, in seconds since 1970-01-01 UTC.
    pub created: u64,
    /// The master key that wraps its keys.
    pub master_key: MasterKeyId,
    /// That key's label when the keyring was made.
    pub master_key_label: String,
    /// The master-key version that wraps the keyring's own key.
    pub master_key_version: u32,
    /// Counts every change but re-wrapping.
    pub generation: u64,
    /// Lines made so far.
    pub lines: u64,
}

/// A restore that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedRestore {
    /// Generation of the keyring, now the one remembered.
    pub generation: u64,
    /// Generation the HSM remembered before; none if it never heard of this keyring at this place.
    pub remembered: Option<u64>,
}

/// A keyring that is not unlocked.
pub struct Keyring {
    pub(crate) store: Box<dyn Store>,
    pub(crate) root: Root,
}

impl Keyring {
    /// Makes a keyring in `dir`, which must not hold one; the directory is made with mode 0700 if need be.
    /// Other files in it are left alone.
    ///
    /// # Errors
    /// There is one, or there was: what the HSM remembers at this place is never replaced by an empty keyring.
    pub fn create(dir: &Path, owner: Owner, master: &dyn MasterKey) -> Result<Unlocked> {
        // Before anything is made; and once more when nobody else can be making it.
        if !dir.join("lines").exists() {
            refuse_vanished(dir, master)?;
        }
        let store = FileStore::create(dir)?;
        let lock = store.lock()?;
        if store.read_root()?.is_some() {
            return Err(KeyringError::AlreadyExists { path: dir.into() });
        }
        if !store.lines()?.is_empty() {
            let reason = "keyring.tde is missing but there are records; restore it from a backup";
            return Err(KeyringError::NotAKeyring { path: store.dir().into(), reason });
        }
        refuse_vanished(store.dir(), master)?;
        let keyring = KeyringId(Uuid::from_bytes(random_uuid()?));
        let failed = |source| KeyringError::MasterKey { action: "make the key", keyring, source };
        let (keyring_key, wrapped) = master.generate_data_key().map_err(failed)?;
        let seal = Seal::derive(&keyring_key);
        let facts = RootFacts {
            keyring,
            owner,
            created: unix_now(),
            master_key: master.id(),
            label: master.label().to_owned(),
            generation: 1,
            next_line: LineNumber(1),
            sum: Sum::default(),
            key_check: key_check(&keyring_key, keyring, KEYRING_KEY.0, KEYRING_KEY.1),
            drafts: Vec::new(),
        };
        let root = Root::sealed(facts, wrapped, &seal)?;
        store.replace_root(&lock, &root.to_bytes()?)?;
        drop(lock);
        let unlocked = Unlocked::new(Box::new(store), root.facts, seal);
        unlocked.remember_generation(master)?;
        Ok(unlocked)
    }

    /// Opens the keyring in `dir`: checks permissions, structure and the root's CRC.
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_store(Box::new(FileStore::open(dir)?))
    }

    /// Opens a keyring that is kept elsewhere.
    pub fn open_store(store: Box<dyn Store>) -> Result<Self> {
        let root = read_root(store.as_ref())?;
        Ok(Self { store, root })
    }

    /// What the root says in clear.
    pub fn info(&self) -> KeyringInfo {
        info_of(&self.root)
    }

    /// Refuses a keyring that was made for something else.
    pub fn require_owner(&self, expected: Owner) -> Result<()> {
        let found = self.root.facts.owner;
        if found != expected {
            return Err(KeyringError::ForeignOwner { path: self.store.dir().into(), found, expected });
        }
        Ok(())
    }

    /// What the HSM remembers this keyring's generation under.
    pub fn generation_id(&self) -> Result<GenerationId> {
        let instance = InstanceId::of(self.store.dir())?;
        Ok(GenerationId { instance, keyring: self.root.facts.keyring })
    }

    /// Unwraps the keyring key, checks the seal and the generation, and tells the HSM of a newer one (a
    /// first opening at this place, or a crash before it was told).
    pub fn unlock(self, master: &dyn MasterKey) -> Result<Unlocked> {
        let unlocked = self.inspect(master)?;
        unlocked.remember_generation(master)?;
        Ok(unlocked)
    }

    /// As [`unlock`](Self::unlock), but leaves no trace in the HSM: for looking at copies and backups.
    pub fn inspect(mut self, master: &dyn MasterKey) -> Result<Unlocked> {
        let id = self.generation_id()?;
        loop {
            let seal = self.open_seal(master)?;
            let found = self.root.facts.generation;
            let remembered = self.ask_hsm("read the generation", master.generation(&id))?;
            let Some(remembered) = remembered.filter(|remembered| *remembered > found) else {
                return Ok(Unlocked::new(self.store, self.root.facts, seal));
            };
            // Another process may have written between the two looks.
            self.root = read_root(self.store.as_ref())?;
            if self.root.facts.generation <= found {
                let path = self.store.dir().into();
                return Err(KeyringError::OldGeneration { path, found, remembered });
            }
        }
    }

    /// Opens with the seal key alone, without HSM: metadata can be read and changed, keys stay wrapped and
    /// the generation is not compared.
    pub fn unlock_with_seal_key(self, seal_key: SecretBytes<32>) -> Result<Unlocked> {
        let seal = Seal::from_key(seal_key);
        self.root.check_seal(&seal, &self.store.root_path())?;
        Ok(Unlocked::new(self.store, self.root.facts, seal))
    }

    /// Makes the HSM accept this keyring although it remembers a newer one: the explicit way back after a
    /// restore. The HSM's audit log says so.
    ///
    /// A crash between forgetting and remembering leaves the HSM without a generation, which is accepted and
    /// set by the next unlocking.
    pub fn accept_restore(&self, master: &dyn MasterKey) -> Result<AcceptedRestore> {
        self.open_seal(master)?;
        let id = self.generation_id()?;
        let generation = self.root.facts.generation;
        let remembered = self.ask_hsm("read the generation", master.generation(&id))?;
        if remembered.is_some_and(|remembered| remembered > generation) {
            self.ask_hsm("forget the generation", master.forget_generation(&id))?;
        }
        self.ask_hsm("remember the generation", master.raise_generation(&id, generation))?;
        Ok(AcceptedRestore { generation, remembered })
    }

    /// Makes the HSM forget every keyring that it was told of in `dir`, where there is none any more: the explicit way to
    /// begin anew in a place. Returns what it remembered; its audit log says so.
    ///
    /// # Errors
    /// There is a keyring, or the records of one.
    pub fn accept_loss(dir: &Path, master: &dyn MasterKey) -> Result<Vec<(KeyringId, u64)>> {
        if ["keyring.tde", "lines"].iter().any(|name| dir.join(name).symlink_metadata().is_ok()) {
            return Err(KeyringError::AlreadyExists { path: dir.into() });
        }
        let instance = InstanceId::of(dir)?;
        let remembered = master.generations_of_instance(instance);
        // No keyring is there to be named; the errors are the HSM's.
        let failed = |keyring| {
            move |source| KeyringError::MasterKey { action: "forget the generation", keyring, source }
        };
        let remembered = remembered.map_err(failed(KeyringId(Uuid::nil())))?;
        for (keyring, _) in &remembered {
            let id = GenerationId { instance, keyring: *keyring };
            master.forget_generation(&id).map_err(failed(*keyring))?;
        }
        Ok(remembered)
    }

    fn open_seal(&self, master: &dyn MasterKey) -> Result<Seal> {
        let keyring_key = unwrap_keyring_key(&self.store.root_path(), &self.root, master)?;
        let seal = Seal::derive(&keyring_key);
        self.root.check_seal(&seal, &self.store.root_path())?;
        Ok(seal)
    }

    fn ask_hsm<T>(&self, action: &'static str, answer: Result<T, MasterKeyError>) -> Result<T> {
        let keyring = self.root.facts.keyring;
        answer.map_err(|source| KeyringError::MasterKey { action, keyring, source })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("dir", &self.store.dir()).field("info", &self.info()).finish()
    }
}

fn refuse_vanished(dir: &Path, master: &dyn MasterKey) -> Result<()> {
    // No keyring is there to be named in an error of the HSM's.
    let keyring = KeyringId(Uuid::nil());
    let failed = |source| KeyringError::MasterKey { action: "read the generations", keyring, source };
    let known = master.generations_of_instance(InstanceId::of(dir)?).map_err(failed)?;
    match known.first() {
        Some(&(keyring, generation)) => Err(KeyringError::Vanished { path: dir.into(), keyring, generation }),
        None => Ok(()),
    }
}

/// `file` names the root in errors.
pub(crate) fn unwrap_keyring_key(
    file: &Path,
    root: &Root,
    master: &dyn MasterKey,
) -> Result<SecretBytes<32>> {
    let facts = &root.facts;
    let file = file.to_path_buf();
    let keyring = facts.keyring;
    if facts.master_key != master.id() {
        let (label, expected, found) = (facts.label.clone(), facts.master_key, master.id());
        return Err(KeyringError::OtherMasterKey { file, label, expected, found });
    }
    let key = match master.unwrap(&root.wrapped) {
        Ok(key) => key,
        Err(source @ MasterKeyError::Wrong { .. }) => {
            return Err(KeyringError::KeyringKeyWrong { file, keyring, source: Some(source) });
        }
        Err(source) => return Err(KeyringError::MasterKey { action: "unwrap the key", keyring, source }),
    };
    let check = key_check(&key, keyring, KEYRING_KEY.0, KEYRING_KEY.1);
    if !check_matches(&facts.key_check, &check) {
        return Err(KeyringError::KeyringKeyWrong { file, keyring, source: None });
    }
    Ok(key)
}

pub(crate) fn read_root(store: &dyn Store) -> Result<Root> {
    let Some(bytes) = store.read_root()? else {
        let reason = "keyring.tde is missing";
        return Err(KeyringError::NotAKeyring { path: store.dir().into(), reason });
    };
    Root::from_bytes(&bytes, &store.root_path())
}

pub(crate) fn info_of(root: &Root) -> KeyringInfo {
    let facts = &root.facts;
    KeyringInfo {
        keyring: facts.keyring,
        owner: facts.owner,
        created: facts.created,
        master_key: facts.master_key,
        master_key_label: facts.label.clone(),
        master_key_version: root.wrapped.version,
        generation: facts.generation,
        lines: facts.next_line.0 - 1,
    }
}

/// Seconds since 1970-01-01 UTC; 0 on a clock set before that.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn random_uuid() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    secret_mem::random(&mut bytes)?;
    Ok(*uuid::Builder::from_random_bytes(bytes).as_uuid().as_bytes())
}
