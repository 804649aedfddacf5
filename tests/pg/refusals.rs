//! A server that cannot do what it promised refuses to start, quickly, and says what to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tde_tests::{Cluster, StartFailure, files};

/// A stopped cluster with an encrypted table `t` in it.
fn stopped() -> Cluster {
    let mut cluster = Cluster::builder().start();
    cluster.encrypted_tablespace("secure");
    cluster.run("CREATE TABLE t TABLESPACE secure AS SELECT i, 'canary-' || i AS secret FROM generate_series(1, 1000) i");
    cluster.stop();
    cluster
}

fn intact(cluster: &mut Cluster) {
    cluster.start();
    assert_eq!(cluster.int("SELECT count(*) FROM t WHERE secret LIKE 'canary-%'"), 1000);
}

/// The start fails within `limit` with one FATAL that says all of `words`.
fn refused(cluster: &mut Cluster, words: &[&str], limit: Duration) -> StartFailure {
    let failure = match cluster.try_start() {
        Err(failure) => failure,
        Ok(()) => panic!("the server started, it should say {words:?}"),
    };
    assert!(failure.log.contains("FATAL"), "no FATAL:\n{}", failure.log);
    for word in words {
        assert!(failure.log.contains(word), "no {word:?} in:\n{}", failure.log);
    }
    assert!(failure.log.contains("HINT"), "no hint what to do:\n{}", failure.log);
    assert!(!failure.log.contains("panicked"), "a Rust panic reached the log:\n{}", failure.log);
    assert!(failure.after < limit, "took {:?}", failure.after);
    failure
}

const SOON: Duration = Duration::from_secs(20);

fn keyring(cluster: &Cluster) -> PathBuf {
    cluster.data().join("pg_tde")
}

fn keyring_files(cluster: &Cluster) -> Vec<PathBuf> {
    files::files_below(&keyring(cluster))
        .into_iter()
        .filter(|f| f.extension().is_some_and(|e| e == "tde"))
        .collect()
}

#[test]
fn a_wrong_pin() {
    let mut cluster = stopped();
    cluster.hsm().write_pin(cluster.root(), "not the right one");
    refused(&mut cluster, &["PIN"], SOON);
    cluster.hsm().write_pin(cluster.root(), &cluster.hsm().pin);
    intact(&mut cluster);
}

#[test]
fn a_user_locked_by_wrong_pins() {
    let mut cluster = stopped();
    cluster.hsm().write_pin(cluster.root(), "not the right one");
    let mut last = String::new();
    for _ in 0..20 {
        last = refused(&mut cluster, &["PIN"], Duration::from_secs(120)).log;
        if last.contains("locked") {
            break;
        }
    }
    assert!(last.contains("locked"), "{last}");
    // The right PIN does not open it either.
    cluster.hsm().write_pin(cluster.root(), &cluster.hsm().pin);
    refused(&mut cluster, &["locked"], SOON);
}

#[test]
fn a_pin_command_that_fails() {
    let mut cluster = stopped();
    cluster.configure("pg_tde.pin_command", "echo no token in the slot >&2; exit 3");
    refused(&mut cluster, &["pg_tde.pin_command", "3"], SOON);
}

#[test]
fn a_pin_command_that_prints_nothing() {
    let mut cluster = stopped();
    cluster.configure("pg_tde.pin_command", "true");
    refused(&mut cluster, &["pg_tde.pin_command"], SOON);
}

/// During preload the postmaster does not act on SIGTERM: the deadline is its own, and the whole process group goes.
#[test]
fn a_pin_command_that_hangs() {
    let mut cluster = stopped();
    let marker = cluster.dir().join("hung.pid");
    fs::write(&marker, "").unwrap();
    cluster.root().own(&marker);
    cluster.configure("pg_tde.pin_command_timeout", "2s");
    cluster.configure("pg_tde.pin_command", &format!("sleep 300 & echo $! > {}; wait", marker.display()));
    let failure = refused(&mut cluster, &["pg_tde.pin_command"], SOON);
    assert!(failure.after >= Duration::from_millis(1500), "gave up after {:?}", failure.after);
    let pid: i32 = fs::read_to_string(&marker).unwrap().trim().parse().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(tde_tests::Process::find(pid).is_none(), "what the PIN command started still runs");
}

#[test]
fn a_pin_command_that_never_stops_printing() {
    let mut cluster = stopped();
    cluster.configure("pg_tde.pin_command", "yes");
    refused(&mut cluster, &["pg_tde.pin_command"], SOON);
}

