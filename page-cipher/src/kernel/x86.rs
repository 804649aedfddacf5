//! x86-64: AES-NI with 128-bit vectors, VAES with 256-bit and 512-bit vectors.

mod avx2;
mod avx512;
pub(crate) mod checksum;
mod ni;

pub(crate) use avx2::Avx2;
pub(crate) use avx512::Avx512;
pub(crate) use ni::AesNi;

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
use intrinsics;
