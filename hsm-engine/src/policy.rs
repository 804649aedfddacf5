//! What an HSM demands of its people: approvals of several for what one alone must not do, second factors, and how much of
//! the use of keys is logged.
//!
//! # Quorum
//! A service that needs M approvals is done in three steps. Somebody [asks](crate::Session::ask_approval) and gets a [`Request`], bytes
//! that say who wants what until when. M people sign those bytes with keys of their own, wherever they are, and anybody
//! [hands in](crate::Session::approve) the signatures, which are checked under the public keys that these people registered. Whoever asked
//! [presents](crate::Session::present) the request and does it: once. The request is struck out in the same transaction, so that nothing is
//! left to be presented again.
//!
//! # What it is worth
//! As all separation of duties in this HSM it is the engine's doing: whoever has a PIN and the files has the store key.

use std::fmt;
use std::time::Duration;

use bincode::{Decode, Encode};
use uuid::Uuid;

use crate::audit::Event;
use crate::error::{HsmError, Result};
use crate::format::{self, payloads, records};
use crate::keys::StoreKeys;
use crate::object::{self, Kind, Object};
use crate::session::Session;
use crate::store::ObjectName;
use crate::time::Timestamp;
use crate::transaction::{Core, LOCK_WAIT, Transaction};
use crate::user::Role;

/// How long a request may be approved and used.
pub const REQUEST_LIFE: Duration = Duration::from_secs(20 * 60);
/// Fewest approvals a service can ask for.
pub const MIN_QUORUM: u8 = 2;
/// Most approvals a service can ask for.
pub const MAX_QUORUM: u8 = 8;
/// Most requests that wait at one time.
pub const MAX_REQUESTS: usize = 256;
const REQUEST_LABEL: &[u8] = b"tde/hsm/approve/v1";

/// What may need approvals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[non_exhaustive]
pub enum Service {
    /// Making, removing and unlocking users, resetting their PINs.
    Users,
    /// Changing the policy itself.
    Policy,
    /// Using a key; asked for by the key.
    KeyUse,
    /// Wrapping, sharing, changing or destroying a key; asked for by the key.
    KeyManage,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Users => "managing users",
            Self::Policy => "changing the policy",
            Self::KeyUse => "using the key",
            Self::KeyManage => "managing the key",
        })
    }
}

/// How much of the use of keys goes into the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
#[non_exhaustive]
pub enum DataPlane {
    /// Counts, when a session ends or asks for it.
    #[default]
    Counts,
    /// Every use, before it is done: no record, no use. Costs a synced write each.
    Every,
}

/// Object `policy`, sealed. Not there as long as everything is as in [`Policy::default`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub(crate) struct Policy {
    pub(crate) approved_only: bool,
    pub(crate) legacy: bool,
    pub(crate) data_plane: DataPlane,
    /// Approvals that services need.
    pub(crate) quorum: Vec<(Service, u8)>,
    pub(crate) people: Vec<Person>,
    pub(crate) requests: Vec<Pending>,
}

/// The key with which a user approves.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Person {
    pub(crate) user: String,
    /// SubjectPublicKeyInfo of an RSA or Ed25519 key.
    pub(crate) public: Vec<u8>,
    /// Whether a login needs a signature under it too.
    pub(crate) second_factor: bool,
}

/// A request that waits for approvals or for its use.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Pending {
    pub(crate) id: [u8; 16],
    pub(crate) service: Service,
    pub(crate) user: String,
    /// The key, or zeros.
    pub(crate) key: [u8; 16],
    pub(crate) expires: Timestamp,
    /// Who approved.
    pub(crate) approvals: Vec<String>,
}

payloads!(Policy);

pub(crate) fn policy_name() -> ObjectName {
    ObjectName::fixed("policy")
}

