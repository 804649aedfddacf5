//! Who may see and do what with whose objects.

use hsm_engine::objects::{AttributeType as A, Error, Generate, Mechanism, Template, Token, Value};
use hsm_engine::{ErrorKind, HsmError};

use crate::support::{Fixture, P256, aes, bytes, flag, flags, pair, yes};

#[test]
fn another_user_sees_public_objects_only_and_owns_none() {
    let f = Fixture::new();
    let (user, other) = (f.token("user"), f.token("other"));
    let scope = user.new_scope();
    let key = aes(&user, &scope, 32, &[A::Token]);
    let (public, private) = pair(&user, &scope, Generate::Ec, P256, &[A::Token], &[A::Token]);
    let scope = other.new_scope();
    assert_eq!(other.find(&scope, &Template::new()).unwrap(), [public]);
    for hidden in [key, private] {
        assert!(matches!(other.get(hidden, A::Label), Err(Error::NoSuchObject(_))));
        assert!(matches!(other.destroy(hidden), Err(Error::NoSuchObject(_))));
        assert!(matches!(other.sign(&Mechanism::Ecdsa, hidden), Err(Error::NoSuchObject(_))));
    }
    other.verify(&Mechanism::Ecdsa, public).unwrap();
    assert!(matches!(other.destroy(public), Err(Error::ActionProhibited(_))));
    assert!(matches!(other.set(public, flags(&[A::Derive])), Err(Error::ActionProhibited(_))));
    assert!(matches!(other.copy(&scope, public, Template::new()), Err(Error::ActionProhibited(_))));
}

#[test]
fn an_officer_looks_and_trusts_but_uses_nothing() {
    let f = Fixture::new();
    let (user, officer) = (f.token("user"), f.token("officer"));
    let scope = user.new_scope();
    let key = aes(&user, &scope, 32, &[A::Token, A::Wrap]);
    assert!(matches!(user.set(key, flags(&[A::Trusted])), Err(Error::AttributeReadOnly(A::Trusted))));
    let scope = officer.new_scope();
    assert_eq!(officer.find(&scope, &Template::new()).unwrap(), [key]);
    officer.set(key, flags(&[A::Trusted])).unwrap();
    assert!(flag(&user, key, A::Trusted));
    assert!(matches!(
        officer.set(key, Template::new().with(A::Label, bytes(b"x"))),
        Err(Error::ActionProhibited(_))
    ));
    let refused = |result: Result<(), Error>| match result {
        Err(Error::Hsm(e @ HsmError::NotAllowed { .. })) => assert_eq!(e.kind(), ErrorKind::Denied),
        other => panic!("{other:?}"),
    };
    let t = || Template::new().with(A::ValueLen, Value::Number(32));
    refused(officer.generate_key(&scope, Generate::Aes, t()).map(drop));
    refused(officer.encrypt(&Mechanism::AesEcb, key).map(drop));
    refused(officer.wrap(&Mechanism::AesKw, key, key).map(drop));
    refused(officer.destroy(key));
    refused(officer.copy(&scope, key, Template::new()).map(drop));
    refused(officer.create(&scope, t()).map(drop));
}

#[test]
fn what_was_done_is_in_the_audit_log() {
    let f = Fixture::new();
    let user: Token = f.token("user");
    let scope = user.new_scope();
    let label = Template::new().with(A::Token, yes()).with(A::Label, bytes(b"logged"));
    let key = user.generate_key(&scope, Generate::Aes, label.with(A::ValueLen, Value::Number(16))).unwrap();
    user.set(key, flags(&[A::WrapWithTrusted])).unwrap();
    user.encrypt(&Mechanism::AesEcb, key).unwrap().finish().unwrap();
    user.destroy(key).unwrap();
    user.log_usage().unwrap();
    let mut seen = Vec::new();
    user.session().verify_audit(&mut |r| seen.push(format!("{} {}", r.event.name(), r.event))).unwrap();
    let tail: Vec<_> = seen.iter().rev().take(4).rev().collect();
    assert_eq!(*tail[0], format!("object-created secret key {key} \"logged\""));
    assert_eq!(*tail[1], format!("object-changed {key}: WrapWithTrusted"));
    assert_eq!(*tail[2], format!("object-destroyed {key}"));
    assert!(tail[3].starts_with("keys-used 1 made, 1 encrypted, 0 decrypted"), "{}", tail[3]);
}
