//! What a crypto officer does: manage users.

use crate::audit::Event;
use crate::error::{HsmError, Result};
use crate::format::records;
use crate::hsm::write_user;
use crate::login::{lock_user, read_user};
use crate::pin::Pin;
use crate::policy::Service;
use crate::session::Session;
use crate::transaction::LOCK_WAIT;
use crate::user::{self, PinCost, Rights, Role};

/// Most users an HSM holds.
pub const MAX_USERS: usize = 64;

impl Session {
    /// Makes a user.
    ///
    /// # Errors
    /// Not an officer, the name is taken or not valid, the PIN is too short, there are [`MAX_USERS`] already.
    pub fn create_user(&self, name: &str, role: Role, rights: Rights, pin: &Pin) -> Result<()> {
        self.require(Role::CryptoOfficer, "make users")?;
        user::check_name(name)?;
        pin.check_new()?;
        let _user_lock = lock_user(&self.core, name)?;
        let mut tx = self.begin(LOCK_WAIT)?;
        if tx.root().users.iter().any(|u| u.name == name) {
            return Err(HsmError::Duplicate { what: "user", name: name.into() });
        }
        if tx.root().users.len() >= MAX_USERS {
            return Err(HsmError::Full { what: "users", limit: MAX_USERS });
        }
        self.authorize(&mut tx, Service::Users, 0, [0; 16])?;
        tx.log(&[self.entry(Event::UserCreated { name: name.into(), role })])?;
        // An officer uses no keys, so has no rights to what they protect.
        let rights = if role == Role::CryptoUser { rights } else { Rights::default() };
        write_user(&self.core, &self.keys, name, role, rights, pin, PinCost::DEFAULT)?;
        tx.root_mut().users.push(records::UserEntry { name: name.into(), revision: 1, role, rights });
        tx.commit()
    }

    /// Clears a user's failure counter, so that the right PIN opens at once.
    ///
    /// # Errors
    /// Not an officer, or no such user.
    pub fn unlock_user(&self, name: &str) -> Result<()> {
        self.require(Role::CryptoOfficer, "unlock users")?;
        read_user(&self.core, name)?;
        let _user_lock = lock_user(&self.core, name)?;
        let mut tx = self.begin(LOCK_WAIT)?;
        self.authorize(&mut tx, Service::Users, 0, [0; 16])?;
        tx.log(&[self.entry(Event::UserUnlocked { name: name.into() })])?;
        self.clear_lockout(name)?;
        tx.commit()
    }

    /// Gives a user another PIN and unlocks.
    ///
    /// # Errors
    /// Not an officer, no such user, or the PIN is too short.
    pub fn reset_pin(&self, name: &str, pin: &Pin) -> Result<()> {
        self.require(Role::CryptoOfficer, "reset PINs")?;
        read_user(&self.core, name)?;
        self.set_pin(name, pin, Event::PinReset { name: name.into() })
    }

    /// Removes a user. Master keys stay; objects that belong to the user stay too, and nobody else can use them.
    ///
    /// # Errors
    /// Not an officer, no such user, or the last officer or the officer itself.
    pub fn delete_user(&self, name: &str) -> Result<()> {
        self.require(Role::CryptoOfficer, "remove users")?;
        read_user(&self.core, name)?;
        if name == self.user() {
            return Err(HsmError::NotAllowed {
                user: name.into(),
                role: self.role(),
                action: "remove itself",
            });
        }
        let _user_lock = lock_user(&self.core, name)?;
        let mut tx = self.begin(LOCK_WAIT)?;
        self.authorize(&mut tx, Service::Users, 0, [0; 16])?;
        tx.log(&[self.entry(Event::UserDeleted { name: name.into() })])?;
        // A user that the root does not name cannot log in, whatever is left of it.
        tx.root_mut().users.retain(|u| u.name != name);
        tx.commit()?;
        let store = self.core.store();
        store.delete(&user::record_name(name)?)?;
        Ok(store.delete(&user::lockout_name(name)?)?)
    }
}
