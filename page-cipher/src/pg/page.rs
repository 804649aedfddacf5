//! The parts of PostgreSQL's page layout that encryption depends on (`src/include/storage/bufpage.h`).

/// Bytes in a page (BLCKSZ of every packaged server).
pub const PAGE_SIZE: usize = 8192;

/// A page. PostgreSQL stores integers in the byte order of the machine.
pub type Page = [u8; PAGE_SIZE];

/// Which of a relation's files a page is in (`src/include/common/relpath.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fork {
    /// The data.
    Main,
    /// The free space map.
    Fsm,
    /// The visibility map.
    Vm,
    /// What an unlogged relation is reset to. Counts as [`Main`](Self::Main), because the server copies the
    /// bytes of the file over the main fork after a crash.
    Init,
}

// Offsets in PageHeaderData.
pub(super) const CHECKSUM: usize = 8;
/// The encrypted part begins here and ends with the page.
pub(super) const BODY: usize = 10;
const FLAGS: usize = 10;
const LOWER: usize = 12;
pub(super) const UPPER: usize = 14;
const SPECIAL: usize = 16;
const PAGESIZE_VERSION: usize = 18;

/// PD_VALID_FLAG_BITS.
const VALID_FLAGS: u16 = 0x0007;
/// Page size, with the layout version (4 since PostgreSQL 8.3) in the low byte.
const PAGESIZE_AND_VERSION: u16 = PAGE_SIZE as u16 | 4;
/// SizeOfPageHeaderData: `pd_lower` of a page without line pointers.
const HEADER_LEN: u16 = 24;
/// `special` and tuples are aligned to this (MAXALIGN).
const MAX_ALIGN: u16 = 8;

fn field(page: &Page, offset: usize) -> u16 {
    u16::from_ne_bytes([page[offset], page[offset + 1]])
}

/// `pd_lsn`: the position in WAL just after the record of the page's last change.
pub fn lsn(page: &Page) -> u64 {
    let half = |at: usize| u32::from_ne_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    (u64::from(half(0)) << 32) | u64::from(half(4))
}

/// Whether every byte is zero, as in a page that was added to a file but never written.
pub fn is_zero(page: &Page) -> bool {
    let (chunks, _) = page.as_chunks::<64>();
    chunks.iter().all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

/// Whether the page is as `PageInit` leaves it: LSN 0, an empty header without special space, and zeros.
/// `pd_checksum` may have any value.
///
/// PostgreSQL writes such pages without logging them, so one that is torn cannot be repaired. The caller
/// stores a page of zeros instead, which PostgreSQL takes for the same thing.
pub fn is_bare_init(page: &Page) -> bool {
    lsn(page) == 0
        && field(page, FLAGS) == 0
        && is_empty(page)
        && field(page, PAGESIZE_VERSION) == PAGESIZE_AND_VERSION
        && {
            let mut rest = *page;
            rest[CHECKSUM..PAGESIZE_VERSION + 2].fill(0);
            is_zero(&rest)
        }
}

/// Whether the header satisfies every rule that all valid pages of this fork satisfy. Random bytes do so with
/// a probability of 2^-43.6 ([`Fork::Main`], [`Fork::Init`]) or 2^-77 ([`Fork::Fsm`], [`Fork::Vm`]).
pub fn header_is_valid(page: &Page, fork: Fork) -> bool {
    let (lower, upper, special) = (field(page, LOWER), field(page, UPPER), field(page, SPECIAL));
    let valid = field(page, FLAGS) & !VALID_FLAGS == 0
        && lower <= upper
        && upper <= special
        && special <= PAGE_SIZE as u16
        && special.is_multiple_of(MAX_ALIGN)
        && field(page, PAGESIZE_VERSION) == PAGESIZE_AND_VERSION;
    match fork {
        Fork::Main | Fork::Init => valid,
        // Maps have neither line pointers nor special space.
        Fork::Fsm | Fork::Vm => valid && is_empty(page),
    }
}

fn is_empty(page: &Page) -> bool {
    field(page, LOWER) == HEADER_LEN
        && field(page, UPPER) == PAGE_SIZE as u16
        && field(page, SPECIAL) == PAGE_SIZE as u16
}
