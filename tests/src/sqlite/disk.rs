//! The disk under a worker (`sqlite/c/disk.c`): faults to ask for, and the record of what was written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What goes wrong on a worker's disk. Operations count from 1: writes, syncs, truncations, unlinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The process is killed in the middle of this operation.
    Kill(u32),
    /// This operation fails once, with an I/O error, after half of a write was done.
    Error(u32),
    /// The disk is full from this operation on.
    Full(u32),
}

impl Fault {
    pub(super) fn environment(self) -> Vec<(&'static str, String)> {
        match self {
            Self::None => Vec::new(),
            Self::Kill(at) => vec![("DISK_KILL_AT", at.to_string())],
            Self::Error(at) => vec![("DISK_FAIL_AT", at.to_string()), ("DISK_ERRNO", libc_eio().to_string())],
            Self::Full(at) => vec![("DISK_FAIL_AT", at.to_string()), ("DISK_FAIL_ON", "1".to_owned())],
        }
    }
}

fn libc_eio() -> i32 {
    rustix::io::Errno::IO.raw_os_error()
}

/// One operation of the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bytes written at an offset.
    Write {
        /// The file's number.
        file: u32,
        /// Where.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// A file synced.
    Sync {
        /// The file's number.
        file: u32,
    },
    /// A file cut or extended.
    Truncate {
        /// The file's number.
        file: u32,
        /// To this size.
        size: u64,
    },
    /// A name removed.
    Unlink {
        /// The path.
        path: String,
    },
}

/// The record of everything that was written below the data folder.
#[derive(Debug, Default)]
pub struct Disk {
    /// Path of every file by number: one number for each time a file was opened.
    pub opened: BTreeMap<u32, String>,
    /// All operations in order.
    pub operations: Vec<Operation>,
}

impl Disk {
    /// Reads a record.
    pub fn read(path: &Path) -> Self {
        let all = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut disk = Self::default();
        let mut rest = all.as_slice();
        while let Some((head, tail)) = rest.split_first_chunk::<20>() {
            let number = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
            let offset = u64::from_ne_bytes(head[8..16].try_into().unwrap());
            let (file, length) = (number(4), number(16) as usize);
            let (bytes, after) = tail.split_at(length);
            rest = after;
            let text = || String::from_utf8(bytes.to_vec()).unwrap();
            disk.operations.push(match head[0] {
                b'w' => Operation::Write { file, offset, bytes: bytes.to_vec() },
                b's' => Operation::Sync { file },
                b't' => Operation::Truncate { file, size: offset },
                b'u' => Operation::Unlink { path: text() },
                b'o' => {
                    disk.opened.insert(file, text());
                    continue;
                }
                kind => panic!("{}: record of kind {kind}", path.display()),
            });
        }
        assert!(rest.is_empty(), "{}: torn record", path.display());
        disk
    }

    /// The bytes of every file that was ever opened, as far as they were written, each version of each byte: for every
    /// file number the writes one after the other.
    pub fn writes(&self) -> impl Iterator<Item = (&str, u64, &[u8])> {
        self.operations.iter().filter_map(|operation| match operation {
            Operation::Write { file, offset, bytes } => {
                Some((self.opened.get(file).map_or("", String::as_str), *offset, bytes.as_slice()))
            }
            _ => None,
        })
    }
}
