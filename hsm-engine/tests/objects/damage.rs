//! Whatever is changed, removed or put back in the files of objects is noticed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use hsm_engine::objects::{AttributeType as A, Error, Template, Token};
use hsm_engine::{ErrorKind, HsmError};

use crate::support::{Fixture, aes, bytes};

/// The files of objects, with their contents.
fn files(f: &Fixture) -> BTreeMap<PathBuf, Vec<u8>> {
    let area = fs::read_dir(f.dir.join("objects")).unwrap().map(|e| e.unwrap().path());
    let all = area.chain([f.dir.join("objects.obj")]);
    all.filter(|p| p.extension().is_some_and(|e| e == "obj"))
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect()
}

fn check(token: &Token) -> Result<(), Error> {
    token.verify_objects()?;
    let scope = token.new_scope();
    for id in token.find(&scope, &Template::new().with(A::Sensitive, crate::support::yes()))? {
        token.get(id, A::Label)?;
    }
    Ok(())
}

fn damaged(result: Result<(), Error>, what: &str) {
    match result {
        Err(Error::Hsm(e)) => {
            assert!(matches!(e.kind(), ErrorKind::Damaged | ErrorKind::HsmAway), "{what}: {e}")
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn every_changed_byte_and_missing_file_is_noticed() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    aes(&token, &scope, 32, &[A::Token]);
    let before = files(&f);
    assert_eq!(before.len(), 3, "{:?}", before.keys());
    for (path, contents) in &before {
        // Every byte of the envelope, and some of the payload.
        for at in (0..contents.len()).filter(|at| *at < 40 || at % 61 == 0 || at + 6 > contents.len()) {
            let mut bad = contents.clone();
            bad[at] ^= 1;
            fs::write(path, &bad).unwrap();
            damaged(check(&f.token("user")), &format!("{} byte {at}", path.display()));
        }
        fs::write(path, &contents[..contents.len() / 2]).unwrap();
        damaged(check(&f.token("user")), "cut");
        fs::remove_file(path).unwrap();
        damaged(check(&f.token("user")), "removed");
        fs::write(path, contents).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(check(&f.token("user")).is_err());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        check(&f.token("user")).unwrap();
    }
}

#[test]
fn an_old_copy_of_any_file_is_noticed() {
    let f = Fixture::new();
    let token = f.token("user");
    let scope = token.new_scope();
    let key = aes(&token, &scope, 32, &[A::Token]);
    let old = files(&f);
    token.set(key, Template::new().with(A::Label, bytes(b"newer"))).unwrap();
    let new = files(&f);
    for (path, contents) in &old {
        fs::write(path, contents).unwrap();
        match check(&f.token("user")) {
            Err(Error::Hsm(HsmError::StaleObject { .. })) => {}
            other => panic!("{}: {other:?}", path.display()),
        }
        fs::write(path, &new[path]).unwrap();
    }
    // A destroyed key does not come back with its file.
    token.destroy(key).unwrap();
    let object =
        old.iter().find(|(p, _)| p.file_name().unwrap().to_str().unwrap().starts_with("key.")).unwrap();
    fs::write(object.0, object.1).unwrap();
    fs::set_permissions(object.0, fs::Permissions::from_mode(0o600)).unwrap();
    let token = f.token("user");
    assert!(matches!(token.get(key, A::Label), Err(Error::NoSuchObject(_))));
    check(&token).unwrap();
}

#[test]
fn an_object_of_another_hsm_or_under_another_name_is_refused() {
    let (f, g) = (Fixture::new(), Fixture::new());
    let (one, two) = (f.token("user"), g.token("user"));
    let (s1, s2) = (one.new_scope(), two.new_scope());
    let a = aes(&one, &s1, 32, &[A::Token]);
    let b = aes(&one, &s1, 32, &[A::Token]);
    let c = aes(&two, &s2, 32, &[A::Token]);
    let path = |f: &Fixture, id| f.dir.join("objects").join(format!("key.{id}.obj"));
    let mine = fs::read(path(&f, a)).unwrap();
    for foreign in [path(&f, b), path(&g, c)] {
        fs::copy(foreign, path(&f, a)).unwrap();
        damaged(f.token("user").get(a, A::Label).map(drop), "foreign");
        fs::write(path(&f, a), &mine).unwrap();
    }
    f.token("user").get(a, A::Label).unwrap();
}
