//! What stands in the executable's slots of libc's functions.
//!
//! A call for a descriptor that is not ours costs one look into a table and goes on to libc. Calls run in critical sections too
//! (XLogWrite): no lock, no allocation while keys are as they were at the start, no message there; a failure is an `errno`, which the server
//! turns into what it does for a failing disk. No panic leaves a hook.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use libc::{iovec, off_t, size_t, ssize_t};
use pgrx::pg_sys;
use pgrx::prelude::*;
use wal_cipher::engine::{Engine, Failure};
use wal_cipher::file::{Raw, Scratch};
use wal_cipher::name::{FileKind, SegmentName, classify};
use wal_cipher::segment::{Found, probe};
use wal_cipher::table::{Mode, Open};
use wal_cipher::unit::Place;

use super::got::{Imports, Redirect, SlotError};
use crate::redirect::{self, DESCRIPTORS, ServerPolicy};
use crate::{report, staged};

/// The file that has no name yet: one for each process, so its tweaks need no name.
const STAGED_SALT: u64 = 0;

static REACHED: AtomicBool = AtomicBool::new(false);

/// Working space of this process.
struct Space {
    taken: AtomicBool,
    scratch: UnsafeCell<Scratch>,
}

// SAFETY: `scratch` is touched only by whoever changed `taken` from false to true, until it is changed back.
unsafe impl Sync for Space {}

static SPACE: Space = Space { taken: AtomicBool::new(false), scratch: UnsafeCell::new(Scratch::new()) };

/// Gives the space back.
struct Taken;

impl Drop for Taken {
    fn drop(&mut self) {
        SPACE.taken.store(false, Release);
    }
}

/// A descriptor, past the slots.
pub(crate) struct Descriptor(pub(crate) c_int);

fn errno() -> c_int {
    // SAFETY: the address of this thread's errno.
    unsafe { *libc::__errno_location() }
}

fn set_errno(value: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

fn counted(result: ssize_t) -> Result<usize, c_int> {
    usize::try_from(result).map_err(|_| errno())
}

impl Raw for Descriptor {
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, c_int> {
        // SAFETY: a buffer of that length.
        counted(unsafe { libc::pread(self.0, buffer.as_mut_ptr().cast(), buffer.len(), offset as off_t) })
    }

    fn write(&self, data: &[u8], offset: u64) -> Result<usize, c_int> {
        // SAFETY: data of that length.
        counted(unsafe { libc::pwrite(self.0, data.as_ptr().cast(), data.len(), offset as off_t) })
    }

    fn size(&self) -> Result<u64, c_int> {
        // SAFETY: all-zero bytes are a valid `stat`, which the call fills in.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            if libc::fstat(self.0, &raw mut stat) == 0 {
                Ok(stat.st_size.unsigned_abs())
            } else {
                Err(errno())
            }
        }
    }

    fn set_size(&self, size: u64) -> Result<(), c_int> {
        // SAFETY: no memory is involved.
        if unsafe { libc::ftruncate(self.0, size as off_t) } == 0 { Ok(()) } else { Err(errno()) }
    }
}

