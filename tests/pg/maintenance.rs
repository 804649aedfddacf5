//! `tde rotate --config` over real servers and real SQLite files.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use serde_json::Value;
use tde_tests::sqlite::Sqlite;
use tde_tests::{Cluster, Process};

use crate::filled::{fill, sums};

/// A server whose jobs are slow: about 50 pages a second.
fn slow() -> Cluster {
    let cluster =
        Cluster::builder().conf("pg_tde.job_cost_limit", "2").conf("pg_tde.job_cost_delay", "0").start();
    cluster.encrypted_tablespace("ts");
    fill(&mut cluster.connect("postgres"), 5000);
    set_delay(&cluster, "40ms");
    cluster
}

fn set_delay(cluster: &Cluster, delay: &str) {
    cluster.configure("pg_tde.job_cost_delay", delay);
    cluster.run("SELECT pg_reload_conf()");
}

fn state(cluster: &Cluster) -> (String, i64) {
    let row = cluster.rows("SELECT state, key_version FROM tde.tablespaces WHERE name = 'ts'").remove(0);
    (row[0].clone(), row[1].parse().unwrap())
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A keyring with databases, and a configuration beside them.
struct Site {
    sqlite: Sqlite,
}

struct Done {
    code: i32,
    err: String,
    out: String,
}

impl Done {
    fn report(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}{}", self.out, self.err))
    }

    /// The result of what was to be done with an object of a target.
    fn result(&self, target: &str, object: &str) -> (String, String) {
        let report = self.report();
        let entries = report["entries"].as_array().unwrap();
        let found = entries
            .iter()
            .find(|entry| entry["target"] == target && entry["object"].as_str().unwrap().ends_with(object));
        let found = found.unwrap_or_else(|| panic!("no {object} of {target}: {}", self.out));
        let text = |name: &str| found[name].as_str().unwrap().to_owned();
        (text("action"), text("result"))
    }
}

impl Site {
    fn new() -> Self {
        Self { sqlite: Sqlite::new() }
    }

    fn config(&self) -> PathBuf {
        self.sqlite.dir().join("rotate.toml")
    }

