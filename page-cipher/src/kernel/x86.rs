//! x86-64: AES-NI with 128-bit vectors, VAES with 256-bit and 512-bit vectors.

mod avx2;
mod avx512;
pub(crate) mod checksum;
mod ni;

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
pub(crate) use ni::AesNi;
