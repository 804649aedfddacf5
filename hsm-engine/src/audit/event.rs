//! What is logged. No event holds a secret.

use std::fmt;

use bincode::{Decode, Encode};
use uuid::Uuid;

use crate::user::Role;

/// Something that happened. New events are added at the end: the number of each is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum Event {
    /// The HSM was made.
    Initialized {
        /// Its label.
        label: String,
    },
    /// The first login since the machine booted.
    Boot {
        /// Boots seen so far.
        boots: u32,
    },
    /// A user logged in.
    Login,
    /// A wrong PIN.
    LoginFailed {
        /// Failures in a row.
        failures: u32,
    },
    /// A session ended.
    Logout(Usage),
    /// What a session did so far.
    Used(Usage),
    /// A user tried what the role does not include.
    Refused {
        /// What was tried.
        action: String,
    },
    /// An officer made a user.
    UserCreated {
        /// The user's name.
        name: String,
        /// The user's role.
        role: Role,
    },
    /// An officer unlocked a user.
    UserUnlocked {
        /// The user's name.
        name: String,
    },
    /// An officer gave a user another PIN.
    PinReset {
        /// The user's name.
        name: String,
    },
    /// A user chose another PIN.
    PinChanged,
    /// A master key was made.
    MasterKeyCreated {
        /// Its UUID.
        id: [u8; 16],
        /// Its label.
        label: String,
    },
    /// A master key got a new version.
    MasterKeyRotated {
        /// Its UUID.
        id: [u8; 16],
        /// Its label.
        label: String,
        /// The new version.
        version: u32,
    },
    /// A monotonic counter was forgotten.
    CounterForgotten {
        /// Its name.
        name: String,
        /// Its last value.
        value: u64,
    },
    /// An incomplete record, as a crash leaves it, was dropped from the end of the log.
    TailDropped {
        /// Its length in bytes.
        bytes: u64,
    },
    /// An officer restarted the log after damage.
    LogRestarted {
        /// What was wrong.
        damage: String,
    },
    /// An object was put into the store.
    ObjectCreated {
        /// Its UUID.
        id: [u8; 16],
        /// Its PKCS#11 class.
        class: u8,
        /// Its label, at most 64 characters of it.
        label: String,
    },
    /// Attributes of an object were changed.
    ObjectChanged {
        /// Its UUID.
        id: [u8; 16],
        /// Which attributes.
        what: String,
    },
    /// An object was destroyed.
    ObjectDestroyed {
        /// Its UUID.
        id: [u8; 16],
    },
    /// What a session did with objects so far.
    KeysUsed(KeyUsage),
    /// An officer removed a user.
    UserDeleted {
        /// The user's name.
        name: String,
    },
    /// An officer changed the policy.
    PolicyChanged {
        /// To what.
        what: String,
    },
    /// A user registered a key for approvals.
    KeyRegistered,
    /// A user asked for approvals.
    ApprovalAsked {
        /// Id of the request.
        id: [u8; 16],
        /// Of what.
        what: String,
    },
    /// Somebody's approval was handed in.
    Approved {
        /// Id of the request.
        id: [u8; 16],
        /// Whose.
        by: String,
    },
    /// A request was used up.
    ApprovalUsed {
        /// Its id.
        id: [u8; 16],
        /// For what.
        what: String,
    },
    /// A key is about to be used; logged where every use is.
    KeyUse {
        /// The object's UUID.
        id: [u8; 16],
        /// What for.
        what: String,
        /// PKCS#11 number of the mechanism.
        mechanism: u64,
    },
    /// A key was shared with a user, or no longer is.
    KeyShared {
        /// The object's UUID.
        id: [u8; 16],
        /// The user.
        user: String,
        /// Whether it is shared now.
        shared: bool,
    },
    /// A backup was made.
    BackupMade {
        /// Number of files in it.
        files: u64,
    },
}

/// Whether what was tried was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum Outcome {
    /// Done.
    Ok,
    /// Not allowed.
    Refused,
    /// Tried, and failed.
    Failed,
}

/// How often a session used keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Usage {
    /// Keys wrapped.
    pub wraps: u64,
    /// Keys unwrapped and returned.
    pub unwraps: u64,
    /// Data keys made.
    pub data_keys: u64,
    /// Unwraps that failed: wrong key or changed bytes.
    pub failures: u64,
}

/// How often a session used the keys of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[allow(missing_docs, reason = "their names say it")]
pub struct KeyUsage {
    pub encrypts: u64,
    pub decrypts: u64,
    pub signs: u64,
    pub verifies: u64,
    pub wraps: u64,
    pub unwraps: u64,
    pub derives: u64,
    /// Objects made, those of sessions too.
    pub made: u64,
    /// Operations that failed.
    pub failures: u64,
}

