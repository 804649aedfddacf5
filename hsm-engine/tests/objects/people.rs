//! Who may do what, alone and together.

use hsm_engine::objects::{AttributeType as A, Error, Generate, Mechanism, ObjectId, Template, Token, Value};
use hsm_engine::{DataPlane, Hsm, HsmError, KeyAttributes, Request, Rights, Role, Service, Session};
use hsm_primitives::{Curve, Hash, PrivateKey, RsaPadding};

use crate::support::{Fixture, OFFICER_PIN, USER_PIN, aes, bytes, flags, pin};

/// A generated PIN, as those cost no time.
fn own_pin(name: &str) -> String {
    let digit = ["auditor", "appliance", "second"].iter().position(|n| *n == name).map_or(9, |i| i + 4);
    USER_PIN.replace('1', &digit.to_string())
}

/// An HSM with a user of every role.
struct People {
    f: Fixture,
    key: ObjectId,
}

impl People {
    fn new() -> Self {
        let f = Fixture::new();
        let hsm = Hsm::open_dir(&f.dir).unwrap();
        let officer = hsm.login("officer", &pin(OFFICER_PIN)).unwrap();
        for (name, role) in
            [("auditor", Role::Auditor), ("appliance", Role::ApplianceUser), ("second", Role::CryptoOfficer)]
        {
            officer
                .create_user(name, role, Rights { plaintext_data_keys: true }, &pin(&own_pin(name)))
                .unwrap();
        }
        let token = f.token("user");
        let scope = token.new_scope();
        let key = aes(&token, &scope, 32, &[A::Token]);
        Self { f, key }
    }

    fn login(&self, name: &str) -> Result<Session, HsmError> {
        let text = match name {
            "officer" => OFFICER_PIN.into(),
            "user" => USER_PIN.into(),
            "other" => USER_PIN.replace('1', "3"),
            name => own_pin(name),
        };
        Hsm::open_dir(&self.f.dir)?.login(name, &pin(&text))
    }
}

type Operation = (&'static str, &'static [Role], fn(&People, &Session) -> Result<(), HsmError>);

const OFFICER: &[Role] = &[Role::CryptoOfficer];
const USER: &[Role] = &[Role::CryptoUser];
const EVERYBODY: &[Role] = &[Role::CryptoOfficer, Role::CryptoUser, Role::Auditor, Role::ApplianceUser];

/// Every operation of a session, and the roles that may do it. Those of tokens are below.
const OPERATIONS: &[Operation] = &[
    ("make master keys", USER, |_, s| {
        s.create_master_key("new", KeyAttributes { plaintext_data_keys: false }).map(drop)
    }),
    ("rotate master keys", USER, |_, s| s.rotate_master_key(&s.find_master_key("master")?).map(drop)),
    ("make data keys", USER, |_, s| {
        let key = s.find_master_key("master")?;
        s.generate_data_key(&key, hsm_engine::Return::WrappedOnly).map(drop)
    }),
    ("raise counters", USER, |_, s| s.raise_counter("c", 1).map(drop)),
    ("make users", OFFICER, |_, s| {
        s.create_user("new", Role::Auditor, Rights::default(), &pin(&own_pin("x")))
    }),
    ("unlock users", OFFICER, |_, s| s.unlock_user("other")),
    ("reset PINs", OFFICER, |_, s| s.reset_pin("other", &pin(&own_pin("x")))),
    ("remove users", OFFICER, |_, s| s.delete_user("other")),
    ("change the policy", OFFICER, |_, s| s.set_data_plane(DataPlane::Every)),
    ("make backups", &[Role::CryptoOfficer, Role::ApplianceUser], |p, s| {
        s.backup(&p.f.dir.parent().unwrap().join("backup")).map(drop)
    }),
    ("change the own PIN", EVERYBODY, |_, s| s.change_pin(&pin(&own_pin("x")))),
    ("look at the policy", EVERYBODY, |_, s| s.policy().map(drop)),
    ("verify the audit log", EVERYBODY, |_, s| s.verify_audit(&mut |_| {}).map(drop)),
    ("ask for approval", EVERYBODY, |_, s| s.ask_approval(Service::Users, None, 2).map(drop)),
];

#[test]
fn every_role_does_its_own_work_and_no_other() {
    for (name, roles, operation) in OPERATIONS {
        for user in ["officer", "user", "auditor", "appliance"] {
            let people = People::new();
            let session = people.login(user).unwrap();
            let allowed = roles.contains(&session.role());
            match operation(&people, &session) {
                Ok(()) => assert!(allowed, "{user} may not {name}, and did"),
                Err(HsmError::NotAllowed { .. }) => {
                    assert!(!allowed, "{user} may {name}, and was refused");
                    let mut last = String::new();
                    session.verify_audit(&mut |r| last = format!("{} {}", r.user, r.event.name())).unwrap();
                    assert_eq!(last, format!("{user} refused"));
                }
                Err(e) => panic!("{user}, {name}: {e}"),
            }
        }
    }
}

