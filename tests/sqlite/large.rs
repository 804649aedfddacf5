//! Databases beyond the lock page, which lies at 1 GiB and is never written, and (in the long form) beyond 4 GiB.
//! SQLite's own tests of such files write into them by hand, which an encrypted one does not allow.

use tde_tests::files::flip;
use tde_tests::soak;
use tde_tests::sqlite::{Engine, Sqlite};

const PAGE: u64 = 4096;
/// SQLite's lock bytes.
const LOCK: u64 = 0x4000_0000;
const CHUNK: u64 = 64 << 20;

fn verify(sqlite: &Sqlite, name: &str) -> (bool, String) {
    let mut command = sqlite.command(Sqlite::tde_program());
    let output = command.args(["sqlite", "verify"]).arg(sqlite.file(name)).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

#[test]
fn a_database_beyond_the_lock_page() {
    let sqlite = Sqlite::new();
    let uri = sqlite.uri(Engine::Tde, "large.db", &[]);
    let size = if soak() { (4_u64 << 30) + CHUNK } else { LOCK + CHUNK };
    let chunks = size / CHUNK;
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &uri).unwrap();
    worker.run(&format!(
        "PRAGMA page_size = {PAGE}; PRAGMA synchronous = OFF; CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB)"
    ));
    for id in 0..chunks {
        worker.run(&format!("INSERT INTO t VALUES ({id}, zeroblob({CHUNK}))"));
    }
    // Small changes behind the lock page, by a journal that is rolled back and by one that is not.
    worker.run("BEGIN; PRAGMA cache_size = 5; UPDATE t SET b = 'lost' WHERE id > 14; ROLLBACK");
    worker.run("CREATE TABLE last (x TEXT); INSERT INTO last VALUES ('the end')");
    worker.ask("close 0").unwrap();

    let length = sqlite.file("large.db").metadata().unwrap().len();
    assert!(length > size, "{length} bytes");
    worker.open(0, &uri).unwrap();
    assert_eq!(worker.int("PRAGMA page_count").cast_unsigned() * PAGE, length);
    assert_eq!(worker.int("SELECT sum(length(b)) FROM t").cast_unsigned(), chunks * CHUNK);
    assert_eq!(worker.text("SELECT x FROM last"), "the end");
    assert_eq!(worker.text("PRAGMA integrity_check"), "ok");
    drop(worker);

    let (sound, text) = verify(&sqlite, "large.db");
    assert!(sound, "{text}");
    let damaged = LOCK / PAGE + 2; // pages count from 1: the one behind the lock page
    flip(&sqlite.file("large.db"), (damaged - 1) * PAGE + 100);
    let (sound, text) = verify(&sqlite, "large.db");
    assert!(!sound && text.contains(&damaged.to_string()), "{text}");
    // What lies on the lock page is nobody's.
    flip(&sqlite.file("large.db"), (damaged - 1) * PAGE + 100);
    flip(&sqlite.file("large.db"), LOCK + 100);
    let (sound, text) = verify(&sqlite, "large.db");
    assert!(sound, "{text}");
}
