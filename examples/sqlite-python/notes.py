"""Notes in an encrypted SQLite database, with Python's own sqlite3 module.

    tde hsm init --store hsm --pin-file pin            # a software HSM, once
    export TDE_HSM=soft:$PWD/hsm TDE_PIN_FILE=$PWD/pin TDE_KEYRING=$PWD/keyring

    python3 notes.py /usr/local/lib/libtde_sqlite notes.db "water the plants"    # adds a note and prints all
"""

import pathlib
import sqlite3
import sys
import urllib.parse


def load(extension):
    """Loads the VFS. It stays for all connections of the process."""
    loader = sqlite3.connect(":memory:")
    loader.enable_load_extension(True)
    loader.load_extension(extension)
    loader.close()


def connect(path):
    """Opens an encrypted database, or makes it."""
    quoted = urllib.parse.quote(str(pathlib.Path(path).absolute()))
    return sqlite3.connect(f"file:{quoted}?vfs=tde", uri=True)


def main():
    extension, path, text = sys.argv[1:]
    load(extension)
    with connect(path) as db:
        db.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT)")
        db.execute("INSERT INTO note (text) VALUES (?)", (text,))
        for number, note in db.execute("SELECT id, text FROM note ORDER BY id"):
            print(f"{number}: {note}")
    db.close()


if __name__ == "__main__":
    main()
