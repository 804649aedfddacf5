//! Recovery to a point in time before, within and after each job, and backups from before a rotation with old and new keyrings.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, SoftHsm, command_output, files, soak};

use crate::filled::{assert_encrypted, assert_plain, fill, state, sums, wait_until};

/// What `cp -a` makes of `from` at `to`, which is replaced.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    command_output(std::process::Command::new("cp").arg("-a").arg(from).arg(to));
}

fn accept_restore(cluster: &Cluster, hsm: &SoftHsm, keyring: &Path) {
    let mut command = cluster.root().command(cluster.root().tde());
    command.args(["keyring", "accept-restore", "--keyring"]).arg(keyring);
    command.arg("--hsm").arg(format!("soft:{}", hsm.store.display())).arg("--pin-file").arg(&hsm.pin_file);
    command_output(&mut command);
}

/// Recovery of a base backup with the WAL of `primary`, up to `target` (a setting and its value), and promotion.
fn recover_to(restored: &Cluster, primary: &Cluster, target: Option<(&str, &str)>) {
    fs::write(restored.data().join("recovery.signal"), "").unwrap();
    restored.root().own(&restored.data().join("recovery.signal"));
    restored.configure("restore_command", &format!("cp {}/%f %p", primary.data().join("pg_wal").display()));
    if let Some((name, value)) = target {
        restored.configure(name, value);
    }
    restored.configure("recovery_target_action", "promote");
}

fn wait_for_promotion(cluster: &Cluster) {
    let begin = Instant::now();
    while cluster.text("SELECT pg_is_in_recovery()") == "t" {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(50));
    }
}

/// A restore point, the tablespace's state there, and the rows that have been changed by then.
struct Point {
    name: String,
    state: &'static str,
    marks: i64,
}

/// One base backup from before everything; from there to each point.
#[test]
fn recovery_to_before_within_and_after_each_job() {
    let primary = Cluster::builder()
        .conf("wal_keep_size", "4GB")
        .conf("pg_tde.job_cost_limit", "8")
        .conf("pg_tde.job_cost_delay", "30ms")
        .start();
    primary.plain_tablespace("ts");
    fill(&mut primary.connect("postgres"), 4000);
    primary.run("CREATE TABLE marks (id int) TABLESPACE ts");
    let before = sums(&mut primary.connect("postgres"));
    let options = ["--checkpoint=fast", "--wal-method=none"];
    let backup = Cluster::backup_of(&primary, &options, || ());
    let mut points = Vec::new();
    let mut mark = |name: &str, state: &'static str| {
        primary.run("INSERT INTO marks VALUES (1); UPDATE heap SET id = -id WHERE id < 50");
        let marks = primary.int("SELECT count(*) FROM marks");
        primary.run(&format!("SELECT pg_create_restore_point('{name}')"));
        points.push(Point { name: name.to_owned(), state, marks });
    };
    mark("before", "plain");
    for (function, busy, end) in [
        ("encrypt_tablespace", "encrypting", "encrypted"),
        ("rotate_data_key", "rotating", "encrypted"),
        ("decrypt_tablespace", "decrypting", "plain"),
    ] {
        primary.run(&format!("SELECT tde.{function}('ts')"));
        let under_way =
            "SELECT count(*) FROM tde.job_progress WHERE blocks_done BETWEEN 100 AND blocks_total * 0.8";
        let begin = Instant::now();
        while primary.int(under_way) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", primary.log_since_start());
            thread::sleep(Duration::from_millis(10));
        }
        // It stands still meanwhile; the WAL does not tell.
        let job = primary.text("SELECT job FROM tde.job_progress");
        primary.run(&format!("SELECT tde.pause_job({job})"));
        mark(busy, busy);
        assert_eq!(state(&primary), busy, "the job was over too soon");
        primary.run(&format!("SELECT tde.resume_job({job})"));
        wait_until(&primary, end);
        mark(&format!("after_{function}"), end);
    }
    primary.run("DROP TABLE marks");
    primary.run("SELECT pg_switch_wal()");
    for point in &points {
        // Those in the middle of a job are the hardest; the others are left to the long run.
        if !soak() && !["before", "encrypting", "rotating", "decrypting"].contains(&point.name.as_str()) {
            continue;
        }
        let mut restored = Cluster::copy_of(&backup);
        recover_to(&restored, &primary, Some(("recovery_target_name", &point.name)));
        restored.start();
        wait_for_promotion(&restored);
        assert!(
            restored
                .log_since_start()
                .contains(&format!("recovery stopping at restore point \"{}\"", point.name))
        );
        assert_eq!(restored.int("SELECT count(*) FROM marks"), point.marks, "{}", point.name);
        let end = match point.state {
            "encrypting" | "rotating" => "encrypted",
            "decrypting" => "plain",
            state => state,
        };
        wait_until(&restored, end);
        let odd = point.marks % 2 == 1;
        restored.run(if odd { "UPDATE heap SET id = -id WHERE id > -50 AND id < 0" } else { "SELECT 1" });
        for pass in ["at once", "crash"] {
            if pass == "crash" {
                restored.crash_and_recover();
            }
            assert_eq!(sums(&mut restored.connect("postgres")), before, "{} {pass}", point.name);
            if end == "plain" { assert_plain(&restored) } else { assert_encrypted(&restored) }
        }
        // Keys of its own.
        let own = if end == "plain" { "encrypt_tablespace" } else { "rotate_data_key" };
        restored.configure("pg_tde.job_cost_delay", "0");
        restored.run("SELECT pg_reload_conf()");
        restored.run(&format!("SELECT tde.{own}('ts', wait => true)"));
        assert_eq!(sums(&mut restored.connect("postgres")), before, "{}", point.name);
        assert_encrypted(&restored);
    }
}

