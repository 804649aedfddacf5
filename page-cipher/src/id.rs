//! Names and numbers of ciphers.

use core::fmt;
use core::str::FromStr;

/// A cipher, as settings name it (`aes-256-hctr2`) and as formats on disk number it. Numbers are never
/// reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum CipherId {
    /// Wide-block and length-preserving; the default for PostgreSQL pages. See [`crate::hctr2`].
    Aes256Hctr2 = 1,
    /// Length-preserving; for where an approved mode is demanded. See [`crate::xts`].
    Aes256Xts = 2,
    /// Authenticated, needs room for nonce and tag. See [`crate::gcm_siv`].
    Aes256GcmSiv = 3,
}

impl CipherId {
    /// All ciphers there are.
    pub const ALL: [Self; 3] = [Self::Aes256Hctr2, Self::Aes256Xts, Self::Aes256GcmSiv];

    /// The name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes256Hctr2 => "aes-256-hctr2",
            Self::Aes256Xts => "aes-256-xts",
            Self::Aes256GcmSiv => "aes-256-gcm-siv",
        }
    }
}

/// No cipher has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown cipher {name:?}: use aes-256-hctr2, aes-256-xts or aes-256-gcm-siv")]
pub struct UnknownCipherName {
    /// The name that was looked for.
    pub name: String,
}

/// No cipher known to this version has this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown cipher number {id}: the data was written by a newer version or is damaged")]
pub struct UnknownCipherId {
    /// The number that was looked for.
    pub id: u8,
}

impl fmt::Display for CipherId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for CipherId {
    type Err = UnknownCipherName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|cipher| cipher.name() == name);
        known.ok_or_else(|| UnknownCipherName { name: name.to_owned() })
    }
}

impl TryFrom<u8> for CipherId {
    type Error = UnknownCipherId;

    fn try_from(id: u8) -> Result<Self, Self::Error> {
        Self::ALL.into_iter().find(|cipher| u8::from(*cipher) == id).ok_or(UnknownCipherId { id })
    }
}

impl From<CipherId> for u8 {
    fn from(cipher: CipherId) -> Self {
        cipher as Self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_on_disk_are_pinned() {
        assert_eq!(CipherId::ALL.map(u8::from), [1, 2, 3]);
        for id in 0..=u8::MAX {
            let expected = CipherId::ALL.into_iter().find(|cipher| u8::from(*cipher) == id);
            assert_eq!(CipherId::try_from(id), expected.ok_or(UnknownCipherId { id }));
        }
    }

    #[test]
    fn names_are_pinned_and_round_trip() {
        assert_eq!(CipherId::ALL.map(CipherId::name), ["aes-256-hctr2", "aes-256-xts", "aes-256-gcm-siv"]);
        for cipher in CipherId::ALL {
            assert_eq!(cipher.to_string().parse(), Ok(cipher));
        }
        for wrong in ["", "aes-256", "AES-256-XTS", "aes-256-xts ", "aes-256-gcm"] {
            assert_eq!(wrong.parse::<CipherId>(), Err(UnknownCipherName { name: wrong.to_owned() }));
        }
    }
}
