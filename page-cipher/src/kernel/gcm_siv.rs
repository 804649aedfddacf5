//! GCM-SIV for any instruction set. Names follow RFC 8452, section 4.

use core::marker::PhantomData;

use zeroize::optimization_barrier;

use super::aes::Schedule;
use super::isa::{Block, Isa, Operation, Vector};
use super::polyval::Table;
use super::stream::{Padding, SivCounter, ToHash, ToXor, hash, hash_few};
use crate::gcm_siv::Message;

/// The key-generating key, expanded.
pub(crate) struct GcmSiv<I: Isa<G>, const G: usize> {
    isa: I,
    schedule: Schedule<I::Block>,
}

impl<I: Isa<G>, const G: usize> GcmSiv<I, G> {
    /// Call inside [`secret_mem::wiping_stack`].
    pub(crate) fn new(isa: I, key: &[u8; 32]) -> Self {
        isa.run(Expand::<G> { key })
    }

    /// Encrypts `data` in place and returns the tag.
    pub(crate) fn seal(&self, nonce: &[u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; 16] {
        let tag = self.isa.run(Seal { key: self, nonce, aad, data });
        super::wipe_stack();
        tag
    }

    /// Decrypts `data` in place. False if the tag is wrong: the data is garbage then, and must be wiped.
    pub(crate) fn open(&self, nonce: &[u8; 12], aad: &[u8], data: &mut [u8], tag: &[u8; 16]) -> bool {
        let authentic = self.isa.run(Open { key: self, nonce, aad, data, tag });
        super::wipe_stack();
        authentic
    }
}

impl<I: Isa<G>, const G: usize> GcmSiv<I, G> {
    /// Encrypts messages of one length, not empty, in place, and sets their tags.
    pub(crate) fn seal_batch(&self, messages: &mut [Message<'_>]) {
        self.isa.run(SealBatch { key: self, messages });
        super::wipe_stack_of_batch();
    }
}

/// The keys of one message, wiped when it is done.
#[derive(Clone, Copy)]
struct MessageKeys<I: Isa<G>, const G: usize> {
    isa: I,
    table: Table<I, G>,
    schedule: Schedule<I::Block>,
    nonce: I::Block,
}

impl<I: Isa<G>, const G: usize> MessageKeys<I, G> {
    #[inline(always)]
    fn derive(isa: I, key: &GcmSiv<I, G>, nonce: &[u8; 12]) -> Self {
        let mut block = [0; 16];
        block[4..].copy_from_slice(nonce);
        let shifted = isa.block(&block);
        // Six blocks, the counter in front of the nonce, side by side in as few vectors as hold them.
        let lanes = I::Vector::LANES;
        let mut vectors = [I::Vector::splat(shifted); 6];
        for index in 0..6 {
            let number = I::Vector::at_lane(isa.number(index as u128), index % lanes);
            vectors[index / lanes] = vectors[index / lanes].xor(number);
        }
        key.schedule.encrypt_vectors(&mut vectors[..6_usize.div_ceil(lanes)]);
        let mut blocks = [shifted; 6];
        for (index, block) in blocks.iter_mut().enumerate() {
            *block = vectors[index / lanes].shift_down(index % lanes).first();
        }
        let [a, b, c, d, e, f] = blocks;
        let table = Table::new(isa, a.low_halves(b));
        let schedule = Schedule::expand(isa, c.low_halves(d), e.low_halves(f));
        Self { isa, table, schedule, nonce: isa.block_partial(nonce) }
    }

    /// The tag, from the hash of associated data and plaintext.
    #[inline(always)]
    fn tag(&self, hash: I::Block, aad: &[u8], data: &[u8]) -> I::Block {
        let lengths = (8 * aad.len() as u128) | ((8 * data.len() as u128) << 64);
        let hash = self.table.times_h(hash.xor(self.isa.number(lengths)));
        let [tag] = self.schedule.encrypt([hash.xor(self.nonce).and(self.isa.number(!TOP_BIT))]);
        tag
    }

    #[inline(always)]
    fn hash_aad(&self, aad: &[u8]) -> I::Block {
        hash_few(self.isa, &self.table, self.isa.number(0), aad)
    }

    /// Encryption or decryption of the data that has this tag.
    #[inline(always)]
    fn ctr<'a>(&'a self, tag: I::Block, data: &'a mut [u8]) -> ToXor<'a, I, SivCounter, G> {
        let top = self.isa.number(TOP_BIT);
        let seed = tag.and(self.isa.number(!TOP_BIT)).xor(top);
        ToXor { schedule: &self.schedule, seed, data, padding: Padding::Zeros, counter: PhantomData }
    }

