//! Every mechanism through the token: in one part and in several, with its inverse, refused where it should be.

use hsm_engine::objects::{
    AttributeType as A, Error, Generate, Hash, Iv, Mechanism, ObjectId, Template, Token, Value,
};

use crate::support::{ED25519, Fixture, P256, P384, P521, aes, flags, pair};

fn run(
    token: &Token,
    decrypt: bool,
    m: &Mechanism,
    key: ObjectId,
    data: &[u8],
    part: usize,
) -> Result<Vec<u8>, Error> {
    let mut cipher = if decrypt { token.decrypt(m, key)? } else { token.encrypt(m, key)? };
    let promised = cipher.output_len(data.len());
    let mut out = Vec::new();
    for chunk in data.chunks(part.max(1)) {
        let n = cipher.update_len(chunk.len());
        let piece = cipher.update(chunk)?;
        assert_eq!(piece.len(), n);
        out.extend(piece);
    }
    out.extend(cipher.finish()?);
    assert!(out.len() <= promised, "{m:?}: {} of {promised}", out.len());
    Ok(out)
}

#[test]
fn ciphers_undo_themselves_in_parts_of_any_length() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    for len in [16, 24, 32] {
        let key = aes(&token, &scope, len, &[]);
        for n in [0_usize, 1, 15, 16, 17, 32, 100, 1000] {
            let data: Vec<u8> = (0..n).map(|i| i as u8).collect();
            for part in [1, 7, 16, 33, 2000] {
                let counter = [0xF0; 16];
                for m in [Mechanism::AesCbcPad { iv: [3; 16] }, Mechanism::AesCtr { counter, bits: 128 }] {
                    let sealed = run(&token, false, &m, key, &data, part).unwrap();
                    assert_eq!(run(&token, true, &m, key, &sealed, part).unwrap(), data, "{m:?} {n} {part}");
                }
                for m in [Mechanism::AesCbc { iv: [3; 16] }, Mechanism::AesEcb] {
                    let sealed = run(&token, false, &m, key, &data, part);
                    if n % 16 == 0 {
                        let sealed = sealed.unwrap();
                        assert_eq!(run(&token, true, &m, key, &sealed, part).unwrap(), data);
                    } else {
                        assert!(matches!(sealed, Err(Error::DataLenRange)), "{m:?} {n}");
                    }
                }
            }
        }
    }
}

#[test]
fn authenticated_modes_show_nothing_that_was_changed_and_make_their_own_nonces() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let key = aes(&token, &scope, 32, &[]);
    for siv in [false, true] {
        let mechanism = |iv: Iv, aad: &[u8]| match siv {
            false => Mechanism::AesGcm { iv, aad: aad.to_vec() },
            true => Mechanism::AesGcmSiv { iv, aad: aad.to_vec() },
        };
        let given = token.encrypt(&mechanism(Iv::Given([0; 12]), b""), key);
        assert!(matches!(given, Err(Error::MechanismParamInvalid(_))));
        let mut nonces = Vec::new();
        for part in [1, 100] {
            let mut cipher = token.encrypt(&mechanism(Iv::Generate, b"aad"), key).unwrap();
            let nonce: [u8; 12] = cipher.iv().unwrap().try_into().unwrap();
            assert!(!nonces.contains(&nonce));
            nonces.push(nonce);
            let mut sealed = cipher.update(b"some text").unwrap();
            sealed.extend(cipher.finish().unwrap());
            assert_eq!(sealed.len(), 9 + 16);
            let open = |aad: &[u8], sealed: &[u8]| {
                run(&token, true, &mechanism(Iv::Given(nonce), aad), key, sealed, part)
            };
            assert_eq!(open(b"aad", &sealed).unwrap(), b"some text");
            assert!(matches!(open(b"aae", &sealed), Err(Error::EncryptedDataInvalid)));
            assert!(matches!(open(b"aad", &sealed[..15]), Err(Error::EncryptedDataLenRange)));
            for at in 0..sealed.len() {
                let mut bad = sealed.clone();
                bad[at] ^= 1;
                assert!(matches!(open(b"aad", &bad), Err(Error::EncryptedDataInvalid)));
            }
        }
    }
    let middle = aes(&token, &scope, 24, &[]);
    let siv = Mechanism::AesGcmSiv { iv: Iv::Generate, aad: Vec::new() };
    assert!(matches!(token.encrypt(&siv, middle), Err(Error::KeySizeRange)));
}

fn sign(token: &Token, m: &Mechanism, key: ObjectId, data: &[u8], part: usize) -> Result<Vec<u8>, Error> {
    let mut signer = token.sign(m, key)?;
    let n = signer.signature_len();
    data.chunks(part).try_for_each(|chunk| signer.update(chunk))?;
    let signature = signer.finish()?;
    assert_eq!(signature.len(), n, "{m:?}");
    Ok(signature)
}

