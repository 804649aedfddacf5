//! From the HSM and the keyring into the key table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hsm_engine::{Pin, PinError};
use keyring::pkcs11::AgentOptions;
use keyring::{
    AnyHsm, HsmUri, HsmUriError, InstanceId, KeyVersion, Keyring, KeyringError, KeyringId, LineNumber,
    LoginError, LoginFailure, MasterKey, MasterKeyError, Owner, Scope, ScopeKind, StateChange,
    TablespaceState, Unlocked, WalPosition,
};
use page_cipher::CipherId;

use crate::ffi::server;
use crate::key_table::{KeyTable, LineInfo, OPEN_END, Span, TableError};
use crate::manifest::{Manifest, ManifestError, Named};
use crate::pin_command::{self, PinCommandError};
use crate::wal_table::{WalTable, WalTableFull};
use crate::{report, settings, wal_keys};

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KeyError {
    /// `pg_tde.hsm` is empty.
    #[error(
        "pg_tde.hsm is not set: set it in postgresql.conf to soft:DIRECTORY, a store made by \"tde hsm init\", or to pkcs11:token=NAME?module-path=FILE, and restart the server"
    )]
    NoHsm,
    /// `pg_tde.pin_command` is empty.
    #[error(
        "pg_tde.pin_command is not set: set it in postgresql.conf to a command that prints the PIN of the HSM user"
    )]
    NoPinCommand,
    /// `pg_tde.hsm` cannot be read.
    #[error("pg_tde.hsm is not usable: {0}")]
    Uri(#[from] HsmUriError),
    /// The HSM's store would be in every base backup, beside what its keys protect.
    #[error("the HSM store \"{}\" is inside the data directory: move it elsewhere, or every backup carries the master key along", .0.display())]
    StoreInDataDirectory(PathBuf),
    /// The PIN command.
    #[error(transparent)]
    Pin(#[from] PinCommandError),
    /// The PIN file that the HSM's URI names.
    #[error("pin-source of pg_tde.hsm is not usable: {0}")]
    PinFile(#[from] PinError),
    /// The HSM.
    #[error("the HSM cannot be used: {0}")]
    Hsm(#[from] MasterKeyError),
    /// Logging in to the HSM.
    #[error("the HSM cannot be used: {0}")]
    Login(#[from] LoginError),
    /// The keyring.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The key table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The HSM knows of a keyring here, but there is none.
    #[error("there is no keyring in \"{}\", but the HSM remembers keyring {keyring} (generation {generation}) there: restore the directory from a backup, or run \"tde keyring accept-restore\" if it is gone on purpose", dir.display())]
    Vanished {
        /// Where it should be.
        dir: PathBuf,
        /// Its id.
        keyring: KeyringId,
        /// The generation that was seen last.
        generation: u64,
    },
    /// The data directory has a keyring, but it is not where `pg_tde.keyring` says.
    #[error("there is no keyring in \"{}\", but this data directory belongs to keyring {keyring}: set pg_tde.keyring to where it is, or restore it from a backup", dir.display())]
    NotFound {
        /// Where it should be.
        dir: PathBuf,
        /// Its id.
        keyring: KeyringId,
    },
    /// The keyring is another one.
    #[error("the keyring in \"{}\" is {found}, but this data directory belongs to keyring {expected}: set pg_tde.keyring to where that one is", dir.display())]
    OtherKeyring {
        /// Where it is.
        dir: PathBuf,
        /// Its id.
        found: KeyringId,
        /// The id in the manifest.
        expected: KeyringId,
    },
    /// The keyring is older than the data directory.
    #[error("the keyring in \"{}\" has no line {line} for tablespace {tablespace}, which this data directory uses: restore a newer copy of the keyring", dir.display())]
    LineLost {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
        /// OID of the tablespace.
        tablespace: u32,
    },
    /// Recovery to a point in time with a keyring from after it.
    #[error("the keyring in \"{}\" knows a change of line {line} at {at}, but recovery ended at {end}: restore the keyring from the backup that was recovered, and recover again", dir.display())]
    Future {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
        /// When it was changed.
        at: WalPosition,
        /// Where recovery ended.
        end: WalPosition,
    },
    /// The keyring is newer than the data directory.
    #[error("the keyring in \"{}\" uses line {line} for tablespace {tablespace}, of which this data directory knows nothing: restore the keyring that belongs to it", dir.display())]
    NotInManifest {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
        /// OID of the tablespace.
        tablespace: u32,
    },
    /// `pg_tde.encrypt_wal` is on, but only a primary can make the key.
    #[error(
        "pg_tde.encrypt_wal is on, but the keyring has no key for the write-ahead log, and only a primary makes one: start this server with pg_tde.encrypt_wal off until the primary has run with it on"
    )]
    NoWalKey,
    /// There is no key of the WAL to rotate.
    #[error("the write-ahead log was never encrypted: set pg_tde.encrypt_wal to on and restart the server")]
    WalPlain,
    /// The keyring is older than the data directory.
    #[error("the keyring in \"{}\" has no line {line} for the write-ahead log, which this data directory uses: restore a newer copy of the keyring", dir.display())]
    WalLineLost {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
    },
    /// More than shared memory holds.
    #[error(transparent)]
    WalTable(#[from] WalTableFull),
    /// `pg_wal` cannot be read.
    #[error("cannot read the directory \"pg_wal\": {source}")]
    WalDirectory {
        /// Why.
        source: std::io::Error,
    },
    /// The manifest of the data directory.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A server that replays another's WAL gets its keyring from there.
    #[error("there is no keyring in \"{}\" although key line {line} is known", dir.display())]
    NoKeyring {
        /// Where it should be.
        dir: PathBuf,
        /// The line.
        line: u64,
    },
    /// The keyring went through something that the WAL knows nothing of.
    #[error("the keyring in \"{}\" knows another history of line {line} than the write-ahead log: it is from a timeline that was abandoned; restore the keyring of the server whose WAL is replayed here", dir.display())]
    OtherTimeline {
        /// Where it is.
        dir: PathBuf,
        /// The line.
        line: u64,
    },
    /// A record does not say what the WAL said.
    #[error(
        "line {line} of the keyring is not what the write-ahead log said of it: the keyring is from elsewhere"
    )]
    Mismatch {
        /// The line.
        line: u64,
    },
}

impl KeyError {
    /// Whether the HSM refused the PIN or the user, until somebody changes either.
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Login(error) if error.failure() == LoginFailure::Refused)
    }

    /// Whether waiting, or a change of settings, may help.
    pub(crate) fn may_pass(&self) -> bool {
        self.is_away() || self.is_refused()
    }

    /// Whether waiting may help.
    fn is_away(&self) -> bool {
        match self {
            Self::Hsm(MasterKeyError::Away(_))
            | Self::Keyring(KeyringError::HsmAway { .. })
            | Self::Pin(_) => true,
            Self::Login(error) => error.failure() == LoginFailure::Away,
            _ => false,
        }
    }
}

