//! Bringing one scope to another node of a replicated cluster: the exported bytes travel in WAL, and redo
//! imports them. Keys stay wrapped, so neither side needs the HSM.

use std::path::Path;

use crate::error::{KeyringError, Result};
use crate::format::line::LineRecord;
use crate::format::root::Root;
use crate::format::transfer::Transfer;
use crate::ids::{KeyringId, LineNumber};
use crate::keyring::Keyring;
use crate::retained;
use crate::scope::DekVersion;
use crate::store::{FileStore, Store};
use crate::unlocked::Unlocked;

/// What an import did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The keyring received.
    pub keyring: KeyringId,
    /// The line received.
    pub line: LineNumber,
    /// Version of the record received.
    pub record_version: u64,
    /// Whether the record was written; false if it, or a newer one, was there.
    pub changed: bool,
    /// Whether the root was taken over from the other node because there was none, or one without lines.
    /// The seal key is another one then.
    pub adopted: bool,
}

impl Unlocked {
    /// Root and record of one line, for `Keyring::import` elsewhere. Both seals are checked first.
    pub fn export(&self, line: LineNumber) -> Result<Vec<u8>> {
        // The record first, so that the root counts it.
        let Some(record) = self.read_line(line)? else { return Err(self.no_record(line)) };
        record.open(&self.seal, &self.store.line_path(line))?;
        let root = self.root()?;
        Transfer { root: root.to_bytes()?, line: record.to_bytes()? }.to_bytes()
    }
}

impl Unlocked {
    /// The line of an export if its data keys here are not those of the export: a version that both have is another key, or the older of
    /// the two records has a version that the newer one does not know. Two servers went on from the same keyring then, and
    /// [`Keyring::import`] would let one replace the keys of the other.
    ///
    /// # Errors
    /// When the export or the record here cannot be opened.
    pub fn diverges_from(&self, exported: &[u8]) -> Result<Option<LineNumber>> {
        let transfer = Transfer::from_bytes(exported)?;
        let name = Path::new("the keyring record received");
        let there = LineRecord::from_bytes(&transfer.line, name)?;
        let line = there.line;
        if there.keyring != self.keyring() {
            return Ok(None);
        }
        let Some(here) = self.read_line(line)? else { return Ok(None) };
        let here = here.open(&self.seal, &self.store.line_path(line))?;
        let there = there.open(&self.seal, name)?;
        let (older, newer) =
            if here.record_version <= there.record_version { (&here, &there) } else { (&there, &here) };
        let known = |entry: &DekVersion| newer.version(entry.version).is_some_and(|v| v.check == entry.check);
        Ok(if older.versions.iter().all(known) { None } else { Some(line) })
    }
}

impl Keyring {
    /// Stores what another node exported. For redo: needs no HSM and no key, may be repeated, and takes
    /// records in any order; the newer version of a record and of the root wins, at equal versions the one
    /// wrapped under newer master-key versions. Seals are checked when the keyring is unlocked.
    ///
    /// Where there is no keyring, or one without lines, the sender's root is adopted. A keyring with lines
    /// and another id is refused.
    pub fn import(dir: &Path, bytes: &[u8]) -> Result<Imported> {
        Self::import_record(dir, bytes, false)
    }

    /// As [`import`](Self::import), keeping what it destroys: this server may still have to recover with those keys, until
    /// [`Unlocked::forget_retained`].
    pub fn import_and_retain(dir: &Path, bytes: &[u8]) -> Result<Imported> {
        Self::import_record(dir, bytes, true)
    }

    fn import_record(dir: &Path, bytes: &[u8], keep: bool) -> Result<Imported> {
        let transfer = Transfer::from_bytes(bytes)?;
        let name = Path::new("the keyring record received");
        let root = Root::from_bytes(&transfer.root, name)?;
        let record = LineRecord::from_bytes(&transfer.line, name)?;
        if root.facts.keyring != record.keyring {
            return Err(KeyringError::BadTransfer { what: "its root and record are of two keyrings" });
        }
        if record.line.0 == 0 || record.record_version == 0 {
            return Err(KeyringError::BadTransfer { what: "its numbers make no sense" });
        }
        let store = FileStore::create(dir)?;
        let lock = store.lock()?;
        let here =
            store.read_root()?.map(|bytes| Root::from_bytes(&bytes, &store.root_path())).transpose()?;
        let same = here.as_ref().is_some_and(|here| here.facts.keyring == root.facts.keyring);
        if !same {
            refuse_foreign_lines(&store, here.as_ref(), &root)?;
        }
        let root_newer = !same || here.as_ref().is_none_or(|here| root_wins(here, &root));
        let changed = record_wins(&store, &record)?;
        if changed && keep {
            retained::retain(&store, &lock, &record)?;
        }
        match (changed, root_newer) {
            (true, true) => store.commit(&lock, record.line, &transfer.line, &transfer.root)?,
            (true, false) => store.replace_lines(&lock, &[(record.line, transfer.line)])?,
            (false, true) => store.replace_root(&lock, &transfer.root)?,
            (false, false) => {}
        }
        let (keyring, line, record_version) = (record.keyring, record.line, record.record_version);
        Ok(Imported { keyring, line, record_version, changed, adopted: !same })
    }
}

/// Lines of this very keyring without a root are what a crash in an adoption leaves.
fn refuse_foreign_lines(store: &FileStore, here: Option<&Root>, root: &Root) -> Result<()> {
    for line in store.lines()? {
        let path = store.line_path(line);
        let Some(bytes) = store.read_line(line)? else { continue };
        let found = LineRecord::from_bytes(&bytes, &path)?.keyring;
        if found != root.facts.keyring {
            let expected = root.facts.keyring;
            let path = here.map_or(path, |_| store.root_path());
            return Err(KeyringError::ForeignKeyring { path, found, expected });
        }
    }
    Ok(())
}

fn root_wins(here: &Root, new: &Root) -> bool {
    let rank = |root: &Root| (root.facts.generation, root.wrapped.version);
    rank(new) > rank(here)
}

fn record_wins(store: &FileStore, new: &LineRecord) -> Result<bool> {
    let path = store.line_path(new.line);
    let Some(bytes) = store.read_line(new.line)? else { return Ok(true) };
    let here = LineRecord::from_bytes(&bytes, &path)?;
    if here.keyring != new.keyring {
        let (found, expected) = (here.keyring, new.keyring);
        return Err(KeyringError::ForeignKeyring { path, found, expected });
    }
    if here.record_version != new.record_version {
        return Ok(new.record_version > here.record_version);
    }
    // Every change but re-wrapping raises the version: equal versions must be the same record.
    if (here.nonce, &here.sealed) != (new.nonce, &new.sealed) {
        return Err(KeyringError::Conflict { path, record_version: here.record_version });
    }
    Ok(new.oldest_master_version() > here.oldest_master_version())
}
