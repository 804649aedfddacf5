//! Every kernel gives the same bytes as the portable one, whatever the length and the alignment, and touches no byte
//! outside its buffers.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use common::kernels;
use page_cipher::Kernel;
use page_cipher::gcm_siv::{Aes256GcmSiv, Message};
use page_cipher::hctr2::{Aes256Hctr2, Unit};
use page_cipher::pg::{PAGE_SIZE, Page, checksum, checksum_with_kernel};
use page_cipher::xts::Aes256Xts;
use proptest::prelude::*;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// The ciphers of one kernel under one key, behind one face.
struct Ciphers {
    kernel: Kernel,
    hctr2: Aes256Hctr2,
    gcm_siv: Aes256GcmSiv,
    xts: Aes256Xts,
}

impl Ciphers {
    fn new(kernel: Kernel, key: &[u8; 64]) -> Self {
        let short = common::secret(&key[..32]);
        Self {
            kernel,
            hctr2: Aes256Hctr2::with_kernel(kernel, &short).unwrap(),
            gcm_siv: Aes256GcmSiv::with_kernel(kernel, &short).unwrap(),
            xts: Aes256Xts::with_kernel(kernel, &common::secret(key)).unwrap().unwrap(),
        }
    }

    fn all(key: &[u8; 64]) -> Vec<Self> {
        kernels().map(|kernel| Self::new(kernel, key)).collect()
    }

    /// Encrypts `data` in place with cipher `which`; gives the tag, if there is one.
    fn encrypt(&self, which: Which, tweak: &[u8], data: &mut [u8]) -> [u8; 16] {
        match which {
            Which::Hctr2 => self.hctr2.encrypt(tweak, data).unwrap(),
            Which::Xts => self.xts.encrypt(&start(tweak), data).unwrap(),
            Which::GcmSiv => return self.gcm_siv.seal(&start(tweak), tweak, data).unwrap(),
        }
        [0; 16]
    }

    fn decrypt(&self, which: Which, tweak: &[u8], data: &mut [u8], tag: &[u8; 16]) {
        match which {
            Which::Hctr2 => self.hctr2.decrypt(tweak, data).unwrap(),
            Which::Xts => self.xts.decrypt(&start(tweak), data).unwrap(),
            Which::GcmSiv => self.gcm_siv.open(&start(tweak), tweak, data, tag).unwrap(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Hctr2,
    GcmSiv,
    Xts,
}

impl Which {
    const ALL: [Self; 3] = [Self::Hctr2, Self::GcmSiv, Self::Xts];

    fn min_len(self) -> usize {
        if matches!(self, Self::GcmSiv) { 0 } else { 16 }
    }
}

/// The beginning of `bytes`, with zeros after it.
fn start<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))
}

fn key() -> [u8; 64] {
    std::array::from_fn(|i| (i * 5 + 1) as u8)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 256 * 7 + seed) as u8).collect()
}

/// Compares all kernels on `plaintext` at `offset` from an aligned address.
fn check(ciphers: &[Ciphers], which: Which, tweak: &[u8], plaintext: &[u8], offset: usize) {
    let (oracle, others) = ciphers.split_last().unwrap();
    assert_eq!(oracle.kernel, Kernel::Portable);
    let mut expected = plaintext.to_vec();
    let tag = oracle.encrypt(which, tweak, &mut expected);
    let mut room = vec![0x5a; plaintext.len() + 256];
    let at = room.as_ptr().align_offset(64) + offset;
    let end = at + plaintext.len();
    for ciphers in others {
        let name = || format!("{which:?} by {}, {} bytes at {offset}", ciphers.kernel, plaintext.len());
        room[at..end].copy_from_slice(plaintext);
        let found = ciphers.encrypt(which, tweak, &mut room[at..end]);
        assert!(room[at..end] == expected[..] && found == tag, "encrypting: {}", name());
        ciphers.decrypt(which, tweak, &mut room[at..end], &tag);
        assert!(room[at..end] == plaintext[..], "decrypting: {}", name());
        let outside = room[..at].iter().chain(&room[end..]);
        assert!(outside.into_iter().all(|byte| *byte == 0x5a), "wrote outside: {}", name());
    }
}

