//! The PostgreSQL page format: what is stored, what comes back, and which headers count as valid.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::{LSN, PAGE_CIPHERS, data_key, heap_page, map_page, page, set_lsn, unhex, without_checksum};
use page_cipher::CipherId;
use page_cipher::hctr2::Aes256Hctr2;
use page_cipher::pg::*;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

const FORKS: [Fork; 4] = [Fork::Main, Fork::Fsm, Fork::Vm, Fork::Init];

fn cipher(id: CipherId, db: u32, rel: u32) -> RelationCipher {
    RelationCipher::new(id, &data_key(), db, rel).unwrap()
}

/// A sealed page: cipher, database, relation, fork, block, first 32 bytes and SHA-256.
type Golden = (CipherId, u32, u32, Fork, u32, Page, &'static str, &'static str);

/// Expected values computed with an implementation of the format in another language (Python). They must
/// never change.
#[test]
fn sealed_bytes_are_pinned() {
    #[rustfmt::skip]
    let golden: [Golden; 4] = [
        (
            CipherId::Aes256Hctr2, 5, 16384, Fork::Main, 7, heap_page(),
            "0100000089674523fcca7b39ec9222b34a336d765e795967ff1c3d2a34b02a40",
            "4045569af932a24826acec83b08597501ae6f9c4e7b4c29db10ae28ddc906cae",
        ),
        (
            CipherId::Aes256Hctr2, 0, 1262, Fork::Vm, 0x0102_0304, map_page(),
            "0100000089674523fb8365616a1a6172eaa703f3faf6020c346b1229b38edbb8",
            "91159fa00075636d948246fb51a0d123937764a23c48ca1fe51a54c0c79e1e2f",
        ),
        (
            CipherId::Aes256Hctr2, 5, 16384, Fork::Fsm, 0, map_page(),
            "01000000896745238bf9706b02d86468d288b119ffb93c0cfe852feb82ca4690",
            "c429687c51729ac0da6b6141b7d0a768c700ffd344dceb1967bc7024538d2630",
        ),
        (
            CipherId::Aes256Xts, 5, 16384, Fork::Main, 7, heap_page(),
            "01000000896745235c0d6d5d0d1579191ab45b47ceb8069fe40d2f97ecd0e888",
            "54804f4daef3eec1c084df74e6a3b260b996b29bdc2594c64d77580896239404",
        ),
    ];
    for (id, db, rel, fork, block, plain, head, digest) in golden {
        let mut page = plain;
        cipher(id, db, rel).seal(fork, block, &mut page).unwrap();
        assert_eq!(hex::encode(&page[..32]), head, "{id} {fork:?}");
        assert_eq!(Sha256::digest(page)[..], unhex(digest), "{id} {fork:?}");
    }
}

#[test]
fn lsn_stays_in_clear_and_checksum_is_right_for_the_stored_bytes() {
    for id in PAGE_CIPHERS {
        let mut page = heap_page();
        cipher(id, 5, 16384).seal(Fork::Main, 7, &mut page).unwrap();
        assert_eq!(lsn(&page), LSN);
        assert_eq!(page[8..10], checksum(&page, 7).to_le_bytes());
        let unchanged = page.iter().zip(heap_page()).skip(10).filter(|(now, before)| *now == before).count();
        assert!(unchanged < 80, "{unchanged} bytes of the body did not change");
    }
}

#[test]
fn zero_page_stays_zero() {
    for id in PAGE_CIPHERS {
        for fork in FORKS {
            let mut page = [0; PAGE_SIZE];
            cipher(id, 5, 16384).seal(fork, 7, &mut page).unwrap();
            assert!(is_zero(&page));
            cipher(id, 5, 16384).open(fork, 7, &mut page).unwrap();
            assert!(is_zero(&page));
        }
    }
}

#[test]
fn only_zeros_are_a_zero_page() {
    assert!(is_zero(&[0; PAGE_SIZE]));
    for byte in 0..PAGE_SIZE {
        let mut page = [0; PAGE_SIZE];
        page[byte] = 0x10;
        assert!(!is_zero(&page), "byte {byte}");
    }
}

