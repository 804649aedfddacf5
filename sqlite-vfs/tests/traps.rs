//! What has gone wrong in other products: each is refused or works.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use rusqlite::Connection;
use rusqlite::backup::Backup;
use rusqlite::ffi::ErrorCode;

#[test]
fn a_plaintext_database_is_refused_with_a_hint() {
    let scratch = Scratch::new();
    let plain = Connection::open(scratch.path("plain.db")).unwrap();
    plain.execute_batch("CREATE TABLE t(x)").unwrap();
    let error = scratch.open_with("plain.db", "").unwrap_err();
    assert_eq!((primary(&error), reason(&error)), (Some(ErrorCode::NotADatabase), 0xD6));
    let text = tde_rusqlite::last_error();
    assert!(
        text.contains("plaintext") && text.contains("tde sqlite encrypt") && text.contains("plain.db"),
        "{text}"
    );
    // Nor through a keyring's other file.
    let main = scratch.open("main.db");
    let sql = format!("ATTACH '{}' AS plain", scratch.path("plain.db").display());
    assert_eq!(reason(&main.execute_batch(&sql).unwrap_err()), 0xD6);
}

#[test]
fn something_else_is_refused() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("noise.db"), [0x5A; 8192]).unwrap();
    assert_eq!(reason(&scratch.open_with("noise.db", "").unwrap_err()), 0xD7);
    let mut later = [0; 8192];
    later[..4].copy_from_slice(b"TDE\x02");
    std::fs::write(scratch.path("later.db"), later).unwrap();
    assert_eq!(reason(&scratch.open_with("later.db", "").unwrap_err()), 0xDC);
    std::fs::write(scratch.path("zero.db"), [0; 8192]).unwrap();
    assert_eq!(reason(&scratch.open_with("zero.db", "").unwrap_err()), 0xD5);
}

#[test]
fn stock_sqlite_refuses_the_file_and_harms_nothing() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    db.execute_batch("PRAGMA journal_mode=WAL").unwrap();
    fill(&db, 300);
    let before = (scratch.bytes("a.db"), scratch.bytes("a.db-wal"));
    let stock = Connection::open(scratch.path("a.db")).unwrap();
    let error = stock.execute_batch("SELECT * FROM sqlite_master").unwrap_err();
    assert_eq!(primary(&error), Some(ErrorCode::NotADatabase));
    drop(stock);
    assert!((scratch.bytes("a.db"), scratch.bytes("a.db-wal")) == before);
    assert_healthy(&db, 300);
}

#[test]
fn the_page_size_cannot_be_changed_in_place() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    fill(&db, 300);
    let before = scratch.bytes("a.db");
    let error = db.execute_batch("PRAGMA page_size=1024; VACUUM").unwrap_err();
    assert_eq!(reason(&error), 0xDB);
    assert!(tde_rusqlite::last_error().contains("VACUUM INTO"), "{}", tde_rusqlite::last_error());
    assert!(scratch.bytes("a.db") == before, "VACUUM failed before it wrote");
    drop(db);
    let db = scratch.open("a.db");
    assert_healthy(&db, 300);
    assert_eq!(text(&db, "PRAGMA page_size"), "4096");
}

#[test]
fn a_backup_from_plaintext_fails_and_stores_no_page() {
    let scratch = Scratch::new();
    let plain = Connection::open_in_memory().unwrap();
    fill(&plain, 300);
    let mut target = scratch.open("target.db");
    let error =
        Backup::new(&plain, &mut target).unwrap().run_to_completion(5, std::time::Duration::ZERO, None);
    assert_eq!(reason(&error.unwrap_err()), 0xDB);
    assert!(
        tde_rusqlite::last_error().contains("reserved bytes")
            || tde_rusqlite::last_error().contains("last 32")
    );
    drop(target);
    assert!(!has(&scratch.bytes("target.db"), CANARY.as_bytes()));
    // The other way round is a decryption, which the program asked for.
    let source = scratch.open("source.db");
    fill(&source, 100);
    let mut plain = Connection::open(scratch.path("plain.db")).unwrap();
    Backup::new(&source, &mut plain).unwrap().run_to_completion(50, std::time::Duration::ZERO, None).unwrap();
    assert_eq!(text(&plain, "SELECT count(*) FROM t"), "100");
}

