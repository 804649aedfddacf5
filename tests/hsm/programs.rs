//! SQLite programs and the `tde` command with their master key on a token.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tde_tests::sqlite::Sqlite;
use tde_tests::{Maker, Process, command_output, files};

use crate::bench::Bench;

/// Debian's Python with the stock SQLite and the extension, configured by the environment.
fn python(bench: &Bench, script: &str) -> Command {
    let mut command = bench.token.command("/usr/bin/python3");
    command
        .args(["-c", script])
        .env("EXTENSION", Sqlite::extension().with_extension(""))
        .env("TDE_HSM", bench.token.uri(""))
        .env("TDE_PIN_FILE", &bench.token.pin_file)
        .env("TDE_KEYRING", bench.path("ring"))
        .env("TDE_PKCS11_AGENT", Sqlite::tde_program().with_file_name("tde-pkcs11-agent"))
        .current_dir(bench.scratch.path());
    command
}

const OPEN: &str = "
import os, sqlite3
loader = sqlite3.connect(':memory:')
loader.enable_load_extension(True)
loader.load_extension(os.environ['EXTENSION'])
db = sqlite3.connect('file:app.db?vfs=tde', uri=True)
";

fn tde(bench: &Bench) -> Command {
    let mut command = bench.token.tde();
    command.env("TDE_KEYRING", bench.path("ring")).current_dir(bench.scratch.path());
    command
}

#[test]
fn a_sqlite_database_is_written_read_rotated_and_rewrapped_under_a_token() {
    for maker in Maker::ALL {
        let bench = Bench::with_key_of(maker, "");
        let write = format!(
            "{OPEN}
db.execute('CREATE TABLE t (s)')
db.executemany('INSERT INTO t VALUES (?)', [('canary-%d' % i,) for i in range(2000)])
db.commit()
print(open('/proc/self/maps').read().count('softhsm') + open('/proc/self/maps').read().count('tde_pkcs11'))"
        );
        assert_eq!(
            command_output(&mut python(&bench, &write)).trim(),
            "0",
            "the library is in the agent only"
        );
        let bytes = fs::read(bench.path("app.db")).unwrap();
        assert!(!files::contains(&bytes, b"canary-17"));
        let read = format!(
            "{OPEN}\nprint(db.execute(\"SELECT count(*) FROM t WHERE s LIKE 'canary-%'\").fetchone()[0])"
        );
        assert_eq!(command_output(&mut python(&bench, &read)).trim(), "2000");

        command_output(tde(&bench).args(["sqlite", "rotate", "app.db"]));
        let rewrapped = command_output(tde(&bench).args(["keyring", "rewrap", "--new-version"]));
        assert!(rewrapped.contains('2'), "{rewrapped}");
        command_output(tde(&bench).args(["sqlite", "verify", "app.db"]));
        command_output(tde(&bench).args(["keyring", "verify"]));
        assert_eq!(command_output(&mut python(&bench, &read)).trim(), "2000");

        // A child that was forked logs in by itself; its parent's session goes on.
        let fork = format!(
            "{OPEN}
count = \"SELECT count(*) FROM t\"
db.execute(count).fetchone()
pid = os.fork()
if pid == 0:
    other = sqlite3.connect('file:app.db?vfs=tde', uri=True)
    os._exit(0 if other.execute(count).fetchone()[0] == 2000 else 1)
assert os.waitpid(pid, 0)[1] == 0
second = sqlite3.connect('file:second.db?vfs=tde', uri=True)
second.execute('CREATE TABLE x (y)')
print(db.execute(count).fetchone()[0])"
        );
        assert_eq!(command_output(&mut python(&bench, &fork)).trim(), "2000");
    }
}

#[test]
fn an_sqlite_program_without_its_token_says_so() {
    for maker in Maker::ALL {
        let bench = Bench::with_key_of(maker, "");
        command_output(&mut python(&bench, &format!("{OPEN}\ndb.execute('CREATE TABLE t (s)')")));
        let read = format!("{OPEN}\nprint(db.execute('SELECT count(*) FROM t').fetchone()[0])");
        bench.token.unplug();
        let away = python(&bench, &read).env("TDE_SQLITE_LOG", "stderr").output().unwrap();
        let said = String::from_utf8_lossy(&away.stderr);
        assert!(!away.status.success() && said.contains("HSM away"), "{said}");
        bench.token.plug_in();
        assert_eq!(command_output(&mut python(&bench, &read)).trim(), "0");
        fs::write(&bench.token.pin_file, "wrong-9876543").unwrap();
        let refused = python(&bench, &read).env("TDE_SQLITE_LOG", "stderr").output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("wrong PIN") && !said.contains("9876543"), "{said}");
    }
}