#[test]
fn bare_init_page_is_recognised() {
    let mut bare = [0; PAGE_SIZE];
    bare[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
    assert!(is_bare_init(&bare));
    bare[8..10].copy_from_slice(&[0x12, 0x34]);
    assert!(is_bare_init(&bare), "pd_checksum does not count");
    assert!(!is_bare_init(&[0; PAGE_SIZE]));
    for byte in (0..8).chain(10..PAGE_SIZE) {
        let mut page = bare;
        page[byte] ^= 1;
        assert!(!is_bare_init(&page), "byte {byte} was changed");
    }
}

#[test]
fn gcm_siv_cannot_encrypt_pages() {
    let error = RelationCipher::new(CipherId::Aes256GcmSiv, &data_key(), 5, 16384).unwrap_err();
    assert_eq!(error, UnsupportedCipher(CipherId::Aes256GcmSiv));
    assert!(error.to_string().contains("aes-256-hctr2"));
}

#[test]
fn page_without_valid_header_is_not_sealed_and_left_alone() {
    let invalid = page(LSN, [1024, 100, 8192]);
    for id in PAGE_CIPHERS {
        let mut page = invalid;
        assert_eq!(cipher(id, 5, 16384).seal(Fork::Main, 7, &mut page), Err(SealError::InvalidHeader));
        assert_eq!(page, invalid);
        let mut page = heap_page();
        assert_eq!(cipher(id, 5, 16384).seal(Fork::Vm, 7, &mut page), Err(SealError::InvalidHeader));
        assert_eq!(page, heap_page());
    }
}

/// The server copies the init fork's bytes over the main fork's after a crash.
#[test]
fn init_fork_opens_as_main_fork_and_back() {
    for id in PAGE_CIPHERS {
        for (from, to) in [(Fork::Init, Fork::Main), (Fork::Main, Fork::Init)] {
            let mut page = heap_page();
            cipher(id, 5, 16384).seal(from, 7, &mut page).unwrap();
            cipher(id, 5, 16384).open(to, 7, &mut page).unwrap();
            assert_eq!(page, without_checksum(&heap_page()));
        }
    }
}

#[test]
fn debug_shows_no_key() {
    let text = format!("{:?}", cipher(CipherId::Aes256Hctr2, 5, 16384));
    assert!(text.ends_with("(LockedBox(redacted)) }) }") && text.len() < 90, "{text}");
}

fn any_valid_header() -> impl Strategy<Value = [u16; 4]> {
    (0..=1024_u16, 0..8_u16, any::<[u16; 2]>()).prop_map(|(special, flags, [a, b])| {
        let special = special * 8;
        let (a, b) = (a % (special + 1), b % (special + 1));
        [flags, a.min(b), a.max(b), special]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn opening_gives_back_what_was_sealed(
        key in any::<[u8; 32]>(),
        (db, rel, block, lsn) in any::<(u32, u32, u32, u64)>(),
        [flags, lower, upper, special] in any_valid_header(),
        seed in any::<u64>(),
        (xts, init) in any::<(bool, bool)>(),
    ) {
        let id = PAGE_CIPHERS[usize::from(xts)];
        let fork = if init { Fork::Init } else { Fork::Main };
        let mut plain = [0; PAGE_SIZE];
        Aes256Hctr2::new(&data_key()).encrypt(&seed.to_le_bytes(), &mut plain).unwrap();
        plain[10..20].copy_from_slice(&page(lsn, [lower, upper, special])[10..20]);
        plain[10..12].copy_from_slice(&flags.to_le_bytes());
        set_lsn(&mut plain, lsn);
        prop_assert!(header_is_valid(&plain, fork));

        let cipher = RelationCipher::new(id, &common::secret(&key), db, rel).unwrap();
        let mut page = plain;
        cipher.seal(fork, block, &mut page).unwrap();
        prop_assert_ne!(page, plain);
        cipher.open(fork, block, &mut page).unwrap();
        prop_assert_eq!(page, without_checksum(&plain));
    }

    #[test]
    fn opening_gives_back_maps(block: u32, lsn: u64, vm: bool, xts: bool) {
        let fork = if vm { Fork::Vm } else { Fork::Fsm };
        let plain = page(lsn, [24, 8192, 8192]);
        let cipher = cipher(PAGE_CIPHERS[usize::from(xts)], 5, 16384);
        let mut page = plain;
        cipher.seal(fork, block, &mut page).unwrap();
        cipher.open(fork, block, &mut page).unwrap();
        prop_assert_eq!(page, without_checksum(&plain));
    }
}

/// Checks every value of one field of an otherwise valid header; returns how many are valid.
fn valid_values(offset: usize, fork: Fork, expected: impl Fn(u16) -> bool) -> u32 {
    let (mut valid, mut page) = (0, map_page());
    for value in 0..=u16::MAX {
        page[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        let is_valid = header_is_valid(&page, fork);
        assert_eq!(is_valid, expected(value), "offset {offset} value {value} {fork:?}");
        valid += u32::from(is_valid);
    }
    valid
}

/// The documentation says that random bytes pass as a header with a probability of 2^-43.6, and 2^-77 in a
/// map. Counts the valid headers among all 2^80 values of the five fields: exhaustively for each field alone,
/// and for the three that depend on each other by a formula that is compared with the code where counting is
/// feasible.
#[test]
fn probability_that_random_bytes_have_a_valid_header() {
    let flags = valid_values(10, Fork::Main, |flags| flags < 8);
    let versions = valid_values(18, Fork::Main, |version| version == 0x2004);
    // With lower 24 and upper 8192, only one value of special remains; with both 0, every allowed one.
    valid_values(16, Fork::Main, |special| special == 8192);
    let mut specials = Vec::new();
    for special in 0..=u16::MAX {
        let page = page(LSN, [0, 0, special]);
        assert_eq!(header_is_valid(&page, Fork::Main), special <= 8192 && special % 8 == 0);
        if header_is_valid(&page, Fork::Main) {
            specials.push(special);
        }
    }
    assert_eq!((flags, versions, specials.len()), (8, 1, 1025));

    // lower <= upper <= special: (special + 1)(special + 2) / 2 pairs.
    let pairs = |special: u16| (u64::from(special) + 1) * (u64::from(special) + 2) / 2;
    for special in [0, 8, 16, 200] {
        let mut counted = 0;
        for lower in 0..=special + 20 {
            for upper in 0..=special + 20 {
                counted += u64::from(header_is_valid(&page(LSN, [lower, upper, special]), Fork::Main));
            }
        }
        assert_eq!(counted, pairs(special));
    }
    for [lower, upper] in [[0, 8192], [8192, 8192], [0, 0]] {
        assert!(header_is_valid(&page(LSN, [lower, upper, 8192]), Fork::Main));
    }
    for [lower, upper] in [[8193, 8192], [0, 8193], [1, 0], [8192, 8191], [u16::MAX, u16::MAX]] {
        assert!(!header_is_valid(&page(LSN, [lower, upper, 8192]), Fork::Main));
    }

    let valid = u64::from(flags) * u64::from(versions) * specials.into_iter().map(pairs).sum::<u64>();
    let bits = 80.0 - (valid as f64).log2();
    println!("{valid} of 2^80 headers are valid: random bytes pass with probability 2^-{bits:.2}");
    assert_eq!(format!("{bits:.1}"), "43.6");

    for fork in [Fork::Fsm, Fork::Vm] {
        let in_maps = valid_values(10, fork, |flags| flags < 8)
            * valid_values(12, fork, |lower| lower == 24)
            * valid_values(14, fork, |upper| upper == 8192)
            * valid_values(16, fork, |special| special == 8192)
            * valid_values(18, fork, |version| version == 0x2004);
        assert_eq!(80.0 - f64::from(in_maps).log2(), 77.0);
    }
}
