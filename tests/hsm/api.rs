//! Our module through the `cryptoki` crate, and by random calls.

use std::path::Path;
use std::process::Command;
use std::{env, thread};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use tde_tests::{Maker, command_output};

use crate::tools::Desk;

const P256: &[u8] = &[0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];

/// The library is configured by the environment: what uses it is in a process of its own.
#[test]
fn the_cryptoki_crate_uses_every_kind_of_key() {
    let desk = Desk::new();
    let mut child = desk.command(env::current_exe().unwrap());
    child.args(["--exact", "api::child", "--ignored"]).env("PIN", &desk.token.pin);
    let said = command_output(&mut child);
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "a part of another test"]
fn child() {
    let library = Pkcs11::new(Maker::Tde.module()).unwrap();
    library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let again = library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    assert!(matches!(again, Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _))));
    let slot = library.get_slots_with_token().unwrap()[0];
    let info = library.get_token_info(slot).unwrap();
    assert!(info.label() == "tde" && info.login_required() && info.rng() && !info.user_pin_locked());
    let session = library.open_rw_session(slot).unwrap();
    let early = session.generate_key(&Mechanism::AesKeyGen, &[]);
    assert!(matches!(early, Err(Error::Pkcs11(RvError::UserNotLoggedIn, _))));
    let pin = AuthPin::new(env::var("PIN").unwrap().into());
    session.login(UserType::User, Some(&pin)).unwrap();
    symmetric(&session);
    asymmetric(&session);
    attributes(&session);
    // Sessions of one login in several threads, each with its own operation under way.
    let key = aes(&session, &[Attribute::Token(true), Attribute::Label(b"shared".to_vec())]);
    thread::scope(|threads| {
        for n in 0..8 {
            let session = library.open_ro_session(slot).unwrap();
            threads.spawn(move || {
                for round in 0..200_u32 {
                    let data = [n, round as u8].repeat(40);
                    let sealed = session.encrypt(&Mechanism::AesCbcPad([n; 16]), key, &data).unwrap();
                    assert_eq!(session.decrypt(&Mechanism::AesCbcPad([n; 16]), key, &sealed).unwrap(), data);
                    let own = aes(&session, &[]);
                    assert!(
                        session.find_objects(&[Attribute::Label(b"shared".to_vec())]).unwrap().contains(&key)
                    );
                    session.destroy_object(own).unwrap();
                }
                let written = session.generate_key(
                    &Mechanism::AesKeyGen,
                    &[Attribute::Token(true), Attribute::ValueLen(32.into())],
                );
                assert!(matches!(written, Err(Error::Pkcs11(RvError::SessionReadOnly, _))));
            });
        }
    });
    session.logout().unwrap();
    assert!(session.find_objects(&[]).unwrap().is_empty(), "nothing is visible before login");
    drop(session);
    library.finalize().unwrap();
}

fn aes(session: &Session, more: &[Attribute]) -> ObjectHandle {
    let template = [&[Attribute::ValueLen(32.into())][..], more].concat();
    session.generate_key(&Mechanism::AesKeyGen, &template).unwrap()
}

fn symmetric(session: &Session) {
    let key = aes(session, &[Attribute::Wrap(true), Attribute::Unwrap(true)]);
    // Nonces are the HSM's, as with CloudHSM: the caller leaves room.
    let mut nonce = [0; 12];
    let gcm = GcmParams::new(&mut nonce, b"header", 128.into()).unwrap();
    let sealed = session.encrypt(&Mechanism::AesGcm(gcm), key, b"message").unwrap();
    assert!(nonce != [0; 12] && sealed.len() == 7 + 16);
    let opened = |nonce: &mut [u8; 12], header: &[u8]| {
        let gcm = GcmParams::new(nonce, header, 128.into()).unwrap();
        session.decrypt(&Mechanism::AesGcm(gcm), key, &sealed)
    };
    assert_eq!(opened(&mut nonce, b"header").unwrap(), b"message");
    let changed = opened(&mut nonce, b"other");
    assert!(matches!(changed, Err(Error::Pkcs11(RvError::EncryptedDataInvalid, _))));
    let own = GcmParams::new(&mut nonce, b"", 128.into()).unwrap();
    let refused = session.encrypt(&Mechanism::AesGcm(own), key, b"message");
    assert!(matches!(refused, Err(Error::Pkcs11(RvError::MechanismParamInvalid, _))));

    let taken = aes(session, &[Attribute::Extractable(true)]);
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, key, taken).unwrap();
    assert_eq!(wrapped.len(), 40);
    let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)];
    let again = session.unwrap_key(&Mechanism::AesKeyWrap, key, &wrapped, &template).unwrap();
    let block = session.encrypt(&Mechanism::AesEcb, taken, &[9; 16]).unwrap();
    assert_eq!(session.decrypt(&Mechanism::AesEcb, again, &block).unwrap(), [9; 16]);
    let kept = session.wrap_key(&Mechanism::AesKeyWrap, key, again);
    assert!(matches!(kept, Err(Error::Pkcs11(RvError::KeyUnextractable, _))));
    assert_eq!(session.digest(&Mechanism::Sha256, b"abc").unwrap()[..4], [0xBA, 0x78, 0x16, 0xBF]);
}

