//! HCTR2 for any instruction set. Names follow section 3 of the paper, as in the portable implementation.

use super::aes::Schedule;
use super::isa::{Block, Isa, Operation, Vector};
use super::polyval::Table;
use super::stream::{Padding, Xctr, hash, hash_few, xor_keystream};

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
        let mm = isa.block(m).xor(hash(isa, &key.table, tweaked, n, Padding::One));
        let uu = if ENCRYPT { key.schedule.encrypt([mm])[0] } else { key.inverse.decrypt(mm) };
        let seed = mm.xor3(uu, key.l);
        let hashed =
            xor_keystream::<I, Xctr, true, G>(isa, &key.schedule, &key.table, seed, tweaked, n, Padding::One);
        *m = uu.xor(hashed).bytes();
    }
}
