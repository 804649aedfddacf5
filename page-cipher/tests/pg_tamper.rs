//! Pages that were changed, moved or swapped, and what becomes of them.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LSN, PAGE_CIPHERS, data_key, heap_page, map_page, page, secret, set_lsn, without_checksum};
use page_cipher::CipherId;
use page_cipher::hctr2::Aes256Hctr2;
use page_cipher::kdf::{Purpose, derive};
use page_cipher::pg::*;

const DB: u32 = 5;
const REL: u32 = 16384;
const BLOCK: u32 = 7;

fn cipher(id: CipherId) -> RelationCipher {
    RelationCipher::new(id, &data_key(), DB, REL).unwrap()
}

fn sealed(id: CipherId, fork: Fork, plain: &Page) -> Page {
    let mut page = *plain;
    cipher(id).seal(fork, BLOCK, &mut page).unwrap();
    page
}

/// Opening must fail like this and leave the page as it is.
fn assert_refused(
    cipher: &RelationCipher,
    fork: Fork,
    block: u32,
    page: &Page,
    error: OpenError,
    what: &str,
) {
    let mut opened = *page;
    assert_eq!(cipher.open(fork, block, &mut opened), Err(error), "{what}");
    assert_eq!(&opened, page, "{what}: the page was changed");
}

/// As an attacker would present it: with the checksum that belongs to it.
fn assert_not_authentic(cipher: &RelationCipher, fork: Fork, block: u32, page: &Page, what: &str) {
    let mut page = *page;
    set_checksum(&mut page, block);
    assert_refused(cipher, fork, block, &page, OpenError::NotAuthentic, what);
}

fn flip(page: &Page, bit: usize) -> Page {
    let mut page = *page;
    page[bit / 8] ^= 1 << (bit % 8);
    page
}

fn is_checksum_bit(bit: usize) -> bool {
    (64..80).contains(&bit)
}

/// Bit rot, and anything else that does not know about checksums. PostgreSQL's checksum has 16 bits and
/// misses a few flips; HCTR2 then refuses the page all the same, XTS only in the first block.
#[test]
fn every_flipped_bit_is_refused_with_a_stale_checksum() {
    for id in PAGE_CIPHERS {
        let cipher = cipher(id);
        let page = sealed(id, Fork::Main, &heap_page());
        let mut missed_by_checksum = 0;
        for bit in 0..8 * PAGE_SIZE {
            let changed = flip(&page, bit);
            let stored = u16::from_le_bytes([changed[8], changed[9]]);
            let computed = checksum(&changed, BLOCK);
            if stored == computed {
                missed_by_checksum += 1;
                if id == CipherId::Aes256Hctr2 || bit < 8 * 26 {
                    assert_not_authentic(&cipher, Fork::Main, BLOCK, &changed, &format!("{id} bit {bit}"));
                }
                continue;
            }
            let error = OpenError::ChecksumMismatch { stored, computed };
            assert_refused(&cipher, Fork::Main, BLOCK, &changed, error, &format!("{id} bit {bit}"));
        }
        assert!(missed_by_checksum < 10, "the checksum missed {missed_by_checksum} of 65536 flips");
    }
}

fn every_bit_flipped_by_an_attacker_is_refused(fork: Fork, plain: &Page) {
    let cipher = cipher(CipherId::Aes256Hctr2);
    let page = sealed(CipherId::Aes256Hctr2, fork, plain);
    for bit in (0..8 * PAGE_SIZE).filter(|bit| !is_checksum_bit(*bit)) {
        assert_not_authentic(&cipher, fork, BLOCK, &flip(&page, bit), &format!("bit {bit}"));
    }
}

#[test]
fn hctr2_refuses_every_bit_flipped_by_an_attacker_in_a_table() {
    every_bit_flipped_by_an_attacker_is_refused(Fork::Main, &heap_page());
}

/// An empty page has the least redundancy: every header that is valid at all could be its own.
#[test]
fn hctr2_refuses_every_bit_flipped_by_an_attacker_in_an_almost_empty_page() {
    let mut plain = [0; PAGE_SIZE];
    plain[..24].copy_from_slice(&map_page()[..24]);
    every_bit_flipped_by_an_attacker_is_refused(Fork::Init, &plain);
}

#[test]
fn hctr2_refuses_every_bit_flipped_by_an_attacker_in_a_map() {
    every_bit_flipped_by_an_attacker_is_refused(Fork::Vm, &map_page());
}

/// What XTS does not do: a change beyond the first block, with its checksum, is not noticed, and garbles 16
/// or (at the end, where ciphertext is stolen) 22 bytes. The documentation says so.
#[test]
fn xts_notices_an_attacker_in_the_first_block_only() {
    let cipher = cipher(CipherId::Aes256Xts);
    let plain = heap_page();
    let page = sealed(CipherId::Aes256Xts, Fork::Main, &plain);
    for bit in (0..8 * PAGE_SIZE).filter(|bit| !is_checksum_bit(*bit)) {
        let mut changed = flip(&page, bit);
        if bit < 8 * 26 {
            assert_not_authentic(&cipher, Fork::Main, BLOCK, &changed, &format!("bit {bit}"));
            continue;
        }
        set_checksum(&mut changed, BLOCK);
        cipher.open(Fork::Main, BLOCK, &mut changed).unwrap();
        let garbled =
            without_checksum(&plain).iter().zip(&changed).filter(|(before, now)| before != now).count();
        assert!((1..=22).contains(&garbled), "bit {bit}: {garbled} bytes changed");
    }
}