/// Logs in to the HSM that `pg_tde.hsm` names, with the PIN that `pg_tde.pin_command` prints.
///
/// # Errors
/// See [`KeyError`].
pub(crate) fn open_hsm() -> Result<AnyHsm, KeyError> {
    let uri: HsmUri = settings::hsm().ok_or(KeyError::NoHsm)?.parse()?;
    if let Some(store) = uri.store() {
        refuse_store_in_data_directory(store)?;
    }
    let pin = pin_for(&uri)?;
    // A vendor's library runs in a process of its own, without the server's files.
    let options = AgentOptions {
        program: settings::pkcs11_agent(),
        cancelled: give_up,
        prepare: server::close_files_in_child,
    };
    Ok(AnyHsm::open(&uri, pin, options)?)
}

/// Whether a backend that waits for the HSM shall stop. Must not unwind.
fn give_up() -> bool {
    !server::preloading() && server::cancel_requested()
}

/// What `pg_tde.pin_command` prints, or what is in the file that the URI names.
fn pin_for(uri: &HsmUri) -> Result<Pin, KeyError> {
    let command = match (settings::pin_command(), uri.pin_source()) {
        (Some(command), _) => command,
        (None, Some(file)) => return Ok(Pin::from_file(file)?),
        (None, None) => return Err(KeyError::NoPinCommand),
    };
    let pin = match pin_command::run(&command, settings::pin_command_timeout(), &give_up) {
        Err(error @ PinCommandError::Cancelled { .. }) if !server::in_redo() => {
            server::check_for_interrupts();
            return Err(error.into());
        }
        pin => pin?,
    };
    Ok(pin)
}

