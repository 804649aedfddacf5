//! Time per page of every cipher on every kernel, of the checksum and of a copy, side by side in one run; and how far
//! each is from what the processor's units allow.
//!
//! `cargo run --release -p page-cipher --example page_speed`
//!
//! The portable kernel is RustCrypto's crates. `page-cipher/compare` adds other libraries. `--json FILE` writes the figures
//! for the report of `make bench`.

use std::hint::black_box;
use std::time::Instant;

use page_cipher::gcm_siv::{Aes256GcmSiv, Message};
use page_cipher::hctr2::{Aes256Hctr2, Unit};
use page_cipher::pg::{PAGE_SIZE, Page, checksum_with_kernel};
use page_cipher::xts::Aes256Xts;
use page_cipher::{Kernel, LengthError};
use secret_mem::SecretBytes;
use serde_json::{Value, json};

/// Enough pages to leave the first-level cache, few enough to stay in the second.
const PAGES: usize = 32;
/// Pages of a batch.
const BATCH: usize = 8;
/// Runs of each operation, of which the median counts. Operations take turns, so that they share a machine's
/// moods.
const RUNS: usize = 101;
/// Times that an operation goes over all pages in a run.
const ROUNDS: usize = 4;

/// What an operation needs of the processor's units, in AES rounds and products of single blocks.
type Units = (usize, usize);

struct Operation<'a> {
    kernel: Option<Kernel>,
    name: String,
    /// What must be done one after the other.
    units: Vec<Units>,
    work: Work<'a>,
}

type Work<'a> = Box<dyn FnMut(&mut [Page]) + 'a>;

/// Ciphers of one kernel.
struct Ciphers {
    kernel: Kernel,
    hctr2: Aes256Hctr2,
    gcm_siv: Aes256GcmSiv,
    xts: Aes256Xts,
}

impl Ciphers {
    fn new(kernel: Kernel) -> Result<Option<Self>, Box<dyn std::error::Error>> {
        let key = SecretBytes::random()?;
        let Some(hctr2) = Aes256Hctr2::with_kernel(kernel, &key) else { return Ok(None) };
        let Some(gcm_siv) = Aes256GcmSiv::with_kernel(kernel, &key) else { return Ok(None) };
        let Some(xts) = Aes256Xts::with_kernel(kernel, &SecretBytes::random()?)? else { return Ok(None) };
        Ok(Some(Self { kernel, hctr2, gcm_siv, xts }))
    }

    fn operations<'a>(&'a self) -> Vec<Operation<'a>> {
        let mut all = Vec::new();
        let mut add = |name: String, units: &[Units], work: Work<'a>| {
            all.push(Operation { kernel: Some(self.kernel), name, units: units.to_vec(), work });
        };
        for len in [4096, 8192] {
            // A block takes 14 rounds of AES, and of POLYVAL four products, with one more for every 16 blocks.
            let blocks = len / 16;
            let (aes, hash) = (14 * blocks, 4 * blocks + blocks / 4);
            let hctr2 = [(0, hash), (aes, hash)];
            add(
                format!("hctr2 {len} seal"),
                &hctr2,
                Box::new(move |pages| each(pages, |page| self.hctr2.encrypt(&[1; 16], &mut page[..len]))),
            );
            add(
                format!("hctr2 {len} open"),
                &hctr2,
                Box::new(move |pages| each(pages, |page| self.hctr2.decrypt(&[1; 16], &mut page[..len]))),
            );
            add(
                format!("hctr2 {len} seal, batch of {BATCH}"),
                &[(aes, 2 * hash)],
                Box::new(move |pages| {
                    for pages in pages.as_chunks_mut::<BATCH>().0 {
                        let unit = |page| Unit::new(&[1; 16], page).expect("a page is longer than a block");
                        self.hctr2.encrypt_batch(&mut pages.each_mut().map(|page| unit(&mut page[..len])));
                    }
                }),
            );
            add(
                format!("gcm-siv {len} seal"),
                &[(0, hash), (aes, 0)],
                Box::new(move |pages| {
                    each(pages, |page| self.gcm_siv.seal(&[1; 12], &[2; 24], &mut page[..len]).map(drop));
                }),
            );
            let mut sealed = [7; PAGE_SIZE];
            let tag =
                self.gcm_siv.seal(&[1; 12], &[2; 24], &mut sealed[..len]).expect("a page is short enough");
            add(
                format!("gcm-siv {len} copy and open"),
                &[(aes, hash)],
                Box::new(move |pages| {
                    for page in pages {
                        page[..len].copy_from_slice(&sealed[..len]);
                        self.gcm_siv
                            .open(&[1; 12], &[2; 24], &mut page[..len], &tag)
                            .expect("the tag is right");
                    }
                }),
            );
            add(
                format!("gcm-siv {len} seal, batch of {BATCH}"),
                &[(aes, hash)],
                Box::new(move |pages| {
                    for pages in pages.as_chunks_mut::<BATCH>().0 {
                        let mut messages = pages.each_mut().map(|page| Message {
                            nonce: &[1; 12],
                            aad: &[2; 24],
                            data: &mut page[..len],
                            tag: [0; 16],
                        });
                        self.gcm_siv.seal_batch(&mut messages).expect("a page is short enough");
                    }
                }),
            );
            add(
                format!("xts {len} seal"),
                &[(aes, 0)],
                Box::new(move |pages| each(pages, |page| self.xts.encrypt(&[1; 16], &mut page[..len]))),
            );
            add(
                format!("xts {len} open"),
                &[(aes, 0)],
                Box::new(move |pages| each(pages, |page| self.xts.decrypt(&[1; 16], &mut page[..len]))),
            );
        }
        let kernel = self.kernel;
        add(
            "page checksum".to_owned(),
            &[],
            Box::new(move |pages| {
                for page in pages {
                    black_box(checksum_with_kernel(kernel, page, 7));
                }
            }),
        );
        all
    }
}

