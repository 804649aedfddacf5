//! A session with a token for tests: each has a token of its own, which the library finds by an environment variable.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::Command;

use hsm_engine::Pin;
use keyring::pkcs11::{AgentOptions, Pkcs11Error, Pkcs11Hsm, Pkcs11Uri};
use tde_tests::{Maker, Scratch, Token};

thread_local! {
    static ENVIRONMENT: RefCell<(&'static str, String)> = RefCell::default();
}

/// A token and the folder that goes away with it.
pub(crate) struct Bench {
    pub(crate) scratch: Scratch,
    pub(crate) token: Token,
}

impl Bench {
    /// A token of SoftHSM2 without keys.
    pub(crate) fn new() -> Self {
        Self::of(Maker::SoftHsm2)
    }

    /// A token without keys.
    pub(crate) fn of(maker: Maker) -> Self {
        let scratch = Scratch::new();
        let token = Token::of(maker, &scratch.path().join("hsm"));
        Self { scratch, token }
    }

    /// A token of SoftHSM2 with a master key.
    pub(crate) fn with_key(more: &str) -> Self {
        Self::with_key_of(Maker::SoftHsm2, more)
    }

    /// A token with a master key.
    pub(crate) fn with_key_of(maker: Maker, more: &str) -> Self {
        let bench = Self::of(maker);
        bench.token_session(more).create_key().unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The program lies beside `deps`, in which tests lie.
    pub(crate) fn options(&self) -> AgentOptions {
        fn find_token(command: &mut Command) {
            ENVIRONMENT.with_borrow(|(name, value)| command.env(name, value));
        }
        ENVIRONMENT.with_borrow_mut(|environment| environment.clone_from(&self.token.environment));
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