/// Runs `work` with everything that a call needs.
fn with_engine<R>(
    work: impl FnOnce(&mut Engine<'_, ServerPolicy>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let table = redirect::table().ok_or(Failure::Errno(libc::EIO))?;
    // A signal handler that interrupted a call of ours: no handler of the server touches these files.
    if SPACE.taken.swap(true, Acquire) {
        return Err(Failure::Errno(libc::EDEADLK));
    }
    let _taken = Taken;
    let policy = ServerPolicy(table);
    // SAFETY: `taken` was false, so nobody else has a reference, and nobody gets one before `_taken` is dropped.
    let scratch = unsafe { &mut *SPACE.scratch.get() };
    let temporary = redirect::temporary_key();
    let mut engine = Engine { table: &DESCRIPTORS, policy: &policy, temporary, scratch };
    catch_unwind(AssertUnwindSafe(|| work(&mut engine))).unwrap_or(Err(Failure::Errno(libc::EIO)))
}

/// What the server gets to see.
fn answer(result: Result<usize, Failure>) -> ssize_t {
    match result {
        // A call moves at most 2^31 bytes on Linux.
        Ok(count) => count as ssize_t,
        Err(failure) => {
            let number = match failure {
                Failure::Errno(number) => number,
                Failure::Forged(name) => {
                    refuse(name, "is in clear where write-ahead log in clear is not accepted");
                    libc::EKEYREJECTED
                }
                Failure::NoKey(_) => libc::ENOKEY,
            };
            set_errno(number);
            -1
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

fn bytes_of<'a>(path: *const c_char) -> &'a [u8] {
    if path.is_null() {
        return &[];
    }
    // SAFETY: the server passes NUL-terminated paths, which stay as they are during the call.
    unsafe { CStr::from_ptr(path) }.to_bytes()
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
        FileKind::Segment { name, .. } if redirect::wal() && !copies_raw(flags) => {
            open(Place::Segment(name), false)
        }
        FileKind::Staged if redirect::wal() => {
            // It is opened again to be synced before it gets its name.
            if flags & libc::O_CREAT != 0 {
                staged::begun();
            }
            open(Place::Temporary { salt: STAGED_SALT }, true)
        }
        FileKind::Temporary { salt } if redirect::temporary_files() => open(Place::Temporary { salt }, false),
        _ => None,
    }
}

unsafe extern "C-unwind" fn open(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    REACHED.store(true, Relaxed);
    let Some(plan) = plan(bytes_of(path), flags) else {
        // SAFETY: the arguments as they came.
        let fd = unsafe { libc::open(path, flags, mode) };
        // The number may have been one of ours that was closed past us.
        DESCRIPTORS.forget(fd);
        return fd;
    };
    // Parts of a block are read before they are written, and at offsets that O_APPEND would ignore.
    let mut flags = flags & !libc::O_APPEND;
    if flags & libc::O_ACCMODE == libc::O_WRONLY {
        flags = flags & !libc::O_ACCMODE | libc::O_RDWR;
    }
    // SAFETY: the arguments as they came, but for flags.
    let fd = unsafe { libc::open(path, flags, mode) };
    if fd >= 0 && !DESCRIPTORS.set(fd, plan) {
        // SAFETY: just opened.
        unsafe { libc::close(fd) };
        set_errno(libc::EMFILE);
        return -1;
    }
    fd
}

unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    DESCRIPTORS.forget(fd);
    // SAFETY: the argument as it came.
    unsafe { libc::close(fd) }
}

fn read_ours(fd: c_int, open: Open, buffer: *mut c_void, count: size_t, offset: off_t) -> ssize_t {
    if offset < 0 {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the server passes a buffer of that length.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), count) };
    answer(with_engine(|engine| engine.read(fd, open, &Descriptor(fd), buffer, offset as u64)))
}

fn write_ours(fd: c_int, open: Open, data: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    if offset < 0 {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the server passes data of that length, which nobody changes meanwhile: WAL buffers that are being
    // written are full or under WALWriteLock (a page that is still being filled changes only behind what is valid).
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), count) };
    answer(with_engine(|engine| {
        let written = engine.write(fd, open, &Descriptor(fd), data, offset as u64)?;
        if open.staged && data.iter().any(|byte| *byte != 0) {
            staged::holds_data();
        }
        Ok(written)
    }))
}

unsafe extern "C-unwind" fn pread(fd: c_int, buffer: *mut c_void, count: size_t, offset: off_t) -> ssize_t {
    match DESCRIPTORS.get(fd) {
        // SAFETY: the arguments as they came.
        None => unsafe { libc::pread(fd, buffer, count, offset) },
        Some(open) => read_ours(fd, open, buffer, count, offset),
    }
}

unsafe extern "C-unwind" fn pwrite(fd: c_int, data: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    match DESCRIPTORS.get(fd) {
        // SAFETY: the arguments as they came.
        None => unsafe { libc::pwrite(fd, data, count, offset) },
        Some(open) => write_ours(fd, open, data, count, offset),
    }
}

/// The file position of a descriptor of ours; `None` for what is no file: the number was closed past us and is something else.
fn file_position(fd: c_int, open: Open) -> Option<off_t> {
    let whence = if open.append { libc::SEEK_END } else { libc::SEEK_CUR };
    // SAFETY: no memory is involved.
    let position = unsafe { libc::lseek(fd, 0, whence) };
    if position < 0 {
        DESCRIPTORS.forget(fd);
    }
    (position >= 0).then_some(position)
}

fn advance(fd: c_int, position: off_t, by: ssize_t) -> ssize_t {
    // SAFETY: no memory is involved.
    if by > 0 && unsafe { libc::lseek(fd, position + by as off_t, libc::SEEK_SET) } < 0 {
        return -1;
    }
    by
}

unsafe extern "C-unwind" fn read(fd: c_int, buffer: *mut c_void, count: size_t) -> ssize_t {
    if let Some(open) = DESCRIPTORS.get(fd)
        && let Some(position) = file_position(fd, Open { append: false, ..open })
    {
        return advance(fd, position, read_ours(fd, open, buffer, count, position));
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::read(fd, buffer, count) }
}

unsafe extern "C-unwind" fn write(fd: c_int, data: *const c_void, count: size_t) -> ssize_t {
    if let Some(open) = DESCRIPTORS.get(fd)
        && let Some(position) = file_position(fd, open)
    {
        return advance(fd, position, write_ours(fd, open, data, count, position));
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::write(fd, data, count) }
}

