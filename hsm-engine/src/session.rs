//! What a logged-in user does: use master keys, keep counters, check the log.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secret_mem::SecretBytes;
use uuid::Uuid;

use crate::audit::{Entry, Event, Outcome, Usage};
use crate::error::{HsmError, Result};
use crate::format::records;
use crate::hsm::{new_line, new_version, write_user_record};
use crate::keys::StoreKeys;
use crate::login::lock_user;
use crate::master_key::{
    self, DataKey, KeyAttributes, KeyCipher, KeyHandle, KeyVersionState, MAX_VERSIONS, MasterKeyInfo,
    Mechanism, Return, Wrapped,
};
use crate::object::{self, Kind, Object};
use crate::pin::Pin;
use crate::transaction::{Core, LOCK_WAIT, Transaction};
use crate::user::{PinCost, PinKdf, Role};

/// How far a user's record may be ahead of the root: changes that were killed between the two, and then some.
const FURTHEST_AHEAD: u64 = 1 << 32;
/// Most master keys an HSM holds.
pub const MAX_KEYS: usize = 1024;
/// Most versions whose ciphers a session keeps ready.
const MAX_READY: usize = 256;
/// How long dropping a session may wait to log its end.
const DROP_WAIT: Duration = Duration::from_secs(1);

/// A logged-in user. Its keys are in locked memory and wiped when it is dropped.
///
/// A session belongs to the process that logged in: a forked child gets [`HsmError::Forked`] from everything, and
/// dropping its copy wipes that copy and logs nothing. Several threads may use one session.
///
/// [`close`](Self::close) logs the end and what was used, and tells if that failed; dropping does the same and cannot tell.
pub struct Session {
    pub(crate) core: Core,
    pub(crate) keys: StoreKeys,
    user: records::UserPublic,
    opener: u32,
    /// Versions used before. A version never changes its key, nor a line its attributes, so an entry is never wrong.
    ready: Mutex<HashMap<(Uuid, u32), Arc<Ready>>>,
    usage: Counts,
    /// The request for approvals that the next change may use.
    presented: Mutex<Option<[u8; 16]>>,
    closed: bool,
}

/// A version of a master key, ready for use.
struct Ready {
    cipher: KeyCipher,
    attributes: KeyAttributes,
}

#[derive(Default)]
struct Counts {
    wraps: AtomicU64,
    unwraps: AtomicU64,
    data_keys: AtomicU64,
    failures: AtomicU64,
}

impl Session {
    pub(crate) fn new(core: Core, keys: StoreKeys, user: records::UserPublic) -> Self {
        Self {
            core,
            keys,
            user,
            opener: std::process::id(),
            ready: Mutex::default(),
            usage: Counts::default(),
            presented: Mutex::default(),
            closed: false,
        }
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user.name
    }

    /// The user's role.
    pub fn role(&self) -> Role {
        self.user.role
    }

    /// UUID of the HSM.
    pub fn hsm_id(&self) -> Uuid {
        Uuid::from_bytes(*self.core.hsm_id())
    }

    /// Finds a master key by its label.
    ///
    /// # Errors
    /// [`HsmError::NoSuchKey`].
    pub fn find_master_key(&self, label: &str) -> Result<KeyHandle> {
        self.same_process()?;
        let root = self.core.root(&self.keys)?.value;
        match root.keys.into_iter().find(|k| k.label == label) {
            Some(k) => Ok(KeyHandle { id: Uuid::from_bytes(k.id), label: k.label }),
            None => Err(HsmError::NoSuchKey { label: label.into() }),
        }
    }

    /// Makes a master key with one version. The key is made inside and never leaves.
    ///
    /// # Errors
    /// The user may not use keys, the label is taken or not valid, there are [`MAX_KEYS`] already.
    pub fn create_master_key(&self, label: &str, attributes: KeyAttributes) -> Result<KeyHandle> {
        self.require(Role::CryptoUser, "make master keys")?;
        master_key::check_label(label)?;
        let mut tx = self.begin(LOCK_WAIT)?;
        if tx.root().keys.iter().any(|k| k.label == label) {
            return Err(HsmError::Duplicate { what: "master key", name: label.into() });
        }
        if tx.root().keys.len() >= MAX_KEYS {
            return Err(HsmError::Full { what: "master keys", limit: MAX_KEYS });
        }
        let line = new_line(&self.keys, label, attributes)?;
        let handle = KeyHandle { id: line.uuid(), label: label.into() };
        tx.log(&[self.entry(Event::MasterKeyCreated { id: line.id, label: label.into() })])?;
        let entry = records::KeyEntry { id: line.id, label: label.into(), revision: 1 };
        tx.put(Kind::MasterKey, &master_key::object_name(handle.id)?, &Object { revision: 1, value: line })?;
        tx.root_mut().keys.push(entry);
        tx.commit()?;
        Ok(handle)
    }

