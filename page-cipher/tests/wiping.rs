//! Nothing of a key is left in memory: after a call, none of the keys of that message; after a cipher is dropped, none
//! of its own.
//!
//! The test reads all writable memory of its own process. What it looks for is computed by a child process and
//! kept inverted, so that the search does not find itself.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![cfg(target_os = "linux")]

mod common;

use std::io::{Read, Seek, SeekFrom};
use std::process::Command;

use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use page_cipher::Kernel;
use page_cipher::gcm_siv::{Aes256GcmSiv, Message};
use page_cipher::hctr2::Aes256Hctr2;
use page_cipher::xts::Aes256Xts;

const CHILD: &str = "TDE_TEST_PRINT_PATTERNS";
const NONCE: [u8; 12] = *b"twelve bytes";

/// What is looked for: eight bytes each, inverted, by name.
type Patterns = Vec<(String, [u8; 8])>;

/// 32 bytes that are not in this program's data.
fn key() -> Vec<u8> {
    (0..64_u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

fn aes(key: &[u8], block: u128) -> [u8; 16] {
    let mut block = Array(block.to_le_bytes());
    aes::Aes256::new(&Array::try_from(key).unwrap()).encrypt_block(&mut block);
    block.0
}

/// FIPS 197, 5.2.
fn round_keys(key: &[u8]) -> Vec<[u8; 4]> {
    let mut words: Vec<[u8; 4]> = key.as_chunks::<4>().0.to_vec();
    let mut constant = 1_u8;
    for i in 8..60 {
        let mut word = words[i - 1];
        if i % 8 == 0 {
            word.rotate_left(1);
        }
        if i % 4 == 0 {
            word = word.map(s_box);
        }
        if i % 8 == 0 {
            word[0] ^= constant;
            constant <<= 1;
        }
        words.push(std::array::from_fn(|byte| word[byte] ^ words[i - 8][byte]));
    }
    words
}

fn s_box(byte: u8) -> u8 {
    let times = |a: u8, b: u8| {
        (0..8).fold((0_u8, a), |(sum, a), bit| {
            let doubled = a << 1 ^ if a & 0x80 != 0 { 0x1b } else { 0 };
            (if b >> bit & 1 == 1 { sum ^ a } else { sum }, doubled)
        })
    };
    let inverse = (0..254).fold(1, |power, _| times(power, byte).0);
    (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
}

/// Computes the patterns of a key, as lines of text.
fn print_patterns() {
    let key = key();
    let print = |name: &str, bytes: &[u8]| {
        for (half, bytes) in bytes.chunks_exact(8).enumerate() {
            println!(
                "PATTERN {name}/{half} {}",
                hex::encode(bytes.iter().map(|byte| !byte).collect::<Vec<_>>())
            );
        }
    };
    let schedule = |name: &str, key: &[u8]| {
        // The first two round keys are the key itself, which the test holds.
        for (round, words) in round_keys(key).chunks(4).enumerate().skip(2) {
            print(&format!("{name}/round {round}"), words.as_flattened());
        }
    };
    schedule("cipher", &key[..32]);
    schedule("tweak cipher", &key[32..]);
    print("cipher/hash key", &aes(&key[..32], 0));
    print("cipher/L", &aes(&key[..32], 1));
    // RFC 8452, section 4: the keys of a message.
    let mut nonce = [0; 16];
    nonce[4..].copy_from_slice(&NONCE);
    let nonce = u128::from_le_bytes(nonce);
    let derived: Vec<u8> = (0..6).flat_map(|i| aes(&key[..32], nonce | i)[..8].to_vec()).collect();
    print("message/hash key", &derived[..16]);
    print("message/key", &derived[16..]);
    schedule("message", &derived[16..]);
}

fn patterns() -> Patterns {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_is_left", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8(child.stdout).unwrap();
    let patterns: Patterns = text
        .lines()
        .filter_map(|line| line.split_once("PATTERN ")?.1.rsplit_once(' '))
        .map(|(name, bytes)| (name.to_owned(), hex::decode(bytes).unwrap().try_into().unwrap()))
        .collect();
    assert_eq!(patterns.len(), 2 * (13 + 13 + 2 + 1 + 2 + 13), "{text}");
    patterns
}

/// Names of the patterns that begin with `prefix` and are in memory.
fn found(patterns: &Patterns, prefix: &str) -> Vec<String> {
    let mut wanted: Vec<(u64, &str)> = patterns
        .iter()
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, inverted)| (u64::from_le_bytes(*inverted), name.as_str()))
        .collect();
    wanted.sort_unstable();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut names = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let (mut at, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        while at < to {
            let len = chunk.len().min((to - at) as usize);
            memory.seek(SeekFrom::Start(at)).unwrap();
            memory.read_exact(&mut chunk[..len]).unwrap();
            // Registers are stored to multiples of eight bytes.
            for (index, word) in chunk[..len].as_chunks::<8>().0.iter().enumerate() {
                let inverted = !u64::from_le_bytes(*word);
                if let Ok(hit) = wanted.binary_search_by_key(&inverted, |(word, _)| *word) {
                    names.push(format!("{} at {:#x} {line}", wanted[hit].1, at + 8 * index as u64));
                }
            }
            at += len as u64;
        }
    }
    names
}

#[test]
fn nothing_is_left() {
    if std::env::var_os(CHILD).is_some() {
        return print_patterns();
    }
    let patterns = patterns();
    // The crates behind the portable kernel wipe their keys, but not the stack.
    for kernel in common::kernels().filter(|kernel| *kernel != Kernel::Portable) {
        let key = common::secret(&key());
        let short = common::secret(&key.expose()[..32]);
        let hctr2 = Aes256Hctr2::with_kernel(kernel, &short).unwrap();
        let xts = Aes256Xts::with_kernel(kernel, &key).unwrap().unwrap();
        let gcm_siv = Aes256GcmSiv::with_kernel(kernel, &short).unwrap();
        assert!(!found(&patterns, "cipher/round").is_empty(), "the search finds what is there");
        assert!(!found(&patterns, "tweak cipher").is_empty(), "the search finds what is there");

        for len in [0, 5, 16, 300, 4064, 8182] {
            let mut data = vec![7; len];
            let tag = gcm_siv.seal(&NONCE, b"header", &mut data).unwrap();
            assert_eq!(
                found(&patterns, "message"),
                <[String; 0]>::default(),
                "{kernel}, sealing {len} bytes"
            );
            gcm_siv.open(&NONCE, b"header", &mut data, &tag).unwrap();
            assert_eq!(
                found(&patterns, "message"),
                <[String; 0]>::default(),
                "{kernel}, opening {len} bytes"
            );
            if !data.is_empty() {
                let (mut first, mut second) = (data.clone(), data.clone());
                let mut messages = [&mut first, &mut second].map(|data| Message {
                    nonce: &NONCE,
                    aad: b"header",
                    data,
                    tag: [0; 16],
                });
                gcm_siv.seal_batch(&mut messages).unwrap();
                let left = found(&patterns, "message");
                assert_eq!(left, <[String; 0]>::default(), "{kernel}, batch of {len} bytes");
            }
            if len >= 16 {
                hctr2.encrypt(b"tweak", &mut data).unwrap();
                hctr2.decrypt(b"tweak", &mut data).unwrap();
                xts.encrypt(&[1; 16], &mut data).unwrap();
                xts.decrypt(&[1; 16], &mut data).unwrap();
            }
        }
        drop((hctr2, xts, gcm_siv));
        assert_eq!(
            found(&patterns, ""),
            <[String; 0]>::default(),
            "{kernel}, after the ciphers were dropped"
        );
    }
}
