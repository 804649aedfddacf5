//! Notes in an encrypted SQLite database, through `rusqlite`.
//!
//! ```text
//! tde hsm init --store hsm --pin-file pin            # a software HSM, once
//! export TDE_HSM=soft:$PWD/hsm TDE_PIN_FILE=$PWD/pin TDE_KEYRING=$PWD/keyring
//! sqlite-rust-example notes.db "water the plants"    # adds a note and prints all
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::{env, path};

use rusqlite::{Connection, OpenFlags};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().collect();
    let [_, file, text] = arguments.as_slice() else { return Err("usage: FILE NOTE".into()) };

    // What the builder is not told comes from the environment.
    tde_rusqlite::Vfs::builder().register()?;
    let db = Connection::open_with_flags_and_vfs(path::absolute(file)?, OpenFlags::default(), c"tde")?;

    db.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT)", [])?;
    db.execute("INSERT INTO note (text) VALUES (?1)", [text])?;
    let mut notes = db.prepare("SELECT id, text FROM note ORDER BY id")?;
    let mut rows = notes.query([])?;
    while let Some(row) = rows.next()? {
        println!("{}: {}", row.get::<_, i64>(0)?, row.get::<_, String>(1)?);
    }
    Ok(())
}
