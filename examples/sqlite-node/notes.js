// Notes in an encrypted SQLite database, from Node.js with better-sqlite3 (npm install better-sqlite3).
//
//   tde hsm init --store hsm --pin-file pin            # a software HSM, once
//   export TDE_HSM=soft:$PWD/hsm TDE_PIN_FILE=$PWD/pin TDE_KEYRING=$PWD/keyring TDE_SQLITE_DEFAULT=1
//
//   node notes.js /usr/local/lib/libtde_sqlite notes.db "water the plants"    # adds a note and prints all
//
// better-sqlite3 opens no URIs: TDE_SQLITE_DEFAULT=1 makes `tde` the VFS of every database opened after loading.
const Database = require('better-sqlite3');

const [extension, file, text] = process.argv.slice(2);

new Database(':memory:').loadExtension(extension).close();

const db = new Database(file);
db.exec('CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT)');
db.prepare('INSERT INTO note (text) VALUES (?)').run(text);
for (const note of db.prepare('SELECT id, text FROM note ORDER BY id').iterate()) {
  console.log(`${note.id}: ${note.text}`);
}
db.close();
