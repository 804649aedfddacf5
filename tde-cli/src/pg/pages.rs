//! What the pages of a tablespace are, told from their bytes, and with keys by opening them.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use keyring::{Dek, DekState, KeyringError, MasterKey, Scope, Unlocked};
use page_cipher::CipherId;
use page_cipher::pg::{self, PAGE_SIZE, Page, RelationCipher};
use serde::Serialize;

use super::layout::{RelationFile, TablespaceDir, relation_files};

/// Pages read at once.
const CHUNK: usize = 64;
/// Bad pages named one by one; more are only counted.
pub(crate) const MAX_NAMED: usize = 200;
/// How often a bad page of a running server is looked at again: it may be under way to the disk.
const LOOKS: u32 = 5;

/// Pages by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct PageCounts {
    /// All zero: made, but not yet used.
    pub(crate) zero: u64,
    /// A plain page.
    pub(crate) plain: u64,
    /// Not plain, and its checksum is right for the bytes as they are.
    pub(crate) encrypted: u64,
    /// Of the encrypted ones, those that were opened with a key.
    pub(crate) opened: u64,
    /// Neither plain nor encrypted, or it opens with no key.
    pub(crate) damaged: u64,
}

impl PageCounts {
    pub(crate) fn content(&self) -> &'static str {
        match (self.plain > 0, self.encrypted > 0) {
            (false, false) => "empty",
            (true, false) => "plain",
            (false, true) => "encrypted",
            (true, true) => "mixed",
        }
    }
}

/// What a tablespace holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scan {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) temporary_files: u64,
    pub(crate) pages: PageCounts,
    /// The first bad pages, by name.
    pub(crate) bad: Vec<BadPage>,
    /// Where plain pages are, for a tablespace that should have none.
    pub(crate) plain_files: Vec<String>,
}

/// A page that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct BadPage {
    pub(crate) file: String,
    /// Block within the fork.
    pub(crate) block: u32,
    pub(crate) reason: String,
}

/// A tablespace's keys, newest version first.
pub(crate) struct ScopeKeys {
    pub(crate) scope: Scope,
    deks: Vec<Dek>,
    /// Versions that could not be had.
    pub(crate) problems: Vec<KeyringError>,
}

impl ScopeKeys {
    pub(crate) fn unwrap_all(keyring: &Unlocked, scope: Scope, master: &dyn MasterKey) -> Self {
        let (mut deks, mut problems) = (Vec::new(), Vec::new());
        let usable = |state| !matches!(state, DekState::Destroyed { .. });
        for version in scope.versions.iter().rev().filter(|version| usable(version.state)) {
            match keyring.dek_of(&scope, version.version, master) {
                Ok(dek) => deks.push(dek),
                Err(error) => problems.push(error),
            }
        }
        Self { scope, deks, problems }
    }

    fn ciphers(&self, file: &RelationFile) -> Result<Vec<RelationCipher>, pg::UnsupportedCipher> {
        let cipher: CipherId = self.scope.cipher;
        let make = |dek| RelationCipher::new(cipher, dek, file.database, file.name.number);
        self.deks.iter().map(make).collect()
    }
}

/// How to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) blocks_per_file: u32,
    /// Whether plain pages have checksums.
    pub(crate) checksums: bool,
    /// Whether a server may be writing.
    pub(crate) running: bool,
}

/// What one page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Zero,
    Plain,
    Encrypted { opened: bool },
    Damaged(&'static str),
}

/// Reads every relation file of a tablespace.
pub(crate) fn scan(space: &TablespaceDir, keys: Option<&ScopeKeys>, mode: Mode) -> io::Result<Scan> {
    let mut scan = Scan::default();
    for file in relation_files(space)? {
        match scan_file(&file, keys, mode, &mut scan) {
            // Dropped while we looked.
            Err(error) if mode.running && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let text = format!("cannot read {}: {error}", file.path.display());
                return Err(io::Error::new(error.kind(), text));
            }
            Ok(()) => {}
        }
    }
    Ok(scan)
}

