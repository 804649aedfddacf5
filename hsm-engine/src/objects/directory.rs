//! Which objects there are: a directory of pages, so that neither adding an object nor opening the store costs more the more
//! objects there are.
//!
//! # Write order of a change, and what a crash leaves
//! Under the store's lock, between the audit record and the root of [`transaction`](crate::transaction):
//! 1. the object is put (unless it is destroyed): a new one lies unused; a changed one is newer than its page says, which is accepted
//! 2. its page is put: the object is there, changed or gone; the page is newer than the directory says, which is accepted. The directory's number of
//!    objects may be one off then; the next change of that page counts anew
//! 3. the directory is put: newer than the root says, which is accepted
//! 4. the root is put: done
//! 5. a destroyed object's file is removed: if not, it lies unused
//!
//! Every step names the lowest revision of the one before, up to the root: an old copy of an object, a page or the directory is
//! noticed.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::object::{Object, ObjectId};
use super::records::{Directory, Entry, Page, Record};
use super::{Error, Result};
use crate::keys::StoreKeys;
use crate::object::{self, Kind};
use crate::store::{ObjectName, Store};
use crate::transaction::{Core, Transaction};

/// Number of pages. With 100,000 objects one has some 200 entries, 13 KB.
pub(crate) const PAGES: usize = 512;
/// Where objects and pages are.
const AREA: &str = "objects";

/// First 8 bytes of the SHA-256.
pub(crate) fn short_hash(bytes: &[u8]) -> u64 {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    u64::from_le_bytes(digest[..8].try_into().expect("8 of 32 bytes"))
}

pub(crate) fn directory_name() -> ObjectName {
    ObjectName::fixed("objects")
}

fn page_name(page: usize) -> Result<ObjectName> {
    Ok(ObjectName::new(format!("page.{page:03}"))?)
}

fn object_name(id: ObjectId) -> Result<ObjectName> {
    Ok(ObjectName::new(format!("key.{}", id.0))?)
}

fn page_of(id: ObjectId) -> usize {
    let [a, b, ..] = *id.0.as_bytes();
    usize::from(u16::from_be_bytes([a, b])) % PAGES
}

fn corrupt(core: &Core, name: &ObjectName, field: &'static str) -> Error {
    object::damaged(core.store(), name, crate::error::Damage::Field(field)).into()
}

/// What is known of the directory, as read last. Pages are read when they are first needed, and again when they change.
#[derive(Default)]
pub(crate) struct View {
    revision: u64,
    directory: Option<Arc<Directory>>,
    pages: HashMap<usize, (u64, Arc<Page>)>,
}

impl View {
    /// Revision of the directory that this view is of.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Which revision the directory's file says it has. To be asked before the view is locked, so that threads do not wait for each
    /// other's system calls.
    pub(crate) fn hint(core: &Core) -> Result<Option<u64>> {
        Ok(object::revision_hint(core.store(), &directory_name())?)
    }

    /// Reads the directory anew if its file says that it changed. The revision in clear is only a hint; what is used is opened.
    pub(crate) fn refresh(&mut self, hint: Option<u64>, core: &Core, keys: &StoreKeys) -> Result<u64> {
        if hint == Some(self.revision) || hint.is_none() && self.directory.is_none() && self.revision == 0 {
            // No directory: there must be none.
            if hint.is_none() && core.root(keys)?.value.extension.is_some_and(|e| e.objects > 0) {
                return Err(object::missing(core.store(), &directory_name()).into());
            }
            return Ok(self.revision);
        }
        let found = read_directory(core, keys)?;
        (self.revision, self.directory) = match found {
            Some((revision, directory)) => (revision, Some(Arc::new(directory))),
            None => (0, None),
        };
        Ok(self.revision)
    }

