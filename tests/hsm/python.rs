//! Python's clients from PyPI, against SoftHSM2 in the same run. A part of the soak: they are fetched, and take a quarter of an hour.

use std::fs;
use std::path::Path;
use std::process::Command;

use tde_tests::{Maker, Scratch, Token, command_output};

const SCRIPT: &str = "
import os, pkcs11
from pkcs11 import KeyType, Mechanism, ObjectClass, Attribute
from pkcs11.util.ec import encode_named_curve_parameters
library = pkcs11.lib(os.environ['MODULE'])
token = library.get_token(token_label='tde')
with token.open(rw=True, user_pin=os.environ['PIN']) as session:
    key = session.generate_key(KeyType.AES, 256, label='python', store=True)
    iv = session.generate_random(128)
    assert key.decrypt(key.encrypt(b'text', mechanism_param=iv), mechanism_param=iv) == b'text'
    public, private = session.generate_keypair(KeyType.RSA, 2048)
    signature = private.sign(b'text', mechanism=Mechanism.SHA256_RSA_PKCS)
    assert public.verify(b'text', signature, mechanism=Mechanism.SHA256_RSA_PKCS)
    assert not public.verify(b'other', signature, mechanism=Mechanism.SHA256_RSA_PKCS)
    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters('secp256r1')}, local=True)
    public, private = parameters.generate_keypair()
    assert public.verify(b'x' * 32, private.sign(b'x' * 32))
    wrapped = session.generate_key(KeyType.AES, 256, template={Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False})
    kek = session.generate_key(KeyType.AES, 256, template={Attribute.WRAP: True, Attribute.UNWRAP: True})
    again = kek.unwrap_key(ObjectClass.SECRET_KEY, KeyType.AES, kek.wrap_key(wrapped, mechanism=Mechanism.AES_KEY_WRAP),
                           mechanism=Mechanism.AES_KEY_WRAP, template={Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False})
    assert again[Attribute.VALUE] == wrapped[Attribute.VALUE]
    assert session.get_key(label='python')[Attribute.NEVER_EXTRACTABLE]
    assert len(list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}))) == 4
print('done')";

#[test]
fn python_clients_find_less_fault_than_with_softhsm2() {
    if !tde_tests::soak() {
        return;
    }
    let scratch = Scratch::new();
    let venv = scratch.path().join("venv");
    let check = |maker: Maker| {
        let token = Token::of(maker, &scratch.path().join(format!("{maker:?}")));
        let list = scratch.path().join(format!("{maker:?}.failed"));
        let mut check = token.command("/usr/bin/python3");
        check.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("hsm/pkcs11_check.py"));
        check.arg(&venv).arg(maker.module()).arg(&list).env("P11TEST_PIN", &token.pin);
        println!("{maker:?}: {}", command_output(&mut check).trim());
        (token, fs::read_to_string(list).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let (token, ours) = check(Maker::Tde);
    println!("{}", ours.join("\n"));
    let mut python: Command = token.command(venv.join("bin/python"));
    python.args(["-c", SCRIPT]).env("MODULE", Maker::Tde.module()).env("PIN", &token.pin);
    assert_eq!(command_output(&mut python).trim(), "done");

    let (_, theirs) = check(Maker::SoftHsm2);
    assert!(ours.len() < theirs.len(), "we fail {}, SoftHSM2 fails {}", ours.len(), theirs.len());
    // Every test that our module fails is explained.
    let known = include_str!("../../docs/testing/pkcs11.md");
    let unknown: Vec<_> = ours.iter().filter(|test| !known.contains(test.as_str())).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}
