//! Changed, cut, replayed and foreign WALs; misuse.

use super::sqlite::{Recovered, SqliteWal, frame_at, recover};
use crate::error::{Place, Result, VfsError};
use crate::journal::testing::{Dice, FILE, Log, MemFile, Sealed, database, unknown_database};
use crate::raw::Read;
use crate::wal::{Wal, WalFault};

const PAGE: u32 = 512;
const FRAME: usize = 24 + PAGE as usize;

fn handle(disk: &[u8], versions: &[u32]) -> Sealed<Wal> {
    Sealed(Wal::new(database(versions, PAGE)), MemFile::with(disk))
}

/// Three transactions of two frames each, behind them nothing.
fn three_transactions(salts: [u8; 8], seed: u64) -> (Vec<u8>, SqliteWal) {
    let mut dice = Dice::new(seed);
    let mut log = handle(&[], &[1]);
    let mut wal = SqliteWal::new(PAGE, false, None);
    wal.restart(salts);
    for number in [2, 4, 6] {
        wal.begin();
        let list = [(number, dice.page(number, PAGE)), (number + 1, dice.page(number + 1, PAGE))];
        wal.frames(&mut log, &list, Some(7), true).unwrap();
    }
    (log.1.bytes(), wal)
}

fn recovered(disk: &[u8], versions: &[u32]) -> Result<Recovered> {
    recover(&mut handle(disk, versions)).map(|recovered| recovered.expect("SQLite knows the version"))
}

fn read_page(log: &mut dyn Log, frame: u32) -> Result<Vec<u8>> {
    let mut page = vec![0; PAGE as usize];
    assert_eq!(log.read(&mut page, frame_at(frame, PAGE) + 24)?, Read::Full);
    Ok(page)
}

#[test]
fn a_changed_byte_ends_the_recovery_and_is_an_error_to_readers() {
    let (disk, _) = three_transactions([5; 8], 1);
    let whole = recovered(&disk, &[1]).unwrap();
    assert_eq!(whole.frames, 6);
    for at in 32..disk.len() {
        let mut changed = disk.clone();
        changed[at] ^= 0x01;
        let frame = (at - 32) / FRAME;
        let in_frame = (at - 32) % FRAME;
        match recovered(&changed, &[1]) {
            Ok(found) => assert_eq!(found.frames as usize, frame / 2 * 2, "byte {at}"),
            // Version 1 became one that could exist: not the end of the WAL, but a key that is missing.
            Err(VfsError::Keys { .. }) => assert_eq!(in_frame, FRAME - 3, "byte {at}"),
            Err(other) => panic!("byte {at}: {other}"),
        }
        let mut log = handle(&changed, &[1]);
        let read = read_page(&mut log, frame as u32 + 1);
        match (in_frame, read) {
            // Only recovery looks at the commit mark and the checksum; page number and salts belong to the page.
            (4..8, Ok(_)) => {}
            (8..24, Err(VfsError::Wal { fault: WalFault::FrameHeader { .. }, .. })) => {}
            (0..4 | 24.., Err(VfsError::NotAuthentic { place: Place::Frame { .. }, .. })) => {}
            (_, Err(VfsError::Keys { .. })) => assert_eq!(in_frame, FRAME - 3),
            (_, other) => panic!("byte {at}: {other:?}"),
        }
    }
}

/// As with any SQLite: a WAL with a torn header is empty, one that is cut ends at its last whole transaction.
#[test]
fn a_torn_header_and_a_cut_wal() {
    let (disk, _) = three_transactions([5; 8], 1);
    for at in 0..32 {
        let mut changed = disk.clone();
        changed[at] ^= 0x01;
        assert_eq!(recovered(&changed, &[1]).unwrap(), Recovered::default(), "byte {at}");
        // Whoever uses the WAL already does not go on from such a header.
        let mut log = handle(&changed, &[1]);
        let error = log.read(&mut [0; 8], 24).unwrap_err();
        assert!(matches!(error, VfsError::Wal { fault: WalFault::Header, .. }), "byte {at}: {error}");
    }
    for len in 0..disk.len() {
        let frames = (len.saturating_sub(32) / FRAME) as u32;
        assert_eq!(recovered(&disk[..len], &[1]).unwrap().frames, frames / 2 * 2, "{len} bytes");
    }
    // The rest of a frame is zeros, as after a power failure.
    for len in 32..disk.len() {
        let mut torn = disk.clone();
        torn[len..].fill(0);
        // The last three bytes of a frame, of its key version, are zeros anyway.
        let frames = ((len - 32 + 3) / FRAME) as u32;
        assert_eq!(recovered(&torn, &[1]).unwrap().frames, frames / 2 * 2, "{len} bytes, then zeros");
    }
}

