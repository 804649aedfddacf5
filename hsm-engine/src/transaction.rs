//! Changes of the store, and the root that ties its objects together.
//!
//! # Write order of a change, and what a crash leaves
//! Under the store's lock:
//! 1. the audit log is appended to: a record of a change that did not happen
//! 2. the changed object is put: the object is newer than the root says, which is accepted
//! 3. the root is put: done
//!
//! So an object is never older than the root says; if it is, somebody put an old copy back. A new master key counts only
//! once the root names it: after a crash at 2 its object lies unused.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::audit::{self, Entry, Start, Tail};
use crate::error::{Damage, HsmError, Result};
use crate::format::{self, records};
use crate::keys::StoreKeys;
use crate::object::{self, Kind, Object};
use crate::store::{ObjectName, Store, StoreLock};

/// How long a writer waits for another one. A change takes milliseconds.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(10);

/// What every part of an open HSM needs.
#[derive(Debug, Clone)]
pub(crate) struct Core {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) header: records::Header,
}

impl Core {
    pub(crate) fn store(&self) -> &dyn Store {
        &*self.store
    }

    pub(crate) fn hsm_id(&self) -> &[u8; 16] {
        &self.header.hsm_id
    }

    /// Reads the root and checks that the header is the one it was made with.
    pub(crate) fn root(&self, keys: &StoreKeys) -> Result<Object<records::Root>> {
        let name = root_name();
        let root: Object<records::Root> = keys
            .sealer
            .get(self.store(), Kind::Root, &name)?
            .ok_or_else(|| object::missing(self.store(), &name))?;
        if root.value.header_digest != header_digest(self.store(), &self.header)? {
            return Err(object::damaged(self.store(), &header_name(), Damage::Seal));
        }
        Ok(root)
    }

    /// The error that `name` is older than the root says.
    pub(crate) fn check_revision(&self, name: &ObjectName, found: u64, expected: u64) -> Result<()> {
        if found >= expected {
            return Ok(());
        }
        let (store, object) = (self.store().location(), name.to_string());
        Err(HsmError::StaleObject { store, object, found, expected })
    }
}

pub(crate) fn header_name() -> ObjectName {
    ObjectName::fixed("header")
}

pub(crate) fn root_name() -> ObjectName {
    ObjectName::fixed("root")
}

pub(crate) fn counters_name() -> ObjectName {
    ObjectName::fixed("counters")
}

/// The lock of everybody who changes the store.
pub(crate) fn lock_name() -> ObjectName {
    ObjectName::fixed("store")
}

pub(crate) fn header_digest(store: &dyn Store, header: &records::Header) -> Result<[u8; 32]> {
    let bytes = format::encode(header).map_err(|d| object::damaged(store, &header_name(), d))?;
    Ok(Sha256::digest(bytes).into())
}

/// One change, under the store's lock from beginning to end.
pub(crate) struct Transaction<'a> {
    core: &'a Core,
    keys: &'a StoreKeys,
    root: Object<records::Root>,
    _lock: StoreLock,
}

impl<'a> Transaction<'a> {
    pub(crate) fn begin(core: &'a Core, keys: &'a StoreKeys, wait: Duration) -> Result<Self> {
        let lock = core.store().lock(&lock_name(), wait)?;
        Ok(Self { core, keys, root: core.root(keys)?, _lock: lock })
    }

    pub(crate) fn root(&self) -> &records::Root {
        &self.root.value
    }

    pub(crate) fn root_mut(&mut self) -> &mut records::Root {
        &mut self.root.value
    }

    /// Step 1: logs `entries` after checking the log from the anchor on.
    pub(crate) fn log(&mut self, entries: &[Entry]) -> Result<()> {
        let store = self.core.store();
        let key = Some(&self.keys.audit);
        let start = Start::Anchor(self.root.value.anchor);
        let tail: Tail = audit::walk(store, key, &start, None, &mut |_| {})?;
        let tail = audit::append(store, key, &tail, self.root.value.boots, entries)?;
        self.root.value.anchor = tail.anchor;
        Ok(())
    }

    /// Step 2: writes a sealed object.
    pub(crate) fn put<T: format::Payload>(
        &self,
        kind: Kind,
        name: &ObjectName,
        object: &Object<T>,
    ) -> Result<()> {
        self.keys.sealer.put(self.core.store(), kind, name, object)
    }

    /// Step 3: writes the root.
    pub(crate) fn commit(mut self) -> Result<()> {
        self.root.revision += 1;
        self.keys.sealer.put(self.core.store(), Kind::Root, &root_name(), &self.root)
    }
}
