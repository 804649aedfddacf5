//! What can go wrong with objects. PKCS#11 callers must be told apart what they asked wrongly, so each variant stands for one
//! return code.

use super::{AttributeType, ObjectId};
use crate::error::HsmError;

/// Result of operations on objects.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An operation on an object was refused or failed. No message holds a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The HSM itself: store, login, role, audit log.
    #[error(transparent)]
    Hsm(#[from] HsmError),

    /// The attribute cannot be set in this way.
    #[error("attribute {0:?} is set by the HSM, or cannot be changed in this way any more")]
    AttributeReadOnly(AttributeType),
    /// The attribute holds key material that does not leave.
    #[error("attribute {0:?} is sensitive or the key is not extractable")]
    AttributeSensitive(AttributeType),
    /// Objects of this class and type have no such attribute.
    #[error("objects of this class have no attribute {0:?}")]
    AttributeTypeInvalid(AttributeType),
    /// The value is none this attribute can have.
    #[error("attribute {0:?} cannot have this value")]
    AttributeValueInvalid(AttributeType),
    /// The template lacks an attribute.
    #[error("the template needs attribute {0:?}")]
    TemplateIncomplete(AttributeType),
    /// Attributes of the template contradict each other or the key.
    #[error("the template contradicts itself: {0}")]
    TemplateInconsistent(&'static str),
    /// There is no such object, or the user may not see it.
    #[error("there is no object {0} for this user")]
    NoSuchObject(ObjectId),
    /// An attribute of the object forbids it.
    #[error("the object forbids it: {0}")]
    ActionProhibited(&'static str),

    /// The key is of another type than the mechanism needs.
    #[error("the key is of another type than the mechanism needs")]
    KeyTypeInconsistent,
    /// The key's attributes do not allow this use.
    #[error("the key's attributes do not allow this use ({0})")]
    KeyFunctionNotPermitted(&'static str),
    /// The key can only be wrapped by a trusted key, or by none of this kind.
    #[error("the key cannot be wrapped in this way")]
    KeyNotWrappable,
    /// The key asks for the PIN before each use.
    #[error("the key asks for the PIN before each use")]
    PinNeeded,
    /// The key never leaves.
    #[error("the key is not extractable")]
    KeyUnextractable,
    /// The key has a length that is not supported or not allowed.
    #[error("keys of this length are not supported or not allowed")]
    KeySizeRange,
    /// The curve is not supported.
    #[error("the curve is not supported")]
    CurveNotSupported,

    /// The mechanism is not known, not for this function, or off.
    #[error("the mechanism does not exist for this function, or is switched off")]
    MechanismInvalid,
    /// The mechanism's parameters are not valid.
    #[error("the mechanism's parameters are not valid: {0}")]
    MechanismParamInvalid(&'static str),
    /// The data cannot be processed.
    #[error("the data cannot be processed with this key")]
    DataInvalid,
    /// The data has a length the mechanism cannot take.
    #[error("the data has a length that the mechanism cannot take")]
    DataLenRange,
    /// The ciphertext does not decrypt: another key, or it was changed.
    #[error("the ciphertext does not decrypt: another key made it, or it was changed")]
    EncryptedDataInvalid,
    /// The ciphertext has a length the mechanism never makes.
    #[error("the ciphertext has a length that the mechanism never makes")]
    EncryptedDataLenRange,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    SignatureInvalid,
    /// The signature has a length the mechanism never makes.
    #[error("the signature has a length that the mechanism never makes")]
    SignatureLenRange,
    /// The wrapped key does not unwrap.
    #[error("the wrapped key does not unwrap: another key wrapped it, or it was changed")]
    WrappedKeyInvalid,
    /// The wrapped key has a length the mechanism never makes.
    #[error("the wrapped key has a length that the mechanism never makes")]
    WrappedKeyLenRange,
    /// The wrapping key has a length the mechanism cannot take.
    #[error("the wrapping key has a length that the mechanism cannot take")]
    WrappingKeySizeRange,
    /// The store is full.
    #[error("the HSM holds {limit} {what} and takes no more")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

impl From<hsm_primitives::Error> for Error {
    fn from(e: hsm_primitives::Error) -> Self {
        use hsm_primitives::Error as P;
        match e {
            P::BadLength => Self::DataLenRange,
            P::BadParameters => Self::KeyTypeInconsistent,
            _ => Self::DataInvalid,
        }
    }
}

impl From<crate::store::StoreError> for Error {
    fn from(e: crate::store::StoreError) -> Self {
        Self::Hsm(e.into())
    }
}

impl From<secret_mem::RandomError> for Error {
    fn from(e: secret_mem::RandomError) -> Self {
        Self::Hsm(e.into())
    }
}
