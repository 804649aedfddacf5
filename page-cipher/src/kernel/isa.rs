//! What an instruction set must offer for the ciphers of this folder, which are written once over these
//! traits.
//!
//! A value of [`Isa`] can only be had where the processor was found to have the instructions, and values of
//! [`Vector`] and [`Block`] only from an [`Isa`]. So the methods are safe: whoever holds a value holds the proof.
//! They compile to single instructions once they are inlined into [`Isa::run`], which is why everything
//! between is `inline(always)`. Closures and functions of `core` that take them are not, so there are
//! loops where one would write `map`.

/// One instruction set, as the proof that this processor has it. `G` vectors make a group, the unit in which
/// the ciphers work: enough to hide the latency of AES.
pub(crate) trait Isa<const G: usize>: Copy + 'static {
    type Block: Block;
    type Vector: Vector<Block = Self::Block>;

    fn block(self, bytes: &[u8; 16]) -> Self::Block;

    /// Reads exactly one vector.
    fn load(self, bytes: &[u8]) -> Self::Vector;

    /// Reads at most one vector; zeros follow.
    fn load_partial(self, bytes: &[u8]) -> Self::Vector;

    /// Runs `operation` with the instructions enabled.
    fn run<O: Operation<Self>>(self, operation: O) -> O::Output;

    /// `value` as a little-endian number.
    #[inline(always)]
    fn number(self, value: u128) -> Self::Block {
        self.block(&value.to_le_bytes())
    }

    /// At most one block; zeros follow.
    #[inline(always)]
    fn block_partial(self, bytes: &[u8]) -> Self::Block {
        self.number(number_partial(bytes))
    }

    #[inline(always)]
    fn zero(self) -> Self::Vector {
        Self::Vector::splat(self.number(0))
    }
}

/// Code that is compiled for an instruction set. Implementations are `inline(always)`.
pub(crate) trait Operation<I> {
    type Output;

    fn run(self, isa: I) -> Self::Output;
}

/// `LANES` blocks side by side. Operations work on every lane by itself.
pub(crate) trait Vector: Copy {
    type Block: Block;
    const LANES: usize;
    /// Length in bytes.
    const BYTES: usize = 16 * Self::LANES;

    /// `block` in every lane.
    fn splat(block: Self::Block) -> Self;
    /// `block` in lane `lane`, zeros elsewhere.
    fn at_lane(block: Self::Block, lane: usize) -> Self;
    /// Writes exactly one vector.
    fn store(self, bytes: &mut [u8]);
    /// Writes the beginning, at most one vector.
    fn store_partial(self, bytes: &mut [u8]);
    /// Zeros from byte `len` on.
    fn truncate(self, len: usize) -> Self;
    /// Lane i to lane i + `lanes`; zeros come in. `lanes` is less than `LANES`.
    fn shift_up(self, lanes: usize) -> Self;
    /// Lane i + `lanes` to lane i; zeros come in. `lanes` is less than `LANES`.
    fn shift_down(self, lanes: usize) -> Self;
    /// The XOR of all lanes.
    fn fold(self) -> Self::Block;
    /// Lane 0.
    fn first(self) -> Self::Block;

    fn xor(self, other: Self) -> Self;
    /// XOR of three.
    fn xor3(self, b: Self, c: Self) -> Self;
    /// Adds in every 32-bit word.
    fn add32(self, other: Self) -> Self;
    /// Adds in every 64-bit half.
    fn add64(self, other: Self) -> Self;
    /// Exchanges the 64-bit halves.
    fn swap_halves(self) -> Self;

    /// A round of AES: ShiftRows, SubBytes, MixColumns, AddRoundKey.
    fn aes(self, key: Self) -> Self;
    /// The last round of AES, which has no MixColumns.
    fn aes_last(self, key: Self) -> Self;
    /// A round of the equivalent inverse cipher (FIPS 197, 5.3.5).
    fn inverse_aes(self, key: Self) -> Self;
    fn inverse_aes_last(self, key: Self) -> Self;

    /// Carry-less product of the low halves.
    fn clmul_low(self, other: Self) -> Self;
    /// Carry-less product of the high halves.
    fn clmul_high(self, other: Self) -> Self;

    /// Shifts blocks by one byte towards their end; a zero comes in.
    fn shift_byte_up(self) -> Self;
    /// Shifts blocks by two bytes towards their end; zeros come in.
    fn shift_2_bytes_up(self) -> Self;
    /// The last byte of every block alone, as its first.
    fn last_byte(self) -> Self;
    /// The last two bytes of every block alone, as its first.
    fn last_2_bytes(self) -> Self;
}

/// A single block of 16 bytes.
pub(crate) trait Block: Vector<Block = Self> {
    fn bytes(self) -> [u8; 16];
    fn and(self, other: Self) -> Self;
    /// `low half of self || low half of other`.
    fn low_halves(self, other: Self) -> Self;
    /// `high half of self || high half of other`.
    fn high_halves(self, other: Self) -> Self;
    /// Word 3 in every word.
    fn splat_word3(self) -> Self;
    /// Word 3, rotated as RotWord of FIPS 197, in every word.
    fn splat_rotated_word3(self) -> Self;
    /// Every word XORed with all words before it.
    fn prefix_xor_words(self) -> Self;
    /// InvMixColumns.
    fn inverse_mix_columns(self) -> Self;
}

/// At most 16 bytes as a little-endian number. In words that overlap, because a call of `memcpy` would spill all
/// vector registers.
#[inline(always)]
fn number_partial(bytes: &[u8]) -> u128 {
    let len = bytes.len();
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let high = u128::from(u64::from_le_bytes(*last)) << 64;
        // Where the two overlap they are equal.
        return u128::from(u64::from_le_bytes(*first)) | high >> (8 * (16 - len));
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let high = u64::from(u32::from_le_bytes(*last)) << 32;
        return (u64::from(u32::from_le_bytes(*first)) | high >> (8 * (8 - len))).into();
    }
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c] => u32::from_le_bytes([a, b, c, 0]).into(),
        _ => 0,
    }
}

/// Writes the beginning of `block`, at most 16 bytes, likewise.
#[inline(always)]
pub(super) fn store_number_partial(number: u128, bytes: &mut [u8]) {
    let len = bytes.len();
    let shifted = |word_len: usize| number >> (8 * (len - word_len));
    match len {
        8.. => {
            let (first, last) = (number as u64, shifted(8) as u64);
            bytes[..8].copy_from_slice(&first.to_le_bytes());
            bytes[len - 8..].copy_from_slice(&last.to_le_bytes());
        }
        4.. => {
            let (first, last) = (number as u32, shifted(4) as u32);
            bytes[..4].copy_from_slice(&first.to_le_bytes());
            bytes[len - 4..].copy_from_slice(&last.to_le_bytes());
        }
        _ => {
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = (number >> (8 * index)) as u8;
            }
        }
    }
}

/// N / 2 ones, then zeros: loaded at N / 2 - n, a mask of n bytes.
pub(super) const fn ones_then_zeros<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let mut i = 0;
    while i < N / 2 {
        bytes[i] = 0xff;
        i += 1;
    }
    bytes
}
