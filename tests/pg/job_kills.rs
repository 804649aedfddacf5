//! Jobs of every kind, one after the other, on a primary with a standby; one of the two, or one process, is killed at moments that
//! nobody chose, under a client that knows what its rows must be.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, soak};

use crate::filled::{SUMS, assert_encrypted, assert_plain, catch_up, fill, state, sums, wait_until};
use crate::ledger::{Ledger, Numbers};

/// What is killed with SIGKILL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Primary,
    Standby,
    Process,
}

#[test]
fn kills_at_any_moment_of_any_job_lose_nothing() {
    let rounds = if soak() { 50 } else { 6 };
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id());
    println!("seed {seed}");
    let mut numbers = Numbers::new(seed);
    let mut primary = Cluster::builder()
        .conf("wal_keep_size", "2GB")
        .conf("pg_tde.job_cost_limit", "16")
        .conf("pg_tde.job_cost_delay", "25ms")
        .start();
    primary.plain_tablespace("ts");
    fill(&mut primary.connect("postgres"), 6000);
    let mut ledger = Ledger::new(&primary, "postgres", "ts");
    let mut standby = Cluster::standby_of(&primary);
    let before = sums(&mut primary.connect("postgres"));
    let (mut version, mut cut_short) = (0, 0);
    for round in 0..rounds {
        let function = ["encrypt_tablespace", "rotate_data_key", "decrypt_tablespace"][round % 3];
        let (busy, end) =
            [("encrypting", "encrypted"), ("rotating", "encrypted"), ("decrypting", "plain")][round % 3];
        let victim = [Victim::Primary, Victim::Standby, Victim::Process][(round + round / 3) % 3];
        let wait = Duration::from_millis(numbers.below(1500));
        let when = format!("round {round}, {function}, {victim:?} after {wait:?}");
        println!("{when}");
        let stop = Arc::new(AtomicBool::new(false));
        let client = ledger.work(&primary, stop.clone());
        primary.run(&format!("SELECT tde.{function}('ts')"));
        thread::sleep(wait);
        cut_short += usize::from(state(&primary) == busy);
        match victim {
            Victim::Primary => primary.crash(),
            Victim::Standby => standby.crash_and_recover(),
            Victim::Process => {
                let children = primary.postmaster().children();
                let child = children[numbers.below(children.len() as u64) as usize];
                println!("{}", child.title());
                child.signal(rustix::process::Signal::KILL);
                thread::sleep(Duration::from_millis(300)); // most of them take the whole server along
                primary.wait_until_up();
            }
        }
        stop.store(true, Ordering::Relaxed);
        ledger = client.join().unwrap();
        if victim == Victim::Primary {
            primary.start();
        }
        ledger.check(&primary, &when);
        wait_until(&primary, end);
        ledger.check(&primary, &when);
        assert_eq!(sums(&mut primary.connect("postgres")), before, "{when}");
        if end == "plain" {
            assert_plain(&primary)
        } else {
            assert_encrypted(&primary)
        }
        catch_up(&primary, &standby);
        ledger.check_copy(&standby, &when);
        assert_eq!(standby.rows(SUMS).remove(0), before, "{when}");
        assert_eq!(state(&standby), end, "{when}");
        version += 1;
    }
    println!("{cut_short} of {version} were under way");
    assert!(cut_short > version / 4, "the jobs were over too soon: {cut_short} of {version}");
    primary.crash();
    standby.promote();
    ledger.check(&standby, "promoted");
    assert_eq!(sums(&mut standby.connect("postgres")), before, "promoted");
}
