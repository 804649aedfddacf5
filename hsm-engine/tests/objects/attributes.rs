//! Attributes follow PKCS#11: what may be named, what is made of it, what may change.

use hsm_engine::objects::{AttributeType as A, Error, Generate, ObjectId, Template, Value};

use crate::support::{Fixture, P256, aes, bytes, flag, flags, got, no, pair, yes};

fn number(n: u64) -> Value {
    Value::Number(n)
}

#[test]
fn a_generated_key_is_sensitive_stays_inside_and_says_where_it_is_from() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let key = aes(&token, &scope, 32, &[A::Token]);
    for on in
        [A::Token, A::Private, A::Sensitive, A::AlwaysSensitive, A::NeverExtractable, A::Local, A::Modifiable]
    {
        assert!(flag(&token, key, on), "{on:?}");
    }
    for off in [A::Extractable, A::Wrap, A::Unwrap, A::Derive, A::Trusted, A::WrapWithTrusted] {
        assert!(!flag(&token, key, off), "{off:?}");
    }
    assert!(matches!(token.get(key, A::Value), Err(Error::AttributeSensitive(A::Value))));
    assert!(matches!(token.get(key, A::Modulus), Err(Error::AttributeTypeInvalid(A::Modulus))));
    assert!(matches!(token.get(key, A::ValueLen).unwrap(), Value::Number(32)));
    assert!(matches!(token.get(key, A::KeyGenMechanism).unwrap(), Value::Number(0x1080)));
    assert_eq!(got(&token, key, A::CheckValue).len(), 3);
    assert_eq!(got(&token, key, A::UniqueId), key.to_string().into_bytes());
}

#[test]
fn the_check_value_of_aes_is_an_encrypted_block_of_zeros() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let t = |check: Option<&[u8]>| {
        let t = Template::new()
            .with(A::Class, number(4))
            .with(A::KeyType, number(0x1F))
            .with(A::Value, Value::secret(&[0; 32]));
        check.into_iter().fold(t, |t, c| t.with(A::CheckValue, bytes(c)))
    };
    let key = token.create(&scope, t(None)).unwrap();
    // FIPS 197 by way of the GCM specification, test case 13: H of a key of zeros is dc95c078...
    assert_eq!(got(&token, key, A::CheckValue), [0xdc, 0x95, 0xc0]);
    token.create(&scope, t(Some(&[0xdc, 0x95, 0xc0]))).unwrap();
    let wrong = token.create(&scope, t(Some(&[1, 2, 3])));
    assert!(matches!(wrong, Err(Error::AttributeValueInvalid(A::CheckValue))));
}

#[test]
fn one_way_attributes_go_one_way_and_the_rest_of_a_key_is_fixed() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    for on in [&[A::Token, A::Extractable][..], &[A::Extractable]] {
        let key = aes(&token, &scope, 16, on);
        let set = |a: A, v: Value| token.set(key, Template::new().with(a, v));
        set(A::Label, bytes("Schlüssel".as_bytes())).unwrap();
        assert_eq!(got(&token, key, A::Label), "Schlüssel".as_bytes());
        assert!(matches!(set(A::Label, bytes(&[0xFF])), Err(Error::AttributeValueInvalid(A::Label))));
        assert!(matches!(set(A::Sensitive, no()), Err(Error::AttributeReadOnly(A::Sensitive))));
        set(A::Extractable, no()).unwrap();
        assert!(matches!(set(A::Extractable, yes()), Err(Error::AttributeReadOnly(A::Extractable))));
        assert!(!flag(&token, key, A::NeverExtractable));
        set(A::WrapWithTrusted, yes()).unwrap();
        assert!(matches!(set(A::WrapWithTrusted, no()), Err(Error::AttributeReadOnly(_))));
        for (a, v) in [
            (A::Trusted, yes()),
            (A::Local, no()),
            (A::NeverExtractable, yes()),
            (A::KeyType, number(0)),
            (A::Class, number(0)),
            (A::Token, Value::Bool(!flag(&token, key, A::Token))),
            (A::Private, no()),
            (A::Value, Value::secret(&[1; 16])),
            (A::ValueLen, number(32)),
        ] {
            assert!(matches!(set(a, v), Err(Error::AttributeReadOnly(at)) if at == a), "{a:?}");
        }
        set(A::Destroyable, no()).unwrap();
        assert!(matches!(token.destroy(key), Err(Error::ActionProhibited(_))));
        set(A::Modifiable, no()).unwrap();
        assert!(matches!(set(A::Label, bytes(b"x")), Err(Error::ActionProhibited(_))));
    }
}

