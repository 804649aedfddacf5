//! Which byte of a journal belongs to what.

use crate::format::journal::{Geometry, Header, TO_END};

/// Who handles the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Whoever wrote the header at 0.
    Writer,
    /// Whoever rolls back somebody else's journal.
    Reader,
}

/// The segments that are known.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) geometry: Geometry,
    pub(super) role: Role,
    /// Nonce of the header at 0.
    pub(super) first_nonce: u32,
    /// In the order of their offsets, never empty.
    segments: Vec<Segment>,
    /// Where the super-journal's name begins; all that follows is SQLite's own.
    tail: Option<u64>,
}

/// A header and its records.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) start: u64,
    pub(super) header: Header,
    /// Writer: how many records it has written here. Reader: how many were counted.
    pub(super) records: u32,
}

/// What lies at an offset. `start` is the offset of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// The first byte of a header.
    Header,
    /// The sector of a header, behind its first byte.
    HeaderSector,
    /// The first byte of a record, its page number. `kept`: the record must be there as it was written.
    Number { start: u64, kept: bool },
    /// The first byte of a record's page.
    Page { start: u64, kept: bool },
    /// The first byte of a record's checksum.
    Checksum { start: u64 },
    /// Anything else.
    Elsewhere,
}

impl Layout {
    /// A journal whose header at 0 is `header`.
    pub(super) fn new(role: Role, header: Header) -> Self {
        let mut layout = Self {
            geometry: header.geometry(),
            role,
            first_nonce: header.nonce(),
            segments: Vec::new(),
            tail: None,
        };
        layout.push(0, header);
        layout
    }

    /// One more segment, behind all others.
    pub(super) fn push(&mut self, start: u64, header: Header) {
        let records = if self.role == Role::Writer { 0 } else { header.count() };
        self.segments.push(Segment { start, header, records });
    }

    /// The segment that is being written or read.
    pub(super) fn last(&self) -> &Segment {
        self.segments.last().expect("a layout begins with a segment")
    }

    /// The segment that is being written or read.
    pub(super) fn last_mut(&mut self) -> &mut Segment {
        self.segments.last_mut().expect("a layout begins with a segment")
    }

    /// Where the next segment would begin.
    pub(super) fn next_header(&self) -> u64 {
        let Segment { start, records, .. } = *self.last();
        self.geometry.header_after(self.geometry.record_at(start, records))
    }

    /// Where the next record would begin.
    pub(super) fn next_record(&self) -> u64 {
        let Segment { start, records, .. } = *self.last();
        self.geometry.record_at(start, records)
    }

    /// The super-journal's name begins here.
    pub(super) fn begin_tail(&mut self, offset: u64) {
        self.tail = Some(offset);
    }

    /// Whether `offset` lies in or behind the super-journal's name.
    pub(super) fn is_tail(&self, offset: u64) -> bool {
        self.tail.is_some_and(|tail| offset >= tail)
    }

    /// Nonce of the checksum of the record at `start`.
    pub(super) fn nonce_at(&self, start: u64) -> u32 {
        self.segment_of(start).map_or(self.first_nonce, |segment| segment.header.nonce())
    }

    fn segment_of(&self, offset: u64) -> Option<&Segment> {
        let behind = self.segments.partition_point(|segment| segment.start <= offset);
        behind.checked_sub(1).and_then(|at| self.segments.get(at))
    }

    /// What lies at `offset`.
    pub(super) fn spot(&self, offset: u64) -> Spot {
        if self.is_tail(offset) {
            return Spot::Elsewhere;
        }
        let Some(segment) = self.segment_of(offset) else {
            return Spot::Elsewhere;
        };
        if offset == segment.start {
            return Spot::Header;
        }
        let Some(within) = (offset - segment.start).checked_sub(u64::from(self.geometry.sector)) else {
            return Spot::HeaderSector;
        };
        let record_len = self.geometry.record_len();
        let (index, byte) = (within / record_len, within % record_len);
        let counted = index < u64::from(segment.records);
        let kept = match self.role {
            Role::Writer => counted,
            Role::Reader if counted => segment.header.is_synced() && segment.header.count() != TO_END,
            Role::Reader => return Spot::Elsewhere,
        };
        let start = offset - byte;
        match byte {
            0 => Spot::Number { start, kept },
            4 => Spot::Page { start, kept },
            byte if byte == record_len - 4 => Spot::Checksum { start },
            _ => Spot::Elsewhere,
        }
    }
}