#[test]
fn a_missing_key_version_is_not_the_end_of_the_wal() {
    let mut log = handle(&[], &[1, 2]);
    let mut wal = SqliteWal::new(PAGE, false, None);
    wal.restart([1; 8]);
    wal.begin();
    wal.frames(&mut log, &[(2, vec![0; 512])], Some(2), true).unwrap();
    let disk = log.1.bytes();
    assert!(matches!(recovered(&disk, &[1]), Err(VfsError::Keys { .. })));
    assert!(matches!(read_page(&mut handle(&disk, &[1]), 1), Err(VfsError::Keys { .. })));
    // No keyring has two thousand million versions: the trailer is garbage.
    let mut garbage = disk.clone();
    let end = garbage.len();
    garbage[end - 4..].copy_from_slice(&2_000_000_000_u32.to_le_bytes());
    assert_eq!(recovered(&garbage, &[1]).unwrap().frames, 0);
    assert!(matches!(read_page(&mut handle(&garbage, &[1, 2]), 1), Err(VfsError::NotAuthentic { .. })));
}

#[test]
fn frames_that_were_moved_or_replayed_are_refused() {
    let (old, _) = three_transactions([1; 8], 1);
    let (disk, _) = three_transactions([2; 8], 2);
    let frame = |n: usize| 32 + (n - 1) * FRAME..32 + n * FRAME;
    // From another place in the same WAL.
    let mut moved = disk.clone();
    moved.copy_within(frame(1), frame(3).start);
    assert_eq!(recovered(&moved, &[1]).unwrap().frames, 2);
    let error = read_page(&mut handle(&moved, &[1]), 3).unwrap_err();
    assert!(matches!(error, VfsError::Wal { fault: WalFault::FrameHeader { frame: 3 }, .. }), "{error}");
    // Only its page.
    let mut moved = disk.clone();
    moved.copy_within(frame(1).start + 24..frame(1).end, frame(3).start + 24);
    let error = read_page(&mut handle(&moved, &[1]), 3).unwrap_err();
    assert!(matches!(error, VfsError::NotAuthentic { .. }), "{error}");
    // The same frame of an earlier WAL: also in a process that has read only newer ones.
    let mut replayed = disk.clone();
    replayed[frame(3)].copy_from_slice(&old[frame(3)]);
    assert_eq!(recovered(&replayed, &[1]).unwrap().frames, 2);
    let mut log = handle(&replayed, &[1]);
    read_page(&mut log, 1).unwrap();
    let error = read_page(&mut log, 3).unwrap_err();
    assert!(matches!(error, VfsError::Wal { fault: WalFault::FrameHeader { frame: 3 }, .. }), "{error}");
}

/// A WAL that was begun anew and is shorter than before: the old frames behind it do not come back.
#[test]
fn older_frames_end_the_recovery() {
    let (old, mut wal) = three_transactions([1; 8], 1);
    let mut log = handle(&old, &[1]);
    wal.restart([2; 8]);
    wal.begin();
    wal.frames(&mut log, &[(2, vec![0; 512])], Some(7), true).unwrap();
    let disk = log.1.bytes();
    assert_eq!(disk.len(), old.len());
    let found = recovered(&disk, &[1]).unwrap();
    assert_eq!((found.frames, found.pages.len()), (1, 1));
}

