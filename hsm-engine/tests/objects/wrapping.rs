//! Keys leave wrapped if they may, come in wrapped, and are derived.

use hsm_engine::objects::{
    AttributeType as A, Chain, Derive, Error, Generate, Hash, Mechanism, ObjectId, Part, Scope, Template,
    Token, Value,
};

use crate::support::{ED25519, Fixture, P256, P384, P521, aes, bytes, flag, flags, got, no, pair, yes};

fn aes_template() -> Template {
    Template::new().with(A::Class, Value::Number(4)).with(A::KeyType, Value::Number(0x1F))
}

fn oaep() -> Mechanism {
    Mechanism::RsaOaep { hash: Hash::Sha256, mgf: Hash::Sha256, label: b"l".to_vec() }
}

fn rsa_aes() -> Mechanism {
    Mechanism::RsaAesKeyWrap { aes_bits: 256, hash: Hash::Sha256, mgf: Hash::Sha1, label: Vec::new() }
}

#[test]
fn secret_keys_travel_under_every_wrapping_mechanism() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let kek = aes(&token, &scope, 32, &[A::Wrap, A::Unwrap]);
    let (public, private) = pair(&token, &scope, Generate::Rsa, &[], &[A::Wrap], &[A::Unwrap]);
    let key = aes(&token, &scope, 24, &[A::Extractable]);
    let iv = [7; 16];
    for (m, with, by) in [
        (Mechanism::AesKw, kek, kek),
        (Mechanism::AesKwp, kek, kek),
        (Mechanism::AesCbcPad { iv }, kek, kek),
        (Mechanism::RsaPkcs, public, private),
        (oaep(), public, private),
        (rsa_aes(), public, private),
    ] {
        let wrapped = token.wrap(&m, with, key).unwrap();
        let back = token.unwrap(&scope, &m, by, &wrapped, aes_template().with(A::Token, yes())).unwrap();
        assert_eq!(got(&token, back, A::CheckValue), got(&token, key, A::CheckValue), "{m:?}");
        assert!(!flag(&token, back, A::Local) && !flag(&token, back, A::NeverExtractable));
        assert!(!flag(&token, back, A::Extractable));
        let mut bad = wrapped.clone();
        *bad.last_mut().unwrap() ^= 1;
        if !matches!(m, Mechanism::AesCbcPad { .. }) {
            let changed = token.unwrap(&scope, &m, by, &bad, aes_template());
            assert!(matches!(changed, Err(Error::WrappedKeyInvalid)), "{m:?}: {changed:?}");
        }
        let cut = token.unwrap(&scope, &m, by, &wrapped[1..], aes_template());
        assert!(matches!(cut, Err(Error::WrappedKeyLenRange | Error::WrappedKeyInvalid)), "{m:?}: {cut:?}");
    }
}

#[test]
fn private_keys_of_every_type_travel_as_pkcs_8() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let kek = aes(&token, &scope, 32, &[A::Wrap, A::Unwrap]);
    for (how, params, key_type) in [
        (Generate::Rsa, &[][..], 0),
        (Generate::Ec, P256, 3),
        (Generate::Ec, P384, 3),
        (Generate::Ec, P521, 3),
        (Generate::Edwards, ED25519, 0x40),
    ] {
        let (_, private) = pair(&token, &scope, how, params, &[], &[A::Extractable]);
        for m in [Mechanism::AesKwp, Mechanism::AesCbcPad { iv: [1; 16] }] {
            let wrapped = token.wrap(&m, kek, private).unwrap();
            let t = |n| Template::new().with(A::Class, Value::Number(3)).with(A::KeyType, Value::Number(n));
            let back = token.unwrap(&scope, &m, kek, &wrapped, t(key_type)).unwrap();
            assert_eq!(got(&token, back, A::PublicKeyInfo), got(&token, private, A::PublicKeyInfo));
            let other = if key_type == 0 { 3 } else { 0 };
            let wrong = token.unwrap(&scope, &m, kek, &wrapped, t(other));
            assert!(matches!(wrong, Err(Error::WrappedKeyInvalid)), "{wrong:?}");
        }
    }
}

