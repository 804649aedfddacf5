//! Values and templates, as callers hand them in and get them back.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use secret_mem::SecretBuf;

use super::{AttributeType, Error, Result, ValueKind};

/// Most attributes in a template.
pub const MAX_ATTRIBUTES: usize = 64;
/// Longest value of an attribute, in bytes.
pub const MAX_VALUE: usize = 64 << 10;

/// The value of an attribute.
#[derive(Debug)]
#[non_exhaustive]
pub enum Value {
    /// `CK_BBOOL`.
    Bool(bool),
    /// `CK_ULONG`.
    Number(u64),
    /// Bytes, text, a date or a big integer.
    Bytes(Vec<u8>),
    /// A list of mechanisms.
    Mechanisms(Vec<u64>),
    /// A template.
    Template(Template),
    /// Key material.
    Secret(SecretBuf),
}

impl Value {
    /// A secret copied from `bytes`.
    pub fn secret(bytes: &[u8]) -> Self {
        Self::Secret(copy_secret(bytes))
    }
}

/// Copies into locked memory.
pub(crate) fn copy_secret(bytes: &[u8]) -> SecretBuf {
    let copied: Result<SecretBuf, std::convert::Infallible> = SecretBuf::from_fn(bytes.len(), |out| {
        out.copy_from_slice(bytes);
        Ok(bytes.len())
    });
    match copied {
        Ok(secret) => secret,
        Err(never) => match never {},
    }
}

/// A list of attributes with their values. It may hold secrets, so it is not `Clone`.
#[derive(Debug, Default)]
pub struct Template(Vec<(AttributeType, Value)>);

impl Template {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an attribute.
    pub fn push(&mut self, attribute: AttributeType, value: Value) {
        self.0.push((attribute, value));
    }

    /// The same, for chains.
    #[must_use]
    pub fn with(mut self, attribute: AttributeType, value: Value) -> Self {
        self.push(attribute, value);
        self
    }

    /// The attributes in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = &(AttributeType, Value)> {
        self.0.iter()
    }

    /// Number of attributes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn into_parts(self) -> Result<Parts> {
        if self.0.len() > MAX_ATTRIBUTES {
            return Err(Error::TemplateInconsistent("it has too many attributes"));
        }
        let mut parts = Parts::default();
        for (attribute, value) in self.0 {
            let twice = if attribute.is_secret() {
                parts.secrets.insert(attribute, check_secret(attribute, value)?).is_some()
            } else {
                parts.attributes.insert(attribute, Plain::checked(attribute, value)?).is_some()
            };
            if twice {
                return Err(Error::TemplateInconsistent("it names an attribute twice"));
            }
        }
        Ok(parts)
    }
}

impl FromIterator<(AttributeType, Value)> for Template {
    fn from_iter<I: IntoIterator<Item = (AttributeType, Value)>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

/// A template that is well-formed: each attribute once, with a value of its kind.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) attributes: Attributes,
    pub(crate) secrets: BTreeMap<AttributeType, SecretBuf>,
}

/// Attributes of an object that are no secrets.
pub(crate) type Attributes = BTreeMap<AttributeType, Plain>;

/// A value that is no secret.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Plain {
    Bool(bool),
    Number(u64),
    Bytes(Vec<u8>),
    Mechanisms(Vec<u64>),
    /// Attribute numbers and values, sorted; no template within.
    Template(Vec<(u32, Plain)>),
}

fn check_secret(attribute: AttributeType, value: Value) -> Result<SecretBuf> {
    let secret = match value {
        Value::Secret(secret) => secret,
        Value::Bytes(bytes) => copy_secret(&bytes),
        _ => return Err(Error::AttributeValueInvalid(attribute)),
    };
    if secret.len() > MAX_VALUE { Err(Error::AttributeValueInvalid(attribute)) } else { Ok(secret) }
}

impl Plain {
    /// A value that fits its attribute.
    fn checked(attribute: AttributeType, value: Value) -> Result<Self> {
        let invalid = || Error::AttributeValueInvalid(attribute);
        Ok(match (attribute.kind(), value) {
            (ValueKind::Bool, Value::Bool(b)) => Self::Bool(b),
            (ValueKind::Number, Value::Number(n)) => Self::Number(n),
            (_, Value::Bytes(bytes)) if bytes.len() > MAX_VALUE => return Err(invalid()),
            (ValueKind::Bytes, Value::Bytes(bytes)) => Self::Bytes(bytes),
            (ValueKind::Text, Value::Bytes(bytes)) => {
                std::str::from_utf8(&bytes).map_err(|_| invalid())?;
                Self::Bytes(bytes)
            }
            (ValueKind::Date, Value::Bytes(bytes)) => {
                if !(bytes.is_empty() || is_date(&bytes)) {
                    return Err(invalid());
                }
                Self::Bytes(bytes)
            }
            (ValueKind::Mechanisms, Value::Mechanisms(list)) if list.len() <= 256 => Self::Mechanisms(list),
            (ValueKind::Template, Value::Template(template)) => {
                let parts = template.into_parts()?;
                let nested = parts.attributes.values().any(|v| matches!(v, Self::Template(_)));
                if nested || !parts.secrets.is_empty() {
                    return Err(invalid());
                }
                Self::Template(parts.attributes.into_iter().map(|(a, v)| (a as u32, v)).collect())
            }
            _ => return Err(invalid()),
        })
    }

    pub(crate) fn to_value(&self) -> Value {
        match self {
            Self::Bool(b) => Value::Bool(*b),
            Self::Number(n) => Value::Number(*n),
            Self::Bytes(bytes) => Value::Bytes(bytes.clone()),
            Self::Mechanisms(list) => Value::Mechanisms(list.clone()),
            Self::Template(list) => Value::Template(
                list.iter()
                    .filter_map(|(n, v)| Some((AttributeType::from_number(u64::from(*n))?, v.to_value())))
                    .collect(),
            ),
        }
    }

    /// Attributes of a template in a template.
    pub(crate) fn nested(&self) -> Attributes {
        match self {
            Self::Template(list) => list
                .iter()
                .filter_map(|(n, v)| Some((AttributeType::from_number(u64::from(*n))?, v.clone())))
                .collect(),
            _ => Attributes::new(),
        }
    }
}

fn is_date(bytes: &[u8]) -> bool {
    let two = |at: usize| (bytes[at] - b'0') * 10 + bytes[at + 1] - b'0';
    bytes.len() == 8
        && bytes.iter().all(u8::is_ascii_digit)
        && (1..=12).contains(&two(4))
        && (1..=31).contains(&two(6))
}
