//! What a logged-in user does with objects.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hsm_primitives::{Curve, Hash, PrivateKey, RsaPadding};
use secret_mem::SecretBuf;

use super::build::{self, Origin, build, class_and_type};
use super::directory::{self, Change, View, short_hash};
use super::keys::{self, KeyWrapper, Material};
use super::mechanism::Use;
use super::object::{New, Object, ObjectId};
use super::template::{Attributes, Parts, Plain};
use super::{
    Allowed, AttributeType as A, Class, Error, Generate, KeyType, Mechanism, Result, Template, Value, class,
};
use crate::audit::{Entry, Event, KeyUsage};
use crate::error::HsmError;
use crate::pin::Pin;
use crate::policy::{DataPlane, MAX_QUORUM, Service};
use crate::session::Session;
use crate::transaction::LOCK_WAIT;
use crate::user::Role;

/// Most objects an HSM holds.
pub const MAX_OBJECTS: u64 = 1 << 20;
/// Most session objects of a token.
pub const MAX_SESSION_OBJECTS: usize = 16 << 10;
/// Most objects whose keys a token keeps ready.
const MAX_READY: usize = 4096;

/// What a user does with objects. Clones share everything.
///
/// Belongs to the process that logged in, as its [`Session`] does.
#[derive(Clone)]
pub struct Token(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    session: Session,
    allowed: Allowed,
    /// Whether every use is logged before it is done.
    every_use: bool,
    owner: u64,
    scopes: AtomicU64,
    stored: Mutex<Stored>,
    of_sessions: Mutex<HashMap<ObjectId, Arc<Object>>>,
    pub(crate) usage: Counts,
}

/// Objects of the store, as far as they were read.
#[derive(Default)]
struct Stored {
    view: View,
    /// Each with the revision of the directory at which it was last known to be current.
    ready: HashMap<ObjectId, (u64, Arc<Object>)>,
}

/// Uses since the last report.
#[derive(Default)]
pub(crate) struct Counts {
    done: [AtomicU64; 7],
    made: AtomicU64,
    failed: AtomicU64,
}

/// A life time of session objects: a PKCS#11 session.
pub struct Scope {
    id: u64,
    token: Token,
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.token.of_sessions().retain(|_, object| object.scope != Some(self.id));
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({})", self.id)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Token").field(&self.0.session).finish()
    }
}

impl Token {
    /// Takes over a session of a crypto user, who uses keys, or of a crypto officer, who looks at public attributes and trusts keys.
    /// Runs the known-answer tests of all mechanisms the first time in a process.
    ///
    /// # Errors
    /// A self-test that fails, another role, a damaged store.
    pub fn open(session: Session) -> Result<Self> {
        super::selftest::run().map_err(HsmError::from)?;
        session.require_one_of(&[Role::CryptoUser, Role::CryptoOfficer], "look at objects")?;
        let policy = session.read_policy()?;
        let allowed = Allowed { approved_only: policy.approved_only, legacy: policy.legacy };
        let owner = short_hash(session.user().as_bytes());
        Ok(Self(Arc::new(Inner {
            session,
            allowed,
            every_use: policy.data_plane == DataPlane::Every,
            owner,
            scopes: AtomicU64::new(1),
            stored: Mutex::default(),
            of_sessions: Mutex::default(),
            usage: Counts::default(),
        })))
    }

    /// The session it took over.
    pub fn session(&self) -> &Session {
        &self.0.session
    }

    /// Which mechanisms this HSM offers.
    pub fn allowed(&self) -> Allowed {
        self.0.allowed
    }

