/* A process with the system's SQLite that does what it is told, one line at a time, so that a test can watch it, kill it
** and take its disk away.
**
** usage: worker [EXTENSION]     the extension is loaded first; SQLite's log goes to standard error
**
** Requests, N a connection 0..15:        Replies:
**   open N URI                             ok VERSION | error EXTENDED-CODE MESSAGE
**   sql N TEXT                             = COLUMN<US>COLUMN... for every row, then ok CHANGES | error ...
**   backup N M      (of main into main)    ok 0 | error ...
**   close N                                ok 0 | error ...
**   shown N KIND    the journal or WAL as SQLite is shown it, in hexadecimal: = BYTES, ok
**   device N        device characteristics, sector size, io_methods version of the main file: = A<US>B<US>C, ok
**   size N BYTES    the main file as SQLite is shown it: its size, and what a read of BYTES at 0 gives in hexadecimal
**   fork            (see below)            forked PID
** After `fork` the parent waits and the child, with everything it has inherited, serves the requests up to `exit`.
*/
#include <errno.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static sqlite3 *connections[16];

static void log_line(void *unused, int code, const char *message) {
  (void)unused;
  fprintf(stderr, "log %d %s\n", code, message);
}

static void one_line(const char *text) {
  for (; text && *text; text++) putchar(*text == '\n' ? ' ' : *text);
  putchar('\n');
  fflush(stdout);
}

static void reply(sqlite3 *db, int code) {
  if (code == SQLITE_OK) {
    printf("ok %d\n", db ? sqlite3_changes(db) : 0);
    fflush(stdout);
  } else {
    printf("error %d ", db ? sqlite3_extended_errcode(db) : code);
    one_line(db ? sqlite3_errmsg(db) : sqlite3_errstr(code));
  }
}

static void run(sqlite3 *db, const char *sql) {
  int code = SQLITE_OK;
  while (code == SQLITE_OK && *sql) {
    sqlite3_stmt *statement = 0;
    code = sqlite3_prepare_v2(db, sql, -1, &statement, &sql);
    if (!statement) continue;
    while (sqlite3_step(statement) == SQLITE_ROW) {
      putchar('=');
      for (int i = 0; i < sqlite3_column_count(statement); i++) {
        const char *text = (const char *)sqlite3_column_text(statement, i);
        putchar(i ? 0x1f : ' ');
        for (text = text ? text : "NULL"; *text; text++) putchar(*text == '\n' ? ' ' : *text);
      }
      putchar('\n');
    }
    code = sqlite3_finalize(statement);
  }
  reply(db, code);
}

static void hexadecimal(const unsigned char *bytes, sqlite3_int64 length) {
  for (sqlite3_int64 i = 0; i < length; i++) printf("%02x", bytes[i]);
}

static int shown(sqlite3 *db, int what, int amount, int journal) {
  sqlite3_file *file = 0;
  sqlite3_int64 size = 0;
  int code = sqlite3_file_control(db, "main", what, &file);
  if (code || !file || !file->pMethods) return code ? code : SQLITE_NOTFOUND;
  if ((code = file->pMethods->xFileSize(file, &size))) return code;
  if (what == SQLITE_FCNTL_FILE_POINTER) {
    printf("= %lld\x1f", size);
    size = amount;
  } else {
    printf("= ");
  }
  unsigned char *bytes = calloc(1, (size_t)size + 1);
  /* In pieces as SQLite reads them: a journal's header and records, a WAL's header and frames. */
  for (sqlite3_int64 at = 0; at < size && code == SQLITE_OK;) {
    sqlite3_int64 part = size, page;
    if (what == SQLITE_FCNTL_FILE_POINTER) {
      part = size;
    } else if (journal && at < 512) {
      part = at ? 512 - at : 28;
    } else if (journal) {
      page = bytes[25] << 16 | bytes[26] << 8 | bytes[27];
      sqlite3_int64 inside = (at - 512) % (page + 8);
      part = inside == 0 ? 4 : inside == 4 ? page : 4;
    } else {
      page = bytes[10] << 8 | bytes[11];
      page += (page == 0) * 65536;
      part = at < 32 ? 32 - at : page + 24;
    }
    if (part > size - at) part = size - at;
    code = file->pMethods->xRead(file, bytes + at, (int)part, at);
    at += part;
  }
  if (code == SQLITE_IOERR_SHORT_READ) code = SQLITE_OK;
  hexadecimal(bytes, code ? 0 : size);
  putchar('\n');
  free(bytes);
  return code;
}

