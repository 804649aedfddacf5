// Notes in an encrypted SQLite database, with Node's own node:sqlite (Node 22.15 or newer).
//
//   tde hsm init --store hsm --pin-file pin            # a software HSM, once
//   export TDE_HSM=soft:$PWD/hsm TDE_PIN_FILE=$PWD/pin TDE_KEYRING=$PWD/keyring
//
//   node notes.js /usr/local/lib/libtde_sqlite notes.db "water the plants"    # adds a note and prints all
//
// A driver that opens no URIs, such as better-sqlite3, opens plain names with the variable TDE_SQLITE_DEFAULT=1, which makes `tde`
// the VFS of every database that is opened after the extension was loaded.
const path = require('node:path');
const { DatabaseSync } = require('node:sqlite');
const { pathToFileURL } = require('node:url');

/** Loads the VFS. It stays for all connections of the process. */
function load(extension) {
  const loader = new DatabaseSync(':memory:', { allowExtension: true });
  loader.loadExtension(extension);
  loader.close();
}

const [extension, file, text] = process.argv.slice(2);
load(extension);
const uri = pathToFileURL(path.resolve(file));
uri.searchParams.set('vfs', 'tde');
const db = new DatabaseSync(uri);
db.exec('CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT)');
db.prepare('INSERT INTO note (text) VALUES (?)').run(text);
for (const note of db.prepare('SELECT id, text FROM note ORDER BY id').iterate()) {
  console.log(`${note.id}: ${note.text}`);
}
db.close();
