//! What a template makes of an object: which attributes it may name, what the others become, what may change later.

use super::attribute::Settable;
use super::template::{Attributes, Parts, Plain};
use super::{AttributeType as A, Class, Error, KeyType, Result};

/// How an object comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From a template with its value in clear.
    Create,
    /// Inside, by this mechanism.
    Generate(u64),
    /// Unwrapped.
    Unwrap,
    /// Derived from a key with these histories.
    Derive { always_sensitive: bool, never_extractable: bool },
}

/// Attributes that are the key itself.
const MATERIAL: [A; 6] =
    [A::Modulus, A::ModulusBits, A::PublicExponent, A::EcParams, A::EcPoint, A::ValueLen];

/// Class and key type that a template names; a mechanism may know them already.
pub(crate) fn class_and_type(
    parts: &Parts,
    known: Option<(Class, KeyType)>,
) -> Result<(Class, Option<KeyType>)> {
    let number = |a: A| match parts.attributes.get(&a) {
        Some(Plain::Number(n)) => Some(*n),
        _ => None,
    };
    let named_class = match number(A::Class) {
        Some(n) => Some(Class::from_number(n).ok_or(Error::AttributeValueInvalid(A::Class))?),
        None => None,
    };
    let class = named_class.or(known.map(|k| k.0)).ok_or(Error::TemplateIncomplete(A::Class))?;
    if matches!(class, Class::Data | Class::Certificate) {
        return Ok((class, None));
    }
    let named_type = match number(A::KeyType) {
        Some(n) => Some(KeyType::from_number(n).ok_or(Error::AttributeValueInvalid(A::KeyType))?),
        None => None,
    };
    let key_type = named_type.or(known.map(|k| k.1)).ok_or(Error::TemplateIncomplete(A::KeyType))?;
    let generic = |t: KeyType| matches!(t, KeyType::GenericSecret | KeyType::Purpose(_));
    if known.is_some_and(|(c, t)| c != class || t != key_type && !(generic(t) && generic(key_type))) {
        return Err(Error::TemplateInconsistent("class or key type is not what the mechanism makes"));
    }
    if !key_type.fits(class) {
        return Err(Error::TemplateInconsistent("keys of this type are not of this class"));
    }
    Ok((class, Some(key_type)))
}

/// Checks what a template names, and adds what it leaves out. `derived` follows from the key and wins over nothing: a template
/// that says otherwise is refused.
pub(crate) fn build(
    origin: Origin,
    class: Class,
    key_type: Option<KeyType>,
    parts: &Parts,
    derived: Attributes,
) -> Result<Attributes> {
    for (&attribute, value) in &parts.attributes {
        check_named(origin, class, attribute, value)?;
    }
    for &attribute in parts.secrets.keys() {
        if !attribute.belongs_to(class) {
            return Err(Error::AttributeTypeInvalid(attribute));
        }
        if origin != Origin::Create {
            return Err(Error::TemplateInconsistent(
                "key material may only be given when an object is created",
            ));
        }
    }
    let mut set = defaults(class, key_type);
    set.extend(parts.attributes.iter().map(|(a, v)| (*a, v.clone())));
    for (attribute, value) in derived {
        match parts.attributes.get(&attribute) {
            // An empty check value asks for none.
            Some(Plain::Bytes(b)) if attribute == A::CheckValue && b.is_empty() => continue,
            // The same number, point or curve may be written in several ways; what is kept is ours.
            Some(_) if MATERIAL.contains(&attribute) && attribute != A::ValueLen => {}
            Some(named) if *named != value => {
                let number = matches!(attribute, A::ValueLen);
                return Err(if number {
                    Error::TemplateInconsistent("the key has another length")
                } else {
                    Error::AttributeValueInvalid(attribute)
                });
            }
            _ => {}
        }
        if attribute.belongs_to(class) {
            set.insert(attribute, value);
        }
    }
    history(origin, class, &mut set);
    check_certificate(class, &set)?;
    Ok(set)
}

fn check_named(origin: Origin, class: Class, attribute: A, value: &Plain) -> Result<()> {
    // Public attributes of the private half may be named when it is made: they must be the same.
    if !attribute.belongs_to(class) {
        return Err(Error::AttributeTypeInvalid(attribute));
    }
    match attribute.settable() {
        Settable::Never => return Err(Error::AttributeReadOnly(attribute)),
        Settable::ByOfficer if *value == Plain::Bool(true) => {
            return Err(Error::AttributeReadOnly(attribute));
        }
        _ => {}
    }
    let inside = matches!(origin, Origin::Generate(_));
    let material = MATERIAL.contains(&attribute) || attribute == A::CheckValue;
    match (class, attribute) {
        (Class::PrivateKey, _) if inside && material => {
            Err(Error::TemplateInconsistent("the private half takes its numbers from the public one"))
        }
        (Class::PublicKey, A::Modulus | A::EcPoint) if inside => {
            Err(Error::TemplateInconsistent("the key is made here, so its numbers cannot be given"))
        }
        (Class::SecretKey, A::ValueLen) if origin == Origin::Create => {
            Err(Error::AttributeReadOnly(attribute))
        }
        (Class::PublicKey, A::ModulusBits) if origin == Origin::Create => {
            Err(Error::AttributeReadOnly(attribute))
        }
        _ => Ok(()),
    }
}

