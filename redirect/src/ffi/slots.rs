//! Finds and replaces the slots through which the running executable calls libc.
//!
//! The slots are named by the dynamic relocations of the running executable. Nothing is changed unless every function that could carry
//! the contents of a file is one that we redirect or know to be harmless: a server build that uses another path is refused, and
//! never half-encrypted.

use std::ffi::{CStr, c_char, c_int, c_void};

/// Why the server's calls cannot be redirected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// The executable has no dynamic section that we can read.
    #[error("the executable has no dynamic relocations")]
    NoRelocations,
    /// The executable calls what would carry data past us.
    #[error("this build of the program calls {0}, through which data could pass unencrypted")]
    UnknownPath(String),
    /// The executable does not call what every server calls.
    #[error("this build of the program does not call {0}")]
    Missing(&'static str),
    /// A slot does not hold libc's function.
    #[error("the slot of {0} does not hold the function of the C library: another library redirects it")]
    Taken(&'static str),
    /// The memory cannot be made writable.
    #[error("cannot change the protection of the slots: {0}")]
    Protect(std::io::Error),
    /// A call did not arrive.
    #[error("the program's calls of {0} do not arrive")]
    NotReached(&'static str),
}

/// One function that is redirected.
pub struct Redirect {
    /// Its name in the executable's symbol table.
    pub name: &'static CStr,
    /// What takes its place.
    pub hook: usize,
    /// Every program that is redirected calls it.
    pub required: bool,
}

/// Functions of the C library and of liburing that open files, or carry contents of files, and that are neither redirected nor in
/// [`BY_USE`]. A program that calls one of these is refused.
const REFUSED: &[&str] = &[
    "openat",
    "openat64",
    "openat2",
    "__openat_2",
    "__openat64_2",
    "creat",
    "creat64",
    "open_by_handle_at",
    "preadv2",
    "preadv64v2",
    "pwritev2",
    "pwritev64v2",
    "readv",
    "writev",
    "vmsplice",
    "tee",
    "process_vm_readv",
    "process_vm_writev",
    "syscall",
    "dup3",
    "renameat",
    "renameat2",
    "linkat",
    "aio_read",
    "aio_read64",
    "aio_write",
    "aio_write64",
    "lio_listio",
    "lio_listio64",
    "io_setup",
    "io_submit",
    "mmap2",
    "remap_file_pages",
    "fdopen",
    "truncate64",
];

/// The same by beginning.
const REFUSED_PREFIX: &[&str] = &["io_uring_"];

/// Functions that could carry data of files but are not used for ours, with what PostgreSQL uses them for (read in 15 to 17). Not in
/// this list: what cannot carry file data at all.
#[rustfmt::skip]
#[allow(dead_code, reason = "a list for readers: what is not refused is let through")]
const BY_USE: &[(&str, &str)] = &[
    ("fopen fopen64 freopen fread fwrite fgets fgetc getc fputc fputs fprintf fscanf", "text: configuration, labels, history, relation cache, statistics, COPY to and from files of the user"),
    ("popen system", "programs of the administrator"),
    ("fcntl", "flags of descriptors; F_DUPFD is not used"),
    ("posix_fallocate fallocate", "space, which reads as zeros"),
    ("truncate", "relation files"),
    ("lseek", "positions and sizes, which are those of the file"),
    ("mmap", "shared memory; refused at run time for a file of ours"),
    ("recv send sendto recvfrom", "sockets"),
    ("shm_open", "shared memory"),
    ("copy_file_range sendfile splice", "refused at run time for a file of ours"),
];

const JUMP_SLOT: u32 = if cfg!(target_arch = "aarch64") { 1026 } else { 7 };
const GLOB_DAT: u32 = if cfg!(target_arch = "aarch64") { 1025 } else { 6 };
const ABSOLUTE: u32 = if cfg!(target_arch = "aarch64") { 257 } else { 1 };

/// `Elf64_Dyn`
#[repr(C)]
struct Dynamic {
    tag: i64,
    value: u64,
}

/// `Elf64_Rela`
#[repr(C)]
struct Relocation {
    offset: u64,
    info: u64,
    addend: i64,
}

/// `Elf64_Sym`
#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

/// The executable's imports and where their addresses are.
#[derive(Default)]
pub struct Imports {
    slots: Vec<(&'static CStr, *mut usize)>,
    /// Memory that is read-only after start.
    relro: (usize, usize),
    /// An address in the executable: that of its program headers.
    inside: usize,
}

/// # Safety
/// Called by `dl_iterate_phdr` only, with `data` pointing to an `Imports`.
unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: the dynamic linker hands out a valid `info`; `data` is what `find` passed in. The first object is the executable.
    unsafe {
        let imports = &mut *data.cast::<Imports>();
        read_relocations(&*info, imports);
    }
    1
}

/// # Safety
/// `info` describes an object that is loaded and stays loaded.
unsafe fn read_relocations(info: &libc::dl_phdr_info, imports: &mut Imports) {
    let base = info.dlpi_addr as usize;
    imports.inside = info.dlpi_phdr as usize;
    let (mut dynamic, mut strings, mut symbols) = (None, 0, 0);
    for index in 0..usize::from(info.dlpi_phnum) {
        // SAFETY: `dlpi_phdr` points to `dlpi_phnum` program headers.
        let header = unsafe { &*info.dlpi_phdr.add(index) };
        let start = base + header.p_vaddr as usize;
        match header.p_type {
            libc::PT_DYNAMIC => dynamic = Some(start as *const Dynamic),
            libc::PT_GNU_RELRO => imports.relro = (start, start + header.p_memsz as usize),
            _ => (),
        }
    }
    let Some(mut entry) = dynamic else { return };
    let (mut tables, mut sizes) = ([0; 2], [0; 2]);
    // SAFETY: the dynamic section ends with a null tag; its addresses were relocated by the linker (glibc) and lie in
    // the object's loaded segments.
    unsafe {
        while (*entry).tag != 0 {
            let value = (*entry).value as usize;
            match (*entry).tag {
                5 => strings = value,    // DT_STRTAB
                6 => symbols = value,    // DT_SYMTAB
                7 => tables[0] = value,  // DT_RELA
                8 => sizes[0] = value,   // DT_RELASZ
                23 => tables[1] = value, // DT_JMPREL
                2 => sizes[1] = value,   // DT_PLTRELSZ
                _ => (),
            }
            entry = entry.add(1);
        }
    }
    if strings == 0 || symbols == 0 {
        return;
    }
    for (table, size) in tables.into_iter().zip(sizes).filter(|(table, _)| *table != 0) {
        // SAFETY: the section says that this many relocations stand there, and they refer to symbols and names of the
        // object, which is the executable and never unloaded.
        unsafe {
            for index in 0..size / size_of::<Relocation>() {
                let relocation = &*(table as *const Relocation).add(index);
                let kind = relocation.info as u32;
                let symbol = &*(symbols as *const Symbol).add((relocation.info >> 32) as usize);
                if !matches!(kind, JUMP_SLOT | GLOB_DAT | ABSOLUTE) || symbol.section != 0 {
                    continue;
                }
                let name = CStr::from_ptr((strings + symbol.name as usize) as *const c_char);
                imports.slots.push((name, (base + relocation.offset as usize) as *mut usize));
            }
        }
    }
}

impl Imports {
    /// Reads the imports of the running executable and makes sure that they are known.
    ///
    /// # Errors
    /// [`SlotError::NoRelocations`], [`SlotError::UnknownPath`]
    pub fn find() -> Result<Self, SlotError> {
        let mut imports = Self::default();
        // SAFETY: the callback matches and `imports` outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut imports).cast()) };
        if imports.slots.is_empty() {
            return Err(SlotError::NoRelocations);
        }
        let refused =
            imports.slots.iter().map(|(name, _)| name.to_string_lossy()).find(|name| is_refused(name));
        match refused {
            Some(name) => Err(SlotError::UnknownPath(name.into_owned())),
            None => Ok(imports),
        }
    }

    /// Puts hooks into the slots.
    ///
    /// # Errors
    /// When a slot is missing or does not hold libc's function (nothing is changed then), or the memory cannot be protected.
    pub fn replace(&self, redirects: &[Redirect]) -> Result<(), SlotError> {
        let mut changes = Vec::new();
        for redirect in redirects {
            // SAFETY: looks up a NUL-terminated name in the objects that are loaded.
            let function = unsafe { libc::dlsym(libc::RTLD_DEFAULT, redirect.name.as_ptr()) } as usize;
            let name = redirect.name.to_str().unwrap_or("a function");
            let mut found = false;
            for (_, slot) in self.slots.iter().filter(|(import, _)| *import == redirect.name) {
                // SAFETY: a relocation of the executable says that an address stands there.
                let current = unsafe { slot.read_volatile() };
                // A slot that is bound when it is first used still points into the executable.
                if current != function && !self.is_inside(current) {
                    return Err(SlotError::Taken(name));
                }
                changes.push((*slot, redirect.hook));
                found = true;
            }
            if redirect.required && !found {
                return Err(SlotError::Missing(name));
            }
        }
        for (slot, hook) in changes {
            self.write(slot, hook)?;
        }
        Ok(())
    }

    /// Whether an address is in the executable itself: that of a slot which is not bound yet.
    fn is_inside(&self, address: usize) -> bool {
        // SAFETY: all-zero bytes are a valid `Dl_info`, which `dladdr` fills in when it returns something else than 0.
        let object = |address: usize| unsafe {
            let mut info: libc::Dl_info = std::mem::zeroed();
            (libc::dladdr(address as *const c_void, &raw mut info) != 0).then_some(info.dli_fbase)
        };
        object(address).is_some_and(|base| object(self.inside) == Some(base))
    }

    fn write(&self, slot: *mut usize, value: usize) -> Result<(), SlotError> {
        let page = rustix::param::page_size();
        let start = slot as usize & !(page - 1);
        let read_only = (self.relro.0..self.relro.1).contains(&(slot as usize));
        let protect = |protection| {
            // SAFETY: one page of the executable's relocated data; making it writable invalidates no reference.
            let failed = unsafe { libc::mprotect(start as *mut c_void, page, protection) } != 0;
            if failed { Err(SlotError::Protect(std::io::Error::last_os_error())) } else { Ok(()) }
        };
        protect(libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: an aligned word that a relocation names, writable now; the caller promises a single thread.
        unsafe { slot.write_volatile(value) };
        if read_only { protect(libc::PROT_READ) } else { Ok(()) }
    }
}

fn is_refused(name: &str) -> bool {
    REFUSED.contains(&name) || REFUSED_PREFIX.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_nobody_redirects_are_refused() {
        for name in ["openat", "pwritev2", "io_uring_prep_write", "syscall", "aio_write"] {
            assert!(is_refused(name), "{name}");
        }
        for name in ["open", "pread64", "fopen", "memcpy", "recv", "getppid"] {
            assert!(!is_refused(name), "{name}");
        }
    }
}
