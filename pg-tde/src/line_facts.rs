//! What a keyring record and the WAL say of the versions of a tablespace's key.

use keyring::{KeyVersion, LineNumber, Scope, ScopeKind, StateChange, TablespaceState, WalPosition};
use page_cipher::CipherId;

use crate::key_error::KeyError;
use crate::key_table::{KeyTable, LineInfo};
use crate::manifest::Named;
use crate::settings;
use crate::span::{OPEN_END, Span};

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

    /// Whether the table needs it in redo: not what ended before the record was written, which is for old backups only. A key that was rotated
    /// thousands of times would fill the table.
    pub(crate) fn concerns(&self, table: &KeyTable, position: u64) -> bool {
        let known = |line: LineInfo| self.is_of(&line) || line.awaited && line.line == self.line.0;
        self.span.end > position || table.lines().any(known)
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
    fn versions_that_ended_long_ago_do_not_fill_the_table_in_redo() {
        let table = shared::key_table().expect("a mapping");
        let versions = 2 * crate::key_table::MAX_ENTRIES as u32;
        let position = u64::from(versions) * 100;
        let mut added = 0;
        // A record of a line whose newest version is known, with every version that it ever had.
        let newest = LineFacts { version: KeyVersion(versions), ..facts(position - 100, OPEN_END) };
        newest.add_to(table).expect("room");
        for version in 1..=versions {
            let span = u64::from(version) * 100;
            let end = if version == versions { OPEN_END } else { span };
            let facts = LineFacts { version: KeyVersion(version), ..facts(span - 100, end) };
            if facts.concerns(table, position - 1) {
                facts.add_to(table).expect("room");
                added += 1;
            }
        }
        assert_eq!((added, table.lines().count()), (1, 1));
        // Redo that begins before a version ended needs it.
        assert!(LineFacts { version: KeyVersion(7), ..facts(600, 700) }.concerns(table, 699));
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
