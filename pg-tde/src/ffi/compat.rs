//! Every difference between PostgreSQL major versions, in one place.

use std::fmt;

use pgrx::pg_sys;

/// The storage manager's functions and the shape of its table (src/backend/storage/smgr/{md,smgr}.c).
pub(crate) mod md {
    #[cfg(not(feature = "pg15"))]
    use std::ffi::c_int;
    use std::ffi::c_void;

    use pgrx::pg_sys::{BlockNumber, ForkNumber, SMgrRelation};

    macro_rules! storage_functions {
        ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
            unsafe extern "C-unwind" {
                $($(#[$meta])* pub(crate) fn $name($($arg: $ty),*) $(-> $ret)?;)*
            }
        };
    }

    storage_functions! {
        fn mdinit();
        fn mdopen(reln: SMgrRelation);
        fn mdclose(reln: SMgrRelation, fork: ForkNumber::Type);
        fn mdcreate(reln: SMgrRelation, fork: ForkNumber::Type, is_redo: bool);
        fn mdexists(reln: SMgrRelation, fork: ForkNumber::Type) -> bool;
        fn mdunlink();
        fn mdextend(reln: SMgrRelation, fork: ForkNumber::Type, block: BlockNumber, buffer: *const c_void, skip_fsync: bool);
        #[cfg(not(feature = "pg15"))]
        fn mdzeroextend(reln: SMgrRelation, fork: ForkNumber::Type, block: BlockNumber, blocks: c_int, skip_fsync: bool);
        fn mdprefetch();
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        fn mdread(reln: SMgrRelation, fork: ForkNumber::Type, block: BlockNumber, buffer: *mut c_void);
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        fn mdwrite(reln: SMgrRelation, fork: ForkNumber::Type, block: BlockNumber, buffer: *const c_void, skip_fsync: bool);
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        fn mdreadv(reln: SMgrRelation, fork: ForkNumber::Type, block: BlockNumber, buffers: *mut *mut c_void, blocks: BlockNumber);
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        fn mdwritev(reln: SMgrRelation, fork: ForkNumber::Type, block: BlockNumber, buffers: *const *const c_void, blocks: BlockNumber, skip_fsync: bool);
        fn mdwriteback();
        fn mdnblocks(reln: SMgrRelation, fork: ForkNumber::Type) -> BlockNumber;
        fn mdtruncate();
        fn mdimmedsync();
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        fn mdregistersync();
        #[cfg(feature = "pg18")]
        fn mdmaxcombine();
        #[cfg(feature = "pg18")]
        fn mdstartreadv();
        #[cfg(feature = "pg18")]
        fn mdfd();
    }

    /// The sequence of pointers of an unpatched server, in the order of `struct f_smgr`.
    pub(crate) fn expected() -> [usize; SLOTS] {
        [
            mdinit as *const () as usize,
            0, // smgr_shutdown
            mdopen as *const () as usize,
            mdclose as *const () as usize,
            mdcreate as *const () as usize,
            mdexists as *const () as usize,
            mdunlink as *const () as usize,
            mdextend as *const () as usize,
            #[cfg(not(feature = "pg15"))]
            (mdzeroextend as *const () as usize),
            mdprefetch as *const () as usize,
            #[cfg(feature = "pg18")]
            (mdmaxcombine as *const () as usize),
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            (mdread as *const () as usize),
            #[cfg(any(feature = "pg15", feature = "pg16"))]
            (mdwrite as *const () as usize),
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            (mdreadv as *const () as usize),
            #[cfg(feature = "pg18")]
            (mdstartreadv as *const () as usize),
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            (mdwritev as *const () as usize),
            mdwriteback as *const () as usize,
            mdnblocks as *const () as usize,
            mdtruncate as *const () as usize,
            mdimmedsync as *const () as usize,
            #[cfg(any(feature = "pg17", feature = "pg18"))]
            (mdregistersync as *const () as usize),
            #[cfg(feature = "pg18")]
            (mdfd as *const () as usize),
        ]
    }

    /// Pointers in the table.
    pub(crate) const SLOTS: usize = if cfg!(feature = "pg15") {
        15
    } else if cfg!(feature = "pg16") {
        16
    } else if cfg!(feature = "pg17") {
        17
    } else {
        20
    };

    /// Where the slots that are replaced stand in the table.
    pub(crate) mod slot {
        /// `smgr_close`
        pub(crate) const CLOSE: usize = 3;
        /// `smgr_create`
        pub(crate) const CREATE: usize = 4;
        /// `smgr_extend`
        pub(crate) const EXTEND: usize = 7;
        /// `smgr_read`, from 17 on `smgr_readv`
        pub(crate) const READ: usize = if cfg!(feature = "pg15") { 9 } else { 10 };
        /// `smgr_write`, from 17 on `smgr_writev`
        pub(crate) const WRITE: usize = READ + 1;
        /// `smgr_nblocks`
        pub(crate) const NBLOCKS: usize = if cfg!(feature = "pg18") { 15 } else { WRITE + 2 };
    }
}

/// What identifies the storage of a relation, whatever the server calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RelationId {
    /// OID of the tablespace.
    pub(crate) tablespace: u32,
    /// OID of the database, 0 for shared relations.
    pub(crate) database: u32,
    /// relfilenode (15), relfilenumber (16 and later).
    pub(crate) number: u32,
    /// Belongs to one session (`t*` files).
    pub(crate) temporary: bool,
}

