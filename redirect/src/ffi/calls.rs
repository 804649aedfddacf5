//! What stands in the executable's slots of libc's functions.
//!
//! A call for a descriptor that is not ours costs one look into a table and goes on to libc. Calls run in critical sections of the server too
//! (XLogWrite): no lock, no allocation while keys are as they were at the start, no message there; a failure is an `errno`, which the program
//! turns into what it does for a failing disk. No panic leaves a hook.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use libc::{iovec, off_t, size_t, ssize_t};
use wal_cipher::engine::{Engine, Failure};
use wal_cipher::file::{Raw, Scratch};
use wal_cipher::name::SegmentName;
use wal_cipher::segment::{Found, probe};
use wal_cipher::table::Open;

use super::slots::{Imports, Redirect, SlotError};
use crate::Host;

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
pub struct Descriptor(pub c_int);

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
///
/// # Errors
/// Of `work`; `EIO` without keys, `EDEADLK` within another call of this process.
pub fn with_engine<H: Host, R>(
    work: impl FnOnce(&mut Engine<'_, H::Policy>) -> Result<R, Failure>,
) -> Result<R, Failure> {
    let policy = H::policy().ok_or(Failure::Errno(libc::EIO))?;
    // A signal handler that interrupted a call of ours: no handler of these programs touches these files.
    if SPACE.taken.swap(true, Acquire) {
        return Err(Failure::Errno(libc::EDEADLK));
    }
    let _taken = Taken;
    // SAFETY: `taken` was false, so nobody else has a reference, and nobody gets one before `_taken` is dropped.
    let scratch = unsafe { &mut *SPACE.scratch.get() };
    let temporary = H::temporary_key();
    let mut engine = Engine { table: H::descriptors(), policy: &policy, temporary, scratch };
    guarded(|| work(&mut engine))
}

/// No panic leaves.
fn guarded<R>(work: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Failure::Errno(libc::EIO)))
}

/// Looks at the first page of the segment that is open as `fd`.
///
/// # Errors
/// As [`with_engine`], and of the system.
pub fn look<H: Host>(fd: c_int, name: SegmentName) -> Result<Found, Failure> {
    with_engine::<H, _>(|engine| Ok(probe(&Descriptor(fd), name, engine.policy, engine.scratch)?))
}

/// What the program gets to see.
fn answer<H: Host>(result: Result<usize, Failure>) -> ssize_t {
    match result {
        // A call moves at most 2^31 bytes on Linux.
        Ok(count) => count as ssize_t,
        Err(failure) => {
            set_errno(H::failed(failure));
            -1
        }
    }
}

fn bytes_of<'a>(path: *const c_char) -> &'a [u8] {
    if path.is_null() {
        return &[];
    }
    // SAFETY: the program passes NUL-terminated paths, which stay as they are during the call.
    unsafe { CStr::from_ptr(path) }.to_bytes()
}

unsafe extern "C-unwind" fn open<H: Host>(path: *const c_char, flags: c_int, mode: libc::mode_t) -> c_int {
    REACHED.store(true, Relaxed);
    let plan = match H::plan(bytes_of(path), flags) {
        Ok(Some(plan)) => plan,
        Ok(None) => {
            // SAFETY: the arguments as they came.
            let fd = unsafe { libc::open(path, flags, mode) };
            // The number may have been one of ours that was closed past us.
            H::descriptors().forget(fd);
            return fd;
        }
        Err(errno) => {
            set_errno(errno);
            return -1;
        }
    };
    // Parts of a block are read before they are written, and at offsets that O_APPEND would ignore.
    let mut flags = flags & !libc::O_APPEND;
    if flags & libc::O_ACCMODE == libc::O_WRONLY {
        flags = flags & !libc::O_ACCMODE | libc::O_RDWR;
    }
    // SAFETY: the arguments as they came, but for flags.
    let fd = unsafe { libc::open(path, flags, mode) };
    if fd >= 0 && !H::descriptors().set(fd, plan) {
        // SAFETY: just opened.
        unsafe { libc::close(fd) };
        set_errno(libc::EMFILE);
        return -1;
    }
    fd
}

