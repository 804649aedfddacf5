//! What one server process knows: a view of the key table and the ciphers of the relations it touches.

use std::cell::RefCell;
use std::num::NonZeroUsize;

use lru::LruCache;
use page_cipher::CipherId;
use page_cipher::pg::{PAGE_SIZE, Page, RelationCipher};
use secret_mem::SecretBytes;

use crate::ffi::compat::RelationId;
use crate::ffi::server;
use crate::key_table::{KeyTable, LineInfo};
use crate::keys::{self, KeyError};
use crate::page_io::PageError;
use crate::span::{NOW, OPEN_END};

/// Expanded relation ciphers a process keeps: about 1 KiB of locked memory each.
const CIPHERS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// A page aligned for direct I/O.
#[repr(C, align(4096))]
pub(crate) struct AlignedPage(pub(crate) Page);

/// Which key a cipher was made from.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum CipherKey {
    /// A line of the table.
    Line { index: usize, database: u32, number: u32 },
    /// The ephemeral key of this session.
    Temporary { database: u32, number: u32 },
}

/// How the pages of a relation are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Regime {
    /// As PostgreSQL writes them.
    Plain,
    /// In clear over pages that may be encrypted: with a checksum in any case, so that a torn page is told from a whole one.
    Decrypting,
    /// Under a line of the key table.
    Line(LineInfo),
    /// Under the ephemeral key of this session: a temporary relation in an encrypted tablespace.
    Temporary,
}

/// What a page of a relation may be when it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// What this says and nothing else.
    Only(Regime),
    /// Any of these, or in clear if `plain`: pages are being rewritten, or recovery is not yet where the files are.
    AnyOf {
        /// Not [`Regime::Plain`]; the likeliest first.
        regimes: Vec<Regime>,
        /// In clear as well.
        plain: bool,
        /// The tablespace was encrypted and is being decrypted: pages in clear were written with a checksum.
        decrypting: bool,
    },
}

/// The state of one process.
pub(crate) struct Process {
    pub(crate) table: &'static KeyTable,
    /// Pages are encrypted here, never in the server's buffer: it may change while it is written.
    pub(crate) scratch: Box<AlignedPage>,
    generation: u64,
    lines: Vec<LineInfo>,
    ciphers: LruCache<CipherKey, RelationCipher>,
    temporary_key: Option<SecretBytes<32>>,
    /// Tablespaces that were encrypted when this process began: none of its temporary pages there are in clear.
    encrypted_before: Vec<u32>,
    recovery_over: bool,
    pub(crate) data_checksums: bool,
    pub(crate) pid: u32,
}

thread_local! {
    static PROCESS: RefCell<Option<Process>> = const { RefCell::new(None) };
}

impl Process {
    fn new(table: &'static KeyTable) -> Self {
        // The kernel does not pass memory locks on to a child.
        secret_mem::relock_after_fork();
        Self {
            table,
            scratch: Box::new(AlignedPage([0; PAGE_SIZE])),
            generation: u64::MAX,
            lines: Vec::new(),
            ciphers: LruCache::new(CIPHERS),
            temporary_key: None,
            encrypted_before: in_force(table.lines()),
            recovery_over: false,
            data_checksums: server::data_checksums(),
            pid: server::pid(),
        }
    }

    /// Runs `work` with the state of this process, making it on first use.
    ///
    /// `work` must not call anything that may read or write a page.
    pub(crate) fn with<R>(table: &'static KeyTable, work: impl FnOnce(&mut Process) -> R) -> R {
        PROCESS.with_borrow_mut(|slot| {
            if slot.as_ref().is_none_or(|process| process.pid != server::pid()) {
                *slot = Some(Process::new(table));
            }
            work(slot.as_mut().expect("made above"))
        })
    }

    /// Wipes what this process derived from keys that are not in the table any more, if it has a state and nobody uses it. Called when the
    /// server closes a file, which every process does at a barrier. Processes that write for others, and may have no file open
    /// at the next barrier, keep nothing over a closing.
    pub(crate) fn wipe_here() {
        // Not while a page is opened or sealed; and at the end of a process it may be gone.
        let _skipped = PROCESS.try_with(|slot| {
            if let Ok(mut slot) = slot.try_borrow_mut()
                && let Some(process) = slot.as_mut().filter(|process| process.pid == server::pid())
            {
                process.refresh();
                if server::writes_for_others() {
                    process.ciphers.clear();
                }
            }
        });
    }

    fn refresh(&mut self) {
        let generation = self.table.generation();
        if generation != self.generation {
            self.lines.clear();
            self.lines.extend(self.table.lines());
            self.forget_wiped();
            self.generation = generation;
        }
    }

