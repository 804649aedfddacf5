//! Shared by the tests: hex, keys and files of vectors.
#![allow(dead_code, reason = "every test file uses a part of this")]

pub(crate) mod google_hctr2;
pub(crate) mod rfc8452;

use std::path::{Path, PathBuf};

use secret_mem::SecretBytes;
use serde_json::Value;

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text.replace(char::is_whitespace, "")).unwrap()
}

pub(crate) fn secret<const N: usize>(bytes: &[u8]) -> SecretBytes<N> {
    let mut secret = SecretBytes::zeroed();
    secret.expose_mut().copy_from_slice(bytes);
    secret
}

/// A file of published vectors that is not part of the project.
pub(crate) struct Vectors(Value);

impl Vectors {
    /// Looks in `TDE_VECTORS`, then beside the project. `None`, and a line on standard error, if it is in neither.
    pub(crate) fn load(name: &str) -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
        let folder = std::env::var_os("TDE_VECTORS").map_or(beside, PathBuf::from);
        match std::fs::read(folder.join(name)) {
            Ok(text) => Some(Self(serde_json::from_slice(&text).unwrap())),
            Err(error) => {
                eprintln!("SKIPPED: no {name} in {} ({error}); set TDE_VECTORS", folder.display());
                None
            }
        }
    }

    pub(crate) fn array(&self) -> &[Value] {
        self.0.as_array().unwrap()
    }
}