fn verify(token: &Token, m: &Mechanism, key: ObjectId, data: &[u8], signature: &[u8]) -> Result<(), Error> {
    let mut verifier = token.verify(m, key)?;
    verifier.update(data)?;
    verifier.finish(signature)
}

/// Signs, verifies, and refuses whatever differs.
fn check_signature(token: &Token, m: &Mechanism, key: ObjectId, public: ObjectId, data: &[u8]) {
    let mut signature = sign(token, m, key, data, 3).unwrap();
    verify(token, m, public, data, &signature).unwrap();
    let mut other = data.to_vec();
    // The first byte: of a digest that is longer than the curve's order, ECDSA takes the leftmost bits.
    other[0] ^= 1;
    assert!(matches!(verify(token, m, public, &other, &signature), Err(Error::SignatureInvalid)), "{m:?}");
    let short = verify(token, m, public, data, &signature[1..]);
    assert!(matches!(short, Err(Error::SignatureLenRange)), "{m:?}: {short:?}");
    let last = signature.len() - 1;
    signature[last] ^= 1;
    assert!(matches!(verify(token, m, public, data, &signature), Err(Error::SignatureInvalid)), "{m:?}");
}

#[test]
fn macs_and_signatures_verify_and_nothing_else_does() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let key = aes(&token, &scope, 32, &[]);
    for len in [4, 16] {
        check_signature(&token, &Mechanism::AesCmac { len }, key, key, b"message");
    }
    let t = Template::new().with(A::ValueLen, Value::Number(40));
    let generic = token.generate_key(&scope, Generate::GenericSecret, t).unwrap();
    for hash in Hash::ALL.into_iter().filter(|h| *h != Hash::Sha1) {
        for len in [10, hash.len()] {
            check_signature(&token, &Mechanism::Hmac { hash, len }, generic, generic, b"message");
        }
        let (public, private) = pair(&token, &scope, Generate::Ec, P384, &[], &[]);
        check_signature(&token, &Mechanism::EcdsaHash { hash }, private, public, b"message");
    }
    for params in [P256, P384, P521] {
        let (public, private) = pair(&token, &scope, Generate::Ec, params, &[], &[]);
        for n in [20, 32, 48, 64] {
            check_signature(&token, &Mechanism::Ecdsa, private, public, &vec![9; n]);
        }
    }
    let (public, private) = pair(&token, &scope, Generate::Edwards, ED25519, &[], &[]);
    check_signature(&token, &Mechanism::EdDsa, private, public, b"message");
    let (public, private) = pair(&token, &scope, Generate::Rsa, &[], &[], &[]);
    check_signature(&token, &Mechanism::RsaPkcs, private, public, b"a DigestInfo, or not");
    check_signature(&token, &Mechanism::RsaRaw, private, public, &[7; 255]);
    for hash in [Hash::Sha224, Hash::Sha256, Hash::Sha384, Hash::Sha512, Hash::Sha3_256, Hash::Sha3_512] {
        check_signature(&token, &Mechanism::RsaPkcsHash { hash }, private, public, b"message");
        for (prehashed, salt_len) in [(false, hash.len()), (false, 0), (true, 20)] {
            let m = Mechanism::RsaPss { hash, mgf: Hash::Sha256, salt_len, prehashed };
            let data = if prehashed { vec![5; hash.len()] } else { b"message".to_vec() };
            check_signature(&token, &m, private, public, &data);
        }
    }
    let long = sign(&token, &Mechanism::RsaPkcs, private, &[1; 246], 99);
    assert!(matches!(long, Err(Error::DataLenRange)));
    let pss = Mechanism::RsaPss { hash: Hash::Sha256, mgf: Hash::Sha256, salt_len: 32, prehashed: true };
    assert!(matches!(sign(&token, &pss, private, &[1; 31], 99), Err(Error::DataLenRange)));
    let salty = Mechanism::RsaPss { hash: Hash::Sha256, mgf: Hash::Sha256, salt_len: 223, prehashed: true };
    assert!(matches!(token.sign(&salty, private), Err(Error::MechanismParamInvalid(_))));
}

#[test]
fn rsa_encrypts() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let (public, private) = pair(&token, &scope, Generate::Rsa, &[], &[], &[]);
    for (hash, mgf) in [(Hash::Sha1, Hash::Sha1), (Hash::Sha256, Hash::Sha1), (Hash::Sha512, Hash::Sha256)] {
        let m = Mechanism::RsaOaep { hash, mgf, label: b"label".to_vec() };
        let sealed = run(&token, false, &m, public, b"text", 2).unwrap();
        assert_eq!(run(&token, true, &m, private, &sealed, 50).unwrap(), b"text");
        let other = Mechanism::RsaOaep { hash, mgf, label: Vec::new() };
        assert!(matches!(run(&token, true, &other, private, &sealed, 50), Err(Error::EncryptedDataInvalid)));
        assert!(matches!(
            run(&token, true, &m, private, &sealed[1..], 50),
            Err(Error::EncryptedDataLenRange)
        ));
        assert!(matches!(run(&token, false, &m, public, &[0; 240], 240), Err(Error::DataLenRange)));
    }
    let sealed = run(&token, false, &Mechanism::RsaPkcs, public, b"text", 4).unwrap();
    assert_eq!(run(&token, true, &Mechanism::RsaPkcs, private, &sealed, 256).unwrap(), b"text");
    let sealed = run(&token, false, &Mechanism::RsaRaw, public, &[9; 200], 200).unwrap();
    assert_eq!(run(&token, true, &Mechanism::RsaRaw, private, &sealed, 256).unwrap()[56..], [9; 200]);
}

