//! `keyring.tde`, the root: what concerns the keyring as a whole. Payload in this order:
//!
//! ```text
//! facts    keyring id 16 | owner tag u32 (0 PostgreSQL cluster, then system identifier u64; 1 files)
//!          | created u64 | master key id 16 | master key label (u64 length, UTF-8)
//!          | generation u64 | next line u64 | sum 32 | key check 16 | u64 count, drafts: line u64
//! wrapped  master-key version u32 | keyring key under AES-KW 40
//! nonce    12
//! tag      16: AES-256-GCM-SIV of nothing, AAD "TDEKROOT" | format version u16 | facts as above
//! ```
//!
//! The seal leaves `wrapped` out: AES-KW covers it and the key check binds it, so the keyring key can be
//! wrapped anew without the seal key.

use std::path::Path;

use bincode::{Decode, Encode};
use uuid::Uuid;

use super::{FORMAT_VERSION, FrameKind, encode, frame, unframe};
use crate::error::{KeyringError, Result};
use crate::ids::{KeyringId, LineNumber, MasterKeyId};
use crate::keyring::Owner;
use crate::master::WrappedKey;
use crate::seal::{NONCE_LEN, Seal, TAG_LEN};
use crate::sum::Sum;

/// Longest master-key label kept, in bytes.
pub(crate) const MAX_LABEL: usize = 255;

/// What the seal covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootFacts {
    pub(crate) keyring: KeyringId,
    pub(crate) owner: Owner,
    pub(crate) created: u64,
    pub(crate) master_key: MasterKeyId,
    pub(crate) label: String,
    /// Counts every change but re-wrapping.
    pub(crate) generation: u64,
    pub(crate) next_line: LineNumber,
    pub(crate) sum: Sum,
    pub(crate) key_check: [u8; 16],
    /// Lines that were never put to use, ascending: not in the sum, and not missed where they are missing.
    pub(crate) drafts: Vec<LineNumber>,
}

/// The root as its file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) facts: RootFacts,
    pub(crate) wrapped: WrappedKey,
    pub(crate) nonce: [u8; NONCE_LEN],
    pub(crate) tag: [u8; TAG_LEN],
}

#[derive(Encode, Decode)]
struct Payload {
    facts: Facts,
    wrapped: Wrapped,
    nonce: [u8; NONCE_LEN],
    tag: [u8; TAG_LEN],
}

#[derive(Encode, Decode)]
struct Facts {
    keyring: [u8; 16],
    owner: OwnerTag,
    created: u64,
    master_key: [u8; 16],
    label: String,
    generation: u64,
    next_line: u64,
    sum: [u8; 32],
    key_check: [u8; 16],
    drafts: Vec<u64>,
}

#[derive(Encode, Decode)]
enum OwnerTag {
    PgCluster(u64),
    Files,
}

#[derive(Encode, Decode)]
pub(super) struct Wrapped {
    pub(super) master_version: u32,
    pub(super) bytes: [u8; 40],
}

impl Root {
    /// Seals `facts` under a fresh nonce.
    pub(crate) fn sealed(facts: RootFacts, wrapped: WrappedKey, seal: &Seal) -> Result<Self> {
        let mut nonce = [0; NONCE_LEN];
        secret_mem::random(&mut nonce)?;
        Self::sealed_with(facts, wrapped, seal, nonce)
    }

    pub(crate) fn sealed_with(
        facts: RootFacts,
        wrapped: WrappedKey,
        seal: &Seal,
        nonce: [u8; NONCE_LEN],
    ) -> Result<Self> {
        if facts.label.len() > MAX_LABEL {
            return Err(KeyringError::Limit { what: "the length of a master key's label", limit: MAX_LABEL });
        }
        let sealed = seal.seal(&nonce, &aad(&facts)?, &[])?;
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&sealed);
        Ok(Self { facts, wrapped, nonce, tag })
    }

    pub(crate) fn check_seal(&self, seal: &Seal, path: &Path) -> Result<()> {
        match seal.open(&self.nonce, &aad(&self.facts)?, &self.tag) {
            Some(_) => Ok(()),
            None => Err(KeyringError::SealMismatch { path: path.into() }),
        }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let payload = Payload {
            facts: facts_to_wire(&self.facts),
            wrapped: Wrapped { master_version: self.wrapped.version, bytes: self.wrapped.bytes },
            nonce: self.nonce,
            tag: self.tag,
        };
        frame(FrameKind::Root, &payload)
    }

    /// Checks structure and CRC; the seal needs a key (`check_seal`).
    pub(crate) fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        let payload: Payload = unframe(FrameKind::Root, bytes).map_err(|error| error.at(path))?;
        let facts = payload.facts;
        let ascending = facts.drafts.is_sorted_by(|one, next| one < next);
        if facts.label.len() > MAX_LABEL || facts.next_line == 0 || facts.generation == 0 || !ascending {
            return Err(KeyringError::Damaged { path: path.into(), what: "its numbers make no sense" });
        }
        Ok(Self {
            facts: RootFacts {
                keyring: KeyringId(Uuid::from_bytes(facts.keyring)),
                owner: match facts.owner {
                    OwnerTag::PgCluster(system_identifier) => Owner::PgCluster { system_identifier },
                    OwnerTag::Files => Owner::Files,
                },
                created: facts.created,
                master_key: MasterKeyId(facts.master_key),
                label: facts.label,
                generation: facts.generation,
                next_line: LineNumber(facts.next_line),
                sum: Sum::from_bytes(facts.sum),
                key_check: facts.key_check,
                drafts: facts.drafts.into_iter().map(LineNumber).collect(),
            },
            wrapped: WrappedKey { version: payload.wrapped.master_version, bytes: payload.wrapped.bytes },
            nonce: payload.nonce,
            tag: payload.tag,
        })
    }
}

fn facts_to_wire(facts: &RootFacts) -> Facts {
    Facts {
        keyring: *facts.keyring.0.as_bytes(),
        owner: match facts.owner {
            Owner::PgCluster { system_identifier } => OwnerTag::PgCluster(system_identifier),
            Owner::Files => OwnerTag::Files,
        },
        created: facts.created,
        master_key: facts.master_key.0,
        label: facts.label.clone(),
        generation: facts.generation,
        next_line: facts.next_line.0,
        sum: facts.sum.to_bytes(),
        key_check: facts.key_check,
        drafts: facts.drafts.iter().map(|line| line.0).collect(),
    }
}

fn aad(facts: &RootFacts) -> Result<Vec<u8>> {
    let mut aad = FrameKind::Root.magic().to_vec();
    aad.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    aad.extend_from_slice(&encode(&facts_to_wire(facts))?);
    Ok(aad)
}
