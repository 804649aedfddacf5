//! A second, different SQLite in one process (trap P): it is refused, and nothing becomes plaintext by it.

use std::fs;

use tde_tests::sqlite::Sqlite;
use tde_tests::{command_output, plain_mode};

/// Two copies of the library are two SQLites, each with its own list of VFSs. The extension is loaded once for both.
const SCRIPT: &str = r#"
import ctypes, shutil, sys
library, copy, extension, folder = sys.argv[1:]
shutil.copy(library, copy)

class Sqlite:
    def __init__(self, path):
        self.api = ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL)
        self.api.sqlite3_errmsg.restype = ctypes.c_char_p
        self.api.sqlite3_vfs_find.restype = ctypes.c_void_p

    def open(self, uri):
        db = ctypes.c_void_p()
        return self.api.sqlite3_open_v2(uri.encode(), ctypes.byref(db), 0x46, None), db

    def run(self, db, sql):
        code = self.api.sqlite3_exec(db, sql.encode(), None, None, None)
        return code, self.api.sqlite3_errmsg(db).decode()

    def load(self):
        code, db = self.open("file::memory:")
        assert code == 0
        self.api.sqlite3_enable_load_extension(db, 1)
        message = ctypes.c_char_p()
        code = self.api.sqlite3_load_extension(db, extension.encode(), None, ctypes.byref(message))
        self.api.sqlite3_close(db)
        return code, (message.value or b"").decode()

def fill(sqlite, uri):
    code, db = sqlite.open(uri)
    if code == 0:
        code = sqlite.run(db, "CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES('the canary of two')")
    sqlite.api.sqlite3_close(db)
    return code

first, second = Sqlite(library), Sqlite(copy)
# The second registers a VFS of its own only if the two are really two.
assert ctypes.cast(first.api.sqlite3_open_v2, ctypes.c_void_p).value != ctypes.cast(second.api.sqlite3_open_v2, ctypes.c_void_p).value
code, message = first.load()
assert code in (0, 256), (code, message)
assert fill(first, f"file:{folder}/one.db?vfs=tde") == (0, "not an error")

code, message = second.load()
assert code not in (0, 256), "the second SQLite was let in"
assert "another copy of SQLite" in message, message
assert second.api.sqlite3_vfs_find(b"tde") is None
# Whatever the second one tries: nothing encrypted is opened, nothing is made.
assert fill(second, f"file:{folder}/one.db?vfs=tde") not in (0, (0, "not an error"))
assert fill(second, f"file:{folder}/two.db?vfs=tde") not in (0, (0, "not an error"))
code, message = fill(second, f"file:{folder}/one.db")
assert code == 26, (code, message)
# The first goes on.
assert fill(first, f"file:{folder}/one.db?vfs=tde") == (0, "not an error")
assert first.load()[0] in (0, 256)
print("refused")
"#;

#[test]
fn a_second_sqlite_is_refused_and_makes_no_plaintext() {
    if plain_mode() {
        return;
    }
    let sqlite = Sqlite::new();
    let found = command_output(std::process::Command::new("/sbin/ldconfig").arg("-p"));
    let library = found
        .lines()
        .find(|line| line.trim_start().starts_with("libsqlite3.so.0 "))
        .and_then(|line| line.rsplit(' ').next())
        .expect("Debian's libsqlite3");
    let mut command = sqlite.command("/usr/bin/python3");
    command.args(["-c", SCRIPT, library]).arg(sqlite.dir().join("second.so")).arg(Sqlite::extension());
    command.arg(&sqlite.data);
    assert_eq!(command_output(&mut command).trim(), "refused");
    assert!(!sqlite.file("two.db").exists());
    for entry in fs::read_dir(&sqlite.data).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(17).any(|window| window == b"the canary of two"));
    }
}
