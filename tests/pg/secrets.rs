//! No secret where people and programs look: log, statistics, errors, core dumps, the data directory.

use std::fs;
use std::os::unix::fs::FileExt;

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
    let mut cluster = Cluster::with_tde();
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