#[test]
fn a_key_does_what_it_is_for_and_nothing_else() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let off = |a: A| Template::new().with(A::ValueLen, Value::Number(32)).with(a, Value::Bool(false));
    let mute = token.generate_key(&scope, Generate::Aes, off(A::Encrypt)).unwrap();
    assert!(matches!(
        token.encrypt(&Mechanism::AesEcb, mute),
        Err(Error::KeyFunctionNotPermitted("encrypt"))
    ));
    token.decrypt(&Mechanism::AesEcb, mute).unwrap();
    let key = aes(&token, &scope, 32, &[]);
    let hmac = Mechanism::Hmac { hash: Hash::Sha256, len: 32 };
    assert!(matches!(token.sign(&hmac, key), Err(Error::KeyTypeInconsistent)));
    assert!(matches!(token.encrypt(&Mechanism::AesKw, key), Err(Error::MechanismInvalid)));
    assert!(matches!(token.sign(&Mechanism::Ecdsa, key), Err(Error::KeyTypeInconsistent)));
    let (public, private) = pair(&token, &scope, Generate::Ec, P256, &[], &[]);
    assert!(matches!(token.sign(&Mechanism::Ecdsa, public), Err(Error::KeyFunctionNotPermitted("sign"))));
    assert!(matches!(
        token.verify(&Mechanism::Ecdsa, private),
        Err(Error::KeyFunctionNotPermitted("verify"))
    ));
    assert!(matches!(token.sign(&Mechanism::EdDsa, private), Err(Error::KeyTypeInconsistent)));
    assert!(matches!(token.sign(&Mechanism::RsaPkcs, private), Err(Error::KeyTypeInconsistent)));
    let list = Value::Mechanisms(vec![0x1087]);
    let t = flags(&[]).with(A::ValueLen, Value::Number(32)).with(A::AllowedMechanisms, list);
    let only_gcm = token.generate_key(&scope, Generate::Aes, t).unwrap();
    token.encrypt(&Mechanism::AesGcm { iv: Iv::Generate, aad: Vec::new() }, only_gcm).unwrap();
    assert!(matches!(token.encrypt(&Mechanism::AesEcb, only_gcm), Err(Error::MechanismInvalid)));
    let none = Value::Mechanisms(Vec::new());
    let t = flags(&[]).with(A::ValueLen, Value::Number(32)).with(A::AllowedMechanisms, none);
    let useless = token.generate_key(&scope, Generate::Aes, t).unwrap();
    assert!(matches!(token.encrypt(&Mechanism::AesEcb, useless), Err(Error::MechanismInvalid)));
}

/// `CKA_ALWAYS_AUTHENTICATE`: one PIN, one use.
#[test]
fn a_key_may_ask_for_the_pin_each_time() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let (_, private) = pair(&token, &scope, Generate::Ec, P256, &[], &[A::AlwaysAuthenticate]);
    let signer = || token.sign(&Mechanism::EcdsaHash { hash: Hash::Sha256 }, private).unwrap();
    assert!(matches!(signer().finish(), Err(Error::PinNeeded)));
    let mut asked = signer();
    assert!(asked.wants_pin());
    let wrong = crate::support::pin("not-the-pin");
    assert!(matches!(asked.give_pin(&wrong), Err(Error::Hsm(hsm_engine::HsmError::WrongPin { .. }))));
    assert!(asked.wants_pin());
    asked.give_pin(&crate::support::pin(crate::support::USER_PIN)).unwrap();
    assert_eq!(asked.finish().unwrap().len(), 64);
    assert!(matches!(signer().finish(), Err(Error::PinNeeded)));
}

#[test]
fn sha_1_is_off() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let (_, private) = pair(&token, &scope, Generate::Ec, P256, &[], &[]);
    let m = Mechanism::EcdsaHash { hash: Hash::Sha1 };
    assert!(matches!(token.sign(&m, private), Err(Error::MechanismInvalid)));
    let t = Template::new().with(A::ValueLen, Value::Number(40));
    let generic = token.generate_key(&scope, Generate::GenericSecret, t).unwrap();
    let m = Mechanism::Hmac { hash: Hash::Sha1, len: 20 };
    assert!(matches!(token.sign(&m, generic), Err(Error::MechanismInvalid)));
}