#[test]
fn a_plaintext_wal_is_refused() {
    let mut plain = MemFile::default();
    let mut wal = SqliteWal::new(PAGE, true, None);
    wal.restart([1; 8]);
    wal.begin();
    wal.frames(&mut plain, &[(2, vec![0; 512])], Some(2), false).unwrap();
    let error = recovered(&plain.bytes(), &[1]).unwrap_err();
    assert!(matches!(error, VfsError::Wal { fault: WalFault::Plaintext, .. }), "{error}");
}

#[test]
fn a_wal_with_other_pages_or_of_a_later_format_is_refused() {
    let (disk, _) = three_transactions([5; 8], 1);
    let mut log = Sealed(Wal::new(database(&[1], 1024)), MemFile::with(&disk));
    let error = recover(&mut log).unwrap_err();
    assert!(matches!(error, VfsError::Wal { fault: WalFault::PageSize { found: 512, expected: 1024 }, .. }));

    let mut later = disk.clone();
    later[7] = 9;
    let sums = super::sqlite::sum(false, [0; 2], &later[..24]);
    later[24..28].copy_from_slice(&sums[0].to_be_bytes());
    later[28..32].copy_from_slice(&sums[1].to_be_bytes());
    let error = recovered(&later, &[1]).unwrap_err();
    assert!(matches!(error, VfsError::Wal { fault: WalFault::Later { found: 9 }, .. }), "{error}");
}

/// While checksums are renewed every frame must be what was written.
#[test]
fn a_changed_frame_stops_the_renewal_of_checksums() {
    for at in [frame_at(1, PAGE) + 9, frame_at(2, PAGE) + 100, frame_at(3, PAGE) + 24] {
        let mut dice = Dice::new(1);
        let mut log = handle(&[], &[1]);
        let mut wal = SqliteWal::new(PAGE, false, None);
        wal.restart([1; 8]);
        wal.begin();
        wal.frames(&mut log, &[(2, dice.page(2, PAGE))], Some(2), true).unwrap();
        wal.begin();
        let list = [(3, dice.page(3, PAGE)), (4, dice.page(4, PAGE))];
        wal.frames(&mut log, &list, None, false).unwrap();
        wal.frames(&mut log, &[(3, dice.page(3, PAGE))], None, false).unwrap();
        log.1.change(|disk| disk[at as usize] ^= 1);
        let outcome = wal.frames(&mut log, &[(5, dice.page(5, PAGE))], Some(5), true);
        assert!(outcome.is_err(), "byte {at}");
    }
}

#[test]
fn pages_are_served_in_parts_too() {
    let (disk, _) = three_transactions([5; 8], 1);
    let mut log = handle(&disk, &[1]);
    let whole = read_page(&mut log, 4).unwrap();
    for (from, len) in [(0, 4), (100, 16), (480, 32), (0, 511), (1, 511)] {
        let mut part = vec![0; len];
        log.read(&mut part, frame_at(4, PAGE) + 24 + from as u64).unwrap();
        assert!(part == whole[from..from + len]);
    }
}

#[test]
fn nothing_is_written_that_has_no_place() {
    let (disk, _) = three_transactions([5; 8], 1);
    let mut log = handle(&disk, &[1]);
    let page = Dice::new(1).page(2, PAGE);
    let at = frame_at(7, PAGE);
    let refused = |log: &mut Sealed<Wal>, data: &[u8], offset| {
        assert!(log.write(data, offset).is_err(), "{} bytes at {offset}", data.len());
        assert!(log.1.bytes() == disk, "{} bytes at {offset}", data.len());
    };
    // A page without a header, beside its place, in part without repeating anything; no header at all.
    refused(&mut log, &page, at + 24);
    refused(&mut log, &page, at + 25);
    refused(&mut log, &page[..100], at + 24);
    refused(&mut log, &[1; 10], at);
    refused(&mut log, &[0; 32], 0);
    refused(&mut log, &[7; 16], 8);
    refused(&mut log, &[&[0; 24], &page[..], &page[..]].concat(), at);
    // Pages that cannot be sealed.
    for (number, page) in [(2_u32, vec![1; 512]), (1, vec![0; 512])] {
        let mut head = [0; 24];
        head[..4].copy_from_slice(&number.to_be_bytes());
        head[8..16].fill(5);
        log.write(&head, at).unwrap();
        refused(&mut log, &page, at + 24);
    }
    let mut without_reserve = Dice::new(1).page(1, PAGE);
    without_reserve[20] = 0;
    let mut head = [0; 24];
    head[3] = 1;
    head[8..16].fill(5);
    log.write(&head, at).unwrap();
    refused(&mut log, &without_reserve, at + 24);
}