impl Event {
    /// Whether a record of it may lack a MAC: the events of somebody who is not logged in.
    pub(crate) fn may_lack_mac(&self) -> bool {
        matches!(self, Self::LoginFailed { .. } | Self::TailDropped { .. })
    }

    /// Short name, for tables and machines.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Initialized { .. } => "initialized",
            Self::Boot { .. } => "boot",
            Self::Login => "login",
            Self::LoginFailed { .. } => "login-failed",
            Self::Logout(_) => "logout",
            Self::Used(_) => "used",
            Self::Refused { .. } => "refused",
            Self::UserCreated { .. } => "user-created",
            Self::UserUnlocked { .. } => "user-unlocked",
            Self::PinReset { .. } => "pin-reset",
            Self::PinChanged => "pin-changed",
            Self::MasterKeyCreated { .. } => "master-key-created",
            Self::MasterKeyRotated { .. } => "master-key-rotated",
            Self::CounterForgotten { .. } => "counter-forgotten",
            Self::TailDropped { .. } => "tail-dropped",
            Self::LogRestarted { .. } => "log-restarted",
            Self::ObjectCreated { .. } => "object-created",
            Self::ObjectChanged { .. } => "object-changed",
            Self::ObjectDestroyed { .. } => "object-destroyed",
            Self::KeysUsed(_) => "keys-used",
            Self::UserDeleted { .. } => "user-deleted",
            Self::PolicyChanged { .. } => "policy-changed",
            Self::KeyRegistered => "key-registered",
            Self::ApprovalAsked { .. } => "approval-asked",
            Self::Approved { .. } => "approved",
            Self::ApprovalUsed { .. } => "approval-used",
            Self::KeyUse { .. } => "key-use",
            Self::KeyShared { .. } => "key-shared",
            Self::BackupMade { .. } => "backup-made",
        }
    }
}

/// The details, without the name.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initialized { label } => write!(f, "HSM \"{label}\""),
            Self::Boot { boots } => write!(f, "boot {boots}"),
            Self::Login | Self::PinChanged | Self::KeyRegistered => Ok(()),
            Self::LoginFailed { failures } => write!(f, "{failures} in a row"),
            Self::Logout(u) | Self::Used(u) => write!(
                f,
                "{} wrapped, {} unwrapped, {} data keys, {} failed",
                u.wraps, u.unwraps, u.data_keys, u.failures
            ),
            Self::Refused { action } => f.write_str(action),
            Self::UserCreated { name, role } => write!(f, "{name}, {role}"),
            Self::UserUnlocked { name } | Self::PinReset { name } | Self::UserDeleted { name } => {
                f.write_str(name)
            }
            Self::PolicyChanged { what } => f.write_str(what),
            Self::ApprovalAsked { id, what } | Self::ApprovalUsed { id, what } => {
                write!(f, "{} for {what}", Uuid::from_bytes(*id))
            }
            Self::Approved { id, by } => write!(f, "{} by {by}", Uuid::from_bytes(*id)),
            Self::KeyUse { id, what, mechanism } => {
                write!(f, "{} to {what} with {mechanism:#x}", Uuid::from_bytes(*id))
            }
            Self::KeyShared { id, user, shared } => {
                write!(
                    f,
                    "{} {} {user}",
                    Uuid::from_bytes(*id),
                    if *shared { "with" } else { "no longer with" }
                )
            }
            Self::BackupMade { files } => write!(f, "{files} files"),
            Self::MasterKeyCreated { id, label } => write!(f, "\"{label}\" {}", Uuid::from_bytes(*id)),
            Self::MasterKeyRotated { id, label, version } => {
                write!(f, "\"{label}\" {} version {version}", Uuid::from_bytes(*id))
            }
            Self::CounterForgotten { name, value } => write!(f, "{name} was {value}"),
            Self::TailDropped { bytes } => write!(f, "{bytes} bytes"),
            Self::LogRestarted { damage } => f.write_str(damage),
            Self::ObjectCreated { id, class, label } => {
                write!(f, "{} {} \"{label}\"", class_name(*class), Uuid::from_bytes(*id))
            }
            Self::ObjectChanged { id, what } => write!(f, "{}: {what}", Uuid::from_bytes(*id)),
            Self::ObjectDestroyed { id } => write!(f, "{}", Uuid::from_bytes(*id)),
            Self::KeysUsed(u) => write!(
                f,
                "{} made, {} encrypted, {} decrypted, {} signed, {} verified, {} wrapped, {} unwrapped, {} derived, {} failed",
                u.made,
                u.encrypts,
                u.decrypts,
                u.signs,
                u.verifies,
                u.wraps,
                u.unwraps,
                u.derives,
                u.failures
            ),
        }
    }
}

fn class_name(class: u8) -> &'static str {
    match class {
        0 => "data",
        1 => "certificate",
        2 => "public key",
        3 => "private key",
        4 => "secret key",
        _ => "object",
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
        })
    }
}