#[test]
fn this_machine_has_the_kernels_it_should() {
    let found: Vec<Kernel> = kernels().collect();
    assert_eq!(found.first(), Some(&Kernel::best()));
    assert_eq!(found.last(), Some(&Kernel::Portable));
    #[cfg(target_arch = "x86_64")]
    assert_eq!(
        found.contains(&Kernel::AesNi),
        is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("avx")
    );
    #[cfg(target_arch = "aarch64")]
    assert_eq!(
        found.contains(&Kernel::Neon),
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
    );
    for kernel in Kernel::ALL.into_iter().filter(|kernel| !found.contains(kernel)) {
        assert!(Aes256Hctr2::with_kernel(kernel, &common::data_key()).is_none());
        assert!(Aes256GcmSiv::with_kernel(kernel, &common::data_key()).is_none());
    }
}

/// All lengths up to a page and somewhat more: every number of blocks in the first group, every partial block.
#[test]
fn every_length() {
    let ciphers = Ciphers::all(&key());
    for which in Which::ALL {
        for len in which.min_len()..=8192 + 40 {
            check(&ciphers, which, b"sixteen bytes...", &pattern(len, len), len % 64);
        }
    }
}

#[test]
fn every_alignment_and_tweak_length() {
    let ciphers = Ciphers::all(&key());
    for which in Which::ALL {
        for offset in 0..64 {
            for len in [16, 17, 255, 1000, 4064, 8182] {
                check(&ciphers, which, &pattern(offset * 3, 1), &pattern(len, 2), offset);
            }
        }
    }
}

/// More than 2^16 blocks, so that counters carry.
#[test]
fn long_data() {
    let ciphers = Ciphers::all(&key());
    for which in Which::ALL {
        check(&ciphers, which, b"long", &pattern((1 << 20) + 77, 3), 3);
    }
}

/// GCM-SIV's counter has 32 bits and starts at the tag. This message, which a search has found, is long enough for it
/// to wrap.
#[test]
fn counters_that_wrap() {
    let ciphers = Ciphers::all(&key());
    let (nonce, data) = (133_152_u32.to_le_bytes(), pattern(1 << 20, 4));
    let tag = ciphers[0].encrypt(Which::GcmSiv, &nonce, &mut data.clone());
    let blocks_before = u32::MAX - u32::from_le_bytes([tag[0], tag[1], tag[2], tag[3]]);
    assert_eq!(blocks_before, 40_222);
    check(&ciphers, Which::GcmSiv, &nonce, &data, 0);
}

/// Of pages whose every word matters; `pd_checksum` itself does not.
#[test]
fn page_checksums() {
    for seed in 0..300 {
        let mut page: Page = pattern(PAGE_SIZE, seed).try_into().unwrap();
        let expected = checksum_with_kernel(Kernel::Portable, &page, 7).unwrap();
        page[8..10].fill(seed as u8);
        page[4 * (seed * 7 % 2048)] ^= 0x80;
        let changed = checksum_with_kernel(Kernel::Portable, &page, 7).unwrap();
        for kernel in kernels() {
            if let Some(found) = checksum_with_kernel(kernel, &page, 7) {
                assert_eq!(found, changed, "{kernel}, page {seed}");
            }
            page[4 * (seed * 7 % 2048)] ^= 0x80;
            if let Some(found) = checksum_with_kernel(kernel, &page, 7) {
                assert_eq!(found, expected, "{kernel}, page {seed}");
            }
            page[4 * (seed * 7 % 2048)] ^= 0x80;
        }
        assert_eq!(checksum(&page, 7), changed);
    }
}

