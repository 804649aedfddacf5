//! `tde hsm` as people and scripts call it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use common::{Done, flip_byte, tde};

/// An empty place, and short names for paths in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs `tde hsm`; words that begin with `@` are files of this place.
    fn hsm(&self, line: &str) -> Done {
        let words = line.split_whitespace().map(|w| match w.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => w.to_owned(),
        });
        let words: Vec<String> = ["hsm".to_owned()].into_iter().chain(words).collect();
        tde(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn made() -> Self {
        let place = Self::new();
        let done = place.hsm("init --store @hsm --pin-file @pin --officer-pin-file @officer");
        assert_eq!(done.code, 0, "{}", done.err);
        place
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().permissions().mode() & 0o7777
    }
}

#[test]
fn one_command_makes_a_usable_hsm_and_its_pin_files() {
    let place = Place::new();
    let done =
        place.hsm("init --store @hsm --pin-file @pin --officer-pin-file @officer --label tde-key --json");
    assert_eq!(done.code, 0, "{}", done.err);
    let made = done.json();
    assert_eq!(made["pin_file_made"], true);
    assert_eq!(made["master_key"], "tde-key");
    assert!(made["officer_pin"].is_null());
    assert!(done.err.contains("same file system"), "{}", done.err);
    assert_eq!((place.mode("hsm"), place.mode("pin"), place.mode("officer")), (0o700, 0o600, 0o600));
    for pin in ["pin", "officer"] {
        let text = fs::read_to_string(place.path(pin)).unwrap();
        assert!(text.starts_with("tdepin-") && text.len() == 72);
        assert!(!done.out.contains(text.trim()) && !done.err.contains(text.trim()));
    }

    let public = place.hsm("status --store @hsm --json").json();
    assert!(public["master_keys"].is_null());
    assert_eq!(public["users"].as_array().unwrap().len(), 2);
    let open = place.hsm("status --store @hsm --pin-file @pin --json").json();
    assert_eq!(open["master_keys"][0]["label"], "tde-key");
    assert_eq!(open["master_keys"][0]["versions"][0]["state"], "active");
    assert_eq!(open["master_keys"][0]["id"], made["master_key_id"]);
    // The URI that init prints is what other commands take.
    let uri = made["uri"].as_str().unwrap();
    assert!(uri.starts_with("soft:/") && uri.ends_with("?key=tde-key"), "{uri}");
    assert_eq!(tde(&["hsm", "status", "--store", uri]).code, 0);
}

#[test]
fn the_officers_pin_is_shown_once_if_no_file_is_named_and_it_works() {
    let place = Place::new();
    let done = place.hsm("init --store @hsm --pin-file @pin");
    assert_eq!(done.code, 0, "{}", done.err);
    let pin = done.out.lines().find_map(|l| l.trim().strip_prefix("tdepin-")).unwrap();
    assert!(done.out.contains("shown only now"));
    place.write("officer", &format!("tdepin-{pin}\n"), 0o600);
    let unlocked = place.hsm("unlock user --store @hsm --officer-pin-file @officer");
    assert_eq!(unlocked.code, 0, "{}", unlocked.err);
    let leaked = fs::read_dir(place.path("hsm"))
        .unwrap()
        .any(|f| String::from_utf8_lossy(&fs::read(f.unwrap().path()).unwrap()).contains(pin));
    assert!(!leaked);
}

/// `tde hsm init | true`
#[test]
fn the_officers_pin_is_not_lost_in_silence() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    // In a session without a terminal, on which it would be shown instead.
    let done = Command::new("setsid")
        .args(["--wait", env!("CARGO_BIN_EXE_tde"), "hsm", "init", "--store"])
        .arg(place.path("hsm"))
        .arg("--pin-file")
        .arg(place.path("pin"))
        .stdin(std::process::Stdio::null())
        .stdout(writer)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(2), "{said}");
    assert!(
        said.contains("nobody saw its crypto officer's PIN: remove") && said.contains("--officer-pin-file"),
        "{said}"
    );
    assert!(!said.contains("tdepin-"), "{said}");
}