fn asymmetric(session: &Session) {
    let pair = |mechanism: &Mechanism, public: &[Attribute], private: &[Attribute]| {
        session.generate_key_pair(mechanism, public, private).unwrap()
    };
    let rsa_size = Attribute::ModulusBits(2048.into());
    let (public, private) = pair(&Mechanism::RsaPkcsKeyPairGen, &[rsa_size], &[]);
    let pss =
        PkcsPssParams { hash_alg: MechanismType::SHA256, mgf: PkcsMgfType::MGF1_SHA256, s_len: 32.into() };
    let signature = session.sign(&Mechanism::Sha256RsaPkcsPss(pss), private, b"text").unwrap();
    session.verify(&Mechanism::Sha256RsaPkcsPss(pss), public, b"text", &signature).unwrap();
    let wrong = session.verify(&Mechanism::Sha256RsaPkcsPss(pss), public, b"other", &signature);
    assert!(matches!(wrong, Err(Error::Pkcs11(RvError::SignatureInvalid, _))));
    let oaep = PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, PkcsOaepSource::empty());
    let sealed = session.encrypt(&Mechanism::RsaPkcsOaep(oaep), public, b"secret").unwrap();
    assert_eq!(session.decrypt(&Mechanism::RsaPkcsOaep(oaep), private, &sealed).unwrap(), b"secret");

    let (public, private) = pair(&Mechanism::EccKeyPairGen, &[Attribute::EcParams(P256.to_vec())], &[]);
    let signature = session.sign(&Mechanism::EcdsaSha256, private, b"text").unwrap();
    assert_eq!(signature.len(), 64);
    session.verify(&Mechanism::EcdsaSha256, public, b"text", &signature).unwrap();
    let derive = || {
        let params = Attribute::EcParams(P256.to_vec());
        let (public, private) = pair(&Mechanism::EccKeyPairGen, &[params], &[Attribute::Derive(true)]);
        (private, session.get_attributes(public, &[AttributeType::EcPoint]).unwrap())
    };
    let (one, other) = (derive(), derive());
    let secret = |private: ObjectHandle, point: &[Attribute]| {
        let [Attribute::EcPoint(point)] = point else { panic!("{point:?}") };
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
        ];
        let params = Ecdh1DeriveParams::new(EcKdf::null(), point);
        let key = session.derive_key(&Mechanism::Ecdh1Derive(params), private, &template).unwrap();
        session.get_attributes(key, &[AttributeType::Value]).unwrap()
    };
    assert_eq!(secret(one.0, &other.1), secret(other.0, &one.1));
}

fn attributes(session: &Session) {
    let key = aes(session, &[Attribute::Label(b"mine".to_vec()), Attribute::Id(vec![7])]);
    let secret = session.get_attributes(key, &[AttributeType::Value]).unwrap();
    assert!(secret.is_empty(), "the value of a sensitive key is not shown");
    session.update_attributes(key, &[Attribute::Label(b"renamed".to_vec())]).unwrap();
    let refused = session.update_attributes(key, &[Attribute::Extractable(true)]);
    assert!(matches!(refused, Err(Error::Pkcs11(RvError::AttributeReadOnly, _))));
    let copy = session.copy_object(key, &[Attribute::Label(b"copy".to_vec())]).unwrap();
    let found = session.find_objects(&[Attribute::Id(vec![7])]).unwrap();
    assert!(found.len() == 2 && found.contains(&key) && found.contains(&copy));
    session.destroy_object(copy).unwrap();
    assert_eq!(session.find_objects(&[Attribute::Id(vec![7])]).unwrap(), [key]);
    let gone = session.get_attributes(copy, &[AttributeType::Label]);
    assert!(matches!(gone, Err(Error::Pkcs11(RvError::ObjectHandleInvalid, _))));
}

/// Any calls in any order from several threads, and in children that are forked meanwhile: nothing crashes, every return code is one that
/// the standard names for its function, and a child that lives on holds no lock of its parent.
#[test]
fn random_calls_from_threads_and_after_fork() {
    let desk = Desk::new();
    let (calls, rounds) = if tde_tests::soak() { ("100000", 10) } else { ("10000", 1) };
    for seed in 0..rounds {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("hsm/random_calls.py");
        let mut python = desk.command("/usr/bin/python3");
        python.arg(script).arg(Maker::Tde.module()).args([&desk.token.pin, calls, &seed.to_string()]);
        let said = command_output(&mut python);
        assert!(said.starts_with(&format!("calls {calls} ")), "{said}");
    }
}

/// A program that ends without a word leaves nothing behind, and one that unloads the library goes on.
#[test]
fn programs_end_cleanly() {
    let desk = Desk::new();
    let script = "
import ctypes, _ctypes, os, sys
for round in range(3):
    library = ctypes.CDLL(os.environ['MODULE'])
    library.C_GetFunctionList(ctypes.byref(ctypes.c_void_p()))
    assert library.C_GetInterfaceList(None, ctypes.byref(ctypes.c_ulong())) == 0
    handle = library._handle
    del library
    _ctypes.dlclose(handle)
print('over')";
    let mut python: Command = desk.command("/usr/bin/python3");
    assert_eq!(command_output(python.args(["-c", script])).trim(), "over");
}
