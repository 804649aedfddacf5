//! `tde job` on a real server: what it shows, how it steers, what it says in the end.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tde_tests::{Builder, Cluster, Process};

use crate::filled::{assert_encrypted, fill, state, sums, wait_until};

/// About 50 pages a second.
fn slow() -> Builder {
    Cluster::builder().fsync().conf("pg_tde.job_cost_limit", "2").conf("pg_tde.job_cost_delay", "40ms")
}

/// The command as the servers' user, the server given by the environment.
fn tde(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = cluster.tool(cluster.root().tde().to_str().unwrap());
    command.args(arguments).stdin(Stdio::null());
    command
}

struct Done {
    code: i32,
    out: String,
    err: String,
}

fn run(command: &mut Command) -> Done {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

fn job(cluster: &Cluster, arguments: &[&str]) -> Done {
    run(&mut tde(cluster, &[&["job"], arguments].concat()))
}

fn jobs(cluster: &Cluster) -> Vec<Value> {
    let done = job(cluster, &["list", "--json"]);
    assert_eq!(done.code, 0, "{}", done.err);
    serde_json::from_str(&done.out).unwrap()
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn finish_fast(cluster: &Cluster) {
    cluster.configure("pg_tde.job_cost_delay", "0");
    cluster.run("SELECT pg_reload_conf()");
}

/// A `tde job watch` under way.
struct Watch {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    seen: String,
}

impl Watch {
    fn start(cluster: &Cluster, arguments: &[&str]) -> Self {
        let mut command = tde(cluster, &[&["job", "watch", "--interval", "0.2"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out, seen: String::new() }
    }

    fn until(&mut self, text: &str) {
        while !self.seen.contains(text) {
            let read = self.out.read_line(&mut self.seen).unwrap();
            assert!(read > 0, "it ended without {text:?}: {}", self.seen);
        }
    }

    /// Its exit code, and all of its output.
    fn end(mut self) -> (i32, String, String) {
        self.out.read_to_string(&mut self.seen).unwrap();
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (self.child.wait().unwrap().code().unwrap(), self.seen, errors)
    }
}

#[test]
fn a_job_is_listed_watched_and_steered() {
    let mut cluster = slow().start();
    cluster.plain_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 6000);
    let before = sums(&mut cluster.connect("postgres"));
    assert_eq!(job(&cluster, &["list"]).out, "No jobs.\n");
    assert_eq!(job(&cluster, &["watch"]).out, "No job is under way.\n");
    assert!(jobs(&cluster).is_empty());
    let number = cluster.text("SELECT tde.encrypt_tablespace('ts')");

    // Watched until Ctrl-C, which the job does not notice.
    let mut watch = Watch::start(&cluster, &[]);
    watch.until("encrypt ts: ");
    watch.until(", rewriting pages");
    Process::find(watch.child.id() as i32).unwrap().signal(Signal::INT);
    let (code, out, _) = watch.end();
    assert_eq!(code, 130, "{out}");
    assert!(out.contains(&format!("Job {number} goes on in the server")), "{out}");
    let now = jobs(&cluster).remove(0);
    let keys: Vec<&str> = now.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "attempts",
            "blocks_done",
            "blocks_total",
            "blocks_verified",
            "database",
            "job",
            "kind",
            "mb_per_second",
            "paused",
            "percent",
            "phase",
            "pid",
            "relation",
            "seconds_left",
            "started",
            "state",
            "tablespace",
            "waits_for"
        ]
    );
    assert_eq!((&now["kind"], &now["tablespace"]), (&"encrypt".into(), &"ts".into()));
    assert_eq!((&now["state"], &now["paused"]), (&"encrypting".into(), &false.into()));

    // Paused and resumed.
    assert_eq!(job(&cluster, &["pause", &number]).code, 0);
    wait_for("paused", || jobs(&cluster)[0]["phase"] == "paused");
    let list = job(&cluster, &["list"]).out;
    assert!(list.contains("JOB") && list.contains("paused") && list.contains("encrypt"), "{list}");
    assert_eq!(job(&cluster, &["resume", &number]).code, 0);
    wait_for("resumed", || jobs(&cluster)[0]["phase"] == "rewriting pages");

    // Watched over a crash of the server to the end.
    let mut watch = Watch::start(&cluster, &[&number, "--json"]);
    watch.until("rewriting pages");
    cluster.crash_and_recover();
    watch.seen.clear();
    watch.until("rewriting pages");
    finish_fast(&cluster);
    let (code, out, errors) = watch.end();
    assert_eq!(code, 0, "{out}\n{errors}");
    assert!(errors.contains("the connection is lost; jobs go on"), "{errors}");
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((&last["phase"], &last["percent"]), (&"done".into(), &100.into()), "{out}");
    assert_eq!(last["state"], "encrypted");
    assert_encrypted(&cluster);

    // Cancelled: whoever watches is told that it did not end as it was begun.
    cluster.configure("pg_tde.job_cost_delay", "40ms");
    cluster.run("SELECT pg_reload_conf()");
    let number = cluster.text("SELECT tde.decrypt_tablespace('ts')");
    let mut watch = Watch::start(&cluster, &[]);
    watch.until("decrypt ts: ");
    watch.until(", rewriting pages");
    assert_eq!(job(&cluster, &["cancel", &number]).code, 0);
    watch.until("encrypt ts: ");
    finish_fast(&cluster);
    let (code, out, _) = watch.end();
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("was turned back and has ended: tablespace ts is encrypted"), "{out}");
    assert_eq!(state(&cluster), "encrypted");
    assert_eq!(sums(&mut cluster.connect("postgres")), before);

    // What there is not, and what cannot be done.
    for command in ["watch", "pause", "resume", "cancel"] {
        let done = job(&cluster, &[command, "7"]);
        assert_eq!(done.code, 1, "{command}: {}", done.err);
        assert!(done.err.contains("there is no job 7"), "{}", done.err);
    }
    let number = cluster.text("SELECT tde.rotate_data_key('ts', wait => true)");
    let done = job(&cluster, &["resume", &number]);
    assert_eq!(done.code, 1, "it has ended: {}", done.err);
    let done = job(&cluster, &["list", "--dbname", "template1"]);
    assert_eq!(done.code, 2);
    assert!(done.err.contains("\"template1\" has no extension pg_tde"), "{}", done.err);
    let nowhere = job(&cluster, &["list", "--host", "/nowhere"]);
    assert_eq!(nowhere.code, 2);
    assert!(nowhere.err.contains("cannot connect to /nowhere:5432"), "{}", nowhere.err);
}

