//! Time per page of every cipher, of the checksum and of a copy, side by side in one run.
//!
//! `cargo run --release -p page-cipher --example page_speed`

use std::hint::black_box;
use std::time::Instant;

use page_cipher::CipherId;
use page_cipher::gcm_siv::Aes256GcmSiv;
use page_cipher::pg::{Fork, PAGE_SIZE, Page, RelationCipher, checksum};
use secret_mem::SecretBytes;

/// Enough pages to leave the first-level cache, few enough to stay in the second.
const PAGES: usize = 32;
/// Runs of each operation, of which the median counts. Operations take turns, so that they share a machine's
/// moods.
const RUNS: usize = 41;
const ROUNDS: usize = 12;

/// A name and what it does to the pages of one round.
type Operation<'a> = (&'static str, Box<dyn FnMut(&mut [Page]) + 'a>);

fn heap_page(seed: usize) -> Page {
    let mut page: Page = std::array::from_fn(|i| (i.wrapping_mul(31) ^ (seed * 17) ^ (i >> 5)) as u8);
    page[10..20].copy_from_slice(&[0, 0, 100, 0, 0, 4, 0, 32, 4, 32]);
    page
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let key = SecretBytes::<32>::random()?;
    let hctr2 = RelationCipher::new(CipherId::Aes256Hctr2, &key, 5, 16384)?;
    let xts = RelationCipher::new(CipherId::Aes256Xts, &key, 5, 16384)?;
    let gcm_siv = Aes256GcmSiv::new(&key);

    let plain: Vec<Page> = (0..PAGES).map(heap_page).collect();
    let sealed_by = |cipher: &RelationCipher| {
        let mut pages = plain.clone();
        for (block, page) in pages.iter_mut().enumerate() {
            cipher.seal(Fork::Main, block as u32, page).expect("the header is valid");
        }
        pages
    };
    let (hctr2_sealed, xts_sealed) = (sealed_by(&hctr2), sealed_by(&xts));
    let nonce = [7; 12];
    let mut siv_sealed = plain.clone();
    let tags: Vec<_> =
        siv_sealed.iter_mut().map(|page| gcm_siv.seal(&nonce, b"page", page)).collect::<Result<_, _>>()?;

    let mut operations: Vec<Operation> = vec![
        ("copy", Box::new(|pages| copy(pages, &plain))),
        (
            "checksum",
            Box::new(|pages| {
                for page in pages {
                    black_box(checksum(page, 7));
                }
            }),
        ),
        (
            "aes-256-hctr2 seal",
            Box::new(|pages| each(pages, &plain, |b, p| hctr2.seal(Fork::Main, b, p).is_ok())),
        ),
        (
            "aes-256-hctr2 open",
            Box::new(|pages| each(pages, &hctr2_sealed, |b, p| hctr2.open(Fork::Main, b, p).is_ok())),
        ),
        (
            "aes-256-xts seal",
            Box::new(|pages| each(pages, &plain, |b, p| xts.seal(Fork::Main, b, p).is_ok())),
        ),
        (
            "aes-256-xts open",
            Box::new(|pages| each(pages, &xts_sealed, |b, p| xts.open(Fork::Main, b, p).is_ok())),
        ),
        (
            "aes-256-gcm-siv seal",
            Box::new(|pages| each(pages, &plain, |_, p| gcm_siv.seal(&nonce, b"page", p).is_ok())),
        ),
        (
            "aes-256-gcm-siv open",
            Box::new(|pages| {
                each(pages, &siv_sealed, |b, p| gcm_siv.open(&nonce, b"page", p, &tags[b as usize]).is_ok())
            }),
        ),
    ];

    let mut work = plain.clone();
    let mut times = vec![Vec::with_capacity(RUNS); operations.len()];
    for _ in 0..RUNS {
        for (index, (_, operation)) in operations.iter_mut().enumerate() {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                operation(&mut work);
            }
            times[index].push(start.elapsed().as_nanos() as f64 / (ROUNDS * PAGES) as f64);
        }
    }

    let median = |runs: &mut Vec<f64>| {
        runs.sort_by(f64::total_cmp);
        runs[RUNS / 2]
    };
    let copy_time = median(&mut times[0]);
    println!("{PAGE_SIZE}-byte pages, median of {RUNS} runs; ciphers include the copy of the page");
    println!("{:<22} {:>9} {:>9}", "", "ns/page", "x copy");
    for ((name, _), runs) in operations.iter().zip(&mut times) {
        let time = median(runs);
        println!("{name:<22} {time:>9.0} {:>9.1}", time / copy_time);
    }
    Ok(())
}

fn copy(pages: &mut [Page], from: &[Page]) {
    pages.copy_from_slice(from);
    black_box(pages);
}

/// Gives every page its fresh contents, as the server does, and applies `operation` to it.
fn each(pages: &mut [Page], from: &[Page], operation: impl Fn(u32, &mut Page) -> bool) {
    for (block, (page, fresh)) in pages.iter_mut().zip(from).enumerate() {
        page.copy_from_slice(fresh);
        assert!(operation(block as u32, page), "a page was refused");
    }
    black_box(pages);
}