/// A batch gives what single calls give, whatever the lengths in it.
#[test]
fn batches() {
    let all = Ciphers::all(&key());
    let mut lens: Vec<Vec<usize>> =
        (0..12).flat_map(|n| [16, 17, 4064, 8182].map(|len| vec![len; n])).collect();
    lens.extend([vec![16, 16, 32, 32, 16], vec![100, 8182, 8182, 8182, 5000, 5000], (16..400).collect()]);
    lens.extend((1..80).map(|blocks| vec![16 * blocks - blocks % 3 + 16; 3]));
    for (number, lens) in lens.iter().enumerate() {
        let plain: Vec<Vec<u8>> = lens.iter().map(|len| pattern(*len, number + len)).collect();
        let tweaks: Vec<[u8; 12]> = (0..lens.len()).map(|i| [(i + number) as u8; 12]).collect();
        for ciphers in &all {
            let single = |which| -> (Vec<Vec<u8>>, Vec<[u8; 16]>) {
                let mut data = plain.clone();
                let tags = data.iter_mut().zip(&tweaks).map(|(d, t)| ciphers.encrypt(which, t, d)).collect();
                (data, tags)
            };
            let mut data = plain.clone();
            let units = |data: &mut Vec<Vec<u8>>, cipher: fn(&Aes256Hctr2, &mut [Unit])| {
                let mut units: Vec<_> =
                    data.iter_mut().zip(&tweaks).map(|(d, t)| Unit::new(t, d).unwrap()).collect();
                cipher(&ciphers.hctr2, &mut units);
            };
            units(&mut data, Aes256Hctr2::encrypt_batch);
            assert!(data == single(Which::Hctr2).0, "{}: encrypting {lens:?}", ciphers.kernel);
            units(&mut data, Aes256Hctr2::decrypt_batch);
            assert!(data == plain, "{}: decrypting {lens:?}", ciphers.kernel);

            let mut messages: Vec<_> = data
                .iter_mut()
                .zip(&tweaks)
                .map(|(data, nonce)| Message { nonce, aad: nonce, data, tag: [0; 16] })
                .collect();
            ciphers.gcm_siv.seal_batch(&mut messages).unwrap();
            let tags: Vec<_> = messages.iter().map(|message| message.tag).collect();
            assert!((data, tags) == single(Which::GcmSiv), "{}: sealing {lens:?}", ciphers.kernel);
        }
    }
    let mut none = [Message { nonce: &[0; 12], aad: &[], data: &mut [], tag: [0; 16] }];
    all[0].gcm_siv.seal_batch(&mut none).unwrap();
    assert_eq!(none[0].tag, all[0].gcm_siv.seal(&[0; 12], &[], &mut []).unwrap());
}

/// Memory between two pages that cannot be accessed.
struct Guarded {
    base: *mut core::ffi::c_void,
}

const PAGE: usize = 4096;
const ROOM: usize = 4 * PAGE;

impl Guarded {
    fn new() -> Self {
        let len = ROOM + 2 * PAGE;
        // SAFETY: a new mapping at an address of the kernel's choice; the calls of `mprotect` are within it.
        unsafe {
            let flags = ProtFlags::READ | ProtFlags::WRITE;
            let base = mmap_anonymous(core::ptr::null_mut(), len, flags, MapFlags::PRIVATE).unwrap();
            mprotect(base, PAGE, MprotectFlags::empty()).unwrap();
            mprotect(base.byte_add(PAGE + ROOM), PAGE, MprotectFlags::empty()).unwrap();
            Self { base }
        }
    }

    /// The room between the guards.
    fn room(&mut self) -> &mut [u8] {
        // SAFETY: `ROOM` bytes from here are readable, writable and initialised (anonymous memory is zero), and
        // borrowed from `self` alone.
        unsafe { core::slice::from_raw_parts_mut(self.base.byte_add(PAGE).cast(), ROOM) }
    }

    /// `bytes` directly behind the first guard, or directly before the second.
    fn place(&mut self, bytes: &[u8], at_end: bool) -> &mut [u8] {
        let from = if at_end { ROOM - bytes.len() } else { 0 };
        let place = &mut self.room()[from..from + bytes.len()];
        place.copy_from_slice(bytes);
        place
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows from it any more.
        unsafe { munmap(self.base, ROOM + 2 * PAGE).unwrap() };
    }
}

#[test]
fn no_access_beyond_the_ends_of_data_and_tweak() {
    let ciphers = Ciphers::all(&key());
    let (mut data, mut tweak) = (Guarded::new(), Guarded::new());
    for ciphers in &ciphers {
        for which in Which::ALL {
            for len in (which.min_len()..300).chain([1000, 1023, 1024, 4064, 4096, 8182, 8192]) {
                for (at_end, tweak_len) in [(false, 0), (true, 16), (false, 31), (true, 65), (true, 7)] {
                    let plaintext = pattern(len, 5);
                    let data = data.place(&plaintext, at_end);
                    let tweak = tweak.place(&pattern(tweak_len, 6), at_end);
                    let tag = ciphers.encrypt(which, tweak, data);
                    ciphers.decrypt(which, tweak, data, &tag);
                    assert!(data == plaintext, "{which:?} by {}, {len} bytes", ciphers.kernel);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_input(
        key in proptest::collection::vec(any::<u8>(), 64),
        tweak in proptest::collection::vec(any::<u8>(), 0..200),
        plaintext in proptest::collection::vec(any::<u8>(), 16..9000),
        offset in 0..64_usize,
    ) {
        prop_assume!(key[..32] != key[32..]);
        let ciphers = Ciphers::all(key[..].try_into().unwrap());
        for which in Which::ALL {
            check(&ciphers, which, &tweak, &plaintext, offset);
        }
    }
}
