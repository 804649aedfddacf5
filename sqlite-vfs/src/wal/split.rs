//! A frame that SQLite writes in two parts.

use zeroize::Zeroizing;

/// What is left to come of a frame that lies on disk already.
pub(super) struct Split {
    frame: u32,
    /// Offset of the frame in bytes.
    start: u64,
    /// Header and page in clear.
    plain: Zeroizing<Vec<u8>>,
    /// Bytes that came.
    done: usize,
}

impl Split {
    /// `done` bytes came of the frame at `start`.
    pub(super) fn new(frame: u32, start: u64, plain: Zeroizing<Vec<u8>>, done: usize) -> Self {
        Self { frame, start, plain, done }
    }

    /// Whether a write at `offset` goes on with the frame.
    pub(super) fn expects(&self, offset: u64) -> bool {
        offset == self.start + self.done as u64
    }

    /// The next part. What is left after it, or, if it is not the frame's, the frame's number.
    pub(super) fn accept(mut self, data: &[u8]) -> Result<Option<Self>, u32> {
        if !self.plain[self.done..].starts_with(data) {
            return Err(self.frame);
        }
        self.done += data.len();
        Ok((self.done < self.plain.len()).then_some(self))
    }
}