#[test]
fn no_attribute_lets_a_key_out_that_should_stay() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let wrap = |with: ObjectId, key: ObjectId| token.wrap(&Mechanism::AesKwp, with, key);
    let kek = aes(&token, &scope, 32, &[A::Token, A::Wrap]);
    let inside = aes(&token, &scope, 32, &[]);
    assert!(matches!(wrap(kek, inside), Err(Error::KeyUnextractable)));
    let plain = aes(&token, &scope, 32, &[A::Extractable]);
    let no_kek = aes(&token, &scope, 32, &[]);
    assert!(matches!(wrap(no_kek, plain), Err(Error::KeyFunctionNotPermitted("wrap"))));
    let careful = aes(&token, &scope, 32, &[A::Extractable, A::WrapWithTrusted]);
    assert!(matches!(wrap(kek, careful), Err(Error::KeyNotWrappable)));
    f.token("officer").set(kek, flags(&[A::Trusted])).unwrap();
    wrap(kek, careful).unwrap();
    // A copy of a trusted key is not trusted.
    let copy = token.copy(&scope, kek, Template::new()).unwrap();
    assert!(matches!(wrap(copy, careful), Err(Error::KeyNotWrappable)));
    // A wrapping key that takes only certain keys.
    let picky = Template::new()
        .with(A::ValueLen, Value::Number(32))
        .with(A::Wrap, yes())
        .with(A::WrapTemplate, Value::Template(flags(&[A::Sign]).with(A::Encrypt, no())));
    let picky = token.generate_key(&scope, Generate::Aes, picky).unwrap();
    assert!(matches!(wrap(picky, plain), Err(Error::KeyNotWrappable)));
    token.set(plain, Template::new().with(A::Encrypt, no())).unwrap();
    wrap(picky, plain).unwrap();
}

#[test]
fn what_an_unwrapping_key_prescribes_holds() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let prescribed = Template::new().with(A::Extractable, no()).with(A::Encrypt, no());
    let kek = flags(&[A::Wrap, A::Unwrap])
        .with(A::ValueLen, Value::Number(32))
        .with(A::UnwrapTemplate, Value::Template(prescribed));
    let kek = token.generate_key(&scope, Generate::Aes, kek).unwrap();
    let key = aes(&token, &scope, 32, &[A::Extractable]);
    let wrapped = token.wrap(&Mechanism::AesKw, kek, key).unwrap();
    let unwrap = |t: Template| token.unwrap(&scope, &Mechanism::AesKw, kek, &wrapped, t);
    let back = unwrap(aes_template()).unwrap();
    assert!(!flag(&token, back, A::Encrypt) && flag(&token, back, A::Decrypt));
    assert!(matches!(
        unwrap(aes_template().with(A::Extractable, yes())),
        Err(Error::TemplateInconsistent(_))
    ));
    unwrap(aes_template().with(A::Extractable, no())).unwrap();
}

fn secret(token: &Token, scope: &Scope, value: &[u8], on: &[A]) -> ObjectId {
    let t = flags(on)
        .with(A::Class, Value::Number(4))
        .with(A::KeyType, Value::Number(0x10))
        .with(A::Value, Value::secret(value));
    token.create(scope, t).unwrap()
}

fn open(len: u64) -> Template {
    Template::new()
        .with(A::Class, Value::Number(4))
        .with(A::KeyType, Value::Number(0x10))
        .with(A::ValueLen, Value::Number(len))
        .with(A::Sensitive, no())
        .with(A::Extractable, yes())
}

