//! Reading and extending the chain.
//!
//! The log is a row of segments `audit.00000001`, `audit.00000002`, ...; a new one begins when the last has reached 1 MiB,
//! so that somebody without a key finds the end by reading at most one of them. Appending happens under the store's lock.
//!
//! # What a crash leaves
//! An append that was cut short leaves the beginning of a record at the end of the last segment. Whoever appends next
//! drops it and logs that. Only bytes that can be such a beginning are dropped: a record that is damaged with others after
//! it is an error. Whoever has a key begins reading at the anchor, so that what was complete when the root was
//! written is never mistaken for a crash.

use super::record::{MAX_RECORD, NoRecord, Parsed};
use super::{AuditError, AuditKey, AuditReport, Event, Outcome, Record};
use crate::format::records::{Anchor, LogStart};
use crate::store::{ObjectName, Store, StoreError};
use crate::time::Timestamp;

/// Length at which a new segment begins, in bytes.
pub(crate) const SEGMENT: u64 = 1 << 20;

/// Where the chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The last record.
    pub(crate) anchor: Anchor,
    pub(crate) boots: u32,
    /// Segment with the end of the log.
    segment: u32,
    /// End of the last whole record in that segment.
    end: u64,
    /// Bytes of an incomplete record after it.
    torn: u64,
}

/// Where to begin reading, and what must be there.
pub(crate) enum Start {
    /// Where the chain begins.
    Chain(LogStart),
    /// At the record the root knows.
    Anchor(Anchor),
    /// At the first record of a segment, taken as it is.
    Segment(u32),
}

/// How long the log was at one moment, so that a reader can ignore what is appended meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Snapshot {
    segment: u32,
    len: u64,
}

impl Snapshot {
    /// The length now; call it under the store's lock.
    pub(crate) fn take(store: &dyn Store) -> Result<Self, AuditError> {
        let segment = last_segment(store)?;
        Ok(Self { segment, len: store.log_len(&segment_name(segment)?)?.unwrap_or(0) })
    }
}

/// Something to log.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) user: String,
    pub(crate) event: Event,
    pub(crate) outcome: Outcome,
}

impl Entry {
    pub(crate) fn ok(user: &str, event: Event) -> Self {
        Self { user: user.into(), event, outcome: Outcome::Ok }
    }
}

fn segment_name(segment: u32) -> Result<ObjectName, StoreError> {
    ObjectName::new(format!("audit.{segment:08}"))
}

fn file_name(segment: u32) -> String {
    format!("audit.{segment:08}.log")
}

/// Number of the last segment.
fn last_segment(store: &dyn Store) -> Result<u32, AuditError> {
    let number = |name: &ObjectName| name.as_str().strip_prefix("audit.")?.parse().ok();
    let last = store.logs()?.iter().filter_map(number).max();
    last.ok_or_else(|| AuditError::Missing { segment: file_name(1) })
}

/// The end of the chain for somebody without a key: reads the last segment, or the one before if that has no record.
pub(crate) fn tail_without_key(store: &dyn Store) -> Result<Tail, AuditError> {
    let last = last_segment(store)?;
    match walk(store, None, &Start::Segment(last), None, &mut |_| {}) {
        Err(AuditError::Truncated { found: 0, .. } | AuditError::Torn { .. }) if last > 1 => {
            walk(store, None, &Start::Segment(last - 1), None, &mut |_| {})
        }
        other => other,
    }
}

/// Reads the chain from `start` to its end (or the snapshot's), checks it and shows each record to `visit`.
///
/// With a key the MACs are checked too. An incomplete record at the end is noted in the [`Tail`].
pub(crate) fn walk(
    store: &dyn Store,
    key: Option<&AuditKey>,
    start: &Start,
    until: Option<Snapshot>,
    visit: &mut dyn FnMut(&Record),
) -> Result<Tail, AuditError> {
    let (mut segment, mut from) = match start {
        Start::Chain(s) => (s.segment, 0),
        Start::Anchor(a) => (a.segment, a.offset),
        Start::Segment(n) => (*n, 0),
    };
    let first_segment = segment;
    let last_segment = until.map_or_else(|| last_segment(store), |u| Ok(u.segment))?;
    let mut tail: Option<Tail> = None;
    let mut torn = None;
    loop {
        let bytes = read_segment(store, segment, from, until)?;
        let mut pos = 0;
        while pos < bytes.len() {
            let rest = &bytes[pos..];
            let offset = from + pos as u64;
            let expected = tail.map(|t| t.anchor.sequence.saturating_add(1));
            let parsed = match Parsed::parse(rest) {
                Ok(parsed) => parsed,
                Err(why) => {
                    if segment == last_segment && may_be_torn(rest, why, key.is_some()) {
                        torn = Some((segment, offset, rest.len() as u64));
                        break;
                    }
                    return Err(AuditError::Damaged {
                        segment: file_name(segment),
                        offset,
                        sequence: expected.unwrap_or_else(|| first_sequence(start)),
                        what: match why {
                            NoRecord::Incomplete => "it is incomplete",
                            NoRecord::Damaged(what) => what,
                        },
                    });
                }
            };
            check(&parsed, tail.as_ref(), start, key, segment, offset)?;
            visit(&parsed.record);
            pos += parsed.len;
            tail = Some(Tail {
                anchor: Anchor { segment, offset, sequence: parsed.record.sequence, hash: parsed.hash },
                boots: parsed.record.boots,
                segment,
                end: from + pos as u64,
                torn: 0,
            });
        }
        if segment >= last_segment {
            break;
        }
        segment += 1;
        from = 0;
    }
    finish(tail, torn, start, first_segment)
}