/// `read` of a build with `_FORTIFY_SOURCE`.
unsafe extern "C-unwind" fn read_checked(
    fd: c_int,
    buffer: *mut c_void,
    count: size_t,
    room: size_t,
) -> ssize_t {
    if count > room {
        std::process::abort(); // as the C library does
    }
    // SAFETY: the arguments as they came.
    unsafe { read(fd, buffer, count) }
}

/// `pread` of a build with `_FORTIFY_SOURCE`.
unsafe extern "C-unwind" fn pread_checked(
    fd: c_int,
    buffer: *mut c_void,
    count: size_t,
    offset: off_t,
    room: size_t,
) -> ssize_t {
    if count > room {
        std::process::abort(); // as the C library does
    }
    // SAFETY: the arguments as they came.
    unsafe { pread(fd, buffer, count, offset) }
}

/// The pieces of a vector one after the other, until one is short.
fn in_turn(
    vector: *const iovec,
    count: c_int,
    mut offset: off_t,
    step: impl Fn(&iovec, off_t) -> ssize_t,
) -> ssize_t {
    let mut total = 0;
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the server passes a vector of that length.
        let piece = unsafe { &*vector.add(index) };
        let done = step(piece, offset);
        if done < 0 {
            return if total > 0 { total } else { done };
        }
        total += done;
        offset += done as off_t;
        if done.unsigned_abs() < piece.iov_len {
            break;
        }
    }
    total
}

unsafe extern "C-unwind" fn preadv(fd: c_int, vector: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    match DESCRIPTORS.get(fd) {
        // SAFETY: the arguments as they came.
        None => unsafe { libc::preadv(fd, vector, count, offset) },
        Some(_) => in_turn(vector, count, offset, |piece, offset| {
            // SAFETY: a piece of the server's vector.
            unsafe { pread(fd, piece.iov_base, piece.iov_len, offset) }
        }),
    }
}

unsafe extern "C-unwind" fn pwritev(fd: c_int, vector: *const iovec, count: c_int, offset: off_t) -> ssize_t {
    let is_zero = |piece: &iovec| {
        // SAFETY: a piece of the server's vector.
        let data = unsafe { std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len) };
        data.iter().all(|byte| *byte == 0)
    };
    let Some(open) = DESCRIPTORS.get(fd) else {
        // SAFETY: the arguments as they came.
        return unsafe { libc::pwritev(fd, vector, count, offset) };
    };
    // SAFETY: the server passes a vector of that length.
    let pieces = unsafe { std::slice::from_raw_parts(vector, usize::try_from(count).unwrap_or(0)) };
    if open.staged && pieces.iter().all(is_zero) {
        // A new segment is filled with zeros, which stay zeros.
        // SAFETY: the arguments as they came.
        return unsafe { libc::pwritev(fd, vector, count, offset) };
    }
    in_turn(vector, count, offset, |piece, offset| {
        // SAFETY: a piece of the server's vector.
        unsafe { pwrite(fd, piece.iov_base, piece.iov_len, offset) }
    })
}

unsafe extern "C-unwind" fn dup(fd: c_int) -> c_int {
    // SAFETY: the argument as it came.
    let copy = unsafe { libc::dup(fd) };
    note_copy(fd, copy)
}

unsafe extern "C-unwind" fn dup2(fd: c_int, target: c_int) -> c_int {
    // SAFETY: the arguments as they came.
    let copy = unsafe { libc::dup2(fd, target) };
    note_copy(fd, copy)
}

fn note_copy(fd: c_int, copy: c_int) -> c_int {
    if copy >= 0 && copy != fd && !DESCRIPTORS.copy(fd, copy) {
        // SAFETY: just made.
        unsafe { libc::close(copy) };
        set_errno(libc::EMFILE);
        return -1;
    }
    copy
}

unsafe extern "C-unwind" fn ftruncate(fd: c_int, size: off_t) -> c_int {
    match DESCRIPTORS.get(fd) {
        Some(open) if size >= 0 => {
            let result = with_engine(|engine| engine.set_size(open, &Descriptor(fd), size as u64));
            answer(result.map(|()| 0)) as c_int
        }
        // SAFETY: the arguments as they came.
        _ => unsafe { libc::ftruncate(fd, size) },
    }
}

unsafe extern "C-unwind" fn mmap(
    address: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    if flags & libc::MAP_ANONYMOUS == 0 && DESCRIPTORS.is_ours(fd) {
        set_errno(libc::EACCES);
        return libc::MAP_FAILED;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::mmap(address, length, protection, flags, fd, offset) }
}

