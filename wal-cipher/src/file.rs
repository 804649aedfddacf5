//! Reading and writing an encrypted file at any offset and of any length.
//!
//! A block of 16 bytes that is changed in part is read, decrypted, changed and written again. It lies within one sector, so a
//! crash leaves the old or the new block. A last block that is not whole is stored in as many bytes as it has (`unit`).
//! Results are as truthful as the system's: after a short write as many bytes count as lie in whole blocks that were written.

use crate::unit::{BLOCK, UNIT, UnitBuffer, UnitCipher};

/// An `errno`.
pub type Errno = i32;

/// The file below.
pub trait Raw {
    /// As `pread`.
    ///
    /// # Errors
    /// `errno`
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno>;
    /// As `pwrite`.
    ///
    /// # Errors
    /// `errno`
    fn write(&self, data: &[u8], offset: u64) -> Result<usize, Errno>;
    /// Length of the file.
    ///
    /// # Errors
    /// `errno`
    fn size(&self) -> Result<u64, Errno>;
    /// As `ftruncate`.
    ///
    /// # Errors
    /// `errno`
    fn set_size(&self, size: u64) -> Result<(), Errno>;
}

/// Bytes that are written at a time: few enough to stay in the processor's cache.
pub const CHUNK: usize = 256 << 10;
/// How often a block that somebody is just writing is read again.
const SETTLE: usize = 100;

/// Working space, made beforehand and aligned for direct I/O.
#[repr(C, align(4096))]
pub struct Scratch {
    pub(crate) chunk: [u8; CHUNK],
    pub(crate) spare: UnitBuffer,
}

