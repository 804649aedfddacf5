//! Kills a child process at every step that writes, then looks at what is left: the store is as before the change or as
//! after it, everything in it verifies, and the right PIN opens it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Signal, getpid, kill_process};

use crate::{Failures, Hsm, HsmError, Initialize, KeyAttributes, Pin, Rights, Role, Session};

/// Number of the step at which a child of these tests dies.
const DIE_AT: &str = "HSM_ENGINE_TEST_DIE_AT";
const DIR: &str = "HSM_ENGINE_TEST_DIR";
const CHANGE: &str = "HSM_ENGINE_TEST_CHANGE";

const USER_PIN: &str = "tdepin-1111111111111111111111111111111111111111111111111111111111111111";
const OFFICER_PIN: &str = "tdepin-2222222222222222222222222222222222222222222222222222222222222222";
const NEW_PIN: &str = "tdepin-3333333333333333333333333333333333333333333333333333333333333333";

/// Called at every step that writes. In a child of these tests, dies without any clean-up at the step it was told.
pub(crate) fn step(_name: &str) {
    static STEPS: AtomicU32 = AtomicU32::new(0);
    let Some(die_at) = std::env::var(DIE_AT).ok().and_then(|n| n.parse::<u32>().ok()) else { return };
    if STEPS.fetch_add(1, Ordering::SeqCst) == die_at {
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
    }
}

fn pin(text: &str) -> Pin {
    Pin::from_reader(text.as_bytes()).unwrap()
}

fn initialize(dir: &Path) -> Result<Hsm, HsmError> {
    Hsm::initialize_dir(dir, &Initialize::new(&pin(OFFICER_PIN), &pin(USER_PIN)))
}

fn login(dir: &Path, user: &str, text: &str) -> Result<Session, HsmError> {
    Hsm::open_dir(dir)?.login(user, &pin(text))
}

/// Makes one change of the store in `dir`.
fn change(dir: &Path, what: &str) -> Result<(), HsmError> {
    let user = || login(dir, "user", USER_PIN);
    let officer = || login(dir, "officer", OFFICER_PIN);
    match what {
        "initialize" => initialize(dir).map(|_| ()),
        "login" => user()?.close(),
        "wrong pin" => match login(dir, "user", NEW_PIN) {
            Err(HsmError::WrongPin { .. }) => Ok(()),
            other => panic!("{other:?}"),
        },
        "create key" => {
            user()?.create_master_key("second", KeyAttributes { plaintext_data_keys: false }).map(|_| ())
        }
        "rotate" => {
            let user = user()?;
            user.rotate_master_key(&user.find_master_key("master")?).map(|_| ())
        }
        "raise counter" => user()?.raise_counter("a", 7).map(|_| ()),
        "change pin" => user()?.change_pin(&pin(NEW_PIN)),
        "reset pin" => officer()?.reset_pin("user", &pin(NEW_PIN)),
        "unlock" => officer()?.unlock_user("user"),
        "create user" => {
            let rights = Rights { plaintext_data_keys: false };
            officer()?.create_user("second", Role::CryptoUser, rights, &pin(NEW_PIN))
        }
        #[cfg(feature = "objects")]
        "create object" | "change object" | "destroy object" => objects::change(user()?, what),
        other => panic!("unknown change {other}"),
    }
}

/// The child: not a test by itself, it does nothing unless a parent asks.
#[test]
fn child() {
    if let (Ok(dir), Ok(what)) = (std::env::var(DIR), std::env::var(CHANGE)) {
        change(Path::new(&dir), &what).unwrap();
    }
}

/// Runs `what` in a child that dies at step `n`; `false` if it ended before.
fn dies_at(dir: &Path, what: &str, n: u32) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash_tests::child", "--nocapture", "--test-threads=1"])
        .envs([(DIR, dir.to_str().unwrap()), (CHANGE, what), (DIE_AT, &n.to_string())])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    if output.status.success() {
        return false;
    }
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(
        output.status.signal(),
        Some(9),
        "{what} at step {n}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    true
}