fn finish(
    tail: Option<Tail>,
    torn: Option<(u32, u64, u64)>,
    start: &Start,
    first_segment: u32,
) -> Result<Tail, AuditError> {
    match (tail, torn) {
        (Some(mut tail), Some((segment, end, torn))) => {
            (tail.segment, tail.end, tail.torn) = (segment, end, torn);
            Ok(tail)
        }
        (Some(tail), None) => Ok(tail),
        (None, Some((segment, _, bytes))) if matches!(start, Start::Segment(_)) => {
            Err(AuditError::Torn { segment: file_name(segment), bytes })
        }
        (None, _) => {
            let expected = first_sequence(start);
            Err(AuditError::Truncated {
                segment: file_name(first_segment),
                expected,
                found: expected.saturating_sub(1),
            })
        }
    }
}

fn first_sequence(start: &Start) -> u64 {
    match start {
        Start::Anchor(a) => a.sequence,
        Start::Chain(s) => s.sequence,
        Start::Segment(_) => 1,
    }
}

fn read_segment(
    store: &dyn Store,
    segment: u32,
    from: u64,
    until: Option<Snapshot>,
) -> Result<Vec<u8>, AuditError> {
    let name = segment_name(segment)?;
    if store.log_len(&name)?.is_none() {
        return Err(AuditError::Missing { segment: file_name(segment) });
    }
    let mut bytes = store.log_read(&name, from)?;
    if let Some(u) = until.filter(|u| u.segment == segment) {
        // What is beyond 4 MiB was refused by `log_read`.
        bytes.truncate(usize::try_from(u.len.saturating_sub(from)).unwrap_or(usize::MAX));
    }
    Ok(bytes)
}

/// Whether bytes at the end of the log that are no record can come from an append that was cut short: its beginning, or,
/// after a power cut, its length without its content. The last is left to those who have a key: they alone know
/// that it is not the damage of a record that was complete.
fn may_be_torn(rest: &[u8], why: NoRecord, keyed: bool) -> bool {
    let claimed = rest.first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize);
    match why {
        NoRecord::Incomplete => rest.len() < MAX_RECORD,
        NoRecord::Damaged(_) => rest.iter().all(|&b| b == 0) || keyed && claimed == Some(rest.len()),
    }
}

fn check(
    parsed: &Parsed<'_>,
    before: Option<&Tail>,
    start: &Start,
    key: Option<&AuditKey>,
    segment: u32,
    offset: u64,
) -> Result<(), AuditError> {
    let found = parsed.record.sequence;
    let file = || file_name(segment);
    let wrong_number = |expected| AuditError::Sequence { segment: file(), offset, expected, found };
    let (expected, previous) = match (before, start) {
        (Some(t), _) => (t.anchor.sequence.saturating_add(1), Some(t.anchor.hash)),
        (None, Start::Chain(s)) => (s.sequence, Some(s.previous)),
        (None, Start::Anchor(a)) if found == a.sequence && parsed.hash != a.hash => {
            return Err(AuditError::Anchor { segment: file(), sequence: found });
        }
        (None, Start::Anchor(a)) => (a.sequence, None),
        (None, Start::Segment(_)) => (found, None),
    };
    if found != expected {
        return Err(wrong_number(expected));
    }
    if previous.is_some_and(|hash| hash != parsed.previous) {
        return Err(AuditError::Chain { segment: file(), sequence: found });
    }
    if key.is_some_and(|key| !parsed.authentic(key)) {
        return Err(AuditError::Mac { segment: file(), sequence: found });
    }
    Ok(())
}