fn refuse_store_in_data_directory(store: &Path) -> Result<(), KeyError> {
    let data = server::data_directory();
    let resolve = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if resolve(store).starts_with(resolve(&data)) {
        return Err(KeyError::StoreInDataDirectory(store.to_owned()));
    }
    Ok(())
}

/// Fills the table when the server starts, making the keyring on the very first start.
///
/// # Errors
/// Any key that cannot be had: the server must not start then.
pub(crate) fn load(table: &KeyTable, wal: &WalTable) -> Result<(), KeyError> {
    let hsm = open_hsm()?;
    let dir = settings::keyring_directory();
    let recovers = is_copy_of_another_server();
    let manifest = Manifest::read()?;
    let unlocked = if is_keyring(&dir) {
        let locked = Keyring::open(&dir)?;
        locked.require_owner(owner())?;
        locked.unlock(&hsm)?
    } else {
        refuse_vanished(&dir, &hsm, manifest.as_ref())?;
        if recovers && settings::encrypt_wal() {
            return Err(KeyError::NoWalKey);
        }
        if recovers {
            // A standby takes over the keyring of the server whose WAL it replays.
            return Ok(());
        }
        Keyring::create(&dir, owner(), &hsm)?
    };
    table.set_seal_key(unlocked.seal_key());
    // The copy of a running server's files may have gaps, which the WAL fills.
    let scopes = if recovers { unlocked.survey()?.scopes } else { unlocked.scopes()? };
    if !recovers {
        unlocked.check_sum()?;
    }
    check_manifest(table, manifest, &unlocked, &scopes, recovers)?;
    let redo = redo_begins();
    for scope in scopes.iter().filter(|scope| !scope.is_draft()) {
        for facts in LineFacts::of(scope).into_iter().filter(|facts| facts.span.end > redo) {
            let index = facts.add_to(table)?;
            match unlocked.dek_of(scope, facts.version, &hsm) {
                Ok(dek) => table.set_dek(index, &dek),
                // No page is under it any more: recovery may do without it, and says so if it cannot.
                Err(_) if !facts.span.alive() => (),
                Err(error) => return Err(error.into()),
            }
        }
    }
    wal_keys::load(wal, &unlocked, &scopes, &hsm, recovers)?;
    match server::control_file().filter(|_| !recovers).and_then(|control| control.end) {
        // Nothing will be replayed, so redo will not end either.
        Some(end) => check_end_of_redo(table, end),
        None => Ok(()),
    }
}

