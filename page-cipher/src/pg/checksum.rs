//! PostgreSQL's page checksum (`src/include/storage/checksum_impl.h`): 32 FNV-1a hashes side by side, each
//! over every 32nd word of the page.

use super::page::{CHECKSUM, Page};
use super::sums;
use crate::kernel::Kernel;

/// The checksum that PostgreSQL computes for `page` as block `block` of its fork, whatever `pd_checksum`
/// holds. Never 0.
///
/// `block` counts from the start of the fork, over all segment files.
pub fn checksum(page: &Page, block: u32) -> u16 {
    finish(crate::kernel::xor_of_sums(Kernel::best(), page).unwrap_or_else(|| sums::xor_of_sums(page)), block)
}

/// The checksum by one kernel, to compare kernels. `None` if that does not run here.
#[doc(hidden)]
pub fn checksum_with_kernel(kernel: Kernel, page: &Page, block: u32) -> Option<u16> {
    Some(finish(crate::kernel::xor_of_sums(kernel, page)?, block))
}

fn finish(sum: u32, block: u32) -> u16 {
    ((sum ^ block) % 65535) as u16 + 1
}

/// Writes the checksum of `page` as block `block` to `pd_checksum`.
pub fn set_checksum(page: &mut Page, block: u32) {
    let sum = checksum(page, block);
    page[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_ne_bytes());
}
