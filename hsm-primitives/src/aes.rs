//! AES (FIPS 197) and its unauthenticated modes (SP 800-38A), CMAC (SP 800-38B) and key wrap (SP 800-38F).

use core::fmt;

use ::aes::cipher::{Array, BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
use ::aes::{Aes128, Aes192, Aes256};
use aes_kw::{AesKw, AesKwp, InnerInit as _};
use secret_mem::{LockedBox, SecretBuf, wiping_stack};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroize as _;

use crate::{Error, Result};

/// Length of a block in bytes.
pub const CBC_BLOCK: usize = 16;
/// Blocks whose keystream is made at once.
const BATCH: usize = 8;

type Block = Array<u8, ::aes::cipher::consts::U16>;

/// An expanded AES key of 16, 24 or 32 bytes, in locked memory.
pub struct Aes(LockedBox<Keys>);

enum Keys {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
}

macro_rules! each {
    ($keys:expr, $x:ident => $do:expr) => {
        match $keys {
            Keys::Aes128($x) => $do,
            Keys::Aes192($x) => $do,
            Keys::Aes256($x) => $do,
        }
    };
}

impl Aes {
    /// Expands a key.
    ///
    /// # Errors
    /// [`Error::BadKey`] unless it has 16, 24 or 32 bytes.
    pub fn new(key: &[u8]) -> Result<Self> {
        let bad = |_| Error::BadKey;
        let keys = match key.len() {
            16 => {
                let key = key.try_into().map_err(bad)?;
                LockedBox::new_with(|| Keys::Aes128(Aes128::new(key)))
            }
            24 => {
                let key = key.try_into().map_err(bad)?;
                LockedBox::new_with(|| Keys::Aes192(Aes192::new(key)))
            }
            _ => {
                let key = key.try_into().map_err(bad)?;
                LockedBox::new_with(|| Keys::Aes256(Aes256::new(key)))
            }
        };
        Ok(Self(keys))
    }

    /// Encrypts whole blocks in place, each by itself (ECB).
    ///
    /// # Errors
    /// [`Error::BadLength`] unless there are whole blocks.
    pub fn ecb_encrypt(&self, data: &mut [u8]) -> Result<()> {
        let blocks = whole_blocks(data)?;
        wiping_stack(|| each!(&*self.0, aes => aes.encrypt_blocks(blocks)));
        Ok(())
    }

    /// Decrypts whole blocks in place, each by itself (ECB).
    ///
    /// # Errors
    /// [`Error::BadLength`] unless there are whole blocks.
    pub fn ecb_decrypt(&self, data: &mut [u8]) -> Result<()> {
        let blocks = whole_blocks(data)?;
        wiping_stack(|| each!(&*self.0, aes => aes.decrypt_blocks(blocks)));
        Ok(())
    }

    /// CBC over whole blocks in place; `iv` becomes the one to go on with.
    ///
    /// # Errors
    /// [`Error::BadLength`] unless there are whole blocks.
    pub fn cbc_encrypt(&self, iv: &mut [u8; CBC_BLOCK], data: &mut [u8]) -> Result<()> {
        for block in whole_blocks(data)? {
            xor(block, iv);
            self.encrypt_block(block);
            iv.copy_from_slice(block);
        }
        Ok(())
    }

    /// Undoes [`cbc_encrypt`](Self::cbc_encrypt).
    ///
    /// # Errors
    /// [`Error::BadLength`] unless there are whole blocks.
    pub fn cbc_decrypt(&self, iv: &mut [u8; CBC_BLOCK], data: &mut [u8]) -> Result<()> {
        for batch in whole_blocks(data)?.chunks_mut(BATCH) {
            let mut before = [Block::default(); BATCH];
            before[..batch.len()].copy_from_slice(batch);
            wiping_stack(|| each!(&*self.0, aes => aes.decrypt_blocks(batch)));
            for (block, cipher) in batch.iter_mut().zip(&before) {
                xor(block, iv);
                iv.copy_from_slice(cipher);
            }
        }
        Ok(())
    }

    /// Wraps whole 8-byte units, at least two (KW, RFC 3394).
    ///
    /// # Errors
    /// [`Error::BadLength`].
    pub fn kw_wrap(&self, key: &[u8]) -> Result<Vec<u8>> {
        if key.len() < 16 || !key.len().is_multiple_of(8) {
            return Err(Error::BadLength);
        }
        let mut out = vec![0; key.len() + 8];
        wiping_stack(|| each!(&*self.0, aes => AesKw::inner_init(aes).wrap_key(key, &mut out).map(|_| ())))
            .map_err(|_| Error::BadLength)?;
        Ok(out)
    }

    /// Undoes [`kw_wrap`](Self::kw_wrap).
    ///
    /// # Errors
    /// [`Error::BadLength`], [`Error::Mismatch`].
    pub fn kw_unwrap(&self, wrapped: &[u8]) -> Result<SecretBuf> {
        if wrapped.len() < 24 || !wrapped.len().is_multiple_of(8) {
            return Err(Error::BadLength);
        }
        SecretBuf::from_fn(wrapped.len() - 8, |out| {
            wiping_stack(
                || each!(&*self.0, aes => AesKw::inner_init(aes).unwrap_key(wrapped, out).map(|b| b.len())),
            )
            .map_err(|_| Error::Mismatch)
        })
    }

    /// Wraps any length from 1 (KWP, RFC 5649).
    ///
    /// # Errors
    /// [`Error::BadLength`].
    pub fn kwp_wrap(&self, key: &[u8]) -> Result<Vec<u8>> {
        if key.is_empty() {
            return Err(Error::BadLength);
        }
        let mut out = vec![0; key.len().next_multiple_of(8) + 8];
        wiping_stack(|| each!(&*self.0, aes => AesKwp::inner_init(aes).wrap_key(key, &mut out).map(|_| ())))
            .map_err(|_| Error::BadLength)?;
        Ok(out)
    }

    /// Undoes [`kwp_wrap`](Self::kwp_wrap).
    ///
    /// # Errors
    /// [`Error::BadLength`], [`Error::Mismatch`].
    pub fn kwp_unwrap(&self, wrapped: &[u8]) -> Result<SecretBuf> {
        if wrapped.len() < 16 || !wrapped.len().is_multiple_of(8) {
            return Err(Error::BadLength);
        }
        SecretBuf::from_fn(wrapped.len() - 8, |out| {
            wiping_stack(
                || each!(&*self.0, aes => AesKwp::inner_init(aes).unwrap_key(wrapped, out).map(|b| b.len())),
            )
            .map_err(|_| Error::Mismatch)
        })
    }

    fn encrypt_block(&self, block: &mut Block) {
        each!(&*self.0, aes => aes.encrypt_block(block));
    }
}

impl fmt::Debug for Aes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aes(redacted)")
    }
}

