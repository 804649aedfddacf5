//! POLYVAL (RFC 8452, section 3), the hash of GCM-SIV and of HCTR2.
//!
//! Products use one carry-less multiplication per pair of halves and none to reduce them. Write a hash power
//! as `h = h1 X + h0` with `X = x^64`, and let `d = h * X^-1` in the field, which is cheap to compute. Then
//! for `m = m1 X + m0`
//!
//! ```text
//! m * h * x^-128  =  r + f * X^-1      r = m0 * d1 + m1 * h1,  f = m0 * d0 + m1 * h0
//! ```
//!
//! A table keeps `(d1, h1)` and `(d0, h0)`, so that r and f are each the sum of a product of low halves and one of
//! high halves. Sums of many products are reduced once. Lanes of a vector take every `LANES`-th block; the
//! last multiplication, by `H^LANES .. H^1`, brings them together.

use super::isa::{Block, Isa, Vector};

/// x^127 + x^126 + x^121, the field polynomial between its ends, by X^-1; in both halves.
const POLYNOMIAL: u128 = 0xc200_0000_0000_0000_c200_0000_0000_0000;

const MAX_LANES: usize = 4;

/// A power of the hash key: `(d1, h1)` and `(d0, h0)`.
#[derive(Clone, Copy)]
pub(super) struct Factor<V> {
    r: V,
    f: V,
}

impl<B: Block> Factor<B> {
    #[inline(always)]
    fn new(h: B, polynomial: B) -> Self {
        let d = h.swap_halves().xor(h.clmul_low(polynomial));
        Self { r: d.high_halves(h), f: d.low_halves(h) }
    }
}

/// A sum of products that is not reduced yet.
#[derive(Clone, Copy)]
pub(super) struct Sum<V> {
    r: V,
    f: V,
}

impl<V: Vector> Sum<V> {
    #[inline(always)]
    pub(super) fn zero<I: Isa<G, Vector = V>, const G: usize>(isa: I) -> Self {
        Self { r: isa.zero(), f: isa.zero() }
    }

    #[inline(always)]
    fn add_r(&mut self, m: V, factor: V) {
        self.r = self.r.xor3(m.clmul_low(factor), m.clmul_high(factor));
    }

    #[inline(always)]
    fn add_f(&mut self, m: V, factor: V) {
        self.f = self.f.xor3(m.clmul_low(factor), m.clmul_high(factor));
    }

    #[inline(always)]
    fn reduce(self, polynomial: V) -> V {
        self.r.xor3(self.f.swap_halves(), self.f.clmul_low(polynomial))
    }
}

/// The powers of a hash key that a group needs. Wipe what is not in locked memory.
#[derive(Clone, Copy)]
pub(super) struct Table<I: Isa<G>, const G: usize> {
    isa: I,
    /// `H^LANES`, `H^(2 LANES)`, ... `H^(G LANES)`.
    powers: [Factor<I::Block>; G],
    /// `H^LANES` in lane 0 to `H^1` in the last lane.
    tail: Factor<I::Vector>,
    /// `H^1`.
    one: Factor<I::Block>,
}

impl<I: Isa<G>, const G: usize> Table<I, G> {
    /// The table of all zeros, to wipe one.
    #[inline(always)]
    pub(super) fn zero(isa: I) -> Self {
        let block = Factor { r: isa.number(0), f: isa.number(0) };
        Self { isa, powers: [block; G], tail: Factor { r: isa.zero(), f: isa.zero() }, one: block }
    }

