//! Which file is what, by its path.

/// The name of a WAL segment: 24 hexadecimal digits, `timeline | log | segment` (access/xlog_internal.h).
///
/// It is all of the tweak that a name gives, so a segment is bound to timeline and position whatever the segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// Timeline. Pages that promotion copied carry the older one in their headers.
    pub timeline: u32,
    /// High half of the WAL position.
    pub log: u32,
    /// Which segment of the 4 GiB that `log` stands for.
    pub segment: u32,
}

impl SegmentName {
    /// Parses exactly 24 upper-case digits.
    pub fn parse(name: &[u8]) -> Option<Self> {
        if name.len() != 24 {
            return None;
        }
        Some(Self { timeline: hex(&name[..8])?, log: hex(&name[8..16])?, segment: hex(&name[16..])? })
    }

    /// Where the segment begins, for a segment size in bytes.
    pub fn position(self, segment_size: u64) -> u64 {
        (u64::from(self.log) << 32) + u64::from(self.segment) * segment_size
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.log, self.segment)
    }
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        Some(number << 4 | u32::from(digit))
    })
}

/// What a path means to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A segment in `pg_wal`, also one with the suffix `.partial`.
    Segment {
        /// Its name.
        name: SegmentName,
        /// It ends in `.partial`.
        partial: bool,
    },
    /// `pg_wal/xlogtemp.PID`: a segment or a history file that has no name yet.
    Staged,
    /// `pg_wal/RECOVERYXLOG`: a segment as `restore_command` left it.
    Restored,
    /// Lives no longer than the server: a file in `pgsql_tmp`, of `pg_notify`, or a spill file of logical decoding.
    Temporary {
        /// Tells the file from others.
        salt: u64,
    },
    /// Anything else.
    Other,
}

/// What `path` is: below the data directory, as the server names it, or any path that ends so.
pub fn classify(path: &[u8]) -> FileKind {
    let mut parts = path.rsplit(|byte| *byte == b'/');
    let base = parts.next().unwrap_or_default();
    let parent = parts.next().unwrap_or_default();
    match parent {
        b"pg_wal" => in_pg_wal(base),
        b"pg_notify" if !base.is_empty() && base.iter().all(u8::is_ascii_hexdigit) => temporary(path),
        _ if base.ends_with(b".spill") && parts.next() == Some(b"pg_replslot") => temporary(path),
        _ if path.split(|byte| *byte == b'/').rev().skip(1).any(|part| part == b"pgsql_tmp") => {
            temporary(path)
        }
        _ => FileKind::Other,
    }
}

/// The segment that a file of this name holds, in whatever folder, and whether the name ends in `.partial`.
pub fn segment_file(base: &[u8]) -> Option<(SegmentName, bool)> {
    let whole = base.strip_suffix(b".partial");
    Some((SegmentName::parse(whole.unwrap_or(base))?, whole.is_some()))
}

fn in_pg_wal(base: &[u8]) -> FileKind {
    if let Some((name, partial)) = segment_file(base) {
        return FileKind::Segment { name, partial };
    }
    match base {
        b"RECOVERYXLOG" => FileKind::Restored,
        _ if base.starts_with(b"xlogtemp.") => FileKind::Staged,
        _ => FileKind::Other,
    }
}

/// FNV-1a: the server chooses these names, nobody else, and two that collide would only share tweaks.
fn temporary(path: &[u8]) -> FileKind {
    let salt = path.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    FileKind::Temporary { salt }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: SegmentName = SegmentName { timeline: 2, log: 0x1A, segment: 0xFE };

    #[test]
    fn segments_are_told_by_folder_and_name() {
        let segment = |path: &str| classify(path.as_bytes());
        let whole = FileKind::Segment { name: NAME, partial: false };
        assert_eq!(segment("pg_wal/000000020000001A000000FE"), whole);
        assert_eq!(segment("/data/pg_wal/000000020000001A000000FE"), whole);
        let partial = FileKind::Segment { name: NAME, partial: true };
        assert_eq!(segment("pg_wal/000000020000001A000000FE.partial"), partial);
        for other in [
            "000000020000001A000000FE",
            "pg_wal/000000020000001A000000F",
            "pg_wal/000000020000001A000000fe",
            "pg_wal/00000002.history",
            "pg_wal/000000020000001A000000FE.00000028.backup",
            "pg_wal/archive_status/000000020000001A000000FE.ready",
            "pg_wal/RECOVERYHISTORY",
            "base/5/1259",
            "",
        ] {
            assert_eq!(segment(other), FileKind::Other, "{other}");
        }
        assert_eq!(segment("pg_wal/xlogtemp.4711"), FileKind::Staged);
        assert_eq!(segment("pg_wal/RECOVERYXLOG"), FileKind::Restored);
        assert_eq!(NAME.to_string(), "000000020000001A000000FE");
        assert_eq!(NAME.position(16 << 20), 0x1A_FE00_0000);
    }

    #[test]
    fn temporary_files_are_told_by_their_folders_and_have_salts_of_their_own() {
        let paths = [
            "base/pgsql_tmp/pgsql_tmp77.0",
            "pg_tblspc/16400/PG_15_202209061/pgsql_tmp/pgsql_tmp77.0",
            "base/pgsql_tmp/pgsql_tmp77.1.sharedfileset/0.0",
            "base/pgsql_tmp/pgsql_tmp77.1.sharedfileset/0.1",
            "pg_replslot/s/xid-733-lsn-0-5000000.spill",
            "pg_notify/0000",
        ];
        let salts: std::collections::HashSet<_> = paths
            .iter()
            .map(|path| match classify(path.as_bytes()) {
                FileKind::Temporary { salt } => salt,
                other => panic!("{path}: {other:?}"),
            })
            .collect();
        assert_eq!(salts.len(), paths.len());
        for other in ["base/pgsql_tmp", "pg_replslot/s/state", "pg_notify/x", "pg_xact/0000"] {
            assert_eq!(classify(other.as_bytes()), FileKind::Other, "{other}");
        }
    }
}