/// Makes sure that this is the keyring of this data directory, and as new as it.
fn check_manifest(
    table: &KeyTable,
    manifest: Option<Manifest>,
    unlocked: &Unlocked,
    scopes: &[Scope],
    recovers: bool,
) -> Result<(), KeyError> {
    let (keyring, dir) = (unlocked.keyring(), settings::keyring_directory());
    // The WAL's line counts from the first segment that names it.
    let of_wal = wal_keys::find(scopes).map(|scope| (wal_keys::named(scope), 0));
    let of_tablespaces = scopes.iter().filter_map(|scope| first_use(&LineFacts::of(scope)));
    let lines: BTreeMap<_, _> = of_tablespaces.chain(of_wal).collect();
    let Some(manifest) = manifest else {
        let lines = lines.into_iter().filter(|(_, from)| *from != OPEN_END).collect();
        return Ok(Manifest { keyring, lines }.write()?);
    };
    if manifest.keyring != keyring {
        return Err(KeyError::OtherKeyring { dir, found: keyring, expected: manifest.keyring });
    }
    let used = scopes.iter().filter(|scope| !scope.is_draft()).flat_map(LineFacts::of);
    let unknown = used.map(|facts| facts.named()).find(|named| !manifest.lines.contains_key(named));
    if let Some(Named { line, tablespace }) = unknown.filter(|_| !recovers) {
        return Err(KeyError::NotInManifest { dir, line, tablespace });
    }
    let missing = manifest.lines.iter().filter(|(named, _)| !lines.contains_key(named));
    for (&Named { line, tablespace }, &from) in missing {
        if !recovers {
            return Err(match tablespace {
                Named::WAL => KeyError::WalLineLost { dir, line },
                tablespace => KeyError::LineLost { dir, line, tablespace },
            });
        }
        // Segments that need it are refused until it is there.
        if tablespace != Named::WAL {
            table.add_awaited(line, tablespace, from)?;
        }
    }
    Ok(())
}

/// Brings the table up to the keyring after a process was killed, perhaps between a change of the one and of the other.
///
/// # Errors
/// When the keyring cannot be read.
pub(crate) fn synchronize(table: &KeyTable) -> Result<(), KeyError> {
    let Some(seal_key) = table.seal_key() else { return Ok(()) };
    let keyring = Keyring::open(&settings::keyring_directory())?.unlock_with_seal_key(seal_key)?;
    for scope in keyring.survey()?.scopes.iter().filter(|scope| !scope.is_draft()) {
        // The newest first: at no time may a tablespace be without a key to write under.
        for facts in LineFacts::of(scope).into_iter().rev() {
            let known = table.lines().any(|line| facts.is_of(&line));
            // Keys that ended before this server started were left out on purpose.
            if known || facts.span.alive() {
                facts.add_to(table)?;
            }
        }
    }
    Ok(())
}

/// Compares the records of the keyring with its sum: an older record that was put back does not fit.
///
/// # Errors
/// When the keyring cannot be read, or a record is not the newest.
pub(crate) fn check_sum(table: &KeyTable) -> Result<(), KeyError> {
    let Some(seal_key) = table.seal_key() else { return Ok(()) };
    let keyring = Keyring::open(&settings::keyring_directory())?.unlock_with_seal_key(seal_key)?;
    Ok(keyring.check_sum()?)
}

/// Makes sure that redo ended where the keyring is: a keyring from a later time knows changes that did not happen here.
///
/// # Errors
/// [`KeyError::Future`] names the first such line.
pub(crate) fn check_end_of_redo(table: &KeyTable, position: u64) -> Result<(), KeyError> {
    for line in table.lines() {
        if line.awaited {
            let (dir, line, tablespace) = (settings::keyring_directory(), line.line, line.tablespace);
            return Err(KeyError::LineLost { dir, line, tablespace });
        }
        let last = line.span.last();
        if last > position {
            let dir = settings::keyring_directory();
            return Err(KeyError::Future {
                dir,
                line: line.line,
                at: WalPosition(last),
                end: WalPosition(position),
            });
        }
    }
    table.set_compared();
    Ok(())
}

/// [`check_end_of_redo`], for a recovery that found nothing to replay: the server tells no resource manager of its end, so
/// whoever first needs a line asks here. Lines must not change before.
///
/// # Errors
/// [`KeyError::Future`], [`KeyError::LineLost`]
pub(crate) fn ensure_compared(table: &KeyTable) -> Result<(), KeyError> {
    if table.is_compared() || server::recovery_in_progress() {
        return Ok(());
    }
    check_end_of_redo(table, server::replay_position())?;
    // As at the end of redo: at the start of a copy of another server the records could not be compared yet.
    if let Err(error) = check_sum(table) {
        report::doubtful_keyring(&error);
    }
    Ok(())
}

