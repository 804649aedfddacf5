//! Encrypted WAL on more than one node: standbys, cascades, archives, timelines, points in time.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, files};

use crate::wal::{archive, archived, encrypted, settled};

const CANARY: &[u8] = b"canary-of-the-nodes";

fn fill(cluster: &Cluster, table: &str) {
    cluster.run(&format!(
        "CREATE TABLE {table} AS SELECT i, 'canary-of-the-nodes-' || md5(i::text) AS secret FROM generate_series(1, 20000) i"
    ));
}

fn rows(cluster: &Cluster, table: &str) -> i64 {
    cluster.int(&format!("SELECT count(*) FROM {table} WHERE secret LIKE 'canary-of-the-nodes-%'"))
}

/// A standby from a base backup that brings its WAL as it is stored.
fn standby_of(primary: &Cluster) -> Cluster {
    let mut standby = Cluster::backup_of(
        primary,
        &["--checkpoint=fast", "--wal-method=fetch", "--write-recovery-conf"],
        || (),
    );
    standby.start();
    standby
}

fn wait_for_replay(primary: &Cluster, standby: &Cluster) {
    primary.run("SELECT pg_logical_emit_message(true, 'flush', '')");
    let target = primary.text("SELECT pg_current_wal_flush_lsn()");
    let begin = Instant::now();
    while standby.text(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) != "t" {
        assert!(begin.elapsed() < Duration::from_secs(60), "replay stuck:\n{}", standby.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
}

fn no_canary(dir: &Path) {
    assert_eq!(files::files_with(dir, CANARY), Vec::<std::path::PathBuf>::new());
}

#[test]
fn standbys_stream_are_killed_are_promoted_and_leave_nothing_readable() {
    let mut primary = encrypted().conf("wal_keep_size", "256MB").start();
    settled(&primary);
    fill(&primary, "before");
    let mut standby = standby_of(&primary);
    let cascade = standby_of(&standby);
    fill(&primary, "streamed");
    assert_eq!(primary.int("SELECT tde.rotate_wal_key()"), 2);
    fill(&primary, "rotated");
    wait_for_replay(&primary, &standby);
    let target = primary.text("SELECT pg_current_wal_flush_lsn()");
    let begin = Instant::now();
    while cascade.text(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) != "t" {
        assert!(begin.elapsed() < Duration::from_secs(60), "cascade stuck:\n{}", cascade.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
    for table in ["before", "streamed", "rotated"] {
        assert_eq!((rows(&standby, table), rows(&cascade, table)), (20_000, 20_000), "{table}");
    }
    standby.crash_and_recover();
    fill(&primary, "later");
    wait_for_replay(&primary, &standby);
    primary.crash();
    standby.promote();
    assert_eq!(rows(&standby, "later"), 20_000);
    fill(&standby, "promoted");
    // The copy that promotion makes of the last segment, and everything after it.
    no_canary(&standby.data().join("pg_wal"));
    no_canary(&cascade.data().join("pg_wal"));
    let begin = Instant::now();
    while cascade.text("SELECT to_regclass('promoted') IS NOT NULL") != "t" {
        assert!(begin.elapsed() < Duration::from_secs(60), "cascade stuck:\n{}", cascade.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
    let history = fs::read_to_string(standby.data().join("pg_wal/00000002.history")).unwrap();
    assert!(history.contains("no recovery target specified"), "a history file is readable: {history}");
    standby.crash_and_recover();
    for table in ["before", "streamed", "rotated", "later", "promoted"] {
        assert_eq!(rows(&standby, table), 20_000, "{table}");
    }
}

/// A base backup, an archive, three recoveries: to the end, to a point in time, and along the timeline that made.
#[test]
fn an_archive_alone_recovers_to_its_end_and_to_a_point_in_time() {
    let mut primary = encrypted().create();
    let archive = archive(&primary);
    primary.start();
    primary.run("CREATE EXTENSION pg_tde");
    settled(&primary);
    fill(&primary, "before");
    let restored = |target: &[(&str, &str)]| {
        let backup = Cluster::backup_of(&primary, &["--checkpoint=fast", "--wal-method=none"], || ());
        (backup, target.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect::<Vec<_>>())
    };
    let (mut at_end, _) = restored(&[]);
    let (mut in_time, _) = restored(&[]);
    fill(&primary, "archived");
    primary.run("SELECT tde.rotate_wal_key()");
    thread::sleep(Duration::from_millis(20));
    let here = primary.text("SELECT clock_timestamp()");
    thread::sleep(Duration::from_millis(20));
    fill(&primary, "after");
    archived(&primary);
    no_canary(&archive);
    primary.stop();
    for (cluster, point) in [(&mut at_end, None), (&mut in_time, Some(&here))] {
        cluster.configure("restore_command", &format!("cp {}/%f %p", archive.display()));
        cluster.configure("archive_command", &format!("test ! -f {0}/%f && cp %p {0}/%f", archive.display()));
        cluster.configure("recovery_target_action", "promote");
        if let Some(point) = point {
            cluster.configure("recovery_target_time", point);
        }
        fs::write(cluster.data().join("recovery.signal"), "").unwrap();
        cluster.root().own(&cluster.data().join("recovery.signal"));
        cluster.start();
        let begin = Instant::now();
        while cluster.text("SELECT pg_is_in_recovery()") == "t" {
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(rows(cluster, "archived"), 20_000);
        let after = cluster.text("SELECT to_regclass('after') IS NOT NULL");
        assert_eq!(after == "t", point.is_none());
        fill(cluster, "new_timeline");
        cluster.crash_and_recover();
        assert_eq!(rows(cluster, "new_timeline"), 20_000);
        no_canary(&cluster.data().join("pg_wal"));
        cluster.stop();
    }
}

/// Recovers to the end of the archive, and of its newest timeline.
fn recover_from(restored: &mut Cluster, archive: &Path) {
    restored.configure("restore_command", &format!("cp {}/%f %p", archive.display()));
    restored.configure("archive_mode", "off");
    restored.configure("recovery_target_action", "promote");
    fs::write(restored.data().join("recovery.signal"), "").unwrap();
    restored.root().own(&restored.data().join("recovery.signal"));
    restored.start();
    let begin = Instant::now();
    while restored.text("SELECT pg_is_in_recovery()") == "t" {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", restored.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
}

/// A key that is made right before a segment ends is needed for the next one as soon as redo comes there, and not before.
#[test]
fn a_key_is_rotated_at_the_very_end_of_a_segment() {
    let mut primary = encrypted().create();
    let archive = archive(&primary);
    primary.start();
    primary.run("CREATE EXTENSION pg_tde");
    settled(&primary);
    let mut restored = Cluster::backup_of(&primary, &["--checkpoint=fast", "--wal-method=none"], || ());
    fill(&primary, "t");
    assert_eq!(primary.int("SELECT tde.rotate_wal_key()"), 2);
    primary.run("SELECT pg_switch_wal()");
    primary.run("INSERT INTO t SELECT i, 'canary-of-the-nodes-' FROM generate_series(1, 1000) i");
    archived(&primary);
    primary.stop();
    recover_from(&mut restored, &archive);
    assert_eq!(rows(&restored, "t"), 21_000);
}

/// The record that brings a key stands in the segment that promotion copies: the copy must not need that key.
#[test]
fn a_key_is_rotated_in_the_segment_that_promotion_copies() {
    let mut primary = encrypted().conf("wal_keep_size", "64MB").create();
    let archive = archive(&primary);
    primary.start();
    primary.run("CREATE EXTENSION pg_tde");
    settled(&primary);
    let mut restored = Cluster::backup_of(&primary, &["--checkpoint=fast", "--wal-method=none"], || ());
    let mut standby = standby_of(&primary);
    archived(&primary);
    primary.run("CREATE TABLE t (i int, secret text)");
    assert_eq!(primary.int("SELECT tde.rotate_wal_key()"), 2);
    primary.run("INSERT INTO t SELECT i, 'canary-of-the-nodes-' FROM generate_series(1, 1000) i");
    wait_for_replay(&primary, &standby);
    primary.crash();
    standby.promote();
    standby.run("INSERT INTO t SELECT i, 'canary-of-the-nodes-' FROM generate_series(1, 1000) i");
    archived(&standby);
    standby.stop();
    no_canary(&archive);
    recover_from(&mut restored, &archive);
    assert_eq!(rows(&restored, "t"), 2000);
    no_canary(&restored.data().join("pg_wal"));
}

/// Segments that arrive under a key that the keyring does not have end recovery: they are not its end.
#[test]
fn an_archived_segment_that_does_not_open_is_refused() {
    let mut primary = encrypted().create();
    let archive = archive(&primary);
    primary.start();
    primary.run("CREATE EXTENSION pg_tde");
    settled(&primary);
    let mut restored = Cluster::backup_of(&primary, &["--checkpoint=fast", "--wal-method=none"], || ());
    fill(&primary, "archived");
    archived(&primary);
    primary.stop();
    let mut segments = files::files_below(&archive);
    segments.retain(|path| path.file_name().is_some_and(|name| name.len() == 24));
    segments.sort();
    let victim = &segments[segments.len() - 2];
    files::flip(victim, 9);
    restored.configure("restore_command", &format!("cp {}/%f %p", archive.display()));
    restored.configure("archive_mode", "off");
    fs::write(restored.data().join("recovery.signal"), "").unwrap();
    restored.root().own(&restored.data().join("recovery.signal"));
    let begun = restored.try_start();
    let begin = Instant::now();
    while !restored.log_since_start().contains("opens under no key") {
        assert!(begin.elapsed() < Duration::from_secs(30), "{begun:?} {}", restored.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs inside the server.
#[test]
fn basic_archive_stores_ciphertext() {
    let mut cluster = encrypted().create();
    let archive = cluster.dir().join("archive");
    fs::create_dir(&archive).unwrap();
    cluster.root().own(&archive);
    cluster.configure("archive_mode", "on");
    cluster.configure("archive_library", "basic_archive");
    cluster.configure("basic_archive.archive_directory", archive.to_str().unwrap());
    cluster.start();
    cluster.run("CREATE EXTENSION pg_tde");
    settled(&cluster);
    fill(&cluster, "t");
    archived(&cluster);
    let segments = files::files_below(&archive);
    assert!(segments.len() > 2, "{segments:?}");
    no_canary(&archive);
    for segment in segments {
        let stored = cluster.data().join("pg_wal").join(segment.file_name().unwrap());
        if let Ok(bytes) = fs::read(stored) {
            assert_eq!(fs::read(&segment).unwrap(), bytes, "{}", segment.display());
        }
    }
}

/// `pg_basebackup` with its defaults streams WAL in clear into the copy, which then does not start.
#[test]
fn a_backup_with_streamed_wal_is_refused_and_says_what_to_do() {
    let primary = encrypted().start();
    settled(&primary);
    fill(&primary, "t");
    let mut copy = Cluster::backup_of(&primary, &["--checkpoint=fast", "--wal-method=stream"], || ());
    let failure = copy.try_start().expect_err("WAL in clear");
    assert!(failure.log.contains("pg_tde refuses WAL segment"), "{}", failure.log);
    assert!(failure.log.contains("--wal-method=fetch"), "{}", failure.log);
}
