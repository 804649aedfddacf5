//! One HSM: who is logged in, and handles of its objects.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cryptoki_sys as ck;
use hsm_engine::objects::{ObjectId, Token};
use hsm_engine::{DEFAULT_OFFICER, Hsm, LockState, Pin, Role, SoftUri};
use secret_mem::SecretBuf;

use crate::rv::{Result, Rv};

/// An HSM and what the process has open of it.
pub(crate) struct Slot {
    pub(crate) uri: SoftUri,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    login: Option<Login>,
    handles: Handles,
}

#[derive(Clone)]
struct Login {
    token: Token,
    user: ck::CK_USER_TYPE,
}

/// Handles stay the same while somebody is logged in.
#[derive(Default)]
struct Handles {
    by_handle: HashMap<ck::CK_OBJECT_HANDLE, ObjectId>,
    by_id: HashMap<ObjectId, ck::CK_OBJECT_HANDLE>,
    last: ck::CK_OBJECT_HANDLE,
}

impl Slot {
    pub(crate) fn new(uri: SoftUri) -> Self {
        Self { uri, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The HSM, if its store is there.
    pub(crate) fn present(&self) -> Result<Hsm> {
        Hsm::open_uri(&self.uri).map_err(|_| Rv(ck::CKR_TOKEN_NOT_PRESENT))
    }

    /// Whose PIN was typed: `NAME:PIN` with the name of a user of the HSM, as with CloudHSM, or the PIN of `default`.
    pub(crate) fn typed(&self, hsm: &Hsm, typed: &[u8], default: &str) -> Result<(String, Pin)> {
        let named = typed.iter().position(|byte| *byte == b':').and_then(|at| {
            let name = std::str::from_utf8(&typed[..at]).ok()?;
            hsm.user_status(name).is_ok().then(|| (name, &typed[at + 1..]))
        });
        let (name, pin) = named.unwrap_or((default, typed));
        let copied = SecretBuf::from_fn(pin.len(), |out| {
            out.copy_from_slice(pin);
            Ok::<_, Rv>(pin.len())
        })?;
        Ok((name.to_owned(), Pin::from_secret(copied).map_err(|_| Rv(ck::CKR_PIN_INCORRECT))?))
    }

    /// A PIN that somebody chose: not one that would be taken for another user's.
    pub(crate) fn chosen(&self, hsm: &Hsm, typed: &[u8]) -> Result<Pin> {
        let (name, pin) = self.typed(hsm, typed, "")?;
        if name.is_empty() { Ok(pin) } else { Err(Rv(ck::CKR_PIN_INVALID)) }
    }

    /// The user of whom `C_Login` does not say more than the type.
    pub(crate) fn default_user(&self, user: ck::CK_USER_TYPE) -> &str {
        if user == ck::CKU_SO { DEFAULT_OFFICER } else { &self.uri.user }
    }

    pub(crate) fn login(&self, user: ck::CK_USER_TYPE, name: Option<&str>, typed: &[u8]) -> Result<()> {
        // Held while the PIN is checked: two threads must not log in twice.
        let mut state = self.state();
        match &state.login {
            Some(login) if login.user == user => return Err(Rv(ck::CKR_USER_ALREADY_LOGGED_IN)),
            Some(_) => return Err(Rv(ck::CKR_USER_ANOTHER_ALREADY_LOGGED_IN)),
            None => (),
        }
        let hsm = self.present()?;
        let (name, pin) = match name {
            Some(name) => (name.to_owned(), self.typed(&hsm, typed, name)?.1),
            None => self.typed(&hsm, typed, self.default_user(user))?,
        };
        let session = hsm.login(&name, &pin)?;
        let wanted = if user == ck::CKU_SO { Role::CryptoOfficer } else { Role::CryptoUser };
        if session.role() != wanted {
            return Err(Rv(ck::CKR_USER_TYPE_INVALID));
        }
        state.login = Some(Login { token: Token::open(session)?, user });
        state.handles = Handles { last: state.handles.last, ..Handles::default() };
        Ok(())
    }

    /// Drops what the login had open.
    pub(crate) fn forget_login(&self) {
        let login = self.state().login.take();
        if let Some(login) = login {
            // A log that cannot be written now was reported when it was needed.
            let _logged = login.token.close();
        }
    }

    pub(crate) fn is_logged_in(&self) -> bool {
        self.state().login.is_some()
    }

    pub(crate) fn is_officer(&self) -> bool {
        self.user() == Some(ck::CKU_SO)
    }

    pub(crate) fn user(&self) -> Option<ck::CK_USER_TYPE> {
        self.state().login.as_ref().map(|login| login.user)
    }

    /// What the user who is logged in may do.
    pub(crate) fn token(&self) -> Result<Token> {
        let state = self.state();
        state.login.as_ref().map(|login| login.token.clone()).ok_or(Rv(ck::CKR_USER_NOT_LOGGED_IN))
    }

    /// The handle of an object, for the caller.
    pub(crate) fn handle_of(&self, id: ObjectId) -> ck::CK_OBJECT_HANDLE {
        let handles = &mut self.state().handles;
        if let Some(handle) = handles.by_id.get(&id) {
            return *handle;
        }
        handles.last += 1;
        handles.by_handle.insert(handles.last, id);
        handles.by_id.insert(id, handles.last);
        handles.last
    }

    pub(crate) fn object(&self, handle: ck::CK_OBJECT_HANDLE) -> Result<ObjectId> {
        let found = self.state().handles.by_handle.get(&handle).copied();
        found.ok_or(Rv(ck::CKR_OBJECT_HANDLE_INVALID))
    }

    pub(crate) fn forget_objects<'a>(&self, ids: impl IntoIterator<Item = &'a ObjectId>) {
        let handles = &mut self.state().handles;
        for id in ids {
            if let Some(handle) = handles.by_id.remove(id) {
                handles.by_handle.remove(&handle);
            }
        }
    }

    /// What `CK_TOKEN_INFO` says of PINs that were wrong, for the crypto user and the officer.
    pub(crate) fn lock_flags(&self, hsm: &Hsm) -> ck::CK_FLAGS {
        let flags = |name: &str, [low, last, locked]: [ck::CK_FLAGS; 3]| {
            // A user who is not there has no PIN that could be locked.
            let Ok(user) = hsm.user_status(name) else { return 0 };
            let failures = user.failed.failures;
            let locked = if user.lock == LockState::Open { 0 } else { locked };
            let last = if failures >= hsm_engine::user::FREE_FAILURES { last } else { 0 };
            if failures == 0 { 0 } else { low | last | locked }
        };
        let user = [ck::CKF_USER_PIN_COUNT_LOW, ck::CKF_USER_PIN_FINAL_TRY, ck::CKF_USER_PIN_LOCKED];
        let officer = [ck::CKF_SO_PIN_COUNT_LOW, ck::CKF_SO_PIN_FINAL_TRY, ck::CKF_SO_PIN_LOCKED];
        flags(&self.uri.user, user) | flags(DEFAULT_OFFICER, officer)
    }
}