fn is_keyring(dir: &Path) -> bool {
    // A directory that cannot be looked into is not taken for a missing one: opening it then says why.
    !matches!(std::fs::read_dir(dir), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
        && (dir.join("keyring.tde").exists() || dir.join("lines").exists())
}

fn refuse_vanished(dir: &Path, hsm: &AnyHsm, manifest: Option<&Manifest>) -> Result<(), KeyError> {
    let dir = dir.to_owned();
    if let Some(manifest) = manifest {
        return Err(KeyError::NotFound { dir, keyring: manifest.keyring });
    }
    let instance = InstanceId::of(&dir)?;
    match hsm.generations_of_instance(instance)?.into_iter().max_by_key(|(_, generation)| *generation) {
        // Generation 1 is an empty keyring: nothing is lost with it.
        Some((keyring, generation)) if generation > 1 => Err(KeyError::Vanished { dir, keyring, generation }),
        _ => Ok(()),
    }
}

fn owner() -> Owner {
    Owner::PgCluster { system_identifier: server::system_identifier() }
}

/// Whether the files come from a backup or another server, so that the WAL may still bring keyring records.
pub(crate) fn is_copy_of_another_server() -> bool {
    let data = server::data_directory();
    ["backup_label", "standby.signal", "recovery.signal"].iter().any(|name| data.join(name).exists())
}

/// The files come from a base backup and are newer than where redo begins; the keys that came with them may be older than the files.
pub(crate) fn is_base_backup() -> bool {
    server::data_directory().join("backup_label").exists()
}

/// Where redo is about to begin: as the label of the backup says, or the control file. 0 if neither can be read.
pub(crate) fn redo_begins() -> u64 {
    if is_base_backup() {
        let label = std::fs::read_to_string(server::data_directory().join("backup_label"));
        return label.ok().and_then(|label| labelled_start(&label)).unwrap_or(0);
    }
    server::control_file().map_or(0, |control| control.redo)
}

/// `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)` (access/transam/xlogbackup.c).
fn labelled_start(label: &str) -> Option<u64> {
    let rest = label.lines().find_map(|line| line.strip_prefix("START WAL LOCATION: "))?;
    let (high, low) = rest.split(' ').next()?.split_once('/')?;
    let half = |text| u64::from(u32::from_str_radix(text, 16).unwrap_or(0));
    Some(half(high) << 32 | half(low))
}

/// What the key table and the WAL record say of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineFacts {
    pub(crate) line: LineNumber,
    pub(crate) version: KeyVersion,
    pub(crate) tablespace: u32,
    pub(crate) cipher: CipherId,
    pub(crate) span: Span,
}

impl LineFacts {
    /// What a record says of each version of its key, oldest first; nothing for a line of something else.
    ///
    /// The history says when which version was put to use: the first by `encrypting` or `encrypted`, each later one by `rotating`. A
    /// version beyond those was made, and covers no WAL position.
    pub(crate) fn of(scope: &Scope) -> Vec<Self> {
        let ScopeKind::PgTablespace { oid, .. } = scope.kind else { return Vec::new() };
        let spans = spans(&scope.history);
        let versions = scope.versions.iter().map(|entry| entry.version);
        let spans = spans.into_iter().chain(std::iter::repeat(Span::UNUSED));
        let (line, tablespace, cipher) = (scope.line, oid, scope.cipher);
        versions.zip(spans).map(|(version, span)| Self { line, version, tablespace, cipher, span }).collect()
    }

    /// Whether it is about this entry of the table.
    pub(crate) fn is_of(&self, line: &LineInfo) -> bool {
        line.line == self.line.0 && line.version == self.version.0
    }

    /// How the manifest names the line.
    pub(crate) fn named(&self) -> Named {
        Named { tablespace: self.tablespace, line: self.line.0 }
    }

