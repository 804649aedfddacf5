//! Attributes: their PKCS#11 numbers, what kind of value each has, which objects have it, and who may set it.

use super::Class;

/// Declares the attributes once.
macro_rules! attributes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $kind:ident;)*) => {
        /// An attribute, with the number PKCS#11 v3 gives it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        #[non_exhaustive]
        #[allow(missing_docs, reason = "named as in PKCS#11")]
        pub enum AttributeType { $($(#[$doc])* $name = $number,)* }

        impl AttributeType {
            /// All attributes the engine knows.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The attribute with a PKCS#11 number.
            pub fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// What kind of value it has.
            pub fn kind(self) -> ValueKind {
                match self { $(Self::$name => ValueKind::$kind,)* }
            }
        }
    };
}

/// What kind of value an attribute has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueKind {
    /// `CK_BBOOL`.
    Bool,
    /// `CK_ULONG` and what is defined as one.
    Number,
    /// Bytes; also big integers, which are big-endian.
    Bytes,
    /// UTF-8 without a terminator.
    Text,
    /// `CK_DATE`, eight digits, or empty.
    Date,
    /// A list of `CK_MECHANISM_TYPE`.
    Mechanisms,
    /// A list of attributes.
    Template,
    /// Bytes of a key.
    Secret,
}

attributes! {
    Class = 0x0, Number;
    Token = 0x1, Bool;
    Private = 0x2, Bool;
    Label = 0x3, Text;
    UniqueId = 0x4, Text;
    Application = 0x10, Text;
    /// The key, certificate or data.
    Value = 0x11, Secret;
    ObjectId = 0x12, Bytes;
    CertificateType = 0x80, Number;
    Issuer = 0x81, Bytes;
    SerialNumber = 0x82, Bytes;
    Trusted = 0x86, Bool;
    CertificateCategory = 0x87, Number;
    JavaMidpSecurityDomain = 0x88, Number;
    Url = 0x89, Text;
    HashOfSubjectPublicKey = 0x8A, Bytes;
    HashOfIssuerPublicKey = 0x8B, Bytes;
    NameHashAlgorithm = 0x8C, Number;
    CheckValue = 0x90, Bytes;
    KeyType = 0x100, Number;
    Subject = 0x101, Bytes;
    Id = 0x102, Bytes;
    Sensitive = 0x103, Bool;
    Encrypt = 0x104, Bool;
    Decrypt = 0x105, Bool;
    Wrap = 0x106, Bool;
    Unwrap = 0x107, Bool;
    Sign = 0x108, Bool;
    SignRecover = 0x109, Bool;
    Verify = 0x10A, Bool;
    VerifyRecover = 0x10B, Bool;
    Derive = 0x10C, Bool;
    StartDate = 0x110, Date;
    EndDate = 0x111, Date;
    Modulus = 0x120, Bytes;
    ModulusBits = 0x121, Number;
    PublicExponent = 0x122, Bytes;
    PrivateExponent = 0x123, Secret;
    Prime1 = 0x124, Secret;
    Prime2 = 0x125, Secret;
    Exponent1 = 0x126, Secret;
    Exponent2 = 0x127, Secret;
    Coefficient = 0x128, Secret;
    PublicKeyInfo = 0x129, Bytes;
    ValueLen = 0x161, Number;
    Extractable = 0x162, Bool;
    Local = 0x163, Bool;
    NeverExtractable = 0x164, Bool;
    AlwaysSensitive = 0x165, Bool;
    KeyGenMechanism = 0x166, Number;
    Modifiable = 0x170, Bool;
    Copyable = 0x171, Bool;
    Destroyable = 0x172, Bool;
    EcParams = 0x180, Bytes;
    EcPoint = 0x181, Bytes;
    AlwaysAuthenticate = 0x202, Bool;
    WrapWithTrusted = 0x210, Bool;
    WrapTemplate = 0x4000_0211, Template;
    UnwrapTemplate = 0x4000_0212, Template;
    DeriveTemplate = 0x4000_0213, Template;
    AllowedMechanisms = 0x4000_0600, Mechanisms;
}

impl AttributeType {
    /// The PKCS#11 number.
    pub fn number(self) -> u64 {
        u64::from(self as u32)
    }

    /// Whether it is key material: never kept among the attributes, given out only if the key allows it.
    pub fn is_secret(self) -> bool {
        self.kind() == ValueKind::Secret
    }

    /// Whether objects of a class have it.
    pub(crate) fn belongs_to(self, class: Class) -> bool {
        use AttributeType as A;
        let secret = class == Class::SecretKey;
        let private = class == Class::PrivateKey;
        let public = class == Class::PublicKey;
        let (key, hidden) = (secret || private || public, secret || private);
        match self {
            A::Class | A::Token | A::Private | A::Label | A::UniqueId => true,
            A::Modifiable | A::Copyable | A::Destroyable => true,
            A::Application | A::ObjectId => class == Class::Data,
            A::Value => !public,
            A::CertificateType
            | A::Issuer
            | A::SerialNumber
            | A::CertificateCategory
            | A::JavaMidpSecurityDomain
            | A::Url
            | A::HashOfSubjectPublicKey
            | A::HashOfIssuerPublicKey
            | A::NameHashAlgorithm => class == Class::Certificate,
            A::Trusted => class == Class::Certificate || public || secret,
            A::CheckValue => class == Class::Certificate || secret,
            A::Subject => class == Class::Certificate || private || public,
            A::Id | A::StartDate | A::EndDate => class == Class::Certificate || key,
            A::KeyType | A::Derive | A::Local | A::KeyGenMechanism | A::AllowedMechanisms => key,
            A::PublicKeyInfo => class == Class::Certificate || private || public,
            A::Sensitive
            | A::Extractable
            | A::NeverExtractable
            | A::AlwaysSensitive
            | A::WrapWithTrusted
            | A::UnwrapTemplate
            | A::DeriveTemplate => hidden,
            A::Encrypt | A::Wrap | A::WrapTemplate | A::Verify => public || secret,
            A::VerifyRecover => public,
            A::Decrypt | A::Unwrap | A::Sign => hidden,
            A::SignRecover | A::AlwaysAuthenticate => private,
            A::Modulus | A::PublicExponent | A::EcParams => public || private,
            A::ModulusBits | A::EcPoint => public,
            A::PrivateExponent | A::Prime1 | A::Prime2 | A::Exponent1 | A::Exponent2 | A::Coefficient => {
                private
            }
            A::ValueLen => secret,
        }
    }

    /// When a caller may set it.
    pub(crate) fn settable(self) -> Settable {
        use AttributeType as A;
        match self {
            A::UniqueId | A::Local | A::NeverExtractable | A::AlwaysSensitive | A::KeyGenMechanism => {
                Settable::Never
            }
            A::Trusted => Settable::ByOfficer,
            A::Label
            | A::Application
            | A::ObjectId
            | A::Id
            | A::Issuer
            | A::SerialNumber
            | A::Subject
            | A::StartDate
            | A::EndDate
            | A::Encrypt
            | A::Decrypt
            | A::Wrap
            | A::Unwrap
            | A::Sign
            | A::SignRecover
            | A::Verify
            | A::VerifyRecover
            | A::Derive
            | A::WrapTemplate
            | A::UnwrapTemplate
            | A::DeriveTemplate => Settable::Always,
            A::Sensitive | A::WrapWithTrusted => Settable::ToTrue,
            A::Extractable | A::Copyable | A::Destroyable | A::Modifiable => Settable::ToFalse,
            A::Value => Settable::DataOnly,
            _ => Settable::AtCreation,
        }
    }
}

/// When a caller may set an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settable {
    /// The engine sets it.
    Never,
    /// When the object is made, not later.
    AtCreation,
    /// Always.
    Always,
    /// Later only from false to true.
    ToTrue,
    /// Later only from true to false.
    ToFalse,
    /// Later only for data objects.
    DataOnly,
    /// Only a crypto officer sets it to true.
    ByOfficer,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_attributes_map_both_ways() {
        for &a in AttributeType::ALL {
            assert_eq!(AttributeType::from_number(a.number()), Some(a));
        }
        assert_eq!(AttributeType::from_number(0x8000_0001), None);
        assert_eq!(AttributeType::ALL.len(), 61);
    }
}
