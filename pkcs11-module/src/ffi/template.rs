//! Templates: lists of attributes.

use std::ptr;

use cryptoki_sys as ck;
use hsm_engine::objects::{AttributeType, MAX_ATTRIBUTES, MAX_VALUE, Template, Value, ValueKind};

use super::memory::{bytes, get};
use crate::rv::{Result, Rv};

const WORD: usize = size_of::<ck::CK_ULONG>();

/// A caller's template.
///
/// # Safety
/// `list` is null or points to `count` attributes, whose values are null or valid for their lengths.
pub(super) unsafe fn read(list: *const ck::CK_ATTRIBUTE, count: ck::CK_ULONG) -> Result<Template> {
    // SAFETY: the caller's promise.
    unsafe { read_level(list, count, true) }
}

/// # Safety
/// As [`read`].
unsafe fn read_level(list: *const ck::CK_ATTRIBUTE, count: ck::CK_ULONG, nests: bool) -> Result<Template> {
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_ATTRIBUTES);
    let count = count.ok_or(Rv(ck::CKR_TEMPLATE_INCONSISTENT))?;
    let mut template = Template::new();
    for index in 0..count {
        if list.is_null() {
            return Err(Rv(ck::CKR_ARGUMENTS_BAD));
        }
        // SAFETY: within the `count` attributes of the caller.
        let attribute = unsafe { get(list.add(index))? };
        let kind = AttributeType::from_number(attribute.type_).ok_or(Rv(ck::CKR_ATTRIBUTE_TYPE_INVALID))?;
        // SAFETY: the caller's promise.
        template.push(kind, unsafe { value_of(kind, &attribute, nests)? });
    }
    Ok(template)
}

/// # Safety
/// The attribute's value is null or valid for its length.
unsafe fn value_of(kind: AttributeType, attribute: &ck::CK_ATTRIBUTE, nests: bool) -> Result<Value> {
    let invalid = Rv(ck::CKR_ATTRIBUTE_VALUE_INVALID);
    if usize::try_from(attribute.ulValueLen).map_or(true, |len| len > MAX_VALUE) {
        return Err(invalid);
    }
    // SAFETY: the caller's promise.
    let raw = unsafe { bytes(attribute.pValue.cast(), attribute.ulValueLen) }.map_err(|_| invalid)?;
    let word = |raw: &[u8]| raw.try_into().map(ck::CK_ULONG::from_ne_bytes).map_err(|_| invalid);
    Ok(match kind.kind() {
        ValueKind::Bool => match raw {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return Err(invalid),
        },
        ValueKind::Number => Value::Number(word(raw)?),
        ValueKind::Mechanisms if raw.len().is_multiple_of(WORD) => {
            Value::Mechanisms(raw.chunks_exact(WORD).map(word).collect::<Result<_>>()?)
        }
        ValueKind::Template if nests && raw.len().is_multiple_of(size_of::<ck::CK_ATTRIBUTE>()) => {
            let count = raw.len() / size_of::<ck::CK_ATTRIBUTE>();
            // SAFETY: the caller's bytes are that many attributes, whose values are as promised.
            let inner = unsafe { read_level(attribute.pValue.cast(), count as ck::CK_ULONG, false)? };
            Value::Template(inner)
        }
        ValueKind::Mechanisms | ValueKind::Template => return Err(invalid),
        ValueKind::Secret => Value::secret(raw),
        _ => Value::Bytes(raw.to_vec()),
    })
}

/// Puts a value into the caller's attribute, by the rules of `C_GetAttributeValue`: the length is always told, or that there is none.
///
/// # Safety
/// `attribute` is valid for reads and writes, and its value null or valid for writes of its length.
pub(super) unsafe fn write(attribute: *mut ck::CK_ATTRIBUTE, value: Result<Value>) -> Result<()> {
    // SAFETY: the caller's promise.
    let wanted = unsafe { get(attribute.cast_const())? };
    let put = |value: &[u8]| {
        let (len, room) = (value.len() as ck::CK_ULONG, wanted.ulValueLen);
        let (told, result) = match wanted.pValue.is_null() {
            true => (len, Ok(())),
            false if room < len => (ck::CK_UNAVAILABLE_INFORMATION, Err(Rv(ck::CKR_BUFFER_TOO_SMALL))),
            false => {
                // SAFETY: the caller's buffer has `room` bytes, which are enough; the value is our own memory.
                unsafe { ptr::copy_nonoverlapping(value.as_ptr(), wanted.pValue.cast(), value.len()) };
                (len, Ok(()))
            }
        };
        // SAFETY: the caller's promise.
        unsafe { (&raw mut (*attribute).ulValueLen).write_unaligned(told) };
        result
    };
    match value {
        Ok(Value::Bool(flag)) => put(&[u8::from(flag)]),
        Ok(Value::Number(number)) => put(&number.to_ne_bytes()),
        Ok(Value::Bytes(bytes)) => put(&bytes),
        Ok(Value::Secret(secret)) => put(secret.as_slice()),
        Ok(Value::Mechanisms(list)) => put(&list.iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<u8>>()),
        Ok(Value::Template(template)) if template.is_empty() => put(&[]),
        // Templates in templates can be set, not read: nobody's program asks for them.
        other => {
            // SAFETY: the caller's promise.
            unsafe { (&raw mut (*attribute).ulValueLen).write_unaligned(ck::CK_UNAVAILABLE_INFORMATION) };
            Err(other.err().unwrap_or(Rv(ck::CKR_ATTRIBUTE_TYPE_INVALID)))
        }
    }
}