unsafe extern "C-unwind" fn close<H: Host>(fd: c_int) -> c_int {
    H::descriptors().forget(fd);
    // SAFETY: the argument as it came.
    unsafe { libc::close(fd) }
}

fn read_ours<H: Host>(fd: c_int, open: Open, buffer: *mut c_void, count: size_t, offset: off_t) -> ssize_t {
    if offset < 0 {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the program passes a buffer of that length.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), count) };
    answer::<H>(with_engine::<H, _>(|engine| engine.read(fd, open, &Descriptor(fd), buffer, offset as u64)))
}

fn write_ours<H: Host>(fd: c_int, open: Open, data: *const c_void, count: size_t, offset: off_t) -> ssize_t {
    if offset < 0 {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the program passes data of that length, which nobody changes meanwhile: WAL buffers that are being
    // written are full or under WALWriteLock (a page that is still being filled changes only behind what is valid).
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), count) };
    let allowed = guarded(|| H::before_write(fd, open, data, offset as u64));
    answer::<H>(allowed.and_then(|()| {
        with_engine::<H, _>(|engine| {
            let written = engine.write(fd, open, &Descriptor(fd), data, offset as u64)?;
            if open.staged && data.iter().any(|byte| *byte != 0) {
                H::staged_holds_data();
            }
            Ok(written)
        })
    }))
}

unsafe extern "C-unwind" fn pread<H: Host>(
    fd: c_int,
    buffer: *mut c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    match H::descriptors().get(fd) {
        // SAFETY: the arguments as they came.
        None => unsafe { libc::pread(fd, buffer, count, offset) },
        Some(open) => read_ours::<H>(fd, open, buffer, count, offset),
    }
}

unsafe extern "C-unwind" fn pwrite<H: Host>(
    fd: c_int,
    data: *const c_void,
    count: size_t,
    offset: off_t,
) -> ssize_t {
    match H::descriptors().get(fd) {
        // SAFETY: the arguments as they came.
        None => unsafe { libc::pwrite(fd, data, count, offset) },
        Some(open) => write_ours::<H>(fd, open, data, count, offset),
    }
}