/// Passwords come from the environment or a password file, never from the command line.
#[test]
fn a_password_is_found_where_libpq_finds_it() {
    let cluster = Cluster::with_tde();
    cluster.run("CREATE ROLE watcher LOGIN SUPERUSER PASSWORD 'se:cret'");
    let hba = cluster.data().join("pg_hba.conf");
    let rules = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("local all watcher scram-sha-256\n{rules}")).unwrap();
    cluster.run("SELECT pg_reload_conf()");
    let list = |file: &str, password: &str| {
        let mut command = tde(&cluster, &["job", "list", "-U", "watcher"]);
        run(command.env("PGPASSFILE", file).env("PGPASSWORD", password))
    };
    wait_for("the new rules are in force", || list("/dev/null", "").code == 2);
    let none = list("/dev/null", "");
    assert!(none.err.contains("PGPASSWORD") && none.err.contains(".pgpass"), "{}", none.err);
    assert_eq!(list("/dev/null", "se:cret").code, 0);
    let wrong = list("/dev/null", "wrong");
    assert_eq!(wrong.code, 2);
    assert!(!wrong.err.contains("wrong"), "{}", wrong.err);
    let file = cluster.dir().join("pgpass");
    fs::write(&file, "*:*:*:watcher:se\\:cret\n").unwrap();
    cluster.root().own(&file);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let loose = list(file.to_str().unwrap(), "");
    assert!(loose.code == 2 && loose.err.contains("can be read by others"), "{}", loose.err);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let done = list(file.to_str().unwrap(), "");
    assert_eq!(done.code, 0, "{}", done.err);
    let shown = run(&mut tde(&cluster, &["job", "list", "-d", "user=watcher password=se:cret"]));
    assert_eq!(shown.code, 2);
    assert!(shown.err.contains("has a password") && !shown.err.contains("se:cret"), "{}", shown.err);
}

