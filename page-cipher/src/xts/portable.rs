//! XTS from the crate `aes`, which picks the processor's instructions itself.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes256, Aes256Enc, Block};
use zeroize::{Zeroize, optimization_barrier};

/// Blocks handed to AES at a time: as many as the widest implementation in `aes` encrypts at once.
const BATCH: usize = 64;

pub(super) struct Xts {
    data: Aes256,
    tweak: Aes256Enc,
}

impl Xts {
    pub(super) fn new(key: &[u8; 64]) -> Self {
        let (halves, _) = key.as_chunks::<32>();
        Self { data: Aes256::new((&halves[0]).into()), tweak: Aes256Enc::new((&halves[1]).into()) }
    }

    /// Encrypts `data`, of a length that the caller has checked, in place.
    pub(super) fn encrypt(&self, tweak: &[u8; 16], data: &mut [u8]) {
        let mut mask = self.first_mask(tweak);
        let aes = &self.data;
        let (blocks, rest) = Array::slice_as_chunks_mut(data);
        mask = for_batches(blocks, mask, |batch| aes.encrypt_blocks(batch));
        if let Some(last) = blocks.last_mut()
            && !rest.is_empty()
        {
            swap_tail(last, rest);
            for_batches(core::slice::from_mut(last), mask, |batch| aes.encrypt_blocks(batch));
        }
    }

    /// Decrypts `data` likewise.
    pub(super) fn decrypt(&self, tweak: &[u8; 16], data: &mut [u8]) {
        let mut mask = self.first_mask(tweak);
        let aes = &self.data;
        let (blocks, rest) = Array::slice_as_chunks_mut(data);
        if rest.is_empty() {
            for_batches(blocks, mask, |batch| aes.decrypt_blocks(batch));
        } else if let Some((last, before)) = blocks.split_last_mut() {
            mask = for_batches(before, mask, |batch| aes.decrypt_blocks(batch));
            // Stealing used the masks of the last two blocks in the opposite order.
            for_batches(core::slice::from_mut(last), times_x(mask), |batch| aes.decrypt_blocks(batch));
            swap_tail(last, rest);
            for_batches(core::slice::from_mut(last), mask, |batch| aes.decrypt_blocks(batch));
        }
    }

    fn first_mask(&self, tweak: &[u8; 16]) -> u128 {
        let mut block = Block::from(*tweak);
        self.tweak.encrypt_block(&mut block);
        u128::from_le_bytes(block.0)
    }
}

/// Applies `cipher` between two XORs with the masks of the blocks; returns the mask of the block that would
/// follow.
fn for_batches(blocks: &mut [Block], first: u128, cipher: impl Fn(&mut [Block])) -> u128 {
    let mut masks = [first; BATCH];
    for i in 1..blocks.len().min(BATCH) {
        masks[i] = times_x(masks[i - 1]);
    }
    let mut following = first;
    let (batches, rest) = blocks.as_chunks_mut::<BATCH>();
    for batch in batches {
        xor_masks(batch, &masks);
        cipher(batch);
        xor_masks(batch, &masks);
        following = times_x(masks[BATCH - 1]);
        masks = masks.map(times_x64);
    }
    if let Some(last) = rest.len().checked_sub(1) {
        // A whole batch: the blocks of a partial one would be encrypted one by one, which takes longer.
        let mut batch = [Block::default(); BATCH];
        batch[..=last].copy_from_slice(rest);
        xor_masks(&mut batch, &masks);
        cipher(&mut batch);
        xor_masks(&mut batch, &masks);
        rest.copy_from_slice(&batch[..=last]);
        following = times_x(masks[last]);
        batch.fill(Block::default());
        optimization_barrier(&batch);
    }
    masks.zeroize();
    following
}

fn xor_masks(blocks: &mut [Block; BATCH], masks: &[u128; BATCH]) {
    for (block, mask) in blocks.iter_mut().zip(masks) {
        *block = Block::from((u128::from_le_bytes(block.0) ^ mask).to_le_bytes());
    }
}

/// Multiplies by x in GF(2^128), modulus x^128 + x^7 + x^2 + x + 1, without a branch on the mask.
fn times_x(mask: u128) -> u128 {
    (mask << 1) ^ (0x87 * (mask >> 127))
}

/// Multiplies by x^64, for the mask of the same place in the next batch: steps that do not wait for each
/// other.
fn times_x64(mask: u128) -> u128 {
    let high = mask >> 64;
    (mask << 64) ^ high ^ (high << 1) ^ (high << 2) ^ (high << 7)
}

const _: () = assert!(BATCH == 64, "times_x64 steps over one batch");

/// Exchanges `rest` with as many bytes at the start of `block`.
fn swap_tail(block: &mut Block, rest: &mut [u8]) {
    let len = rest.len();
    block[..len].swap_with_slice(rest);
}