#[test]
fn no_hsm_configured() {
    let mut cluster = stopped();
    cluster.configure("pg_tde.hsm", "");
    refused(&mut cluster, &["pg_tde.hsm"], SOON);
}

#[test]
fn no_pin_command_configured() {
    let mut cluster = stopped();
    cluster.configure("pg_tde.pin_command", "");
    refused(&mut cluster, &["pg_tde.pin_command is not set"], SOON);
}

#[test]
fn an_hsm_uri_that_means_nothing() {
    let mut cluster = stopped();
    cluster.configure("pg_tde.hsm", "hard:/dev/tpm0");
    refused(&mut cluster, &["pg_tde.hsm", "soft:"], SOON);
}

#[test]
fn an_hsm_store_that_is_gone() {
    let mut cluster = stopped();
    let store = cluster.hsm().store.clone();
    let aside = store.with_extension("aside");
    fs::rename(&store, &aside).unwrap();
    refused(&mut cluster, &[store.to_str().unwrap()], SOON);
    fs::rename(&aside, &store).unwrap();
    intact(&mut cluster);
}

/// It would travel with every base backup, beside the data that it protects.
#[test]
fn an_hsm_store_inside_the_data_directory() {
    let mut cluster = stopped();
    let inside = cluster.data().join("hsm");
    fs::rename(&cluster.hsm().store, &inside).unwrap();
    cluster.configure("pg_tde.hsm", &format!("soft:{}", inside.display()));
    refused(&mut cluster, &["inside the data directory"], SOON);
}

#[test]
fn another_hsm() {
    let mut cluster = stopped();
    let other = tde_tests::SoftHsm::init(cluster.root(), &cluster.dir().join("other-keys"));
    for (name, value) in other.settings() {
        cluster.configure(&name, &value);
    }
    refused(&mut cluster, &["master key"], SOON);
}

#[test]
fn a_keyring_that_is_missing() {
    let mut cluster = stopped();
    let aside = cluster.dir().join("aside");
    fs::rename(keyring(&cluster), &aside).unwrap();
    refused(&mut cluster, &["keyring"], SOON);
    // Nothing was made in its place.
    assert!(!keyring(&cluster).join("keyring.tde").exists());
    let _ = fs::remove_dir_all(keyring(&cluster));
    fs::rename(&aside, keyring(&cluster)).unwrap();
    intact(&mut cluster);
}

#[test]
fn a_keyring_with_a_record_missing() {
    let mut cluster = stopped();
    let record = keyring_files(&cluster).into_iter().find(|f| f.to_str().unwrap().contains("lines")).unwrap();
    fs::remove_file(record).unwrap();
    refused(&mut cluster, &["keyring"], SOON);
}

#[test]
fn a_keyring_with_a_truncated_or_changed_file() {
    let mut cluster = stopped();
    for file in keyring_files(&cluster) {
        let whole = fs::read(&file).unwrap();
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..length]).unwrap();
            refused(&mut cluster, &[file.file_name().unwrap().to_str().unwrap()], SOON);
        }
        fs::write(&file, &whole).unwrap();
        files::flip(&file, whole.len() as u64 / 2);
        refused(&mut cluster, &[file.file_name().unwrap().to_str().unwrap()], SOON);
        fs::write(&file, &whole).unwrap();
    }
    intact(&mut cluster);
}

#[test]
fn a_keyring_that_cannot_be_read() {
    let mut cluster = stopped();
    let dir = keyring(&cluster);
    let before = fs::metadata(&dir).unwrap().permissions();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o000)).unwrap();
    refused(&mut cluster, &["pg_tde"], SOON);
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    refused(&mut cluster, &["pg_tde"], SOON);
    fs::set_permissions(&dir, before).unwrap();
    intact(&mut cluster);
}

#[test]
fn a_keyring_of_another_cluster() {
    let mut cluster = stopped();
    let other = Cluster::builder().create();
    // Its own keyring, made under the same HSM.
    let mut other = other;
    other.configure("pg_tde.hsm", &format!("soft:{}", cluster.hsm().store.display()));
    other.configure("pg_tde.pin_command", &format!("cat {}", cluster.hsm().pin_file.display()));
    other.start();
    other.run("CREATE EXTENSION pg_tde");
    other.encrypted_tablespace("secure");
    other.stop();
    let mine = keyring(&cluster);
    fs::rename(&mine, cluster.dir().join("aside")).unwrap();
    fs::rename(keyring(&other), &mine).unwrap();
    refused(&mut cluster, &["cluster"], SOON);
}

