//! Looking at everything at once: the audit log and the store.

use uuid::Uuid;

use crate::audit::{self, AuditReport, Record, Snapshot};
use crate::error::Result;
use crate::format::records;
use crate::master_key::{KeyHandle, KeyVersionState};
use crate::object::{self, Kind, Object};
use crate::session::Session;
use crate::transaction::{self, LOCK_WAIT};
use crate::user;

impl Session {
    /// Checks the whole audit log, MACs and anchor included, and shows each record to `visit`.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify_audit(&self, visit: &mut dyn FnMut(&Record)) -> Result<AuditReport> {
        self.same_process()?;
        let store = self.core.store();
        let lock = store.lock(&transaction::lock_name(), LOCK_WAIT)?;
        let (until, root) = (Snapshot::take(store)?, self.core.root(&self.keys)?);
        drop(lock);
        let keyed = Some((&self.keys.audit, root.value.anchor));
        Ok(audit::verify(store, root.value.log_start, keyed, until, visit)?)
    }

    /// Reads and checks every object the root names. The audit log has [`verify_audit`](Self::verify_audit).
    ///
    /// # Errors
    /// The first object that is damaged, stale or missing.
    pub fn verify_store(&self) -> Result<()> {
        self.same_process()?;
        let root = self.core.root(&self.keys)?.value;
        for entry in &root.users {
            let name = user::record_name(&entry.name)?;
            let user: Object<records::User> = object::get_public(self.core.store(), Kind::User, &name)?
                .ok_or_else(|| object::missing(self.core.store(), &name))?;
            self.core.check_revision(&name, user.revision, entry.revision)?;
            crate::login::read_lockout(&self.core, &entry.name)?;
        }
        for entry in &root.keys {
            let handle = KeyHandle { id: Uuid::from_bytes(entry.id), label: entry.label.clone() };
            let line = self.line_in(&root, &handle)?.value;
            for version in &line.versions {
                if version.state != KeyVersionState::Destroyed {
                    self.master_key(&line, version)?;
                }
            }
        }
        self.counters_in(&root).map(|_| ())
    }
}