static int device(sqlite3 *db) {
  sqlite3_file *file = 0;
  int code = sqlite3_file_control(db, "main", SQLITE_FCNTL_FILE_POINTER, &file);
  if (code == SQLITE_OK) {
    printf("= %d\x1f%d\x1f%d\n", file->pMethods->xDeviceCharacteristics(file),
           file->pMethods->xSectorSize(file), file->pMethods->iVersion);
  }
  return code;
}

static int copy(sqlite3 *from, sqlite3 *to) {
  sqlite3_backup *backup = sqlite3_backup_init(to, "main", from, "main");
  if (!backup) return sqlite3_errcode(to);
  sqlite3_backup_step(backup, -1);
  return sqlite3_backup_finish(backup);
}

int main(int argc, char **argv) {
  sqlite3_config(SQLITE_CONFIG_LOG, log_line, (void *)0);
  sqlite3_config(SQLITE_CONFIG_URI, 1);
  if (argc > 1) {
    sqlite3 *db = 0;
    char *error = 0;
    if (sqlite3_open(":memory:", &db) || sqlite3_enable_load_extension(db, 1) ||
        sqlite3_load_extension(db, argv[1], 0, &error)) {
      printf("error 1 cannot load %s: %s\n", argv[1], error ? error : sqlite3_errmsg(db));
      return 1;
    }
    sqlite3_close(db);
  }
  char *line = 0;
  size_t room = 0;
  ssize_t length;
  while ((length = getline(&line, &room, stdin)) > 0) {
    if (line[length - 1] == '\n') line[--length] = 0;
    char word[16] = "";
    int n = 0, used = 0;
    if (sscanf(line, "%15s %n", word, &used) < 1) continue;
    char *rest = line + used;
    if (!strcmp(word, "exit")) break;
    if (!strcmp(word, "fork")) {
      fflush(stdout);
      pid_t child = fork();
      if (child == 0) continue;
      /* Standard input is a pipe and getline reads ahead: the rest of the script is the child's. */
      int status = 0;
      waitpid(child, &status, 0);
      printf("forked %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
      break;
    }
    n = (int)strtol(rest, &rest, 10) & 15;
    if (*rest == ' ') rest++;
    sqlite3 **db = &connections[n];
    if (!strcmp(word, "open")) {
      int code = sqlite3_open_v2(rest, db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, 0);
      if (code == SQLITE_OK) {
        sqlite3_busy_timeout(*db, 10000);
        sqlite3_db_config(*db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0, (int *)0);
        printf("ok %s\n", sqlite3_libversion());
        fflush(stdout);
      } else {
        reply(*db, code);
        sqlite3_close(*db);
        *db = 0;
      }
    } else if (!strcmp(word, "sql")) {
      if (*db) run(*db, rest); else reply(0, SQLITE_MISUSE);
    } else if (!strcmp(word, "backup")) {
      int code = copy(*db, connections[atoi(rest) & 15]);
      reply(code ? connections[atoi(rest) & 15] : 0, code);
    } else if (!strcmp(word, "shown")) {
      reply(0, shown(*db, SQLITE_FCNTL_JOURNAL_POINTER, 0, !strcmp(rest, "journal")));
    } else if (!strcmp(word, "size")) {
      reply(0, shown(*db, SQLITE_FCNTL_FILE_POINTER, atoi(rest), 0));
    } else if (!strcmp(word, "device")) {
      reply(0, device(*db));
    } else if (!strcmp(word, "close")) {
      int code = sqlite3_close(*db);
      reply(code ? *db : 0, code);
      if (code == SQLITE_OK) *db = 0;
    } else {
      reply(0, SQLITE_MISUSE);
    }
  }
  free(line);
  return 0;
}
