//! What can go wrong, with what, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::ids::{KeyVersion, KeyringId, LineNumber, MasterKeyId};
use crate::keyring::Owner;
use crate::master::MasterKeyError;
use crate::scope::DekState;

/// Result of keyring operations.
pub type Result<T, E = KeyringError> = std::result::Result<T, E>;

/// Every way a keyring can refuse.
///
/// [`KeyMissing`](Self::KeyMissing), [`KeyWrong`](Self::KeyWrong), [`KeyDestroyed`](Self::KeyDestroyed) and
/// [`HsmAway`](Self::HsmAway) are kept apart everywhere, because each calls for another act.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    // --- keys
    /// No such version of the data key, or its master-key version is unknown to the HSM.
    #[error(
        "key missing: {scope} has no usable version {version} of its data key; restore the keyring (or the HSM) from a backup that has it"
    )]
    KeyMissing {
        /// Scope, in words.
        scope: String,
        /// Data-key version.
        version: KeyVersion,
        /// Set when the HSM is what lacks something.
        #[source]
        source: Option<MasterKeyError>,
    },
    /// The key unwraps to something else than this scope's key of this version, or not at all.
    #[error(
        "key wrong: what {scope} holds as version {version} of its data key is not that key; {file} was changed or comes from elsewhere, restore it from a backup"
    )]
    KeyWrong {
        /// Scope, in words.
        scope: String,
        /// Data-key version.
        version: KeyVersion,
        /// The record's file.
        file: PathBuf,
        /// Set when AES-KW noticed; otherwise the key check value did.
        #[source]
        source: Option<MasterKeyError>,
    },
    /// The key was destroyed on purpose, or the master-key version that wraps it.
    #[error(
        "key destroyed: version {version} of the data key of {scope} was destroyed; what is encrypted under it cannot be read any more"
    )]
    KeyDestroyed {
        /// Scope, in words.
        scope: String,
        /// Data-key version.
        version: KeyVersion,
        /// Set when the master-key version is what was destroyed.
        #[source]
        source: Option<MasterKeyError>,
    },
    /// The HSM cannot be used now; nothing is wrong with the key.
    #[error(
        "HSM away: version {version} of the data key of {scope} cannot be unwrapped now; make the HSM reachable and try again"
    )]
    HsmAway {
        /// Scope, in words.
        scope: String,
        /// Data-key version.
        version: KeyVersion,
        /// What the HSM said.
        #[source]
        source: MasterKeyError,
    },
    /// Something in the HSM's store is damaged; waiting does not help.
    #[error(
        "HSM damaged: version {version} of the data key of {scope} cannot be unwrapped; restore the HSM's store from a backup"
    )]
    HsmDamaged {
        /// Scope, in words.
        scope: String,
        /// Data-key version.
        version: KeyVersion,
        /// What the HSM said.
        #[source]
        source: MasterKeyError,
    },
    /// The HSM failed at something that concerns the keyring as a whole.
    #[error("the HSM could not {action} of keyring {keyring}")]
    MasterKey {
        /// What was tried, as words that fit the sentence.
        action: &'static str,
        /// The keyring.
        keyring: KeyringId,
        /// What the HSM said.
        #[source]
        source: MasterKeyError,
    },
    /// The keyring's own key unwraps to something else, or not at all.
    #[error(
        "key wrong: the keyring key in {file} is not that of keyring {keyring}; restore the file from a backup, or use the HSM that made it"
    )]
    KeyringKeyWrong {
        /// The root file.
        file: PathBuf,
        /// The keyring.
        keyring: KeyringId,
        /// Set when AES-KW noticed; otherwise the key check value did.
        #[source]
        source: Option<MasterKeyError>,
    },
    /// The HSM session holds another master key than the keyring was made with.
    #[error(
        "{file} is wrapped under master key \"{label}\" ({expected}), but the HSM gave master key {found}; use the HSM and the key label that this keyring was made with"
    )]
    OtherMasterKey {
        /// The root file.
        file: PathBuf,
        /// Label when the keyring was made.
        label: String,
        /// Id in the keyring.
        expected: MasterKeyId,
        /// Id of the session's key.
        found: MasterKeyId,
    },

    // --- files
    /// No keyring there.
    #[error("{path} is not a keyring: {reason}")]
    NotAKeyring {
        /// What was looked at.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// A newer program wrote it.
    #[error(
        "{path} has format version {found}, this program knows {supported}; use a newer release, the file was not touched"
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: u16,
        /// Version known.
        supported: u16,
    },
    /// The file ends too early.
    #[error("{path} is truncated: {len} bytes, {expected} expected; restore it from a backup")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// Least length it must have.
        expected: u64,
    },
    /// Checksum or structure wrong.
    #[error("{path} is damaged: {what}; restore it from a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The checksum is right, the seal is not: changed on purpose, or from elsewhere.
    #[error(
        "the seal of {path} does not match: it was changed by something other than this program or belongs to another keyring; restore it from a backup"
    )]
    SealMismatch {
        /// The file.
        path: PathBuf,
    },
    /// A record of another keyring, or two keyrings meeting in one directory.
    #[error("{path} belongs to keyring {found}, not to {expected}; put the right file there")]
    ForeignKeyring {
        /// The file.
        path: PathBuf,
        /// Keyring it names.
        found: KeyringId,
        /// Keyring expected.
        expected: KeyringId,
    },
    /// The keyring was made for something else.
    #[error(
        "the keyring in {path} belongs to {found}, not to {expected}; point the setting at the keyring that was made for it"
    )]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Owner it names.
        found: Owner,
        /// Owner asked for.
        expected: Owner,
    },
    /// Older than the HSM remembers.
    #[error(
        "the keyring in {path} is of generation {found}, but the HSM remembers generation {remembered} at this place: an older copy was put back. If that was a restore on purpose run `tde keyring accept-restore --keyring {path}`, otherwise put the newer keyring back"
    )]
    OldGeneration {
        /// The directory.
        path: PathBuf,
        /// Generation of the keyring.
        found: u64,
        /// Generation the HSM remembers.
        remembered: u64,
    },
    /// The records are not those that the root counts with.
    #[error(
        "the records in {path} do not add up to the root's sum: an older record was put back, or a change is missing; verify against a backup"
    )]
    RolledBack {
        /// The directory.
        path: PathBuf,
    },
    /// Others may enter.
    #[error("{path} has mode {mode:04o}: others may read it or its group may write; run chmod 0700 on it")]
    LoosePermissions {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The HSM knows of a keyring where there is none.
    #[error(
        "there is no keyring in {path}, but the HSM remembers keyring {keyring} (generation {generation}) there: restore the directory from a backup, or run `tde keyring accept-restore --keyring {path}` if it is gone on purpose"
    )]
    Vanished {
        /// The directory.
        path: PathBuf,
        /// The keyring that was there.
        keyring: KeyringId,
        /// The generation that the HSM saw last.
        generation: u64,
    },
    /// There is one already.
    #[error("{path} holds a keyring already; nothing was changed")]
    AlreadyExists {
        /// The directory.
        path: PathBuf,
    },
    /// A line that must exist has no file: never the same as "not encrypted".
    #[error("{path} is missing: the keyring counts line {line}; restore the file from a backup")]
    LineMissing {
        /// The file that should be there.
        path: PathBuf,
        /// The line.
        line: LineNumber,
    },
    /// The line was never made.
    #[error(
        "keyring {keyring} has no line {line}: it has {lines} lines; is it the right keyring, or an old copy?"
    )]
    NoSuchLine {
        /// The keyring.
        keyring: KeyringId,
        /// The line asked for.
        line: LineNumber,
        /// Lines made so far.
        lines: u64,
    },
    /// Two nodes wrote the same version of a record independently.
    #[error(
        "{path} and the record received are both version {record_version} but differ: two servers changed the same keyring; keep one of them and rebuild the other from it"
    )]
    Conflict {
        /// The file.
        path: PathBuf,
        /// Version of both.
        record_version: u64,
    },
    /// Two keyrings gave the same version number of a file's key to different keys.
    #[error(
        "version {version} of the data key of {scope} is another key than in the export: the file's key was rotated under both keyrings, or this is a copy of the file that went its own way; keep using each copy with its own keyring"
    )]
    KeysDiffer {
        /// The scope here, in words.
        scope: String,
        /// Data-key version.
        version: KeyVersion,
    },
    /// Bytes handed to import are no export.
    #[error("the keyring record received is malformed: {what}")]
    BadTransfer {
        /// What is wrong.
        what: &'static str,
    },

    // --- requests
    /// There is a live scope for the same thing.
    #[error("{scope} exists already and is {state}")]
    ScopeExists {
        /// The scope, in words.
        scope: String,
        /// Its state, in words.
        state: String,
    },
    /// The state does not allow the change.
    #[error("version {version} of the data key of {scope} is {from}: it cannot become {to}")]
    BadTransition {
        /// The scope, in words.
        scope: String,
        /// Data-key version.
        version: KeyVersion,
        /// Its state.
        from: DekState,
        /// State asked for.
        to: DekState,
    },
    /// All keys of something that is in use shall be destroyed.
    #[error(
        "{scope} is {state}: all of its keys are destroyed only once it was dropped or is in clear again"
    )]
    StillUsed {
        /// The scope, in words.
        scope: String,
        /// Its state, in words.
        state: String,
    },
    /// Destruction was asked for before its date.
    #[error(
        "version {version} of the data key of {scope} may not be destroyed before {not_before} (seconds since 1970); it can still be cancelled"
    )]
    TooEarly {
        /// The scope, in words.
        scope: String,
        /// Data-key version.
        version: KeyVersion,
        /// When the waiting period ends, in seconds since 1970.
        not_before: u64,
    },
    /// A limit of the format.
    #[error("{what} is limited to {limit}")]
    Limit {
        /// What is limited.
        what: &'static str,
        /// The limit.
        limit: usize,
    },

    // --- the machine
    /// Another process holds the write lock.
    #[error("{path} was locked by another writer for {:.1} seconds; see who holds it (fuser {path}) and try again", waited.as_secs_f32())]
    LockBusy {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The operating system said no.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No random bytes.
    #[error("the operating system gave no random bytes")]
    Random(#[from] secret_mem::RandomError),
}
