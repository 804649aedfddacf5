//! The keys of the running server, in memory that every process shares.
//!
//! The postmaster fills the table once, before it has children, in a mapping of its own: unlike PostgreSQL's
//! shared memory it survives the rebuilding after a backend crash. Entries are only ever appended and their
//! fields set once, so a process killed in the middle of a change leaves at most one unused entry, and a
//! reader takes no lock. Everything is an atomic word, which makes sharing it between processes plain safe code.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

use page_cipher::CipherId;
use secret_mem::SecretBytes;

use crate::ffi::compat::RelationId;
use crate::job_table::JobTable;
use crate::span::{NOW, OPEN_END, Span};

/// Tablespaces with a key that one server life can hold, dropped ones included.
pub(crate) const MAX_ENTRIES: usize = 4096;
/// Counter shards: one cache line each, so that processes do not fight over one.
const SHARDS: usize = 64;
/// Torn pages that one recovery can wait for.
const MAX_PLACEHOLDERS: usize = 4096;
/// Tablespace `pg_default` (catalog/pg_tablespace.dat).
pub(crate) const PG_DEFAULT: u32 = 1663;
/// Tablespace `pg_global`, of the catalogs that all databases share.
pub(crate) const PG_GLOBAL: u32 = 1664;
/// A key line of one tablespace: the pages written between two WAL positions.
#[repr(C, align(128))]
pub(crate) struct Entry {
    line: AtomicU64,
    start: AtomicU64,
    strict: AtomicU64,
    closing: AtomicU64,
    end: AtomicU64,
    tablespace: AtomicU32,
    version: AtomicU32,
    cipher: AtomicU32,
    /// The line is known to be in the WAL since this server start.
    logged: AtomicU32,
    dek_present: AtomicU32,
    check: AtomicU32,
    /// Only the manifest names the line; the WAL has yet to bring it.
    awaited: AtomicU32,
    dek: [AtomicU64; 4],
}

impl Entry {
    /// Read without a lock: the fields change one after the other, but each only from "not yet" to its value, and every
    /// mixture is a state that was in force.
    fn span(&self) -> Span {
        let end = self.end.load(Acquire);
        let closing = self.closing.load(Acquire);
        let strict = self.strict.load(Acquire);
        Span { start: self.start.load(Acquire), strict, closing, end }
    }

    /// `end` last, which puts a new key into force.
    fn set_span(&self, span: Span) {
        self.start.store(span.start, Release);
        self.strict.store(span.strict, Release);
        self.closing.store(span.closing, Release);
        self.end.store(span.end, Release);
    }
}

/// What happened to pages, for `tde.stats`.
#[repr(C, align(64))]
#[derive(Default)]
pub(crate) struct Counters {
    /// Pages encrypted.
    pub(crate) sealed: AtomicU64,
    /// Pages decrypted.
    pub(crate) opened: AtomicU64,
    /// Pages refused: wrong key, tampering or rot.
    pub(crate) refused: AtomicU64,
    /// Torn free space or visibility map pages, which the server rebuilds.
    pub(crate) torn_maps: AtomicU64,
    /// Pages written to the double-write file first.
    pub(crate) double_writes: AtomicU64,
    /// Torn pages that recovery waits for an image of.
    pub(crate) placeholders: AtomicU64,
}

/// The table itself. All-zero memory is a valid, empty table.
#[repr(C)]
pub(crate) struct KeyTable {
    /// Rises with every change, so that a process notices that its view is old.
    generation: AtomicU64,
    used: AtomicU64,
    /// Key of the keyring's seals, so that a change of state needs no HSM.
    seal_present: AtomicU64,
    seal: [AtomicU64; 4],
    /// The lines were compared with where recovery ended.
    compared: AtomicU64,
    counters: [Counters; SHARDS],
    /// Torn pages that recovery waits for an image of.
    pub(crate) placeholders: Placeholders,
    /// Which of the two double-write files is in use.
    pub(crate) double_write: DoubleWriteState,
    /// Where the redo began that this server went through last: pages may be as old as this.
    recovery_from: AtomicU64,
    /// It began at the label of a base backup, whose files are newer.
    copied: AtomicU64,
    /// See [`Lock`].
    lock: AtomicU32,
    /// Work in the background.
    pub(crate) jobs: JobTable,
    entries: [Entry; MAX_ENTRIES],
}

/// A torn page that recovery met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placeholder {
    /// The relation; the fork is the main one.
    pub(crate) relation: RelationId,
    /// The block.
    pub(crate) block: u32,
}

