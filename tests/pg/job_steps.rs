//! Everything is killed after a chosen change of a file: step by step through a job, in the session that begins it, in the process
//! that ends it, in the one that rewrites pages, and in a standby's replay. The job goes on or was never begun.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, Process, Stepper, files, soak};

use crate::filled::catch_up;

const LIMIT: Duration = Duration::from_secs(90);

/// What a job does to a tablespace.
struct Kind {
    function: &'static str,
    before: &'static str,
    after: &'static str,
}

const ENCRYPT: Kind = Kind { function: "encrypt_tablespace", before: "plain", after: "encrypted" };
const ROTATE: Kind = Kind { function: "rotate_data_key", before: "encrypted", after: "encrypted" };
const DECRYPT: Kind = Kind { function: "decrypt_tablespace", before: "encrypted", after: "plain" };

impl Kind {
    fn statement(&self, name: &str, wait: bool) -> String {
        format!("SELECT tde.{}('{name}', wait => {wait})", self.function)
    }

    /// Tablespace `name` in the state before, with table `t_name`.
    fn prepare(&self, cluster: &Cluster, name: &str) {
        cluster.run(&format!("CREATE TABLESPACE {name} LOCATION ''"));
        if self.before == "encrypted" {
            retry(cluster, &format!("SELECT tde.encrypt_tablespace('{name}')"));
        }
        cluster.run(&format!(
            "CREATE TABLE t_{name} TABLESPACE {name} AS SELECT i, 'canary-' || i AS secret FROM generate_series(1, 1000) i"
        ));
        cluster.run(&format!("CREATE INDEX ON t_{name} USING hash (secret) TABLESPACE {name}"));
        cluster.run("CHECKPOINT");
    }

    /// Whether the job has been done; `None` while it is under way.
    fn done(&self, cluster: &Cluster, name: &str) -> Option<bool> {
        let row = cluster
            .rows(&format!("SELECT state, key_version FROM tde.tablespaces WHERE name = '{name}'"))
            .remove(0);
        let wanted = row[0] == self.after && (self.function != ROTATE.function || row[1] == "2");
        (wanted || row[0] == self.before).then_some(wanted)
    }

