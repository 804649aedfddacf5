//! Keys by settings, on real keyrings and HSMs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use hsm_engine::{Hsm, Initialize, Pin, SoftUri};
use keyring::{KeyVersion, Keyring, SoftHsm, Unlocked};
use tempfile::TempDir;

use super::keychain::Keychain;
use super::*;
use crate::error::Reason;

/// An HSM, its PIN in a file, and room for keyrings.
struct Bench {
    dir: TempDir,
    uri: SoftUri,
    logins: Arc<AtomicUsize>,
    ask: PinCallback,
}

impl Bench {
    fn new() -> Self {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let (officer, pin) = (Pin::generate().unwrap(), Pin::generate().unwrap());
        let uri = SoftUri::new(dir.path().join("hsm"));
        Hsm::initialize_dir(&uri.dir, &Initialize::new(&officer, &pin)).unwrap();
        pin.write_new_file(dir.path().join("pin")).unwrap();
        let (file, logins) = (dir.path().join("pin"), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&logins);
        let ask: PinCallback = Arc::new(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok(Pin::from_file(&file)?)
        });
        Self { dir, uri, logins, ask }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// HSM and PIN, counting logins.
    fn hsm(&self) -> Settings {
        Settings::new().hsm(self.uri.clone()).pin_callback(Arc::clone(&self.ask))
    }

    fn settings(&self) -> Settings {
        self.hsm().keyring(self.path("ring")).unwrap()
    }

    fn logins(&self) -> usize {
        self.logins.load(Ordering::Relaxed)
    }

    fn unlocked(&self, ring: &str) -> (Unlocked, SoftHsm) {
        let hsm = SoftHsm::open(&self.uri, &Pin::from_file(self.path("pin")).unwrap()).unwrap();
        (Keyring::open(&self.path(ring)).unwrap().unlock(&hsm).unwrap(), hsm)
    }
}

/// A process of its own, as far as keys are concerned.
fn process() -> Arc<Keychain> {
    Arc::new(Keychain::new())
}

/// Settings of the program; nothing from the URI.
fn program(settings: Settings, process: &Arc<Keychain>) -> Configured {
    // The environment of the test run must not decide: what is open stays open.
    Configured::with_keychain(Settings::new(), settings, process)
}

fn refused<T>(result: Result<T, KeysError>, reason: Reason, words: &[&str]) {
    let error = result.err().expect("refused");
    assert_eq!(error.reason(), reason, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word} in: {error}");
    }
}

#[test]
fn a_new_file_makes_the_keyring_and_a_second_opening_costs_no_login() {
    let bench = Bench::new();
    let here = process();
    let source = program(bench.settings(), &here);
    source.ready("app.db").unwrap();
    assert!(!bench.path("ring").exists(), "asking makes nothing");
    let made = source.create("app.db").unwrap();
    assert_eq!(bench.logins(), 1, "asking logged in already");
    let found = source.existing(made.file_id(), "app.db").unwrap();
    assert!(Arc::ptr_eq(&made, &found));

    // Another process: one login, and then none.
    bench.logins.store(0, Ordering::Relaxed);
    let there = process();
    let source = program(bench.settings(), &there);
    let first = source.existing(made.file_id(), "app.db").unwrap();
    assert_eq!(bench.logins(), 1);
    let start = Instant::now();
    let second = program(bench.settings(), &there).existing(made.file_id(), "app.db").unwrap();
    let elapsed = start.elapsed();
    assert!(elapsed.as_micros() < 1000, "{elapsed:?}");
    assert!(Arc::ptr_eq(&first, &second) && bench.logins() == 1);
    // Another file of the same keyring.
    let other = source.create("other.db").unwrap();
    program(bench.settings(), &here).existing(other.file_id(), "other.db").unwrap();
    assert_eq!(bench.logins(), 1);
    // Both processes derive the same keys.
    let seal = |keys: &FileKeys| {
        let mut page = [7; 64];
        let tag = keys.active().unwrap().page.seal(&[1; 12], b"", &mut page).unwrap();
        (page, tag)
    };
    assert_eq!(seal(&made), seal(&first));
    assert_ne!(seal(&made), seal(&other));
}