#[test]
fn init_refuses_what_would_do_harm() {
    let place = Place::made();
    let again = place.hsm("init --store @hsm --pin-file @new");
    assert_eq!(again.code, 2);
    assert!(again.err.contains("already holds an HSM"), "{}", again.err);
    assert!(!place.path("new").exists(), "a PIN file was made for nothing");

    place.write("loose", "some pin", 0o644);
    let loose = place.hsm("init --store @other --pin-file @loose");
    assert_eq!(loose.code, 2);
    assert!(loose.err.contains("chmod 0600") && loose.err.contains("loose"), "{}", loose.err);
    place.write("empty", "\n", 0o600);
    assert_eq!(place.hsm("init --store @other --pin-file @empty").code, 2);
    let same = place.hsm("init --store @other --pin-file @pin --officer-pin-file @pin");
    assert!(same.code == 2 && same.err.contains("different PINs"), "{}", same.err);
    assert!(!place.path("other").exists());

    fs::create_dir(place.path("full")).unwrap();
    fs::set_permissions(place.path("full"), fs::Permissions::from_mode(0o700)).unwrap();
    place.write("full/letter", "dear diary", 0o600);
    let full = place.hsm("init --store @full --pin-file @pin");
    assert!(full.code == 2 && full.err.contains("not empty"), "{}", full.err);
    assert_eq!(place.hsm("init --pin-file @pin").code, 2);
}

#[test]
fn the_environment_stands_in_for_options() {
    let place = Place::made();
    for hsm in [place.path("hsm").display().to_string(), format!("soft:{}", place.path("hsm").display())] {
        let output = Command::new(env!("CARGO_BIN_EXE_tde"))
            .args(["hsm", "status", "--json"])
            .env("TDE_HSM", hsm)
            .env("TDE_PIN_FILE", place.path("pin"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("\"label\": \"master\""), "{text}");
    }
    let nothing = tde(&["hsm", "status"]);
    assert!(nothing.code == 2 && nothing.err.contains("TDE_HSM"), "{}", nothing.err);
}

#[test]
fn a_monitor_with_an_old_pin_locks_nobody_out() {
    let place = Place::made();
    place.write("old", "not this one", 0o600);
    let monitor = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tde"));
        command.args(["hsm", "status", "--json", "--store"]).arg(place.path("hsm"));
        let output = command.env("TDE_PIN_FILE", place.path("old")).output().unwrap();
        let view: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (
            output.status.code(),
            view["master_keys_error"].as_str().unwrap().to_owned(),
            view["users"][1]["failures"].clone(),
        )
    };
    let (code, error, failures) = monitor();
    assert!(code == Some(1) && error.contains("wrong PIN") && failures == 1, "{error}");
    for _ in 0..5 {
        let (code, error, failures) = monitor();
        assert!(code == Some(1) && error.contains("not tried after 1 wrong PIN") && failures == 1, "{error}");
    }
    // Who says so on the command line is taken at their word.
    assert_eq!(place.hsm("status --store @hsm --pin-file @pin").code, 0);
    assert_eq!(place.hsm("status --store @hsm --json").json()["users"][1]["failures"], 0);
}

