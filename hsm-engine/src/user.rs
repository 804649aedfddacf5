//! Users: roles, rights, how a PIN opens the store key, and what wrong PINs cost.
//!
//! # Roles
//! A crypto officer manages users and may not use keys; a crypto user uses keys and may not manage. The separation is
//! the engine's: both PINs open the same store key, because an officer must be able to give a user a new PIN.
//!
//! # Lock-out
//! Each user has a counter of its own, so a service that restarts in a loop with a wrong PIN locks nobody but its own
//! user. The counter is written *before* the PIN is looked at; killing the process does not save an attempt.
//! A login that was killed before it knew the PIN counts too, but as what it was ([`Failures`]).
//! The first two failures cost nothing; after the third the next try must wait 5 seconds, and twice as long
//! after each further one, up to 15 minutes. A try during the wait is refused without looking at the PIN, without
//! counting and without an entry in the audit log. After 30 failures in a row (about five hours in a loop) a crypto
//! user stays locked until an officer unlocks; an officer never does, as nobody could unlock one.
//!
//! Whoever can write the store's files can reset a counter, but can also copy the store and guess elsewhere: against that
//! only a long PIN helps.

use std::fmt;
use std::time::Duration;

use aes_gcm_siv::aead::AeadInOut as _;
use aes_gcm_siv::{Aes256GcmSiv, KeyInit as _, Nonce, Tag};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use bincode::{Decode, Encode};
use hkdf::Hkdf;
use secret_mem::{LockedBox, SecretBytes, wiping_stack};
use sha2::Sha256;
use zeroize::Zeroize as _;

use crate::error::{Damage, HsmError, Result};
use crate::format::{self, records};
use crate::pin::Pin;
use crate::store::ObjectName;
use crate::time::Timestamp;

const PIN_INFO: &[u8] = b"tde/hsm/pin/v1";
const SEAL_LABEL: &[u8] = b"tde/hsm/user/v1";

/// Failures that cost nothing.
pub const FREE_FAILURES: u32 = 2;
const FIRST_DELAY: Duration = Duration::from_secs(5);
const LONGEST_DELAY: Duration = Duration::from_secs(15 * 60);
/// Failures in a row after which only an officer unlocks a crypto user.
pub const HARD_LOCK_FAILURES: u32 = 30;

/// What a user is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum Role {
    /// Manages users; uses no keys.
    CryptoOfficer,
    /// Uses keys; manages no users.
    CryptoUser,
    /// Reads the audit log; neither uses keys nor manages users.
    Auditor,
    /// Copies sealed backups; sees no key and no log.
    ApplianceUser,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CryptoOfficer => "crypto officer",
            Self::CryptoUser => "crypto user",
            Self::Auditor => "auditor",
            Self::ApplianceUser => "appliance user",
        })
    }
}

/// What a crypto user may do beyond using keys inside the HSM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Encode, Decode)]
pub struct Rights {
    /// May be given data keys in clear, if the master key allows it too.
    pub plaintext_data_keys: bool,
}

/// Cost of Argon2id for PINs that people make up. The parameters are stored with the user and bounded when read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinCost {
    memory_kib: u32,
    passes: u32,
}

impl PinCost {
    /// The second choice of RFC 9106 section 4 (64 MiB, 3 passes), on one lane.
    pub const DEFAULT: Self = Self { memory_kib: 64 << 10, passes: 3 };
    /// The least that is accepted (19 MiB, 2 passes), as OWASP advises.
    pub const LEAST: Self = Self { memory_kib: 19 << 10, passes: 2 };
    /// The most that is accepted (1 GiB, 64 passes), so that a forged record cannot stall a server.
    pub const MOST: Self = Self { memory_kib: 1 << 20, passes: 64 };

    /// A cost between [`LEAST`](Self::LEAST) and [`MOST`](Self::MOST), or `None`.
    pub fn new(memory_kib: u32, passes: u32) -> Option<Self> {
        let within = |v, least, most| (least..=most).contains(&v);
        (within(memory_kib, Self::LEAST.memory_kib, Self::MOST.memory_kib)
            && within(passes, Self::LEAST.passes, Self::MOST.passes))
        .then_some(Self { memory_kib, passes })
    }
}