#[test]
fn swapped_pages_are_refused() {
    let other_key = secret(&[7; 32]);
    for id in PAGE_CIPHERS {
        let mut plain = heap_page();
        plain[12..20].copy_from_slice(&map_page()[12..20]); // valid in every fork
        let page = sealed(id, Fork::Main, &plain);
        let home = cipher(id);
        assert_eq!(home.open(Fork::Main, BLOCK, &mut page.clone()), Ok(()));

        for block in [0, BLOCK - 1, BLOCK + 1, BLOCK + 131_072, BLOCK << 8, u32::MAX] {
            assert_not_authentic(&home, Fork::Main, block, &page, "another block");
        }
        for fork in [Fork::Fsm, Fork::Vm] {
            assert_not_authentic(&home, fork, BLOCK, &page, "another fork");
        }
        let page_of_map = sealed(id, Fork::Vm, &plain);
        for fork in [Fork::Main, Fork::Fsm, Fork::Init] {
            assert_not_authentic(&home, fork, BLOCK, &page_of_map, "another fork than the visibility map");
        }
        for (db, rel) in [(DB, REL + 1), (DB + 1, REL), (REL, DB), (0, REL), (DB, 0)] {
            let other = RelationCipher::new(id, &data_key(), db, rel).unwrap();
            assert_not_authentic(&other, Fork::Main, BLOCK, &page, "another relation or database");
        }
        let other = RelationCipher::new(id, &other_key, DB, REL).unwrap();
        assert_not_authentic(&other, Fork::Main, BLOCK, &page, "another data key");
        let other_id = PAGE_CIPHERS.into_iter().find(|other| *other != id).unwrap();
        assert_not_authentic(&cipher(other_id), Fork::Main, BLOCK, &page, "another cipher");
    }
}

#[test]
fn another_lsn_is_refused() {
    for id in PAGE_CIPHERS {
        let page = sealed(id, Fork::Main, &heap_page());
        for lsn in [0, 1, LSN - 1, LSN + 1, LSN << 32, LSN.rotate_right(32), u64::MAX] {
            let mut changed = page;
            set_lsn(&mut changed, lsn);
            assert_not_authentic(&cipher(id), Fork::Main, BLOCK, &changed, "another LSN");
        }
    }
}

#[test]
fn plain_and_random_pages_are_refused() {
    for id in PAGE_CIPHERS {
        assert_not_authentic(&cipher(id), Fork::Main, BLOCK, &heap_page(), "a page that is not encrypted");
        for seed in 0..200 {
            let mut page = [0; PAGE_SIZE];
            Aes256Hctr2::new(&data_key()).encrypt(&[seed], &mut page).unwrap();
            assert_not_authentic(&cipher(id), Fork::Main, BLOCK, &page, "random bytes");
        }
    }
}

/// An implementation of one attempt beside the one under test, to see and forge attempts with.
struct Attempts(Aes256Hctr2);

impl Attempts {
    fn new() -> Self {
        let ids = [&[1][..], &DB.to_le_bytes(), &REL.to_le_bytes()].concat();
        Self(Aes256Hctr2::new(&derive(&data_key(), Purpose::PG_PAGE, &[&ids])))
    }

    fn tweak(attempt: u8, page: &Page) -> [u8; 16] {
        let mut tweak = [1, 0, attempt, 0, BLOCK as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        tweak[8..].copy_from_slice(&page[..8]);
        tweak
    }

    fn seal(&self, attempt: u8, plain: &Page) -> Page {
        let mut page = *plain;
        self.0.encrypt(&Self::tweak(attempt, plain), &mut page[10..]).unwrap();
        set_checksum(&mut page, BLOCK);
        page
    }

    /// A page whose first attempt has zeros where `pd_upper` is: one in 65,536.
    fn page_that_needs_a_second(&self) -> Page {
        (1..4_000_000)
            .map(|lsn| page(lsn, [100, 1024, 8192]))
            .find(|plain| self.seal(0, plain)[14..16] == [0, 0])
            .unwrap()
    }
}

#[test]
fn ciphertext_that_looks_like_an_empty_page_is_sealed_again() {
    let attempts = Attempts::new();
    let cipher = cipher(CipherId::Aes256Hctr2);
    assert_eq!(attempts.seal(0, &heap_page()), sealed(CipherId::Aes256Hctr2, Fork::Main, &heap_page()));

    let plain = attempts.page_that_needs_a_second();
    println!("LSN {} needs a second attempt", lsn(&plain));
    let page = sealed(CipherId::Aes256Hctr2, Fork::Main, &plain);
    assert_eq!(page, attempts.seal(1, &plain));
    assert_ne!(page[14..16], [0, 0]);
    let mut opened = page;
    cipher.open(Fork::Main, BLOCK, &mut opened).unwrap();
    assert_eq!(opened, without_checksum(&plain));

    // What sealing would not have produced is refused: the first attempt that was not good enough, and later
    // ones.
    for attempt in [0, 2, 3] {
        assert_not_authentic(&cipher, Fork::Main, BLOCK, &attempts.seal(attempt, &plain), "a wrong attempt");
    }
    // And the bits of a page of a second attempt are as well protected as others.
    for bit in (0..8 * PAGE_SIZE).step_by(61).filter(|bit| !is_checksum_bit(*bit)) {
        assert_not_authentic(&cipher, Fork::Main, BLOCK, &flip(&page, bit), &format!("bit {bit}"));
    }
}

#[test]
fn attempts_that_were_not_needed_are_refused() {
    let (attempts, cipher) = (Attempts::new(), cipher(CipherId::Aes256Hctr2));
    for number in 1..=255 {
        let forged = attempts.seal(number, &heap_page());
        assert_not_authentic(&cipher, Fork::Main, BLOCK, &forged, &format!("attempt {number}"));
    }
}
