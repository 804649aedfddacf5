//! What went wrong, and what that means to who asked.

use cryptoki::error::{Error, RvError};
use keyring::pkcs11::wire::{Failure, WireError};

/// An answer that says no.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) failure: Failure,
    pub(crate) text: String,
}

pub(crate) type Result<T, E = Refusal> = std::result::Result<T, E>;

impl Refusal {
    pub(crate) fn new(failure: Failure, text: impl Into<String>) -> Self {
        Self { failure, text: text.into() }
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::new(Failure::Setting, error.to_string())
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let failure = match &error {
            Error::Pkcs11(code, _) => meaning(*code),
            Error::LibraryLoading(_) | Error::MissingSymbol(_) | Error::NullFunctionPointer => {
                Failure::Setting
            }
            _ => Failure::Away,
        };
        Self::new(failure, describe(&error))
    }
}

/// The function and the standard's name of the code: that is what a vendor's documentation explains.
fn describe(error: &Error) -> String {
    match error {
        Error::Pkcs11(code, function) => match hint(*code) {
            Some(hint) => format!("C_{function:?} failed: {code:?}; {hint}"),
            None => format!("C_{function:?} failed: {code:?}"),
        },
        Error::LibraryLoading(error) => format!("the PKCS#11 module cannot be loaded: {error}"),
        Error::MissingSymbol(_) => "the PKCS#11 module has no C_GetFunctionList: it is no such module".into(),
        error => error.to_string(),
    }
}

fn hint(code: RvError) -> Option<&'static str> {
    match code {
        RvError::PinIncorrect => Some("wrong PIN: a few more, and the token locks it"),
        RvError::PinLocked => {
            Some("the PIN is locked after wrong ones; the token's security officer can set a new one")
        }
        RvError::PinExpired => Some("the PIN has expired; change it with the vendor's tool"),
        RvError::UserPinNotInitialized => Some("the token's user has no PIN yet"),
        RvError::PinLenRange => Some("the PIN is shorter or longer than this token's PINs"),
        _ => None,
    }
}

fn meaning(code: RvError) -> Failure {
    use RvError as R;
    match code {
        R::PinIncorrect
        | R::PinInvalid
        | R::PinLenRange
        | R::PinExpired
        | R::PinLocked
        | R::UserPinNotInitialized
        | R::UserTypeInvalid
        | R::UserTooManyTypes
        | R::UserAnotherAlreadyLoggedIn
        | R::KeyFunctionNotPermitted
        | R::KeyUnextractable
        | R::KeyNotWrappable
        | R::KeySizeRange
        | R::KeyTypeInconsistent
        | R::ActionProhibited
        | R::AttributeReadOnly
        | R::AttributeSensitive
        | R::AttributeTypeInvalid
        | R::AttributeValueInvalid
        | R::TemplateIncomplete
        | R::TemplateInconsistent
        | R::TokenWriteProtected
        | R::SessionReadOnly
        | R::MechanismInvalid
        | R::MechanismParamInvalid
        | R::FunctionNotSupported => Failure::Refused,
        R::SessionHandleInvalid
        | R::SessionClosed
        | R::UserNotLoggedIn
        | R::DeviceRemoved
        | R::DeviceError
        | R::TokenNotPresent
        | R::TokenNotRecognized
        | R::ObjectHandleInvalid
        | R::KeyHandleInvalid
        | R::UnwrappingKeyHandleInvalid
        | R::WrappingKeyHandleInvalid
        | R::CryptokiNotInitialized => Failure::Stale,
        _ => Failure::Away,
    }
}