fn each(pages: &mut [Page], work: impl Fn(&mut Page) -> Result<(), LengthError>) {
    for page in pages {
        work(page).expect("the length is allowed");
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ciphers: Vec<_> = Kernel::ALL
        .into_iter()
        .map(Ciphers::new)
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .flatten()
        .collect();
    let plain = vec![[7; PAGE_SIZE]; PAGES];
    let copy = Box::new(|pages: &mut [Page]| pages.copy_from_slice(black_box(&plain)));
    let mut operations =
        vec![Operation { kernel: None, name: "copy of 8192".to_owned(), units: Vec::new(), work: copy }];
    operations.extend(ciphers.iter().flat_map(Ciphers::operations));

    let mut pages = plain.clone();
    let mut times = vec![Vec::with_capacity(RUNS); operations.len()];
    let mut limits = vec![Vec::with_capacity(RUNS); operations.len()];
    for _ in 0..RUNS {
        for (index, operation) in operations.iter_mut().enumerate() {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                (operation.work)(&mut pages);
                black_box(&mut pages);
            }
            times[index].push(start.elapsed().as_nanos() as f64 / (ROUNDS * PAGES) as f64);
            let start = Instant::now();
            let mut measured = !operation.units.is_empty();
            for (rounds, products) in &operation.units {
                measured &=
                    operation.kernel.is_some_and(|kernel| kernel.run_units(16 * rounds, 16 * products));
            }
            if measured {
                limits[index].push(start.elapsed().as_nanos() as f64 / 16.0);
            }
        }
    }

    if let Some(file) = json_file() {
        std::fs::write(file, serde_json::to_string_pretty(&figures(&operations, &times, &limits))? + "\n")?;
    }
    let copy_time = median(&mut times[0]).unwrap_or(f64::NAN);
    println!(
        "Pages in the second-level cache, median of {RUNS} runs. \"units\": the time that the processor's AES and"
    );
    println!("multiplication units need for what the mode does, with what can overlap overlapped.");
    println!(
        "{:<9} {:<28} {:>8} {:>7} {:>9} {:>8}",
        "kernel", "", "ns/page", "x copy", "units ns", "x units"
    );
    for ((operation, times), limits) in operations.iter().zip(&mut times).zip(&mut limits) {
        let Some(time) = median(times) else { continue };
        let kernel = operation.kernel.map_or("", Kernel::name);
        let row = format!("{kernel:<9} {:<28} {time:>8.0} {:>7.1}", operation.name, time / copy_time);
        match median(limits) {
            Some(limit) => println!("{row} {limit:>9.0} {:>8.2}", time / limit),
            None => println!("{row}"),
        }
    }
    Ok(())
}

/// Where `--json` says.
fn json_file() -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--json");
    arguments.next().and(arguments.next())
}

/// What the project wants the best kernel to reach, in times of the units' limit.
fn aim(kernel: Kernel, name: &str) -> Option<f64> {
    let aims = [("hctr2 8192 seal", 1.15), ("gcm-siv 4096 seal, batch of 8", 1.2)];
    aims.iter().find(|(of, _)| *of == name && kernel == Kernel::best()).map(|(_, aim)| *aim)
}

/// In the form that the report of the benchmarks reads: each kernel's operations beside the units' limit.
fn figures(operations: &[Operation], times: &[Vec<f64>], limits: &[Vec<f64>]) -> Value {
    let tables: Vec<Value> = Kernel::ALL
        .into_iter()
        .filter_map(|kernel| {
            let of_kernel = operations.iter().zip(times.iter().zip(limits));
            let figures: Vec<Value> = of_kernel
                .filter(|(operation, (_, limits))| operation.kernel == Some(kernel) && !limits.is_empty())
                .map(|(operation, (times, limits))| {
                    let ratios = times.iter().zip(limits).map(|(time, limit)| time / limit).collect();
                    json!({
                        "name": operation.name, "unit": "ns/page", "ratio": spread(ratios),
                        "baseline": spread(limits.clone())["median"], "subject": spread(times.clone())["median"],
                        "aim": aim(kernel, &operation.name),
                    })
                })
                .collect();
            let title = format!("Kernel {}: beside what the processor's units allow", kernel.name());
            (!figures.is_empty()).then(|| {
                json!({ "title": title, "baseline": "limit", "subject": kernel.name(), "quantity": "time", "figures": figures })
            })
        })
        .collect();
    json!({
        "name": "kernels", "title": "Page ciphers, by kernel", "quick": false,
        "conditions": [
            "pages in the second-level cache",
            "the limit is measured in the same program: as many AES rounds and carry-less products as the mode needs, with \
             what can overlap overlapped",
            "smallest and largest here are the 5th and 95th of 100 runs",
        ],
        "tables": tables,
    })
}

fn spread(mut runs: Vec<f64>) -> Value {
    runs.sort_by(f64::total_cmp);
    let at = |percent: usize| runs.get(runs.len() * percent / 100);
    json!({ "median": at(50), "min": at(5), "max": at(95) })
}

fn median(runs: &mut [f64]) -> Option<f64> {
    runs.sort_by(f64::total_cmp);
    runs.get(runs.len() / 2).copied()
}
