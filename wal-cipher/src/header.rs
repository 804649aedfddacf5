//! Telling by its first page what a segment is stored as.
//!
//! A segment's first page begins with the long header (access/xlog_internal.h), little-endian here as on all machines that
//! this project builds for:
//!
//! ```text
//!  0  2  xlp_magic, 0xD0xx or 0xD1xx    2  2  xlp_info, with XLP_LONG_HEADER    4  4  xlp_tli
//!  8  8  xlp_pageaddr                  16  4  xlp_rem_len                      20  4  padding
//! 24  8  xlp_sysid                     32  4  xlp_seg_size                     36  4  xlp_xlog_blcksz
//! ```
//! Position and system identifier alone are 128 bits: neither a wrong key nor a segment that was renamed, and so has other
//! contents, passes.

use crate::name::SegmentName;

/// Bytes that [`is_first_page_of`] looks at: whole AES blocks.
pub const HEADER: usize = 48;

const LONG_HEADER: u16 = 0x0002;
const ALL_FLAGS: u16 = 0x000F;

/// Whether these are the first bytes, in clear, of the segment `name` of the cluster `system` (any if `None`).
///
/// `xlp_tli` is not compared: promotion copies pages of the older timeline.
pub fn is_first_page_of(name: SegmentName, system: Option<u64>, page: &[u8; HEADER]) -> bool {
    let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    let word = |at: usize| u32::from(half(at)) | u32::from(half(at + 2)) << 16;
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let (magic, info, size) = (half(0), half(2), u64::from(word(32)));
    matches!(magic >> 8, 0xD0 | 0xD1)
        && info & LONG_HEADER != 0
        && info & !ALL_FLAGS == 0
        && size.is_power_of_two()
        && (1 << 20..=1 << 30).contains(&size)
        && u64::from(name.segment) < (1 << 32) / size
        && long(8) == name.position(size)
        && system.is_none_or(|system| long(24) == system)
}

/// Whether these are the first bytes of any segment of a cluster, in clear: also of one that got another name to be used again.
pub fn is_of_system(system: u64, page: &[u8; HEADER]) -> bool {
    let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    matches!(half(0) >> 8, 0xD0 | 0xD1) && half(2) & LONG_HEADER != 0 && page[24..32] == system.to_le_bytes()
}

/// Where such a page says that it begins.
pub fn position(page: &[u8; HEADER]) -> u64 {
    u64::from_le_bytes([page[8], page[9], page[10], page[11], page[12], page[13], page[14], page[15]])
}

#[cfg(test)]
pub(crate) fn example(name: SegmentName, system: u64) -> [u8; HEADER] {
    let mut page = [0; HEADER];
    page[..4].copy_from_slice(&[0x10, 0xD1, 0x02, 0]);
    page[4] = 1;
    page[8..16].copy_from_slice(&name.position(16 << 20).to_le_bytes());
    page[24..32].copy_from_slice(&system.to_le_bytes());
    page[32..36].copy_from_slice(&(16u32 << 20).to_le_bytes());
    page[36..40].copy_from_slice(&8192u32.to_le_bytes());
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_page_belongs_to_one_position_of_one_cluster() {
        let name = SegmentName { timeline: 1, log: 2, segment: 3 };
        let page = example(name, 42);
        assert!(is_first_page_of(name, Some(42), &page));
        assert!(is_first_page_of(name, None, &page));
        assert_eq!(position(&page), 2 << 32 | 3 << 24);
        // The timeline in the page is the older one after a promotion.
        assert!(is_first_page_of(SegmentName { timeline: 7, ..name }, Some(42), &page));
        assert!(!is_first_page_of(name, Some(43), &page));
        assert!(!is_first_page_of(SegmentName { segment: 4, ..name }, Some(42), &page));
        assert!(!is_first_page_of(SegmentName { log: 3, ..name }, Some(42), &page));
        assert!(!is_first_page_of(name, None, &[0; HEADER]));
        assert!(is_of_system(42, &page) && !is_of_system(43, &page) && !is_of_system(0, &[0; HEADER]));
        for (at, bit) in [(1, 0x40), (2, 2), (3, 1), (8, 1), (15, 0x80), (33, 1)] {
            let mut changed = page;
            changed[at] ^= bit;
            assert!(!is_first_page_of(name, Some(42), &changed), "byte {at}");
        }
    }
}