    /// Gives a master key a new version, which wraps from now on; the one before only unwraps. Returns its number.
    ///
    /// # Errors
    /// The user may not use keys, the key does not exist, or it has [`MAX_VERSIONS`] already.
    pub fn rotate_master_key(&self, key: &KeyHandle) -> Result<u32> {
        self.require(Role::CryptoUser, "rotate master keys")?;
        let mut tx = self.begin(LOCK_WAIT)?;
        let mut line = self.line_in(tx.root(), key)?;
        if line.value.versions.len() >= MAX_VERSIONS {
            return Err(HsmError::Full { what: "versions of one master key", limit: MAX_VERSIONS });
        }
        let version = line.value.versions.last().map_or(0, |v| v.version) + 1;
        for old in line.value.versions.iter_mut().filter(|v| v.state == KeyVersionState::Active) {
            old.state = KeyVersionState::DecryptOnly;
        }
        line.value.versions.push(new_version(&self.keys, version)?);
        line.revision += 1;
        let label = line.value.label.clone();
        tx.log(&[self.entry(Event::MasterKeyRotated { id: line.value.id, label, version })])?;
        tx.put(Kind::MasterKey, &master_key::object_name(key.id)?, &line)?;
        let id = line.value.id;
        for entry in tx.root_mut().keys.iter_mut().filter(|k| k.id == id) {
            entry.revision = line.revision;
        }
        tx.commit()?;
        Ok(version)
    }

    /// The version that wraps new keys. Read from the store each time, as another process may have rotated.
    ///
    /// # Errors
    /// The key does not exist or its newest version cannot be used.
    pub fn primary_version(&self, key: &KeyHandle) -> Result<u32> {
        Ok(self.line(key)?.primary()?.version)
    }

    /// Public facts of a master key.
    ///
    /// # Errors
    /// The key does not exist.
    pub fn master_key_info(&self, key: &KeyHandle) -> Result<MasterKeyInfo> {
        Ok(self.line(key)?.info())
    }

    /// Public facts of all master keys, in the order they were made.
    ///
    /// # Errors
    /// An object is damaged, stale or missing.
    pub fn master_keys(&self) -> Result<Vec<MasterKeyInfo>> {
        self.same_process()?;
        let root = self.core.root(&self.keys)?.value;
        let handle = |k: &records::KeyEntry| KeyHandle { id: Uuid::from_bytes(k.id), label: k.label.clone() };
        root.keys.iter().map(|k| Ok(self.line_in(&root, &handle(k))?.value.info())).collect()
    }

    /// Wraps a key with the newest version of a master key.
    ///
    /// # Errors
    /// The user may not use keys, or the master key cannot wrap.
    pub fn wrap(&self, key: &KeyHandle, secret: &SecretBytes<32>) -> Result<Wrapped> {
        self.wrap_with(Mechanism::AesKw, key, secret)
    }

    /// Unwraps a key that this master key wrapped.
    ///
    /// # Errors
    /// The user or the master key does not allow keys in clear; [`HsmError::NoSuchKeyId`],
    /// [`HsmError::NoSuchKeyVersion`], [`HsmError::KeyDestroyed`], [`HsmError::WrongKey`].
    pub fn unwrap(&self, key: &KeyHandle, wrapped: &Wrapped) -> Result<SecretBytes<32>> {
        self.unwrap_with(Mechanism::AesKw, key, wrapped)
    }

    /// Wraps with a mechanism; see [`wrap`](Self::wrap).
    ///
    /// # Errors
    /// As [`wrap`](Self::wrap).
    pub fn wrap_with(
        &self,
        mechanism: Mechanism,
        key: &KeyHandle,
        secret: &SecretBytes<32>,
    ) -> Result<Wrapped> {
        self.require(Role::CryptoUser, "wrap keys")?;
        let wrapped = self.wrap_newest(mechanism, &self.line(key)?, secret)?;
        self.usage.wraps.fetch_add(1, Ordering::Relaxed);
        Ok(wrapped)
    }

