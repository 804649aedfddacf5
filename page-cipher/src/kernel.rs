//! The ciphers' implementations with the processor's own instructions, and which of them serves here.
//!
//! Each cipher is written once ([`hctr2`], [`gcm_siv`], [`xts`]) over blocks and vectors of blocks ([`isa`]), and compiled
//! for every instruction set. `unsafe` is confined to the modules of the instruction sets: intrinsics, loads and
//! stores.
//!
//! # Constant time
//! Control flow and addresses depend on lengths, which are public, and on nothing else: AES and multiplication
//! are instructions without tables, masks are made from lengths, and tags are compared whole. The one branch on a
//! result is whether a tag was right, which the caller is told anyway.
//!
//! # Wiping
//! Expanded keys are in locked memory, which is wiped when it is freed. Keys of a single message are wiped before the
//! call returns; [`wipe_stack`] then overwrites the stack on which the compiler may have kept parts of them.
#![allow(unsafe_code)]

mod aes;
#[cfg(target_arch = "aarch64")]
pub(crate) mod arm;
pub(crate) mod gcm_siv;
pub(crate) mod hctr2;
pub(crate) mod isa;
mod limit;
mod polyval;
mod stream;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;
pub(crate) mod xts;

use core::fmt;

use crate::pg::{Page, sums};

/// Methods of a vector type that are one expression of intrinsics.
///
/// They are safe although intrinsics need a processor that has them, because a value of the type proves that it
/// does: values come from an `Isa`, and that from detection.
macro_rules! intrinsics {
    ($($(#[$attribute:meta])* fn $name:ident($self:ident $(, $argument:ident: $type:ty)*) -> $result:ty $body:block)*) => {
        $(
            $(#[$attribute])*
            #[inline(always)]
            fn $name($self $(, $argument: $type)*) -> $result {
                // SAFETY: `$self` exists, so the processor has the instructions (see the type's documentation).
                // Nothing here touches memory.
                unsafe { $body }
            }
        )*
    };
}
pub(crate) use intrinsics;

/// An implementation of the ciphers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// x86-64 with AVX-512, VAES and VPCLMULQDQ.
    Avx512,
    /// x86-64 with AVX2, VAES and VPCLMULQDQ.
    Avx2,
    /// x86-64 with AES-NI, PCLMULQDQ and AVX.
    AesNi,
    /// AArch64 with AES and PMULL.
    Neon,
    /// The `aes`, `polyval` and `aes-gcm-siv` crates: any processor.
    Portable,
}

impl Kernel {
    /// All kernels, the fastest first.
    pub const ALL: [Self; 5] = [Self::Avx512, Self::Avx2, Self::AesNi, Self::Neon, Self::Portable];

    /// Whether it runs on this processor.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::Avx512::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => x86::AesNi::detect().is_some(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => arm::Neon::detect().is_some(),
            Self::Portable => true,
            _ => false,
        }
    }

    /// The fastest that runs on this processor: the one that ciphers are made with.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|kernel| kernel.is_available()).unwrap_or(Self::Portable)
    }

    /// Does as many AES rounds and carry-less products of single blocks, and nothing else. For benchmarks: no cipher that
    /// needs as many is faster. False if the kernel does not run here or has no such instructions.
    #[doc(hidden)]
    pub fn run_units(self, rounds: usize, products: usize) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::Avx512::detect().map(|isa| limit::run(isa, rounds, products)).is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::Avx2::detect().map(|isa| limit::run(isa, rounds, products)).is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => x86::AesNi::detect().map(|isa| limit::run(isa, rounds, products)).is_some(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => arm::Neon::detect().map(|isa| limit::run(isa, rounds, products)).is_some(),
            _ => false,
        }
    }

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::AesNi => "aes-ni",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Defines `Key`, the expanded key of a cipher for the kernel that serves it: the type of the same name in
/// this folder's module, or in the caller's module `portable`. All kernels give the same bytes.
macro_rules! define_key {
    ($module:ident::$cipher:ident, $len:literal) => {
        #[derive(Debug)]
        enum Key {
            #[cfg(target_arch = "x86_64")]
            Avx512(LockedBox<$crate::kernel::$module::$cipher<$crate::kernel::x86::Avx512, 4>>),
            #[cfg(target_arch = "x86_64")]
            Avx2(LockedBox<$crate::kernel::$module::$cipher<$crate::kernel::x86::Avx2, 8>>),
            #[cfg(target_arch = "x86_64")]
            AesNi(LockedBox<$crate::kernel::$module::$cipher<$crate::kernel::x86::AesNi, 8>>),
            #[cfg(target_arch = "aarch64")]
            Neon(LockedBox<$crate::kernel::$module::$cipher<$crate::kernel::arm::Neon, 8>>),
            Portable(LockedBox<portable::$cipher>),
        }

        impl Key {
            /// Expands a key for the fastest kernel.
            fn best(key: &SecretBytes<$len>) -> Self {
                Self::new(Kernel::best(), key).unwrap_or_else(|| Self::portable(key))
            }

            /// Expands a key for `kernel`. `None` if that does not run here.
            fn new(kernel: Kernel, key: &SecretBytes<$len>) -> Option<Self> {
                match kernel {
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Avx512 => {
                        let isa = $crate::kernel::x86::Avx512::detect()?;
                        Some(Self::Avx512(LockedBox::new_with(|| {
                            $crate::kernel::$module::$cipher::new(isa, key.expose())
                        })))
                    }
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Avx2 => {
                        let isa = $crate::kernel::x86::Avx2::detect()?;
                        Some(Self::Avx2(LockedBox::new_with(|| {
                            $crate::kernel::$module::$cipher::new(isa, key.expose())
                        })))
                    }
                    #[cfg(target_arch = "x86_64")]
                    Kernel::AesNi => {
                        let isa = $crate::kernel::x86::AesNi::detect()?;
                        Some(Self::AesNi(LockedBox::new_with(|| {
                            $crate::kernel::$module::$cipher::new(isa, key.expose())
                        })))
                    }
                    #[cfg(target_arch = "aarch64")]
                    Kernel::Neon => {
                        let isa = $crate::kernel::arm::Neon::detect()?;
                        Some(Self::Neon(LockedBox::new_with(|| {
                            $crate::kernel::$module::$cipher::new(isa, key.expose())
                        })))
                    }
                    Kernel::Portable => Some(Self::portable(key)),
                    _ => None,
                }
            }

            fn portable(key: &SecretBytes<$len>) -> Self {
                Self::Portable(LockedBox::new_with(|| portable::$cipher::new(key.expose())))
            }
        }
    };
}
pub(crate) use define_key;

