//! NEON with the AES and PMULL instructions of ARMv8-A (Arm Architecture Reference Manual, "The Cryptographic Extension"):
//! every AArch64 processor for servers, and nearly every other one.

use core::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use crate::kernel::intrinsics;
use crate::kernel::isa::{Block, Isa, Operation, Vector, ones_then_zeros, store_number_partial};

/// Proof that the processor has NEON, AES and PMULL.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_aarch64_feature_detected!("neon")
            && is_aarch64_feature_detected!("aes")
            && is_aarch64_feature_detected!("pmull");
        found.then_some(Self(()))
    }
}

/// A 128-bit vector. Values come from [`Neon`] only.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct V128(uint8x16_t);

impl Isa<8> for Neon {
    type Block = V128;
    type Vector = V128;

    #[inline(always)]
    fn block(self, bytes: &[u8; 16]) -> V128 {
        // SAFETY: sixteen bytes are readable behind the reference; the load takes any alignment. `self` proves
        // that the processor has NEON.
        V128(unsafe { vld1q_u8(bytes.as_ptr()) })
    }

    #[inline(always)]
    fn load(self, bytes: &[u8]) -> V128 {
        let (block, []) = bytes.as_chunks::<16>() else { panic!("a vector is 16 bytes") };
        self.block(&block[0])
    }

    #[inline(always)]
    fn load_partial(self, bytes: &[u8]) -> V128 {
        match bytes.first_chunk() {
            Some(block) => self.block(block),
            None => self.block_partial(bytes),
        }
    }

    #[inline(always)]
    fn run<O: Operation<Self>>(self, operation: O) -> O::Output {
        #[target_feature(enable = "neon,aes")]
        fn enabled<O: Operation<Neon>>(isa: Neon, operation: O) -> O::Output {
            operation.run(isa)
        }
        // SAFETY: `self` proves that the processor has these features ("aes" includes PMULL): only `detect`, which asked for them,
        // makes one.
        unsafe { enabled(self, operation) }
    }
}

impl Vector for V128 {
    type Block = Self;
    const LANES: usize = 1;

    #[inline(always)]
    fn splat(block: Self) -> Self {
        block
    }

    #[inline(always)]
    fn at_lane(block: Self, _: usize) -> Self {
        block
    }

