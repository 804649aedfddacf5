//! What a command prints: tables for people, JSON for programs, one way for both.

use std::error::Error;
use std::io::{self, ErrorKind, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use zeroize::Zeroize as _;

/// Where results go. Warnings and errors go to standard error.
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read the output.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Prints `value` as JSON, or what `human` makes of it.
    pub(crate) fn show<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) -> io::Result<()> {
        let mut text = if self.json { serde_json::to_string_pretty(value)? } else { human(value) };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let shown = self.raw(text.as_bytes());
        // One of them holds a PIN.
        text.zeroize();
        shown
    }

    /// Prints bytes as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()
    }

    pub(crate) fn warn(&self, error: &(dyn Error + 'static)) {
        // Nothing is left to be done when standard error is closed.
        let _ = writeln!(io::stderr(), "tde: warning: {}", with_causes(error));
    }

    /// Something that is not an error, on standard error.
    pub(crate) fn note(&self, text: &str) {
        // Nothing is left to be done when standard error is closed.
        let _ = writeln!(io::stderr(), "tde: {text}");
    }

    /// What was asked for is not there; with `--json` also as an object on standard output.
    pub(crate) fn problem(&self, text: &str) -> io::Result<()> {
        self.note(text);
        if self.json {
            self.raw(format!("{}\n", serde_json::json!({ "error": text })).as_bytes())?;
        }
        Ok(())
    }

    /// The error and its causes; with `--json` also as an object on standard output.
    pub(crate) fn error(&self, error: &(dyn Error + 'static)) {
        let text = with_causes(error);
        let _ = writeln!(io::stderr(), "tde: {text}");
        if self.json {
            let object = serde_json::json!({ "error": text });
            let _ = self.raw(format!("{object}\n").as_bytes());
        }
    }
}

/// `what: why: why`, without saying twice what an error repeats of its cause.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// The reader of our output went away, as `head` does.
pub(crate) fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// A table without lines, as wide as it needs to be; for terminals it is wrapped to their width.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|title| title.to_uppercase()));
    table
}

/// Two columns without a header.
pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    for (name, value) in rows {
        table.add_row([*name, value]);
    }
    lines(&table)
}

/// A table as text without blanks at the ends of lines.
pub(crate) fn lines(table: &Table) -> String {
    let text = table.to_string();
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Bytes with three digits and a binary unit.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Seconds since 1970 as RFC 3339 in UTC.
pub(crate) fn time(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).ok();
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    time.map_or_else(|| "beyond the calendar".to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (8192 * 131_072, "1.0 GiB")];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(time(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(time(u64::MAX), "beyond the calendar");
    }

    #[test]
    fn causes_follow_and_are_not_repeated() {
        let inner = io::Error::other("disk gone");
        let outer = keyring::KeyringError::Io { action: "read", path: "/r".into(), source: inner };
        assert_eq!(with_causes(&outer), "cannot read /r: disk gone");
    }
}
