//! VAES and VPCLMULQDQ on 256-bit vectors: processors without AVX-512, such as AMD's since 2020 and Intel's since
//! 2021.

use core::arch::x86_64::*;

use super::ni::{AesNi, V128};
use crate::kernel::intrinsics;
use crate::kernel::isa::{Isa, Operation, Vector, ones_then_zeros};

/// Proof that the processor has VAES, VPCLMULQDQ and AVX2, and what [`AesNi`] proves.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("avx2");
        (found && AesNi::detect().is_some()).then_some(Self(()))
    }
}

/// A 256-bit vector. Values come from [`Avx2`] only.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct V256(__m256i);

impl Isa<8> for Avx2 {
    type Block = V128;
    type Vector = V256;

    #[inline(always)]
    fn block(self, bytes: &[u8; 16]) -> V128 {
        AesNi::included_in(self).block(bytes)
    }

    #[inline(always)]
    fn load(self, bytes: &[u8]) -> V256 {
        assert_eq!(bytes.len(), 32, "a vector is 32 bytes");
        // SAFETY: 32 bytes are readable behind the slice; the load takes any alignment. `self` proves that the
        // processor has the instruction.
        V256(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn load_partial(self, bytes: &[u8]) -> V256 {
        if bytes.len() == 32 {
            return self.load(bytes);
        }
        let (low, high) = bytes.split_at(bytes.len().min(16));
        let ni = AesNi::included_in(self);
        V256::from_halves(ni.load_partial(low), ni.load_partial(high))
    }

    #[inline(always)]
    fn run<O: Operation<Self>>(self, operation: O) -> O::Output {
        #[target_feature(enable = "aes,pclmulqdq,avx2,vaes,vpclmulqdq")]
        fn enabled<O: Operation<Avx2>>(isa: Avx2, operation: O) -> O::Output {
            operation.run(isa)
        }
        // SAFETY: `self` proves that the processor has these features: only `detect`, which asked for them, makes
        // one.
        unsafe { enabled(self, operation) }
    }
}

impl Vector for V256 {
    type Block = V128;
    const LANES: usize = 2;

    #[inline(always)]
    fn store(self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), 32, "a vector is 32 bytes");
        // SAFETY: 32 bytes are writable behind the slice; the store takes any alignment. `self` exists, so the
        // processor has the instruction.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), self.0) };
    }

    #[inline(always)]
    fn store_partial(self, bytes: &mut [u8]) {
        if bytes.len() == 32 {
            return self.store(bytes);
        }
        let (low, high) = bytes.split_at_mut(bytes.len().min(16));
        self.first().store_partial(low);
        self.high_lane_down().first().store_partial(high);
    }

    #[inline(always)]
    fn truncate(self, len: usize) -> Self {
        const MASKS: [u8; 64] = ones_then_zeros();
        let (mask, _) = MASKS[32 - len..].split_first_chunk::<32>().expect("len is at most 32");
        // SAFETY: 32 bytes are readable behind the reference. `self` exists, so the processor has the instructions.
        Self(unsafe { _mm256_and_si256(self.0, _mm256_loadu_si256(mask.as_ptr().cast())) })
    }

    #[inline(always)]
    fn at_lane(block: V128, lane: usize) -> Self {
        let (low, high) = Self::splat(block).halves_alone();
        if lane == 0 { low } else { high }
    }

    #[inline(always)]
    fn shift_up(self, lanes: usize) -> Self {
        if lanes == 0 { self } else { self.low_lane_up() }
    }

    #[inline(always)]
    fn shift_down(self, lanes: usize) -> Self {
        if lanes == 0 { self } else { self.high_lane_down() }
    }

    #[inline(always)]
    fn splat(block: V128) -> Self {
        // SAFETY: values of `V128` that are combined with this type come from `Avx2`, so the processor has the
        // instruction.
        Self(unsafe { _mm256_broadcastsi128_si256(block.0) })
    }

    intrinsics! {
        fn fold(self) -> V128 {
            V128(_mm_xor_si128(_mm256_castsi256_si128(self.0), _mm256_extracti128_si256::<1>(self.0)))
        }
        fn first(self) -> V128 { V128(_mm256_castsi256_si128(self.0)) }
        fn xor(self, other: Self) -> Self { Self(_mm256_xor_si256(self.0, other.0)) }
        fn xor3(self, b: Self, c: Self) -> Self { Self(_mm256_xor_si256(self.0, _mm256_xor_si256(b.0, c.0))) }
        fn add32(self, other: Self) -> Self { Self(_mm256_add_epi32(self.0, other.0)) }
        fn add64(self, other: Self) -> Self { Self(_mm256_add_epi64(self.0, other.0)) }
        fn swap_halves(self) -> Self { Self(_mm256_shuffle_epi32::<0x4e>(self.0)) }
        fn aes(self, key: Self) -> Self { Self(_mm256_aesenc_epi128(self.0, key.0)) }
        fn aes_last(self, key: Self) -> Self { Self(_mm256_aesenclast_epi128(self.0, key.0)) }
        fn inverse_aes(self, key: Self) -> Self { Self(_mm256_aesdec_epi128(self.0, key.0)) }
        fn inverse_aes_last(self, key: Self) -> Self { Self(_mm256_aesdeclast_epi128(self.0, key.0)) }
        fn clmul_low(self, other: Self) -> Self { Self(_mm256_clmulepi64_epi128::<0x00>(self.0, other.0)) }
        fn clmul_high(self, other: Self) -> Self { Self(_mm256_clmulepi64_epi128::<0x11>(self.0, other.0)) }
        fn shift_byte_up(self) -> Self { Self(_mm256_bslli_epi128::<1>(self.0)) }
        fn shift_2_bytes_up(self) -> Self { Self(_mm256_bslli_epi128::<2>(self.0)) }
        fn last_byte(self) -> Self { Self(_mm256_bsrli_epi128::<15>(self.0)) }
        fn last_2_bytes(self) -> Self { Self(_mm256_bsrli_epi128::<14>(self.0)) }
    }
}

impl V256 {
    intrinsics! {
        fn low_lane_up(self) -> Self { Self(_mm256_permute2x128_si256::<0x08>(self.0, self.0)) }
        fn high_lane_down(self) -> Self { Self(_mm256_permute2x128_si256::<0x81>(self.0, self.0)) }
        fn halves_alone(self) -> (Self, Self) {
            let zero = _mm256_setzero_si256();
            (Self(_mm256_blend_epi32::<0xf0>(self.0, zero)), Self(_mm256_blend_epi32::<0x0f>(self.0, zero)))
        }
    }
}

impl V256 {
    #[inline(always)]
    fn from_halves(low: V128, high: V128) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low.0), high.0) })
    }
}