/// The policy that the root names, with its revision.
pub(crate) fn read(core: &Core, keys: &StoreKeys, root: &records::Root) -> Result<Object<Policy>> {
    let expected = root.extension.map_or(0, |e| e.policy);
    if expected == 0 {
        return Ok(Object { revision: 0, value: Policy::default() });
    }
    let name = policy_name();
    let found = keys.sealer.get::<Policy>(core.store(), Kind::Policy, &name)?;
    let found = found.ok_or_else(|| object::missing(core.store(), &name))?;
    core.check_revision(&name, found.revision, expected)?;
    Ok(found)
}

/// Writes the policy within a transaction, before its root.
pub(crate) fn write(tx: &mut Transaction<'_>, before: &Object<Policy>, policy: Policy) -> Result<()> {
    let next = before.next(policy);
    tx.put(Kind::Policy, &policy_name(), &next)?;
    tx.root_mut().extended().policy = next.revision;
    Ok(())
}

/// A request for approvals: what is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// Its id.
    pub id: Uuid,
    /// What for.
    pub service: Service,
    /// Who asks.
    pub user: String,
    /// Which key, if one.
    pub key: Option<Uuid>,
    /// Until when it can be approved and used.
    pub expires: Timestamp,
    /// Approvals that are needed.
    pub needed: u8,
    /// Who approved.
    pub approvals: Vec<String>,
    /// The bytes to sign.
    pub to_sign: Vec<u8>,
}

/// Public facts of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PolicyInfo {
    /// Only what NIST approves.
    pub approved_only: bool,
    /// Also SHA-1.
    pub legacy: bool,
    /// How much of the use of keys is logged.
    pub data_plane: DataPlane,
    /// Services that need approvals, and how many.
    pub quorum: Vec<(Service, u8)>,
    /// Users with a key for approvals, and whether it is their second factor.
    pub people: Vec<(String, bool)>,
}

impl Policy {
    pub(crate) fn needed(&self, service: Service) -> u8 {
        self.quorum.iter().find(|(s, _)| *s == service).map_or(0, |(_, m)| *m)
    }

    fn forget_expired(&mut self, now: Timestamp) {
        self.requests.retain(|r| r.expires > now);
    }
}

impl Pending {
    pub(crate) fn to_sign(&self, hsm: &[u8; 16]) -> Result<Vec<u8>> {
        let unsigned = Self { approvals: Vec::new(), ..self.clone() };
        let fields = format::encode(&unsigned)
            .map_err(|_| HsmError::Full { what: "bytes in a request", limit: 4096 })?;
        Ok([REQUEST_LABEL, hsm, &fields].concat())
    }

    fn request(&self, hsm: &[u8; 16], needed: u8) -> Result<Request> {
        Ok(Request {
            id: Uuid::from_bytes(self.id),
            service: self.service,
            user: self.user.clone(),
            key: (self.key != [0; 16]).then(|| Uuid::from_bytes(self.key)),
            expires: self.expires,
            needed,
            approvals: self.approvals.clone(),
            to_sign: self.to_sign(hsm)?,
        })
    }
}

impl Session {
    /// What the HSM demands of its people.
    ///
    /// # Errors
    /// A damaged store.
    pub fn policy(&self) -> Result<PolicyInfo> {
        let policy = self.read_policy()?;
        Ok(PolicyInfo {
            approved_only: policy.approved_only,
            legacy: policy.legacy,
            data_plane: policy.data_plane,
            people: policy.people.iter().map(|p| (p.user.clone(), p.second_factor)).collect(),
            quorum: policy.quorum,
        })
    }

    pub(crate) fn read_policy(&self) -> Result<Policy> {
        self.same_process()?;
        Ok(read(&self.core, &self.keys, &self.core.root(&self.keys)?.value)?.value)
    }

