//! Keys from keys: HKDF (RFC 5869), SP 800-108 and the KDF of X9.63 (SEC 1).

use secret_mem::SecretBuf;

use crate::{Aes, Cmac, Error, Hash, Mac, Result};

/// Longest key that is derived, in bytes.
pub const MAX_DERIVED: usize = 64 << 10;

/// HKDF-Extract.
pub fn hkdf_extract(hash: Hash, salt: &[u8], ikm: &[u8]) -> SecretBuf {
    // RFC 5869: no salt is a salt of zeros as long as the hash, which HMAC makes of an empty key.
    let mut mac = Mac::new(hash, salt);
    mac.update(ikm);
    secret(hash.len(), |out| mac.finish_into(out))
}

/// HKDF-Expand.
///
/// # Errors
/// [`Error::BadLength`] beyond 255 digests.
pub fn hkdf_expand(hash: Hash, prk: &[u8], info: &[u8], len: usize) -> Result<SecretBuf> {
    if len == 0 || len > 255 * hash.len() {
        return Err(Error::BadLength);
    }
    let mut mac = Mac::new(hash, prk);
    Ok(secret(len, |out| {
        let mut done = 0;
        for counter in 1..=255_u8 {
            if done == len {
                break;
            }
            if counter > 1 {
                mac.update(&out[done - hash.len()..done]);
            }
            mac.update(info);
            mac.update(&[counter]);
            let n = hash.len().min(len - done);
            mac.finish_into(&mut out[done..done + n]);
            done += n;
        }
    }))
}

/// The KDF of X9.63 and SEC 1: hashes of the secret, a counter from 1 and what both sides share.
///
/// # Errors
/// [`Error::BadLength`] beyond [`MAX_DERIVED`].
pub fn x963(hash: Hash, secret_value: &[u8], shared: &[u8], len: usize) -> Result<SecretBuf> {
    if len == 0 || len > MAX_DERIVED {
        return Err(Error::BadLength);
    }
    Ok(secret(len, |out| {
        for (counter, part) in (1_u32..).zip(out.chunks_mut(hash.len())) {
            let mut hasher = crate::Hasher::new(hash);
            hasher.update(secret_value);
            hasher.update(&counter.to_be_bytes());
            hasher.update(shared);
            let mut digest = hasher.finish();
            part.copy_from_slice(&digest[..part.len()]);
            zeroize::Zeroize::zeroize(&mut digest);
        }
    }))
}

/// The pseudorandom function of SP 800-108.
#[derive(Debug)]
pub enum Prf<'a> {
    /// HMAC; the key is its own.
    Hmac(Hash, &'a [u8]),
    /// CMAC.
    Cmac(&'a Aes),
}

impl Prf<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Hmac(hash, _) => hash.len(),
            Self::Cmac(_) => 16,
        }
    }

    fn compute(&self, keyed: Option<&mut Mac>, parts: &[&[u8]], out: &mut [u8]) {
        match (self, keyed) {
            (Self::Cmac(aes), _) => {
                let mut mac = Cmac::new();
                parts.iter().for_each(|part| mac.update(aes, part));
                let full = mac.finish(aes);
                out.copy_from_slice(&full[..out.len()]);
            }
            (Self::Hmac(..), Some(mac)) => {
                parts.iter().for_each(|part| mac.update(part));
                mac.finish_into(out);
            }
            (Self::Hmac(hash, key), None) => {
                let mut mac = Mac::new(*hash, key);
                parts.iter().for_each(|part| mac.update(part));
                mac.finish_into(out);
            }
        }
    }
}

/// How blocks of SP 800-108 follow from each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chain {
    /// From the counter alone (section 4.1).
    Counter,
    /// From the block before; the first from this IV, which may be empty (section 4.2).
    Feedback(Vec<u8>),
    /// From a second row of blocks (section 4.3).
    DoublePipeline,
}

/// A part of what is hashed for each block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The counter of the block, from 1, in this many bytes.
    Counter {
        /// 1 to 4.
        bytes: usize,
        /// Little-endian.
        little_endian: bool,
    },
    /// What the chain says: the block before or of the second row. In counter mode nothing.
    Chained,
    /// Length of the key in bits, in this many bytes.
    Length {
        /// 1 to 8.
        bytes: usize,
        /// Little-endian.
        little_endian: bool,
    },
    /// These bytes.
    Bytes(Vec<u8>),
}

