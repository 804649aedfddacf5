//! `tde keyring` as people and scripts call it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use common::{Bench, flip_byte, tde};
use keyring::{Keyring, NewScope, Owner, ScopeKind, StateChange, TablespaceState, WalPosition};
use page_cipher::CipherId;

fn fill(bench: &Bench, ring: &Path) {
    let hsm = bench.login();
    let keyring = Keyring::create(ring, Owner::PgCluster { system_identifier: 42 }, &hsm).unwrap();
    for (oid, name) in [(16385, "secure"), (16386, "other")] {
        let initial = Some(StateChange { from: WalPosition(1 << 24), state: TablespaceState::Encrypted });
        let kind = ScopeKind::PgTablespace { oid, name: name.into() };
        keyring.add_scope(NewScope { kind, cipher: CipherId::Aes256Hctr2, initial }, &hsm).unwrap();
    }
}

#[test]
fn list_shows_what_is_not_sealed_without_and_everything_with_the_hsm() {
    let bench = Bench::new();
    let ring = bench.path("ring");
    fill(&bench, &ring);
    let ring = ring.to_str().unwrap();

    let locked = tde(&["keyring", "list", "--keyring", ring]);
    assert_eq!(locked.code, 0, "{}", locked.err);
    assert!(
        locked.out.contains("PostgreSQL cluster 42") && locked.out.contains("--pin-file"),
        "{}",
        locked.out
    );
    assert!(!locked.out.contains("secure"));
    let locked = tde(&["--json", "keyring", "list", "--keyring", ring]).json();
    assert_eq!((locked["generation"].as_u64(), locked["lines"].as_u64()), (Some(3), Some(2)));
    assert!(locked["scopes"].is_null());

    let open = bench.tde_with_pin(&["keyring", "list", "--keyring", ring]);
    assert_eq!(open.code, 0, "{}", open.err);
    for part in ["secure", "16386", "aes-256-hctr2", "encrypted", "active"] {
        assert!(open.out.contains(part), "{part} in {}", open.out);
    }
    let open = bench.tde_with_pin(&["keyring", "list", "--keyring", ring, "--json"]).json();
    assert_eq!(open["scopes"][1]["name"], "other");
    assert_eq!(open["scopes"][1]["keys"][0]["state"], "active");
}

