//! What one server process knows: a view of the key table and the ciphers of the relations it touches.

use std::cell::RefCell;
use std::num::NonZeroUsize;

use lru::LruCache;
use page_cipher::CipherId;
use page_cipher::pg::{PAGE_SIZE, Page, RelationCipher};
use secret_mem::SecretBytes;

use crate::ffi::compat::RelationId;
use crate::ffi::server;
use crate::key_table::{KeyTable, LineInfo, OPEN_END};
use crate::keys::{self, KeyError};
use crate::page_io::PageError;

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

/// How the pages of a relation are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Regime {
    /// As PostgreSQL writes them.
    Plain,
    /// Under a line of the key table.
    Line(LineInfo),
    /// Under the ephemeral key of this session: a temporary relation in an encrypted tablespace.
    Temporary,
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

    fn refresh(&mut self) {
        let generation = self.table.generation();
        if generation != self.generation {
            self.lines.clear();
            self.lines.extend(self.table.lines());
            self.generation = generation;
        }
    }

    fn recovery_in_progress(&mut self) -> bool {
        if !self.recovery_over {
            self.recovery_over = !server::recovery_in_progress();
        }
        !self.recovery_over
    }

    /// How the pages of a relation are stored now; in recovery: at the position that is being replayed.
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
        let position = if self.recovery_in_progress() {
            Some(server::replay_position())
        } else {
            keys::ensure_compared(self.table)?;
            None
        };
        Ok(match (line_at(&self.lines, id.tablespace, position), id.temporary) {
            (None, _) => Regime::Plain,
            (Some(_), true) => Regime::Temporary,
            (Some(line), false) => Regime::Line(line),
        })
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
            Regime::Plain => return Ok(None),
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

/// The line in force for a tablespace: now, or at a replay position.
fn line_at(lines: &[LineInfo], tablespace: u32, position: Option<u64>) -> Option<LineInfo> {
    lines.iter().copied().find(|line| {
        line.tablespace == tablespace
            && match position {
                None => line.end == OPEN_END,
                Some(at) => line.start <= at && at < line.end,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(index: usize, start: u64, end: u64) -> LineInfo {
        let (line, version, tablespace) = (index as u64 + 1, 1, 16400);
        LineInfo {
            index,
            line,
            version,
            tablespace,
            cipher: CipherId::Aes256Hctr2,
            start,
            end,
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
}