    /// Logs what was used and ends the session. With clones left it ends when the last of them is dropped.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn close(self) -> Result<()> {
        self.log_usage()?;
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Ok(inner.session.close()?),
            Err(_) => Ok(()),
        }
    }

    /// Logs how often keys were used since the last time.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn log_usage(&self) -> Result<()> {
        let usage = self.0.usage.take();
        if usage == KeyUsage::default() {
            return Ok(());
        }
        Ok(self.0.session.log_event(Event::KeysUsed(usage))?)
    }

    /// Begins a life time of session objects.
    pub fn new_scope(&self) -> Scope {
        Scope { id: self.0.scopes.fetch_add(1, Ordering::Relaxed), token: self.clone() }
    }

    /// Fills `out` with random bytes of the operating system.
    ///
    /// # Errors
    /// The generator fails.
    pub fn random(&self, out: &mut [u8]) -> Result<()> {
        Ok(self.0.session.random(out)?)
    }

    /// Makes an object from its value in clear.
    ///
    /// # Errors
    /// What is wrong with the template; [`Error::Full`]. Keys in clear are refused where only what is approved is allowed.
    pub fn create(&self, scope: &Scope, template: Template) -> Result<ObjectId> {
        self.require_user("create objects")?;
        let mut parts = template.into_parts()?;
        let (class, key_type) = class_and_type(&parts, None)?;
        let hidden = matches!(class, Class::PrivateKey | Class::SecretKey);
        if hidden && self.0.allowed.approved_only {
            return Err(Error::ActionProhibited("this HSM takes no keys in clear"));
        }
        let material = match (class, key_type) {
            (Class::Data | Class::Certificate, _) => {
                let value = parts.secrets.remove(&A::Value);
                match value {
                    Some(value) => Material::Value(value),
                    None if class == Class::Certificate && !parts.attributes.contains_key(&A::Url) => {
                        return Err(Error::TemplateIncomplete(A::Value));
                    }
                    None => Material::Value(super::template::copy_secret(&[])),
                }
            }
            (Class::SecretKey, Some(key_type)) => {
                let value = parts.secrets.remove(&A::Value).ok_or(Error::TemplateIncomplete(A::Value))?;
                keys::check_secret_len(key_type, value.len())
                    .map_err(|_| Error::AttributeValueInvalid(A::Value))?;
                Material::Secret(value)
            }
            (Class::PublicKey, Some(key_type)) => {
                Material::Public(keys::public_from(key_type, &parts.attributes)?)
            }
            (_, Some(key_type)) => {
                Material::Private(keys::private_from(key_type, &parts.attributes, &parts.secrets)?)
            }
            (_, None) => return Err(Error::TemplateIncomplete(A::KeyType)),
        };
        self.make(scope, Origin::Create, class, key_type, parts, &material)
    }

    /// Makes a symmetric key.
    ///
    /// # Errors
    /// What is wrong with the template.
    pub fn generate_key(&self, scope: &Scope, how: Generate, template: Template) -> Result<ObjectId> {
        self.require_user("make keys")?;
        let key_type = match how {
            Generate::Aes => KeyType::Aes,
            Generate::GenericSecret => KeyType::GenericSecret,
            _ => return Err(Error::MechanismInvalid),
        };
        let parts = template.into_parts()?;
        let (class, key_type) = class_and_type(&parts, Some((Class::SecretKey, key_type)))?;
        let key_type = key_type.ok_or(Error::TemplateIncomplete(A::KeyType))?;
        let len = self.value_len(&parts)?.ok_or(Error::TemplateIncomplete(A::ValueLen))?;
        keys::check_secret_len(key_type, len)?;
        if self.0.allowed.approved_only && len < 14 {
            return Err(Error::KeySizeRange);
        }
        let secret = SecretBuf::from_fn(len, |out| secret_mem::random(out).map(|()| len))?;
        let origin = Origin::Generate(how.number());
        self.make(scope, origin, class, Some(key_type), parts, &Material::Secret(secret))
    }

    /// Makes a public and a private key.
    ///
    /// # Errors
    /// What is wrong with the templates.
    pub fn generate_key_pair(
        &self,
        scope: &Scope,
        how: Generate,
        public: Template,
        private: Template,
    ) -> Result<(ObjectId, ObjectId)> {
        self.require_user("make keys")?;
        let key_type = match how {
            Generate::Rsa => KeyType::Rsa,
            Generate::Ec => KeyType::Ec,
            Generate::Edwards => KeyType::Edwards,
            _ => return Err(Error::MechanismInvalid),
        };
        let (public, private) = (public.into_parts()?, private.into_parts()?);
        class_and_type(&public, Some((Class::PublicKey, key_type)))?;
        class_and_type(&private, Some((Class::PrivateKey, key_type)))?;
        let key = make_pair(key_type, &public.attributes)?;
        pairwise_test(&key)?;
        let origin = Origin::Generate(how.number());
        let public_half = Material::Public(key.public()?);
        let one = self.prepare(scope, origin, Class::PublicKey, Some(key_type), public, &public_half)?;
        let private_half = Material::Private(key);
        let two = self.prepare(scope, origin, Class::PrivateKey, Some(key_type), private, &private_half)?;
        // Both templates are good by now. A crash between the two leaves a public key, which is worth nothing to anybody.
        let first = self.keep(one)?;
        match self.keep(two) {
            Ok(second) => Ok((first, second)),
            Err(e) => {
                // The first error says what is wrong; if this fails too, a public key without its other half stays.
                let _ = self.destroy(first);
                Err(e)
            }
        }
    }

    /// Copies an object; the template may change what a copy may change.
    ///
    /// # Errors
    /// What is wrong with the template; [`Error::ActionProhibited`] if it may not be copied or is another user's.
    pub fn copy(&self, scope: &Scope, id: ObjectId, template: Template) -> Result<ObjectId> {
        self.require_user("copy objects")?;
        let object = self.object(id)?;
        self.own(&object, "copy it")?;
        if !object.flag(A::Copyable) {
            return Err(Error::ActionProhibited("it may not be copied"));
        }
        let parts = template.into_parts()?;
        if let Some(secret) = parts.secrets.keys().next() {
            return Err(Error::AttributeReadOnly(*secret));
        }
        let mut attributes = build::change(object.class, &object.attributes, &parts, true, false)?;
        // Whoever trusts a key trusts that one.
        if attributes.contains_key(&A::Trusted) {
            attributes.insert(A::Trusted, Plain::Bool(false));
        }
        let token = attributes.get(&A::Token) == Some(&Plain::Bool(true));
        let mut copy = Object::new(New {
            owner: self.0.session.user().into(),
            scope: (!token).then_some(scope.id),
            class: object.class,
            key_type: object.key_type,
            attributes,
            secret: object.secret.clone(),
        })?;
        (copy.quorum_use, copy.quorum_manage) = (object.quorum_use, object.quorum_manage);
        self.keep(copy)
    }

    /// Destroys an object. A copy of the store from before still has it.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`]; [`Error::ActionProhibited`] if it may not be destroyed or is another user's.
    pub fn destroy(&self, id: ObjectId) -> Result<()> {
        self.require_user("destroy objects")?;
        let object = self.object(id)?;
        self.own(&object, "destroy it")?;
        if !object.flag(A::Destroyable) {
            return Err(Error::ActionProhibited("it may not be destroyed"));
        }
        if !object.is_token() {
            self.of_sessions().remove(&id);
            return Ok(());
        }
        self.commit(
            &Change::Destroy(id),
            Event::ObjectDestroyed { id: id.0.into_bytes() },
            object.quorum_manage,
        )?;
        self.stored().ready.remove(&id);
        Ok(())
    }

    /// The value of an attribute.
    ///
    /// # Errors
    /// [`Error::AttributeSensitive`], [`Error::AttributeTypeInvalid`], [`Error::NoSuchObject`].
    pub fn get(&self, id: ObjectId, attribute: A) -> Result<Value> {
        let object = self.object(id)?;
        if !attribute.belongs_to(object.class) {
            return Err(Error::AttributeTypeInvalid(attribute));
        }
        if let Some(value) = object.attributes.get(&attribute) {
            return Ok(value.to_value());
        }
        let wrapper = self.wrapper();
        match (object.class, attribute) {
            (Class::Data | Class::Certificate, A::Value) => {
                Ok(Value::Bytes(object.unwrap(wrapper)?.as_slice().to_vec()))
            }
            (_, secret) if secret.is_secret() => {
                if !object.shows_secret() || object.owner != self.0.session.user() {
                    return Err(Error::AttributeSensitive(attribute));
                }
                Ok(Value::Secret(match object.class {
                    Class::SecretKey => object.unwrap(wrapper)?,
                    _ => keys::secret_attribute(object.ready(wrapper)?.private()?, attribute)?,
                }))
            }
            (_, A::WrapTemplate | A::UnwrapTemplate | A::DeriveTemplate) => {
                Ok(Value::Template(Template::new()))
            }
            _ => Err(Error::AttributeTypeInvalid(attribute)),
        }
    }

    /// Length of an object as it is stored, in bytes.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn size(&self, id: ObjectId) -> Result<usize> {
        let object = self.object(id)?;
        let attributes = object.attributes.values().map(|v| match v {
            Plain::Bytes(b) => 16 + b.len(),
            Plain::Mechanisms(m) => 16 + 8 * m.len(),
            Plain::Template(t) => 16 + 16 * t.len(),
            Plain::Bool(_) | Plain::Number(_) => 16,
        });
        Ok(attributes.sum::<usize>() + object.secret.len())
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// [`Error::AttributeReadOnly`] and what else is wrong with the template; [`Error::ActionProhibited`] for an object that may
    /// not be changed or is another user's. A crypto officer may only set `Trusted`.
    pub fn set(&self, id: ObjectId, template: Template) -> Result<()> {
        let officer = self.0.session.role() == Role::CryptoOfficer;
        let object = self.object(id)?;
        if officer {
            self.0.session.same_process()?;
            if template.iter().any(|(a, _)| *a != A::Trusted) {
                return Err(Error::ActionProhibited("a crypto officer sets Trusted and nothing else"));
            }
        } else {
            self.require_user("change objects")?;
            self.own(&object, "change it")?;
            if !object.flag(A::Modifiable) {
                return Err(Error::ActionProhibited("it may not be changed"));
            }
        }
        let mut parts = template.into_parts()?;
        let mut secret = None;
        for attribute in parts.secrets.keys() {
            if *attribute != A::Value || object.class != Class::Data {
                return Err(Error::AttributeReadOnly(*attribute));
            }
        }
        if let Some(value) = parts.secrets.remove(&A::Value) {
            secret = Some(self.wrapper().wrap(value.as_slice())?);
        }
        let attributes = build::change(object.class, &object.attributes, &parts, false, officer)?;
        let mut changed = object.changed(attributes);
        if let Some(secret) = secret {
            changed.secret = secret;
        }
        if !object.is_token() {
            self.of_sessions().insert(id, Arc::new(changed));
            return Ok(());
        }
        let names: Vec<String> = parts.attributes.keys().map(|a| format!("{a:?}")).collect();
        let event = Event::ObjectChanged { id: id.0.into_bytes(), what: names.join(", ") };
        self.commit(&Change::Put(&changed), event, object.quorum_manage)?;
        self.stored().ready.remove(&id);
        Ok(())
    }

    /// Objects that have all attributes of a template with the same values: token objects by id, then session objects.
    ///
    /// # Errors
    /// A damaged store. A template that no object can fit finds none.
    pub fn find(&self, _scope: &Scope, template: &Template) -> Result<Vec<ObjectId>> {
        self.0.session.same_process()?;
        let wanted = Wanted::new(template);
        let session = self.of_sessions();
        let mut own: Vec<ObjectId> =
            session.values().filter(|o| wanted.matches(o, self.wrapper())).map(|o| o.id).collect();
        drop(session);
        own.sort();
        if wanted.token == Some(false) {
            return Ok(own);
        }
        let officer = self.0.session.role() == Role::CryptoOfficer;
        let (core, keys) = (&self.0.session.core, &self.0.session.keys);
        let hint = View::hint(core)?;
        let mut stored = self.stored();
        stored.view.refresh(hint, core, keys)?;
        let mine = self.0.owner;
        let candidates = stored.view.find(core, keys, &|e| {
            (officer || e.owner == mine || e.visibility > 0)
                && wanted.class.is_none_or(|c| c == e.class)
                && wanted.label.is_none_or(|h| h == e.label)
                && wanted.cka_id.is_none_or(|h| h == e.cka_id)
        })?;
        // What the directory cannot decide is decided by the object.
        let sure: Vec<bool> = if wanted.decided {
            let mut sure = Vec::with_capacity(candidates.len());
            for id in &candidates {
                let entry = stored.view.entry(core, keys, *id)?;
                sure.push(entry.is_some_and(|e| officer || e.owner == mine || e.visibility == 2));
            }
            sure
        } else {
            vec![false; candidates.len()]
        };
        drop(stored);
        let mut found = Vec::new();
        for (id, sure) in candidates.into_iter().zip(sure) {
            if sure {
                found.push(id);
                continue;
            }
            match self.object(id) {
                Ok(object) if wanted.matches(&object, self.wrapper()) => found.push(id),
                Ok(_) | Err(Error::NoSuchObject(_)) => {}
                Err(e) => return Err(e),
            }
        }
        found.extend(own);
        Ok(found)
    }

    /// Reads every object of the store and checks that its key can be had; the number of objects. The audit log and the rest have
    /// [`Session::verify_audit`] and [`Session::verify_store`].
    ///
    /// # Errors
    /// The first that is damaged, stale or missing.
    pub fn verify_objects(&self) -> Result<u64> {
        self.0.session.same_process()?;
        let wrapper = self.wrapper();
        directory::verify(&self.0.session.core, &self.0.session.keys, &mut |object| {
            object.unwrap(wrapper).map(drop)
        })
    }

    pub(crate) fn require_user(&self, action: &'static str) -> Result<()> {
        Ok(self.0.session.require(Role::CryptoUser, action)?)
    }

    pub(crate) fn check_pin(&self, pin: &Pin) -> Result<()> {
        let session = &self.0.session;
        session.same_process()?;
        Ok(crate::login::check_pin(&session.core, session.user(), pin)?)
    }

    pub(crate) fn wrapper(&self) -> &dyn KeyWrapper {
        &self.0.session.keys.object_wrapper
    }

    /// An object that the user may see, as new as the store has it.
    pub(crate) fn object(&self, id: ObjectId) -> Result<Arc<Object>> {
        self.0.session.same_process()?;
        if let Some(object) = self.of_sessions().get(&id) {
            return Ok(Arc::clone(object));
        }
        let object = self.stored_object(id)?;
        let user = self.0.session.user();
        let visible = object.owner == user
            || !object.flag(A::Private)
            || object.shared.iter().any(|name| name == user)
            || self.0.session.role() == Role::CryptoOfficer;
        if visible { Ok(object) } else { Err(Error::NoSuchObject(id)) }
    }

    fn stored_object(&self, id: ObjectId) -> Result<Arc<Object>> {
        let (core, keys) = (&self.0.session.core, &self.0.session.keys);
        // Twice: an object may be destroyed between reading its page and itself.
        for _ in 0..2 {
            let hint = View::hint(core)?;
            let mut stored = self.stored();
            let now = stored.view.refresh(hint, core, keys)?;
            if let Some((at, object)) = stored.ready.get(&id).filter(|(at, _)| *at == now) {
                debug_assert_eq!(*at, now);
                return Ok(Arc::clone(object));
            }
            let Some(entry) = stored.view.entry(core, keys, id)? else { return Err(Error::NoSuchObject(id)) };
            if let Some((at, object)) =
                stored.ready.get_mut(&id).filter(|(_, o)| o.revision >= entry.revision)
            {
                *at = now;
                return Ok(Arc::clone(object));
            }
            if let Some(object) = directory::read_object(core, keys, &entry)? {
                let object = Arc::new(object);
                if stored.ready.len() >= MAX_READY {
                    stored.ready.clear();
                }
                let at = stored.view.revision();
                stored.ready.insert(id, (at, Arc::clone(&object)));
                return Ok(object);
            }
            stored.view = View::default();
        }
        Err(HsmError::MissingObject { store: core.store().location(), object: format!("key.{id}") }.into())
    }

    /// Refuses what only the owner may do.
    pub(crate) fn own(&self, object: &Object, _action: &'static str) -> Result<()> {
        if object.owner == self.0.session.user() {
            return Ok(());
        }
        Err(Error::ActionProhibited("it belongs to another user"))
    }

    /// Whether a key may be used for `purpose` with a mechanism.
    pub(crate) fn permit(&self, object: &Object, mechanism: u64, purpose: Use) -> Result<()> {
        let (flag, name) = match purpose {
            Use::Encrypt => (A::Encrypt, "encrypt"),
            Use::Decrypt => (A::Decrypt, "decrypt"),
            Use::Sign => (A::Sign, "sign"),
            Use::Verify => (A::Verify, "verify"),
            Use::Wrap => (A::Wrap, "wrap"),
            Use::Unwrap => (A::Unwrap, "unwrap"),
            Use::Derive => (A::Derive, "derive"),
        };
        self.require_user("use keys")?;
        if !object.is_key() {
            return Err(Error::KeyTypeInconsistent);
        }
        if !object.flag(flag) {
            return Err(Error::KeyFunctionNotPermitted(name));
        }
        if let Some(Plain::Mechanisms(list)) = object.attributes.get(&A::AllowedMechanisms)
            && !list.contains(&mechanism)
        {
            return Err(Error::MechanismInvalid);
        }
        let id = object.id.0.into_bytes();
        if object.quorum_use > 0 {
            self.use_up(Service::KeyUse, object.quorum_use, id)?;
        }
        if self.0.every_use {
            self.0.session.log_event(Event::KeyUse { id, what: name.into(), mechanism })?;
        }
        Ok(())
    }

    /// Uses up an approval that stands by itself.
    fn use_up(&self, service: Service, needed: u8, key: [u8; 16]) -> Result<()> {
        let mut tx = self.0.session.begin(LOCK_WAIT)?;
        self.0.session.authorize(&mut tx, service, needed, key)?;
        Ok(tx.commit()?)
    }

    /// Shares a token key with another crypto user, who may then use it, or ends that. Only the owner may wrap, change, share or destroy
    /// it.
    ///
    /// # Errors
    /// Not the owner; an unknown user; no key of the store.
    pub fn share(&self, id: ObjectId, user: &str, shared: bool) -> Result<()> {
        self.require_user("share keys")?;
        let object = self.object(id)?;
        self.own(&object, "share it")?;
        let known = self.0.session.core.root(&self.0.session.keys)?.value.users;
        if !known.iter().any(|u| u.name == user && u.role == Role::CryptoUser) && shared {
            let store = self.0.session.core.store().location();
            return Err(HsmError::UnknownUser { store, user: user.into() }.into());
        }
        let mut changed = object.changed(object.attributes.clone());
        changed.shared.retain(|name| name != user);
        if shared {
            changed.shared.push(user.into());
            changed.shared.sort();
        }
        self.manage(&object, &changed, Event::KeyShared { id: id.0.into_bytes(), user: user.into(), shared })
    }

    /// Users a key is shared with.
    ///
    /// # Errors
    /// [`Error::NoSuchObject`].
    pub fn shared_with(&self, id: ObjectId) -> Result<Vec<String>> {
        Ok(self.object(id)?.shared.clone())
    }

    /// Sets how many approvals a token key needs to be used and to be wrapped, changed, shared or destroyed; 0 for none.
    ///
    /// # Errors
    /// Not the owner; more than [`MAX_QUORUM`]; no key of the store.
    pub fn set_key_quorum(&self, id: ObjectId, to_use: u8, to_manage: u8) -> Result<()> {
        self.require_user("change objects")?;
        let object = self.object(id)?;
        self.own(&object, "change it")?;
        if [to_use, to_manage].iter().any(|n| *n == 1 || *n > MAX_QUORUM) {
            return Err(Error::ActionProhibited("a quorum is none or 2 to 8"));
        }
        let mut changed = object.changed(object.attributes.clone());
        (changed.quorum_use, changed.quorum_manage) = (to_use, to_manage);
        let what = format!("approvals: {to_use} to use, {to_manage} to manage");
        self.manage(&object, &changed, Event::ObjectChanged { id: id.0.into_bytes(), what })
    }

    fn manage(&self, before: &Object, changed: &Object, event: Event) -> Result<()> {
        if !before.is_token() || !before.is_key() {
            return Err(Error::ActionProhibited("only keys of the store can do this"));
        }
        self.commit(&Change::Put(changed), event, before.quorum_manage)?;
        self.stored().ready.remove(&before.id);
        Ok(())
    }

    /// Uses up an approval for taking a key out.
    pub(crate) fn approve_wrap(&self, object: &Object) -> Result<()> {
        match object.quorum_manage {
            0 => Ok(()),
            needed => self.use_up(Service::KeyManage, needed, object.id.0.into_bytes()),
        }
    }

    /// A key that may be used.
    pub(crate) fn key_for(&self, id: ObjectId, mechanism: &Mechanism, purpose: Use) -> Result<Arc<Object>> {
        self.0.allowed.mechanism(mechanism, purpose)?;
        let object = self.object(id)?;
        self.permit(&object, mechanism.number(), purpose)?;
        Ok(object)
    }

    /// `CKA_VALUE_LEN` of a template.
    pub(crate) fn value_len(&self, parts: &Parts) -> Result<Option<usize>> {
        match parts.attributes.get(&A::ValueLen) {
            Some(Plain::Number(n)) => Ok(Some(usize::try_from(*n).map_err(|_| Error::KeySizeRange)?)),
            _ => Ok(None),
        }
    }

    /// Builds an object and keeps it.
    pub(crate) fn make(
        &self,
        scope: &Scope,
        origin: Origin,
        class: Class,
        key_type: Option<KeyType>,
        parts: Parts,
        material: &Material,
    ) -> Result<ObjectId> {
        self.keep(self.prepare(scope, origin, class, key_type, parts, material)?)
    }

    fn prepare(
        &self,
        scope: &Scope,
        origin: Origin,
        class: Class,
        key_type: Option<KeyType>,
        parts: Parts,
        material: &Material,
    ) -> Result<Object> {
        let derived: Attributes = material.attributes(key_type)?;
        let attributes = build(origin, class, key_type, &parts, derived)?;
        let token = attributes.get(&A::Token) == Some(&Plain::Bool(true));
        Object::new(New {
            owner: self.0.session.user().into(),
            scope: (!token).then_some(scope.id),
            class,
            key_type,
            attributes,
            secret: material.to_secret(self.wrapper())?,
        })
    }

    fn keep(&self, object: Object) -> Result<ObjectId> {
        let id = object.id;
        self.0.usage.made.fetch_add(1, Ordering::Relaxed);
        if object.is_token() {
            let label = String::from_utf8_lossy(object.bytes(A::Label)).chars().take(64).collect();
            let event = Event::ObjectCreated { id: id.0.into_bytes(), class: object.class as u8, label };
            self.commit(&Change::Put(&object), event, 0)?;
            return Ok(id);
        }
        let mut session = self.of_sessions();
        if session.len() >= MAX_SESSION_OBJECTS {
            return Err(Error::Full { what: "session objects", limit: MAX_SESSION_OBJECTS });
        }
        session.insert(id, Arc::new(object));
        Ok(id)
    }

    /// Logs and makes a change of the store, with the approvals that the object asks for.
    pub(crate) fn commit(&self, change: &Change<'_>, event: Event, needed: u8) -> Result<()> {
        let session = &self.0.session;
        let mut tx = session.begin(LOCK_WAIT)?;
        if needed > 0 {
            let id = match change {
                Change::Put(object) => object.id,
                Change::Destroy(id) => *id,
            };
            session.authorize(&mut tx, Service::KeyManage, needed, id.0.into_bytes())?;
        }
        tx.log(&[Entry::ok(session.user(), event)])?;
        directory::apply(&session.core, &session.keys, tx, change, MAX_OBJECTS)?;
        Ok(())
    }

    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.0.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of_sessions(&self) -> MutexGuard<'_, HashMap<ObjectId, Arc<Object>>> {
        self.0.of_sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a search asks for.
