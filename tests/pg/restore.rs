//! Backups, moved directories and recovery to a point in time: data and keys meet again, or the server says what is missing.

use std::fs;
use std::time::Duration;

use tde_tests::{Cluster, files};

fn fill(cluster: &Cluster, table: &str, tablespace: &str) {
    cluster.run(&format!(
        "CREATE TABLE {table} TABLESPACE {tablespace} AS SELECT i, 'canary-{table}-' || i AS secret FROM generate_series(1, 1000) i"
    ));
}

fn readable(cluster: &Cluster, table: &str) {
    assert_eq!(
        cluster.int(&format!("SELECT count(*) FROM {table} WHERE secret LIKE 'canary-{table}-%'")),
        1000
    );
}

fn refused(cluster: &mut Cluster, word: &str) {
    let failure = cluster.try_start().expect_err("it must not start without its keys");
    assert!(failure.log.contains("FATAL") && failure.log.contains(word), "{}", failure.log);
    assert!(failure.after < Duration::from_secs(20));
}

/// A server that finds no keyring where it is told to look must not make one and go on in clear.
#[test]
fn a_keyring_setting_that_points_elsewhere_is_refused() {
    let mut cluster = Cluster::builder().start();
    cluster.encrypted_tablespace("secure");
    fill(&cluster, "t", "secure");
    cluster.stop();
    let elsewhere = cluster.dir().join("elsewhere");
    cluster.configure("pg_tde.keyring", elsewhere.to_str().unwrap());
    refused(&mut cluster, "keyring");
    cluster.configure("pg_tde.keyring", "pg_tde");
    cluster.start();
    readable(&cluster, "t");
    cluster.crash();
    cluster.configure("pg_tde.keyring", elsewhere.to_str().unwrap());
    refused(&mut cluster, "keyring");
}

/// The HSM has never seen this directory: only the data itself can tell that keys are missing.
#[test]
fn a_backup_without_its_keyring_is_refused_as_server_and_as_standby() {
    let primary = Cluster::builder().start();
    primary.encrypted_tablespace("secure");
    fill(&primary, "t", "secure");
    for standby in [false, true] {
        let mut options = vec!["--checkpoint=fast"];
        if standby {
            options.push("--write-recovery-conf");
        }
        let mut restored = Cluster::backup_of(&primary, &options, || ());
        fs::remove_dir_all(restored.data().join("pg_tde")).unwrap();
        if let Ok(()) = restored.try_start() {
            // Starting would be right only if no page is written or read without its key.
            let table = restored.try_run("SELECT count(*) FROM t");
            panic!("standby {standby}: the server started without a keyring; reading gives {table:?}");
        }
        assert!(restored.log().contains("FATAL") && restored.log().contains("keyring"), "{}", restored.log());
        assert!(files::files_with(&restored.ts_dir(), b"canary-").is_empty());
    }
}

/// A standby with a copy of the keyring that is older than its data.
#[test]
fn a_backup_with_an_older_keyring_is_refused() {
    let primary = Cluster::builder().start();
    primary.encrypted_tablespace("first");
    let old = primary.dir().join("old");
    tde_tests::command_output(
        std::process::Command::new("cp").arg("-a").arg(primary.data().join("pg_tde")).arg(&old),
    );
    primary.encrypted_tablespace("second");
    fill(&primary, "t", "second");
    let mut restored = Cluster::backup_of(&primary, &["--checkpoint=fast"], || ());
    let keyring = restored.data().join("pg_tde");
    fs::remove_dir_all(&keyring).unwrap();
    tde_tests::command_output(std::process::Command::new("cp").arg("-a").arg(&old).arg(&keyring));
    refused(&mut restored, "keyring");
}

#[test]
fn a_data_directory_that_moved_keeps_working() {
    let primary = Cluster::builder().start();
    primary.encrypted_tablespace("secure");
    fill(&primary, "t", "secure");
    let mut restored = Cluster::backup_of(&primary, &["--checkpoint=fast"], || ());
    restored.start();
    readable(&restored, "t");
    assert_eq!(restored.text("SELECT state FROM tde.tablespaces WHERE name = 'secure'"), "encrypted");
    fill(&restored, "u", "secure");
    restored.restart();
    readable(&restored, "u");
    assert!(files::files_with(&restored.ts_dir(), b"canary-").is_empty());
}

