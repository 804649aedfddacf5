//! Torn pages that recovery meets before the image that repairs them.
//!
//! Some WAL records touch a page without an image of it (`REGBUF_NO_IMAGE` in access/hash), relying on the
//! page header being intact after a torn write. An encrypted page that is torn has no intact part. While
//! recovery has not reached consistency such a page is replaced by an empty one with the largest LSN, so that redo skips it
//! and never dirties it. It is remembered here; if no image has replaced it when redo ends, recovery stops.

use std::cell::Cell;

use page_cipher::pg::{self, PAGE_SIZE, Page};

use crate::ffi::compat::RelationId;
use crate::ffi::server;
use crate::key_table::{KeyTable, Placeholder};
use crate::page_io::PageAddress;

/// `pd_pagesize_version`: page size and layout version 4 (src/include/storage/bufpage.h).
const PAGE_VERSION: u16 = PAGE_SIZE as u16 | 4;

/// `pd_lsn` of a stand-in: no WAL record is newer, so redo takes the page for already changed.
pub(crate) const LSN: u64 = u64::MAX;

thread_local! {
    /// Set while pages are read to see whether their images came.
    static SETTLING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a torn page is one that recovery may still repair.
pub(crate) fn wanted() -> bool {
    server::in_redo() && !server::reached_consistency() && !SETTLING.get()
}

/// Notes a page whose image must still come. `false` when there is no room: the page is then refused as any other.
pub(crate) fn remember(table: &KeyTable, at: PageAddress) -> bool {
    table.placeholders.add(Placeholder { relation: at.relation, block: at.block })
}

/// Makes `page` the stand-in of a torn page.
pub(crate) fn fill(page: &mut Page, block: u32) {
    page.fill(0);
    page[0..8].copy_from_slice(&LSN.to_ne_bytes());
    page[12..14].copy_from_slice(&24u16.to_ne_bytes()); // pd_lower
    page[14..16].copy_from_slice(&(PAGE_SIZE as u16).to_ne_bytes()); // pd_upper
    page[16..18].copy_from_slice(&(PAGE_SIZE as u16).to_ne_bytes()); // pd_special
    page[18..20].copy_from_slice(&PAGE_VERSION.to_ne_bytes());
    pg::set_checksum(page, block);
}

/// Makes sure that every torn page has been replaced by its image, or is gone.
///
/// # Errors
/// Names the first page that is still torn. The caller must not let anybody read it: in the buffer it looks empty.
pub(crate) fn settle(table: &KeyTable) -> Result<(), StillTorn> {
    if table.placeholders.is_empty() {
        return Ok(());
    }
    SETTLING.set(true);
    let first =
        table.placeholders.all().find(|torn| server::page_lsn(torn.relation, torn.block) == Some(LSN));
    SETTLING.set(false);
    match first {
        Some(torn) => Err(StillTorn { relation: torn.relation, block: torn.block }),
        None => {
            table.placeholders.clear();
            Ok(())
        }
    }
}

/// A page that was torn by a crash and for which the WAL held no image.
#[derive(Debug, thiserror::Error)]
#[error(
    "block {block} of relation {relation} is damaged, and the WAL that was replayed holds no image of it"
)]
pub(crate) struct StillTorn {
    relation: RelationId,
    block: u32,
}
