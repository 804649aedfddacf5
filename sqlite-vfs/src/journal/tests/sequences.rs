//! Random transactions, side by side on a plaintext file and on a sealed one: both must read the same, for the process
//! itself, for another that finds the journal hot, and for SQLite without this VFS.

use super::pager::{Image, Pager, Rollback};
use crate::format::journal::Header;
use crate::format::page::{self, Identity, Kind};
use crate::journal::Journal;
use crate::journal::testing::{Dice, DiskFile, FILE, Log, MemFile, Sealed, database, keys, unknown_database};

struct Pair {
    plain: MemFile,
    sealed: Sealed<Journal>,
    plain_pager: Pager,
    sealed_pager: Pager,
}

impl Pair {
    fn new(page_size: u32, sector: u32) -> Self {
        Self {
            plain: MemFile::default(),
            sealed: Sealed(Journal::new(database(&[1, 2], page_size)), MemFile::default()),
            plain_pager: Pager::new(page_size, sector),
            sealed_pager: Pager::new(page_size, sector),
        }
    }

    fn both<T: PartialEq + std::fmt::Debug>(
        &mut self,
        step: impl Fn(&mut Pager, &mut dyn Log) -> crate::error::Result<T>,
    ) -> T {
        let plain = step(&mut self.plain_pager, &mut self.plain).unwrap();
        let sealed = step(&mut self.sealed_pager, &mut self.sealed).unwrap();
        assert_eq!(plain, sealed);
        plain
    }

    /// Another process finds both journals as they are now.
    fn check_hot(&self) -> Rollback {
        let (page_size, sector) = (self.plain_pager.page_size, self.plain_pager.sector);
        let hot = |log: &mut dyn Log| Pager::new(page_size, sector).roll_back(log, true).unwrap();
        let plain = hot(&mut MemFile::with(&self.plain.bytes()));
        let disk = self.sealed.1.bytes();
        let sealed = hot(&mut Sealed(Journal::new(database(&[1, 2], page_size)), MemFile::with(&disk)));
        assert_eq!(plain, sealed, "another process rolls back something else");
        // The database's first page may be torn: the journal says whose it is.
        let torn = hot(&mut Sealed(Journal::new(unknown_database(&[1, 2])), MemFile::with(&disk)));
        assert_eq!(plain, torn);
        check_stock(&disk, &plain, page_size, sector);
        plain
    }
}

/// SQLite without this VFS restores the same pages as they are in the encrypted database.
fn check_stock(disk: &[u8], expected: &Rollback, page_size: u32, sector: u32) {
    let mut stock = Pager::new(page_size, sector).roll_back(&mut MemFile::with(disk), true).unwrap();
    for (number, image) in &mut stock.pages {
        let version = page::version(image);
        let identity = Identity { file: FILE, page: *number, kind: Kind::Database };
        page::open(&keys(version), identity, image).unwrap();
    }
    assert!(stock == *expected, "SQLite without this VFS rolls back something else");
}

/// One transaction; what SQLite's journal modes do to the file in the end is left to the caller.
fn transaction(pair: &mut Pair, dice: &mut Dice) -> Vec<Vec<u8>> {
    let page_size = pair.plain_pager.page_size;
    let (full_sync, no_sync) = (dice.one_in(2), dice.one_in(4));
    for pager in [&mut pair.plain_pager, &mut pair.sealed_pager] {
        (pager.full_sync, pager.no_sync) = (full_sync, no_sync);
    }
    let mut secrets = Vec::new();
    let mut number = 0;
    // Per savepoint: first record after it, the header that came next, the pages since.
    let mut savepoints: Vec<(u64, Option<u64>, Vec<Image>)> = Vec::new();
    let nonce = dice.word();
    pair.both(|pager, log| pager.write_header(log, nonce));
    for _ in 0..dice.below(4) {
        for _ in 0..dice.below(6) {
            if dice.one_in(3) {
                savepoints.push((pair.plain_pager.offset, None, Vec::new()));
            }
            number += 1;
            let page = dice.page(number, page_size);
            pair.both(|pager, log| pager.add_page(log, number, &page));
            for (_, _, since) in &mut savepoints {
                since.push((number, page.clone()));
            }
            secrets.push(page);
            if let Some((from, next_header, since)) = savepoints.get(dice.below(8) as usize) {
                let images = pair.both(|pager, log| pager.roll_back_savepoint(log, *from, *next_header));
                assert!(images == *since, "a savepoint got other pages back");
            }
        }
        if dice.one_in(3) {
            pair.check_hot();
        }
        let nonce = dice.word();
        if no_sync {
            break;
        }
        for (_, next_header, _) in savepoints.iter_mut().filter(|savepoint| savepoint.1.is_none()) {
            *next_header = Some(pair.plain_pager.offset);
        }
        pair.both(|pager, log| pager.sync(log, Some(nonce)));
        let hot = pair.check_hot();
        assert_eq!(hot.pages.len(), secrets.len(), "a counted record is not rolled back");
    }
    if dice.one_in(3) {
        // Also names as long as a page.
        let len = if dice.one_in(3) { 512 } else { 1 + dice.below(700) };
        let name: Vec<u8> = (0..len).map(|i| b'a' + (i % 26) as u8).collect();
        let lock_page = 0x4000_0000 / page_size + 1;
        pair.both(|pager, log| pager.write_super(log, &name, lock_page));
        pair.both(|pager, log| pager.sync(log, None));
        let hot = pair.check_hot();
        assert_eq!(hot.super_journal, Some(name));
    }
    let disk = pair.sealed.1.bytes();
    for secret in &secrets {
        let needle = &secret[100..132];
        assert!(!disk.windows(32).any(|window| window == needle), "plaintext in the journal");
    }
    secrets
}