impl Scratch {
    /// Zeros, for a static.
    pub const fn new() -> Self {
        Self { chunk: [0; CHUNK], spare: [0; UNIT] }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

const BLOCK64: u64 = BLOCK as u64;

fn down(offset: u64) -> u64 {
    offset - offset % BLOCK64
}

/// As `pread`: up to `buffer.len()` bytes, fewer at the end of the file.
///
/// # Errors
/// Of the file below.
pub fn read_at(
    raw: &impl Raw,
    cipher: UnitCipher<'_>,
    buffer: &mut [u8],
    offset: u64,
    scratch: &mut Scratch,
) -> Result<usize, Errno> {
    let aligned = offset.is_multiple_of(BLOCK64) && buffer.len().is_multiple_of(BLOCK);
    if aligned {
        let got = whole_blocks_or_end(raw, raw.read(buffer, offset)?, offset)?;
        cipher.decrypt(offset, &mut buffer[..got], &mut scratch.spare);
        return Ok(got);
    }
    let mut done = 0;
    while done < buffer.len() {
        let at = offset + done as u64;
        let (start, skip) = (down(at), (at % BLOCK64) as usize);
        let wanted = (skip + buffer.len() - done).next_multiple_of(BLOCK).min(CHUNK);
        let chunk = &mut scratch.chunk[..wanted];
        let got = whole_blocks_or_end(raw, raw.read(chunk, start)?, start)?;
        let chunk = &mut chunk[..got];
        if got == wanted {
            settle(raw, chunk, start)?;
        }
        cipher.decrypt(start, chunk, &mut scratch.spare);
        let usable = got.saturating_sub(skip).min(buffer.len() - done);
        if usable > 0 {
            buffer[done..done + usable].copy_from_slice(&chunk[skip..skip + usable]);
        }
        done += usable;
        if got < wanted {
            break;
        }
    }
    Ok(done)
}

/// A read that ends within a block ends at the end of the file, or it counts only up to the last whole block.
fn whole_blocks_or_end(raw: &impl Raw, got: usize, offset: u64) -> Result<usize, Errno> {
    if got.is_multiple_of(BLOCK) || offset + got as u64 == raw.size()? {
        return Ok(got);
    }
    Ok(got - got % BLOCK)
}

/// The last block may be in the middle of being written again with more bytes in it: what it had before must not be garbled.
fn settle(raw: &impl Raw, chunk: &mut [u8], start: u64) -> Result<(), Errno> {
    let at = start + (chunk.len() - BLOCK) as u64;
    let Some(last) = chunk.last_chunk_mut::<BLOCK>() else { return Ok(()) };
    for _ in 0..SETTLE {
        let mut again = [0; BLOCK];
        if raw.read(&mut again, at)? < BLOCK || again == *last {
            break;
        }
        *last = again;
    }
    Ok(())
}

/// As `pwrite`, but for files that are opened for reading too.
///
/// # Errors
/// Of the file below, if nothing was written.
pub fn write_at(
    raw: &impl Raw,
    cipher: UnitCipher<'_>,
    data: &[u8],
    offset: u64,
    scratch: &mut Scratch,
) -> Result<usize, Errno> {
    if data.is_empty() {
        return Ok(0);
    }
    let end = offset + data.len() as u64;
    let mut edges = Edges { start: down(offset), ..Edges::default() };
    let aligned = offset.is_multiple_of(BLOCK64) && end.is_multiple_of(BLOCK64);
    // Segments have their full size before they are written.
    if !(aligned && matches!(cipher.place, crate::unit::Place::Segment(_))) {
        edges.read(raw, cipher, offset, end, &mut scratch.spare)?;
    }
    let size = end.max(edges.size);
    let mut done = 0;
    while done < data.len() {
        let at = offset + done as u64;
        let (start, skip) = (down(at), (at % BLOCK64) as usize);
        // Chunks end where units end.
        let room = CHUNK - (start % UNIT as u64) as usize;
        let now = (room - skip).min(data.len() - done);
        if skip > 0 {
            scratch.chunk[..BLOCK].copy_from_slice(&edges.head);
        }
        scratch.chunk[skip..skip + now].copy_from_slice(&data[done..done + now]);
        let mut filled = skip + now;
        if done + now == data.len() && !filled.is_multiple_of(BLOCK) {
            // What the file has behind the data in its last block.
            let last = filled - filled % BLOCK;
            let kept = ((size - start) as usize).min(last + BLOCK);
            let (from, to) = (filled - last, kept - last);
            scratch.chunk[filled..kept].copy_from_slice(&edges.tail[from..to]);
            filled = kept;
        }
        let chunk = &mut scratch.chunk[..filled];
        cipher.encrypt(start, chunk, &mut scratch.spare);
        let written = match raw.write(chunk, start) {
            Ok(written) => written,
            Err(_) if done > 0 => return Ok(done),
            Err(errno) => return Err(errno),
        };
        if written < filled {
            return Ok(done + (written - written % BLOCK).saturating_sub(skip).min(now));
        }
        done += now;
    }
    Ok(done)
}

/// As `ftruncate`.
///
/// # Errors
/// Of the file below.
pub fn set_size(
    raw: &impl Raw,
    cipher: UnitCipher<'_>,
    size: u64,
    scratch: &mut Scratch,
) -> Result<(), Errno> {
    let before = raw.size()?;
    if size == before {
        return Ok(());
    }
    let spare = &mut scratch.spare;
    let (last, tail) = (down(size), (size % BLOCK64) as usize);
    let mut block = [0; BLOCK];
    if tail > 0 {
        read_block(raw, cipher, last, before, &mut block, spare)?;
    }
    // The last block so far becomes a whole one, unless the file ends in it again.
    if size > before && last > down(before) {
        whole_tail(raw, cipher, before, spare)?;
    }
    raw.set_size(size)?;
    cipher.encrypt(last, &mut block[..tail], spare);
    write_all(raw, &block[..tail], last)
}

/// What a file holds in the blocks that a write changes in part.
#[derive(Default)]
struct Edges {
    start: u64,
    size: u64,
    head: [u8; BLOCK],
    tail: [u8; BLOCK],
}

impl Edges {
    fn read(
        &mut self,
        raw: &impl Raw,
        cipher: UnitCipher<'_>,
        offset: u64,
        end: u64,
        spare: &mut UnitBuffer,
    ) -> Result<(), Errno> {
        self.size = raw.size()?;
        if !self.size.is_multiple_of(BLOCK64) && self.start > down(self.size) {
            whole_tail(raw, cipher, self.size, spare)?;
            self.size = down(self.size) + BLOCK64;
        }
        if !offset.is_multiple_of(BLOCK64) {
            read_block(raw, cipher, self.start, self.size, &mut self.head, spare)?;
        }
        if !end.is_multiple_of(BLOCK64) && self.size > end {
            read_block(raw, cipher, down(end), self.size, &mut self.tail, spare)?;
        }
        Ok(())
    }
}

/// The block at `at` in clear, as much as the file of that size has of it.
fn read_block(
    raw: &impl Raw,
    cipher: UnitCipher<'_>,
    at: u64,
    size: u64,
    block: &mut [u8; BLOCK],
    spare: &mut UnitBuffer,
) -> Result<(), Errno> {
    let has = size.saturating_sub(at).min(BLOCK64) as usize;
    let mut got = 0;
    while got < has {
        match raw.read(&mut block[got..has], at + got as u64)? {
            0 => return Err(EIO),
            more => got += more,
        }
    }
    cipher.decrypt(at, &mut block[..has], spare);
    Ok(())
}

/// Stores the last block of a file of this size, if it is not whole, as a whole one.
fn whole_tail(
    raw: &impl Raw,
    cipher: UnitCipher<'_>,
    size: u64,
    spare: &mut UnitBuffer,
) -> Result<(), Errno> {
    if size.is_multiple_of(BLOCK64) {
        return Ok(());
    }
    let mut block = [0; BLOCK];
    read_block(raw, cipher, down(size), size, &mut block, spare)?;
    cipher.encrypt(down(size), &mut block, spare);
    write_all(raw, &block, down(size))
}

fn write_all(raw: &impl Raw, mut data: &[u8], mut at: u64) -> Result<(), Errno> {
    while !data.is_empty() {
        match raw.write(data, at)? {
            0 => return Err(EIO),
            some => {
                data = &data[some..];
                at += some as u64;
            }
        }
    }
    Ok(())
}

/// `EIO` on Linux.
pub(crate) const EIO: Errno = 5;

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use page_cipher::xts::Aes256Xts;
    use proptest::prelude::*;
    use secret_mem::SecretBytes;

    use super::*;
    use crate::name::SegmentName;
    use crate::unit::Place;

    /// A file in memory that may cut writes short.
    #[derive(Default)]
    struct Memory {
        bytes: RefCell<Vec<u8>>,
        room: Cell<Option<usize>>,
    }

    impl Raw for Memory {
        fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
            let bytes = self.bytes.borrow();
            let rest = bytes.get(offset as usize..).unwrap_or_default();
            let got = rest.len().min(buffer.len());
            buffer[..got].copy_from_slice(&rest[..got]);
            Ok(got)
        }

        fn write(&self, data: &[u8], offset: u64) -> Result<usize, Errno> {
            let take = self.room.get().map_or(data.len(), |room| room.min(data.len()));
            self.room.set(self.room.get().map(|room| room - take));
            if take == 0 && !data.is_empty() {
                return Err(28);
            }
            let mut bytes = self.bytes.borrow_mut();
            let end = offset as usize + take;
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[offset as usize..end].copy_from_slice(&data[..take]);
            Ok(take)
        }

        fn size(&self) -> Result<u64, Errno> {
            Ok(self.bytes.borrow().len() as u64)
        }

        fn set_size(&self, size: u64) -> Result<(), Errno> {
            self.bytes.borrow_mut().resize(size as usize, 0);
            Ok(())
        }
    }