/// Whether the change is there, if everything verifies; called twice, as the first look may have repaired something.
fn looks_changed(dir: &Path, what: &str) -> bool {
    let new_pin = login(dir, "user", NEW_PIN);
    let changed_pin = new_pin.is_ok();
    let user = new_pin.unwrap_or_else(|_| login(dir, "user", USER_PIN).unwrap());
    login(dir, "officer", OFFICER_PIN).unwrap().close().unwrap();
    user.verify_store().unwrap();
    let mut events = Vec::new();
    user.verify_audit(&mut |r| events.push(r.event.name())).unwrap();
    let master = user.find_master_key("master").unwrap();
    let data_key = user.generate_data_key(&master, crate::Return::Plaintext).unwrap();
    assert!(user.unwrap(&master, &data_key.wrapped).unwrap().ct_eq(&data_key.plaintext.unwrap()));
    let logged = |name| events.contains(&name);
    match what {
        #[cfg(feature = "objects")]
        "create object" => {
            let changed = objects::labels(user) == ["", "new"];
            assert!(!changed || logged("object-created"));
            changed
        }
        #[cfg(feature = "objects")]
        "change object" => {
            let changed = objects::labels(user) == ["changed"];
            assert!(!changed || logged("object-changed"));
            changed
        }
        #[cfg(feature = "objects")]
        "destroy object" => {
            let changed = objects::labels(user).is_empty();
            assert!(!changed || logged("object-destroyed"));
            changed
        }
        "login" | "initialize" => true,
        // The counter is cleared by the logins above; the log tells.
        "wrong pin" => events.iter().filter(|e| **e == "login-failed").count() > usize::from(!changed_pin),
        "create key" => {
            let changed = user.find_master_key("second").is_ok();
            assert!(!changed || logged("master-key-created"));
            changed
        }
        "rotate" => {
            let changed = user.primary_version(&master).unwrap() == 2;
            assert!(!changed || logged("master-key-rotated"));
            changed
        }
        "raise counter" => match user.counter("a").unwrap() {
            None => false,
            Some(7) => true,
            other => panic!("{other:?}"),
        },
        "change pin" => {
            assert!(!changed_pin || logged("pin-changed"));
            changed_pin
        }
        "reset pin" => {
            assert!(!changed_pin || logged("pin-reset"));
            changed_pin
        }
        "unlock" => logged("user-unlocked"),
        "create user" => {
            let changed = login(dir, "second", NEW_PIN).is_ok();
            assert!(!changed || logged("user-created"));
            changed
        }
        other => panic!("unknown change {other}"),
    }
}

/// Kills `what` at every step on a fresh store each; both outcomes must occur, and no third one.
fn kill_at_every_step(what: &str) {
    let (mut before, mut after) = (0, 0);
    for n in 0.. {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("hsm");
        initialize(&dir).unwrap();
        #[cfg(feature = "objects")]
        if what.ends_with("object") {
            objects::make(login(&dir, "user", USER_PIN).unwrap(), "").unwrap();
        }
        if !dies_at(&dir, what, n) {
            assert!(looks_changed(&dir, what), "{what} was not interrupted and did nothing");
            break;
        }
        let changed = looks_changed(&dir, what);
        *if changed { &mut after } else { &mut before } += 1;
        // What the first look repaired or logged stays good, and the change stays made or not made.
        if what != "wrong pin" {
            assert_eq!(looks_changed(&dir, what), changed, "{what} at step {n}");
        }
    }
    assert!(before + after >= 4, "{what} has too few steps to be tested: {before} + {after}");
    if !matches!(what, "login" | "wrong pin") {
        assert!(before > 0 && after > 0, "{what}: {before} before, {after} after");
    }
}

#[test]
fn killed_while_logging_in() {
    kill_at_every_step("login");
}

#[test]
fn killed_while_a_wrong_pin_is_refused() {
    kill_at_every_step("wrong pin");
}

#[test]
fn killed_while_a_key_is_made() {
    kill_at_every_step("create key");
}

#[test]
fn killed_while_a_key_is_rotated() {
    kill_at_every_step("rotate");
}

#[test]
fn killed_while_a_counter_is_raised() {
    kill_at_every_step("raise counter");
}

#[test]
fn killed_while_a_pin_is_changed() {
    kill_at_every_step("change pin");
}

#[test]
fn killed_while_a_pin_is_reset() {
    kill_at_every_step("reset pin");
}