    fn settle(&self, cluster: &Cluster, name: &str) -> bool {
        let begin = Instant::now();
        loop {
            if let Some(done) = self.done(cluster, name) {
                return done;
            }
            assert!(begin.elapsed() < LIMIT, "{name}\n{}", cluster.log_since_start());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The rows are all there, and the file is as the tablespace's state says.
    fn check(&self, cluster: &Cluster, name: &str, done: bool) {
        let rows = format!("SELECT count(*) FROM t_{name} WHERE secret LIKE 'canary-%'");
        assert_eq!(cluster.int(&rows), 1000, "{name}");
        let found = cluster.int(&format!(
            "SET enable_seqscan = off; SELECT count(*) FROM t_{name} WHERE secret = 'canary-77'"
        ));
        assert_eq!(found, 1, "{name}, through the index");
        cluster.run("CHECKPOINT");
        let state = if done { self.after } else { self.before };
        let clear = files::contains(&fs::read(cluster.file_of(&format!("t_{name}"))).unwrap(), b"canary-");
        assert_eq!(clear, state == "plain", "{name} is {state}");
        if state == "encrypted" {
            let verify = format!("SELECT count(*) FROM tde.verify_tablespace('{name}') WHERE damaged > 0");
            assert_eq!(cluster.int(&verify), 0, "{name}");
        }
    }
}

/// A login that was killed half-way locks the HSM's user for a while.
fn retry(cluster: &Cluster, statement: &str) {
    let begin = Instant::now();
    while let Err(error) = cluster.try_run(statement) {
        assert!(begin.elapsed() < LIMIT, "{error}\n{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(500));
    }
}

/// Which process is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Session,
    Job,
    /// In the middle of a relation, where it changes nothing but buffers.
    Rewriter,
}

/// Runs the job on tablespace `name` until the victim's change number `stop_after`. Whether it came to that, and all changes by then.
fn run(
    cluster: &Cluster,
    kind: &Kind,
    victim: Victim,
    name: &str,
    stop_after: Option<usize>,
) -> (bool, Vec<String>) {
    kind.prepare(cluster, name);
    let statement = kind.statement(name, false);
    let mut session = cluster.connect("postgres");
    if victim == Victim::Session {
        let process = Process::find(session.int("SELECT pg_backend_pid()") as i32).unwrap();
        let stepper = Stepper::attach(process, stop_after).expect("a session");
        let work = thread::spawn(move || session.try_run(&statement).map(|()| session));
        wait_for(cluster, || stepper.stopped() || work.is_finished());
        return (stepper.stopped(), stepper.calls());
    }
    session.run(&statement);
    if victim == Victim::Rewriter {
        wait_for(cluster, || session.int("SELECT coalesce(max(blocks_done), 0) FROM tde.job_progress") > 2);
        return (true, Vec::new());
    }
    let job = || cluster.postmaster().children().into_iter().find(|p| p.title().contains("pg_tde job"));
    wait_for(cluster, || job().is_some());
    let Some(stepper) = job().and_then(|process| Stepper::attach(process, stop_after)) else {
        return (false, Vec::new());
    };
    wait_for(cluster, || stepper.stopped() || stepper.ended());
    (stepper.stopped(), stepper.calls())
}

fn wait_for(cluster: &Cluster, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "{}", cluster.log_since_start());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Some of the steps, not those inside the HSM's store and the log; in a long run all of them.
fn picked(calls: &[String], some: usize) -> Vec<usize> {
    let ours = |call: &String| !call.contains("/keys/hsm") && !call.contains("/log>");
    let steps: Vec<_> = (1..=calls.len()).filter(|step| soak() || ours(&calls[step - 1])).collect();
    if soak() || steps.len() <= some {
        return steps;
    }
    (0..some).map(|part| steps[part * (steps.len() - 1) / (some - 1).max(1)]).collect()
}

fn step_by_step(kind: &Kind) {
    let mut cluster = Cluster::builder()
        .conf("allow_in_place_tablespaces", "on")
        .conf("wal_keep_size", "1GB")
        .conf("autovacuum", "off")
        .conf("pg_tde.job_cost_limit", "1")
        .conf("pg_tde.job_cost_delay", "60ms")
        .start();
    cluster.run("CREATE TABLESPACE first LOCATION ''");
    cluster.run("SELECT tde.encrypt_tablespace('first')");
    let mut standby = Cluster::standby_of(&cluster);
    let mut names = Vec::new();
    for (victim, some) in [(Victim::Rewriter, 1), (Victim::Session, 4), (Victim::Job, 4)] {
        let mut steps = vec![1];
        let mut calls = Vec::new();
        if victim != Victim::Rewriter {
            let whole = format!("{victim:?}_whole").to_lowercase();
            calls = run(&cluster, kind, victim, &whole, None).1;
            assert!(kind.settle(&cluster, &whole));
            assert!(calls.len() >= 5, "{victim:?}: {calls:?}");
            steps = picked(&calls, some);
        }
        let mut stops = 0;
        for step in steps {
            let name = format!("{victim:?}{step}").to_lowercase();
            let (stopped, done) = run(&cluster, kind, victim, &name, Some(step));
            println!("{} {victim:?} {step} of {}: {:?}", kind.function, calls.len(), done.last());
            stops += usize::from(stopped);
            cluster.crash();
            cluster.start();
            let done = kind.settle(&cluster, &name);
            kind.check(&cluster, &name, done);
            if !done {
                // Nothing of the first try is in the way of another.
                assert_eq!(victim, Victim::Session, "{name}: the job was forgotten");
                retry(&cluster, &kind.statement(&name, true));
            }
            kind.check(&cluster, &name, true);
            names.push(name);
        }
        assert!(stops > 0, "{victim:?} was never stopped");
    }
    cluster.restart();
    catch_up(&cluster, &standby);
    for name in &names {
        kind.check(&cluster, name, true);
        kind.check(&standby, name, true);
    }
    standby.crash_and_recover();
    cluster.crash();
    standby.promote();
    names.iter().for_each(|name| kind.check(&standby, name, true));
}

#[test]
fn each_step_of_an_encryption_may_be_the_last() {
    step_by_step(&ENCRYPT);
}

#[test]
fn each_step_of_a_rotation_may_be_the_last() {
    step_by_step(&ROTATE);
}

#[test]
fn each_step_of_a_decryption_may_be_the_last() {
    step_by_step(&DECRYPT);
}

/// The same in the process that replays WAL on a standby.
#[test]
fn each_step_of_a_standby_may_be_the_last() {
    let primary = Cluster::builder()
        .conf("allow_in_place_tablespaces", "on")
        .conf("wal_keep_size", "1GB")
        .conf("autovacuum", "off")
        .start();
    primary.run("CREATE TABLESPACE first LOCATION ''");
    primary.run("SELECT tde.encrypt_tablespace('first')");
    let mut standby = Cluster::standby_of(&primary);
    let (mut names, mut stops) = (Vec::new(), 0);
    for kind in [ENCRYPT, ROTATE, DECRYPT] {
        let mut whole = Vec::new();
        let mut step = 0;
        loop {
            let name = format!("{}{step}", kind.function);
            kind.prepare(&primary, &name);
            catch_up(&primary, &standby);
            let startup = standby.postmaster().children().into_iter();
            let startup =
                startup.into_iter().find(|p| p.title().contains("startup")).expect("a standby replays");
            let stepper = Stepper::attach(startup, (step > 0).then_some(step)).expect("it replays");
            primary.run(&kind.statement(&name, true));
            let target = primary.text("SELECT pg_current_wal_flush_lsn()");
            let there = format!("SELECT pg_last_wal_replay_lsn() >= '{target}'");
            let begin = Instant::now();
            // A connection of its own for each look could wait for a lock that the stopped process holds.
            let mut look = standby.connect("postgres");
            while !stepper.stopped() && look.text(&there) != "t" {
                assert!(begin.elapsed() < LIMIT, "{}", standby.log_since_start());
                thread::sleep(Duration::from_millis(5));
            }
            let calls = stepper.calls();
            println!("{} {step} of {}: {:?}", kind.function, whole.len(), calls.last());
            if step == 0 {
                assert!(calls.len() >= 5, "{calls:?}");
                whole = calls;
            } else {
                stops += usize::from(stepper.stopped());
                standby.crash();
                drop(stepper);
                standby.start();
            }
            catch_up(&primary, &standby);
            kind.check(&standby, &name, true);
            names.push((name, kind.after, kind.function));
            match picked(&whole, 3).into_iter().find(|next| *next > step) {
                Some(next) => step = next,
                None => break,
            }
        }
    }
    // How many there are varies a little.
    assert!(stops * 4 > names.len(), "it was stopped {stops} times only");
    standby.restart();
    standby.promote();
    for (name, state, _) in &names {
        assert_eq!(standby.int(&format!("SELECT count(*) FROM t_{name} WHERE secret LIKE 'canary-%'")), 1000);
        let found = format!("SELECT state FROM tde.tablespaces WHERE name = '{name}'");
        assert_eq!(standby.text(&found), *state, "{name}");
    }
}