/// An older copy of the keyring is noticed, because the HSM remembers how far it had come.
#[test]
fn an_old_generation_of_the_keyring() {
    let mut cluster = stopped();
    let mine = keyring(&cluster);
    let copy = cluster.dir().join("old-keyring");
    tde_tests::command_output(std::process::Command::new("cp").arg("-a").arg(&mine).arg(&copy));
    cluster.start();
    cluster.encrypted_tablespace("later");
    cluster.stop();
    fs::remove_dir_all(&mine).unwrap();
    fs::rename(&copy, &mine).unwrap();
    refused(&mut cluster, &["generation"], SOON);
}

#[test]
fn without_preloading_functions_say_what_to_add() {
    let mut cluster = stopped();
    cluster.configure("shared_preload_libraries", "");
    for (name, _) in cluster.hsm().settings() {
        // A setting of an extension that is not loaded is a placeholder; it must do no harm.
        assert!(name.starts_with("pg_tde."));
    }
    cluster.start();
    for call in ["tde.encrypt_tablespace('secure')", "tde.rotate_master_key()", "tde.is_encrypted('t')"] {
        let error = cluster.try_run(&format!("SELECT {call}")).expect_err("pg_tde is not preloaded");
        assert!(error.text.contains("shared_preload_libraries"), "{call}: {error}");
    }
    // Ciphertext is no valid page for a server without pg_tde, and it does not lose it.
    assert!(cluster.try_run("SELECT count(*) FROM t").is_err());
    cluster.stop();
    cluster.configure("shared_preload_libraries", "pg_tde");
    intact(&mut cluster);
}

#[test]
fn loading_it_into_a_session_is_refused() {
    let cluster = Cluster::builder().tde(false).start();
    let error = cluster.try_run("LOAD 'pg_tde'").expect_err("LOAD must be refused");
    assert!(error.text.contains("shared_preload_libraries"), "{error}");
}

#[test]
fn settings_that_would_lose_torn_pages_are_forced_on() {
    let mut cluster = stopped();
    cluster.configure("full_page_writes", "off");
    cluster.configure("wal_log_hints", "off");
    cluster.start();
    let on = cluster.text("SELECT string_agg(setting, ',') FROM pg_settings WHERE name IN ('full_page_writes', 'wal_log_hints')");
    assert_eq!(on, "on,on");
    let _ = cluster.try_run("ALTER SYSTEM SET full_page_writes = off");
    cluster.run("SELECT pg_reload_conf()");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(cluster.text("SHOW full_page_writes"), "on");
    cluster.restart();
    assert_eq!(cluster.text("SHOW full_page_writes"), "on");
}

#[test]
fn only_a_superuser_may_use_it_unless_granted() {
    let cluster = Cluster::with_tde();
    cluster.plain_tablespace("secure");
    cluster.run("CREATE ROLE app LOGIN; GRANT CREATE ON TABLESPACE secure TO app; GRANT CREATE ON SCHEMA public TO app");
    let mut app = cluster.connect_as("postgres", "app").unwrap();
    for sql in [
        "SELECT tde.encrypt_tablespace('secure')",
        "SELECT tde.rotate_master_key()",
        "SELECT * FROM tde.verify_tablespace('secure')",
        "SELECT * FROM tde.tablespaces",
        "SELECT * FROM tde.keys",
        "SELECT tde.is_encrypted('pg_class')",
        "SHOW pg_tde.hsm",
        "SHOW pg_tde.pin_command",
        "SET pg_tde.cipher = 'aes-256-xts'",
        "CREATE EXTENSION pg_tde",
    ] {
        let error = app.try_run(sql).expect_err(sql);
        assert!(["42501", "42710"].contains(&error.code.as_str()), "{sql}: {error}");
    }
    // Using an encrypted tablespace needs no right of pg_tde's.
    cluster.run("SELECT tde.encrypt_tablespace('secure')");
    app.run("CREATE TABLE mine (secret text) TABLESPACE secure; INSERT INTO mine VALUES ('canary')");
    assert_eq!(app.text("SELECT secret FROM mine"), "canary");
    cluster.run("GRANT USAGE ON SCHEMA tde TO app; GRANT EXECUTE ON FUNCTION tde.is_encrypted, tde.tablespace_is_encrypted TO app");
    assert_eq!(app.text("SELECT tde.is_encrypted('mine')"), "t");
}