struct Wanted<'a> {
    template: &'a Template,
    class: Option<u8>,
    token: Option<bool>,
    label: Option<u64>,
    cka_id: Option<u64>,
    /// Whether the directory alone tells which token objects fit.
    decided: bool,
}

impl<'a> Wanted<'a> {
    fn new(template: &'a Template) -> Self {
        let mut wanted =
            Self { template, class: None, token: None, label: None, cka_id: None, decided: true };
        for (attribute, value) in template.iter() {
            match (attribute, value) {
                (A::Class, Value::Number(n)) if *n < 5 => wanted.class = Some(*n as u8),
                (A::Token, Value::Bool(token)) => wanted.token = Some(*token),
                (A::Label, Value::Bytes(b)) => wanted.label = Some(short_hash(b)),
                (A::Id, Value::Bytes(b)) => wanted.cka_id = Some(short_hash(b)),
                _ => wanted.decided = false,
            }
        }
        // Objects without an id are found by their absence only by looking.
        wanted
    }

    fn matches(&self, object: &Object, wrapper: &dyn KeyWrapper) -> bool {
        self.template.iter().all(|(attribute, value)| match (object.attributes.get(attribute), value) {
            (Some(Plain::Bool(a)), Value::Bool(b)) => a == b,
            (Some(Plain::Number(a)), Value::Number(b)) => a == b,
            (Some(Plain::Bytes(a)), Value::Bytes(b)) => a == b,
            (Some(Plain::Mechanisms(a)), Value::Mechanisms(b)) => a == b,
            (None, Value::Bytes(b)) if *attribute == A::Value && !object.is_key() => {
                object.unwrap(wrapper).is_ok_and(|value| value.as_slice() == b)
            }
            (None, Value::Secret(b)) if *attribute == A::Value && !object.is_key() => {
                object.unwrap(wrapper).is_ok_and(|value| value.ct_eq(b))
            }
            _ => false,
        })
    }
}