/// RFC 5869 appendix A.1.
#[test]
fn hkdf_derives_the_standards_key() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let base = secret(&token, &scope, &[0x0b; 22], &[A::Derive]);
    let derive = Derive::Hkdf {
        hash: Hash::Sha256,
        extract: true,
        expand: true,
        salt: (0..=12).collect(),
        info: (0xf0..=0xf9).collect(),
    };
    let key = token.derive(&scope, &derive, base, open(42)).unwrap();
    let want = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
    assert_eq!(hex::encode(got(&token, key, A::Value)), want);
    let idle = secret(&token, &scope, &[0x0b; 22], &[]);
    let refused = token.derive(&scope, &derive, idle, open(42));
    assert!(matches!(refused, Err(Error::KeyFunctionNotPermitted("derive"))));
    let endless = token.derive(&scope, &derive, base, open(255 * 32 + 1));
    assert!(matches!(endless, Err(Error::KeySizeRange)));
}

#[test]
fn both_sides_of_ecdh_derive_the_same_key() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    for params in [P256, P384, P521] {
        let (pa, a) = pair(&token, &scope, Generate::Ec, params, &[], &[A::Derive]);
        let (pb, b) = pair(&token, &scope, Generate::Ec, params, &[], &[A::Derive]);
        for kdf in [None, Some(Hash::Sha384)] {
            let shared = if kdf.is_some() { b"info".to_vec() } else { Vec::new() };
            let with = |public: ObjectId| Derive::Ecdh {
                kdf,
                public: got(&token, public, A::EcPoint),
                shared: shared.clone(),
            };
            let one = token.derive(&scope, &with(pb), a, open(32)).unwrap();
            let two = token.derive(&scope, &with(pa), b, open(32)).unwrap();
            assert_eq!(got(&token, one, A::Value), got(&token, two, A::Value));
        }
        let junk = Derive::Ecdh { kdf: None, public: vec![4; 65], shared: Vec::new() };
        assert!(matches!(token.derive(&scope, &junk, a, open(32)), Err(Error::MechanismParamInvalid(_))));
    }
}

#[test]
fn a_derived_key_remembers_where_it_is_from() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let parts = vec![
        Part::Counter { bytes: 4, little_endian: false },
        Part::Bytes(b"label\0context".to_vec()),
        Part::Length { bytes: 4, little_endian: false },
    ];
    let derive = |prf| Derive::Sp800108 { prf, chain: Chain::Counter, parts: parts.clone() };
    let base = secret(&token, &scope, &[0x0b; 16], &[A::Derive]);
    let key = token.derive(&scope, &derive(Some(Hash::Sha256)), base, open(40)).unwrap();
    // OpenSSL's KBKDF.
    let want = "325aa10fc5ede94689bbd7b1c3141d168f12d54c65098bb0d50ae43bf7dbce499a98e7e420e9c673";
    assert_eq!(hex::encode(got(&token, key, A::Value)), want);
    assert!(!flag(&token, key, A::AlwaysSensitive));
    let inside = aes(&token, &scope, 32, &[A::Derive]);
    let key =
        token.derive(&scope, &derive(None), inside, aes_template().with(A::ValueLen, Value::Number(32)));
    let key = key.unwrap();
    assert!(flag(&token, key, A::AlwaysSensitive) && flag(&token, key, A::NeverExtractable));
    assert!(matches!(
        token.derive(&scope, &derive(Some(Hash::Sha256)), inside, open(32)),
        Err(Error::KeyTypeInconsistent)
    ));
    let data = Derive::AesCbcEncryptData { iv: [0; 16], data: vec![1; 32] };
    token.derive(&scope, &data, inside, aes_template()).unwrap();
    let ragged = Derive::AesEcbEncryptData { data: vec![1; 31] };
    assert!(matches!(
        token.derive(&scope, &ragged, inside, aes_template()),
        Err(Error::MechanismParamInvalid(_))
    ));
    let bytes = bytes(b"unused");
    assert!(matches!(bytes, Value::Bytes(_)));
}
