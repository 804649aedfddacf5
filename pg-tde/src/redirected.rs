//! What this process knows of the files that the server reads and writes through libc: descriptors, keys, rules.
//!
//! Set up once in the postmaster; children inherit it. A key that is made later is expanded by each process when it first needs it.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use page_cipher::kdf::{self, Purpose};
use page_cipher::xts::Aes256Xts;
use secret_mem::SecretBytes;
use wal_cipher::segment::Policy;
use wal_cipher::table::{Descriptors, Mode};

use crate::wal_table::{MAX_VERSIONS, WalTable};

/// The descriptors of this process.
pub(crate) static DESCRIPTORS: Descriptors = Descriptors::new();

static TABLE: OnceLock<&'static WalTable> = OnceLock::new();
static KEYS: [OnceLock<Aes256Xts>; MAX_VERSIONS] = [const { OnceLock::new() }; MAX_VERSIONS];
static TEMPORARY: OnceLock<Aes256Xts> = OnceLock::new();
static TEMPORARY_FILES: OnceLock<bool> = OnceLock::new();
static SYSTEM: AtomicU64 = AtomicU64::new(0);

/// Puts the table into force, before the server has children, and makes the ephemeral key.
///
/// # Errors
/// When the operating system has no randomness.
pub(crate) fn set_up(
    table: &'static WalTable,
    system: u64,
    temporary_files: bool,
) -> Result<(), secret_mem::RandomError> {
    let ephemeral = SecretBytes::<32>::random()?;
    TEMPORARY.get_or_init(|| expand(&ephemeral, Purpose::PG_TEMPORARY));
    TEMPORARY_FILES.get_or_init(|| temporary_files);
    SYSTEM.store(system, Relaxed);
    TABLE.get_or_init(|| table);
    expand_keys(table);
    Ok(())
}

/// Versions that are expanded before they are needed: writing in a critical section must not have to.
const EXPANDED: usize = 16;

/// Expands the newest keys that this process has not expanded yet.
pub(crate) fn expand_keys(table: &WalTable) {
    for (place, _) in table.versions().rev().take(EXPANDED) {
        KEYS[place].get_or_init(|| expand(&table.dek(place), Purpose::PG_WAL));
    }
}

fn expand(dek: &SecretBytes<32>, purpose: Purpose) -> Aes256Xts {
    // Two equal halves from HKDF have a probability of 2^-256.
    Aes256Xts::new(&kdf::derive(dek, purpose, &[])).expect("halves of a derived key differ")
}

/// The table; `None` until it is set up, and in a server that redirects nothing.
pub(crate) fn table() -> Option<&'static WalTable> {
    TABLE.get().copied()
}

/// Whether WAL segments are to be looked at.
pub(crate) fn wal() -> bool {
    table().is_some_and(WalTable::has_keys)
}

/// Whether temporary files are encrypted.
pub(crate) fn temporary_files() -> bool {
    TEMPORARY_FILES.get().copied().unwrap_or(false)
}

/// The key of temporary and staged files.
pub(crate) fn temporary_key() -> Option<&'static Aes256Xts> {
    TEMPORARY.get()
}

/// The server's keys and rules.
pub(crate) struct ServerPolicy(pub(crate) &'static WalTable);

impl Policy for ServerPolicy {
    fn key(&self, version: u32) -> Option<&Aes256Xts> {
        let (place, _) = self.0.versions().find(|(_, number)| *number == version)?;
        Some(KEYS[place].get_or_init(|| expand(&self.0.dek(place), Purpose::PG_WAL)))
    }

    fn any_version(&self, visit: &mut dyn FnMut(u32) -> bool) {
        self.0.versions().rev().any(|(_, number)| visit(number));
    }

    fn new_segments(&self) -> Mode {
        self.0.write_version().map_or(Mode::Plain, Mode::Under)
    }

    fn plain_allowed(&self, position: u64) -> bool {
        self.0.plain_allowed(position)
    }

    fn system_identifier(&self) -> Option<u64> {
        Some(SYSTEM.load(Relaxed))
    }
}