    fn page(&mut self, core: &Core, keys: &StoreKeys, page: usize) -> Result<Arc<Page>> {
        let expected = self.directory.as_ref().map_or(0, |d| d.pages[page]);
        match self.pages.get(&page) {
            Some((revision, found)) if *revision >= expected => return Ok(Arc::clone(found)),
            _ if expected == 0 => return Ok(Arc::default()),
            _ => {}
        }
        let (revision, found) = read_page(core, keys, page, expected)?;
        let found = Arc::new(found);
        self.pages.insert(page, (revision, Arc::clone(&found)));
        Ok(found)
    }

    /// The entry of an object.
    pub(crate) fn entry(&mut self, core: &Core, keys: &StoreKeys, id: ObjectId) -> Result<Option<Entry>> {
        let page = self.page(core, keys, page_of(id))?;
        let at = page.entries.binary_search_by(|e| e.id.cmp(id.0.as_bytes()));
        Ok(at.ok().map(|i| page.entries[i].clone()))
    }

    /// Ids of the objects whose entries are wanted, in the order of their ids.
    pub(crate) fn find(
        &mut self,
        core: &Core,
        keys: &StoreKeys,
        wanted: &dyn Fn(&Entry) -> bool,
    ) -> Result<Vec<ObjectId>> {
        let mut found = Vec::new();
        if self.directory.is_none() {
            return Ok(found);
        }
        for page in 0..PAGES {
            let page = self.page(core, keys, page)?;
            let ids = page.entries.iter().filter(|e| wanted(e)).map(|e| ObjectId(Uuid::from_bytes(e.id)));
            found.extend(ids);
        }
        Ok(found)
    }
}

/// The directory, checked against the root; `None` if there never was an object.
fn read_directory(core: &Core, keys: &StoreKeys) -> Result<Option<(u64, Directory)>> {
    let expected = core.root(keys)?.value.extension.map_or(0, |e| e.objects);
    let name = directory_name();
    let Some(found) = keys.sealer.get::<Directory>(core.store(), Kind::Directory, &name)? else {
        return if expected == 0 { Ok(None) } else { Err(object::missing(core.store(), &name).into()) };
    };
    core.check_revision(&name, found.revision, expected)?;
    if found.value.pages.len() != PAGES {
        return Err(corrupt(core, &name, "number of pages"));
    }
    Ok(Some((found.revision, found.value)))
}

fn area(core: &Core) -> Result<Arc<dyn Store>> {
    Ok(core.store().area(&ObjectName::fixed(AREA))?)
}

fn read_page(core: &Core, keys: &StoreKeys, page: usize, expected: u64) -> Result<(u64, Page)> {
    let (name, area) = (page_name(page)?, area(core)?);
    let found = keys.sealer.get::<Page>(&*area, Kind::Page, &name)?;
    let found = found.ok_or_else(|| object::missing(&*area, &name))?;
    core.check_revision(&name, found.revision, expected)?;
    if !found.value.entries.is_sorted_by(|a, b| a.id < b.id) {
        return Err(corrupt(core, &name, "order of entries"));
    }
    Ok((found.revision, found.value))
}

/// Reads an object that its page names; `None` if its file is gone, which a destruction a moment ago explains.
pub(crate) fn read_object(core: &Core, keys: &StoreKeys, entry: &Entry) -> Result<Option<Object>> {
    let id = ObjectId(Uuid::from_bytes(entry.id));
    let (name, area) = (object_name(id)?, area(core)?);
    let Some(found) = keys.sealer.get::<Record>(&*area, Kind::Key, &name)? else { return Ok(None) };
    core.check_revision(&name, found.revision, entry.revision)?;
    let revision = found.revision;
    if found.value.id != entry.id {
        return Err(corrupt(core, &name, "id"));
    }
    Object::from_record(found.value, revision).map(Some).map_err(|d| object::damaged(&*area, &name, d).into())
}

/// One change of one object.
pub(crate) enum Change<'a> {
    Put(&'a Object),
    Destroy(ObjectId),
}

