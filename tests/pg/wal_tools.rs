//! Stock tools on encrypted WAL through `tde exec`, and what becomes of WAL that tools wrote without it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, command_output, files};

use crate::wal::{encrypted, settled};

const CANARY: &[u8] = b"canary-of-the-tools";

/// `tde` with the keys of the cluster `of`, whose keyring is in `data`.
fn tde(of: &Cluster, data: &Path, arguments: &[&str]) -> Command {
    let mut command = of.tool("psql");
    let environment: Vec<_> =
        command.get_envs().map(|(n, v)| (n.to_owned(), v.map(OsStr::to_owned))).collect();
    command = of.root().command(of.root().tde());
    command.envs(environment.into_iter().filter_map(|(name, value)| Some((name, value?))));
    command.arg(arguments[0]).args(&arguments[1..]);
    command.env("TDE_HSM", format!("soft:{}", of.hsm().store.display()));
    command.env("TDE_PIN_FILE", &of.hsm().pin_file).env("TDE_KEYRING", data.join("pg_tde"));
    command
}

/// `tde exec -- TOOL`
fn exec(of: &Cluster, tool: &str) -> Command {
    let mut command = tde(of, of.data(), &["exec", "--"]);
    command.arg(of.root().bin(tool));
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn folder(cluster: &Cluster, name: &str) -> PathBuf {
    let dir = cluster.dir().join(name);
    fs::create_dir(&dir).unwrap();
    cluster.root().own(&dir);
    dir
}

fn fill(cluster: &Cluster, table: &str) {
    cluster.run(&format!(
        "CREATE TABLE {table} AS SELECT i, 'canary-of-the-tools-' || md5(i::text) AS secret FROM generate_series(1, 20000) i"
    ));
}

fn rows(cluster: &Cluster, table: &str) -> i64 {
    cluster.int(&format!("SELECT count(*) FROM {table} WHERE secret LIKE 'canary-of-the-tools-%'"))
}

fn no_canary(dir: &Path) {
    assert_eq!(files::files_with(dir, CANARY), Vec::<PathBuf>::new());
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(90), "not so after 90 s: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Ends with its test, also with one that fails.
struct Receiver(Child);

impl Receiver {
    fn start(command: &mut Command, into: &Path) -> Self {
        let receiver = Self(command.arg("-D").arg(into).stderr(Stdio::null()).spawn().unwrap());
        wait_until("something was received", || !files::files_below(into).is_empty());
        receiver
    }
}

impl Receiver {
    fn ends(mut self) {
        let begin = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(60), "pg_receivewal goes on without its server");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The same WAL twice, received in clear and received through `tde exec`, beside what the server wrote: every view of it is the same.
#[test]
fn wal_that_is_received_and_shown_through_tde_exec_is_that_of_a_plain_twin() {
    let cluster = encrypted().conf("wal_keep_size", "256MB").start();
    settled(&cluster);
    let (clear, sealed) = (folder(&cluster, "clear"), folder(&cluster, "sealed"));
    let receivers = [
        Receiver::start(&mut cluster.tool("pg_receivewal"), &clear),
        Receiver::start(&mut exec(&cluster, "pg_receivewal"), &sealed),
    ];
    let first = cluster.text("SELECT pg_switch_wal()");
    let begin = cluster.text("SELECT pg_current_wal_insert_lsn()");
    let from = cluster.text("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    assert!(first < begin || first.len() < begin.len());
    fill(&cluster, "before");
    assert_eq!(cluster.int("SELECT tde.rotate_wal_key()"), 2);
    fill(&cluster, "after");
    let end = cluster.text("SELECT pg_logical_emit_message(true, 'x', 'y')");
    let last = cluster.text("SELECT pg_walfile_name(pg_switch_wal())");
    cluster.run("SELECT pg_logical_emit_message(true, 'x', 'y')");
    for dir in [&clear, &sealed] {
        wait_until("all was received", || dir.join(&last).exists());
    }
    drop(receivers);
    assert!(!files::files_with(&clear, CANARY).is_empty());
    no_canary(&sealed);
    let of_server = cluster.data().join("pg_wal");
    let received: Vec<_> =
        files::files_below(&sealed).into_iter().filter(|p| p.extension().is_none()).collect();
    assert!(received.len() > 4, "{received:?}");
    // XTS is deterministic: under the same version of the key the same bytes. The receiver keeps the version that it began with.
    let same = received.iter().filter(|path| {
        fs::read(path).unwrap() == fs::read(of_server.join(path.file_name().unwrap())).unwrap()
    });
    assert!(same.count() >= 1, "nothing received before the rotation is as the server stored it");

    for options in [&["--stats=record"][..], &[], &["-b"], &["-r", "Heap"]] {
        let range = ["-s", &begin, "-e", &end, "-t", "1", "-p"];
        let plain = cluster.tool("pg_waldump").args(options).args(range).arg(&clear).output().unwrap();
        assert!(plain.status.success() && plain.stdout.len() > 500, "{}", text(&plain));
        for dir in [&sealed, &of_server] {
            let shown = exec(&cluster, "pg_waldump").args(options).args(range).arg(dir).output().unwrap();
            assert_eq!(shown.status, plain.status, "{}", text(&shown));
            assert!(
                shown.stdout == plain.stdout && shown.stderr == plain.stderr,
                "{options:?} {}",
                dir.display()
            );
        }
    }
    // A single segment, named by its path; and without the keys nothing is shown of it.
    let of = |mut tool: Command, dir: &Path| tool.arg(dir.join(&from)).output().unwrap();
    let (plain, shown) =
        (of(cluster.tool("pg_waldump"), &clear), of(exec(&cluster, "pg_waldump"), &of_server));
    assert!(plain.stdout == shown.stdout && !plain.stdout.is_empty(), "{}", text(&shown));
    let raw = of(cluster.tool("pg_waldump"), &of_server);
    assert!(!raw.status.success() && raw.stdout.is_empty(), "{}", text(&raw));
}

/// Exit codes, signals, wrapper scripts, and what must not be left to be read.
#[test]
fn a_command_runs_as_without_tde_exec() {
    let cluster = encrypted().start();
    settled(&cluster);
    let sh = |script: &str| {
        let mut command = tde(&cluster, cluster.data(), &["exec", "--", "/bin/sh", "-c", script]);
        command.env("WAL", cluster.data().join("pg_wal")).env("BIN", cluster.root().bin(""));
        command.output().unwrap()
    };
    assert_eq!(sh("exit 7").status.code(), Some(7));
    assert_eq!(sh("kill -TERM $$").status.signal(), Some(15));
    // Two tools, one after the other, behind a shell; the pipe that a reader leaves ends the writer.
    cluster.run("SELECT pg_logical_emit_message(true, 'x', 'y')");
    let first = format!("$WAL/{}", cluster.text("SELECT pg_walfile_name(pg_current_wal_lsn())"));
    let twice =
        sh(&format!("\"$BIN\"/pg_waldump {first} | head -n 1; \"$BIN\"/pg_waldump {first} | head -n 1"));
    let lines: Vec<_> = text(&twice).lines().map(str::to_owned).collect();
    assert!(lines.len() >= 2 && lines[0].starts_with("rmgr:"), "{lines:?}");
    let missing = exec(&cluster, "pg_waldump").arg("/nowhere/000000010000000000000001").output().unwrap();
    let plain = cluster.tool("pg_waldump").arg("/nowhere/000000010000000000000001").output().unwrap();
    assert_eq!((missing.status, missing.stderr), (plain.status, plain.stderr));
    let none = tde(&cluster, cluster.data(), &["exec", "--", "/nowhere/tool"]).output().unwrap();
    assert_eq!(none.status.code(), Some(2), "{}", text(&none));
    // A descriptor number is all that the environment has; nothing lies in a file.
    let seen = text(&sh("env | grep TDE_EXEC; ls -l /proc/self/fd/$TDE_EXEC_KEYS; ulimit -c"));
    assert!(seen.contains("TDE_EXEC_KEYS=1") && seen.contains("pipe:["), "{seen}");
    // A tool with the library but without the keys does not run.
    let library = cluster.root().tde().with_file_name("../lib/libtde_preload.so");
    for (name, value) in [("TDE_EXEC_KEYS", "77"), ("X", "")] {
        let mut bare = cluster.tool("pg_receivewal");
        let output = bare.arg("-V").env("LD_PRELOAD", &library).env(name, value).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains("tde exec"), "{}", text(&output));
    }
}

/// What pg_receivewal stores through `tde exec` is an archive that a server recovers from, to its last byte.
#[test]
fn a_server_recovers_from_what_was_received_through_tde_exec() {
    let mut primary = encrypted().conf("wal_keep_size", "256MB").start();
    settled(&primary);
    let sealed = folder(&primary, "sealed");
    let receiver = Receiver::start(&mut exec(&primary, "pg_receivewal"), &sealed);
    let mut restored = Cluster::backup_of(&primary, &["--checkpoint=fast", "--wal-method=none"], || ());
    fill(&primary, "t");
    // pg_receivewal goes on in the file that a killed one left.
    drop(receiver);
    primary.run("INSERT INTO t SELECT i, 'canary-of-the-tools-' FROM generate_series(1, 5000) i");
    let mut again = exec(&primary, "pg_receivewal");
    let receiver = Receiver::start(again.arg("--no-loop"), &sealed);
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    wait_until("it is connected", || primary.int(streaming) == 1);
    primary.run("INSERT INTO t SELECT i, 'canary-of-the-tools-' FROM generate_series(1, 5000) i");
    let last = primary.text("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    // The server waits until it has sent everything, and closes the connection.
    primary.stop();
    receiver.ends();
    let partial = sealed.join(format!("{last}.partial"));
    if partial.exists() {
        fs::rename(&partial, sealed.join(&last)).unwrap();
    }
    no_canary(&sealed);
    restored.configure("restore_command", &format!("cp {}/%f %p", sealed.display()));
    restored.configure("recovery_target_action", "promote");
    fs::write(restored.data().join("recovery.signal"), "").unwrap();
    restored.root().own(&restored.data().join("recovery.signal"));
    restored.start();
    wait_until("recovered", || restored.text("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(rows(&restored, "t"), 30_000);
    no_canary(&restored.data().join("pg_wal"));
}

#[test]
fn a_base_backup_with_streamed_wal_is_encrypted_verified_and_starts() {
    let primary = encrypted().start();
    settled(&primary);
    fill(&primary, "t");
    let backup = |name: &str, arguments: &[&str]| {
        let mut command = exec(&primary, "pg_basebackup");
        command.arg("-D").arg(primary.dir().join(name)).args(["--checkpoint=fast"]).args(arguments);
        command.output().unwrap()
    };
    let made = backup("copy", &["--wal-method=stream"]);
    assert!(made.status.success(), "{}", text(&made));
    let copy = primary.dir().join("copy");
    no_canary(&copy.join("pg_wal"));
    let verified = exec(&primary, "pg_verifybackup").arg(&copy).output().unwrap();
    assert!(
        verified.status.success() && text(&verified).contains("successfully verified"),
        "{}",
        text(&verified)
    );
    let unread = primary.tool("pg_verifybackup").arg(&copy).output().unwrap();
    assert!(!unread.status.success(), "{}", text(&unread));
    // Nothing is written in clear where it cannot be encrypted.
    let tar = backup("tar", &["--wal-method=stream", "--format=tar"]);
    assert!(!tar.status.success() && text(&tar).contains("tar file"), "{}", text(&tar));
    let mut packed = exec(&primary, "pg_receivewal");
    let packed = packed
        .args(["--compress=gzip:1", "--no-loop", "-D"])
        .arg(folder(&primary, "packed"))
        .output()
        .unwrap();
    assert!(!packed.status.success() && text(&packed).contains("compressed"), "{}", text(&packed));
    no_canary(&primary.dir().join("packed"));

    // A member of a shared scratch folder, so that it can be started: the harness makes backups without tde exec.
    let mut started = Cluster::backup_of(&primary, &["--checkpoint=fast", "--wal-method=fetch"], || ());
    let wal = started.data().join("pg_wal");
    let _ = fs::remove_dir_all(started.data().with_file_name("unused"));
    fs::rename(started.data(), started.data().with_file_name("unused")).unwrap();
    fs::rename(&copy, started.data()).unwrap();
    for (name, value) in
        [("unix_socket_directories", started.dir().join("sock")), ("pg_tde.encrypt_wal", "on".into())]
    {
        started.configure(name, value.to_str().unwrap());
    }
    assert!(wal.exists());
    started.start();
    assert_eq!(rows(&started, "t"), 20_000);
    started.crash_and_recover();
    assert_eq!(rows(&started, "t"), 20_000);
}

#[test]
fn pg_resetwal_begins_an_encrypted_segment() {
    let mut cluster = encrypted().start();
    settled(&cluster);
    fill(&cluster, "t");
    cluster.stop();
    let twin = cluster.dir().join("twin");
    command_output(Command::new("cp").arg("-a").arg(cluster.data()).arg(&twin));
    let data = cluster.data().to_owned();
    let newest = |data: &Path| {
        let mut all = files::files_below(&data.join("pg_wal"));
        all.retain(|path| path.file_name().is_some_and(|name| name.len() == 24));
        all.sort();
        all.pop().unwrap()
    };
    let with = exec(&cluster, "pg_resetwal").arg("-D").arg(&data).output().unwrap();
    let without = cluster.tool("pg_resetwal").arg("-D").arg(&twin).output().unwrap();
    assert!(with.status.success(), "{}", text(&with));
    assert_eq!((with.status, &with.stdout, &with.stderr), (without.status, &without.stdout, &without.stderr));
    // The same segment, one encrypted, one in clear; shown, they are the same.
    let (sealed, clear) = (newest(&data), newest(&twin));
    assert_eq!(sealed.file_name(), clear.file_name());
    assert!(fs::read(&clear).unwrap().starts_with(&[0x10, 0xD1]) || cluster.root().major() != 15);
    assert_eq!(fs::read(&sealed).unwrap().len(), fs::read(&clear).unwrap().len());
    let shown = exec(&cluster, "pg_waldump").arg(&sealed).output().unwrap();
    let plain = cluster.tool("pg_waldump").arg(&clear).output().unwrap();
    assert!(!plain.stdout.is_empty() && shown.stdout == plain.stdout, "{}{}", text(&shown), text(&plain));
    cluster.start();
    assert_eq!(rows(&cluster, "t"), 20_000);
    cluster.crash_and_recover();
    assert_eq!(rows(&cluster, "t"), 20_000);
}

/// Without the keys pg_rewind cannot find where the nodes parted, and changes nothing. With them the old primary comes back, from a stopped and
/// from a running source.
#[test]
fn pg_rewind_fails_safely_without_tde_exec_and_works_with_it() {
    for running in [false, true] {
        let mut old = encrypted().conf("wal_keep_size", "256MB").start();
        settled(&old);
        fill(&old, "before");
        let mut new = Cluster::backup_of(
            &old,
            &["--checkpoint=fast", "--wal-method=fetch", "--write-recovery-conf"],
            || (),
        );
        new.start();
        let target = old.text("SELECT pg_current_wal_flush_lsn()");
        wait_until("replayed", || new.text(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) == "t");
        new.promote();
        fill(&old, "lost");
        fill(&new, "kept");
        new.run("CHECKPOINT");
        old.stop();
        if !running {
            new.stop();
        }
        let contents = || {
            let all = files::files_below(old.data());
            all.iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect::<Vec<_>>()
        };
        let source = if running {
            format!("--source-server=host={} user=postgres dbname=postgres", new.dir().join("sock").display())
        } else {
            format!("--source-pgdata={}", new.data().display())
        };
        let before = contents();
        let stock = old.tool("pg_rewind").arg("-D").arg(old.data()).arg(&source).output().unwrap();
        assert!(!stock.status.success(), "{}", text(&stock));
        assert!(contents() == before, "a failed pg_rewind changed the target: {}", text(&stock));
        let done = exec(&old, "pg_rewind").arg("-D").arg(old.data()).arg(&source).output().unwrap();
        assert!(done.status.success(), "{}", text(&done));
        assert!(text(&done).contains("Done!"), "{}", text(&done));
        no_canary(&old.data().join("pg_wal"));
        if !running {
            new.start();
        }
        // The source's was copied, which named the target as its primary.
        fs::write(old.data().join("postgresql.auto.conf"), "").unwrap();
        old.configure("unix_socket_directories", old.dir().join("sock").to_str().unwrap());
        old.configure(
            "primary_conninfo",
            &format!("host={} user=postgres dbname=postgres", new.dir().join("sock").display()),
        );
        fs::write(old.data().join("standby.signal"), "").unwrap();
        old.root().own(&old.data().join("standby.signal"));
        old.start();
        fill(&new, "later");
        wait_until("replayed", || old.text("SELECT to_regclass('later') IS NOT NULL") == "t");
        assert_eq!((rows(&old, "kept"), rows(&old, "later")), (20_000, 20_000));
        assert_eq!(old.text("SELECT to_regclass('lost') IS NULL"), "t");
        no_canary(&old.data().join("pg_wal"));
    }
}

/// A keyring outside of the data directory stays when `pg_rewind` takes the data back. Keys of the WAL that both servers made for themselves must not
/// replace each other.
#[test]
fn a_keyring_with_wal_keys_of_an_abandoned_timeline_is_refused() {
    let mut old = encrypted().conf("wal_keep_size", "256MB").create();
    let (ring, other) = (old.dir().join("ring"), old.dir().join("other"));
    old.configure("pg_tde.keyring", ring.to_str().unwrap());
    old.start();
    old.run("CREATE EXTENSION pg_tde");
    settled(&old);
    fill(&old, "before");
    let options = ["--checkpoint=fast", "--wal-method=fetch", "--write-recovery-conf"];
    let mut new = Cluster::backup_of(&old, &options, || ());
    let copy = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        command_output(Command::new("cp").arg("-a").arg(from).arg(to));
    };
    copy(&ring, &other);
    new.configure("pg_tde.keyring", other.to_str().unwrap());
    new.start();
    let target = old.text("SELECT pg_current_wal_flush_lsn()");
    wait_until("replayed", || new.text(&format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) == "t");
    new.promote();
    new.run("SELECT tde.rotate_wal_key()");
    fill(&new, "kept");
    new.run("CHECKPOINT");
    for _ in 0..2 {
        old.run("SELECT tde.rotate_wal_key()");
    }
    fill(&old, "lost");
    old.stop();
    let socket = new.dir().join("sock");
    let source = format!("--source-server=host={} user=postgres dbname=postgres", socket.display());
    let mut rewind = exec(&old, "pg_rewind");
    let done = rewind.env("TDE_KEYRING", &ring).arg("-D").arg(old.data()).arg(source).output().unwrap();
    assert!(done.status.success(), "{}", text(&done));
    fs::write(old.data().join("postgresql.auto.conf"), "").unwrap();
    old.configure("unix_socket_directories", old.dir().join("sock").to_str().unwrap());
    old.configure("primary_conninfo", &format!("host={} user=postgres dbname=postgres", socket.display()));
    old.configure("pg_tde.keyring", ring.to_str().unwrap());
    fs::write(old.data().join("standby.signal"), "").unwrap();
    old.root().own(&old.data().join("standby.signal"));
    let refused = old.try_start().unwrap_err().log;
    assert!(refused.contains("from a timeline that was abandoned"), "{refused}");
    copy(&other, &ring);
    // The HSM remembers how often the keyring of that place was changed.
    let accepted =
        tde(&old, old.data(), &["keyring", "accept-restore"]).env("TDE_KEYRING", &ring).output().unwrap();
    assert!(accepted.status.success(), "{}", text(&accepted));
    old.root().own_all(&ring);
    old.start();
    fill(&new, "later");
    wait_until("replayed", || old.text("SELECT to_regclass('later') IS NOT NULL") == "t");
    assert_eq!((rows(&old, "kept"), rows(&old, "later")), (20_000, 20_000));
}

/// WAL in clear from a tool without `tde exec` is refused, until somebody with the keys takes it over; it is not in clear then.
#[test]
fn wal_in_clear_is_accepted_once_and_explicitly() {
    let primary = encrypted().start();
    settled(&primary);
    fill(&primary, "t");
    let mut copy =
        Cluster::backup_of(&primary, &["--checkpoint=fast", "--wal-method=stream", "--max-rate=20M"], || {
            primary.run("INSERT INTO t SELECT i, 'canary-of-the-tools-' FROM generate_series(1, 1000) i")
        });
    assert!(copy.try_start().is_err());
    assert!(copy.log_since_start().contains("tde pg accept-wal"), "{}", copy.log_since_start());
    let data = copy.data().to_owned();
    let accept = |data: &Path| {
        let mut command = tde(&primary, data, &["pg", "accept-wal", data.to_str().unwrap()]);
        command.env_remove("TDE_KEYRING").output().unwrap()
    };
    let accepted = accept(&data);
    assert!(accepted.status.success() && text(&accepted).contains("00000001"), "{}", text(&accepted));
    no_canary(&data.join("pg_wal"));
    assert!(text(&accept(&data)).contains("none"), "twice is once");
    copy.start();
    assert!(rows(&copy, "t") >= 20_000);
    let refused = accept(&data);
    assert!(!refused.status.success() && text(&refused).contains("stop it first"), "{}", text(&refused));
    copy.crash_and_recover();
    assert!(rows(&copy, "t") >= 20_000);
}

/// A standby that ran without encryption has WAL in clear beyond the position from which its primary's is encrypted.
#[test]
fn a_standby_is_switched_on_later_than_its_primary() {
    let primary = encrypted().conf("wal_keep_size", "256MB").start();
    settled(&primary);
    let options = ["--checkpoint=fast", "--wal-method=fetch", "--write-recovery-conf"];
    let mut standby = Cluster::backup_of(&primary, &options, || ());
    standby.configure("pg_tde.encrypt_wal", "off");
    standby.start();
    fill(&primary, "t");
    wait_until("replayed", || standby.text("SELECT to_regclass('t') IS NOT NULL") == "t");
    standby.stop();
    standby.configure("pg_tde.encrypt_wal", "on");
    let failure = standby.try_start().expect_err("WAL in clear");
    assert!(failure.log.contains("tde pg accept-wal"), "{}", failure.log);
    let data = standby.data().to_owned();
    command_output(&mut tde(&primary, &data, &["pg", "accept-wal", data.to_str().unwrap()]));
    standby.start();
    fill(&primary, "again");
    wait_until("replayed", || standby.text("SELECT to_regclass('again') IS NOT NULL") == "t");
    no_canary(&data.join("pg_wal"));
    standby.crash_and_recover();
    assert_eq!(rows(&standby, "t"), 20_000);
    standby.promote();
}

/// A server that was told to encrypt does not run on in clear.
#[test]
fn a_server_without_room_for_its_worker_does_not_start() {
    let mut cluster = encrypted().conf("max_worker_processes", "1").create();
    let failure = cluster.try_start().expect_err("no worker");
    assert!(failure.log.contains("Raise max_worker_processes"), "{}", failure.log);
    // The launcher of jobs and that of logical replication have one each.
    cluster.configure("max_worker_processes", "3");
    cluster.start();
    cluster.run("CREATE EXTENSION pg_tde");
    settled(&cluster);
    // The worker has ended; a crash of a backend rebuilds shared memory without it.
    cluster.kill_a_backend();
    cluster.crash_and_recover();
    assert_eq!(cluster.int("SELECT 1"), 1);
}