unsafe extern "C-unwind" fn copy_file_range(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    length: size_t,
    flags: libc::c_uint,
) -> ssize_t {
    if DESCRIPTORS.is_ours(from) || DESCRIPTORS.is_ours(to) {
        set_errno(libc::EXDEV); // as between file systems: the caller reads and writes instead, or fails
        return -1;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::copy_file_range(from, from_offset, to, to_offset, length, flags) }
}

unsafe extern "C-unwind" fn sendfile(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t {
    if DESCRIPTORS.is_ours(from) || DESCRIPTORS.is_ours(to) {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::sendfile(to, from, offset, count) }
}

unsafe extern "C-unwind" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    if !before_name(from, to) {
        return -1;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::rename(from, to) }
}

unsafe extern "C-unwind" fn link(from: *const c_char, to: *const c_char) -> c_int {
    if !before_name(from, to) {
        return -1;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::link(from, to) }
}

/// A file gets a name: what must happen before. `false` with `errno` set when it must not.
fn before_name(from: *const c_char, to: *const c_char) -> bool {
    if !redirect::wal() {
        return true;
    }
    let (path, target) = (bytes_of(from), bytes_of(to));
    let result = match (classify(path), classify(target)) {
        (FileKind::Staged, kind) if staged::take() => {
            let name = if let FileKind::Segment { name, .. } = kind { Some(name) } else { None };
            guarded(|| staged::give_name(path, name, STAGED_SALT))
        }
        (FileKind::Restored, FileKind::Segment { name, .. }) => match guarded(|| look(path, name)) {
            Ok(Found::Under(_) | Found::Plain) => Ok(()),
            Ok(Found::Forged) => Err(Failure::Forged(name)),
            Ok(Found::Unknown) => {
                refuse(name, "came from the archive and opens under no key of the keyring");
                Err(Failure::Errno(libc::EKEYREJECTED))
            }
            Err(failure) => Err(failure),
        },
        (
            FileKind::Segment { name: old, partial: false },
            FileKind::Segment { name: new, partial: false },
        ) if old != new => guarded(|| recycle(path, old)),
        _ => Ok(()),
    };
    answer(result.map(|()| 0)) == 0
}

/// No panic leaves.
fn guarded<R>(work: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Failure::Errno(libc::EIO)))
}

fn look(path: &[u8], name: SegmentName) -> Result<Found, Failure> {
    let file = staged::open_raw(path)?;
    with_engine(|engine| Ok(probe(&Descriptor(staged::number(&file)), name, engine.policy, engine.scratch)?))
}

/// A segment that was written in clear does not stay readable for as long as its space waits to be used again.
fn recycle(path: &[u8], name: SegmentName) -> Result<(), Failure> {
    let encrypts = redirect::table().is_some_and(|table| table.write_version().is_some());
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
    let imports = Imports::find()?;
    let optional = |name, hook| Redirect { name, hook, required: false };
    let required = |name, hook| Redirect { name, hook, required: true };
    #[rustfmt::skip]
    imports.replace(&[
        // Both names of a function with 64-bit offsets may be used; a server uses one.
        optional(c"open", open as *const () as usize), optional(c"open64", open as *const () as usize),
        required(c"close", close as *const () as usize),
        required(c"read", read as *const () as usize), optional(c"__read_chk", read_checked as *const () as usize),
        required(c"write", write as *const () as usize),
        optional(c"pread", pread as *const () as usize), optional(c"pread64", pread as *const () as usize),
        optional(c"__pread_chk", pread_checked as *const () as usize), optional(c"__pread64_chk", pread_checked as *const () as usize),
        optional(c"pwrite", pwrite as *const () as usize), optional(c"pwrite64", pwrite as *const () as usize),
        optional(c"preadv", preadv as *const () as usize), optional(c"preadv64", preadv as *const () as usize),
        optional(c"pwritev", pwritev as *const () as usize), optional(c"pwritev64", pwritev as *const () as usize),
        optional(c"dup", dup as *const () as usize), optional(c"dup2", dup2 as *const () as usize),
        optional(c"ftruncate", ftruncate as *const () as usize), optional(c"ftruncate64", ftruncate as *const () as usize),
        optional(c"mmap", mmap as *const () as usize), optional(c"mmap64", mmap as *const () as usize),
        optional(c"copy_file_range", copy_file_range as *const () as usize),
        optional(c"sendfile", sendfile as *const () as usize), optional(c"sendfile64", sendfile as *const () as usize),
        required(c"rename", rename as *const () as usize), optional(c"link", link as *const () as usize),
    ])?;
    // SAFETY: opens and closes a file that is always there, past fd.c's cache.
    let fd = unsafe { pg_sys::BasicOpenFile(c"/dev/null".as_ptr(), libc::O_RDONLY) };
    if fd >= 0 {
        // SAFETY: just opened.
        unsafe { libc::close(fd) };
    }
    if REACHED.load(Relaxed) { Ok(()) } else { Err(SlotError::NotReached("open")) }
}
