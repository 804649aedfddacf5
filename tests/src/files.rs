//! What an attacker, a bad disk or a power cut does to files.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use page_cipher::pg::{self, PAGE_SIZE, Page};

/// Every file below `dir`, tablespaces' and other links not followed.
pub fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

/// The files below `dir` that hold relation pages: not a database's PG_VERSION, relation map or relation-cache file.
pub fn relation_files(dir: &Path) -> Vec<PathBuf> {
    let named_like_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        name.trim_start_matches('t').starts_with(|c: char| c.is_ascii_digit())
    };
    files_below(dir).into_iter().filter(named_like_one).collect()
}

/// Whether `needle` occurs in `hay`.
pub fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some((&first, rest)) = needle.split_first() else { return true };
    let mut hay = hay;
    while let Some(at) = hay.iter().position(|&b| b == first) {
        hay = &hay[at + 1..];
        if hay.starts_with(rest) {
            return true;
        }
    }
    false
}

/// The files below `dir` that contain `needle`. A server may remove some meanwhile.
pub fn files_with(dir: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let read = |path: &PathBuf| match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        bytes => bytes.unwrap(),
    };
    files_below(dir).into_iter().filter(|path| contains(&read(path), needle)).collect()
}

/// The pages of a file; a last partial one is left out.
pub fn pages(path: &Path) -> Vec<Page> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    bytes.chunks_exact(PAGE_SIZE).map(|c| c.try_into().unwrap()).collect()
}

/// Page `block` of a file.
pub fn read_page(path: &Path, block: u32) -> Page {
    let mut page = [0; PAGE_SIZE];
    fs::File::open(path).unwrap().read_exact_at(&mut page, offset(block)).unwrap();
    page
}

/// Overwrites page `block` of a file.
pub fn write_page(path: &Path, block: u32, page: &Page) {
    fs::OpenOptions::new().write(true).open(path).unwrap().write_all_at(page, offset(block)).unwrap();
}

fn offset(block: u32) -> u64 {
    u64::from(block) * PAGE_SIZE as u64
}

/// Inverts one bit of a file.
pub fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// Makes the page checksum right again, as an attacker would.
pub fn fix_checksum(path: &Path, block: u32) {
    let mut page = read_page(path, block);
    pg::set_checksum(&mut page, block);
    write_page(path, block, &page);
}

/// Which half of a torn page is the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldHalf {
    /// Header new, end old.
    Second,
    /// Header old, end new.
    First,
}

/// Tears every page of `path` that differs from `before`: one half is put back. Returns how many were torn.
pub fn tear(path: &Path, before: &[Page], old: OldHalf) -> usize {
    let half = PAGE_SIZE / 2;
    let mut torn = 0;
    for (block, (now, then)) in pages(path).iter().zip(before).enumerate() {
        if now == then {
            continue;
        }
        let mut page = *now;
        match old {
            OldHalf::Second => page[half..].copy_from_slice(&then[half..]),
            OldHalf::First => page[..half].copy_from_slice(&then[..half]),
        }
        if page != *now && page != *then {
            write_page(path, block as u32, &page);
            torn += 1;
        }
    }
    torn
}

/// Whether the encrypted part of a page looks random: all byte values are about as frequent (chi-squared, 255 degrees
/// of freedom, below 480 where 255 is expected and the standard deviation is 23) and none repeats eight times in a
/// row. Random bytes fail this less than once in 2^40 pages; a page with a header and rows is far from passing it.
pub fn looks_random(page: &Page) -> bool {
    let body = &page[10..];
    let mut counts = [0_u32; 256];
    let (mut run, mut longest, mut last) = (0, 0, None);
    for &byte in body {
        counts[byte as usize] += 1;
        run = if last == Some(byte) { run + 1 } else { 1 };
        longest = longest.max(run);
        last = Some(byte);
    }
    let expected = body.len() as f64 / 256.0;
    let chi_squared: f64 = counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
    longest < 8 && chi_squared < 480.0
}
