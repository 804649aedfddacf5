//! All kernels give the same bytes for the same input, and decryption undoes encryption.
//!
//! `cd page-cipher && cargo +nightly fuzz run kernels`
#![no_main]

use libfuzzer_sys::fuzz_target;
use page_cipher::Kernel;
use page_cipher::gcm_siv::{Aes256GcmSiv, Message};
use page_cipher::hctr2::{Aes256Hctr2, Unit};
use page_cipher::xts::Aes256Xts;
use secret_mem::SecretBytes;

fuzz_target!(|input: &[u8]| {
    // Key, length of the tweak, offset of the data from an aligned address, tweak, data.
    let Some((key, rest)) = input.split_first_chunk::<64>() else { return };
    let [tweak_len, offset, rest @ ..] = rest else { return };
    let (tweak, plain) = rest.split_at(usize::from(*tweak_len).min(rest.len()));
    let mut long_key = SecretBytes::<64>::zeroed();
    long_key.expose_mut().copy_from_slice(key);
    let mut short_key = SecretBytes::<32>::zeroed();
    short_key.expose_mut().copy_from_slice(&key[..32]);
    let nonce: [u8; 12] = std::array::from_fn(|i| key[i + 20]);
    let unit: [u8; 16] = std::array::from_fn(|i| key[i + 40]);

    let mut expected = None;
    for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
        let mut room = vec![0; plain.len() + 128];
        let at = room.as_ptr().align_offset(64) + usize::from(*offset % 64);
        let data = &mut room[at..at + plain.len()];
        let mut results = Vec::new();

        let cipher = Aes256GcmSiv::with_kernel(kernel, &short_key).expect("available");
        data.copy_from_slice(plain);
        let tag = cipher.seal(&nonce, tweak, data).expect("short enough");
        results.push(data.to_vec());
        results.push(tag.to_vec());
        cipher.open(&nonce, tweak, data, &tag).expect("the tag is right");
        assert_eq!(data, plain);
        let (mut first, mut second) = (plain.to_vec(), plain.to_vec());
        let mut messages =
            [&mut first, &mut second].map(|data| Message { nonce: &nonce, aad: tweak, data, tag: [0; 16] });
        cipher.seal_batch(&mut messages).expect("short enough");
        assert!(messages.iter().all(|message| message.tag == tag && message.data == &results[0][..]));

        if plain.len() >= 16 {
            let cipher = Aes256Hctr2::with_kernel(kernel, &short_key).expect("available");
            cipher.encrypt(tweak, data).expect("long enough");
            results.push(data.to_vec());
            cipher.decrypt(tweak, data).expect("long enough");
            assert_eq!(data, plain);
            let (mut first, mut second) = (plain.to_vec(), plain.to_vec());
            let mut units =
                [&mut first, &mut second].map(|data| Unit::new(tweak, data).expect("long enough"));
            cipher.encrypt_batch(&mut units);
            assert!(results.last() == Some(&first) && first == second);

            if let Ok(cipher) = Aes256Xts::with_kernel(kernel, &long_key) {
                let cipher = cipher.expect("available");
                cipher.encrypt(&unit, data).expect("long enough");
                results.push(data.to_vec());
                cipher.decrypt(&unit, data).expect("long enough");
                assert_eq!(data, plain);
            }
        }
        match &expected {
            None => expected = Some(results),
            Some(expected) => assert!(*expected == results, "{kernel} differs"),
        }
    }
});