    #[inline(always)]
    fn store(self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.bytes());
    }

    #[inline(always)]
    fn store_partial(self, bytes: &mut [u8]) {
        match bytes.first_chunk_mut() {
            Some(block) => *block = self.bytes(),
            None => store_number_partial(u128::from_le_bytes(self.bytes()), bytes),
        }
    }

    #[inline(always)]
    fn truncate(self, len: usize) -> Self {
        const MASKS: [u8; 32] = ones_then_zeros();
        let (mask, _) = MASKS[16 - len..].split_first_chunk::<16>().expect("len is at most 16");
        // SAFETY: sixteen bytes are readable behind the reference. `self` exists, so the processor has the instruction.
        self.and(Self(unsafe { vld1q_u8(mask.as_ptr()) }))
    }

    #[inline(always)]
    fn shift_up(self, _: usize) -> Self {
        self
    }

    #[inline(always)]
    fn shift_down(self, _: usize) -> Self {
        self
    }

    #[inline(always)]
    fn fold(self) -> Self {
        self
    }

    #[inline(always)]
    fn first(self) -> Self {
        self
    }

    intrinsics! {
        fn xor(self, other: Self) -> Self { Self(veorq_u8(self.0, other.0)) }
        fn xor3(self, b: Self, c: Self) -> Self { Self(veorq_u8(self.0, veorq_u8(b.0, c.0))) }
        fn add32(self, other: Self) -> Self {
            let (a, b) = (vreinterpretq_u32_u8(self.0), vreinterpretq_u32_u8(other.0));
            Self(vreinterpretq_u8_u32(vaddq_u32(a, b)))
        }
        fn add64(self, other: Self) -> Self {
            let (a, b) = (vreinterpretq_u64_u8(self.0), vreinterpretq_u64_u8(other.0));
            Self(vreinterpretq_u8_u64(vaddq_u64(a, b)))
        }
        fn swap_halves(self) -> Self { Self(vextq_u8::<8>(self.0, self.0)) }
        // AESE is AddRoundKey, SubBytes and ShiftRows, in this order: with a zero key, and the round key after MixColumns (AESMC),
        // it is the round of x86 and of FIPS 197.
        fn aes(self, key: Self) -> Self { Self(veorq_u8(vaesmcq_u8(vaeseq_u8(self.0, vdupq_n_u8(0))), key.0)) }
        fn aes_last(self, key: Self) -> Self { Self(veorq_u8(vaeseq_u8(self.0, vdupq_n_u8(0)), key.0)) }
        fn inverse_aes(self, key: Self) -> Self { Self(veorq_u8(vaesimcq_u8(vaesdq_u8(self.0, vdupq_n_u8(0))), key.0)) }
        fn inverse_aes_last(self, key: Self) -> Self { Self(veorq_u8(vaesdq_u8(self.0, vdupq_n_u8(0)), key.0)) }
        fn clmul_low(self, other: Self) -> Self {
            let (a, b) = (vreinterpretq_u64_u8(self.0), vreinterpretq_u64_u8(other.0));
            Self(vreinterpretq_u8_p128(vmull_p64(vgetq_lane_u64::<0>(a), vgetq_lane_u64::<0>(b))))
        }
        fn clmul_high(self, other: Self) -> Self {
            Self(vreinterpretq_u8_p128(vmull_high_p64(vreinterpretq_p64_u8(self.0), vreinterpretq_p64_u8(other.0))))
        }
        // EXT takes sixteen bytes of the pair from a byte on: zeros in front are a shift to the end, zeros behind one to the start.
        fn shift_byte_up(self) -> Self { Self(vextq_u8::<15>(vdupq_n_u8(0), self.0)) }
        fn shift_2_bytes_up(self) -> Self { Self(vextq_u8::<14>(vdupq_n_u8(0), self.0)) }
        fn last_byte(self) -> Self { Self(vextq_u8::<15>(self.0, vdupq_n_u8(0))) }
        fn last_2_bytes(self) -> Self { Self(vextq_u8::<14>(self.0, vdupq_n_u8(0))) }
    }
}

impl Block for V128 {
    #[inline(always)]
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // SAFETY: sixteen bytes are writable behind the reference; the store takes any alignment. `self` exists, so
        // the processor has the instruction.
        unsafe { vst1q_u8(bytes.as_mut_ptr(), self.0) };
        bytes
    }

    intrinsics! {
        fn prefix_xor_words(self) -> Self {
            let zero = vdupq_n_u8(0);
            let pairs = veorq_u8(self.0, vextq_u8::<12>(zero, self.0));
            Self(veorq_u8(pairs, vextq_u8::<8>(zero, pairs)))
        }
        fn and(self, other: Self) -> Self { Self(vandq_u8(self.0, other.0)) }
        fn low_halves(self, other: Self) -> Self {
            let (a, b) = (vreinterpretq_u64_u8(self.0), vreinterpretq_u64_u8(other.0));
            Self(vreinterpretq_u8_u64(vzip1q_u64(a, b)))
        }
        fn high_halves(self, other: Self) -> Self {
            let (a, b) = (vreinterpretq_u64_u8(self.0), vreinterpretq_u64_u8(other.0));
            Self(vreinterpretq_u8_u64(vzip2q_u64(a, b)))
        }
        fn splat_word3(self) -> Self { Self(vreinterpretq_u8_u32(vdupq_laneq_u32::<3>(vreinterpretq_u32_u8(self.0)))) }
        fn splat_rotated_word3(self) -> Self {
            // RotWord moves the first byte to the end: a rotation to the right of the little-endian word.
            let word = vdupq_laneq_u32::<3>(vreinterpretq_u32_u8(self.0));
            Self(vreinterpretq_u8_u32(vsriq_n_u32::<8>(vshlq_n_u32::<24>(word), word)))
        }
        fn inverse_mix_columns(self) -> Self { Self(vaesimcq_u8(self.0)) }
    }
}
