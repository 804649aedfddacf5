use super::*;
use crate::format::page::TRAILER_LEN;
use crate::journal::testing::{FILE, MemFile, unknown_database};

const SIZE: usize = 1024;

/// Page 1 as SQLite writes it.
fn page_one(size: usize) -> Vec<u8> {
    let mut page = body(size, 1);
    page[..16].copy_from_slice(b"SQLite format 3\0");
    page[16..18].copy_from_slice(&if size == 65536 { [0, 1] } else { (size as u16).to_be_bytes() });
    page[18..24].copy_from_slice(&[1, 1, 32, 64, 32, 32]);
    page
}

fn body(size: usize, seed: usize) -> Vec<u8> {
    let mut page: Vec<u8> = (0..size).map(|i| (i * 7 + seed * 31) as u8).collect();
    page[size - TRAILER_LEN..].fill(0);
    page
}

fn open(raw: &MemFile) -> MainDb<MemFile> {
    MainDb::new(raw.clone(), unknown_database(&[1])).unwrap()
}

/// A database of four pages, and what SQLite wrote.
fn four_pages() -> (MemFile, MainDb<MemFile>, Vec<u8>) {
    let raw = MemFile::default();
    let mut main = open(&raw);
    assert_eq!(main.look().unwrap(), State::Empty);
    let mut plain = page_one(SIZE);
    for seed in 2..5 {
        plain.extend(body(SIZE, seed));
    }
    for (i, page) in plain.chunks(SIZE).enumerate() {
        main.write(page, (i * SIZE) as u64).unwrap();
    }
    (raw, main, plain)
}

