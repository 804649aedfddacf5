//! Objects: keys, certificates and data with the attributes and mechanisms of PKCS#11 v3.
//!
//! * [`Token`]: what a logged-in [`Session`](crate::Session) does with objects. Cheap to clone; several threads may use it.
//! * [`Template`], [`AttributeType`], [`Value`]: what an object is to be, and what it is.
//! * [`Mechanism`], [`Generate`], [`Derive`]: what is to be computed, as values.
//! * [`Cipher`], [`Signer`], [`Verifier`], [`Digester`]: operations in one or several parts.
//! * [`Error`]: one variant for each thing a PKCS#11 caller must be told apart.
//!
//! An object belongs to the user who made it. Others see it only if it was shared with them (then they use it, and neither wrap nor change
//! it) or if it is not private. A token object is in the store, a session object in memory until its [`Scope`] ends.
//!
//! Keys are sensitive and not extractable unless the template says otherwise. A key that may wrap takes out only keys that are
//! extractable; of those marked so, only with a wrapping key that a crypto officer trusts.
//!
//! ```
//! use hsm_engine::objects::{AttributeType as A, Generate, Iv, Mechanism, Template, Token, Value};
//! # use hsm_engine::{Hsm, Initialize, Pin};
//! # let scratch = tempfile::tempdir()?;
//! # let dir = scratch.path().join("hsm");
//! # let (officer_pin, pin) = (Pin::generate()?, Pin::generate()?);
//! # let hsm = Hsm::initialize_dir(&dir, &Initialize::new(&officer_pin, &pin))?;
//! let token = Token::open(hsm.login("user", &pin)?)?;
//! let scope = token.new_scope();
//! let template = Template::new()
//!     .with(A::Token, Value::Bool(true))
//!     .with(A::Label, Value::Bytes(b"invoices".to_vec()))
//!     .with(A::ValueLen, Value::Number(32));
//! let key = token.generate_key(&scope, Generate::Aes, template)?;
//! let mut cipher = token.encrypt(&Mechanism::AesGcm { iv: Iv::Generate, aad: Vec::new() }, key)?;
//! let nonce = cipher.iv().expect("the engine makes it").try_into()?;
//! let sealed = [cipher.update(b"100 EUR")?, cipher.finish()?].concat();
//! let mut opened = token.decrypt(&Mechanism::AesGcm { iv: Iv::Given(nonce), aad: Vec::new() }, key)?;
//! assert!(opened.update(&sealed)?.is_empty());
//! assert_eq!(opened.finish()?, b"100 EUR");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attribute;
mod build;
mod class;
mod directory;
mod error;
mod keys;
pub mod mechanism;
mod object;
mod operation;
mod records;
mod selftest;
mod signing;
mod template;
mod token;
mod wrapping;

pub use attribute::{AttributeType, ValueKind};
pub use class::{Class, KeyType};
pub use error::{Error, Result};
pub use mechanism::{Allowed, Chain, Derive, Generate, Hash, Iv, Mechanism, Part};
pub use object::ObjectId;
pub use operation::{Cipher, Digester, MAX_BUFFERED};
pub use selftest::run as self_test;
pub use signing::{Signer, Verifier};
pub use template::{MAX_ATTRIBUTES, MAX_VALUE, Template, Value};
pub use token::{MAX_OBJECTS, MAX_SESSION_OBJECTS, Scope, Token};
