//! How fast the processor's AES and multiplication units are, to measure kernels against.

use core::hint::black_box;

use super::isa::{Isa, Operation, Vector};

/// Runs `rounds` AES rounds and `products` carry-less products of single blocks, on data that does not wait for
/// each other, as fast as the units take them. Numbers are rounded down to whole vectors.
pub(crate) fn run<I: Isa<G>, const G: usize>(isa: I, rounds: usize, products: usize) {
    let lanes = I::Vector::LANES;
    isa.run(Load::<G> { rounds: rounds / lanes, products: products / lanes });
}

struct Load<const G: usize> {
    rounds: usize,
    products: usize,
}

impl<I: Isa<G>, const G: usize> Operation<I> for Load<G> {
    type Output = ();

    #[inline(always)]
    fn run(self, isa: I) {
        const WIDTH: usize = 8;
        let key = I::Vector::splat(isa.number(black_box(0x1234)));
        let (mut states, mut sums) = ([key; WIDTH], [key; WIDTH]);
        // AES and products in turns, in the proportion asked for.
        let steps = self.rounds.max(self.products) / WIDTH;
        let (mut rounds_due, mut products_due) = (0, 0);
        for _ in 0..steps {
            rounds_due += self.rounds / WIDTH;
            products_due += self.products / WIDTH;
            if rounds_due >= steps {
                rounds_due -= steps;
                for state in &mut states {
                    *state = state.aes(key);
                }
            }
            if products_due >= steps {
                products_due -= steps;
                for sum in &mut sums {
                    *sum = sum.clmul_low(key);
                }
            }
        }
        let mut all = key;
        for (state, sum) in states.iter().zip(&sums) {
            all = all.xor3(*state, *sum);
        }
        black_box(all);
    }
}