    /// As a crypto officer, sets how many approvals a service needs: none (0), or [`MIN_QUORUM`] to [`MAX_QUORUM`]. Keys have numbers of
    /// their own.
    ///
    /// # Errors
    /// Not an officer; another number; fewer users with a key for approvals than would be needed, which would lock everybody out.
    pub fn set_quorum(&self, service: Service, needed: u8) -> Result<()> {
        let bad =
            |rule| HsmError::InvalidName { what: "number of approvals", name: needed.to_string(), rule };
        if needed != 0 && !(MIN_QUORUM..=MAX_QUORUM).contains(&needed) {
            return Err(bad("none, or 2 to 8"));
        }
        if matches!(service, Service::KeyUse | Service::KeyManage) {
            return Err(bad("keys have numbers of their own"));
        }
        self.change_policy(&format!("{service}: {needed} approvals"), |policy| {
            if policy.people.len() < usize::from(needed) {
                return Err(bad("not more than there are users with a registered key"));
            }
            policy.quorum.retain(|(s, _)| *s != service);
            if needed > 0 {
                policy.quorum.push((service, needed));
            }
            Ok(())
        })
    }

    /// As a crypto officer, sets how much of the use of keys is logged.
    ///
    /// # Errors
    /// Not an officer.
    pub fn set_data_plane(&self, level: DataPlane) -> Result<()> {
        self.change_policy(&format!("audit of key use: {level:?}"), |policy| {
            policy.data_plane = level;
            Ok(())
        })
    }

    /// As a crypto officer, sets which algorithms there are. Only an HSM without objects can be restricted to what is approved, and
    /// none can be freed from it again.
    ///
    /// # Errors
    /// Not an officer; too late for the restriction.
    pub fn set_algorithms(&self, approved_only: bool, legacy: bool) -> Result<()> {
        let late = HsmError::NotAllowed {
            user: self.user().into(),
            role: self.role(),
            action: "change the mode of an HSM that has objects",
        };
        let objects = self.core.root(&self.keys)?.value.extension.is_some_and(|e| e.objects > 0);
        self.change_policy(&format!("approved only: {approved_only}, legacy: {legacy}"), |policy| {
            if policy.approved_only != approved_only && (objects || policy.approved_only) {
                return Err(late);
            }
            (policy.approved_only, policy.legacy) = (approved_only, legacy);
            Ok(())
        })
    }

    fn change_policy(&self, what: &str, change: impl FnOnce(&mut Policy) -> Result<()>) -> Result<()> {
        self.require(Role::CryptoOfficer, "change the policy")?;
        let mut tx = self.begin(LOCK_WAIT)?;
        let before = read(&self.core, &self.keys, tx.root())?;
        let mut policy = before.value.clone();
        change(&mut policy)?;
        self.strike_out(
            &mut tx,
            &mut policy,
            Service::Policy,
            before.value.needed(Service::Policy),
            [0; 16],
        )?;
        tx.log(&[self.entry(Event::PolicyChanged { what: what.into() })])?;
        write(&mut tx, &before, policy)?;
        tx.commit()
    }

    /// Asks for approvals of something that this user is to do. `key` names the key for the services of keys.
    ///
    /// # Errors
    /// Too many requests wait already.
    pub fn ask_approval(&self, service: Service, key: Option<Uuid>, needed: u8) -> Result<Request> {
        self.same_process()?;
        let mut tx = self.begin(LOCK_WAIT)?;
        let before = read(&self.core, &self.keys, tx.root())?;
        let mut policy = before.value.clone();
        let now = Timestamp::now();
        policy.forget_expired(now);
        if policy.requests.len() >= MAX_REQUESTS {
            return Err(HsmError::Full { what: "requests for approval", limit: MAX_REQUESTS });
        }
        let mut id = [0; 16];
        secret_mem::random(&mut id)?;
        let pending = Pending {
            id: uuid::Builder::from_random_bytes(id).into_uuid().into_bytes(),
            service,
            user: self.user().into(),
            key: key.map_or([0; 16], Uuid::into_bytes),
            expires: now.plus(REQUEST_LIFE),
            approvals: Vec::new(),
        };
        let request = pending.request(self.core.hsm_id(), needed.max(policy.needed(service)))?;
        tx.log(&[self.entry(Event::ApprovalAsked { id: pending.id, what: service.to_string() })])?;
        policy.requests.push(pending);
        write(&mut tx, &before, policy)?;
        tx.commit()?;
        Ok(request)
    }

