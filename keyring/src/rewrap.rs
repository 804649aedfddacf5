//! Wrapping every key anew under the master key's primary version.
//!
//! Data keys do not change, records and generation are not counted on: only the wrapped bytes change, which
//! no seal covers. Records are replaced in batches of one folder each, every record atomically; the root, with
//! the keyring's own key, comes last. Interrupted at any point, every key is still wrapped under one version
//! or the other, and the next call goes on with what is left.

use std::ops::ControlFlow;

use crate::error::{KeyringError, Result};
use crate::format::root::Root;
use crate::ids::LineNumber;
use crate::keyring::unwrap_keyring_key;
use crate::master::MasterKey;
use crate::unlocked::Unlocked;

/// Most records that one batch replaces while it holds the write lock.
const BATCH: usize = 256;

/// How far re-wrapping is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RewrapProgress {
    /// Lines looked at.
    pub done: u64,
    /// Lines there are.
    pub total: u64,
}

/// What re-wrapping did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrapped {
    /// Lines wrapped anew.
    pub rewrapped: u64,
    /// Lines that were under the primary version already.
    pub already: u64,
    /// The oldest master-key version met.
    pub from: Option<u32>,
    /// The master-key version that wraps now.
    pub to: u32,
    /// False if the callback stopped it; call again to go on.
    pub complete: bool,
}

impl Unlocked {
    /// Wraps all keys under the primary master-key version, after each batch asking `progress` whether to go
    /// on. Make a new version first (`MasterKey::generate_version`) to rotate.
    pub fn rewrap_all(
        &self,
        master: &dyn MasterKey,
        mut progress: impl FnMut(RewrapProgress) -> ControlFlow<()>,
    ) -> Result<Rewrapped> {
        let keyring = self.keyring;
        let failed =
            |source| KeyringError::MasterKey { action: "find the master-key version", keyring, source };
        let to = master.primary_version().map_err(failed)?;
        let mut result = Rewrapped { rewrapped: 0, already: 0, from: None, to, complete: false };
        let mut lines = self.store.lines()?;
        lines.sort_unstable_by_key(|line| (line.0 & 0xFF, line.0));
        let total = lines.len() as u64;
        for batch in lines.chunks(BATCH) {
            self.rewrap_batch(batch, master, &mut result)?;
            let done = result.rewrapped + result.already;
            if progress(RewrapProgress { done, total }).is_break() {
                return Ok(result);
            }
        }
        self.rewrap_root(master, &mut result)?;
        result.complete = true;
        Ok(result)
    }

    fn rewrap_batch(
        &self,
        lines: &[LineNumber],
        master: &dyn MasterKey,
        result: &mut Rewrapped,
    ) -> Result<()> {
        let lock = self.store.lock()?;
        let mut changed = Vec::new();
        for &line in lines {
            let Some(mut record) = self.read_line(line)? else { return Err(self.no_record(line)) };
            let scope = record.open(&self.seal, &self.store.line_path(line))?;
            let mut touched = false;
            for (version, wrapped) in &mut record.wrapped {
                note_oldest(result, wrapped.version);
                if wrapped.version >= result.to {
                    continue;
                }
                let dek = self.dek_of(&scope, *version, master)?;
                let failed = |error| self.key_error(&scope, *version, error);
                let new = master.wrap(&dek).map_err(failed)?;
                // The old wrapping is about to go: prove the new one first.
                if !master.unwrap(&new).map_err(failed)?.ct_eq(&dek) {
                    let (scope, file) = (scope.to_string(), self.store.line_path(line));
                    return Err(KeyringError::KeyWrong { scope, version: *version, file, source: None });
                }
                *wrapped = new;
                touched = true;
            }
            if touched {
                changed.push((line, record.to_bytes()?));
                result.rewrapped += 1;
            } else {
                result.already += 1;
            }
        }
        if changed.is_empty() { Ok(()) } else { self.store.replace_lines(&lock, &changed) }
    }

    fn rewrap_root(&self, master: &dyn MasterKey, result: &mut Rewrapped) -> Result<()> {
        let lock = self.store.lock()?;
        let root = self.root()?;
        note_oldest(result, root.wrapped.version);
        if root.wrapped.version >= result.to {
            return Ok(());
        }
        let keyring = self.keyring;
        let failed = |source| KeyringError::MasterKey { action: "wrap the key", keyring, source };
        let key = unwrap_keyring_key(&self.store.root_path(), &root, master)?;
        let wrapped = master.wrap(&key).map_err(failed)?;
        if !master.unwrap(&wrapped).map_err(failed)?.ct_eq(&key) {
            let file = self.store.root_path();
            return Err(KeyringError::KeyringKeyWrong { file, keyring, source: None });
        }
        self.store.replace_root(&lock, &Root { wrapped, ..root }.to_bytes()?)
    }
}

fn note_oldest(result: &mut Rewrapped, version: u32) {
    result.from = Some(result.from.map_or(version, |oldest| oldest.min(version)));
}