    /// Unwraps with a mechanism; see [`unwrap`](Self::unwrap).
    ///
    /// # Errors
    /// As [`unwrap`](Self::unwrap).
    pub fn unwrap_with(
        &self,
        mechanism: Mechanism,
        key: &KeyHandle,
        wrapped: &Wrapped,
    ) -> Result<SecretBytes<32>> {
        self.require(Role::CryptoUser, "unwrap keys")?;
        let version = match self.ready(key.id, wrapped.version) {
            Some(ready) => ready,
            None => {
                let line = self.line(key)?;
                self.make_ready(&line, line.for_unwrap(wrapped.version)?)?
            }
        };
        self.check_plaintext(&key.label, version.attributes)?;
        let Mechanism::AesKw = mechanism;
        if let Some(secret) = version.cipher.unwrap(&wrapped.bytes) {
            self.usage.unwraps.fetch_add(1, Ordering::Relaxed);
            return Ok(secret);
        }
        self.usage.failures.fetch_add(1, Ordering::Relaxed);
        Err(HsmError::WrongKey { id: key.id, label: key.label.clone(), version: wrapped.version })
    }

    /// Makes a random data key and wraps it with the newest version.
    ///
    /// # Errors
    /// As [`wrap`](Self::wrap); for [`Return::Plaintext`] also [`HsmError::PlaintextForbidden`].
    pub fn generate_data_key(&self, key: &KeyHandle, give: Return) -> Result<DataKey> {
        self.require(Role::CryptoUser, "make data keys")?;
        let line = self.line(key)?;
        if give == Return::Plaintext {
            self.check_plaintext(&line.label, line.attributes)?;
        }
        let secret = SecretBytes::<32>::random()?;
        let wrapped = self.wrap_newest(Mechanism::AesKw, &line, &secret)?;
        self.usage.data_keys.fetch_add(1, Ordering::Relaxed);
        Ok(DataKey { wrapped, plaintext: (give == Return::Plaintext).then_some(secret) })
    }

    /// Fills `out` with random bytes of the operating system.
    ///
    /// # Errors
    /// The generator fails.
    pub fn random(&self, out: &mut [u8]) -> Result<()> {
        self.same_process()?;
        Ok(secret_mem::random(out)?)
    }

    /// Gives the logged-in user another PIN. The old one is worth nothing from then on, except for old copies of the store.
    ///
    /// # Errors
    /// The PIN is too short, or the store cannot be written.
    pub fn change_pin(&self, new: &Pin) -> Result<()> {
        self.same_process()?;
        self.set_pin(&self.user.name, new, Event::PinChanged)
    }

