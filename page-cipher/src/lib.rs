//! Page ciphers and the encrypted page formats: pure cryptography, no I/O, no clock.
//!
//! * [`pg`]: PostgreSQL pages, sealed and opened in place. Start here.
//! * [`hctr2`], [`xts`], [`gcm_siv`]: the ciphers, one module each.
//! * [`kdf`]: one key per purpose from a data key.
//! * [`CipherId`]: the name of a cipher in settings and the number of it on disk.
//! * [`Kernel`]: which of the ciphers' implementations serves on this processor.
//!
//! Keys come in as [`secret_mem::SecretBytes`]; expanded keys live in locked memory and are wiped on drop.
//! Making a cipher allocates; sealing and opening never do. All ciphers run in constant time on processors
//! with AES and carry-less multiplication instructions and, through bit-slicing, on those without. Unsafe code is
//! in the instruction sets of the kernels only.
//!
//! # Example
//! ```
//! use page_cipher::CipherId;
//! use page_cipher::pg::{Fork, PAGE_SIZE, RelationCipher};
//! use secret_mem::SecretBytes;
//!
//! let data_key = SecretBytes::<32>::random()?;
//! let cipher = RelationCipher::new(CipherId::Aes256Hctr2, &data_key, 5, 16384)?;
//!
//! let mut page = [0; PAGE_SIZE];
//! page[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]); // an empty heap page
//! page[8100..8104].copy_from_slice(b"data");
//! let plain = page;
//!
//! cipher.seal(Fork::Main, 7, &mut page)?;
//! assert_ne!(page, plain);
//! assert!(cipher.open(Fork::Main, 8, &mut page).is_err(), "a page that was moved is refused");
//! cipher.open(Fork::Main, 7, &mut page)?;
//! assert_eq!(page, plain);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

pub mod gcm_siv;
pub mod hctr2;
mod id;
pub mod kdf;
mod kernel;
mod length;
pub mod pg;
pub mod xts;

pub use id::{CipherId, UnknownCipherId, UnknownCipherName};
pub use kernel::Kernel;
pub use length::LengthError;
