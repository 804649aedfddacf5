//! Versions of the master key: secret keys of one label, whose CKA_ID is the master key's id and the version.
//!
//! ```text
//! CKA_ID   0  16  id of the master key, the same for all its versions
//!         16   4  version, from 1, big-endian
//! ```
//! Tokens have no lock and no unique ids. Two programs that make a version at the same moment both see two keys of one id, and each
//! destroys its own.

use std::collections::BTreeMap;

use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use keyring::pkcs11::wire::Failure;
use uuid::Uuid;

use crate::refusal::{Refusal, Result};
use crate::token::Token;

/// The versions that are on the token.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) id: [u8; 16],
    /// More than one key of a version only while somebody makes one, or if a token was restored wrongly.
    pub(crate) versions: BTreeMap<u32, Vec<ObjectHandle>>,
}

/// The id of a version's key.
pub(crate) fn object_id(line: [u8; 16], version: u32) -> Vec<u8> {
    [&line[..], &version.to_be_bytes()].concat()
}

impl Line {
    /// The master key that the URI means.
    pub(crate) fn find(token: &Token) -> Result<Self> {
        let label = &token.selection.label;
        Self::find_if_any(token)?.ok_or_else(|| {
            let text = format!(
                "{} has no master key labelled \"{label}\"; `tde hsm token create-key` makes one",
                token.name()
            );
            Refusal::new(Failure::NoKey, text)
        })
    }

    /// The master key that the URI means, if it is there.
    pub(crate) fn find_if_any(token: &Token) -> Result<Option<Self>> {
        let label = &token.selection.label;
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        let mut lines: BTreeMap<[u8; 16], Self> = BTreeMap::new();
        let mut others = 0;
        for handle in token.session.find_objects(&template)? {
            let Some((id, version)) = id_of(token, handle)? else {
                others += 1;
                continue;
            };
            if token.selection.id.is_none_or(|wanted| wanted == id) {
                let line = lines.entry(id).or_insert_with(|| Self { id, versions: BTreeMap::new() });
                line.versions.entry(version).or_default().push(handle);
            }
        }
        if lines.len() > 1 {
            let ids: Vec<_> = lines.keys().map(|id| Uuid::from_bytes(*id).to_string()).collect();
            let text = format!(
                "{} has several master keys labelled \"{label}\": {}; name one by id=",
                token.name(),
                ids.join(", ")
            );
            return Err(Refusal::new(Failure::NoKey, text));
        }
        if lines.is_empty() && others > 0 {
            let text = format!(
                "{} has {others} AES key(s) labelled \"{label}\", but their CKA_ID is not a master key's: 16 bytes of id and 4 of version",
                token.name()
            );
            return Err(Refusal::new(Failure::NoKey, text));
        }
        Ok(lines.into_values().next())
    }

    /// The newest version; a line has at least one.
    pub(crate) fn newest(&self) -> u32 {
        self.versions.last_key_value().map_or(0, |(version, _)| *version)
    }

    /// The key of the newest version, for wrapping.
    pub(crate) fn primary(&self, token: &Token) -> Result<(u32, ObjectHandle)> {
        let version = self.newest();
        match self.versions.get(&version).map(Vec::as_slice) {
            Some([only]) => {
                check_secrecy(token, *only, version)?;
                Ok((version, *only))
            }
            _ => {
                let text = format!(
                    "{} has several keys that are version {version} of master key \"{}\": another program is just making it, or the token was restored over itself",
                    token.name(),
                    token.selection.label
                );
                Err(Refusal::new(Failure::Away, text))
            }
        }
    }
}

/// Makes a version on the token.
pub(crate) fn generate(token: &Token, line: [u8; 16], version: u32) -> Result<ObjectHandle> {
    let id = object_id(line, version);
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Label(token.selection.label.as_bytes().to_vec()),
        Attribute::Id(id.clone()),
    ];
    template.extend(token.method.rights());
    let made = token.session.generate_key(&Mechanism::AesKeyGen, &template)?;
    let same = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Token(true), Attribute::Id(id)];
    let keys = token.session.find_objects(&same)?;
    // Also proves that the token keeps it as it was told to, and that it wraps, before anything relies on it.
    let sound = if keys.len() > 1 {
        let text = format!("another program made version {version} at the same moment; try again");
        Err(Refusal::new(Failure::Away, text))
    } else {
        check_secrecy(token, made, version).and_then(|()| token.method.prove(&token.session, made))
    };
    if let Err(refusal) = sound {
        token.session.destroy_object(made)?;
        return Err(refusal);
    }
    Ok(made)
}

/// A master key that could leave the token is none.
pub(crate) fn check_secrecy(token: &Token, key: ObjectHandle, version: u32) -> Result<()> {
    let wanted = [AttributeType::Sensitive, AttributeType::Extractable];
    let attributes = token.session.get_attributes(key, &wanted)?;
    let has = |wanted: &Attribute| attributes.contains(wanted);
    if has(&Attribute::Sensitive(true)) && has(&Attribute::Extractable(false)) {
        return Ok(());
    }
    let text = format!(
        "version {version} of master key \"{}\" can be taken out of {}: it must be sensitive and not extractable",
        token.selection.label,
        token.name()
    );
    Err(Refusal::new(Failure::Refused, text))
}

fn id_of(token: &Token, handle: ObjectHandle) -> Result<Option<([u8; 16], u32)>> {
    let attributes = token.session.get_attributes(handle, &[AttributeType::Id])?;
    let Some(Attribute::Id(id)) = attributes.first() else { return Ok(None) };
    let Some((line, version)) = id.split_first_chunk::<16>() else { return Ok(None) };
    let version = <[u8; 4]>::try_from(version).ok().map(u32::from_be_bytes);
    Ok(version.filter(|version| *version > 0).map(|version| (*line, version)))
}