#[test]
fn gaps_are_sealed_and_zeros_below_the_end_are_refused() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    db.execute_batch(
        "PRAGMA secure_delete=OFF; PRAGMA cache_size=1000; CREATE TABLE a(x); CREATE TABLE b(x); BEGIN;
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<100) INSERT INTO a SELECT zeroblob(4000) FROM n;
         DELETE FROM a; INSERT INTO b VALUES(1); CREATE TABLE c AS SELECT zeroblob(9000); COMMIT",
    )
    .unwrap();
    assert_eq!(text(&db, "PRAGMA tde_verify"), "ok");
    let free: u32 = text(&db, "PRAGMA freelist_count").parse().unwrap();
    assert!(free > 50, "pages that were never written");
    let mut target = scratch.open("copy.db");
    Backup::new(&db, &mut target).unwrap().run_to_completion(100, std::time::Duration::ZERO, None).unwrap();
    assert_eq!(text(&target, "PRAGMA tde_verify"), "ok");
    drop((db, target));

    let mut bytes = scratch.bytes("a.db");
    bytes[2 * 4096..3 * 4096].fill(0);
    std::fs::write(scratch.path("a.db"), bytes).unwrap();
    let db = scratch.open("a.db");
    assert!(text(&db, "PRAGMA tde_verify").contains("page 3 was never written"));
}

#[test]
fn temporary_files_of_a_plain_connection() {
    let scratch = Scratch::new();
    drop(scratch.open("a.db"));
    let attach =
        |extra: &str| format!("ATTACH '{}' AS enc; CREATE TABLE enc.t(x)", scratch.uri("a.db", extra));
    for main in ["file::memory:", "file:plain.db?mode=memory"] {
        let db = open(main).unwrap();
        assert_eq!(reason(&db.execute_batch(&attach("")).unwrap_err()), 0xDD);
        assert!(tde_rusqlite::last_error().contains("file::memory:?vfs=tde"));
    }
    open("file::memory:").unwrap().execute_batch(&attach("&plain_temp=1")).unwrap();
    // SQLite takes no locks then, so nothing can be checked there.
    for parameter in ["&nolock=1", "&immutable=1"] {
        let db = open("file::memory:").unwrap();
        let read = format!("ATTACH '{}' AS enc; SELECT * FROM enc.t", scratch.uri("a.db", parameter));
        assert_eq!(reason(&db.execute_batch(&read).unwrap_err()), 0xDD, "{parameter}");
    }
    // A shared cache: the second connection is not the one that was looked at.
    let good = open("file::memory:?vfs=tde").unwrap();
    let shared = format!("ATTACH '{}' AS enc", scratch.uri("a.db", "&cache=shared"));
    good.execute_batch(&shared).unwrap();
    good.execute_batch("BEGIN; SELECT * FROM enc.t").unwrap();
    let plain = open("file::memory:").unwrap();
    let outcome =
        plain.execute_batch(&shared).and_then(|()| plain.execute_batch("INSERT INTO enc.t VALUES(7)"));
    assert!(outcome.is_err());
    good.execute_batch("COMMIT").unwrap();
    let outcome = plain.execute_batch(&shared).and_then(|()| plain.execute_batch("SELECT * FROM enc.t"));
    assert!(outcome.is_err());
    drop((good, plain));
    let db = open("file::memory:?vfs=tde").unwrap();
    db.execute_batch(&format!("ATTACH '{}' AS enc; INSERT INTO enc.t VALUES(1)", scratch.uri("a.db", "")))
        .unwrap();
}

#[test]
fn every_changed_byte_of_a_page_is_noticed() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    db.execute_batch("PRAGMA page_size=512").unwrap();
    fill(&db, 20);
    drop(db);
    let good = scratch.bytes("a.db");
    // Page 1's header, its body, its trailer; another page; a page in another's place.
    let header = 16..40;
    for at in header.chain([0x40, 0x100, 490, 495, 509, 511, 512, 700, 1023]) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(scratch.path("bad.db"), &bad).unwrap();
        let outcome = scratch.open_with("bad.db", "").and_then(|db| try_text(&db, "PRAGMA integrity_check"));
        match outcome {
            Ok(result) => assert_ne!(result, "ok", "byte {at}"),
            Err(error) => assert!(matches!(reason(&error), 0xD0..=0xE3 | 0), "byte {at}: {error}"),
        }
        let rows =
            scratch.open_with("bad.db", "").and_then(|db| try_text(&db, "SELECT group_concat(name) FROM t"));
        assert!(rows.is_err() || rows.unwrap().matches(CANARY).count() == 20, "wrong rows after byte {at}");
    }
    let mut swapped = good.clone();
    swapped[512..1024].copy_from_slice(&good[1024..1536]);
    swapped[1024..1536].copy_from_slice(&good[512..1024]);
    std::fs::write(scratch.path("bad.db"), swapped).unwrap();
    let db = scratch.open("bad.db");
    let report = text(&db, "PRAGMA tde_verify");
    assert!(
        report.contains("page 2 is not authentic") && report.contains("page 3 is not authentic"),
        "{report}"
    );
    let error = try_text(&db, "SELECT count(*) FROM t").unwrap_err();
    assert_eq!((primary(&error), reason(&error)), (Some(ErrorCode::SystemIoFailure), 0xD4));
}