#[test]
fn uri_over_program_over_environment_setting_by_setting() {
    let variables = |name: &str| {
        Some(match name {
            "TDE_KEYRING" => "/env/ring".into(),
            "TDE_HSM" => "soft:/env/hsm".into(),
            "TDE_PIN_FILE" => "/env/pin".into(),
            "TDE_PIN_COMMAND" => "env command".into(),
            _ => return None,
        })
    };
    let environment = Settings::from_variables(variables).unwrap();
    assert!(matches!(&environment.pin, Some(PinSource::File(path)) if path == Path::new("/env/pin")));
    let uri = |name: &str| (name == "keyring").then(|| "/uri/ring".to_owned());
    let uri = Settings::from_uri(uri).unwrap();
    let program = Settings::new().keyring("/api/ring").unwrap().hsm(SoftUri::new("/api/hsm"));
    let all = uri.over(program).over(environment);
    assert_eq!(all.keyring.as_deref(), Some(Path::new("/uri/ring")));
    assert_eq!(all.hsm, Some(SoftUri::new("/api/hsm").into()));
    assert!(matches!(&all.pin, Some(PinSource::File(path)) if path == Path::new("/env/pin")));
    // Empty is unset.
    let empty = Settings::from_variables(|_| Some("".into())).unwrap();
    assert!(empty.keyring.is_none() && empty.hsm.is_none() && empty.pin.is_none());
    // A relative path does not move with the program's directory.
    let relative = Settings::new().keyring("ring").unwrap();
    assert!(relative.keyring.unwrap().is_absolute());
}

#[test]
fn a_pin_or_a_command_in_a_uri_is_refused() {
    for name in ["pin", "pin_command"] {
        let error =
            Settings::from_uri(|asked| (asked == name).then(|| "1234-secret".to_owned())).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(name) && text.contains("TDE_PIN_FILE") && !text.contains("1234"), "{text}");
    }
    let error = Settings::from_uri(|asked| (asked == "hsm").then(|| "/no/scheme".to_owned())).unwrap_err();
    assert!(error.to_string().contains("soft:"), "{error}");
    let debug = format!("{:?}", Settings::new().pin_command("vault --token=hunter2"));
    assert!(!debug.contains("hunter2"), "{debug}");
}

/// Whoever names the file must not choose what code runs.
#[test]
fn a_uri_may_name_only_a_module_that_root_has_put_there() {
    let from_uri = |hsm: &str| Settings::from_uri(|asked| (asked == "hsm").then(|| hsm.to_owned()));
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("evil.so");
    fs::write(&module, "").unwrap();
    let refused = from_uri(&format!("pkcs11:token=t?module-path={}", module.display())).unwrap_err();
    assert!(
        matches!(&refused, SettingsError::ModuleInUri { module: named } if *named == module),
        "{refused}"
    );
    assert!(refused.to_string().contains("TDE_PKCS11_MODULE"), "{refused}");
    assert!(from_uri("pkcs11:token=t?module-path=/nowhere/x.so").is_err());
    from_uri("pkcs11:token=t?module-path=/bin/sh").unwrap();
    from_uri("pkcs11:token=t").unwrap();
    // The environment and the program may name any.
    let uri = format!("pkcs11:token=t?module-path={}", module.display());
    Settings::from_variables(|name| (name == "TDE_HSM").then(|| uri.clone().into())).unwrap();
}