#[test]
fn counters_are_listed_and_forgotten_on_the_record() {
    use hsm_engine::{Hsm, Pin};
    let place = Place::made();
    let pin = Pin::from_file(place.path("pin")).unwrap();
    let session = Hsm::open_dir(place.path("hsm")).unwrap().login("user", &pin).unwrap();
    let here = keyring::InstanceId::of(&place.path("keyring")).unwrap();
    let name = format!("keyring/{here}/00000000-0000-0000-0000-000000000001");
    session.raise_counter(&name, 7).unwrap();
    session.raise_counter("keyring/elsewhere/x", 3).unwrap();
    session.close().unwrap();
    let list =
        |more: &str| place.hsm(&format!("counters list --store @hsm --pin-file @pin --json {more}")).json();
    let all = list("");
    assert_eq!(
        (all["counters"].as_array().unwrap().len(), &all["used"], &all["limit"]),
        (2, &2.into(), &4096.into())
    );
    let here = list("--place @keyring");
    assert_eq!(
        (&here["counters"][0]["name"], &here["counters"][0]["value"]),
        (&name.as_str().into(), &7.into())
    );
    assert_eq!(here["counters"].as_array().unwrap().len(), 1);

    let done = place.hsm(&format!("counters forget {name} --store @hsm --pin-file @pin"));
    assert!(done.code == 0 && done.out.contains("last at 7"), "{}{}", done.out, done.err);
    assert_eq!(list("")["used"], 1);
    let again = place.hsm(&format!("counters forget {name} --store @hsm --pin-file @pin"));
    assert!(again.code == 2 && again.err.contains("tde hsm counters list"), "{}", again.err);
    let log = place.hsm("audit show --store @hsm --pin-file @pin").out;
    assert!(log.contains(&name), "{log}");
    // An officer does not use keys, so has no business with what protects them.
    let officer =
        place.hsm("counters forget keyring/elsewhere/x --store @hsm --user officer --pin-file @officer");
    assert!(officer.code == 2 && officer.err.contains("may not forget counters"), "{}", officer.err);
}

#[test]
fn wrong_pins_lock_and_the_officer_unlocks() {
    let place = Place::made();
    place.write("wrong", "not this one", 0o600);
    for n in 1..=3 {
        let wrong = place.hsm("audit verify --store @hsm --pin-file @wrong");
        assert_eq!(wrong.code, 2);
        assert!(
            wrong.err.contains(&format!("wrong PIN for HSM user \"user\" ({n} wrong PIN")),
            "{}",
            wrong.err
        );
    }
    let locked = place.hsm("audit verify --store @hsm --pin-file @pin");
    assert_eq!(locked.code, 2);
    assert!(
        locked.err.contains("locked until") && locked.err.contains("tde hsm unlock user"),
        "{}",
        locked.err
    );
    let status = place.hsm("status --store @hsm --json").json();
    let user = &status["users"][1];
    assert_eq!((user["name"].as_str(), user["lock"].as_str()), (Some("user"), Some("until")));
    assert_eq!(user["failures"], 3);
    // A user is no officer.
    let refused = place.hsm("unlock user --store @hsm --officer officer --officer-pin-file @wrong");
    assert_eq!(refused.code, 2);

    let unlocked = place.hsm("unlock user --store @hsm --officer-pin-file @officer");
    assert_eq!(unlocked.code, 0, "{}", unlocked.err);
    assert_eq!(place.hsm("audit verify --store @hsm --pin-file @pin").code, 0);
    let refused = place.hsm("unlock officer --store @hsm --officer user --officer-pin-file @pin");
    assert!(refused.code == 2 && refused.err.contains("may not unlock users"), "{}", refused.err);
}

#[test]
fn pins_are_changed_by_their_user_and_reset_by_the_officer() {
    let place = Place::made();
    let status = |pin: &str| place.hsm(&format!("status --store @hsm --pin-file @{pin}")).code;
    let changed = place.hsm("change-pin --store @hsm --pin-file @pin --new-pin-file @pin2");
    assert_eq!(changed.code, 0, "{}", changed.err);
    assert_eq!((place.mode("pin2"), status("pin2"), status("pin")), (0o600, 0, 1));
    let same = place.hsm("change-pin --store @hsm --pin-file @pin2 --new-pin-file @pin2");
    assert!(same.code == 2 && same.err.contains("nothing was changed"), "{}", same.err);
    place.write("pin3", "made up by a person", 0o600);
    let reset = place.hsm("reset-pin user --store @hsm --officer-pin-file @officer --new-pin-file @pin3");
    assert_eq!(reset.code, 0, "{}", reset.err);
    assert_eq!((status("pin3"), status("pin2")), (0, 1));
    let json = place.hsm("status --store @hsm --json").json();
    assert!(json["users"][1]["pin"].as_str().unwrap().contains("Argon2id"));
}