fn make_pair(key_type: KeyType, public: &Attributes) -> Result<PrivateKey> {
    if key_type != KeyType::Rsa {
        let Some(Plain::Bytes(params)) = public.get(&A::EcParams) else {
            return Err(Error::TemplateIncomplete(A::EcParams));
        };
        let curve: Curve = class::curve_of(params, key_type)?;
        return Ok(PrivateKey::generate_ec(curve)?);
    }
    let Some(Plain::Number(bits)) = public.get(&A::ModulusBits) else {
        return Err(Error::TemplateIncomplete(A::ModulusBits));
    };
    let bits = u32::try_from(*bits).map_err(|_| Error::KeySizeRange)?;
    // Odd lengths buy nothing and surprise others.
    if !(hsm_primitives::MIN_RSA_BITS..=hsm_primitives::MAX_RSA_BITS).contains(&bits) || bits % 128 != 0 {
        return Err(Error::KeySizeRange);
    }
    let exponent = match public.get(&A::PublicExponent) {
        Some(Plain::Bytes(e)) => &e[..],
        _ => &[1, 0, 1],
    };
    let small = exponent.iter().try_fold(0_u64, |n, b| n.checked_mul(256)?.checked_add(u64::from(*b)));
    if small.is_none_or(|e| e < 65537) {
        return Err(Error::AttributeValueInvalid(A::PublicExponent));
    }
    PrivateKey::generate_rsa(bits, exponent).map_err(|_| Error::AttributeValueInvalid(A::PublicExponent))
}

