//! Where a store may be, and who may see it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use hsm_engine::store::StoreError;
use hsm_engine::{Hsm, HsmError, Initialize, Pin, PinError};

use crate::support::{Fixture, OFFICER_PIN, USER_PIN, pin};

fn chmod(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &std::path::Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn everything_is_made_for_its_owner_alone() {
    let f = Fixture::new();
    f.user().close().unwrap();
    assert_eq!(mode(&f.dir), 0o700);
    for entry in fs::read_dir(&f.dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn looser_modes_are_refused_with_the_command_that_helps() {
    let f = Fixture::new();
    for bits in [0o710, 0o701, 0o750, 0o777, 0o720] {
        chmod(&f.dir, bits);
        match Hsm::open_dir(&f.dir) {
            Err(HsmError::Store(e @ StoreError::LooseMode { .. })) => {
                assert!(e.to_string().contains(&format!("chmod 0700 {}", f.dir.display())), "{e}");
            }
            other => panic!("{bits:o}: {other:?}"),
        }
    }
    chmod(&f.dir, 0o700);
    for name in f.files().keys() {
        for bits in [0o640, 0o604, 0o620] {
            chmod(&f.path(name), bits);
            let error = f.check_everything().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("chmod 0600"), "{name}: {error}");
        }
        chmod(&f.path(name), 0o600);
    }
    f.check_everything().unwrap();
}

#[test]
fn links_and_other_things_are_not_followed() {
    let f = Fixture::new();
    let real = f.path("elsewhere");
    fs::rename(f.path("root.obj"), &real).unwrap();
    symlink(&real, f.path("root.obj")).unwrap();
    let error = f.user_error();
    assert!(error.contains("root.obj") && error.contains("regular file"), "{error}");
    fs::remove_file(f.path("root.obj")).unwrap();
    fs::create_dir(f.path("root.obj")).unwrap();
    let error = f.user_error();
    assert!(error.contains("root.obj"), "{error}");
}

impl Fixture {
    fn user_error(&self) -> String {
        self.login("user", USER_PIN).unwrap_err().to_string()
    }
}

#[test]
fn places_without_an_hsm_each_say_so() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    assert!(matches!(Hsm::open_dir(at("absent")), Err(HsmError::Store(StoreError::NotFound { .. }))));
    fs::write(at("file"), "").unwrap();
    assert!(matches!(Hsm::open_dir(at("file")), Err(HsmError::Store(StoreError::WrongType { .. }))));
    fs::create_dir(at("empty")).unwrap();
    chmod(&at("empty"), 0o700);
    assert!(matches!(Hsm::open_dir(at("empty")), Err(HsmError::NotInitialized { .. })));

    let f = Fixture::new();
    fs::remove_file(f.path("header.obj")).unwrap();
    assert!(matches!(Hsm::open_dir(&f.dir), Err(HsmError::IncompleteStore { .. })));
}

#[test]
fn an_hsm_is_never_made_over_something_else() {
    let (officer, user) = (pin(OFFICER_PIN), pin(USER_PIN));
    let init = Initialize::new(&officer, &user);
    let f = Fixture::new();
    let before = f.files();
    assert!(matches!(Hsm::initialize_dir(&f.dir, &init), Err(HsmError::AlreadyInitialized { .. })));
    assert_eq!(f.files(), before);

    fs::remove_file(f.path("header.obj")).unwrap();
    assert!(matches!(Hsm::initialize_dir(&f.dir, &init), Err(HsmError::IncompleteStore { .. })));

    let scratch = tempfile::tempdir().unwrap();
    chmod(scratch.path(), 0o700);
    fs::write(scratch.path().join("letter.txt"), "dear diary").unwrap();
    let result = Hsm::initialize_dir(scratch.path(), &init);
    assert!(matches!(result, Err(HsmError::Store(StoreError::NotEmpty { .. }))), "{result:?}");

    let missing = scratch.path().join("a").join("b");
    assert!(matches!(Hsm::initialize_dir(missing, &init), Err(HsmError::Store(StoreError::Io { .. }))));
}

#[test]
fn a_refused_hsm_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("hsm");
    let (short, good) = (pin("abc"), pin(USER_PIN));
    let result = Hsm::initialize_dir(&dir, &Initialize::new(&short, &good));
    assert!(matches!(result, Err(HsmError::Pin(PinError::TooShort { .. }))), "{result:?}");
    let result = Hsm::initialize_dir(&dir, &Initialize::new(&good, &good));
    assert!(matches!(result, Err(HsmError::Pin(PinError::SameForTwoUsers))), "{result:?}");
    let same_name = Initialize { user: "officer", ..Initialize::new(&short, &good) };
    assert!(matches!(Hsm::initialize_dir(&dir, &same_name), Err(HsmError::Duplicate { .. })));
    assert!(!dir.exists());
}