impl fmt::Display for RelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} in tablespace {}", self.database, self.number, self.tablespace)
    }
}

/// The identity in an `SMgrRelation`.
pub(crate) fn relation_id(reln: &pg_sys::SMgrRelationData) -> RelationId {
    #[cfg(feature = "pg15")]
    {
        let node = reln.smgr_rnode;
        RelationId {
            tablespace: node.node.spcNode.to_u32(),
            database: node.node.dbNode.to_u32(),
            number: node.node.relNode.to_u32(),
            temporary: node.backend != pg_sys::InvalidBackendId,
        }
    }
    #[cfg(not(feature = "pg15"))]
    {
        let node = reln.smgr_rlocator;
        RelationId {
            tablespace: node.locator.spcOid.to_u32(),
            database: node.locator.dbOid.to_u32(),
            number: node.locator.relNumber.to_u32(),
            temporary: node.backend != -1,
        }
    }
}

#[cfg(feature = "pg15")]
fn locator(id: RelationId) -> pg_sys::RelFileNode {
    pg_sys::RelFileNode {
        spcNode: id.tablespace.into(),
        dbNode: id.database.into(),
        relNode: id.number.into(),
    }
}

#[cfg(not(feature = "pg15"))]
fn locator(id: RelationId) -> pg_sys::RelFileLocator {
    pg_sys::RelFileLocator {
        spcOid: id.tablespace.into(),
        dbOid: id.database.into(),
        relNumber: id.number.into(),
    }
}

/// Opens a permanent relation's storage.
///
/// # Safety
/// As `smgropen`: in a process with a storage manager.
pub(crate) unsafe fn open_relation(id: RelationId) -> pg_sys::SMgrRelation {
    // SAFETY: the caller's promise; -1 is the backend of permanent relations in every version.
    unsafe { pg_sys::smgropen(locator(id), -1) }
}

/// Reads and pins a page of a permanent relation.
///
/// # Safety
/// As `ReadBufferWithoutRelcache`.
pub(crate) unsafe fn read_buffer(
    id: RelationId,
    fork: pg_sys::ForkNumber::Type,
    block: u32,
) -> pg_sys::Buffer {
    let mode = pg_sys::ReadBufferMode::RBM_NORMAL;
    // SAFETY: the caller's promise; the default strategy is null.
    unsafe { pg_sys::ReadBufferWithoutRelcache(locator(id), fork, block, mode, std::ptr::null_mut(), true) }
}