    /// Drops ciphers whose key was wiped from the table.
    fn forget_wiped(&mut self) {
        let table = self.table;
        let wiped = |key: &CipherKey| matches!(*key, CipherKey::Line { index, .. } if !table.has_dek(index));
        let keys: Vec<_> = self.ciphers.iter().map(|(key, _)| *key).filter(wiped).collect();
        for key in &keys {
            self.ciphers.pop(key);
        }
    }

    fn recovery_in_progress(&mut self) -> bool {
        if !self.recovery_over {
            self.recovery_over = !server::recovery_in_progress();
        }
        !self.recovery_over
    }

    /// How the pages of a relation are written now; in recovery: at the position that is being replayed.
    ///
    /// The state of a tablespace is a history by WAL position, not a value: recovery starts before
    /// changes that the keyring already knows of.
    ///
    /// # Errors
    /// When the keyring knows changes from after the end of recovery.
    pub(crate) fn regime(&mut self, id: RelationId) -> Result<Regime, KeyError> {
        self.refresh();
        if !self.lines.iter().any(|line| line.tablespace == id.tablespace) {
            return Ok(Regime::Plain);
        }
        let position = self.replay_position()?;
        Ok(self.regime_at(id, position))
    }

    /// `None` when nothing is replayed.
    fn replay_position(&mut self) -> Result<Option<u64>, KeyError> {
        if self.recovery_in_progress() {
            return Ok(Some(server::replay_position()));
        }
        keys::ensure_compared(self.table)?;
        Ok(None)
    }

    fn regime_at(&self, id: RelationId, position: Option<u64>) -> Regime {
        match (line_at(&self.lines, id.tablespace, position), id.temporary) {
            (None, false) if is_decrypting(&self.lines, id.tablespace, position.unwrap_or(NOW)) => {
                Regime::Decrypting
            }
            (None, _) => Regime::Plain,
            (Some(_), true) => Regime::Temporary,
            (Some(line), false) => Regime::Line(line),
        }
    }

    /// What a page of a relation may be that is read now.
    ///
    /// # Errors
    /// As [`Self::regime`].
    pub(crate) fn reading(&mut self, id: RelationId) -> Result<Reading, KeyError> {
        self.refresh();
        let early = server::in_redo() && !server::reached_consistency();
        if !self.lines.iter().any(|line| line.tablespace == id.tablespace) {
            // Files of a base backup may be newer than the keys that came with it; the WAL brings both the keys and the pages.
            let copied = early && self.table.is_copied();
            let any = Reading::AnyOf { regimes: Vec::new(), plain: true, decrypting: false };
            return Ok(if copied { any } else { Reading::Only(Regime::Plain) });
        }
        let position = self.replay_position()?;
        let regime = self.regime_at(id, position);
        if id.temporary {
            let plain = regime == Regime::Plain || !self.encrypted_before.contains(&id.tablespace);
            if !plain {
                return Ok(Reading::Only(regime));
            }
            let regimes = Vec::from_iter(self.temporary_key.as_ref().map(|_| Regime::Temporary));
            return Ok(Reading::AnyOf { regimes, plain, decrypting: false });
        }
        // Files are newer than what is replayed, as long as the data is not consistent.
        if early {
            let from = self.table.recovery_from();
            return Ok(before_consistency(&self.lines, id.tablespace, regime, from));
        }
        Ok(readable(&self.lines, id.tablespace, regime, position.unwrap_or(NOW)))
    }

    /// The cipher of a relation and the page to use it in, or `None` when the key of its line has yet to be
    /// unwrapped.
    ///
    /// # Errors
    /// When the key in shared memory is damaged, or the operating system has no randomness.
    pub(crate) fn cipher(
        &mut self,
        id: RelationId,
        regime: Regime,
    ) -> Result<Option<(&RelationCipher, &mut Page)>, PageError> {
        let key = match regime {
            Regime::Plain | Regime::Decrypting => return Ok(None),
            Regime::Line(line) => {
                CipherKey::Line { index: line.index, database: id.database, number: id.number }
            }
            Regime::Temporary => CipherKey::Temporary { database: id.database, number: id.number },
        };
        if !self.ciphers.contains(&key) {
            let cipher = match regime {
                Regime::Line(line) => {
                    let Some(dek) = self.table.dek(line.index)? else { return Ok(None) };
                    RelationCipher::new(line.cipher, &dek, id.database, id.number)?
                }
                _ => {
                    let dek = match self.temporary_key.take() {
                        Some(dek) => dek,
                        None => SecretBytes::random()?,
                    };
                    let dek = self.temporary_key.insert(dek);
                    RelationCipher::new(CipherId::Aes256Hctr2, dek, id.database, id.number)?
                }
            };
            self.ciphers.put(key, cipher);
        }
        Ok(self.ciphers.get(&key).map(|cipher| (cipher, &mut self.scratch.0)))
    }
}

