//! Reads the files of an encrypted tablespace and tries to open every page.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use page_cipher::pg::{self, Fork, OpenError, PAGE_SIZE, Page, RelationCipher};

use crate::ffi::server;
use crate::key_table::{KeyTable, LineInfo, State};
use crate::keys::{self, KeyError};
use crate::span::NOW;
use crate::tablespace::{self, TablespaceError};
use crate::tablespace_files;

/// How often a page that does not open is read again: it may have been read while it was written.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);
/// Between two calls of [`GoOn`].
const REPORT_BLOCKS: u64 = 256;
/// Blocks in a segment file (RELSEG_SIZE of every distribution).
const SEGMENT_BLOCKS: u32 = 131_072;

/// What was found in one fork of a relation.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    pub(crate) database: u32,
    pub(crate) number: u32,
    pub(crate) fork: &'static str,
    pub(crate) blocks: u64,
    pub(crate) zero_blocks: u64,
    pub(crate) damaged: u64,
    pub(crate) first: Option<Damage>,
}

/// A page that does not open.
#[derive(Debug)]
pub(crate) struct Damage {
    pub(crate) block: u32,
    pub(crate) detail: String,
}

/// A segment file of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Segment {
    database: u32,
    number: u32,
    fork: &'static str,
    segment: u32,
}

/// `NUMBER[_fsm|_vm|_init][.SEGMENT]`; `None` for files of temporary relations and what is not a relation's.
fn parse(path: &Path) -> Option<Segment> {
    let database = match path.parent()?.file_name()?.to_str()? {
        "global" => 0,
        number => number.parse().ok()?,
    };
    let name = path.file_name()?.to_str()?;
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, segment.parse().ok()?),
        None => (name, 0),
    };
    let (number, fork) = match name.split_once('_') {
        None => (name, "main"),
        Some((number, "fsm")) => (number, "fsm"),
        Some((number, "vm")) => (number, "vm"),
        Some((number, "init")) => (number, "init"),
        Some(_) => return None,
    };
    Some(Segment { database, number: number.parse().ok()?, fork, segment })
}

/// Pages in a file of a relation; 0 for one that is gone.
pub(crate) fn blocks(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len() / PAGE_SIZE as u64)
}

/// Checks every page of every permanent relation in an encrypted tablespace, as it is on disk now.
///
/// # Errors
/// When the tablespace is not encrypted or a file cannot be read. A page that does not open is a finding, no error.
pub(crate) fn tablespace(name: &str) -> Result<Vec<Checked>, TablespaceError> {
    let table = tablespace::key_table().ok_or(TablespaceError::NotActive)?;
    let oid = server::tablespace_oid(name).ok_or_else(|| TablespaceError::Unknown(name.to_owned()))?;
    // Until a job has rewritten all pages, those that it has not reached are no damage.
    let line = match table.state(oid) {
        None => return Err(TablespaceError::NotEncrypted(name.to_owned())),
        Some(
            State::Encrypting(line)
            | State::Encrypted(line)
            | State::Rotating(line)
            | State::Decrypting(line),
        ) => line,
    };
    let strict = line.span.refuses_plain(NOW);
    let of_it = |other: &LineInfo| other.tablespace == oid && other.span.end != 0;
    // What a job, or redo, brought under another key may not be written out yet.
    let since = |redo: u64| move |other: &LineInfo| other.span.alive() || other.span.end > redo;
    let redo = server::completed_redo();
    let behind = table.lines().filter(of_it).any(|other| !other.span.alive() && other.span.end > redo);
    if behind && !server::recovery_in_progress() {
        server::checkpoint();
    }
    let lines: Vec<_> = table.lines().filter(of_it).filter(since(server::completed_redo())).collect();
    let wanted = if strict { Wanted::Encrypted } else { Wanted::Either };
    check(table, &lines, Rules { wanted, first_only: false, directory: None }, &mut |_| true)
}

/// Told of every so many blocks that were checked; `false` ends the check, whose result means nothing then.
pub(crate) type GoOn<'a> = &'a mut dyn FnMut(u64) -> bool;

/// The files (of one database's directory, if asked) with a page that does not open under a line. Only the first such page of each is looked for.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn not_encrypted(
    table: &KeyTable,
    line: &LineInfo,
    directory: Option<u32>,
    go_on: GoOn<'_>,
) -> Result<Vec<Checked>, TablespaceError> {
    damaged(table, line, Wanted::Encrypted, directory, go_on)
}

/// The files with a page that is not in clear, or whose checksum is wrong. Only after every page was written while the tablespace was being
/// decrypted: before that, pages have checksums only if the cluster has.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn not_plain(
    table: &KeyTable,
    line: &LineInfo,
    directory: Option<u32>,
    go_on: GoOn<'_>,
) -> Result<Vec<Checked>, TablespaceError> {
    damaged(table, line, Wanted::Plain, directory, go_on)
}

fn damaged(
    table: &KeyTable,
    line: &LineInfo,
    wanted: Wanted,
    directory: Option<u32>,
    go_on: GoOn<'_>,
) -> Result<Vec<Checked>, TablespaceError> {
    let mut checked = check(table, &[*line], Rules { wanted, first_only: true, directory }, go_on)?;
    checked.retain(|file| file.damaged > 0);
    Ok(checked)
}

/// What a page must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Under one of the keys.
    Encrypted,
    /// Under one of the keys, or in clear.
    Either,
    /// In clear, with a right checksum.
    Plain,
}

/// What counts as damage, and what is done about it.
#[derive(Clone, Copy)]
struct Rules {
    /// A page that is not this.
    wanted: Wanted,
    /// The first ends the search in its fork.
    first_only: bool,
    /// Only files of this database, 0 for shared catalogs; all if `None`.
    directory: Option<u32>,
}