    /// Logs what was used since the login or the last call.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn log_usage(&self) -> Result<()> {
        self.same_process()?;
        let usage = self.usage.take();
        if usage == Usage::default() {
            return Ok(());
        }
        self.log(self.entry(Event::Used(usage)), LOCK_WAIT)
    }

    /// Logs the end of the session and wipes its keys.
    ///
    /// # Errors
    /// The log cannot be written. The keys are wiped nevertheless.
    pub fn close(mut self) -> Result<()> {
        self.closed = true;
        self.same_process()?;
        self.log(self.entry(Event::Logout(self.usage.take())), LOCK_WAIT)
    }

    pub(crate) fn begin(&self, wait: Duration) -> Result<Transaction<'_>> {
        Transaction::begin(&self.core, &self.keys, wait)
    }

    pub(crate) fn entry(&self, event: Event) -> Entry {
        Entry::ok(&self.user.name, event)
    }

    fn log(&self, entry: Entry, wait: Duration) -> Result<()> {
        let mut tx = self.begin(wait)?;
        tx.log(&[entry])?;
        tx.commit()
    }

    pub(crate) fn same_process(&self) -> Result<()> {
        if self.opener == std::process::id() { Ok(()) } else { Err(HsmError::Forked { opener: self.opener }) }
    }

    /// Refuses, and logs, what the role does not include.
    pub(crate) fn require(&self, role: Role, action: &'static str) -> Result<()> {
        self.same_process()?;
        if self.user.role == role {
            return Ok(());
        }
        let user = self.user.name.clone();
        let event = Event::Refused { action: action.into() };
        self.log(Entry { user: user.clone(), event, outcome: Outcome::Refused }, LOCK_WAIT)?;
        Err(HsmError::NotAllowed { user, role: self.user.role, action })
    }

    pub(crate) fn presented(&self) -> std::sync::MutexGuard<'_, Option<[u8; 16]>> {
        self.presented.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`require`](Self::require) for several roles.
    pub(crate) fn require_one_of(&self, roles: &[Role], action: &'static str) -> Result<()> {
        let role = roles.iter().copied().find(|&r| r == self.user.role).or(roles.first().copied());
        role.map_or(Ok(()), |role| self.require(role, action))
    }

    /// Logs one event of this user.
    #[cfg(feature = "objects")]
    pub(crate) fn log_event(&self, event: Event) -> Result<()> {
        self.same_process()?;
        self.log(self.entry(event), LOCK_WAIT)
    }

    /// Gives a user another PIN and clears the failure counter. Takes the user's lock first, as a login does.
    pub(crate) fn set_pin(&self, name: &str, pin: &Pin, event: Event) -> Result<()> {
        pin.check_new()?;
        let _user_lock = lock_user(&self.core, name)?;
        let mut tx = self.begin(LOCK_WAIT)?;
        if matches!(event, Event::PinReset { .. }) {
            self.authorize(&mut tx, crate::policy::Service::Users, 0, [0; 16])?;
        }
        let record = crate::login::read_user(&self.core, name)?;
        let Some(entry) = tx.root().users.iter().find(|u| u.name == name) else {
            let (store, user) = (self.core.store().location(), name.into());
            return Err(HsmError::UnknownUser { store, user });
        };
        // Only the user's own PIN could tell whether the record was edited: what matters comes from where it is sealed.
        let mut public = record.value.public;
        (public.role, public.rights) = (entry.role, entry.rights);
        let cost = if name == self.user.name { self.user.kdf.cost() } else { PinCost::DEFAULT };
        public.kdf = PinKdf::for_pin(pin, cost);
        public.pin_set = crate::Timestamp::now();
        secret_mem::random(&mut public.salt)?;
        // The record's own number is public: one that this HSM cannot have reached counts for nothing.
        let possible = entry.revision..=entry.revision.saturating_add(FURTHEST_AHEAD);
        let last = if possible.contains(&record.revision) { record.revision } else { entry.revision };
        let revision = last.saturating_add(1);
        tx.log(&[self.entry(event)])?;
        write_user_record(&self.core, &self.keys, public, pin, revision)?;
        for entry in tx.root_mut().users.iter_mut().filter(|u| u.name == name) {
            entry.revision = revision;
        }
        self.clear_lockout(name)?;
        tx.commit()
    }

    /// Clears a user's failure counter, also one that is damaged. Call it under the user's lock.
    pub(crate) fn clear_lockout(&self, name: &str) -> Result<()> {
        let cleared = records::Lockout::cleared();
        let cleared = match crate::login::read_lockout(&self.core, name) {
            Ok(old) => old.next(cleared),
            Err(HsmError::Damaged { .. } | HsmError::MissingObject { .. }) => {
                Object { revision: 1, value: cleared }
            }
            Err(e) => return Err(e),
        };
        crate::hsm::write_lockout(&self.core, name, &cleared)
    }

    fn check_plaintext(&self, label: &str, attributes: KeyAttributes) -> Result<()> {
        let who = if !self.user.rights.plaintext_data_keys {
            format!("user \"{}\"", self.user.name)
        } else if !attributes.plaintext_data_keys {
            "users of this master key".into()
        } else {
            return Ok(());
        };
        Err(HsmError::PlaintextForbidden { label: label.into(), who })
    }

    fn line(&self, key: &KeyHandle) -> Result<records::KeyLine> {
        self.same_process()?;
        Ok(self.line_in(&self.core.root(&self.keys)?.value, key)?.value)
    }

    /// The line of a key. The root is read before: lines are written before the root, so they are never older.
    pub(crate) fn line_in(&self, root: &records::Root, key: &KeyHandle) -> Result<Object<records::KeyLine>> {
        let Some(entry) = root.keys.iter().find(|k| k.id == *key.id.as_bytes()) else {
            return Err(HsmError::NoSuchKeyId { id: key.id, label: key.label.clone() });
        };
        let (store, name) = (self.core.store(), master_key::object_name(key.id)?);
        let line: Object<records::KeyLine> = self
            .keys
            .sealer
            .get(store, Kind::MasterKey, &name)?
            .ok_or_else(|| object::missing(store, &name))?;
        line.value.check(key.id).map_err(|d| object::damaged(store, &name, d))?;
        self.core.check_revision(&name, line.revision, entry.revision)?;
        Ok(line)
    }

    fn wrap_newest(
        &self,
        mechanism: Mechanism,
        line: &records::KeyLine,
        secret: &SecretBytes<32>,
    ) -> Result<Wrapped> {
        let newest = line.primary()?;
        let ready = match self.ready(line.uuid(), newest.version) {
            Some(ready) => ready,
            None => self.make_ready(line, newest)?,
        };
        let Mechanism::AesKw = mechanism;
        Ok(Wrapped { version: newest.version, bytes: ready.cipher.wrap(secret) })
    }

    fn ready(&self, id: Uuid, version: u32) -> Option<Arc<Ready>> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.get(&(id, version)).map(Arc::clone)
    }

    fn make_ready(&self, line: &records::KeyLine, version: &records::KeyVersion) -> Result<Arc<Ready>> {
        let cipher = KeyCipher::new(&self.master_key(line, version)?);
        let entry = Arc::new(Ready { cipher, attributes: line.attributes });
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.len() >= MAX_READY {
            ready.clear();
        }
        ready.insert((line.uuid(), version.version), Arc::clone(&entry));
        Ok(entry)
    }

    /// A version's key, for a moment, in locked memory.
    pub(crate) fn master_key(
        &self,
        line: &records::KeyLine,
        version: &records::KeyVersion,
    ) -> Result<SecretBytes<32>> {
        let name = master_key::object_name(line.uuid())?;
        let damaged =
            || object::damaged(self.core.store(), &name, crate::error::Damage::Field("wrapped master key"));
        self.keys.wrapper.unwrap(&version.wrapped).ok_or_else(damaged)
    }
}