#[test]
fn killed_while_a_user_is_unlocked() {
    kill_at_every_step("unlock");
}

#[test]
fn killed_while_a_user_is_made() {
    kill_at_every_step("create user");
}

/// Until the header is there, the store holds no HSM and says what to do; the last step makes it whole.
#[test]
fn killed_while_the_hsm_is_made() {
    let mut steps = 0;
    for n in 0.. {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("hsm");
        if !dies_at(&dir, "initialize", n) {
            assert!(looks_changed(&dir, "initialize"));
            break;
        }
        steps += 1;
        match Hsm::open_dir(&dir) {
            Ok(_) => assert!(looks_changed(&dir, "initialize")),
            Err(HsmError::NotInitialized { .. } | HsmError::IncompleteStore { .. }) => {
                let again = initialize(&dir).unwrap_err();
                let text = again.to_string();
                assert!(
                    text.contains("hsm") && (text.contains("header") || text.contains("empty")),
                    "{text}"
                );
            }
            Err(other) => panic!("step {n}: {other}"),
        }
    }
    assert!(steps > 20, "only {steps} steps");
}

/// A process that is killed while it verifies a wrong PIN has spent the attempt.
#[test]
fn a_killed_attempt_counts() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("hsm");
    initialize(&dir).unwrap();
    // Steps 0 to 4 write the counter, 5 to 9 that the PIN was wrong; the next one would log the failure.
    for step in [5, 5, 10] {
        assert!(dies_at(&dir, "wrong pin", step));
    }
    let status = Hsm::open_dir(&dir).unwrap().status().unwrap();
    let user = status.users.iter().find(|u| u.name == "user").unwrap();
    assert_eq!(user.failed, Failures { failures: 3, unfinished: 2 });
    let error = login(&dir, "user", USER_PIN).unwrap_err();
    assert!(matches!(error, HsmError::LockedUntil { failed, .. } if failed == user.failed));
    assert!(error.to_string().contains("after 1 wrong PIN and 2 logins that did not finish"), "{error}");
}

#[cfg(feature = "objects")]
#[test]
fn killed_while_an_object_is_made() {
    kill_at_every_step("create object");
}

#[cfg(feature = "objects")]
#[test]
fn killed_while_an_object_is_changed() {
    kill_at_every_step("change object");
}

#[cfg(feature = "objects")]
#[test]
fn killed_while_an_object_is_destroyed() {
    kill_at_every_step("destroy object");
}

#[cfg(feature = "objects")]
mod objects {
    use crate::objects::{AttributeType as A, Error, Generate, Template, Token, Value};
    use crate::{HsmError, Session};

    fn hsm(e: Error) -> HsmError {
        match e {
            Error::Hsm(e) => e,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn make(user: Session, label: &str) -> Result<(), HsmError> {
        let token = Token::open(user).map_err(hsm)?;
        let t = Template::new()
            .with(A::Token, Value::Bool(true))
            .with(A::Label, Value::Bytes(label.into()))
            .with(A::ValueLen, Value::Number(32));
        token.generate_key(&token.new_scope(), Generate::Aes, t).map(drop).map_err(hsm)
    }

    /// Changes or destroys the object that is there, or makes a second one.
    pub(super) fn change(user: Session, what: &str) -> Result<(), HsmError> {
        if what == "create object" {
            return make(user, "new");
        }
        let token = Token::open(user).map_err(hsm)?;
        let id = token.find(&token.new_scope(), &Template::new()).map_err(hsm)?[0];
        match what {
            "destroy object" => token.destroy(id),
            _ => token.set(id, Template::new().with(A::Label, Value::Bytes(b"changed".into()))),
        }
        .map_err(hsm)
    }

    /// Labels of all objects, sorted, if everything verifies.
    pub(super) fn labels(user: Session) -> Vec<String> {
        let token = Token::open(user).unwrap();
        token.verify_objects().unwrap();
        let found = token.find(&token.new_scope(), &Template::new()).unwrap();
        let label = |id| match token.get(id, A::Label).unwrap() {
            Value::Bytes(bytes) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        };
        let mut labels: Vec<String> = found.into_iter().map(label).collect();
        labels.sort();
        labels
    }
}
