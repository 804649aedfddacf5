//! Whoever can write the disk cannot make the database give wrong rows: an error, or a clean recovery.

use std::fs;
use std::path::Path;

use tde_tests::files::flip;
use tde_tests::soak;
use tde_tests::sqlite::{Engine, Refusal, Sqlite, Worker};

const PAGE: usize = 1024;

fn make(sqlite: &Sqlite, name: &str, mode: &str, salt: u32) -> Worker {
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &sqlite.uri(Engine::Tde, name, &[])).unwrap();
    worker.run(&format!("PRAGMA page_size = {PAGE}; PRAGMA journal_mode = {mode}; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = 10"));
    worker.run(&format!(
        "BEGIN; CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b BLOB); CREATE INDEX i ON t (a);
         WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 120)
         INSERT INTO t SELECT i, 'row-{salt}-' || i, zeroblob(i * 23 % 3000) FROM s; COMMIT"
    ));
    worker
}

/// Everything in the database by table, by index and by number of schema entries; an error as an error.
fn read_all(sqlite: &Sqlite, engine: Engine, name: &str) -> Result<String, Refusal> {
    let mut worker = sqlite.worker(engine);
    worker.open(0, &sqlite.uri(engine, name, &[]))?;
    let mut all = String::new();
    for sql in [
        "SELECT id, a, length(b), hex(substr(b, -4)) FROM t ORDER BY id",
        "SELECT a FROM t INDEXED BY i ORDER BY a",
        "SELECT type, name, sql FROM sqlite_schema ORDER BY name",
        "PRAGMA application_id",
        "PRAGMA user_version",
        "PRAGMA integrity_check",
    ] {
        for row in worker.sql(sql)? {
            all.push_str(&row.join("|"));
            all.push('\n');
        }
    }
    Ok(all)
}

/// A damaged copy must give an error or exactly what the whole one gives.
struct Outcome {
    refused: usize,
    unharmed: Vec<String>,
}

fn damage(sqlite: &Sqlite, name: &str, good: &[&str], outcome: &mut Outcome, what: &str) {
    match read_all(sqlite, Engine::Tde, name) {
        Err(Refusal::Died) => panic!("{what}: the process died"),
        Err(_) => outcome.refused += 1,
        Ok(rows) => {
            assert!(good.contains(&rows.as_str()), "{what}: wrong rows\n{}", difference(good[0], &rows));
            outcome.unharmed.push(what.to_owned());
        }
    }
}

fn difference(good: &str, rows: &str) -> String {
    let pair = good.lines().zip(rows.lines()).find(|(a, b)| a != b);
    format!("{} and {} lines; {pair:?}", good.lines().count(), rows.lines().count())
}

