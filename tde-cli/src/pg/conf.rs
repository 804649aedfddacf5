//! PostgreSQL's configuration files, read as the server reads them (src/backend/utils/misc/guc-file.l).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The server's own limit on nested includes (`CONF_FILE_MAX_DEPTH`).
const MAX_DEPTH: usize = 10;
/// Files read in all. A folder whose files include that folder again has its files read to the power of the depth.
const MAX_FILES: usize = 1000;

/// One setting and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) value: String,
    /// File and line.
    pub(crate) source: String,
}

/// The settings of a cluster; the last file to set one wins, as in the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    entries: BTreeMap<String, Entry>,
    /// What could not be read or understood.
    pub(crate) problems: Vec<String>,
    /// The main file; none if there is no telling where it is.
    pub(crate) file: Option<PathBuf>,
    files_read: usize,
}

impl Settings {
    /// `postgresql.conf` (where `given` says, or where the last start found it, or where Debian keeps it), then
    /// `postgresql.auto.conf`, then the last start's command line.
    pub(crate) fn of_cluster(data: &Path, given: Option<&Path>, major: &str) -> Self {
        let options = last_start_options(data);
        let named = |name| options.iter().rev().find(|(option, _)| option == name).map(|(_, value)| value);
        let candidates = [
            given.map(Path::to_path_buf),
            named("config_file").map(PathBuf::from),
            Some(data.join("postgresql.conf")),
            debian_file(data, major),
        ];
        let mut settings = Self { file: first_file(candidates, given.is_some()), ..Self::default() };
        if let Some(file) = settings.file.clone() {
            settings.read(&file, 0, true);
        }
        settings.read(&data.join("postgresql.auto.conf"), 0, false);
        for (name, value) in options {
            settings.set(&name, value, "command line of the last start (postmaster.opts)".into());
        }
        settings
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// A boolean in one of the spellings that the server takes (`parse_bool`).
    pub(crate) fn get_bool(&self, name: &str) -> Option<bool> {
        let value = self.get(name)?.value.to_ascii_lowercase();
        let starts = |word: &str, least: usize| value.len() >= least && word.starts_with(value.as_str());
        if starts("true", 1) || starts("yes", 1) || starts("on", 2) || value == "1" {
            return Some(true);
        }
        let off = starts("false", 1) || starts("no", 1) || starts("off", 2) || value == "0";
        off.then_some(false)
    }

    /// A comma-separated list, as `SplitDirectoriesString` takes it apart.
    pub(crate) fn get_list(&self, name: &str) -> Vec<String> {
        let Some(entry) = self.get(name) else { return Vec::new() };
        let items = entry.value.split(',').map(|item| item.trim().trim_matches('"').to_owned());
        items.filter(|item| !item.is_empty()).collect()
    }

    fn set(&mut self, name: &str, value: String, source: String) {
        self.entries.insert(name.to_ascii_lowercase(), Entry { value, source });
    }

    fn read(&mut self, file: &Path, depth: usize, must_exist: bool) {
        let shown = file.display();
        self.files_read += 1;
        if self.files_read > MAX_FILES {
            if self.files_read == MAX_FILES + 1 {
                self.problems.push(format!(
                    "{shown} and what follows were not read: more than {MAX_FILES} files are included"
                ));
            }
            return;
        }
        if depth > MAX_DEPTH {
            self.problems.push(format!("{shown}: files are nested too deeply"));
            return;
        }
        // Reading a FIFO would wait for ever.
        if fs::metadata(file).is_ok_and(|metadata| !metadata.is_file()) {
            self.problems.push(format!("cannot read {shown}: it is not a regular file"));
            return;
        }
        let text = match fs::read(file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => return,
            Err(error) => {
                self.problems.push(format!("cannot read {shown}: {error}"));
                return;
            }
        };
        for (index, line) in text.lines().enumerate() {
            let source = format!("{shown}:{}", index + 1);
            match parse_line(line) {
                Ok(None) => {}
                Ok(Some((name, value))) => self.apply(file, depth, &name, value, source),
                Err(()) => self.problems.push(format!("{source}: the server would not understand this line")),
            }
        }
    }

    fn apply(&mut self, file: &Path, depth: usize, name: &str, value: String, source: String) {
        let folder = file.parent().unwrap_or(Path::new("."));
        match name.to_ascii_lowercase().as_str() {
            "include" => self.read(&folder.join(value), depth + 1, true),
            "include_if_exists" => self.read(&folder.join(value), depth + 1, false),
            "include_dir" => self.read_dir(&folder.join(value), depth, &source),
            _ => self.set(name, value, source),
        }
    }

    /// Files ending in `.conf` that do not begin with a dot, in the order of their names.
    fn read_dir(&mut self, dir: &Path, depth: usize, source: &str) {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) => {
                self.problems.push(format!("{source}: cannot read {}: {error}", dir.display()));
                return;
            }
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> =
            names.filter(|name| name.ends_with(".conf") && !name.starts_with('.')).collect();
        names.sort_unstable();
        for name in names {
            self.read(&dir.join(name), depth + 1, true);
        }
    }
}

