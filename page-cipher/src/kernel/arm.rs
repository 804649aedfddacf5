//! AArch64: NEON with the AES and PMULL instructions of ARMv8-A.

mod neon;

pub(crate) use neon::Neon;
