//! Monotonic counters: numbers that only grow, such as the generation of a keyring.
//!
//! They are in the sealed object `counters`, so an old copy of that file alone is noticed. An old copy of the *whole*
//! store brings its old counters along: a software HSM cannot be better than the disk it is on.

use crate::audit::Event;
use crate::error::{HsmError, Result};
use crate::format::records;
use crate::object::{self, Kind, Object};
use crate::session::Session;
use crate::transaction::{LOCK_WAIT, Transaction, counters_name};
use crate::user::Role;

/// Most counters an HSM holds.
pub const MAX_COUNTERS: usize = 4096;
/// Longest name of a counter, in bytes.
pub const MAX_COUNTER_NAME: usize = 128;

impl Session {
    /// Value of a counter; `None` if it was never raised, or was forgotten.
    ///
    /// # Errors
    /// The object `counters` is damaged, stale or missing.
    pub fn counter(&self, name: &str) -> Result<Option<u64>> {
        self.same_process()?;
        let counters = self.counters_in(&self.core.root(&self.keys)?.value)?.value;
        Ok(counters.position(name).ok().map(|i| counters.values[i].1))
    }

    /// All counters whose name begins with `prefix`, sorted by name.
    ///
    /// # Errors
    /// As [`counter`](Self::counter).
    pub fn counters(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        self.same_process()?;
        let mut values = self.counters_in(&self.core.root(&self.keys)?.value)?.value.values;
        values.retain(|(name, _)| name.starts_with(prefix));
        Ok(values)
    }

    /// Raises a counter to `value`, or leaves it where it is if that is higher. Returns the value it has then, durably.
    ///
    /// # Errors
    /// The user may not use keys, the name is not 1 to [`MAX_COUNTER_NAME`] bytes of printable ASCII, there are
    /// [`MAX_COUNTERS`] already.
    pub fn raise_counter(&self, name: &str, value: u64) -> Result<u64> {
        self.require(Role::CryptoUser, "raise counters")?;
        check_name(name)?;
        let tx = self.begin(LOCK_WAIT)?;
        let mut counters = self.counters_in(tx.root())?;
        let values = &mut counters.value.values;
        match values.binary_search_by(|(n, _)| n.as_str().cmp(name)) {
            Ok(i) if values[i].1 >= value => return Ok(values[i].1),
            Ok(i) => values[i].1 = value,
            Err(_) if values.len() >= MAX_COUNTERS => {
                return Err(HsmError::Full { what: "counters", limit: MAX_COUNTERS });
            }
            Err(i) => values.insert(i, (name.into(), value)),
        }
        put_counters(tx, counters)?;
        Ok(value)
    }

    /// Forgets a counter, which is logged: the explicit way back to an older keyring. Returns its last value.
    ///
    /// # Errors
    /// The user may not use keys.
    pub fn forget_counter(&self, name: &str) -> Result<Option<u64>> {
        self.require(Role::CryptoUser, "forget counters")?;
        let mut tx = self.begin(LOCK_WAIT)?;
        let mut counters = self.counters_in(tx.root())?;
        let Ok(i) = counters.value.position(name) else { return Ok(None) };
        let (name, value) = counters.value.values.remove(i);
        tx.log(&[self.entry(Event::CounterForgotten { name, value })])?;
        put_counters(tx, counters)?;
        Ok(Some(value))
    }

    pub(crate) fn counters_in(&self, root: &records::Root) -> Result<Object<records::Counters>> {
        let (store, name) = (self.core.store(), counters_name());
        let counters: Object<records::Counters> = self
            .keys
            .sealer
            .get(store, Kind::Counters, &name)?
            .ok_or_else(|| object::missing(store, &name))?;
        self.core.check_revision(&name, counters.revision, root.counters)?;
        Ok(counters)
    }
}

impl records::Counters {
    fn position(&self, name: &str) -> Result<usize, usize> {
        self.values.binary_search_by(|(n, _)| n.as_str().cmp(name))
    }
}

fn put_counters(mut tx: Transaction<'_>, mut counters: Object<records::Counters>) -> Result<()> {
    counters.revision += 1;
    tx.put(Kind::Counters, &counters_name(), &counters)?;
    tx.root_mut().counters = counters.revision;
    tx.commit()
}

fn check_name(name: &str) -> Result<()> {
    if (1..=MAX_COUNTER_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(HsmError::InvalidName {
        what: "counter name",
        name: name.into(),
        rule: "1 to 128 printable ASCII characters without spaces",
    })
}
