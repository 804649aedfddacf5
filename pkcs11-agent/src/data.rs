//! Numbers and marks that the token keeps as private data objects of the application "tde".
//!
//! ```text
//! CKA_LABEL  keyring/INSTANCE/KEYRING     CKA_VALUE  newest generation, 8 bytes big-endian
//! CKA_LABEL  destroyed/MASTER KEY/VERSION CKA_VALUE  the version, 8 bytes big-endian
//! ```
//! A number is raised by making a new object and then destroying the lower ones; of several the highest counts. So neither a crash nor
//! another program at the same time lowers it.

use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use keyring::pkcs11::wire::Failure;
use uuid::Uuid;

use crate::refusal::{Refusal, Result};
use crate::token::Token;

const APPLICATION: &[u8] = b"tde";

struct Number {
    name: String,
    value: u64,
    object: ObjectHandle,
}

/// The value of a number.
pub(crate) fn value(token: &Token, name: &str) -> Result<Option<u64>> {
    Ok(objects(token, name)?.iter().filter(|number| number.name == name).map(|number| number.value).max())
}

/// All numbers whose name begins with `prefix`.
pub(crate) fn values(token: &Token, prefix: &str) -> Result<Vec<(String, u64)>> {
    let mut all: Vec<_> =
        objects(token, prefix)?.into_iter().map(|number| (number.name, number.value)).collect();
    // Highest first within a name, of which the first stays.
    all.sort_by(|one, other| (&one.0, other.1).cmp(&(&other.0, one.1)));
    all.dedup_by(|later, first| later.0 == first.0);
    Ok(all)
}

/// Raises a number, unless it is as high.
pub(crate) fn raise(token: &Token, name: &str, value: u64) -> Result<()> {
    let mut old = objects(token, name)?;
    old.retain(|number| number.name == name);
    if old.iter().all(|number| number.value < value) {
        put(token, name, &value.to_be_bytes())?;
    }
    let highest = old.iter().map(|number| number.value).max().unwrap_or(0).max(value);
    for number in old.iter().filter(|number| number.value < highest) {
        destroy(token, number.object)?;
    }
    Ok(())
}

/// Forgets a number.
pub(crate) fn forget(token: &Token, name: &str) -> Result<()> {
    for number in objects(token, name)?.iter().filter(|number| number.name == name) {
        destroy(token, number.object)?;
    }
    Ok(())
}

/// Versions of a master key that were destroyed on purpose.
pub(crate) fn destroyed(token: &Token, line: [u8; 16]) -> Result<Vec<u32>> {
    let prefix = mark(line, "");
    let marks = objects(token, &prefix)?;
    let mut versions: Vec<u32> =
        marks.iter().filter_map(|number| number.name.strip_prefix(&prefix)?.parse().ok()).collect();
    versions.sort_unstable();
    versions.dedup();
    Ok(versions)
}

/// Remembers that a version was destroyed on purpose.
pub(crate) fn mark_destroyed(token: &Token, line: [u8; 16], version: u32) -> Result<()> {
    put(token, &mark(line, &version.to_string()), &u64::from(version).to_be_bytes())
}

fn mark(line: [u8; 16], version: &str) -> String {
    format!("destroyed/{}/{version}", Uuid::from_bytes(line))
}

fn objects(token: &Token, prefix: &str) -> Result<Vec<Number>> {
    let template = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Application(APPLICATION.to_vec()),
    ];
    let mut found = Vec::new();
    for object in token.session.find_objects(&template)? {
        let wanted = [AttributeType::Label, AttributeType::Value];
        let (mut name, mut value) = (None, 0);
        for attribute in token.session.get_attributes(object, &wanted)? {
            match attribute {
                Attribute::Label(label) => name = String::from_utf8(label).ok(),
                Attribute::Value(bytes) => value = <[u8; 8]>::try_from(bytes).map_or(0, u64::from_be_bytes),
                _ => (),
            }
        }
        found.extend(name.filter(|name| name.starts_with(prefix)).map(|name| Number { name, value, object }));
    }
    Ok(found)
}

fn put(token: &Token, name: &str, value: &[u8]) -> Result<()> {
    let template = [
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Application(APPLICATION.to_vec()),
        Attribute::Label(name.as_bytes().to_vec()),
        Attribute::Value(value.to_vec()),
    ];
    match token.session.create_object(&template) {
        Ok(_) => Ok(()),
        Err(error) => {
            let mut refusal = Refusal::from(error);
            if refusal.failure == Failure::Refused {
                refusal.text.push_str(
                    "; if this token holds no data objects, x-generations=none in the URI does without the check for old keyrings",
                );
            }
            Err(refusal)
        }
    }
}

fn destroy(token: &Token, object: ObjectHandle) -> Result<()> {
    use cryptoki::error::{Error, RvError};
    match token.session.destroy_object(object) {
        // Another program was faster.
        Ok(()) | Err(Error::Pkcs11(RvError::ObjectHandleInvalid, _)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