    fn key() -> Aes256Xts {
        let mut bytes = SecretBytes::<64>::zeroed();
        bytes.expose_mut().iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
        Aes256Xts::new(&bytes).expect("halves differ")
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write { offset: u64, length: usize, fill: u8 },
        Read { offset: u64, length: usize },
        Size(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let offset = prop_oneof![0..200u64, 8100..8300u64, (0..5u64).prop_map(|unit| unit * 8192)];
        let length = prop_oneof![0..70usize, 8100..8300usize, (1..4usize).prop_map(|units| units * 8192)];
        let step = prop_oneof![
            4 => (offset.clone(), length.clone(), any::<u8>())
                .prop_map(|(offset, length, fill)| Step::Write { offset, length, fill }),
            2 => (offset.clone(), length).prop_map(|(offset, length)| Step::Read { offset, length }),
            1 => offset.prop_map(Step::Size),
        ];
        prop::collection::vec(step, 1..25)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever is written, read and cut, the file is what a plain one would be, and not one block of it in clear.
        #[test]
        fn an_encrypted_file_is_a_file(steps in steps()) {
            let key = key();
            let cipher = UnitCipher { key: &key, place: Place::Temporary { salt: 77 } };
            let (file, mut model, mut scratch) = (Memory::default(), Vec::<u8>::new(), Box::new(Scratch::new()));
            for step in steps {
                match step {
                    Step::Write { offset, length, fill } => {
                        let data: Vec<u8> = (0..length).map(|at| fill.wrapping_add(at as u8)).collect();
                        prop_assert_eq!(write_at(&file, cipher, &data, offset, &mut scratch), Ok(length));
                        let end = offset as usize + length;
                        if length > 0 {
                            model.resize(model.len().max(end), 0);
                            model[offset as usize..end].copy_from_slice(&data);
                        }
                    }
                    Step::Read { offset, length } => {
                        let mut buffer = vec![0; length];
                        let got = read_at(&file, cipher, &mut buffer, offset, &mut scratch).expect("reads");
                        let rest = model.get(offset as usize..).unwrap_or_default();
                        prop_assert_eq!(&buffer[..got], &rest[..rest.len().min(length)]);
                    }
                    Step::Size(size) => {
                        set_size(&file, cipher, size, &mut scratch).expect("resizes");
                        model.resize(size as usize, 0);
                    }
                }
                prop_assert_eq!(file.bytes.borrow().len(), model.len());
            }
            let mut all = vec![0; model.len() + 5];
            let got = read_at(&file, cipher, &mut all, 0, &mut scratch).expect("reads");
            prop_assert_eq!(&all[..got], &model[..]);
            for (stored, plain) in file.bytes.borrow().chunks(BLOCK).zip(model.chunks(BLOCK)) {
                prop_assert!(stored != plain || plain.len() < 4 || plain.iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn odd_pieces_in_order_give_what_one_write_gives() {
        let key = key();
        let name = SegmentName { timeline: 1, log: 0, segment: 9 };
        let cipher = UnitCipher { key: &key, place: Place::Segment(name) };
        let mut scratch = Box::new(Scratch::new());
        let data: Vec<u8> = (0..50_000).map(|at| (at * 7 % 253) as u8).collect();
        let make = || {
            let file = Memory::default();
            file.set_size(1 << 17).expect("memory");
            file
        };
        let (whole, pieces) = (make(), make());
        assert_eq!(write_at(&whole, cipher, &data, 0, &mut scratch), Ok(data.len()));
        let (mut at, mut length) = (0, 1);
        while at < data.len() {
            let now = length.min(data.len() - at);
            assert_eq!(write_at(&pieces, cipher, &data[at..at + now], at as u64, &mut scratch), Ok(now));
            (at, length) = (at + now, length * 5 % 9001 + 8);
        }
        assert_eq!(*pieces.bytes.borrow(), *whole.bytes.borrow());
    }

    #[test]
    fn a_full_disk_is_told_truthfully() {
        let key = key();
        let cipher = UnitCipher { key: &key, place: Place::Temporary { salt: 1 } };
        let mut scratch = Box::new(Scratch::new());
        let data = vec![9; 3 * CHUNK];
        for (room, expected) in
            [(0, Err(28)), (4096, Ok(4096)), (4100, Ok(4096)), (CHUNK + 8192, Ok(CHUNK + 8192))]
        {
            let file = Memory::default();
            file.room.set(Some(room));
            assert_eq!(write_at(&file, cipher, &data, 0, &mut scratch), expected, "room for {room}");
        }
        let file = Memory::default();
        file.room.set(Some(32));
        // The first byte is the sixth of its block.
        assert_eq!(write_at(&file, cipher, &data[..100], 5, &mut scratch), Ok(27));
    }
}
