//! Data of any length in groups of vectors: hashing it, and XORing it with a keystream.
//!
//! Groups are aligned to the *end* of the data: the first group is the one that may lack blocks, at its front,
//! and is filled with zeros there, which POLYVAL ignores. So every block is in a lane of its own, whatever the
//! length, and the last block may be partial:
//!
//! ```text
//! |  0   0  b0  b1 | b2  b3  b4  b5 | b6  b7  b8  b9+pad |      9.3 blocks in groups of 4
//! ```
//!
//! No branch and no address here depends on anything but lengths.

use core::marker::PhantomData;

use super::aes::Schedule;
use super::isa::{Isa, Vector};
use super::polyval::{Sum, Table};

/// How blocks are numbered for the keystream.
pub(super) trait Counter {
    /// The number of the first block.
    const FIRST: u64;
    /// Whether the number is XORed to the seed; else it is added to its first 32 bits.
    const XOR: bool;
}

/// AES-CTR of GCM-SIV (RFC 8452, section 4): `seed + i` in the first 32 bits, from 0.
pub(super) struct SivCounter;

impl Counter for SivCounter {
    const FIRST: u64 = 0;
    const XOR: bool = false;
}

/// XCTR of HCTR2 (section 2.4): `seed ^ i`, from 1.
pub(super) struct Xctr;

impl Counter for Xctr {
    const FIRST: u64 = 1;
    const XOR: bool = true;
}

/// What follows the data in a partial last block when it is hashed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Padding {
    /// Zeros.
    Zeros,
    /// A byte 1, then zeros.
    One,
}

/// Length of a group in blocks.
const fn group_blocks<I: Isa<G>, const G: usize>() -> usize {
    G * I::Vector::LANES
}

/// Where the first group's data is.
struct Front {
    /// Blocks that the first group lacks.
    missing: usize,
    /// Bytes of data in the first group.
    bytes: usize,
}

impl Front {
    #[inline(always)]
    fn new<I: Isa<G>, const G: usize>(len: usize) -> Self {
        let group = group_blocks::<I, G>();
        let blocks = len.div_ceil(16);
        let missing = blocks.next_multiple_of(group) - blocks;
        Self { missing, bytes: len.min(16 * (group - missing)) }
    }
}

/// The part of a group's data that is in vector `index`, as a range of bytes, and the lane where it begins.
#[inline(always)]
pub(super) fn place<V: Vector>(index: usize, missing: usize, len: usize) -> (core::ops::Range<usize>, usize) {
    let skipped = index * V::LANES;
    let lane = missing.saturating_sub(skipped);
    if lane >= V::LANES {
        return (0..0, 0);
    }
    let start = (16 * (skipped + lane - missing)).min(len);
    let end = (start + 16 * (V::LANES - lane)).min(len);
    (start..end, lane)
}

/// Reads a group that may lack blocks at its front and bytes at its end.
#[inline(always)]
fn load_ragged<I: Isa<G>, const G: usize>(isa: I, bytes: &[u8], missing: usize) -> [I::Vector; G] {
    let mut group = [isa.zero(); G];
    for (index, vector) in group.iter_mut().enumerate() {
        let (range, lane) = place::<I::Vector>(index, missing, bytes.len());
        *vector = isa.load_partial(&bytes[range]).shift_up(lane);
    }
    group
}

/// XORs the data of such a group with `keystream` and gives back the result, with zeros where there is no data.
#[inline(always)]
fn xor_ragged<I: Isa<G>, const G: usize>(
    isa: I,
    bytes: &mut [u8],
    missing: usize,
    keystream: &[I::Vector; G],
) -> [I::Vector; G] {
    let mut group = [isa.zero(); G];
    for (index, vector) in group.iter_mut().enumerate() {
        let (range, lane) = place::<I::Vector>(index, missing, bytes.len());
        let bytes = &mut bytes[range];
        let out = isa.load_partial(bytes).xor(keystream[index].shift_down(lane)).truncate(bytes.len());
        out.store_partial(bytes);
        *vector = out.shift_up(lane);
    }
    group
}

#[inline(always)]
fn load_whole<I: Isa<G>, const G: usize>(isa: I, bytes: &[u8]) -> [I::Vector; G] {
    let mut group = [isa.zero(); G];
    for (vector, bytes) in group.iter_mut().zip(bytes.chunks_exact(I::Vector::BYTES)) {
        *vector = isa.load(bytes);
    }
    group
}

