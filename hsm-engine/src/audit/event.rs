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
        }
    }
}

/// The details, without the name.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initialized { label } => write!(f, "HSM \"{label}\""),
            Self::Boot { boots } => write!(f, "boot {boots}"),
            Self::Login | Self::PinChanged => Ok(()),
            Self::LoginFailed { failures } => write!(f, "{failures} in a row"),
            Self::Logout(u) | Self::Used(u) => write!(
                f,
                "{} wrapped, {} unwrapped, {} data keys, {} failed",
                u.wraps, u.unwraps, u.data_keys, u.failures
            ),
            Self::Refused { action } => f.write_str(action),
            Self::UserCreated { name, role } => write!(f, "{name}, {role}"),
            Self::UserUnlocked { name } | Self::PinReset { name } => f.write_str(name),
            Self::MasterKeyCreated { id, label } => write!(f, "\"{label}\" {}", Uuid::from_bytes(*id)),
            Self::MasterKeyRotated { id, label, version } => {
                write!(f, "\"{label}\" {} version {version}", Uuid::from_bytes(*id))
            }
            Self::CounterForgotten { name, value } => write!(f, "{name} was {value}"),
            Self::TailDropped { bytes } => write!(f, "{bytes} bytes"),
            Self::LogRestarted { damage } => f.write_str(damage),
        }
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
