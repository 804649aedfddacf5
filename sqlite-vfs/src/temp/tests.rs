use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use super::*;
use crate::journal::testing::MemFile;

const CANARY: &[u8] = b"Known-Plaintext-Canary";

fn pick(random: &mut ChaCha20Rng, below: usize) -> usize {
    random.next_u64() as usize % below
}

#[test]
fn any_sequence_of_operations_gives_what_a_plain_file_gives() {
    for seed in 0..30 {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let raw = MemFile::default();
        let mut file = TempFile::new(raw.clone()).unwrap();
        let mut plain = Vec::<u8>::new();
        for _ in 0..400 {
            // Offsets and lengths around the unit's, aligned and not.
            let aligned = pick(&mut random, 3) == 0;
            let offset = if aligned { pick(&mut random, 12) * UNIT } else { pick(&mut random, 12 * UNIT) };
            let len = match pick(&mut random, 4) {
                0 => UNIT * (1 + pick(&mut random, 4)),
                1 => 1 + pick(&mut random, 3 * UNIT),
                _ => 1 + pick(&mut random, 200),
            };
            match pick(&mut random, 10) {
                0 => {
                    let size = pick(&mut random, 14 * UNIT);
                    file.truncate(size as u64).unwrap();
                    plain.resize(size, 0);
                }
                1 => file.sync(2).unwrap(),
                2..6 => {
                    let data: Vec<u8> =
                        CANARY.iter().copied().cycle().skip(pick(&mut random, 22)).take(len).collect();
                    file.write(&data, offset as u64).unwrap();
                    plain.resize(plain.len().max(offset + len), 0);
                    plain[offset..offset + len].copy_from_slice(&data);
                }
                _ => {
                    let mut got = vec![0xEE; len];
                    let read = file.read(&mut got, offset as u64).unwrap();
                    let mut expected = plain.get(offset..).unwrap_or_default().to_vec();
                    assert_eq!(read == Read::Full, expected.len() >= len);
                    expected.resize(len, 0);
                    assert!(got == expected, "seed {seed}: {len} bytes at {offset}");
                }
            }
            assert_eq!(file.size(), plain.len() as u64);
        }
        file.sync(2).unwrap();
        assert!(raw.bytes().len() <= plain.len());
        assert!(!raw.bytes().windows(CANARY.len()).any(|window| window == CANARY));
    }
}

#[test]
fn a_changed_byte_a_moved_unit_and_an_old_unit_are_refused() {
    let raw = MemFile::default();
    let mut file = TempFile::new(raw.clone()).unwrap();
    file.write(&[7; 3 * UNIT + 100], 0).unwrap();
    file.sync(2).unwrap();
    let good = raw.bytes();
    let mut refused = |bytes: Vec<u8>, offset: usize| {
        raw.change(|all| *all = bytes);
        let mut buf = [1; 50];
        file.cached = None;
        assert!(matches!(file.read(&mut buf, offset as u64), Err(VfsError::NotAuthentic { .. })));
        assert_eq!(buf, [0; 50]);
    };
    for at in [0, UNIT, 3 * UNIT + 50] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        refused(bytes, at / UNIT * UNIT);
    }
    let mut moved = good.clone();
    moved.copy_within(UNIT..2 * UNIT, 0);
    refused(moved, 0);

    raw.change(|all| all.clone_from(&good));
    file.write(&[8; UNIT], 0).unwrap();
    raw.change(|all| all.clone_from(&good));
    assert!(matches!(file.read(&mut [0; 9], 0), Err(VfsError::NotAuthentic { .. })));
    raw.change(|all| all.truncate(2 * UNIT + 10));
    assert!(matches!(file.read(&mut [0; 9], 2 * UNIT as u64), Err(VfsError::Torn { .. })));
}

#[test]
fn what_could_not_be_written_is_not_lost() {
    let raw = MemFile::default();
    let mut file = TempFile::new(raw.clone()).unwrap();
    file.write(&[1; 2 * UNIT], 0).unwrap();
    file.write(&[2; 10], 5).unwrap();
    raw.fill_up_after(Some(0));
    // Another unit needs the cache, so the first one must be written.
    let mut buf = [0; 10];
    assert!(file.read(&mut buf, UNIT as u64 + 3).is_err());
    assert!(file.sync(2).is_err());
    raw.fill_up_after(None);
    file.read(&mut buf, UNIT as u64 + 3).unwrap();
    assert_eq!(buf, [1; 10]);
    file.read(&mut buf, 5).unwrap();
    assert_eq!(buf, [2; 10]);
}