    /// Adds the line, or changes from where to where it counts. The caller has [`server::lock_keyring`] or is alone.
    ///
    /// # Errors
    /// When the table is full, or has the line as something else.
    pub(crate) fn add_to(&self, table: &KeyTable) -> Result<usize, KeyError> {
        let awaited = |line: &LineInfo| line.awaited && line.line == self.line.0;
        let Some(known) = table.lines().find(|line| self.is_of(line) || awaited(line)) else {
            let (line, version) = (self.line.0, self.version.0);
            return Ok(table.add(line, version, self.tablespace, self.cipher, self.span)?);
        };
        if known.awaited && known.tablespace == self.tablespace {
            let (version, cipher, span) = (self.version.0, self.cipher, self.span);
            table.arrive(LineInfo { version, cipher, span, ..known });
            return Ok(known.index);
        }
        let same = (known.tablespace, known.cipher) == (self.tablespace, self.cipher);
        // A record that recovery replays may be older than the table: it takes nothing back.
        let Some(span) = known.span.merged(self.span).filter(|_| same) else {
            return Err(KeyError::Mismatch { line: self.line.0 });
        };
        if span != known.span {
            table.set_span(known.index, span);
        }
        Ok(known.index)
    }
}

/// Makes sure that a line's record in the WAL, logged after `position`, is of the timeline that the key table knows.
///
/// # Errors
/// [`KeyError::OtherTimeline`]
pub(crate) fn check_history(table: &KeyTable, record: &[LineFacts], position: u64) -> Result<(), KeyError> {
    let Some(line) = record.first().map(|facts| facts.line.0) else { return Ok(()) };
    for known in table.lines().filter(|known| known.line == line && !known.awaited) {
        let said = record.iter().find(|facts| facts.is_of(&known)).map_or(Span::UNUSED, |facts| facts.span);
        if known.span.merged(said).is_none() || known.span.is_unknown_to(said, position) {
            return Err(KeyError::OtherTimeline { dir: settings::keyring_directory(), line });
        }
    }
    Ok(())
}

/// How the manifest names a line, and the WAL position from which pages are written under it: `OPEN_END` for one that was only made.
pub(crate) fn first_use(versions: &[LineFacts]) -> Option<(Named, u64)> {
    let first = versions.first()?;
    Some((first.named(), if first.span == Span::UNUSED { OPEN_END } else { first.span.start }))
}

/// The spans of the versions that a history put to use.
fn spans(history: &[StateChange]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for &StateChange { from: WalPosition(from), state } in history {
        let new = Span { start: from, strict: from, closing: OPEN_END, end: OPEN_END };
        // Positions that have not come yet.
        let close = |position: &mut u64| *position = (*position).min(from);
        match (state, spans.last_mut()) {
            (TablespaceState::Encrypting, _) => spans.push(Span { strict: OPEN_END, ..new }),
            (TablespaceState::Encrypted, None) => spans.push(new),
            (TablespaceState::Encrypted, Some(last)) => {
                close(&mut last.strict);
                let before = spans.len() - 1;
                spans[..before].iter_mut().for_each(|span| close(&mut span.end));
            }
            (TablespaceState::Rotating, last) => {
                if let Some(last) = last {
                    close(&mut last.closing);
                }
                spans.push(new);
            }
            (TablespaceState::Decrypting, _) => spans.iter_mut().for_each(|span| close(&mut span.closing)),
            (_, _) => {
                for span in &mut spans {
                    close(&mut span.closing);
                    close(&mut span.end);
                }
            }
        }
    }
    spans
}

/// The keyring with the seal key of the table, or with the HSM if that key is not known yet.
fn unlocked_for(table: &KeyTable, hsm: &AnyHsm) -> Result<Unlocked, KeyError> {
    let locked = Keyring::open(&settings::keyring_directory())?;
    Ok(match table.seal_key() {
        Some(seal_key) => locked.unlock_with_seal_key(seal_key)?,
        None => {
            let unlocked = locked.unlock(hsm)?;
            table.set_seal_key(unlocked.seal_key());
            unlocked
        }
    })
}

