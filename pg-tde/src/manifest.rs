//! What the data directory itself says of its keys: `pg_tde.manifest`.
//!
//! The keyring may lie elsewhere, be moved, or be left out of a restore. Without this file a server that does not
//! find it would look like one that never had any, and write in clear. The manifest travels with the data directory in every
//! backup. It names no secret and is not sealed: whoever can change it can also change what is in the data directory.
//!
//! ```text
//! pg_tde manifest 2
//! keyring 0f9b5c1e-...-uuid
//! wal line 2                       if the WAL has a line
//! tablespace 16400 line 1 from 000000002A000028     one for each line that was ever put to use, with the WAL position of that
//! crc32 1f2e3d4c                   of everything before this line
//! ```
//! Order of writes: keyring record, manifest, then the state that puts the line to use. So a manifest names only lines that
//! the keyring has, and every line in use is named.
//!
//! A base backup copies keyring and manifest at different times. One that names a line which the keyring does not have is no fault before the
//! position of the line: the WAL brings the line when it is replayed up to there, and until then its tablespace is in clear.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use keyring::KeyringId;
use uuid::Uuid;

use crate::ffi::server;

const NAME: &str = "pg_tde.manifest";
const HEAD: &str = "pg_tde manifest 2";

/// Why the manifest cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ManifestError {
    /// It cannot be read or written.
    #[error("cannot {what} \"{}\": {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("\"{}\" is damaged: restore it from a backup of this data directory", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

/// A key line of a tablespace, or of the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Named {
    /// OID of the tablespace, or [`Named::WAL`].
    pub(crate) tablespace: u32,
    /// Line in the keyring.
    pub(crate) line: u64,
}

impl Named {
    /// No tablespace has this OID.
    pub(crate) const WAL: u32 = 0;
}

/// The manifest of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// The keyring that belongs to the data directory.
    pub(crate) keyring: KeyringId,
    /// Lines that were put to use, and from which WAL position on.
    pub(crate) lines: BTreeMap<Named, u64>,
}

impl Manifest {
    /// One without lines.
    pub(crate) fn new(keyring: KeyringId) -> Self {
        Self { keyring, lines: BTreeMap::new() }
    }

    /// The manifest of this data directory, if it has one.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub(crate) fn read() -> Result<Option<Self>, ManifestError> {
        let path = server::data_directory().join(NAME);
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).map(Some).ok_or(ManifestError::Damaged { path }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ManifestError::Io { what: "read", path, source }),
        }
    }

    /// Makes sure that a line is named, from this position or an earlier one. The caller has [`server::lock_keyring`] or is alone.
    ///
    /// # Errors
    /// When the manifest cannot be read or replaced.
    pub(crate) fn name(keyring: KeyringId, named: Named, from: u64) -> Result<(), ManifestError> {
        let mut manifest = match Self::read()? {
            Some(manifest) if manifest.keyring == keyring => manifest,
            // Another keyring was adopted, which is possible only while this one had no lines.
            _ => Self::new(keyring),
        };
        let known = manifest.lines.get(&named).copied();
        if known.is_some_and(|known| known <= from) {
            return Ok(());
        }
        manifest.lines.insert(named, from);
        manifest.write()
    }

    /// Replaces the manifest of this data directory: temporary file, sync, rename, sync of the directory.
    ///
    /// # Errors
    /// When that fails; the old manifest is still there then.
    pub(crate) fn write(&self) -> Result<(), ManifestError> {
        let directory = server::data_directory();
        let path = directory.join(NAME);
        let failed = |source| ManifestError::Io { what: "write", path: path.clone(), source };
        replace(&directory, &path, self.text().as_bytes()).map_err(failed)
    }

    fn text(&self) -> String {
        let mut text = format!("{HEAD}\nkeyring {}\n", self.keyring);
        for (named, from) in &self.lines {
            match named.tablespace {
                Named::WAL => text.push_str(&format!("wal line {}\n", named.line)),
                tablespace => {
                    text.push_str(&format!("tablespace {tablespace} line {} from {from:016X}\n", named.line));
                }
            }
        }
        let crc = crc32fast::hash(text.as_bytes());
        text.push_str(&format!("crc32 {crc:08x}\n"));
        text
    }

    /// `None` for anything that `text` would not have written.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != HEAD {
            return None;
        }
        let keyring = KeyringId(Uuid::parse_str(lines.next()?.strip_prefix("keyring ")?).ok()?);
        let mut manifest = Self::new(keyring);
        for line in lines.filter(|line| !line.starts_with("crc32 ")) {
            let (tablespace, line, from) = match line.strip_prefix("wal line ") {
                Some(line) => (Named::WAL, line, 0),
                None => {
                    let (tablespace, rest) = line.strip_prefix("tablespace ")?.split_once(" line ")?;
                    let (line, from) = rest.split_once(" from ")?;
                    (tablespace.parse().ok()?, line, u64::from_str_radix(from, 16).ok()?)
                }
            };
            manifest.lines.insert(Named { tablespace, line: line.parse().ok()? }, from);
        }
        (manifest.text() == text).then_some(manifest)
    }
}

fn replace(directory: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{NAME}.tmp"));
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let mut manifest = Manifest::new(KeyringId(Uuid::from_u128(0x1234)));
        manifest.lines.insert(Named { tablespace: 16400, line: 1 }, 0x2a00_0028);
        manifest.lines.insert(Named { tablespace: 16500, line: 12 }, u64::MAX);
        manifest.lines.insert(Named { tablespace: Named::WAL, line: 3 }, 0);
        manifest
    }

    #[test]
    fn the_text_is_pinned_and_comes_back() {
        let text = manifest().text();
        assert_eq!(
            text,
            "pg_tde manifest 2\nkeyring 00000000-0000-0000-0000-000000001234\nwal line 3\ntablespace 16400 line 1 from 000000002A000028\ntablespace 16500 line 12 from FFFFFFFFFFFFFFFF\ncrc32 PINNED\n"
                .replace("PINNED", &format!("{:08x}", crc32fast::hash(&text.as_bytes()[..text.len() - 15])))
        );
        assert_eq!(Manifest::parse(&text), Some(manifest()));
    }

    #[test]
    fn every_changed_or_missing_byte_is_noticed() {
        let text = manifest().text();
        for position in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[position] ^= 1;
            let changed = String::from_utf8(bytes).expect("ASCII");
            assert_eq!(Manifest::parse(&changed), None, "byte {position}");
            assert_eq!(Manifest::parse(&text[..position]), None, "{position} bytes");
        }
    }
}
