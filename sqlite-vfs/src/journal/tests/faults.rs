//! Changed, cut and foreign journals; full disks; misuse.

use super::pager::{Pager, Rollback};
use crate::error::{Place, Result, VfsError};
use crate::format::journal::{HEADER_LEN, MAGIC, checksum};
use crate::journal::testing::{Dice, FILE, Log, MemFile, Sealed, database};
use crate::journal::{Journal, JournalFault};
use crate::keys::FileId;

const PAGE: usize = 512;
const RECORD: usize = PAGE + 8;

/// Two segments of three and two records.
fn hot_journal(full_sync: bool) -> Vec<u8> {
    let mut dice = Dice::new(9);
    let mut sealed = Sealed(Journal::new(database(&[1], 512)), MemFile::default());
    let mut pager = Pager::new(512, 512);
    pager.full_sync = full_sync;
    pager.write_header(&mut sealed, 0x1234_5678).unwrap();
    for number in 1..=3 {
        let page = dice.page(number, 512);
        pager.add_page(&mut sealed, number, &page).unwrap();
    }
    pager.sync(&mut sealed, Some(0x8765_4321)).unwrap();
    for number in 4..=5 {
        let page = dice.page(number, 512);
        pager.add_page(&mut sealed, number, &page).unwrap();
    }
    pager.sync(&mut sealed, None).unwrap();
    sealed.1.bytes()
}

fn second_header() -> usize {
    (512 + 3 * RECORD).next_multiple_of(512)
}

fn roll_back(disk: &[u8]) -> Result<Rollback> {
    let mut log = Sealed(Journal::new(database(&[1], 512)), MemFile::with(disk));
    Pager::new(512, 512).roll_back(&mut log, true)
}

fn flipped(disk: &[u8], at: usize) -> Vec<u8> {
    let mut disk = disk.to_vec();
    disk[at] ^= 0x01;
    disk
}

/// Bytes of the sealed page that SQLite's checksum looks at.
fn is_summed(in_page: usize) -> bool {
    in_page == 312 || in_page == 112
}

