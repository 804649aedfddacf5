//! PostgreSQL's page checksum. A step of the hash is `t = s ^ word; s = t * prime ^ t >> 17` and waits for the step
//! before it, so what counts is how long a multiplication takes.

use core::arch::x86_64::*;

use super::Avx512;
use crate::pg::Page;
use crate::pg::sums::{BASE_OFFSETS, FNV_PRIME, ROW_BYTES, SUMS, first_row, xor_of_sums};

/// The portable code, compiled for AVX2. `None` if the processor does not have it.
pub(crate) fn avx2(page: &Page) -> Option<u32> {
    #[target_feature(enable = "avx2")]
    fn enabled(page: &Page) -> u32 {
        xor_of_sums(page)
    }
    // SAFETY: the processor has AVX2.
    is_x86_feature_detected!("avx2").then(|| unsafe { enabled(page) })
}

/// 32-bit multiplication takes ten cycles, 64-bit multiplication of the low halves five: here every sum has 64
/// bits for itself, of which the upper half holds anything. Sums of even and of odd words are apart.
pub(crate) fn avx512(_: Avx512, page: &Page) -> u32 {
    #[target_feature(enable = "avx512f")]
    fn enabled(page: &Page) -> u32 {
        let first = first_row(page);
        let mut base = [0; ROW_BYTES];
        for (bytes, offset) in base.as_chunks_mut::<4>().0.iter_mut().zip(BASE_OFFSETS) {
            *bytes = offset.to_le_bytes();
        }
        let zero = _mm512_setzero_si512();
        let (base, words) = (load_row(&base), load_row(&first));
        // Sums with the next word already added.
        let mut even = [zero; VECTORS];
        let mut odd = [zero; VECTORS];
        for i in 0..VECTORS {
            even[i] = _mm512_xor_si512(base[i], words[i]);
            odd[i] = _mm512_srli_epi64::<32>(even[i]);
        }
        let (rows, _) = page.as_chunks::<ROW_BYTES>();
        for index in 1..rows.len() {
            let words = load_row(&rows[index]);
            // The odd words in the place of the even ones: by a load where there is memory behind the row, because
            // shifts compete with multiplications.
            let next = page[ROW_BYTES * index..].get(4..4 + ROW_BYTES).and_then(|row| row.as_array());
            let odd_words = match next {
                Some(row) => load_row(row),
                None => {
                    let mut shifted = words;
                    for vector in &mut shifted {
                        *vector = _mm512_srli_epi64::<32>(*vector);
                    }
                    shifted
                }
            };
            for i in 0..VECTORS {
                even[i] = mix(even[i], words[i]);
                odd[i] = mix(odd[i], odd_words[i]);
            }
        }
        // The last row and two rounds of zeros.
        let mut all = zero;
        for i in 0..VECTORS {
            let even = mix(mix(mix(even[i], zero), zero), zero);
            let odd = mix(mix(mix(odd[i], zero), zero), zero);
            all = _mm512_ternarylogic_epi64::<0x96>(all, even, odd);
        }
        let half = _mm256_xor_si256(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64::<1>(all));
        let quarter = _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
        _mm_cvtsi128_si32(_mm_xor_si128(quarter, _mm_unpackhi_epi64(quarter, quarter))) as u32
    }

    /// One step of eight sums, and the word of the next.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn mix(sums: __m512i, words: __m512i) -> __m512i {
        let product = _mm512_mul_epu32(sums, _mm512_set1_epi64(FNV_PRIME.into()));
        _mm512_ternarylogic_epi64::<0x96>(product, _mm512_srli_epi32::<17>(sums), words)
    }

    // SAFETY: the argument proves that the processor has AVX-512F and VL, which includes AVX2.
    unsafe { enabled(page) }
}

/// Vectors of sixteen words in a row.
const VECTORS: usize = SUMS / 16;

#[inline]
#[target_feature(enable = "avx512f")]
fn load_row(row: &[u8; ROW_BYTES]) -> [__m512i; VECTORS] {
    let mut vectors = [_mm512_setzero_si512(); VECTORS];
    for (vector, bytes) in vectors.iter_mut().zip(row.as_chunks::<64>().0) {
        // SAFETY: 64 bytes are readable behind the reference; the load takes any alignment.
        *vector = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
    }
    vectors
}
