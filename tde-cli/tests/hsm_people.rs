//! `tde hsm user`, `key`, `quorum` and `backup` as people and scripts call them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Done, flip_byte, tde};

struct Place(tempfile::TempDir);

impl Place {
    fn made() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let done = place.hsm("init --store @hsm --pin-file @pin --officer-pin-file @officer");
        assert_eq!(done.code, 0, "{}", done.err);
        place
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

    fn good(&self, line: &str) -> Done {
        let done = self.hsm(line);
        assert_eq!(done.code, 0, "{line}: {}", done.err);
        done
    }

    fn refused(&self, line: &str, why: &str) {
        let done = self.hsm(line);
        assert!(done.code != 0 && done.err.contains(why), "{line}: {} {}", done.code, done.err);
    }

    fn user(&self, name: &str, role: &str) {
        self.good(&format!(
            "user create {name} --store @hsm --officer-pin-file @officer --role {role} --new-pin-file @{name}"
        ));
    }
}

fn openssl(arguments: &[&str]) {
    let done = Command::new("openssl").args(arguments).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn users_of_every_role_are_made_listed_and_removed() {
    let place = Place::made();
    for (name, role) in
        [("anna", "auditor"), ("otto", "crypto-officer"), ("app", "crypto-user"), ("box", "appliance-user")]
    {
        place.user(name, role);
    }
    let listed = place.good("user list --store @hsm --json").json();
    assert_eq!(listed["users"].as_array().unwrap().len(), 6);
    assert_eq!(listed["users"][0]["role"], "auditor");
    assert!(place.good("user list --store @hsm").out.contains("appliance user"));
    place.good("audit verify --store @hsm --user anna --pin-file @anna");
    place.refused("key list --store @hsm --user anna --pin-file @anna", "may not look at objects");
    place.good("user delete app --store @hsm --officer-pin-file @officer");
    assert!(!place.good("user list --store @hsm").out.contains("app "));
}

#[test]
fn keys_are_made_listed_shared_and_destroyed() {
    let place = Place::made();
    place.user("app", "crypto-user");
    let made = place.good("key create aes256 --label k1 --store @hsm --pin-file @pin --json").json();
    let id = made["ids"][0].as_str().unwrap().to_owned();
    place.good("key create p256 --label pair --store @hsm --pin-file @pin");
    let listed = place.good("key list --store @hsm --pin-file @pin --json").json();
    assert_eq!(listed["keys"].as_array().unwrap().len(), 3);
    let one = place.good("key list --label k1 --store @hsm --pin-file @pin --json").json();
    assert_eq!(one["keys"][0]["type"], "AES 256");
    assert_eq!(one["keys"][0]["extractable"], false);
    let others = || {
        place.good("key list --label k1 --store @hsm --user app --pin-file @app --json").json()["keys"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(others(), 0);
    place.good(&format!("key share {id} --with app --store @hsm --pin-file @pin"));
    assert_eq!(others(), 1);
    place.refused(
        &format!("key delete {id} --store @hsm --user app --pin-file @app"),
        "belongs to another user",
    );
    place.good(&format!("key unshare {id} --with app --store @hsm --pin-file @pin"));
    assert_eq!(others(), 0);
    place.good(&format!("key delete {id} --store @hsm --pin-file @pin"));
    place.refused(&format!("key delete {id} --store @hsm --pin-file @pin"), "there is no object");
}

/// Registers a key that `openssl` made.
fn register(place: &Place, name: &str, pin: &str, algorithm: &str) -> PathBuf {
    let file = |suffix: &str| place.path(&format!("{name}.{suffix}"));
    let text = |p: &Path| p.display().to_string();
    openssl(&["genpkey", "-algorithm", algorithm, "-out", &text(&file("pem"))]);
    openssl(&["pkey", "-in", &text(&file("pem")), "-pubout", "-outform", "DER", "-out", &text(&file("pub"))]);
    let login = format!("--store @hsm --user {name} --pin-file @{pin}");
    place.good(&format!("quorum register {login} --to-sign @{name}.tbs"));
    sign(&file("pem"), algorithm, &file("tbs"), &file("sig"));
    place.good(&format!("quorum register {login} --public-key @{name}.pub --signature @{name}.sig"));
    file("pem")
}

fn sign(key: &Path, algorithm: &str, message: &Path, signature: &Path) {
    let [key, message, signature] = [key, message, signature].map(|p| p.display().to_string());
    if algorithm == "RSA" {
        openssl(&["dgst", "-sha256", "-sign", &key, "-out", &signature, &message]);
    } else {
        openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", &key, "-in", &message, "-out", &signature]);
    }
}

#[test]
fn two_people_approve_offline_with_openssl_what_an_officer_then_does_once() {
    let place = Place::made();
    place.user("anna", "auditor");
    let keys = [
        ("anna", register(&place, "anna", "anna", "ED25519"), "ED25519"),
        ("user", register(&place, "user", "pin", "RSA"), "RSA"),
    ];
    place.good("quorum set users 2 --store @hsm --officer-pin-file @officer");
    let create = "user create bob --store @hsm --officer-pin-file @officer --new-pin-file @bob";
    place.refused(create, "managing users needs 2 approvals");
    let asked = place
        .good("quorum ask users --store @hsm --user officer --pin-file @officer --to-sign @tbs --json")
        .json();
    let id = asked["id"].as_str().unwrap().to_owned();
    place.refused(&format!("{create} --request {id}"), "too few have approved");
    for (name, key, algorithm) in &keys {
        sign(key, algorithm, &place.path("tbs"), &place.path("sig"));
        place.good(&format!("quorum approve {id} --by {name} --signature @sig --store @hsm --pin-file @pin"));
    }
    let shown = place.good("quorum list --store @hsm --pin-file @pin").out;
    assert!(shown.contains("anna, user") && shown.contains("managing users needs 2"), "{shown}");
    place.good(&format!("{create} --request {id}"));
    place.refused(
        &format!("user delete bob --store @hsm --officer-pin-file @officer --request {id}"),
        "used already",
    );
}

#[test]
fn a_backup_restores_on_an_empty_place_and_a_changed_one_does_not() {
    let place = Place::made();
    place.good("key create aes256 --label kept --store @hsm --pin-file @pin");
    place.user("box", "appliance-user");
    fs::create_dir(place.path("backups")).unwrap();
    place.refused("backup create --store @hsm --pin-file @pin --to @backups", "may not make backups");
    let made = place
        .good("backup create --store @hsm --user box --pin-file @box --to @backups --keep-days 7 --json")
        .json();
    let file = made["backup"].as_str().unwrap().to_owned();
    place.good(&format!("backup verify {file} --pin-file @pin"));
    place.refused(&format!("backup verify {file} --pin-file @pin --approved-only"), "cannot be restored");
    place.refused(&format!("backup verify {file} --pin-file @officer"), "the PIN is not that of");
    place.good(&format!("backup restore {file} --pin-file @pin --store @again"));
    let listed = place.good("key list --store @again --pin-file @pin --json").json();
    assert_eq!(listed["keys"][0]["label"], "kept");
    place.refused(&format!("backup restore {file} --pin-file @pin --store @again"), "not empty");
    flip_byte(Path::new(&file), 500);
    place.refused(&format!("backup restore {file} --pin-file @pin --store @third"), "backup");
    assert!(!place.path("third").exists());
}
