//! Random transactions, side by side on a plaintext file and on a sealed one that several processes write in turn: all
//! must read the same, also after a crash.

use super::sqlite::{Recovered, SqliteWal, frame_at, recover};
use crate::error::Result;
use crate::format::page::{self, Identity, Kind};
use crate::format::wal::{Found, FrameHeader, Header, identify};
use crate::journal::testing::{Dice, DiskFile, FILE, Log, MemFile, Sealed, database, keys};
use crate::wal::Wal;

struct Pair {
    plain: MemFile,
    plain_wal: SqliteWal,
    sealed_wal: SqliteWal,
    disk: MemFile,
    /// Processes that have the WAL open.
    handles: Vec<Sealed<Wal>>,
    turn: usize,
}

fn handle(disk: &MemFile, versions: &[u32], page_size: u32) -> Sealed<Wal> {
    Sealed(Wal::new(database(versions, page_size)), disk.clone())
}

impl Pair {
    fn new(page_size: u32, big_endian: bool, pad: Option<u32>) -> Self {
        let disk = MemFile::default();
        let wal = SqliteWal::new(page_size, big_endian, pad);
        Self {
            plain: MemFile::default(),
            plain_wal: wal.clone(),
            sealed_wal: wal,
            handles: (0..3).map(|_| handle(&disk, &[1], page_size)).collect(),
            disk,
            turn: 0,
        }
    }

    fn both<T: PartialEq>(&mut self, step: impl Fn(&mut SqliteWal, &mut dyn Log) -> Result<T>) -> T {
        let plain = step(&mut self.plain_wal, &mut self.plain).unwrap();
        let sealed = step(&mut self.sealed_wal, &mut self.handles[self.turn]).unwrap();
        assert!(plain == sealed && self.plain_wal == self.sealed_wal, "SQLite sees another WAL");
        plain
    }

    fn check_recovery(&self) -> Recovered {
        let plain = recover(&mut MemFile::with(&self.plain.bytes())).unwrap().unwrap();
        let disk = MemFile::with(&self.disk.bytes());
        let sealed = recover(&mut handle(&disk, &[1, 2], self.plain_wal.page_size)).unwrap().unwrap();
        assert!(plain == sealed, "recovery finds {} frames, SQLite {}", sealed.frames, plain.frames);
        plain
    }

    /// SQLite without this VFS refuses the WAL.
    fn check_stock(&self) {
        if self.disk.bytes().len() > 32 {
            assert_eq!(recover(&mut self.disk.clone()).unwrap(), None);
        }
    }

    fn check_pages(&mut self) {
        let mut numbers = self.plain_wal.pages.clone();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            self.both(|wal, log| wal.read(log, number));
        }
    }
}

