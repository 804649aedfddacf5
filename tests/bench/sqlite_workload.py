"""One run of the SQLite workload in one driver; prints its times as JSON.

usage: sqlite_workload.py DRIVER VARIANT FILE ROWS [EXTENSION]
  DRIVER   apsw (stock SQLite), sqlite3mc (apsw-sqlite3mc), sqlcipher (sqlcipher3)
  VARIANT  plain; tde with apsw; chacha20 and aegis with sqlite3mc; raw and passphrase with sqlcipher
Every time is a pair: seconds on the clock, seconds of processor.
"""

import json
import os
import random
import sys
import time
from urllib.parse import quote

driver, variant, path, rows = sys.argv[1:5]
rows = int(rows)
extension = sys.argv[5] if len(sys.argv) > 5 else None
RAW_KEY = "PRAGMA key = \"x'" + "5b" * 32 + "'\""

if driver == "sqlcipher":
    from sqlcipher3 import dbapi2

    def connect():
        db = dbapi2.connect(path, isolation_level=None)
        if variant == "raw":
            db.execute(RAW_KEY)
        elif variant == "passphrase":
            db.execute("PRAGMA key = 'correct horse battery staple'")
        return db
else:
    import apsw

    def connect():
        uri = f"file:{quote(path)}" + ("?vfs=tde" if variant == "tde" else "")
        db = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI)
        if variant == "chacha20":
            db.execute("PRAGMA cipher = 'chacha20'")
        elif variant == "aegis":
            db.execute("PRAGMA cipher = 'aegis'")
        if driver == "sqlite3mc" and variant != "plain":
            db.execute("PRAGMA key = 'correct horse battery staple'")
        return db

    if extension:
        loader = apsw.Connection(":memory:")
        loader.enable_load_extension(True)
        loader.load_extension(extension)
        loader.close()

random.seed(20)
times = {}


class timed:
    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.begin = time.perf_counter(), time.process_time()

    def __exit__(self, *unused):
        times[self.name] = time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]


def settings(db):
    db.execute("PRAGMA cache_size = -2000")
    db.execute("PRAGMA synchronous = NORMAL")


with timed("first open"):
    db = connect()
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, k TEXT, pad TEXT)")
settings(db)
data = [(i, f"{i * 7919 % 1000003:010d}", f"{i:08d}" * 20) for i in range(1, rows + 1)]
with timed("insert"):
    db.execute("BEGIN")
    db.executemany("INSERT INTO t VALUES (?, ?, ?)", data)
    db.execute("COMMIT")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
with timed("transactions"):
    for i in range(rows // 60):
        db.execute("INSERT INTO t VALUES (?, 'one', ?)", (rows + 1 + i, "x" * 160))
with timed("index"):
    db.execute("CREATE INDEX i ON t (k)")
db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
db.close()

db = connect()
settings(db)
ids = [(random.randrange(1, rows),) for _ in range(rows // 3)]
with timed("point reads"):
    for i in ids:
        db.execute("SELECT pad FROM t WHERE id = ?", i).fetchall()
with timed("scan"):
    for _ in range(5):
        db.execute("SELECT sum(length(pad)) FROM t").fetchall()
opens = 20 if variant in ("passphrase", "chacha20", "aegis") else 300
with timed("open"):
    for _ in range(opens):
        other = connect()
        other.execute("SELECT count(*) FROM sqlite_master").fetchall()
        other.close()
times["open"] = tuple(t / opens for t in times["open"])
check = db.execute("PRAGMA integrity_check").fetchall()
db.close()
assert [tuple(r) for r in check] == [("ok",)], check
with open(path, "rb") as f:
    head = f.read(16)
assert (head == b"SQLite format 3\0") == (variant == "plain"), head
times["bytes"] = os.path.getsize(path)
print(json.dumps(times))