/// All of `lines` are of one tablespace, and any of them will do for a page.
fn check(
    table: &KeyTable,
    lines: &[LineInfo],
    rules: Rules,
    go_on: GoOn<'_>,
) -> Result<Vec<Checked>, TablespaceError> {
    let Some(tablespace) = lines.first().map(|line| line.tablespace) else { return Ok(Vec::new()) };
    let mut keys = Vec::new();
    for line in lines {
        if table.dek(line.index)?.is_none() {
            keys::unwrap_line(table, *line)?;
        }
        let dek = table.dek(line.index)?.ok_or(KeyError::Mismatch { line: line.line })?;
        keys.push((line, dek));
    }
    let segments: BTreeMap<Segment, PathBuf> = tablespace_files::relation_files(tablespace)?
        .into_iter()
        .filter_map(|path| Some((parse(&path)?, path)))
        .filter(|(segment, _)| rules.directory.is_none_or(|directory| segment.database == directory))
        .collect();
    let mut found: Vec<Checked> = Vec::new();
    for (segment, path) in segments {
        let Segment { database, number, fork, .. } = segment;
        let mut ciphers = Vec::new();
        for (line, dek) in &keys {
            let cipher = RelationCipher::new(line.cipher, dek, database, number)
                .map_err(|_| KeyError::Mismatch { line: line.line })?;
            ciphers.push(cipher);
        }
        let same = found
            .last()
            .is_some_and(|last| (last.database, last.number, last.fork) == (database, number, fork));
        if !same {
            found.push(Checked { database, number, fork, ..Checked::default() });
        }
        if let Some(checked) = found.last_mut() {
            let before = checked.blocks;
            check_file(&path, segment, &ciphers, rules, checked, go_on)?;
            // Those of whole rounds were told already.
            let blocks = checked.blocks - before;
            if !go_on(blocks - blocks.saturating_sub(1) / REPORT_BLOCKS * REPORT_BLOCKS) {
                break;
            }
        }
    }
    Ok(found)
}

fn check_file(
    path: &Path,
    segment: Segment,
    ciphers: &[RelationCipher],
    rules: Rules,
    checked: &mut Checked,
    go_on: GoOn<'_>,
) -> Result<(), TablespaceError> {
    let failed = |source| TablespaceError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        // Dropped since the directory was read.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let fork = match segment.fork {
        "fsm" => Fork::Fsm,
        "vm" => Fork::Vm,
        "init" => Fork::Init,
        _ => Fork::Main,
    };
    let blocks = file.metadata().map_err(failed)?.len() / PAGE_SIZE as u64;
    for index in 0..blocks {
        if index % REPORT_BLOCKS == 0 {
            server::check_for_interrupts();
            if index > 0 && !go_on(REPORT_BLOCKS) {
                break;
            }
        }
        let block = segment.segment * SEGMENT_BLOCKS + u32::try_from(index).unwrap_or(u32::MAX);
        let open = |page: &mut Page| {
            let in_clear = rules.wanted != Wanted::Encrypted && pg::header_is_valid(page, fork);
            let mut result = Err(OpenError::NotAuthentic);
            if rules.wanted == Wanted::Plain {
                let right = page[8..10] == pg::checksum(page, block).to_ne_bytes();
                return if in_clear && right { Ok(()) } else { result };
            }
            for cipher in ciphers {
                result = cipher.open(fork, block, page);
                if result.is_ok() {
                    return result;
                }
            }
            if in_clear { Ok(()) } else { result }
        };
        match check_page(&file, index, open).map_err(failed)? {
            // Truncated meanwhile.
            Found::Gone => break,
            Found::Zero => checked.zero_blocks += 1,
            Found::Good => (),
            Found::Bad(error) => {
                checked.damaged += 1;
                checked.first.get_or_insert_with(|| Damage { block, detail: error.to_string() });
                if rules.first_only {
                    break;
                }
            }
        }
        checked.blocks += 1;
    }
    Ok(())
}

enum Found {
    Gone,
    Zero,
    Good,
    Bad(OpenError),
}

fn check_page(
    file: &File,
    index: u64,
    open: impl Fn(&mut Page) -> Result<(), OpenError>,
) -> std::io::Result<Found> {
    let mut page: Page = [0; PAGE_SIZE];
    let mut attempt = 1;
    loop {
        match file.read_exact_at(&mut page, index * PAGE_SIZE as u64) {
            Ok(()) => (),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(Found::Gone),
            Err(error) => return Err(error),
        }
        if pg::is_zero(&page) {
            return Ok(Found::Zero);
        }
        match open(&mut page) {
            Ok(()) => return Ok(Found::Good),
            Err(error) if attempt == ATTEMPTS => return Ok(Found::Bad(error)),
            Err(_) => attempt += 1,
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_of_permanent_relations_are_understood_and_others_left_out() {
        let parse = |name: &str| parse(Path::new(&format!("pg_tblspc/16400/PG_15_202209061/5/{name}")));
        let segment = |fork, segment| Some(Segment { database: 5, number: 16401, fork, segment });
        assert_eq!(parse("16401"), segment("main", 0));
        assert_eq!(parse("16401.12"), segment("main", 12));
        assert_eq!(parse("16401_fsm"), segment("fsm", 0));
        assert_eq!(parse("16401_vm.1"), segment("vm", 1));
        assert_eq!(parse("16401_init"), segment("init", 0));
        for other in ["t3_16401", "PG_VERSION", "pg_filenode.map", "16401_x", "pgsql_tmp"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
