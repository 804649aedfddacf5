//! The server as a host of redirected calls: which files are ours, and how a refusal is told.

use std::ffi::{c_int, c_void};

use page_cipher::xts::Aes256Xts;
use pgrx::pg_sys;
use pgrx::prelude::*;
use redirect::{Host, SlotError};
use wal_cipher::engine::Failure;
use wal_cipher::name::{FileKind, SegmentName, classify};
use wal_cipher::segment::Found;
use wal_cipher::table::{Descriptors, Mode, Open};
use wal_cipher::unit::Place;

use crate::redirected::{self, DESCRIPTORS, ServerPolicy};
use crate::{report, staged};

/// The file that has no name yet: one for each process, so its tweaks need no name.
const STAGED_SALT: u64 = 0;

/// The server.
pub(crate) struct Server;

impl Host for Server {
    type Policy = ServerPolicy;

    fn descriptors() -> &'static Descriptors {
        &DESCRIPTORS
    }

    fn policy() -> Option<ServerPolicy> {
        redirected::table().map(ServerPolicy)
    }

    fn temporary_key() -> Option<&'static Aes256Xts> {
        redirected::temporary_key()
    }

    fn plan(path: &[u8], flags: c_int) -> Result<Option<Open>, c_int> {
        Ok(plan(path, flags))
    }

    fn staged_holds_data() {
        staged::holds_data();
    }

    fn before_name(from: &[u8], to: &[u8]) -> Result<(), Failure> {
        before_name(from, to)
    }

    fn failed(failure: Failure) -> c_int {
        match failure {
            Failure::Errno(number) => number,
            Failure::Forged(name) => {
                refuse(name, "is in clear where write-ahead log in clear is not accepted");
                libc::EKEYREJECTED
            }
            Failure::NoKey(_) => libc::ENOKEY,
        }
    }
}

/// Tells of a segment that is not accepted. In the startup process, which would take it for the end of the log and lose what
/// follows, it is the end of the server.
fn refuse(name: SegmentName, why: &str) {
    // SAFETY: plain globals of this process.
    let (critical, startup) = unsafe {
        (
            pg_sys::CritSectionCount > 0,
            pg_sys::MyBackendType == pg_sys::BackendType::B_STARTUP || pg_sys::InRecovery,
        )
    };
    if !critical {
        let refusal = Refusal { name, why, fatal: startup };
        // SAFETY: the refusal outlives the call.
        unsafe { tell((&raw const refusal).cast()) };
    }
}

struct Refusal<'a> {
    name: SegmentName,
    why: &'a str,
    fatal: bool,
}

/// Turns a panic of the report into the server's own error.
///
/// # Safety
/// `refusal` points to a [`Refusal`].
#[pg_guard]
unsafe extern "C-unwind" fn tell(refusal: *const c_void) {
    // SAFETY: the caller's promise.
    let refusal = unsafe { &*refusal.cast::<Refusal<'_>>() };
    report::segment_refused(&refusal.name.to_string(), refusal.why, refusal.fatal);
}

/// Whether this process opens segments to copy them as they are stored: the archiver and what runs in it, and a walsender that sends a
/// base backup. Such a walsender also writes WAL, as any backend.
fn copies_raw(flags: c_int) -> bool {
    if flags & libc::O_ACCMODE != libc::O_RDONLY {
        return false;
    }
    // SAFETY: plain globals of this process; `MyWalSnd` points into shared memory or is null.
    unsafe {
        let archiver = pg_sys::MyBackendType == pg_sys::BackendType::B_ARCHIVER;
        let sender = pg_sys::MyWalSnd;
        archiver || (!sender.is_null() && (*sender).state == pg_sys::WalSndState::WALSNDSTATE_BACKUP)
    }
}

/// What a file that is opened under this path will be.
fn plan(path: &[u8], flags: c_int) -> Option<Open> {
    let append = flags & libc::O_APPEND != 0;
    let open = |place, staged| Some(Open { place, mode: Mode::Undecided, append, staged });
    match classify(path) {
        FileKind::Segment { name, partial } if redirected::wal() && !copies_raw(flags) => {
            if !partial && flags & libc::O_ACCMODE == libc::O_RDONLY {
                staged::reads(name);
            }
            open(Place::Segment(name), false)
        }
        FileKind::Staged if redirected::wal() => {
            // It is opened again to be synced before it gets its name.
            if flags & libc::O_CREAT != 0 {
                staged::begun();
            }
            open(Place::Temporary { salt: STAGED_SALT }, true)
        }
        FileKind::Temporary { salt } if redirected::temporary_files() => {
            open(Place::Temporary { salt }, false)
        }
        _ => None,
    }
}

/// A file gets a name: what must happen before.
fn before_name(path: &[u8], target: &[u8]) -> Result<(), Failure> {
    if !redirected::wal() {
        return Ok(());
    }
    match (classify(path), classify(target)) {
        (FileKind::Staged, kind) if staged::take() => {
            let name = if let FileKind::Segment { name, .. } = kind { Some(name) } else { None };
            staged::give_name(path, name, STAGED_SALT)
        }
        (FileKind::Restored, FileKind::Segment { name, .. }) => match look(path, name)? {
            Found::Under(_) | Found::Plain => Ok(()),
            Found::Forged => Err(Failure::Forged(name)),
            Found::Unknown => {
                refuse(name, "came from the archive and opens under no key of the keyring");
                Err(Failure::Errno(libc::EKEYREJECTED))
            }
        },
        (
            FileKind::Segment { name: old, partial: false },
            FileKind::Segment { name: new, partial: false },
        ) if old != new => recycle(path, old),
        _ => Ok(()),
    }
}

fn look(path: &[u8], name: SegmentName) -> Result<Found, Failure> {
    let file = staged::open_raw(path)?;
    redirect::look::<Server>(staged::number(&file), name)
}

/// A segment that was written in clear does not stay readable for as long as its space waits to be used again.
fn recycle(path: &[u8], name: SegmentName) -> Result<(), Failure> {
    let encrypts = redirected::table().is_some_and(|table| table.write_version().is_some());
    if !encrypts || !matches!(look(path, name)?, Found::Plain | Found::Forged) {
        return Ok(());
    }
    staged::wipe(path)
}

/// Puts the hooks into the slots and proves that calls arrive.
///
/// # Errors
/// When this server build cannot be redirected as a whole.
pub(crate) fn install() -> Result<(), SlotError> {
    redirect::install::<Server>(&[c"close", c"read", c"write", c"rename"])?;
    // SAFETY: opens and closes a file that is always there, past fd.c's cache.
    let fd = unsafe { pg_sys::BasicOpenFile(c"/dev/null".as_ptr(), libc::O_RDONLY) };
    if fd >= 0 {
        // SAFETY: just opened.
        unsafe { libc::close(fd) };
    }
    if redirect::reached() { Ok(()) } else { Err(SlotError::NotReached("open")) }
}
