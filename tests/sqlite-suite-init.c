/* Linked into SQLite's own test programs: makes `tde` the default VFS when TDE_SUITE=1. */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tde_sqlite.h"

static int encrypted(void) {
  const char *wanted = getenv("TDE_SUITE");
  return wanted && strcmp(wanted, "1") == 0;
}

static int put_over(const char *name, const char *parent, int make_default) {
  tde_sqlite_config config = TDE_SQLITE_CONFIG_INIT;
  config.name = name;
  config.parent = parent;
  config.make_default = make_default;
  int code = tde_sqlite_register(&config);
  if (code) fprintf(stderr, "tde: %s\n", tde_sqlite_errmsg());
  return code;
}

/* SQLITE_EXTRA_INIT: the last step of every sqlite3_initialize(). */
int tde_suite_init(const char *unused) {
  (void)unused;
  return encrypted() ? put_over("tde", "unix", 1) : SQLITE_OK;
}

/* SQLite's simulation of a crash must lose and damage sectors of the disk, below the encryption: it is put between `tde` and
** `unix`, and the name `crash` goes to the whole. test6.c is compiled to call these two instead of SQLite's functions. */
sqlite3_vfs *tde_suite_find(const char *name) {
  return sqlite3_vfs_find(encrypted() && name == 0 ? "unix" : name);
}

int tde_suite_register(sqlite3_vfs *vfs, int make_default) {
  if (!encrypted() || strcmp(vfs->zName, "crash") != 0) return sqlite3_vfs_register(vfs, make_default);
  vfs->zName = "crash-disk";
  int code = sqlite3_vfs_register(vfs, 0);
  return code ? code : put_over("crash", "crash-disk", make_default);
}