/// The keyring has a place of its own and is backed up by itself.
#[test]
fn a_backup_from_before_a_rotation_restores_with_the_keyring_of_then_and_of_now() {
    let primary = {
        let mut primary = Cluster::builder().conf("wal_keep_size", "4GB").create();
        primary.configure("pg_tde.keyring", primary.dir().join("keyring").to_str().unwrap());
        primary.start();
        primary.run("CREATE EXTENSION pg_tde");
        primary
    };
    let (keyring, then) = (primary.dir().join("keyring"), primary.dir().join("keyring-then"));
    primary.encrypted_tablespace("ts");
    fill(&mut primary.connect("postgres"), 2000);
    let before = sums(&mut primary.connect("postgres"));
    let options = ["--checkpoint=fast", "--wal-method=none"];
    let backup = Cluster::backup_of(&primary, &options, || ());
    copy(&keyring, &then);
    primary.run("CREATE TABLE later TABLESPACE ts AS SELECT 'canary-later' AS secret");
    for _ in 0..2 {
        primary.run("SELECT tde.rotate_data_key('ts', wait => true)");
    }
    primary.run("SELECT pg_switch_wal()");
    // (the keyring of then, all WAL or only as much as makes the backup consistent)
    for (of_then, all) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut restored = Cluster::copy_of(&backup);
        let own = restored.dir().join("keyring");
        copy(if of_then { &then } else { &keyring }, &own);
        restored.configure("pg_tde.keyring", own.to_str().unwrap());
        recover_to(&restored, &primary, (!all).then_some(("recovery_target", "immediate")));
        if of_then {
            // The HSM remembers a newer one.
            accept_restore(&restored, primary.hsm(), &own);
        }
        if let Err(failure) = restored.try_start() {
            assert!(!of_then && !all, "{}", failure.log);
            assert!(failure.log.contains("restore the keyring"), "{}", failure.log);
            continue;
        }
        if !of_then && !all {
            // It took readers, but a keyring that knows of what never happened here is not taken any further.
            restored.wait_for_end();
            assert!(
                restored.log_since_start().contains("restore the keyring"),
                "{}",
                restored.log_since_start()
            );
            continue;
        }
        wait_for_promotion(&restored);
        for pass in ["at once", "restart", "crash"] {
            match pass {
                "restart" => restored.restart(),
                "crash" => restored.crash_and_recover(),
                _ => (),
            }
            assert_eq!(sums(&mut restored.connect("postgres")), before, "{of_then} {all} {pass}");
            let later = restored.text("SELECT to_regclass('later') IS NOT NULL");
            assert_eq!(later == "t", all, "{of_then} {all} {pass}");
            let version = restored.text("SELECT key_version FROM tde.tablespaces WHERE name = 'ts'");
            assert_eq!(version, if all { "3" } else { "1" }, "{of_then} {all} {pass}");
            assert_encrypted(&restored);
        }
        assert!(files::files_with(&restored.ts_dir(), b"canary").is_empty());
    }
}