#[test]
fn what_is_not_configured_is_said_one_by_one() {
    let bench = Bench::new();
    let here = process();
    let id = FileId([9; 12]);
    let source = |settings| program(settings, &here);
    refused(source(Settings::new()).existing(id, "a.db"), Reason::Config, &["keyring=DIR", "TDE_KEYRING"]);
    refused(source(Settings::new()).ready("a.db"), Reason::Config, &["TDE_KEYRING"]);
    let ring = Settings::new().keyring(bench.path("ring")).unwrap();
    refused(source(ring.clone()).ready("a.db"), Reason::Config, &["TDE_HSM"]);
    let no_pin = ring.hsm(bench.uri.clone());
    refused(source(no_pin.clone()).create("a.db"), Reason::Config, &["TDE_PIN_FILE", "TDE_PIN_COMMAND"]);
    let no_file = no_pin.clone().pin_file(bench.path("nothing"));
    refused(source(no_file).create("a.db"), Reason::HsmRefused, &["nothing", "No such file"]);
    let failing = no_pin.clone().pin_command("exit 3");
    refused(source(failing).create("a.db"), Reason::HsmRefused, &["the PIN command failed", "3"]);
    let command = no_pin.pin_command(format!("cat {}", bench.path("pin").display()));
    source(command).create("a.db").unwrap();
}

#[test]
fn a_wrong_pin_an_absent_hsm_and_another_hsm_are_told_apart() {
    let (bench, other) = (Bench::new(), Bench::new());
    let made = program(bench.settings(), &process()).create("a.db").unwrap();
    let open = |settings: Settings| program(settings, &process()).existing(made.file_id(), "a.db");
    let ring = Settings::new().keyring(bench.path("ring")).unwrap();
    let wrong = ring.clone().hsm(bench.uri.clone()).pin_file(other.path("pin"));
    refused(open(wrong.clone()), Reason::HsmRefused, &["wrong PIN", "\"user\""]);
    refused(program(wrong, &process()).ready("a.db"), Reason::HsmRefused, &["wrong PIN"]);
    let absent = ring.clone().hsm(SoftUri::new(bench.path("nowhere"))).pin_file(bench.path("pin"));
    refused(open(absent), Reason::HsmAway, &["nowhere"]);
    let another = ring.hsm(other.uri.clone()).pin_file(other.path("pin"));
    refused(open(another), Reason::KeyWrong, &["master key", "keyring.tde"]);
    open(bench.settings()).unwrap();
}

#[test]
fn missing_destroyed_and_wrong_versions_are_told_apart() {
    let bench = Bench::new();
    let made = program(bench.settings(), &process()).create("a.db").unwrap();
    let id = made.file_id();
    let (keyring, hsm) = bench.unlocked("ring");
    let line = keyring.find_sqlite_file(&id.0).unwrap().unwrap().line;
    refused(made.version(7), Reason::KeyMissing, &["version 7", &id.to_string(), "backup"]);
    for _ in 0..2 {
        keyring.add_version(line, &hsm).unwrap();
    }
    keyring.plan_destruction(line, KeyVersion(2), 1).unwrap();
    keyring.destroy(line, KeyVersion(2)).unwrap();
    refused(made.version(2), Reason::KeyDestroyed, &["version 2", "destroyed"]);
    // A page under a version that is not known yet: the keyring is read again.
    assert_eq!(made.version(3).unwrap().version, 3);
    assert_eq!(made.active_version(), 3, "and what is newest there is sealed under from now on");

    // Two versions' wrapped keys exchanged.
    let path = keyring.path_of(line);
    let mut bytes = fs::read(&path).unwrap();
    let count = 20 + 16 + 8 + 8;
    let (one, two) = (count + 8 + 8, count + 8 + 48 + 8);
    let first: Vec<u8> = bytes[one..one + 40].to_vec();
    bytes.copy_within(two..two + 40, one);
    bytes[two..two + 40].copy_from_slice(&first);
    let crc = crc32(bytes[..16].iter().chain(&bytes[20..]));
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let there = program(bench.settings(), &process()).existing(id, "a.db");
    refused(there, Reason::KeyWrong, &["version 3", path.to_str().unwrap()]);
}

