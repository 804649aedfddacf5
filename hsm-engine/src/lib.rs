//! An HSM inside the process: keys enter as random bytes made inside and leave only wrapped.
//!
//! * [`Hsm`]: made once in a [`store`], opened by every process that uses it.
//! * [`Session`]: a user who is logged in. A [crypto user](Role::CryptoUser) uses keys, a [crypto officer](Role::CryptoOfficer)
//!   manages users, an [auditor](Role::Auditor) reads the audit log, an [appliance user](Role::ApplianceUser) copies sealed
//!   backups; none may do the work of another.
//! * [`Service`]: what may need the approvals of several people.
//! * [`KeyHandle`]: names a master key, a line of versions. The newest wraps, older ones still unwrap ([`Wrapped`]).
//! * [`Pin`]: opens the store key; wrong ones cost time ([`user`]). It may come from a [command](pin_command).
//! * [`audit`]: who did what, in one chain that cannot be edited unnoticed.
//! * `objects` (with the cargo feature of that name): keys, certificates and data with the semantics of PKCS#11.
//! * [`SoftUri`]: the URI `soft:DIRECTORY?user=NAME&key=LABEL` that names an HSM.
//!
//! There are no threads and nothing is printed; it may run inside a database server's backend. Several processes may
//! use one store at once. Secrets live in `secret_mem` types only and are wiped on drop.
//!
//! What it cannot do: whoever has both the store and a PIN has the keys; whoever can put an old copy of the whole store
//! back undoes what happened since. No certification is claimed.
//!
//! Bytes on disk: `docs/formats/hsm-store.md`.
//!
//! # Example
//! ```
//! use hsm_engine::{Hsm, Initialize, Pin, Return};
//!
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path().join("hsm");
//! let (officer_pin, pin) = (Pin::generate()?, Pin::generate()?);
//! Hsm::initialize_dir(&dir, &Initialize::new(&officer_pin, &pin))?;
//!
//! let session = Hsm::open_dir(&dir)?.login("user", &pin)?;
//! let master = session.find_master_key("master")?;
//! let data_key = session.generate_data_key(&master, Return::Plaintext)?;
//! session.rotate_master_key(&master)?;
//! let again = session.unwrap(&master, &data_key.wrapped)?;
//! assert!(again.ct_eq(&data_key.plaintext.expect("it was asked for")));
//! session.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "objects")]
mod approval;
pub mod audit;
mod backup;
mod counter;
mod error;
mod format;
mod hsm;
mod keys;
mod login;
mod master_key;
mod object;
#[cfg(feature = "objects")]
pub mod objects;
mod officer;
mod pin;
pub mod pin_command;
mod policy;
mod selftest;
mod session;
pub mod store;
mod time;
mod transaction;
mod uri;
pub mod user;
mod verify;

#[cfg(test)]
mod crash_tests;

#[cfg(feature = "objects")]
pub use approval::Challenge;
pub use backup::{BackupError, BackupInfo, inspect_backup, restore_backup};
pub use counter::{MAX_COUNTER_NAME, MAX_COUNTERS};
pub use error::{Damage, ErrorKind, HsmError, Result};
pub use hsm::{DEFAULT_OFFICER, Hsm, Initialize, Status, UserStatus};
pub use master_key::{
    DataKey, KeyAttributes, KeyHandle, KeyVersionInfo, KeyVersionState, MAX_VERSIONS, MasterKeyInfo,
    Mechanism, Return, Wrapped,
};
pub use officer::MAX_USERS;
pub use pin::{MAX_PIN, MIN_NEW_PIN, Pin, PinError};
pub use policy::{
    DataPlane, MAX_QUORUM, MAX_REQUESTS, MIN_QUORUM, PolicyInfo, REQUEST_LIFE, Request, Service,
};
pub use selftest::{SelfTestError, run as self_test};
pub use session::{MAX_KEYS, Session};
pub use store::FileStore;
pub use time::Timestamp;
pub use uri::{DEFAULT_KEY, DEFAULT_USER, SoftUri, UriError};
pub use user::{Failures, LockState, PinCost, PinKdf, Rights, Role};