/// Evaluates `$body` with `$name` bound to the expanded key in `$key`, whichever kernel's it is.
macro_rules! with_key {
    ($key:expr, $name:ident => $body:expr) => {
        match $key {
            #[cfg(target_arch = "x86_64")]
            Key::Avx512($name) => $body,
            #[cfg(target_arch = "x86_64")]
            Key::Avx2($name) => $body,
            #[cfg(target_arch = "x86_64")]
            Key::AesNi($name) => $body,
            #[cfg(target_arch = "aarch64")]
            Key::Neon($name) => $body,
            Key::Portable($name) => $body,
        }
    };
}
pub(crate) use with_key;

/// The sums of PostgreSQL's page checksum by `kernel`. `None` if that does not run here.
pub(crate) fn xor_of_sums(kernel: Kernel, page: &Page) -> Option<u32> {
    match kernel {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 => Some(x86::checksum::avx512(x86::Avx512::detect()?, page)),
        // AVX2 is what counts here; the kernel for AES-NI may or may not have it.
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx2 | Kernel::AesNi => x86::checksum::avx2(page),
        // NEON belongs to the base instruction set, so the compiler uses it.
        #[cfg(target_arch = "aarch64")]
        Kernel::Neon => arm::Neon::detect().map(|_| sums::xor_of_sums(page)),
        Kernel::Portable => Some(sums::xor_of_sums(page)),
        _ => None,
    }
}

/// Overwrites the stack below the caller's frame, where a kernel ran just before: 3 KiB, more than any takes.
#[inline(never)]
pub(crate) fn wipe_stack() {
    // In parts, because `memset` takes its slow start above 2 KiB.
    let mut stack = [[0_u64; 192]; 2];
    for part in &mut stack {
        part.fill(0);
        zeroize::optimization_barrier(part);
    }
}

/// The same for a batch: 12 KiB.
#[inline(never)]
pub(crate) fn wipe_stack_of_batch() {
    let mut stack = [0_u64; 1536];
    stack.fill(0);
    zeroize::optimization_barrier(&stack);
}