fn defaults(class: Class, key_type: Option<KeyType>) -> Attributes {
    let mut set = Attributes::new();
    let hidden = matches!(class, Class::PrivateKey | Class::SecretKey);
    let mut put = |attribute: A, value: Plain| {
        if attribute.belongs_to(class) {
            set.insert(attribute, value);
        }
    };
    let flag = Plain::Bool;
    let empty = || Plain::Bytes(Vec::new());
    put(A::Class, Plain::Number(class.number()));
    put(A::Token, flag(false));
    put(A::Private, flag(hidden));
    put(A::Label, empty());
    for a in [A::Modifiable, A::Copyable, A::Destroyable] {
        put(a, flag(true));
    }
    match class {
        Class::Data => {
            put(A::Application, empty());
            put(A::ObjectId, empty());
            return set;
        }
        Class::Certificate => {
            for a in [A::Id, A::Subject, A::Issuer, A::SerialNumber, A::StartDate, A::EndDate, A::Url] {
                put(a, empty());
            }
            put(A::Trusted, flag(false));
            put(A::CertificateCategory, Plain::Number(0));
            return set;
        }
        _ => {}
    }
    if let Some(key_type) = key_type {
        put(A::KeyType, Plain::Number(key_type.number()));
    }
    for a in [A::Id, A::Subject, A::StartDate, A::EndDate] {
        put(a, empty());
    }
    put(A::Sensitive, flag(true));
    // What the type can do with data is on unless it is switched off; wrapping and deriving are off unless switched on.
    let rsa_or_aes = matches!(key_type, Some(KeyType::Rsa | KeyType::Aes));
    for a in [A::Encrypt, A::Decrypt] {
        put(a, flag(rsa_or_aes));
    }
    for a in [A::Sign, A::Verify] {
        put(a, flag(true));
    }
    for a in [
        A::SignRecover,
        A::VerifyRecover,
        A::Wrap,
        A::Unwrap,
        A::Derive,
        A::Extractable,
        A::WrapWithTrusted,
        A::Trusted,
        A::AlwaysAuthenticate,
    ] {
        put(a, flag(false));
    }
    set
}

/// The attributes that tell how the key came to be.
fn history(origin: Origin, class: Class, set: &mut Attributes) {
    if matches!(class, Class::Data | Class::Certificate) {
        return;
    }
    let is = |set: &Attributes, a: A| set.get(&a) == Some(&Plain::Bool(true));
    let (local, always, never, mechanism) = match origin {
        Origin::Generate(mechanism) => (true, is(set, A::Sensitive), !is(set, A::Extractable), mechanism),
        Origin::Derive { always_sensitive, never_extractable } => (
            false,
            always_sensitive && is(set, A::Sensitive),
            never_extractable && !is(set, A::Extractable),
            u64::MAX,
        ),
        Origin::Create | Origin::Unwrap => (false, false, false, u64::MAX),
    };
    set.insert(A::Local, Plain::Bool(local));
    // CK_UNAVAILABLE_INFORMATION for a key that was not made here.
    set.insert(A::KeyGenMechanism, Plain::Number(mechanism));
    if matches!(class, Class::PrivateKey | Class::SecretKey) {
        set.insert(A::AlwaysSensitive, Plain::Bool(always));
        set.insert(A::NeverExtractable, Plain::Bool(never));
    }
}

fn check_certificate(class: Class, set: &Attributes) -> Result<()> {
    if class != Class::Certificate {
        return Ok(());
    }
    match set.get(&A::CertificateType) {
        // X.509, X.509 attribute certificate, WTLS.
        Some(Plain::Number(0..=2)) => {}
        Some(_) => return Err(Error::AttributeValueInvalid(A::CertificateType)),
        None => return Err(Error::TemplateIncomplete(A::CertificateType)),
    }
    if matches!(set.get(&A::Subject), Some(Plain::Bytes(subject)) if subject.is_empty()) {
        return Err(Error::TemplateIncomplete(A::Subject));
    }
    Ok(())
}

/// The attributes after a change; `copying` lets a copy differ where the original could not be changed.
pub(crate) fn change(
    class: Class,
    before: &Attributes,
    parts: &Parts,
    copying: bool,
    officer: bool,
) -> Result<Attributes> {
    let mut set = before.clone();
    for (&attribute, value) in &parts.attributes {
        if !attribute.belongs_to(class) {
            return Err(Error::AttributeTypeInvalid(attribute));
        }
        let old = before.get(&attribute);
        let (to_true, to_false) = (*value == Plain::Bool(true), *value == Plain::Bool(false));
        let allowed = match attribute.settable() {
            _ if old == Some(value) && attribute.settable() != Settable::Never => true,
            Settable::Never => false,
            Settable::Always => true,
            Settable::ToTrue => to_true,
            Settable::ToFalse => to_false,
            Settable::ByOfficer => officer || to_false,
            Settable::DataOnly => false,
            Settable::AtCreation => copying && matches!(attribute, A::Token | A::Private),
        };
        if !allowed {
            return Err(Error::AttributeReadOnly(attribute));
        }
        set.insert(attribute, value.clone());
    }
    Ok(set)
}

/// Checks a template against one that a wrapping or deriving key prescribes, and adds what it prescribes.
pub(crate) fn prescribe(parts: &mut Parts, prescribed: &Attributes) -> Result<()> {
    for (attribute, value) in prescribed {
        match parts.attributes.get(attribute) {
            Some(named) if named != value => {
                return Err(Error::TemplateInconsistent(
                    "the unwrapping or base key prescribes another value",
                ));
            }
            _ => {
                parts.attributes.insert(*attribute, value.clone());
            }
        }
    }
    Ok(())
}