/// The file position of a descriptor of ours; `None` for what is no file: the number was closed past us and is something else.
fn file_position<H: Host>(fd: c_int, open: Open) -> Option<off_t> {
    let whence = if open.append { libc::SEEK_END } else { libc::SEEK_CUR };
    // SAFETY: no memory is involved.
    let position = unsafe { libc::lseek(fd, 0, whence) };
    if position < 0 {
        H::descriptors().forget(fd);
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

unsafe extern "C-unwind" fn read<H: Host>(fd: c_int, buffer: *mut c_void, count: size_t) -> ssize_t {
    if let Some(open) = H::descriptors().get(fd)
        && let Some(position) = file_position::<H>(fd, Open { append: false, ..open })
    {
        return advance(fd, position, read_ours::<H>(fd, open, buffer, count, position));
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::read(fd, buffer, count) }
}

unsafe extern "C-unwind" fn write<H: Host>(fd: c_int, data: *const c_void, count: size_t) -> ssize_t {
    if let Some(open) = H::descriptors().get(fd)
        && let Some(position) = file_position::<H>(fd, open)
    {
        return advance(fd, position, write_ours::<H>(fd, open, data, count, position));
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::write(fd, data, count) }
}

/// `read` of a build with `_FORTIFY_SOURCE`.
unsafe extern "C-unwind" fn read_checked<H: Host>(
    fd: c_int,
    buffer: *mut c_void,
    count: size_t,
    room: size_t,
) -> ssize_t {
    if count > room {
        std::process::abort(); // as the C library does
    }
    // SAFETY: the arguments as they came.
    unsafe { read::<H>(fd, buffer, count) }
}

/// `pread` of a build with `_FORTIFY_SOURCE`.
unsafe extern "C-unwind" fn pread_checked<H: Host>(
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
    unsafe { pread::<H>(fd, buffer, count, offset) }
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
        // SAFETY: the program passes a vector of that length.
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

unsafe extern "C-unwind" fn preadv<H: Host>(
    fd: c_int,
    vector: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    match H::descriptors().get(fd) {
        // SAFETY: the arguments as they came.
        None => unsafe { libc::preadv(fd, vector, count, offset) },
        Some(_) => in_turn(vector, count, offset, |piece, offset| {
            // SAFETY: a piece of the program's vector.
            unsafe { pread::<H>(fd, piece.iov_base, piece.iov_len, offset) }
        }),
    }
}

unsafe extern "C-unwind" fn pwritev<H: Host>(
    fd: c_int,
    vector: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    let is_zero = |piece: &iovec| {
        // SAFETY: a piece of the program's vector.
        let data = unsafe { std::slice::from_raw_parts(piece.iov_base.cast::<u8>(), piece.iov_len) };
        data.iter().all(|byte| *byte == 0)
    };
    let Some(open) = H::descriptors().get(fd) else {
        // SAFETY: the arguments as they came.
        return unsafe { libc::pwritev(fd, vector, count, offset) };
    };
    // SAFETY: the program passes a vector of that length.
    let pieces = unsafe { std::slice::from_raw_parts(vector, usize::try_from(count).unwrap_or(0)) };
    if open.staged && pieces.iter().all(is_zero) {
        // A new segment is filled with zeros, which stay zeros.
        // SAFETY: the arguments as they came.
        return unsafe { libc::pwritev(fd, vector, count, offset) };
    }
    in_turn(vector, count, offset, |piece, offset| {
        // SAFETY: a piece of the program's vector.
        unsafe { pwrite::<H>(fd, piece.iov_base, piece.iov_len, offset) }
    })
}

unsafe extern "C-unwind" fn dup<H: Host>(fd: c_int) -> c_int {
    // SAFETY: the argument as it came.
    let copy = unsafe { libc::dup(fd) };
    note_copy::<H>(fd, copy)
}

unsafe extern "C-unwind" fn dup2<H: Host>(fd: c_int, target: c_int) -> c_int {
    // SAFETY: the arguments as they came.
    let copy = unsafe { libc::dup2(fd, target) };
    note_copy::<H>(fd, copy)
}

fn note_copy<H: Host>(fd: c_int, copy: c_int) -> c_int {
    if copy >= 0 && copy != fd && !H::descriptors().copy(fd, copy) {
        // SAFETY: just made.
        unsafe { libc::close(copy) };
        set_errno(libc::EMFILE);
        return -1;
    }
    copy
}

unsafe extern "C-unwind" fn ftruncate<H: Host>(fd: c_int, size: off_t) -> c_int {
    match H::descriptors().get(fd) {
        Some(open) if size >= 0 => {
            let result = with_engine::<H, _>(|engine| engine.set_size(open, &Descriptor(fd), size as u64));
            answer::<H>(result.map(|()| 0)) as c_int
        }
        // SAFETY: the arguments as they came.
        _ => unsafe { libc::ftruncate(fd, size) },
    }
}

unsafe extern "C-unwind" fn mmap<H: Host>(
    address: *mut c_void,
    length: size_t,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    if flags & libc::MAP_ANONYMOUS == 0 && H::descriptors().is_ours(fd) {
        set_errno(libc::EACCES);
        return libc::MAP_FAILED;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::mmap(address, length, protection, flags, fd, offset) }
}

unsafe extern "C-unwind" fn copy_file_range<H: Host>(
    from: c_int,
    from_offset: *mut off_t,
    to: c_int,
    to_offset: *mut off_t,
    length: size_t,
    flags: libc::c_uint,
) -> ssize_t {
    if H::descriptors().is_ours(from) || H::descriptors().is_ours(to) {
        set_errno(libc::EXDEV); // as between file systems: the caller reads and writes instead, or fails
        return -1;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::copy_file_range(from, from_offset, to, to_offset, length, flags) }
}

unsafe extern "C-unwind" fn sendfile<H: Host>(
    to: c_int,
    from: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    if H::descriptors().is_ours(from) || H::descriptors().is_ours(to) {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::sendfile(to, from, offset, count) }
}

unsafe extern "C-unwind" fn rename<H: Host>(from: *const c_char, to: *const c_char) -> c_int {
    if !before_name::<H>(from, to) {
        return -1;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::rename(from, to) }
}

unsafe extern "C-unwind" fn link<H: Host>(from: *const c_char, to: *const c_char) -> c_int {
    if !before_name::<H>(from, to) {
        return -1;
    }
    // SAFETY: the arguments as they came.
    unsafe { libc::link(from, to) }
}

/// A file gets a name: what must happen before. `false` with `errno` set when it must not.
fn before_name<H: Host>(from: *const c_char, to: *const c_char) -> bool {
    let result = guarded(|| H::before_name(bytes_of(from), bytes_of(to)));
    answer::<H>(result.map(|()| 0)) == 0
}

/// Puts the hooks into the slots. The caller has one thread; whether calls arrive is what [`reached`] says.
///
/// # Errors
/// When this build of the program cannot be redirected as a whole, or does not call one of `required`; nothing is changed then.
#[rustfmt::skip]
pub fn install<H: Host>(required: &[&CStr]) -> Result<(), SlotError> {
    let redirect = |name, hook| Redirect { name, hook, required: required.contains(&name) };
    // Both names of a function with 64-bit offsets may be used; a program uses one.
    Imports::find()?.replace(&[
        redirect(c"open", open::<H> as *const () as usize), redirect(c"open64", open::<H> as *const () as usize),
        redirect(c"close", close::<H> as *const () as usize),
        redirect(c"read", read::<H> as *const () as usize), redirect(c"__read_chk", read_checked::<H> as *const () as usize),
        redirect(c"write", write::<H> as *const () as usize),
        redirect(c"pread", pread::<H> as *const () as usize), redirect(c"pread64", pread::<H> as *const () as usize),
        redirect(c"__pread_chk", pread_checked::<H> as *const () as usize), redirect(c"__pread64_chk", pread_checked::<H> as *const () as usize),
        redirect(c"pwrite", pwrite::<H> as *const () as usize), redirect(c"pwrite64", pwrite::<H> as *const () as usize),
        redirect(c"preadv", preadv::<H> as *const () as usize), redirect(c"preadv64", preadv::<H> as *const () as usize),
        redirect(c"pwritev", pwritev::<H> as *const () as usize), redirect(c"pwritev64", pwritev::<H> as *const () as usize),
        redirect(c"dup", dup::<H> as *const () as usize), redirect(c"dup2", dup2::<H> as *const () as usize),
        redirect(c"ftruncate", ftruncate::<H> as *const () as usize), redirect(c"ftruncate64", ftruncate::<H> as *const () as usize),
        redirect(c"mmap", mmap::<H> as *const () as usize), redirect(c"mmap64", mmap::<H> as *const () as usize),
        redirect(c"copy_file_range", copy_file_range::<H> as *const () as usize),
        redirect(c"sendfile", sendfile::<H> as *const () as usize), redirect(c"sendfile64", sendfile::<H> as *const () as usize),
        redirect(c"rename", rename::<H> as *const () as usize), redirect(c"link", link::<H> as *const () as usize),
    ])
}

/// Whether a call of `open` has arrived since [`install`].
pub fn reached() -> bool {
    REACHED.load(Relaxed)
}
