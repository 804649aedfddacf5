//! No secret where people and programs look: log, statistics, errors, core dumps, the data directory.

use std::fs;
use std::os::unix::fs::FileExt;

use hsm_engine::{Pin, SoftUri};
use keyring::{Keyring, SoftHsm};
use page_cipher::CipherId;
use page_cipher::kdf::{self, Purpose};
use tde_tests::{Cluster, Process, files};

/// The bytes that would be in a core dump: readable private or anonymous memory without the `dd` (do not dump) flag.
struct Memory {
    dumped: Vec<u8>,
    undumped: Vec<u8>,
}

fn memory(process: Process) -> Memory {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", process.pid)).unwrap();
    let file = fs::File::open(format!("/proc/{}/mem", process.pid)).unwrap();
    let mut memory = Memory { dumped: Vec::new(), undumped: Vec::new() };
    let mut range = None;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or("");
        if let Some((from, to)) = first.split_once('-') {
            let numbers = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16));
            if let (Ok(from), Ok(to)) = numbers {
                range = line.contains(" r").then_some((from, to));
            }
        }
        let (Some(flags), Some((from, to))) = (line.strip_prefix("VmFlags:"), range) else { continue };
        let mut bytes = vec![0; (to - from) as usize];
        // Mappings such as [vvar] cannot be read; a core dump cannot hold them either.
        if file.read_exact_at(&mut bytes, from).is_ok() {
            if flags.split_whitespace().any(|f| f == "dd") {
                memory.undumped.extend(bytes);
            } else {
                memory.dumped.extend(bytes);
            }
        }
    }
    memory
}

/// The postmaster, its children and a backend that has just worked with encrypted pages.
fn processes(cluster: &Cluster) -> Vec<Process> {
    let postmaster = cluster.postmaster();
    [postmaster].into_iter().chain(postmaster.children()).filter(Process::alive).collect()
}

#[test]
fn the_pin_is_nowhere() {
    // With a log that tells everything.
    let mut cluster = Cluster::builder()
        .conf("log_min_messages", "debug5")
        .conf("log_statement", "all")
        .conf("log_error_verbosity", "verbose")
        .start();
    let pin = cluster.hsm().pin.clone().into_bytes();
    cluster.encrypted_tablespace("secure");
    cluster.run("CREATE TABLE t TABLESPACE secure AS SELECT i FROM generate_series(1, 1000) i");
    cluster.run("SELECT tde.rotate_master_key()");
    let mut session = cluster.connect("postgres");
    let refused =
        session.try_run("SELECT tde.encrypt_tablespace('secure')").expect_err("it is encrypted already");
    assert!(!refused.text.contains(&cluster.hsm().pin));
    // This session has talked to the HSM itself and stays open.
    session.run("SELECT tde.rotate_master_key()");
    assert_eq!(session.int("SELECT count(*) FROM t"), 1000);

    for process in processes(&cluster) {
        let memory = memory(process);
        assert!(!files::contains(&memory.dumped, &pin), "the PIN is in memory of {}", process.title());
        assert!(
            !files::contains(&memory.undumped, &pin),
            "the PIN stays in locked memory of {}",
            process.title()
        );
    }
    let activity = format!("{:?}", cluster.rows("SELECT * FROM pg_stat_activity"));
    assert!(!activity.contains(&cluster.hsm().pin));
    let settings = format!("{:?}", cluster.rows("SELECT * FROM pg_settings WHERE name LIKE 'pg_tde%'"));
    assert!(settings.contains("cat ") && !settings.contains(&cluster.hsm().pin));

    // Wrong PINs are secrets too: a typing error away from the right one.
    let wrong = format!("{}x", cluster.hsm().pin);
    cluster.stop();
    cluster.hsm().write_pin(cluster.root(), &wrong);
    let failure = cluster.try_start().expect_err("a wrong PIN");
    assert!(!failure.log.contains(&wrong), "{}", failure.log);
    assert!(!cluster.log().contains(&cluster.hsm().pin));
    assert!(files::files_with(cluster.data(), &pin).is_empty());
    assert!(files::files_with(&cluster.hsm().store, &pin).is_empty());
}

