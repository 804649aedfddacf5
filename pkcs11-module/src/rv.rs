//! Errors as PKCS#11 return values.

use cryptoki_sys as ck;
use hsm_engine::objects::Error;
use hsm_engine::{ErrorKind, HsmError};

/// A return value other than `CKR_OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rv(pub(crate) ck::CK_RV);

pub(crate) type Result<T> = std::result::Result<T, Rv>;

impl From<HsmError> for Rv {
    fn from(error: HsmError) -> Self {
        Self::from(&error)
    }
}

impl From<&HsmError> for Rv {
    fn from(error: &HsmError) -> Self {
        Self(match error {
            HsmError::WrongPin { .. } | HsmError::UnknownUser { .. } => ck::CKR_PIN_INCORRECT,
            HsmError::LockedUntil { .. } | HsmError::LockedHard { .. } => ck::CKR_PIN_LOCKED,
            HsmError::Pin(_) => ck::CKR_PIN_INVALID,
            HsmError::NotInitialized { .. } => ck::CKR_TOKEN_NOT_RECOGNIZED,
            // An officer who wants to use keys, a user who wants to manage: not the appropriate user.
            HsmError::NotAllowed { .. } => ck::CKR_USER_NOT_LOGGED_IN,
            HsmError::Random(_) => ck::CKR_RANDOM_NO_RNG,
            error => match error.kind() {
                ErrorKind::Denied => ck::CKR_ACTION_PROHIBITED,
                ErrorKind::Login => ck::CKR_USER_NOT_LOGGED_IN,
                ErrorKind::HsmAway => ck::CKR_DEVICE_ERROR,
                ErrorKind::Usage => ck::CKR_ARGUMENTS_BAD,
                _ => ck::CKR_GENERAL_ERROR,
            },
        })
    }
}

impl From<Error> for Rv {
    fn from(error: Error) -> Self {
        Self(match &error {
            Error::Hsm(error) => return Self::from(error),
            Error::AttributeReadOnly(_) => ck::CKR_ATTRIBUTE_READ_ONLY,
            Error::AttributeSensitive(_) => ck::CKR_ATTRIBUTE_SENSITIVE,
            Error::AttributeTypeInvalid(_) => ck::CKR_ATTRIBUTE_TYPE_INVALID,
            Error::AttributeValueInvalid(_) => ck::CKR_ATTRIBUTE_VALUE_INVALID,
            Error::TemplateIncomplete(_) => ck::CKR_TEMPLATE_INCOMPLETE,
            Error::TemplateInconsistent(_) => ck::CKR_TEMPLATE_INCONSISTENT,
            Error::NoSuchObject(_) => ck::CKR_OBJECT_HANDLE_INVALID,
            Error::ActionProhibited(_) => ck::CKR_ACTION_PROHIBITED,
            Error::KeyTypeInconsistent => ck::CKR_KEY_TYPE_INCONSISTENT,
            Error::KeyFunctionNotPermitted(_) => ck::CKR_KEY_FUNCTION_NOT_PERMITTED,
            Error::KeyNotWrappable => ck::CKR_KEY_NOT_WRAPPABLE,
            Error::PinNeeded => ck::CKR_USER_NOT_LOGGED_IN,
            Error::KeyUnextractable => ck::CKR_KEY_UNEXTRACTABLE,
            Error::KeySizeRange => ck::CKR_KEY_SIZE_RANGE,
            Error::CurveNotSupported => ck::CKR_CURVE_NOT_SUPPORTED,
            Error::MechanismInvalid => ck::CKR_MECHANISM_INVALID,
            Error::MechanismParamInvalid(_) => ck::CKR_MECHANISM_PARAM_INVALID,
            Error::DataInvalid => ck::CKR_DATA_INVALID,
            Error::DataLenRange => ck::CKR_DATA_LEN_RANGE,
            Error::EncryptedDataInvalid => ck::CKR_ENCRYPTED_DATA_INVALID,
            Error::EncryptedDataLenRange => ck::CKR_ENCRYPTED_DATA_LEN_RANGE,
            Error::SignatureInvalid => ck::CKR_SIGNATURE_INVALID,
            Error::SignatureLenRange => ck::CKR_SIGNATURE_LEN_RANGE,
            Error::WrappedKeyInvalid => ck::CKR_WRAPPED_KEY_INVALID,
            Error::WrappingKeySizeRange => ck::CKR_WRAPPING_KEY_SIZE_RANGE,
            Error::WrappedKeyLenRange => ck::CKR_WRAPPED_KEY_LEN_RANGE,
            Error::Full { .. } => ck::CKR_DEVICE_MEMORY,
            _ => ck::CKR_FUNCTION_FAILED,
        })
    }
}
