//! Temporary files: statement journals, sorter files, temporary databases and their journals.
//!
//! Each file has a random key of its own that is never stored. The file is cut into units of 4096 bytes, each sealed
//! with AES-256-GCM-SIV under a counter that is used once; tags and counters stay in memory (32 bytes a unit), so the
//! file has the length that SQLite gave it and any change to it is noticed. A file cannot be read after its handle is
//! closed, which SQLite never does.

use core::ops::Range;

use page_cipher::gcm_siv::{Aes256GcmSiv, NONCE_LEN, TAG_LEN};
use secret_mem::{ForkCanary, SecretBytes};

use crate::error::{Place, Result, VfsError};
use crate::raw::{RawFile, Read};

/// Length of a unit in bytes.
const UNIT: usize = 4096;

/// What opens one unit on disk. A counter of zero: never written, zeros.
#[derive(Clone, Copy)]
struct Sealed {
    counter: u64,
    /// Bytes that were sealed; the file may have grown since, then zeros follow.
    len: u32,
    tag: [u8; TAG_LEN],
}

const ABSENT: Sealed = Sealed { counter: 0, len: 0, tag: [0; TAG_LEN] };

/// The unit that is being read or changed in parts.
struct Cached {
    unit: usize,
    plain: Box<[u8; UNIT]>,
    dirty: bool,
}

/// An open temporary file.
pub(crate) struct TempFile<R> {
    raw: R,
    cipher: Aes256GcmSiv,
    canary: ForkCanary,
    counter: u64,
    sealed: Vec<Sealed>,
    /// Length of the file as SQLite knows it, in bytes.
    len: u64,
    cached: Option<Cached>,
    scratch: Vec<u8>,
}

impl<R: RawFile> TempFile<R> {
    /// Takes over an open, empty file.
    pub(crate) fn new(raw: R) -> Result<Self> {
        let canary = ForkCanary::new()?;
        let cipher = Aes256GcmSiv::new(&SecretBytes::random()?);
        Ok(Self {
            raw,
            cipher,
            canary,
            counter: 0,
            sealed: Vec::new(),
            len: 0,
            cached: None,
            scratch: Vec::new(),
        })
    }

    /// The file below.
    pub(crate) fn raw(&self) -> &R {
        &self.raw
    }

