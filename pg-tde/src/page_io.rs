//! What happens to a page on its way between a buffer and the disk.

use std::sync::atomic::Ordering::Relaxed;

use page_cipher::pg::{self, Fork, OpenError, Page, SealError, UnsupportedCipher};
use secret_mem::RandomError;

use crate::destroy::{self, Gone};
use crate::ffi::compat::RelationId;
use crate::ffi::server;
use crate::key_table::{KeyTable, TableError};
use crate::keys::{self, KeyError};
use crate::placeholder;
use crate::process::{Process, Reading, Regime};
use crate::trial;

/// Why a page cannot be encrypted or decrypted. A page that merely fails to open is not among these: it goes to the
/// buffer manager as an invalid page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PageError {
    /// The key table in shared memory.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The key of the line cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No randomness for the key of temporary relations.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The cipher does not suit PostgreSQL pages.
    #[error(transparent)]
    Cipher(#[from] UnsupportedCipher),
    /// The page is not one that could be read back.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// What a page is cannot be told.
    #[error(
        "the page is valid in two ways, as it can be once in 2^43 pages while a tablespace is converted: dump the relation's other pages and restore it"
    )]
    Ambiguous,
    /// A stand-in for a torn page must never reach the disk.
    #[error("the stand-in for a torn page was about to be written")]
    Placeholder,
}

/// What became of a page that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// The buffer holds what PostgreSQL wrote.
    Page,
    /// A torn map page: the buffer holds zeros, from which the server rebuilds it.
    TornMap,
    /// A torn page in recovery: the buffer holds a stand-in until an image replaces it.
    Placeholder,
    /// The buffer holds a page that the server will refuse.
    Refused(Cause),
}

/// The likely cause of a page that does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The checksum of the ciphertext is wrong: torn or rotten.
    Damaged {
        /// Checksum found in the page.
        stored: u16,
        /// Checksum of the bytes found.
        computed: u16,
    },
    /// The checksum of the ciphertext is right: wrong key, moved page or tampering.
    NotAuthentic,
    /// A page in clear in an encrypted tablespace.
    Plain,
    /// It is from when the tablespace was under a key that was destroyed.
    Destroyed(Gone),
}

/// Where a page belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageAddress {
    /// The relation.
    pub(crate) relation: RelationId,
    /// The fork.
    pub(crate) fork: Fork,
    /// The block in the fork.
    pub(crate) block: u32,
}

/// How the relation's pages are stored, with its key unwrapped if there is one.
///
/// # Errors
/// When a key is needed and cannot be had.
pub(crate) fn regime_with_key(table: &'static KeyTable, relation: RelationId) -> Result<Regime, PageError> {
    let (regime, have) = Process::with(table, |process| {
        let regime = process.regime(relation)?;
        let have = match regime {
            Regime::Plain | Regime::Decrypting => true,
            _ => process.cipher(relation, regime)?.is_some(),
        };
        Ok::<_, PageError>((regime, have))
    })?;
    if !have && let Regime::Line(line) = regime {
        keys::unwrap_line(table, line)?;
    }
    Ok(regime)
}

/// Makes sure that the process that replays the WAL has the key before it makes a file: it can wait for the HSM, while the
/// checkpointer, which may be the first to need the key of a new page (16 and later extend files without a page), cannot.
///
/// # Errors
/// When the key cannot be had, and waiting does not help.
pub(crate) fn key_for_redo(table: &'static KeyTable, relation: RelationId) -> Result<(), PageError> {
    let regime = Process::with(table, |process| process.regime(relation))?;
    match regime {
        Regime::Line(line) if !table.has_dek(line.index) => Ok(keys::unwrap_line(table, line)?),
        _ => Ok(()),
    }
}

/// Decrypts a page that was just read into `page`.
///
/// # Errors
/// Only when the key cannot be had: a missing key must never look like a damaged page, which
/// `zero_damaged_pages` would wipe.
pub(crate) fn open(table: &'static KeyTable, at: PageAddress, page: &mut Page) -> Result<Opened, PageError> {
    let regime = match Process::with(table, |process| process.reading(at.relation))? {
        Reading::Only(Regime::Plain) => return Ok(Opened::Page),
        _ if pg::is_zero(page) => return Ok(Opened::Page),
        Reading::Only(regime) => regime,
        Reading::AnyOf { regimes, plain, decrypting } => {
            return trial::open(table, at, trial::Candidates { regimes: &regimes, plain, decrypting }, page);
        }
    };
    match open_under(table, at, regime, page)? {
        Ok(()) => Ok(Opened::Page),
        Err(error) => Ok(refuse(table, at, &error, page)),
    }
}

