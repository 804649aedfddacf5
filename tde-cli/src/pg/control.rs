//! `global/pg_control`, as far as a check needs it (PostgreSQL's src/include/catalog/pg_control.h).
//!
//! ```text
//!   0  8  system_identifier
//!   8  4  pg_control_version; the offsets below are those of version 1300 (PostgreSQL 13 to 17)
//!  12  4  catalog_version_no
//!  16  4  state
//! 176  1  wal_log_hints
//! 216  4  blcksz
//! 220  4  relseg_size: blocks in a file
//! 252  4  data_checksum_version: 0 off, 1 on
//! 288  4  CRC-32C of bytes 0..288
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const VERSION: u32 = 1300;
const CRC_AT: usize = 288;

/// What the control file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Control {
    pub(crate) system_identifier: u64,
    pub(crate) catalog_version: u32,
    pub(crate) wal_log_hints: bool,
    pub(crate) blocks_per_file: u32,
    pub(crate) checksums: bool,
}

/// Why the control file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error("cannot read {}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is too short: {len} bytes", .path.display())]
    TooShort { path: PathBuf, len: usize },
    #[error("{} has version {version}, this program knows {VERSION} (PostgreSQL 13 to 17)", .path.display())]
    Version { path: PathBuf, version: u32 },
    #[error("{} is damaged: its CRC does not match", .path.display())]
    Damaged { path: PathBuf },
    #[error("{}: the cluster has pages of {block_size} bytes, pg_tde knows 8192", .path.display())]
    BlockSize { path: PathBuf, block_size: u32 },
}

impl Control {
    pub(crate) fn read(data: &Path) -> Result<Self, ControlError> {
        let path = data.join("global/pg_control");
        let bytes = fs::read(&path).map_err(|source| ControlError::Io { path: path.clone(), source })?;
        Self::parse(&bytes, path)
    }

    fn parse(bytes: &[u8], path: PathBuf) -> Result<Self, ControlError> {
        let Some((body, rest)) = bytes.split_at_checked(CRC_AT).filter(|(_, rest)| rest.len() >= 4) else {
            return Err(ControlError::TooShort { path, len: bytes.len() });
        };
        let word = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        let version = word(8);
        if version != VERSION {
            return Err(ControlError::Version { path, version });
        }
        if crc32c(body) != u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) {
            return Err(ControlError::Damaged { path });
        }
        let block_size = word(216);
        if block_size as usize != page_cipher::pg::PAGE_SIZE {
            return Err(ControlError::BlockSize { path, block_size });
        }
        Ok(Self {
            system_identifier: u64::from(word(0)) | u64::from(word(4)) << 32,
            catalog_version: word(12),
            wal_log_hints: body[176] != 0,
            blocks_per_file: word(220).max(1),
            checksums: word(252) != 0,
        })
    }
}

/// CRC-32C (Castagnoli), as PostgreSQL's port/pg_crc32c.h; a few hundred bytes need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crc_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn fields_are_where_the_server_puts_them_and_damage_is_noticed() {
        let mut file = vec![0; 8192];
        file[..8].copy_from_slice(&7_312_345_678_901_234_567_u64.to_le_bytes());
        file[8..12].copy_from_slice(&1300_u32.to_le_bytes());
        file[12..16].copy_from_slice(&202_209_061_u32.to_le_bytes());
        file[176] = 1;
        file[216..220].copy_from_slice(&8192_u32.to_le_bytes());
        file[220..224].copy_from_slice(&131_072_u32.to_le_bytes());
        file[252] = 1;
        let crc = crc32c(&file[..CRC_AT]);
        file[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        let control = Control::parse(&file, "c".into()).expect("a sound file");
        let expected = Control {
            system_identifier: 7_312_345_678_901_234_567,
            catalog_version: 202_209_061,
            wal_log_hints: true,
            blocks_per_file: 131_072,
            checksums: true,
        };
        assert_eq!(control, expected);
        for byte in (0..CRC_AT).filter(|byte| !(8..12).contains(byte)) {
            let mut bad = file.clone();
            bad[byte] ^= 4;
            assert!(matches!(Control::parse(&bad, "c".into()), Err(ControlError::Damaged { .. })), "{byte}");
        }
        file[8] = 0;
        assert!(matches!(Control::parse(&file, "c".into()), Err(ControlError::Version { .. })));
        assert!(matches!(Control::parse(&file[..291], "c".into()), Err(ControlError::TooShort { .. })));
    }
}