    #[inline(always)]
    fn wipe(&mut self) {
        self.table = Table::zero(self.isa);
        self.schedule = Schedule::zero(self.isa);
        optimization_barrier(self);
    }
}

const TOP_BIT: u128 = 1 << 127;

struct Expand<'a, const G: usize> {
    key: &'a [u8; 32],
}

impl<I: Isa<G>, const G: usize> Operation<I> for Expand<'_, G> {
    type Output = GcmSiv<I, G>;

    #[inline(always)]
    fn run(self, isa: I) -> GcmSiv<I, G> {
        let (halves, _) = self.key.as_chunks::<16>();
        GcmSiv { isa, schedule: Schedule::expand(isa, isa.block(&halves[0]), isa.block(&halves[1])) }
    }
}

struct Seal<'a, I: Isa<G>, const G: usize> {
    key: &'a GcmSiv<I, G>,
    nonce: &'a [u8; 12],
    aad: &'a [u8],
    data: &'a mut [u8],
}

impl<I: Isa<G>, const G: usize> Operation<I> for Seal<'_, I, G> {
    type Output = [u8; 16];

    #[inline(always)]
    fn run(self, isa: I) -> [u8; 16] {
        let Self { key, nonce, aad, data } = self;
        let mut keys = MessageKeys::derive(isa, key, nonce);
        let hashed = hash(isa, &keys.table, keys.hash_aad(aad), data, Padding::Zeros);
        let tag = keys.tag(hashed, aad, data);
        keys.ctr(tag, data).run(isa);
        keys.wipe();
        tag.bytes()
    }
}

struct SealBatch<'a, 'b, I: Isa<G>, const G: usize> {
    key: &'a GcmSiv<I, G>,
    messages: &'a mut [Message<'b>],
}

impl<I: Isa<G>, const G: usize> Operation<I> for SealBatch<'_, '_, I, G> {
    type Output = ();

    /// A message is hashed while the one before it is encrypted. Its keys are derived one message earlier still,
    /// because each step of that waits for the step before.
    #[inline(always)]
    fn run(self, isa: I) {
        let Self { key, messages } = self;
        let [first, ..] = messages else { return };
        // The keys of the message that is encrypted, of the next, and of the one after that, in turns.
        let keys = MessageKeys::derive(isa, key, first.nonce);
        let mut slots = [keys, keys, keys];
        let [current, next, after] = &mut slots;
        let (mut current, mut next, mut after) = (current, next, after);
        if let Some(second) = messages.get(1) {
            *next = MessageKeys::derive(isa, key, second.nonce);
        }
        let first = &messages[0];
        let hashed = hash(isa, &keys.table, keys.hash_aad(first.aad), first.data, Padding::Zeros);
        let mut tag = keys.tag(hashed, first.aad, first.data);
        let mut rest = messages;
        while let [message, others @ ..] = rest {
            message.tag = tag.bytes();
            match others {
                [] => current.ctr(tag, message.data).run(isa),
                [following, ..] => {
                    if let [_, second, ..] = others {
                        *after = MessageKeys::derive(isa, key, second.nonce);
                    }
                    let (table, state) = (&next.table, next.hash_aad(following.aad));
                    let to_hash = ToHash { table, state, data: following.data };
                    let hashed = current.ctr(tag, message.data).run_beside(isa, &to_hash);
                    tag = next.tag(hashed, following.aad, following.data);
                }
            }
            (current, next, after) = (next, after, current);
            rest = others;
        }
        for keys in &mut slots {
            keys.wipe();
        }
    }
}

struct Open<'a, I: Isa<G>, const G: usize> {
    key: &'a GcmSiv<I, G>,
    nonce: &'a [u8; 12],
    aad: &'a [u8],
    data: &'a mut [u8],
    tag: &'a [u8; 16],
}

impl<I: Isa<G>, const G: usize> Operation<I> for Open<'_, I, G> {
    type Output = bool;

    #[inline(always)]
    fn run(self, isa: I) -> bool {
        let Self { key, nonce, aad, data, tag } = self;
        let mut keys = MessageKeys::derive(isa, key, nonce);
        let hashed = keys.ctr(isa.block(tag), data).run_and_hash(isa, &keys.table, keys.hash_aad(aad));
        let expected = keys.tag(hashed, aad, data);
        keys.wipe();
        // One comparison of all bits, so that its time does not tell how many agree.
        u128::from_ne_bytes(expected.bytes()) ^ u128::from_ne_bytes(*tag) == 0
    }
}
