//! Encryption by position: XTS in units of 8 KiB.
//!
//! ```text
//! tweak of a unit, 16 bytes, numbers little-endian
//!   segment         timeline 4 | log 4 | segment 4 | unit in the segment 4
//!   temporary file  salt of the file 8 | unit in the file 8
//! bytes of a last block that is not whole: XOR with the encryption of a zero block at its place, under the same tweak with
//!   bit 31 (63) of the unit set and the number of the bytes in the bits from 24 (56) on
//! a block of zeros on disk is a block of zeros: space that was reserved and never written
//! ```

use page_cipher::xts::Aes256Xts;

use crate::name::SegmentName;

/// Bytes that share a tweak.
pub const UNIT: usize = 8192;
/// Bytes that are encrypted together.
pub const BLOCK: usize = 16;

/// What the tweaks of a file are made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A WAL segment.
    Segment(SegmentName),
    /// A file under the server's ephemeral key.
    Temporary {
        /// Of the file's path.
        salt: u64,
    },
}

impl Place {
    fn tweak(self, unit: u64, tail: u8) -> [u8; 16] {
        let mut tweak = [0; 16];
        let marked = |at: u32| if tail == 0 { 0 } else { (0x80 | u64::from(tail)) << at };
        match self {
            Self::Segment(name) => {
                tweak[..4].copy_from_slice(&name.timeline.to_le_bytes());
                tweak[4..8].copy_from_slice(&name.log.to_le_bytes());
                tweak[8..12].copy_from_slice(&name.segment.to_le_bytes());
                // A segment is at most 1 GiB, 2^17 units.
                tweak[12..].copy_from_slice(&((unit | marked(24)) as u32).to_le_bytes());
            }
            Self::Temporary { salt } => {
                tweak[..8].copy_from_slice(&salt.to_le_bytes());
                tweak[8..].copy_from_slice(&(unit | marked(56)).to_le_bytes());
            }
        }
        tweak
    }
}

/// A key and the place of a file: encrypts and decrypts bytes at any block of it.
#[derive(Clone, Copy, Debug)]
pub struct UnitCipher<'a> {
    /// The key.
    pub key: &'a Aes256Xts,
    /// The file.
    pub place: Place,
}

/// Room for one unit.
pub type UnitBuffer = [u8; UNIT];

impl UnitCipher<'_> {
    /// Encrypts the bytes at `offset`, a multiple of [`BLOCK`]. A last block that is not whole ends the file.
    pub fn encrypt(&self, offset: u64, data: &mut [u8], spare: &mut UnitBuffer) {
        self.run(true, offset, data, spare);
    }

    /// Decrypts likewise.
    pub fn decrypt(&self, offset: u64, data: &mut [u8], spare: &mut UnitBuffer) {
        self.run(false, offset, data, spare);
    }

    fn run(&self, encrypt: bool, mut offset: u64, data: &mut [u8], spare: &mut UnitBuffer) {
        debug_assert!(offset.is_multiple_of(BLOCK as u64));
        let whole = data.len() - data.len() % BLOCK;
        let (mut rest, tail) = data.split_at_mut(whole);
        while !rest.is_empty() {
            let skip = (offset % UNIT as u64) as usize;
            let (now, later) = rest.split_at_mut(rest.len().min(UNIT - skip));
            let unit = offset / UNIT as u64;
            if encrypt {
                self.unit(true, unit, 0, skip, now, spare);
            } else {
                let zeros = Zeros::of(now);
                self.unit(false, unit, 0, skip, now, spare);
                zeros.put_back(now);
            }
            offset += now.len() as u64;
            rest = later;
        }
        if !tail.is_empty() {
            let mut pad = [0; BLOCK];
            let skip = (offset % UNIT as u64) as usize;
            self.unit(true, offset / UNIT as u64, tail.len() as u8, skip, &mut pad, spare);
            tail.iter_mut().zip(pad).for_each(|(byte, pad)| *byte ^= pad);
        }
    }

    /// Blocks of one unit from byte `skip` of it on. XTS numbers blocks from the unit's beginning, so what stands before is
    /// worked on and thrown away.
    fn unit(&self, encrypt: bool, unit: u64, tail: u8, skip: usize, data: &mut [u8], spare: &mut UnitBuffer) {
        let tweak = self.place.tweak(unit, tail);
        let crypt = |bytes: &mut [u8]| {
            let result =
                if encrypt { self.key.encrypt(&tweak, bytes) } else { self.key.decrypt(&tweak, bytes) };
            debug_assert!(result.is_ok(), "whole blocks, at most a unit");
        };
        if skip == 0 {
            return crypt(data);
        }
        let end = skip + data.len();
        spare[skip..end].copy_from_slice(data);
        crypt(&mut spare[..end]);
        data.copy_from_slice(&spare[skip..end]);
    }
}

