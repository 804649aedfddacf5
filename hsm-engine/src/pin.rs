//! PINs: read with care, kept in locked memory.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use secret_mem::{RandomError, ReadError, SecretBuf, SecretBytes};

/// Longest PIN, in bytes.
pub const MAX_PIN: usize = 1024;
/// Shortest PIN that may be set, in bytes.
pub const MIN_NEW_PIN: usize = 4;
const PREFIX: &[u8] = b"tdepin-";
const DIGITS: usize = 64;

/// A PIN in locked memory. It is one of two kinds:
///
/// * *generated*: `tdepin-` and 64 lower-case hex digits, 256 bits from the operating system. A store key under it is
///   derived with HKDF, which costs microseconds;
/// * anything else counts as made up by a person and goes through Argon2id, which costs an attacker who has the store
///   as much as it costs the owner.
pub struct Pin(SecretBuf);

impl Pin {
    /// Makes a generated PIN.
    ///
    /// # Errors
    /// The operating system's generator fails.
    pub fn generate() -> Result<Self, RandomError> {
        let raw = SecretBytes::<32>::random()?;
        let buf = SecretBuf::from_fn(PREFIX.len() + DIGITS, |out| {
            let (head, digits) = out.split_at_mut(PREFIX.len());
            head.copy_from_slice(PREFIX);
            for (pair, byte) in digits.chunks_exact_mut(2).zip(raw.expose()) {
                pair[0] = hex_digit(byte >> 4);
                pair[1] = hex_digit(byte & 15);
            }
            Ok::<_, RandomError>(PREFIX.len() + DIGITS)
        })?;
        Ok(Self(buf))
    }

    /// Takes a PIN that is already in locked memory, such as one typed by a person.
    ///
    /// # Errors
    /// Empty, or longer than [`MAX_PIN`].
    pub fn from_secret(mut secret: SecretBuf) -> Result<Self, PinError> {
        secret.trim_newline();
        match secret.len() {
            0 => Err(PinError::Empty { from: "the input".into() }),
            n if n > MAX_PIN => Err(PinError::TooLong { from: "the input".into() }),
            _ => Ok(Self(secret)),
        }
    }

    /// Reads a PIN to the end of `reader`, at most [`MAX_PIN`] bytes; one newline at the end is not part of it.
    ///
    /// # Errors
    /// Empty, too long, or unreadable.
    pub fn from_reader(reader: impl Read) -> Result<Self, PinError> {
        Self::read(reader, "the input")
    }

    /// Reads a PIN from a file that only its owner may read (no bit of `077` in its mode).
    ///
    /// # Errors
    /// Absent, unreadable, open to others, not a regular file, empty or too long.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, PinError> {
        let path = path.as_ref();
        let io_err = |source| PinError::Io { path: path.to_owned(), source };
        // Without O_NONBLOCK a FIFO would hang here before its type can be refused.
        let flags = rustix::fs::OFlags::NONBLOCK.bits();
        let file = File::options()
            .read(true)
            .custom_flags(i32::try_from(flags).unwrap_or(0))
            .open(path)
            .map_err(io_err)?;
        let meta = file.metadata().map_err(io_err)?;
        if !meta.is_file() {
            return Err(PinError::NotAFile { path: path.to_owned() });
        }
        if meta.mode() & 0o077 != 0 {
            return Err(PinError::LooseMode { path: path.to_owned(), mode: meta.mode() & 0o7777 });
        }
        Self::read(file, &path.display().to_string())
    }

    /// Writes the PIN and a newline to a new file of mode 0600, durably. An existing file is left alone.
    ///
    /// # Errors
    /// The file exists or cannot be written.
    pub fn write_new_file(&self, path: impl AsRef<Path>) -> Result<(), PinError> {
        let path = path.as_ref();
        let io_err = |source| PinError::Io { path: path.to_owned(), source };
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(io_err)?;
        file.write_all(self.0.as_slice()).map_err(io_err)?;
        file.write_all(b"\n").map_err(io_err)?;
        file.sync_all().map_err(io_err)?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io_err)
    }

    /// Writes the PIN to `out`, for the one time that a generated PIN is shown to a person.
    ///
    /// # Errors
    /// What `out` says.
    pub fn reveal(&self, mut out: impl io::Write) -> io::Result<()> {
        out.write_all(self.0.as_slice())
    }

    /// Whether this is a generated PIN.
    pub fn is_generated(&self) -> bool {
        let digit = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        self.0.as_slice().strip_prefix(PREFIX).is_some_and(|d| d.len() == DIGITS && d.iter().all(digit))
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a PIN is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the PIN may be given to a user.
    pub(crate) fn check_new(&self) -> Result<(), PinError> {
        if self.len() < MIN_NEW_PIN { Err(PinError::TooShort { min: MIN_NEW_PIN }) } else { Ok(()) }
    }

    /// Whether both are the same PIN; takes time that depends on their lengths alone.
    pub fn same(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }

    fn read(reader: impl Read, source: &str) -> Result<Self, PinError> {
        // Two more than the longest PIN, for the newline.
        let mut buf = SecretBuf::read_from(reader, MAX_PIN + 2).map_err(|e| match e {
            ReadError::TooLong { .. } => PinError::TooLong { from: source.into() },
            source_error => PinError::Read { from: source.into(), source: source_error },
        })?;
        buf.trim_newline();
        match buf.len() {
            0 => Err(PinError::Empty { from: source.into() }),
            n if n > MAX_PIN => Err(PinError::TooLong { from: source.into() }),
            _ => Ok(Self(buf)),
        }
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(redacted)")
    }
}

fn hex_digit(nibble: u8) -> u8 {
    b"0123456789abcdef"[usize::from(nibble & 15)]
}

/// A PIN could not be read, or may not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The file could not be read or written.
    #[error("PIN file {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The PIN could not be read from an open source.
    #[error("PIN from {from}: {source}")]
    Read {
        /// Where it was read from.
        from: String,
        /// Why not.
        source: ReadError,
    },
    /// Others than the owner may read the file.
    #[error("PIN file {} has mode {mode:04o} and must be readable by its owner only: `chmod 0600 {}`", .path.display(), .path.display())]
    LooseMode {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Not a regular file.
    #[error("PIN file {} is not a regular file", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// There is no PIN.
    #[error("no PIN: {from} is empty")]
    Empty {
        /// Where it was read from.
        from: String,
    },
    /// The PIN is too long.
    #[error("the PIN in {from} is longer than {MAX_PIN} bytes")]
    TooLong {
        /// Where it was read from.
        from: String,
    },
    /// Officer and user would have the same PIN.
    #[error("crypto officer and crypto user need different PINs, or one person has both roles")]
    SameForTwoUsers,
    /// A new PIN is too short.
    #[error("a new PIN needs at least {min} bytes; a generated one is better")]
    TooShort {
        /// The least length, in bytes.
        min: usize,
    },
}