fn first_file(candidates: [Option<PathBuf>; 4], first_is_given: bool) -> Option<PathBuf> {
    let mut candidates = candidates.into_iter().flatten();
    if first_is_given {
        return candidates.next();
    }
    candidates.find(|file| file.is_file())
}

/// Debian keeps it outside of the data directory, which it names.
fn debian_file(data: &Path, major: &str) -> Option<PathBuf> {
    let wanted = data.canonicalize().ok()?;
    let clusters = fs::read_dir(Path::new("/etc/postgresql").join(major)).ok()?;
    clusters.filter_map(|cluster| Some(cluster.ok()?.path().join("postgresql.conf"))).find(|file| {
        let mut settings = Settings::default();
        settings.read(file, 0, false);
        let named =
            settings.get("data_directory").and_then(|entry| Path::new(&entry.value).canonicalize().ok());
        named.is_some_and(|named| named == wanted)
    })
}

/// Settings on the command line of the last start: `postgres "-D" "/data" "-c" "name=value" "--name=value"`.
fn last_start_options(data: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(data.join("postmaster.opts")).unwrap_or_default();
    let arguments: Vec<&str> = text.trim_end().split(" \"").map(|part| part.trim_end_matches('"')).collect();
    let mut found = Vec::new();
    let mut arguments = arguments.into_iter().skip(1);
    while let Some(argument) = arguments.next() {
        let setting = match argument.strip_prefix("-c").or_else(|| argument.strip_prefix("--")) {
            Some("") if argument == "-c" => arguments.next(),
            other => other,
        };
        if let Some((name, value)) = setting.and_then(|setting| setting.split_once('=')) {
            found.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    found
}

/// `name [=] value [# comment]`; `None` for an empty line.
fn parse_line(line: &str) -> Result<Option<(String, String)>, ()> {
    let line = line.trim_start_matches([' ', '\t', '\r']);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.' || !c.is_ascii();
    let end = line.find(|c| !is_name(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii());
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    if !starts_well || rest.is_empty() {
        return Err(());
    }
    let (value, rest) = if let Some(quoted) = rest.strip_prefix('\'') {
        parse_quoted(quoted)?
    } else {
        let is_value = |c: char| c.is_ascii_alphanumeric() || "-+._:/".contains(c) || !c.is_ascii();
        let end = rest.find(|c| !is_value(c)).unwrap_or(rest.len());
        (rest[..end].to_owned(), &rest[end..])
    };
    let rest = rest.trim_start();
    let ends_well = rest.is_empty() || rest.starts_with('#');
    if ends_well { Ok(Some((name.to_owned(), value))) } else { Err(()) }
}

/// The rest of a quoted string and what follows it: `''` and backslash escapes as in `DeescapeQuotedString`.
fn parse_quoted(text: &str) -> Result<(String, &str), ()> {
    let mut value = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\'' if bytes.get(at) == Some(&b'\'') => {
                value.push(b'\'');
                at += 1;
            }
            b'\'' => return Ok((String::from_utf8_lossy(&value).into_owned(), &text[at..])),
            b'\\' => {
                let octal: usize =
                    bytes[at..].iter().take(3).take_while(|c| (b'0'..=b'7').contains(c)).count();
                let escaped = *bytes.get(at).ok_or(())?;
                if octal > 0 {
                    let code =
                        bytes[at..at + octal].iter().fold(0_u32, |code, c| code * 8 + u32::from(c - b'0'));
                    // The server keeps the low byte.
                    value.push(code as u8);
                    at += octal;
                } else {
                    value.push(match escaped {
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        other => other,
                    });
                    at += 1;
                }
            }
            other => value.push(other),
        }
    }
    Err(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_server_reads_them() {
        let some = |name: &str, value: &str| Ok(Some((name.to_owned(), value.to_owned())));
        for (line, expected) in [
            ("", Ok(None)),
            ("  # only a comment", Ok(None)),
            ("fsync = off", some("fsync", "off")),
            ("fsync off # why", some("fsync", "off")),
            ("\tPort=5433", some("Port", "5433")),
            (
                "pg_tde.hsm = 'soft:/var/lib/tde/hsm?user=pg' # x",
                some("pg_tde.hsm", "soft:/var/lib/tde/hsm?user=pg"),
            ),
            (r"pg_tde.pin_command = 'cat ''a b'' \t\101'", some("pg_tde.pin_command", "cat 'a b' \tA")),
            ("shared_buffers = 128MB", some("shared_buffers", "128MB")),
            ("name = 'open", Err(())),
            ("name = a b", Err(())),
            ("= value", Err(())),
            ("lonely", Err(())),
        ] {
            assert_eq!(parse_line(line), expected, "{line}");
        }
    }

    #[test]
    fn the_last_one_wins_over_files_and_folders() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        write(
            "postgresql.conf",
            "a=1\nb=1\ninclude 'more.conf'\ninclude_dir 'conf.d'\ninclude_if_exists 'no'\nf=1\n",
        );
        write("more.conf", "b=2\nc=2\nSHARED_PRELOAD_LIBRARIES = 'x, pg_tde'\n");
        write("conf.d/10.conf", "c=3\nd=3\n");
        write("conf.d/20.conf", "d=4\n");
        write("conf.d/.hidden.conf", "d=5\n");
        write("conf.d/30.conf.bak", "d=6\n");
        write("postgresql.auto.conf", "e='7'\nf='7'\n");
        write("postmaster.opts", "/usr/bin/postgres \"-D\" \"/data dir\" \"-c\" \"g=a b\" \"--h-i=9\"\n");
        let settings = Settings::of_cluster(dir.path(), None, "15");
        let value = |name| settings.get(name).map(|entry| entry.value.as_str());
        for (name, expected) in [
            ("a", "1"),
            ("b", "2"),
            ("c", "3"),
            ("d", "4"),
            ("e", "7"),
            ("f", "7"),
            ("g", "a b"),
            ("h_i", "9"),
        ] {
            assert_eq!(value(name), Some(expected), "{name}");
        }
        assert_eq!(settings.get_list("shared_preload_libraries"), ["x", "pg_tde"]);
        assert!(settings.get("d").unwrap().source.ends_with("conf.d/20.conf:1"));
        assert!(settings.problems.is_empty(), "{:?}", settings.problems);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("postgresql.conf"),
            "include 'gone'\nbad line here\ninclude 'postgresql.conf'\n",
        )
        .unwrap();
        let settings = Settings::of_cluster(dir.path(), None, "15");
        assert!(settings.problems.iter().any(|problem| problem.contains("gone")));
        assert!(settings.problems.iter().any(|problem| problem.contains("postgresql.conf:2")));
        assert!(
            settings.problems.iter().any(|problem| problem.contains("nested")),
            "an endless include ends"
        );
    }

    #[test]
    fn a_folder_that_includes_itself_is_not_read_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        for name in 0..20 {
            fs::write(dir.path().join(format!("{name}.conf")), "include_dir '.'\nport = 1\n").unwrap();
        }
        let mut settings = Settings::default();
        settings.read(&dir.path().join("0.conf"), 0, true);
        let limit = settings.problems.iter().filter(|problem| problem.contains("more than 1000 files"));
        assert_eq!(limit.count(), 1, "{:?}", settings.problems);
        assert!(settings.problems.len() < 2 * MAX_FILES);
    }

    #[test]
    fn booleans_have_many_spellings() {
        let mut settings = Settings::default();
        for (text, expected) in [
            ("on", Some(true)),
            ("TRUE", Some(true)),
            ("y", Some(true)),
            ("1", Some(true)),
            ("off", Some(false)),
            ("of", Some(false)),
            ("F", Some(false)),
            ("0", Some(false)),
            ("o", None),
            ("maybe", None),
            ("", None),
        ] {
            settings.set("x", text.into(), String::new());
            assert_eq!(settings.get_bool("x"), expected, "{text}");
        }
    }
}
