//! What `C_Initialize` makes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki_sys as ck;
use hsm_engine::SoftUri;
use secret_mem::ForkCanary;

use crate::rv::{Result, Rv};
use crate::session::Session;
use crate::slot::Slot;

/// Most sessions of a process: a program that forgets to close them must not eat all memory.
pub(crate) const MAX_SESSIONS: usize = 16_384;

/// Slots and sessions of one process between `C_Initialize` and `C_Finalize`.
pub(crate) struct Module {
    /// Dies in a forked child: there the module is not initialised.
    canary: ForkCanary,
    slots: Vec<Arc<Slot>>,
    sessions: Mutex<HashMap<ck::CK_SESSION_HANDLE, Arc<Session>>>,
    next: AtomicU64,
}

impl Module {
    pub(crate) fn new(hsms: Vec<SoftUri>) -> Result<Self> {
        let canary = ForkCanary::new().map_err(|_| Rv(ck::CKR_HOST_MEMORY))?;
        let slots = hsms.into_iter().map(|uri| Arc::new(Slot::new(uri))).collect();
        Ok(Self { canary, slots, sessions: Mutex::default(), next: AtomicU64::new(1) })
    }

    pub(crate) fn is_of_this_process(&self) -> bool {
        self.canary.is_alive()
    }

    /// The HSMs that it shows; takes no lock.
    pub(crate) fn hsms(&self) -> Vec<SoftUri> {
        self.slots.iter().map(|slot| slot.uri.clone()).collect()
    }

    pub(crate) fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    pub(crate) fn slot(&self, id: ck::CK_SLOT_ID) -> Result<&Arc<Slot>> {
        let slot = usize::try_from(id).ok().and_then(|id| self.slots.get(id));
        slot.ok_or(Rv(ck::CKR_SLOT_ID_INVALID))
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<ck::CK_SESSION_HANDLE, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn session(&self, handle: ck::CK_SESSION_HANDLE) -> Result<Arc<Session>> {
        self.sessions().get(&handle).cloned().ok_or(Rv(ck::CKR_SESSION_HANDLE_INVALID))
    }

    pub(crate) fn open_session(&self, slot: ck::CK_SLOT_ID, writes: bool) -> Result<ck::CK_SESSION_HANDLE> {
        let there = Arc::clone(self.slot(slot)?);
        if !there.is_logged_in() {
            there.present()?;
        }
        if !writes && there.is_officer() {
            return Err(Rv(ck::CKR_SESSION_READ_WRITE_SO_EXISTS));
        }
        let mut sessions = self.sessions();
        if sessions.len() >= MAX_SESSIONS {
            return Err(Rv(ck::CKR_SESSION_COUNT));
        }
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        sessions.insert(handle, Arc::new(Session::new(there, slot, writes)));
        Ok(handle)
    }

    /// Closing the last session of a token logs out of it.
    pub(crate) fn close_session(&self, handle: ck::CK_SESSION_HANDLE) -> Result<()> {
        let mut sessions = self.sessions();
        let closed = sessions.remove(&handle).ok_or(Rv(ck::CKR_SESSION_HANDLE_INVALID))?;
        let last = !sessions.values().any(|session| session.slot_id == closed.slot_id);
        drop(sessions);
        closed.reset();
        if last {
            closed.slot.forget_login();
        }
        Ok(())
    }

    pub(crate) fn close_all(&self, slot: ck::CK_SLOT_ID) -> Result<()> {
        let there = self.slot(slot)?;
        let mut closed = Vec::new();
        self.sessions().retain(|_, session| {
            let stays = session.slot_id != slot;
            if !stays {
                closed.push(Arc::clone(session));
            }
            stays
        });
        closed.iter().for_each(|session| session.reset());
        there.forget_login();
        Ok(())
    }

    /// Ends everything that belongs to a login.
    pub(crate) fn logout(&self, session: &Session) -> Result<()> {
        if !session.slot.is_logged_in() {
            return Err(Rv(ck::CKR_USER_NOT_LOGGED_IN));
        }
        let all: Vec<_> = self.sessions().values().cloned().collect();
        all.iter().filter(|other| other.slot_id == session.slot_id).for_each(|session| session.reset());
        session.slot.forget_login();
        Ok(())
    }

    /// Whether a token has sessions that may not write, and how many of each kind.
    pub(crate) fn session_counts(&self, slot: ck::CK_SLOT_ID) -> (usize, usize) {
        let sessions = self.sessions();
        let of_slot = sessions.values().filter(|session| session.slot_id == slot);
        let (writing, all) = of_slot.fold((0, 0), |(w, a), s| (w + usize::from(s.writes), a + 1));
        (writing, all)
    }

    pub(crate) fn finalize(&self) {
        let sessions: Vec<_> = self.sessions().drain().map(|(_, session)| session).collect();
        sessions.iter().for_each(|session| session.reset());
        self.slots.iter().for_each(|slot| slot.forget_login());
    }
}
