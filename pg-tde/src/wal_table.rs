//! Keys and rules of WAL encryption, in memory that every process of the server shares.
//!
//! Like the key table it lives in a mapping of its own, takes no lock to read, and is changed by one process at a time (the holder of
//! the keyring lock, or the postmaster before it has children).

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use keyring::{Scope, TablespaceState};
use secret_mem::SecretBytes;

use crate::key_table::{load_words, store_words};

/// Versions of the key that one server life can hold: as many as a line of the keyring.
pub(crate) const MAX_VERSIONS: usize = 4096;
/// Switches on and off that can be told apart: likewise.
const MAX_CHANGES: usize = 4096;

/// One version of the data key.
struct Version {
    /// 0 while the slot is free; stored last.
    number: AtomicU32,
    dek: [AtomicU64; 4],
}

/// The table. All-zero memory is a valid, empty one.
#[repr(C)]
pub(crate) struct WalTable {
    /// Version that new segments are written under; 0: in clear.
    write: AtomicU32,
    /// `pg_tde.encrypt_wal` is off: plain segments are accepted everywhere.
    plain_everywhere: AtomicU32,
    /// Line in the keyring, 0 without one.
    line: AtomicU64,
    used: AtomicU32,
    /// Odd while `changes` is being replaced.
    sequence: AtomicU32,
    count: AtomicU32,
    /// WAL position, and whether plain segments that begin there or later are accepted.
    changes: [(AtomicU64, AtomicU32); MAX_CHANGES],
    versions: [Version; MAX_VERSIONS],
}

/// More than the table holds.
#[derive(Debug, thiserror::Error)]
#[error(
    "the write-ahead log has more key versions or changes of encryption than this server holds ({MAX_VERSIONS}, {MAX_CHANGES})"
)]
pub(crate) struct WalTableFull;

impl WalTable {
    /// Version that new segments are written under.
    pub(crate) fn write_version(&self) -> Option<u32> {
        Some(self.write.load(Acquire)).filter(|version| *version != 0)
    }

    /// New segments are written under this version from now on.
    pub(crate) fn set_write_version(&self, version: u32) {
        self.write.store(version, Release);
    }

    /// Accept plain segments everywhere, as `pg_tde.encrypt_wal` says.
    pub(crate) fn accept_plain_everywhere(&self, accept: bool) {
        self.plain_everywhere.store(u32::from(accept), Release);
    }

    /// The line in the keyring.
    pub(crate) fn line(&self) -> Option<u64> {
        Some(self.line.load(Acquire)).filter(|line| *line != 0)
    }

    /// Publishes the line and its history.
    ///
    /// # Errors
    /// [`WalTableFull`]
    pub(crate) fn set_history(&self, scope: &Scope) -> Result<(), WalTableFull> {
        if scope.history.len() > MAX_CHANGES {
            return Err(WalTableFull);
        }
        self.sequence.fetch_add(1, AcqRel);
        for (change, (position, plain)) in scope.history.iter().zip(&self.changes) {
            position.store(change.from.0, Relaxed);
            plain.store(u32::from(change.state != TablespaceState::Encrypted), Relaxed);
        }
        self.count.store(scope.history.len() as u32, Relaxed);
        self.sequence.fetch_add(1, AcqRel);
        self.line.store(scope.line.0, Release);
        Ok(())
    }

    /// Whether a plain segment that begins at this position is accepted.
    pub(crate) fn plain_allowed(&self, at: u64) -> bool {
        if self.plain_everywhere.load(Acquire) != 0 {
            return true;
        }
        // A writer that was killed in the middle leaves an odd number: then the strict answer after some tries.
        for _ in 0..1000 {
            let before = self.sequence.load(Acquire);
            let count = self.count.load(Relaxed) as usize;
            let last = self.changes[..count.min(MAX_CHANGES)]
                .iter()
                .rev()
                .find(|(position, _)| position.load(Relaxed) <= at)
                .map(|(_, plain)| plain.load(Relaxed));
            std::sync::atomic::fence(Acquire);
            if before.is_multiple_of(2) && self.sequence.load(Relaxed) == before {
                return last.is_some_and(|plain| plain != 0);
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Versions in the order in which they came, with their places.
    pub(crate) fn versions(&self) -> impl DoubleEndedIterator<Item = (usize, u32)> + '_ {
        let used = self.used.load(Acquire) as usize;
        self.versions[..used.min(MAX_VERSIONS)]
            .iter()
            .enumerate()
            .map(|(place, version)| (place, version.number.load(Acquire)))
            .filter(|(_, number)| *number != 0)
    }

    /// Whether there is any key.
    pub(crate) fn has_keys(&self) -> bool {
        self.used.load(Acquire) != 0
    }

    /// Whether another version can be added.
    ///
    /// # Errors
    /// [`WalTableFull`]
    pub(crate) fn check_room(&self) -> Result<(), WalTableFull> {
        if self.used.load(Acquire) as usize >= MAX_VERSIONS { Err(WalTableFull) } else { Ok(()) }
    }

    /// Adds a version, if it is new.
    ///
    /// # Errors
    /// [`WalTableFull`]
    pub(crate) fn add_version(&self, number: u32, dek: &SecretBytes<32>) -> Result<(), WalTableFull> {
        if self.versions().any(|(_, known)| known == number) {
            return Ok(());
        }
        let place = self.used.load(Acquire) as usize;
        let version = self.versions.get(place).ok_or(WalTableFull)?;
        store_words(&version.dek, dek);
        version.number.store(number, Release);
        self.used.store(place as u32 + 1, Release);
        Ok(())
    }

    /// The data key at a place of [`Self::versions`].
    pub(crate) fn dek(&self, place: usize) -> SecretBytes<32> {
        load_words(&self.versions[place].dek)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::shared;

    #[test]
    fn versions_come_back_and_plain_is_allowed_where_the_history_says() {
        let table = shared::wal_table().expect("a mapping");
        assert!(!table.has_keys() && !table.plain_allowed(0) && table.write_version().is_none());
        let dek = SecretBytes::random().expect("random");
        for _ in 0..2 {
            table.add_version(3, &dek).expect("room");
        }
        assert_eq!(Vec::from_iter(table.versions()), [(0, 3)]);
        assert!(table.dek(0).ct_eq(&dek));
        for (index, (at, plain)) in [(0, 1), (100, 0), (300, 1)].into_iter().enumerate() {
            table.changes[index].0.store(at, Relaxed);
            table.changes[index].1.store(plain, Relaxed);
        }
        table.count.store(3, Relaxed);
        let allowed = [0, 99, 100, 299, 300, u64::MAX].map(|at| table.plain_allowed(at));
        assert_eq!(allowed, [true, true, false, false, true, true]);
        table.sequence.store(1, Relaxed);
        assert!(!table.plain_allowed(0), "a change that was never finished allows nothing");
        table.accept_plain_everywhere(true);
        assert!(table.plain_allowed(100));
    }
}
