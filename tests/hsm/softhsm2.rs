//! A session with a token for tests: each has a token of its own, which SoftHSM2 finds by an environment variable.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;

use hsm_engine::Pin;
use keyring::pkcs11::{AgentOptions, Pkcs11Error, Pkcs11Hsm, Pkcs11Uri};
use tde_tests::{Scratch, Token};

thread_local! {
    static CONF: RefCell<PathBuf> = RefCell::default();
}

/// A token and the folder that goes away with it.
pub(crate) struct Bench {
    pub(crate) scratch: Scratch,
    pub(crate) token: Token,
}

impl Bench {
    /// A token without keys.
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        let token = Token::new(&scratch.path().join("hsm"));
        Self { scratch, token }
    }

    /// A token with a master key.
    pub(crate) fn with_key(more: &str) -> Self {
        let bench = Self::new();
        bench.token_session(more).create_key().unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The program lies beside `deps`, in which tests lie.
    pub(crate) fn options(&self) -> AgentOptions {
        fn find_token(command: &mut Command) {
            CONF.with_borrow(|conf| command.env("SOFTHSM2_CONF", conf));
        }
        CONF.with_borrow_mut(|conf| conf.clone_from(&self.token.conf));
        let program = tde_tests::sqlite::Sqlite::tde_program().with_file_name(keyring::pkcs11::PROGRAM);
        AgentOptions { program: Some(program), prepare: find_token, ..AgentOptions::default() }
    }

    pub(crate) fn pin(&self) -> Pin {
        Pin::from_file(&self.token.pin_file).unwrap()
    }

    pub(crate) fn uri(&self, more: &str) -> Pkcs11Uri {
        self.token.uri(more).parse().unwrap()
    }

    pub(crate) fn token_session(&self, more: &str) -> Pkcs11Hsm {
        Pkcs11Hsm::open_token(&self.uri(more), self.pin(), self.options()).unwrap()
    }

    pub(crate) fn try_open(&self, uri: &str, pin: &str) -> Result<Pkcs11Hsm, Pkcs11Error> {
        let pin = Pin::from_reader(pin.as_bytes()).unwrap();
        Pkcs11Hsm::open(&uri.parse().unwrap(), pin, self.options())
    }

    pub(crate) fn open(&self, more: &str) -> Pkcs11Hsm {
        self.try_open(&self.token.uri(more), &self.token.pin).unwrap()
    }
}
