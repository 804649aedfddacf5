//! Keyrings under the HSM in the process: the real one, on a real disk.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use hsm_engine::{Hsm, Initialize, Pin, SoftUri};
use keyring::*;
use page_cipher::CipherId;

struct Bench {
    dir: tempfile::TempDir,
    uri: SoftUri,
    pin: Pin,
}

const OWNER: Owner = Owner::PgCluster { system_identifier: 42 };

impl Bench {
    fn new() -> Self {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let (officer, pin) = (Pin::generate().unwrap(), Pin::generate().unwrap());
        let uri = SoftUri::new(dir.path().join("hsm"));
        Hsm::initialize_dir(&uri.dir, &Initialize::new(&officer, &pin)).unwrap();
        Self { dir, uri, pin }
    }

    fn login(&self) -> SoftHsm {
        SoftHsm::open(&self.uri, &self.pin).unwrap()
    }

    fn ring(&self) -> std::path::PathBuf {
        self.dir.path().join("ring")
    }
}

fn scope(oid: u32) -> NewScope {
    let kind = ScopeKind::PgTablespace { oid, name: "secure".into() };
    NewScope { kind, cipher: CipherId::Aes256Hctr2, initial: None }
}

fn open(dir: &Path, hsm: &SoftHsm) -> Result<Unlocked> {
    Keyring::open(dir)?.unlock(hsm)
}

#[test]
fn keys_survive_rotation_of_the_master_key_and_a_new_login() {
    let bench = Bench::new();
    let mut hsm = bench.login();
    let keyring = Keyring::create(&bench.ring(), OWNER, &hsm).unwrap();
    let (made, dek) = keyring.add_scope(scope(16384), &hsm).unwrap();
    assert_eq!(hsm.generate_version().unwrap(), 2);
    let done = keyring.rewrap_all(&hsm, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((done.rewrapped, done.from, done.to, done.complete), (1, Some(1), 2, true));
    hsm.close().unwrap();

    let hsm = bench.login();
    let keyring = open(&bench.ring(), &hsm).unwrap();
    assert!(keyring.dek(made.line, KeyVersion(1), &hsm).unwrap().ct_eq(&dek));
    let report = keyring.verify(&hsm);
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!((report.scopes, report.deks), (1, 1));
}

#[test]
fn the_hsm_remembers_generations_over_logins() {
    let bench = Bench::new();
    let ring = bench.ring();
    let hsm = bench.login();
    let keyring = Keyring::create(&ring, OWNER, &hsm).unwrap();
    let old = fs::read(ring.join("keyring.tde")).unwrap();
    keyring.add_scope(scope(16384), &hsm).unwrap();
    drop((keyring, hsm));

    let hsm = bench.login();
    fs::write(ring.join("keyring.tde"), old).unwrap();
    let refused = open(&ring, &hsm);
    let expected = matches!(refused, Err(KeyringError::OldGeneration { found: 1, remembered: 2, .. }));
    assert!(expected, "{refused:?}");
    let known = hsm.generations_of_instance(InstanceId::of(&ring).unwrap()).unwrap();
    assert_eq!(known.iter().map(|(_, generation)| *generation).collect::<Vec<_>>(), [2]);
    Keyring::open(&ring).unwrap().accept_restore(&hsm).unwrap();
    open(&ring, &hsm).unwrap();

    // The acceptance is in the HSM's audit log.
    let mut forgotten = 0;
    let mut look = |record: &hsm_engine::audit::Record| {
        forgotten += usize::from(format!("{record:?}").contains("CounterForgotten"));
    };
    hsm.session().verify_audit(&mut look).unwrap();
    assert_eq!(forgotten, 1);
}

#[test]
fn another_hsm_a_missing_one_and_a_keyring_without_hsm_are_told_apart() {
    let bench = Bench::new();
    let other = Bench::new();
    let hsm = bench.login();
    let keyring = Keyring::create(&bench.ring(), OWNER, &hsm).unwrap();
    let (made, _) = keyring.add_scope(scope(16384), &hsm).unwrap();
    let refused = open(&bench.ring(), &other.login());
    assert!(matches!(refused, Err(KeyringError::OtherMasterKey { .. })), "{refused:?}");

    let one = KeyVersion(1);
    let missing = keyring.dek(made.line, KeyVersion(2), &hsm);
    assert!(matches!(missing, Err(KeyringError::KeyMissing { .. })));
    let wrong = keyring.dek(made.line, one, &other.login());
    assert!(matches!(wrong, Err(KeyringError::KeyWrong { source: Some(_), .. })), "{:?}", wrong.err());

    // The store's disk goes away under a session: away, not wrong.
    let fresh = bench.login();
    let unplugged = bench.dir.path().join("unplugged");
    fs::create_dir(&unplugged).unwrap();
    move_all(&bench.uri.dir, &unplugged);
    let away = keyring.dek(made.line, one, &fresh);
    assert!(matches!(away, Err(KeyringError::HsmAway { .. })), "{:?}", away.err());
    assert!(SoftHsm::open(&bench.uri, &bench.pin).is_err());
    move_all(&unplugged, &bench.uri.dir);
    keyring.dek(made.line, one, &fresh).unwrap();
}

fn move_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