    fn write(&self, text: &str) {
        let mut text = text.to_owned();
        for (name, path) in [("RING", &self.sqlite.keyring), ("STORE", &self.sqlite.store)] {
            text = text.replace(name, path.to_str().unwrap());
        }
        text = text.replace("PINFILE", self.sqlite.pin_file.to_str().unwrap());
        text = text.replace("DATA", self.sqlite.data.to_str().unwrap());
        fs::write(self.config(), text).unwrap();
        fs::set_permissions(self.config(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Sqlite::tde_program());
        command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").env("PGUSER", "postgres");
        command.args(["rotate", "--json", "--config"]).arg(self.config()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self) -> Child {
        self.command(&[]).spawn().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Done {
        end(self.command(arguments).spawn().unwrap())
    }

    fn open(&self, name: &str) -> Connection {
        static REGISTERED: Once = Once::new();
        REGISTERED.call_once(|| {
            tde_rusqlite::Vfs::builder().register().unwrap();
        });
        let Sqlite { store, pin_file, keyring, .. } = &self.sqlite;
        let (file, keyring) = (self.sqlite.file(name), keyring.display());
        let (store, pin) = (store.display(), pin_file.display());
        let uri =
            format!("file:{}?vfs=tde&keyring={keyring}&hsm=soft:{store}&pin_file={pin}", file.display());
        Connection::open(uri).unwrap_or_else(|e| panic!("{e}: {}", tde_rusqlite::last_error()))
    }

    fn database(&self, name: &str, rows: u32) {
        let db = self.open(name);
        // Without a WAL what is rewritten is in the file at once.
        db.execute_batch("CREATE TABLE t(x); BEGIN").unwrap();
        for row in 0..rows {
            db.execute("INSERT INTO t VALUES (?1 || printf('%900d', 7))", [row]).unwrap();
        }
        db.execute_batch("COMMIT").unwrap();
    }

    fn rows(&self, name: &str) -> i64 {
        let db = self.open(name);
        let whole: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(whole, "ok");
        db.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    /// Pages by the key they are under.
    fn pages(&self, name: &str) -> Value {
        let mut info = Command::new(Sqlite::tde_program());
        let info = info.args(["sqlite", "info", "--json"]).arg(self.sqlite.file(name)).output().unwrap();
        serde_json::from_slice::<Value>(&info.stdout).unwrap()["pages_by_key_version"].clone()
    }
}

fn end(child: Child) -> Done {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

fn connect(cluster: &Cluster) -> String {
    format!("host={} port=5432", cluster.dir().join("sock").display())
}

fn postgresql(name: &str, cluster: &Cluster) -> String {
    format!("[[postgresql]]\nname = \"{name}\"\nconnect = \"{}\"\n", connect(cluster))
}

const SQLITE: &str = "[[sqlite]]\nname = \"notes\"\nfiles = [\"DATA/*.db\"]\nkeyring = \"RING\"\nhsm = \"soft:STORE\"\n\
    pin_file = \"PINFILE\"\n";

fn interrupt(child: &Child, signal: Signal) {
    Process::find(child.id() as i32).unwrap().signal(signal);
}

/// Two clusters, one that is down, two SQLite files: what can be done is done, and said.
#[test]
fn a_run_does_what_is_due_whatever_is_down() {
    let site = Site::new();
    let clusters = [slow(), Cluster::builder().conf("pg_tde.encrypt_wal", "on").start()];
    set_delay(&clusters[0], "0");
    clusters[1].encrypted_tablespace("ts");
    fill(&mut clusters[1].connect("postgres"), 500);
    let down = Cluster::builder().create();
    let before = clusters.each_ref().map(|cluster| sums(&mut cluster.connect("postgres")));
    site.database("a.db", 50);
    site.database("b.db", 60);
    fs::write(site.sqlite.file("notes.db"), "no database").unwrap();
    let targets = postgresql("one", &clusters[0]) + &postgresql("two", &clusters[1]) + SQLITE;
    let with_down = postgresql("down", &down) + &targets;
    let due = "at_most = 2\n[policy]\ndata_keys_older_than_days = 0\nmaster_key_older_than_days = 0\n";

    // A dry run says all of it and changes nothing.
    site.write(&format!("{due}{with_down}"));
    let dry = site.run(&["--dry-run"]);
    assert_eq!(dry.code, 1, "one is down: {}", dry.err);
    for (target, object, action) in [
        ("one", "tablespace ts", "rotate-data-key"),
        ("two", "tablespace ts", "rotate-data-key"),
        ("two", "write-ahead log", "rotate-data-key"),
        ("one", "master key", "rotate-master-key"),
        ("notes", "master key", "rotate-master-key"),
        ("notes", "/a.db", "rotate-data-key"),
        ("notes", "/b.db", "rotate-data-key"),
    ] {
        assert_eq!(
            dry.result(target, object),
            (action.to_owned(), "planned".to_owned()),
            "{target} {object}"
        );
    }
    assert_eq!(dry.result("down", "server"), ("look".to_owned(), "failed".to_owned()));
    assert!(dry.out.contains("key version 1 is 0.0 days old, limit 0 days"), "{}", dry.out);
    assert!(!dry.out.contains("notes.db"), "a pattern may fit other files: {}", dry.out);
    assert!(clusters.iter().all(|cluster| state(cluster) == ("encrypted".into(), 1)));
    assert_eq!(site.pages("a.db").as_object().unwrap().keys().collect::<Vec<_>>(), ["1"]);

    // The same for real.
    let done = site.run(&[]);
    assert_eq!(done.code, 1, "{}\n{}", done.out, done.err);
    let report = done.report();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&report), ["config", "dry_run", "ended", "entries", "exit_code", "started", "window"]);
    assert_eq!(
        keys(&report["entries"][0]),
        ["action", "detail", "kind", "object", "result", "seconds", "target"]
    );
    let failed: Vec<_> =
        report["entries"].as_array().unwrap().iter().filter(|e| e["result"] != "done").collect();
    assert_eq!(failed.len(), 1, "{}", done.out);
    assert_eq!(failed[0]["target"], "down");
    for (cluster, before) in clusters.iter().zip(&before) {
        assert_eq!(state(cluster), ("encrypted".into(), 2));
        assert_eq!(&sums(&mut cluster.connect("postgres")), before);
        assert_eq!(cluster.text("SELECT min(master_key_version) FROM tde.keys"), "2");
        assert_eq!(cluster.text("SELECT version FROM tde.master_key_versions() WHERE newest"), "2");
    }
    assert_eq!(clusters[1].text("SELECT key_version FROM tde.wal_status()"), "2");
    for (name, rows) in [("a.db", 50), ("b.db", 60)] {
        assert_eq!(site.pages(name).as_object().unwrap().keys().collect::<Vec<_>>(), ["2"]);
        assert_eq!(site.rows(name), rows);
    }
    assert!(done.err.contains("one: tablespace ts: rotate data key: begins"), "{}", done.err);

    // Now all are young.
    let young = due.replace("= 0", "= 1");
    site.write(&format!("{young}{targets}"));
    let again = site.run(&[]);
    assert_eq!(again.code, 0, "{}\n{}", again.out, again.err);
    let report = again.report();
    assert!(report["entries"].as_array().unwrap().len() >= 7, "{}", again.out);
    assert!(
        report["entries"].as_array().unwrap().iter().all(|e| e["result"] == "nothing-to-do"),
        "{}",
        again.out
    );
    // For people: a table and a sum.
    let mut people = Command::new(Sqlite::tde_program());
    people.args(["rotate", "--config"]).arg(site.config()).env("PGUSER", "postgres");
    let people = String::from_utf8(people.output().unwrap().stdout).unwrap();
    assert!(people.contains("TARGET") && people.contains("nothing to do."), "{people}");
}

/// At most one at a time; killed; the next run finishes what was begun and does the rest, two at a time.
#[test]
fn a_killed_run_is_finished_by_the_next() {
    let site = Site::new();
    let clusters = [slow(), slow()];
    let before = clusters.each_ref().map(|cluster| sums(&mut cluster.connect("postgres")));
    let targets = postgresql("one", &clusters[0]) + &postgresql("two", &clusters[1]);
    let config =
        |at_most: u32| format!("at_most = {at_most}\n[policy]\ndata_keys_older_than_days = 0\n{targets}");
    site.write(&config(1));
    let mut first = site.start();
    let rotating = || clusters.iter().filter(|cluster| state(cluster).0 == "rotating").count();
    wait_for("the first is rotating", || rotating() == 1);
    for _ in 0..30 {
        assert_eq!(rotating(), 1, "one at a time");
        thread::sleep(Duration::from_millis(30));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(rotating(), 1, "its job goes on");
    let begun = clusters.iter().position(|cluster| state(cluster).0 == "rotating").unwrap();
    site.write(&config(2));
    let second = site.start();
    wait_for("both are rotating", || rotating() == 2);
    clusters.iter().for_each(|cluster| set_delay(cluster, "0"));
    let second = end(second);
    assert_eq!(second.code, 0, "{}\n{}", second.out, second.err);
    let names = ["one", "two"];
    let result = |index: usize| second.result(names[index], "tablespace ts");
    assert_eq!(result(begun), ("finish-rotation".into(), "done".into()));
    assert_eq!(result(1 - begun), ("rotate-data-key".into(), "done".into()));
    for (cluster, before) in clusters.iter().zip(&before) {
        assert_eq!(state(cluster), ("encrypted".into(), 2));
        assert_eq!(&sums(&mut cluster.connect("postgres")), before);
    }
}

/// A file whose rotation was killed has pages under two keys; the next run brings all under the newer one.
#[test]
fn a_killed_run_leaves_a_sqlite_file_to_the_next() {
    let site = Site::new();
    site.database("a.db", 2000);
    let config = |rate: &str| format!("[policy]\ndata_keys_older_than_days = 0\n{rate}\n{SQLITE}");
    site.write(&config("max_rate_mib = 0.5"));
    let keys = |site: &Site| site.pages("a.db").as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let newer = |site: &Site| site.pages("a.db")["2"].as_u64().unwrap_or(0);
    for signal in [Signal::KILL, Signal::TERM] {
        let before = newer(&site);
        let child = site.start();
        wait_for("some pages", || newer(&site) > before);
        let second = site.run(&[]);
        assert_eq!(second.code, 4, "{}", second.err);
        assert!(second.err.contains("another run with this configuration"), "{}", second.err);
        interrupt(&child, signal);
        let ended = end(child);
        if signal == Signal::TERM {
            assert_eq!(ended.code, 143, "{}", ended.out);
            assert_eq!(ended.result("notes", "/a.db"), ("finish-rotation".into(), "paused".into()));
        }
        assert_eq!(keys(&site), ["1", "2"]);
        assert_eq!(site.rows("a.db"), 2000);
    }
    site.write(&config(""));
    let dry = site.run(&["--dry-run"]);
    assert_eq!(dry.result("notes", "/a.db"), ("finish-rotation".into(), "planned".into()));
    let done = site.run(&[]);
    assert_eq!(done.code, 0, "{}\n{}", done.out, done.err);
    assert_eq!(done.result("notes", "/a.db"), ("finish-rotation".into(), "done".into()));
    assert_eq!(keys(&site), ["2"], "no key but the one of the first run");
    assert_eq!(site.rows("a.db"), 2000);
}

/// Nothing begins outside of the window; what runs at its end is paused if that is wanted, and goes on in the next one.
#[test]
fn the_window_is_kept() {
    let site = Site::new();
    let cluster = slow();
    site.database("a.db", 20);
    let at = |seconds: i64| {
        let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        time.to_zoned(jiff::tz::TimeZone::UTC).strftime("%H:%M:%S").to_string()
    };
    let config = |from: i64, to: i64, pause: bool| {
        let (from, to) = (at(from), at(to));
        let window = format!(
            "[window]\nfrom = \"{from}\"\nto = \"{to}\"\ntime_zone = \"UTC\"\npause_running = {pause}\n"
        );
        format!("[policy]\ndata_keys_older_than_days = 0\n{window}{}", postgresql("one", &cluster))
    };
    site.write(&(config(3600, 7200, true) + SQLITE));
    let closed = site.run(&[]);
    assert_eq!(closed.code, 3, "{}", closed.err);
    assert_eq!(closed.result("one", "tablespace ts"), ("rotate-data-key".into(), "not-started".into()));
    assert_eq!(closed.result("notes", "/a.db"), ("rotate-data-key".into(), "not-started".into()));
    assert_eq!((&closed.report()["window"]["open"], state(&cluster).1), (&false.into(), 1));

    // The rotation would take half a minute.
    set_delay(&cluster, "200ms");
    site.write(&config(-3600, 8, true));
    let ended = site.run(&[]);
    assert_eq!(ended.code, 3, "{}\n{}", ended.out, ended.err);
    assert_eq!(ended.result("one", "tablespace ts"), ("rotate-data-key".into(), "paused".into()));
    assert_eq!(cluster.text("SELECT phase FROM tde.job_progress"), "paused");
    assert_eq!(state(&cluster), ("rotating".into(), 2));

    // Without the setting a paused job is somebody's who has reasons.
    site.write(&config(-3600, 3600, false));
    let left = site.run(&[]);
    assert_eq!((left.code, left.result("one", "tablespace ts").1), (3, "paused".into()), "{}", left.out);
    assert!(left.out.contains("tde job resume"), "{}", left.out);

    set_delay(&cluster, "0");
    site.write(&config(-3600, 3600, true));
    let done = site.run(&[]);
    assert_eq!(done.code, 0, "{}\n{}", done.out, done.err);
    assert_eq!(done.result("one", "tablespace ts"), ("finish-rotation".into(), "done".into()));
    assert_eq!(state(&cluster), ("encrypted".into(), 2));
}

/// Ctrl-C leaves the server's job running; a throttle is set in the server; the server may restart meanwhile.
#[test]
fn a_run_can_be_stopped_and_throttles() {
    let site = Site::new();
    let mut cluster = slow();
    let policy = "[policy]\ndata_keys_older_than_days = 0\nmax_rate_mib = 0.5\n";
    site.write(&format!("{policy}{}", postgresql("one", &cluster)));
    let child = site.start();
    wait_for("it rotates", || state(&cluster).0 == "rotating");
    assert_eq!(cluster.text("SHOW pg_tde.job_cost_delay"), "2s");
    assert_eq!(cluster.text("SHOW pg_tde.job_cost_limit"), "128");
    interrupt(&child, Signal::INT);
    let stopped = end(child);
    assert_eq!(stopped.code, 130, "{}\n{}", stopped.out, stopped.err);
    assert_eq!(stopped.result("one", "tablespace ts").1, "running");
    assert_eq!(state(&cluster).0, "rotating");
    // Watched over a crash of the server.
    let child = site.start();
    thread::sleep(Duration::from_secs(1));
    cluster.crash_and_recover();
    thread::sleep(Duration::from_secs(1));
    cluster.run("ALTER SYSTEM RESET ALL");
    set_delay(&cluster, "0");
    let done = end(child);
    assert_eq!(done.code, 0, "{}\n{}", done.out, done.err);
    assert_eq!(done.result("one", "tablespace ts"), ("finish-rotation".into(), "done".into()));
}

/// What cannot be used is refused before anything is done; no secret is repeated.
#[test]
fn a_configuration_is_checked_first() {
    let site = Site::new();
    site.database("a.db", 5);
    let policy = "[policy]\ndata_keys_older_than_days = 0\n";
    let refused = |text: &str, expected: &str| {
        site.write(text);
        let done = site.run(&[]);
        assert_eq!(done.code, 2, "{text}: {}", done.err);
        assert!(done.err.contains(expected) && !done.err.contains("98765"), "{text}: {}", done.err);
    };
    refused(&format!("{policy}{SQLITE}pin = \"98765\"\n"), "holds a secret");
    refused(&format!("{policy}{SQLITE}colour = \"red\"\n"), "unknown field");
    refused(&format!("{policy}[[postgresql]]\nconnect = \"host=a password=98765\"\n"), "has a password");
    refused(policy, "neither a [[postgresql]] nor a [[sqlite]]");
    site.write(&format!("{policy}{SQLITE}"));
    fs::set_permissions(site.config(), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(site.run(&[]).err.contains("can be written by others"));
    fs::set_permissions(site.config(), fs::Permissions::from_mode(0o600)).unwrap();
    let file = fs::File::open(site.config()).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    assert_eq!(site.run(&[]).code, 4);
    drop(file);
    // A systemd credential is a file in a directory that the service alone can read, whatever its mode says.
    let credentials = site.sqlite.dir().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::copy(&site.sqlite.pin_file, credentials.join("tde-pin")).unwrap();
    fs::set_permissions(credentials.join("tde-pin"), fs::Permissions::from_mode(0o440)).unwrap();
    site.write(&format!(
        "{policy}{}",
        SQLITE.replace("pin_file = \"PINFILE\"", "pin_credential = \"tde-pin\"")
    ));
    assert_eq!(site.run(&[]).code, 2, "no such service");
    let done = end(site.command(&[]).env("CREDENTIALS_DIRECTORY", &credentials).spawn().unwrap());
    assert_eq!(done.code, 0, "{}\n{}", done.out, done.err);
    assert_eq!(site.pages("a.db").as_object().unwrap().keys().collect::<Vec<_>>(), ["2"]);
    // What is missing or damaged fails by itself.
    site.database("b.db", 5);
    let mut bytes = fs::read(site.sqlite.file("a.db")).unwrap();
    bytes[5000] ^= 1;
    fs::write(site.sqlite.file("a.db"), bytes).unwrap();
    let files = "\"DATA/*.db\", \"DATA/none.db\"";
    site.write(&format!("{policy}{}", SQLITE.replace("\"DATA/*.db\"", files)));
    let done = site.run(&[]);
    assert_eq!(done.code, 1, "{}", done.out);
    assert_eq!(done.result("notes", "/none.db").1, "failed");
    assert_eq!(done.result("notes", "/a.db").1, "failed");
    assert_eq!(done.result("notes", "/b.db").1, "done");
}

/// The example units: systemd takes them, and they name what is installed.
#[test]
fn the_systemd_units_are_right() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples/systemd");
    let scratch = tempfile::tempdir().unwrap();
    for name in ["tde-rotate.service", "tde-rotate.timer"] {
        let text = fs::read_to_string(examples.join(name)).unwrap();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with(['#', ';', '['])) {
            assert!(line.contains('='), "{name}: {line}");
        }
        // Where the program is on this machine.
        let program = Sqlite::tde_program();
        fs::write(scratch.path().join(name), text.replace("/usr/local/bin/tde", program.to_str().unwrap()))
            .unwrap();
    }
    let service = fs::read_to_string(examples.join("tde-rotate.service")).unwrap();
    assert!(service.contains("ExecStart=/usr/local/bin/tde rotate --config "), "{service}");
    assert!(service.contains("SuccessExitStatus=3"), "a closed window is no failure");
    let units = ["tde-rotate.service", "tde-rotate.timer"].map(|name| scratch.path().join(name));
    let verified = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units).output();
    // Not on every machine; the parts that this program needs are checked above.
    if let Ok(verified) = verified {
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let about_us: Vec<_> = said.lines().filter(|line| line.contains("tde-rotate")).collect();
        assert!(about_us.is_empty(), "{said}");
    }
}
