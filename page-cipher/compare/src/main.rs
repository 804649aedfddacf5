//! The page ciphers beside aws-lc-rs, OpenSSL and RustCrypto, in one program and in turns.
//!
//! `cargo run --release --manifest-path page-cipher/compare/Cargo.toml`; `-- --json FILE` writes the figures for the
//! report of `make bench`.

use std::error::Error;
use std::hint::black_box;
use std::time::Instant;

use aes::cipher::{Array, KeyInit};
use aes_gcm_siv::aead::AeadInOut;
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use page_cipher::Kernel;
use page_cipher::gcm_siv::{Aes256GcmSiv, Message};
use page_cipher::hctr2::{Aes256Hctr2, Unit};
use page_cipher::xts::Aes256Xts;
use secret_mem::SecretBytes;
use serde_json::{Value, json};

const PAGES: usize = 32;
const BATCH: usize = 8;
const RUNS: usize = 201;
const AAD: [u8; 24] = [2; 24];

/// Ours, what it is compared with, and the ratio of times that the project aims at, by length.
const PAIRS: [(&str, &str, [Option<f64>; 2]); 6] = [
    ("hctr2, this crate", "xts, OpenSSL", [None, Some(0.625)]),
    ("gcm-siv, this crate", "gcm-siv, aws-lc-rs", [Some(0.455), None]),
    ("gcm-siv, this crate, batch of 8", "gcm-siv, aws-lc-rs", [None, None]),
    ("gcm-siv, this crate", "gcm-siv, RustCrypto", [None, None]),
    ("xts, this crate", "xts, OpenSSL", [None, None]),
    ("hctr2, this crate", "copy", [None, None]),
];
const LENGTHS: [usize; 2] = [4096, 8192];

type Pages = [[u8; 8192]];
type Work<'a> = Box<dyn FnMut(&mut Pages) + 'a>;

fn main() -> Result<(), Box<dyn Error>> {
    let key = SecretBytes::<32>::random()?;
    let double_key = SecretBytes::<64>::random()?;
    let gcm_siv = Aes256GcmSiv::new(&key);
    let hctr2 = Aes256Hctr2::new(&key);
    let xts = Aes256Xts::new(&double_key)?;
    let rust_crypto = aes_gcm_siv::Aes256GcmSiv::new(key.expose().into());
    let unbound = UnboundKey::new(&AES_256_GCM_SIV, key.expose()).map_err(|_| "aws-lc-rs refuses the key")?;
    let aws_lc = LessSafeKey::new(unbound);
    let half = |at: usize| {
        aes::Aes256::new(&Array::try_from(&double_key.expose()[at..at + 32]).expect("half a key"))
    };
    let xts_mode = xts_mode::Xts128::new(half(0), half(32));

    let mut tables = Vec::new();
    for (at, len) in LENGTHS.into_iter().enumerate() {
        let mut openssl = CipherCtx::new()?;
        openssl.encrypt_init(Some(Cipher::aes_256_xts()), Some(double_key.expose()), Some(&[1; 16]))?;
        let plain = vec![[7; 8192]; PAGES];
        let mut nonces = 0_u64;
        let mut nonce = move || {
            nonces += 1;
            let mut nonce = [0; 12];
            nonce[..8].copy_from_slice(&nonces.to_le_bytes());
            nonce
        };
        let (mut nonce_b, mut nonce_c, mut nonce_d) = (nonce.clone(), nonce.clone(), nonce.clone());
        let operations: Vec<(&str, Work)> = vec![
            ("copy", Box::new(|pages| pages.copy_from_slice(black_box(&plain)))),
            (
                "gcm-siv, this crate",
                Box::new(|pages| {
                    for page in pages {
                        black_box(gcm_siv.seal(&nonce(), &AAD, &mut page[..len]).expect("short enough"));
                    }
                }),
            ),
            (
                "gcm-siv, this crate, batch of 8",
                Box::new(|pages| {
                    for pages in pages.as_chunks_mut::<BATCH>().0 {
                        let nonces: [_; BATCH] = std::array::from_fn(|_| nonce_b());
                        let mut nonces = nonces.iter();
                        let mut messages = pages.each_mut().map(|page| Message {
                            nonce: nonces.next().expect("one each"),
                            aad: &AAD,
                            data: &mut page[..len],
                            tag: [0; 16],
                        });
                        gcm_siv.seal_batch(&mut messages).expect("short enough");
                    }
                }),
            ),
            (
                "gcm-siv, aws-lc-rs",
                Box::new(|pages| {
                    for page in pages {
                        let nonce = Nonce::assume_unique_for_key(nonce_c());
                        let sealed =
                            aws_lc.seal_in_place_separate_tag(nonce, Aad::from(&AAD), &mut page[..len]);
                        black_box(sealed.expect("short enough").as_ref());
                    }
                }),
            ),
            (
                "gcm-siv, RustCrypto",
                Box::new(|pages| {
                    for page in pages {
                        let nonce = Array(nonce_d());
                        let sealed =
                            rust_crypto.encrypt_inout_detached(&nonce, &AAD, (&mut page[..len]).into());
                        black_box(sealed.expect("short enough"));
                    }
                }),
            ),
            (
                "hctr2, this crate",
                Box::new(|pages| {
                    for page in pages {
                        hctr2.encrypt(&[1; 16], &mut page[..len]).expect("long enough");
                    }
                }),
            ),
            (
                "hctr2, this crate, batch of 8",
                Box::new(|pages| {
                    for pages in pages.as_chunks_mut::<BATCH>().0 {
                        let unit = |page| Unit::new(&[1; 16], page).expect("long enough");
                        hctr2.encrypt_batch(&mut pages.each_mut().map(|page| unit(&mut page[..len])));
                    }
                }),
            ),
            (
                "xts, this crate",
                Box::new(|pages| {
                    for page in pages {
                        xts.encrypt(&[1; 16], &mut page[..len]).expect("long enough");
                    }
                }),
            ),
            (
                "xts, OpenSSL",
                Box::new(|pages| {
                    for page in pages {
                        openssl.encrypt_init(None, None, Some(&[1; 16])).expect("a tweak has 16 bytes");
                        openssl.cipher_update_inplace(&mut page[..len], len).expect("long enough");
                    }
                }),
            ),
            (
                "xts, xts-mode",
                Box::new(|pages| {
                    for page in pages {
                        xts_mode.encrypt_sector(&mut page[..len], Array([1; 16]));
                    }
                }),
            ),
        ];
        let (names, times) = report(len, operations);
        tables.push(table(at, &names, &times));
    }
    let mut arguments = std::env::args().skip_while(|argument| argument != "--json");
    if let Some(file) = arguments.next().and(arguments.next()) {
        let suite = json!({
            "name": "libraries", "title": "Page ciphers beside other libraries", "quick": false,
            "conditions": [
                format!("kernel {}; all in one program, in turns, pages in the second-level cache", Kernel::best()),
                format!("smallest and largest here are the 5th and 95th of 100 of {RUNS} runs"),
            ],
            "tables": tables,
        });
        std::fs::write(file, serde_json::to_string_pretty(&suite)? + "\n")?;
    }
    Ok(())
}

