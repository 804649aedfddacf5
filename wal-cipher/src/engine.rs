//! A read or write of one of our descriptors, whatever it is.

use page_cipher::xts::Aes256Xts;

use crate::file::{self, Errno, Raw, Scratch};
use crate::segment::{Found, Policy, mode_for_write, probe};
use crate::table::{Descriptors, Mode, Open};
use crate::unit::{Place, UnitCipher};

/// What makes a read or write fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The system said so.
    Errno(Errno),
    /// A plain segment where plain WAL is not allowed.
    Forged(crate::name::SegmentName),
    /// The key of this version is not here (any more).
    NoKey(u32),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// Everything a call needs besides its file.
pub struct Engine<'a, P> {
    /// The descriptors.
    pub table: &'a Descriptors,
    /// Keys and rules of segments.
    pub policy: &'a P,
    /// The key of temporary and staged files.
    pub temporary: Option<&'a Aes256Xts>,
    /// Working space.
    pub scratch: &'a mut Scratch,
}

impl<P: Policy> Engine<'_, P> {
    /// As `pread`.
    ///
    /// # Errors
    /// [`Failure`]; nothing was read then.
    pub fn read(
        &mut self,
        fd: i32,
        open: Open,
        raw: &impl Raw,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<usize, Failure> {
        let cipher = match open.place {
            Place::Temporary { .. } => Some(self.temporary(open.place)?),
            Place::Segment(name) => {
                let mode = match open.mode {
                    Mode::Undecided => match probe(raw, name, self.policy, self.scratch)? {
                        Found::Under(version) => self.decide(fd, open, Mode::Under(version)),
                        Found::Plain => self.decide(fd, open, Mode::Plain),
                        Found::Forged => return Err(Failure::Forged(name)),
                        // Whatever it is, no record in it is valid; it must not become so by being in clear.
                        Found::Unknown => self.newest(),
                    },
                    mode => mode,
                };
                self.segment_cipher(open.place, mode)?
            }
        };
        Ok(match cipher {
            Some(cipher) => file::read_at(raw, cipher, buffer, offset, self.scratch)?,
            None => raw.read(buffer, offset)?,
        })
    }

    /// As `pwrite`.
    ///
    /// # Errors
    /// [`Failure`]; nothing was written then.
    pub fn write(
        &mut self,
        fd: i32,
        open: Open,
        raw: &impl Raw,
        data: &[u8],
        offset: u64,
    ) -> Result<usize, Failure> {
        // Space is reserved with zeros: that decides nothing, and they stay zeros.
        let reserves =
            (open.staged || matches!(open.place, Place::Segment(_))) && open.mode == Mode::Undecided;
        if reserves && data.iter().all(|byte| *byte == 0) {
            return Ok(raw.write(data, offset)?);
        }
        let cipher = match open.place {
            Place::Temporary { .. } => Some(self.temporary(open.place)?),
            Place::Segment(name) => {
                let mode = match open.mode {
                    Mode::Undecided => {
                        let found = probe(raw, name, self.policy, self.scratch)?;
                        let mode = mode_for_write(found, self.policy);
                        // Only who writes the first page decides; before that, the next one looks again.
                        let settled = offset == 0 || matches!(found, Found::Under(_) | Found::Plain);
                        if settled { self.decide(fd, open, mode) } else { mode }
                    }
                    mode => mode,
                };
                self.segment_cipher(open.place, mode)?
            }
        };
        Ok(match cipher {
            Some(cipher) => file::write_at(raw, cipher, data, offset, self.scratch)?,
            None => raw.write(data, offset)?,
        })
    }

    /// As `ftruncate`.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn set_size(&mut self, open: Open, raw: &impl Raw, size: u64) -> Result<(), Failure> {
        match open.place {
            Place::Temporary { .. } => {
                let cipher = self.temporary(open.place)?;
                Ok(file::set_size(raw, cipher, size, self.scratch)?)
            }
            // Segments are of whole pages.
            Place::Segment(_) => Ok(raw.set_size(size)?),
        }
    }

    fn decide(&self, fd: i32, open: Open, mode: Mode) -> Mode {
        self.table.set(fd, Open { mode, ..open });
        mode
    }

    fn newest(&self) -> Mode {
        let mut newest = Mode::Plain;
        self.policy.any_version(&mut |version| {
            newest = Mode::Under(version);
            true
        });
        newest
    }
}

impl<'a, P: Policy> Engine<'a, P> {
    fn temporary(&self, place: Place) -> Result<UnitCipher<'a>, Failure> {
        let key = self.temporary.ok_or(Failure::NoKey(0))?;
        Ok(UnitCipher { key, place })
    }

    fn segment_cipher(&self, place: Place, mode: Mode) -> Result<Option<UnitCipher<'a>>, Failure> {
        let Mode::Under(version) = mode else { return Ok(None) };
        let key = self.policy.key(version).ok_or(Failure::NoKey(version))?;
        Ok(Some(UnitCipher { key, place }))
    }
}
