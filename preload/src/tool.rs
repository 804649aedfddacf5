//! Which tool, and what it does with which file.
//!
//! Read in the sources of PostgreSQL 15 to 17. What a tool copies between nodes is copied as it is stored, under whatever key; what it
//! takes apart or puts together is in clear for it:
//!
//! | tool | in clear for it | as stored |
//! |---|---|---|
//! | `pg_waldump` | every segment that it reads | |
//! | `pg_rewind` | segments of the target that it reads | all that it copies from the source |
//! | `pg_resetwal` | the segment that it makes | |
//! | `pg_receivewal` | what it receives | |
//! | `pg_basebackup` | WAL that it streams (`open`) | files that the server sends (`fopen`), so with `--wal-method=fetch` all |

use std::ffi::CStr;

use wal_cipher::name::{SegmentName, segment_file};

/// A tool that is redirected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Waldump,
    Rewind {
        /// The target's data directory, as it was given.
        target: Vec<u8>,
    },
    Resetwal,
    Receivewal,
    Basebackup,
}

/// What happens to a file that is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Planned {
    /// Nothing.
    AsStored,
    /// In clear for the tool, encrypted on disk.
    Segment(SegmentName),
    /// It would hold WAL in clear.
    Refused(&'static str),
}

const COMPRESSED: &str = "WAL cannot be compressed and encrypted: leave --compress out";
const TAR: &str =
    "WAL cannot be streamed into a tar file and encrypted: use --format=plain, or --wal-method=fetch";

impl Tool {
    /// By the name of the executable's file and its arguments, the first of which is its name.
    pub(crate) fn of(program: &[u8], arguments: &[&[u8]]) -> Option<Self> {
        Some(match program {
            b"pg_waldump" => Self::Waldump,
            b"pg_rewind" => Self::Rewind { target: option(arguments, b'D', "target-pgdata", 8).into() },
            b"pg_resetwal" => Self::Resetwal,
            b"pg_receivewal" => Self::Receivewal,
            b"pg_basebackup" => Self::Basebackup,
            _ => return None,
        })
    }

    /// Functions of libc that it calls in every build that we know.
    pub(crate) fn required(&self) -> &'static [&'static CStr] {
        match self {
            Self::Waldump => &[c"open", c"read", c"pread", c"close"],
            Self::Rewind { .. } | Self::Resetwal => &[c"open", c"read", c"write", c"close"],
            Self::Receivewal | Self::Basebackup => &[c"open", c"write", c"close", c"rename"],
        }
    }

    /// What happens to the file `path` when it is opened, to be read only or not.
    pub(crate) fn plan(&self, path: &[u8], reads_only: bool) -> Planned {
        let base = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let Some((name, _)) = segment_file(base) else { return self.plan_other(base, reads_only) };
        let ours = match self {
            Self::Waldump => reads_only,
            Self::Rewind { target } => {
                let folder = path.strip_prefix(&target[..]).and_then(|rest| rest.strip_suffix(base));
                reads_only && folder == Some(b"/pg_wal/")
            }
            Self::Resetwal | Self::Receivewal | Self::Basebackup => true,
        };
        if ours { Planned::Segment(name) } else { Planned::AsStored }
    }

    fn plan_other(&self, base: &[u8], reads_only: bool) -> Planned {
        if reads_only || !matches!(self, Self::Receivewal | Self::Basebackup) {
            return Planned::AsStored;
        }
        let base = base.strip_suffix(b".partial").unwrap_or(base);
        let packed = [&b".gz"[..], b".lz4", b".zst"].into_iter().find_map(|kind| base.strip_suffix(kind));
        match (packed, packed.unwrap_or(base)) {
            (_, b"pg_wal.tar") => Planned::Refused(TAR),
            (Some(name), _) if segment_file(name).is_some() => Planned::Refused(COMPRESSED),
            _ => Planned::AsStored,
        }
    }
}