impl Default for PinCost {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How a user's PIN becomes the key that opens the store key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum PinKdf {
    /// Argon2id version 0x13 (RFC 9106), 32 bytes out.
    Argon2id {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes.
        passes: u32,
        /// Lanes, computed one after the other.
        lanes: u32,
    },
    /// HKDF-SHA-256 (RFC 5869), for generated PINs only.
    Hkdf,
}

impl PinKdf {
    pub(crate) fn for_pin(pin: &Pin, cost: PinCost) -> Self {
        if pin.is_generated() {
            Self::Hkdf
        } else {
            Self::Argon2id { memory_kib: cost.memory_kib, passes: cost.passes, lanes: 1 }
        }
    }

    /// The cost to keep when the user gets another PIN.
    pub(crate) fn cost(self) -> PinCost {
        match self {
            Self::Argon2id { memory_kib, passes, .. } => PinCost::new(memory_kib, passes).unwrap_or_default(),
            Self::Hkdf => PinCost::DEFAULT,
        }
    }

    /// The key for `pin`. `Ok(None)` means that no PIN of this kind can be right.
    fn derive(self, pin: &Pin, salt: &[u8; 16]) -> Result<Option<SecretBytes<32>>, Damage> {
        match self {
            Self::Hkdf if !pin.is_generated() => Ok(None),
            Self::Hkdf => hkdf(pin.as_slice(), salt, PIN_INFO).map(Some),
            Self::Argon2id { memory_kib, passes, lanes } => {
                const BOUNDS: Damage = Damage::Field("PIN derivation cost");
                PinCost::new(memory_kib, passes).filter(|_| lanes == 1).ok_or(BOUNDS)?;
                let params = Params::new(memory_kib, passes, lanes, Some(32)).map_err(|_| BOUNDS)?;
                let mut memory = vec![Block::default(); params.block_count()];
                let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
                let key = SecretBytes::fill_with(|out| {
                    wiping_stack(|| {
                        argon2.hash_password_into_with_memory(pin.as_slice(), salt, out, &mut memory)
                    })
                });
                memory.iter_mut().for_each(|block| block.zeroize());
                key.map(Some).map_err(|_| BOUNDS)
            }
        }
    }
}

impl fmt::Display for PinKdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argon2id { memory_kib, passes, .. } => {
                write!(f, "Argon2id, {} MiB, {passes} passes", memory_kib >> 10)
            }
            Self::Hkdf => f.write_str("generated PIN, HKDF"),
        }
    }
}

/// HKDF-SHA-256 of `ikm` with `salt` for one purpose.
pub(crate) fn hkdf(ikm: &[u8], salt: &[u8], info: &[u8]) -> Result<SecretBytes<32>, Damage> {
    let hkdf = LockedBox::new_with(|| Hkdf::<Sha256>::new(Some(salt), ikm));
    // 32 bytes are far below the limit of 255 hash lengths.
    SecretBytes::fill_with(|out| wiping_stack(|| hkdf.expand(info, out)))
        .map_err(|_| Damage::Field("key length"))
}

/// Checks a user's name: 1 to 32 of `a-z 0-9 _ -`, beginning with a letter.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
    if name.len() <= 32 && name.bytes().all(ok) && name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Ok(());
    }
    Err(HsmError::InvalidName {
        what: "user name",
        name: name.into(),
        rule: "1 to 32 of a-z 0-9 _ -, beginning with a letter",
    })
}

/// Object of a user's record.
pub(crate) fn record_name(user: &str) -> Result<ObjectName> {
    Ok(ObjectName::new(format!("user.{user}"))?)
}

/// Object of a user's failure counter.
pub(crate) fn lockout_name(user: &str) -> Result<ObjectName> {
    Ok(ObjectName::new(format!("lockout.{user}"))?)
}

/// Seals the store key under a user's PIN.
pub(crate) fn seal_store_key(
    public: records::UserPublic,
    pin: &Pin,
    store_key: &SecretBytes<32>,
    hsm_id: &[u8; 16],
    revision: u64,
) -> Result<records::User, SealFailure> {
    let aad = user_aad(&public, hsm_id, revision)?;
    let Some(key) = public.kdf.derive(pin, &public.salt)? else {
        return Err(Damage::Field("PIN derivation").into());
    };
    let cipher = LockedBox::new_with(|| Aes256GcmSiv::new(key.expose().into()));
    let mut nonce = [0; 12];
    secret_mem::random(&mut nonce)?;
    let mut text = SecretBytes::<32>::zeroed();
    text.expose_mut().copy_from_slice(store_key.expose());
    let tag = cipher
        .encrypt_inout_detached(&Nonce::from(nonce), &aad, text.expose_mut().as_mut_slice().into())
        .map_err(|_| Damage::Seal)?;
    let mut sealed_store_key = [0; 48];
    sealed_store_key[..32].copy_from_slice(text.expose());
    sealed_store_key[32..].copy_from_slice(&tag);
    Ok(records::User { public, nonce, sealed_store_key })
}