#[inline(always)]
fn xor_whole<I: Isa<G>, const G: usize>(
    isa: I,
    bytes: &mut [u8],
    keystream: &[I::Vector; G],
) -> [I::Vector; G] {
    let mut group = *keystream;
    for (vector, bytes) in group.iter_mut().zip(bytes.chunks_exact_mut(I::Vector::BYTES)) {
        *vector = vector.xor(isa.load(bytes));
        vector.store(bytes);
    }
    group
}

/// A hash in progress.
struct Hasher<'a, I: Isa<G>, const G: usize> {
    table: &'a Table<I, G>,
    lanes: I::Vector,
    /// The latest group, not absorbed yet.
    group: [I::Vector; G],
}

impl<'a, I: Isa<G>, const G: usize> Hasher<'a, I, G> {
    /// Goes on from `state` with the first group of some data, which lacks `missing` blocks.
    #[inline(always)]
    fn new(
        isa: I,
        table: &'a Table<I, G>,
        state: I::Block,
        mut group: [I::Vector; G],
        missing: usize,
    ) -> Self {
        for (index, vector) in group.iter_mut().enumerate() {
            if index == missing / I::Vector::LANES {
                *vector = vector.xor(I::Vector::at_lane(state, missing % I::Vector::LANES));
            }
        }
        Self { table, lanes: isa.zero(), group }
    }

    #[inline(always)]
    fn absorb(&mut self) {
        self.lanes = self.table.absorb(self.lanes, &self.group);
    }

    /// Absorbs the last group, of data of `len` bytes.
    #[inline(always)]
    fn finish(mut self, isa: I, len: usize, padding: Padding) -> I::Block {
        if padding == Padding::One && !len.is_multiple_of(16) {
            let byte = isa.number(1 << (8 * (len % 16)));
            self.group[G - 1] = self.group[G - 1].xor(I::Vector::at_lane(byte, I::Vector::LANES - 1));
        }
        self.absorb();
        self.table.finish(self.lanes)
    }
}

/// Absorbs `data` into the hash `state`.
#[inline(always)]
pub(super) fn hash<I: Isa<G>, const G: usize>(
    isa: I,
    table: &Table<I, G>,
    state: I::Block,
    data: &[u8],
    padding: Padding,
) -> I::Block {
    if data.is_empty() {
        return state;
    }
    let front = Front::new::<I, G>(data.len());
    let (first, rest) = data.split_at(front.bytes);
    let group = load_ragged::<I, G>(isa, first, front.missing);
    let mut hasher = Hasher::new(isa, table, state, group, front.missing);
    let mut wholes = rest.chunks_exact(16 * group_blocks::<I, G>());
    for whole in &mut wholes {
        hasher.absorb();
        hasher.group = load_whole::<I, G>(isa, whole);
    }
    if !wholes.remainder().is_empty() {
        hasher.absorb();
        hasher.group = load_ragged::<I, G>(isa, wholes.remainder(), 0);
    }
    hasher.finish(isa, data.len(), padding)
}

/// Absorbs a few blocks, the last with zeros after it: one multiplication after another, for which a group would be
/// too much.
#[inline(always)]
pub(super) fn hash_few<I: Isa<G>, const G: usize>(
    isa: I,
    table: &Table<I, G>,
    mut state: I::Block,
    data: &[u8],
) -> I::Block {
    const FEW: usize = 64;
    if data.len() > FEW {
        return hash(isa, table, state, data, Padding::Zeros);
    }
    let (blocks, rest) = data.as_chunks::<16>();
    for block in blocks {
        state = table.times_h(state.xor(isa.block(block)));
    }
    if !rest.is_empty() {
        state = table.times_h(state.xor(isa.block_partial(rest)));
    }
    state
}

/// The keystream, group by group.
struct Keystream<I: Isa<G>, C, const G: usize> {
    isa: I,
    keys: [I::Vector; 15],
    /// Numbers of the blocks in the next group's first vector, added to the seed if the counter is not XORed.
    numbers: I::Vector,
    counter: PhantomData<C>,
}

impl<I: Isa<G>, C: Counter, const G: usize> Keystream<I, C, G> {
    #[inline(always)]
    fn new(isa: I, schedule: &Schedule<I::Block>, seed: I::Block, missing: usize) -> Self {
        let mut keys = schedule.splat::<I::Vector>();
        let first = C::FIRST.wrapping_sub(missing as u64);
        let mut numbers = isa.zero();
        for lane in 0..I::Vector::LANES {
            let number = Self::number(first.wrapping_add(lane as u64));
            numbers = numbers.xor(I::Vector::at_lane(isa.number(number), lane));
        }
        if C::XOR {
            keys[0] = keys[0].xor(I::Vector::splat(seed));
        } else {
            numbers = numbers.add32(I::Vector::splat(seed));
        }
        Self { isa, keys, numbers, counter: PhantomData }
    }

