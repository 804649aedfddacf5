//! In which mode a segment is read and written.
//!
//! A segment says itself what it is: its first page opens under one version of the key, or is plain, or it is new (zeros, or what a
//! recycled segment had under another name). The mode is decided once, by whoever writes its first page, and kept by
//! everybody who writes later: so a page never changes mode or key, whatever the settings become. *Reading* a plain segment is another matter:
//! it must be allowed at its position, else who can write to `pg_wal` could forge WAL.

use page_cipher::xts::Aes256Xts;

use crate::file::{Errno, Raw, Scratch};
use crate::header::{HEADER, is_first_page_of, position};
use crate::name::SegmentName;
use crate::table::Mode;
use crate::unit::{Place, UnitCipher};

/// What the one who runs this knows.
pub trait Policy {
    /// The key of a version.
    fn key(&self, version: u32) -> Option<&Aes256Xts>;
    /// Calls `visit` with every version there is, the newest first, until it returns `true`.
    fn any_version(&self, visit: &mut dyn FnMut(u32) -> bool);
    /// How a segment is written that nobody has written yet: [`Mode::Plain`] or [`Mode::Under`].
    fn new_segments(&self) -> Mode;
    /// Whether a plain segment that begins at this WAL position is accepted.
    fn plain_allowed(&self, position: u64) -> bool;
    /// The cluster's identifier, if it is known.
    fn system_identifier(&self) -> Option<u64>;
}

/// What a segment is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Its first page opens under this version.
    Under(u32),
    /// Its first page is plain, and may be.
    Plain,
    /// Its first page is plain although plain WAL is not allowed there.
    Forged,
    /// It has no first page: new, recycled, damaged, or under a key that is not known.
    Unknown,
}

/// Bytes that are read of a first page: as few as direct I/O takes.
const PROBE: usize = 4096;

/// Looks at the first page.
///
/// # Errors
/// Of the file below.
pub fn probe(
    raw: &impl Raw,
    name: SegmentName,
    policy: &impl Policy,
    scratch: &mut Scratch,
) -> Result<Found, Errno> {
    let got = raw.read(&mut scratch.chunk[..PROBE], 0)?;
    let Some(stored) = scratch.chunk[..got].first_chunk::<HEADER>().copied() else {
        return Ok(Found::Unknown);
    };
    let system = policy.system_identifier();
    if is_first_page_of(name, system, &stored) {
        let allowed = policy.plain_allowed(position(&stored));
        return Ok(if allowed { Found::Plain } else { Found::Forged });
    }
    let mut found = Found::Unknown;
    policy.any_version(&mut |version| {
        let Some(key) = policy.key(version) else { return false };
        let mut page = stored;
        UnitCipher { key, place: Place::Segment(name) }.decrypt(0, &mut page, &mut scratch.spare);
        if is_first_page_of(name, system, &page) {
            found = Found::Under(version);
        }
        found != Found::Unknown
    });
    Ok(found)
}

/// The mode for a write to a segment that was found so.
///
/// A plain first page where none is allowed is not gone on with: it was put there for that.
pub fn mode_for_write(found: Found, policy: &impl Policy) -> Mode {
    match found {
        Found::Under(version) => Mode::Under(version),
        Found::Plain => Mode::Plain,
        Found::Forged | Found::Unknown => policy.new_segments(),
    }
}

#[cfg(test)]
mod tests {
    use secret_mem::SecretBytes;

    use super::*;
    use crate::header::example;
    use crate::unit::UNIT;

    struct Known {
        keys: Vec<Aes256Xts>,
        plain_below: u64,
    }

    impl Policy for Known {
        fn key(&self, version: u32) -> Option<&Aes256Xts> {
            self.keys.get(version as usize - 1)
        }

        fn any_version(&self, visit: &mut dyn FnMut(u32) -> bool) {
            (1..=self.keys.len() as u32).rev().any(visit);
        }

        fn new_segments(&self) -> Mode {
            Mode::Under(self.keys.len() as u32)
        }

        fn plain_allowed(&self, position: u64) -> bool {
            position < self.plain_below
        }

        fn system_identifier(&self) -> Option<u64> {
            Some(42)
        }
    }

    struct Page(Vec<u8>);

    impl Raw for Page {
        fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
            let got = (self.0.len() - offset as usize).min(buffer.len());
            buffer[..got].copy_from_slice(&self.0[offset as usize..][..got]);
            Ok(got)
        }

        fn write(&self, _: &[u8], _: u64) -> Result<usize, Errno> {
            Err(crate::file::EIO)
        }

        fn size(&self) -> Result<u64, Errno> {
            Ok(self.0.len() as u64)
        }

        fn set_size(&self, _: u64) -> Result<(), Errno> {
            Err(crate::file::EIO)
        }
    }

    const NAME: SegmentName = SegmentName { timeline: 1, log: 0, segment: 3 };

    fn key(fill: u8) -> Aes256Xts {
        let mut bytes = SecretBytes::<64>::zeroed();
        bytes.expose_mut().iter_mut().zip(fill..).for_each(|(byte, value)| *byte = value);
        Aes256Xts::new(&bytes).expect("halves differ")
    }

    fn look(policy: &Known, name: SegmentName, page: &[u8]) -> Found {
        probe(&Page(page.to_vec()), name, policy, &mut Box::new(Scratch::new())).expect("reads")
    }

    #[test]
    fn a_segment_says_itself_what_it_is() {
        let mut policy = Known { keys: vec![key(1), key(90)], plain_below: NAME.position(16 << 20) + 1 };
        let mut plain = [7; UNIT];
        plain[..HEADER].copy_from_slice(&example(NAME, 42));
        assert_eq!(look(&policy, NAME, &plain), Found::Plain);
        assert_eq!(mode_for_write(Found::Plain, &policy), Mode::Plain);
        for version in [1, 2] {
            let mut page = plain;
            let key = policy.key(version).expect("known");
            UnitCipher { key, place: Place::Segment(NAME) }.encrypt(0, &mut page, &mut [0; UNIT]);
            assert_eq!(look(&policy, NAME, &page), Found::Under(version));
            assert_eq!(mode_for_write(Found::Under(version), &policy), Mode::Under(version));
            // Recycled, or of another timeline.
            assert_eq!(look(&policy, SegmentName { segment: 4, ..NAME }, &page), Found::Unknown);
            assert_eq!(look(&policy, SegmentName { timeline: 2, ..NAME }, &page), Found::Unknown);
        }
        assert_eq!(look(&policy, NAME, &[0; UNIT]), Found::Unknown);
        assert_eq!(look(&policy, NAME, &[]), Found::Unknown);
        assert_eq!(mode_for_write(Found::Unknown, &policy), Mode::Under(2));
        // Beyond the position up to which plain WAL was written.
        policy.plain_below -= 1;
        assert_eq!(look(&policy, NAME, &plain), Found::Forged);
        assert_eq!(mode_for_write(Found::Forged, &policy), Mode::Under(2));
    }
}
