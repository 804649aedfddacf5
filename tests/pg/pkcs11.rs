//! The master key on a PKCS#11 token, of another vendor (SoftHSM2) or of our own module, whose library no process of the server loads.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tde_tests::{Cluster, Maker, Process, Token, files};

/// A server whose postmaster finds a token with a master key.
fn cluster(maker: Maker) -> (Cluster, Token) {
    let mut cluster = Cluster::builder().create();
    let token = Token::for_servers(cluster.root(), maker, &cluster.dir().join("token"));
    cluster.configure("pg_tde.hsm", &token.uri(""));
    cluster.configure("pg_tde.pin_command", &format!("cat {}", token.pin_file.display()));
    cluster.configure("pg_tde.pkcs11_agent", agent_program().to_str().unwrap());
    cluster.environment(token.environment.0, &token.environment.1);
    cluster.start();
    cluster.run("CREATE EXTENSION pg_tde");
    (cluster, token)
}

fn agent_program() -> std::path::PathBuf {
    tde_tests::sqlite::Sqlite::tde_program().with_file_name("tde-pkcs11-agent")
}

fn agents_of(parent: Process) -> Vec<Process> {
    parent.children().into_iter().filter(|child| child.title().contains("tde-pkcs11-agent")).collect()
}

#[test]
fn tablespaces_are_encrypted_restarted_and_rotated_under_a_token() {
    for maker in Maker::ALL {
        let (mut cluster, token) = cluster(maker);
        cluster.encrypted_tablespace("secure");
        cluster.run(
            "CREATE TABLE t TABLESPACE secure AS SELECT i, 'canary-' || i AS s FROM generate_series(1, 2000) i",
        );
        cluster.run("CHECKPOINT");
        let sum = "SELECT md5(string_agg(s, ',' ORDER BY i)) FROM t";
        let before = cluster.text(sum);
        assert!(!files::contains(&fs::read(cluster.file_of("t")).unwrap(), b"canary-17"));
        cluster.restart();
        assert_eq!(cluster.text(sum), before);
        assert_eq!(cluster.int("SELECT tde.rotate_master_key()"), 2);
        cluster.crash_and_recover();
        assert_eq!(cluster.text(sum), before);
        cluster.encrypted_tablespace("later");
        cluster.run("CREATE TABLE u TABLESPACE later AS SELECT 1 AS one");
        cluster.restart();
        assert_eq!(cluster.int("SELECT one FROM u"), 1);
        // Agents come and go with their sessions, and the library was nowhere else.
        let postmaster = cluster.postmaster();
        for process in postmaster.children().into_iter().chain([postmaster]) {
            assert!(!process.title().contains("tde-pkcs11-agent"), "{}", process.title());
            let maps = fs::read_to_string(format!("/proc/{}/maps", process.pid)).unwrap_or_default();
            assert!(!maps.contains("softhsm") && !maps.contains("tde_pkcs11"), "{}", process.title());
        }
        assert!(!cluster.log().contains(&token.pin));
    }
}

#[test]
fn a_server_with_a_wrong_pin_or_without_its_token_says_so_and_does_not_start() {
    let (mut cluster, token) = cluster(Maker::SoftHsm2);
    cluster.stop();
    cluster.configure("pg_tde.pin_command", "echo wrong-9876543");
    let refused = cluster.try_start().unwrap_err().log;
    assert!(refused.contains("PinIncorrect") && refused.contains("wrong PIN"), "{refused}");
    assert!(!refused.contains("9876543"), "{refused}");
    cluster.configure("pg_tde.pin_command", &format!("cat {}", token.pin_file.display()));
    token.unplug();
    let away = cluster.try_start().unwrap_err().log;
    assert!(away.contains("HSM away") && away.contains("token"), "{away}");
    token.plug_in();
    cluster.configure("pg_tde.pkcs11_agent", "/nowhere/agent");
    let absent = cluster.try_start().unwrap_err().log;
    assert!(absent.contains("/nowhere/agent"), "{absent}");
    cluster.configure("pg_tde.pkcs11_agent", agent_program().to_str().unwrap());
    cluster.start();
}

