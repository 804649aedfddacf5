//! Vectors typed in from standards, and what must be undone by its inverse.
#![allow(missing_docs, reason = "tests")]
#![allow(clippy::unwrap_used, reason = "in tests a panic is the report")]

use hsm_primitives::kdf::{self, Chain, Part, Prf};
use hsm_primitives::{Aes, CtrStream, Curve, Error, Hash, Mac, PrivateKey, RsaPadding, RsaPrivateNumbers};

fn hex(text: &str) -> Vec<u8> {
    hex::decode(text.replace([' ', '\n'], "")).unwrap()
}

/// SP 800-38A, appendices F.1 and F.5; the plaintext of all of them.
const PLAIN: &str = "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51
                     30c81c46a35ce411e5fbc1191a0a52ef f69f2445df4f9b17ad2b417be66c3710";

#[test]
fn ecb_sp_800_38a() {
    let cases = [
        ("2b7e151628aed2a6abf7158809cf4f3c", "3ad77bb40d7a3660a89ecaf32466ef97"),
        ("8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b", "bd334f1d6e45f25ff712a214571fa5cc"),
        (
            "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
            "f3eed1bdb5d2a03c064b5a7e3db181f8",
        ),
    ];
    for (key, first) in cases {
        let aes = Aes::new(&hex(key)).unwrap();
        let mut data = hex(PLAIN);
        aes.ecb_encrypt(&mut data).unwrap();
        assert_eq!(data[..16], hex(first));
        aes.ecb_decrypt(&mut data).unwrap();
        assert_eq!(data, hex(PLAIN));
        assert_eq!(aes.ecb_encrypt(&mut data[..15]), Err(Error::BadLength));
    }
    assert_eq!(Aes::new(&[0; 15]).unwrap_err(), Error::BadKey);
    assert_eq!(Aes::new(&[0; 33]).unwrap_err(), Error::BadKey);
}

