//! The master key on a token: of another vendor (SoftHSM2), and of our own module.

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use keyring::pkcs11::{AgentError, Pkcs11Error, Pkcs11Hsm};
use keyring::{
    InstanceId, KeyVersion, Keyring, KeyringError, MasterKey, MasterKeyError, NewScope, Owner, ScopeKind,
    WrappedKey,
};
use page_cipher::CipherId;
use tde_tests::{Maker, Process, command_output};

use crate::bench::Bench;

const OWNER: Owner = Owner::PgCluster { system_identifier: 42 };

fn scope(oid: u32) -> NewScope {
    let kind = ScopeKind::PgTablespace { oid, name: "secure".into() };
    NewScope { kind, cipher: CipherId::Aes256Hctr2, initial: None }
}

/// This test's agents: other tests run in the same process.
fn agents(bench: &Bench) -> Vec<Process> {
    let conf = format!("{}={}", bench.token.environment.0, bench.token.environment.1);
    let ours = |process: &Process| {
        let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        process.title().contains("tde-pkcs11-agent")
            && tde_tests::files::contains(&environment, conf.as_bytes())
    };
    let all = Process::find(std::process::id() as i32).unwrap().children();
    all.into_iter().filter(ours).collect()
}

#[test]
fn a_keyring_lives_through_rotation_and_new_sessions_by_either_way_to_wrap() {
    for maker in Maker::ALL {
        for more in ["", "&x-wrap=wrap", "&x-wrap=ecb"] {
            let bench = Bench::with_key_of(maker, more);
            let ring = bench.path("ring");
            let mut hsm = bench.open(more);
            let keyring = Keyring::create(&ring, OWNER, &hsm).unwrap();
            let (made, dek) = keyring.add_scope(scope(16384), &hsm).unwrap();
            assert_eq!(hsm.generate_version().unwrap(), 2);
            let done = keyring.rewrap_all(&hsm, |_| ControlFlow::Continue(())).unwrap();
            assert_eq!((done.rewrapped, done.from, done.to, done.complete), (1, Some(1), 2, true));
            drop((keyring, hsm));

            let hsm = bench.open(more);
            let keyring = Keyring::open(&ring).unwrap().unlock(&hsm).unwrap();
            assert!(keyring.dek(made.line, KeyVersion(1), &hsm).unwrap().ct_eq(&dek));
            let report = keyring.verify(&hsm);
            assert!(report.problems.is_empty(), "{more}: {:?}", report.problems);
            assert_eq!((report.scopes, report.deks), (1, 1));
        }
    }
}

/// A key that wraps may not decrypt: with both rights whoever has the PIN could take data keys out by decrypting.
#[test]
fn the_master_key_has_one_use_and_never_leaves_the_token() {
    for maker in Maker::ALL {
        let bench = Bench::with_key_of(maker, "");
        let refused = bench.open("&x-wrap=ecb").generate_data_key().map(drop);
        assert!(matches!(refused, Err(MasterKeyError::Refused(_))), "{refused:?}");
        let listed = command_output(bench.token.pkcs11_tool().args(["--list-objects", "--type", "secrkey"]));
        assert!(listed.contains("AES length 32") && listed.contains("label:      master"), "{listed}");
        let access = listed.lines().find(|line| line.contains("Access:")).unwrap();
        for word in ["sensitive", "always sensitive", "never extractable", "local"] {
            assert!(access.contains(word), "{word}: {listed}");
        }
        let usage = listed.lines().find(|line| line.contains("Usage:")).unwrap();
        assert!(usage.contains("wrap, unwrap") && !usage.contains("crypt"), "{listed}");
        // Data keys were objects for a moment; none stays.
        assert_eq!(listed.matches("Secret Key Object").count(), 1, "{listed}");
    }
}

#[test]
fn a_key_that_could_leave_the_token_is_refused() {
    for maker in Maker::ALL {
        let bench = Bench::of(maker);
        let id = "00112233445566778899aabbccddeeff00000001";
        let mut make = bench.token.pkcs11_tool();
        make.args(["--keygen", "--key-type", "aes:32", "--label", "master", "--id", id, "--extractable"]);
        command_output(&mut make);
        let refused = bench.try_open(&bench.token.uri(""), &bench.token.pin);
        assert!(
            matches!(&refused, Err(Pkcs11Error::Refused(text)) if text.contains("not extractable")),
            "{refused:?}"
        );
    }
}

