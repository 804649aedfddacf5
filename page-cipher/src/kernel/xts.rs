//! XTS for any instruction set.
//!
//! The mask of block i is `T x^i`, `T` being the encrypted tweak. A group keeps the masks of all its blocks; those of
//! the next group are theirs times `x^8` or `x^16`, which moves whole bytes: `m << 16 ^ (m >> 112) * 0x87`.

use super::aes::Schedule;
use super::isa::{Block, Isa, Operation, Vector};
use super::stream::place;

/// x^7 + x^2 + x + 1: what x^128 is.
const POLYNOMIAL: u128 = 0x87;

/// Masks that are computed one from the other.
const SEEDS: usize = 8;

/// Expanded keys.
pub(crate) struct Xts<I: Isa<G>, const G: usize> {
    isa: I,
    schedule: Schedule<I::Block>,
    inverse: Schedule<I::Block>,
    tweak: Schedule<I::Block>,
}

impl<I: Isa<G>, const G: usize> Xts<I, G> {
    /// Call inside [`secret_mem::wiping_stack`].
    pub(crate) fn new(isa: I, key: &[u8; 64]) -> Self {
        isa.run(Expand::<G> { key })
    }

    /// Encrypts `data`, of at least a block, in place.
    pub(crate) fn encrypt(&self, tweak: &[u8; 16], data: &mut [u8]) {
        self.isa.run(Crypt::<I, true, G> { key: self, tweak, data });
        super::wipe_stack();
    }

    /// Decrypts `data` likewise.
    pub(crate) fn decrypt(&self, tweak: &[u8; 16], data: &mut [u8]) {
        self.isa.run(Crypt::<I, false, G> { key: self, tweak, data });
        super::wipe_stack();
    }
}

struct Expand<'a, const G: usize> {
    key: &'a [u8; 64],
}

impl<I: Isa<G>, const G: usize> Operation<I> for Expand<'_, G> {
    type Output = Xts<I, G>;

    #[inline(always)]
    fn run(self, isa: I) -> Xts<I, G> {
        let (quarters, _) = self.key.as_chunks::<16>();
        let schedule = Schedule::expand(isa, isa.block(&quarters[0]), isa.block(&quarters[1]));
        let tweak = Schedule::expand(isa, isa.block(&quarters[2]), isa.block(&quarters[3]));
        Xts { isa, inverse: schedule.inverse(), schedule, tweak }
    }
}

struct Crypt<'a, I: Isa<G>, const ENCRYPT: bool, const G: usize> {
    key: &'a Xts<I, G>,
    tweak: &'a [u8; 16],
    data: &'a mut [u8],
}

impl<I: Isa<G>, const ENCRYPT: bool, const G: usize> Operation<I> for Crypt<'_, I, ENCRYPT, G> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let Self { key, tweak, data } = self;
        let schedule = if ENCRYPT { &key.schedule } else { &key.inverse };
        let keys = schedule.splat::<I::Vector>();
        let [first] = key.tweak.encrypt([isa.block(tweak)]);
        let mut masks = Masks::<I, G>::new(isa, first);

        // With a partial block, it and the last whole one are a matter of their own.
        let rest = data.len() % 16;
        let bulk = data.len() - rest - if rest > 0 { 16 } else { 0 };
        let (bulk, end) = data.split_at_mut(bulk);
        let mut wholes = bulk.chunks_exact_mut(I::Vector::BYTES * G);
        for whole in &mut wholes {
            let mut group = masks.0;
            for (vector, bytes) in group.iter_mut().zip(whole.chunks_exact(I::Vector::BYTES)) {
                *vector = isa.load(bytes);
            }
            crypt_group::<I, ENCRYPT, G>(&keys, &masks, &mut group);
            for (vector, bytes) in group.iter().zip(whole.chunks_exact_mut(I::Vector::BYTES)) {
                vector.store(bytes);
            }
            masks.advance(isa);
        }
        let last = wholes.into_remainder();
        let len = last.len();
        let blocks = len / 16;
        if blocks > 0 {
            let mut group = masks.0;
            for (index, vector) in group.iter_mut().enumerate() {
                *vector = isa.load_partial(&last[place::<I::Vector>(index, 0, len).0]);
            }
            crypt_group::<I, ENCRYPT, G>(&keys, &masks, &mut group);
            for (index, vector) in group.iter().enumerate() {
                vector.store_partial(&mut last[place::<I::Vector>(index, 0, len).0]);
            }
        }
        if let Some((whole, partial)) = end.split_first_chunk_mut() {
            let mask = masks.block(blocks);
            let next = isa.number(times_x(u128::from_le_bytes(mask.bytes())));
            // Decryption uses the two masks in the opposite order.
            let masks = if ENCRYPT { [mask, next] } else { [next, mask] };
            *whole = crypt_block::<I, ENCRYPT, G>(schedule, masks[0], isa.block(whole)).bytes();
            whole[..partial.len()].swap_with_slice(partial);
            *whole = crypt_block::<I, ENCRYPT, G>(schedule, masks[1], isa.block(whole)).bytes();
        }
    }
}

