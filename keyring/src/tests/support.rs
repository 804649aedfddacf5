//! A master key in memory (real AES-KW), and keyrings to try things on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;

use aes_kw::KeyInit;
use aes_kw::KwAes256;
use page_cipher::CipherId;
use secret_mem::SecretBytes;

use crate::*;

/// Versions of a master key and the generations it was told, as an HSM would keep them.
pub(super) struct MemoryMaster {
    id: MasterKeyId,
    versions: BTreeMap<u32, SecretBytes<32>>,
    pub(super) destroyed: Vec<u32>,
    pub(super) away: Cell<bool>,
    pub(super) generations: RefCell<BTreeMap<GenerationId, u64>>,
}

impl MemoryMaster {
    pub(super) fn new() -> Self {
        Self::from_seed(0x11)
    }

    /// Versions 1.. are derived from the seed, so that another process can have the same master key.
    pub(super) fn from_seed(seed: u8) -> Self {
        let mut master = Self {
            id: MasterKeyId([seed; 16]),
            versions: BTreeMap::new(),
            destroyed: Vec::new(),
            away: Cell::new(false),
            generations: RefCell::default(),
        };
        master.generate_version().expect("a first version");
        master
    }

    fn kek(&self, version: u32) -> Result<KwAes256, MasterKeyError> {
        if self.away.get() {
            return Err(MasterKeyError::Away("unplugged".into()));
        }
        if self.destroyed.contains(&version) {
            return Err(MasterKeyError::Destroyed { key: self.id, version });
        }
        let key = self.versions.get(&version).ok_or(MasterKeyError::Missing { key: self.id, version })?;
        Ok(KwAes256::new(key.expose().into()))
    }

    fn present(&self) -> Result<(), MasterKeyError> {
        if self.away.get() { Err(MasterKeyError::Away("unplugged".into())) } else { Ok(()) }
    }
}

impl MasterKey for MemoryMaster {
    fn id(&self) -> MasterKeyId {
        self.id
    }

    fn label(&self) -> &str {
        "master"
    }

    fn primary_version(&self) -> Result<u32, MasterKeyError> {
        self.present()?;
        Ok(self.versions.keys().next_back().copied().unwrap_or(0))
    }

    fn generate_version(&mut self) -> Result<u32, MasterKeyError> {
        let version = self.primary_version()? + 1;
        let mut key = SecretBytes::zeroed();
        key.expose_mut().fill(self.id.0[0] ^ version as u8);
        self.versions.insert(version, key);
        Ok(version)
    }

    fn wrap(&self, key: &SecretBytes<32>) -> Result<WrappedKey, MasterKeyError> {
        let version = self.primary_version()?;
        let mut bytes = [0; 40];
        self.kek(version)?.wrap_key(key.expose(), &mut bytes).expect("40 bytes hold 32 wrapped");
        Ok(WrappedKey { version, bytes })
    }

    fn unwrap(&self, wrapped: &WrappedKey) -> Result<SecretBytes<32>, MasterKeyError> {
        let kek = self.kek(wrapped.version)?;
        SecretBytes::fill_with(|out| kek.unwrap_key(&wrapped.bytes, out).map(|_| ()))
            .map_err(|_| MasterKeyError::Wrong { key: self.id, version: wrapped.version })
    }

    fn generate_data_key(&self) -> Result<(SecretBytes<32>, WrappedKey), MasterKeyError> {
        let key = SecretBytes::random().expect("random bytes");
        let wrapped = self.wrap(&key)?;
        Ok((key, wrapped))
    }

    fn generation(&self, of: &GenerationId) -> Result<Option<u64>, MasterKeyError> {
        self.present()?;
        Ok(self.generations.borrow().get(of).copied())
    }

    fn raise_generation(&self, of: &GenerationId, generation: u64) -> Result<(), MasterKeyError> {
        self.present()?;
        let mut generations = self.generations.borrow_mut();
        let known = generations.entry(*of).or_default();
        *known = generation.max(*known);
        Ok(())
    }

    fn forget_generation(&self, of: &GenerationId) -> Result<(), MasterKeyError> {
        self.present()?;
        self.generations.borrow_mut().remove(of);
        Ok(())
    }

    fn generations_of_instance(&self, at: InstanceId) -> Result<Vec<(KeyringId, u64)>, MasterKeyError> {
        self.present()?;
        let generations = self.generations.borrow();
        let here = generations.iter().filter(|(id, _)| id.instance == at);
        Ok(here.map(|(id, generation)| (id.keyring, *generation)).collect())
    }
}

pub(super) const CLUSTER: Owner = Owner::PgCluster { system_identifier: 7_000_000_000_000_000_001 };

pub(super) fn tablespace(oid: u32) -> NewScope {
    NewScope {
        kind: ScopeKind::PgTablespace { oid, name: format!("space_{oid}") },
        cipher: CipherId::Aes256Hctr2,
        initial: None,
    }
}

pub(super) fn sqlite(id: u8) -> NewScope {
    let kind = ScopeKind::SqliteFile { file_id: [id; 12] };
    NewScope { kind, cipher: CipherId::Aes256GcmSiv, initial: None }
}

pub(super) fn state(position: u64, state: TablespaceState) -> StateChange {
    StateChange { from: WalPosition(position), state }
}

/// A keyring of a cluster with `lines` tablespaces, OIDs from 16384.
pub(super) fn keyring_with(dir: &Path, lines: u32, master: &MemoryMaster) -> Unlocked {
    let keyring = Keyring::create(dir, CLUSTER, master).expect("a new keyring");
    for oid in 0..lines {
        keyring.add_scope(tablespace(16384 + oid), master).expect("a new scope");
    }
    keyring
}

pub(super) fn open(dir: &Path, master: &MemoryMaster) -> Result<Unlocked> {
    Keyring::open(dir)?.unlock(master)
}

/// A directory as private as a keyring must be.
pub(super) fn scratch() -> tempfile::TempDir {
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    tempfile::Builder::new().permissions(private).tempdir().expect("a temporary directory")
}