#[test]
fn random_transactions_read_as_in_plaintext() {
    const SIZES: [(u32, u32); 10] = [
        (512, 64),
        (1024, 128),
        (512, 512),
        (512, 4096),
        (512, 65536),
        (1024, 512),
        (4096, 512),
        (4096, 4096),
        (8192, 4096),
        (65536, 65536),
    ];
    for seed in 0..200 {
        let mut dice = Dice::new(seed);
        let (page_size, sector) = SIZES[seed as usize % SIZES.len()];
        let mut pair = Pair::new(page_size, sector);
        for _ in 0..4 {
            transaction(&mut pair, &mut dice);
            if dice.one_in(2) {
                pair.both(|pager, log| pager.roll_back(log, false));
            }
            // The end: PERSIST, TRUNCATE, or DELETE and another handle.
            match dice.below(3) {
                0 => pair.both(|pager, log| pager.zero_header(log)),
                1 => {
                    for pager in [&mut pair.plain_pager, &mut pair.sealed_pager] {
                        (pager.offset, pager.header) = (0, 0);
                    }
                    pair.both(|_, log| log.truncate(0));
                }
                _ => pair = Pair::new(page_size, sector),
            }
            assert_eq!(pair.check_hot(), Rollback::default(), "a finished transaction is hot");
        }
    }
}

/// A transaction with `synchronous=OFF` in a PERSIST journal: the records of the one before lie behind its own and must
/// not come back.
#[test]
fn older_records_end_the_rollback() {
    for nonce in 0..40 {
        let mut dice = Dice::new(nonce);
        let mut pair = Pair::new(512, 512);
        for pager in [&mut pair.plain_pager, &mut pair.sealed_pager] {
            pager.no_sync = true;
        }
        for (round, count) in [(0, 20), (1, 5)] {
            pair.both(|pager, log| pager.write_header(log, 77 + round));
            for number in 1..=count {
                let page = dice.page(number, 512);
                pair.both(|pager, log| pager.add_page(log, number, &page));
            }
            let own = pair.check_hot();
            assert_eq!(own.pages.len(), count as usize);
            pair.both(|pager, log| pager.zero_header(log));
        }
    }
}

#[test]
fn the_bytes_on_disk_are_sqlites_format() {
    let mut dice = Dice::new(1);
    let file = tempfile::tempfile().unwrap();
    let mut sealed = Sealed(Journal::new(database(&[7], 1024)), DiskFile(file.try_clone().unwrap()));
    let mut pager = Pager::new(1024, 4096);
    pager.write_header(&mut sealed, 0x0102_0304).unwrap();
    let page = dice.page(5, 1024);
    pager.add_page(&mut sealed, 5, &page).unwrap();
    pager.sync(&mut sealed, None).unwrap();

    let mut disk = vec![0; 4096 + 1024 + 8];
    Log::read(&mut DiskFile(file), &mut disk, 0).unwrap();
    assert_eq!(
        hex::encode(&disk[..48]),
        "d9d505f920a163d70000000101020304000003e80000100000000400544a010107000000a5a5a5a5a5a5a5a5a5a5a5a5"
    );
    let mac = hmac_sha256(&keys(7).journal_mac, &[&disk[..48], &[0; 8], &[1, 2, 3, 4]].concat());
    assert_eq!(disk[48..64], mac[..16]);
    assert!(disk[64..1024].iter().all(|byte| *byte == 0), "the rest of the header is SQLite's zeros");
    assert_eq!(hex::encode(&disk[4096..4100]), "00000005");
    let record = &disk[4100..5124];
    let sum = [824, 624, 424, 224, 24].iter().fold(0x0102_0304_u32, |sum, at| sum + u32::from(record[*at]));
    assert_eq!(disk[5124..], sum.to_be_bytes());
    assert_eq!(page::version(record), 7);
}

fn hmac_sha256(key: &secret_mem::SecretBytes<32>, data: &[u8]) -> Vec<u8> {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(key.expose()).unwrap();
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

#[test]
fn the_flag_says_whether_records_were_synced_first() {
    for full_sync in [false, true] {
        let mut sealed = Sealed(Journal::new(database(&[1], 512)), MemFile::default());
        let mut pager = Pager::new(512, 512);
        pager.full_sync = full_sync;
        pager.write_header(&mut sealed, 1).unwrap();
        pager.add_page(&mut sealed, 2, &[0; 512]).unwrap();
        pager.sync(&mut sealed, None).unwrap();
        let disk = sealed.1.bytes();
        assert_eq!(Header::from_disk(*disk.first_chunk().unwrap()).is_synced(), full_sync);
    }
}

/// A record goes to disk in one write, and a header's count, flag and MAC in another.
#[test]
fn few_writes() {
    let mut sealed = Sealed(Journal::new(database(&[1], 4096)), MemFile::default());
    let mut pager = Pager::new(4096, 512);
    pager.write_header(&mut sealed, 1).unwrap();
    assert_eq!(sealed.1.writes(), 1);
    pager.add_page(&mut sealed, 2, &[0; 4096]).unwrap();
    assert_eq!(sealed.1.writes(), 2);
    pager.sync(&mut sealed, None).unwrap();
    assert_eq!(sealed.1.writes(), 3);
}