/// The masks of a group's blocks.
struct Masks<I: Isa<G>, const G: usize>([I::Vector; G]);

impl<I: Isa<G>, const G: usize> Masks<I, G> {
    #[inline(always)]
    fn new(isa: I, first: I::Block) -> Self {
        let lanes = I::Vector::LANES;
        let polynomial = I::Vector::splat(isa.number(POLYNOMIAL));
        let mut masks = [isa.zero(); G];
        let mut mask = u128::from_le_bytes(first.bytes());
        for index in 0..SEEDS {
            let vector = &mut masks[index / lanes];
            *vector = vector.xor(I::Vector::at_lane(isa.number(mask), index % lanes));
            mask = times_x(mask);
        }
        for index in SEEDS / lanes..G {
            masks[index] = times_x8(masks[index - SEEDS / lanes], polynomial);
        }
        Self(masks)
    }

    /// To the next group.
    #[inline(always)]
    fn advance(&mut self, isa: I) {
        const { assert!(I::Vector::LANES * G == 8 || I::Vector::LANES * G == 16, "steps are by whole bytes") };
        let polynomial = I::Vector::splat(isa.number(POLYNOMIAL));
        for mask in &mut self.0 {
            *mask = if I::Vector::LANES * G == 8 {
                times_x8(*mask, polynomial)
            } else {
                times_x16(*mask, polynomial)
            };
        }
    }

    /// The mask of one block.
    #[inline(always)]
    fn block(&self, index: usize) -> I::Block {
        let mut block = self.0[0];
        for vector in 1..G {
            if vector == index / I::Vector::LANES {
                block = self.0[vector];
            }
        }
        block.shift_down(index % I::Vector::LANES).first()
    }
}

#[inline(always)]
fn crypt_group<I: Isa<G>, const ENCRYPT: bool, const G: usize>(
    keys: &[I::Vector; 15],
    masks: &Masks<I, G>,
    group: &mut [I::Vector; G],
) {
    for (vector, mask) in group.iter_mut().zip(&masks.0) {
        *vector = vector.xor3(*mask, keys[0]);
    }
    // Written out, because the compiler does not unroll a loop of this size.
    macro_rules! rounds {
        ($($round:literal)*) => {
            $(
                for vector in group.iter_mut() {
                    *vector = if ENCRYPT { vector.aes(keys[$round]) } else { vector.inverse_aes(keys[$round]) };
                }
            )*
        };
    }
    rounds!(1 2 3 4 5 6 7 8 9 10 11 12 13);
    for (vector, mask) in group.iter_mut().zip(&masks.0) {
        let key = keys[14].xor(*mask);
        *vector = if ENCRYPT { vector.aes_last(key) } else { vector.inverse_aes_last(key) };
    }
}

#[inline(always)]
fn crypt_block<I: Isa<G>, const ENCRYPT: bool, const G: usize>(
    schedule: &Schedule<I::Block>,
    mask: I::Block,
    block: I::Block,
) -> I::Block {
    let block = block.xor(mask);
    let block = if ENCRYPT { schedule.encrypt([block])[0] } else { schedule.decrypt(block) };
    block.xor(mask)
}

/// Multiplies by x, without a branch on the mask.
#[inline(always)]
fn times_x(mask: u128) -> u128 {
    mask << 1 ^ (POLYNOMIAL & (mask >> 127).wrapping_neg())
}

#[inline(always)]
fn times_x8<V: Vector>(mask: V, polynomial: V) -> V {
    mask.shift_byte_up().xor(mask.last_byte().clmul_low(polynomial))
}

#[inline(always)]
fn times_x16<V: Vector>(mask: V, polynomial: V) -> V {
    mask.shift_2_bytes_up().xor(mask.last_2_bytes().clmul_low(polynomial))
}
