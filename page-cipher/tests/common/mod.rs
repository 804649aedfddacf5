//! Shared by the tests: hex, keys and files of vectors.
#![allow(dead_code, reason = "every test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

pub(crate) mod google_hctr2;
pub(crate) mod real_pages;
pub(crate) mod rfc8452;

use std::path::{Path, PathBuf};

use page_cipher::pg::Page;
use page_cipher::{CipherId, Kernel};
use secret_mem::SecretBytes;
use serde_json::Value;

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text.replace(char::is_whitespace, "")).unwrap()
}

pub(crate) fn secret<const N: usize>(bytes: &[u8]) -> SecretBytes<N> {
    let mut secret = SecretBytes::zeroed();
    secret.expose_mut().copy_from_slice(bytes);
    secret
}

/// All kernels that this processor can run.
pub(crate) fn kernels() -> impl Iterator<Item = Kernel> + Clone {
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

/// A file of published vectors that is not part of the project.
pub(crate) struct Vectors(Value);

impl Vectors {
    /// Looks in `TDE_VECTORS`, then beside the project. `None`, and a line on standard error, if it is in
    /// neither.
    pub(crate) fn load(name: &str) -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
        let folder = std::env::var_os("TDE_VECTORS").map_or(beside, PathBuf::from);
        match std::fs::read(folder.join(name)) {
            Ok(text) => Some(Self(serde_json::from_slice(&text).unwrap())),
            Err(error) => {
                eprintln!("SKIPPED: no {name} in {} ({error}); set TDE_VECTORS", folder.display());
                None
            }
        }
    }

    pub(crate) fn array(&self) -> &[Value] {
        self.0.as_array().unwrap()
    }
}

/// A page with a header as given and a pattern in all other bytes (`(31 i + 7 (i / 256) + 3) mod 256` at
/// offset i).
pub(crate) fn page(lsn: u64, [lower, upper, special]: [u16; 3]) -> Page {
    let mut page: Page = std::array::from_fn(|i| (i * 31 + i / 256 * 7 + 3) as u8);
    set_lsn(&mut page, lsn);
    page[8..10].copy_from_slice(&0xabcd_u16.to_le_bytes());
    for (at, field) in [(10, 0), (12, lower), (14, upper), (16, special), (18, 0x2004)] {
        page[at..at + 2].copy_from_slice(&field.to_le_bytes());
    }
    page[20..24].fill(0);
    page
}

pub(crate) fn set_lsn(page: &mut Page, lsn: u64) {
    page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
    page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
}

pub(crate) const LSN: u64 = 0x0000_0001_2345_6789;

pub(crate) fn heap_page() -> Page {
    page(LSN, [100, 1024, 8192])
}

pub(crate) fn map_page() -> Page {
    page(LSN, [24, 8192, 8192])
}

/// The key 00 01 .. 1f.
pub(crate) fn data_key() -> SecretBytes<32> {
    secret(&(0..32).collect::<Vec<u8>>())
}

/// What opening gives back: the page with `pd_checksum` zero.
pub(crate) fn without_checksum(page: &Page) -> Page {
    let mut page = *page;
    page[8..10].fill(0);
    page
}

/// Only the ciphers that can encrypt pages.
pub(crate) const PAGE_CIPHERS: [CipherId; 2] = [CipherId::Aes256Hctr2, CipherId::Aes256Xts];
