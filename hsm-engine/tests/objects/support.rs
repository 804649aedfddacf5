use std::path::{Path, PathBuf};

use hsm_engine::objects::{AttributeType as A, Generate, ObjectId, Scope, Template, Token, Value};
use hsm_engine::{Hsm, Initialize, Pin, Rights, Role};
use tempfile::TempDir;

pub(crate) const USER_PIN: &str = "tdepin-1111111111111111111111111111111111111111111111111111111111111111";
pub(crate) const OFFICER_PIN: &str =
    "tdepin-2222222222222222222222222222222222222222222222222222222222222222";

pub(crate) fn pin(text: &str) -> Pin {
    Pin::from_reader(text.as_bytes()).unwrap()
}

/// A fresh HSM with users `officer`, `user` and `other`.
pub(crate) struct Fixture {
    _scratch: TempDir,
    pub(crate) dir: PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let shm = Path::new("/dev/shm");
        let scratch = if shm.is_dir() { TempDir::new_in(shm) } else { TempDir::new() }.unwrap();
        let dir = scratch.path().join("hsm");
        let hsm = Hsm::initialize_dir(&dir, &Initialize::new(&pin(OFFICER_PIN), &pin(USER_PIN))).unwrap();
        let officer = hsm.login("officer", &pin(OFFICER_PIN)).unwrap();
        let other = pin(&USER_PIN.replace('1', "3"));
        officer.create_user("other", Role::CryptoUser, Rights::default(), &other).unwrap();
        Self { _scratch: scratch, dir }
    }

    pub(crate) fn token(&self, user: &str) -> Token {
        let text = match user {
            "officer" => OFFICER_PIN.to_owned(),
            "user" => USER_PIN.to_owned(),
            _ => USER_PIN.replace('1', "3"),
        };
        Token::open(Hsm::open_dir(&self.dir).unwrap().login(user, &pin(&text)).unwrap()).unwrap()
    }
}

pub(crate) fn bytes(value: &[u8]) -> Value {
    Value::Bytes(value.to_vec())
}

pub(crate) fn yes() -> Value {
    Value::Bool(true)
}

pub(crate) fn no() -> Value {
    Value::Bool(false)
}

/// A template of flags that are on.
pub(crate) fn flags(on: &[A]) -> Template {
    on.iter().map(|a| (*a, yes())).collect()
}

pub(crate) fn aes(token: &Token, scope: &Scope, len: u64, on: &[A]) -> ObjectId {
    token.generate_key(scope, Generate::Aes, flags(on).with(A::ValueLen, Value::Number(len))).unwrap()
}

pub(crate) const P256: &[u8] = &[0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];
pub(crate) const P384: &[u8] = &[0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x22];
pub(crate) const P521: &[u8] = &[0x06, 0x05, 0x2B, 0x81, 0x04, 0x00, 0x23];
pub(crate) const ED25519: &[u8] = &[0x06, 0x03, 0x2B, 0x65, 0x70];

pub(crate) fn pair(
    token: &Token,
    scope: &Scope,
    how: Generate,
    params: &[u8],
    public: &[A],
    private: &[A],
) -> (ObjectId, ObjectId) {
    let public = match how {
        Generate::Rsa => flags(public).with(A::ModulusBits, Value::Number(2048)),
        _ => flags(public).with(A::EcParams, bytes(params)),
    };
    token.generate_key_pair(scope, how, public, flags(private)).unwrap()
}

pub(crate) fn flag(token: &Token, id: ObjectId, attribute: A) -> bool {
    match token.get(id, attribute).unwrap() {
        Value::Bool(b) => b,
        other => panic!("{attribute:?}: {other:?}"),
    }
}

pub(crate) fn got(token: &Token, id: ObjectId, attribute: A) -> Vec<u8> {
    match token.get(id, attribute).unwrap() {
        Value::Bytes(b) => b,
        Value::Secret(s) => s.as_slice().to_vec(),
        other => panic!("{attribute:?}: {other:?}"),
    }
}
