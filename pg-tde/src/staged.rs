//! `pg_wal/xlogtemp.PID`: a file that gets its name when it is complete.
//!
//! Promotion copies the last segment of the old timeline into it, and history files are written to it (access/transam/xlog.c
//! XLogFileCopy, timeline.c). What it becomes is known only when it is renamed. Until then data in it is under the ephemeral key; then it is
//! encrypted for its name, or stored in clear if it becomes a history file, synced, and renamed. A crash before that leaves a file that
//! the next start removes. A new segment full of zeros stays as it is.
//!
//! The copy of a segment keeps the mode and the version of the key of what it was copied from: the record that brings a newer version may
//! stand in that very segment, and whoever replays the archive has to read it first.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};

use wal_cipher::engine::Failure;
use wal_cipher::file::{self, CHUNK, Scratch};
use wal_cipher::name::SegmentName;
use wal_cipher::segment::{Found, Policy};
use wal_cipher::table::Mode;
use wal_cipher::unit::{Place, UNIT, UnitCipher};

use crate::ffi::io::Server;
use crate::redirected::{self, ServerPolicy};
use redirect::Descriptor;

/// Whether the staged file of this process holds more than zeros.
static HOLDS_DATA: AtomicBool = AtomicBool::new(false);

/// The segment that this process opened last to read it: timeline, log, segment.
static READ_LAST: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

/// A segment is opened for reading: a copy that is begun next is one of it.
pub(crate) fn reads(name: SegmentName) {
    for (word, value) in READ_LAST.iter().zip([name.timeline, name.log, name.segment]) {
        word.store(value, Relaxed);
    }
}

/// How the segment is stored that `name` is a copy of; `None` if that cannot be told.
fn mode_of_source(name: SegmentName) -> Result<Option<Mode>, Failure> {
    let [timeline, log, segment] = [0, 1, 2].map(|index| READ_LAST[index].load(Relaxed));
    if timeline == 0 || (log, segment) != (name.log, name.segment) {
        return Ok(None);
    }
    let source = SegmentName { timeline, log, segment };
    let file = open_raw(format!("pg_wal/{source}").as_bytes())?;
    Ok(match redirect::look::<Server>(number(&file), source)? {
        Found::Under(version) => Some(Mode::Under(version)),
        Found::Plain => Some(Mode::Plain),
        Found::Forged | Found::Unknown => None,
    })
}

/// The staged file is made anew.
pub(crate) fn begun() {
    HOLDS_DATA.store(false, Relaxed);
}

/// Data was written to it.
pub(crate) fn holds_data() {
    HOLDS_DATA.store(true, Relaxed);
}

/// Whether it holds data, until it is made anew.
pub(crate) fn take() -> bool {
    HOLDS_DATA.swap(false, Relaxed)
}

fn errno(error: &std::io::Error) -> Failure {
    Failure::Errno(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Opens a file past the slots.
///
/// # Errors
/// Of the system.
pub(crate) fn open_raw(path: &[u8]) -> Result<File, Failure> {
    let path = Path::new(OsStr::from_bytes(path));
    File::options().read(true).write(true).open(path).map_err(|error| errno(&error))
}

/// Its descriptor.
pub(crate) fn number(file: &File) -> i32 {
    file.as_raw_fd()
}

/// Stores the staged file as what it becomes: a segment, or with `None` something in clear.
///
/// # Errors
/// Of the system; the file must not get the name then.
pub(crate) fn give_name(path: &[u8], name: Option<SegmentName>, salt: u64) -> Result<(), Failure> {
    let table = redirected::table().ok_or(Failure::Errno(libc::EIO))?;
    let policy = ServerPolicy(table);
    let key = redirected::temporary_key().ok_or(Failure::NoKey(0))?;
    let before = UnitCipher { key, place: Place::Temporary { salt } };
    let mode = match name {
        Some(name) => mode_of_source(name)?.unwrap_or_else(|| policy.new_segments()),
        None => Mode::Plain,
    };
    let after = match (name, mode) {
        (Some(name), Mode::Under(version)) => {
            let key = policy.key(version).ok_or(Failure::NoKey(version))?;
            Some(UnitCipher { key, place: Place::Segment(name) })
        }
        _ => None,
    };
    let file = open_raw(path)?;
    let raw = Descriptor(number(&file));
    let mut scratch = Box::new(Scratch::new());
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let got = file::read_at(&raw, before, &mut chunk, at, &mut scratch)?;
        for (index, unit) in chunk[..got].chunks(UNIT).enumerate() {
            // What was not written stays space that was not written.
            if unit.iter().all(|byte| *byte == 0) {
                continue;
            }
            let position = at + (index * UNIT) as u64;
            let written = match after {
                Some(cipher) => file::write_at(&raw, cipher, unit, position, &mut scratch)?,
                None => file.write_at(unit, position).map_err(|error| errno(&error))?,
            };
            if written < unit.len() {
                return Err(Failure::Errno(libc::ENOSPC));
            }
        }
        at += got as u64;
        if got < chunk.len() {
            break;
        }
    }
    file.sync_all().map_err(|error| errno(&error))
}

/// Fills a file with zeros, which keeps its space.
///
/// # Errors
/// Of the system.
pub(crate) fn wipe(path: &[u8]) -> Result<(), Failure> {
    let file = open_raw(path)?;
    let size = file.metadata().map_err(|error| errno(&error))?.len();
    let zeros = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let now = zeros.len().min((size - at) as usize);
        file.write_all_at(&zeros[..now], at).map_err(|error| errno(&error))?;
        at += now as u64;
    }
    file.sync_all().map_err(|error| errno(&error))
}
