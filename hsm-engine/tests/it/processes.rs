//! Several openers of one store at once.

use std::collections::BTreeSet;

use hsm_engine::{HsmError, Return};

use crate::support::{Fixture, USER_PIN};

#[test]
fn writers_lose_nothing_and_the_log_stays_one_chain() {
    const WRITERS: u64 = 6;
    const ROUNDS: u64 = 10;
    let f = Fixture::new();
    let versions: Vec<u32> = std::thread::scope(|s| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let f = &f;
                s.spawn(move || {
                    let user = f.user();
                    let key = user.find_master_key("master").unwrap();
                    let mut made = Vec::new();
                    for round in 1..=ROUNDS {
                        made.push(user.rotate_master_key(&key).unwrap());
                        user.raise_counter(&format!("writer/{n}"), round).unwrap();
                        user.raise_counter("all", n * ROUNDS + round).unwrap();
                    }
                    user.close().unwrap();
                    made
                })
            })
            .collect();
        writers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    let total = (WRITERS * ROUNDS) as u32;
    assert_eq!(BTreeSet::from_iter(versions), (2..=total + 1).collect());
    let user = f.user();
    assert_eq!(user.counters("writer/").unwrap().iter().map(|c| c.1).sum::<u64>(), WRITERS * ROUNDS);
    assert_eq!(user.counter("all").unwrap(), Some(WRITERS * ROUNDS));
    let report = user.verify_audit(&mut |_| {}).unwrap();
    assert!(report.authenticated);
    // Initialised and key made; a login, a logout and the rotations of each writer; this login.
    assert_eq!(report.records, 2 + WRITERS * (2 + ROUNDS) + 1);
    assert_eq!(report.unvouched, 0);
    user.verify_store().unwrap();
}

#[test]
fn a_session_sees_what_another_one_changed() {
    let f = Fixture::new();
    let (a, b) = (f.user(), f.user());
    let key = a.find_master_key("master").unwrap();
    let old = a.generate_data_key(&key, Return::Plaintext).unwrap();
    assert_eq!(b.rotate_master_key(&key).unwrap(), 2);
    assert_eq!(a.primary_version(&key).unwrap(), 2);
    assert_eq!(a.generate_data_key(&key, Return::WrappedOnly).unwrap().wrapped.version, 2);
    assert!(a.unwrap(&key, &old.wrapped).unwrap().ct_eq(&old.plaintext.unwrap()));
    b.raise_counter("x", 4).unwrap();
    assert_eq!(a.counter("x").unwrap(), Some(4));
}

/// A reader needs no lock: it unwraps, wraps and reads counters while a writer holds it.
#[test]
fn readers_do_not_wait_for_a_writer() {
    let f = Fixture::new();
    let user = f.user();
    let key = user.find_master_key("master").unwrap();
    let file = std::fs::File::options().write(true).open(f.path("store.lock")).unwrap();
    file.lock().unwrap();
    let made = user.generate_data_key(&key, Return::Plaintext).unwrap();
    user.unwrap(&key, &made.wrapped).unwrap();
    assert_eq!(user.counter("x").unwrap(), None);
    user.verify_store().unwrap();
    drop(file);
    user.close().unwrap();
}

/// Waiting for a writer that never lets go ends with an error that says so.
#[test]
fn a_stuck_writer_is_named() {
    let f = Fixture::new();
    let file = std::fs::File::options().write(true).open(f.path("store.lock")).unwrap();
    file.lock().unwrap();
    let error = f.login("user", USER_PIN).unwrap_err();
    assert!(matches!(error, HsmError::Store(_)), "{error:?}");
    assert!(error.to_string().contains("busy") && error.to_string().contains("store.lock"), "{error}");
    drop(file);
    f.user();
}
