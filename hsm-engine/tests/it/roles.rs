//! Officers manage users, users use keys, and neither does the other's work.

use hsm_engine::audit::{Event, Outcome};
use hsm_engine::{HsmError, KeyAttributes, KeyHandle, Return, Rights, Role, Session, Wrapped};
use secret_mem::SecretBytes;

use crate::support::{Fixture, OFFICER_PIN, WRONG_PIN, fix_crc, pin};

type Action = (&'static str, fn(&Session, &KeyHandle) -> Result<(), HsmError>);

const USE_KEYS: [Action; 7] = [
    ("make master keys", |s, _| {
        s.create_master_key("x", KeyAttributes { plaintext_data_keys: true }).map(drop)
    }),
    ("rotate master keys", |s, k| s.rotate_master_key(k).map(drop)),
    ("wrap keys", |s, k| s.wrap(k, &SecretBytes::zeroed()).map(drop)),
    ("unwrap keys", |s, k| s.unwrap(k, &Wrapped { version: 1, bytes: [0; 40] }).map(drop)),
    ("make data keys", |s, k| s.generate_data_key(k, Return::WrappedOnly).map(drop)),
    ("raise counters", |s, _| s.raise_counter("a", 1).map(drop)),
    ("forget counters", |s, _| s.forget_counter("a").map(drop)),
];

const MANAGE_USERS: [Action; 3] = [
    ("make users", |s, _| s.create_user("x", Role::CryptoUser, Rights::default(), &pin("some pin"))),
    ("unlock users", |s, _| s.unlock_user("user")),
    ("reset PINs", |s, _| s.reset_pin("user", &pin("some pin"))),
];

#[test]
fn each_role_is_refused_the_other_ones_work_and_that_is_logged() {
    let f = Fixture::new();
    let (officer, user) = (f.officer(), f.user());
    let key = user.find_master_key("master").unwrap();
    for (session, actions) in [(&officer, &USE_KEYS[..]), (&user, &MANAGE_USERS[..])] {
        for (name, action) in actions {
            match action(session, &key) {
                Err(HsmError::NotAllowed { user, role, action }) => {
                    assert_eq!((user.as_str(), role, action), (session.user(), session.role(), *name));
                }
                other => panic!("{name} as {}: {other:?}", session.user()),
            }
            let mut last = None;
            session.verify_audit(&mut |r| last = Some(r.clone())).unwrap();
            let last = last.unwrap();
            assert_eq!((last.outcome, last.user.as_str()), (Outcome::Refused, session.user()));
            assert_eq!(last.event, Event::Refused { action: (*name).into() });
        }
    }
}

#[test]
fn data_keys_in_clear_need_the_right_and_the_attribute() {
    let f = Fixture::new();
    let rights = |plaintext_data_keys| Rights { plaintext_data_keys };
    let attributes = |plaintext_data_keys| KeyAttributes { plaintext_data_keys };
    f.officer().create_user("wrapper", Role::CryptoUser, rights(false), &pin(WRONG_PIN)).unwrap();

    let user = f.user();
    let open = user.find_master_key("master").unwrap();
    let shut = user.create_master_key("shut", attributes(false)).unwrap();
    let wrapper = f.login("wrapper", WRONG_PIN).unwrap();

    for (session, key, allowed) in
        [(&user, &open, true), (&user, &shut, false), (&wrapper, &open, false), (&wrapper, &shut, false)]
    {
        let made = session.generate_data_key(key, Return::WrappedOnly).unwrap();
        assert!(made.plaintext.is_none());
        let plain = session.generate_data_key(key, Return::Plaintext).map(|d| d.plaintext.is_some());
        let unwrapped = session.unwrap(key, &made.wrapped).map(drop);
        if allowed {
            assert!(plain.unwrap());
            unwrapped.unwrap();
        } else {
            assert!(matches!(plain, Err(HsmError::PlaintextForbidden { .. })));
            assert!(matches!(unwrapped, Err(HsmError::PlaintextForbidden { .. })));
        }
    }
}

#[test]
fn users_made_by_an_officer_work_and_names_are_taken_once() {
    let f = Fixture::new();
    let officer = f.officer();
    officer.create_user("app", Role::CryptoUser, Rights::default(), &pin("not generated")).unwrap();
    let again = officer.create_user("app", Role::CryptoUser, Rights::default(), &pin("not generated"));
    assert!(matches!(again, Err(HsmError::Duplicate { what: "user", .. })));
    let bad = officer.create_user("../app", Role::CryptoUser, Rights::default(), &pin("not generated"));
    assert!(matches!(bad, Err(HsmError::InvalidName { .. })));
    assert_eq!(f.login("app", "not generated").unwrap().role(), Role::CryptoUser);
    assert!(matches!(f.login("app", "other"), Err(HsmError::WrongPin { .. })));
}

#[test]
fn a_reset_or_changed_pin_replaces_the_old_one() {
    let f = Fixture::new();
    f.officer().reset_pin("user", &pin("from the officer")).unwrap();
    assert!(matches!(f.login("user", crate::support::USER_PIN), Err(HsmError::WrongPin { .. })));
    f.login("user", "from the officer").unwrap().change_pin(&pin("my own")).unwrap();
    assert!(matches!(f.login("user", "from the officer"), Err(HsmError::WrongPin { .. })));
    let user = f.login("user", "my own").unwrap();
    assert_eq!(user.primary_version(&user.find_master_key("master").unwrap()).unwrap(), 1);
    assert!(user.change_pin(&pin("abc")).unwrap_err().to_string().contains("at least 4"));
}

/// An officer cannot open the seal of a user's record, so must not take over what somebody wrote there.
#[test]
fn a_record_that_was_edited_gains_nothing_from_a_reset_pin() {
    let f = Fixture::new();
    f.officer().create_user("app", Role::CryptoUser, Rights::default(), &pin("made up by app")).unwrap();
    let mut bytes = std::fs::read(f.path("user.app.obj")).unwrap();
    // Behind the envelope's 32 bytes and the name: role, rights, two times, derivation with its cost.
    let role = 32 + 8 + 3;
    bytes[role] = 0;
    bytes[role + 4] = 1;
    let memory_kib = role + 5 + 16 + 4;
    assert_eq!(bytes[memory_kib..memory_kib + 4], 65536_u32.to_le_bytes());
    bytes[memory_kib..memory_kib + 4].copy_from_slice(&19456_u32.to_le_bytes());
    fix_crc(&mut bytes);
    f.write("user.app.obj", &bytes);
    assert!(matches!(f.login("app", "made up by app"), Err(HsmError::WrongPin { .. })));

    f.officer().reset_pin("app", &pin("from the officer")).unwrap();
    let app = f.login("app", "from the officer").unwrap();
    assert_eq!(app.role(), Role::CryptoUser);
    let master = app.find_master_key("master").unwrap();
    let plain = app.generate_data_key(&master, Return::Plaintext).map(drop);
    assert!(matches!(plain, Err(HsmError::PlaintextForbidden { .. })));
    let status = f.hsm().status().unwrap();
    let kdf = status.users.iter().find(|u| u.name == "app").unwrap().pin_kdf;
    assert_eq!(kdf.to_string(), "Argon2id, 64 MiB, 3 passes");
    f.login("officer", OFFICER_PIN).unwrap().verify_store().unwrap();
}

#[test]
fn a_record_that_claims_the_last_revision_does_not_stop_counting() {
    let f = Fixture::new();
    f.officer().create_user("app", Role::CryptoUser, Rights::default(), &pin("made up by app")).unwrap();
    let old = std::fs::read(f.path("user.app.obj")).unwrap();
    let mut edited = old.clone();
    edited[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    fix_crc(&mut edited);
    f.write("user.app.obj", &edited);
    f.officer().reset_pin("app", &pin("the second one")).unwrap();
    let second = std::fs::read(f.path("user.app.obj")).unwrap();
    f.officer().reset_pin("app", &pin("the third one")).unwrap();
    f.login("app", "the third one").unwrap().close().unwrap();
    for (record, pin) in [(old, "made up by app"), (second, "the second one")] {
        f.write("user.app.obj", &record);
        assert!(matches!(f.login("app", pin), Err(HsmError::StaleObject { .. })));
    }
}