/// The torn pages of one recovery, written by the startup process only.
#[repr(C)]
pub(crate) struct Placeholders {
    used: AtomicU64,
    pages: [[AtomicU32; 4]; MAX_PLACEHOLDERS],
}

impl Placeholders {
    /// Whether nothing is waited for.
    pub(crate) fn is_empty(&self) -> bool {
        self.used.load(Acquire) == 0
    }

    /// Adds a page; `false` when there is no room.
    pub(crate) fn add(&self, torn: Placeholder) -> bool {
        if self.all().any(|known| known == torn) {
            return true;
        }
        let used = self.used.load(Acquire) as usize;
        let Some(page) = self.pages.get(used) else { return false };
        let relation = torn.relation;
        for (word, value) in
            page.iter().zip([relation.tablespace, relation.database, relation.number, torn.block])
        {
            word.store(value, Relaxed);
        }
        self.used.store(used as u64 + 1, Release);
        true
    }

    /// The pages.
    pub(crate) fn all(&self) -> impl Iterator<Item = Placeholder> + '_ {
        let used = self.used.load(Acquire) as usize;
        self.pages[..used.min(MAX_PLACEHOLDERS)].iter().map(|page| {
            let [tablespace, database, number, block] = std::array::from_fn(|i| page[i].load(Relaxed));
            Placeholder { relation: RelationId { tablespace, database, number, temporary: false }, block }
        })
    }

    /// Forgets all: every image came, or recovery starts anew.
    pub(crate) fn clear(&self) {
        self.used.store(0, Release);
    }
}

/// State of the double-write files; see `double_write`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct DoubleWriteState {
    /// Redo pointer of the last completed checkpoint when the current file was begun.
    pub(crate) epoch: AtomicU64,
    /// 0 or 1.
    pub(crate) file: AtomicU64,
    /// Number of the last record.
    pub(crate) sequence: AtomicU64,
}

/// Why an entry cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum TableError {
    /// No room for another key.
    #[error(
        "the table of keys is full ({MAX_ENTRIES} tablespace keys since the server started); restart the server"
    )]
    Full,
    /// The bytes of a key changed in memory.
    #[error("the key of line {line} version {version} changed in memory; restart the server")]
    Corrupt {
        /// Line of the key in the keyring.
        line: u64,
        /// Version of the key.
        version: u32,
    },
}

/// Whether the server has its keys (`lock`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Lock {
    /// As usual.
    Open = 0,
    /// Statements that need keys end and none begins.
    Locking = 1,
    /// There are no keys, and none is unwrapped.
    Locked = 2,
}

/// What a tablespace that has a key is going through, and the key that pages are written under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A job encrypts its plain pages.
    Encrypting(LineInfo),
    /// Every page is under the key.
    Encrypted(LineInfo),
    /// A job rewrites pages that are under the key before.
    Rotating(LineInfo),
    /// A job writes its encrypted pages in clear; the newest key that they may be under.
    Decrypting(LineInfo),
}

impl State {
    /// As views show it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encrypting(_) => "encrypting",
            Self::Encrypted(_) => "encrypted",
            Self::Rotating(_) => "rotating",
            Self::Decrypting(_) => "decrypting",
        }
    }

    /// The key that a job brings every page under, or takes every page from, if there is a job.
    pub(crate) fn job(self) -> Option<LineInfo> {
        match self {
            Self::Encrypting(line) | Self::Rotating(line) | Self::Decrypting(line) => Some(line),
            Self::Encrypted(_) => None,
        }
    }
}

/// A copy of what an entry says, without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineInfo {
    /// Place in the table.
    pub(crate) index: usize,
    /// Line in the keyring.
    pub(crate) line: u64,
    /// Version of the data key.
    pub(crate) version: u32,
    /// OID of the tablespace.
    pub(crate) tablespace: u32,
    /// Cipher of the pages.
    pub(crate) cipher: CipherId,
    /// From where to where it counts.
    pub(crate) span: Span,
    /// Only the manifest names the line; the WAL has yet to bring it.
    pub(crate) awaited: bool,
}

pub(crate) fn store_words(words: &[AtomicU64; 4], key: &SecretBytes<32>) {
    for (word, bytes) in words.iter().zip(key.expose().chunks_exact(8)) {
        let mut buffer = [0; 8];
        buffer.copy_from_slice(bytes);
        word.store(u64::from_le_bytes(buffer), Relaxed);
    }
}

