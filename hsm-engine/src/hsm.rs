//! An HSM: made once, opened by every process that uses it, logged in to by its users.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use secret_mem::SecretBytes;
use uuid::Uuid;

use crate::audit::{self, AuditError, AuditReport, Entry, Event, Record, Snapshot};
use crate::error::{HsmError, Result};
use crate::format::records;
use crate::keys::StoreKeys;
use crate::master_key::{self, KeyAttributes, KeyVersionState};
use crate::object::{self, FORMAT, Kind, Object};
use crate::pin::{Pin, PinError};
use crate::selftest;
use crate::session::Session;
use crate::store::{FileStore, Store};
use crate::time::Timestamp;
use crate::transaction::{self, Core, LOCK_WAIT};
use crate::uri::{DEFAULT_KEY, DEFAULT_USER, SoftUri};
use crate::user::{self, Failures, LockState, PinCost, PinKdf, Rights, Role, SealFailure};

/// The officer's name where none is given.
pub const DEFAULT_OFFICER: &str = "officer";

/// What a new HSM is made of.
#[derive(Debug)]
pub struct Initialize<'a> {
    /// What the HSM is called, for people.
    pub label: &'a str,
    /// Name of the crypto officer.
    pub officer: &'a str,
    /// PIN of the crypto officer.
    pub officer_pin: &'a Pin,
    /// Name of the first crypto user.
    pub user: &'a str,
    /// PIN of the first crypto user.
    pub user_pin: &'a Pin,
    /// What the first crypto user may do.
    pub user_rights: Rights,
    /// Label of the first master key, if there is to be one.
    pub master_key: Option<&'a str>,
    /// What may be done with the first master key.
    pub master_key_attributes: KeyAttributes,
    /// Cost of PINs that are not generated.
    pub pin_cost: PinCost,
}

impl<'a> Initialize<'a> {
    /// The usual: users `officer` and `user`, master key `master`, data keys in clear allowed (TDE needs them).
    pub fn new(officer_pin: &'a Pin, user_pin: &'a Pin) -> Self {
        Self {
            label: "tde",
            officer: DEFAULT_OFFICER,
            officer_pin,
            user: DEFAULT_USER,
            user_pin,
            user_rights: Rights { plaintext_data_keys: true },
            master_key: Some(DEFAULT_KEY),
            master_key_attributes: KeyAttributes { plaintext_data_keys: true },
            pin_cost: PinCost::DEFAULT,
        }
    }

    fn check(&self) -> Result<()> {
        user::check_name(self.officer)?;
        user::check_name(self.user)?;
        if self.officer == self.user {
            return Err(HsmError::Duplicate { what: "user", name: self.user.into() });
        }
        master_key::check_label(self.label)?;
        self.master_key.map_or(Ok(()), master_key::check_label)?;
        self.officer_pin.check_new()?;
        self.user_pin.check_new()?;
        if self.officer_pin.same(self.user_pin) {
            return Err(PinError::SameForTwoUsers.into());
        }
        Ok(())
    }
}

/// An open HSM. Knows public facts only, until a user logs in.
#[derive(Debug, Clone)]
pub struct Hsm {
    pub(crate) core: Core,
}

impl Hsm {
    /// Makes an HSM in an empty store.
    ///
    /// The header is written last: a store without one holds no HSM, whatever a crash left in it.
    ///
    /// # Errors
    /// The store holds an HSM or anything else, a name or PIN is not valid, the self-test fails, or the store does.
    pub fn initialize(store: impl Store + 'static, init: &Initialize<'_>) -> Result<Self> {
        selftest::run()?;
        init.check()?;
        let store: Arc<dyn Store> = Arc::new(store);
        let _lock = store.lock(&transaction::lock_name(), LOCK_WAIT)?;
        if store.get(&transaction::header_name())?.is_some() {
            return Err(HsmError::AlreadyInitialized { store: store.location() });
        }
        if !store.list()?.is_empty() {
            return Err(HsmError::IncompleteStore { store: store.location() });
        }
        let mut hsm_id = [0; 16];
        secret_mem::random(&mut hsm_id)?;
        let hsm_id = uuid::Builder::from_random_bytes(hsm_id).into_uuid().into_bytes();
        let header = records::Header { hsm_id, label: init.label.into(), created: Timestamp::now() };
        let core = Core { store, header };
        let store_key = SecretBytes::<32>::random()?;
        let keys = StoreKeys::derive(store_key, hsm_id)
            .map_err(|d| object::damaged(core.store(), &transaction::header_name(), d))?;
        write_all(&core, &keys, init)?;
        let header = Object { revision: 1, value: core.header.clone() };
        object::put_public(core.store(), Kind::Header, &transaction::header_name(), &header)?;
        Ok(Self { core })
    }

