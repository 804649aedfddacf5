//! What of a cluster is not encrypted, or not yet, and whether more of it can come to be.

use serde::Serialize;

use super::report::TablespaceReport;

/// What is not covered.
#[derive(Serialize)]
pub(crate) struct Coverage {
    /// Whether `pg_tde.enforce_encryption` is on in the configuration files; a database or role may have a setting of its own.
    pub(crate) enforced: bool,
    /// Tablespaces with pages in clear.
    pub(crate) in_clear: Vec<InClear>,
    /// Tablespaces that a job works on, as the keyring says; needs the HSM.
    pub(crate) unfinished: Vec<Unfinished>,
}

#[derive(Serialize)]
pub(crate) struct InClear {
    /// Its name, or where it is.
    tablespace: String,
    oid: u32,
    plain_pages: u64,
    /// The first of them; `SELECT pg_filenode_relation(TABLESPACE, NUMBER)` in the database names the relation.
    files: Vec<String>,
}

#[derive(Serialize)]
pub(crate) struct Unfinished {
    tablespace: String,
    oid: u32,
    state: String,
    plain_pages: u64,
}

impl Coverage {
    pub(super) fn of(tablespaces: &[TablespaceReport], enforced: bool) -> Self {
        // The catalog has the name; the keyring knows those that it has a key for.
        let name = |space: &TablespaceReport| {
            let known = space.name.clone().or_else(|| space.location.clone());
            known.unwrap_or_else(|| format!("OID {}", space.oid))
        };
        let in_clear = tablespaces.iter().filter(|space| space.pages.plain > 0).map(|space| InClear {
            tablespace: name(space),
            oid: space.oid,
            plain_pages: space.pages.plain,
            files: space.plain_files.clone(),
        });
        let unfinished = tablespaces.iter().filter_map(|space| {
            let state = space.state.clone()?;
            let works = ["encrypting", "rotating", "decrypting"].contains(&state.as_str());
            works.then(|| Unfinished {
                tablespace: name(space),
                oid: space.oid,
                state,
                plain_pages: space.pages.plain,
            })
        });
        Self { enforced, in_clear: in_clear.collect(), unfinished: unfinished.collect() }
    }

    /// Where something is encrypted, what is not: as problems where the configuration promises that there is none, otherwise as notes.
    pub(super) fn judge(&self, in_use: bool, problems: &mut Vec<String>, notes: &mut Vec<String>) {
        for space in &self.in_clear {
            let InClear { tablespace, oid, plain_pages, files } = space;
            let first = files.first().map_or(String::new(), |file| format!(", the first in {file}"));
            let found = format!("tablespace {tablespace} ({oid}) holds {plain_pages} plain pages{first}");
            let advice = "tde.encrypt_tablespace encrypts it";
            if self.enforced {
                problems.push(format!(
                    "{found}, although pg_tde.enforce_encryption is on: what was made before is not covered; {advice}"
                ));
            } else if in_use {
                notes.push(format!("{found}; {advice}"));
            }
        }
        for space in &self.unfinished {
            notes.push(format!(
                "tablespace {} ({}) is {}: a job finishes it while the server runs (tde job list)",
                space.tablespace, space.oid, space.state
            ));
        }
        if in_use && !self.enforced {
            notes.push(
                "pg_tde.enforce_encryption is off: relations can be made outside of encrypted tablespaces"
                    .to_owned(),
            );
        }
    }
}
