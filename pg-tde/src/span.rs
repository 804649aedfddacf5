//! From where to where in the WAL a version of a tablespace's key counts.

/// WAL position that no record reaches: the end of what has not ended.
pub(crate) const OPEN_END: u64 = u64::MAX;
/// After every WAL position there is, and before [`OPEN_END`].
pub(crate) const NOW: u64 = u64::MAX - 1;

/// The WAL positions between which a version of a line's key counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// From here on pages are written under it.
    pub(crate) start: u64,
    /// From here on there is no plain page left; [`OPEN_END`] while a job rewrites them.
    pub(crate) strict: u64,
    /// From here on pages are written in another way; [`OPEN_END`] while it is in force.
    pub(crate) closing: u64,
    /// From here on no page is under it, or the tablespace was dropped. [`OPEN_END`] before, 0 for a key that was never put to use.
    pub(crate) end: u64,
}

impl Span {
    /// Of a key that was made and never put to use.
    pub(crate) const UNUSED: Self = Self { start: 0, strict: 0, closing: 0, end: 0 };

    /// Whether pages are written under it at a position.
    pub(crate) fn writes(&self, position: u64) -> bool {
        self.start <= position && position < self.closing
    }

    /// Whether pages may be under it at a position.
    pub(crate) fn reads(&self, position: u64) -> bool {
        self.start <= position && position < self.end
    }

    /// Whether plain pages are refused at a position.
    pub(crate) fn refuses_plain(&self, position: u64) -> bool {
        self.strict <= position && position < self.closing
    }

    /// Whether a record that was logged after `position` should say more: a change before that is always in it, unless this span is of a
    /// timeline that was abandoned.
    pub(crate) fn is_unknown_to(&self, record: Self, position: u64) -> bool {
        // Made, and not put to use as far as is known here.
        if self.end == 0 {
            return false;
        }
        if record.end == 0 {
            return self.start < position;
        }
        let changes = [(self.strict, record.strict), (self.closing, record.closing), (self.end, record.end)];
        changes.into_iter().any(|(ours, theirs)| ours < position && theirs == OPEN_END)
    }

    /// Whether pages are written under it now.
    pub(crate) fn in_force(&self) -> bool {
        self.writes(NOW)
    }

    /// Whether pages may be under it now.
    pub(crate) fn alive(&self) -> bool {
        self.reads(NOW)
    }

    /// The last position that is known to it.
    pub(crate) fn last(&self) -> u64 {
        let all = [self.start, self.strict, self.closing, self.end];
        all.into_iter().filter(|&at| at != OPEN_END).max().unwrap_or(0)
    }

    /// What is known after another record of the key, which may be older or newer: nothing is taken back.
    /// `None` when they are not of the same key, or know different positions of the same change: one is of another timeline.
    pub(crate) fn merged(self, other: Self) -> Option<Self> {
        // Not a comparison with `UNUSED`: a process may have been killed half-way.
        if self.end == 0 || other.end == 0 {
            return Some(if self.end == 0 { other } else { self });
        }
        let merge = |ours: u64, theirs: u64| {
            (ours == theirs || ours == OPEN_END || theirs == OPEN_END).then(|| ours.min(theirs))
        };
        Some(Self {
            start: merge(self.start, other.start)?,
            strict: merge(self.strict, other.strict)?,
            closing: merge(self.closing, other.closing)?,
            end: merge(self.end, other.end)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM_100: Span = Span { start: 100, strict: 100, closing: OPEN_END, end: OPEN_END };

    #[test]
    fn records_of_a_line_in_any_order_give_the_same_span() {
        let converting = Span { strict: OPEN_END, ..FROM_100 };
        let strict = Span { strict: 150, ..FROM_100 };
        let rotating = Span { closing: 170, ..strict };
        let ended = Span { end: 200, ..rotating };
        let stages = [Span::UNUSED, converting, strict, rotating, ended];
        for (later, expected) in stages.iter().enumerate() {
            for earlier in &stages[..later] {
                assert_eq!(earlier.merged(*expected), Some(*expected));
                assert_eq!(expected.merged(*earlier), Some(*expected));
            }
        }
        assert_eq!(converting.merged(Span { start: 101, ..converting }), None);
        assert_eq!(ended.merged(Span { end: 201, ..ended }), None);
        assert_eq!(strict.merged(Span { strict: 151, ..strict }), None);
        assert!(!ended.is_unknown_to(rotating, 200) && ended.is_unknown_to(rotating, 201));
        assert!(!ended.is_unknown_to(strict, 170) && ended.is_unknown_to(strict, 171));
        assert!(
            !Span::UNUSED.is_unknown_to(converting, 1000) && !Span::UNUSED.is_unknown_to(Span::UNUSED, 1000)
        );
        assert!(!ended.is_unknown_to(ended, 1000) && !rotating.is_unknown_to(ended, 1000));
        assert!(!ended.is_unknown_to(Span::UNUSED, 100) && ended.is_unknown_to(Span::UNUSED, 101));
        assert_eq!(stages.map(|span| span.in_force()), [false, true, true, false, false]);
        assert_eq!(stages.map(|span| span.alive()), [false, true, true, true, false]);
        assert_eq!(stages.map(|span| span.last()), [0, 100, 150, 170, 200]);
    }
}