    /// Makes an HSM in a new or empty directory.
    ///
    /// # Errors
    /// As [`initialize`](Self::initialize).
    pub fn initialize_dir(dir: impl AsRef<Path>, init: &Initialize<'_>) -> Result<Self> {
        let dir = dir.as_ref();
        // Before the directory is made.
        init.check()?;
        match FileStore::create(dir) {
            Ok(store) => Self::initialize(store, init),
            // Tells an HSM and the rest of one apart from other things in the directory.
            Err(e @ crate::store::StoreError::NotEmpty { .. }) => match Self::open_dir(dir) {
                Ok(_) => Err(HsmError::AlreadyInitialized { store: dir.display().to_string() }),
                Err(HsmError::NotInitialized { .. }) => Err(e.into()),
                Err(other) => Err(other),
            },
            Err(e) => Err(e.into()),
        }
    }

    /// Opens an HSM, after known-answer tests of everything it computes with (once in a process).
    ///
    /// # Errors
    /// No HSM there, a header that is damaged or of an unknown format, a failed self-test.
    pub fn open(store: impl Store + 'static) -> Result<Self> {
        selftest::run()?;
        let store: Arc<dyn Store> = Arc::new(store);
        let header = object::get_public(&*store, Kind::Header, &transaction::header_name())?;
        match header {
            Some(Object { value, .. }) => Ok(Self { core: Core { store, header: value } }),
            None if store.list()?.is_empty() => Err(HsmError::NotInitialized { store: store.location() }),
            None => Err(HsmError::IncompleteStore { store: store.location() }),
        }
    }

