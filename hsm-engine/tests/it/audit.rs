//! The audit log says what happened, and cannot be cut, edited or reordered unnoticed.

use hsm_engine::audit::{AuditError, Event, Record, Usage};
use hsm_engine::{HsmError, Return};
use sha2::{Digest as _, Sha256};

use crate::support::{Fixture, OFFICER_PIN, USER_PIN, WRONG_PIN};

const LOG: &str = "audit.00000001.log";

fn records(f: &Fixture) -> Vec<Record> {
    let mut records = Vec::new();
    f.hsm().verify_audit(&mut |r| records.push(r.clone())).unwrap();
    records
}

/// The bytes of each record.
fn split(mut log: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while !log.is_empty() {
        let len = u32::from_le_bytes(log[..4].try_into().unwrap()) as usize;
        out.push(log[..len].to_vec());
        log = &log[len..];
    }
    out
}

/// Numbers, hashes and checksums made right, as somebody without a PIN can; MACs left as they are.
fn rebuild(records: &mut [Vec<u8>]) {
    let mut previous: [u8; 32] = records[0][28..60].try_into().unwrap();
    for (record, sequence) in records.iter_mut().zip(1_u64..) {
        let n = record.len() - 4;
        record[8..16].copy_from_slice(&sequence.to_le_bytes());
        record[28..60].copy_from_slice(&previous);
        previous = Sha256::digest(&record[..n]).into();
        let crc = crc32fast::hash(&record[..n]);
        record[n..].copy_from_slice(&crc.to_le_bytes());
    }
}

/// A store with a dozen records, the last of them anchored.
fn eventful() -> Fixture {
    let f = Fixture::new();
    let user = f.user();
    let key = user.find_master_key("master").unwrap();
    user.rotate_master_key(&key).unwrap();
    let made = user.generate_data_key(&key, Return::Plaintext).unwrap();
    for _ in 0..3 {
        user.unwrap(&key, &made.wrapped).unwrap();
    }
    user.wrap(&key, &made.plaintext.unwrap()).unwrap();
    user.close().unwrap();
    assert!(f.login("user", WRONG_PIN).is_err());
    f.user().close().unwrap();
    f
}

fn verdict(f: &Fixture) -> HsmError {
    f.user().verify_audit(&mut |_| {}).expect_err("it was noticed before a login or never")
}

#[test]
fn what_happened_is_there_in_order() {
    let f = eventful();
    f.officer().unlock_user("user").unwrap();
    let records = records(&f);
    let names: Vec<_> = records.iter().map(|r| (r.user.as_str(), r.event.name())).collect();
    assert_eq!(
        names,
        [
            ("officer", "initialized"),
            ("user", "master-key-created"),
            ("user", "login"),
            ("user", "master-key-rotated"),
            ("user", "logout"),
            ("user", "login-failed"),
            ("user", "login"),
            ("user", "logout"),
            ("officer", "login"),
            ("officer", "user-unlocked"),
            ("officer", "logout"),
        ]
    );
    assert!(records.iter().zip(1..).all(|(r, n)| r.sequence == n));
    assert!(records.windows(2).all(|w| w[0].time <= w[1].time));
    assert!(records.iter().all(|r| r.boots == 1));
    assert!(records.iter().all(|r| r.has_mac == !matches!(r.event, Event::LoginFailed { .. })));
    let used = Usage { wraps: 1, unwraps: 3, data_keys: 1, failures: 0 };
    assert_eq!(records[4].event, Event::Logout(used));
}

#[test]
fn dropping_a_session_logs_its_end_and_long_ones_can_log_their_use() {
    let f = Fixture::new();
    let user = f.user();
    user.log_usage().unwrap();
    user.generate_data_key(&user.find_master_key("master").unwrap(), Return::WrappedOnly).unwrap();
    user.log_usage().unwrap();
    drop(user);
    let names: Vec<_> = records(&f).iter().skip(2).map(|r| r.event.name()).collect();
    assert_eq!(names, ["login", "used", "logout"]);
}