#[test]
fn the_command_makes_shows_and_destroys_versions() {
    let bench = Bench::new();
    let none = command_output(bench.token.tde().args(["hsm", "token", "status"]));
    assert!(none.contains("create-key") && none.contains("tde test"), "{none}");
    let made = command_output(bench.token.tde().args(["hsm", "token", "create-key"]));
    assert!(made.contains("master") && made.contains("SoftHSM"), "{made}");
    let twice = bench.token.tde().args(["hsm", "token", "create-key"]).output().unwrap();
    assert!(!twice.status.success());
    command_output(tde(&bench).args(["keyring", "create"]));
    command_output(tde(&bench).args(["keyring", "rewrap", "--new-version"]));
    let destroy = |confirm: &str| {
        let mut command = bench.token.tde();
        command.args(["hsm", "token", "destroy-version", "--key-version", "1", "--confirm", confirm]);
        command.output().unwrap()
    };
    let unsure = destroy("mistress");
    assert!(String::from_utf8_lossy(&unsure.stderr).contains("\"master\""));
    let destroyed = destroy("master");
    assert!(String::from_utf8_lossy(&destroyed.stdout).contains("1 (destroyed), 2"));
    command_output(tde(&bench).args(["keyring", "verify"]));
    // The commands for the HSM in the process do not take a token's URI for a directory.
    let soft = bench.token.tde().args(["hsm", "status"]).output().unwrap();
    assert!(String::from_utf8_lossy(&soft.stderr).contains("soft:"));
    let in_uri =
        tde(&bench).args(["keyring", "list", "--hsm", "pkcs11:token=x?pin-value=98765"]).output().unwrap();
    let said = String::from_utf8_lossy(&in_uri.stderr);
    assert!(said.contains("pin-value is refused") && !said.contains("98765"), "{said}");
}

#[test]
fn the_pin_may_come_from_the_file_that_the_uri_names() {
    let bench = Bench::with_key("");
    let uri = bench.token.uri(&format!("&pin-source={}", bench.token.pin_file.display()));
    let mut status = bench.token.tde();
    status.args(["hsm", "token", "status", "--hsm", &uri]).env_remove("TDE_PIN_FILE");
    assert!(command_output(&mut status).contains("master"));
}

/// A library that hangs must not keep its process alive when whoever started it is gone.
#[test]
fn the_agent_ends_when_the_program_is_killed() {
    let bench = Bench::with_key("");
    let (module, trigger) = bench.token.module_that("hangs", "for (;;) pause();");
    fs::write(&trigger, "").unwrap();
    let mut command = bench.token.tde();
    command.args(["hsm", "token", "status", "--hsm", &bench.token.uri_with(&module, "")]);
    let mut program = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begin = Instant::now();
    let agent = loop {
        let children = Process::find(program.id() as i32).unwrap().children();
        if let [agent] = children[..] {
            break agent;
        }
        assert!(begin.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    };
    // Inside the library by now.
    std::thread::sleep(Duration::from_millis(300));
    Process::find(program.id() as i32).unwrap().signal(Signal::KILL);
    program.wait().unwrap();
    let begin = Instant::now();
    while agent.alive() {
        assert!(begin.elapsed() < Duration::from_secs(15), "the agent is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A token of another user's or of a production server must not be taken by accident.
#[test]
fn among_several_tokens_one_must_be_named() {
    let bench = Bench::with_key("");
    let mut second = bench.token.command("softhsm2-util");
    second.args([
        "--init-token",
        "--free",
        "--label",
        "second",
        "--so-pin",
        "so-pin-1234",
        "--pin",
        "other-pin",
    ]);
    command_output(&mut second);
    let uri = bench.token.uri("").replace("token=tde%20test;", "");
    let unnamed = bench.try_open(&uri, &bench.token.pin).unwrap_err().to_string();
    assert!(unnamed.contains("several tokens") && unnamed.contains("\"second\""), "{unnamed}");
    bench.open("");
}
