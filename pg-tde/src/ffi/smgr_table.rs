//! Finds the server's storage manager table and replaces slots in it.
//!
//! PostgreSQL dispatches every page through `smgrsw`, a static table of function pointers
//! (src/backend/storage/smgr/smgr.c). It is not exported, but the `md*` functions it holds are, so it is
//! found as their exact sequence, and nothing is changed unless that sequence occurs exactly once.

use std::ffi::{c_int, c_void};

use pgrx::pg_sys;

use crate::ffi::compat::md::{SLOTS, expected};

/// Why the server's storage manager table cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum TableError {
    /// The sequence of `md*` pointers is absent, or there is more than one.
    #[error("found {found} storage manager tables in the server executable, expected exactly one")]
    NotUnique {
        /// How many were found.
        found: usize,
    },
    /// The pages that hold the table cannot be made writable.
    #[error("cannot change the protection of the storage manager table: {0}")]
    Protect(std::io::Error),
    /// A call through the server's own entry point did not arrive at the hook.
    #[error("calls of {0} do not go through the storage manager table of this server build")]
    NotReached(&'static str),
}

/// The server's table: `SLOTS` function pointers in read-only data.
pub(crate) struct SmgrTable {
    slots: *mut usize,
}

/// What `scan_segment` collects.
struct Search {
    expected: [usize; SLOTS],
    matches: usize,
    at: *mut usize,
}

/// Looks for the table in the loadable segments of the executable (the first, nameless object).
///
/// # Safety
/// Called by `dl_iterate_phdr` only, with `data` pointing to a `Search`.
unsafe extern "C" fn scan_segments(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: the dynamic linker hands out a valid `info` for the length of the call, and `data` is the
    // `Search` that `find` passed in and keeps borrowed.
    let (info, search) = unsafe { (&*info, &mut *data.cast::<Search>()) };
    // SAFETY: `dlpi_name` is a NUL-terminated string, or null for the executable on some linkers.
    let is_executable = info.dlpi_name.is_null() || unsafe { *info.dlpi_name } == 0;
    if !is_executable {
        return 0;
    }
    for index in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: `dlpi_phdr` points to `dlpi_phnum` program headers.
        let header = unsafe { &*info.dlpi_phdr.add(index) };
        let readable = header.p_flags & libc::PF_R != 0;
        if header.p_type != libc::PT_LOAD || !readable {
            continue;
        }
        let start = (info.dlpi_addr + header.p_vaddr) as usize;
        let end = start + header.p_memsz as usize;
        let mut at = start.next_multiple_of(size_of::<usize>());
        while at + SLOTS * size_of::<usize>() <= end {
            let candidate = at as *mut usize;
            // SAFETY: [at, at + SLOTS words) lies within a mapped, readable segment and is word-aligned.
            let matches = unsafe { std::slice::from_raw_parts(candidate, SLOTS) == search.expected };
            if matches {
                search.matches += 1;
                search.at = candidate;
            }
            at += size_of::<usize>();
        }
    }
    0
}

impl SmgrTable {
    /// Finds the one table.
    ///
    /// # Errors
    /// [`TableError::NotUnique`] when there is none, or more than one.
    pub(crate) fn find() -> Result<Self, TableError> {
        let mut search = Search { expected: expected(), matches: 0, at: std::ptr::null_mut() };
        // SAFETY: the callback matches the expected signature and `search` outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(scan_segments), (&raw mut search).cast()) };
        if search.matches != 1 {
            return Err(TableError::NotUnique { found: search.matches });
        }
        Ok(Self { slots: search.at })
    }

    /// Replaces the given slots, leaving the table as write-protected as it was found.
    ///
    /// # Errors
    /// [`TableError::Protect`] when the memory cannot be made writable or read-only again.
    pub(crate) fn replace(&self, slots: &[(usize, usize)]) -> Result<(), TableError> {
        self.protect(libc::PROT_READ | libc::PROT_WRITE)?;
        for &(index, function) in slots {
            assert!(index < SLOTS, "slot {index} is outside the table");
            // SAFETY: the slot lies in the table that `find` located, which is writable now; the postmaster
            // has a single thread, so nobody reads the slot meanwhile.
            unsafe { self.slots.add(index).write_volatile(function) };
        }
        self.protect(libc::PROT_READ)
    }

    fn protect(&self, protection: c_int) -> Result<(), TableError> {
        let page = rustix::param::page_size();
        let start = self.slots as usize & !(page - 1);
        let end = (self.slots as usize + SLOTS * size_of::<usize>()).next_multiple_of(page);
        // SAFETY: the range covers whole pages of the executable's relocated read-only data, which hold
        // constants only; making them writable for a moment invalidates no reference.
        let failed = unsafe { libc::mprotect(start as *mut c_void, end - start, protection) } != 0;
        if failed { Err(TableError::Protect(std::io::Error::last_os_error())) } else { Ok(()) }
    }
}

/// A relation that exists nowhere, for calls in marker mode.
pub(crate) fn phantom_relation() -> pg_sys::SMgrRelationData {
    // SAFETY: `SMgrRelationData` is plain C data for which all-zero bytes are a valid value; `smgr_which`
    // zero selects the only storage manager.
    unsafe { std::mem::zeroed() }
}