#[test]
fn only_crypto_users_use_keys_and_only_officers_look_besides() {
    let people = People::new();
    for user in ["auditor", "appliance"] {
        let opened = Token::open(people.login(user).unwrap());
        assert!(matches!(opened, Err(Error::Hsm(HsmError::NotAllowed { .. }))), "{user}");
    }
    let officer = Token::open(people.login("officer").unwrap()).unwrap();
    officer.get(people.key, A::Label).unwrap();
    assert!(matches!(
        officer.encrypt(&Mechanism::AesEcb, people.key),
        Err(Error::Hsm(HsmError::NotAllowed { .. }))
    ));
    assert!(matches!(officer.share(people.key, "other", true), Err(Error::Hsm(HsmError::NotAllowed { .. }))));
}

#[test]
fn a_removed_user_is_gone_and_an_officer_does_not_remove_itself() {
    let people = People::new();
    let officer = people.login("officer").unwrap();
    let before = std::fs::read(people.f.dir.join("user.auditor.obj")).unwrap();
    officer.delete_user("auditor").unwrap();
    assert!(matches!(people.login("auditor"), Err(HsmError::UnknownUser { .. })));
    // Putting the record back does not bring the user back.
    std::fs::write(people.f.dir.join("user.auditor.obj"), before).unwrap();
    assert!(people.login("auditor").is_err());
    assert!(matches!(officer.delete_user("officer"), Err(HsmError::NotAllowed { .. })));
    assert!(matches!(officer.delete_user("nobody"), Err(HsmError::UnknownUser { .. })));
}

/// Registers a fresh key for a user.
fn register(people: &People, name: &str, rsa: bool, second_factor: bool) -> PrivateKey {
    let key = match rsa {
        true => PrivateKey::generate_rsa(2048, &[1, 0, 1]).unwrap(),
        false => PrivateKey::generate_ec(Curve::Ed25519).unwrap(),
    };
    let session = people.login(name).unwrap();
    let spki = key.public().unwrap().to_spki().unwrap();
    let signature = sign(&key, &session.registration());
    assert!(matches!(
        session.register_key(&spki, &signature[1..], false),
        Err(HsmError::BadSignature { .. })
    ));
    session.register_key(&spki, &signature, second_factor).unwrap();
    key
}

fn sign(key: &PrivateKey, message: &[u8]) -> Vec<u8> {
    match key.curve() {
        None => key.rsa_sign(&RsaPadding::Pkcs1Hash(Hash::Sha256), &Hash::Sha256.digest(message)).unwrap(),
        Some(_) => key.eddsa_sign(message).unwrap(),
    }
}

