//! Signatures of people: keys they register, approvals they sign, second factors.

use hsm_primitives::{Curve, Hash, PublicKey, RsaPadding};
use uuid::Uuid;

use crate::audit::Event;
use crate::error::{HsmError, Result};
use crate::policy::{self, Person};
use crate::session::Session;
use crate::time::Timestamp;
use crate::transaction::LOCK_WAIT;

const REGISTER_LABEL: &[u8] = b"tde/hsm/register/v1";
const LOGIN_LABEL: &[u8] = b"tde/hsm/login/v1";

/// Checks a signature under an RSA (PKCS#1 v1.5, SHA-256) or Ed25519 key.
fn verify(public: &[u8], message: &[u8], signature: &[u8]) -> Option<()> {
    let key = PublicKey::from_spki(public).ok()?;
    match key.curve() {
        None => {
            let digest = Hash::Sha256.digest(message);
            key.rsa_verify(&RsaPadding::Pkcs1Hash(Hash::Sha256), &digest, signature).ok()
        }
        Some(Curve::Ed25519) => key.eddsa_verify(message, signature).ok(),
        Some(_) => None,
    }
}

/// What a login with a second factor signs. It is random, lives in this process and is used up by the login.
#[derive(Debug)]
pub struct Challenge(Vec<u8>);

impl Challenge {
    pub(crate) fn new(hsm: &[u8; 16], user: &str) -> Result<Self> {
        let mut nonce = [0; 32];
        secret_mem::random(&mut nonce)?;
        Ok(Self([LOGIN_LABEL, hsm, &nonce, user.as_bytes()].concat()))
    }

    /// The bytes to sign.
    pub fn to_sign(&self) -> &[u8] {
        &self.0
    }

    /// Whether `person` signed it.
    pub(crate) fn signed_by(&self, person: &Person, signature: &[u8]) -> bool {
        self.0.ends_with(person.user.as_bytes()) && verify(&person.public, &self.0, signature).is_some()
    }
}

impl Session {
    /// What the user signs to register a key.
    pub fn registration(&self) -> Vec<u8> {
        [REGISTER_LABEL, self.core.hsm_id(), self.user().as_bytes()].concat()
    }

    /// Registers the key with which this user approves requests and, if `second_factor`, logs in from now on. `signature` is one of
    /// [`registration`](Self::registration), so that nobody registers a key that is somebody else's.
    ///
    /// # Errors
    /// [`HsmError::BadSignature`]; no RSA or Ed25519 key in a SubjectPublicKeyInfo.
    pub fn register_key(&self, public: &[u8], signature: &[u8], second_factor: bool) -> Result<()> {
        self.same_process()?;
        verify(public, &self.registration(), signature)
            .ok_or_else(|| HsmError::BadSignature { user: self.user().into(), of: "the registration" })?;
        let mut tx = self.begin(LOCK_WAIT)?;
        let before = policy::read(&self.core, &self.keys, tx.root())?;
        let mut policy = before.value.clone();
        // Whoever approved with another key must do it again.
        for request in &mut policy.requests {
            request.approvals.retain(|name| name != self.user());
        }
        policy.people.retain(|p| p.user != self.user());
        policy.people.push(Person { user: self.user().into(), public: public.into(), second_factor });
        tx.log(&[self.entry(Event::KeyRegistered)])?;
        policy::write(&mut tx, &before, policy)?;
        tx.commit()
    }

    /// Hands in that `user` approves a request. Anybody may do that: the signature speaks for itself.
    ///
    /// # Errors
    /// [`HsmError::BadSignature`] for an unknown request, a user without a key, or a signature that does not verify; an approval that
    /// is there already.
    pub fn approve(&self, request: Uuid, user: &str, signature: &[u8]) -> Result<()> {
        self.same_process()?;
        let bad = || HsmError::BadSignature { user: user.into(), of: "the request" };
        let mut tx = self.begin(LOCK_WAIT)?;
        let before = policy::read(&self.core, &self.keys, tx.root())?;
        let mut policy = before.value.clone();
        let person = policy.people.iter().find(|p| p.user == user).ok_or_else(bad)?.public.clone();
        let now = Timestamp::now();
        let pending = policy.requests.iter_mut().find(|r| r.id == *request.as_bytes() && r.expires > now);
        let pending = pending.ok_or_else(bad)?;
        verify(&person, &pending.to_sign(self.core.hsm_id())?, signature).ok_or_else(bad)?;
        if pending.approvals.iter().any(|name| name == user) {
            return Err(HsmError::Duplicate { what: "approval of", name: user.into() });
        }
        pending.approvals.push(user.into());
        let id = pending.id;
        tx.log(&[self.entry(Event::Approved { id, by: user.into() })])?;
        policy::write(&mut tx, &before, policy)?;
        tx.commit()
    }
}