    /// A counter's value as it is added: 32 or 64 bits of it.
    #[inline(always)]
    fn number(value: u64) -> u128 {
        if C::XOR { u128::from(value) } else { u128::from(value as u32) }
    }

    #[inline(always)]
    fn advanced(&self, blocks: usize) -> I::Vector {
        let step = I::Vector::splat(self.isa.number(Self::number(blocks as u64)));
        if C::XOR { self.numbers.add64(step) } else { self.numbers.add32(step) }
    }

    /// The keystream of the next group. At the same time the hashes absorb their groups: multiplication and AES are
    /// different units of the processor.
    #[inline(always)]
    fn next<const H: usize>(&mut self, mut hashers: [&mut Hasher<'_, I, G>; H]) -> [I::Vector; G] {
        let mut blocks = [self.numbers; G];
        for (index, block) in blocks.iter_mut().enumerate() {
            *block = self.advanced(index * I::Vector::LANES).xor(self.keys[0]);
        }
        self.numbers = self.advanced(group_blocks::<I, G>());
        let mut sums = [Sum::zero(self.isa); H];
        for (sum, hasher) in sums.iter_mut().zip(&hashers) {
            *sum = hasher.table.begin(&hasher.group);
        }
        let per_round = Table::<I, G>::STEPS / 8;
        // Written out, because the compiler does not unroll a loop of this size.
        macro_rules! rounds {
            ($($round:literal)*) => {
                $(
                    for block in &mut blocks {
                        *block = block.aes(self.keys[$round]);
                    }
                    for (sum, hasher) in sums.iter_mut().zip(&mut hashers) {
                        if $round <= 8 {
                            for step in 0..per_round {
                                let step = per_round * ($round - 1) + step;
                                hasher.table.add_step(step, hasher.lanes, &hasher.group, sum);
                            }
                        }
                        if $round == 10 {
                            hasher.lanes = hasher.table.reduce(*sum);
                        }
                    }
                )*
            };
        }
        rounds!(1 2 3 4 5 6 7 8 9 10 11 12 13);
        for block in &mut blocks {
            *block = block.aes_last(self.keys[14]);
        }
        blocks
    }
}

/// Data to be hashed, and the hash before it.
pub(super) struct ToHash<'a, I: Isa<G>, const G: usize> {
    pub(super) table: &'a Table<I, G>,
    pub(super) state: I::Block,
    pub(super) data: &'a [u8],
}

/// XORs data with a keystream.
pub(super) struct ToXor<'a, I: Isa<G>, C, const G: usize> {
    pub(super) schedule: &'a Schedule<I::Block>,
    pub(super) seed: I::Block,
    pub(super) data: &'a mut [u8],
    pub(super) padding: Padding,
    pub(super) counter: PhantomData<C>,
}