    #[inline(always)]
    pub(super) fn new(isa: I, key: I::Block) -> Self {
        let polynomial = isa.number(POLYNOMIAL);
        let mut table = Self::zero(isa);
        table.one = Factor::new(key, polynomial);
        // The first powers, for the lanes of the tail.
        let mut values = [key; MAX_LANES];
        let mut factors = [table.one; MAX_LANES];
        for lane in 0..I::Vector::LANES {
            if lane > 0 {
                values[lane] = multiply(values[(lane - 1) / 2], &factors[lane / 2], polynomial);
                factors[lane] = Factor::new(values[lane], polynomial);
            }
            let place = I::Vector::LANES - 1 - lane;
            table.tail.r = table.tail.r.xor(I::Vector::at_lane(factors[lane].r, place));
            table.tail.f = table.tail.f.xor(I::Vector::at_lane(factors[lane].f, place));
        }
        // The powers of H^LANES. Index i stands for exponent i + 1, which is made of two halves, so that chains of
        // multiplications are short.
        let mut values = [values[I::Vector::LANES - 1]; G];
        table.powers = [factors[I::Vector::LANES - 1]; G];
        for i in 1..G {
            values[i] = multiply(values[(i - 1) / 2], &table.powers[i / 2], polynomial);
            table.powers[i] = Factor::new(values[i], polynomial);
        }
        table
    }

    /// `state * H`.
    #[inline(always)]
    pub(super) fn times_h(&self, state: I::Block) -> I::Block {
        multiply(state, &self.one, self.isa.number(POLYNOMIAL))
    }

    /// The sum that [`add_step`](Self::add_step) adds to when `x` is absorbed.
    #[inline(always)]
    pub(super) fn begin(&self, x: &[I::Vector; G]) -> Sum<I::Vector> {
        Sum { r: x[G - 1], f: self.isa.zero() }
    }

    /// Steps that [`add_step`](Self::add_step) takes for a group.
    pub(super) const STEPS: usize = 2 * G;

    /// One step of absorbing a group: `state H^(G LANES) + x[0] H^((G-1) LANES) + ... + x[G-1]` in every lane.
    #[inline(always)]
    pub(super) fn add_step(
        &self,
        step: usize,
        state: I::Vector,
        x: &[I::Vector; G],
        sum: &mut Sum<I::Vector>,
    ) {
        // The state comes last because it is known last.
        let index = step / 2;
        let (m, factor) = if index < G - 1 {
            (x[index], &self.powers[G - 2 - index])
        } else {
            (state, &self.powers[G - 1])
        };
        // The reduction needs f first.
        if step.is_multiple_of(2) {
            sum.add_f(m, I::Vector::splat(factor.f));
        } else {
            sum.add_r(m, I::Vector::splat(factor.r));
        }
    }

    #[inline(always)]
    pub(super) fn reduce(&self, sum: Sum<I::Vector>) -> I::Vector {
        sum.reduce(I::Vector::splat(self.isa.number(POLYNOMIAL)))
    }

    /// Absorbs a group.
    #[inline(always)]
    pub(super) fn absorb(&self, state: I::Vector, x: &[I::Vector; G]) -> I::Vector {
        let mut sum = self.begin(x);
        // Written out, because the compiler does not unroll a loop of this size.
        macro_rules! steps {
            ($($step:literal)*) => {
                const { assert!(Self::STEPS <= [$($step),*].len()) };
                $(
                    if $step < Self::STEPS {
                        self.add_step($step, state, x, &mut sum);
                    }
                )*
            };
        }
        steps!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        self.reduce(sum)
    }

    /// The hash, from the state of all lanes.
    #[inline(always)]
    pub(super) fn finish(&self, state: I::Vector) -> I::Block {
        let mut sum = Sum::zero(self.isa);
        sum.add_f(state, self.tail.f);
        sum.add_r(state, self.tail.r);
        let folded = Sum { r: sum.r.fold(), f: sum.f.fold() };
        folded.reduce(self.isa.number(POLYNOMIAL))
    }
}

/// `m` times the power of H that `factor` stands for.
#[inline(always)]
fn multiply<B: Block>(m: B, factor: &Factor<B>, polynomial: B) -> B {
    let sum = Sum {
        r: m.clmul_low(factor.r).xor(m.clmul_high(factor.r)),
        f: m.clmul_low(factor.f).xor(m.clmul_high(factor.f)),
    };
    sum.reduce(polynomial)
}
