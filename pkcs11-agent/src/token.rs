//! The library, the slot, the login.

use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::RawAuthPin;
use keyring::pkcs11::wire::{Failure, Selection};

use crate::refusal::{Refusal, Result};
use crate::wrap::Method;

/// A session of the token's user.
pub(crate) struct Token {
    pub(crate) session: Session,
    pub(crate) info: TokenInfo,
    pub(crate) method: Method,
    pub(crate) selection: Selection,
    pub(crate) library: Pkcs11,
}

impl Token {
    /// Loads the library, finds the one token that is meant, and logs in.
    pub(crate) fn open(module: &Path, selection: Selection, pin: &[u8]) -> Result<Self> {
        let library = Pkcs11::new(module)?;
        match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => (),
            Err(error) => return Err(error.into()),
        }
        let (slot, info) = find(&library, &selection)?;
        let method = Method::choose(&library, slot, selection.wrap)?;
        let session = library.open_rw_session(slot)?;
        match session.login_with_raw(UserType::User, &RawAuthPin::new(Box::new(pin.to_vec()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => (),
            Err(error) => return Err(error.into()),
        }
        Ok(Self { session, info, method, selection, library })
    }

    /// The token, for messages.
    pub(crate) fn name(&self) -> String {
        format!("token \"{}\"", self.info.label())
    }

    /// Logs out and lets the library end its threads.
    pub(crate) fn close(self) {
        // Whoever asked is gone: there is nobody to tell, and the token ends the session with the process.
        let _logged_out = self.session.logout();
        drop(self.session);
        let _finalized = self.library.finalize();
    }
}

fn find(library: &Pkcs11, selection: &Selection) -> Result<(Slot, TokenInfo)> {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for slot in library.get_slots_with_token()? {
        // One broken reader must not hide the others.
        let Ok(info) = library.get_token_info(slot) else { continue };
        if !info.token_initialized() {
            continue;
        }
        seen.push(format!("\"{}\" (serial {})", info.label(), info.serial_number()));
        if is_meant(selection, slot, &info) {
            found.push((slot, info));
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => Err(Refusal::new(
            Failure::Setting,
            format!("several tokens fit the URI, name one by token= and serial=: {}", seen.join(", ")),
        )),
        (None, _) if seen.is_empty() => {
            Err(Refusal::new(Failure::Away, "the PKCS#11 module shows no initialised token"))
        }
        (None, _) => {
            let wanted = if selection.token.is_empty() { "such" } else { selection.token.as_str() };
            let text = format!("there is no token \"{wanted}\" now; the module shows {}", seen.join(", "));
            Err(Refusal::new(Failure::Away, text))
        }
    }
}

fn is_meant(selection: &Selection, slot: Slot, info: &TokenInfo) -> bool {
    let same = |wanted: &str, is: &str| wanted.is_empty() || wanted.trim_end() == is.trim_end();
    same(&selection.token, info.label())
        && same(&selection.serial, info.serial_number())
        && same(&selection.manufacturer, info.manufacturer_id())
        && same(&selection.model, info.model())
        && selection.slot.is_none_or(|wanted| wanted == slot.id())
}