#[test]
fn a_file_without_its_keys() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    fill(&db, 10);
    drop(db);
    let mut bytes = scratch.bytes("a.db");
    bytes[4..16].copy_from_slice(&[9; 12]);
    std::fs::write(scratch.path("a.db"), bytes).unwrap();
    let error = scratch.open_with("a.db", "").unwrap_err();
    assert_eq!((primary(&error), reason(&error)), (Some(ErrorCode::CannotOpen), 0xE2));
}

#[test]
fn pins_do_not_come_from_uris() {
    let scratch = Scratch::new();
    assert_eq!(reason(&scratch.open_with("a.db", "&pin=1234").unwrap_err()), 0xD9);
    assert_eq!(reason(&scratch.open_with("a.db", "&pin_command=id").unwrap_err()), 0xD9);
    assert!(!scratch.path("a.db").exists(), "nothing is made where there is no key");
}

#[test]
fn two_connections_make_one_database() {
    let scratch = Scratch::new();
    // Both find an empty file; the second sees the first one's id when it locks.
    let (one, two) = (scratch.open("a.db"), scratch.open("a.db"));
    one.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES(1)").unwrap();
    two.execute_batch("INSERT INTO t VALUES(2)").unwrap();
    assert_eq!(text(&one, "SELECT sum(x) FROM t"), "3");
    // A first transaction that is rolled back leaves nothing that binds.
    let (one, two) = (scratch.open("b.db"), scratch.open("b.db"));
    one.execute_batch("PRAGMA cache_size=2; BEGIN; CREATE TABLE t(x);").unwrap();
    one.execute_batch("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<100) INSERT INTO t SELECT zeroblob(3000) FROM n; ROLLBACK")
        .unwrap();
    two.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES(2)").unwrap();
    one.execute_batch("INSERT INTO t VALUES(1)").unwrap();
    assert_eq!(text(&two, "SELECT sum(x) FROM t"), "3");
}

#[test]
fn a_new_key_version_is_used_at_once() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    fill(&db, 300);
    let other = scratch.open("a.db");
    assert_eq!(text(&other, "SELECT count(*) FROM t"), "300");
    assert!(text(&db, "PRAGMA tde_rotate").contains("key version 2"));
    db.execute_batch("INSERT INTO t(name) VALUES('new')").unwrap();
    let versions = text(&db, "PRAGMA tde_key_version");
    assert!(
        versions.starts_with("active: 2\nversion 1: ") && versions.contains("\nversion 2: "),
        "{versions}"
    );
    other.execute_batch("DELETE FROM t WHERE name='new'").unwrap();
    db.execute_batch("VACUUM").unwrap();
    let versions = text(&other, "PRAGMA tde_key_version");
    assert!(!versions.contains("version 1:"), "{versions}");
    assert_healthy(&other, 300);
    let status = text(&db, "PRAGMA tde_status");
    for line in ["state: encrypted", "cipher: aes-256-gcm-siv", "key_version: 2", "page_size: 4096"] {
        assert!(status.contains(line), "{status}");
    }
}

#[test]
fn a_lost_page_one_comes_back_from_the_hot_journal() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    fill(&db, 500);
    db.execute_batch("PRAGMA cache_size=5; BEGIN; UPDATE t SET name='half done', filler=randomblob(300)")
        .unwrap();
    for first_bytes in [0_u8, 0xA7] {
        // What a crash in the middle of this transaction leaves, with page 1 torn.
        let mut torn = scratch.bytes("a.db");
        torn[..4096].fill(first_bytes);
        std::fs::write(scratch.path("b.db"), &torn).unwrap();
        std::fs::copy(scratch.path("a.db-journal"), scratch.path("b.db-journal")).unwrap();
        let back = scratch.open("b.db");
        assert_eq!(text(&back, "SELECT count(*) FROM t WHERE name LIKE 'Known%'"), "500");
        assert_healthy(&back, 500);
        drop(back);
        // Without the journal there is nothing to mend it.
        std::fs::write(scratch.path("b.db"), &torn).unwrap();
        assert!(matches!(reason(&scratch.open_with("b.db", "").unwrap_err()), 0xD5 | 0xD7));
    }
}