fn whole_blocks(data: &mut [u8]) -> Result<&mut [Block]> {
    let (blocks, rest) = Block::slice_as_chunks_mut(data);
    if rest.is_empty() { Ok(blocks) } else { Err(Error::BadLength) }
}

fn xor(block: &mut [u8], with: &[u8]) {
    for (b, w) in block.iter_mut().zip(with) {
        *b ^= w;
    }
}

/// The keystream of CTR. The counter is the low `bits` of the block; it may not come round.
pub struct CtrStream {
    counter: [u8; 16],
    bits: u32,
    /// Blocks that are left before the counter would come round; `None` if more than anybody encrypts.
    left: Option<u64>,
    unused: Block,
    used: usize,
}

impl CtrStream {
    /// Begins at a counter block.
    ///
    /// # Errors
    /// [`Error::BadParameters`] unless `bits` is from 1 to 128.
    pub fn new(counter: [u8; 16], bits: u32) -> Result<Self> {
        if !(1..=128).contains(&bits) {
            return Err(Error::BadParameters);
        }
        let left = if bits < 64 {
            let mask = (1_u128 << bits) - 1;
            u64::try_from(mask + 1 - (u128::from_be_bytes(counter) & mask)).ok()
        } else {
            None
        };
        Ok(Self { counter, bits, left, unused: Block::default(), used: CBC_BLOCK })
    }