/// Opens the store key with a PIN; `Ok(None)` if the PIN is wrong.
pub(crate) fn open_store_key(
    user: &records::User,
    pin: &Pin,
    hsm_id: &[u8; 16],
    revision: u64,
) -> Result<Option<SecretBytes<32>>, Damage> {
    let aad = user_aad(&user.public, hsm_id, revision)?;
    let Some(key) = user.public.kdf.derive(pin, &user.public.salt)? else { return Ok(None) };
    let cipher = LockedBox::new_with(|| Aes256GcmSiv::new(key.expose().into()));
    let (text, tag) = user.sealed_store_key.split_at(32);
    let tag = Tag::try_from(tag).map_err(|_| Damage::Seal)?;
    let opened = SecretBytes::<32>::fill_with(|out| {
        out.copy_from_slice(text);
        cipher.decrypt_inout_detached(&Nonce::from(user.nonce), &aad, out.as_mut_slice().into(), &tag)
    });
    Ok(opened.ok())
}

fn user_aad(public: &records::UserPublic, hsm_id: &[u8; 16], revision: u64) -> Result<Vec<u8>, Damage> {
    Ok([SEAL_LABEL, hsm_id, &revision.to_le_bytes(), &format::encode(public)?].concat())
}

/// Why a store key could not be sealed.
#[derive(Debug)]
pub(crate) enum SealFailure {
    Damage(Damage),
    Random(secret_mem::RandomError),
}

impl From<Damage> for SealFailure {
    fn from(d: Damage) -> Self {
        Self::Damage(d)
    }
}

impl From<secret_mem::RandomError> for SealFailure {
    fn from(e: secret_mem::RandomError) -> Self {
        Self::Random(e)
    }
}

/// Whether a user may try a PIN now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LockState {
    /// Yes.
    Open,
    /// Not before this time.
    Until(Timestamp),
    /// Not before an officer unlocks.
    Hard,
}

/// Logins that failed in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failures {
    /// All of them.
    pub failures: u32,
    /// Those that did not come to an end, because the process was killed: their PINs may have been right.
    pub unfinished: u32,
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = self.failures.saturating_sub(self.unfinished);
        let plural = |n| if n == 1 { "" } else { "s" };
        match (wrong, self.unfinished) {
            (n, 0) => write!(f, "{n} wrong PIN{}", plural(n)),
            (0, n) => write!(f, "{n} login{} that did not finish", plural(n)),
            (n, m) => write!(f, "{n} wrong PIN{} and {m} login{} that did not finish", plural(n), plural(m)),
        }
    }
}

impl records::Lockout {
    pub(crate) fn cleared() -> Self {
        let epoch = Timestamp::from_micros(0);
        Self { failures: 0, unfinished: 0, last: epoch, not_before: epoch }
    }

    pub(crate) fn state(&self, role: Role, now: Timestamp) -> LockState {
        if role != Role::CryptoOfficer && self.failures >= HARD_LOCK_FAILURES {
            return LockState::Hard;
        }
        // A clock that was set back must not make the wait longer than it can ever be; see `rebased`.
        let until = self.not_before.min(now.plus(delay_after(self.failures)));
        if now < until { LockState::Until(until) } else { LockState::Open }
    }

    /// After the clock was set back, the counter whose wait begins now; otherwise the wait would begin anew with every look.
    pub(crate) fn rebased(&self, now: Timestamp) -> Option<Self> {
        let not_before = now.plus(delay_after(self.failures));
        (self.not_before > not_before).then_some(Self { last: now, not_before, ..*self })
    }

    /// The counter as it is written before a PIN is verified: as if it were wrong, or never got that far.
    #[must_use]
    pub(crate) fn attempt(&self, now: Timestamp) -> Self {
        let failures = self.failures.saturating_add(1);
        let unfinished = self.failed().unfinished.saturating_add(1);
        Self { failures, unfinished, last: now, not_before: now.plus(delay_after(failures)) }
    }

