//! No secret reaches a file, a message or a debug print.

use hsm_engine::{Hsm, Initialize, Return};
use secret_mem::SecretBytes;

use crate::support::{Fixture, OFFICER_PIN, USER_PIN, WRONG_PIN, pin};

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

#[test]
fn no_file_holds_a_pin_or_a_data_key() {
    let f = Fixture::new();
    let user = f.user();
    let key = user.find_master_key("master").unwrap();
    let data_key = user.generate_data_key(&key, Return::Plaintext).unwrap();
    let secret = SecretBytes::<32>::random().unwrap();
    user.wrap(&key, &secret).unwrap();
    user.close().unwrap();
    assert!(f.login("user", WRONG_PIN).is_err());
    f.officer().reset_pin("user", &pin("correct horse battery staple")).unwrap();
    f.login("user", "correct horse battery staple").unwrap().close().unwrap();
    let raw = |text: &str| hex::decode(&text[7..]).unwrap();
    for (name, bytes) in f.files() {
        for text in [USER_PIN, OFFICER_PIN, WRONG_PIN] {
            assert!(!contains(&bytes, &text.as_bytes()[7..]), "{name}");
            assert!(!contains(&bytes, &raw(text)), "{name}");
        }
        assert!(!contains(&bytes, b"battery"), "{name}");
        assert!(!contains(&bytes, data_key.plaintext.as_ref().unwrap().expose()), "{name}");
        assert!(!contains(&bytes, secret.expose()), "{name}");
    }
}

/// Two HSMs made with the same PINs share no byte pattern that a key or salt would leave.
#[test]
fn the_same_pins_make_different_stores() {
    let (a, b) = (Fixture::new(), Fixture::new());
    let (a, b) = (a.files(), b.files());
    for file in ["user.user.obj", "user.officer.obj"] {
        let (a, b) = (&a[file], &b[file]);
        let sealed = a.len() - 4 - 48;
        assert_ne!(a[sealed..], b[sealed..]);
        assert_ne!(a[sealed - 28..sealed - 12], b[sealed - 28..sealed - 12], "salt");
    }
    assert_ne!(a["root.obj"][32..], b["root.obj"][32..]);
}

#[test]
fn debug_and_errors_show_no_secret() {
    let f = Fixture::new();
    let user = f.user();
    let data_key =
        user.generate_data_key(&user.find_master_key("master").unwrap(), Return::Plaintext).unwrap();
    let digits = &USER_PIN[7..];
    let (officer_pin, user_pin) = (pin(OFFICER_PIN), pin(USER_PIN));
    let wrong = f.login("user", WRONG_PIN).unwrap_err();
    for text in [
        format!("{:?}", pin(USER_PIN)),
        format!("{:?}", Initialize::new(&officer_pin, &user_pin)),
        format!("{user:?}"),
        format!("{:?}", f.hsm()),
        format!("{data_key:?}"),
        format!("{wrong:?} {wrong}"),
        format!("{:?}", Hsm::initialize_dir(&f.dir, &Initialize::new(&officer_pin, &user_pin))),
    ] {
        assert!(!text.contains(digits) && !text.contains("99999999"), "{text}");
        let plain = data_key.plaintext.as_ref().unwrap().expose();
        assert!(!text.contains(&hex::encode(plain)) && !text.contains(&format!("{plain:?}")), "{text}");
    }
}
