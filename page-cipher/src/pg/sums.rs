//! The 32 sums of the page checksum, for any processor.

use super::page::{CHECKSUM, PAGE_SIZE, Page};

/// Number of hashes.
pub(crate) const SUMS: usize = 32;
pub(crate) const ROW_BYTES: usize = 4 * SUMS;
pub(crate) const FNV_PRIME: u32 = 16_777_619;

/// `checksumBaseOffsets`.
pub(crate) const BASE_OFFSETS: [u32; SUMS] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
    0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
    0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
    0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

/// The page's first row, with `pd_checksum` zero.
#[inline(always)]
pub(crate) fn first_row(page: &Page) -> [u8; ROW_BYTES] {
    let mut first = page.as_chunks::<ROW_BYTES>().0[0];
    first[CHECKSUM..CHECKSUM + 2].fill(0);
    first
}

/// All 32 hashes of the page, XORed.
#[inline(always)]
pub(crate) fn xor_of_sums(page: &Page) -> u32 {
    let (rows, _) = page.as_chunks::<ROW_BYTES>();
    let mut sums = BASE_OFFSETS;
    mix_row(&mut sums, &first_row(page));
    for row in &rows[1..] {
        mix_row(&mut sums, row);
    }
    // Two rounds of zeros carry the last words into the low bits.
    for _ in 0..2 {
        mix_row(&mut sums, &[0; ROW_BYTES]);
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// One step of every hash. Nothing here depends on a neighbour, so that the compiler turns it into vector
/// code.
#[inline(always)]
fn mix_row(sums: &mut [u32; SUMS], row: &[u8; ROW_BYTES]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_ne_bytes(*word);
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

const _: () = assert!(PAGE_SIZE.is_multiple_of(ROW_BYTES));
