//! Known-answer tests of the mechanisms of objects, once in each process, before a [`Token`](super::Token) opens. They come
//! on top of those of the store.
//!
//! The RSA key of `selftest_data` is public and protects nothing; key, signature and ciphertext were made with OpenSSL.

use std::sync::atomic::{AtomicBool, Ordering};

use hsm_primitives::kdf::{Chain, Part, Prf, sp800_108};
use hsm_primitives::{Aes, Cmac, CtrStream, Curve, Gcm, Hash, Mac, PrivateKey, PublicKey, RsaPadding};

use crate::selftest::SelfTestError;

/// Runs the tests until they have passed once in this process.
///
/// # Errors
/// The first mechanism that computes something else than its standard says.
pub fn run() -> Result<(), SelfTestError> {
    // No lock: a child that is forked meanwhile would wait for ever.
    static PASSED: AtomicBool = AtomicBool::new(false);
    if !PASSED.load(Ordering::Relaxed) {
        run_with(&VECTORS)?;
        PASSED.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Expected results, so that a test can hand in wrong ones.
#[derive(Clone, Copy)]
struct Vectors {
    cbc: &'static str,
    ctr: &'static str,
    cmac: &'static str,
    gcm: &'static str,
    kwp: &'static str,
    sha512: &'static str,
    sha3: &'static str,
    hmac: &'static str,
    kbkdf: &'static str,
    ecdsa: &'static str,
    ecdh: &'static str,
    eddsa: &'static str,
    rsa_signature: &'static [u8],
    rsa_oaep: &'static [u8],
}

const VECTORS: Vectors = Vectors {
    cbc: "f58c4c04d6e5f1ba779eabfb5f7bfbd6",
    ctr: "601ec313775789a5b7a7f504bbf3d228",
    cmac: "028962f61b7bf89efc6b551f4667d983",
    gcm: "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
    kwp: "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a",
    sha512: "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    sha3: "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532",
    hmac: "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737",
    kbkdf: "325aa10fc5ede94689bbd7b1c3141d168f12d54c65098bb0d50ae43bf7dbce499a98e7e420e9c673",
    ecdsa: "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8",
    ecdh: "d6840f6b42f6edafd13116e0e12565202fef8e9ece7dce03812464d04b9442de",
    eddsa: "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    rsa_signature: include_bytes!("selftest_data/rsa-signature.bin"),
    rsa_oaep: include_bytes!("selftest_data/rsa-oaep.bin"),
};

const MESSAGE: &[u8] = b"tde self-test";
const RSA_KEY: &[u8] = include_bytes!("selftest_data/rsa.der");
/// The key and first block of SP 800-38A.
const AES_KEY: &str = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4";
const BLOCK: &str = "6bc1bee22e409f96e93d7e117393172a";

fn run_with(v: &Vectors) -> Result<(), SelfTestError> {
    check("AES-CBC", "SP 800-38A F.2.5", cbc(v.cbc))?;
    check("AES-CTR", "SP 800-38A F.5.5", ctr(v.ctr))?;
    check("AES-CMAC", "SP 800-38B D.3", cmac(v.cmac))?;
    check("AES-GCM", "the GCM specification, test case 14", gcm(v.gcm))?;
    check("AES-KWP", "RFC 5649 section 6", kwp(v.kwp))?;
    check("SHA-512", "FIPS 180-4", same(&Hash::Sha512.digest(b"abc"), v.sha512))?;
    check("SHA3-256", "FIPS 202", same(&Hash::Sha3_256.digest(b"abc"), v.sha3))?;
    check("HMAC-SHA-512", "RFC 4231 section 4.3", hmac(v.hmac))?;
    check("SP 800-108", "OpenSSL's KBKDF", kbkdf(v.kbkdf))?;
    check("ECDSA", "RFC 6979 appendix A.2.5", ecdsa(v.ecdsa))?;
    check("ECDH", "RFC 5903 section 8.1", ecdh(v.ecdh))?;
    check("Ed25519", "RFC 8032 section 7.1", eddsa(v.eddsa))?;
    check("RSA signatures", "OpenSSL", rsa_sign(v.rsa_signature))?;
    check("RSA-OAEP", "OpenSSL", rsa_oaep(v.rsa_oaep))
}

fn check(primitive: &'static str, standard: &'static str, passed: Option<()>) -> Result<(), SelfTestError> {
    passed.ok_or(SelfTestError { primitive, standard })
}

fn same(found: &[u8], want: &str) -> Option<()> {
    (hex::encode(found) == want).then_some(())
}

fn aes() -> Option<Aes> {
    Aes::new(&hex::decode(AES_KEY).ok()?).ok()
}

fn cbc(want: &str) -> Option<()> {
    let (aes, mut data) = (aes()?, hex::decode(BLOCK).ok()?);
    let iv: [u8; 16] = std::array::from_fn(|i| i as u8);
    aes.cbc_encrypt(&mut iv.clone(), &mut data).ok()?;
    same(&data, want)?;
    aes.cbc_decrypt(&mut iv.clone(), &mut data).ok()?;
    same(&data, BLOCK)
}

fn ctr(want: &str) -> Option<()> {
    let mut data = hex::decode(BLOCK).ok()?;
    let counter = std::array::from_fn(|i| 0xF0 + i as u8);
    CtrStream::new(counter, 128).ok()?.apply(&aes()?, &mut data).ok()?;
    same(&data, want)
}

fn cmac(want: &str) -> Option<()> {
    same(&Cmac::new().finish(&aes()?), want)
}

/// Both directions, and a changed tag is refused.
fn gcm(want: &str) -> Option<()> {
    let (key, nonce) = (Gcm::new(&[0; 32]).ok()?, [0; 12]);
    let mut data = [0; 16];
    let mut tag = key.seal(&nonce, &[], &mut data).ok()?;
    same(&[data, tag].concat(), want)?;
    let mut bad = data;
    key.open(&nonce, &[], &mut data, &tag).ok()?;
    tag[15] ^= 1;
    (data == [0; 16] && key.open(&nonce, &[], &mut bad, &tag).is_err()).then_some(())
}

fn kwp(want: &str) -> Option<()> {
    let aes = Aes::new(&hex::decode("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8").ok()?).ok()?;
    let key = hex::decode("c37b7e6492584340bed12207808941155068f738").ok()?;
    let mut wrapped = aes.kwp_wrap(&key).ok()?;
    same(&wrapped, want)?;
    (aes.kwp_unwrap(&wrapped).ok()?.as_slice() == key).then_some(())?;
    wrapped[0] ^= 1;
    aes.kwp_unwrap(&wrapped).is_err().then_some(())
}

fn hmac(want: &str) -> Option<()> {
    let mut mac = Mac::new(Hash::Sha512, b"Jefe");
    mac.update(b"what do ya want for nothing?");
    same(&mac.finish(), want)
}

fn kbkdf(want: &str) -> Option<()> {
    let key = [0x0b; 16];
    let parts = [
        Part::Counter { bytes: 4, little_endian: false },
        Part::Bytes(b"label\0context".to_vec()),
        Part::Length { bytes: 4, little_endian: false },
    ];
    let out = sp800_108(&Prf::Hmac(Hash::Sha256, &key), &Chain::Counter, &parts, 40).ok()?;
    same(out.as_slice(), want)
}

/// A signature of the standard verifies, one of our own too, and a changed one does not.
fn ecdsa(signature: &str) -> Option<()> {
    let scalar = hex::decode("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721").ok()?;
    let key = PrivateKey::from_scalar(Curve::P256, &scalar).ok()?;
    let (public, digest) = (key.public().ok()?, Hash::Sha256.digest(b"sample"));
    public.ecdsa_verify(&digest, &hex::decode(signature).ok()?).ok()?;
    let mut own = key.ecdsa_sign(&digest).ok()?;
    public.ecdsa_verify(&digest, &own).ok()?;
    own[40] ^= 1;
    public.ecdsa_verify(&digest, &own).is_err().then_some(())
}

fn ecdh(want: &str) -> Option<()> {
    let scalar = hex::decode("c88f01f510d9ac3f70a292daa2316de544e9aab8afe84049c62a9c57862d1433").ok()?;
    let point = hex::decode(
        "04d12dfb5289c8d4f81208b70270398c342296970a0bccb74c736fc7554494bf63\
         56fbf3ca366cc23e8157854c13c58d6aac23f046ada30f8353e74f33039872ab",
    )
    .ok()?;
    let key = PrivateKey::from_scalar(Curve::P256, &scalar).ok()?;
    same(key.ecdh(&point).ok()?.as_slice(), want)
}

fn eddsa(want: &str) -> Option<()> {
    let seed = hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb").ok()?;
    let key = PrivateKey::from_scalar(Curve::Ed25519, &seed).ok()?;
    let signature = key.eddsa_sign(&[0x72]).ok()?;
    same(&signature, want)?;
    let public: PublicKey = key.public().ok()?;
    public.eddsa_verify(&[0x72], &signature).ok()?;
    public.eddsa_verify(&[0x73], &signature).is_err().then_some(())
}

fn rsa_sign(want: &[u8]) -> Option<()> {
    let key = PrivateKey::from_pkcs8(RSA_KEY).ok()?;
    let (padding, digest) = (RsaPadding::Pkcs1Hash(Hash::Sha256), Hash::Sha256.digest(MESSAGE));
    (key.rsa_sign(&padding, &digest).ok()? == want).then_some(())?;
    let public = key.public().ok()?;
    public.rsa_verify(&padding, &digest, want).ok()?;
    public.rsa_verify(&padding, &Hash::Sha256.digest(b"x"), want).is_err().then_some(())
}

fn rsa_oaep(sealed: &[u8]) -> Option<()> {
    let key = PrivateKey::from_pkcs8(RSA_KEY).ok()?;
    let padding = RsaPadding::Oaep { hash: Hash::Sha256, mgf: Hash::Sha256, label: b"" };
    (key.rsa_decrypt(&padding, sealed).ok()?.as_slice() == MESSAGE).then_some(())?;
    let own = key.public().ok()?.rsa_encrypt(&padding, MESSAGE).ok()?;
    (key.rsa_decrypt(&padding, &own).ok()?.as_slice() == MESSAGE).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mechanisms_pass() {
        run().unwrap();
    }

    #[test]
    fn a_wrong_result_of_any_mechanism_is_named() {
        let wrong = |f: fn(&mut Vectors)| {
            let mut v = VECTORS;
            f(&mut v);
            run_with(&v).unwrap_err().primitive
        };
        assert_eq!(wrong(|v| v.cbc = "00"), "AES-CBC");
        assert_eq!(wrong(|v| v.ctr = "00"), "AES-CTR");
        assert_eq!(wrong(|v| v.cmac = "00"), "AES-CMAC");
        assert_eq!(wrong(|v| v.gcm = "00"), "AES-GCM");
        assert_eq!(wrong(|v| v.kwp = "00"), "AES-KWP");
        assert_eq!(wrong(|v| v.sha512 = "00"), "SHA-512");
        assert_eq!(wrong(|v| v.sha3 = "00"), "SHA3-256");
        assert_eq!(wrong(|v| v.hmac = "00"), "HMAC-SHA-512");
        assert_eq!(wrong(|v| v.kbkdf = "00"), "SP 800-108");
        assert_eq!(wrong(|v| v.ecdsa = "00"), "ECDSA");
        assert_eq!(wrong(|v| v.ecdh = "00"), "ECDH");
        assert_eq!(wrong(|v| v.eddsa = "00"), "Ed25519");
        assert_eq!(wrong(|v| v.rsa_signature = b"00"), "RSA signatures");
        assert_eq!(wrong(|v| v.rsa_oaep = b"00"), "RSA-OAEP");
    }
}