    /// Encrypts or decrypts in place.
    ///
    /// # Errors
    /// [`Error::BadLength`] if the counter would come round; nothing is changed then.
    pub fn apply(&mut self, aes: &Aes, data: &mut [u8]) -> Result<()> {
        let ahead = (CBC_BLOCK - self.used).min(data.len());
        let blocks = (data.len() - ahead).div_ceil(CBC_BLOCK) as u64;
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(blocks).ok_or(Error::BadLength)?;
        }
        let (first, rest) = data.split_at_mut(ahead);
        xor(first, &self.unused[self.used..]);
        self.used += ahead;
        for batch in rest.chunks_mut(BATCH * CBC_BLOCK) {
            let mut stream = [Block::default(); BATCH];
            let n = batch.len().div_ceil(CBC_BLOCK);
            for block in &mut stream[..n] {
                *block = self.counter.into();
                self.step();
            }
            wiping_stack(|| each!(&*aes.0, aes => aes.encrypt_blocks(&mut stream[..n])));
            for (chunk, block) in batch.chunks_mut(CBC_BLOCK).zip(&stream) {
                xor(chunk, block);
                if chunk.len() < CBC_BLOCK {
                    (self.unused, self.used) = (*block, chunk.len());
                }
            }
            stream.iter_mut().for_each(|block| block.as_mut_slice().zeroize());
        }
        Ok(())
    }

    fn step(&mut self) {
        let value = u128::from_be_bytes(self.counter);
        let mask = if self.bits == 128 { u128::MAX } else { (1 << self.bits) - 1 };
        self.counter = (value & !mask | value.wrapping_add(1) & mask).to_be_bytes();
    }
}

impl Drop for CtrStream {
    fn drop(&mut self) {
        self.unused.as_mut_slice().zeroize();
    }
}

/// CMAC (SP 800-38B) in parts.
pub struct Cmac {
    state: Block,
    /// Up to a whole block that is not known to be the last.
    pending: Block,
    len: usize,
}

impl Cmac {
    /// Begins.
    pub fn new() -> Self {
        Self { state: Block::default(), pending: Block::default(), len: 0 }
    }

    /// Takes more.
    pub fn update(&mut self, aes: &Aes, mut data: &[u8]) {
        while !data.is_empty() {
            if self.len == CBC_BLOCK {
                xor(&mut self.state, &self.pending);
                aes.encrypt_block(&mut self.state);
                self.len = 0;
            }
            let n = (CBC_BLOCK - self.len).min(data.len());
            self.pending[self.len..self.len + n].copy_from_slice(&data[..n]);
            self.len += n;
            data = &data[n..];
        }
    }

    /// The MAC.
    pub fn finish(mut self, aes: &Aes) -> [u8; CBC_BLOCK] {
        let mut subkey = Block::default();
        aes.encrypt_block(&mut subkey);
        double(&mut subkey);
        if self.len < CBC_BLOCK {
            double(&mut subkey);
            self.pending[self.len..].fill(0);
            self.pending[self.len] = 0x80;
        }
        xor(&mut self.state, &self.pending);
        xor(&mut self.state, &subkey);
        aes.encrypt_block(&mut self.state);
        subkey.as_mut_slice().zeroize();
        self.state.into()
    }

    /// Whether the MAC, cut to the length of `expected`, is `expected`; in constant time. An empty one never is.
    pub fn verify(self, aes: &Aes, expected: &[u8]) -> bool {
        let mac = self.finish(aes);
        let n = expected.len();
        n > 0 && n <= mac.len() && mac[..n].ct_eq(expected).into()
    }
}

impl Default for Cmac {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cmac {
    fn drop(&mut self) {
        self.state.as_mut_slice().zeroize();
        self.pending.as_mut_slice().zeroize();
    }
}

/// Doubles in GF(2^128) as SP 800-38B says, without a branch on the secret.
fn double(block: &mut Block) {
    let value = u128::from_be_bytes((*block).into());
    let carry = (value >> 127).wrapping_neg() & 0x87;
    *block = (value << 1 ^ carry).to_be_bytes().into();
}
