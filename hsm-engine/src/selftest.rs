//! Known-answer tests of every primitive, once in each process, before anything is opened.
//!
//! A processor, compiler or build that computes wrong results would lose data or leak it; the HSM then stays shut.

use std::sync::atomic::{AtomicBool, Ordering};

use aes_gcm_siv::aead::AeadInOut as _;
use aes_gcm_siv::{Aes256GcmSiv, Nonce, Tag};
use aes_kw::{KeyInit as _, KwAes256};
use argon2::{Algorithm, Argon2, AssociatedData, ParamsBuilder, Version};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

/// A primitive computes something else than its standard says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("HSM self-test failed: {primitive} does not give the result of {standard}; the HSM stays shut")]
pub struct SelfTestError {
    /// The primitive.
    pub primitive: &'static str,
    /// Where the expected result is from.
    pub standard: &'static str,
}

/// Runs the tests until they have passed once in this process.
///
/// # Errors
/// The first primitive that fails.
pub fn run() -> Result<(), SelfTestError> {
    // No lock: a child that is forked meanwhile would wait for ever.
    static PASSED: AtomicBool = AtomicBool::new(false);
    if !PASSED.load(Ordering::Relaxed) {
        run_with(&VECTORS)?;
        PASSED.store(true, Ordering::Relaxed);
    }
    Ok(())
}

/// Expected results, in hex, so that a test can hand in wrong ones.
struct Vectors {
    sha256: &'static str,
    hmac: &'static str,
    hkdf: &'static str,
    aes_kw: &'static str,
    gcm_siv: &'static str,
    argon2id: &'static str,
}

const VECTORS: Vectors = Vectors {
    sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    hmac: "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    hkdf: "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    aes_kw: "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21",
    gcm_siv: "1de22967237a813291213f267e3b452f02d01ae33e4ec854",
    argon2id: "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659",
};

fn run_with(v: &Vectors) -> Result<(), SelfTestError> {
    check("SHA-256", "FIPS 180-4", sha256() == v.sha256)?;
    check("HMAC-SHA-256", "RFC 4231 section 4.3", hmac_sha256() == v.hmac)?;
    check("HKDF-SHA-256", "RFC 5869 appendix A.1", hkdf_sha256().as_deref() == Some(v.hkdf))?;
    check("AES-256 key wrap", "RFC 3394 section 4.6", aes_kw(v.aes_kw).is_some())?;
    check("AES-256-GCM-SIV", "RFC 8452 appendix C.2", gcm_siv(v.gcm_siv).is_some())?;
    check("Argon2id", "RFC 9106 section 5.3", argon2id().as_deref() == Some(v.argon2id))
}

fn check(primitive: &'static str, standard: &'static str, passed: bool) -> Result<(), SelfTestError> {
    if passed { Ok(()) } else { Err(SelfTestError { primitive, standard }) }
}

fn sha256() -> String {
    hex::encode(Sha256::digest(b"abc"))
}

fn hmac_sha256() -> String {
    let mac = Hmac::<Sha256>::new_from_slice(b"Jefe").map(|mut mac| {
        mac.update(b"what do ya want for nothing?");
        hex::encode(mac.finalize().into_bytes())
    });
    mac.unwrap_or_default()
}

fn hkdf_sha256() -> Option<String> {
    let salt: Vec<u8> = (0..=12).collect();
    let info: Vec<u8> = (0xf0..=0xf9).collect();
    let mut out = [0; 42];
    Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22]).expand(&info, &mut out).ok()?;
    Some(hex::encode(out))
}

/// Both directions, and a changed byte is refused.
fn aes_kw(want: &str) -> Option<()> {
    let key: [u8; 32] = std::array::from_fn(|i| i as u8);
    let data = hex::decode("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f").ok()?;
    let kw = KwAes256::new(&key.into());
    let (mut wrapped, mut back) = ([0; 40], [0; 32]);
    kw.wrap_key(&data, &mut wrapped).ok()?;
    kw.unwrap_key(&wrapped, &mut back).ok()?;
    let round_trip = hex::encode(wrapped) == want && back[..] == data[..];
    wrapped[39] ^= 1;
    (round_trip && kw.unwrap_key(&wrapped, &mut back).is_err()).then_some(())
}

/// Both directions, and a changed tag is refused.
fn gcm_siv(want: &str) -> Option<()> {
    let (mut key, mut nonce) = ([0; 32], [0; 12]);
    (key[0], nonce[0]) = (1, 3);
    let (cipher, nonce) = (Aes256GcmSiv::new(&key.into()), Nonce::from(nonce));
    let plain = [2, 0, 0, 0, 0, 0, 0, 0];
    let mut text = plain;
    let tag = cipher.encrypt_inout_detached(&nonce, &[1], text.as_mut_slice().into()).ok()?;
    let sealed = hex::encode(text) + &hex::encode(tag);
    let mut bad = text;
    cipher.decrypt_inout_detached(&nonce, &[1], text.as_mut_slice().into(), &tag).ok()?;
    let mut changed: [u8; 16] = tag.into();
    changed[15] ^= 1;
    let refused =
        cipher.decrypt_inout_detached(&nonce, &[1], bad.as_mut_slice().into(), &Tag::from(changed)).is_err();
    (sealed == want && text == plain && refused).then_some(())
}

fn argon2id() -> Option<String> {
    let params = ParamsBuilder::new()
        .m_cost(32)
        .t_cost(3)
        .p_cost(4)
        .data(AssociatedData::new(&[4; 12]).ok()?)
        .build()
        .ok()?;
    let argon2 = Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params).ok()?;
    let mut out = [0; 32];
    argon2.hash_password_into(&[1; 32], &[2; 16], &mut out).ok()?;
    Some(hex::encode(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_primitives_pass() {
        run().unwrap();
    }

    #[test]
    fn a_wrong_result_of_any_primitive_is_named() {
        let wrong = |f: fn(&mut Vectors)| {
            let mut v = Vectors { ..VECTORS };
            f(&mut v);
            run_with(&v).unwrap_err().primitive
        };
        assert_eq!(wrong(|v| v.sha256 = "00"), "SHA-256");
        assert_eq!(wrong(|v| v.hmac = "00"), "HMAC-SHA-256");
        assert_eq!(wrong(|v| v.hkdf = "00"), "HKDF-SHA-256");
        assert_eq!(wrong(|v| v.aes_kw = "00"), "AES-256 key wrap");
        assert_eq!(wrong(|v| v.gcm_siv = "00"), "AES-256-GCM-SIV");
        assert_eq!(wrong(|v| v.argon2id = "00"), "Argon2id");
    }
}