#[test]
fn verify_tells_a_sound_keyring_from_a_damaged_one() {
    let bench = Bench::new();
    let ring = bench.path("ring");
    fill(&bench, &ring);
    let directory = ring.to_str().unwrap();
    let good = bench.tde_with_pin(&["keyring", "verify", "--keyring", directory]);
    assert_eq!(good.code, 0, "{}{}", good.out, good.err);
    assert!(good.out.contains("No problems."), "{}", good.out);

    let record = ring.join("lines/02/0000000000000002.tde");
    flip_byte(&record, 60);
    let bad = bench.tde_with_pin(&["keyring", "verify", "--keyring", directory, "--json"]);
    assert_eq!(bad.code, 1);
    let problem = bad.json()["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.contains(record.to_str().unwrap()), "{problem}");
    fs::remove_file(&record).unwrap();
    let missing = bench.tde_with_pin(&["keyring", "verify", "--keyring", directory]);
    assert_eq!(missing.code, 1);
    assert!(missing.out.contains("0000000000000002.tde is missing"), "{}", missing.out);
    flip_byte(&ring.join("keyring.tde"), 60);
    let root = bench.tde_with_pin(&["keyring", "verify", "--keyring", directory]);
    assert_eq!(root.code, 1, "{}", root.err);
    assert!(root.err.contains("keyring.tde"), "{}", root.err);
}

#[test]
fn a_restore_is_accepted_on_request_only() {
    let bench = Bench::new();
    let ring = bench.path("ring");
    fill(&bench, &ring);
    let directory = ring.to_str().unwrap();
    let old = fs::read(ring.join("keyring.tde")).unwrap();
    let hsm = bench.login();
    let keyring = Keyring::open(&ring).unwrap().unlock(&hsm).unwrap();
    keyring.add_version(keyring::LineNumber(1), &hsm).unwrap();
    drop((keyring, hsm));
    fs::write(ring.join("keyring.tde"), old).unwrap();

    let refused = bench.tde_with_pin(&["keyring", "verify", "--keyring", directory]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("accept-restore"), "{}", refused.err);
    assert!(refused.err.contains("generation 3") && refused.err.contains("generation 4"), "{}", refused.err);
    let accepted = bench.tde_with_pin(&["keyring", "accept-restore", "--keyring", directory]);
    assert_eq!(accepted.code, 0, "{}", accepted.err);
    assert!(accepted.out.contains("generation 3 accepted"), "{}", accepted.out);
    assert_eq!(bench.tde_with_pin(&["keyring", "list", "--keyring", directory]).code, 0);
}

#[test]
fn the_keyring_of_an_upgraded_cluster_belongs_to_the_new_one() {
    let bench = Bench::new();
    let ring = bench.path("ring");
    fill(&bench, &ring);
    let directory = ring.to_str().unwrap();
    let scopes = || bench.tde_with_pin(&["--json", "keyring", "list", "--keyring", directory]).json();
    let before = scopes();
    let old = fs::read(ring.join("keyring.tde")).unwrap();
    let to = |number: &str| {
        let arguments = ["keyring", "move-to-cluster", "--keyring", directory, "--system-identifier", number];
        bench.tde_with_pin(&arguments)
    };
    let moved = to("77");
    assert_eq!(moved.code, 0, "{}", moved.err);
    assert!(moved.out.contains("cluster 42") && moved.out.contains("belongs to 77"), "{}", moved.out);
    let now = scopes();
    assert_eq!(now["system_identifier"], 77);
    assert_eq!(now["scopes"], before["scopes"]);
    assert_eq!(now["generation"].as_u64(), before["generation"].as_u64().map(|generation| generation + 1));
    assert_eq!(bench.tde_with_pin(&["keyring", "verify", "--keyring", directory]).code, 0);
    assert_eq!(to("77").code, 0, "nothing to do");
    // The HSM knows that it was moved.
    fs::write(ring.join("keyring.tde"), old).unwrap();
    assert_eq!(bench.tde_with_pin(&["keyring", "verify", "--keyring", directory]).code, 1);
}

#[test]
fn a_keyring_that_is_gone_for_good_makes_room_for_another() {
    let bench = Bench::new();
    let ring = bench.path("ring");
    fill(&bench, &ring);
    let directory = ring.to_str().unwrap();
    let accept = || bench.tde_with_pin(&["keyring", "accept-restore", "--keyring", directory]);
    let root = ring.join("keyring.tde");
    fs::rename(&root, bench.path("kept")).unwrap();
    assert_eq!(accept().code, 2, "records without a root are no keyring that is gone");
    fs::rename(bench.path("kept"), &root).unwrap();
    fs::remove_dir_all(&ring).unwrap();

    let accepted = accept();
    assert_eq!(accepted.code, 0, "{}", accepted.err);
    assert!(accepted.out.contains("(generation 3) and forgot it"), "{}", accepted.out);
    let nothing = accept();
    assert_eq!(nothing.code, 2);
    assert!(nothing.err.contains("does not exist"), "{}", nothing.err);
}

fn file(id: u8) -> NewScope {
    let kind = ScopeKind::SqliteFile { file_id: [id; 12] };
    NewScope { kind, cipher: CipherId::Aes256GcmSiv, initial: None }
}

#[test]
fn a_keyring_for_files_is_made_once_and_shows_its_files() {
    let bench = Bench::new();
    let ring = bench.path("ring");
    let directory = ring.to_str().unwrap();
    let create = || bench.tde_with_pin(&["keyring", "create", "--keyring", directory]);
    let made = create();
    assert_eq!(made.code, 0, "{}", made.err);
    let again = create();
    assert_eq!(again.code, 2);
    assert!(again.err.contains("holds a keyring already"), "{}", again.err);
    let hsm = bench.login();
    Keyring::open(&ring).unwrap().unlock(&hsm).unwrap().add_scope(file(0xAB), &hsm).unwrap();
    drop(hsm);
    let list = bench.tde_with_pin(&["keyring", "list", "--keyring", directory]);
    for part in ["single files", "sqlite", "abababababababababababab", "aes-256-gcm-siv", "in-use", "active"]
    {
        assert!(list.out.contains(part), "{part} in {}", list.out);
    }
    fs::remove_dir_all(&ring).unwrap();
    let vanished = create();
    assert_eq!(vanished.code, 1);
    assert!(vanished.err.contains("accept-restore"), "{}", vanished.err);
    assert!(!ring.join("keyring.tde").exists());
}

#[test]
fn rewrapping_changes_every_wrapping_and_no_key() {
    let bench = Bench::new();
    let ring = bench.path("ring");
    let directory = ring.to_str().unwrap();
    let hsm = bench.login();
    let keyring = Keyring::create(&ring, Owner::Files, &hsm).unwrap();
    let deks: Vec<_> = (0..40).map(|id| keyring.add_scope(file(id), &hsm).unwrap().1).collect();
    drop(hsm);
    let done = bench.tde_with_pin(&["keyring", "rewrap", "--new-version", "--keyring", directory, "--json"]);
    assert_eq!(done.code, 0, "{}", done.err);
    let json = done.json();
    assert_eq!((json["rewrapped"].as_u64(), json["to"].as_u64()), (Some(40), Some(2)));
    let again = bench.tde_with_pin(&["keyring", "rewrap", "--keyring", directory]);
    assert!(again.out.contains("40 were already") && again.out.contains("No database"), "{}", again.out);
    let hsm = bench.login();
    for (id, dek) in (0..40).zip(&deks) {
        let scope = keyring.find_sqlite_file(&[id; 12]).unwrap().unwrap();
        assert_eq!(scope.oldest_master_version(), Some(2));
        assert!(keyring.dek_of(&scope, keyring::KeyVersion(1), &hsm).unwrap().ct_eq(dek));
    }
    // A server's keyring is the server's.
    let servers = bench.path("servers");
    fill(&bench, &servers);
    let refused = bench.tde_with_pin(&["keyring", "rewrap", "--keyring", servers.to_str().unwrap()]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("PostgreSQL cluster"), "{}", refused.err);
}

#[test]
fn a_files_keys_move_to_a_keyring_under_another_hsm() {
    let (here, there) = (Bench::new(), Bench::new());
    let (source, target) = (here.path("ring"), there.path("ring"));
    let hsm = here.login();
    let keyring = Keyring::create(&source, Owner::Files, &hsm).unwrap();
    let (_, dek) = keyring.add_scope(file(7), &hsm).unwrap();
    let (from, to) = (source.to_str().unwrap(), target.to_str().unwrap());
    let id = "07".repeat(12);
    let export = here.path("export").display().to_string();
    let exported = here.tde_with_pin(&["keyring", "export", &id, "--output", &export, "--keyring", from]);
    assert_eq!(exported.code, 0, "{}", exported.err);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&export).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let twice = here.tde_with_pin(&["keyring", "export", "1", "--output", &export, "--keyring", from]);
    assert_eq!(twice.code, 2, "never overwritten");
    let unknown = here.path("other").display().to_string();
    let unknown =
        here.tde_with_pin(&["keyring", "export", &"08".repeat(12), "--output", &unknown, "--keyring", from]);
    assert!(unknown.code == 2 && unknown.err.contains("no keys of file 0808"), "{}", unknown.err);

    assert_eq!(there.tde_with_pin(&["keyring", "create", "--keyring", to]).code, 0);
    let import = |more: &[&str]| {
        let arguments = [&["keyring", "import", &export, "--keyring", to], more].concat();
        there.tde_with_pin(&arguments)
    };
    let refused = import(&[]);
    assert!(refused.code == 2 && refused.err.contains("wrapped under master key"), "{}", refused.err);
    let (uri, pin) = (here.uri.to_string(), here.path("pin").display().to_string());
    let done = import(&["--from-hsm", &uri, "--from-pin-file", &pin]);
    assert_eq!(done.code, 0, "{}", done.err);
    let hsm = there.login();
    let keyring = Keyring::open(&target).unwrap().unlock(&hsm).unwrap();
    let scope = keyring.find_sqlite_file(&[7; 12]).unwrap().unwrap();
    assert!(keyring.dek_of(&scope, keyring::KeyVersion(1), &hsm).unwrap().ct_eq(&dek));
    let again = import(&["--from-hsm", &uri, "--from-pin-file", &pin]);
    assert!(again.code == 0 && again.out.contains("nothing new"), "{}", again.out);
}

