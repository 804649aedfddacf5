/* Notes in an encrypted SQLite database, from C.
**
**   tde hsm init --store hsm --pin-file pin          a software HSM, once
**   export TDE_HSM=soft:$PWD/hsm TDE_PIN_FILE=$PWD/pin TDE_KEYRING=$PWD/keyring
**
** with the shared library:      cc notes.c -o notes $(pkg-config --cflags --libs tde_sqlite)
** with the static one:          cc notes.c -o notes $(pkg-config --cflags tde_sqlite) libtde_sqlite.a -lsqlite3 -lm -ldl -lpthread
**
**   ./notes notes.db "water the plants"               adds a note and prints all
*/
#include <stdio.h>
#include <tde_sqlite.h>

static int print(void *unused, int columns, char **values, char **names) {
  (void)unused, (void)columns, (void)names;
  return printf("%s: %s\n", values[0], values[1]) < 0;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: %s FILE NOTE\n", argv[0]);
    return 2;
  }
  if (tde_sqlite_register(0) != SQLITE_OK) {
    fprintf(stderr, "%s\n", tde_sqlite_errmsg());
    return 1;
  }
  sqlite3 *db = 0;
  sqlite3_stmt *insert = 0;
  int code = sqlite3_open_v2(argv[1], &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "tde");
  if (code == SQLITE_OK) code = sqlite3_exec(db, "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT)", 0, 0, 0);
  if (code == SQLITE_OK) code = sqlite3_prepare_v2(db, "INSERT INTO note (text) VALUES (?)", -1, &insert, 0);
  if (code == SQLITE_OK) code = sqlite3_bind_text(insert, 1, argv[2], -1, SQLITE_STATIC);
  if (code == SQLITE_OK) code = sqlite3_step(insert) == SQLITE_DONE ? SQLITE_OK : sqlite3_errcode(db);
  sqlite3_finalize(insert);
  if (code == SQLITE_OK) code = sqlite3_exec(db, "SELECT id, text FROM note ORDER BY id", print, 0, 0);
  if (code != SQLITE_OK) {
    fprintf(stderr, "%s (%d, reason 0x%02X)\n%s\n", sqlite3_errmsg(db), code & 0xff,
            TDE_SQLITE_REASON(sqlite3_extended_errcode(db)), tde_sqlite_errmsg());
  }
  sqlite3_close(db);
  return code != SQLITE_OK;
}
