//! Encrypted WAL and temporary files: nothing readable, nothing forged, nothing lost by switching or rotating.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Builder, Cluster, Sql, files, soak};

/// What every canary row begins with.
const CANARY: &[u8] = b"canary-of-the-wal";

/// A cluster with small segments whose WAL and temporary files are encrypted.
pub(crate) fn encrypted() -> Builder {
    Cluster::builder()
        .fsync()
        .segments(1)
        .conf("max_wal_size", "32MB")
        .conf("min_wal_size", "4MB")
        .conf("pg_tde.encrypt_wal", "on")
        .conf("pg_tde.encrypt_temp_files", "on")
}

/// Waits until the switch to encrypted WAL is complete, and begins a segment that is encrypted.
pub(crate) fn settled(cluster: &Cluster) {
    let begin = Instant::now();
    while cluster.text("SELECT key_version IS NULL OR accepts_plain FROM tde.wal_status()") == "t" {
        assert!(begin.elapsed() < Duration::from_secs(60), "not settled:\n{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(20));
    }
    cluster.run("SELECT pg_logical_emit_message(true, 'x', 'y'), pg_switch_wal()");
}

/// Archives into a folder of the cluster.
pub(crate) fn archive(cluster: &Cluster) -> PathBuf {
    let archive = cluster.dir().join("archive");
    fs::create_dir(&archive).unwrap();
    cluster.root().own(&archive);
    cluster.configure("archive_mode", "on");
    cluster.configure("archive_command", &format!("test ! -f {0}/%f && cp %p {0}/%f", archive.display()));
    archive
}

/// Waits until everything so far is in the archive.
pub(crate) fn archived(cluster: &Cluster) {
    cluster.run("SELECT pg_logical_emit_message(true, 'x', 'y')");
    let last = cluster.text("SELECT pg_walfile_name(pg_switch_wal())");
    let begin = Instant::now();
    while cluster.text("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") < last {
        assert!(begin.elapsed() < Duration::from_secs(60), "not archived:\n{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Ends with its test, also with one that fails.
struct Receiver(Child);

impl Receiver {
    fn stop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop();
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "not so after 30 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn segments(cluster: &Cluster) -> Vec<PathBuf> {
    let mut segments: Vec<_> = files::files_below(&cluster.data().join("pg_wal"))
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.len() == 24))
        .collect();
    segments.sort();
    segments
}

/// Every way of rows into the WAL.
fn write_rows(cluster: &Cluster) {
    cluster.run(
        "CREATE TABLE rows (id int, secret text);
         INSERT INTO rows SELECT i, 'canary-of-the-wal-' || md5(i::text) FROM generate_series(1, 20000) i;
         UPDATE rows SET secret = secret || '+' WHERE id % 5 = 0;
         COPY (SELECT * FROM rows) TO '/dev/null';
         CREATE INDEX ON rows (secret);
         CREATE TABLE again AS SELECT * FROM rows;
         CREATE UNLOGGED TABLE loose AS SELECT * FROM rows LIMIT 500;
         ANALYZE;",
    );
    cluster.run("BEGIN; INSERT INTO rows SELECT i, 'canary-of-the-wal-prepared' FROM generate_series(1, 100) i; PREPARE TRANSACTION 'p'");
    cluster.run("COMMIT PREPARED 'p'");
    cluster.run("CHECKPOINT");
}

/// Sessions that keep temporary files, and how many files there are.
fn spill(cluster: &Cluster) -> (Vec<Sql>, usize) {
    let mut sessions = Vec::new();
    let sort = "DECLARE c CURSOR WITH HOLD FOR SELECT a.secret, b.secret AS other FROM rows a JOIN again b USING (id) ORDER BY b.secret";
    for parallel in ["off", "on"] {
        let mut session = cluster.connect("postgres");
        session.run(&format!(
            "SET work_mem = '64kB'; SET enable_mergejoin = off; SET enable_nestloop = off; SET force_parallel_mode = {parallel};
             SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0"
        ));
        session.run(&format!("BEGIN; {sort}; COMMIT"));
        sessions.push(session);
    }
    (sessions, files::files_below(&cluster.data().join("base/pgsql_tmp")).len())
}

/// What `tde scan` finds of a text, in files of which kinds.
fn scan(cluster: &Cluster, dir: &Path, text: &[u8]) -> BTreeMap<String, u64> {
    let list = cluster.dir().join("texts");
    fs::write(&list, text).unwrap();
    let mut command = cluster.root().command(cluster.root().tde());
    let output = command.arg("--json").arg("scan").arg(dir).arg("--canary").arg(&list).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let kinds = report["kinds"].as_object().unwrap().iter();
    let found: BTreeMap<_, _> = kinds
        .map(|(kind, counts)| (kind.clone(), counts["canary_files"].as_u64().unwrap()))
        .filter(|(_, files)| *files > 0)
        .collect();
    assert_eq!(output.status.code(), Some(i32::from(!found.is_empty())), "{report}");
    found
}

fn everything(builder: Builder, encrypted: bool) {
    let libraries = if encrypted { "pg_tde, pg_stat_statements" } else { "pg_stat_statements" };
    let mut cluster = builder
        .conf("shared_preload_libraries", libraries)
        .conf("max_prepared_transactions", "4")
        .conf("wal_level", "logical")
        .conf("logical_decoding_work_mem", "64kB")
        .conf("autovacuum", "off")
        .create();
    let archive = archive(&cluster);
    cluster.start();
    if encrypted {
        cluster.run("CREATE EXTENSION pg_tde");
        settled(&cluster);
        for tablespace in ["pg_default", "pg_global"] {
            cluster.run(&format!("SELECT tde.encrypt_tablespace('{tablespace}', wait => true)"));
        }
    }
    let nothing = BTreeMap::new();
    let expect = |dir: &Path, kinds: &[&str]| {
        let found = scan(&cluster, dir, CANARY);
        if encrypted {
            assert_eq!(found, nothing, "{}", dir.display());
        } else {
            let missed: Vec<_> = kinds.iter().filter(|kind| !found.contains_key(**kind)).collect();
            assert!(
                missed.is_empty(),
                "the search would not find {missed:?} in {}: {found:?}",
                dir.display()
            );
        }
    };
    cluster.run("SELECT pg_create_logical_replication_slot('s', 'test_decoding')");
    write_rows(&cluster);

    let (mut sessions, count) = spill(&cluster);
    assert!(count > 1, "no temporary files");
    expect(cluster.data(), &["temporary", "wal", "relations"]);
    for session in &mut sessions {
        // What was spilled comes back.
        assert_eq!(session.rows("FETCH ALL FROM c").len(), 20_100);
    }
    drop(sessions);

    let mut decoder = cluster.connect("postgres");
    let decoding = thread::spawn(move || {
        decoder
            .rows("SELECT data FROM pg_logical_slot_peek_changes('s', NULL, NULL) WHERE data LIKE '%canary%'")
            .len()
    });
    let (mut spilled, mut readable) = (0, 0);
    while !decoding.is_finished() {
        for file in files::files_below(&cluster.data().join("pg_replslot")) {
            if file.extension().is_some_and(|kind| kind == "spill")
                && let Ok(bytes) = fs::read(&file)
            {
                spilled += usize::from(bytes.len() > 4096);
                readable += usize::from(files::contains(&bytes, CANARY));
            }
        }
    }
    assert_eq!(decoding.join().unwrap(), 20_000 + 4_000 + 20_000 + 100);
    assert!(spilled > 0, "nothing was spilled");
    assert_eq!(readable == 0, encrypted, "{readable} of {spilled} spill files");

    archived(&cluster);
    expect(&archive, &["wal"]);
    let backup = Cluster::backup_of(&cluster, &["--checkpoint=fast", "--wal-method=fetch"], || ());
    expect(backup.data(), &["relations"]);
    if encrypted {
        for segment in segments(&cluster).iter().rev().skip(1) {
            let name = segment.display();
            assert!(!fs::read(segment).unwrap().starts_with(&[0x10, 0xD1]), "{name} has a plain header");
        }
    }
    // What docs/what-stays-in-clear.md says of query texts is what a scan says: it stays readable.
    let utility = "COMMENT ON TABLE rows IS 'text of a utility statement'";
    cluster.run(&format!("CREATE EXTENSION pg_stat_statements; {utility}"));
    let texts = scan(&cluster, &cluster.data().join("pg_stat_tmp"), b"text of a utility statement");
    assert_eq!(texts.keys().collect::<Vec<_>>(), ["other"]);
    // Unlogged relations reach the disk at the end.
    cluster.stop();
    let found = scan(&cluster, cluster.data(), CANARY);
    assert_eq!(found.is_empty(), encrypted, "{found:?}");
}

#[test]
fn nothing_is_readable_in_wal_archive_and_temporary_files() {
    everything(encrypted(), true);
}

/// The same search finds it all where nothing is encrypted.
#[test]
fn the_control_run_without_encryption_finds_it_all() {
    everything(Cluster::builder().tde(false).segments(1), false);
}

/// Off, on, off, on; each after a clean stop and after a crash. Segments of every kind stay readable.
#[test]
fn switching_on_and_off_needs_no_conversion() {
    let mut cluster = Cluster::builder().fsync().segments(1).conf("max_wal_size", "32MB").start();
    cluster.run("CREATE TABLE t (i int, secret text)");
    let mut rows = 0;
    for round in 0..8 {
        let on = round % 2 == 0;
        if round % 4 < 2 {
            cluster.stop();
        } else {
            cluster.crash();
        }
        cluster.configure("pg_tde.encrypt_wal", if on { "on" } else { "off" });
        cluster.start();
        assert_eq!(cluster.int("SELECT count(*) FROM t"), rows, "round {round}");
        if on && round % 4 == 0 {
            settled(&cluster);
        }
        cluster.run(
            "INSERT INTO t SELECT i, 'canary-of-the-wal' || md5(i::text) FROM generate_series(1, 30000) i",
        );
        rows += 30_000;
        cluster.crash_and_recover();
        assert_eq!(cluster.int("SELECT count(*) FROM t"), rows, "round {round}, after a crash");
        if on {
            settled(&cluster);
            cluster.run("CHECKPOINT");
            cluster.run("INSERT INTO t VALUES (0, 'canary-of-the-wal')");
            rows += 1;
        }
    }
    // Everything that was in clear was wiped when its segment was recycled, or is older than the last switch.
    cluster.stop();
}

#[test]
fn versions_of_the_key_rotate_without_breaking_older_segments() {
    let mut cluster = encrypted().conf("wal_keep_size", "512MB").start();
    settled(&cluster);
    cluster.run("CREATE TABLE t (i int, secret text)");
    for version in 2..6 {
        let change = "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 20000) i";
        cluster.run(change);
        assert_eq!(cluster.int("SELECT tde.rotate_wal_key()"), version);
        cluster.run(change);
        assert_eq!(cluster.int("SELECT key_version FROM tde.wal_status()"), version);
        if version % 2 == 0 {
            cluster.crash_and_recover();
        }
    }
    assert_eq!(cluster.int("SELECT count(*) FROM t"), 8 * 20_000);
    // All versions are read in one go.
    cluster.run("CREATE EXTENSION pg_walinspect");
    let records = cluster.int(
        "SELECT count(*) FROM pg_get_wal_records_info((SELECT pg_current_wal_lsn() - 15000000), pg_current_wal_lsn())",
    );
    assert!(records > 50_000, "{records}");
}

#[test]
fn every_way_of_making_and_syncing_segments() {
    let largest = if soak() { 1024 } else { 64 };
    for (zero, recycle, method, megabytes) in [
        ("off", "off", "fdatasync", 1),
        ("on", "off", "open_datasync", 4),
        ("off", "on", "open_sync", 1),
        ("on", "on", "fsync", largest),
    ] {
        // At least two segments.
        let size = format!("{}MB", 128.max(2 * megabytes));
        let mut cluster = encrypted()
            .segments(megabytes)
            .conf("min_wal_size", &size)
            .conf("max_wal_size", &size)
            .conf("wal_init_zero", zero)
            .conf("wal_recycle", recycle)
            .conf("wal_sync_method", method)
            .start();
        settled(&cluster);
        cluster.run("CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 40000) i");
        cluster.run("CHECKPOINT; INSERT INTO t SELECT i, 'x' FROM generate_series(1, 40000) i");
        cluster.crash_and_recover();
        assert_eq!(cluster.int("SELECT count(*) FROM t"), 80_000, "{method}");
    }
}

/// WAL in clear that fits in every other way, where none may be: recovery must not replay it, and not take it for the end of the log.
#[test]
fn forged_wal_in_clear_is_refused() {
    let mut cluster = encrypted().conf("wal_keep_size", "64MB").start();
    settled(&cluster);
    cluster.run("CREATE TABLE t (i int)");
    let received = cluster.dir().join("received");
    fs::create_dir(&received).unwrap();
    cluster.root().own(&received);
    // What comes over the wire is in clear.
    let mut command = cluster.tool("pg_receivewal");
    let mut receiver = Receiver(command.arg("-D").arg(&received).stderr(Stdio::null()).spawn().unwrap());
    let partial = || files::files_below(&received).into_iter().any(|path| path.extension().is_some());
    wait_until("something was received", partial);
    cluster.run("CHECKPOINT");
    let first = cluster.text("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()");
    cluster.run("INSERT INTO t SELECT generate_series(1, 60000)");
    let last = cluster.text("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let names = segments(&cluster).into_iter().map(|s| s.file_name().unwrap().to_str().unwrap().to_owned());
    let needed: Vec<_> = names.filter(|name| *name > first && *name < last).collect();
    assert!(needed.len() > 1, "{first} to {last}");
    wait_until("all was received", || needed.iter().all(|name| received.join(name).exists()));
    receiver.stop();
    cluster.crash();
    let victim = cluster.data().join("pg_wal").join(&needed[0]);
    let genuine = fs::read(&victim).unwrap();
    fs::write(&victim, fs::read(received.join(&needed[0])).unwrap()).unwrap();
    let failure = cluster.try_start().expect_err("forged WAL");
    assert!(failure.log.contains("pg_tde refuses WAL segment"), "{}", failure.log);
    assert!(failure.log.contains(&needed[0]), "{}", failure.log);
    // Nothing was lost by the refusal.
    fs::write(&victim, genuine).unwrap();
    cluster.start();
    assert_eq!(cluster.int("SELECT count(*) FROM t"), 60_000);
}

/// Encryption of the WAL itself is in the keyring and the manifest: without its line the server must not make another key.
#[test]
fn a_keyring_without_the_line_of_the_wal_is_refused() {
    let mut cluster = Cluster::builder().segments(1).start();
    cluster.stop();
    let old = cluster.dir().join("old-keyring");
    let keyring = cluster.data().join("pg_tde");
    let copy = |from: &Path, to: &Path| {
        let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(status.success());
    };
    copy(&keyring, &old);
    cluster.configure("pg_tde.encrypt_wal", "on");
    cluster.start();
    settled(&cluster);
    cluster.stop();
    fs::rename(&keyring, cluster.dir().join("new-keyring")).unwrap();
    copy(&old, &keyring);
    let failure = cluster.try_start().expect_err("an older keyring");
    assert!(failure.log.contains("FATAL"), "{}", failure.log);
    fs::remove_dir_all(&keyring).unwrap();
    fs::rename(cluster.dir().join("new-keyring"), &keyring).unwrap();
    cluster.start();
    assert_eq!(cluster.int("SELECT 1"), 1);
}
