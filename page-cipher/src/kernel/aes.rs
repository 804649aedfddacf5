//! AES-256 (FIPS 197): key schedules, and single blocks.

use super::isa::{Block, Isa, Vector};

const ROUNDS: usize = 14;

/// The round keys. Wipe what is not in locked memory.
#[derive(Clone, Copy)]
pub(super) struct Schedule<B>([B; ROUNDS + 1]);

impl<B: Block> Schedule<B> {
    /// The schedule of all zeros, to wipe one.
    #[inline(always)]
    pub(super) fn zero<I: Isa<G, Block = B>, const G: usize>(isa: I) -> Self {
        Self([isa.number(0); ROUNDS + 1])
    }

    /// Expands the key `low || high`. The words of the schedule come four at a time; the S-box is that of an AES
    /// instruction on equal columns, so there is no table.
    #[inline(always)]
    pub(super) fn expand<I: Isa<G, Block = B>, const G: usize>(isa: I, low: B, high: B) -> Self {
        let zero = isa.number(0);
        let mut keys = [zero; ROUNDS + 1];
        (keys[0], keys[1]) = (low, high);
        let (mut even, mut odd) = (low, high);
        for pair in 1..=ROUNDS / 2 {
            let round_constant = isa.number(0x0000_0001_0000_0001_0000_0001_0000_0001 << (pair - 1));
            even = even.prefix_xor_words().xor(odd.splat_rotated_word3().aes_last(round_constant));
            keys[2 * pair] = even;
            if pair < ROUNDS / 2 {
                odd = odd.prefix_xor_words().xor(even.splat_word3().aes_last(zero));
                keys[2 * pair + 1] = odd;
            }
        }
        Self(keys)
    }

    /// The schedule of the equivalent inverse cipher.
    #[inline(always)]
    pub(super) fn inverse(&self) -> Self {
        let mut keys = self.0;
        for (round, key) in keys.iter_mut().enumerate() {
            let forward = self.0[ROUNDS - round];
            *key = if round == 0 || round == ROUNDS { forward } else { forward.inverse_mix_columns() };
        }
        Self(keys)
    }

    /// Encrypts `N` blocks side by side.
    #[inline(always)]
    pub(super) fn encrypt<const N: usize>(&self, mut blocks: [B; N]) -> [B; N] {
        for block in &mut blocks {
            *block = block.xor(self.0[0]);
        }
        for key in &self.0[1..ROUNDS] {
            for block in &mut blocks {
                *block = block.aes(*key);
            }
        }
        for block in &mut blocks {
            *block = block.aes_last(self.0[ROUNDS]);
        }
        blocks
    }

    /// Encrypts every lane of some vectors.
    #[inline(always)]
    pub(super) fn encrypt_vectors<V: Vector<Block = B>>(&self, vectors: &mut [V]) {
        for vector in &mut *vectors {
            *vector = vector.xor(V::splat(self.0[0]));
        }
        for key in &self.0[1..ROUNDS] {
            let key = V::splat(*key);
            for vector in &mut *vectors {
                *vector = vector.aes(key);
            }
        }
        for vector in vectors {
            *vector = vector.aes_last(V::splat(self.0[ROUNDS]));
        }
    }

    /// Decrypts a block; `self` is an inverse schedule.
    #[inline(always)]
    pub(super) fn decrypt(&self, block: B) -> B {
        let mut state = block.xor(self.0[0]);
        for key in &self.0[1..ROUNDS] {
            state = state.inverse_aes(*key);
        }
        state.inverse_aes_last(self.0[ROUNDS])
    }

    /// Every round key in all lanes.
    #[inline(always)]
    pub(super) fn splat<V: Vector<Block = B>>(&self) -> [V; ROUNDS + 1] {
        let mut keys = [V::splat(self.0[0]); ROUNDS + 1];
        for (key, block) in keys.iter_mut().zip(&self.0) {
            *key = V::splat(*block);
        }
        keys
    }
}
