//! `tde scan`: is anything readable in these files?
//!
//! Known texts are searched in every byte of every file; besides, pages that have the shape of PostgreSQL's own are counted: WAL pages
//! by their headers, relation pages by theirs. It needs no key, and does not say that what it does not find is encrypted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use page_cipher::pg::{self, Fork, PAGE_SIZE, Page};
use serde::Serialize;
use wal_cipher::name::{FileKind, classify};

use crate::output::{Output, facts, lines, size, table};
use crate::{CliResult, Outcome};

/// Bytes that are looked at together.
const CHUNK: usize = 1 << 20;
/// Shortest text that is searched: shorter ones are found in random bytes.
const SHORTEST: usize = 6;

/// What to scan.
#[derive(Debug, Args)]
pub(crate) struct Scan {
    /// The directory: of data, an archive, a backup
    dir: PathBuf,
    /// File of texts that must not be found, one a line, each of at least 6 bytes
    #[arg(long)]
    canary: PathBuf,
}

#[derive(Debug, thiserror::Error)]
enum ScanError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} holds no text of at least {SHORTEST} bytes", .0.display())]
    NoCanary(PathBuf),
    #[error("a text in {} is shorter than {SHORTEST} bytes: random bytes would hold it too", .0.display())]
    ShortCanary(PathBuf),
}

/// What was found in files of one kind.
#[derive(Default, Serialize)]
struct Counts {
    files: u64,
    bytes: u64,
    /// Files with a canary.
    canary_files: u64,
    canaries: u64,
    /// Pages with the header of a WAL page.
    wal_pages: u64,
    /// Pages with the header of a relation page.
    relation_pages: u64,
}

#[derive(Serialize)]
struct Report {
    directory: String,
    kinds: BTreeMap<&'static str, Counts>,
    /// The first files with a canary.
    found_in: Vec<String>,
    /// Files that were gone before they were read.
    vanished: u64,
}

const NAMED: usize = 20;

/// Scans.
pub(crate) fn run(scan: &Scan, output: &Output) -> CliResult {
    let canaries = canaries(&scan.canary)?;
    let mut report = Report {
        directory: scan.dir.display().to_string(),
        kinds: BTreeMap::new(),
        found_in: Vec::new(),
        vanished: 0,
    };
    walk(&scan.dir, &mut |path| {
        let counts = report.kinds.entry(kind(path)).or_default();
        match look(path, &canaries, counts) {
            Ok(0) => Ok(()),
            Ok(_) => {
                if report.found_in.len() < NAMED {
                    report.found_in.push(path.display().to_string());
                }
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                report.vanished += 1;
                Ok(())
            }
            Err(source) => Err(ScanError::Io { path: path.into(), source }),
        }
    })?;
    let found: u64 = report.kinds.values().map(|counts| counts.canary_files).sum();
    output.show(&report, human)?;
    Ok(if found == 0 { Outcome::Good } else { Outcome::Problem })
}

fn human(report: &Report) -> String {
    let mut kinds =
        table(&["files", "number", "size", "with canary", "canaries", "wal pages", "relation pages"]);
    for (name, counts) in &report.kinds {
        kinds.add_row([
            (*name).to_owned(),
            counts.files.to_string(),
            size(counts.bytes),
            counts.canary_files.to_string(),
            counts.canaries.to_string(),
            counts.wal_pages.to_string(),
            counts.relation_pages.to_string(),
        ]);
    }
    let found = if report.found_in.is_empty() { "in no file".to_owned() } else { report.found_in.join(", ") };
    let rest = [("directory", report.directory.clone()), ("canaries found", found)];
    format!("{}\n{}", lines(&kinds), facts(&rest))
}

fn canaries(path: &Path) -> Result<Vec<Vec<u8>>, ScanError> {
    let text = fs::read(path).map_err(|source| ScanError::Io { path: path.into(), source })?;
    let trimmed = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let lines: Vec<_> = trimmed.filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect();
    if lines.is_empty() {
        return Err(ScanError::NoCanary(path.into()));
    }
    if lines.iter().any(|line| line.len() < SHORTEST) {
        return Err(ScanError::ShortCanary(path.into()));
    }
    Ok(lines)
}

/// Every regular file; links to tablespaces are followed, other links are not.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path) -> Result<(), ScanError>) -> Result<(), ScanError> {
    let failed = |source| ScanError::Io { path: dir.into(), source };
    let mut entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(failed(error)),
        entries => entries.map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?,
    };
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let followed = dir.ends_with("pg_tblspc") || entry.file_name() == "pg_wal";
        let meta = if followed { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        match meta {
            Ok(meta) if meta.is_dir() => walk(&path, visit)?,
            Ok(meta) if meta.is_file() => visit(&path)?,
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(ScanError::Io { path, source: error });
            }
            _ => (),
        }
    }
    Ok(())
}

