//! Whatever the scope, its record brings it back.

use std::path::Path;

use page_cipher::CipherId;
use proptest::collection::vec;
use proptest::prelude::*;
use secret_mem::SecretBytes;
use uuid::Uuid;

use crate::format::line::LineRecord;
use crate::seal::Seal;
use crate::sum::Sum;
use crate::*;

fn any_kind() -> impl Strategy<Value = ScopeKind> {
    prop_oneof![
        (any::<u32>(), ".{0,60}").prop_map(|(oid, name)| ScopeKind::PgTablespace { oid, name }),
        any::<[u8; 12]>().prop_map(|file_id| ScopeKind::SqliteFile { file_id }),
        Just(ScopeKind::PgWal),
    ]
}

fn any_version() -> impl Strategy<Value = DekVersion> {
    let state = prop_oneof![
        Just(DekState::Active),
        Just(DekState::DecryptOnly),
        any::<u64>().prop_map(|not_before| DekState::PendingDestruction { not_before }),
        any::<u64>().prop_map(|at| DekState::Destroyed { at }),
    ];
    (state, any::<u64>(), any::<[u8; 16]>(), any::<u32>(), any::<[u8; 20]>()).prop_map(
        |(state, created, check, version, half)| {
            let mut bytes = [0; 40];
            bytes[..20].copy_from_slice(&half);
            bytes[20..].copy_from_slice(&half);
            let destroyed = matches!(state, DekState::Destroyed { .. });
            let wrapped = (!destroyed).then_some(WrappedKey { version, bytes });
            DekVersion { version: KeyVersion(0), state, created, check, wrapped }
        },
    )
}

prop_compose! {
    fn any_scope()(
        keyring in any::<[u8; 16]>(),
        line in 1_u64..,
        record_version in 1_u64..,
        kind in any_kind(),
        cipher in prop::sample::select(&CipherId::ALL[..]),
        created in any::<u64>(),
        versions in vec((1_u32..1000, any_version()), 1..12),
        history in vec((any::<u64>(), 0_u8..6), 0..20),
    ) -> Scope {
        let mut number = 0;
        let versions = versions.into_iter().map(|(step, entry)| {
            number += step;
            DekVersion { version: KeyVersion(number), ..entry }
        });
        let history = history.into_iter().map(|(from, state)| StateChange {
            from: WalPosition(from),
            state: TablespaceState::from_u8(state).unwrap(),
        });
        Scope {
            keyring: KeyringId(Uuid::from_bytes(keyring)),
            line: LineNumber(line),
            record_version,
            kind,
            cipher,
            created,
            versions: versions.collect(),
            history: history.collect(),
        }
    }
}

proptest! {
    #[test]
    fn a_record_brings_its_scope_back(scope in any_scope(), key: [u8; 32]) {
        let key = || SecretBytes::fill_with::<()>(|out| { out.copy_from_slice(&key); Ok(()) }).unwrap();
        let seal = Seal::from_key(key());
        let path = Path::new("record");
        let bytes = LineRecord::seal(&scope, &seal).unwrap().to_bytes().unwrap();
        let record = LineRecord::from_bytes(&bytes, path).unwrap();
        prop_assert_eq!(record.open(&seal, path).unwrap(), scope);
        let other = Seal::from_key(SecretBytes::zeroed());
        let refused = matches!(record.open(&other, path), Err(KeyringError::SealMismatch { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn noise_is_never_a_record(noise in vec(any::<u8>(), 0..400)) {
        let path = Path::new("record");
        prop_assert!(LineRecord::from_bytes(&noise, path).is_err());
        prop_assert!(Keyring::import(path, &noise).is_err());
    }

    #[test]
    fn the_sum_adds_and_subtracts(a: [u8; 32], b: [u8; 32]) {
        let (a, b) = (Sum::from_bytes(a), Sum::from_bytes(b));
        prop_assert_eq!(a.plus(b), b.plus(a));
        prop_assert_eq!(a.plus(b).minus(b), a);
        prop_assert_eq!(a.minus(a), Sum::default());
        prop_assert_eq!(Sum::from_bytes(a.to_bytes()), a);
    }
}
