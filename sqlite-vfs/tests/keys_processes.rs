//! Keys in several processes: forked children, and programs that make files in one keyring at once.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use hsm_engine::{Hsm, Initialize, Pin, SoftUri};
use keyring::{Keyring, SoftHsm};
use sqlite_vfs::keys::{Configured, FileId, KeySource, Settings};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let dir = tempfile::Builder::new().permissions(private).tempdir().unwrap();
        let (officer, pin) = (Pin::generate().unwrap(), Pin::generate().unwrap());
        Hsm::initialize_dir(dir.path().join("hsm"), &Initialize::new(&officer, &pin)).unwrap();
        pin.write_new_file(dir.path().join("pin")).unwrap();
        Self { dir }
    }
}

fn source(dir: &Path) -> Configured {
    let settings = Settings::new().hsm(SoftUri::new(dir.join("hsm"))).pin_file(dir.join("pin"));
    Configured::new(Settings::new(), settings.keyring(dir.join("ring")).unwrap())
}

/// A sealed page tells whether two processes have the same key.
fn seal(keys: &sqlite_vfs::keys::FileKeys) -> Vec<u8> {
    let mut page = vec![7; 64];
    let tag = keys.active().unwrap().page.seal(&[1; 12], b"", &mut page).unwrap();
    page.extend_from_slice(&tag);
    page
}

/// How many logins the HSM's audit log has.
fn logins(dir: &Path) -> usize {
    let mut count = 0;
    let hsm = Hsm::open_dir(dir.join("hsm")).unwrap();
    hsm.verify_audit(&mut |record| count += usize::from(format!("{record:?}").contains("Login"))).unwrap();
    count
}

#[test]
fn a_forked_child_logs_in_itself() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    let keys = source(dir).create("a.db").unwrap();
    let (id, sealed) = (keys.file_id(), seal(&keys));
    let before = logins(dir);
    // SAFETY: the child makes no use of other threads or of what they may have locked: the allocator is glibc's, which forks with
    // its locks taken, and the keychain of the child is a new one. It leaves with _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = std::panic::catch_unwind(|| {
            let again = source(dir).existing(id, "a.db").unwrap();
            assert_eq!(seal(&again), sealed);
            // A grandchild, too.
            source(dir).create("b.db").unwrap().rotate().unwrap()
        });
        // SAFETY: ends the child at once; nothing of the parent's is flushed or dropped twice.
        unsafe { libc::_exit(i32::from(done.ok() != Some(2))) };
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status of a child of this process.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(logins(dir), before + 1, "the child logged in once, the parent is still logged in");
    assert_eq!(source(dir).create("c.db").unwrap().rotate().unwrap(), 2);
    assert_eq!(logins(dir), before + 1);
}

#[test]
#[ignore = "the process that the test here starts"]
fn child() {
    let dir = PathBuf::from(std::env::var_os("KEYS_DIR").expect("started by a test"));
    let source = source(&dir);
    for _ in 0..20 {
        let made = source.create("x.db").unwrap();
        println!("made {}", made.file_id());
    }
}

#[test]
fn processes_make_and_open_files_in_one_keyring() {
    let bench = Bench::new();
    let dir = bench.dir.path();
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
            .env("KEYS_DIR", dir)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    // All at once find no keyring and make it.
    let children: Vec<_> = (0..4).map(|_| start()).collect();
    let mut ids = Vec::new();
    for child in children {
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        let out = String::from_utf8(done.stdout).unwrap();
        ids.extend(out.lines().filter_map(|line| Some(line.split_once("made ")?.1.to_owned())));
    }
    assert_eq!(ids.len(), 80);
    let source = source(dir);
    for id in &ids {
        let mut raw = [0; 12];
        hex::decode_to_slice(id, &mut raw).unwrap();
        source.existing(FileId(raw), "x.db").unwrap().active().unwrap();
    }
    let pin = Pin::from_file(dir.join("pin")).unwrap();
    let hsm = SoftHsm::open(&SoftUri::new(dir.join("hsm")), &pin).unwrap();
    let keyring = Keyring::open(&dir.join("ring")).unwrap().unlock(&hsm).unwrap();
    let report = keyring.verify(&hsm);
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    assert_eq!(report.scopes, 80);
}