fn missing(result: Result<(), HsmError>, want: &str) {
    match result {
        Err(HsmError::ApprovalsMissing { why, .. }) => assert!(why.contains(want), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_quorum_is_m_different_people_once_for_one_thing() {
    let people = People::new();
    let officer = people.login("officer").unwrap();
    let lonely = officer.set_quorum(Service::Users, 2);
    assert!(matches!(lonely, Err(HsmError::InvalidName { .. })), "would lock everybody out: {lonely:?}");
    let a = register(&people, "second", true, false);
    let b = register(&people, "auditor", false, false);
    assert!(officer.set_quorum(Service::Users, 1).is_err() && officer.set_quorum(Service::Users, 9).is_err());
    officer.set_quorum(Service::Users, 2).unwrap();
    assert_eq!(officer.policy().unwrap().quorum, [(Service::Users, 2)]);

    missing(officer.unlock_user("other"), "none were presented");
    let request = officer.ask_approval(Service::Users, None, 0).unwrap();
    assert_eq!(request.needed, 2);
    let waiting: Vec<Request> = people.login("second").unwrap().approval_requests().unwrap();
    assert_eq!(waiting[0].to_sign, request.to_sign);
    officer.present(request.id);
    missing(officer.unlock_user("other"), "too few");

    // One person twice is one person; another's signature is nobody's.
    let deliver = people.login("user").unwrap();
    let ok = sign(&a, &request.to_sign);
    deliver.approve(request.id, "second", &ok).unwrap();
    assert!(matches!(deliver.approve(request.id, "second", &ok), Err(HsmError::Duplicate { .. })));
    assert!(matches!(deliver.approve(request.id, "auditor", &ok), Err(HsmError::BadSignature { .. })));
    assert!(matches!(deliver.approve(request.id, "user", &ok), Err(HsmError::BadSignature { .. })));
    officer.present(request.id);
    missing(officer.unlock_user("other"), "too few");
    let other = officer.ask_approval(Service::Users, None, 0).unwrap();
    assert!(matches!(
        deliver.approve(other.id, "auditor", &sign(&b, &request.to_sign)),
        Err(HsmError::BadSignature { .. })
    ));
    deliver.approve(request.id, "auditor", &sign(&b, &request.to_sign)).unwrap();

    // Whose it is, and what for.
    let second = people.login("second").unwrap();
    second.present(request.id);
    missing(second.unlock_user("other"), "something else");
    officer.present(request.id);
    officer.unlock_user("other").unwrap();
    // Once.
    officer.present(request.id);
    missing(officer.unlock_user("other"), "used already");
    missing(
        officer.create_user("x", Role::Auditor, Rights::default(), &pin(&own_pin("x"))),
        "none were presented",
    );
    officer.verify_audit(&mut |_| {}).unwrap();
    officer.verify_store().unwrap();
}

#[test]
fn a_quorum_on_the_policy_guards_itself_and_two_processes_cannot_use_one_request() {
    let people = People::new();
    let officer = people.login("officer").unwrap();
    let keys = [
        ("second", register(&people, "second", false, false)),
        ("user", register(&people, "user", false, false)),
    ];
    officer.set_quorum(Service::Policy, 2).unwrap();
    missing(officer.set_quorum(Service::Policy, 0), "none were presented");
    let request = officer.ask_approval(Service::Policy, None, 0).unwrap();
    for (name, key) in &keys {
        officer.approve(request.id, name, &sign(key, &request.to_sign)).unwrap();
    }
    let again = people.login("officer").unwrap();
    officer.present(request.id);
    again.present(request.id);
    officer.set_quorum(Service::Policy, 0).unwrap();
    again.set_data_plane(DataPlane::Every).unwrap();
    assert_eq!(again.policy().unwrap().quorum, []);
}

#[test]
fn a_key_with_a_quorum_is_used_once_for_each_request() {
    let people = People::new();
    let keys = [
        ("second", register(&people, "second", false, false)),
        ("auditor", register(&people, "auditor", true, false)),
    ];
    let token = people.f.token("user");
    token.set_key_quorum(people.key, 2, 2).unwrap();
    let refused = |e: Error| match e {
        Error::Hsm(e) => missing(Err(e), ""),
        other => panic!("{other:?}"),
    };
    refused(token.encrypt(&Mechanism::AesEcb, people.key).map(drop).unwrap_err());
    refused(token.destroy(people.key).unwrap_err());
    refused(token.set_key_quorum(people.key, 0, 0).unwrap_err());
    refused(token.set(people.key, Template::new().with(A::Label, bytes(b"x"))).unwrap_err());
    refused(token.share(people.key, "other", true).unwrap_err());
    let approved = |service| {
        let request = token.session().ask_approval(service, Some(people.key.uuid()), 2).unwrap();
        for (name, key) in &keys {
            token.session().approve(request.id, name, &sign(key, &request.to_sign)).unwrap();
        }
        token.session().present(request.id);
    };
    approved(Service::KeyUse);
    token.encrypt(&Mechanism::AesEcb, people.key).unwrap().finish().unwrap();
    refused(token.encrypt(&Mechanism::AesEcb, people.key).map(drop).unwrap_err());
    approved(Service::KeyUse);
    refused(token.destroy(people.key).unwrap_err());
    // A copy is no way around.
    let scope = token.new_scope();
    let copy = token.copy(&scope, people.key, Template::new().with(A::Token, Value::Bool(false))).unwrap();
    refused(token.encrypt(&Mechanism::AesEcb, copy).map(drop).unwrap_err());
    approved(Service::KeyManage);
    token.destroy(people.key).unwrap();
}

#[test]
fn a_shared_key_is_used_and_neither_wrapped_nor_changed() {
    let people = People::new();
    let (owner, other) = (people.f.token("user"), people.f.token("other"));
    let scope = owner.new_scope();
    let key = aes(&owner, &scope, 32, &[A::Token, A::Extractable, A::Wrap, A::Unwrap]);
    let unknown = owner.share(key, "auditor", true);
    assert!(matches!(unknown, Err(Error::Hsm(HsmError::UnknownUser { .. }))), "{unknown:?}");
    owner.share(key, "other", true).unwrap();
    let scope = other.new_scope();
    assert_eq!(other.find(&scope, &Template::new()).unwrap(), [key]);
    other.encrypt(&Mechanism::AesEcb, key).unwrap().finish().unwrap();
    let kek = aes(&other, &scope, 32, &[A::Wrap]);
    assert!(matches!(other.wrap(&Mechanism::AesKw, kek, key), Err(Error::KeyNotWrappable)));
    assert!(matches!(other.set(key, flags(&[A::Derive])), Err(Error::ActionProhibited(_))));
    assert!(matches!(other.destroy(key), Err(Error::ActionProhibited(_))));
    assert!(matches!(other.copy(&scope, key, Template::new()), Err(Error::ActionProhibited(_))));
    assert!(matches!(other.share(key, "user", true), Err(Error::ActionProhibited(_))));
    owner.wrap(&Mechanism::AesKw, key, key).unwrap();
    owner.share(key, "other", false).unwrap();
    assert!(matches!(other.encrypt(&Mechanism::AesEcb, key), Err(Error::NoSuchObject(_))));
}

#[test]
fn a_second_factor_is_asked_for_and_its_signature_is_for_one_login() {
    let people = People::new();
    let key = register(&people, "user", false, true);
    assert!(matches!(people.login("user"), Err(HsmError::SecondFactorNeeded { .. })));
    people.login("other").unwrap();
    let hsm = Hsm::open_dir(&people.f.dir).unwrap();
    let challenge = hsm.challenge("user").unwrap();
    let signature = sign(&key, challenge.to_sign());
    hsm.login_signed("user", &pin(USER_PIN), challenge, &signature).unwrap().close().unwrap();
    let challenge = hsm.challenge("user").unwrap();
    let replayed = hsm.login_signed("user", &pin(USER_PIN), challenge, &signature);
    assert!(matches!(replayed, Err(HsmError::BadSignature { .. })));
    // The factor alone is no login either.
    let challenge = hsm.challenge("user").unwrap();
    let signature = sign(&key, challenge.to_sign());
    let wrong = hsm.login_signed("user", &pin(OFFICER_PIN), challenge, &signature);
    assert!(matches!(wrong, Err(HsmError::WrongPin { .. })));
}

#[test]
fn where_every_use_is_logged_a_use_that_cannot_be_logged_is_not_done() {
    let people = People::new();
    people.login("officer").unwrap().set_data_plane(DataPlane::Every).unwrap();
    let token = people.f.token("user");
    token.encrypt(&Mechanism::AesEcb, people.key).unwrap();
    let mut last = String::new();
    token.session().verify_audit(&mut |r| last = format!("{} {}", r.event.name(), r.event)).unwrap();
    assert_eq!(last, format!("key-use {} to encrypt with 0x1081", people.key));
    let log = people.f.dir.join("audit.00000001.log");
    let mut changed = std::fs::read(&log).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&log, changed).unwrap();
    assert!(matches!(token.encrypt(&Mechanism::AesEcb, people.key), Err(Error::Hsm(HsmError::Audit(_)))));
}

#[test]
fn an_approved_mode_has_approved_algorithms_and_takes_no_keys_in_clear() {
    let f = Fixture::new();
    let hsm = Hsm::open_dir(&f.dir).unwrap();
    let officer = hsm.login("officer", &pin(OFFICER_PIN)).unwrap();
    officer.set_algorithms(true, false).unwrap();
    assert!(matches!(officer.set_algorithms(false, false), Err(HsmError::NotAllowed { .. })));
    let token = f.token("user");
    let scope = token.new_scope();
    let key = aes(&token, &scope, 32, &[A::Token]);
    token.encrypt(&Mechanism::AesEcb, key).unwrap();
    let siv = Mechanism::AesGcmSiv { iv: hsm_engine::objects::Iv::Generate, aad: Vec::new() };
    assert!(matches!(token.encrypt(&siv, key), Err(Error::MechanismInvalid)));
    let clear = Template::new()
        .with(A::Class, Value::Number(4))
        .with(A::KeyType, Value::Number(0x1F))
        .with(A::Value, Value::secret(&[1; 32]));
    assert!(matches!(token.create(&scope, clear), Err(Error::ActionProhibited(_))));
    let short = Template::new().with(A::ValueLen, Value::Number(13));
    assert!(matches!(token.generate_key(&scope, Generate::GenericSecret, short), Err(Error::KeySizeRange)));
    // And the other way round: an HSM that has objects cannot be restricted any more.
    let people = People::new();
    let late = people.login("officer").unwrap().set_algorithms(true, false);
    assert!(matches!(late, Err(HsmError::NotAllowed { .. })));
    people.login("officer").unwrap().set_algorithms(false, true).unwrap();
    let token = people.f.token("user");
    let scope = token.new_scope();
    let t = Template::new().with(A::ValueLen, Value::Number(20));
    let old = token.generate_key(&scope, Generate::GenericSecret, t).unwrap();
    token.sign(&Mechanism::Hmac { hash: Hash::Sha1, len: 20 }, old).unwrap();
}