/// CRC-32 (IEEE), bit by bit.
fn crc32<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// As when a disk is unmounted and mounted again.
fn move_all(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn the_hsm_goes_away_and_comes_back() {
    let bench = Bench::new();
    let here = process();
    let source = program(bench.settings(), &here);
    let made = source.create("a.db").unwrap();
    let (keyring, hsm) = bench.unlocked("ring");
    let line = keyring.find_sqlite_file(&made.file_id().0).unwrap().unwrap().line;
    // A master-key version that the session has not used yet.
    let mut hsm = hsm;
    keyring::MasterKey::generate_version(&mut hsm).unwrap();
    keyring.add_version(line, &hsm).unwrap();
    drop(hsm);
    let away = bench.path("away");
    fs::create_dir(&away).unwrap();
    move_all(&bench.uri.dir, &away);
    refused(made.version(2), Reason::HsmAway, &["HSM away", "version 2", "try again"]);
    made.version(1).unwrap();
    source.existing(made.file_id(), "a.db").unwrap();
    refused(source.create("b.db"), Reason::HsmAway, &[]);
    move_all(&away, &bench.uri.dir);
    assert_eq!(made.version(2).unwrap().version, 2);
    assert!(bench.logins() >= 2, "it logged in again");
    source.create("b.db").unwrap();
}

#[test]
fn plain_names_find_their_keys_in_what_is_open() {
    let bench = Bench::new();
    let here = process();
    let one = bench.hsm().keyring(bench.path("one")).unwrap();
    let two = bench.hsm().keyring(bench.path("two")).unwrap();
    let plain = program(Settings::new(), &here);
    let a = program(one.clone(), &here).create("a.db").unwrap();
    // One keyring is open: that is where a new file's key goes, and where others are looked for.
    let attached = plain.create("attached.db").unwrap();
    assert_eq!(attached.keyring_dir(), Some(bench.path("one").as_path()));
    plain.existing(a.file_id(), "a.db").unwrap();
    let elsewhere = program(two.clone(), &process()).create("b.db").unwrap();
    refused(plain.existing(elsewhere.file_id(), "b.db"), Reason::NoEntry, &["one", "tde keyring import"]);
    // Two are: nobody can tell where a new one's goes.
    bench.logins.store(0, Ordering::Relaxed);
    let b = program(two.clone(), &here).existing(elsewhere.file_id(), "b.db").unwrap();
    let found = plain.existing(elsewhere.file_id(), "b.db").unwrap();
    assert!(Arc::ptr_eq(&b, &found));
    assert_eq!(bench.logins(), 0, "one HSM, one login");
    refused(plain.create("new.db"), Reason::Config, &["one", "two", "keyring=DIR"]);
    refused(plain.ready("new.db"), Reason::Config, &["keyring=DIR"]);
    // The program's keyring does not hide what the URI of another connection opened; a URI's does.
    program(one.clone(), &here).existing(b.file_id(), "b.db").unwrap();
    let by_uri = Configured::with_keychain(one.clone(), Settings::new(), &here);
    refused(by_uri.existing(b.file_id(), "b.db"), Reason::NoEntry, &["one"]);

    // A file whose keys were brought to a second keyring.
    let (source, hsm) = bench.unlocked("two");
    let line = source.find_sqlite_file(&b.file_id().0).unwrap().unwrap().line;
    let (target, _) = bench.unlocked("one");
    target.adopt(&source.export(line).unwrap(), &hsm, &hsm).unwrap();
    refused(plain.existing(b.file_id(), "b.db"), Reason::Config, &["several keyrings", "one", "two"]);
    by_uri.existing(b.file_id(), "b.db").unwrap();
}

#[test]
fn a_keyring_that_vanished_or_moved_is_not_replaced() {
    let bench = Bench::new();
    let made = program(bench.settings(), &process()).create("a.db").unwrap();
    let moved = bench.path("moved");
    fs::rename(bench.path("ring"), &moved).unwrap();
    let fresh = program(bench.settings(), &process());
    refused(fresh.existing(made.file_id(), "a.db"), Reason::NoEntry, &["no keyring", "ring"]);
    refused(fresh.create("b.db"), Reason::Keyring, &["remembers keyring", "accept-restore"]);
    assert!(!bench.path("ring").exists());
    let there = bench.hsm().keyring(&moved).unwrap();
    program(there, &process()).existing(made.file_id(), "a.db").unwrap();
    // Only the root is gone: damaged, not new.
    fs::rename(&moved, bench.path("ring")).unwrap();
    fs::remove_file(bench.path("ring/keyring.tde")).unwrap();
    refused(fresh.create("b.db"), Reason::Keyring, &["keyring.tde is missing"]);
}

#[test]
fn a_keyring_whose_making_was_interrupted_is_made_again() {
    let bench = Bench::new();
    fs::create_dir_all(bench.path("ring/lines")).unwrap();
    fs::set_permissions(bench.path("ring"), fs::Permissions::from_mode(0o700)).unwrap();
    program(bench.settings(), &process()).create("app.db").unwrap();
    // With a record it is a keyring that lost its root.
    fs::remove_file(bench.path("ring/keyring.tde")).unwrap();
    refused(
        program(bench.settings(), &process()).create("b.db"),
        Reason::Keyring,
        &["keyring.tde is missing"],
    );
}

#[test]
fn another_keyring_in_the_place_is_opened_anew() {
    let bench = Bench::new();
    let here = process();
    let source = program(bench.settings(), &here);
    source.create("a.db").unwrap();
    let other = bench.hsm().keyring(bench.path("other")).unwrap();
    let there = program(other, &process()).create("b.db").unwrap();
    fs::rename(bench.path("ring"), bench.path("old")).unwrap();
    fs::rename(bench.path("other"), bench.path("ring")).unwrap();
    source.existing(there.file_id(), "b.db").unwrap();
}

#[test]
fn rotation_is_seen_by_other_processes() {
    let bench = Bench::new();
    let here = program(bench.settings(), &process()).create("a.db").unwrap();
    let id = here.file_id();
    let there = program(bench.settings(), &process()).existing(id, "a.db").unwrap();
    assert_eq!(here.rotate().unwrap(), 2);
    assert_eq!((here.active().unwrap().version, there.active().unwrap().version), (2, 1));
    // Page 1 under version 2 is what tells the other one.
    there.notice(2);
    assert_eq!(there.active().unwrap().version, 2);
    there.notice(1);
    assert_eq!(there.active_version(), 2, "never back");
    assert_eq!(there.rotate().unwrap(), 3);
    here.version(3).unwrap();
    let states: Vec<_> = here.scope().unwrap().versions.iter().map(|v| v.state.to_string()).collect();
    assert_eq!(states, ["decrypt-only", "decrypt-only", "active"]);
    // The master key's rotation changes nothing here.
    let (keyring, mut hsm) = bench.unlocked("ring");
    keyring::MasterKey::generate_version(&mut hsm).unwrap();
    keyring.rewrap_all(&hsm, |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert_eq!(here.rotate().unwrap(), 4);
    assert_eq!(program(bench.settings(), &process()).existing(id, "a.db").unwrap().active_version(), 4);
}

#[test]
fn threads_share_one_login_and_one_set_of_keys() {
    let bench = Bench::new();
    let id = program(bench.settings(), &process()).create("a.db").unwrap().file_id();
    bench.logins.store(0, Ordering::Relaxed);
    let here = process();
    let (here, bench_ref) = (&here, &bench);
    let all: Vec<_> = std::thread::scope(|scope| {
        let open = || program(bench_ref.settings(), here).existing(id, "a.db").unwrap();
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(bench.logins(), 1);
    assert!(all.iter().all(|keys| Arc::ptr_eq(keys, &all[0])));
}

#[test]
fn a_file_in_use_keeps_its_keys_when_many_others_are_opened() {
    let bench = Bench::new();
    let here = Arc::new(Keychain::with_room(std::num::NonZeroUsize::new(4).unwrap()));
    let source = program(bench.settings(), &here);
    let used = source.create("used.db").unwrap();
    let unused = source.create("unused.db").unwrap().file_id();
    for _ in 0..10 {
        source.create("x.db").unwrap();
    }
    fs::rename(bench.path("ring"), bench.path("gone")).unwrap();
    let again = source.existing(used.file_id(), "used.db").unwrap();
    assert!(Arc::ptr_eq(&used, &again));
    refused(source.existing(unused, "unused.db"), Reason::Keyring, &["keyring.tde is missing"]);
}