fn kind(path: &Path) -> &'static str {
    let bytes = path.as_os_str().as_encoded_bytes();
    let name = path.file_name().map_or(&[][..], |name| name.as_encoded_bytes());
    let has = |folder: &str| path.parent().is_some_and(|parent| parent.iter().any(|part| part == folder));
    match classify(bytes) {
        FileKind::Segment { .. } | FileKind::Staged | FileKind::Restored => "wal",
        FileKind::Temporary { .. } if name.ends_with(b".spill") => "logical decoding",
        FileKind::Temporary { .. } if has("pg_notify") => "notifications",
        FileKind::Temporary { .. } => "temporary",
        // An archive is a folder of segments.
        FileKind::Other if wal_cipher::name::SegmentName::parse(name).is_some() => "wal",
        FileKind::Other if name.first().is_some_and(|first| first.is_ascii_digit() || *first == b't') => {
            match ["base", "global", "pg_tblspc"].into_iter().any(has) {
                true => "relations",
                false => "other",
            }
        }
        FileKind::Other => "other",
    }
}

/// Counts what one file holds and returns how many canaries.
fn look(path: &Path, canaries: &[Vec<u8>], counts: &mut Counts) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let longest = canaries.iter().map(Vec::len).max().unwrap_or(0);
    let mut buffer = Vec::with_capacity(CHUNK + longest);
    let (mut found, mut total) = (0, 0);
    let mut rest: Vec<u8> = Vec::new();
    loop {
        // Enough of the chunk before, that a text across the border is found, and none twice.
        buffer.clear();
        buffer.extend_from_slice(&rest);
        let kept = buffer.len();
        (&mut file).take(CHUNK as u64).read_to_end(&mut buffer)?;
        let new = buffer.len() - kept;
        if new == 0 {
            break;
        }
        for canary in canaries {
            let from = kept.saturating_sub(canary.len() - 1);
            found += occurrences(&buffer[from..], canary);
        }
        for page in buffer[kept..].as_chunks::<PAGE_SIZE>().0 {
            counts.wal_pages += u64::from(is_wal_page(page));
            counts.relation_pages += u64::from(is_relation_page(page));
        }
        total += new as u64;
        rest = buffer[buffer.len() - (longest - 1).min(buffer.len())..].to_vec();
    }
    counts.files += 1;
    counts.bytes += total;
    counts.canaries += found;
    counts.canary_files += u64::from(found > 0);
    Ok(found)
}

fn occurrences(hay: &[u8], needle: &[u8]) -> u64 {
    let (first, rest) = (needle[0], &needle[1..]);
    let starts = hay.iter().enumerate().filter(|(_, byte)| **byte == first);
    starts.filter(|(at, _)| hay[at + 1..].starts_with(rest)).count() as u64
}

/// `XLogPageHeaderData`: magic, flags, a timeline, a position at a page's beginning.
fn is_wal_page(page: &Page) -> bool {
    let half = |at: usize| u16::from_le_bytes([page[at], page[at + 1]]);
    matches!(half(0) >> 8, 0xD0 | 0xD1)
        && half(2) & !0x000F == 0
        && page[4..8] != [0; 4]
        && half(8) % PAGE_SIZE as u16 == 0
        && page[8..16] != [0; 8]
}

fn is_relation_page(page: &Page) -> bool {
    !pg::is_zero(page) && pg::header_is_valid(page, Fork::Main)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_found_wherever_it_lies() {
        let dir = tempfile::tempdir().expect("a folder");
        let (path, canaries) = (dir.path().join("file"), [b"canary-text".to_vec(), b"second".to_vec()]);
        for at in [0, 1, CHUNK - 11, CHUNK - 5, CHUNK, 2 * CHUNK - 1, 3 * CHUNK - 20] {
            let mut bytes = vec![7; 3 * CHUNK];
            bytes[at..at + 11].copy_from_slice(&canaries[0]);
            fs::write(&path, &bytes).expect("written");
            let mut counts = Counts::default();
            assert_eq!(look(&path, &canaries, &mut counts).expect("read"), 1, "at {at}");
            assert_eq!((counts.files, counts.bytes, counts.canary_files), (1, 3 * CHUNK as u64, 1));
        }
    }

    #[test]
    fn files_are_counted_by_kind() {
        for (path, expected) in [
            ("/d/pg_wal/000000010000000000000001", "wal"),
            ("/archive/000000010000000000000001", "wal"),
            ("/d/base/pgsql_tmp/pgsql_tmp1.0", "temporary"),
            ("/d/pg_replslot/s/xid-1-lsn-0-1.spill", "logical decoding"),
            ("/d/pg_notify/0000", "notifications"),
            ("/d/base/5/1259_fsm", "relations"),
            ("/d/pg_xact/0000", "other"),
            ("/d/postgresql.conf", "other"),
        ] {
            assert_eq!(kind(Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn canaries_that_random_bytes_hold_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("canaries");
        fs::write(&path, "canary\r\n\nsecond text\n").expect("written");
        assert_eq!(canaries(&path).expect("two"), [b"canary".to_vec(), b"second text".to_vec()]);
        fs::write(&path, "canary\nshort\n").expect("written");
        assert!(matches!(canaries(&path), Err(ScanError::ShortCanary(_))));
        fs::write(&path, "\n").expect("written");
        assert!(matches!(canaries(&path), Err(ScanError::NoCanary(_))));
    }
}