/// SP 800-108r1.
///
/// # Errors
/// [`Error::BadLength`] for a length that the counter or this function does not reach; [`Error::BadParameters`] for parts that are
/// missing (counter mode needs a counter, the others their chain) or fields that are too long.
pub fn sp800_108(prf: &Prf<'_>, chain: &Chain, parts: &[Part], len: usize) -> Result<SecretBuf> {
    if len == 0 || len > MAX_DERIVED {
        return Err(Error::BadLength);
    }
    let counters = parts.iter().filter(|p| matches!(p, Part::Counter { .. })).count();
    let chained = parts.iter().filter(|p| matches!(p, Part::Chained)).count();
    let good = match chain {
        Chain::Counter => counters == 1 && chained == 0,
        _ => counters <= 1 && chained == 1,
    };
    let blocks = len.div_ceil(prf.len()) as u64;
    for part in parts {
        match *part {
            Part::Counter { bytes, .. } if !(1..=4).contains(&bytes) => return Err(Error::BadParameters),
            Part::Counter { bytes, .. } if blocks >> (8 * bytes) != 0 => return Err(Error::BadLength),
            Part::Length { bytes, .. } if !(1..=8).contains(&bytes) => return Err(Error::BadParameters),
            Part::Length { bytes, .. } if bytes < 8 && (len as u64 * 8) >> (8 * bytes) != 0 => {
                return Err(Error::BadLength);
            }
            _ => {}
        }
    }
    if !good {
        return Err(Error::BadParameters);
    }
    let mut mac = match prf {
        Prf::Hmac(hash, key) => Some(Mac::new(*hash, key)),
        Prf::Cmac(_) => None,
    };
    let n = prf.len();
    let fixed: Vec<u8> = parts
        .iter()
        .filter(|p| !matches!(p, Part::Counter { .. } | Part::Chained))
        .flat_map(|p| field(p, 0, len))
        .collect();
    let mut row = secret(n, |_| {});
    Ok(secret(len, |out| {
        for i in 0..blocks {
            if *chain == Chain::DoublePipeline {
                let before = if i == 0 { fixed.clone() } else { row.as_slice().to_vec() };
                row = secret(n, |next| prf.compute(mac.as_mut(), &[&before], next));
            }
            let at = i as usize * n;
            let (done, rest) = out.split_at_mut(at);
            let link: &[u8] = match chain {
                Chain::Counter => &[],
                Chain::Feedback(iv) if i == 0 => iv,
                Chain::Feedback(_) => &done[at - n..],
                Chain::DoublePipeline => row.as_slice(),
            };
            let fields: Vec<Vec<u8>> = parts.iter().map(|part| field(part, i + 1, len)).collect();
            let pieces: Vec<&[u8]> = parts
                .iter()
                .zip(&fields)
                .map(|(part, field)| if *part == Part::Chained { link } else { field })
                .collect();
            let end = n.min(rest.len());
            prf.compute(mac.as_mut(), &pieces, &mut rest[..end]);
        }
    }))
}

fn field(part: &Part, counter: u64, len: usize) -> Vec<u8> {
    let number = |value: u64, bytes: usize, little_endian: bool| {
        if little_endian {
            value.to_le_bytes()[..bytes].to_vec()
        } else {
            value.to_be_bytes()[8 - bytes..].to_vec()
        }
    };
    match part {
        Part::Counter { bytes, little_endian } => number(counter, *bytes, *little_endian),
        Part::Length { bytes, little_endian } => number(len as u64 * 8, *bytes, *little_endian),
        Part::Bytes(bytes) => bytes.clone(),
        Part::Chained => Vec::new(),
    }
}

/// A secret of `len` bytes that `fill` writes.
fn secret(len: usize, fill: impl FnOnce(&mut [u8])) -> SecretBuf {
    let made: Result<SecretBuf, core::convert::Infallible> = SecretBuf::from_fn(len, |out| {
        fill(out);
        Ok(len)
    });
    match made {
        Ok(secret) => secret,
        Err(never) => match never {},
    }
}