/// Appends `entries` after `tail`; call it under the store's lock. An incomplete record is dropped, which is logged first.
pub(crate) fn append(
    store: &dyn Store,
    key: Option<&AuditKey>,
    tail: &Tail,
    boots: u32,
    entries: &[Entry],
) -> Result<Tail, AuditError> {
    let mut all = Vec::with_capacity(entries.len() + 1);
    if tail.torn > 0 {
        store.log_truncate(&segment_name(tail.segment)?, tail.end)?;
        all.push(Entry::ok("", Event::TailDropped { bytes: tail.torn }));
    }
    all.extend_from_slice(entries);
    let full = tail.end >= SEGMENT;
    let (segment, at) = if full { (tail.segment.saturating_add(1), 0) } else { (tail.segment, tail.end) };
    let (bytes, mut new) = encode_all(key, &tail.anchor, boots, &all, segment, at)?;
    store.log_append(&segment_name(segment)?, at, &bytes)?;
    new.end = at + bytes.len() as u64;
    Ok(new)
}

/// Writes the first records of a chain to a new segment.
pub(crate) fn begin(
    store: &dyn Store,
    key: &AuditKey,
    start: &LogStart,
    boots: u32,
    entries: &[Entry],
) -> Result<Anchor, AuditError> {
    let before = Anchor {
        segment: start.segment,
        offset: 0,
        sequence: start.sequence.saturating_sub(1),
        hash: start.previous,
    };
    let (bytes, tail) = encode_all(Some(key), &before, boots, entries, start.segment, 0)?;
    store.log_append(&segment_name(start.segment)?, 0, &bytes)?;
    Ok(tail.anchor)
}

/// Where a chain goes on that cannot be read any more: in a segment that does not exist yet, after the last record the
/// root knows.
pub(crate) fn restart(store: &dyn Store, anchor: &Anchor) -> Result<LogStart, AuditError> {
    let last = match last_segment(store) {
        Ok(last) => last.max(anchor.segment),
        Err(AuditError::Missing { .. }) => anchor.segment,
        Err(e) => return Err(e),
    };
    let segment = last.saturating_add(1);
    Ok(LogStart { segment, sequence: anchor.sequence.saturating_add(1), previous: anchor.hash })
}

fn encode_all(
    key: Option<&AuditKey>,
    after: &Anchor,
    boots: u32,
    entries: &[Entry],
    segment: u32,
    at: u64,
) -> Result<(Vec<u8>, Tail), AuditError> {
    let mut bytes = Vec::new();
    let mut anchor = *after;
    for entry in entries {
        let record = Record {
            sequence: anchor.sequence.saturating_add(1),
            boots,
            time: Timestamp::now(),
            has_mac: key.is_some(),
            user: entry.user.clone(),
            event: entry.event.clone(),
            outcome: entry.outcome,
        };
        let (encoded, hash) =
            record.encode(&anchor.hash, key).map_err(|len| AuditError::TooLong { len, max: MAX_RECORD })?;
        anchor = Anchor { segment, offset: at + bytes.len() as u64, sequence: record.sequence, hash };
        bytes.extend_from_slice(&encoded);
    }
    Ok((bytes, Tail { anchor, boots, segment, end: at, torn: 0 }))
}

/// Checks the whole log; with a key and the root's anchor also who wrote it and that its end is there.
pub(crate) fn verify(
    store: &dyn Store,
    start: LogStart,
    keyed: Option<(&AuditKey, Anchor)>,
    until: Snapshot,
    visit: &mut dyn FnMut(&Record),
) -> Result<AuditReport, AuditError> {
    let (mut first, mut last, mut vouched) = (None, Timestamp::from_micros(0), 0);
    let mut observe = |r: &Record| {
        first.get_or_insert(r.time);
        last = r.time;
        if r.has_mac {
            vouched = r.sequence;
        }
        visit(r);
    };
    let key = keyed.map(|(key, _)| key);
    let tail = walk(store, key, &Start::Chain(start), Some(until), &mut observe)?;
    let segment = file_name(tail.segment);
    if let Some((key, anchor)) = keyed {
        if tail.anchor.sequence < anchor.sequence {
            return Err(AuditError::Truncated {
                segment,
                expected: anchor.sequence,
                found: tail.anchor.sequence,
            });
        }
        walk(store, Some(key), &Start::Anchor(anchor), Some(until), &mut |_| {})?;
    }
    if tail.torn > 0 {
        return Err(AuditError::Torn { segment, bytes: tail.torn });
    }
    Ok(AuditReport {
        first_sequence: start.sequence,
        last_sequence: tail.anchor.sequence,
        records: (tail.anchor.sequence - start.sequence).saturating_add(1),
        segments: (tail.segment - start.segment).saturating_add(1),
        set_aside: start.segment.saturating_sub(1),
        first: first.unwrap_or(last),
        last,
        boots: tail.boots,
        authenticated: keyed.is_some(),
        unvouched: tail.anchor.sequence - vouched,
    })
}
