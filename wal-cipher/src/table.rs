//! What the descriptors of this process are: one entry each, atomic words, no lock and no allocation. Zeros are "not ours".

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::name::SegmentName;
use crate::unit::Place;

/// Descriptors that can be told apart. A server uses a few thousand at most.
pub const DESCRIPTORS: usize = 65_536;

/// How a file is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not known yet: nothing that can be recognized was written to it.
    Undecided,
    /// In clear.
    Plain,
    /// Under a version of the key.
    Under(u32),
}

/// An open file that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// What its tweaks are made from.
    pub place: Place,
    /// How it is stored. Always [`Mode::Undecided`] for a temporary file, which has one key.
    pub mode: Mode,
    /// Opened with `O_APPEND`, which is kept from the kernel: it would ignore offsets.
    pub append: bool,
    /// A staged file: its name is not known yet.
    pub staged: bool,
}

const SEGMENT: u64 = 1;
const TEMPORARY: u64 = 2;
const APPEND: u64 = 1 << 8;
const STAGED: u64 = 1 << 9;

/// One descriptor. The first word says whether the others count.
struct Entry {
    /// kind 8 bits | flags 8 | mode 16 (0 undecided, 1 plain, 2 under) | key version 32
    what: AtomicU64,
    first: AtomicU64,
    second: AtomicU64,
}

/// The table.
pub struct Descriptors([Entry; DESCRIPTORS]);

impl Descriptors {
    /// Empty, for a static.
    pub const fn new() -> Self {
        Self(
            [const { Entry { what: AtomicU64::new(0), first: AtomicU64::new(0), second: AtomicU64::new(0) } };
                DESCRIPTORS],
        )
    }

    fn entry(&self, fd: i32) -> Option<&Entry> {
        self.0.get(usize::try_from(fd).ok()?)
    }

    /// Whether a descriptor is ours: the question every call of the server asks.
    #[inline]
    pub fn is_ours(&self, fd: i32) -> bool {
        self.entry(fd).is_some_and(|entry| entry.what.load(Relaxed) != 0)
    }

    /// What a descriptor is.
    pub fn get(&self, fd: i32) -> Option<Open> {
        let entry = self.entry(fd)?;
        let what = entry.what.load(Relaxed);
        let (first, second) = (entry.first.load(Relaxed), entry.second.load(Relaxed));
        let place = match what & 0xFF {
            SEGMENT => Place::Segment(SegmentName {
                timeline: (first >> 32) as u32,
                log: first as u32,
                segment: second as u32,
            }),
            TEMPORARY => Place::Temporary { salt: first },
            _ => return None,
        };
        let mode = match what >> 16 & 0xFFFF {
            1 => Mode::Plain,
            2 => Mode::Under((what >> 32) as u32),
            _ => Mode::Undecided,
        };
        Some(Open { place, mode, append: what & APPEND != 0, staged: what & STAGED != 0 })
    }

    /// Notes what a descriptor is; `false` when its number is too high.
    pub fn set(&self, fd: i32, open: Open) -> bool {
        let Some(entry) = self.entry(fd) else { return false };
        let (kind, first, second) = match open.place {
            Place::Segment(name) => {
                (SEGMENT, u64::from(name.timeline) << 32 | u64::from(name.log), u64::from(name.segment))
            }
            Place::Temporary { salt } => (TEMPORARY, salt, 0),
        };
        let mode = match open.mode {
            Mode::Undecided => 0,
            Mode::Plain => 1 << 16,
            Mode::Under(version) => u64::from(version) << 32 | 2 << 16,
        };
        entry.first.store(first, Relaxed);
        entry.second.store(second, Relaxed);
        let flags = if open.append { APPEND } else { 0 } | if open.staged { STAGED } else { 0 };
        entry.what.store(kind | flags | mode, Relaxed);
        true
    }

    /// The descriptor is closed, or something else now.
    #[inline]
    pub fn forget(&self, fd: i32) {
        if let Some(entry) = self.entry(fd) {
            entry.what.store(0, Relaxed);
        }
    }

    /// `to` is a duplicate of `from`.
    pub fn copy(&self, from: i32, to: i32) -> bool {
        match self.get(from) {
            Some(open) => self.set(to, open),
            None => {
                self.forget(to);
                true
            }
        }
    }
}

impl Default for Descriptors {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static TABLE: Descriptors = Descriptors::new();

    #[test]
    fn what_is_noted_comes_back() {
        let segment = Place::Segment(SegmentName { timeline: u32::MAX, log: 7, segment: 9 });
        for place in [segment, Place::Temporary { salt: u64::MAX - 1 }] {
            for mode in [Mode::Undecided, Mode::Plain, Mode::Under(u32::MAX), Mode::Under(1)] {
                for (append, staged) in [(false, false), (true, false), (false, true), (true, true)] {
                    let open = Open { place, mode, append, staged };
                    assert!(TABLE.set(5, open));
                    assert_eq!(TABLE.get(5), Some(open));
                    assert!(TABLE.copy(5, 6) && TABLE.is_ours(6));
                }
            }
        }
        TABLE.forget(5);
        assert_eq!(TABLE.get(5), None);
        assert!(TABLE.copy(5, 6) && !TABLE.is_ours(6));
        for fd in [-1, DESCRIPTORS as i32, i32::MAX] {
            assert!(!TABLE.is_ours(fd));
            let open = Open { place: segment, mode: Mode::Plain, append: false, staged: false };
            assert!(!TABLE.set(fd, open));
        }
    }
}