/// Signs and verifies once with a new pair (FIPS 140-3, pairwise consistency).
fn pairwise_test(key: &PrivateKey) -> Result<()> {
    let (public, digest) = (key.public()?, Hash::Sha256.digest(b"pairwise consistency"));
    match key.curve() {
        None => {
            let padding = RsaPadding::Pkcs1Hash(Hash::Sha256);
            public.rsa_verify(&padding, &digest, &key.rsa_sign(&padding, &digest)?)?;
        }
        Some(Curve::Ed25519) => public.eddsa_verify(&digest, &key.eddsa_sign(&digest)?)?,
        Some(_) => public.ecdsa_verify(&digest, &key.ecdsa_sign(&digest)?)?,
    }
    Ok(())
}

impl Counts {
    pub(crate) fn count(&self, purpose: Use, ok: bool) {
        let counter = if ok { &self.done[purpose as usize] } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> KeyUsage {
        let take = |n: &AtomicU64| n.swap(0, Ordering::Relaxed);
        let [encrypts, decrypts, signs, verifies, wraps, unwraps, derives] = self.done.each_ref().map(take);
        KeyUsage {
            encrypts,
            decrypts,
            signs,
            verifies,
            wraps,
            unwraps,
            derives,
            made: take(&self.made),
            failures: take(&self.failed),
        }
    }
}
