//! `tde sqlite` as people and scripts call it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Bench, flip_byte, secret, tde};
use rusqlite::Connection;

const SECRET: &[u8] = b"known plaintext in every row";

fn plain(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}

/// A database with what conversions have got wrong elsewhere.
fn fill(path: &Path, page_size: u32, rows: u32) {
    let db = plain(path);
    db.execute_batch(&format!("PRAGMA page_size = {page_size}; PRAGMA auto_vacuum = INCREMENTAL; VACUUM"))
        .unwrap();
    db.execute_batch(
        "PRAGMA user_version = 42; PRAGMA application_id = 7;
         CREATE TABLE notes(text TEXT, number REAL, data BLOB);
         CREATE TABLE keyed(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
         CREATE TABLE counted(id INTEGER PRIMARY KEY AUTOINCREMENT, v AS (upper('x' || id)), w AS (id * 2) STORED);
         CREATE TABLE \"odd \"\" name\"(rowid TEXT, \"a b\" INT);
         CREATE INDEX by_number ON notes(number);
         CREATE VIEW numbers AS SELECT number FROM notes;
         CREATE TRIGGER grow AFTER INSERT ON keyed BEGIN INSERT INTO counted(id) VALUES(NULL); END;
         CREATE VIRTUAL TABLE words USING fts5(w);",
    )
    .unwrap();
    db.execute_batch("BEGIN").unwrap();
    let text = String::from_utf8(SECRET.to_vec()).unwrap();
    for n in 0..rows {
        db.execute(
            "INSERT INTO notes(rowid, text, number, data) VALUES(?1, ?2, ?3, zeroblob(?4))",
            (n * 3 + 5, format!("{text} {n}"), f64::from(n) / 3.0, n % 700),
        )
        .unwrap();
    }
    db.execute_batch("COMMIT").unwrap();
    db.execute_batch(
        "INSERT INTO keyed VALUES('a', 1), ('b', NULL), ('c', x'00ff');
         INSERT INTO \"odd \"\" name\" VALUES('not the row id', 1);
         INSERT INTO words VALUES('hidden words');
         DELETE FROM notes WHERE rowid % 7 = 0;",
    )
    .unwrap();
}

fn contains(path: &Path, needle: &[u8]) -> bool {
    fs::read(path).unwrap().windows(needle.len()).any(|window| window == needle)
}

fn dump(db: &Connection) -> Vec<String> {
    let mut statement =
        db.prepare("SELECT rowid || '|' || text || '|' || number || '|' || length(data) FROM notes").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn a_database_is_encrypted_checked_rotated_and_decrypted_again() {
    let bench = Bench::new();
    for (page_size, wal) in [(4096, false), (512, true), (65536, false)] {
        let file = bench.path(&format!("app {page_size}.db"));
        fill(&file, page_size, 3000);
        if wal {
            plain(&file).pragma_update(None, "journal_mode", "wal").unwrap();
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let before = dump(&plain(&file));
        let original = fs::read(&file).unwrap();

        let kept = bench.path(&format!("kept {page_size}"));
        let done = bench.sqlite("encrypt", &file, &["--keep", kept.to_str().unwrap()]);
        assert_eq!(done.code, 0, "{}", done.err);
        assert!(!contains(&file, SECRET) && !contains(&file, b"SQLite format 3"));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read(&kept).unwrap(), original);
        let again = bench.sqlite("encrypt", &file, &[]);
        assert!(again.code == 2 && again.err.contains("encrypted already"), "{}", again.err);

        let info = bench.sqlite("info", &file, &["--json"]).json();
        assert_eq!(
            (info["encrypted"].as_bool(), info["page_size"].as_u64()),
            (Some(true), Some(page_size.into()))
        );
        assert_eq!(info["journal_mode"], if wal { "wal" } else { "rollback journal" });
        assert_eq!(info["keys"]["active"], 1);
        let verified = bench.sqlite("verify", &file, &[]);
        assert_eq!(verified.code, 0, "{}", verified.out);

        let rotated = bench.sqlite("rotate", &file, &["--json"]);
        assert_eq!(rotated.code, 0, "{}", rotated.err);
        let rotated = rotated.json();
        assert_eq!((rotated["key_version"].as_u64(), rotated["resumed"].as_bool()), (Some(2), Some(false)));
        let pages = bench.sqlite("info", &file, &["--json"]).json()["pages_by_key_version"].clone();
        assert_eq!(pages.as_object().unwrap().keys().collect::<Vec<_>>(), ["2"]);
        assert_eq!(bench.sqlite("verify", &file, &[]).code, 0);

        let done = bench.sqlite("decrypt", &file, &[]);
        assert_eq!(done.code, 0, "{}", done.err);
        let db = plain(&file);
        assert_eq!(dump(&db), before);
        let get =
            |what: &str| db.query_row(&format!("PRAGMA {what}"), [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!((get("user_version"), get("application_id"), get("auto_vacuum")), (42, 7, 2));
        assert_eq!(get("page_size"), i64::from(page_size));
        let mode: String = db.query_row("PRAGMA journal_mode", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, if wal { "wal" } else { "delete" });
        // No bytes are left free at the ends of pages.
        assert_eq!(fs::read(&file).unwrap()[20], 0);
        drop(db);
        let names: Vec<_> = fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!names.iter().any(|name| name.to_string_lossy().contains("tde-new")), "{names:?}");
    }
}

#[test]
fn the_facts_of_a_file_need_no_keys() {
    let bench = Bench::new();
    let file = bench.path("app.db");
    fill(&file, 4096, 100);
    let name = file.to_str().unwrap();
    let info = tde(&["sqlite", "info", name]);
    assert!(info.code == 0 && info.out.contains("encrypted") && info.out.contains(" no"), "{}", info.out);
    assert_eq!(bench.sqlite("encrypt", &file, &[]).code, 0);
    let info = tde(&["sqlite", "info", name, "--json"]).json();
    assert_eq!(info["file_id"].as_str().unwrap().len(), 24);
    assert!(info["keys"].is_null());
    let human = bench.sqlite("info", &file, &[]);
    for part in ["AES-256-GCM-SIV", "file id", "active", "under version 1", "soft:"] {
        assert!(human.out.contains(part), "{part} in {}", human.out);
    }
    for (bytes, hint) in [
        (&b""[..], "is empty"),
        (&[0; 512][..], "restore"),
        (b"x".repeat(600).as_slice(), "no SQLite database"),
    ] {
        let other = bench.path("other");
        fs::write(&other, bytes).unwrap();
        for command in ["info", "verify", "rotate", "encrypt", "decrypt"] {
            let done = bench.sqlite(command, &other, &[]);
            assert!(done.code == 2 && done.err.contains(hint), "{command}: {}", done.err);
        }
    }
    let nowhere = tde(&["sqlite", "info", bench.path("nowhere").to_str().unwrap()]);
    assert!(nowhere.code == 2 && nowhere.err.contains("nowhere"), "{}", nowhere.err);
}

#[test]
fn verify_names_every_kind_of_damage() {
    let bench = Bench::new();
    let file = bench.path("app.db");
    fill(&file, 4096, 1000);
    assert_eq!(bench.sqlite("encrypt", &file, &[]).code, 0);
    let good = fs::read(&file).unwrap();
    let problem = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        edit(&mut bytes);
        fs::write(&file, bytes).unwrap();
        let done = bench.sqlite("verify", &file, &["--json"]);
        assert_eq!(done.code, 1, "{}{}", done.out, done.err);
        let json = done.json();
        (json["problems"][0]["page"].as_u64(), json["problems"][0]["what"].as_str().unwrap().to_owned())
    };
    let (page, what) = problem(&|bytes| bytes[4096 * 4 + 77] ^= 1);
    assert!(page == Some(5) && what.contains("not authentic"), "{what}");
    // A page put in the place of another, the clear header, zeros, an unknown key version, a cut.
    let (page, _) = problem(&|bytes| bytes.copy_within(4096 * 2..4096 * 3, 4096 * 3));
    assert_eq!(page, Some(4));
    let (page, _) = problem(&|bytes| bytes[27] ^= 1);
    assert_eq!(page, Some(1));
    let (page, what) = problem(&|bytes| bytes[4096..8192].fill(0));
    assert!(page == Some(2) && what.contains("never written"), "{what}");
    let (page, what) = problem(&|bytes| bytes[8188..8192].copy_from_slice(&9_u32.to_le_bytes()));
    assert!(page == Some(2) && what.contains("key missing") && what.contains("version 9"), "{what}");
    let (page, what) = problem(&|bytes| bytes.truncate(bytes.len() - 100));
    assert!(page.is_none() && what.contains("no whole page"), "{what}");
    fs::write(&file, &good).unwrap();
    assert_eq!(bench.sqlite("verify", &file, &[]).code, 0);
    // The file of another keyring.
    let other = Bench::new();
    assert_eq!(
        other.tde_with_pin(&["keyring", "create", "--keyring", other.path("ring").to_str().unwrap()]).code,
        0
    );
    let foreign = other.sqlite("verify", &file, &[]);
    assert!(foreign.code == 2 && foreign.err.contains("keyring entry missing"), "{}", foreign.err);
    flip_byte(&bench.path("ring/lines/01/0000000000000001.tde"), 60);
    let damaged = bench.sqlite("verify", &file, &[]);
    assert!(damaged.code == 1 && damaged.err.contains("0000000000000001.tde"), "{}", damaged.err);
}

#[test]
fn a_database_in_use_or_unfinished_is_not_converted() {
    let bench = Bench::new();
    let file = bench.path("app.db");
    fill(&file, 4096, 100);
    let original = fs::read(&file).unwrap();
    let refused = |hint: &str| {
        let done = bench.sqlite("encrypt", &file, &[]);
        assert!(done.code == 2 && done.err.contains(hint), "{hint}: {}", done.err);
        assert_eq!(fs::read(&file).unwrap(), original);
    };
    // A program that only has it open, and one in a transaction: this test itself.
    let db = plain(&file);
    db.execute_batch("BEGIN; SELECT * FROM notes").unwrap();
    db.query_row("SELECT count(*) FROM notes", [], |_| Ok(())).unwrap();
    refused("locked by another program");
    db.execute_batch("COMMIT").unwrap();
    refused("is open in process");
    drop(db);
    // Another name would stay plaintext; a name that is taken is not overwritten.
    fs::hard_link(&file, bench.path("other name")).unwrap();
    refused("has 2 names");
    fs::remove_file(bench.path("other name")).unwrap();
    let taken = bench.path("pin");
    let kept = bench.sqlite("encrypt", &file, &["--keep", taken.to_str().unwrap()]);
    assert!(kept.code == 2 && kept.err.contains("exists already"), "{}", kept.err);
    // A hot journal, and a WAL with changes, as a killed program leaves them.
    let hot = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7 and more";
    fs::write(bench.path("app.db-journal"), hot).unwrap();
    refused("transaction that is under way or was cut short");
    fs::remove_file(bench.path("app.db-journal")).unwrap();
    fs::write(bench.path("app.db-wal"), [1; 100]).unwrap();
    refused("wal_checkpoint(TRUNCATE)");
    fs::remove_file(bench.path("app.db-wal")).unwrap();
    // A journal that is finished holds old plaintext, and goes with it.
    fs::write(bench.path("app.db-journal"), [[0; 512], [7; 512]].concat()).unwrap();
    assert_eq!(bench.sqlite("encrypt", &file, &[]).code, 0);
    assert!(!bench.path("app.db-journal").exists());
}

#[test]
fn a_conversion_that_is_killed_leaves_the_original_or_the_copy() {
    let bench = Bench::new();
    let file = bench.path("app.db");
    fill(&file, 1024, 30_000);
    let original = fs::read(&file).unwrap();
    let rows = dump(&plain(&file));
    let took = std::time::Instant::now();
    let whole = bench.path("whole.db");
    fs::copy(&file, &whole).unwrap();
    assert_eq!(bench.sqlite("encrypt", &whole, &[]).code, 0);
    let took = took.elapsed();
    let (mut killed, mut done) = (0, 0);
    for step in 0..24 {
        let mut process = bench.sqlite_command("encrypt", &file).spawn().unwrap();
        std::thread::sleep(took * step / 20);
        process.kill().unwrap();
        process.wait().unwrap();
        let now = fs::read(&file).unwrap();
        if now == original {
            killed += 1;
            continue;
        }
        // All of it, and nothing of the original beside it.
        done += 1;
        assert_eq!(bench.sqlite("verify", &file, &[]).code, 0, "step {step}");
        let decrypted = bench.sqlite("decrypt", &file, &[]);
        assert_eq!(decrypted.code, 0, "{}", decrypted.err);
        assert_eq!(dump(&plain(&file)), rows, "step {step}");
        fs::write(&file, &original).unwrap();
    }
    assert!(killed > 5, "{killed} killed, {done} done");
    assert_eq!(dump(&plain(&file)), rows);
    // What was left is removed by the next one.
    assert_eq!(bench.sqlite("encrypt", &file, &[]).code, 0);
    assert!(!bench.path("app.db.tde-new").exists());
    assert_eq!(
        bench.tde_with_pin(&["keyring", "verify", "--keyring", bench.path("ring").to_str().unwrap()]).code,
        0
    );
}

/// A program that opens the file in the last moments of the conversion waits for its lock. What it commits then must be in the
/// database that people go on with, not in a file without a name.
#[test]
fn what_is_committed_around_a_conversion_is_not_lost() {
    let bench = Bench::new();
    let whole = bench.path("whole.db");
    fill(&whole, 4096, 3000);
    let timed = std::time::Instant::now();
    let file = bench.path("timed.db");
    fs::copy(&whole, &file).unwrap();
    assert_eq!(bench.sqlite("encrypt", &file, &[]).code, 0);
    let took = timed.elapsed();
    let rounds = 24;
    for round in 0..rounds {
        let file = bench.path(&format!("round{round}.db"));
        fs::copy(&whole, &file).unwrap();
        plain(&file).execute_batch("PRAGMA journal_mode = WAL").unwrap();
        let conversion = bench.sqlite_command("encrypt", &file).spawn().unwrap();
        std::thread::sleep(took * round / rounds);
        let db = plain(&file);
        db.busy_timeout(Duration::from_secs(60)).unwrap();
        let committed = db.execute("INSERT INTO keyed VALUES('COMMITTED AROUND IT', 1)", []).is_ok();
        drop(db);
        let converted = conversion.wait_with_output().unwrap().status.success();
        let now = if converted { secret(&bench, &file) } else { plain(&file) };
        let found: i64 = now
            .query_row("SELECT count(*) FROM keyed WHERE k = 'COMMITTED AROUND IT'", [], |row| row.get(0))
            .unwrap();
        assert_eq!(found, i64::from(committed), "round {round}, converted: {converted}");
        drop(now);
        let wal = bench.path(&format!("round{round}.db-wal"));
        assert!(!converted || !wal.exists() || !contains(&wal, b"COMMITTED AROUND IT"), "round {round}");
        assert!(!bench.path(&format!("round{round}.db.tde-new")).exists(), "round {round}");
    }
}

#[test]
fn a_rotation_goes_on_beside_programs_and_after_being_killed() {
    for mode in ["wal", "delete", "persist"] {
        let bench = Bench::new();
        let file = bench.path("app.db");
        fill(&file, 1024, 20_000);
        assert_eq!(bench.sqlite("encrypt", &file, &[]).code, 0);
        let writer = secret(&bench, &file);
        writer.pragma_update(None, "journal_mode", mode).unwrap();
        let reader = secret(&bench, &file);
        let count = |db: &Connection| -> i64 {
            db.query_row("SELECT count(*) FROM notes", [], |row| row.get(0)).unwrap()
        };
        let before = count(&reader);

        // Killed at several moments; each time writers and readers go on.
        let mut written = 0;
        for step in 1..=6_u32 {
            let mut process = bench.sqlite_command("rotate", &file).arg("--max-rate=1").spawn().unwrap();
            for _ in 0..step * 4 {
                writer.execute("INSERT INTO notes(text, number) VALUES('written meanwhile', 1)", []).unwrap();
                written += 1;
                assert_eq!(count(&reader), before + written, "{mode}");
                std::thread::sleep(Duration::from_millis(10));
            }
            process.kill().unwrap();
            process.wait().unwrap();
        }
        // To its end, with a writer beside it.
        let mut process = bench.sqlite_command("rotate", &file).spawn().unwrap();
        while process.try_wait().unwrap().is_none() {
            writer.execute("INSERT INTO notes(text, number) VALUES('written meanwhile', 2)", []).unwrap();
            written += 1;
            assert_eq!(count(&reader), before + written, "{mode}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let done = process.wait_with_output().unwrap();
        assert!(done.status.success(), "{mode}: {}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(count(&writer), before + written);
        drop((reader, writer));
        let info = bench.sqlite("info", &file, &["--json"]).json();
        let active = info["keys"]["active"].to_string();
        assert_eq!(active, "2", "{mode}: what was killed went on, with the same key");
        let pages = info["pages_by_key_version"].as_object().unwrap();
        assert_eq!(pages.keys().collect::<Vec<_>>(), [&active], "{mode}");
        assert_eq!(bench.sqlite("verify", &file, &[]).code, 0);
        let db = secret(&bench, &file);
        let said: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!((said.as_str(), count(&db)), ("ok", before + written), "{mode}");
    }
}

#[test]
fn a_rotation_can_be_stopped_and_says_how_to_go_on() {
    let bench = Bench::new();
    let file = bench.path("app.db");
    fill(&file, 4096, 20_000);
    assert_eq!(bench.sqlite("encrypt", &file, &[]).code, 0);
    let process = bench.sqlite_command("rotate", &file).arg("--max-rate=0.5").spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let pid = process.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let done = process.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.code() == Some(2) && said.contains("again to go on"), "{said}");
    let info = bench.sqlite("info", &file, &["--json"]).json();
    let pages = info["pages_by_key_version"].as_object().unwrap().clone();
    assert_eq!(pages.keys().collect::<Vec<_>>(), ["1", "2"], "some are rewritten, some not");
    // With the PIN from standard input, which can be read but once.
    let mut process = Command::new(env!("CARGO_BIN_EXE_tde"));
    process.args(["sqlite", "rotate", "--json"]).arg(&file).arg("--keyring").arg(bench.path("ring"));
    process.args(["--hsm", &bench.uri.to_string(), "--pin-file", "-"]);
    let done = process.stdin(fs::File::open(bench.path("pin")).unwrap()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let done: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((done["resumed"].as_bool(), done["key_version"].as_u64()), (Some(true), Some(2)));
    assert!(done["rewritten_pages"].as_u64() < info["pages"].as_u64(), "only what was left");
    let done = bench.sqlite("rotate", &file, &["--json"]).json();
    assert_eq!((done["resumed"].as_bool(), done["key_version"].as_u64()), (Some(false), Some(3)));
    // A new master-key version touches no database.
    let (before, ring) = (fs::read(&file).unwrap(), bench.path("ring"));
    let rewrap = ["keyring", "rewrap", "--new-version", "--keyring", ring.to_str().unwrap()];
    assert_eq!(bench.tde_with_pin(&rewrap).code, 0);
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(bench.sqlite("verify", &file, &[]).code, 0);
}

#[test]
fn a_file_moves_to_another_keyring() {
    let (here, there) = (Bench::new(), Bench::new());
    let file = here.path("app.db");
    fill(&file, 4096, 100);
    assert_eq!(here.sqlite("encrypt", &file, &[]).code, 0);
    let export = here.path("export").display().to_string();
    let (from, to) = (here.path("ring"), there.path("ring"));
    let (name, from, to) = (file.to_str().unwrap(), from.to_str().unwrap(), to.to_str().unwrap());
    let exported = here.tde_with_pin(&["keyring", "export", name, "--output", &export, "--keyring", from]);
    assert_eq!(exported.code, 0, "{}", exported.err);
    assert_eq!(there.tde_with_pin(&["keyring", "create", "--keyring", to]).code, 0);
    let (uri, pin) = (here.uri.to_string(), here.path("pin").display().to_string());
    let import = ["keyring", "import", &export, "--from-hsm", &uri, "--from-pin-file", &pin, "--keyring", to];
    assert_eq!(there.tde_with_pin(&import).code, 0);
    let moved = there.path("app.db");
    fs::rename(&file, &moved).unwrap();
    drop(here);
    assert_eq!(there.sqlite("verify", &moved, &[]).code, 0);
    assert_eq!(there.sqlite("decrypt", &moved, &[]).code, 0);
    assert!(contains(&moved, SECRET));
}
