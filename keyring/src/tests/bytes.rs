//! The bytes on disk, pinned: a change here is a change of the format and needs a new version number.

use std::path::Path;

use page_cipher::CipherId;
use secret_mem::SecretBytes;
use uuid::Uuid;

use super::support::*;
use crate::format::line::LineRecord;
use crate::format::root::{Root, RootFacts};
use crate::format::transfer::Transfer;
use crate::seal::{KEYRING_KEY, Seal, key_check};
use crate::sum::{Sum, SumKey};
use crate::*;

fn secret(byte: u8) -> SecretBytes<32> {
    let mut secret = SecretBytes::zeroed();
    secret.expose_mut().fill(byte);
    secret
}

fn keyring_id() -> KeyringId {
    KeyringId(Uuid::from_bytes(std::array::from_fn(|index| index as u8)))
}

fn pinned_root() -> (Root, Seal) {
    let key = secret(0x42);
    let seal = Seal::derive(&key);
    let sum = SumKey::derive(seal.key()).term(LineNumber(1), 3);
    let facts = RootFacts {
        keyring: keyring_id(),
        owner: CLUSTER,
        created: 1_700_000_000,
        master_key: MasterKeyId([0xAB; 16]),
        label: "master".into(),
        generation: 4,
        next_line: LineNumber(3),
        sum,
        key_check: key_check(&key, keyring_id(), KEYRING_KEY.0, KEYRING_KEY.1),
        drafts: vec![LineNumber(2)],
    };
    let wrapped = WrappedKey { version: 7, bytes: [0xCD; 40] };
    (Root::sealed_with(facts, wrapped, &seal, [0x33; 12]).unwrap(), seal)
}

fn pinned_scope() -> Scope {
    let dek = secret(0x55);
    let version = |version, state, wrapped| DekVersion {
        version: KeyVersion(version),
        state,
        created: 1_700_000_001,
        check: key_check(&dek, keyring_id(), LineNumber(1), KeyVersion(version)),
        wrapped,
    };
    let wrapped = |byte| Some(WrappedKey { version: 7, bytes: [byte; 40] });
    Scope {
        keyring: keyring_id(),
        line: LineNumber(1),
        record_version: 3,
        kind: ScopeKind::PgTablespace { oid: 16385, name: "secure".into() },
        cipher: CipherId::Aes256Hctr2,
        created: 1_700_000_001,
        versions: vec![
            version(1, DekState::Destroyed { at: 1_700_000_009 }, None),
            version(2, DekState::PendingDestruction { not_before: 1_800_000_000 }, wrapped(0xE2)),
            version(3, DekState::DecryptOnly, wrapped(0xE3)),
            version(4, DekState::Active, wrapped(0xE4)),
        ],
        history: vec![
            state(0x0100_0000, TablespaceState::Encrypting),
            state(0x0200_0000, TablespaceState::Encrypted),
        ],
    }
}

#[test]
fn the_root_is_these_bytes() {
    let (root, seal) = pinned_root();
    let bytes = root.to_bytes().unwrap();
    assert_eq!(hex::encode(&bytes), include_str!("golden/root.hex").trim());
    let again = Root::from_bytes(&bytes, Path::new("root")).unwrap();
    again.check_seal(&seal, Path::new("root")).unwrap();
    assert_eq!(again, root);
}

#[test]
fn a_record_is_these_bytes() {
    let (_, seal) = pinned_root();
    let record = LineRecord::seal_with(&pinned_scope(), &seal, [0x44; 12]).unwrap();
    let bytes = record.to_bytes().unwrap();
    assert_eq!(hex::encode(&bytes), include_str!("golden/line.hex").trim());
    let again = LineRecord::from_bytes(&bytes, Path::new("line")).unwrap();
    assert_eq!(again.open(&seal, Path::new("line")).unwrap(), pinned_scope());
}

#[test]
fn an_export_frames_both() {
    let bytes = Transfer { root: vec![1, 2], line: vec![3] }.to_bytes().unwrap();
    assert_eq!(hex::encode(bytes), include_str!("golden/transfer.hex").trim());
}

#[test]
fn metadata_before_it_is_sealed_is_these_bytes() {
    // The stream under the seal, seen by sealing under a key and opening again.
    let (_, seal) = pinned_root();
    let record = LineRecord::seal_with(&pinned_scope(), &seal, [0x44; 12]).unwrap();
    let mut aad = b"TDEKLINE\x01\x00".to_vec();
    aad.extend_from_slice(keyring_id().0.as_bytes());
    aad.extend_from_slice(&1_u64.to_le_bytes());
    aad.extend_from_slice(&3_u64.to_le_bytes());
    let metadata = seal.open(&[0x44; 12], &aad, &record.sealed).expect("the documented AAD");
    assert_eq!(hex::encode(metadata), include_str!("golden/metadata.hex").trim());
}

#[test]
fn sums_start_at_zero() {
    let key = SumKey::derive(&secret(1));
    assert_eq!(key.term(LineNumber(5), 0), Sum::default());
    assert_ne!(key.term(LineNumber(5), 1), key.term(LineNumber(1), 5));
}
