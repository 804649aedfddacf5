//! The audit log: who did what when, in one chain that cannot be cut, edited or reordered unnoticed.
//!
//! * Every record has a sequence number (no gaps), the boot counter, the time, the user, the event, its outcome and the
//!   hash of the record before it.
//! * Records written by somebody who is logged in carry a MAC under a key from the store key; whoever edits the file
//!   without a PIN cannot rebuild the chain. A failed login has no key, so its record has no MAC, but the hash in
//!   the next record with one vouches for it.
//! * The store's sealed root holds sequence, place and hash of the last record at the time the root was written: at every
//!   login, change and close. Records before this anchor cannot be cut off unnoticed.
//!
//! # The window
//! Only records *after* the anchor can be cut off unnoticed. Those are failed logins since the last login, change or close,
//! and, if a process was killed between appending and writing the root, the record it had just appended. Whoever puts an
//! old copy of the *whole* store back also gets the old log back.
//!
//! # Order
//! A change is logged before it is made. After a crash in between the log has a record of a change that did not happen;
//! there is never a change without a record.
//!
//! # After damage
//! A log whose end cannot be read lets nobody log in, as nothing could be logged. A crypto officer can then
//! [restart](crate::Hsm::restart_audit) it: the damaged files stay as they are, the chain goes on in a new one after the
//! last record that the root knows, and its first record says who did that and why.
//!
//! # Aggregation
//! Wraps and unwraps are counted in the session and logged as one record when it closes (or drops), so that readers never
//! wait for the log. A killed process loses its counts; its login without a logout shows that.

mod event;
mod log;
mod record;

use crate::error::ErrorKind;
use crate::store::StoreError;
use crate::time::Timestamp;

pub use event::{Event, KeyUsage, Outcome, Usage};
pub(crate) use log::{Entry, Snapshot, Start, Tail, append, begin, restart, tail_without_key, verify, walk};
pub use record::Record;
pub(crate) use record::{AuditKey, genesis};

/// What a check of the whole log found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditReport {
    /// Number of the first record: 1, or where an officer restarted the log after damage.
    pub first_sequence: u64,
    /// Number of the last record.
    pub last_sequence: u64,
    /// Number of records.
    pub records: u64,
    /// Number of files they are in.
    pub segments: u32,
    /// Number of files before those, set aside when the log was restarted; 0 if it never was.
    pub set_aside: u32,
    /// Time of the first record.
    pub first: Timestamp,
    /// Time of the last record.
    pub last: Timestamp,
    /// Boot counter of the last record.
    pub boots: u32,
    /// Whether MACs and the anchor were checked, which needs a login.
    pub authenticated: bool,
    /// Records at the end that no later MAC vouches for.
    pub unvouched: u64,
}

/// The audit log is not what was written, or cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Bytes of a record are not what was written.
    #[error("audit log: {segment} is damaged at byte {offset}, in record {sequence}: {what}")]
    Damaged {
        /// The file.
        segment: String,
        /// Offset of the record in it, in bytes.
        offset: u64,
        /// Sequence number that belongs there.
        sequence: u64,
        /// What does not hold.
        what: &'static str,
    },
    /// A record has the wrong number: records were removed, added or reordered.
    #[error(
        "audit log: {segment} at byte {offset} has record {found} where {expected} belongs: records were removed or reordered"
    )]
    Sequence {
        /// The file.
        segment: String,
        /// Offset of the record in it, in bytes.
        offset: u64,
        /// Sequence number that belongs there.
        expected: u64,
        /// Sequence number found.
        found: u64,
    },
    /// A record's hash of the one before does not match.
    #[error(
        "audit log: {segment}: record {sequence} does not continue the one before it: one of them was changed"
    )]
    Chain {
        /// The file.
        segment: String,
        /// The record.
        sequence: u64,
    },
    /// A record's MAC does not match, or is missing where one belongs.
    #[error("audit log: {segment}: record {sequence} was not written by this HSM: its MAC does not match")]
    Mac {
        /// The file.
        segment: String,
        /// The record.
        sequence: u64,
    },
    /// Records at the end are gone.
    #[error(
        "audit log: {segment} ends after record {found}, but record {expected} was written: the end was cut off"
    )]
    Truncated {
        /// The file where the end was expected.
        segment: String,
        /// Last record that must be there.
        expected: u64,
        /// Last record found.
        found: u64,
    },
    /// The record the root knows is another one.
    #[error(
        "audit log: {segment}: record {sequence} is not the one the HSM wrote: the log was rebuilt or put back"
    )]
    Anchor {
        /// The file.
        segment: String,
        /// The record.
        sequence: u64,
    },
    /// A file of the log is missing.
    #[error("audit log: {segment} is missing")]
    Missing {
        /// The file.
        segment: String,
    },
    /// The last record is incomplete.
    #[error(
        "audit log: {segment} ends with {bytes} bytes of an incomplete record, as a crash leaves them; the next \
         login drops them and says so in the log"
    )]
    Torn {
        /// The file.
        segment: String,
        /// Number of bytes.
        bytes: u64,
    },
    /// A restart was asked for, but the log is whole.
    #[error("audit log: it is whole; only a damaged log can be restarted")]
    Whole,
    /// A record is too long to be written.
    #[error("audit log: a record of {len} bytes is longer than {max}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
}

impl AuditError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Torn { .. } => "",
            _ if self.kind() == ErrorKind::Damaged => {
                "; if users cannot log in, the crypto officer can go on without this part: `tde hsm audit restart`"
            }
            _ => "",
        }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(_) => ErrorKind::HsmAway,
            Self::TooLong { .. } | Self::Whole => ErrorKind::Usage,
            _ => ErrorKind::Damaged,
        }
    }
}