    /// Opens the HSM in a directory.
    ///
    /// # Errors
    /// As [`open`](Self::open), and what [`FileStore::open`] says.
    pub fn open_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open(FileStore::open(dir)?)
    }

    /// Opens the HSM that a URI names. The URI's user and key are for [`login`](Self::login) and
    /// [`Session::find_master_key`].
    ///
    /// # Errors
    /// As [`open_dir`](Self::open_dir).
    pub fn open_uri(uri: &SoftUri) -> Result<Self> {
        Self::open_dir(&uri.dir)
    }

    /// UUID of this HSM.
    pub fn id(&self) -> Uuid {
        Uuid::from_bytes(self.core.header.hsm_id)
    }

    /// What the HSM is called.
    pub fn label(&self) -> &str {
        &self.core.header.label
    }

    /// Where its store is.
    pub fn location(&self) -> String {
        self.core.store().location()
    }

    /// Logs a user in.
    ///
    /// The failure counter is written before the PIN is looked at. Logins of one user wait for each other, those of
    /// different users do not. With a generated PIN it takes as long as a few small synced writes; otherwise Argon2id adds
    /// some 0.1 s and 64 MiB for a moment. Waits for locks at most some 40 s.
    ///
    /// # Errors
    /// [`HsmError::WrongPin`], [`HsmError::LockedUntil`], [`HsmError::LockedHard`], [`HsmError::UnknownUser`];
    /// whatever is damaged, stale or missing, by name; a store that cannot be written.
    pub fn login(&self, user: &str, pin: &Pin) -> Result<Session> {
        crate::login::login(&self.core, user, pin, None)
    }

    /// What a user with a second factor signs to log in.
    ///
    /// # Errors
    /// The generator fails.
    #[cfg(feature = "objects")]
    pub fn challenge(&self, user: &str) -> Result<crate::Challenge> {
        crate::Challenge::new(self.core.hsm_id(), user)
    }

    /// Logs a user in with a PIN and a signature of the challenge under the registered key.
    ///
    /// # Errors
    /// As [`login`](Self::login); [`HsmError::BadSignature`].
    #[cfg(feature = "objects")]
    pub fn login_signed(
        &self,
        user: &str,
        pin: &Pin,
        challenge: crate::Challenge,
        signature: &[u8],
    ) -> Result<Session> {
        let good = |person: &crate::policy::Person| challenge.signed_by(person, signature);
        crate::login::login(&self.core, user, pin, Some(&good))
    }

    /// Public facts; needs no PIN and writes nothing but an empty lock file.
    ///
    /// # Errors
    /// A public object is damaged or missing. A damaged audit log is told in [`Status::audit`].
    pub fn status(&self) -> Result<Status> {
        let store = self.core.store();
        let mut users = Vec::new();
        for name in store.list()? {
            if let Some(user) = name.as_str().strip_prefix("user.") {
                users.push(self.user_status(user)?);
            }
        }
        let audit = self.audit_length();
        Ok(Status {
            id: self.id(),
            label: self.label().into(),
            created: self.core.header.created,
            format: FORMAT,
            users,
            audit,
        })
    }

    /// Checks the audit log as far as that is possible without a PIN (sequence, hash chain, damage, but neither who
    /// wrote it nor that its end is there), and shows each record to `visit`. A log that was restarted shows its old damage
    /// here; with a login it is known where it was restarted.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify_audit(&self, visit: &mut dyn FnMut(&Record)) -> Result<AuditReport> {
        let store = self.core.store();
        let lock = store.lock(&transaction::lock_name(), LOCK_WAIT)?;
        let until = Snapshot::take(store)?;
        drop(lock);
        Ok(audit::verify(store, audit::genesis(self.core.hsm_id()), None, until, visit)?)
    }

    /// As a crypto officer, lets a log that is damaged begin anew, so that users can log in again. The damaged files stay
    /// for whoever looks into it; the new part says who restarted it and why.
    ///
    /// # Errors
    /// As [`login`](Self::login); [`HsmError::NotAllowed`] for anybody else; [`AuditError::Whole`] if nothing is damaged.
    pub fn restart_audit(&self, officer: &str, pin: &Pin) -> Result<()> {
        crate::login::restart_audit(&self.core, officer, pin)
    }

    fn audit_length(&self) -> Result<u64, AuditError> {
        let store = self.core.store();
        let _lock = store.lock(&transaction::lock_name(), LOCK_WAIT)?;
        Ok(audit::tail_without_key(store)?.anchor.sequence)
    }

    /// Public facts of a user; needs no PIN.
    ///
    /// # Errors
    /// [`HsmError::UnknownUser`]; a public object is damaged or missing.
    pub fn user_status(&self, name: &str) -> Result<UserStatus> {
        let record = crate::login::read_user(&self.core, name)?.value.public;
        let lockout = crate::login::read_lockout(&self.core, name)?.value;
        Ok(UserStatus {
            role: record.role,
            rights: record.rights,
            created: record.created,
            pin_set: record.pin_set,
            pin_kdf: record.kdf,
            failed: lockout.failed(),
            lock: lockout.state(record.role, Timestamp::now()),
            name: record.name,
        })
    }
}

/// Public facts of an HSM.
#[derive(Debug)]
#[non_exhaustive]
pub struct Status {
    /// UUID.
    pub id: Uuid,
    /// Label.
    pub label: String,
    /// When it was made.
    pub created: Timestamp,
    /// Format version of the store.
    pub format: u16,
    /// Its users, sorted by name.
    pub users: Vec<UserStatus>,
    /// Number of records in the audit log, or why it cannot be told.
    pub audit: Result<u64, AuditError>,
}

/// Public facts of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserStatus {
    /// Name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Rights.
    pub rights: Rights,
    /// When the user was made.
    pub created: Timestamp,
    /// When the PIN was set.
    pub pin_set: Timestamp,
    /// How the PIN becomes a key.
    pub pin_kdf: PinKdf,
    /// Logins that failed since the last good one.
    pub failed: Failures,
    /// Whether the user may try a PIN now.
    pub lock: LockState,
}