#[test]
fn pin_files_are_read_with_care() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("pin");
    let write = |bytes: &[u8], mode| {
        fs::write(&path, bytes).unwrap();
        chmod(&path, mode);
        Pin::from_file(&path)
    };
    assert!(matches!(Pin::from_file(&path), Err(PinError::Io { .. })));
    for loose in [0o640, 0o604, 0o644, 0o620] {
        assert!(matches!(write(b"1234", loose), Err(PinError::LooseMode { .. })), "{loose:o}");
    }
    assert!(matches!(write(b"", 0o600), Err(PinError::Empty { .. })));
    assert!(matches!(write(b"\n", 0o600), Err(PinError::Empty { .. })));
    assert!(matches!(write(&[b'x'; 1025], 0o600), Err(PinError::TooLong { .. })));
    assert!(matches!(write(&[b'x'; 100_000], 0o600), Err(PinError::TooLong { .. })));
    assert_eq!(write(&[b'x'; 1024], 0o600).unwrap().len(), 1024);
    assert_eq!(write(b"1234\n", 0o400).unwrap().len(), 4);
    assert_eq!(write(b"12 34\r\n", 0o600).unwrap().len(), 5);
    assert_eq!(write(b"1234\n\n", 0o600).unwrap().len(), 5);
    assert!(matches!(Pin::from_file(scratch.path()), Err(PinError::NotAFile { .. })));
}

#[test]
fn a_generated_pin_survives_its_file_and_differs_each_time() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("pin");
    let made = Pin::generate().unwrap();
    made.write_new_file(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    let (mut a, mut b) = (Vec::new(), Vec::new());
    made.reveal(&mut a).unwrap();
    let read = Pin::from_file(&path).unwrap();
    read.reveal(&mut b).unwrap();
    assert_eq!(a, b);
    assert!(read.is_generated());
    assert_eq!((read.len(), &a[..7]), (71, &b"tdepin-"[..]));
    assert!(matches!(Pin::generate().unwrap().write_new_file(&path), Err(PinError::Io { .. })));
    Pin::generate().unwrap().reveal(&mut b).unwrap();
    assert_ne!(a[..], b[71..]);
    for text in ["tdepin-", "tdepin-11", &USER_PIN[1..], &USER_PIN.to_uppercase(), "TDEPIN-x"] {
        assert!(!pin(text).is_generated(), "{text}");
    }
}

/// Root may look after somebody else's store, and its owner can still read everything afterwards.
#[test]
fn files_that_root_writes_belong_to_the_owner_of_the_store() {
    use std::os::unix::fs::{MetadataExt as _, chown};
    if !rustix::process::geteuid().is_root() {
        // Anybody else is refused: that is the other half of the promise.
        let error = Hsm::open_dir("/root").unwrap_err();
        assert!(matches!(error, HsmError::Store(_)), "{error}");
        return;
    }
    let f = Fixture::new();
    let (uid, gid) = (54321, 54322);
    let paths = || fs::read_dir(&f.dir).unwrap().map(|e| e.unwrap().path());
    for path in paths().chain([f.dir.clone()]) {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
    let user = f.user();
    user.create_master_key("second", hsm_engine::KeyAttributes { plaintext_data_keys: true }).unwrap();
    user.rotate_master_key(&user.find_master_key("master").unwrap()).unwrap();
    user.close().unwrap();
    f.officer().reset_pin("user", &pin("another")).unwrap();
    for path in paths() {
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (uid, gid), "{}", path.display());
    }
}

/// The owner of a store may not be able to write a file of root's; root, working on the store, must not do it instead.
#[test]
fn root_does_not_write_through_links_in_somebody_elses_store() {
    use std::os::unix::fs::chown;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let f = Fixture::new();
    let secret = f.dir.with_file_name("roots-own");
    fs::write(&secret, "of root").unwrap();
    chmod(&secret, 0o600);
    let own = |path: &std::path::Path| chown(path, Some(54321), Some(54322)).unwrap();
    own(&f.dir);
    fs::read_dir(&f.dir).unwrap().for_each(|e| own(&e.unwrap().path()));
    for link in [".root.tmp", ".lockout.user.tmp"] {
        let _ = fs::remove_file(f.path(link));
        fs::hard_link(&secret, f.path(link)).unwrap();
    }
    f.user().close().unwrap();
    assert_eq!(fs::read(&secret).unwrap(), b"of root");
    for file in ["root.obj", "store.lock", "audit.00000001.log"] {
        let kept = f.path("kept");
        fs::rename(f.path(file), &kept).unwrap();
        fs::hard_link(&secret, f.path(file)).unwrap();
        let error = f.login("user", USER_PIN).unwrap_err().to_string();
        assert!(error.contains("belongs to user id 0"), "{file}: {error}");
        assert_eq!(fs::read(&secret).unwrap(), b"of root");
        fs::rename(&kept, f.path(file)).unwrap();
    }
    f.check_everything().unwrap();
}
