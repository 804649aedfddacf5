//! What can go wrong, to what, and what to do about it. No message ever contains a secret.

use std::time::SystemTime;

use crate::audit::AuditError;
use crate::master_key::KeyVersionState;
use crate::pin::PinError;
use crate::selftest::SelfTestError;
use crate::store::StoreError;
use crate::time::Timestamp;
use crate::user::{Failures, Role};

/// Result of the engine's functions.
pub type Result<T, E = HsmError> = std::result::Result<T, E>;

/// An error of the HSM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HsmError {
    /// The place that keeps the objects failed or is not safe to use.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A PIN could not be read or may not be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The audit log is damaged, was changed, or could not be written.
    #[error("{0}{hint}", hint = .0.hint())]
    Audit(#[from] AuditError),
    /// A known-answer test failed; nothing is done with a primitive that computes wrong results.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
    /// The operating system's generator failed.
    #[error("the HSM got no random bytes: {0}")]
    Random(#[from] secret_mem::RandomError),

    /// Bytes of an object are not what was written.
    #[error("HSM store {store}: object \"{object}\" is damaged ({damage}); restore the store from a backup")]
    Damaged {
        /// The store's location.
        store: String,
        /// The object's name.
        object: String,
        /// What does not hold.
        damage: Damage,
    },
    /// An object that must exist does not.
    #[error("HSM store {store}: object \"{object}\" is missing; restore the store from a backup")]
    MissingObject {
        /// The store's location.
        store: String,
        /// The object's name.
        object: String,
    },
    /// An object is an older version than the one last written: somebody put an old copy back.
    #[error(
        "HSM store {store}: object \"{object}\" is an old copy (revision {found}, at least {expected} was \
         written); restore the whole store from one backup, never single files"
    )]
    StaleObject {
        /// The store's location.
        store: String,
        /// The object's name.
        object: String,
        /// Revision found.
        found: u64,
        /// Lowest revision that can be right.
        expected: u64,
    },
    /// An object was written by a version of this program that uses another format.
    #[error(
        "HSM store {store}: object \"{object}\" has format {found}, this program knows format {supported}; \
         use the version of the program that wrote it"
    )]
    UnknownFormat {
        /// The store's location.
        store: String,
        /// The object's name.
        object: String,
        /// Format found.
        found: u16,
        /// Format known.
        supported: u16,
    },
    /// The store holds no HSM.
    #[error("{store} holds no HSM; `tde hsm init --store DIR --pin-file FILE` makes one")]
    NotInitialized {
        /// The store's location.
        store: String,
    },
    /// The store already holds an HSM.
    #[error("{store} already holds an HSM; initialising it again would destroy its keys, use another place")]
    AlreadyInitialized {
        /// The store's location.
        store: String,
    },
    /// The store has objects but not the header that is written last.
    #[error(
        "HSM store {store} has objects but no object \"header\": either its initialisation was interrupted \
         (then remove it and initialise again), or the header was lost (then restore it from a backup)"
    )]
    IncompleteStore {
        /// The store's location.
        store: String,
    },

    /// No user has this name.
    #[error("HSM store {store} has no user \"{user}\"; `tde hsm status` lists the users")]
    UnknownUser {
        /// The store's location.
        store: String,
        /// The name asked for.
        user: String,
    },
    /// The PIN is not this user's.
    #[error("wrong PIN for HSM user \"{user}\" ({failed} in a row){}", NextTry(*.not_before, *.locked))]
    WrongPin {
        /// The user.
        user: String,
        /// Failed logins in a row, this one included.
        failed: Failures,
        /// Earliest time of the next try, if there is a delay.
        not_before: Option<Timestamp>,
        /// Whether the user is now locked until an officer unlocks.
        locked: bool,
    },
    /// The user must wait; the PIN was not looked at and nothing was counted.
    #[error(
        "HSM user \"{user}\" is locked until {until} after {failed}; wait, or let the crypto \
         officer run `tde hsm unlock {user}`"
    )]
    LockedUntil {
        /// The user.
        user: String,
        /// Failed logins in a row.
        failed: Failures,
        /// Earliest time of the next try.
        until: Timestamp,
    },
    /// The user is locked until an officer unlocks; the PIN was not looked at.
    #[error(
        "HSM user \"{user}\" is locked after {failed}; the crypto officer must run \
         `tde hsm unlock {user}`"
    )]
    LockedHard {
        /// The user.
        user: String,
        /// Failed logins in a row.
        failed: Failures,
    },
    /// The user's role does not include this.
    #[error("HSM user \"{user}\" is a {role} and may not {action}")]
    NotAllowed {
        /// The user.
        user: String,
        /// The user's role.
        role: Role,
        /// What was tried.
        action: &'static str,
    },
    /// Key material in clear was asked for and the user or the master key forbids it.
    #[error("master key \"{label}\": {who} may not be given data keys in clear")]
    PlaintextForbidden {
        /// Label of the master key.
        label: String,
        /// Who or what forbids it.
        who: String,
    },

    /// No master key has this label.
    #[error("the HSM has no master key labelled \"{label}\"; `tde hsm status` lists them")]
    NoSuchKey {
        /// The label asked for.
        label: String,
    },
    /// The handle's master key is not in this HSM.
    #[error("the HSM has no master key {id} (\"{label}\"): is this the HSM that made it?")]
    NoSuchKeyId {
        /// The key's UUID.
        id: uuid::Uuid,
        /// The label in the handle.
        label: String,
    },
    /// The master key has no such version.
    #[error(
        "master key \"{label}\" ({id}) has no version {version}, its newest is {newest}: is this an old \
         copy of the HSM store?"
    )]
    NoSuchKeyVersion {
        /// The key's UUID.
        id: uuid::Uuid,
        /// The key's label.
        label: String,
        /// The version asked for.
        version: u32,
        /// The newest version there is.
        newest: u32,
    },
    /// The version was destroyed: what it wrapped cannot be had back.
    #[error("version {version} of master key \"{label}\" ({id}) was destroyed; what it wrapped is gone")]
    KeyDestroyed {
        /// The key's UUID.
        id: uuid::Uuid,
        /// The key's label.
        label: String,
        /// The version.
        version: u32,
    },
    /// The version's state does not allow this use.
    #[error("version {version} of master key \"{label}\" ({id}) is {state} and cannot {action}")]
    KeyState {
        /// The key's UUID.
        id: uuid::Uuid,
        /// The key's label.
        label: String,
        /// The version.
        version: u32,
        /// Its state.
        state: KeyVersionState,
        /// What was tried.
        action: &'static str,
    },
    /// The wrapped bytes were not made by this version of this master key, or were changed since.
    #[error(
        "version {version} of master key \"{label}\" ({id}) does not unwrap these bytes: another key \
         wrapped them or they were changed"
    )]
    WrongKey {
        /// The key's UUID.
        id: uuid::Uuid,
        /// The key's label.
        label: String,
        /// The version.
        version: u32,
    },
    /// The HSM asks for approvals of others.
    #[error("{service} needs {needed} approvals: {why}; `tde hsm quorum ask` asks for them")]
    ApprovalsMissing {
        /// What needs them.
        service: crate::policy::Service,
        /// How many.
        needed: u8,
        /// What is wrong with what was presented.
        why: &'static str,
    },
    /// A signature does not verify.
    #[error("the signature of \"{user}\" on {of} does not verify")]
    BadSignature {
        /// Who should have signed.
        user: String,
        /// What.
        of: &'static str,
    },
    /// The user's second factor is asked for.
    #[error("HSM user \"{user}\" logs in with a PIN and a signature of the registered key")]
    SecondFactorNeeded {
        /// The user.
        user: String,
    },
    /// A backup could not be made or read.
    #[error(transparent)]
    Backup(#[from] crate::backup::BackupError),
    /// A label or user name is taken.
    #[error("the HSM already has a {what} \"{name}\"")]
    Duplicate {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A name does not follow the rules.
    #[error("{what} \"{name}\" is not valid: {rule}")]
    InvalidName {
        /// What the name is for.
        what: &'static str,
        /// The name.
        name: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A limit is reached.
    #[error("the HSM holds {limit} {what} and takes no more")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The session was opened by the parent of this process.
    #[error("this HSM session was opened by process {opener}; a forked child must log in itself")]
    Forked {
        /// Process id of the opener.
        opener: u32,
    },
}

/// Rough kind of an [`HsmError`], for callers that map errors to codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The key or the version does not exist here.
    KeyMissing,
    /// The key exists and does not fit.
    KeyWrong,
    /// The key existed and was destroyed.
    KeyDestroyed,
    /// The HSM cannot be reached or used now: store away, busy, no such store.
    HsmAway,
    /// Wrong PIN, locked or unknown user.
    Login,
    /// Role, state or attribute forbids it.
    Denied,
    /// Something of the HSM is damaged or was changed.
    Damaged,
    /// The call cannot work as it was made.
    Usage,
}

impl HsmError {
    /// The rough kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchKey { .. } | Self::NoSuchKeyId { .. } | Self::NoSuchKeyVersion { .. } => {
                ErrorKind::KeyMissing
            }
            Self::WrongKey { .. } => ErrorKind::KeyWrong,
            Self::KeyDestroyed { .. } => ErrorKind::KeyDestroyed,
            Self::Store(_) | Self::Random(_) | Self::NotInitialized { .. } | Self::IncompleteStore { .. } => {
                ErrorKind::HsmAway
            }
            Self::UnknownUser { .. }
            | Self::WrongPin { .. }
            | Self::LockedUntil { .. }
            | Self::LockedHard { .. }
            | Self::SecondFactorNeeded { .. }
            | Self::BadSignature { .. }
            | Self::Pin(_) => ErrorKind::Login,
            Self::Backup(e) => e.kind(),
            Self::ApprovalsMissing { .. }
            | Self::NotAllowed { .. }
            | Self::PlaintextForbidden { .. }
            | Self::KeyState { .. } => ErrorKind::Denied,
            Self::Damaged { .. }
            | Self::MissingObject { .. }
            | Self::StaleObject { .. }
            | Self::UnknownFormat { .. }
            | Self::SelfTest(_) => ErrorKind::Damaged,
            Self::Audit(e) => e.kind(),
            Self::AlreadyInitialized { .. }
            | Self::Duplicate { .. }
            | Self::InvalidName { .. }
            | Self::Full { .. }
            | Self::Forked { .. } => ErrorKind::Usage,
        }
    }
}

/// What does not hold of a damaged object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The file is shorter or longer than its header says.
    #[error("{found} bytes where {expected} belong")]
    Length {
        /// Bytes that belong there.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// It does not begin with the magic bytes.
    #[error("it is not an object of an HSM store")]
    Magic,
    /// The CRC-32 does not match.
    #[error("its checksum does not match")]
    Checksum,
    /// A field holds a value that is never written.
    #[error("its {0} is not valid")]
    Field(&'static str),
    /// The seal does not open: changed, moved here from another object or HSM, or sealed under another store key.
    #[error("its seal does not match: it was changed, or belongs to another HSM")]
    Seal,
}

struct NextTry(Option<Timestamp>, bool);

impl std::fmt::Display for NextTry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.1, self.0) {
            (true, _) => f.write_str("; the user is now locked until the crypto officer unlocks it"),
            (false, Some(t)) if t > Timestamp::from(SystemTime::now()) => write!(f, "; next try at {t}"),
            _ => Ok(()),
        }
    }
}
