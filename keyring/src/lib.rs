//! Data keys, their versions and states, wrapped by a master key that stays in the HSM.
//!
//! A *scope* is what a data key belongs to: a PostgreSQL tablespace, a cluster's WAL, a SQLite database. Each has
//! a *line* of data-key versions in one sealed record file, so that opening one scope reads one file however
//! many there are. The record's metadata is sealed under a per-keyring key, the data keys are wrapped by the HSM
//! (AES-KW), and a check value binds them to each other. Bytes: docs/formats/keyring.md.
//!
//! ```text
//! MasterKey    what the HSM must be able to do          (master.rs; soft.rs is the engine in the process, pkcs11/ a token)
//! HsmUri       which HSM; AnyHsm is logged in to it     (hsm.rs)
//! Keyring      a keyring as it lies there, no keys      (keyring.rs)
//! Unlocked     read, change, re-wrap, export, verify    (unlocked.rs, change.rs, rewrap.rs, transfer.rs, adopt.rs, verify.rs, retained.rs)
//! Scope        ids, versions, states: no bytes, no I/O  (scope.rs)
//! Store        whole records on disk, crash-safe        (store.rs; hints.rs finds a SQLite file by its id)
//! HotDeks      unwrapped keys used lately               (hot.rs)
//! ```
//!
//! No threads, no output, no panics: everything here also runs in PostgreSQL's processes.
//!
//! # Example
//! ```
//! use hsm_engine::{Hsm, Initialize, Pin};
//! use keyring::{KeyVersion, Keyring, NewScope, Owner, ScopeKind, SoftHsm};
//! use page_cipher::CipherId;
//!
//! # let scratch = tempfile::tempdir()?;
//! # let (store, ring) = (scratch.path().join("hsm"), scratch.path().join("ring"));
//! let (officer_pin, pin) = (Pin::generate()?, Pin::generate()?);
//! let hsm = Hsm::initialize_dir(&store, &Initialize::new(&officer_pin, &pin))?;
//! let mut master = SoftHsm::new(hsm.login("user", &pin)?, "master")?;
//!
//! let keyring = Keyring::create(&ring, Owner::Files, &master)?;
//! let kind = ScopeKind::SqliteFile { file_id: *b"random bytes" };
//! let new = NewScope { kind, cipher: CipherId::Aes256GcmSiv, initial: None };
//! let (scope, data_key) = keyring.add_scope(new, &master)?;
//!
//! // Another day, another process, another master-key version: the same data key.
//! keyring::MasterKey::generate_version(&mut master)?;
//! let keyring = Keyring::open(&ring)?.unlock(&master)?;
//! keyring.rewrap_all(&master, |_| std::ops::ControlFlow::Continue(()))?;
//! assert!(keyring.dek(scope.line, KeyVersion(1), &master)?.ct_eq(&data_key));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod adopt;
mod change;
mod error;
mod failpoint;
mod format;
mod hints;
mod hot;
mod hsm;
mod ids;
mod instance;
mod keyring;
mod master;
pub mod pkcs11;
mod retained;
mod rewrap;
mod scope;
mod seal;
mod soft;
mod store;
mod sum;
mod transfer;
mod unlocked;
mod upgrade;
mod verify;

#[cfg(test)]
mod tests;

pub use adopt::Adopted;
pub use error::{KeyringError, Result};
pub use hot::HotDeks;
pub use hsm::{AnyHsm, HsmUri, HsmUriError, LoginError, LoginFailure};
pub use ids::{GenerationId, InstanceId, KeyVersion, KeyringId, LineNumber, MasterKeyId, WalPosition};
pub use keyring::{AcceptedRestore, Keyring, KeyringInfo, Owner};
pub use master::{MasterKey, MasterKeyError, WrappedKey};
pub use retained::Retained;
pub use rewrap::{RewrapProgress, Rewrapped};
pub use scope::{DekState, DekVersion, NewScope, Scope, ScopeKind, StateChange, TablespaceState};
pub use soft::SoftHsm;
pub use store::{FileStore, LOCK_DEADLINE, Store, WriteLock};
pub use transfer::Imported;
pub use unlocked::{Dek, Survey, Unlocked};
pub use verify::VerifyReport;