    /// The counter after the PIN of its last attempt was found to be wrong.
    #[must_use]
    pub(crate) fn verified(&self) -> Self {
        Self { unfinished: self.unfinished.saturating_sub(1), ..*self }
    }

    /// What failed. Whoever edits the record may claim more unfinished logins than failures.
    pub(crate) fn failed(&self) -> Failures {
        Failures { failures: self.failures, unfinished: self.unfinished.min(self.failures) }
    }
}

fn delay_after(failures: u32) -> Duration {
    match failures.checked_sub(FREE_FAILURES + 1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_DELAY.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_DELAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_from_five_seconds_to_fifteen_minutes() {
        let secs: Vec<_> = (0..=12).map(|n| delay_after(n).as_secs()).collect();
        assert_eq!(secs, [0, 0, 0, 5, 10, 20, 40, 80, 160, 320, 640, 900, 900]);
        assert_eq!(delay_after(u32::MAX).as_secs(), 900);
    }

    #[test]
    fn thirty_failures_lock_a_user_but_not_an_officer() {
        let now = Timestamp::from_micros(1_000_000_000_000);
        let mut lockout = records::Lockout::cleared();
        for _ in 0..HARD_LOCK_FAILURES - 1 {
            lockout = lockout.attempt(now);
        }
        assert!(matches!(lockout.state(Role::CryptoUser, now), LockState::Until(_)));
        lockout = lockout.attempt(now);
        assert_eq!(lockout.state(Role::CryptoUser, now), LockState::Hard);
        assert_eq!(lockout.state(Role::CryptoOfficer, now), LockState::Until(now.plus(LONGEST_DELAY)));
    }

    #[test]
    fn a_killed_login_is_not_called_a_wrong_pin() {
        let now = Timestamp::from_micros(0);
        let lockout = records::Lockout::cleared().attempt(now).verified().attempt(now).attempt(now);
        assert_eq!(lockout.failed(), Failures { failures: 3, unfinished: 2 });
        let say = |failures, unfinished| Failures { failures, unfinished }.to_string();
        assert_eq!(say(3, 2), "1 wrong PIN and 2 logins that did not finish");
        assert_eq!((say(1, 1), say(2, 0)), ("1 login that did not finish".into(), "2 wrong PINs".into()));
        let edited = records::Lockout { unfinished: u32::MAX, ..lockout };
        assert_eq!(edited.attempt(now).failed(), Failures { failures: 4, unfinished: 4 });
    }

    #[test]
    fn a_clock_set_back_waits_no_longer_than_the_delay() {
        let then = Timestamp::from_micros(2_000_000_000_000_000);
        let lockout = (0..3).fold(records::Lockout::cleared(), |l, _| l.attempt(then));
        let now = Timestamp::from_micros(1_000_000_000_000_000);
        let until = now.plus(Duration::from_secs(5));
        assert_eq!(lockout.state(Role::CryptoUser, now), LockState::Until(until));
        let rebased = lockout.rebased(now).unwrap();
        assert_eq!(rebased.failures, 3);
        assert_eq!(rebased.state(Role::CryptoUser, until), LockState::Open);
        assert_eq!(rebased.rebased(now), None);
        assert_eq!(lockout.rebased(then), None);
    }

    #[test]
    fn user_names_are_safe_in_file_names() {
        for good in ["user", "pg-main", "a", "svc_2"] {
            check_name(good).unwrap();
        }
        for bad in ["", "A", "1x", "a.b", "a/b", "../x", "ä", "a b", &"a".repeat(33)] {
            assert!(matches!(check_name(bad), Err(HsmError::InvalidName { .. })), "{bad:?}");
        }
    }

    #[test]
    fn a_cost_outside_the_bounds_is_not_computed() {
        let pin = Pin::from_reader(&b"some pin"[..]).unwrap();
        let too_much = PinKdf::Argon2id { memory_kib: u32::MAX, passes: 3, lanes: 1 };
        assert_eq!(too_much.derive(&pin, &[0; 16]).err(), Some(Damage::Field("PIN derivation cost")));
        let too_little = PinKdf::Argon2id { memory_kib: 8, passes: 1, lanes: 1 };
        assert_eq!(too_little.derive(&pin, &[0; 16]).err(), Some(Damage::Field("PIN derivation cost")));
    }
}
