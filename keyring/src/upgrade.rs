//! The keyring of a PostgreSQL cluster whose files `pg_upgrade` has moved into a new cluster.

use crate::error::{KeyringError, Result};
use crate::format::root::Root;
use crate::keyring::Owner;
use crate::master::MasterKey;
use crate::unlocked::Unlocked;

impl Unlocked {
    /// Makes the keyring belong to the cluster with another system identifier. Keys, lines and positions stay as they are. Returns the
    /// identifier before; nothing is changed if it is the same.
    ///
    /// Crash safe: the root is replaced as a whole; the HSM is told of the new generation afterwards, or by the next unlocking.
    ///
    /// # Errors
    /// A keyring for single files; one that cannot be read or changed; the HSM.
    pub fn move_to_cluster(&self, system_identifier: u64, master: &dyn MasterKey) -> Result<u64> {
        let wanted = Owner::PgCluster { system_identifier };
        let (before, generation) = {
            let lock = self.store.lock()?;
            let Root { mut facts, wrapped, .. } = self.root()?;
            let Owner::PgCluster { system_identifier: before } = facts.owner else {
                let path = self.store.dir().into();
                return Err(KeyringError::ForeignOwner { path, found: facts.owner, expected: wanted });
            };
            if before == system_identifier {
                return Ok(before);
            }
            facts.owner = wanted;
            facts.generation += 1;
            let generation = facts.generation;
            self.store.replace_root(&lock, &Root::sealed(facts, wrapped, &self.seal)?.to_bytes()?)?;
            (before, generation)
        };
        self.raise_generation(master, generation)?;
        Ok(before)
    }
}
