//! Whether the time of the ciphers depends on secrets: a statistical test after Reparaz, Balasch and Verbauwhede,
//! "Dude, is my code constant time?" (2017).
//!
//! `cargo run --release -p page-cipher --example constant_time`
//!
//! Each test has two classes of input that differ in what must not matter. Welch's t of the two sets of times is near 0
//! if it does not, and grows with the number of samples if it does. The program fails if a test exceeds the
//! bound three times in a row: a busy machine may exceed it once.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

use page_cipher::Kernel;
use page_cipher::gcm_siv::Aes256GcmSiv;
use page_cipher::hctr2::Aes256Hctr2;
use page_cipher::xts::Aes256Xts;
use secret_mem::{SecretBytes, random};

const SAMPLES: usize = 60_000;
const ATTEMPTS: usize = 3;
/// The paper takes 10 for definitely not constant.
const BOUND: f64 = 10.0;
const LEN: usize = 512;

type Test<'a> = (&'static str, Box<dyn FnMut(bool, &mut [u8; LEN]) -> f64 + 'a>);

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut failed = false;
    for kernel in Kernel::ALL {
        let zero = SecretBytes::<32>::zeroed();
        let other = SecretBytes::<32>::random()?;
        let (Some(hctr2), Some(gcm_siv)) =
            (Aes256Hctr2::with_kernel(kernel, &other), Aes256GcmSiv::with_kernel(kernel, &other))
        else {
            continue;
        };
        let Some(xts) = Aes256Xts::with_kernel(kernel, &SecretBytes::random()?)? else { continue };
        let tests: [Test; 5] = [
            (
                "hctr2: data zero or random",
                Box::new(|_, data| time(|| hctr2.encrypt(&[1; 16], data).is_ok())),
            ),
            (
                "hctr2: key zero or random",
                // Expanded for each sample, because both must be at the same address: which lines of the cache they share
                // with the data matters more than any key.
                Box::new(|class, data| {
                    let cipher = Aes256Hctr2::with_kernel(kernel, if class { &zero } else { &other });
                    time(|| cipher.is_some_and(|cipher| cipher.encrypt(&[1; 16], data).is_ok()))
                }),
            ),
            (
                "gcm-siv seal: data zero or random",
                Box::new(|_, data| time(|| gcm_siv.seal(&[1; 12], &[], data).is_ok())),
            ),
            (
                "gcm-siv open: tag zero or random",
                Box::new(|_, data| {
                    let tag = std::array::from_fn(|i| data[i]);
                    data.fill(7);
                    time(|| gcm_siv.open(&[1; 12], &[], data, &tag).is_ok())
                }),
            ),
            ("xts: data zero or random", Box::new(|_, data| time(|| xts.encrypt(&[1; 16], data).is_ok()))),
        ];
        for (name, mut work) in tests {
            let mut all = Vec::new();
            while all.len() < ATTEMPTS && all.last().is_none_or(|t: &f64| t.abs() > BOUND) {
                all.push(measure(&mut work)?);
            }
            let bad = all.iter().all(|t| t.abs() > BOUND);
            failed |= bad;
            let verdict = if bad { "DEPENDS ON SECRETS" } else { "ok" };
            println!(
                "{kernel:<9} {name:<36} t = {:>6.1}  {verdict}",
                all.last().copied().unwrap_or(f64::NAN)
            );
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The time that `work` takes, in nanoseconds.
fn time(work: impl FnOnce() -> bool) -> f64 {
    let start = Instant::now();
    black_box(work());
    start.elapsed().as_nanos() as f64
}

/// Welch's t of the times of the two classes, without the slowest tenth: interrupts, not the code.
fn measure(work: &mut dyn FnMut(bool, &mut [u8; LEN]) -> f64) -> Result<f64, secret_mem::RandomError> {
    let mut classes = vec![0; SAMPLES];
    random(&mut classes)?;
    let mut noise = [0; LEN];
    random(&mut noise)?;
    let mut times: [Vec<f64>; 2] = Default::default();
    let mut data = [0; LEN];
    for class in classes {
        let class = class & 1 == 1;
        // Both classes do the same work to make their input.
        let mask = if class { 0xff } else { 0 };
        for (byte, random) in data.iter_mut().zip(&noise) {
            *byte = random & black_box(mask);
        }
        times[usize::from(class)].push(work(class, black_box(&mut data)));
    }
    let mut sorted = times.concat();
    sorted.sort_by(f64::total_cmp);
    let slowest = sorted[sorted.len() * 9 / 10];
    let [a, b] = times.map(|times| moments(times.into_iter().filter(|time| *time <= slowest)));
    Ok((a.mean - b.mean) / (a.variance / a.count + b.variance / b.count).sqrt())
}

struct Moments {
    count: f64,
    mean: f64,
    variance: f64,
}

fn moments(times: impl Iterator<Item = f64>) -> Moments {
    let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for time in times {
        count += 1.0;
        let difference = time - mean;
        mean += difference / count;
        squares += difference * (time - mean);
    }
    Moments { count, mean, variance: squares / (count - 1.0) }
}