/// The tablespaces that are encrypted now.
fn in_force(lines: impl Iterator<Item = LineInfo>) -> Vec<u32> {
    lines.filter(|line| line.span.in_force()).map(|line| line.tablespace).collect()
}

/// The key that pages of a tablespace are written under: now, or at a replay position.
fn line_at(lines: &[LineInfo], tablespace: u32, position: Option<u64>) -> Option<LineInfo> {
    let at = position.unwrap_or(NOW);
    lines.iter().copied().find(|line| line.tablespace == tablespace && line.span.writes(at))
}

/// Whether pages of a tablespace are written in clear at a position, over pages that may be encrypted.
fn is_decrypting(lines: &[LineInfo], tablespace: u32, position: u64) -> bool {
    let of_it = |line: &&LineInfo| line.tablespace == tablespace && line.span.reads(position);
    let mut of_it = lines.iter().filter(of_it).peekable();
    of_it.peek().is_some() && of_it.all(|line| !line.span.writes(position))
}

/// `regimes` and `plain`, with the one that is written goes first.
fn any_of(mut lines: Vec<LineInfo>, written: Regime, plain: bool) -> Reading {
    // Pages of a tablespace that was never encrypted as a whole are from before, and may have none.
    let decrypting = written == Regime::Decrypting && lines.iter().any(|line| line.span.strict != OPEN_END);
    lines.sort_by_key(|line| written != Regime::Line(*line));
    let regimes: Vec<_> = lines.into_iter().map(Regime::Line).collect();
    match (regimes.as_slice(), plain) {
        ([only], false) => Reading::Only(*only),
        ([], true) => Reading::Only(Regime::Plain),
        _ => Reading::AnyOf { regimes, plain, decrypting },
    }
}

/// What the files hold at a position at which the data is consistent.
fn readable(lines: &[LineInfo], tablespace: u32, written: Regime, at: u64) -> Reading {
    let mut of_it = lines.iter().copied().filter(|line| line.tablespace == tablespace && line.span.reads(at));
    let first = of_it.next();
    let only = of_it.next().is_none();
    // Nearly always, so without allocation.
    match first {
        None => return Reading::Only(Regime::Plain),
        Some(line) if only && line.span.refuses_plain(at) => return Reading::Only(Regime::Line(line)),
        Some(_) => (),
    }
    let of_it = lines.iter().copied().filter(|line| line.tablespace == tablespace && line.span.reads(at));
    let of_it: Vec<_> = of_it.collect();
    let plain = !of_it.iter().any(|line| line.span.refuses_plain(at));
    any_of(of_it, written, plain)
}

