//! One session: the life time of its objects, its search, its operations.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki_sys as ck;
use hsm_engine::objects::{Cipher, Digester, ObjectId, Scope, Signer, Token, Verifier};
use zeroize::Zeroizing;

use crate::rv::{Result, Rv};
use crate::slot::Slot;

/// A session of a program.
pub(crate) struct Session {
    pub(crate) slot: Arc<Slot>,
    pub(crate) slot_id: ck::CK_SLOT_ID,
    pub(crate) writes: bool,
    work: Mutex<Work>,
}

/// What is under way.
#[derive(Default)]
pub(crate) struct Work {
    pub(crate) scope: Option<Scope>,
    /// Objects that end with the session.
    pub(crate) objects: HashSet<ObjectId>,
    /// What a search found and did not give out yet, last first.
    pub(crate) found: Option<Vec<ck::CK_OBJECT_HANDLE>>,
    pub(crate) encrypt: Option<Crypt>,
    pub(crate) decrypt: Option<Crypt>,
    pub(crate) digest: Option<Digest>,
    pub(crate) sign: Option<Sign>,
    pub(crate) verify: Option<Verify>,
}

/// An operation that gives bytes out.
pub(crate) struct Crypt {
    pub(crate) state: Pending,
    pub(crate) parts: bool,
}

/// If the caller's buffer is too small, the result waits for the next call.
pub(crate) enum Pending {
    Cipher(Cipher),
    Result(Zeroizing<Vec<u8>>),
}

pub(crate) struct Digest {
    pub(crate) digester: Digester,
    pub(crate) len: usize,
    pub(crate) parts: bool,
}

pub(crate) struct Sign {
    pub(crate) signer: Signer,
    pub(crate) parts: bool,
}

pub(crate) struct Verify {
    pub(crate) verifier: Verifier,
    pub(crate) parts: bool,
}

impl Session {
    pub(crate) fn new(slot: Arc<Slot>, slot_id: ck::CK_SLOT_ID, writes: bool) -> Self {
        Self { slot, slot_id, writes, work: Mutex::default() }
    }

    /// One call at a time uses a session; another waits.
    pub(crate) fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every operation and the session's objects.
    pub(crate) fn reset(&self) {
        let ended = std::mem::take(&mut *self.work());
        self.slot.forget_objects(&ended.objects);
    }

    pub(crate) fn state(&self) -> ck::CK_STATE {
        match (self.slot.user(), self.writes) {
            (None, false) => ck::CKS_RO_PUBLIC_SESSION,
            (None, true) => ck::CKS_RW_PUBLIC_SESSION,
            (Some(ck::CKU_SO), _) => ck::CKS_RW_SO_FUNCTIONS,
            (Some(_), false) => ck::CKS_RO_USER_FUNCTIONS,
            (Some(_), true) => ck::CKS_RW_USER_FUNCTIONS,
        }
    }
}

impl Work {
    /// The life time of this session's objects.
    pub(crate) fn scope(&mut self, token: &Token) -> &Scope {
        self.scope.get_or_insert_with(|| token.new_scope())
    }
}

/// How a call leaves an operation, unless by an error, which ends it.
pub(crate) enum Left<T> {
    Done,
    /// Still under way, with the call's result.
    Open(T, Result<()>),
}

/// Goes on with an operation.
pub(crate) fn goes_on<T>(operation: &mut Option<T>, step: impl FnOnce(T) -> Result<Left<T>>) -> Result<()> {
    match step(operation.take().ok_or(Rv(ck::CKR_OPERATION_NOT_INITIALIZED))?)? {
        Left::Done => Ok(()),
        Left::Open(left, result) => {
            *operation = Some(left);
            result
        }
    }
}

/// Begins an operation, unless another one of its kind is under way. Without a mechanism the one under way is given up (PKCS#11 3.0).
pub(crate) fn begins<T>(
    operation: &mut Option<T>,
    given_up: bool,
    begin: impl FnOnce() -> Result<T>,
) -> Result<()> {
    match operation {
        Some(_) if given_up => *operation = None,
        None if given_up => return Err(Rv(ck::CKR_ARGUMENTS_BAD)),
        Some(_) => return Err(Rv(ck::CKR_OPERATION_ACTIVE)),
        None => *operation = Some(begin()?),
    }
    Ok(())
}