/// The keyring for changes of state, which need no HSM while the seal key is known.
///
/// # Errors
/// When the keyring cannot be opened.
pub(crate) fn open_keyring(table: &KeyTable) -> Result<Unlocked, KeyError> {
    let locked = Keyring::open(&settings::keyring_directory())?;
    match table.seal_key() {
        Some(seal_key) => Ok(locked.unlock_with_seal_key(seal_key)?),
        None => unlocked_for(table, &open_hsm()?),
    }
}

/// Unwraps the key of a line that came through the WAL and publishes it. The startup process waits while the HSM is
/// away: an error there would end the server.
///
/// # Errors
/// See [`KeyError`].
pub(crate) fn unwrap_line(table: &KeyTable, line: LineInfo) -> Result<(), KeyError> {
    loop {
        match try_unwrap_line(table, line) {
            // A wrong PIN does not get right by itself, and trying it again would lock the user.
            Err(error) if server::in_redo() && error.is_refused() => {
                report::waiting_for_reload(line, &error);
                server::wait_for_reload_in_redo();
            }
            Err(error) if server::in_redo() && error.is_away() => {
                report::waiting_for_hsm(line, &error);
                server::wait_in_redo(15_000);
            }
            result => return result,
        }
    }
}

fn try_unwrap_line(table: &KeyTable, line: LineInfo) -> Result<(), KeyError> {
    if line.awaited {
        let (dir, line, tablespace) = (settings::keyring_directory(), line.line, line.tablespace);
        return Err(KeyError::LineLost { dir, line, tablespace });
    }
    if table.dek(line.index)?.is_some() {
        return Ok(()); // another process was faster
    }
    let hsm = open_hsm()?;
    let dir = settings::keyring_directory();
    if !is_keyring(&dir) {
        return Err(KeyError::NoKeyring { dir, line: line.line });
    }
    let unlocked = unlocked_for(table, &hsm)?;
    let scope = unlocked.scope(LineNumber(line.line))?;
    let same = LineFacts::of(&scope).iter().any(|facts| {
        facts.is_of(&line)
            && (facts.tablespace, facts.cipher) == (line.tablespace, line.cipher)
            && facts.span.merged(line.span).is_some()
    });
    if !same {
        return Err(KeyError::Mismatch { line: line.line });
    }
    let dek = unlocked.dek_of(&scope, KeyVersion(line.version), &hsm)?;
    // Without a lock: whoever else does this now writes the same bytes.
    table.set_dek(line.index, &dek);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::shared;

    fn facts(start: u64, end: u64) -> LineFacts {
        let (line, version, cipher) = (LineNumber(1), KeyVersion(1), CipherId::Aes256Hctr2);
        LineFacts {
            line,
            version,
            tablespace: 16400,
            cipher,
            span: Span { start, strict: start, closing: end, end },
        }
    }

    fn range(table: &KeyTable) -> (u64, u64) {
        table.lines().map(|line| (line.span.start, line.span.end)).next().expect("a line")
    }

    #[test]
    fn a_line_goes_from_draft_to_use_to_its_end_and_replayed_records_take_nothing_back() {
        let table = shared::key_table().expect("a mapping");
        let stages =
            [(facts(0, 0), (0, 0)), (facts(100, OPEN_END), (100, OPEN_END)), (facts(100, 200), (100, 200))];
        for (index, (stage, expected)) in stages.iter().enumerate() {
            stage.add_to(table).expect("a later stage");
            assert_eq!(range(table), *expected);
            for (earlier, _) in &stages[..index] {
                earlier.add_to(table).expect("an earlier stage");
                assert_eq!(range(table), *expected);
            }
        }
        assert_eq!(table.lines().count(), 1);
    }

    #[test]
    fn a_backup_label_says_where_redo_begins() {
        let label = "START WAL LOCATION: 1A/2000028 (file 00000001000000000000001A)\nCHECKPOINT LOCATION: 1A/2000060\n";
        assert_eq!(labelled_start(label), Some(0x1a_0200_0028));
        assert_eq!(labelled_start("CHECKPOINT LOCATION: 1A/2000060\n"), None);
    }

    #[test]
    fn another_line_under_the_same_number_is_refused() {
        let table = shared::key_table().expect("a mapping");
        facts(100, OPEN_END).add_to(table).expect("new");
        let other = LineFacts { tablespace: 16401, ..facts(100, OPEN_END) };
        assert!(matches!(other.add_to(table), Err(KeyError::Mismatch { line: 1 })));
        assert!(matches!(facts(150, OPEN_END).add_to(table), Err(KeyError::Mismatch { line: 1 })));
    }

    #[test]
    fn an_awaited_line_is_filled_in_by_the_record_that_brings_it() {
        let table = shared::key_table().expect("a mapping");
        table.add_awaited(1, 16400, 50).expect("room");
        assert!(table.active(16400).is_some_and(|line| line.awaited));
        let arrived = LineFacts { cipher: CipherId::Aes256Xts, ..facts(100, OPEN_END) };
        arrived.add_to(table).expect("awaited");
        let line = table.active(16400).expect("there");
        assert_eq!((line.awaited, line.cipher, line.span.start), (false, CipherId::Aes256Xts, 100));
        assert_eq!(table.lines().count(), 1);
    }

    #[test]
    fn a_history_says_when_each_version_counts() {
        use TablespaceState::{Decrypting, Encrypted, Encrypting, Plain, Retired, Rotating};
        let spans = |states: &[(u64, TablespaceState)]| {
            let change = |&(from, state)| StateChange { from: WalPosition(from), state };
            let spans = super::spans(&states.iter().map(change).collect::<Vec<_>>());
            spans.iter().map(|span| [span.start, span.strict, span.closing, span.end]).collect::<Vec<_>>()
        };
        const END: u64 = OPEN_END;
        let mut history = vec![(10, Encrypting)];
        assert_eq!(spans(&history), [[10, END, END, END]]);
        history.push((20, Encrypted));
        assert_eq!(spans(&history), [[10, 20, END, END]]);
        history.push((30, Rotating));
        assert_eq!(spans(&history), [[10, 20, 30, END], [30, 30, END, END]]);
        history.push((40, Encrypted));
        assert_eq!(spans(&history), [[10, 20, 30, 40], [30, 30, END, END]]);
        history.push((50, Retired));
        assert_eq!(spans(&history), [[10, 20, 30, 40], [30, 30, 50, 50]]);
        assert_eq!(spans(&[(10, Encrypted), (20, Retired)]), [[10, 10, 20, 20]]);
        assert_eq!(
            spans(&[(10, Encrypting), (20, Retired)]),
            [[10, 20, 20, 20]].map(|[a, _, c, d]| [a, END, c, d])
        );
        assert_eq!(spans(&[]), Vec::<[u64; 4]>::new());
        let mut history = vec![(10, Encrypting), (20, Encrypted), (30, Decrypting)];
        assert_eq!(spans(&history), [[10, 20, 30, END]]);
        history.push((40, Plain));
        assert_eq!(spans(&history), [[10, 20, 30, 40]]);
        // Encrypted again before it was plain: the next version.
        history.pop();
        history.push((40, Encrypting));
        assert_eq!(spans(&history), [[10, 20, 30, END], [40, END, END, END]]);
        history.push((50, Encrypted));
        assert_eq!(spans(&history), [[10, 20, 30, 50], [40, 50, END, END]]);
        // Not finished, and back.
        assert_eq!(spans(&[(10, Encrypting), (20, Decrypting)]), [[10, END, 20, END]]);
        assert_eq!(spans(&[(10, Encrypting), (20, Decrypting), (30, Plain)]), [[10, END, 20, 30]]);
    }
}
