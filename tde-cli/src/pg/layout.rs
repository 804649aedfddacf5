//! Where a cluster keeps its relations (src/common/relpath.c): `global/REL`, `base/DB/REL`,
//! `pg_tblspc/SPACE/PG_VERSION_CATALOG/DB/REL`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use page_cipher::pg::Fork;

/// OIDs of the two tablespaces that every cluster has (src/include/catalog/pg_tablespace.dat).
const PG_DEFAULT: u32 = 1663;
const PG_GLOBAL: u32 = 1664;

/// A tablespace's folder for this server version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TablespaceDir {
    pub(crate) oid: u32,
    /// Name, where it is the same in every cluster.
    pub(crate) name: Option<&'static str>,
    pub(crate) path: PathBuf,
    /// Where the link leads, for tablespaces outside of the data directory.
    pub(crate) location: Option<PathBuf>,
}

/// One file of a relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RelationFile {
    pub(crate) path: PathBuf,
    /// 0 in pg_global.
    pub(crate) database: u32,
    pub(crate) name: RelationName,
}

/// What a relation file's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelationName {
    /// Relfilenode.
    pub(crate) number: u32,
    pub(crate) fork: Fork,
    /// Files of a fork are counted from 0.
    pub(crate) segment: u32,
    /// Of a session's temporary table.
    pub(crate) temporary: bool,
}

impl RelationName {
    /// `[t<backend>_]<number>[_fsm|_vm|_init][.<segment>]`; `None` for other files.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (name, temporary) = match name.strip_prefix('t') {
            Some(rest) => {
                let (backend, name) = rest.split_once('_')?;
                number(backend)?;
                (name, true)
            }
            None => (name, false),
        };
        let (name, segment) = match name.split_once('.') {
            Some((name, segment)) => (name, number(segment).filter(|segment| *segment > 0)?),
            None => (name, 0),
        };
        let (digits, fork) = match name.split_once('_') {
            None => (name, Fork::Main),
            Some((digits, "fsm")) => (digits, Fork::Fsm),
            Some((digits, "vm")) => (digits, Fork::Vm),
            Some((digits, "init")) => (digits, Fork::Init),
            Some(_) => return None,
        };
        Some(Self { number: number(digits)?, fork, segment, temporary })
    }
}

fn number(digits: &str) -> Option<u32> {
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if all_digits { digits.parse().ok() } else { None }
}

/// Every tablespace of the cluster, the two built-in ones first.
pub(crate) fn tablespaces(
    data: &Path,
    major: &str,
    catalog_version: Option<u32>,
) -> io::Result<Vec<TablespaceDir>> {
    let built_in =
        |oid, name, folder| TablespaceDir { oid, name: Some(name), path: data.join(folder), location: None };
    let mut found =
        vec![built_in(PG_DEFAULT, "pg_default", "base"), built_in(PG_GLOBAL, "pg_global", "global")];
    let mut others = Vec::new();
    for entry in read_dir_or_none(&data.join("pg_tblspc"))? {
        let Some(oid) = entry.to_str().and_then(number) else { continue };
        let link = data.join("pg_tblspc").join(&entry);
        let path = version_folder(&link, major, catalog_version)?;
        others.push(TablespaceDir { oid, name: None, path, location: fs::read_link(&link).ok() });
    }
    others.sort_unstable_by_key(|space| space.oid);
    found.extend(others);
    Ok(found)
}

/// `PG_<major>_<catalog version>`; servers of several versions may share a tablespace's place. Without a control
/// file that says which, the last one of this major version.
fn version_folder(link: &Path, major: &str, catalog_version: Option<u32>) -> io::Result<PathBuf> {
    let prefix = format!("PG_{major}_");
    if let Some(catalog_version) = catalog_version {
        return Ok(link.join(format!("{prefix}{catalog_version}")));
    }
    let names = read_dir_or_none(link)?.into_iter().filter_map(|name| name.into_string().ok());
    let last = names.filter(|name| name.starts_with(&prefix)).max();
    Ok(link.join(last.unwrap_or(prefix)))
}

/// Every relation file of a tablespace, sorted; a folder that is not there holds none.
pub(crate) fn relation_files(space: &TablespaceDir) -> io::Result<Vec<RelationFile>> {
    if space.oid == PG_GLOBAL {
        return files_of(&space.path, 0);
    }
    let mut files = Vec::new();
    let mut databases = Vec::new();
    for entry in read_dir_or_none(&space.path)? {
        databases.extend(entry.to_str().and_then(number));
    }
    databases.sort_unstable();
    for database in databases {
        files.extend(files_of(&space.path.join(database.to_string()), database)?);
    }
    Ok(files)
}

fn files_of(folder: &Path, database: u32) -> io::Result<Vec<RelationFile>> {
    let mut files = Vec::new();
    for entry in read_dir_or_none(folder)? {
        if let Some(name) = entry.to_str().and_then(RelationName::parse) {
            files.push(RelationFile { path: folder.join(&entry), database, name });
        }
    }
    files.sort_unstable_by_key(|file| {
        let name = file.name;
        (name.number, name.fork as u8, name.temporary, name.segment)
    });
    Ok(files)
}

fn read_dir_or_none(path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    match fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot list {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_relation_fork_and_segment() {
        let name = |number, fork, segment, temporary| Some(RelationName { number, fork, segment, temporary });
        for (text, expected) in [
            ("16384", name(16384, Fork::Main, 0, false)),
            ("16384.12", name(16384, Fork::Main, 12, false)),
            ("16384_fsm", name(16384, Fork::Fsm, 0, false)),
            ("16384_vm.1", name(16384, Fork::Vm, 1, false)),
            ("16384_init", name(16384, Fork::Init, 0, false)),
            ("t3_16384", name(16384, Fork::Main, 0, true)),
            ("t12_16384_fsm.2", name(16384, Fork::Fsm, 2, true)),
            ("PG_VERSION", None),
            ("pg_filenode.map", None),
            ("pg_control", None),
            ("16384.0", None),
            ("16384_other", None),
            ("16384.", None),
            ("t_5", None),
            ("99999999999", None),
            ("+5", None),
        ] {
            assert_eq!(RelationName::parse(text), expected, "{text}");
        }
    }
}