impl<I: Isa<G>, C: Counter, const G: usize> ToXor<'_, I, C, G> {
    #[inline(always)]
    pub(super) fn run(self, isa: I) {
        if self.data.is_empty() {
            return;
        }
        let front = Front::new::<I, G>(self.data.len());
        let mut keystream = Keystream::<I, C, G>::new(isa, self.schedule, self.seed, front.missing);
        let (first, rest) = self.data.split_at_mut(front.bytes);
        xor_ragged::<I, G>(isa, first, front.missing, &keystream.next([]));
        let mut wholes = rest.chunks_exact_mut(16 * group_blocks::<I, G>());
        for whole in &mut wholes {
            xor_whole::<I, G>(isa, whole, &keystream.next([]));
        }
        let last = wholes.into_remainder();
        if !last.is_empty() {
            xor_ragged::<I, G>(isa, last, 0, &keystream.next([]));
        }
    }

    /// The same, and absorbs the result into the hash `state`.
    #[inline(always)]
    pub(super) fn run_and_hash(self, isa: I, table: &Table<I, G>, state: I::Block) -> I::Block {
        if self.data.is_empty() {
            return state;
        }
        let len = self.data.len();
        let front = Front::new::<I, G>(len);
        let mut keystream = Keystream::<I, C, G>::new(isa, self.schedule, self.seed, front.missing);
        let (first, rest) = self.data.split_at_mut(front.bytes);
        let group = xor_ragged::<I, G>(isa, first, front.missing, &keystream.next([]));
        let mut hasher = Hasher::new(isa, table, state, group, front.missing);
        let mut wholes = rest.chunks_exact_mut(16 * group_blocks::<I, G>());
        for whole in &mut wholes {
            let blocks = keystream.next([&mut hasher]);
            hasher.group = xor_whole::<I, G>(isa, whole, &blocks);
        }
        let last = wholes.into_remainder();
        if !last.is_empty() {
            let blocks = keystream.next([&mut hasher]);
            hasher.group = xor_ragged::<I, G>(isa, last, 0, &blocks);
        }
        hasher.finish(isa, len, self.padding)
    }

    /// Like [`run`](Self::run), and hashes other data of the same length, which is not empty.
    #[inline(always)]
    pub(super) fn run_beside(self, isa: I, other: &ToHash<'_, I, G>) -> I::Block {
        assert_eq!(self.data.len(), other.data.len(), "both must have the same groups");
        let len = self.data.len();
        let front = Front::new::<I, G>(len);
        let mut keystream = Keystream::<I, C, G>::new(isa, self.schedule, self.seed, front.missing);
        let (first, rest) = self.data.split_at_mut(front.bytes);
        let (other_first, other_rest) = other.data.split_at(front.bytes);
        xor_ragged::<I, G>(isa, first, front.missing, &keystream.next([]));
        let group = load_ragged::<I, G>(isa, other_first, front.missing);
        let mut hasher = Hasher::new(isa, other.table, other.state, group, front.missing);
        let mut wholes = rest.chunks_exact_mut(16 * group_blocks::<I, G>());
        let mut other_wholes = other_rest.chunks_exact(16 * group_blocks::<I, G>());
        for (whole, other_whole) in (&mut wholes).zip(&mut other_wholes) {
            let blocks = keystream.next([&mut hasher]);
            xor_whole::<I, G>(isa, whole, &blocks);
            hasher.group = load_whole::<I, G>(isa, other_whole);
        }
        let last = wholes.into_remainder();
        if !last.is_empty() {
            let blocks = keystream.next([&mut hasher]);
            xor_ragged::<I, G>(isa, last, 0, &blocks);
            hasher.group = load_ragged::<I, G>(isa, other_wholes.remainder(), 0);
        }
        hasher.finish(isa, len, self.padding)
    }

    /// Like [`run_and_hash`](Self::run_and_hash) and [`run_beside`](Self::run_beside) at once: both hashes.
    #[inline(always)]
    pub(super) fn run_and_hash_beside(
        self,
        isa: I,
        table: &Table<I, G>,
        state: I::Block,
        other: &ToHash<'_, I, G>,
    ) -> (I::Block, I::Block) {
        assert_eq!(self.data.len(), other.data.len(), "both must have the same groups");
        let len = self.data.len();
        let front = Front::new::<I, G>(len);
        let mut keystream = Keystream::<I, C, G>::new(isa, self.schedule, self.seed, front.missing);
        let (first, rest) = self.data.split_at_mut(front.bytes);
        let (other_first, other_rest) = other.data.split_at(front.bytes);
        let group = xor_ragged::<I, G>(isa, first, front.missing, &keystream.next([]));
        let mut own = Hasher::new(isa, table, state, group, front.missing);
        let group = load_ragged::<I, G>(isa, other_first, front.missing);
        let mut beside = Hasher::new(isa, other.table, other.state, group, front.missing);
        let mut wholes = rest.chunks_exact_mut(16 * group_blocks::<I, G>());
        let mut other_wholes = other_rest.chunks_exact(16 * group_blocks::<I, G>());
        for (whole, other_whole) in (&mut wholes).zip(&mut other_wholes) {
            let blocks = keystream.next([&mut own, &mut beside]);
            own.group = xor_whole::<I, G>(isa, whole, &blocks);
            beside.group = load_whole::<I, G>(isa, other_whole);
        }
        let last = wholes.into_remainder();
        if !last.is_empty() {
            let blocks = keystream.next([&mut own, &mut beside]);
            own.group = xor_ragged::<I, G>(isa, last, 0, &blocks);
            beside.group = load_ragged::<I, G>(isa, other_wholes.remainder(), 0);
        }
        (own.finish(isa, len, self.padding), beside.finish(isa, len, self.padding))
    }
}