#[test]
fn a_counted_header_whose_magic_was_zeroed_is_an_error() {
    // Not in the first: a journal that begins with a zero is not hot, as with any SQLite.
    let start = second_header();
    let mut disk = hot_journal(true);
    disk[start..start + 8].fill(0);
    match roll_back(&disk) {
        Err(VfsError::Journal { fault, .. }) => {
            assert_eq!(fault, JournalFault::HeaderChanged { offset: start as u64 });
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_changed_byte_of_a_durable_journal_is_an_error_or_means_nothing() {
    let disk = hot_journal(true);
    let whole = roll_back(&disk).unwrap();
    assert_eq!(whole.pages.len(), 5);
    for at in 0..disk.len() {
        let outcome = roll_back(&flipped(&disk, at));
        let second = second_header();
        let record = match at {
            _ if at < 512 => None,
            _ if at < 512 + 3 * RECORD => Some(512 + (at - 512) / RECORD * RECORD),
            _ if at < second + 512 => None,
            _ => Some(second + 512 + (at - second - 512) / RECORD * RECORD),
        };
        let header = if at < 512 {
            Some((0, at))
        } else {
            at.checked_sub(second).map(|in_header| (second, in_header))
        };
        match (record, header.filter(|(_, in_header)| *in_header < HEADER_LEN)) {
            (None, Some((start, 0..8))) => match outcome {
                Err(VfsError::Journal { fault, .. }) => {
                    assert_eq!(fault, JournalFault::HeaderChanged { offset: start as u64 }, "byte {at}");
                }
                other => panic!("byte {at}: {other:?}"),
            },
            (None, Some((start, in_header))) => {
                let offset = start as u64;
                let expected = match in_header {
                    28 | 29 => JournalFault::Foreign { offset },
                    30 => JournalFault::Later { offset, found: 0 },
                    36..48 => {
                        let mut found = FILE;
                        found.0[in_header - 36] ^= 1;
                        JournalFault::OtherFile { offset, found }
                    }
                    _ => JournalFault::HeaderChanged { offset },
                };
                match outcome {
                    Err(VfsError::Journal { fault, .. }) => assert_eq!(fault, expected, "byte {at}"),
                    // Version 1 became 0, or another that no keyring has.
                    Err(VfsError::Keys { .. }) if (32..36).contains(&in_header) => {}
                    other => panic!("byte {at}: {other:?}"),
                }
            }
            // Padding between segments and behind the header.
            (None, None) => assert_eq!(outcome.unwrap(), whole, "byte {at}"),
            (Some(start), _) => match (at - start, outcome) {
                (in_record, Err(VfsError::Journal { fault, .. })) => {
                    let in_page = in_record.wrapping_sub(4);
                    assert_eq!(fault, JournalFault::RecordChanged { offset: start as u64 }, "byte {at}");
                    assert!(is_summed(in_page) || in_page >= PAGE || in_record < 4, "byte {at}");
                }
                (in_record, Err(VfsError::NotAuthentic { place: Place::Page(_), .. })) => {
                    assert!(in_record < PAGE + 4 && !is_summed(in_record.wrapping_sub(4)), "byte {at}");
                }
                (in_record, Err(VfsError::Keys { .. })) => assert!((PAGE..PAGE + 4).contains(&in_record)),
                (in_record, Err(VfsError::Torn { .. })) => assert_eq!(in_record, PAGE, "version 1 became 0"),
                (_, other) => panic!("byte {at}: {other:?}"),
            },
        }
    }
}

/// Records that may not have reached the disk before the count: what does not match ends the rollback, as in plaintext.
#[test]
fn a_record_that_does_not_match_ends_the_rollback_of_an_unsynced_journal() {
    let disk = hot_journal(false);
    let whole = roll_back(&disk).unwrap();
    for (record, start) in [(0, 512), (2, 512 + 2 * RECORD), (4, second_header() + 512 + RECORD)] {
        let kept = roll_back(&flipped(&disk, start + 4 + PAGE)).unwrap();
        assert_eq!(kept.pages, whole.pages[..record], "checksum of record {record}");
        let mut lost = disk.clone();
        lost[start..start + RECORD].fill(0);
        assert_eq!(roll_back(&lost).unwrap().pages, whole.pages[..record], "record {record} never written");
        // Right checksum, wrong page: nothing that a crash leaves.
        assert!(matches!(roll_back(&flipped(&disk, start + 4 + 50)), Err(VfsError::NotAuthentic { .. })));
    }
    let mut stale = disk.clone();
    stale[second_header() + 12] ^= 1;
    assert_eq!(roll_back(&stale).unwrap().pages, whole.pages[..3], "a header of another transaction");
}

#[test]
fn a_cut_journal() {
    for full_sync in [true, false] {
        let disk = hot_journal(full_sync);
        let whole = roll_back(&disk).unwrap();
        for len in 0..disk.len() {
            let outcome = roll_back(&disk[..len]);
            let in_first = (512..512 + 3 * RECORD).contains(&len);
            let in_second = len >= second_header() + 512;
            match outcome {
                Ok(rollback) => {
                    assert!(!full_sync || !(in_first || in_second), "{len} bytes: a partial rollback");
                    let records = match len {
                        _ if len < 512 => 0,
                        _ if in_first => (len - 512) / RECORD,
                        _ if in_second => 3 + (len - second_header() - 512) / RECORD,
                        _ => 3,
                    };
                    assert_eq!(rollback.pages, whole.pages[..records], "{len} bytes");
                }
                Err(VfsError::Journal { fault: JournalFault::Cut { .. }, .. }) => {
                    assert!(full_sync && (in_first || in_second), "{len} bytes");
                }
                Err(other) => panic!("{len} bytes: {other}"),
            }
        }
    }
}

#[test]
fn segments_and_records_that_were_moved_are_refused() {
    let disk = hot_journal(true);
    let (second, mut moved) = (second_header(), disk.clone());
    moved.copy_within(0..HEADER_LEN, second);
    assert!(matches!(
        roll_back(&moved),
        Err(VfsError::Journal { fault: JournalFault::HeaderChanged { offset }, .. }) if offset == second as u64
    ));
    // The image of page 1 as that of page 2, with a fitting checksum.
    let mut moved = disk.clone();
    moved.copy_within(512 + 4..512 + RECORD, 512 + RECORD + 4);
    assert!(matches!(roll_back(&moved), Err(VfsError::NotAuthentic { place: Place::Page(2), .. })));
    // Fewer records than there were.
    let mut fewer = disk.clone();
    fewer[11] = 2;
    assert!(matches!(
        roll_back(&fewer),
        Err(VfsError::Journal { fault: JournalFault::HeaderChanged { offset: 0 }, .. })
    ));
}

#[test]
fn a_plaintext_journal_is_refused() {
    let mut log = MemFile::default();
    let mut pager = Pager::new(512, 512);
    pager.write_header(&mut log, 1).unwrap();
    pager.add_page(&mut log, 2, &Dice::new(1).page(2, 512)).unwrap();
    pager.sync(&mut log, None).unwrap();
    assert!(matches!(
        roll_back(&log.bytes()),
        Err(VfsError::Journal { fault: JournalFault::Foreign { offset: 0 }, .. })
    ));
}

#[test]
fn the_journal_of_another_file_is_refused() {
    let disk = hot_journal(true);
    let mut changed = disk.clone();
    changed[36..48].fill(3);
    assert!(matches!(
        roll_back(&changed),
        Err(VfsError::Journal { fault: JournalFault::OtherFile { offset: 0, found: FileId([3, ..]) }, .. })
    ));
}

/// A page whose own write fails is neither counted nor missed; earlier records stay.
#[test]
fn a_full_disk_leaves_what_was_written_before() {
    for room in 0..12 {
        let mut dice = Dice::new(3);
        let file = MemFile::default();
        let mut sealed = Sealed(Journal::new(database(&[1], 512)), file.clone());
        let mut pager = Pager::new(512, 512);
        file.fill_up_after(Some(room));
        let mut written = Vec::new();
        let outcome = (|| -> Result<()> {
            pager.write_header(&mut sealed, 5)?;
            for number in 1..=3 {
                let page = dice.page(number, 512);
                pager.add_page(&mut sealed, number, &page)?;
                written.push((number, page));
            }
            pager.sync(&mut sealed, Some(6))?;
            for number in 4..=9 {
                let page = dice.page(number, 512);
                pager.add_page(&mut sealed, number, &page)?;
                written.push((number, page));
            }
            Ok(())
        })();
        assert_eq!(outcome.is_err(), room < 12);
        file.fill_up_after(None);
        if room > 0 {
            assert_eq!(pager.roll_back(&mut sealed, false).unwrap().pages, written, "room for {room} writes");
        }
    }
}

/// SQLite writes a record in three pieces, and a VFS above may refuse any of them: SQLite goes on where the record began,
/// with another one or with the next header.
#[test]
fn a_record_that_sqlite_could_not_complete_was_never_there() {
    for pieces in 1..=2 {
        for another_record in [false, true] {
            let mut dice = Dice::new(8);
            let mut sealed = Sealed(Journal::new(database(&[1], 1024)), MemFile::default());
            let mut pager = Pager::new(1024, 512);
            let mut written = Vec::new();
            pager.write_header(&mut sealed, 5).unwrap();
            let mut add = |pager: &mut Pager, sealed: &mut Sealed<Journal>, number| {
                let page = dice.page(number, 1024);
                pager.add_page(sealed, number, &page).unwrap();
                written.push((number, page));
            };
            for number in 1..=4 {
                add(&mut pager, &mut sealed, number);
            }
            sealed.write(&5_u32.to_be_bytes(), pager.offset).unwrap();
            if pieces == 2 {
                sealed.write(&Dice::new(9).page(5, 1024), pager.offset + 4).unwrap();
            }
            if another_record {
                add(&mut pager, &mut sealed, 6);
            }
            pager.sync(&mut sealed, Some(6)).unwrap();
            add(&mut pager, &mut sealed, 7);
            let what =
                format!("{pieces} pieces, then {}", if another_record { "a record" } else { "a header" });
            assert_eq!(pager.roll_back(&mut sealed, false).unwrap().pages, written, "{what}");
        }
    }
}

#[test]
fn a_changed_record_is_an_error_for_its_own_writer() {
    let mut dice = Dice::new(4);
    let mut sealed = Sealed(Journal::new(database(&[1], 512)), MemFile::default());
    let mut pager = Pager::new(512, 512);
    pager.full_sync = false;
    pager.write_header(&mut sealed, 5).unwrap();
    let page = dice.page(2, 512);
    pager.add_page(&mut sealed, 2, &page).unwrap();
    sealed.1.change(|disk| disk[512 + 4 + 112] ^= 1);
    let savepoint = pager.roll_back_savepoint(&mut sealed, 512, None);
    assert!(matches!(
        savepoint,
        Err(VfsError::Journal { fault: JournalFault::RecordChanged { offset: 512 }, .. })
    ));
}

#[test]
fn nothing_is_written_that_has_no_place() {
    let file = MemFile::default();
    let mut journal = Journal::new(database(&[1], 512));
    let mut header = vec![0; 512];
    header[20..28].copy_from_slice(&[0, 0, 2, 0, 0, 0, 2, 0]);
    let page = Dice::new(1).page(2, 512);
    let refused = |journal: &mut Journal, data: &[u8], offset| {
        let before = file.bytes();
        let error = journal.write(&file, data, offset).unwrap_err();
        assert!(
            matches!(error, VfsError::Journal { fault: JournalFault::Unexpected { .. }, .. }),
            "{error} ({} bytes at {offset})",
            data.len()
        );
        assert!(file.bytes() == before, "{} bytes at {offset}", data.len());
    };
    // No header yet.
    refused(&mut journal, &page, 516);
    refused(&mut journal, &page, 0);
    refused(&mut journal, &[0; 12], 0);
    refused(&mut journal, &header[..32], 0);
    let mut tiny = header.clone();
    tiny[20..24].copy_from_slice(&[0, 0, 0, 32]);
    refused(&mut journal, &tiny[..32], 0);
    journal.write(&file, &header, 0).unwrap();
    // A page without its number, beside its place, behind the next record.
    refused(&mut journal, &page, 516);
    refused(&mut journal, &page, 517);
    refused(&mut journal, &[0, 0, 0, 2], 512 + 520);
    refused(&mut journal, &page, 1024);
    refused(&mut journal, &page[..100], 600);
    // A checksum that is not the page's.
    journal.write(&file, &[0, 0, 0, 2], 512).unwrap();
    journal.write(&file, &page, 516).unwrap();
    refused(&mut journal, &(checksum(0, &page) + 1).to_be_bytes(), 516 + 512);
    journal.write(&file, &[0, 0, 0, 2], 512).unwrap();
    journal.write(&file, &page, 516).unwrap();
    journal.write(&file, &checksum(0, &page).to_be_bytes(), 516 + 512).unwrap();
    // More records than there are.
    refused(&mut journal, &[&MAGIC[..], &[0, 0, 0, 2]].concat(), 0);
    refused(&mut journal, &[0; 12], 0);

    // Pages that cannot be sealed.
    for (number, page) in [(2_u32, vec![1; 512]), (1, vec![0; 512])] {
        let before = file.bytes();
        journal.write(&file, &number.to_be_bytes(), 512 + 520).unwrap();
        let error = journal.write(&file, &page, 512 + 520 + 4).unwrap_err();
        assert!(matches!(error, VfsError::ReserveInUse { .. } | VfsError::Header { .. }), "{error}");
        assert!(file.bytes() == before);
    }
}

#[test]
fn a_reader_writes_nothing_but_the_end() {
    let file = MemFile::with(&hot_journal(true));
    let mut log = Sealed(Journal::new(database(&[1], 512)), file.clone());
    Pager::new(512, 512).roll_back(&mut log, true).unwrap();
    let before = file.bytes();
    assert!(log.write(&[0, 0, 0, 9], 512).is_err());
    assert!(log.write(&[&MAGIC[..], &[0, 0, 0, 1]].concat(), 0).is_err());
    assert!(file.bytes() == before);
    log.write(&[0; 28], 0).unwrap();
    assert!(file.bytes()[..HEADER_LEN].iter().all(|byte| *byte == 0));
    assert_eq!(roll_back(&file.bytes()).unwrap(), Rollback::default());
}

/// Without `Database`'s keys being settled, the id in a journal's header is believed only with its MAC.
#[test]
fn a_forged_file_id_is_refused() {
    let mut disk = hot_journal(true);
    disk[48] ^= 1;
    let database = crate::journal::testing::unknown_database(&[1]);
    let mut log = Sealed(Journal::new(database), MemFile::with(&disk));
    assert!(matches!(
        Pager::new(512, 512).roll_back(&mut log, true),
        Err(VfsError::Journal { fault: JournalFault::HeaderChanged { offset: 0 }, .. })
    ));
}

/// Damage of any kind: an error or a rollback of some of the records, never another page and never a panic.
#[test]
fn damage_at_random() {
    let disk = hot_journal(true);
    let whole = roll_back(&disk).unwrap();
    for seed in 0..1500 {
        let mut dice = Dice::new(seed);
        let mut damaged = disk.clone();
        for _ in 0..1 + dice.below(4) {
            let (at, len) = (dice.below(disk.len() as u32) as usize, 1 + dice.below(40) as usize);
            let end = (at + len).min(damaged.len());
            match dice.below(4) {
                0 => damaged[at..end].fill(dice.word() as u8),
                1 => damaged[at..end].iter_mut().for_each(|byte| *byte ^= dice.word() as u8),
                2 => damaged.truncate(at.max(1)),
                _ => damaged.copy_within(at..end, dice.below((disk.len() - len) as u32) as usize),
            }
            damaged.resize(disk.len(), dice.word() as u8);
        }
        if let Ok(rollback) = roll_back(&damaged) {
            assert!(whole.pages.starts_with(&rollback.pages), "seed {seed}");
        }
    }
}
