//! Nonces: random, from a generator that a forked child cannot use.

use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use page_cipher::gcm_siv::NONCE_LEN;
use secret_mem::ForkCanary;

use crate::error::{Result, VfsError};

/// Nonces of one handle: ChaCha20 seeded by the operating system when the file was opened.
///
/// A child made by `fork` has a copy of the generator and would repeat its parent's nonces, so it gets none.
pub(crate) struct NonceSource {
    generator: ChaCha20Rng,
    canary: ForkCanary,
}

impl NonceSource {
    /// A generator with a seed of its own.
    pub(crate) fn new() -> Result<Self> {
        let canary = ForkCanary::new()?;
        let mut seed = [0; 32];
        secret_mem::random(&mut seed)?;
        Ok(Self { generator: ChaCha20Rng::from_seed(seed), canary })
    }

    /// Fails in a child that was forked after the file was opened. To be asked before anything is sealed.
    pub(crate) fn check_fork(&self, file: &str) -> Result<()> {
        if self.canary.is_alive() { Ok(()) } else { Err(VfsError::Forked { file: file.to_owned() }) }
    }

    /// The next nonce for `file`, which is named in the error.
    pub(crate) fn next(&mut self, file: &str) -> Result<[u8; NONCE_LEN]> {
        self.check_fork(file)?;
        let mut nonce = [0; NONCE_LEN];
        self.generator.fill_bytes(&mut nonce);
        Ok(nonce)
    }
}
