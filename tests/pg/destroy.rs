//! Old data keys are destroyed: when nothing needs them, on standbys too, and whatever crashes meanwhile.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tde_tests::{Cluster, Process, files};

use crate::filled::{SUMS, catch_up, fill, state, sums, wait_until};

const PLAN: &str = "SELECT tde.destroy_key_version('ts', 1, waiting_period => '0')";
const CONFIRM: &str = "SELECT tde.destroy_key_version('ts', 1, confirm => true)";

fn refused(cluster: &Cluster, statement: &str) -> String {
    cluster.try_run(statement).expect_err("it must be refused").to_string()
}

fn key_state(cluster: &Cluster, version: u32) -> String {
    cluster.text(&format!(
        "SELECT key_state FROM tde.keys WHERE scope LIKE 'tablespace \"ts\"%' AND key_version = {version}"
    ))
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Records that a server retains because it may still recover with destroyed keys.
fn retained(cluster: &Cluster) -> Vec<PathBuf> {
    let dir = cluster.data().join("pg_tde/retained");
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn rotate(cluster: &Cluster) {
    cluster.run("SELECT tde.rotate_data_key('ts', wait => true)");
}

/// A standby that WAL is kept for, as long as it needs it and no longer.
fn standby_with_slot(primary: &Cluster) -> Cluster {
    let standby = Cluster::standby_of(primary);
    primary.run("SELECT pg_create_physical_replication_slot('standby', true)");
    standby.configure("primary_slot_name", "standby");
    standby.run("SELECT pg_reload_conf()");
    streams(primary);
    standby
}

/// Waits until the standby streams from its slot.
fn streams(primary: &Cluster) {
    let active = "SELECT active FROM pg_replication_slots WHERE slot_name = 'standby'";
    wait_for("the standby streams from its slot", || primary.text(active) == "t");
}

/// [`catch_up`], and the slot has followed.
fn keep_up(primary: &Cluster, standby: &Cluster) {
    catch_up(primary, standby);
    let behind = "SELECT restart_lsn < pg_current_wal_flush_lsn() FROM pg_replication_slots WHERE slot_name = 'standby'";
    wait_for("the slot follows", || primary.text(behind) == "f");
}

fn filled() -> Cluster {
    let cluster = Cluster::builder()
        .fsync()
        .conf("archive_mode", "on")
        .conf("archive_command", "true")
        .conf("pg_tde.job_cost_delay", "0")
        .start();
    cluster.encrypted_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 1500);
    cluster
}

/// In the end the key is gone, and only it.
#[test]
fn a_key_is_destroyed_once_nothing_needs_it() {
    let mut primary = filled();
    let before = sums(&mut primary.connect("postgres"));
    let mut standby = Cluster::standby_of(&primary);
    primary.run("CHECKPOINT");
    let heap = primary.file_of("heap");
    let old = files::read_page(&heap, 0);

    // What a person may get wrong.
    let call = |rest: &str| format!("SELECT tde.destroy_key_version({rest})");
    assert!(refused(&primary, &call("'nowhere', 1")).contains("does not exist"));
    assert!(refused(&primary, &call("'pg_default', 1")).contains("never had a key"));
    assert!(refused(&primary, &call("'ts', 7")).contains("has no version 7"));
    assert!(refused(&primary, &call("'ts', 1")).contains("newest"));
    assert!(refused(&primary, &call("'ts', 1, waiting_period => '-1 day'")).contains("negative"));
    assert!(refused(&standby, &call("'ts', 1")).contains("in recovery"));

    // A job under way.
    primary.run("SELECT pg_create_physical_replication_slot('held', true)");
    primary.configure("pg_tde.job_cost_limit", "1");
    primary.configure("pg_tde.job_cost_delay", "100ms");
    primary.run("SELECT pg_reload_conf()");
    primary.run("SELECT tde.rotate_data_key('ts')");
    let error = refused(&primary, PLAN);
    assert!(error.contains("rotating") && error.contains("(job 1)"), "{error}");
    primary.configure("pg_tde.job_cost_delay", "0");
    primary.run("SELECT pg_reload_conf()");
    wait_until(&primary, "encrypted");

    // The waiting period, which can be cancelled.
    assert!(refused(&primary, CONFIRM).contains("was not planned"));
    assert!(refused(&primary, "SELECT tde.cancel_key_destruction('ts', 1)").contains("decrypt-only"));
    assert_eq!(primary.text("SELECT tde.destroy_key_version('ts', 1)"), "pending-destruction");
    let days =
        "SELECT round(extract(epoch FROM destroy_after - now()) / 86400) FROM tde.keys WHERE key_version = 1";
    assert_eq!(primary.text(days), "30");
    assert!(refused(&primary, CONFIRM).contains("may be destroyed from 20"));
    primary.run("SELECT tde.cancel_key_destruction('ts', 1)");
    assert_eq!(key_state(&primary, 1), "decrypt-only");
    assert_eq!(primary.text(PLAN), "pending-destruction");
    catch_up(&primary, &standby);
    assert_eq!(key_state(&standby, 1), "pending-destruction");

    // A base backup from before, one that is running, a slot, WAL that is kept.
    let error = refused(&primary, CONFIRM);
    assert!(
        error.contains("base backup \"pg_basebackup base backup\"") && error.contains(".backup"),
        "{error}"
    );
    let options = ["--checkpoint=fast", "--max-rate=4M"];
    drop(Cluster::backup_of(&primary, &options, || {
        let error = refused(&primary, CONFIRM);
        assert!(error.contains("a base backup is being taken (process "), "{error}");
    }));
    let error = refused(&primary, CONFIRM);
    assert!(error.contains("kept in pg_wal (replication slots: held)"), "{error}");
    primary.run("SELECT pg_drop_replication_slot('held')");
    primary.configure("wal_keep_size", "1GB");
    primary.run("SELECT pg_reload_conf()");
    let error = refused(&primary, CONFIRM);
    assert!(error.contains("kept in pg_wal (wal_keep_size is 1024 MB)"), "{error}");
    assert_eq!(key_state(&primary, 1), "pending-destruction");
    primary.configure("wal_keep_size", "0");
    primary.run("SELECT pg_reload_conf()");
    catch_up(&primary, &standby);

    assert_eq!(primary.text(CONFIRM), "destroyed");
    assert!(
        primary.log_since_start().contains("has destroyed version 1 of the key"),
        "{}",
        primary.log_since_start()
    );
    assert_eq!(primary.text(CONFIRM), "destroyed", "again");
    assert!(refused(&primary, "SELECT tde.cancel_key_destruction('ts', 1)").contains("destroyed"));
    assert_eq!(
        (key_state(&primary, 1), key_state(&primary, 2)),
        ("destroyed".to_owned(), "active".to_owned())
    );
    assert_eq!(primary.text("SELECT master_key_version IS NULL FROM tde.keys WHERE key_version = 1"), "t");
    // The standby has no slot.
    catch_up(&primary, &standby);
    primary.configure("wal_keep_size", "1GB");
    primary.run("SELECT pg_reload_conf()");
    for stop in ["", "crash", "restart"] {
        match stop {
            "crash" => primary.crash_and_recover(),
            "restart" => primary.restart(),
            _ => primary.kill_a_backend(),
        }
        assert_eq!(sums(&mut primary.connect("postgres")), before, "{stop}");
    }
    assert_eq!(retained(&primary), Vec::<PathBuf>::new());
    catch_up(&primary, &standby);
    assert_eq!(key_state(&standby, 1), "destroyed");
    standby.crash_and_recover();
    assert_eq!(standby.rows(SUMS).remove(0), before, "on the standby");

    // Keys go on to be made, and a page from before says what is the matter.
    rotate(&primary);
    assert_eq!(key_state(&primary, 2), "decrypt-only");
    assert_eq!(sums(&mut primary.connect("postgres")), before);
    primary.stop();
    files::write_page(&heap, 0, &old); // rotation rewrites in place
    primary.start();
    let mut sql = primary.connect("postgres");
    sql.run("SET zero_damaged_pages = on");
    let error = sql.try_run("SELECT count(*) FROM heap").expect_err("a page from before").to_string();
    assert!(error.contains("version 1 of its tablespace's key was destroyed"), "{error}");
    assert_eq!(sql.int("SELECT count(*) FROM toasted"), 20);
}

/// A standby whose recovery would begin before the end of the rotation keeps the key until it would not.
#[test]
fn a_standby_retains_a_destroyed_key_until_it_needs_it_no_more() {
    let primary = filled();
    let before = sums(&mut primary.connect("postgres"));
    let mut standbys: Vec<_> = (0..2).map(|_| Cluster::standby_of(&primary)).collect();
    for standby in &standbys {
        standby.configure("checkpoint_timeout", "1h");
        standby.configure("max_wal_size", "10GB");
        standby.run("SELECT pg_reload_conf()");
    }
    rotate(&primary);
    primary.run(PLAN);
    remove_history(&primary);
    standbys.iter().for_each(|standby| catch_up(&primary, standby));
    assert_eq!(primary.text(CONFIRM), "destroyed");
    assert_eq!(retained(&primary), Vec::<PathBuf>::new());
    for standby in &mut standbys {
        catch_up(&primary, standby);
        assert_eq!(key_state(standby, 1), "destroyed");
        assert_eq!(retained(standby).len(), 1);
        standby.crash_and_recover();
        catch_up(&primary, standby);
        assert_eq!(retained(standby).len(), 1, "it recovered from before the rotation");
        assert_eq!(standby.rows(SUMS).remove(0), before);
    }
    // One makes a restartpoint, the other is promoted, and crashes at once.
    standbys[0].run("CHECKPOINT");
    wait_for("let go after a restartpoint", || retained(&standbys[0]).is_empty());
    standbys[0].crash_and_recover();
    assert_eq!(standbys[0].rows(SUMS).remove(0), before);
    let promoted = &mut standbys[1];
    promoted.promote();
    promoted.crash_and_recover();
    assert_eq!(sums(&mut promoted.connect("postgres")), before);
    wait_for("let go after promotion", || retained(promoted).is_empty());
    promoted.crash_and_recover();
    assert_eq!(sums(&mut promoted.connect("postgres")), before);
    assert_eq!(key_state(promoted, 1), "destroyed");
}

/// Killed anywhere, above all between the keyring and the WAL: in the end primary and standby agree.
#[test]
fn a_crash_while_a_key_is_destroyed_is_harmless() {
    // Without an archiver, which may be too slow for a test.
    let mut primary = Cluster::builder().fsync().conf("pg_tde.job_cost_delay", "0").start();
    primary.encrypted_tablespace("ts");
    fill(&mut primary.connect("postgres"), 1500);
    let before = sums(&mut primary.connect("postgres"));
    let standby = standby_with_slot(&primary);
    remove_history(&primary);
    let record = primary.data().join("pg_tde/lines/01/0000000000000001.tde");
    let inode = || fs::metadata(&record).map_or(0, |metadata| metadata.ino());
    let rounds = if std::env::var_os("TDE_SOAK").is_some() { 30 } else { 5 };
    let mut unlogged = 0;
    for round in 0..rounds {
        let version = round + 1;
        streams(&primary);
        rotate(&primary);
        primary.run(&format!("SELECT tde.destroy_key_version('ts', {version}, waiting_period => '0')"));
        keep_up(&primary, &standby);
        let mut sql = primary.connect("postgres");
        let backend = Process::find(sql.int("SELECT pg_backend_pid()") as i32).unwrap();
        let (first, logged) = (inode(), primary.log_mark());
        let call = thread::spawn(move || {
            sql.try_run(&format!("SELECT tde.destroy_key_version('ts', {version}, confirm => true)"))
        });
        // The record is in place, the root and the WAL are not yet; or later.
        while inode() == first && !call.is_finished() {
            std::hint::spin_loop();
        }
        if round % 2 == 1 {
            thread::sleep(Duration::from_micros(400 * u64::from(round)));
        }
        if round % 3 == 2 {
            primary.crash();
            primary.start();
        } else {
            backend.signal(Signal::KILL);
            thread::sleep(Duration::from_millis(100));
            primary.wait_until_up();
        }
        let result = call.join().unwrap();
        assert!(
            result.as_ref().is_ok()
                || result.as_ref().is_err_and(|error| error.code.is_empty() || error.code.starts_with("57P")),
            "{result:?}"
        );
        let done = result.is_ok();
        unlogged +=
            i32::from(!primary.log_from(logged).contains(&format!("has destroyed version {version}")));
        assert_eq!(key_state(&primary, version), "destroyed", "round {round}");
        assert_eq!(sums(&mut primary.connect("postgres")), before, "round {round}, acknowledged: {done}");
        wait_for("the standby hears of it", || key_state(&standby, version) == "destroyed");
        assert_eq!(standby.rows(SUMS).remove(0), before, "round {round}");
    }
    assert!(unlogged > 0, "no kill was early enough to mean anything");
    primary.restart();
    assert_eq!(sums(&mut primary.connect("postgres")), before);
}

fn remove_history(cluster: &Cluster) {
    for file in fs::read_dir(cluster.data().join("pg_wal")).unwrap().flatten() {
        if file.path().extension().is_some_and(|extension| extension == "backup") {
            fs::remove_file(file.path()).unwrap();
        }
    }
}

/// After DROP TABLESPACE, and after decryption, all keys go at once.
#[test]
fn all_keys_of_a_tablespace_that_is_gone_are_shredded() {
    let mut primary = Cluster::builder().fsync().conf("pg_tde.job_cost_delay", "0").start();
    for name in ["ts", "other"] {
        primary.encrypted_tablespace(name);
    }
    fill(&mut primary.connect("postgres"), 500);
    rotate(&primary);
    let before = sums(&mut primary.connect("postgres"));
    let standby = standby_with_slot(&primary);
    let states = |cluster: &Cluster, line: u32| {
        cluster.text(&format!(
            "SELECT string_agg(key_state, ',' ORDER BY key_version) FROM tde.keys WHERE line = {line}"
        ))
    };
    let error = refused(&primary, "SELECT tde.shred_keys(1)");
    assert!(error.contains("is encrypted: all of its keys are destroyed only once"), "{error}");
    refused(&primary, "SELECT tde.shred_keys(99)");
    primary.run("SELECT tde.decrypt_tablespace('ts')");
    wait_until(&primary, "plain");
    primary.run("DROP TABLESPACE other");
    for line in [1, 2] {
        let shred = |more: &str| format!("SELECT tde.shred_keys({line}{more})");
        assert!(refused(&primary, &shred(", confirm => true")).contains("was not planned"));
        assert_eq!(primary.text(&shred("")), "pending-destruction");
        assert!(refused(&primary, &shred(", confirm => true")).contains("may be destroyed from"));
        primary.run(&format!("SELECT tde.cancel_shred_keys({line})"));
        assert!(!states(&primary, line).contains("pending"));
        assert_eq!(primary.text(&shred(", waiting_period => '0'")), "pending-destruction");
        primary.restart(); // a retired line is not in the server's table any more
        streams(&primary);
        assert_eq!(primary.text(&shred(", confirm => true")), "destroyed");
        keep_up(&primary, &standby);
        let all = if line == 1 { "destroyed,destroyed" } else { "destroyed" };
        assert_eq!((states(&primary, line).as_str(), states(&standby, line).as_str()), (all, all));
        primary.crash_and_recover();
        assert_eq!(sums(&mut primary.connect("postgres")), before);
    }
    // The tablespace can be encrypted again, under a new line.
    primary.run("SELECT tde.encrypt_tablespace('ts')");
    wait_until(&primary, "encrypted");
    assert_eq!((state(&primary).as_str(), states(&primary, 3).as_str()), ("encrypted", "active"));
    primary.crash_and_recover();
    assert_eq!(sums(&mut primary.connect("postgres")), before);
    keep_up(&primary, &standby);
    assert_eq!(standby.rows(SUMS).remove(0), before);
    wait_for("let go", || retained(&primary).is_empty());
}