pub(crate) fn load_words(words: &[AtomicU64; 4]) -> SecretBytes<32> {
    let mut key = SecretBytes::zeroed();
    for (word, bytes) in words.iter().zip(key.expose_mut().chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.load(Relaxed).to_le_bytes());
    }
    key
}

/// Detects a stray write over an entry; the keyring's own check value proves the key itself.
fn check_value(line: u64, version: u32, cipher: u32, key: &SecretBytes<32>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&line.to_le_bytes());
    hasher.update(&version.to_le_bytes());
    hasher.update(&cipher.to_le_bytes());
    hasher.update(key.expose());
    hasher.finalize()
}

impl KeyTable {
    /// Rises with every change.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Whether the server has its keys.
    pub(crate) fn lock(&self) -> Lock {
        match self.lock.load(Acquire) {
            0 => Lock::Open,
            1 => Lock::Locking,
            _ => Lock::Locked,
        }
    }

    /// Changes that.
    pub(crate) fn set_lock(&self, lock: Lock) {
        self.lock.store(lock as u32, Release);
        self.generation.fetch_add(1, Release);
    }

    /// The counters of a process.
    pub(crate) fn counters(&self, pid: u32) -> &Counters {
        &self.counters[pid as usize % SHARDS]
    }

    /// Sum of one counter over all processes.
    pub(crate) fn total(&self, pick: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        self.counters.iter().map(|shard| pick(shard).load(Relaxed)).sum()
    }

