//! Hash functions and HMAC.

use core::fmt;

use hmac::{HmacReset, KeyInit as _, Mac as _, SimpleHmacReset};
use secret_mem::LockedBox;
use sha1::Sha1;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};
use sha3::{Sha3_224, Sha3_256, Sha3_384, Sha3_512};
use subtle::ConstantTimeEq as _;

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "their names say it")]
pub enum Hash {
    /// Broken for signatures; for what is old.
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Sha3_224,
    Sha3_256,
    Sha3_384,
    Sha3_512,
}

impl Hash {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::Sha3_224,
        Self::Sha3_256,
        Self::Sha3_384,
        Self::Sha3_512,
    ];

    /// Length of a digest in bytes.
    pub const fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 | Self::Sha3_224 => 28,
            Self::Sha256 | Self::Sha3_256 => 32,
            Self::Sha384 | Self::Sha3_384 => 48,
            Self::Sha512 | Self::Sha3_512 => 64,
        }
    }

    /// Always false: a digest has a length.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> Vec<u8> {
        let mut hasher = Hasher::new(self);
        hasher.update(data);
        hasher.finish()
    }

    /// Its name in the standards.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA-1",
            Self::Sha224 => "SHA-224",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
            Self::Sha3_224 => "SHA3-224",
            Self::Sha3_256 => "SHA3-256",
            Self::Sha3_384 => "SHA3-384",
            Self::Sha3_512 => "SHA3-512",
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Hashes in parts. In locked memory, as keys may be hashed too.
pub struct Hasher(LockedBox<Hashing>);

/// HMAC (FIPS 198-1) in parts, or ready to begin.
pub struct Mac(LockedBox<Keyed>);

type Hashing = State<Sha1, Sha224, Sha256, Sha384, Sha512, Sha3_224, Sha3_256, Sha3_384, Sha3_512>;

type Keyed = State<
    HmacReset<Sha1>,
    HmacReset<Sha224>,
    HmacReset<Sha256>,
    HmacReset<Sha384>,
    HmacReset<Sha512>,
    SimpleHmacReset<Sha3_224>,
    SimpleHmacReset<Sha3_256>,
    SimpleHmacReset<Sha3_384>,
    SimpleHmacReset<Sha3_512>,
>;

/// One state for each hash function.
#[derive(Clone)]
enum State<A, B, C, D, E, F, G, H, I> {
    Sha1(A),
    Sha224(B),
    Sha256(C),
    Sha384(D),
    Sha512(E),
    Sha3_224(F),
    Sha3_256(G),
    Sha3_384(H),
    Sha3_512(I),
}

/// Does the same for each.
macro_rules! each {
    ($state:expr, $x:ident => $do:expr) => {
        match $state {
            State::Sha1($x) => $do,
            State::Sha224($x) => $do,
            State::Sha256($x) => $do,
            State::Sha384($x) => $do,
            State::Sha512($x) => $do,
            State::Sha3_224($x) => $do,
            State::Sha3_256($x) => $do,
            State::Sha3_384($x) => $do,
            State::Sha3_512($x) => $do,
        }
    };
}

/// Makes one for a hash function; the last four are SHA-3.
macro_rules! make {
    ($hash:expr, $make:ident, $make3:ident) => {
        match $hash {
            Hash::Sha1 => State::Sha1($make!(Sha1)),
            Hash::Sha224 => State::Sha224($make!(Sha224)),
            Hash::Sha256 => State::Sha256($make!(Sha256)),
            Hash::Sha384 => State::Sha384($make!(Sha384)),
            Hash::Sha512 => State::Sha512($make!(Sha512)),
            Hash::Sha3_224 => State::Sha3_224($make3!(Sha3_224)),
            Hash::Sha3_256 => State::Sha3_256($make3!(Sha3_256)),
            Hash::Sha3_384 => State::Sha3_384($make3!(Sha3_384)),
            Hash::Sha3_512 => State::Sha3_512($make3!(Sha3_512)),
        }
    };
}

impl Hasher {
    /// Begins.
    pub fn new(hash: Hash) -> Self {
        macro_rules! fresh {
            ($t:ty) => {
                <$t>::new()
            };
        }
        Self(LockedBox::new_with(|| make!(hash, fresh, fresh)))
    }

    /// Takes more.
    pub fn update(&mut self, data: &[u8]) {
        each!(&mut *self.0, h => h.update(data));
    }

    /// The digest.
    pub fn finish(mut self) -> Vec<u8> {
        each!(&mut *self.0, h => h.finalize_reset().to_vec())
    }
}

impl Clone for Hasher {
    fn clone(&self) -> Self {
        Self(LockedBox::new_with(|| State::clone(&self.0)))
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher(redacted)")
    }
}

impl Mac {
    /// Begins with a key of any length.
    pub fn new(hash: Hash, key: &[u8]) -> Self {
        macro_rules! keyed {
            ($t:ty) => {
                HmacReset::<$t>::new_from_slice(key).expect("HMAC takes keys of any length")
            };
        }
        macro_rules! keyed3 {
            ($t:ty) => {
                SimpleHmacReset::<$t>::new_from_slice(key).expect("HMAC takes keys of any length")
            };
        }
        Self(LockedBox::new_with(|| make!(hash, keyed, keyed3)))
    }

    /// Another one in the same state.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(LockedBox::new_with(|| State::clone(&self.0)))
    }

    /// Takes more.
    pub fn update(&mut self, data: &[u8]) {
        each!(&mut *self.0, m => m.update(data));
    }

    /// Writes the MAC into `out`, cut to its length, and begins again with the same key.
    pub fn finish_into(&mut self, out: &mut [u8]) {
        each!(&mut *self.0, m => {
            let full = m.finalize_reset().into_bytes();
            let n = out.len().min(full.len());
            out[..n].copy_from_slice(&full[..n]);
        });
    }

    /// The MAC.
    pub fn finish(mut self) -> Vec<u8> {
        each!(&mut *self.0, m => m.finalize_reset().into_bytes().to_vec())
    }

    /// Whether the MAC, cut to the length of `expected`, is `expected`; in constant time. An empty one never is.
    pub fn verify(self, expected: &[u8]) -> bool {
        let mac = self.finish();
        let n = expected.len();
        n > 0 && n <= mac.len() && mac[..n].ct_eq(expected).into()
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac(redacted)")
    }
}