#[test]
fn ctr_sp_800_38a() {
    let aes = Aes::new(&hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")).unwrap();
    let counter = hex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff").try_into().unwrap();
    let want = "601ec313775789a5b7a7f504bbf3d228 f443e3ca4d62b59aca84e990cacaf5c5
                2b0930daa23de94ce87017ba2d84988d dfc9c58db67aada613c2dd08457941a6";
    for part in [1, 5, 16, 17, 64] {
        let (mut data, mut stream) = (hex(PLAIN), CtrStream::new(counter, 128).unwrap());
        data.chunks_mut(part).for_each(|chunk| stream.apply(&aes, chunk).unwrap());
        assert_eq!(data, hex(want), "in parts of {part}");
    }
}

#[test]
fn a_counter_never_comes_round() {
    let aes = Aes::new(&[7; 32]).unwrap();
    let mut stream = CtrStream::new([0xFF; 16], 2).unwrap();
    let mut data = [0; 17];
    assert_eq!(stream.apply(&aes, &mut data), Err(Error::BadLength));
    assert_eq!(data, [0; 17]);
    stream.apply(&aes, &mut data[..16]).unwrap();
    assert_eq!(stream.apply(&aes, &mut data[16..]), Err(Error::BadLength));
    // The bits above the counter stay as they are.
    let mut long = CtrStream::new([0; 16], 8).unwrap();
    long.apply(&aes, &mut [0; 4096]).unwrap();
    assert_eq!(long.apply(&aes, &mut [0]), Err(Error::BadLength));
    assert!(CtrStream::new([0; 16], 0).is_err() && CtrStream::new([0; 16], 129).is_err());
}

#[test]
fn hashes_fips_180_and_202() {
    let cases = [
        (Hash::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (Hash::Sha224, "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
        (Hash::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            Hash::Sha384,
            "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
        ),
        (
            Hash::Sha512,
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        ),
        (Hash::Sha3_224, "e642824c3f8cf24ad09234ee7d3c766fc9a3a5168d0c94ad73b46fdf"),
        (Hash::Sha3_256, "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
        (
            Hash::Sha3_384,
            "ec01498288516fc926459f58e2c6ad8df9b473cb0fc08c2596da7cf0e49be4b298d88cea927ac7f539f1edf228376d25",
        ),
        (
            Hash::Sha3_512,
            "b751850b1a57168a5693cd924b6b096e08f621827444f70d884f5d0240d2712e10e116e9192af3c91a7ec57647e3934057340b4cf408d5a56592f8274eec53f0",
        ),
    ];
    for (hash, want) in cases {
        assert_eq!(hex::encode(hash.digest(b"abc")), want, "{hash}");
        assert_eq!(hash.len() * 2, want.len());
    }
}

/// RFC 8032 section 7.1, tests 1 to 3.
#[test]
fn ed25519_rfc_8032() {
    let cases = [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ];
    for (seed, point, message, signature) in cases {
        let key = PrivateKey::from_scalar(Curve::Ed25519, &hex(seed)).unwrap();
        assert_eq!(key.public().unwrap().point().unwrap(), hex(point));
        assert_eq!(key.eddsa_sign(&hex(message)).unwrap(), hex(signature));
        assert_eq!(key.secret_numbers().unwrap()[0].as_slice(), hex(seed));
    }
}

/// RFC 6979 appendix A.2.5: the public key of the private one, and a signature that verifies under it.
#[test]
fn p256_rfc_6979() {
    let key = PrivateKey::from_scalar(
        Curve::P256,
        &hex("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721"),
    )
    .unwrap();
    let public = key.public().unwrap();
    let point = "04 60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6
                 7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299";
    assert_eq!(public.point().unwrap(), hex(point));
    let signature = "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716
                     F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8";
    public.ecdsa_verify(&Hash::Sha256.digest(b"sample"), &hex(signature)).unwrap();
}

/// RFC 5869 appendix A.1; SP 800-108 against the same construction in HKDF-like form is no vector, so each mode is also
/// computed here by hand from HMAC.
#[test]
fn sp_800_108_is_what_the_standard_says() {
    let key = [0x0b; 32];
    let prf = Prf::Hmac(Hash::Sha256, &key);
    let mac = |parts: &[&[u8]]| {
        let mut mac = Mac::new(Hash::Sha256, &key);
        parts.iter().for_each(|p| mac.update(p));
        mac.finish()
    };
    let counter = Part::Counter { bytes: 4, little_endian: false };
    let length = Part::Length { bytes: 4, little_endian: false };
    let fixed = Part::Bytes(b"label\0context".to_vec());
    let bits = 320_u32.to_be_bytes();
    let one = 1_u32.to_be_bytes();
    let two = 2_u32.to_be_bytes();
    let f: &[u8] = b"label\0context";

    let got =
        kdf::sp800_108(&prf, &Chain::Counter, &[counter.clone(), fixed.clone(), length.clone()], 40).unwrap();
    let want = [mac(&[&one, f, &bits]), mac(&[&two, f, &bits])].concat();
    assert_eq!(got.as_slice(), &want[..40]);

    let iv = vec![9; 32];
    let parts = [Part::Chained, counter.clone(), fixed.clone(), length.clone()];
    let got = kdf::sp800_108(&prf, &Chain::Feedback(iv.clone()), &parts, 40).unwrap();
    let first = mac(&[&iv, &one, f, &bits]);
    let want = [first.clone(), mac(&[&first, &two, f, &bits])].concat();
    assert_eq!(got.as_slice(), &want[..40]);

    let got = kdf::sp800_108(&prf, &Chain::DoublePipeline, &parts, 40).unwrap();
    let a1 = mac(&[f, &bits]);
    let a2 = mac(&[&a1]);
    let want = [mac(&[&a1, &one, f, &bits]), mac(&[&a2, &two, f, &bits])].concat();
    assert_eq!(got.as_slice(), &want[..40]);

    let no_counter = kdf::sp800_108(&prf, &Chain::Counter, &[fixed], 40);
    assert_eq!(no_counter.unwrap_err(), Error::BadParameters);
    let byte = Part::Counter { bytes: 1, little_endian: false };
    assert_eq!(kdf::sp800_108(&prf, &Chain::Counter, &[byte], 256 * 32).unwrap_err(), Error::BadLength);
}

/// Values of OpenSSL 3.0 (`openssl kdf KBKDF` and `X963KDF`).
#[test]
fn kdfs_agree_with_openssl() {
    let parts = |chained: bool| {
        let mut parts = vec![
            Part::Counter { bytes: 4, little_endian: false },
            Part::Bytes(b"label\0context".to_vec()),
            Part::Length { bytes: 4, little_endian: false },
        ];
        if chained {
            parts.insert(0, Part::Chained);
        }
        parts
    };
    let key = [0x0b; 16];
    let prf = Prf::Hmac(Hash::Sha256, &key);
    let got = kdf::sp800_108(&prf, &Chain::Counter, &parts(false), 40).unwrap();
    let want = "325aa10fc5ede94689bbd7b1c3141d168f12d54c65098bb0d50ae43bf7dbce499a98e7e420e9c673";
    assert_eq!(hex::encode(got.as_slice()), want);
    let got = kdf::sp800_108(&prf, &Chain::Feedback((0..32).collect()), &parts(true), 40).unwrap();
    let want = "7135f00bafac1ea3d64128cb4698577302e26f8aaf489fc0d7ba3f837609714231 82f3c9137db003";
    assert_eq!(got.as_slice(), hex(want));
    let aes = Aes::new(&hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")).unwrap();
    let got = kdf::sp800_108(&Prf::Cmac(&aes), &Chain::Counter, &parts(false), 32).unwrap();
    assert_eq!(got.as_slice(), hex("f6516280c6be9783bf88312962fa9928d1e9664ebc9becbfa84cc8bc33d48f9d"));
    let got = kdf::x963(Hash::Sha256, &[0x0b; 4], b"context", 40).unwrap();
    let want = "f1a0c6941195070bd647db8289a3df46581805d1d53465f18cdad374c85ff9962d1575bf902d7261";
    assert_eq!(got.as_slice(), hex(want));
}

#[test]
fn every_kind_of_key_survives_its_encoding_and_signs_for_its_public_part() {
    for curve in [Curve::P256, Curve::P384, Curve::P521, Curve::Ed25519] {
        let key = PrivateKey::generate_ec(curve).unwrap();
        let again = PrivateKey::from_pkcs8(key.to_pkcs8().unwrap().as_slice()).unwrap();
        assert_eq!(again.curve(), Some(curve));
        let scalar = key.secret_numbers().unwrap().remove(0);
        assert_eq!(scalar.len(), curve.len());
        let third = PrivateKey::from_scalar(curve, scalar.as_slice()).unwrap();
        let public = key.public().unwrap();
        assert_eq!(third.public().unwrap().point().unwrap(), public.point().unwrap());
        let digest = Hash::Sha256.digest(b"x");
        if curve == Curve::Ed25519 {
            let signature = again.eddsa_sign(b"message").unwrap();
            public.eddsa_verify(b"message", &signature).unwrap();
            assert_eq!(public.eddsa_verify(b"messagf", &signature), Err(Error::Mismatch));
            assert!(matches!(key.ecdh(&public.point().unwrap()), Err(Error::BadParameters)));
        } else {
            let signature = again.ecdsa_sign(&digest).unwrap();
            public.ecdsa_verify(&digest, &signature).unwrap();
            assert_eq!(public.ecdsa_verify(&digest[1..], &signature), Err(Error::Mismatch));
            let mut off_curve = public.point().unwrap();
            off_curve[5] ^= 1;
            assert!(matches!(key.ecdh(&off_curve), Err(Error::BadKey)));
        }
        assert!(matches!(key.rsa_sign(&RsaPadding::Pkcs1, b"x"), Err(Error::BadParameters)));
    }
}

#[test]
fn rsa_by_numbers_and_every_padding() {
    let key = PrivateKey::generate_rsa(2048, &[1, 0, 1]).unwrap();
    let public = key.public().unwrap();
    let (n, e) = public.rsa_numbers().unwrap();
    let s = key.secret_numbers().unwrap();
    let crt = [1, 2, 3, 4, 5].map(|i| s[i].as_slice());
    let numbers = RsaPrivateNumbers { n: &n, e: &e, d: s[0].as_slice(), crt: Some(crt) };
    let again = PrivateKey::from_rsa(&numbers).unwrap();
    let plain = PrivateKey::from_rsa(&RsaPrivateNumbers { crt: None, ..numbers }).unwrap();
    let mut wrong = s[0].as_slice().to_vec();
    wrong[9] ^= 1;
    assert!(PrivateKey::from_rsa(&RsaPrivateNumbers { d: &wrong, ..numbers }).is_err());
    let digest = Hash::Sha384.digest(b"m");
    let (hash, mgf) = (Hash::Sha384, Hash::Sha256);
    for key in [&key, &again, &plain] {
        for padding in
            [RsaPadding::Pkcs1Hash(hash), RsaPadding::Pss { hash, mgf, salt_len: 7 }, RsaPadding::Pkcs1]
        {
            let signature = key.rsa_sign(&padding, &digest).unwrap();
            public.rsa_verify(&padding, &digest, &signature).unwrap();
            assert_eq!(public.rsa_verify(&padding, &[1; 48], &signature), Err(Error::Mismatch));
        }
        for padding in [RsaPadding::Pkcs1, RsaPadding::Oaep { hash, mgf, label: b"label" }] {
            let sealed = public.rsa_encrypt(&padding, b"secret").unwrap();
            assert_eq!(key.rsa_decrypt(&padding, &sealed).unwrap().as_slice(), b"secret");
        }
        let sealed = public.rsa_encrypt(&RsaPadding::Oaep { hash, mgf, label: b"label" }, b"secret").unwrap();
        let other = RsaPadding::Oaep { hash, mgf, label: b"other" };
        assert!(matches!(key.rsa_decrypt(&other, &sealed), Err(Error::Mismatch)));
        let mut raw = [1; 256];
        raw[0] = 0;
        let signature = key.rsa_sign(&RsaPadding::Raw, &raw).unwrap();
        assert_eq!(public.rsa_encrypt(&RsaPadding::Raw, &signature).unwrap(), raw);
        public.rsa_verify(&RsaPadding::Raw, &raw, &signature).unwrap();
    }
}

#[test]
fn an_encoding_with_anything_after_it_is_no_key() {
    let key = PrivateKey::generate_ec(Curve::P256).unwrap().to_pkcs8().unwrap();
    let more = [key.as_slice(), &[0]].concat();
    assert!(matches!(PrivateKey::from_pkcs8(&more), Err(Error::BadKey)));
    for n in 0..key.len() {
        assert!(PrivateKey::from_pkcs8(&key.as_slice()[..n]).is_err());
    }
}

proptest::proptest! {
    /// No input makes a parser of keys crash.
    #[test]
    fn any_bytes_are_a_key_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = PrivateKey::from_pkcs8(&bytes);
        for curve in [Curve::P256, Curve::P384, Curve::P521, Curve::Ed25519] {
            let _ = hsm_primitives::PublicKey::from_point(curve, &bytes);
            let _ = PrivateKey::from_scalar(curve, &bytes);
        }
        let _ = hsm_primitives::PublicKey::from_rsa(&bytes, &bytes);
    }
}
