//! Unwrapped data keys that were used lately.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::ids::{KeyVersion, KeyringId, LineNumber};
use crate::unlocked::Dek;

/// Least-recently-used cache of data keys in locked memory. What it evicts, forgets or is dropped with is
/// wiped (`SecretBytes`).
pub struct HotDeks {
    cache: LruCache<(KeyringId, LineNumber, KeyVersion), Dek>,
}

impl HotDeks {
    /// Room for `capacity` keys.
    pub fn new(capacity: NonZeroUsize) -> Self {
        Self { cache: LruCache::new(capacity) }
    }

    /// A key that is there, made the most recently used.
    pub fn get(&mut self, keyring: KeyringId, line: LineNumber, version: KeyVersion) -> Option<&Dek> {
        self.cache.get(&(keyring, line, version))
    }

    /// A key, fetched if it is not there.
    pub fn get_or_fetch<E>(
        &mut self,
        keyring: KeyringId,
        line: LineNumber,
        version: KeyVersion,
        fetch: impl FnOnce() -> Result<Dek, E>,
    ) -> Result<&Dek, E> {
        self.cache.try_get_or_insert((keyring, line, version), fetch)
    }

    /// Takes a key in. Whatever it displaces is wiped.
    pub fn insert(&mut self, keyring: KeyringId, line: LineNumber, version: KeyVersion, dek: Dek) {
        drop(self.cache.push((keyring, line, version), dek));
    }

    /// Wipes one key.
    pub fn forget(&mut self, keyring: KeyringId, line: LineNumber, version: KeyVersion) {
        drop(self.cache.pop(&(keyring, line, version)));
    }

    /// Wipes all keys.
    pub fn clear(&mut self) {
        self.cache.clear();
    }

    /// Keys held.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }
}