/// The data keys are in the key table: reading and writing pages goes on while the token is away, new keys wait for it.
#[test]
fn without_the_token_data_stays_readable_and_new_keys_are_refused() {
    for maker in Maker::ALL {
        let (cluster, token) = cluster(maker);
        cluster.encrypted_tablespace("secure");
        cluster.run("CREATE TABLE t TABLESPACE secure AS SELECT i FROM generate_series(1, 1000) i");
        cluster.plain_tablespace("other");
        token.unplug();
        assert_eq!(cluster.int("SELECT count(*) FROM t"), 1000);
        cluster.run("INSERT INTO t SELECT 1; CHECKPOINT");
        for statement in ["SELECT tde.encrypt_tablespace('other')", "SELECT tde.rotate_master_key()"] {
            let error = cluster.try_run(statement).unwrap_err().to_string();
            assert!(error.contains("HSM away"), "{error}");
        }
        token.plug_in();
        cluster.run("SELECT tde.encrypt_tablespace('other')");
        assert_eq!(cluster.int("SELECT tde.rotate_master_key()"), 2);
    }
}

#[test]
fn a_hanging_module_is_given_up_at_its_deadline_or_when_the_statement_is_cancelled() {
    let (mut cluster, token) = cluster(Maker::SoftHsm2);
    let (module, trigger) = token.module_that("hangs", "for (;;) pause();");
    cluster.stop();
    cluster.configure("pg_tde.hsm", &token.uri_with(&module, "&x-timeout=3"));
    cluster.start();
    fs::write(&trigger, "").unwrap();
    let begin = Instant::now();
    let error = cluster.try_run("SELECT tde.rotate_master_key()").unwrap_err().to_string();
    assert!(error.contains("did not answer within 3 s"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20));

    let mut session = cluster.connect("postgres");
    session.run("SET statement_timeout = '500ms'");
    let begin = Instant::now();
    let error = session.try_run("SELECT tde.rotate_master_key()").unwrap_err().to_string();
    assert!(error.contains("statement timeout") || error.contains("cancelled"), "{error}");
    assert!(begin.elapsed() < Duration::from_millis(2800), "{:?}", begin.elapsed());
    session.run("SET statement_timeout = 0");
    fs::remove_file(&trigger).unwrap();
    session.run("SELECT tde.rotate_master_key()");
}

/// The library may crash, somebody may kill the agent, or the backend that started it: the server goes on in each case, and no agent stays.
#[test]
fn agents_that_are_killed_and_agents_of_killed_backends_leave_nothing() {
    let (mut cluster, token) = cluster(Maker::SoftHsm2);
    let (module, trigger) = token.module_that("hangs", "for (;;) pause();");
    cluster.stop();
    cluster.configure("pg_tde.hsm", &token.uri_with(&module, ""));
    cluster.start();
    fs::write(&trigger, "").unwrap();
    for victim in ["agent", "backend"] {
        let mut session = cluster.connect("postgres");
        let backend = Process::find(session.int("SELECT pg_backend_pid()") as i32).unwrap();
        let waiting =
            std::thread::spawn(move || session.try_run("SELECT tde.rotate_master_key()").unwrap_err());
        let begin = Instant::now();
        let agent = loop {
            if let [agent] = agents_of(backend)[..] {
                break agent;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "no agent");
            std::thread::sleep(Duration::from_millis(5));
        };
        match victim {
            "agent" => {
                agent.signal(Signal::KILL);
                let error = waiting.join().unwrap().to_string();
                assert!(error.contains("ended unexpectedly"), "{error}");
            }
            _ => {
                cluster.kill_backend(backend);
                waiting.join().unwrap();
            }
        }
        while agent.alive() {
            assert!(begin.elapsed() < Duration::from_secs(40), "the agent outlives its {victim}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    fs::remove_file(&trigger).unwrap();
    cluster.run("SELECT tde.rotate_master_key()");
}