/// Keys that an administrator made with another tool are taken, if CKA_ID is of the form that the documents name.
#[test]
fn a_key_made_by_another_tool_is_used() {
    for maker in Maker::ALL {
        let bench = Bench::of(maker);
        let id = "00112233445566778899aabbccddeeff00000001";
        let mut make = bench.token.pkcs11_tool();
        make.args(["--keygen", "--key-type", "aes:32", "--label", "master", "--id", id, "--sensitive"]);
        command_output(make.arg("--usage-wrap"));
        let mut hsm = bench.open("");
        assert_eq!(hsm.id().to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        let (dek, wrapped) = hsm.generate_data_key().unwrap();
        assert!(hsm.unwrap(&wrapped).unwrap().ct_eq(&dek));
        assert_eq!(hsm.generate_version().unwrap(), 2);
    }
}

#[test]
fn the_token_remembers_generations() {
    for maker in Maker::ALL {
        let bench = Bench::with_key_of(maker, "");
        let ring = bench.path("ring");
        let hsm = bench.open("");
        let keyring = Keyring::create(&ring, OWNER, &hsm).unwrap();
        let old = fs::read(ring.join("keyring.tde")).unwrap();
        keyring.add_scope(scope(16384), &hsm).unwrap();
        drop((keyring, hsm));

        let hsm = bench.open("");
        fs::write(ring.join("keyring.tde"), old).unwrap();
        let refused = Keyring::open(&ring).unwrap().unlock(&hsm);
        assert!(
            matches!(refused, Err(KeyringError::OldGeneration { found: 1, remembered: 2, .. })),
            "{refused:?}"
        );
        let known = hsm.generations_of_instance(InstanceId::of(&ring).unwrap()).unwrap();
        assert_eq!(known.iter().map(|(_, generation)| *generation).collect::<Vec<_>>(), [2]);
        Keyring::open(&ring).unwrap().accept_restore(&hsm).unwrap();
        Keyring::open(&ring).unwrap().unlock(&hsm).unwrap();
        // One object a number, whatever happened to it.
        let data = command_output(bench.token.pkcs11_tool().args(["--list-objects", "--type", "data"]));
        assert_eq!(data.matches("Data object").count(), 1, "{data}");
        // Without a place for it there is no number, and none is missed.
        let without = bench.open("&x-generations=none");
        assert_eq!(without.generations_of_instance(InstanceId::of(&ring).unwrap()).unwrap(), []);
    }
}

#[test]
fn missing_wrong_destroyed_and_away_are_told_apart() {
    for maker in Maker::ALL {
        let bench = Bench::with_key_of(maker, "");
        let mut hsm = bench.open("");
        let (dek, wrapped) = hsm.generate_data_key().unwrap();
        let id = hsm.id();

        let missing = hsm.unwrap(&WrappedKey { version: 2, ..wrapped }).map(drop);
        assert!(
            matches!(missing, Err(MasterKeyError::Missing { version: 2, key }) if key == id),
            "{missing:?}"
        );

        let mut bytes = wrapped.bytes;
        bytes[17] ^= 1;
        let wrong = hsm.unwrap(&WrappedKey { bytes, ..wrapped }).map(drop);
        assert!(matches!(wrong, Err(MasterKeyError::Wrong { version: 1, .. })), "{wrong:?}");

        assert!(hsm.destroy_version(1).is_err(), "the newest one wraps new keys");
        assert_eq!(hsm.generate_version().unwrap(), 2);
        assert!(hsm.unwrap(&wrapped).unwrap().ct_eq(&dek));
        hsm.destroy_version(1).unwrap();
        let destroyed = hsm.unwrap(&wrapped).map(drop);
        assert!(matches!(destroyed, Err(MasterKeyError::Destroyed { version: 1, .. })), "{destroyed:?}");
        assert_eq!(hsm.status().unwrap().versions, [(1, true), (2, false)]);
        let wrong = hsm.unwrap(&WrappedKey { version: 2, ..wrapped }).map(drop);
        assert!(matches!(wrong, Err(MasterKeyError::Wrong { version: 2, .. })), "{wrong:?}");

        bench.token.unplug();
        drop(hsm);
        let away = bench.try_open(&bench.token.uri(""), &bench.token.pin).unwrap_err();
        assert!(away.is_away() && !away.is_refused(), "{away:?}");
        bench.token.plug_in();
        assert_eq!(bench.open("").primary_version().unwrap(), 2);
    }
}

#[test]
fn a_wrong_pin_is_refused_and_never_repeated() {
    for maker in Maker::ALL {
        let bench = Bench::with_key_of(maker, "");
        let refused = bench.try_open(&bench.token.uri(""), "wrong-9876543").unwrap_err();
        assert!(refused.is_refused() && !refused.is_away(), "{refused:?}");
        let text = refused.to_string();
        assert!(text.contains("PinIncorrect") && !text.contains("9876543"), "{text}");
        bench.open("");
    }
}

#[test]
fn settings_that_cannot_be_are_named() {
    let bench = Bench::with_key("");
    let pin = bench.token.pin.clone();
    let refused = |uri: &str| bench.try_open(uri, &pin).unwrap_err();
    let no_module = refused(&bench.token.uri_with("/nowhere/x.so".as_ref(), ""));
    assert!(no_module.to_string().contains("/nowhere/x.so") && !no_module.is_away(), "{no_module}");
    let no_pkcs11 = refused(&bench.token.uri_with("/lib/x86_64-linux-gnu/libm.so.6".as_ref(), ""));
    assert!(no_pkcs11.to_string().contains("C_GetFunctionList"), "{no_pkcs11}");
    let other = refused(&bench.token.uri("").replace("tde%20test", "other"));
    assert!(other.is_away() && other.to_string().contains("\"tde test\""), "{other}");
    let no_key = refused(&bench.token.uri("").replace("object=master", "object=nobody"));
    assert!(matches!(&no_key, Pkcs11Error::NoKey(text) if text.contains("create-key")), "{no_key}");
    let no_way = refused(&bench.token.uri("&x-wrap=encrypt"));
    assert!(matches!(&no_way, Pkcs11Error::Setting(text) if text.contains("x-wrap")), "{no_way}");
    assert!(bench.token_session("").create_key().is_err(), "there is one already");
    let nowhere = keyring::pkcs11::AgentOptions { program: Some("/nowhere/agent".into()), ..bench.options() };
    let no_agent = Pkcs11Hsm::open(&bench.uri(""), bench.pin(), nowhere).unwrap_err();
    assert!(matches!(no_agent, Pkcs11Error::Agent(AgentError::Start { .. })), "{no_agent}");
}

#[test]
fn an_agent_that_died_is_replaced() {
    for maker in Maker::ALL {
        let bench = Bench::with_key_of(maker, "");
        let hsm = bench.open("");
        let (dek, wrapped) = hsm.generate_data_key().unwrap();
        let before = agents(&bench);
        assert_eq!(before.len(), 1);
        for agent in &before {
            agent.signal(rustix::process::Signal::KILL);
        }
        assert!(hsm.unwrap(&wrapped).unwrap().ct_eq(&dek));
        let now = agents(&bench);
        assert!(now.len() == 1 && now != before);
        drop(hsm);
        assert!(agents(&bench).is_empty(), "it ends with its session");
    }
}

#[test]
fn a_module_that_hangs_is_given_up_and_ended() {
    let bench = Bench::with_key("");
    let (module, trigger) = bench.token.module_that("hangs", "for (;;) pause();");
    let uri = bench.token.uri_with(&module, "&x-timeout=2");
    let hsm = bench.try_open(&uri, &bench.token.pin).unwrap();
    fs::write(&trigger, "").unwrap();
    let begin = Instant::now();
    let away = bench.try_open(&uri, &bench.token.pin).unwrap_err();
    assert!(matches!(away, Pkcs11Error::Agent(AgentError::Timeout { .. })) && away.is_away(), "{away}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    // The session that is there goes on.
    hsm.generate_data_key().unwrap();
    fs::remove_file(&trigger).unwrap();
    bench.try_open(&uri, &bench.token.pin).unwrap();
}

#[test]
fn a_module_that_crashes_is_away() {
    let bench = Bench::with_key("");
    let (module, trigger) = bench.token.module_that("crashes", "abort();");
    fs::write(&trigger, "").unwrap();
    let away = bench.try_open(&bench.token.uri_with(&module, ""), &bench.token.pin).unwrap_err();
    assert!(matches!(away, Pkcs11Error::Agent(AgentError::Ended { .. })) && away.is_away(), "{away}");
}

/// Tokens have no lock: two programs that rotate at the same moment must not make two keys of one version.
#[test]
fn versions_made_at_the_same_moment_are_told_apart() {
    for maker in Maker::ALL {
        let bench = Bench::with_key_of(maker, "");
        let options = bench.options();
        let made: Vec<u32> = std::thread::scope(|threads| {
            let make = |_| {
                let (bench, options) = (&bench, options.clone());
                threads.spawn(move || {
                    let _conf = bench.options();
                    // SoftHSM2 shows no token while another process writes into it.
                    let mut hsm = (0..100)
                        .find_map(|_| match Pkcs11Hsm::open(&bench.uri(""), bench.pin(), options.clone()) {
                            Err(e) if e.is_away() && maker == Maker::SoftHsm2 => None,
                            opened => Some(opened.unwrap()),
                        })
                        .unwrap();
                    // Another program's key of the same version is a reason to try again, not to go on.
                    (0..8).filter_map(|_| hsm.generate_version().ok()).collect::<Vec<_>>()
                })
            };
            let all: Vec<_> = (0..3).map(make).collect();
            all.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert!(!made.is_empty());
        assert_eq!(made.iter().collect::<BTreeSet<_>>().len(), made.len(), "{made:?}");
        let status = bench.open("").status().unwrap();
        let versions: Vec<u32> = status.versions.iter().map(|(version, _)| *version).collect();
        assert!(made.iter().all(|version| versions.contains(version)), "{made:?} {versions:?}");
        let keys = command_output(bench.token.pkcs11_tool().args(["--list-objects", "--type", "secrkey"]));
        assert_eq!(keys.matches("Secret Key Object").count(), versions.len(), "{keys}");
    }
}

/// Whoever may read `/proc` must not find the PIN, and the agent inherits no file but its socket.
#[test]
fn the_agent_has_the_pin_in_its_memory_only() {
    let bench = Bench::with_key("");
    let _hsm = bench.open("");
    let agents = agents(&bench);
    assert_eq!(agents.len(), 1);
    for agent in agents {
        for file in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{}/{file}", agent.pid)).unwrap_or_default();
            assert!(!tde_tests::files::contains(&text, bench.token.pin.as_bytes()), "{file}");
        }
    }
}