/// A primary with table `t` encrypted and `p` plain, a backup of it, and what happened afterwards: the tablespace of `t`
/// dropped, that of `p` encrypted. Gives the backup, set up for recovery to just before that, and the lost primary.
fn point_in_time(keyring: Option<&str>) -> (Cluster, Cluster) {
    let mut primary = Cluster::builder().conf("wal_keep_size", "512MB").create();
    if let Some(name) = keyring {
        primary.configure("pg_tde.keyring", primary.dir().join(name).to_str().unwrap());
    }
    primary.start();
    primary.run("CREATE EXTENSION pg_tde");
    primary.encrypted_tablespace("secure");
    primary.plain_tablespace("later");
    fill(&primary, "t", "secure");
    fill(&primary, "p", "later");
    if let Some(name) = keyring {
        copy(&primary.dir().join(name), &primary.dir().join("keyring-backup"));
    }
    let restored = Cluster::backup_of(&primary, &["--checkpoint=fast"], || ());
    fill(&primary, "u", "secure");
    let target = primary.text("SELECT pg_current_wal_insert_lsn()");
    primary.run("DROP TABLE t, u, p");
    primary.run("CHECKPOINT");
    primary.run("DROP TABLESPACE secure");
    primary.run("SELECT tde.encrypt_tablespace('later')");
    fill(&primary, "q", "later");
    primary.run("SELECT pg_switch_wal()");
    let wal = primary.data().join("pg_wal");
    primary.stop();

    fs::write(restored.data().join("recovery.signal"), "").unwrap();
    restored.root().own(&restored.data().join("recovery.signal"));
    restored.configure("restore_command", &format!("cp {}/%f %p", wal.display()));
    restored.configure("recovery_target_lsn", &target);
    restored.configure("recovery_target_action", "promote");
    (primary, restored)
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    tde_tests::command_output(std::process::Command::new("cp").arg("-a").arg(from).arg(to));
}

/// It is as it was then, for good: through promotion, restarts and crashes.
fn as_it_was(restored: &mut Cluster) {
    for pass in 0..3 {
        restored.wait_until_up();
        while restored.text("SELECT pg_is_in_recovery()") == "t" {
            std::thread::sleep(Duration::from_millis(50));
        }
        for table in ["t", "u", "p"] {
            readable(restored, table);
        }
        let state =
            |name: &str| restored.text(&format!("SELECT state FROM tde.tablespaces WHERE name = '{name}'"));
        assert_eq!(
            (state("secure").as_str(), state("later").as_str()),
            ("encrypted", "plain"),
            "pass {pass}"
        );
        fill(restored, &format!("new{pass}"), "secure");
        restored.run("CHECKPOINT");
        assert!(files::files_with(&restored.ts_dir().join("secure"), b"canary-").is_empty(), "pass {pass}");
        if pass == 0 { restored.restart() } else { restored.crash_and_recover() }
    }
}

#[test]
fn recovery_to_a_point_in_time() {
    let (_primary, mut restored) = point_in_time(None);
    restored.start();
    as_it_was(&mut restored);
}

/// A keyring of its own place was not recovered with the data: it knows what has not happened there.
#[test]
fn recovery_to_a_point_in_time_with_a_keyring_from_later_is_refused_until_the_old_one_is_back() {
    let (primary, mut restored) = point_in_time(Some("keyring"));
    let log = match restored.try_start() {
        Err(failure) => failure.log,
        Ok(()) => {
            // It may take readers until it comes to the end of recovery; there it must end by itself, not promote.
            restored.wait_for_end();
            restored.log_since_start()
        }
    };
    assert!(log.contains("FATAL") && log.contains("restore the keyring"), "{log}");
    let keyring = primary.dir().join("keyring");
    fs::remove_dir_all(&keyring).unwrap();
    copy(&primary.dir().join("keyring-backup"), &keyring);
    if let Err(failure) = restored.try_start() {
        assert!(failure.log.contains("tde keyring accept-restore"), "{}", failure.log);
        accept_restore(&primary, &keyring);
        restored.start();
    }
    as_it_was(&mut restored);
}

