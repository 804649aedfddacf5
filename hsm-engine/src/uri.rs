//! The URI that names an HSM: `soft:DIRECTORY[?user=NAME][&key=LABEL]`.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::str::FromStr;

/// The user where the URI names none.
pub const DEFAULT_USER: &str = "user";
/// The master key's label where the URI names none.
pub const DEFAULT_KEY: &str = "master";
const SCHEME: &str = "soft:";

/// `soft:DIRECTORY[?user=NAME][&key=LABEL]`: an HSM in this process with its store in a directory.
///
/// `%XX` stands for a byte; `?`, `%` and, in parameters, `&` must be written so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoftUri {
    /// Directory of the store.
    pub dir: PathBuf,
    /// Name of the user.
    pub user: String,
    /// Label of the master key.
    pub key: String,
}

impl SoftUri {
    /// The HSM in `dir`, default user and key.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), user: DEFAULT_USER.into(), key: DEFAULT_KEY.into() }
    }
}

impl FromStr for SoftUri {
    type Err = UriError;

    fn from_str(s: &str) -> Result<Self, UriError> {
        let rest = s.strip_prefix(SCHEME).ok_or_else(|| UriError::Scheme { uri: s.into() })?;
        let (dir, query) = rest.split_once('?').unwrap_or((rest, ""));
        let dir = decode(s, dir)?;
        if dir.is_empty() {
            return Err(UriError::NoDirectory { uri: s.into() });
        }
        let mut uri = Self::new(OsString::from_vec(dir));
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match name {
                "user" => &mut uri.user,
                "key" => &mut uri.key,
                _ => return Err(UriError::Parameter { uri: s.into(), name: name.into() }),
            };
            let value = String::from_utf8(decode(s, value)?).ok().filter(|v| !v.is_empty());
            *slot = value.ok_or_else(|| UriError::Value { uri: s.into(), name: name.into() })?;
        }
        Ok(uri)
    }
}

impl fmt::Display for SoftUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        encode(f, self.dir.as_os_str().as_bytes())?;
        let mut separator = '?';
        for (name, value, default) in [("user", &self.user, DEFAULT_USER), ("key", &self.key, DEFAULT_KEY)] {
            if value != default {
                write!(f, "{separator}{name}=")?;
                encode(f, value.as_bytes())?;
                separator = '&';
            }
        }
        Ok(())
    }
}

fn decode(uri: &str, text: &str) -> Result<Vec<u8>, UriError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        match (digit(bytes.next()), digit(bytes.next())) {
            // Two hex digits make at most 255.
            (Some(high), Some(low)) if high * 16 + low > 0 => out.push((high * 16 + low) as u8),
            _ => return Err(UriError::Percent { uri: uri.into() }),
        }
    }
    Ok(out)
}

fn encode(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    for &b in bytes {
        if b.is_ascii_graphic() && !b"?%&".contains(&b) {
            write!(f, "{}", char::from(b))?;
        } else {
            write!(f, "%{b:02X}")?;
        }
    }
    Ok(())
}

/// A URI that names no software HSM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// Another scheme.
    #[error("\"{uri}\" names no HSM of this kind: it must begin with soft:, as in soft:/var/lib/tde/hsm")]
    Scheme {
        /// The URI.
        uri: String,
    },
    /// No directory.
    #[error("\"{uri}\" names no directory: write it after soft:, as in soft:/var/lib/tde/hsm")]
    NoDirectory {
        /// The URI.
        uri: String,
    },
    /// An unknown parameter.
    #[error("\"{uri}\" has the unknown parameter \"{name}\"; user and key are known")]
    Parameter {
        /// The URI.
        uri: String,
        /// The parameter.
        name: String,
    },
    /// A parameter without a value, or one that is not text.
    #[error("\"{uri}\" gives no text to the parameter \"{name}\"")]
    Value {
        /// The URI.
        uri: String,
        /// The parameter.
        name: String,
    },
    /// A percent sign without two hex digits, or `%00`.
    #[error("\"{uri}\" has a percent sign that no two hex digits follow; write %25 for the sign itself")]
    Percent {
        /// The URI.
        uri: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        for (text, dir, user, key) in [
            ("soft:/var/lib/hsm", "/var/lib/hsm", "user", "master"),
            ("soft:rel/dir?user=pg", "rel/dir", "pg", "master"),
            ("soft:/h?user=pg&key=k%26v", "/h", "pg", "k&v"),
            ("soft:/a%20b%3Fc%25", "/a b?c%", "user", "master"),
            ("soft:/h?key=x", "/h", "user", "x"),
        ] {
            let uri: SoftUri = text.parse().unwrap();
            assert_eq!(uri, SoftUri { dir: dir.into(), user: user.into(), key: key.into() }, "{text}");
            assert_eq!(uri.to_string(), text);
        }
    }

    #[test]
    fn each_mistake_has_its_own_error() {
        type Test = fn(&UriError) -> bool;
        let cases: [(&str, Test); 9] = [
            ("/var/lib/hsm", |e| matches!(e, UriError::Scheme { .. })),
            ("pkcs11:token=x", |e| matches!(e, UriError::Scheme { .. })),
            ("soft:", |e| matches!(e, UriError::NoDirectory { .. })),
            ("soft:?user=x", |e| matches!(e, UriError::NoDirectory { .. })),
            ("soft:/h?pin=1", |e| matches!(e, UriError::Parameter { name, .. } if name == "pin")),
            ("soft:/h?user=", |e| matches!(e, UriError::Value { .. })),
            ("soft:/h?key=%FF", |e| matches!(e, UriError::Value { .. })),
            ("soft:/h%2", |e| matches!(e, UriError::Percent { .. })),
            ("soft:/h%00", |e| matches!(e, UriError::Percent { .. })),
        ];
        for (text, test) in cases {
            let error = text.parse::<SoftUri>().unwrap_err();
            assert!(test(&error), "{text}: {error}");
        }
    }
}