/// Which blocks of a unit are zeros.
struct Zeros([u64; UNIT / BLOCK / 64]);

impl Zeros {
    fn of(data: &[u8]) -> Self {
        let mut zeros = [0; UNIT / BLOCK / 64];
        for (index, block) in data.as_chunks::<BLOCK>().0.iter().enumerate() {
            zeros[index / 64] |= u64::from(u128::from_ne_bytes(*block) == 0) << (index % 64);
        }
        Self(zeros)
    }

    fn put_back(&self, data: &mut [u8]) {
        if self.0 == [0; UNIT / BLOCK / 64] {
            return;
        }
        for (index, block) in data.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            if self.0[index / 64] >> (index % 64) & 1 == 1 {
                *block = [0; BLOCK];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use page_cipher::xts::Aes256Xts;
    use secret_mem::SecretBytes;

    use super::*;

    fn key() -> Aes256Xts {
        let mut bytes = SecretBytes::<64>::zeroed();
        bytes.expose_mut().iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
        Aes256Xts::new(&bytes).expect("halves differ")
    }

    #[test]
    fn the_tweaks_are_pinned() {
        let name = SegmentName { timeline: 0x0102_0304, log: 5, segment: 6 };
        let segment = Place::Segment(name);
        assert_eq!(segment.tweak(7, 0), [4, 3, 2, 1, 5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(segment.tweak(7, 9), [4, 3, 2, 1, 5, 0, 0, 0, 6, 0, 0, 0, 7, 0, 0, 0x89]);
        let file = Place::Temporary { salt: 0x0807_0605_0403_0201 };
        assert_eq!(file.tweak(9, 0), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(file.tweak(9, 3), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0x83]);
    }

    #[test]
    fn any_cut_at_blocks_gives_the_same_bytes() {
        let key = key();
        let cipher = UnitCipher { key: &key, place: Place::Temporary { salt: 5 } };
        let mut spare = [0; UNIT];
        let plain: Vec<u8> = (0..3 * UNIT + 7).map(|at| (at % 251) as u8).collect();
        let mut whole = plain.clone();
        cipher.encrypt(0, &mut whole, &mut spare);
        for cut in [16, 48, UNIT - 16, UNIT, UNIT + 32, 2 * UNIT + 4096] {
            let mut parts = plain.clone();
            let (first, second) = parts.split_at_mut(cut);
            cipher.encrypt(0, first, &mut spare);
            cipher.encrypt(cut as u64, second, &mut spare);
            assert_eq!(parts, whole, "cut at {cut}");
            cipher.decrypt(cut as u64, &mut parts[cut..], &mut spare);
            assert_eq!(parts[cut..], plain[cut..]);
        }
    }

    #[test]
    fn space_that_was_never_written_reads_as_zeros() {
        let key = key();
        let cipher = UnitCipher { key: &key, place: Place::Temporary { salt: 5 } };
        let (mut spare, mut data) = ([0; UNIT], vec![0; 2 * UNIT]);
        cipher.encrypt(64, &mut data[64..96], &mut spare);
        assert_ne!(data[64..96], [0; 32]);
        cipher.decrypt(0, &mut data, &mut spare);
        assert_eq!(data, vec![0; 2 * UNIT]);
    }
}