/// Nothing is replayed after a clean shutdown, so only the start itself can notice.
#[test]
fn a_cold_copy_with_a_keyring_from_later_is_refused() {
    let mut cluster = Cluster::builder().create();
    let keyring = cluster.dir().join("keyring");
    cluster.configure("pg_tde.keyring", keyring.to_str().unwrap());
    cluster.start();
    cluster.run("CREATE EXTENSION pg_tde");
    cluster.encrypted_tablespace("secure");
    fill(&cluster, "t", "secure");
    cluster.stop();
    let (data, cold) = (cluster.data().to_owned(), cluster.dir().join("cold"));
    copy(&data, &cold);
    let (space, cold_space) = (cluster.ts_dir(), cluster.dir().join("cold-space"));
    copy(&space, &cold_space);
    cluster.start();
    cluster.run("DROP TABLE t");
    cluster.run("DROP TABLESPACE secure");
    cluster.stop();
    fs::remove_dir_all(&data).unwrap();
    copy(&cold, &data);
    fs::remove_dir_all(&space).unwrap();
    copy(&cold_space, &space);
    refused(&mut cluster, "restore the keyring");
}

/// Nothing is replayed, so the server tells nobody of the end of recovery: whoever first needs a key must notice.
#[test]
fn a_cold_copy_with_a_keyring_from_later_that_recovers_and_finds_no_wal_is_refused() {
    let mut cluster = Cluster::builder().create();
    let keyring = cluster.dir().join("keyring");
    cluster.configure("pg_tde.keyring", keyring.to_str().unwrap());
    cluster.start();
    cluster.run("CREATE EXTENSION pg_tde");
    cluster.encrypted_tablespace("secure");
    fill(&cluster, "t", "secure");
    let file = cluster.file_of("t");
    cluster.stop();
    let (data, cold) = (cluster.data().to_owned(), cluster.dir().join("cold"));
    let (space, cold_space) = (cluster.ts_dir(), cluster.dir().join("cold-space"));
    let keyring_then = cluster.dir().join("keyring-then");
    for (from, to) in [(&data, &cold), (&space, &cold_space), (&keyring, &keyring_then)] {
        copy(from, to);
    }
    cluster.start();
    cluster.run("DROP TABLE t");
    cluster.run("DROP TABLESPACE secure");
    cluster.stop();
    for (from, to) in [(&cold, &data), (&cold_space, &space)] {
        fs::remove_dir_all(to).unwrap();
        copy(from, to);
    }
    let before = fs::read(&file).unwrap();
    fs::write(data.join("recovery.signal"), "").unwrap();
    cluster.root().own(&data.join("recovery.signal"));
    cluster.configure("restore_command", "false");
    cluster.start();
    while cluster.text("SELECT pg_is_in_recovery()") == "t" {
        std::thread::sleep(Duration::from_millis(50));
    }
    for statement in [
        "SELECT count(*) FROM t",
        "CREATE TABLE u (secret text) TABLESPACE secure",
        "SELECT * FROM tde.tablespaces",
        "SELECT tde.encrypt_tablespace('secure')",
        "DROP TABLESPACE secure",
    ] {
        let error = cluster.try_run(statement).expect_err(statement);
        assert!(error.text.contains("restore the keyring"), "{statement}: {error}");
    }
    cluster.run("CREATE TABLE elsewhere AS SELECT 1");
    cluster.stop();
    assert!(fs::read(&file).unwrap() == before, "pages of the tablespace were written");

    // With the keyring of its time it goes on as if nothing had been.
    fs::remove_dir_all(&keyring).unwrap();
    copy(&keyring_then, &keyring);
    let failure = cluster.try_start().expect_err("an older generation");
    assert!(failure.log.contains("tde keyring accept-restore"), "{}", failure.log);
    accept_restore(&cluster, &keyring);
    cluster.start();
    readable(&cluster, "t");
    fill(&cluster, "u", "secure");
    assert!(files::files_with(&cluster.ts_dir().join("secure"), b"canary-").is_empty());
    cluster.crash_and_recover();
    readable(&cluster, "u");
}

fn accept_restore(cluster: &Cluster, keyring: &std::path::Path) {
    let hsm = cluster.hsm();
    let mut command = cluster.root().command(cluster.root().tde());
    command.args(["keyring", "accept-restore", "--keyring"]).arg(keyring);
    command.arg("--hsm").arg(format!("soft:{}", hsm.store.display())).arg("--pin-file").arg(&hsm.pin_file);
    tde_tests::command_output(&mut command);
}