#[test]
fn a_frame_of_an_earlier_wal_is_refused_by_who_has_seen_it() {
    use std::os::unix::fs::FileExt as _;
    let scratch = Scratch::new();
    let writer = scratch.open("a.db");
    writer
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(id INTEGER PRIMARY KEY, b);
             INSERT INTO t VALUES(1, 'first'); PRAGMA wal_checkpoint(RESTART); UPDATE t SET b='rich'",
        )
        .unwrap();
    let reader = scratch.open("a.db");
    assert_eq!(text(&reader, "SELECT b FROM t"), "rich");
    let earlier = scratch.bytes("a.db-wal")[32..32 + 24 + 4096].to_vec();
    writer.execute_batch("PRAGMA wal_checkpoint(RESTART); UPDATE t SET b='poor'").unwrap();
    let wal = std::fs::File::options().write(true).open(scratch.path("a.db-wal")).unwrap();
    wal.write_all_at(&earlier, 32).unwrap();
    for connection in [&reader, &scratch.open("a.db")] {
        let error = try_text(connection, "SELECT b FROM t").unwrap_err();
        assert!(matches!(reason(&error), 0xD4 | 0xE0), "{error}");
    }
}

#[test]
fn a_pragma_waits_for_a_lock_and_then_says_busy() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    fill(&db, 10);
    let other = scratch.open("a.db");
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = try_text(&db, "PRAGMA tde_verify").unwrap_err();
    assert_eq!(primary(&error), Some(ErrorCode::DatabaseBusy));
    let waiting = std::thread::spawn(move || text(&db, "PRAGMA tde_verify"));
    std::thread::sleep(std::time::Duration::from_millis(200));
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(waiting.join().unwrap(), "ok");
}

#[test]
fn whoever_comes_while_the_database_is_being_made_is_told_busy() {
    let scratch = Scratch::new();
    for mode in ["DELETE", "MEMORY", "OFF"] {
        let name = format!("{mode}.db");
        let first = scratch.open(&name);
        first.execute_batch(&format!("PRAGMA cache_size=3; PRAGMA journal_mode={mode}; BEGIN")).unwrap();
        fill(&first, 500);
        assert!(scratch.bytes(&name)[..4096].iter().all(|byte| *byte == 0), "page 1 comes last");
        let second = scratch.open(&name);
        second.busy_timeout(std::time::Duration::ZERO).unwrap();
        let error = try_text(&second, "SELECT count(*) FROM t").unwrap_err();
        assert_eq!(primary(&error), Some(ErrorCode::DatabaseBusy), "{mode}: {error}");
        first.execute_batch("COMMIT").unwrap();
        assert_healthy(&second, 500);
    }
}

#[test]
fn a_deserialized_main_database_is_not_called_plain() {
    let scratch = Scratch::new();
    drop(scratch.open("a.db"));
    let attach = format!("ATTACH '{}' AS enc; CREATE TABLE enc.t(x)", scratch.uri("a.db", ""));
    let image = {
        let mut source = open("file::memory:").unwrap();
        source.execute_batch("CREATE TABLE m(x)").unwrap();
        source.serialize("main").unwrap().to_vec()
    };
    let deserialized = |uri: &str| {
        let mut db = open(uri).unwrap();
        db.deserialize_read_exact("main", &image[..], image.len(), false).unwrap();
        db
    };
    let db = deserialized("file::memory:?vfs=tde");
    assert_eq!(reason(&db.execute_batch(&attach).unwrap_err()), 0xDD);
    assert!(tde_rusqlite::last_error().contains("PRAGMA temp.page_size"), "{}", tde_rusqlite::last_error());
    // As the message says.
    db.execute_batch("PRAGMA temp.page_size").unwrap();
    db.execute_batch(&attach).unwrap();
    // Nobody is let in by that whose temporary files are really plaintext.
    let db = deserialized("file::memory:?vfs=unix");
    db.execute_batch("PRAGMA temp.page_size").unwrap();
    assert_eq!(reason(&db.execute_batch(&attach).unwrap_err()), 0xDD);
}

#[test]
fn device_promises_are_masked() {
    use rusqlite::ffi;
    /// Device characteristics, and the methods' version, of the main database's file.
    fn device(db: &Connection) -> (i32, i32) {
        let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
        // SAFETY: the connection is open, and this control stores a pointer to its file, which stays open during the calls.
        unsafe {
            let what = ffi::SQLITE_FCNTL_FILE_POINTER;
            assert_eq!(
                ffi::sqlite3_file_control(db.handle(), c"main".as_ptr(), what, (&raw mut file).cast()),
                0
            );
            let methods = &*(*file).pMethods;
            (methods.xDeviceCharacteristics.unwrap()(file), methods.iVersion)
        }
    }
    let scratch = Scratch::new();
    let kept = ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
        | ffi::SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN
        | ffi::SQLITE_IOCAP_IMMUTABLE;
    let plain = Connection::open(scratch.path("plain.db")).unwrap();
    let (below, version) = device(&plain);
    assert!(
        below & !kept != 0 && version > 2,
        "the VFS below promises nothing that must be masked: {below:#x}"
    );
    assert_eq!(device(&scratch.open("a.db")), (below & kept, 2));
}
