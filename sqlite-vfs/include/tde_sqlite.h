/*
** tde_sqlite.h: encrypted databases for stock SQLite 3.39 or newer.
**
** Link libtde_sqlite.a or libtde_sqlite.so and your own SQLite, then once, before the first encrypted database is
** opened:
**
**     if( tde_sqlite_register(0)!=SQLITE_OK ) fprintf(stderr, "%s\n", tde_sqlite_errmsg());
**     sqlite3_open_v2("file:app.db?vfs=tde", &db, SQLITE_OPEN_READWRITE|SQLITE_OPEN_CREATE|SQLITE_OPEN_URI, 0);
**
** Keyring, HSM and PIN come from the URI (keyring, hsm, pin_file), from tde_sqlite_config, or from the environment
** (TDE_KEYRING, TDE_HSM, TDE_PIN_FILE, TDE_PIN_COMMAND), each from the first that has it.
**
** Messages go to SQLite's error log (SQLITE_CONFIG_LOG) and, if TDE_SQLITE_LOG is set to "stderr" or to the name of a
** file, there too.
**
** Do not include this file in a loadable extension: it takes the functions from the SQLite that is linked.
*/
#ifndef TDE_SQLITE_H
#define TDE_SQLITE_H

#include <stddef.h>
#include <sqlite3.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
** Why an operation failed: the second byte of the extended result code (sqlite3_extended_errcode), above
** SQLITE_CANTOPEN or SQLITE_NOTADB when a file is opened and above SQLITE_IOERR afterwards.
*/
#define TDE_SQLITE_REASON(code)     (((code)>>8)&0xff)
#define TDE_SQLITE_KEY_MISSING      0xD0  /* the keyring has no such key */
#define TDE_SQLITE_KEY_WRONG        0xD1  /* the key is not the file's */
#define TDE_SQLITE_KEY_DESTROYED    0xD2  /* the key was destroyed on purpose */
#define TDE_SQLITE_HSM_AWAY         0xD3  /* the HSM cannot be used now */
#define TDE_SQLITE_NOT_AUTHENTIC    0xD4  /* something was changed, moved or replaced */
#define TDE_SQLITE_TORN             0xD5  /* a write was cut short */
#define TDE_SQLITE_PLAINTEXT_FILE   0xD6  /* a plaintext database */
#define TDE_SQLITE_NOT_OURS         0xD7  /* no database of this VFS */
#define TDE_SQLITE_KEYRING          0xD8  /* the keyring cannot be read or written */
#define TDE_SQLITE_CONFIG           0xD9  /* settings are missing or contradict each other */
#define TDE_SQLITE_FORKED           0xDA  /* opened before a fork */
#define TDE_SQLITE_UNSUPPORTED      0xDB  /* not possible with an encrypted database */
#define TDE_SQLITE_UNKNOWN_FORMAT   0xDC  /* written by a newer program */
#define TDE_SQLITE_PLAIN_TEMP       0xDD  /* temporary files would be plaintext */
#define TDE_SQLITE_OTHER_FILE       0xDE  /* another file than the one that was opened */
#define TDE_SQLITE_JOURNAL          0xDF  /* a rollback journal cannot be used */
#define TDE_SQLITE_WAL              0xE0  /* a WAL cannot be used */
#define TDE_SQLITE_SYSTEM           0xE1  /* the system refused something that safety depends on */
#define TDE_SQLITE_NO_ENTRY         0xE2  /* no keyring has an entry for the file */
#define TDE_SQLITE_HSM_REFUSED      0xE3  /* wrong PIN, locked user, or no right to use the key */

/*
** Gives the PIN of the HSM whose URI is passed: writes it to buffer, which has capacity bytes and is wiped afterwards,
** and returns its length, or a negative number if there is none. Called when the process logs in, from any thread.
*/
typedef int (*tde_sqlite_pin_callback)(void *context, const char *hsm, char *buffer, size_t capacity);

/* Everything may be null or zero. Strings are copied. Begin with TDE_SQLITE_CONFIG_INIT. */
typedef struct tde_sqlite_config {
  size_t size;                    /* sizeof(tde_sqlite_config) */
  const char *name;               /* name of the VFS; "tde" */
  const char *parent;             /* name of the VFS below; SQLite's default */
  int make_default;               /* also for databases that name no VFS; see tde_sqlite_register() */
  const char *keyring;            /* directory of the keyring */
  const char *hsm;                /* HSM, for example "soft:/etc/tde/hsm" */
  const char *pin_file;           /* file with the PIN */
  const char *pin_command;        /* command that prints the PIN; used if there is no pin_file */
  tde_sqlite_pin_callback pin_callback; /* used before both */
  void *pin_context;              /* first argument of pin_callback */
} tde_sqlite_config;

#define TDE_SQLITE_CONFIG_INIT {sizeof(tde_sqlite_config),0,0,0,0,0,0,0,0,0}

/* The functions of SQLite that the VFS calls. tde_sqlite_register() fills it. */
typedef struct tde_sqlite_functions {
  size_t size;                    /* sizeof(tde_sqlite_functions) */
  int (*libversion_number)(void);
  sqlite3_vfs *(*vfs_find)(const char*);
  int (*vfs_register)(sqlite3_vfs*,int);
  int (*file_control)(sqlite3*,const char*,int,void*);
  const char *(*db_name)(sqlite3*,int);
  const char *(*db_filename)(sqlite3*,const char*);
  const char *(*filename_database)(const char*);
  const char *(*filename_journal)(const char*);
  const char *(*filename_wal)(const char*);
  const char *(*uri_parameter)(const char*,const char*);
  int (*exec)(sqlite3*,const char*,int (*)(void*,int,char**,char**),void*,char**);
  void *(*malloc64)(sqlite3_uint64);
  void (*free)(void*);
  void (*log)(int,const char*,...);
} tde_sqlite_functions;

/*
** Registers the VFS with the SQLite that functions belong to. config may be null. Returns SQLITE_OK, also if the name
** was registered before (then the rest of config is not looked at, except make_default), SQLITE_MISUSE, or SQLITE_ERROR
** with a text in tde_sqlite_errmsg().
*/
int tde_sqlite_register_with(const tde_sqlite_functions *functions, const tde_sqlite_config *config);

/* The text of the last error of this thread, "" if there was none; valid until its next call of this library. */
const char *tde_sqlite_errmsg(void);

/*
** Registers the VFS with the SQLite that the calling program is linked with. Thread-safe; may be called again.
**
** sqlite3_initialize() after sqlite3_shutdown() makes SQLite's own VFS the default again, and new databases would be
** plaintext: call this again then. Naming the VFS in each URI (vfs=tde) does not depend on any default.
*/
static inline int tde_sqlite_register(const tde_sqlite_config *config){
  tde_sqlite_functions f;
  f.size = sizeof(f);
  f.libversion_number = sqlite3_libversion_number;
  f.vfs_find = sqlite3_vfs_find;
  f.vfs_register = sqlite3_vfs_register;
  f.file_control = sqlite3_file_control;
  f.db_name = sqlite3_db_name;
  f.db_filename = (const char *(*)(sqlite3*,const char*))sqlite3_db_filename;
  f.filename_database = sqlite3_filename_database;
  f.filename_journal = sqlite3_filename_journal;
  f.filename_wal = sqlite3_filename_wal;
  f.uri_parameter = sqlite3_uri_parameter;
  f.exec = sqlite3_exec;
  f.malloc64 = sqlite3_malloc64;
  f.free = sqlite3_free;
  f.log = sqlite3_log;
  return tde_sqlite_register_with(&f, config);
}

#ifdef __cplusplus
}
#endif
#endif
