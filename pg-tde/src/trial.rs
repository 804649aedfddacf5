//! Reading a page that may be one of several things: while a tablespace is converted, and in recovery.
//!
//! Every possibility is tried, since a wrong key makes random bytes look valid once in 2^43 pages. If more than one
//! fits, the line pointers decide: in random bytes they are not in order.

use std::sync::atomic::Ordering::Relaxed;

use page_cipher::pg::{self, Fork, OpenError, Page};

use crate::ffi::server;
use crate::key_table::KeyTable;
use crate::page_io::{self, Opened, PageAddress, PageError};
use crate::placeholder;
use crate::process::Regime;

/// What a page may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidates<'a> {
    /// Under one of these.
    pub(crate) regimes: &'a [Regime],
    /// In clear.
    pub(crate) plain: bool,
    /// If in clear, then with a checksum.
    pub(crate) decrypting: bool,
}

/// Turns a page that was just read into what PostgreSQL wrote, whichever candidate it is.
///
/// # Errors
/// When a key cannot be had, or what the page is cannot be told.
pub(crate) fn open(
    table: &'static KeyTable,
    at: PageAddress,
    candidates: Candidates<'_>,
    page: &mut Page,
) -> Result<Opened, PageError> {
    let Candidates { regimes, plain, decrypting } = candidates;
    let mut found = Vec::new();
    let mut failure = OpenError::NotAuthentic;
    let mut destroyed = None;
    for &regime in regimes {
        let mut opened = *page;
        match page_io::open_under(table, at, regime, &mut opened) {
            Ok(Ok(())) => found.push(opened),
            Ok(Err(error)) => failure = error,
            // Only in recovery from before the rotation. Most pages may be under another key.
            Err(PageError::Key(error)) if error.is_destroyed() => destroyed = Some(error),
            Err(error) => return Err(error),
        }
    }
    let in_clear = plain && pg::header_is_valid(page, at.fork);
    let right = in_clear && checksum_is_right(page, at.block);
    // A map is not repaired by the WAL. One that begins in clear and ends encrypted would say that rows are visible which are not.
    let torn_map = in_clear && decrypting && !right && matches!(at.fork, Fork::Fsm | Fork::Vm);
    if in_clear && !torn_map && (!server::data_checksums() || right) {
        found.push(*page);
    }
    match decide(found)? {
        Some(opened) => *page = opened,
        // The server could not go on, and must not take it for damaged.
        None if destroyed.is_some() && !in_clear => {
            return Err(destroyed.map_or(PageError::Ambiguous, PageError::Key));
        }
        // It may be under a key that the WAL has yet to bring, together with the page itself.
        None if plain
            && at.fork == Fork::Main
            && placeholder::wanted()
            && placeholder::remember(table, at) =>
        {
            table.counters(server::pid()).placeholders.fetch_add(1, Relaxed);
            placeholder::fill(page, at.block);
            return Ok(Opened::Placeholder);
        }
        None if torn_map => {
            table.counters(server::pid()).torn_maps.fetch_add(1, Relaxed);
            page.fill(0);
            return Ok(Opened::TornMap);
        }
        // Only its checksum speaks against it, and the server reports that by itself.
        None if in_clear || regimes.is_empty() => (),
        None => return Ok(page_io::refuse(table, at, &failure, page)),
    }
    Ok(Opened::Page)
}

/// The only page, or the only one whose line pointers are in order.
fn decide(mut found: Vec<Page>) -> Result<Option<Page>, PageError> {
    if found.len() > 1 {
        found.retain(line_pointers_are_in_order);
        if found.len() != 1 {
            return Err(PageError::Ambiguous);
        }
    }
    Ok(found.pop())
}

fn checksum_is_right(page: &Page, block: u32) -> bool {
    field(page, 8) == pg::checksum(page, block)
}

fn field(page: &Page, at: usize) -> u16 {
    u16::from_ne_bytes([page[at], page[at + 1]])
}

/// Whether what stands between the header and `pd_lower` are line pointers to within the page's data
/// (src/include/storage/itemid.h: offset 15 bits, flags 2 bits, length 15 bits).
fn line_pointers_are_in_order(page: &Page) -> bool {
    let (lower, upper) = (usize::from(field(page, 12)), u32::from(field(page, 14)));
    let Some(pointers) = page.get(24..lower) else { return false };
    let (pointers, rest) = pointers.as_chunks::<4>();
    rest.is_empty()
        && pointers.iter().all(|bytes| {
            let word = u32::from_ne_bytes(*bytes);
            let (offset, flags, length) = (word & 0x7fff, word >> 15 & 3, word >> 17);
            // Unused, redirected, dead, or an item.
            match flags {
                1 => offset >= upper && offset + length <= pg::PAGE_SIZE as u32,
                _ => length == 0,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(pointers: &[u32]) -> Page {
        let mut page: Page = [0; pg::PAGE_SIZE];
        page[12..14].copy_from_slice(&(24 + 4 * pointers.len() as u16).to_ne_bytes());
        page[14..16].copy_from_slice(&8000u16.to_ne_bytes());
        for (bytes, pointer) in page[24..].chunks_exact_mut(4).zip(pointers) {
            bytes.copy_from_slice(&pointer.to_ne_bytes());
        }
        page
    }

    const ITEM: u32 = 8000 | (1 << 15) | (100 << 17);

    #[test]
    fn one_page_is_taken_as_it_is_and_of_two_the_one_in_order() {
        let (good, bad) = (page(&[ITEM, 0, 3 << 15]), page(&[ITEM, 0x8765_4321]));
        assert!(decide(vec![]).expect("nothing").is_none());
        assert_eq!(decide(vec![bad]).expect("one"), Some(bad));
        assert_eq!(decide(vec![bad, good]).expect("one in order"), Some(good));
        assert!(matches!(decide(vec![good, good]), Err(PageError::Ambiguous)));
        assert!(matches!(decide(vec![bad, bad]), Err(PageError::Ambiguous)));
    }

    #[test]
    fn line_pointers_must_stay_between_upper_and_the_end() {
        assert!(line_pointers_are_in_order(&page(&[])));
        assert!(line_pointers_are_in_order(&page(&[
            ITEM,
            (2 << 15) | 1,
            (8192 - 100) | (1 << 15) | (100 << 17)
        ])));
        for wrong in
            [7999 | (1 << 15) | (8 << 17), (8192 - 99) | (1 << 15) | (100 << 17), (2 << 15) | (1 << 17)]
        {
            assert!(!line_pointers_are_in_order(&page(&[ITEM, wrong])), "{wrong:#x}");
        }
        let mut cut = page(&[ITEM]);
        cut[12] += 2;
        assert!(!line_pointers_are_in_order(&cut));
    }
}