fn put(path: &Path, at: usize, bytes: &[u8]) {
    let mut all = fs::read(path).unwrap();
    all[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, all).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_in_the_database_is_an_error() {
    let sqlite = Sqlite::new();
    drop(make(&sqlite, "d.db", "DELETE", 1));
    let file = sqlite.file("d.db");
    let good = read_all(&sqlite, Engine::Tde, "d.db").unwrap();
    let whole = fs::read(&file).unwrap();
    let mut outcome = Outcome { refused: 0, unharmed: Vec::new() };
    let stride = if soak() { 97 } else { 977 };
    // The whole header and trailer of page 1, then samples of every page and its trailer.
    let header = (0..120).chain(PAGE - 40..PAGE);
    let samples = (PAGE..whole.len()).step_by(stride);
    let trailers = (2..whole.len() / PAGE).step_by(7).map(|page| page * PAGE - 1 - page % 32);
    let all: Vec<usize> = header.chain(samples).chain(trailers).collect();
    for &at in &all {
        flip(&file, at as u64);
        damage(&sqlite, "d.db", &[&good], &mut outcome, &format!("bit of byte {at} flipped"));
        fs::write(&file, &whole).unwrap();
    }
    assert_eq!(outcome.unharmed, Vec::<String>::new(), "every byte is authenticated");
    assert_eq!(outcome.refused, all.len());
    assert_eq!(read_all(&sqlite, Engine::Tde, "d.db").unwrap(), good);
}

#[test]
fn pages_from_elsewhere_and_a_cut_file_are_errors() {
    let sqlite = Sqlite::new();
    drop(make(&sqlite, "d.db", "DELETE", 1));
    drop(make(&sqlite, "other.db", "DELETE", 2));
    let file = sqlite.file("d.db");
    let good = read_all(&sqlite, Engine::Tde, "d.db").unwrap();
    let whole = fs::read(&file).unwrap();
    let other = fs::read(sqlite.file("other.db")).unwrap();
    let page = |bytes: &[u8], n: usize| bytes[(n - 1) * PAGE..n * PAGE].to_vec();
    let mut outcome = Outcome { refused: 0, unharmed: Vec::new() };
    let pages = whole.len() / PAGE;
    assert!(pages > 60);
    let mut tries = 0;
    let mut attempt = |changed: Vec<u8>, what: String| {
        fs::write(&file, changed).unwrap();
        damage(&sqlite, "d.db", &[&good], &mut outcome, &what);
        fs::write(&file, &whole).unwrap();
        tries += 1;
    };
    for n in (1..pages).step_by(5) {
        let mut swapped = whole.clone();
        swapped[(n - 1) * PAGE..n * PAGE].copy_from_slice(&page(&whole, n + 1));
        swapped[n * PAGE..(n + 1) * PAGE].copy_from_slice(&page(&whole, n));
        attempt(swapped, format!("pages {n} and {} swapped", n + 1));
        let mut replayed = whole.clone();
        replayed[(n - 1) * PAGE..n * PAGE].copy_from_slice(&page(&whole, pages - n));
        attempt(replayed, format!("page {} in the place of {n}", pages - n));
        let mut foreign = whole.clone();
        foreign[(n - 1) * PAGE..n * PAGE].copy_from_slice(&page(&other, n));
        attempt(foreign, format!("page {n} of another database"));
        let mut zeroed = whole.clone();
        zeroed[(n - 1) * PAGE..n * PAGE].fill(0);
        attempt(zeroed, format!("page {n} zeroed"));
        let mut torn = whole.clone();
        torn[(n - 1) * PAGE + 512..n * PAGE].fill(0);
        attempt(torn, format!("second half of page {n} zeroed"));
        attempt(whole[..(n - 1) * PAGE].to_vec(), format!("cut before page {n}"));
        attempt(whole[..(n - 1) * PAGE + 700].to_vec(), format!("cut inside page {n}"));
    }
    // A file cut to nothing is an empty database, as for plain SQLite: there is nothing left to authenticate.
    assert!(outcome.unharmed.is_empty(), "{:?}", outcome.unharmed);
    assert!(outcome.refused == tries, "{} of {tries}", outcome.refused);
}

#[test]
fn a_changed_wal_gives_an_error_or_an_earlier_commit() {
    let sqlite = Sqlite::new();
    let mut worker = make(&sqlite, "w.db", "WAL", 1);
    // Every commit is a state that a recovery may end at, the one before the table existed too.
    let mut names = vec!["w.db".to_owned()];
    for step in 0..4 {
        let copy = format!("copy{step}.db");
        for end in ["", "-wal"] {
            fs::copy(sqlite.file(&format!("w.db{end}")), sqlite.file(&format!("{copy}{end}"))).unwrap();
        }
        names.push(copy);
        worker.run(&format!("UPDATE t SET a = 'changed-{step}-' || id WHERE id % 4 = {step}"));
    }
    worker.kill();
    let (file, wal) = (sqlite.file("w.db"), sqlite.file("w.db-wal"));
    let (whole_file, whole) = (fs::read(&file).unwrap(), fs::read(&wal).unwrap());
    let restore = || {
        let _ = fs::remove_file(sqlite.file("w.db-shm"));
        fs::write(&file, &whole_file).unwrap();
        fs::write(&wal, &whole).unwrap();
    };
    let good: Vec<String> = names
        .iter()
        .map(|name| {
            let rows = read_all(&sqlite, Engine::Tde, name).unwrap();
            restore();
            rows
        })
        .collect();
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    assert_eq!(good.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
    let mut outcome = Outcome { refused: 0, unharmed: Vec::new() };
    let frame = PAGE + 24;
    let stride = if soak() { 211 } else { 1999 };
    let header = 0..32;
    let first = 32..32 + 30;
    let last_header = whole.len() - frame..whole.len() - frame + 24;
    let all: Vec<usize> =
        header.chain(first).chain(last_header).chain((64..whole.len()).step_by(stride)).collect();
    for &at in &all {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&wal, &bytes).unwrap();
        damage(&sqlite, "w.db", &good, &mut outcome, &format!("byte {at} of the WAL"));
        restore();
    }
    let frames = (whole.len() - 32) / frame;
    for n in (0..frames - 1).step_by(9) {
        let (a, b) = (32 + n * frame, 32 + (n + 1) * frame);
        let mut swapped = whole.clone();
        swapped[a..b].copy_from_slice(&whole[b..b + frame]);
        swapped[b..b + frame].copy_from_slice(&whole[a..b]);
        fs::write(&wal, &swapped).unwrap();
        damage(&sqlite, "w.db", &good, &mut outcome, &format!("frames {n} and {} swapped", n + 1));
        restore();
        // A page of the WAL into the database, where it belongs by number.
        let number = u32::from_be_bytes(whole[a..a + 4].try_into().unwrap()) as usize;
        if number * PAGE <= whole_file.len() {
            put(&file, (number - 1) * PAGE, &whole[a + 24..b]);
            damage(&sqlite, "w.db", &good, &mut outcome, &format!("frame {n} copied into the database"));
            restore();
        }
        fs::write(&wal, &whole[..a + 100]).unwrap();
        damage(&sqlite, "w.db", &good, &mut outcome, &format!("WAL cut inside frame {n}"));
        restore();
    }
    println!("{} refused, {} recovered to a commit", outcome.refused, outcome.unharmed.len());
    assert!(!outcome.unharmed.is_empty(), "a damaged tail is a torn tail");
}

#[test]
fn a_changed_hot_journal_gives_an_error_or_a_clean_rollback() {
    let sqlite = Sqlite::new();
    let mut worker = make(&sqlite, "j.db", "DELETE", 1);
    let good = read_all(&sqlite, Engine::Tde, "j.db").unwrap();
    worker.run("BEGIN; UPDATE t SET a = 'changed-' || id, b = zeroblob(50)");
    let (file, journal) = (sqlite.file("j.db"), sqlite.file("j.db-journal"));
    let (whole_file, whole) = (fs::read(&file).unwrap(), fs::read(&journal).unwrap());
    worker.kill();
    let restore = || {
        fs::write(&file, &whole_file).unwrap();
        fs::write(&journal, &whole).unwrap();
    };
    restore();
    assert_eq!(read_all(&sqlite, Engine::Tde, "j.db").unwrap(), good, "the unharmed journal rolls back");
    restore();
    assert!(whole.len() > 30 * PAGE, "{} bytes of journal", whole.len());
    let mut outcome = Outcome { refused: 0, unharmed: Vec::new() };
    let record = PAGE + 8;
    let stride = if soak() { 211 } else { 1999 };
    let all = (0..80)
        .chain(512..530)
        .chain(512 + record - 6..512 + record + 6)
        .chain((600..whole.len()).step_by(stride));
    for at in all {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&journal, &bytes).unwrap();
        damage(&sqlite, "j.db", &[&good], &mut outcome, &format!("byte {at} of the journal"));
        restore();
    }
    for n in (0..20).step_by(3) {
        let (a, b) = (512 + n * record, 512 + (n + 1) * record);
        let mut swapped = whole.clone();
        swapped[a..b].copy_from_slice(&whole[b..b + record]);
        swapped[b..b + record].copy_from_slice(&whole[a..b]);
        fs::write(&journal, &swapped).unwrap();
        damage(&sqlite, "j.db", &[&good], &mut outcome, &format!("records {n} and {} swapped", n + 1));
        restore();
        fs::write(&journal, &whole[..a + 100]).unwrap();
        damage(&sqlite, "j.db", &[&good], &mut outcome, &format!("journal cut inside record {n}"));
        restore();
    }
    println!("{} refused, {} rolled back", outcome.refused, outcome.unharmed.len());
    assert!(outcome.refused > 20);
}