/// In the form that the report of the benchmarks reads.
fn table(at: usize, names: &[&str], times: &[Vec<f64>]) -> Value {
    let of = |name: &str| &times[names.iter().position(|n| *n == name).expect("it was measured")];
    let figures = PAIRS.map(|(ours, theirs, aims)| {
        let ratios = of(ours).iter().zip(of(theirs)).map(|(a, b)| a / b).collect();
        json!({
            "name": format!("{ours}, against {theirs}"), "unit": "ns/page", "ratio": spread(ratios), "aim": aims[at],
            "baseline": spread(of(theirs).clone())["median"], "subject": spread(of(ours).clone())["median"],
        })
    });
    let title = format!("Sealing {} bytes", LENGTHS[at]);
    json!({ "title": title, "baseline": "other", "subject": "ours", "quantity": "time", "figures": figures })
}

fn spread(mut runs: Vec<f64>) -> Value {
    runs.sort_by(f64::total_cmp);
    let at = |percent: usize| runs.get(runs.len() * percent / 100);
    json!({ "median": at(50), "min": at(5), "max": at(95) })
}

/// Measures and prints; returns the names and each one's times in the order of the runs.
fn report<'a>(len: usize, mut operations: Vec<(&'a str, Work)>) -> (Vec<&'a str>, Vec<Vec<f64>>) {
    let mut pages = vec![[7; 8192]; PAGES];
    let mut times = vec![Vec::new(); operations.len()];
    for _ in 0..RUNS {
        for ((_, work), times) in operations.iter_mut().zip(&mut times) {
            let start = Instant::now();
            work(&mut pages);
            times.push(start.elapsed().as_nanos() as f64 / PAGES as f64);
            black_box(&mut pages);
        }
    }
    println!(
        "sealing {len} bytes, kernel {}, median of {RUNS} runs (5th to 95th percentile)",
        Kernel::best()
    );
    for ((name, _), times) in operations.iter().zip(&times) {
        let mut times = times.clone();
        times.sort_by(f64::total_cmp);
        let at = |share: usize| times[RUNS * share / 100];
        println!("  {name:<34} {:>7.0} ns ({:.0} to {:.0})", at(50), at(5), at(95));
    }
    (operations.iter().map(|(name, _)| *name).collect(), times)
}