impl Counts {
    fn take(&self) -> Usage {
        let take = |n: &AtomicU64| n.swap(0, Ordering::Relaxed);
        Usage {
            wraps: take(&self.wraps),
            unwraps: take(&self.unwraps),
            data_keys: take(&self.data_keys),
            failures: take(&self.failures),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.closed && self.same_process().is_ok() {
            // Nobody is left to tell; who must know calls `close`. The keys are wiped by their own types.
            let _ = self.log(self.entry(Event::Logout(self.usage.take())), DROP_WAIT);
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("hsm", &self.core.header.label)
            .field("user", &self.user.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hsm, Initialize};

    /// A copy of a session in a forked child is refused everything, and its drop writes nothing.
    #[test]
    fn another_process_gets_nothing_from_a_session() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("hsm");
        let (officer, user) = (Pin::generate().unwrap(), Pin::generate().unwrap());
        let hsm = Hsm::initialize_dir(&dir, &Initialize::new(&officer, &user)).unwrap();
        let mut session = hsm.login("user", &user).unwrap();
        let key = session.find_master_key("master").unwrap();
        let wrapped = session.generate_data_key(&key, Return::WrappedOnly).unwrap().wrapped;
        let records = hsm.verify_audit(&mut |_| {}).unwrap().records;
        session.opener ^= 1;
        let forked = |e: HsmError| assert!(matches!(e, HsmError::Forked { .. }), "{e}");
        forked(session.unwrap(&key, &wrapped).map(drop).unwrap_err());
        forked(session.wrap(&key, &SecretBytes::zeroed()).map(drop).unwrap_err());
        forked(session.find_master_key("master").map(drop).unwrap_err());
        forked(session.primary_version(&key).map(drop).unwrap_err());
        forked(session.raise_counter("x", 1).map(drop).unwrap_err());
        forked(session.counter("x").map(drop).unwrap_err());
        forked(session.random(&mut [0; 4]).unwrap_err());
        forked(session.log_usage().unwrap_err());
        drop(session);
        assert_eq!(hsm.verify_audit(&mut |_| {}).unwrap().records, records);
    }
}