/// Data key of tablespace `secure` and key of relation `t`, unwrapped by the test from copies of keyring and HSM.
fn keys(cluster: &Cluster) -> [[u8; 32]; 2] {
    let dir = cluster.dir().join("copies");
    fs::create_dir(&dir).unwrap();
    let copy = |from: &std::path::Path, name: &str| {
        let to = dir.join(name);
        tde_tests::command_output(std::process::Command::new("cp").arg("-r").arg(from).arg(&to));
        to
    };
    let store = copy(&cluster.hsm().store, "hsm");
    let ring = copy(&cluster.data().join("pg_tde"), "keyring");
    let pin = Pin::from_reader(cluster.hsm().pin.as_bytes()).unwrap();
    let master = SoftHsm::open(&SoftUri::new(store), &pin).unwrap();
    // The copy lies elsewhere, so the HSM knows no generation of it: nothing to compare, and nothing is told.
    let unlocked = Keyring::open(&ring).unwrap().inspect(&master).unwrap();
    let oid = cluster.int("SELECT oid FROM pg_tablespace WHERE spcname = 'secure'") as u32;
    let scope = unlocked.find_pg_tablespace(oid).unwrap().expect("a line of the tablespace");
    let dek = unlocked.dek_of(&scope, scope.active().unwrap().version, &master).unwrap();
    let database = cluster.int("SELECT oid FROM pg_database WHERE datname = 'postgres'") as u32;
    let relation = cluster.int("SELECT pg_relation_filenode('t')") as u32;
    let id = [u8::from(CipherId::Aes256Hctr2)];
    let ids: [&[u8]; 3] = [&id, &database.to_le_bytes(), &relation.to_le_bytes()];
    let derived = kdf::derive::<32>(&dek, Purpose::PG_PAGE, &ids);
    [*dek.expose(), *derived.expose()]
}

#[test]
fn keys_are_in_memory_that_is_not_dumped_and_nowhere_else() {
    let cluster = Cluster::with_tde();
    cluster.encrypted_tablespace("secure");
    cluster.run("CREATE TABLE t TABLESPACE secure AS SELECT i FROM generate_series(1, 1000) i");
    let [dek, relation_key] = keys(&cluster);
    // The key made in this backend, and pages opened in it.
    let mut session = cluster.connect("postgres");
    let worker = Process::find(session.int("SELECT pg_backend_pid()") as i32).unwrap();
    cluster.evict_buffers();
    session.run("CHECKPOINT");
    session.run("SELECT tde.rotate_master_key()");
    for _ in 0..3 {
        session.run("SELECT sum(i) FROM t");
        session.run("VACUUM t");
        session.run("SELECT * FROM tde.verify_tablespace('secure')");
    }

    // The search is right: the keys are where they should be.
    assert!(files::contains(&memory(worker).undumped, &dek), "the data key is not found where it must be");
    assert!(
        files::contains(&memory(worker).undumped, &relation_key),
        "the relation key is not found where it must be"
    );
    for process in processes(&cluster) {
        let dumped = memory(process).dumped;
        assert!(dumped.len() > 1 << 20, "{}: only {} bytes looked at", process.title(), dumped.len());
        for (what, key) in [("data key", &dek), ("relation key", &relation_key)] {
            assert!(
                !files::contains(&dumped, key),
                "the {what} is in dumpable memory of {}",
                process.title()
            );
        }
    }
    for key in [&dek, &relation_key] {
        assert!(files::files_with(cluster.data(), key).is_empty());
        assert!(files::files_with(&cluster.ts_dir(), key).is_empty());
        assert!(files::files_with(&cluster.hsm().store, key).is_empty());
        let hex: String = key.iter().map(|b| format!("{b:02x}")).collect();
        assert!(!cluster.log().to_lowercase().contains(&hex));
    }
}