#[test]
fn the_pin_comes_from_a_command() {
    let bench = Bench::new();
    let ring = bench.path("ring");
    let command = format!("cat {}", bench.path("pin").display());
    let uri = bench.uri.to_string();
    let base = ["keyring", "create", "--keyring", ring.to_str().unwrap(), "--hsm", &uri, "--pin-command"];
    let failed = tde(&[&base[..], &["exit 4"]].concat());
    assert!(failed.code == 2 && failed.err.contains("the PIN command failed"), "{}", failed.err);
    let done = tde(&[&base[..], &[command.as_str()]].concat());
    assert_eq!(done.code, 0, "{}", done.err);
}

#[test]
fn what_cannot_be_done_says_how_it_could() {
    let bench = Bench::new();
    let ring = bench.path("ring");
    let nowhere = ring.to_str().unwrap();
    for (arguments, hint) in [
        (vec!["keyring", "list"], "--keyring DIR"),
        (vec!["keyring", "list", "--keyring", nowhere], "does not exist"),
        (vec!["keyring", "verify", "--keyring", nowhere], "--hsm URI"),
        (vec!["keyring", "verify", "--keyring", nowhere, "--hsm", "soft:/nowhere"], "--pin-file FILE"),
        (vec!["keyring", "verify", "--keyring", nowhere, "--hsm", "vault:/x"], "soft:"),
        (vec!["keyring", "shred"], "unrecognized"),
    ] {
        let done = tde(&arguments);
        assert_eq!(done.code, 2, "{arguments:?}: {}", done.err);
        assert!(done.err.contains(hint), "{arguments:?}: {}", done.err);
    }
    fs::write(bench.path("pin-loose"), "1234\n").unwrap();
    let loose = bench.path("pin-loose").display().to_string();
    fs::set_permissions(&loose, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let uri = bench.uri.to_string();
    let done = tde(&["keyring", "verify", "--keyring", nowhere, "--hsm", &uri, "--pin-file", &loose]);
    assert_eq!(done.code, 2);
    assert!(done.err.contains("chmod 0600"), "{}", done.err);
    let json = tde(&["keyring", "list", "--json", "--keyring", nowhere]);
    assert!(json.json()["error"].as_str().unwrap().contains("does not exist"));
}

#[test]
fn every_shell_gets_its_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = tde(&["completions", shell]);
        assert_eq!(done.code, 0, "{shell}");
        assert!(done.out.contains("accept-restore"), "{shell}");
    }
}