fn pages(dice: &mut Dice, page_size: u32, most: u32) -> Vec<(u32, Vec<u8>)> {
    let mut numbers: Vec<u32> = (0..1 + dice.below(most)).map(|_| 1 + dice.below(12)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers.into_iter().map(|number| (number, dice.page(number, page_size))).collect()
}

fn transaction(pair: &mut Pair, dice: &mut Dice, secrets: &mut Vec<Vec<u8>>) {
    let page_size = pair.plain_wal.page_size;
    pair.turn = dice.below(3) as usize;
    if pair.plain_wal.max_frame > 0 && dice.one_in(5) || pair.plain_wal.pages.is_empty() {
        let mut salts = [0; 8];
        salts[..4].copy_from_slice(&dice.word().to_be_bytes());
        salts[4..].copy_from_slice(&dice.word().to_be_bytes());
        for wal in [&mut pair.plain_wal, &mut pair.sealed_wal] {
            wal.restart(salts);
        }
        if dice.one_in(3) {
            pair.both(|_, log| log.truncate(0));
        }
    }
    pair.both(|wal, _| {
        wal.begin();
        Ok(())
    });
    let savepoint = dice.one_in(2).then(|| pair.plain_wal.savepoint());
    // Cache spills, which overwrite frames of this transaction.
    for spill in 0..dice.below(4) {
        let list = pages(dice, page_size, 6);
        pair.both(|wal, log| wal.frames(log, &list, None, false));
        secrets.extend(list.into_iter().map(|(_, page)| page));
        if dice.one_in(2) {
            pair.check_pages();
        }
        if let (0, Some(savepoint), true) = (spill, savepoint, dice.one_in(2)) {
            pair.both(|wal, _| {
                wal.undo_to(savepoint);
                Ok(())
            });
        }
        pair.check_recovery();
    }
    if dice.one_in(4) {
        pair.both(|wal, _| {
            wal.undo();
            Ok(())
        });
        return;
    }
    let list = pages(dice, page_size, 6);
    let sync = dice.one_in(2);
    pair.both(|wal, log| wal.frames(log, &list, Some(20), sync));
    let recovered = pair.check_recovery();
    assert_eq!(recovered.frames, pair.plain_wal.max_frame, "a commit is not recovered");
    secrets.extend(list.into_iter().map(|(_, page)| page));
    if dice.one_in(2) {
        pair.turn = dice.below(3) as usize;
    }
    pair.check_pages();
    pair.check_stock();
}

#[test]
fn random_transactions_read_as_in_plaintext() {
    const CASES: [(u32, Option<u32>); 10] = [
        (512, None),
        (512, Some(512)),
        (512, Some(4096)),
        (512, Some(65536)),
        (1024, Some(512)),
        (4096, None),
        (4096, Some(4096)),
        (4096, Some(512)),
        (8192, Some(4096)),
        (65536, Some(4096)),
    ];
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let (page_size, pad) = CASES[seed as usize % CASES.len()];
        let mut pair = Pair::new(page_size, seed % 3 == 0, pad);
        let mut secrets = Vec::new();
        for round in 0..8 {
            if round == 5 {
                // The key was rotated: from now on all write under version 2.
                pair.handles = (0..3).map(|_| handle(&pair.disk, &[1, 2], page_size)).collect();
            }
            transaction(&mut pair, &mut dice, &mut secrets);
        }
        let disk = pair.disk.bytes();
        for secret in secrets {
            let needle = &secret[100..132];
            assert!(!disk.windows(32).any(|window| window == needle), "plaintext in the WAL (seed {seed})");
        }
    }
}

/// A frame that overwrites one of version 1 under version 2 takes its header along.
#[test]
fn a_rotation_within_a_transaction() {
    let mut dice = Dice::new(5);
    let mut pair = Pair::new(512, false, None);
    let first = [(3, dice.page(3, 512)), (4, dice.page(4, 512)), (5, dice.page(5, 512))];
    let again = [(4, dice.page(4, 512)), (6, dice.page(6, 512))];
    pair.both(|wal, log| {
        wal.restart([7; 8]);
        wal.begin();
        wal.frames(log, &first, None, false)
    });
    pair.handles = vec![handle(&pair.disk, &[1, 2], 512)];
    pair.both(|wal, log| wal.frames(log, &again, None, false));
    pair.check_pages();
    pair.both(|wal, log| wal.frames(log, &[(3, vec![0; 512])], Some(6), true));
    assert_eq!(pair.check_recovery().frames, 5);
    let versions: Vec<u32> =
        (1..=5).map(|frame| page::version(&pair.disk.bytes()[..frame_at(frame + 1, 512) as usize])).collect();
    assert_eq!(versions, [1, 2, 1, 2, 2]);
}

/// The process dies, or the disk is full, in the middle of any write: recovery finds the transaction or none of it.
#[test]
fn a_crash_at_every_write() {
    for pad in [None, Some(512), Some(4096)] {
        let mut dice = Dice::new(11);
        let before = [(1, dice.page(1, 1024)), (2, dice.page(2, 1024))];
        let spill = [(3, dice.page(3, 1024)), (4, dice.page(4, 1024))];
        let again = [(3, dice.page(3, 1024)), (5, dice.page(5, 1024))];
        let last = [(1, dice.page(1, 1024)), (4, dice.page(4, 1024))];
        for room in 0.. {
            let disk = MemFile::default();
            let mut log = handle(&disk, &[1], 1024);
            let mut wal = SqliteWal::new(1024, false, pad);
            wal.restart([9; 8]);
            wal.begin();
            wal.frames(&mut log, &before, Some(2), true).unwrap();
            let old = recover(&mut handle(&disk, &[1], 1024)).unwrap().unwrap();
            assert!(old.frames >= 2);

            disk.fill_up_after(Some(room));
            wal.begin();
            let outcome = wal
                .frames(&mut log, &spill, None, false)
                .and_then(|()| wal.frames(&mut log, &again, None, false))
                .and_then(|()| wal.frames(&mut log, &last, Some(5), true));
            disk.fill_up_after(None);
            let found = recover(&mut handle(&disk, &[1], 1024)).unwrap().unwrap();
            let done = outcome.is_ok();
            assert!(found.pages == old.pages || found.pages.len() == 5, "half a transaction ({room})");
            assert!(!done || found.pages[&4] == last[1].1, "a commit was lost ({room})");
            // The next one goes on from what is there.
            if !done && found.pages == old.pages {
                wal.undo();
                wal.begin();
                wal.frames(&mut log, &spill, Some(4), true).unwrap();
                let next = recover(&mut handle(&disk, &[1], 1024)).unwrap().unwrap();
                assert_eq!(next.pages.len(), 4);
            }
            if done {
                assert!(room > 8, "the disk was never full");
                break;
            }
        }
    }
}

