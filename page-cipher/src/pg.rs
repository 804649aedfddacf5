//! PostgreSQL pages of 8192 bytes, encrypted in place. The format is described in
//! `docs/formats/postgres-page.md`.
//!
//! ```text
//! 0   8     pd_lsn       in clear
//! 8   2     pd_checksum  PostgreSQL's checksum of this page as it is on disk
//! 10  8182  cipher(relation key, tweak, plaintext bytes 10..8192)
//! ```

mod checksum;
mod page;
mod relation;
pub(crate) mod sums;

#[doc(hidden)]
pub use checksum::checksum_with_kernel;
pub use checksum::{checksum, set_checksum};
pub use page::{Fork, PAGE_SIZE, Page, header_is_valid, is_bare_init, is_zero, lsn};
pub use relation::{OpenError, RelationCipher, SealError, UnsupportedCipher};