    /// Requests that wait.
    ///
    /// # Errors
    /// A damaged store.
    pub fn approval_requests(&self) -> Result<Vec<Request>> {
        let policy = self.read_policy()?;
        let now = Timestamp::now();
        let waiting = policy.requests.iter().filter(|r| r.expires > now);
        waiting.map(|r| r.request(self.core.hsm_id(), policy.needed(r.service))).collect()
    }

    /// Presents a request: the next thing this session does that needs approvals uses it up.
    pub fn present(&self, request: Uuid) {
        *self.presented() = Some(request.into_bytes());
    }

    /// Within a transaction, uses up the presented request if `needed` approvals are asked for. `policy` loses it and must be written.
    pub(crate) fn strike_out(
        &self,
        tx: &mut Transaction<'_>,
        policy: &mut Policy,
        service: Service,
        needed: u8,
        key: [u8; 16],
    ) -> Result<()> {
        if needed == 0 {
            return Ok(());
        }
        let now = Timestamp::now();
        let missing = |why| HsmError::ApprovalsMissing { service, needed, why };
        let presented = self.presented().take().ok_or_else(|| missing("none were presented"))?;
        let at = policy.requests.iter().position(|r| r.id == presented);
        let at = at.ok_or_else(|| missing("the request is not known, or was used already"))?;
        let request = &policy.requests[at];
        if request.expires <= now {
            return Err(missing("the request has expired"));
        }
        if request.service != service || request.user != self.user() || request.key != key {
            return Err(missing("the request is for something else"));
        }
        let known = |name: &String| policy.people.iter().any(|p| p.user == *name);
        if request.approvals.iter().filter(|name| known(name)).count() < usize::from(needed) {
            return Err(missing("too few have approved"));
        }
        policy.requests.remove(at);
        tx.log(&[self.entry(Event::ApprovalUsed { id: presented, what: service.to_string() })])
    }

    /// The same for a service that has no change of the policy of its own: reads and writes it as needed.
    pub(crate) fn authorize(
        &self,
        tx: &mut Transaction<'_>,
        service: Service,
        own: u8,
        key: [u8; 16],
    ) -> Result<()> {
        let before = read(&self.core, &self.keys, tx.root())?;
        let needed = own.max(before.value.needed(service));
        if needed == 0 {
            return Ok(());
        }
        let mut policy = before.value.clone();
        self.strike_out(tx, &mut policy, service, needed, key)?;
        write(tx, &before, policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Payload;

    #[test]
    fn a_policy_has_these_bytes() {
        let policy = Policy {
            approved_only: true,
            legacy: false,
            data_plane: DataPlane::Every,
            quorum: vec![(Service::Users, 2)],
            people: vec![Person { user: "a".into(), public: vec![9], second_factor: true }],
            requests: vec![Pending {
                id: [1; 16],
                service: Service::KeyUse,
                user: "b".into(),
                key: [2; 16],
                expires: Timestamp::from_micros(7),
                approvals: vec!["a".into()],
            }],
        };
        let bytes = policy.to_payload().unwrap();
        let want = format!(
            "01 00 01000000 0100000000000000 00000000 02
             0100000000000000 0100000000000000 61 0100000000000000 09 01
             0100000000000000 {} 02000000 0100000000000000 62 {} 0700000000000000 0100000000000000 0100000000000000 61",
            "01".repeat(16),
            "02".repeat(16)
        );
        assert_eq!(hex::encode(&bytes), want.replace([' ', '\n'], ""));
        assert_eq!(Policy::from_payload(1, &bytes).unwrap().unwrap(), policy);
        let request = &policy.requests[0];
        assert_eq!(
            request.to_sign(&[3; 16]).unwrap(),
            Pending { approvals: Vec::new(), ..request.clone() }.to_sign(&[3; 16]).unwrap()
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_policy_or_an_error(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = Policy::from_payload(1, &bytes);
        }
    }
}