/// Decrypts a page under one key, which is unwrapped if need be. Inside: the page does not open and is unchanged.
///
/// # Errors
/// When the key cannot be had.
pub(crate) fn open_under(
    table: &'static KeyTable,
    at: PageAddress,
    regime: Regime,
    page: &mut Page,
) -> Result<Result<(), OpenError>, PageError> {
    loop {
        let opened = Process::with(table, |process| {
            let pid = process.pid;
            let data_checksums = process.data_checksums;
            let Some((cipher, _)) = process.cipher(at.relation, regime)? else { return Ok(None) };
            let result = cipher.open(at.fork, at.block, page);
            let counters = process.table.counters(pid);
            if result.is_ok() {
                counters.opened.fetch_add(1, Relaxed);
                if data_checksums {
                    pg::set_checksum(page, at.block);
                }
            }
            Ok::<_, PageError>(Some(result))
        })?;
        match (opened, regime) {
            (Some(result), _) => return Ok(result),
            (None, Regime::Line(line)) => keys::unwrap_line(table, line)?,
            // Keys of temporary relations are made when they are needed.
            (None, _) => return Ok(Err(OpenError::NotAuthentic)),
        }
    }
}

/// Decides what the buffer manager gets for a page that does not open.
pub(crate) fn refuse(
    table: &'static KeyTable,
    at: PageAddress,
    error: &OpenError,
    page: &mut Page,
) -> Opened {
    let counters = table.counters(server::pid());
    let cause = match *error {
        // Ciphertext, torn or not, has no valid header.
        _ if pg::header_is_valid(page, at.fork) => Cause::Plain,
        OpenError::ChecksumMismatch { stored, computed } => Cause::Damaged { stored, computed },
        _ => Cause::NotAuthentic,
    };
    let torn = matches!(cause, Cause::Damaged { .. });
    if (torn || cause == Cause::Plain) && matches!(at.fork, Fork::Fsm | Fork::Vm) {
        // These maps are not protected against torn writes; the server takes a zero page for "nothing known". In clear they are where a
        // standby had pages that its primary's job could not know of.
        counters.torn_maps.fetch_add(1, Relaxed);
        page.fill(0);
        return Opened::TornMap;
    }
    if torn && at.fork == Fork::Main && placeholder::wanted() && placeholder::remember(table, at) {
        counters.placeholders.fetch_add(1, Relaxed);
        placeholder::fill(page, at.block);
        return Opened::Placeholder;
    }
    let gone = || destroy::key_of_page(table, at.relation.tablespace, pg::lsn(page));
    let cause = match cause {
        Cause::NotAuthentic if !at.relation.temporary => gone().map_or(cause, Cause::Destroyed),
        cause => cause,
    };
    counters.refused.fetch_add(1, Relaxed);
    make_invalid(page, at.block);
    Opened::Refused(cause)
}

/// A page that fails PostgreSQL's header test and its checksum, whatever the settings are.
fn make_invalid(page: &mut Page, block: u32) {
    page.fill(0xff);
    let wrong = !pg::checksum(page, block);
    page[8..10].copy_from_slice(&wrong.to_le_bytes());
}

/// What a writer must do with the page in the scratch buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// Write the server's buffer as it is.
    Unchanged,
    /// Write the scratch page of this process.
    Scratch {
        /// `pd_lsn` of the page.
        lsn: u64,
    },
}

/// Encrypts the page that `copy` puts into the scratch page of this process.
///
/// The copy is made once and everything, the LSN in the tweak too, is taken from it: another process may set
/// hint bits in the buffer meanwhile.
///
/// # Errors
/// When the key cannot be had, or the page is not one that could be read back.
pub(crate) fn seal(
    table: &'static KeyTable,
    at: PageAddress,
    copy: &mut dyn FnMut(&mut Page),
) -> Result<Sealed, PageError> {
    let mut regime = Process::with(table, |process| process.regime(at.relation))?;
    if regime == Regime::Plain {
        return Ok(Sealed::Unchanged);
    }
    if regime == Regime::Decrypting {
        return Process::with(table, |process| seal_in_clear(at, &mut process.scratch.0, copy));
    }
    loop {
        let sealed = Process::with(table, |process| {
            let pid = process.pid;
            let Some((cipher, page)) = process.cipher(at.relation, regime)? else { return Ok(None) };
            copy(page);
            let lsn = pg::lsn(page);
            if lsn == placeholder::LSN {
                return Err(PageError::Placeholder);
            }
            if pg::is_bare_init(page) {
                // Written without WAL: torn, it would be lost. A zero page means the same to the server.
                page.fill(0);
            }
            cipher.seal(at.fork, at.block, page)?;
            process.table.counters(pid).sealed.fetch_add(1, Relaxed);
            Ok(Some(lsn))
        })?;
        match sealed {
            Some(lsn) => return Ok(Sealed::Scratch { lsn }),
            None => regime = regime_with_key(table, at.relation)?,
        }
    }
}

/// A page in clear where a page may be encrypted. With a checksum also if the server wants none: it tells a whole page from a torn one
/// that begins in clear and ends encrypted.
fn seal_in_clear(
    at: PageAddress,
    page: &mut Page,
    copy: &mut dyn FnMut(&mut Page),
) -> Result<Sealed, PageError> {
    copy(page);
    let lsn = pg::lsn(page);
    if lsn == placeholder::LSN {
        return Err(PageError::Placeholder);
    }
    if !pg::is_zero(page) {
        pg::set_checksum(page, at.block);
    }
    Ok(Sealed::Scratch { lsn })
}