/// A frame in two parts that is not the one before: SQLite does not do that, and it must not reach the disk.
#[test]
fn a_part_of_another_frame_is_refused() {
    let (disk, _) = three_transactions([5; 8], 1);
    let mut log = handle(&disk, &[1]);
    let at = frame_at(7, PAGE);
    let mut head = [0; 24];
    head[3] = 2;
    log.write(&head, at).unwrap();
    let error = log.sync().unwrap_err();
    assert!(matches!(error, VfsError::Wal { fault: WalFault::Split { frame: 7 }, .. }), "{error}");
    assert!(log.1.bytes() == disk);
}

/// A crash within a checkpoint may tear page 1 of the database: the WAL says whose it is.
#[test]
fn a_wal_is_recovered_without_the_database_header() {
    let write = |number: u32| {
        let mut dice = Dice::new(8);
        let mut log = handle(&[], &[1]);
        let mut wal = SqliteWal::new(PAGE, false, None);
        wal.restart([4; 8]);
        wal.begin();
        let list = [(9, dice.page(9, PAGE)), (number, dice.page(number, PAGE))];
        wal.frames(&mut log, &list, Some(9), true).unwrap();
        log.1.bytes()
    };
    let database = unknown_database(&[1]);
    let mut log = Sealed(Wal::new(database.clone()), MemFile::with(&write(1)));
    assert_eq!(recover(&mut log).unwrap().unwrap().frames, 2);
    assert_eq!((database.page_size(), database.keys().map(|keys| keys.file_id())), (Some(PAGE), Some(FILE)));

    // If the WAL does not know either, it must not be taken for empty.
    let mut log = Sealed(Wal::new(unknown_database(&[1])), MemFile::with(&write(2)));
    let error = recover(&mut log).unwrap_err();
    assert!(matches!(error, VfsError::Torn { place: Place::Page(1), .. }), "{error}");
    // Whoever forges the id finds no key, or the wrong one.
    let mut forged = write(1);
    let at = frame_at(2, PAGE) as usize + 24 + 4;
    forged[at] ^= 1;
    let mut log = Sealed(Wal::new(unknown_database(&[1])), MemFile::with(&forged));
    assert!(matches!(recover(&mut log), Err(VfsError::Keys { .. })));
}

/// Damage of any kind: recovery ends at an earlier commit or with an error; pages read are those that were written.
#[test]
fn damage_at_random() {
    let (disk, _) = three_transactions([5; 8], 1);
    let pages: Vec<_> = (1..=6).map(|frame| read_page(&mut handle(&disk, &[1]), frame).unwrap()).collect();
    for seed in 0..1500 {
        let mut dice = Dice::new(seed);
        let mut damaged = disk.clone();
        for _ in 0..1 + dice.below(4) {
            let (at, len) = (dice.below(disk.len() as u32) as usize, 1 + dice.below(40) as usize);
            let end = (at + len).min(disk.len());
            match dice.below(3) {
                0 => damaged[at..end].fill(dice.word() as u8),
                1 => damaged[at..end].iter_mut().for_each(|byte| *byte ^= dice.word() as u8),
                _ => damaged.copy_within(at..end, dice.below((disk.len() - len) as u32) as usize),
            }
        }
        if let Ok(found) = recovered(&damaged, &[1]) {
            assert!([0, 2, 4, 6].contains(&found.frames), "seed {seed}");
            assert!(found.pages.values().all(|page| pages.contains(page)), "seed {seed}");
        }
        let mut log = handle(&damaged, &[1]);
        for frame in 1..=6 {
            if let Ok(page) = read_page(&mut log, frame) {
                assert!(page == pages[frame as usize - 1], "seed {seed}, frame {frame}");
            }
        }
    }
}
