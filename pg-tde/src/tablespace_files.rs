//! The files of a tablespace.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::ffi::server;
use crate::key_table::{PG_DEFAULT, PG_GLOBAL};
use crate::tablespace_error::TablespaceError;

/// Where a tablespace is, below the data directory.
pub(crate) fn directory(oid: u32) -> PathBuf {
    server::data_directory().join(match oid {
        PG_DEFAULT => "base".to_owned(),
        PG_GLOBAL => "global".to_owned(),
        _ => format!("pg_tblspc/{oid}"),
    })
}

/// Whether there is a tablespace in the file system.
pub(crate) fn has_directory(oid: u32) -> bool {
    std::fs::symlink_metadata(directory(oid)).is_ok()
}

/// The directories of the databases in a tablespace: `base/DATABASE`, `global`, `pg_tblspc/OID/PG_*/DATABASE`.
fn database_directories(oid: u32) -> Result<Vec<PathBuf>, TablespaceError> {
    let mut found = match oid {
        PG_GLOBAL => return Ok(vec![directory(oid)]),
        PG_DEFAULT => entries(&directory(oid))?,
        _ => {
            let mut found = Vec::new();
            for version in entries(&directory(oid))? {
                found.extend(entries(&version)?);
            }
            found
        }
    };
    found.retain(|path| path.file_name().is_some_and(is_number));
    Ok(found)
}

/// OIDs of the databases that have a directory in `pg_default` or are named in another tablespace's.
///
/// # Errors
/// When a directory cannot be read.
pub(crate) fn databases_in(oid: u32) -> Result<BTreeSet<u32>, TablespaceError> {
    let directories = database_directories(oid)?;
    Ok(directories.iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect())
}

/// Every file in the directories of a tablespace's databases that may belong to a relation.
///
/// # Errors
/// When a directory cannot be read.
pub(crate) fn relation_files(oid: u32) -> Result<Vec<PathBuf>, TablespaceError> {
    let mut files = Vec::new();
    for directory in database_directories(oid)? {
        files.extend(entries(&directory)?);
    }
    files.retain(|file| {
        !file.file_name().is_some_and(|name| name == "PG_VERSION" || name == "pg_filenode.map")
    });
    files.sort();
    Ok(files)
}

fn is_number(name: &std::ffi::OsStr) -> bool {
    name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

fn entries(path: &Path) -> Result<Vec<PathBuf>, TablespaceError> {
    let failed = |source| TablespaceError::Read { path: path.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        found.push(entry.map_err(failed)?.path());
    }
    Ok(found)
}
