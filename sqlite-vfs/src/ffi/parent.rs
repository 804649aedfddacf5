//! A file of the VFS below.

use core::ffi::{c_int, c_void};

use super::abi::{SQLITE_IOERR_SHORT_READ, SQLITE_OK, sqlite3_file, sqlite3_io_methods};
use crate::error::{Result, VfsError};
use crate::raw::{RawFile, Read};

/// An open file of the VFS below. It lies behind the shim's own part of the memory that SQLite set aside for the file.
pub(super) struct ParentFile {
    file: *mut sqlite3_file,
    name: Box<str>,
}

// SAFETY: SQLite itself hands files from thread to thread and asks of every VFS that a file may be used from any thread,
// one at a time. A `ParentFile` is not `Sync`, so no two threads use it at once through this type.
unsafe impl Send for ParentFile {}

impl ParentFile {
    /// # Safety
    /// `file` was opened by the VFS below and stays open and in place while the value is used.
    pub(super) unsafe fn new(file: *mut sqlite3_file, name: String) -> Self {
        Self { file, name: name.into_boxed_str() }
    }

    /// The methods of the file below.
    pub(super) fn methods(&self) -> &sqlite3_io_methods {
        // SAFETY: by the contract of `new` the file is open, so its methods are set; VFSs keep them in statics.
        unsafe { &*(*self.file).pMethods }
    }

    /// Whether a connection, of this process or of another, is writing.
    pub(super) fn is_reserved(&self) -> Result<bool> {
        let Some(check) = self.methods().xCheckReservedLock else { return self.missing("asking for locks") };
        let mut reserved = 0;
        // SAFETY: the file is open (`new`), `reserved` outlives the call.
        self.outcome(unsafe { check(self.file, &raw mut reserved) }, "asking for locks")?;
        Ok(reserved != 0)
    }

    fn outcome(&self, code: c_int, action: &'static str) -> Result<()> {
        if code == SQLITE_OK {
            return Ok(());
        }
        Err(VfsError::Below { file: self.name.to_string(), action, code })
    }

    fn missing<T>(&self, action: &'static str) -> Result<T> {
        let code = crate::error::sqlite_code::IOERR;
        Err(VfsError::Below { file: self.name.to_string(), action, code })
    }
}

impl RawFile for ParentFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<Read> {
        let Some(read) = self.methods().xRead else { return self.missing("reading") };
        // SAFETY: the file is open (`new`), the buffer is writable for its whole length.
        let code =
            unsafe { read(self.file, buf.as_mut_ptr().cast::<c_void>(), buf.len() as c_int, offset as i64) };
        match code {
            SQLITE_IOERR_SHORT_READ => Ok(Read::Short),
            code => self.outcome(code, "reading").map(|()| Read::Full),
        }
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        let Some(write) = self.methods().xWrite else { return self.missing("writing") };
        // SAFETY: the file is open (`new`), the data is readable for its whole length.
        let code =
            unsafe { write(self.file, data.as_ptr().cast::<c_void>(), data.len() as c_int, offset as i64) };
        self.outcome(code, "writing")
    }

    fn truncate(&self, size: u64) -> Result<()> {
        let Some(truncate) = self.methods().xTruncate else { return self.missing("truncating") };
        // SAFETY: the file is open (`new`).
        self.outcome(unsafe { truncate(self.file, size as i64) }, "truncating")
    }

    fn sync(&self, flags: i32) -> Result<()> {
        let Some(sync) = self.methods().xSync else { return self.missing("syncing") };
        // SAFETY: the file is open (`new`).
        self.outcome(unsafe { sync(self.file, flags) }, "syncing")
    }

    fn size(&self) -> Result<u64> {
        let Some(file_size) = self.methods().xFileSize else { return self.missing("measuring") };
        let mut size = 0_i64;
        // SAFETY: the file is open (`new`), `size` outlives the call.
        self.outcome(unsafe { file_size(self.file, &raw mut size) }, "measuring")?;
        Ok(size.max(0) as u64)
    }

    fn name(&self) -> &str {
        &self.name
    }
}
