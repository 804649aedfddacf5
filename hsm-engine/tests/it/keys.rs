//! Master keys and counters.

use hsm_engine::{
    ErrorKind, HsmError, KeyAttributes, KeyHandle, KeyVersionState, MAX_COUNTERS, Return, Wrapped,
};
use proptest::prelude::*;
use secret_mem::SecretBytes;
use uuid::Uuid;

use crate::support::Fixture;

#[test]
fn every_version_unwraps_what_it_wrapped_and_the_newest_wraps() {
    let f = Fixture::new();
    let user = f.user();
    let key = user.find_master_key("master").unwrap();
    let secret = SecretBytes::<32>::random().unwrap();
    let mut wrapped = vec![user.wrap(&key, &secret).unwrap()];
    for n in 2..=5 {
        assert_eq!(user.rotate_master_key(&key).unwrap(), n);
        assert_eq!(user.primary_version(&key).unwrap(), n);
        wrapped.push(user.wrap(&key, &secret).unwrap());
        assert_eq!(wrapped.last().unwrap().version, n);
    }
    for session in [&user, &f.user()] {
        for w in &wrapped {
            assert!(session.unwrap(&key, w).unwrap().ct_eq(&secret));
        }
    }
    let info = user.master_key_info(&key).unwrap();
    let states: Vec<_> = info.versions.iter().map(|v| (v.version, v.state)).collect();
    assert_eq!(states[..4], [1, 2, 3, 4].map(|n| (n, KeyVersionState::DecryptOnly)));
    assert_eq!(states[4], (5, KeyVersionState::Active));
    assert!(wrapped.windows(2).all(|w| w[0].bytes != w[1].bytes), "two versions have the same key");
}

#[test]
fn missing_wrong_and_foreign_keys_are_different_errors() {
    let f = Fixture::new();
    let user = f.user();
    let key = user.find_master_key("master").unwrap();
    let wrapped = user.generate_data_key(&key, Return::WrappedOnly).unwrap().wrapped;

    let error = user.find_master_key("other").unwrap_err();
    assert!(matches!(&error, HsmError::NoSuchKey { label } if label == "other"));
    assert_eq!(error.kind(), ErrorKind::KeyMissing);

    let foreign = KeyHandle::new(Uuid::from_bytes([7; 16]), "foreign");
    let error = user.unwrap(&foreign, &wrapped).map(drop).unwrap_err();
    assert!(matches!(error, HsmError::NoSuchKeyId { .. }));
    assert_eq!(error.kind(), ErrorKind::KeyMissing);

    let error = user.unwrap(&key, &Wrapped { version: 2, ..wrapped }).map(drop).unwrap_err();
    assert!(matches!(error, HsmError::NoSuchKeyVersion { version: 2, newest: 1, .. }));
    assert_eq!(error.kind(), ErrorKind::KeyMissing);

    user.rotate_master_key(&key).unwrap();
    let error = user.unwrap(&key, &Wrapped { version: 2, ..wrapped }).map(drop).unwrap_err();
    assert!(matches!(error, HsmError::WrongKey { version: 2, .. }));
    assert_eq!(error.kind(), ErrorKind::KeyWrong);

    let second = user.create_master_key("second", KeyAttributes { plaintext_data_keys: true }).unwrap();
    let error = user.unwrap(&second, &wrapped).map(drop).unwrap_err();
    assert!(matches!(error, HsmError::WrongKey { version: 1, .. }));
    let again = user.create_master_key("second", KeyAttributes { plaintext_data_keys: true });
    assert!(matches!(again, Err(HsmError::Duplicate { what: "master key", .. })));
    let labels: Vec<_> = user.master_keys().unwrap().into_iter().map(|k| k.label).collect();
    assert_eq!(labels, ["master", "second"]);
}

#[test]
fn counters_only_grow_until_they_are_forgotten() {
    let f = Fixture::new();
    let user = f.user();
    assert_eq!(user.counter("a/1").unwrap(), None);
    for (raise, value) in [(5, 5), (3, 5), (5, 5), (0, 5), (u64::MAX, u64::MAX), (1, u64::MAX)] {
        assert_eq!(user.raise_counter("a/1", raise).unwrap(), value);
        assert_eq!(f.user().counter("a/1").unwrap(), Some(value));
    }
    user.raise_counter("a/0", 0).unwrap();
    user.raise_counter("b/0", 2).unwrap();
    assert_eq!(user.counters("a/").unwrap(), [("a/0".into(), 0), ("a/1".into(), u64::MAX)]);
    assert_eq!(user.forget_counter("a/1").unwrap(), Some(u64::MAX));
    assert_eq!(user.forget_counter("a/1").unwrap(), None);
    assert_eq!(user.counter("a/1").unwrap(), None);
    let mut events = Vec::new();
    user.verify_audit(&mut |r| events.push(r.event.to_string())).unwrap();
    assert_eq!(events.iter().filter(|e| e.starts_with("a/1 was 18446744073709551615")).count(), 1);
    for bad in ["", "a b", "ä", &"x".repeat(129)] {
        assert!(matches!(user.raise_counter(bad, 1), Err(HsmError::InvalidName { .. })), "{bad:?}");
    }
}

#[test]
fn counters_have_a_limit() {
    let f = Fixture::new();
    let user = f.user();
    for n in 0..MAX_COUNTERS {
        user.raise_counter(&format!("c{n}"), 1).unwrap();
    }
    assert!(matches!(user.raise_counter("more", 1), Err(HsmError::Full { what: "counters", .. })));
    assert_eq!(user.raise_counter("c0", 2).unwrap(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No changed byte of a wrapped key goes unnoticed, and what comes back is what went in.
    #[test]
    fn wrapped_keys_are_authentic(bytes in any::<[u8; 32]>(), at in 0_usize..40, flip in 1_u8..) {
        thread_local! {
            static SHARED: Fixture = Fixture::new();
        }
        SHARED.with(|f| {
            let user = f.user();
            let key = user.find_master_key("master").unwrap();
            let mut secret = SecretBytes::<32>::zeroed();
            *secret.expose_mut() = bytes;
            let mut wrapped = user.wrap(&key, &secret).unwrap();
            prop_assert!(user.unwrap(&key, &wrapped).unwrap().ct_eq(&secret));
            wrapped.bytes[at] ^= flip;
            let wrong = matches!(user.unwrap(&key, &wrapped), Err(HsmError::WrongKey { .. }));
            prop_assert!(wrong);
            Ok(())
        })?;
    }
}
