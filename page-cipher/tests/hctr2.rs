//! AES-256-HCTR2 against published vectors and an independent implementation.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::google_hctr2::VECTORS;
use common::{Vectors, unhex};
use hctr2_rs::hctr2::Hctr2_256;
use page_cipher::hctr2::Aes256Hctr2;
use proptest::prelude::*;
use secret_mem::SecretBytes;

fn check(key: &[u8], tweak: &[u8], plaintext: &[u8], ciphertext: &[u8], name: &str) {
    for kernel in common::kernels() {
        let cipher = Aes256Hctr2::with_kernel(kernel, &common::secret(key)).unwrap();
        let mut data = plaintext.to_vec();
        cipher.encrypt(tweak, &mut data).unwrap();
        assert_eq!(hex::encode(&data), hex::encode(ciphertext), "{kernel}: encrypting {name}");
        cipher.decrypt(tweak, &mut data).unwrap();
        assert_eq!(data, plaintext, "{kernel}: decrypting {name}");
    }
}

#[test]
fn published_vectors() {
    for [key, tweak, plaintext, ciphertext] in VECTORS {
        check(&unhex(key), &unhex(tweak), &unhex(plaintext), &unhex(ciphertext), plaintext);
    }
}

/// All 350 vectors of google/hctr2, if they are there.
#[test]
fn google_vectors() {
    let Some(vectors) = Vectors::load("HCTR2_AES256.json") else { return };
    let vectors = vectors.array();
    assert!(vectors.len() >= 350, "only {} vectors", vectors.len());
    for vector in vectors {
        let hex = |value: &serde_json::Value| unhex(value.as_str().unwrap());
        let input = &vector["input"];
        check(
            &hex(&input["key_hex"]),
            &hex(&input["tweak_hex"]),
            &hex(&vector["plaintext_hex"]),
            &hex(&vector["ciphertext_hex"]),
            vector["description"].as_str().unwrap(),
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn agrees_with_an_independent_implementation(
        key: [u8; 32],
        tweak in proptest::collection::vec(any::<u8>(), 0..100),
        plaintext in proptest::collection::vec(any::<u8>(), 16..3000),
    ) {
        let mut expected = vec![0; plaintext.len()];
        Hctr2_256::new(&key).encrypt(&plaintext, &tweak, &mut expected).unwrap();
        check(&key, &tweak, &plaintext, &expected, "random data");
    }
}

/// Every length around the block and batch sizes, and that of a page's body.
#[test]
fn every_length_agrees_with_an_independent_implementation() {
    let key: [u8; 32] = std::array::from_fn(|i| i as u8);
    let oracle = Hctr2_256::new(&key);
    for len in (16..600).chain(1000..1100).chain([2047, 2048, 2064, 4096, 8182, 8192, 65536]) {
        let plaintext: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
        let mut expected = vec![0; len];
        oracle.encrypt(&plaintext, b"a tweak of 16 b.", &mut expected).unwrap();
        check(&key, b"a tweak of 16 b.", &plaintext, &expected, &format!("{len} bytes"));
    }
}

#[test]
fn less_than_a_block_is_refused_and_left_alone() {
    let cipher = Aes256Hctr2::new(&SecretBytes::zeroed());
    for len in 0..16 {
        let mut data = vec![7; len];
        let error = cipher.encrypt(&[], &mut data).unwrap_err();
        assert_eq!((error.len, error.min), (len as u64, 16));
        assert_eq!(cipher.decrypt(&[], &mut data), Err(error));
        assert_eq!(data, vec![7; len]);
    }
}
