//! Sealing and opening the pages of one relation.

use secret_mem::SecretBytes;

use super::checksum::{checksum, set_checksum};
use super::page::{BODY, CHECKSUM, Fork, Page, UPPER, header_is_valid, is_zero};
use crate::hctr2::Aes256Hctr2;
use crate::kdf::{self, Purpose};
use crate::xts::Aes256Xts;
use crate::{CipherId, LengthError};

/// Version of the page format, in the tweak.
const FORMAT: u8 = 1;

/// A page is sealed at most this often again when its ciphertext looks like a page without data. The last
/// attempt is stored whatever it looks like; it is needed once in 2^48 pages.
const LAST_ATTEMPT: u8 = 3;

/// The expanded key of one relation. Seals and opens its pages, in every fork, without allocating.
#[derive(Debug)]
pub struct RelationCipher {
    cipher: Cipher,
}

#[derive(Debug)]
enum Cipher {
    Hctr2(Aes256Hctr2),
    Xts(Aes256Xts),
}

/// A cipher that cannot encrypt PostgreSQL pages, because they have no room for a nonce and a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} cannot encrypt PostgreSQL pages: use aes-256-hctr2 or aes-256-xts")]
pub struct UnsupportedCipher(pub CipherId);

/// A page was not sealed; it is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Opening relies on a valid header, so a page without one could never be read again.
    #[error(
        "the page's header is not valid, so it would be refused when it is read: it was damaged in memory"
    )]
    InvalidHeader,
}

/// A page was not opened; it still holds the bytes that were passed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The bytes are not those that were written: torn by a crash, rotten, or not encrypted at all.
    #[error(
        "the checksum of the encrypted page is {stored:#06x} but should be {computed:#06x}: the page is \
         damaged, torn, or not encrypted"
    )]
    ChecksumMismatch {
        /// `pd_checksum` as found.
        stored: u16,
        /// What it is for the page's bytes and block number.
        computed: u16,
    },
    /// The bytes are whole but do not decrypt to a page: another key, or changed or moved on purpose.
    #[error("the page does not decrypt to a valid page: it was sealed under another key, changed or moved")]
    NotAuthentic,
}

impl RelationCipher {
    /// Derives and expands the key of relation `rel_number` (relfilenode) of database `db_oid` (0 for shared
    /// relations) from a data key. Page numbers and forks are bound by the tweak, the tablespace by the data
    /// key.
    pub fn new(
        cipher: CipherId,
        dek: &SecretBytes<32>,
        db_oid: u32,
        rel_number: u32,
    ) -> Result<Self, UnsupportedCipher> {
        let (id, db, rel) = ([u8::from(cipher)], db_oid.to_le_bytes(), rel_number.to_le_bytes());
        let ids: [&[u8]; 3] = [&id, &db, &rel];
        let cipher = match cipher {
            CipherId::Aes256Hctr2 => {
                Cipher::Hctr2(Aes256Hctr2::new(&kdf::derive(dek, Purpose::PG_PAGE, &ids)))
            }
            CipherId::Aes256Xts => {
                let key = kdf::derive(dek, Purpose::PG_PAGE, &ids);
                // Two equal halves from HKDF have a probability of 2^-256.
                Cipher::Xts(Aes256Xts::new(&key).expect("halves of a derived key differ"))
            }
            CipherId::Aes256GcmSiv => return Err(UnsupportedCipher(cipher)),
        };
        Ok(Self { cipher })
    }

    /// Encrypts block `block` of `fork` in place and sets `pd_checksum` for the bytes on disk. `pd_lsn` stays
    /// in clear; what `pd_checksum` held is not kept. A page of zeros stays as it is.
    pub fn seal(&self, fork: Fork, block: u32, page: &mut Page) -> Result<(), SealError> {
        if is_zero(page) {
            return Ok(());
        }
        if !header_is_valid(page, fork) {
            return Err(SealError::InvalidHeader);
        }
        let mut tweak = Tweak::new(fork, block, page);
        self.encrypt(&tweak, page);
        while looks_empty(page) && tweak.attempt() < LAST_ATTEMPT {
            self.decrypt(&tweak, page);
            tweak.set_attempt(tweak.attempt() + 1);
            self.encrypt(&tweak, page);
        }
        set_checksum(page, block);
        Ok(())
    }

