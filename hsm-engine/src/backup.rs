//! Backups: all objects of a store and its audit log in one file, sealed as they are in the store.
//!
//! ```text
//! 0    8  magic "tdeHSMbk"
//! 8    2  format version, 1 (little endian, as all numbers)
//! 10   1  mode: 0 any algorithm, 1 approved ones only
//! 11   5  zero
//! 16  16  HSM id
//! 32   8  time, microseconds since 1970 UTC
//! 40   8  number of files
//! 48   .  the files: length of the name (2), name, length (8), bytes; sorted by name
//!      32  HMAC-SHA-256 of everything before under a key from the store key
//! ```
//! Key material in it is sealed as it is in the store; whoever has the backup and a PIN of that time has the keys. Whoever has no PIN
//! can neither read nor make nor change one: the MAC's key comes from the store key, which a PIN opens.
//!
//! # Order of writes
//! A backup is written as `.NAME.tmp`, synced, renamed, and the directory synced: it is whole or not there. A restore reads and checks all
//! of the backup before it writes anything, and writes the header last: a store without one holds no HSM.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use secret_mem::{LockedBox, SecretBytes};
use sha2::Sha256;
use uuid::Uuid;

use crate::audit::Event;
use crate::error::{ErrorKind, HsmError, Result};
use crate::format::records;
use crate::object::{self, Kind, Object};
use crate::pin::Pin;
use crate::policy;
use crate::session::Session;
use crate::store::{FileStore, MAX_OBJECT, ObjectName, Store};
use crate::time::Timestamp;
use crate::transaction::{self, LOCK_WAIT};
use crate::user::{self, Role, hkdf};

const MAGIC: &[u8; 8] = b"tdeHSMbk";
const VERSION: u16 = 1;
const HEAD: usize = 48;
const MAC: usize = 32;
const MAC_INFO: &[u8] = b"tde/hsm/backup/v1";
/// Area of the objects, as a prefix of names.
const AREA: &str = "objects";

/// What the head of a backup says. Nothing vouches for it before a PIN opened the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupInfo {
    /// UUID of the HSM.
    pub hsm: Uuid,
    /// When it was made.
    pub made: Timestamp,
    /// Whether the HSM offers approved algorithms only.
    pub approved_only: bool,
    /// Number of files in it.
    pub files: u64,
}

/// A backup could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The operating system refused.
    #[error("HSM backup {}: cannot {action}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// It is no backup, or not whole, or was changed.
    #[error("HSM backup {}: it is damaged or was changed ({what}); nothing was restored", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        what: &'static str,
    },
    /// Another version of the program wrote it.
    #[error("HSM backup {}: it has format {found}, this program knows format {VERSION}", .path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Format found.
        found: u16,
    },
    /// It is of an HSM in the other mode.
    #[error(
        "HSM backup {}: it is of an HSM with {}, and cannot be restored as one with {}", .path.display(),
        mode(*.found), mode(!*.found)
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Whether the backup is of an HSM with approved algorithms only.
        found: bool,
    },
    /// The PIN opens no key in the backup.
    #[error("HSM backup {}: the PIN is not that of \"{user}\" at the time of the backup", .path.display())]
    WrongPin {
        /// The file.
        path: PathBuf,
        /// The user.
        user: String,
    },
}

fn mode(approved_only: bool) -> &'static str {
    if approved_only { "approved algorithms only" } else { "all algorithms" }
}

impl BackupError {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::HsmAway,
            Self::Damaged { .. } | Self::UnknownFormat { .. } => ErrorKind::Damaged,
            Self::Mode { .. } => ErrorKind::Denied,
            Self::WrongPin { .. } => ErrorKind::Login,
        }
    }
}

type Key = LockedBox<Hmac<Sha256>>;

fn mac_key(store_key: &SecretBytes<32>, hsm: &[u8; 16]) -> Option<Key> {
    let key = hkdf(store_key.expose(), hsm, MAC_INFO).ok()?;
    Some(LockedBox::new_with(|| {
        Hmac::<Sha256>::new_from_slice(key.expose()).expect("HMAC takes keys of any length")
    }))
}