#[test]
fn any_range_is_served() {
    let (raw, _, plain) = four_pages();
    let mut main = open(&raw);
    assert_eq!(main.look().unwrap(), State::Known);
    let ranges = [
        (SIZE, SIZE),
        (0, SIZE),
        (SIZE, 7),
        (SIZE + 900, 300),
        (0, 4 * SIZE),
        (2 * SIZE, 2 * SIZE),
        (90, 40),
        (3 * SIZE + 1000, 24),
    ];
    for (offset, len) in ranges {
        let mut buf = vec![0xEE; len];
        assert_eq!(main.read(&mut buf, offset as u64).unwrap(), Read::Full);
        assert!(buf == plain[offset..offset + len], "{len} bytes at {offset}");
    }
    // Beyond the end, as SQLite reads a page that it is about to make.
    let mut buf = vec![0xEE; SIZE];
    assert_eq!(main.read(&mut buf, 4 * SIZE as u64).unwrap(), Read::Short);
    assert!(buf.iter().all(|byte| *byte == 0));
    let mut buf = vec![0xEE; 2 * SIZE];
    assert_eq!(main.read(&mut buf, 3 * SIZE as u64).unwrap(), Read::Short);
    assert!(buf[..SIZE] == plain[3 * SIZE..] && buf[SIZE..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_beginning_is_served_before_the_page_size_is_known() {
    let (raw, _, plain) = four_pages();
    let mut main = open(&raw);
    let mut clear = [0xEE; 16];
    main.read(&mut clear, 24).unwrap();
    assert_eq!(clear, plain[24..40]);
    let mut header = [0xEE; 100];
    assert_eq!(main.read(&mut header, 0).unwrap(), Read::Full);
    assert_eq!(header[..40], plain[..40]);
    assert_eq!(header[40..], [0; 60]);
    // An empty file, and one whose first transaction was cut short.
    let empty = MemFile::default();
    assert_eq!(open(&empty).read(&mut header, 0).unwrap(), Read::Short);
    let headless = MemFile::with(&[0; 2 * SIZE]);
    let mut main = open(&headless);
    assert_eq!(main.look().unwrap(), State::Headless);
    assert_eq!(main.read(&mut header, 0).unwrap(), Read::Full);
    assert_eq!(header, [0; 100]);
    assert!(matches!(main.read(&mut [0; SIZE], 0), Err(VfsError::Torn { place: Place::Page(1), .. })));
    assert!(
        matches!(main.write(&body(SIZE, 2), SIZE as u64), Err(VfsError::Torn { .. })),
        "no key is made for it"
    );
    main.database().adopt(FILE).unwrap();
    main.write(&page_one(SIZE), 0).unwrap();
    assert_eq!(main.read(&mut [0; SIZE], 0).unwrap(), Read::Full);
}

#[test]
fn gaps_are_sealed() {
    let raw = MemFile::default();
    let mut main = open(&raw);
    main.look().unwrap();
    // Page 5 is spilled first.
    main.write(&body(SIZE, 5), 4 * SIZE as u64).unwrap();
    assert!(raw.bytes()[..SIZE].iter().all(|byte| *byte == 0), "page 1 is SQLite's to write");
    let mut buf = vec![0xEE; SIZE];
    for page in [2, 3, 4] {
        assert_eq!(main.read(&mut buf, (page - 1) * SIZE as u64).unwrap(), Read::Full);
        assert!(buf.iter().all(|byte| *byte == 0));
    }
    main.read(&mut buf, 4 * SIZE as u64).unwrap();
    assert!(buf == body(SIZE, 5));
    main.write(&page_one(SIZE), 0).unwrap();
    // The file grows by xTruncate, as after a checkpoint whose last pages were never written.
    main.truncate(8 * SIZE as u64).unwrap();
    assert_eq!(main.size().unwrap(), 8 * SIZE as u64);
    assert_eq!(main.read(&mut buf, 7 * SIZE as u64).unwrap(), Read::Full);
    // Another process has cut the file; the lock said so.
    raw.truncate(2 * SIZE as u64).unwrap();
    main.forget_size();
    main.write(&body(SIZE, 4), 3 * SIZE as u64).unwrap();
    assert_eq!(main.read(&mut buf, 2 * SIZE as u64).unwrap(), Read::Full);
    // A failed write has left a part of a page.
    raw.truncate(4 * SIZE as u64 + 100).unwrap();
    main.forget_size();
    main.write(&body(SIZE, 7), 6 * SIZE as u64).unwrap();
    assert_eq!(main.read(&mut buf, 4 * SIZE as u64).unwrap(), Read::Full);
    // Zeros below the end.
    raw.change(|bytes| bytes[SIZE..2 * SIZE].fill(0));
    assert!(matches!(main.read(&mut buf, SIZE as u64), Err(VfsError::Torn { place: Place::Page(2), .. })));
    assert!(buf.iter().all(|byte| *byte == 0));
}

#[test]
fn nothing_is_written_that_could_not_be_read_back() {
    let (raw, mut main, _) = four_pages();
    let before = raw.bytes();
    let mut used = body(SIZE, 2);
    used[SIZE - 1] = 1;
    assert!(matches!(
        main.write(&used, SIZE as u64),
        Err(VfsError::ReserveInUse { place: Place::Page(2), .. })
    ));
    let fault = |main: &mut MainDb<MemFile>, change: &dyn Fn(&mut Vec<u8>)| {
        let mut page = page_one(SIZE);
        change(&mut page);
        match main.write(&page, 0) {
            Err(VfsError::Header { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fault(&mut main, &|page| page[0] = b'X'), HeaderFault::Magic);
    assert_eq!(fault(&mut main, &|page| page[20] = 0), HeaderFault::Reserve { found: 0 });
    assert_eq!(fault(&mut main, &|page| page[16] = 3), HeaderFault::PageSize);
    let to = 4096;
    assert_eq!(
        fault(&mut main, &|page| page[16] = 16),
        HeaderFault::PageSizeChange { from: SIZE as u32, to }
    );
    for (offset, len) in [(0, 4096), (SIZE, 512), (100, SIZE), (SIZE, 100)] {
        let outcome = main.write(&page_one(4096)[..len], offset as u64);
        assert!(matches!(outcome, Err(VfsError::Misplaced { .. })), "{len} bytes at {offset}");
    }
    assert!(raw.bytes() == before);
}

#[test]
fn another_file_under_the_handle_is_noticed() {
    let (raw, mut main, _) = four_pages();
    raw.change(|bytes| bytes[4..16].fill(1));
    assert!(matches!(main.read(&mut [0; SIZE], 0), Err(VfsError::OtherFile { .. })));
    raw.change(|bytes| bytes[..16].copy_from_slice(b"SQLite format 3\0"));
    assert!(matches!(main.read(&mut [0; SIZE], 0), Err(VfsError::PlaintextFile { .. })));
    assert!(matches!(open(&raw).look(), Err(VfsError::PlaintextFile { .. })));
}

#[test]
fn a_page_under_a_newer_version_makes_that_one_active() {
    let raw = MemFile::default();
    let versions = unknown_database(&[1, 2]);
    let mut newer = MainDb::new(raw.clone(), versions).unwrap();
    newer.look().unwrap();
    newer.write(&page_one(SIZE), 0).unwrap();
    assert_eq!(page::version(&raw.bytes()), 2);
    // This process has started with version 1 as the newest one, but can get at 2.
    let database = unknown_database(&[2, 1]);
    let mut older = MainDb::new(raw.clone(), database).unwrap();
    older.look().unwrap();
    older.read(&mut [0; SIZE], 0).unwrap();
    older.write(&body(SIZE, 2), SIZE as u64).unwrap();
    assert_eq!(page::version(&raw.bytes()), 2);
}