/// The log has a job's beginning and end, and how far it is in between.
#[test]
fn the_log_tells_how_far_a_job_is() {
    let cluster = slow().conf("pg_tde.job_log_interval", "1s").conf("max_prepared_transactions", "5").start();
    cluster.plain_tablespace("ts");
    cluster.run("CREATE DATABASE inside TABLESPACE ts");
    fill(&mut cluster.connect("postgres"), 6000);
    cluster.run("BEGIN; CREATE TABLE early TABLESPACE ts AS TABLE heap; PREPARE TRANSACTION 'slowly'");
    let number = cluster.text("SELECT tde.encrypt_tablespace('ts')");
    let says = |text: &str| {
        let line = format!("pg_tde job {number} {text}");
        wait_for(&line, || cluster.log().contains(&line));
    };
    says("begins: encrypt tablespace");
    says("waits for transactions");
    cluster.run("COMMIT PREPARED 'slowly'");
    wait_for("two lines", || cluster.log().matches(" % of tablespace ").count() >= 2);
    assert!(
        cluster.log().contains("blocks, ") && cluster.log().contains("now in relation"),
        "{}",
        cluster.log()
    );
    finish_fast(&cluster);
    wait_until(&cluster, "encrypted");
    says("has ended: tablespace");
    assert_eq!(cluster.log().matches("begins: encrypt").count(), 1);
}

/// `tde pg check` says what is not covered: tablespaces in clear, a job that is not done, enforcement that is off.
#[test]
fn what_is_not_covered_is_reported() {
    let mut cluster = slow().start();
    cluster.plain_tablespace("ts");
    cluster.encrypted_tablespace("secure");
    cluster.run("CREATE TABLE safe TABLESPACE secure AS SELECT 1 AS id");
    cluster.run("CREATE TABLE bare TABLESPACE ts AS SELECT i FROM generate_series(1, 20000) i; CHECKPOINT");
    let check = |cluster: &Cluster| {
        let (data, pin) = (cluster.data().to_str().unwrap(), cluster.hsm().pin_file.to_str().unwrap());
        let done = run(&mut tde(cluster, &["pg", "check", "--json", data, "--pin-file", pin]));
        let report: Value = serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}", done.err));
        (done.code, report)
    };
    let names = |list: &Value| -> Vec<String> {
        // One without a key is named by its directory.
        let last = |one: &Value| one["tablespace"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        list.as_array().unwrap().iter().map(last).collect()
    };
    let said = |report: &Value, list: &str, text: &str| {
        report[list].as_array().unwrap().iter().any(|line| line.as_str().unwrap().contains(text))
    };
    let (code, report) = check(&cluster);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["coverage"]["enforced"], false);
    assert_eq!(names(&report["coverage"]["in_clear"]), ["pg_default", "pg_global", "ts"], "{report:#}");
    let file = cluster.file_of("bare");
    let file = file.file_name().unwrap().to_str().unwrap();
    let of_ts = &report["coverage"]["in_clear"][2];
    assert!(
        of_ts["files"].as_array().unwrap().iter().any(|f| f.as_str().unwrap().ends_with(file)),
        "{of_ts}"
    );
    assert!(said(&report, "notes", "pg_tde.enforce_encryption is off"), "{report:#}");
    assert!(said(&report, "notes", "/ts ("), "{report:#}");

    // A job that is not done.
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    wait_for("it rewrites", || jobs(&cluster).iter().any(|job| job["phase"] == "rewriting pages"));
    cluster.crash();
    let (code, report) = check(&cluster);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(names(&report["coverage"]["unfinished"]), ["ts"], "{report:#}");
    assert!(said(&report, "notes", "is encrypting: a job finishes it"), "{report:#}");

    // Promised, and not kept.
    cluster.configure("pg_tde.enforce_encryption", "on");
    cluster.configure("pg_tde.job_cost_delay", "0");
    cluster.start();
    wait_until(&cluster, "encrypted");
    cluster.stop();
    let (code, report) = check(&cluster);
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(names(&report["coverage"]["in_clear"]), ["pg_default", "pg_global"], "{report:#}");
    assert!(report["coverage"]["unfinished"].as_array().unwrap().is_empty(), "{report:#}");
    assert!(said(&report, "problems", "although pg_tde.enforce_encryption is on"), "{report:#}");
    assert!(!said(&report, "notes", "enforce_encryption is off"), "{report:#}");
}