/// Without a PIN the chain can be made consistent again, but not the MACs or the anchor.
#[test]
fn a_rebuilt_chain_is_found_by_who_has_a_pin() {
    type Edit = fn(&mut Vec<Vec<u8>>);
    let edits: [(&str, Edit); 6] = [
        ("a record removed from the middle", |r| drop(r.remove(3))),
        ("the first record removed", |r| drop(r.remove(0))),
        ("two records exchanged", |r| r.swap(2, 4)),
        ("a time changed", |r| r[3][20] ^= 1),
        ("a user's name changed", |r| r[3][68] ^= 1),
        ("a record repeated", |r| r.insert(3, r[3].clone())),
    ];
    for (what, edit) in edits {
        let f = eventful();
        let log = f.files()[LOG].clone();
        let mut parts = split(&log);
        let genesis: [u8; 32] = parts[0][28..60].try_into().unwrap();
        edit(&mut parts);
        f.write(LOG, &parts.concat());
        assert!(f.hsm().verify_audit(&mut |_| {}).is_err(), "{what}, chain left broken");

        parts[0][28..60].copy_from_slice(&genesis);
        rebuild(&mut parts);
        f.write(LOG, &parts.concat());
        f.hsm().verify_audit(&mut |_| {}).unwrap();
        // The login itself reads from the anchor on, where every hash has changed.
        match f.login("user", USER_PIN) {
            Err(HsmError::Audit(e)) => assert!(e.to_string().contains(LOG), "{what}: {e}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

/// Records before the anchor that keep their length but not their content are found by the MAC.
#[test]
fn an_edit_before_the_anchor_is_found_although_the_login_passes() {
    let f = eventful();
    let log = f.files()[LOG].clone();
    let parts = split(&log);
    let mut edited = parts.clone();
    edited[2][20] ^= 1;
    let n = edited[2].len() - 4;
    let crc = crc32fast::hash(&edited[2][..n]);
    edited[2][n..].copy_from_slice(&crc.to_le_bytes());
    f.write(LOG, &edited.concat());
    assert!(matches!(verdict(&f), HsmError::Audit(AuditError::Mac { sequence: 3, .. })));
    let unkeyed = f.hsm().verify_audit(&mut |_| {}).unwrap_err();
    assert!(matches!(unkeyed, HsmError::Audit(AuditError::Chain { sequence: 4, .. })), "{unkeyed:?}");
}

/// A record that claims to need no MAC is refused unless it is a failed login.
#[test]
fn a_mac_cannot_be_left_out() {
    let f = eventful();
    let mut parts = split(&f.files()[LOG]);
    parts[3][5] = 0;
    let n = parts[3].len() - 4;
    let crc = crc32fast::hash(&parts[3][..n]);
    parts[3][n..].copy_from_slice(&crc.to_le_bytes());
    f.write(LOG, &parts.concat());
    assert!(matches!(verdict(&f), HsmError::Audit(AuditError::Mac { sequence: 4, .. })));
}

#[test]
fn whole_records_cut_off_the_end_are_missed() {
    let f = eventful();
    let files = f.files();
    let parts = split(&files[LOG]);
    for keep in 1..parts.len() {
        f.write(LOG, &parts[..keep].concat());
        // Without a PIN nothing is wrong with the rest.
        assert_eq!(f.hsm().verify_audit(&mut |_| {}).unwrap().records, keep as u64);
        match f.login("user", USER_PIN) {
            Err(HsmError::Audit(AuditError::Truncated { segment, expected, .. })) => {
                assert_eq!((segment.as_str(), expected), (LOG, parts.len() as u64));
            }
            other => panic!("{keep} records left: {other:?}"),
        }
        f.restore(&files);
    }
}

/// Two histories of one store, as a restored copy makes them: each log is authentic, but not with the other's root.
#[test]
fn a_log_from_another_history_is_refused() {
    let f = eventful();
    let before = f.files();
    f.user().close().unwrap();
    let one = f.files();
    f.restore(&before);
    f.user().close().unwrap();
    f.write(LOG, &one[LOG]);
    assert_eq!(split(&one[LOG]).len(), split(&before[LOG]).len() + 2);
    match f.login("user", USER_PIN) {
        Err(HsmError::Audit(AuditError::Anchor { segment, sequence })) => {
            assert_eq!((segment.as_str(), sequence), (LOG, split(&one[LOG]).len() as u64));
        }
        other => panic!("{other:?}"),
    }
}

/// The documented window: failed logins after the last anchor can be cut off, and nothing before them.
#[test]
fn only_failed_logins_after_the_anchor_can_be_cut_off() {
    let f = eventful();
    let anchored = split(&f.files()[LOG]).len();
    assert!(f.login("user", WRONG_PIN).is_err());
    assert!(f.login("user", WRONG_PIN).is_err());
    let files = f.files();
    let parts = split(&files[LOG]);
    assert_eq!(parts.len(), anchored + 2);
    f.write(LOG, &parts[..anchored + 1].concat());
    f.officer().close().unwrap();
    f.restore(&files);
    f.write(LOG, &parts[..anchored - 1].concat());
    assert!(matches!(f.login("officer", OFFICER_PIN), Err(HsmError::Audit(AuditError::Truncated { .. }))));
    // After the next login they are anchored too.
    f.restore(&files);
    f.officer().close().unwrap();
    let parts = split(&f.files()[LOG]);
    f.write(LOG, &[&parts[..anchored], &parts[anchored + 1..]].concat().concat());
    assert!(f.login("officer", OFFICER_PIN).is_err());
}

/// What a crash or a power cut in the middle of an append leaves is dropped, and that is logged.
#[test]
fn the_rest_of_a_cut_short_append_is_dropped_and_logged() {
    let f = eventful();
    let files = f.files();
    let log = &files[LOG];
    let record = split(log).pop().unwrap();
    let mut garbage = record.clone();
    garbage[4..].fill(0xA5);
    let tails: [Vec<u8>; 5] =
        [record[..1].into(), record[..4].into(), record[..record.len() - 1].into(), vec![0; 200], garbage];
    for tail in tails {
        f.write(LOG, &[log, &tail[..]].concat());
        match f.hsm().verify_audit(&mut |_| {}).unwrap_err() {
            HsmError::Audit(AuditError::Torn { bytes, .. }) => assert_eq!(bytes, tail.len() as u64),
            HsmError::Audit(AuditError::Damaged { segment, .. }) => assert_eq!(segment, LOG),
            other => panic!("{other:?}"),
        }
        f.user().close().unwrap();
        let dropped = Event::TailDropped { bytes: tail.len() as u64 };
        assert_eq!(records(&f).iter().filter(|r| r.event == dropped).count(), 1);
        f.user().verify_audit(&mut |_| {}).unwrap();
        f.restore(&files);
    }
    // A failed login, which has no key, repairs as well.
    f.write(LOG, &[log, &record[..50]].concat());
    assert!(matches!(f.login("user", WRONG_PIN), Err(HsmError::WrongPin { .. })));
    f.user().verify_audit(&mut |_| {}).unwrap();
}

/// Damage with records after it is never taken for a crash.
#[test]
fn a_damaged_record_in_the_middle_is_never_dropped() {
    let f = eventful();
    assert!(f.login("user", WRONG_PIN).is_err());
    let files = f.files();
    let mut log = files[LOG].clone();
    let parts = split(&log);
    // The last anchored record, with a whole one after it.
    let at = log.len() - parts[parts.len() - 1].len() - 30;
    log[at] ^= 1;
    f.write(LOG, &log);
    for (user, pin) in [("user", USER_PIN), ("officer", OFFICER_PIN), ("officer", WRONG_PIN)] {
        assert!(matches!(f.login(user, pin), Err(HsmError::Audit(AuditError::Damaged { .. }))));
        assert_eq!(f.files()[LOG], log);
    }
}

/// The officer's way out when rot in the log keeps everybody from logging in.
#[test]
fn an_officer_restarts_a_damaged_log_and_the_damage_stays_on_record() {
    let f = eventful();
    let pin = crate::support::pin;
    let restart = |user: &str, text: &str| f.hsm().restart_audit(user, &pin(text));
    assert!(matches!(restart("officer", OFFICER_PIN), Err(HsmError::Audit(AuditError::Whole))));
    let last = f.user().verify_audit(&mut |_| {}).unwrap().last_sequence;
    type Damage = fn(&Fixture);
    let damages: [Damage; 3] = [
        |f| {
            let mut log = f.files()[LOG].clone();
            let n = log.len();
            log[n - 20] ^= 1;
            f.write(LOG, &log);
        },
        |f| f.write(LOG, b""),
        |f| std::fs::remove_file(f.path(LOG)).unwrap(),
    ];
    let files = f.files();
    for damage in damages {
        damage(&f);
        let damaged = f.files().get(LOG).cloned();
        assert!(matches!(f.login("user", USER_PIN), Err(HsmError::Audit(_))));
        assert!(matches!(restart("user", USER_PIN), Err(HsmError::NotAllowed { .. })));
        restart("officer", OFFICER_PIN).unwrap();
        assert_eq!(f.files().get(LOG).cloned(), damaged);
        let mut records = Vec::new();
        let report = f.user().verify_audit(&mut |r| records.push(r.clone())).unwrap();
        assert_eq!((report.first_sequence, report.set_aside), (last + 2, 1));
        match &records[0].event {
            Event::LogRestarted { damage } => assert!(damage.contains(LOG), "{damage}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(records[0].user, "officer");
        assert!(matches!(restart("officer", OFFICER_PIN), Err(HsmError::Audit(AuditError::Whole))));
        f.check_everything_but_the_old_log();
        f.restore(&files);
    }
}

impl Fixture {
    fn check_everything_but_the_old_log(&self) {
        let user = self.user();
        user.verify_store().unwrap();
        assert!(self.login("officer", WRONG_PIN).is_err());
        user.verify_audit(&mut |_| {}).unwrap();
        self.hsm().status().unwrap().audit.unwrap();
    }
}

#[test]
fn the_log_goes_on_in_further_segments() {
    let f = Fixture::new();
    let user = f.user();
    let officer = f.officer();
    let key = user.find_master_key("master").unwrap();
    // Refusals are the cheapest long records.
    while !f.path("audit.00000003.log").exists() {
        assert!(officer.wrap(&key, &secret_mem::SecretBytes::zeroed()).is_err());
    }
    assert!(f.login("user", WRONG_PIN).is_err());
    let report = user.verify_audit(&mut |_| {}).unwrap();
    assert_eq!((report.segments, report.unvouched), (3, 1));
    assert_eq!(f.hsm().status().unwrap().audit.unwrap(), report.records);
    let files = f.files();
    std::fs::remove_file(f.path("audit.00000002.log")).unwrap();
    for verdict in [user.verify_audit(&mut |_| {}), f.hsm().verify_audit(&mut |_| {})] {
        match verdict {
            Err(HsmError::Audit(AuditError::Missing { segment })) => {
                assert_eq!(segment, "audit.00000002.log")
            }
            other => panic!("{other:?}"),
        }
    }
    f.restore(&files);
    f.user().verify_audit(&mut |_| {}).unwrap();
}