/// Redo began at `from`, with files that hold what was written later: under every key the tablespace had since, and in clear
/// unless plain pages were refused all the time.
fn before_consistency(lines: &[LineInfo], tablespace: u32, written: Regime, from: u64) -> Reading {
    let of_it = || lines.iter().copied().filter(|line| line.tablespace == tablespace && line.span.end != 0);
    let mut refused_to = from;
    while let Some(line) = of_it().find(|line| line.span.refuses_plain(refused_to)) {
        refused_to = line.span.closing;
    }
    // One that has yet to come counts from its own position on only, where nothing can do without it.
    let has_come = |line: &LineInfo| !line.awaited || written == Regime::Line(*line);
    let candidates = of_it().filter(|line| from < line.span.end && has_come(line)).collect();
    match any_of(candidates, written, refused_to != OPEN_END) {
        // Not a page that the server should see as it is: the WAL may bring the key.
        Reading::Only(Regime::Plain) => {
            Reading::AnyOf { regimes: Vec::new(), plain: true, decrypting: false }
        }
        reading => reading,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::Span;

    fn line(index: usize, start: u64, end: u64) -> LineInfo {
        let (line, version, tablespace) = (index as u64 + 1, 1, 16400);
        LineInfo {
            index,
            line,
            version,
            tablespace,
            cipher: CipherId::Aes256Hctr2,
            span: Span { start, strict: start, closing: end, end },
            awaited: false,
        }
    }

    #[test]
    fn the_line_in_force_depends_on_the_position_that_is_replayed() {
        let lines = [line(0, 100, 200), line(1, 300, OPEN_END)];
        let at = |position| line_at(&lines, 16400, position).map(|line| line.index);
        assert_eq!(at(Some(99)), None);
        assert_eq!(at(Some(100)), Some(0));
        assert_eq!(at(Some(199)), Some(0));
        assert_eq!(at(Some(200)), None);
        assert_eq!(at(Some(300)), Some(1));
        assert_eq!(at(None), Some(1));
        assert_eq!(line_at(&lines, 1663, None), None);
    }

    #[test]
    fn before_consistency_a_page_may_be_what_any_later_state_left() {
        let strict = line(0, 100, OPEN_END);
        let converting = LineInfo { span: Span { strict: OPEN_END, ..strict.span }, ..strict };
        let converted = LineInfo { span: Span { strict: 150, ..strict.span }, ..strict };
        let at = |line: LineInfo, from| before_consistency(&[line], 16400, Regime::Plain, from);
        let under = Regime::Line;
        let or_plain = |line| Reading::AnyOf { regimes: vec![under(line)], plain: true, decrypting: false };
        assert_eq!(at(strict, 100), Reading::Only(under(strict)));
        assert_eq!(at(strict, 99), or_plain(strict));
        assert_eq!(at(converting, 120), or_plain(converting));
        assert_eq!(at(converted, 120), or_plain(converted));
        assert_eq!(at(converted, 150), Reading::Only(under(converted)));
        // The OID came back after a drop: the line of the position goes first.
        let (old, new) = (line(0, 100, 200), line(1, 300, OPEN_END));
        let both = before_consistency(&[old, new], 16400, under(new), 250);
        assert_eq!(both, or_plain(new));
        let both = before_consistency(&[old, new], 16400, under(new), 150);
        assert_eq!(
            both,
            Reading::AnyOf { regimes: vec![under(new), under(old)], plain: true, decrypting: false }
        );
        assert_eq!(
            before_consistency(&[], 16400, Regime::Plain, 0),
            Reading::AnyOf { regimes: vec![], plain: true, decrypting: false }
        );
    }

    #[test]
    fn while_keys_change_a_page_may_be_under_either_and_never_in_clear() {
        let first =
            LineInfo { span: Span { start: 100, strict: 150, closing: 200, end: 300 }, ..line(0, 0, 0) };
        let second = LineInfo { version: 2, ..line(1, 200, OPEN_END) };
        let lines = [first, second];
        let at = |position| {
            let written = line_at(&lines, 16400, Some(position)).map_or(Regime::Plain, Regime::Line);
            readable(&lines, 16400, written, position)
        };
        let (one, two) = (Regime::Line(first), Regime::Line(second));
        assert_eq!(at(99), Reading::Only(Regime::Plain));
        let any = |regimes: &[Regime], plain| Reading::AnyOf {
            regimes: regimes.to_vec(),
            plain,
            decrypting: false,
        };
        assert_eq!(at(149), any(&[one], true));
        assert_eq!(at(199), Reading::Only(one));
        assert_eq!(at(200), any(&[two, one], false));
        assert_eq!(at(299), any(&[two, one], false));
        assert_eq!(at(300), Reading::Only(two));
        let early = |from| before_consistency(&lines, 16400, one, from);
        assert_eq!(early(120), any(&[one, two], true));
        assert_eq!(early(160), any(&[one, two], false));
        assert_eq!(early(300), Reading::Only(two));
    }
    #[test]
    fn while_a_tablespace_is_decrypted_a_page_may_be_in_clear_and_afterwards_it_must() {
        let span = Span { start: 100, strict: 150, closing: 200, end: 300 };
        let line = LineInfo { span, ..line(0, 0, 0) };
        let lines = [line];
        let under = Regime::Line(line);
        let at = |position| {
            let decrypting = is_decrypting(&lines, 16400, position);
            let plain = if decrypting { Regime::Decrypting } else { Regime::Plain };
            let written = line_at(&lines, 16400, Some(position)).map_or(plain, Regime::Line);
            (written, readable(&lines, 16400, written, position))
        };
        let either = Reading::AnyOf { regimes: vec![under], plain: true, decrypting: true };
        assert_eq!(at(199), (under, Reading::Only(under)));
        assert_eq!(at(200), (Regime::Decrypting, either.clone()));
        assert_eq!(at(299), (Regime::Decrypting, either));
        assert_eq!(at(300), (Regime::Plain, Reading::Only(Regime::Plain)));
        let early = |from| before_consistency(&lines, 16400, Regime::Plain, from);
        assert_eq!(early(160), Reading::AnyOf { regimes: vec![under], plain: true, decrypting: false });
        assert!(!is_decrypting(&lines, 1663, 250));
        // Encrypted again before it was plain.
        let first = LineInfo { span: Span { end: OPEN_END, ..span }, ..line };
        let again = Span { start: 250, strict: OPEN_END, closing: OPEN_END, end: OPEN_END };
        let both = [first, LineInfo { version: 2, index: 1, span: again, ..line }];
        assert!(is_decrypting(&both, 16400, 249) && !is_decrypting(&both, 16400, 250));
    }
}
