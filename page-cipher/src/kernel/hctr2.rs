//! HCTR2 for any instruction set. Names follow section 3 of the paper, as in the portable implementation.

use core::marker::PhantomData;

use super::aes::Schedule;
use super::isa::{Block, Isa, Operation, Vector};
use super::polyval::Table;
use super::stream::{Padding, ToHash, ToXor, Xctr, hash, hash_few};
use crate::hctr2::Unit;

/// An expanded key.
pub(crate) struct Hctr2<I: Isa<G>, const G: usize> {
    isa: I,
    schedule: Schedule<I::Block>,
    inverse: Schedule<I::Block>,
    table: Table<I, G>,
    /// The constant L.
    l: I::Block,
}

impl<I: Isa<G>, const G: usize> Hctr2<I, G> {
    /// Call inside [`secret_mem::wiping_stack`].
    pub(crate) fn new(isa: I, key: &[u8; 32]) -> Self {
        isa.run(Expand::<G> { key })
    }

    /// Encrypts `m || n` in place.
    pub(crate) fn encrypt(&self, tweak: &[u8], m: &mut [u8; 16], n: &mut [u8]) {
        self.isa.run(Crypt::<I, true, G> { key: self, tweak, m, n });
        super::wipe_stack();
    }

    /// Decrypts `m || n` in place.
    pub(crate) fn decrypt(&self, tweak: &[u8], m: &mut [u8; 16], n: &mut [u8]) {
        self.isa.run(Crypt::<I, false, G> { key: self, tweak, m, n });
        super::wipe_stack();
    }

    /// Encrypts units of one length in place: any number of more than a block, or one.
    pub(crate) fn encrypt_batch(&self, units: &mut [Unit<'_>]) {
        self.isa.run(CryptBatch::<I, true, G> { key: self, units });
        super::wipe_stack_of_batch();
    }

    /// Decrypts units likewise.
    pub(crate) fn decrypt_batch(&self, units: &mut [Unit<'_>]) {
        self.isa.run(CryptBatch::<I, false, G> { key: self, units });
        super::wipe_stack_of_batch();
    }

    /// The hash after the length block and the tweak.
    #[inline(always)]
    fn hash_tweak(&self, tweak: &[u8], tail_len: usize) -> I::Block {
        let odd = u128::from(!tail_len.is_multiple_of(16));
        let length = self.isa.number(2 * (8 * tweak.len() as u128) + 2 + odd);
        hash_few(self.isa, &self.table, self.table.times_h(length), tweak)
    }
}

struct Expand<'a, const G: usize> {
    key: &'a [u8; 32],
}

impl<I: Isa<G>, const G: usize> Operation<I> for Expand<'_, G> {
    type Output = Hctr2<I, G>;

    #[inline(always)]
    fn run(self, isa: I) -> Hctr2<I, G> {
        let (halves, _) = self.key.as_chunks::<16>();
        let schedule = Schedule::expand(isa, isa.block(&halves[0]), isa.block(&halves[1]));
        let [hash_key, l] = schedule.encrypt([isa.number(0), isa.number(1)]);
        Hctr2 { isa, inverse: schedule.inverse(), table: Table::new(isa, hash_key), l, schedule }
    }
}

struct Crypt<'a, I: Isa<G>, const ENCRYPT: bool, const G: usize> {
    key: &'a Hctr2<I, G>,
    tweak: &'a [u8],
    m: &'a mut [u8; 16],
    n: &'a mut [u8],
}

impl<I: Isa<G>, const ENCRYPT: bool, const G: usize> Operation<I> for Crypt<'_, I, ENCRYPT, G> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        let Self { key, tweak, m, n } = self;
        let tweaked = key.hash_tweak(tweak, n.len());
        let hashed = hash(isa, &key.table, tweaked, n, Padding::One);
        let middle = Middle::new::<ENCRYPT>(key, tweaked, m, hashed);
        let hashed = middle.xctr(key, n).run_and_hash(isa, &key.table, tweaked);
        *m = middle.uu.xor(hashed).bytes();
    }
}

/// What is known between the two passes over N.
struct Middle<I: Isa<G>, const G: usize> {
    tweaked: I::Block,
    uu: I::Block,
    seed: I::Block,
}

impl<I: Isa<G>, const G: usize> Middle<I, G> {
    #[inline(always)]
    fn new<const ENCRYPT: bool>(
        key: &Hctr2<I, G>,
        tweaked: I::Block,
        m: &[u8; 16],
        hashed: I::Block,
    ) -> Self {
        let mm = key.isa.block(m).xor(hashed);
        let uu = if ENCRYPT { key.schedule.encrypt([mm])[0] } else { key.inverse.decrypt(mm) };
        Self { tweaked, uu, seed: mm.xor3(uu, key.l) }
    }

    #[inline(always)]
    fn xctr<'a>(&self, key: &'a Hctr2<I, G>, n: &'a mut [u8]) -> ToXor<'a, I, Xctr, G> {
        let (schedule, seed) = (&key.schedule, self.seed);
        ToXor { schedule, seed, data: n, padding: Padding::One, counter: PhantomData }
    }
}

struct CryptBatch<'a, 'b, I: Isa<G>, const ENCRYPT: bool, const G: usize> {
    key: &'a Hctr2<I, G>,
    units: &'a mut [Unit<'b>],
}

impl<I: Isa<G>, const ENCRYPT: bool, const G: usize> Operation<I> for CryptBatch<'_, '_, I, ENCRYPT, G> {
    type Output = ();

    /// The first pass over a unit goes beside the second pass over the one before it.
    #[inline(always)]
    fn run(self, isa: I) {
        let Self { key, units } = self;
        let mut units = units.iter_mut().map(|unit| (unit.tweak, &mut *unit.m, &mut *unit.n));
        let Some((tweak, mut m, mut n)) = units.next() else { return };
        let tweaked = key.hash_tweak(tweak, n.len());
        let mut middle =
            Middle::new::<ENCRYPT>(key, tweaked, m, hash(isa, &key.table, tweaked, n, Padding::One));
        for (tweak, next_m, next_n) in units {
            let tweaked = key.hash_tweak(tweak, next_n.len());
            let to_hash = ToHash { table: &key.table, state: tweaked, data: next_n };
            let (hashed, next_hashed) =
                middle.xctr(key, n).run_and_hash_beside(isa, &key.table, middle.tweaked, &to_hash);
            *m = middle.uu.xor(hashed).bytes();
            middle = Middle::new::<ENCRYPT>(key, tweaked, next_m, next_hashed);
            (m, n) = (next_m, next_n);
        }
        let hashed = middle.xctr(key, n).run_and_hash(isa, &key.table, middle.tweaked);
        *m = middle.uu.xor(hashed).bytes();
    }
}
