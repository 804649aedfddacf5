//! Bytes on disk. Every file, and every export, is one frame (docs/formats/keyring.md):
//!
//! ```text
//!  0   8  magic: "TDEKROOT", "TDEKLINE" or "TDEKXFER"
//!  8   2  format version, little-endian: 1
//! 10   2  zero
//! 12   4  payload length in bytes, little-endian
//! 16   4  CRC-32 (IEEE) over bytes 0..16 and the payload, little-endian
//! 20   n  payload: bincode 2, little-endian, fixed-width integers, lengths as u64, enum tags as u32
//! ```
//!
//! The CRC finds rot and torn copies before any key is at hand; seals find edits.

pub(crate) mod line;
pub(crate) mod root;
pub(crate) mod transfer;

use std::path::{Path, PathBuf};

use bincode::config::{self, Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use crate::error::{KeyringError, Result};

/// The format this program reads and writes.
pub(crate) const FORMAT_VERSION: u16 = 1;
/// Longest file or export, in bytes; nothing larger is ever read into memory.
pub(crate) const MAX_LEN: usize = 1 << 20;
pub(crate) const HEADER_LEN: usize = 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<MAX_LEN>> =
    config::standard().with_fixed_int_encoding().with_limit::<MAX_LEN>();

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Root,
    Line,
    Transfer,
}

impl FrameKind {
    pub(crate) fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Root => b"TDEKROOT",
            Self::Line => b"TDEKLINE",
            Self::Transfer => b"TDEKXFER",
        }
    }
}

/// Why a frame was refused, before it is known to which file that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameError {
    NotOurs,
    UnknownFormat(u16),
    Truncated { len: usize, expected: usize },
    Damaged(&'static str),
}

impl FrameError {
    pub(crate) fn at(self, path: &Path) -> KeyringError {
        let path = PathBuf::from(path);
        match self {
            Self::NotOurs => {
                KeyringError::NotAKeyring { path, reason: "its first bytes are not those of a keyring file" }
            }
            Self::UnknownFormat(found) => {
                KeyringError::UnknownFormat { path, found, supported: FORMAT_VERSION }
            }
            Self::Truncated { len, expected } => {
                KeyringError::Truncated { path, len: len as u64, expected: expected as u64 }
            }
            Self::Damaged(what) => KeyringError::Damaged { path, what },
        }
    }
}

/// Wraps `payload` into a frame.
pub(crate) fn frame<T: Encode>(kind: FrameKind, payload: &T) -> Result<Vec<u8>> {
    let payload = encode(payload)?;
    let too_long = KeyringError::Limit { what: "a keyring file", limit: MAX_LEN };
    let Ok(len) = u32::try_from(payload.len()) else { return Err(too_long) };
    if payload.len() > MAX_LEN - HEADER_LEN {
        return Err(too_long);
    }
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend_from_slice(kind.magic());
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&len.to_le_bytes());
    let crc = crc_of(&bytes, &payload);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// Checks a frame and decodes its payload.
pub(crate) fn unframe<T: Decode<()>>(kind: FrameKind, bytes: &[u8]) -> Result<T, FrameError> {
    let truncated = |expected| FrameError::Truncated { len: bytes.len(), expected };
    let magic = bytes.get(..8).ok_or(truncated(HEADER_LEN))?;
    if magic != kind.magic() {
        return Err(FrameError::NotOurs);
    }
    let (header, payload) = bytes.split_at_checked(HEADER_LEN).ok_or(truncated(HEADER_LEN))?;
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version != FORMAT_VERSION {
        return Err(FrameError::UnknownFormat(version));
    }
    let len = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
    if payload.len() < len {
        return Err(truncated(HEADER_LEN.saturating_add(len)));
    }
    if payload.len() > len {
        return Err(FrameError::Damaged("it is longer than its header says"));
    }
    let crc = u32::from_le_bytes([header[16], header[17], header[18], header[19]]);
    if crc != crc_of(&header[..16], payload) {
        return Err(FrameError::Damaged("its CRC-32 does not match"));
    }
    if header[10..12] != [0; 2] {
        return Err(FrameError::Damaged("its reserved bytes are not zero"));
    }
    decode(payload).ok_or(FrameError::Damaged("its contents cannot be decoded"))
}

/// Bincode of `value` in this format's configuration.
pub(crate) fn encode<T: Encode>(value: &T) -> Result<Vec<u8>> {
    bincode::encode_to_vec(value, CONFIG)
        .map_err(|_| KeyringError::Limit { what: "a keyring file", limit: MAX_LEN })
}

/// Decodes all of `bytes`; nothing may be left over.
pub(crate) fn decode<T: Decode<()>>(bytes: &[u8]) -> Option<T> {
    match bincode::decode_from_slice(bytes, CONFIG) {
        Ok((value, used)) if used == bytes.len() => Some(value),
        _ => None,
    }
}

fn crc_of(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}