    /// Decrypts block `block` of `fork` in place and sets `pd_checksum` to 0. A page of zeros stays as it is.
    ///
    /// On an error the page is unchanged. A page that was changed, or sealed under another key or for another
    /// place, is refused, except with the probability that [`header_is_valid`] states for random bytes. HCTR2
    /// spreads any change over the whole page; XTS only over the 16-byte block it is in, so that changes by
    /// someone who also corrects the checksum are noticed in the first block only.
    pub fn open(&self, fork: Fork, block: u32, page: &mut Page) -> Result<(), OpenError> {
        if is_zero(page) {
            return Ok(());
        }
        let stored = u16::from_ne_bytes([page[CHECKSUM], page[CHECKSUM + 1]]);
        let computed = checksum(page, block);
        if stored != computed {
            return Err(OpenError::ChecksumMismatch { stored, computed });
        }
        // What looks empty was sealed again, unless it was the last attempt.
        let mut tweak = Tweak::new(fork, block, page);
        let first = if looks_empty(page) { LAST_ATTEMPT } else { 0 };
        for attempt in first..=LAST_ATTEMPT {
            tweak.set_attempt(attempt);
            self.decrypt(&tweak, page);
            if header_is_valid(page, fork) && self.needs_attempt(&mut tweak, page) {
                page[CHECKSUM..CHECKSUM + 2].fill(0);
                return Ok(());
            }
            // The cipher is a permutation, so this restores the ciphertext without a copy of it.
            tweak.set_attempt(attempt);
            self.encrypt(&tweak, page);
        }
        Err(OpenError::NotAuthentic)
    }

    /// Whether sealing the plaintext `page` would have ended with this tweak's attempt and not before.
    /// Without this an attacker would have one trial per attempt to hit a valid header instead of one.
    fn needs_attempt(&self, tweak: &mut Tweak, page: &mut Page) -> bool {
        (0..tweak.attempt()).all(|lower| {
            tweak.set_attempt(lower);
            self.encrypt(tweak, page);
            let empty = looks_empty(page);
            self.decrypt(tweak, page);
            empty
        })
    }

    fn encrypt(&self, tweak: &Tweak, page: &mut Page) {
        let body = &mut page[BODY..];
        expect_length(match &self.cipher {
            Cipher::Hctr2(cipher) => cipher.encrypt(&tweak.0, body),
            Cipher::Xts(cipher) => cipher.encrypt(&tweak.0, body),
        });
    }

    fn decrypt(&self, tweak: &Tweak, page: &mut Page) {
        let body = &mut page[BODY..];
        expect_length(match &self.cipher {
            Cipher::Hctr2(cipher) => cipher.decrypt(&tweak.0, body),
            Cipher::Xts(cipher) => cipher.decrypt(&tweak.0, body),
        });
    }
}

fn expect_length(result: Result<(), LengthError>) {
    result.expect("both ciphers take the 8182 bytes of a page's body");
}

/// Whether `pd_upper` is zero, which on a page that is not all zero makes pgBackRest report damage and
/// `pg_checksums` skip it.
fn looks_empty(page: &Page) -> bool {
    page[UPPER..UPPER + 2] == [0, 0]
}

/// ```text
/// 0  1  version of the format
/// 1  1  fork: 0 main and init, 1 free space map, 2 visibility map
/// 2  1  attempt
/// 3  1  zero
/// 4  4  block number, little-endian
/// 8  8  pd_lsn as on disk
/// ```
struct Tweak([u8; 16]);

impl Tweak {
    fn new(fork: Fork, block: u32, page: &Page) -> Self {
        let fork = match fork {
            Fork::Main | Fork::Init => 0,
            Fork::Fsm => 1,
            Fork::Vm => 2,
        };
        let mut tweak = [0; 16];
        tweak[..4].copy_from_slice(&[FORMAT, fork, 0, 0]);
        tweak[4..8].copy_from_slice(&block.to_le_bytes());
        tweak[8..].copy_from_slice(&page[..8]);
        Self(tweak)
    }

    fn attempt(&self) -> u8 {
        self.0[2]
    }

    fn set_attempt(&mut self, attempt: u8) {
        self.0[2] = attempt;
    }
}
