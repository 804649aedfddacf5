//! Whether two databases hold the same: what a conversion is checked with before the original goes.

use std::path::Path;

use rusqlite::Connection;
use rusqlite::types::ValueRef;
use sha2::{Digest, Sha256};

use super::progress::{Progress, Stopped};
use super::{Result, at};

/// What a database keeps besides its tables; SQLite's `PRAGMA` names.
const PRAGMAS: [&str; 7] = [
    "user_version",
    "application_id",
    "auto_vacuum",
    "encoding",
    "page_size",
    "journal_mode",
    "default_cache_size",
];

/// The copy is not the original.
#[derive(Debug, thiserror::Error)]
pub(super) enum Difference {
    #[error("the copy differs from the original in {what}; the original was left as it is")]
    Differs { what: String },
    #[error("the copy does not pass SQLite's integrity check ({what}); the original was left as it is")]
    Integrity { what: String },
}

/// One part of a database, and a hash of everything in it.
#[derive(PartialEq, Eq)]
struct Part {
    name: String,
    digest: [u8; 32],
}

/// Compares schema, pragmas and every row with its row id; then checks the copy's indexes against its tables.
pub(super) fn same(
    original: (&Path, &Connection),
    copy: (&Path, &Connection),
    progress: &Progress,
) -> Result<()> {
    let tables = tables_of(original.0, original.1)?;
    let bar = progress.bar("comparing", tables.len() as u64 + 3);
    compare(&pragmas_of(original.0, original.1)?, &pragmas_of(copy.0, copy.1)?)?;
    bar.inc(1);
    compare(&schema_of(original.0, original.1)?, &schema_of(copy.0, copy.1)?)?;
    bar.inc(1);
    for table in &tables {
        let one = [rows_of(original.0, original.1, table, progress)?];
        let other = [rows_of(copy.0, copy.1, table, progress)?];
        compare(&one, &other)?;
        bar.inc(1);
    }
    let check = "PRAGMA integrity_check(1)";
    let said: String = copy.1.query_row(check, [], |row| row.get(0)).map_err(at(copy.0))?;
    if said != "ok" {
        return Err(Difference::Integrity { what: said }.into());
    }
    bar.finish_and_clear();
    Ok(())
}

fn compare(one: &[Part], other: &[Part]) -> std::result::Result<(), Difference> {
    let mut pairs = one.iter().zip(other);
    let what = match pairs.find(|(one, other)| one != other) {
        Some((part, _)) => part.name.clone(),
        None if one.len() != other.len() => "the number of its tables, indexes, views and triggers".into(),
        None => return Ok(()),
    };
    Err(Difference::Differs { what })
}

fn pragmas_of(path: &Path, db: &Connection) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for name in PRAGMAS {
        let mut hasher = Sha256::new();
        db.query_row(&format!("PRAGMA {name}"), [], |row| {
            add(&mut hasher, row.get_ref(0)?);
            Ok(())
        })
        .map_err(at(path))?;
        parts.push(Part { name: format!("PRAGMA {name}"), digest: hasher.finalize().into() });
    }
    Ok(parts)
}

/// Everything but where things are in the file.
fn schema_of(path: &Path, db: &Connection) -> Result<Vec<Part>> {
    let sql = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name";
    let mut statement = db.prepare(sql).map_err(at(path))?;
    let part = |row: &rusqlite::Row<'_>| {
        let mut hasher = Sha256::new();
        for column in 0..4 {
            add(&mut hasher, row.get_ref(column)?);
        }
        let (kind, name): (String, String) = (row.get(0)?, row.get(1)?);
        Ok(Part { name: format!("{kind} \"{name}\""), digest: hasher.finalize().into() })
    };
    let parts = statement.query_map([], part).map_err(at(path))?;
    Ok(parts.collect::<rusqlite::Result<_>>().map_err(at(path))?)
}

/// Tables that have rows of their own, SQLite's included.
struct Table {
    name: String,
    has_row_ids: bool,
}

fn tables_of(path: &Path, db: &Connection) -> Result<Vec<Table>> {
    let sql = "SELECT s.name, NOT l.wr FROM sqlite_schema s JOIN pragma_table_list l ON l.schema = 'main' AND l.name = s.name \
               WHERE s.type = 'table' AND s.rootpage > 0 ORDER BY s.name";
    let mut statement = db.prepare(sql).map_err(at(path))?;
    let table = |row: &rusqlite::Row<'_>| Ok(Table { name: row.get(0)?, has_row_ids: row.get(1)? });
    let tables = statement.query_map([], table).map_err(at(path))?;
    Ok(tables.collect::<rusqlite::Result<_>>().map_err(at(path))?)
}

/// Columns that are stored: those that are computed may need functions that only the application has.
fn columns_of(path: &Path, db: &Connection, table: &str) -> Result<Vec<String>> {
    let sql = "SELECT name FROM pragma_table_xinfo(?1) WHERE hidden IN (0, 3)";
    let mut statement = db.prepare(sql).map_err(at(path))?;
    let columns = statement.query_map([table], |row| row.get(0)).map_err(at(path))?;
    Ok(columns.collect::<rusqlite::Result<_>>().map_err(at(path))?)
}

fn rows_of(path: &Path, db: &Connection, table: &Table, progress: &Progress) -> Result<Part> {
    let quote = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let columns = columns_of(path, db, &table.name)?;
    let mut selected: Vec<_> = columns.iter().map(|column| quote(column)).collect();
    if table.has_row_ids {
        let free = |name: &&str| !columns.iter().any(|column| column.eq_ignore_ascii_case(name));
        let name = ["rowid", "_rowid_", "oid"].into_iter().find(free);
        // Where columns have all three names, no statement of any program can name the row id either.
        if let Some(name) = name {
            selected.insert(0, name.to_owned());
        }
    }
    // The order of the table's own tree, which needs no collation that only the application has.
    let sql = format!("SELECT {} FROM main.{} NOT INDEXED", selected.join(", "), quote(&table.name));
    let mut statement = db.prepare(&sql).map_err(at(path))?;
    let count = statement.column_count();
    let mut rows = statement.query([]).map_err(at(path))?;
    let mut hasher = Sha256::new();
    while let Some(row) = rows.next().map_err(at(path))? {
        for column in 0..count {
            add(&mut hasher, row.get_ref(column).map_err(at(path))?);
        }
        if progress.stopped() {
            return Err(Stopped("the database was left as it is").into());
        }
    }
    Ok(Part { name: format!("the rows of table \"{}\"", table.name), digest: hasher.finalize().into() })
}

/// Type, length and bytes: no two rows hash the same stream.
fn add(hasher: &mut Sha256, value: ValueRef<'_>) {
    let (kind, number, bytes): (u8, [u8; 8], &[u8]) = match value {
        ValueRef::Null => (0, [0; 8], &[]),
        ValueRef::Integer(integer) => (1, integer.to_le_bytes(), &[]),
        ValueRef::Real(real) => (2, real.to_bits().to_le_bytes(), &[]),
        ValueRef::Text(text) => (3, (text.len() as u64).to_le_bytes(), text),
        ValueRef::Blob(blob) => (4, (blob.len() as u64).to_le_bytes(), blob),
    };
    hasher.update([kind]);
    hasher.update(number);
    hasher.update(bytes);
}