    /// All lines, oldest first.
    pub(crate) fn lines(&self) -> impl Iterator<Item = LineInfo> + '_ {
        let used = self.used.load(Acquire) as usize;
        self.entries[..used.min(MAX_ENTRIES)].iter().enumerate().filter_map(|(index, entry)| {
            // An entry without a cipher was never finished by the process that began it.
            let cipher = CipherId::try_from(u8::try_from(entry.cipher.load(Acquire)).ok()?).ok()?;
            Some(LineInfo {
                index,
                line: entry.line.load(Relaxed),
                version: entry.version.load(Relaxed),
                tablespace: entry.tablespace.load(Relaxed),
                cipher,
                span: entry.span(),
                awaited: entry.awaited.load(Relaxed) != 0,
            })
        })
    }

    /// The line that is in force for a tablespace now.
    pub(crate) fn active(&self, tablespace: u32) -> Option<LineInfo> {
        self.lines().find(|line| line.tablespace == tablespace && line.span.in_force())
    }

    /// Whether there is no room for another line.
    pub(crate) fn is_full(&self) -> bool {
        self.used.load(Acquire) as usize >= MAX_ENTRIES
    }

    /// What a tablespace is going through now; `None` when it is plain.
    pub(crate) fn state(&self, tablespace: u32) -> Option<State> {
        let (mut in_force, mut before) = (None, None);
        for line in self.lines().filter(|line| line.tablespace == tablespace && line.span.alive()) {
            match line.span.in_force() {
                true => in_force = Some(line),
                false => before = Some(line),
            }
        }
        let Some(line) = in_force else { return before.map(State::Decrypting) };
        Some(match (line.span.refuses_plain(NOW), before.is_some()) {
            (false, _) => State::Encrypting(line),
            (true, true) => State::Rotating(line),
            (true, false) => State::Encrypted(line),
        })
    }

    /// Adds a line. The caller holds the writers' lock.
    ///
    /// # Errors
    /// [`TableError::Full`]
    pub(crate) fn add(
        &self,
        line: u64,
        version: u32,
        tablespace: u32,
        cipher: CipherId,
        span: Span,
    ) -> Result<usize, TableError> {
        let index = self.used.load(Acquire) as usize;
        let entry = self.entries.get(index).ok_or(TableError::Full)?;
        self.used.store(index as u64 + 1, Release);
        entry.line.store(line, Relaxed);
        entry.version.store(version, Relaxed);
        entry.tablespace.store(tablespace, Relaxed);
        entry.set_span(span);
        entry.cipher.store(u32::from(cipher as u8), Release);
        self.generation.fetch_add(1, Release);
        Ok(index)
    }

    /// Adds a line of which only the manifest is known: from its position on nothing in its tablespace can be read or written before the
    /// WAL has brought it. The caller is alone.
    ///
    /// # Errors
    /// [`TableError::Full`]
    pub(crate) fn add_awaited(&self, line: u64, tablespace: u32, start: u64) -> Result<(), TableError> {
        let span = Span { start, strict: OPEN_END, closing: OPEN_END, end: OPEN_END };
        let index = self.add(line, 0, tablespace, CipherId::Aes256Hctr2, span)?;
        self.entries[index].awaited.store(1, Release);
        Ok(())
    }

    /// Fills in an awaited line. The caller holds the writers' lock.
    pub(crate) fn arrive(&self, line: LineInfo) {
        let entry = &self.entries[line.index];
        entry.version.store(line.version, Relaxed);
        entry.cipher.store(u32::from(line.cipher as u8), Relaxed);
        entry.awaited.store(0, Release);
        self.set_span(line.index, line.span);
    }

    /// Publishes the key of a line.
    pub(crate) fn set_dek(&self, index: usize, dek: &SecretBytes<32>) {
        let entry = &self.entries[index];
        store_words(&entry.dek, dek);
        let check = check_value(
            entry.line.load(Relaxed),
            entry.version.load(Relaxed),
            entry.cipher.load(Relaxed),
            dek,
        );
        entry.check.store(check, Relaxed);
        entry.dek_present.store(1, Release);
        self.generation.fetch_add(1, Release);
    }

    /// The key of a line, or `None` while nobody has unwrapped it.
    ///
    /// # Errors
    /// [`TableError::Corrupt`] when the bytes are not those that were published.
    pub(crate) fn dek(&self, index: usize) -> Result<Option<SecretBytes<32>>, TableError> {
        let entry = &self.entries[index];
        if entry.dek_present.load(Acquire) == 0 {
            return Ok(None);
        }
        let (line, version) = (entry.line.load(Relaxed), entry.version.load(Relaxed));
        let dek = load_words(&entry.dek);
        if check_value(line, version, entry.cipher.load(Relaxed), &dek) != entry.check.load(Relaxed) {
            if entry.dek_present.load(Acquire) == 0 {
                return Ok(None); // wiped meanwhile
            }
            return Err(TableError::Corrupt { line, version });
        }
        Ok(Some(dek))
    }

    /// Wipes the key of a line.
    pub(crate) fn forget_dek(&self, index: usize) {
        let entry = &self.entries[index];
        entry.dek_present.store(0, Release);
        // After everybody can see that.
        fence(SeqCst);
        entry.dek.iter().for_each(|word| word.store(0, Relaxed));
        entry.check.store(0, Relaxed);
        self.generation.fetch_add(1, Release);
    }

    /// Whether somebody has unwrapped the key of a line.
    pub(crate) fn has_dek(&self, index: usize) -> bool {
        self.entries[index].dek_present.load(Acquire) != 0
    }

    /// Changes from which WAL position to which a line counts. The caller holds the writers' lock.
    pub(crate) fn set_span(&self, index: usize, span: Span) {
        self.entries[index].set_span(span);
        self.generation.fetch_add(1, Release);
    }

    /// Where the redo began that this server went through last.
    pub(crate) fn recovery_from(&self) -> u64 {
        self.recovery_from.load(Acquire)
    }

    /// Whether that was at the label of a base backup, whose files may be newer than the keys that came with them.
    pub(crate) fn is_copied(&self) -> bool {
        self.copied.load(Acquire) != 0
    }

    /// Notes whether redo begins at the label of a base backup.
    pub(crate) fn set_copied(&self, copied: bool) {
        self.copied.store(copied.into(), Release);
    }

    /// Notes where redo is about to begin.
    pub(crate) fn set_recovery_from(&self, position: u64) {
        self.recovery_from.store(position, Release);
    }

    /// Whether the line is known to be in the WAL since the server started.
    pub(crate) fn is_logged(&self, index: usize) -> bool {
        self.entries[index].logged.load(Acquire) != 0
    }

    /// Remembers whether the line as it is was logged.
    pub(crate) fn set_logged(&self, index: usize, logged: bool) {
        self.entries[index].logged.store(u32::from(logged), Release);
    }

    /// Forgets what was logged: the process that logged it may have been killed half-way.
    pub(crate) fn forget_logged(&self) {
        self.entries.iter().for_each(|entry| entry.logged.store(0, Release));
    }

    /// Whether the lines are known to fit where recovery ended, or this server did not recover.
    pub(crate) fn is_compared(&self) -> bool {
        self.compared.load(Acquire) != 0
    }

    /// Remembers that they do, for the life of this server.
    pub(crate) fn set_compared(&self) {
        self.compared.store(1, Release);
    }

    /// Publishes the key of the keyring's seals.
    pub(crate) fn set_seal_key(&self, key: &SecretBytes<32>) {
        store_words(&self.seal, key);
        self.seal_present.store(1, Release);
    }

    /// Forgets the key of the keyring's seals: another keyring was adopted.
    pub(crate) fn forget_seal_key(&self) {
        self.seal_present.store(0, Release);
    }

    /// The key of the keyring's seals, once it is known.
    pub(crate) fn seal_key(&self) -> Option<SecretBytes<32>> {
        (self.seal_present.load(Acquire) != 0).then(|| load_words(&self.seal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM_100: Span = Span { start: 100, strict: 100, closing: OPEN_END, end: OPEN_END };

    #[test]
    fn the_state_of_a_tablespace_follows_from_its_keys() {
        let table = table();
        let name = || table.state(16400).map(State::name);
        assert_eq!(name(), None);
        let first = table.add(1, 1, 16400, CipherId::Aes256Hctr2, Span::UNUSED).expect("room");
        assert_eq!(name(), None);
        table.set_span(first, Span { strict: OPEN_END, ..FROM_100 });
        assert_eq!(name(), Some("encrypting"));
        table.set_span(first, FROM_100);
        assert_eq!(name(), Some("encrypted"));
        let second = table.add(1, 2, 16400, CipherId::Aes256Hctr2, Span::UNUSED).expect("room");
        assert_eq!(name(), Some("encrypted"));
        table.set_span(second, Span { start: 200, strict: 200, ..FROM_100 });
        table.set_span(first, Span { closing: 200, ..FROM_100 });
        assert_eq!(name(), Some("rotating"));
        assert_eq!(table.active(16400).map(|line| line.version), Some(2));
        table.set_span(first, Span { closing: 200, end: 300, ..FROM_100 });
        assert_eq!(name(), Some("encrypted"));
        let second_from = |closing, end| Span { start: 200, strict: 200, closing, end };
        table.set_span(second, second_from(400, OPEN_END));
        assert_eq!(name(), Some("decrypting"));
        let third = table.add(1, 3, 16400, CipherId::Aes256Hctr2, Span::UNUSED).expect("room");
        table.set_span(third, Span { start: 450, strict: OPEN_END, ..FROM_100 });
        assert_eq!(name(), Some("encrypting"));
        table.set_span(third, Span { start: 450, strict: OPEN_END, closing: 500, end: 600 });
        table.set_span(second, second_from(400, 600));
        assert_eq!(name(), None);
    }

    fn table() -> &'static KeyTable {
        crate::ffi::shared::key_table().expect("a mapping")
    }

    #[test]
    fn a_published_key_comes_back_and_a_stray_write_is_noticed() {
        let table = table();
        let dek = SecretBytes::random().expect("random");
        let index = table.add(7, 1, 16400, CipherId::Aes256Hctr2, FROM_100).expect("room");
        assert!(table.dek(index).expect("intact").is_none());
        table.set_dek(index, &dek);
        assert!(table.dek(index).expect("intact").expect("present").ct_eq(&dek));
        table.entries[index].dek[2].fetch_xor(1, Relaxed);
        assert_eq!(table.dek(index).err(), Some(TableError::Corrupt { line: 7, version: 1 }));
    }

    #[test]
    fn a_line_is_active_until_it_ends_and_every_change_raises_the_generation() {
        let table = table();
        let before = table.generation();
        let first = table.add(1, 1, 16400, CipherId::Aes256Hctr2, FROM_100).expect("room");
        assert!(table.generation() > before);
        table.set_span(first, Span { closing: 200, end: 200, ..FROM_100 });
        assert!(table.active(16400).is_none());
        table.add(2, 1, 16400, CipherId::Aes256Xts, FROM_100).expect("room");
        assert_eq!(table.active(16400).map(|line| line.line), Some(2));
        assert_eq!(table.lines().count(), 2);
    }

    #[test]
    fn an_entry_that_its_writer_never_finished_is_not_seen() {
        let table = table();
        table.used.store(1, Release);
        assert_eq!(table.lines().count(), 0);
    }

    #[test]
    fn a_full_table_is_an_error() {
        let table = table();
        for line in 0..MAX_ENTRIES as u64 {
            assert!(!table.is_full());
            table.add(line, 1, 1, CipherId::Aes256Hctr2, Span::UNUSED).expect("room");
        }
        assert!(table.is_full());
        assert_eq!(table.add(0, 1, 1, CipherId::Aes256Hctr2, Span::UNUSED), Err(TableError::Full));
    }
}