#[test]
fn a_template_is_taken_whole_or_not_at_all() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let make = |t: Template| token.generate_key(&scope, Generate::Aes, t);
    let base = || Template::new().with(A::Token, yes());
    assert!(matches!(make(base()), Err(Error::TemplateIncomplete(A::ValueLen))));
    let len = |n| base().with(A::ValueLen, number(n));
    assert!(matches!(make(len(17)), Err(Error::KeySizeRange)));
    assert!(matches!(make(len(32).with(A::ValueLen, number(32))), Err(Error::TemplateInconsistent(_))));
    assert!(matches!(make(len(32).with(A::KeyType, number(0))), Err(Error::TemplateInconsistent(_))));
    assert!(matches!(
        make(len(32).with(A::KeyType, number(99))),
        Err(Error::AttributeValueInvalid(A::KeyType))
    ));
    assert!(matches!(
        make(len(32).with(A::Modulus, bytes(b"x"))),
        Err(Error::AttributeTypeInvalid(A::Modulus))
    ));
    assert!(matches!(make(len(32).with(A::Local, yes())), Err(Error::AttributeReadOnly(A::Local))));
    assert!(matches!(make(len(32).with(A::Trusted, yes())), Err(Error::AttributeReadOnly(A::Trusted))));
    assert!(matches!(
        make(len(32).with(A::Encrypt, number(1))),
        Err(Error::AttributeValueInvalid(A::Encrypt))
    ));
    assert!(matches!(
        make(len(32).with(A::StartDate, bytes(b"20261399"))),
        Err(Error::AttributeValueInvalid(_))
    ));
    assert!(matches!(
        make(len(32).with(A::Value, Value::secret(&[1; 32]))),
        Err(Error::TemplateInconsistent(_))
    ));
    assert_eq!(token.find(&scope, &Template::new()).unwrap(), []);
    assert_eq!(token.verify_objects().unwrap(), 0);
    make(len(32).with(A::StartDate, bytes(b"20261122")).with(A::Trusted, no())).unwrap();
    assert_eq!(token.verify_objects().unwrap(), 1);
}

#[test]
fn a_pair_shares_its_numbers_and_the_private_half_shows_none() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let (public, private) = pair(&token, &scope, Generate::Ec, P256, &[A::Token], &[A::Token]);
    assert_eq!(got(&token, public, A::EcPoint).len(), 67);
    assert_eq!(got(&token, private, A::EcParams), P256);
    assert_eq!(got(&token, public, A::PublicKeyInfo), got(&token, private, A::PublicKeyInfo));
    assert!(matches!(token.get(private, A::Value), Err(Error::AttributeSensitive(A::Value))));
    assert!(matches!(token.get(public, A::Value), Err(Error::AttributeTypeInvalid(A::Value))));
    assert!(!flag(&token, public, A::Private) && flag(&token, private, A::Private));
    let wrong = |t: Template| token.generate_key_pair(&scope, Generate::Ec, t, Template::new()).unwrap_err();
    assert!(matches!(wrong(Template::new()), Error::TemplateIncomplete(A::EcParams)));
    let secp256k1 = bytes(&[0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x0A]);
    assert!(matches!(wrong(Template::new().with(A::EcParams, secp256k1)), Error::CurveNotSupported));
    assert!(matches!(
        wrong(Template::new().with(A::EcParams, bytes(P256)).with(A::EcPoint, bytes(b"x"))),
        Error::TemplateInconsistent(_)
    ));
}

#[test]
fn a_private_key_that_may_be_shown_shows_all_its_numbers() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let open = Template::new().with(A::Sensitive, no()).with(A::Extractable, yes());
    let public = Template::new().with(A::ModulusBits, number(2048));
    let (public, private) = token.generate_key_pair(&scope, Generate::Rsa, public, open).unwrap();
    let secrets = [A::PrivateExponent, A::Prime1, A::Prime2, A::Exponent1, A::Exponent2, A::Coefficient];
    let mut again = Template::new()
        .with(A::Class, number(3))
        .with(A::KeyType, number(0))
        .with(A::Modulus, bytes(&got(&token, public, A::Modulus)))
        .with(A::PublicExponent, bytes(&got(&token, public, A::PublicExponent)))
        .with(A::Sensitive, no())
        .with(A::Extractable, yes());
    for a in secrets {
        again.push(a, Value::secret(&got(&token, private, a)));
    }
    let copy = token.create(&scope, again).unwrap();
    for a in secrets {
        assert_eq!(got(&token, copy, a), got(&token, private, a), "{a:?}");
    }
    // What came in clear was never only here.
    assert!(!flag(&token, copy, A::Local) && !flag(&token, copy, A::AlwaysSensitive));
    // An extractable key that is sensitive is not shown.
    token.set(copy, flags(&[A::Sensitive])).unwrap();
    assert!(matches!(token.get(copy, A::Prime1), Err(Error::AttributeSensitive(A::Prime1))));
}