/// Everything of a new HSM but its header.
fn write_all(core: &Core, keys: &StoreKeys, init: &Initialize<'_>) -> Result<()> {
    let no_rights = Rights::default();
    let mut users = Vec::new();
    for (name, role, rights, pin) in [
        (init.officer, Role::CryptoOfficer, no_rights, init.officer_pin),
        (init.user, Role::CryptoUser, init.user_rights, init.user_pin),
    ] {
        write_user(core, keys, name, role, rights, pin, init.pin_cost)?;
        users.push(records::UserEntry { name: name.into(), revision: 1, role, rights });
    }
    let store = core.store();
    let mut log = vec![Entry::ok(init.officer, Event::Initialized { label: init.label.into() })];
    let mut key_entries = Vec::new();
    if let Some(label) = init.master_key {
        let line = new_line(keys, label, init.master_key_attributes)?;
        let name = master_key::object_name(line.uuid())?;
        log.push(Entry::ok(init.user, Event::MasterKeyCreated { id: line.id, label: label.into() }));
        key_entries.push(records::KeyEntry { id: line.id, label: label.into(), revision: 1 });
        keys.sealer.put(store, Kind::MasterKey, &name, &Object { revision: 1, value: line })?;
    }
    let counters = Object { revision: 1, value: records::Counters { values: Vec::new() } };
    keys.sealer.put(store, Kind::Counters, &transaction::counters_name(), &counters)?;
    let log_start = audit::genesis(core.hsm_id());
    let root = records::Root {
        header_digest: transaction::header_digest(store, &core.header)?,
        users,
        keys: key_entries,
        counters: 1,
        boots: 1,
        boot_id: boot_id(),
        log_start,
        anchor: audit::begin(store, &keys.audit, &log_start, 1, &log)?,
        extension: None,
    };
    keys.sealer.put(store, Kind::Root, &transaction::root_name(), &Object { revision: 1, value: root })
}

/// Writes a new user: the record and a clear failure counter.
pub(crate) fn write_user(
    core: &Core,
    keys: &StoreKeys,
    name: &str,
    role: Role,
    rights: Rights,
    pin: &Pin,
    cost: PinCost,
) -> Result<()> {
    let now = Timestamp::now();
    let mut salt = [0; 16];
    secret_mem::random(&mut salt)?;
    let kdf = PinKdf::for_pin(pin, cost);
    let public =
        records::UserPublic { name: name.into(), role, rights, created: now, pin_set: now, kdf, salt };
    write_lockout(core, name, &Object { revision: 1, value: records::Lockout::cleared() })?;
    write_user_record(core, keys, public, pin, 1)
}

/// Seals the store key under a PIN and writes the user's record.
pub(crate) fn write_user_record(
    core: &Core,
    keys: &StoreKeys,
    public: records::UserPublic,
    pin: &Pin,
    revision: u64,
) -> Result<()> {
    let name = user::record_name(&public.name)?;
    let value =
        user::seal_store_key(public, pin, &keys.store_key, core.hsm_id(), revision).map_err(|e| match e {
            SealFailure::Damage(d) => object::damaged(core.store(), &name, d),
            SealFailure::Random(e) => e.into(),
        })?;
    object::put_public(core.store(), Kind::User, &name, &Object { revision, value })
}

pub(crate) fn write_lockout(core: &Core, user: &str, lockout: &Object<records::Lockout>) -> Result<()> {
    object::put_public(core.store(), Kind::Lockout, &user::lockout_name(user)?, lockout)
}

/// A new line with one version.
pub(crate) fn new_line(keys: &StoreKeys, label: &str, attributes: KeyAttributes) -> Result<records::KeyLine> {
    let mut id = [0; 16];
    secret_mem::random(&mut id)?;
    let id = uuid::Builder::from_random_bytes(id).into_uuid().into_bytes();
    let versions = vec![new_version(keys, 1)?];
    Ok(records::KeyLine { id, label: label.into(), created: Timestamp::now(), attributes, versions })
}

/// A new random version, wrapped for its object.
pub(crate) fn new_version(keys: &StoreKeys, version: u32) -> Result<records::KeyVersion> {
    let key = SecretBytes::<32>::random()?;
    let wrapped = keys.wrapper.wrap(&key);
    Ok(records::KeyVersion { version, state: KeyVersionState::Active, created: Timestamp::now(), wrapped })
}

/// The kernel's random id of this boot; zeros where there is none, which then never counts as another boot.
pub(crate) fn boot_id() -> [u8; 16] {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|s| Uuid::parse_str(s.trim()).ok())
        .map_or([0; 16], Uuid::into_bytes)
}