impl Session {
    /// Writes a backup to a new file of mode 0600. Nothing changes meanwhile: it holds the store's lock.
    ///
    /// # Errors
    /// Not an officer or appliance user; the file exists or cannot be written; a damaged store.
    pub fn backup(&self, path: &Path) -> Result<BackupInfo> {
        self.require_one_of(&[Role::CryptoOfficer, Role::ApplianceUser], "make backups")?;
        let io = |action| move |source| HsmError::from(BackupError::Io { path: path.into(), action, source });
        if path.exists() {
            let exists = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(io("make it")(exists));
        }
        let mut tx = self.begin(LOCK_WAIT)?;
        let policy = policy::read(&self.core, &self.keys, tx.root())?.value;
        let store = self.core.store();
        let mut names: Vec<String> = store.list()?.iter().map(|n| format!("{n}.obj")).collect();
        names.extend(store.logs()?.iter().map(|n| format!("{n}.log")));
        let area = match tx.root().extension.is_some_and(|e| e.objects > 0) {
            true => Some(store.area(&ObjectName::fixed(AREA))?),
            false => None,
        };
        if let Some(area) = &area {
            names.extend(area.list()?.iter().map(|n| format!("{AREA}/{n}.obj")));
        }
        names.sort();
        let files = names.len() as u64;
        // The record is in the log before the log is copied.
        tx.log(&[self.entry(Event::BackupMade { files })])?;
        let info = BackupInfo {
            hsm: self.hsm_id(),
            made: Timestamp::now(),
            approved_only: policy.approved_only,
            files,
        };
        let temp = temp_name(path);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temp);
        let file = file.map_err(io("make it"))?;
        let mut out = Writer {
            out: BufWriter::new(file),
            mac: mac_key(&self.keys.store_key, self.core.hsm_id()).ok_or_else(|| {
                object::damaged(store, &transaction::root_name(), crate::error::Damage::Field("key"))
            })?,
        };
        out.put(&info.head()).map_err(io("write"))?;
        for name in &names {
            let bytes = read_file(store, area.as_deref(), name)?;
            let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
            out.put(&len.to_le_bytes()).map_err(io("write"))?;
            out.put(name.as_bytes()).map_err(io("write"))?;
            out.put(&(bytes.len() as u64).to_le_bytes()).map_err(io("write"))?;
            out.put(&bytes).map_err(io("write"))?;
        }
        out.finish().map_err(io("write"))?;
        tx.commit()?;
        fs::rename(&temp, path).map_err(io("rename"))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|d| d.sync_all()).map_err(io("sync the directory of"))?;
        Ok(info)
    }
}

fn temp_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Bytes of an object or log.
fn read_file(store: &dyn Store, area: Option<&dyn Store>, name: &str) -> Result<Vec<u8>> {
    let (from, rest) = match (area, name.strip_prefix("objects/")) {
        (Some(area), Some(rest)) => (area, rest),
        _ => (store, name),
    };
    if let Some(log) = rest.strip_suffix(".log") {
        return Ok(from.log_read(&ObjectName::new(log)?, 0)?);
    }
    let object = ObjectName::new(rest.strip_suffix(".obj").unwrap_or(rest))?;
    from.get(&object)?.ok_or_else(|| object::missing(from, &object))
}

