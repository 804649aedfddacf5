//! Wrong PINs cost time, per user.

use std::time::Duration;

use hsm_engine::{Failures, HsmError, LockState};

use crate::support::{Fixture, OFFICER_PIN, USER_PIN, WRONG_PIN, fix_crc};

fn failures(f: &Fixture, user: &str) -> (u32, LockState) {
    let status = f.hsm().status().unwrap();
    let user = status.users.iter().find(|u| u.name == user).unwrap();
    (user.failed.failures, user.lock)
}

fn lock(f: &Fixture) {
    for n in 1..=3 {
        match f.login("user", WRONG_PIN) {
            Err(HsmError::WrongPin { failed, not_before, locked, .. }) => {
                assert_eq!(failed.unfinished, 0);
                assert_eq!((failed.failures, not_before.is_some(), locked), (n, n == 3, false));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_right_pin_clears_the_count() {
    let f = Fixture::new();
    for _ in 0..3 {
        assert!(f.login("user", WRONG_PIN).is_err());
        assert!(f.login("user", "made up by a person").is_err());
        assert_eq!(failures(&f, "user").0, 2);
        f.user();
        assert_eq!(failures(&f, "user"), (0, LockState::Open));
    }
}

#[test]
fn the_third_wrong_pin_makes_even_the_right_one_wait() {
    let f = Fixture::new();
    lock(&f);
    let before = failures(&f, "user");
    let log = f.hsm().verify_audit(&mut |_| {}).unwrap().records;
    for text in [USER_PIN, WRONG_PIN, USER_PIN] {
        match f.login("user", text) {
            Err(e @ HsmError::LockedUntil { failed: Failures { failures: 3, unfinished: 0 }, .. }) => {
                assert!(e.to_string().contains("tde hsm unlock user"), "{e}");
            }
            other => panic!("{other:?}"),
        }
    }
    // A refused try counts nothing, prolongs nothing, and does not fill the log.
    assert_eq!(failures(&f, "user"), before);
    assert_eq!(f.hsm().verify_audit(&mut |_| {}).unwrap().records, log);
    // Nobody else is touched.
    f.officer();
    assert_eq!(failures(&f, "officer"), (0, LockState::Open));

    std::thread::sleep(Duration::from_millis(5100));
    f.user();
    assert_eq!(failures(&f, "user"), (0, LockState::Open));
}

#[test]
fn the_officer_unlocks_at_once() {
    let f = Fixture::new();
    lock(&f);
    f.officer().unlock_user("user").unwrap();
    f.user();

    lock(&f);
    f.officer().reset_pin("user", &crate::support::pin("another one")).unwrap();
    f.login("user", "another one").unwrap();
    assert!(matches!(f.officer().unlock_user("nobody"), Err(HsmError::UnknownUser { .. })));
}

#[test]
fn an_officer_repairs_a_damaged_counter() {
    let f = Fixture::new();
    f.write("lockout.user.obj", b"rot");
    assert!(
        matches!(f.login("user", USER_PIN), Err(HsmError::Damaged { object, .. }) if object == "lockout.user")
    );
    f.officer().unlock_user("user").unwrap();
    f.user();
}

#[test]
fn unknown_users_and_odd_names_are_told_apart_from_wrong_pins() {
    let f = Fixture::new();
    let files = f.files().len();
    for name in ["nobody", "", "../user", "USER", "user.obj"] {
        match f.login(name, OFFICER_PIN) {
            Err(HsmError::UnknownUser { user, .. }) => assert_eq!(user, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(f.files().len(), files);
}

/// Right PINs at the same time wait for each other and are all let in.
#[test]
fn many_logins_at_once_do_not_lock_the_user() {
    let f = Fixture::new();
    std::thread::scope(|s| {
        let logins: Vec<_> = (0..8).map(|_| s.spawn(|| f.user().close())).collect();
        for login in logins {
            login.join().unwrap().unwrap();
        }
    });
    assert_eq!(failures(&f, "user"), (0, LockState::Open));
}

/// Half a decade ahead for a while (a wrong hardware clock), then set right: the wait is the delay, not the half decade.
#[test]
fn a_clock_that_was_set_back_delays_no_longer_than_the_delay() {
    let f = Fixture::new();
    lock(&f);
    let mut bytes = std::fs::read(f.path("lockout.user.obj")).unwrap();
    let ahead: u64 = 5 * 365 * 86_400 * 1_000_000;
    // Behind the envelope's 32 bytes and the count: last attempt, no attempt before.
    for at in [36, 44] {
        let time = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        bytes[at..at + 8].copy_from_slice(&(time + ahead).to_le_bytes());
    }
    fix_crc(&mut bytes);
    f.write("lockout.user.obj", &bytes);
    assert!(matches!(f.login("user", USER_PIN), Err(HsmError::LockedUntil { .. })));
    std::thread::sleep(Duration::from_secs(3));
    // Looking again does not begin the wait anew.
    assert!(matches!(f.login("user", USER_PIN), Err(HsmError::LockedUntil { .. })));
    std::thread::sleep(Duration::from_millis(2500));
    f.user();
}