#[test]
fn the_bytes_on_disk_are_the_documents() {
    let mut dice = Dice::new(1);
    let file = tempfile::tempfile().unwrap();
    let mut log = Sealed(Wal::new(database(&[7], 1024)), DiskFile(file.try_clone().unwrap()));
    let mut wal = SqliteWal::new(1024, false, None);
    wal.restart(*b"saltsalt");
    wal.begin();
    let list = [(2, dice.page(2, 1024)), (3, dice.page(3, 1024))];
    wal.frames(&mut log, &list, Some(3), true).unwrap();

    let mut disk = vec![0; 32 + 2 * (24 + 1024)];
    Log::read(&mut DiskFile(file), &mut disk, 0).unwrap();
    assert_eq!(hex::encode(&disk[..32]), "377f068254444501000004000000000173616c7473616c740364aa8201731242");
    let Found::Ours(header) = identify(disk.first_chunk().unwrap()) else { panic!("not ours") };
    let sqlite = "377f0682002de218000004000000000173616c7473616c744a3b648677839d9e";
    assert_eq!(hex::encode(header.to_sqlite()), sqlite);
    for (frame, (number, plain)) in (1..).zip(&list) {
        let at = frame_at(frame, 1024) as usize;
        let (head, mut image) = (&disk[at..at + 24], disk[at + 24..at + 24 + 1024].to_vec());
        assert_eq!(head[..4], number.to_be_bytes());
        assert_eq!(head[4..8], if frame == 2 { 3_u32 } else { 0 }.to_be_bytes());
        let clear = FrameHeader::from_disk(head.try_into().unwrap(), &keys(7).wal_frame, frame);
        assert_eq!(clear.salts(), *b"saltsalt");
        assert_eq!(page::version(&image), 7);
        let kind = Kind::Wal { frame, salts: *b"saltsalt" };
        page::open(&keys(7), Identity { file: FILE, page: *number, kind }, &mut image).unwrap();
        assert!(image == *plain);
    }
}

#[test]
fn headers_in_both_byte_orders() {
    for (big_endian, to_disk) in [(false, "377f0682"), (true, "377f0683")] {
        let mut plain = MemFile::default();
        let mut wal = SqliteWal::new(4096, big_endian, None);
        wal.restart([3; 8]);
        wal.begin();
        wal.frames(&mut plain, &[(2, vec![0; 4096])], Some(2), false).unwrap();
        let bytes: [u8; 32] = plain.bytes()[..32].try_into().unwrap();
        let disk = Header::from_sqlite(&bytes).unwrap().to_disk();
        assert_eq!(hex::encode(&disk[..8]), to_disk.to_owned() + "54444501");
        let Found::Ours(again) = identify(&disk) else { panic!("not ours") };
        assert_eq!(again.to_sqlite(), bytes);
    }
}

/// Header and page of a frame are one write.
#[test]
fn few_writes() {
    let disk = MemFile::default();
    let mut log = handle(&disk, &[1], 4096);
    let mut wal = SqliteWal::new(4096, false, None);
    wal.restart([1; 8]);
    wal.begin();
    let list: Vec<_> = (2..12).map(|number| (number, vec![0; 4096])).collect();
    wal.frames(&mut log, &list, Some(12), true).unwrap();
    assert_eq!(disk.writes(), 1 + 10);
}