struct Writer {
    out: BufWriter<File>,
    mac: Key,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.mac.update(bytes);
        self.out.write_all(bytes)
    }

    fn finish(mut self) -> io::Result<()> {
        let mac: [u8; MAC] = self.mac.clone().finalize().into_bytes().into();
        self.out.write_all(&mac)?;
        self.out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

impl BackupInfo {
    fn head(&self) -> [u8; HEAD] {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(MAGIC);
        head[8..10].copy_from_slice(&VERSION.to_le_bytes());
        head[10] = u8::from(self.approved_only);
        head[16..32].copy_from_slice(self.hsm.as_bytes());
        head[32..40].copy_from_slice(&self.made.micros().to_le_bytes());
        head[40..].copy_from_slice(&self.files.to_le_bytes());
        head
    }

    fn parse(head: &[u8; HEAD], path: &Path) -> Result<Self, BackupError> {
        let damaged = |what| BackupError::Damaged { path: path.into(), what };
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
        if head[..8] != *MAGIC {
            return Err(damaged("it is no backup of an HSM"));
        }
        let found = u16::from_le_bytes([head[8], head[9]]);
        if found != VERSION {
            return Err(BackupError::UnknownFormat { path: path.into(), found });
        }
        if head[10] > 1 || head[11..16] != [0; 5] {
            return Err(damaged("its mode is not valid"));
        }
        Ok(Self {
            hsm: Uuid::from_bytes(std::array::from_fn(|i| head[16 + i])),
            made: Timestamp::from_micros(number(32)),
            approved_only: head[10] == 1,
            files: number(40),
        })
    }
}

/// What the head of a backup says, which nothing vouches for without a PIN.
///
/// # Errors
/// No backup, or one of another format.
pub fn inspect_backup(path: &Path) -> Result<BackupInfo> {
    let mut head = [0; HEAD];
    open(path)?.read_exact(&mut head).map_err(|_| damaged(path, "it is too short"))?;
    Ok(BackupInfo::parse(&head, path)?)
}

fn open(path: &Path) -> Result<File> {
    let io = |source| BackupError::Io { path: path.into(), action: "open", source };
    Ok(File::open(path).map_err(io)?)
}

fn damaged(path: &Path, what: &'static str) -> HsmError {
    BackupError::Damaged { path: path.into(), what }.into()
}

/// Reads one file of the backup; `None` for its bytes if they are not wanted.
fn next_file(input: &mut impl Read, path: &Path) -> Result<(String, Vec<u8>)> {
    let short = |_| damaged(path, "it ends too early");
    let mut len = [0; 2];
    input.read_exact(&mut len).map_err(short)?;
    let mut name = vec![0; usize::from(u16::from_le_bytes(len))];
    if name.len() > 128 {
        return Err(damaged(path, "a name is too long"));
    }
    input.read_exact(&mut name).map_err(short)?;
    let name = String::from_utf8(name).map_err(|_| damaged(path, "a name is not valid"))?;
    let mut len = [0; 8];
    input.read_exact(&mut len).map_err(short)?;
    let len = u64::from_le_bytes(len);
    // Logs grow a little beyond a segment.
    if len > MAX_OBJECT as u64 {
        return Err(damaged(path, "a file is too long"));
    }
    let mut bytes = vec![0; len as usize];
    input.read_exact(&mut bytes).map_err(short)?;
    Ok((name, bytes))
}

/// Checks a backup with a user's PIN and, if `dir` is given, makes an HSM of it in a new or empty directory. It is the same HSM, with the
/// users, PINs and keys of that time. `approved_only` says which mode is wanted.
///
/// # Errors
/// [`BackupError`] for anything that is not what was written, the other mode, or another PIN; a directory that is not empty.
pub fn restore_backup(
    path: &Path,
    dir: Option<&Path>,
    user: &str,
    pin: &Pin,
    approved_only: bool,
) -> Result<BackupInfo> {
    crate::selftest::run()?;
    user::check_name(user)?;
    let info = inspect_backup(path)?;
    if info.approved_only != approved_only {
        return Err(BackupError::Mode { path: path.into(), found: info.approved_only }.into());
    }
    let file = open(path)?;
    let total =
        file.metadata().map_err(|source| BackupError::Io { path: path.into(), action: "look at", source })?;
    let mut input = BufReader::new(file);
    let store_key = find_key(&mut input, path, &info, user, pin)?;
    check_mac(&mut input, path, &info, &store_key, total.len())?;
    let Some(dir) = dir else { return Ok(info) };
    write_out(&mut input, path, &info, dir)?;
    Ok(info)
}

fn rewind(input: &mut BufReader<File>, path: &Path) -> Result<()> {
    let io = |source| BackupError::Io { path: path.into(), action: "read", source };
    input.seek(io::SeekFrom::Start(HEAD as u64)).map_err(io)?;
    Ok(())
}

/// The store key that the user's record holds under the PIN.
fn find_key(
    input: &mut BufReader<File>,
    path: &Path,
    info: &BackupInfo,
    user: &str,
    pin: &Pin,
) -> Result<SecretBytes<32>> {
    rewind(input, path)?;
    let wanted = format!("user.{user}.obj");
    for _ in 0..info.files {
        let (name, bytes) = next_file(input, path)?;
        if name != wanted {
            continue;
        }
        let record: Object<records::User> = object::parse_public(Kind::User, &bytes)
            .ok_or_else(|| damaged(path, "the user's record is damaged"))?;
        let opened = user::open_store_key(&record.value, pin, info.hsm.as_bytes(), record.revision)
            .map_err(|_| damaged(path, "the user's record is damaged"))?;
        return opened.ok_or_else(|| BackupError::WrongPin { path: path.into(), user: user.into() }.into());
    }
    Err(HsmError::UnknownUser { store: path.display().to_string(), user: user.into() })
}

/// Reads everything and compares the MAC.
fn check_mac(
    input: &mut BufReader<File>,
    path: &Path,
    info: &BackupInfo,
    store_key: &SecretBytes<32>,
    total: u64,
) -> Result<()> {
    let io = |source| BackupError::Io { path: path.into(), action: "read", source };
    let mut mac = mac_key(store_key, info.hsm.as_bytes()).ok_or_else(|| damaged(path, "its key"))?;
    input.seek(io::SeekFrom::Start(0)).map_err(io)?;
    let mut left = total.checked_sub(MAC as u64).ok_or_else(|| damaged(path, "it is too short"))?;
    let mut part = vec![0; 1 << 16];
    while left > 0 {
        let n = part.len().min(usize::try_from(left).unwrap_or(part.len()));
        input.read_exact(&mut part[..n]).map_err(io)?;
        mac.update(&part[..n]);
        left -= n as u64;
    }
    let mut found = [0; MAC];
    input.read_exact(&mut found).map_err(io)?;
    let mac: Hmac<Sha256> = mac.clone();
    mac.verify_slice(&found).map_err(|_| damaged(path, "its seal does not match"))?;
    // What is sealed must also be what the head says: nothing between the last file and the seal.
    rewind(input, path)?;
    let mut last = String::new();
    for _ in 0..info.files {
        let (name, _) = next_file(input, path)?;
        if name <= last {
            return Err(damaged(path, "its files are not in order"));
        }
        last = name;
    }
    let at = input.stream_position().map_err(io)?;
    if at + MAC as u64 == total { Ok(()) } else { Err(damaged(path, "something follows its files")) }
}

fn write_out(input: &mut BufReader<File>, path: &Path, info: &BackupInfo, dir: &Path) -> Result<()> {
    let store: Arc<dyn Store> = Arc::new(FileStore::create(dir)?);
    let _lock = store.lock(&transaction::lock_name(), LOCK_WAIT)?;
    rewind(input, path)?;
    let mut header = None;
    for _ in 0..info.files {
        let (name, bytes) = next_file(input, path)?;
        let (to, rest) = match name.strip_prefix("objects/") {
            Some(rest) => (store.area(&ObjectName::fixed(AREA))?, rest),
            None => (Arc::clone(&store), &name[..]),
        };
        if let Some(log) = rest.strip_suffix(".log") {
            to.log_append(&ObjectName::new(log)?, 0, &bytes)?;
        } else if let Some(object) = rest.strip_suffix(".obj") {
            let object = ObjectName::new(object)?;
            if object == transaction::header_name() {
                header = Some(bytes);
            } else {
                to.put(&object, &bytes)?;
            }
        } else {
            return Err(damaged(path, "a name is not valid"));
        }
    }
    let header = header.ok_or_else(|| damaged(path, "it has no header"))?;
    Ok(store.put(&transaction::header_name(), &header)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_these_bytes() {
        let info = BackupInfo {
            hsm: Uuid::from_bytes([0xAA; 16]),
            made: Timestamp::from_micros(0x0102),
            approved_only: true,
            files: 3,
        };
        let head = info.head();
        let want = format!(
            "746465 48534d626b 0100 01 0000000000 {} 0201000000000000 0300000000000000",
            "aa".repeat(16)
        );
        assert_eq!(hex::encode(head), want.replace(' ', ""));
        assert_eq!(BackupInfo::parse(&head, Path::new("x")).unwrap(), info);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_backup_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let scratch = tempfile::tempdir().unwrap();
            let path = scratch.path().join("b");
            for head in [&[][..], MAGIC, b"tdeHSMbk\x01\0\0\0\0\0\0\0"] {
                fs::write(&path, [head, &bytes].concat()).unwrap();
                let pin = Pin::from_reader(&b"some pin"[..]).unwrap();
                proptest::prop_assert!(restore_backup(&path, None, "user", &pin, false).is_err());
            }
        }
    }
}