fn scan_file(file: &RelationFile, keys: Option<&ScopeKeys>, mode: Mode, scan: &mut Scan) -> io::Result<()> {
    // Opening a FIFO would wait for ever.
    if !std::fs::metadata(&file.path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut input = File::open(&file.path)?;
    scan.files += 1;
    scan.temporary_files += u64::from(file.name.temporary);
    let ciphers = keys.map(|keys| keys.ciphers(file)).transpose().map_err(io::Error::other)?;
    let look = Look { file, ciphers: ciphers.as_deref(), mode };
    let mut chunk = vec![0; CHUNK * PAGE_SIZE];
    let mut index = 0;
    let mut plain_seen = false;
    loop {
        let len = read_full(&mut input, &mut chunk)?;
        scan.bytes += len as u64;
        let (pages, rest) = chunk[..len].as_chunks::<PAGE_SIZE>();
        for page in pages {
            let class = look.classify_again(&input, index, page)?;
            plain_seen |= class == Class::Plain;
            scan.count(&look, index, class);
            index += 1;
        }
        if !rest.is_empty() && !mode.running {
            scan.count(&look, index, Class::Damaged("the file ends within this page"));
        }
        if len < chunk.len() {
            break;
        }
    }
    if plain_seen && scan.plain_files.len() < MAX_NAMED {
        scan.plain_files.push(file.path.display().to_string());
    }
    Ok(())
}

fn read_full(input: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match input.read(&mut buffer[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

impl Scan {
    fn count(&mut self, look: &Look<'_>, index: u32, class: Class) {
        match class {
            Class::Zero => self.pages.zero += 1,
            Class::Plain => self.pages.plain += 1,
            Class::Encrypted { opened } => {
                self.pages.encrypted += 1;
                self.pages.opened += u64::from(opened);
            }
            Class::Damaged(reason) => {
                self.pages.damaged += 1;
                if self.bad.len() < MAX_NAMED {
                    let file = look.file.path.display().to_string();
                    self.bad.push(BadPage { file, block: look.block(index), reason: reason.into() });
                }
            }
        }
    }
}

struct Look<'a> {
    file: &'a RelationFile,
    ciphers: Option<&'a [RelationCipher]>,
    mode: Mode,
}

impl Look<'_> {
    /// Block within the fork, from the page's index within its file.
    fn block(&self, index: u32) -> u32 {
        self.file.name.segment.wrapping_mul(self.mode.blocks_per_file).wrapping_add(index)
    }

    fn classify_again(&self, input: &File, index: u32, page: &Page) -> io::Result<Class> {
        let block = self.block(index);
        let mut class = self.classify(block, page);
        let mut again = *page;
        for _ in 1..LOOKS {
            if !self.mode.running || !matches!(class, Class::Damaged(_)) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            match input.read_exact_at(&mut again, u64::from(index) * PAGE_SIZE as u64) {
                Ok(()) => class = self.classify(block, &again),
                // Truncated since.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Class::Zero),
                Err(error) => return Err(error),
            }
        }
        Ok(class)
    }

    fn classify(&self, block: u32, page: &Page) -> Class {
        if pg::is_zero(page) {
            return Class::Zero;
        }
        let right = pg::checksum(page, block) == u16::from_le_bytes([page[8], page[9]]);
        if pg::header_is_valid(page, self.file.name.fork) {
            if right || !self.mode.checksums {
                return Class::Plain;
            }
            return Class::Damaged("a plain page whose checksum is wrong");
        }
        if !right {
            return Class::Damaged("neither a plain page nor an encrypted one: its checksum is wrong");
        }
        // Temporary relations belong to a session that may have keys of its own.
        let Some(ciphers) = self.ciphers.filter(|_| !self.file.name.temporary) else {
            return Class::Encrypted { opened: false };
        };
        let mut copy = *page;
        if ciphers.iter().any(|cipher| cipher.open(self.file.name.fork, block, &mut copy).is_ok()) {
            return Class::Encrypted { opened: true };
        }
        Class::Damaged(
            "encrypted, but it opens with no key of this tablespace: changed, moved, or another key",
        )
    }
}
