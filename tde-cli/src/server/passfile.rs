//! PostgreSQL's password file: `host:port:database:user:password` a line, `*` for any, `\` before `:` and `\`.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

use zeroize::Zeroizing;

/// Longer than any.
const MAX_BYTES: u64 = 1 << 20;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum PassfileError {
    /// Others may read it.
    #[error("password file {} can be read by others (mode {mode:o}): chmod 600", path.display())]
    LooseMode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It cannot be read.
    #[error("cannot read password file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What a line must fit.
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// `PGPASSFILE`, or the one in the home directory.
pub(super) fn path() -> Option<PathBuf> {
    let given = env::var_os("PGPASSFILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    given.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".pgpass")))
}

/// The password for a server, if the file has one. A file that is not there has none.
///
/// # Errors
/// See [`PassfileError`]: one that others can read is refused rather than ignored.
pub(super) fn password(
    path: &Path,
    wanted: &Wanted<'_>,
) -> Result<Option<Zeroizing<Vec<u8>>>, PassfileError> {
    let io_error = |source| PassfileError::Io { path: path.into(), source };
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io_error)?,
    };
    let meta = file.metadata().map_err(io_error)?;
    if !meta.is_file() {
        return Ok(None); // as libpq, which tests run with /dev/null
    }
    if meta.mode() & 0o077 != 0 {
        return Err(PassfileError::LooseMode { path: path.into(), mode: meta.mode() & 0o7777 });
    }
    let mut text =
        Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len().min(MAX_BYTES)).unwrap_or(0) + 1));
    file.take(MAX_BYTES).read_to_end(&mut text).map_err(io_error)?;
    Ok(text.split(|byte| *byte == b'\n').find_map(|line| fits(line, wanted)))
}

/// The password of a line that fits.
fn fits(line: &[u8], wanted: &Wanted<'_>) -> Option<Zeroizing<Vec<u8>>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line[0] == b'#' {
        return None;
    }
    let port = wanted.port.to_string();
    let mut rest = line;
    for value in [wanted.host, &port, wanted.database, wanted.user] {
        let (field, after) = field(rest);
        if *field != b"*"[..] && *field != *value.as_bytes() {
            return None;
        }
        rest = after?;
    }
    let (password, _) = field(rest);
    (!password.is_empty()).then_some(password)
}

/// Up to the next colon, and what follows it.
fn field(text: &[u8]) -> (Zeroizing<Vec<u8>>, Option<&[u8]>) {
    let mut field = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b':' => return (field, Some(&text[at + 1..])),
            b'\\' => field.extend(bytes.next().map(|(_, byte)| byte)),
            other => field.push(*other),
        }
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn wanted<'a>(host: &'a str, user: &'a str) -> Wanted<'a> {
        Wanted { host, port: 5432, database: "postgres", user }
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pgpass");
        let text =
            "# a comment\nother:5432:*:dba:wrong\ndb:5432:postgres:dba:se\\:cr\\\\et\ndb:*:*:*:second\n";
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let found = |host, user| password(&path, &wanted(host, user)).unwrap().map(|found| found.to_vec());
        assert_eq!(found("db", "dba"), Some(b"se:cr\\et".to_vec()));
        assert_eq!(found("db", "somebody"), Some(b"second".to_vec()));
        assert_eq!(found("elsewhere", "dba"), None);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = password(&path, &wanted("db", "dba"));
        assert!(matches!(refused, Err(PassfileError::LooseMode { mode: 0o640, .. })), "{refused:?}");
        assert_eq!(password(&dir.path().join("none"), &wanted("db", "dba")).unwrap().map(|p| p.len()), None);
    }
}