    /// Length in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.len
    }

    /// Reads any range.
    pub(crate) fn read(&mut self, buf: &mut [u8], offset: u64) -> Result<Read> {
        let available = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (wanted, beyond) = buf.split_at_mut(available);
        beyond.fill(0);
        let read = if beyond.is_empty() { Read::Full } else { Read::Short };
        let outcome = self.read_there(wanted, offset);
        if outcome.is_err() {
            wanted.fill(0);
        }
        outcome.map(|()| read)
    }

    fn read_there(&mut self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        while !buf.is_empty() {
            let (unit, skip) = split(offset);
            let whole = self.whole_units(unit, skip, buf.len());
            let len = if whole > 0 {
                let (now, _) = buf.split_at_mut(whole * UNIT);
                self.read_run(now, unit)?;
                now.len()
            } else {
                let part = (UNIT - skip).min(buf.len());
                buf[..part].copy_from_slice(&self.load(unit)?.plain[skip..skip + part]);
                part
            };
            buf = &mut buf[len..];
            offset += len as u64;
        }
        Ok(())
    }

    /// How many whole units beginning at `unit` a range covers that lie on disk and not in the cache.
    fn whole_units(&self, unit: usize, skip: usize, len: usize) -> usize {
        if skip != 0 {
            return 0;
        }
        let full = (self.len / UNIT as u64) as usize;
        let end = (unit + len / UNIT).min(full);
        match &self.cached {
            Some(cached) if (unit..end).contains(&cached.unit) => cached.unit - unit,
            _ => end.saturating_sub(unit),
        }
    }

    /// Reads whole units at once and opens them in place.
    fn read_run(&mut self, buf: &mut [u8], first: usize) -> Result<()> {
        let read = self.raw.read_at(buf, first as u64 * UNIT as u64)?;
        for (unit, bytes) in (first..).zip(buf.chunks_exact_mut(UNIT)) {
            self.open(unit, bytes, read)?;
        }
        Ok(())
    }

    /// Writes any range.
    pub(crate) fn write(&mut self, mut data: &[u8], mut offset: u64) -> Result<()> {
        while !data.is_empty() {
            let (unit, skip) = split(offset);
            let whole = if skip == 0 { data.len() / UNIT } else { 0 };
            let len = if whole > 0 {
                self.write_run(&data[..whole * UNIT], unit)?;
                whole * UNIT
            } else {
                let part = (UNIT - skip).min(data.len());
                let cached = self.load(unit)?;
                cached.plain[skip..skip + part].copy_from_slice(&data[..part]);
                cached.dirty = true;
                part
            };
            data = &data[len..];
            offset += len as u64;
            self.len = self.len.max(offset);
        }
        Ok(())
    }

    /// Seals whole units and writes them at once.
    fn write_run(&mut self, data: &[u8], first: usize) -> Result<()> {
        let units = first..first + data.len() / UNIT;
        if self.cached.as_ref().is_some_and(|cached| units.contains(&cached.unit)) {
            self.cached = None;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend_from_slice(data);
        let written = self.seal_run(units, &mut scratch);
        self.scratch = scratch;
        written
    }

    fn seal_run(&mut self, units: Range<usize>, bytes: &mut [u8]) -> Result<()> {
        let offset = units.start as u64 * UNIT as u64;
        for (unit, bytes) in units.clone().zip(bytes.chunks_mut(UNIT)) {
            self.seal(unit, bytes)?;
        }
        self.raw.write_at(bytes, offset)
    }

    /// Cuts or extends the file.
    pub(crate) fn truncate(&mut self, size: u64) -> Result<()> {
        if size < self.len {
            let (last, kept) = split(size);
            let units = last + usize::from(kept != 0);
            self.cached = self.cached.take().filter(|cached| cached.unit < units);
            if kept != 0 {
                let cached = self.load(last)?;
                cached.plain[kept..].fill(0);
                cached.dirty = true;
            }
            self.sealed.truncate(units);
            self.raw.truncate(size)?;
        }
        self.len = size;
        Ok(())
    }

    /// Writes what is cached, then syncs.
    pub(crate) fn sync(&mut self, flags: i32) -> Result<()> {
        self.flush()?;
        self.raw.sync(flags)
    }

    /// Brings a unit into the cache.
    fn load(&mut self, unit: usize) -> Result<&mut Cached> {
        if self.cached.as_ref().is_none_or(|cached| cached.unit != unit) {
            self.flush()?;
            let mut plain = match self.cached.take() {
                Some(cached) => cached.plain,
                None => Box::new([0; UNIT]),
            };
            let on_disk = self.sealed.get(unit).map_or(0, |sealed| sealed.len as usize);
            let read = self.raw.read_at(&mut plain[..on_disk], unit as u64 * UNIT as u64)?;
            self.open(unit, &mut plain[..], read)?;
            self.cached = Some(Cached { unit, plain, dirty: false });
        }
        Ok(self.cached.as_mut().expect("put there just now"))
    }

    /// Seals the cached unit, if it was changed, and writes it.
    fn flush(&mut self) -> Result<()> {
        let Some(mut cached) = self.cached.take() else { return Ok(()) };
        if cached.dirty {
            let len = self.unit_len(cached.unit);
            let mut scratch = std::mem::take(&mut self.scratch);
            scratch.clear();
            scratch.extend_from_slice(&cached.plain[..len]);
            let written = self.seal_run(cached.unit..cached.unit + 1, &mut scratch);
            self.scratch = scratch;
            // What could not be written stays to be written.
            cached.dirty = written.is_err();
            self.cached = Some(cached);
            return written;
        }
        self.cached = Some(cached);
        Ok(())
    }

    /// Length of a unit in bytes; the last one may be shorter.
    fn unit_len(&self, unit: usize) -> usize {
        self.len.saturating_sub(unit as u64 * UNIT as u64).min(UNIT as u64) as usize
    }

    fn seal(&mut self, unit: usize, bytes: &mut [u8]) -> Result<()> {
        if !self.canary.is_alive() {
            return Err(VfsError::Forked { file: self.raw.name().to_owned() });
        }
        self.counter += 1;
        let tag = self.cipher.seal(&nonce(self.counter), &associated_data(unit, bytes.len()), bytes);
        let tag = tag.expect("a unit is shorter than GCM-SIV's limit");
        if self.sealed.len() <= unit {
            self.sealed.resize(unit + 1, ABSENT);
        }
        self.sealed[unit] = Sealed { counter: self.counter, len: bytes.len() as u32, tag };
        Ok(())
    }

    /// Opens a unit at the beginning of `bytes` and fills the rest with zeros.
    fn open(&self, unit: usize, bytes: &mut [u8], read: Read) -> Result<()> {
        let sealed = self.sealed.get(unit).copied().unwrap_or(ABSENT);
        let (bytes, beyond) = bytes.split_at_mut(sealed.len as usize);
        beyond.fill(0);
        if sealed.counter == 0 {
            return Ok(());
        }
        let aad = associated_data(unit, bytes.len());
        self.cipher.open(&nonce(sealed.counter), &aad, bytes, &sealed.tag).map_err(|_| {
            let (file, place) = (self.raw.name().to_owned(), Place::TempUnit(unit as u64));
            match read {
                Read::Full => VfsError::NotAuthentic { file, place, version: 0 },
                Read::Short => VfsError::Torn { file, place },
            }
        })
    }
}

/// The unit that holds the byte at `offset`, and the byte's place in it.
fn split(offset: u64) -> (usize, usize) {
    ((offset / UNIT as u64) as usize, (offset % UNIT as u64) as usize)
}

fn nonce(counter: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&counter.to_le_bytes());
    nonce
}

fn associated_data(unit: usize, len: usize) -> [u8; 16] {
    let mut aad = [0; 16];
    aad[..8].copy_from_slice(&(unit as u64).to_le_bytes());
    aad[8..].copy_from_slice(&(len as u64).to_le_bytes());
    aad
}

#[cfg(test)]
mod tests;