/// Makes a change within a transaction that has logged it, and commits. Returns the object's new revision.
pub(crate) fn apply(
    core: &Core,
    keys: &StoreKeys,
    mut tx: Transaction<'_>,
    change: &Change<'_>,
    max_objects: u64,
) -> Result<u64> {
    let id = match change {
        Change::Put(object) => object.id,
        Change::Destroy(id) => *id,
    };
    let (name, number, area) = (object_name(id)?, page_of(id), area(core)?);
    let (revision, mut directory) =
        read_directory(core, keys)?.unwrap_or_else(|| (0, Directory { count: 0, pages: vec![0; PAGES] }));
    let (page_revision, mut page) = match directory.pages[number] {
        0 => (0, Page::default()),
        expected => read_page(core, keys, number, expected)?,
    };
    if page_revision > directory.pages[number] {
        directory.count = count(core, keys, &directory)?;
    }
    let at = page.entries.binary_search_by(|e| e.id.cmp(id.0.as_bytes()));
    let mut object_revision = 0;
    match (change, at) {
        (Change::Put(object), at) => {
            object_revision = object.revision.saturating_add(1);
            let entry = object.to_entry(object_revision);
            match at {
                Ok(i) if page.entries[i].revision > object.revision => {
                    // Somebody else changed it since it was read.
                    return Err(Error::ActionProhibited(
                        "another program changed it a moment ago; try again",
                    ));
                }
                Ok(i) => page.entries[i] = entry,
                Err(_) if object.revision > 0 => return Err(Error::NoSuchObject(id)),
                Err(_) if directory.count >= max_objects => {
                    let limit = usize::try_from(max_objects).unwrap_or(usize::MAX);
                    return Err(Error::Full { what: "objects", limit });
                }
                Err(i) => {
                    page.entries.insert(i, entry);
                    directory.count += 1;
                }
            }
            let stored = object::Object { revision: object_revision, value: object.to_record() };
            keys.sealer.put(&*area, Kind::Key, &name, &stored)?;
        }
        (Change::Destroy(_), Ok(i)) => {
            page.entries.remove(i);
            directory.count = directory.count.saturating_sub(1);
        }
        (Change::Destroy(_), Err(_)) => return Err(Error::NoSuchObject(id)),
    }
    let page = object::Object { revision: page_revision + 1, value: page };
    keys.sealer.put(&*area, Kind::Page, &page_name(number)?, &page)?;
    directory.pages[number] = page.revision;
    let directory = object::Object { revision: revision + 1, value: directory };
    tx.put(Kind::Directory, &directory_name(), &directory)?;
    tx.root_mut().extended().objects = directory.revision;
    tx.commit()?;
    if let Change::Destroy(_) = change {
        area.delete(&name)?;
    }
    Ok(object_revision)
}

/// Objects of all pages as they are.
fn count(core: &Core, keys: &StoreKeys, directory: &Directory) -> Result<u64> {
    let mut count = 0;
    for (number, &expected) in directory.pages.iter().enumerate().filter(|(_, r)| **r > 0) {
        count += read_page(core, keys, number, expected)?.1.entries.len() as u64;
    }
    Ok(count)
}

/// Reads everything: the directory, every page, every object. Returns the number of objects.
pub(crate) fn verify(
    core: &Core,
    keys: &StoreKeys,
    visit: &mut dyn FnMut(&Object) -> Result<()>,
) -> Result<u64> {
    let Some((_, directory)) = read_directory(core, keys)? else { return Ok(0) };
    let (mut count, mut half_changed) = (0, false);
    for (number, &expected) in directory.pages.iter().enumerate().filter(|(_, r)| **r > 0) {
        let (revision, page) = read_page(core, keys, number, expected)?;
        half_changed |= revision > expected;
        for entry in page.entries {
            let id = ObjectId(Uuid::from_bytes(entry.id));
            if page_of(id) != number {
                return Err(corrupt(core, &page_name(number)?, "id of an entry"));
            }
            let object = read_object(core, keys, &entry)?;
            let name = object_name(id)?;
            let missing = || object::missing(core.store(), &name);
            visit(&object.ok_or_else(missing)?)?;
            count += 1;
        }
    }
    if half_changed || count == directory.count {
        Ok(count)
    } else {
        Err(corrupt(core, &directory_name(), "number of objects"))
    }
}