#[test]
fn audit_verify_finds_damage_and_show_tells_what_happened() {
    let place = Place::made();
    let good = place.hsm("audit verify --store @hsm --json");
    assert_eq!((good.code, &good.json()["authenticated"]), (0, &false.into()));
    let good = place.hsm("audit verify --store @hsm --pin-file @pin --json");
    assert_eq!(
        (good.code, &good.json()["authenticated"], &good.json()["ok"]),
        (0, &true.into(), &true.into())
    );

    let shown = place.hsm("audit show --store @hsm --json").json();
    let events: Vec<_> = shown.as_array().unwrap().iter().map(|r| r["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["initialized", "master-key-created", "login", "logout", "login", "logout"]);
    let last = place.hsm("audit show --store @hsm --last 2 --json").json();
    assert_eq!(last.as_array().unwrap().len(), 2);
    assert_eq!(last[1], shown[5]);

    flip_byte(&place.path("hsm/audit.00000001.log"), 300);
    for line in ["audit verify --store @hsm", "audit verify --store @hsm --pin-file @pin"] {
        let bad = place.hsm(&format!("{line} --json"));
        let verdict = bad.json();
        assert_eq!((bad.code, &verdict["ok"]), (1, &false.into()));
        assert!(verdict["error"].as_str().unwrap().contains("audit.00000001.log"));
        assert_eq!(place.hsm(line).code, 1);
    }
    let shown = place.hsm("audit show --store @hsm");
    assert!(shown.code == 1 && shown.out.contains("initialized"), "{}", shown.out);
}

#[test]
fn a_damaged_log_is_restarted_by_the_officer_alone() {
    let place = Place::made();
    let whole = place.hsm("audit restart --store @hsm --officer-pin-file @officer");
    assert!(whole.code == 2 && whole.err.contains("whole"), "{}", whole.err);
    let log = place.path("hsm/audit.00000001.log");
    let len = fs::metadata(&log).unwrap().len() as usize;
    flip_byte(&log, len - 10);
    let status = place.hsm("status --store @hsm --pin-file @pin");
    assert!(status.code == 1 && status.out.contains("tde hsm audit restart"), "{}", status.out);
    let user = place.hsm("audit restart --store @hsm --officer user --officer-pin-file @pin");
    assert!(user.code == 2 && user.err.contains("may not restart"), "{}", user.err);
    let restarted = place.hsm("audit restart --store @hsm --officer-pin-file @officer");
    assert_eq!(restarted.code, 0, "{}", restarted.err);
    let verdict = place.hsm("audit verify --store @hsm --pin-file @pin --json");
    assert_eq!((verdict.code, &verdict.json()["set_aside"]), (0, &1.into()));
    assert_eq!(place.hsm("status --store @hsm --pin-file @pin").code, 0);
}

#[test]
fn damage_of_any_object_is_a_problem_that_names_it() {
    let place = Place::made();
    let objects: Vec<_> = fs::read_dir(place.path("hsm"))
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".obj"))
        .collect();
    assert_eq!(objects.len(), 8);
    for object in objects {
        let path = place.path("hsm").join(&object);
        let bytes = fs::read(&path).unwrap();
        flip_byte(&path, 40);
        let bad = place.hsm("status --store @hsm --pin-file @pin");
        assert_eq!(bad.code, 1, "{object}: {}{}", bad.out, bad.err);
        let text = bad.out + &bad.err;
        assert!(text.contains(object.strip_suffix(".obj").unwrap()), "{object}: {text}");
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(place.hsm("status --store @hsm --pin-file @pin").code, 0);
}
