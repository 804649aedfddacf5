//! The mapping that holds the key table.

use std::mem::ManuallyDrop;

use secret_mem::{MapError, SharedRegion};

use crate::key_table::KeyTable;
use crate::wal_table::WalTable;

/// Makes an empty table in memory that this process shares with the children it forks from now on.
///
/// # Errors
/// When the memory cannot be mapped.
pub(crate) fn key_table() -> Result<&'static KeyTable, MapError> {
    const { assert!(align_of::<KeyTable>() <= 4096, "a mapping is aligned to pages") };
    // Never unmapped: the table lives as long as the server.
    let region = ManuallyDrop::new(SharedRegion::new(size_of::<KeyTable>())?);
    // SAFETY: a fresh anonymous mapping is zeroed, aligned to pages and `size_of::<KeyTable>()` bytes long; all of
    // `KeyTable` is atomic integers, for which zero bytes are valid and which other processes may change at
    // any time. It is never unmapped, hence 'static.
    Ok(unsafe { region.as_ptr().cast::<KeyTable>().as_ref() })
}

/// As [`key_table`], for keys and rules of the WAL.
///
/// # Errors
/// When the memory cannot be mapped.
pub(crate) fn wal_table() -> Result<&'static WalTable, MapError> {
    const { assert!(align_of::<WalTable>() <= 4096, "a mapping is aligned to pages") };
    let region = ManuallyDrop::new(SharedRegion::new(size_of::<WalTable>())?);
    // SAFETY: as in `key_table`: zeroed, aligned, large enough, never unmapped; `WalTable` is atomic integers.
    Ok(unsafe { region.as_ptr().cast::<WalTable>().as_ref() })
}
