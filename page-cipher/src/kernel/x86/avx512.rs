//! VAES and VPCLMULQDQ on 512-bit vectors: Intel's servers since 2021 (Ice Lake), AMD's since 2022 (Zen 4).

use core::arch::x86_64::*;

use super::ni::{AesNi, V128};
use crate::kernel::intrinsics;
use crate::kernel::isa::{Isa, Operation, Vector};

/// Proof that the processor has AVX-512 with VAES and VPCLMULQDQ, and what [`AesNi`] proves.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq");
        (found && AesNi::detect().is_some()).then_some(Self(()))
    }
}

/// A 512-bit vector. Values come from [`Avx512`] only.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct V512(__m512i);

/// The first `len` of 64 bytes.
#[inline(always)]
fn byte_mask(len: usize) -> __mmask64 {
    if len >= 64 { !0 } else { (1 << len) - 1 }
}

impl Isa<4> for Avx512 {
    type Block = V128;
    type Vector = V512;

    #[inline(always)]
    fn block(self, bytes: &[u8; 16]) -> V128 {
        AesNi::included_in(self).block(bytes)
    }

    #[inline(always)]
    fn load(self, bytes: &[u8]) -> V512 {
        assert_eq!(bytes.len(), 64, "a vector is 64 bytes");
        // SAFETY: 64 bytes are readable behind the slice; the load takes any alignment. `self` proves that the
        // processor has the instruction.
        V512(unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn load_partial(self, bytes: &[u8]) -> V512 {
        // SAFETY: the mask selects bytes of the slice, or of a slice longer than a vector its beginning; others are
        // not accessed. `self` proves that the processor has the instruction.
        V512(unsafe { _mm512_maskz_loadu_epi8(byte_mask(bytes.len()), bytes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn block_partial(self, bytes: &[u8]) -> V128 {
        self.load_partial(bytes).first()
    }

    #[inline(always)]
    fn run<O: Operation<Self>>(self, operation: O) -> O::Output {
        #[target_feature(enable = "aes,pclmulqdq,avx2,avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq")]
        fn enabled<O: Operation<Avx512>>(isa: Avx512, operation: O) -> O::Output {
            operation.run(isa)
        }
        // SAFETY: `self` proves that the processor has these features: only `detect`, which asked for them (AVX-512F
        // includes AVX2), makes one.
        unsafe { enabled(self, operation) }
    }
}

impl Vector for V512 {
    type Block = V128;
    const LANES: usize = 4;

    #[inline(always)]
    fn store(self, bytes: &mut [u8]) {
        assert_eq!(bytes.len(), 64, "a vector is 64 bytes");
        // SAFETY: 64 bytes are writable behind the slice; the store takes any alignment. `self` exists, so the
        // processor has the instruction.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), self.0) };
    }

    #[inline(always)]
    fn store_partial(self, bytes: &mut [u8]) {
        // SAFETY: the mask selects bytes of the slice, or of a slice longer than a vector its beginning; others are
        // not accessed. `self` exists, so the processor has the instruction.
        unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), byte_mask(bytes.len()), self.0) };
    }

    #[inline(always)]
    fn splat(block: V128) -> Self {
        // SAFETY: values of `V128` that are combined with this type come from `Avx512`, so the processor has the
        // instruction.
        Self(unsafe { _mm512_broadcast_i32x4(block.0) })
    }

    #[inline(always)]
    fn at_lane(block: V128, lane: usize) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { _mm512_maskz_broadcast_i32x4(0xf << (4 * lane), block.0) })
    }

    intrinsics! {
        fn truncate(self, len: usize) -> Self { Self(_mm512_maskz_mov_epi8(byte_mask(len), self.0)) }
        fn shift_up(self, lanes: usize) -> Self {
            let from = _mm512_sub_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi64(2 * lanes as i64));
            Self(_mm512_maskz_permutexvar_epi64(0xff << (2 * lanes), from, self.0))
        }
        fn shift_down(self, lanes: usize) -> Self {
            let from = _mm512_add_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi64(2 * lanes as i64));
            Self(_mm512_maskz_permutexvar_epi64(0xff >> (2 * lanes), from, self.0))
        }
        fn fold(self) -> V128 {
            let half = _mm256_xor_si256(_mm512_castsi512_si256(self.0), _mm512_extracti64x4_epi64::<1>(self.0));
            V128(_mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half)))
        }
        fn first(self) -> V128 { V128(_mm512_castsi512_si128(self.0)) }
        fn xor(self, other: Self) -> Self { Self(_mm512_xor_si512(self.0, other.0)) }
        fn xor3(self, b: Self, c: Self) -> Self { Self(_mm512_ternarylogic_epi64::<0x96>(self.0, b.0, c.0)) }
        fn add32(self, other: Self) -> Self { Self(_mm512_add_epi32(self.0, other.0)) }
        fn add64(self, other: Self) -> Self { Self(_mm512_add_epi64(self.0, other.0)) }
        fn swap_halves(self) -> Self { Self(_mm512_shuffle_epi32::<0x4e>(self.0)) }
        fn aes(self, key: Self) -> Self { Self(_mm512_aesenc_epi128(self.0, key.0)) }
        fn aes_last(self, key: Self) -> Self { Self(_mm512_aesenclast_epi128(self.0, key.0)) }
        fn inverse_aes(self, key: Self) -> Self { Self(_mm512_aesdec_epi128(self.0, key.0)) }
        fn inverse_aes_last(self, key: Self) -> Self { Self(_mm512_aesdeclast_epi128(self.0, key.0)) }
        fn clmul_low(self, other: Self) -> Self { Self(_mm512_clmulepi64_epi128::<0x00>(self.0, other.0)) }
        fn clmul_high(self, other: Self) -> Self { Self(_mm512_clmulepi64_epi128::<0x11>(self.0, other.0)) }
        fn shift_byte_up(self) -> Self { Self(_mm512_bslli_epi128::<1>(self.0)) }
        fn shift_2_bytes_up(self) -> Self { Self(_mm512_bslli_epi128::<2>(self.0)) }
        fn last_byte(self) -> Self { Self(_mm512_bsrli_epi128::<15>(self.0)) }
        fn last_2_bytes(self) -> Self { Self(_mm512_bsrli_epi128::<14>(self.0)) }
    }
}
