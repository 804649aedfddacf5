//! How many instructions a page costs, counted by callgrind, so that a change that makes pages slower is noticed on
//! any machine and however busy it is.
//!
//! valgrind knows neither AVX-512 nor VAES, so this guards the kernel for AES-NI and the portable one; the ciphers are
//! the same code in all kernels of ours. Without valgrind the test says so and passes.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod common;

use std::hint::black_box;
use std::process::Command;

use common::heap_page;
use page_cipher::gcm_siv::Aes256GcmSiv;
use page_cipher::hctr2::Aes256Hctr2;
use page_cipher::pg::{Fork, PAGE_SIZE, Page, RelationCipher, checksum_with_kernel};
use page_cipher::xts::Aes256Xts;
use page_cipher::{CipherId, Kernel};

const CHILD: &str = "TDE_TEST_COUNTED_KERNEL";
/// How often the child runs each operation.
const TIMES: u64 = 10;

/// Instructions of an operation when this was written, with the profile and the compiler of this repository.
struct Expected {
    operation: &'static str,
    aes_ni: u64,
    portable: u64,
}

const EXPECTED: &[Expected] = &[
    Expected { operation: "hctr2_seal", aes_ni: 24_387, portable: 39_080 },
    Expected { operation: "hctr2_open", aes_ni: 24_164, portable: 39_080 },
    Expected { operation: "gcm_siv_seal", aes_ni: 9_547, portable: 14_143 },
    Expected { operation: "gcm_siv_open", aes_ni: 9_557, portable: 14_154 },
    Expected { operation: "xts_seal", aes_ni: 14_624, portable: 31_475 },
    Expected { operation: "page_checksum", aes_ni: 1_299, portable: 6_957 },
    // Header checks, tweak, HCTR2 and checksum, by the fastest kernel that valgrind has: AES-NI in both runs.
    Expected { operation: "relation_seal", aes_ni: 25_830, portable: 25_830 },
    Expected { operation: "relation_open", aes_ni: 25_639, portable: 25_639 },
];

#[inline(never)]
fn hctr2_seal(cipher: &Aes256Hctr2, page: &mut Page) {
    cipher.encrypt(&[1; 16], &mut page[10..]).unwrap();
}

#[inline(never)]
fn hctr2_open(cipher: &Aes256Hctr2, page: &mut Page) {
    cipher.decrypt(&[1; 16], &mut page[10..]).unwrap();
}

/// The body of a SQLite page of 4096 bytes.
#[inline(never)]
fn gcm_siv_seal(cipher: &Aes256GcmSiv, page: &mut Page) -> [u8; 16] {
    cipher.seal(&[1; 12], &[2; 24], &mut page[..4064]).unwrap()
}

#[inline(never)]
fn gcm_siv_open(cipher: &Aes256GcmSiv, page: &mut Page, tag: &[u8; 16]) {
    cipher.open(&[1; 12], &[2; 24], &mut page[..4064], tag).unwrap();
}

#[inline(never)]
fn xts_seal(cipher: &Aes256Xts, page: &mut Page) {
    cipher.encrypt(&[1; 16], &mut page[10..]).unwrap();
}

#[inline(never)]
fn page_checksum(kernel: Kernel, page: &Page) {
    black_box(checksum_with_kernel(kernel, page, 7));
}

#[inline(never)]
fn relation_seal(cipher: &RelationCipher, page: &mut Page) {
    cipher.seal(Fork::Main, 7, page).unwrap();
}

#[inline(never)]
fn relation_open(cipher: &RelationCipher, page: &mut Page) {
    cipher.open(Fork::Main, 7, page).unwrap();
}

/// What callgrind watches.
fn run_all(kernel: Kernel) {
    let key = common::data_key();
    let long_key = common::secret(&(0..64).collect::<Vec<u8>>());
    let hctr2 = Aes256Hctr2::with_kernel(kernel, &key).unwrap();
    let gcm_siv = Aes256GcmSiv::with_kernel(kernel, &key).unwrap();
    let xts = Aes256Xts::with_kernel(kernel, &long_key).unwrap().unwrap();
    let relation = RelationCipher::new(CipherId::Aes256Hctr2, &key, 5, 16384).unwrap();
    let mut page = heap_page();
    assert_eq!(page.len(), PAGE_SIZE);
    for _ in 0..TIMES {
        hctr2_seal(&hctr2, &mut page);
        hctr2_open(&hctr2, &mut page);
        let tag = gcm_siv_seal(&gcm_siv, &mut page);
        gcm_siv_open(&gcm_siv, &mut page, &tag);
        let mut sealed = page;
        xts_seal(&xts, &mut sealed);
        page_checksum(kernel, &page);
        relation_seal(&relation, &mut page);
        relation_open(&relation, &mut page);
    }
}

/// Runs this test under callgrind for one kernel; gives the report of costs per function, callees included.
fn count(kernel: Kernel) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("callgrind.out");
    let run = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_page_costs_no_more_instructions_than_it_did", "--test-threads=1"])
        .env(CHILD, kernel.name())
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let report = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--threshold=100", "--auto=no"])
        .arg(&file)
        .output()
        .unwrap();
    String::from_utf8(report.stdout).unwrap()
}

/// Instructions of one call of `operation`.
fn instructions(report: &str, operation: &str) -> u64 {
    let name = format!("instructions::{operation}");
    let line = report.lines().find(|line| line.contains(&name));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{report}"));
    let total: u64 = line.split_whitespace().next().unwrap().replace(',', "").parse().unwrap();
    total / TIMES
}

#[test]
fn a_page_costs_no_more_instructions_than_it_did() {
    if let Some(name) = std::env::var_os(CHILD) {
        return run_all(Kernel::ALL.into_iter().find(|kernel| name == kernel.name()).unwrap());
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("SKIPPED: no valgrind; instructions are not counted");
        return;
    }
    let mut wrong = Vec::new();
    for kernel in [Kernel::AesNi, Kernel::Portable] {
        if !kernel.is_available() {
            eprintln!("SKIPPED: the kernel {kernel} does not run here");
            continue;
        }
        let report = count(kernel);
        for Expected { operation, aes_ni, portable } in EXPECTED {
            let expected = if kernel == Kernel::AesNi { *aes_ni } else { *portable };
            let found = instructions(&report, operation);
            eprintln!("{kernel} {operation}: {found} instructions, expected {expected}");
            // A twentieth for other versions of the C library, whose `memset` and `memcpy` count too.
            if found > expected + expected / 20 || found < expected - expected / 8 {
                wrong.push(format!("{kernel} {operation}: {found} instructions instead of {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "change the code, or if it is better now, the numbers:\n{}", wrong.join("\n"));
}
