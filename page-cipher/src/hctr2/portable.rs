//! HCTR2 from the `aes` and `polyval` crates, which pick the processor's instructions themselves.
//!
//! Names follow section 3 of the paper: the data is M || N with M one block; MM, UU and S are as there. A
//! kernel that is faster on some processor is tested against this one.

use aes::cipher::consts::U16;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes256, Block};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;
use zeroize::{Zeroize, optimization_barrier};

use super::Unit;

/// Blocks of keystream made at a time: as many as the widest implementation in `aes` encrypts at once.
const BATCH: usize = 64;

pub(super) struct Hctr2 {
    aes: Aes256,
    /// The hash under its key, before any input.
    hash: Polyval,
    /// The constant L that is added to the seed of the keystream.
    l: u128,
}

impl Hctr2 {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let aes = Aes256::new(key.into());
        let mut hash_key = Block::from(0_u128.to_le_bytes());
        aes.encrypt_block(&mut hash_key);
        let mut l = Block::from(1_u128.to_le_bytes());
        aes.encrypt_block(&mut l);
        Self { aes, hash: Polyval::new(&hash_key), l: u128::from_le_bytes(l.0) }
    }

    /// Encrypts `m || n` in place.
    pub(super) fn encrypt(&self, tweak: &[u8], m: &mut [u8; 16], n: &mut [u8]) {
        self.run(tweak, m, n, |block| self.aes.encrypt_block(block));
    }

    /// Decrypts `m || n` in place.
    pub(super) fn decrypt(&self, tweak: &[u8], m: &mut [u8; 16], n: &mut [u8]) {
        self.run(tweak, m, n, |block| self.aes.decrypt_block(block));
    }

    /// Encrypts units one by one.
    pub(super) fn encrypt_batch(&self, units: &mut [Unit<'_>]) {
        for unit in units {
            self.encrypt(unit.tweak, unit.m, unit.n);
        }
    }

    /// Decrypts units one by one.
    pub(super) fn decrypt_batch(&self, units: &mut [Unit<'_>]) {
        for unit in units {
            self.decrypt(unit.tweak, unit.m, unit.n);
        }
    }

    /// Decryption differs from encryption only in the direction of the one call of AES on M.
    fn run(&self, tweak: &[u8], m: &mut [u8; 16], n: &mut [u8], aes: impl FnOnce(&mut Block)) {
        let tweaked = self.hash_tweak(tweak, n.len());
        let mm = u128::from_le_bytes(*m) ^ hash_message(tweaked.clone(), n);
        let mut block = Block::from(mm.to_le_bytes());
        aes(&mut block);
        let uu = u128::from_le_bytes(block.0);
        self.xctr(mm ^ uu ^ self.l, n);
        *m = (uu ^ hash_message(tweaked, n)).to_le_bytes();
        block.zeroize();
    }

    /// The hash after the length block and the tweak, which the two hashes of a message have in common.
    fn hash_tweak(&self, tweak: &[u8], tail_len: usize) -> Polyval {
        let mut hash = self.hash.clone();
        let odd = u128::from(!tail_len.is_multiple_of(16));
        let length_block = 2 * (8 * tweak.len() as u128) + 2 + odd;
        hash.update(&[length_block.to_le_bytes().into()]);
        hash.update_padded(tweak);
        hash
    }

    /// XORs `data` with the keystream AES(S ^ 1), AES(S ^ 2), ... (section 2.4: XCTR, counters
    /// little-endian).
    fn xctr(&self, seed: u128, data: &mut [u8]) {
        let mut keystream = [Block::default(); BATCH];
        let mut counter = 1_u64;
        for chunk in data.chunks_mut(16 * BATCH) {
            for block in &mut keystream {
                *block = Block::from((seed ^ u128::from(counter)).to_le_bytes());
                counter += 1;
            }
            // Always a whole batch: the blocks of a partial one would be encrypted one by one, which takes
            // longer.
            self.aes.encrypt_blocks(&mut keystream);
            for (byte, key) in chunk.iter_mut().zip(Array::<u8, U16>::slice_as_flattened(&keystream)) {
                *byte ^= key;
            }
        }
        // A fill and a barrier instead of `zeroize`, whose byte-wise volatile stores would cost a tenth of a
        // page.
        keystream.fill(Block::default());
        optimization_barrier(&keystream);
    }
}

/// Finishes the hash with `message`, to which a partial last block adds `1 || 0...`.
fn hash_message(mut hash: Polyval, message: &[u8]) -> u128 {
    let (whole, rest) = Array::slice_as_chunks(message);
    hash.update(whole);
    if !rest.is_empty() {
        let mut last = Block::default();
        last[..rest.len()].copy_from_slice(rest);
        last[rest.len()] = 1;
        hash.update(&[last]);
        last.zeroize();
    }
    u128::from_le_bytes(hash.finalize().0)
}