/// The last value of an option, as getopt_long takes them: `-D X`, `-DX`, `--name X`, `--name=X`, the name cut to no fewer than
/// `shortest` letters, which no other option begins with. Empty when it is not there. A letter among others (`-nD X`) is not looked for: then
/// pg_rewind reads the target's WAL as it is stored, and stops.
fn option<'a>(arguments: &[&'a [u8]], letter: u8, name: &str, shortest: usize) -> &'a [u8] {
    let mut found = &[][..];
    let mut rest = arguments.iter().skip(1);
    while let Some(argument) = rest.next() {
        let (given, value) = match argument.strip_prefix(b"--") {
            Some(b"") => break,
            Some(long) => {
                let mut parts = long.splitn(2, |byte| *byte == b'=');
                let given = parts.next().unwrap_or_default();
                (given.len() >= shortest && name.as_bytes().starts_with(given), parts.next())
            }
            None => match argument.strip_prefix(&[b'-', letter]) {
                Some(value) => (true, Some(value).filter(|value| !value.is_empty())),
                None => (false, None),
            },
        };
        if given {
            found = value.or_else(|| rest.next().copied()).unwrap_or_default();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "000000020000001A000000FE";
    const NAME: SegmentName = SegmentName { timeline: 2, log: 0x1A, segment: 0xFE };

    fn tool(program: &str, arguments: &[&str]) -> Tool {
        let all: Vec<&[u8]> =
            std::iter::once(&program).chain(arguments).map(|word| word.as_bytes()).collect();
        Tool::of(program.as_bytes(), &all).expect("a tool")
    }

    fn plan(tool: &Tool, path: &str, reads_only: bool) -> Planned {
        tool.plan(path.replace("SEG", FILE).as_bytes(), reads_only)
    }

    #[test]
    fn other_programs_are_left_alone() {
        for program in ["postgres", "pg_verifybackup", "sh", "perl", "pg_waldumps", ""] {
            assert_eq!(Tool::of(program.as_bytes(), &[]), None, "{program}");
        }
    }

    #[test]
    fn segments_are_decrypted_for_who_reads_them() {
        let waldump = tool("pg_waldump", &[]);
        for path in ["SEG", "pg_wal/SEG", "/archive/SEG", "./SEG.partial"] {
            assert_eq!(plan(&waldump, path, true), Planned::Segment(NAME), "{path}");
        }
        for path in ["/archive/00000002.history", "SEG.gz", "pg_wal", "/archive/SEG/"] {
            assert_eq!(plan(&waldump, path, true), Planned::AsStored, "{path}");
        }
    }

    #[test]
    fn pg_rewind_copies_as_stored_and_reads_the_target() {
        for arguments in [
            &["-D", "/t", "--source-pgdata=/s"][..],
            &["-D/t", "--source-pgdata", "/s"],
            &["--source-server=x", "--target-pgdata=/t"],
            &["--target-p", "/t", "-n"],
            &["-D", "/old", "-D", "/t"],
        ] {
            let rewind = tool("pg_rewind", arguments);
            assert_eq!(plan(&rewind, "/t/pg_wal/SEG", true), Planned::Segment(NAME), "{arguments:?}");
            for (path, reads_only) in [
                ("/s/pg_wal/SEG", true),
                ("/t/pg_wal/SEG", false),
                ("/t/base/pg_wal/SEG", true),
                ("/tt/pg_wal/SEG", true),
                ("/t/SEG", true),
            ] {
                assert_eq!(plan(&rewind, path, reads_only), Planned::AsStored, "{path} {arguments:?}");
            }
        }
        // Not understood: nothing is decrypted.
        for arguments in [&["-nD", "/t"][..], &["--target", "/t"], &[], &["--", "-D", "/t"]] {
            assert_eq!(plan(&tool("pg_rewind", arguments), "/t/pg_wal/SEG", true), Planned::AsStored);
        }
    }

    #[test]
    fn what_is_received_is_encrypted_or_refused() {
        for program in ["pg_receivewal", "pg_basebackup"] {
            let tool = tool(program, &[]);
            assert_eq!(plan(&tool, "/a/SEG.partial", false), Planned::Segment(NAME));
            assert_eq!(plan(&tool, "/a/pg_wal/SEG", false), Planned::Segment(NAME));
            for path in ["/a/SEG.gz", "/a/SEG.gz.partial", "/a/SEG.lz4.partial", "/a/SEG.partial.zst"] {
                assert!(matches!(plan(&tool, path, false), Planned::Refused(_)), "{path}");
                assert_eq!(plan(&tool, path, true), Planned::AsStored, "{path}");
            }
            for path in ["/a/pg_wal.tar", "/a/pg_wal.tar.gz"] {
                assert!(matches!(plan(&tool, path, false), Planned::Refused(_)), "{path}");
            }
            for path in ["/a/00000002.history", "/a/base.tar.gz", "/a/16384.tar", "/a/backup_label"] {
                assert_eq!(plan(&tool, path, false), Planned::AsStored, "{path}");
            }
        }
        assert_eq!(plan(&tool("pg_resetwal", &[]), "pg_wal/SEG", false), Planned::Segment(NAME));
    }
}