#[test]
fn certificates_and_data_are_kept_and_found() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let certificate = |t: Template| {
        token.create(&scope, t.with(A::Class, number(1)).with(A::Token, yes()).with(A::Label, bytes(b"cert")))
    };
    assert!(matches!(
        certificate(Template::new().with(A::Value, bytes(b"der"))),
        Err(Error::TemplateIncomplete(_))
    ));
    let id = certificate(
        Template::new()
            .with(A::CertificateType, number(0))
            .with(A::Subject, bytes(b"subject"))
            .with(A::Value, bytes(b"der")),
    )
    .unwrap();
    assert_eq!(got(&token, id, A::Value), b"der");
    let data = token
        .create(
            &scope,
            Template::new().with(A::Class, number(0)).with(A::Token, yes()).with(A::Value, bytes(b"v")),
        )
        .unwrap();
    token.set(data, Template::new().with(A::Value, bytes(b"w"))).unwrap();
    assert_eq!(got(&token, data, A::Value), b"w");
    let find = |t: Template| token.find(&scope, &t).unwrap();
    assert_eq!(find(Template::new().with(A::Value, bytes(b"w"))), [data]);
    assert_eq!(find(Template::new().with(A::Subject, bytes(b"subject"))), [id]);
    assert_eq!(find(Template::new().with(A::Class, number(1))), [id]);
    assert_eq!(find(Template::new().with(A::Label, bytes(b"cert"))), [id]);
    assert_eq!(find(Template::new().with(A::Label, bytes(b"cer"))), []);
    assert_eq!(find(Template::new()).len(), 2);
}

#[test]
fn objects_of_a_session_end_with_it_and_those_of_the_token_do_not() {
    let f = Fixture::new();
    let token = f.token("user");
    let (one, two) = (token.new_scope(), token.new_scope());
    let kept = aes(&token, &one, 32, &[A::Token]);
    let gone = aes(&token, &one, 32, &[]);
    let other = aes(&token, &two, 32, &[]);
    assert_eq!(token.find(&one, &Template::new()).unwrap().len(), 3);
    assert_eq!(token.find(&one, &Template::new().with(A::Token, no())).unwrap().len(), 2);
    assert_eq!(token.find(&one, &Template::new().with(A::Token, yes())).unwrap(), [kept]);
    drop(one);
    assert!(matches!(token.get(gone, A::Label), Err(Error::NoSuchObject(id)) if id == gone));
    token.get(other, A::Label).unwrap();
    token.close().unwrap();
    drop(two);
    let token = f.token("user");
    let scope = token.new_scope();
    assert_eq!(token.find(&scope, &Template::new()).unwrap(), [kept]);
    assert!(flag(&token, kept, A::NeverExtractable));
    token.destroy(kept).unwrap();
    assert_eq!(token.find(&scope, &Template::new()).unwrap(), Vec::<ObjectId>::new());
    assert!(matches!(token.destroy(kept), Err(Error::NoSuchObject(_))));
}

#[test]
fn a_copy_is_another_object_that_may_be_stricter() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let key = aes(&token, &scope, 32, &[A::Extractable]);
    let copy = token.copy(&scope, key, flags(&[A::Token]).with(A::Extractable, no())).unwrap();
    assert_ne!(copy, key);
    assert!(flag(&token, copy, A::Token) && !flag(&token, copy, A::Extractable));
    assert_eq!(got(&token, copy, A::CheckValue), got(&token, key, A::CheckValue));
    let looser = token.copy(&scope, copy, flags(&[A::Extractable]));
    assert!(matches!(looser, Err(Error::AttributeReadOnly(A::Extractable))));
    token.set(copy, Template::new().with(A::Copyable, no())).unwrap();
    assert!(matches!(token.copy(&scope, copy, Template::new()), Err(Error::ActionProhibited(_))));
}

#[test]
fn one_process_sees_what_another_one_did() {
    let f = Fixture::new();
    let (one, two) = (f.token("user"), f.token("user"));
    let (s1, s2) = (one.new_scope(), two.new_scope());
    assert_eq!(two.find(&s2, &Template::new()).unwrap(), []);
    let key = aes(&one, &s1, 32, &[A::Token]);
    assert_eq!(two.find(&s2, &Template::new()).unwrap(), [key]);
    assert_eq!(got(&two, key, A::Label), b"");
    one.set(key, Template::new().with(A::Label, bytes(b"new"))).unwrap();
    assert_eq!(got(&two, key, A::Label), b"new");
    two.destroy(key).unwrap();
    assert!(matches!(one.get(key, A::Label), Err(Error::NoSuchObject(_))));
    one.session().verify_store().unwrap();
    one.session().verify_audit(&mut |_| {}).unwrap();
}
