//! AES-NI and PCLMULQDQ in their 128-bit AVX encoding: every x86-64 processor for servers since 2011.

use core::arch::x86_64::*;

use crate::kernel::intrinsics;
use crate::kernel::isa::{Block, Isa, Operation, Vector, ones_then_zeros, store_number_partial};

/// Proof that the processor has AES, PCLMULQDQ and AVX.
#[derive(Clone, Copy)]
pub(crate) struct AesNi(());

impl AesNi {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("avx");
        found.then_some(Self(()))
    }

    /// The proof, from an instruction set that includes this one.
    pub(super) fn included_in<const G: usize>(_: impl Isa<G, Block = V128>) -> Self {
        Self(())
    }
}

/// A 128-bit vector. Values come from instruction sets that include [`AesNi`] only.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct V128(pub(super) __m128i);

impl Isa<8> for AesNi {
    type Block = V128;
    type Vector = V128;

    #[inline(always)]
    fn block(self, bytes: &[u8; 16]) -> V128 {
        // SAFETY: sixteen bytes are readable behind the reference; the load takes any alignment. `self` proves
        // that the processor has SSE2.
        V128(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
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
        #[target_feature(enable = "aes,pclmulqdq,avx")]
        fn enabled<O: Operation<AesNi>>(isa: AesNi, operation: O) -> O::Output {
            operation.run(isa)
        }
        // SAFETY: `self` proves that the processor has these features: only `detect`, which asked for them, and
        // `included_in`, whose argument proves the same, make one.
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
        // SAFETY: sixteen bytes are readable behind the reference.
        self.and(Self(unsafe { _mm_loadu_si128(mask.as_ptr().cast()) }))
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
        fn xor(self, other: Self) -> Self { Self(_mm_xor_si128(self.0, other.0)) }
        fn xor3(self, b: Self, c: Self) -> Self { Self(_mm_xor_si128(self.0, _mm_xor_si128(b.0, c.0))) }
        fn add32(self, other: Self) -> Self { Self(_mm_add_epi32(self.0, other.0)) }
        fn add64(self, other: Self) -> Self { Self(_mm_add_epi64(self.0, other.0)) }
        fn swap_halves(self) -> Self { Self(_mm_shuffle_epi32::<0x4e>(self.0)) }
        fn aes(self, key: Self) -> Self { Self(_mm_aesenc_si128(self.0, key.0)) }
        fn aes_last(self, key: Self) -> Self { Self(_mm_aesenclast_si128(self.0, key.0)) }
        fn inverse_aes(self, key: Self) -> Self { Self(_mm_aesdec_si128(self.0, key.0)) }
        fn inverse_aes_last(self, key: Self) -> Self { Self(_mm_aesdeclast_si128(self.0, key.0)) }
        fn clmul_low(self, other: Self) -> Self { Self(_mm_clmulepi64_si128::<0x00>(self.0, other.0)) }
        fn clmul_high(self, other: Self) -> Self { Self(_mm_clmulepi64_si128::<0x11>(self.0, other.0)) }
        fn shift_byte_up(self) -> Self { Self(_mm_slli_si128::<1>(self.0)) }
        fn shift_2_bytes_up(self) -> Self { Self(_mm_slli_si128::<2>(self.0)) }
        fn last_byte(self) -> Self { Self(_mm_srli_si128::<15>(self.0)) }
        fn last_2_bytes(self) -> Self { Self(_mm_srli_si128::<14>(self.0)) }
    }
}

impl Block for V128 {
    #[inline(always)]
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // SAFETY: sixteen bytes are writable behind the reference; the store takes any alignment. `self` exists, so
        // the processor has the instruction.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), self.0) };
        bytes
    }

    intrinsics! {
        fn prefix_xor_words(self) -> Self {
            let pairs = _mm_xor_si128(self.0, _mm_slli_si128::<4>(self.0));
            Self(_mm_xor_si128(pairs, _mm_slli_si128::<8>(pairs)))
        }
        fn and(self, other: Self) -> Self { Self(_mm_and_si128(self.0, other.0)) }
        fn low_halves(self, other: Self) -> Self { Self(_mm_unpacklo_epi64(self.0, other.0)) }
        fn high_halves(self, other: Self) -> Self { Self(_mm_unpackhi_epi64(self.0, other.0)) }
        fn splat_word3(self) -> Self { Self(_mm_shuffle_epi32::<0xff>(self.0)) }
        fn splat_rotated_word3(self) -> Self { Self(_mm_shuffle_epi8(self.0, _mm_set1_epi32(0x0c0f_0e0d))) }
        fn inverse_mix_columns(self) -> Self { Self(_mm_aesimc_si128(self.0)) }
    }
}
