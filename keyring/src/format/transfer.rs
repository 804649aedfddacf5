//! An export: what a WAL record carries to bring one scope to another node. Payload:
//!
//! ```text
//! root  u64 length, keyring.tde as it is
//! line  u64 length, the record file as it is
//! ```

use bincode::{Decode, Encode};

use super::{FrameKind, frame, unframe};
use crate::error::{KeyringError, Result};

/// Root and record as their files' bytes.
#[derive(Encode, Decode)]
pub(crate) struct Transfer {
    pub(crate) root: Vec<u8>,
    pub(crate) line: Vec<u8>,
}

impl Transfer {
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        frame(FrameKind::Transfer, self)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > super::MAX_LEN {
            return Err(KeyringError::BadTransfer { what: "it is too long" });
        }
        unframe(FrameKind::Transfer, bytes).map_err(|error| KeyringError::BadTransfer {
            what: match error {
                super::FrameError::NotOurs => "its first bytes are not those of a keyring record",
                super::FrameError::UnknownFormat(_) => "its format is of a newer release; update this server",
                super::FrameError::Truncated { .. } => "it is truncated",
                super::FrameError::Damaged(what) => what,
            },
        })
    }
}
