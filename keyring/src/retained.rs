//! Records from before a data key was destroyed, kept by a server that may still have to recover with that key.
//!
//! A standby replays the destruction of a key when its primary is long done with it. If the standby's own recovery would begin
//! before the last page was brought under another key, it keeps the record as it was, in `retained/`, until it would not. The record is
//! retained before the new one is committed: a crash between the two leaves a copy too many, and the change is replayed again.

use std::path::Path;

use crate::error::Result;
use crate::format::line::LineRecord;
use crate::ids::{KeyVersion, LineNumber};
use crate::master::MasterKey;
use crate::scope::Scope;
use crate::store::Store;
use crate::unlocked::{Dek, Unlocked, unwrap_dek};

/// A record that was retained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Retained {
    /// Its line.
    pub line: LineNumber,
    /// Its version.
    pub record_version: u64,
}

/// Whether `new` lacks a wrapped key that `here` has.
pub(crate) fn drops_a_key(here: &LineRecord, new: &LineRecord) -> bool {
    here.wrapped.iter().any(|(version, _)| !new.wrapped.iter().any(|(other, _)| other == version))
}

impl Unlocked {
    /// Every record that is retained.
    pub fn retained(&self) -> Result<Vec<Retained>> {
        self.store.retained()
    }

    /// The versions that a retained record has keys of.
    pub fn retained_versions(&self, of: Retained) -> Result<Vec<KeyVersion>> {
        let record = self.read_retained(of)?;
        Ok(record
            .map_or(Vec::new(), |(record, _)| record.wrapped.iter().map(|(version, _)| *version).collect()))
    }

    /// Removes a retained record: this server will not need its keys any more.
    pub fn forget_retained(&self, of: Retained) -> Result<()> {
        let lock = self.store.lock()?;
        self.store.forget_retained(&lock, of)
    }

    /// The key of a destroyed version, if a record that has it is retained.
    pub(crate) fn retained_dek(
        &self,
        line: LineNumber,
        version: KeyVersion,
        master: &dyn MasterKey,
    ) -> Result<Option<Dek>> {
        for of in self.store.retained()?.into_iter().filter(|of| of.line == line) {
            let Some((_, scope)) = self.read_retained(of)? else { continue };
            if scope.version(version).is_some_and(|entry| entry.wrapped.is_some()) {
                return unwrap_dek(&scope, version, master, &self.store.retained_path(of)).map(Some);
            }
        }
        Ok(None)
    }

    fn read_retained(&self, of: Retained) -> Result<Option<(LineRecord, Scope)>> {
        let Some(bytes) = self.store.read_retained(of)? else { return Ok(None) };
        let path = self.store.retained_path(of);
        let record = LineRecord::from_bytes(&bytes, &path)?;
        let scope = record.open(&self.seal, &path)?;
        Ok(Some((record, scope)))
    }
}

/// Keeps the record that is in place of `new`, if a key goes with it.
pub(crate) fn retain(store: &dyn Store, lock: &crate::WriteLock, new: &LineRecord) -> Result<()> {
    let Some(bytes) = store.read_line(new.line)? else { return Ok(()) };
    let path: &Path = &store.line_path(new.line);
    let here = LineRecord::from_bytes(&bytes, path)?;
    if !drops_a_key(&here, new) {
        return Ok(());
    }
    store.retain(lock, Retained { line: here.line, record_version: here.record_version }, &bytes)
}