/// Reads and pins a page of any persistence; one of zeros when `zero_on_error` and it is damaged.
///
/// # Safety
/// As `ReadBufferWithoutRelcache`.
pub(crate) unsafe fn read_page(
    id: RelationId,
    fork: pg_sys::ForkNumber::Type,
    block: u32,
    zero_on_error: bool,
    permanent: bool,
    strategy: pg_sys::BufferAccessStrategy,
) -> pg_sys::Buffer {
    use pg_sys::ReadBufferMode::{RBM_NORMAL, RBM_ZERO_ON_ERROR};
    let mode = if zero_on_error { RBM_ZERO_ON_ERROR } else { RBM_NORMAL };
    // SAFETY: the caller's promise.
    unsafe { pg_sys::ReadBufferWithoutRelcache(locator(id), fork, block, mode, strategy, permanent) }
}

/// Where the storage of an open relation is.
pub(crate) fn storage_of(relation: &pg_sys::RelationData) -> RelationId {
    let temporary = relation.rd_backend != -1;
    #[cfg(feature = "pg15")]
    {
        let node = relation.rd_node;
        let (tablespace, database) = (node.spcNode.to_u32(), node.dbNode.to_u32());
        RelationId { tablespace, database, number: node.relNode.to_u32(), temporary }
    }
    #[cfg(not(feature = "pg15"))]
    {
        let node = relation.rd_locator;
        let (tablespace, database) = (node.spcOid.to_u32(), node.dbOid.to_u32());
        RelationId { tablespace, database, number: node.relNumber.to_u32(), temporary }
    }
}

/// Whether this process holds a lock in a mode.
///
/// # Safety
/// `tag` is valid.
pub(crate) unsafe fn holds_lock(tag: *const pg_sys::LOCKTAG, mode: pg_sys::LOCKMODE) -> bool {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::LockHeldByMe(tag, mode)
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::LockHeldByMe(tag, mode, false)
    }
}

/// Reads block 0 through the server's exported entry point.
///
/// # Safety
/// As the server's function.
pub(crate) unsafe fn call_smgr_read(
    reln: pg_sys::SMgrRelation,
    fork: pg_sys::ForkNumber::Type,
    buffer: *mut u8,
) {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::smgrread(reln, fork, 0, buffer.cast())
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: the caller's promise.
    unsafe {
        let mut buffer = buffer.cast();
        pg_sys::smgrreadv(reln, fork, 0, &raw mut buffer, 1)
    }
}

/// Writes block 0 through the server's exported entry point.
///
/// # Safety
/// As the server's function.
pub(crate) unsafe fn call_smgr_write(
    reln: pg_sys::SMgrRelation,
    fork: pg_sys::ForkNumber::Type,
    buffer: *mut u8,
) {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::smgrwrite(reln, fork, 0, buffer.cast(), true)
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: the caller's promise.
    unsafe {
        let mut buffer = buffer.cast_const().cast();
        pg_sys::smgrwritev(reln, fork, 0, &raw mut buffer, 1, true)
    }
}

/// Path of the main fork's first segment, relative to the data directory.
pub(crate) fn relation_path(id: RelationId) -> String {
    // SAFETY: relpath.c formats numbers into memory of the current context; -1 is the backend of permanent relations.
    unsafe {
        let path = pg_sys::GetRelationPath(
            id.database.into(),
            id.tablespace.into(),
            id.number.into(),
            -1,
            pg_sys::ForkNumber::MAIN_FORKNUM,
        );
        #[cfg(not(feature = "pg18"))]
        {
            std::ffi::CStr::from_ptr(path).to_string_lossy().into_owned()
        }
        #[cfg(feature = "pg18")]
        {
            std::ffi::CStr::from_ptr(path.str_.as_ptr()).to_string_lossy().into_owned()
        }
    }
}

/// Installs a signal handler (`pqsignal` of port.h; a macro for `pqsignal_be` from version 18 on).
///
/// # Safety
/// In a process of the server; `handler` may do only what a signal handler may.
pub(crate) unsafe fn handle_signal(
    signal: std::ffi::c_int,
    handler: unsafe extern "C-unwind" fn(std::ffi::c_int),
) {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::pqsignal(signal, Some(handler));
        #[cfg(feature = "pg18")]
        pg_sys::pqsignal_be(signal, Some(handler));
    }
}
