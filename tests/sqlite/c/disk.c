/* A disk that can be watched, filled up, broken, and cut off in the middle of a write. To be preloaded.
**
** Operations on files below DISK_DIR are numbered from 1: write, sync, truncate, unlink, rename; the directory sync too.
**   DISK_LOG=FILE     records them all with the bytes written, also to files that are deleted at once
**   DISK_KILL_AT=N    the process dies by SIGKILL at operation N
**   DISK_FAIL_AT=N    operation N fails with DISK_ERRNO (default ENOSPC)
**   DISK_FAIL_ON=1    and so do all writes after it
** A write that is cut off was done up to a sector boundary in its middle; one inside a sector wholly or not at all.
** Other files (keyring, libraries) are left alone. Shared memory is mapped, not written, and does not pass here.
**
** Record: kind u8 (w s t u r o), 3 bytes zero, file number u32, offset u64, length u32, then the bytes; file number is the
** number of the `o` record that holds its path, so that a deleted file is told from a later one with its name.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 4096
static uint32_t file_of[FILES];
static uint32_t next_file = 1;
static long count, kill_at, fail_at, fail_on, fail_errno = ENOSPC;
static const char *dir;
static size_t dir_length;
static int log_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(type, name, ...) static type (*real_##name)(__VA_ARGS__)
REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
REAL(ssize_t, write, int, const void *, size_t);
REAL(int, ftruncate64, int, off64_t);
REAL(int, fsync, int);
REAL(int, fdatasync, int);
REAL(int, unlink, const char *);
REAL(int, unlinkat, int, const char *, int);
REAL(int, rename, const char *, const char *);
REAL(int, open64, const char *, int, ...);
REAL(int, close, int);

static long number(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text && *text ? atol(text) : otherwise;
}

static void __attribute__((constructor)) start(void) {
#define FIND(name) *(void **)&real_##name = dlsym(RTLD_NEXT, #name)
  FIND(pwrite64); FIND(write); FIND(ftruncate64); FIND(fsync); FIND(fdatasync);
  FIND(unlink); FIND(unlinkat); FIND(rename); FIND(open64); FIND(close);
  dir = getenv("DISK_DIR");
  dir_length = dir ? strlen(dir) : 0;
  kill_at = number("DISK_KILL_AT", 0);
  fail_at = number("DISK_FAIL_AT", 0);
  fail_on = number("DISK_FAIL_ON", 0);
  fail_errno = number("DISK_ERRNO", ENOSPC);
  const char *name = getenv("DISK_LOG");
  if (name) {
    int fd = real_open64(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    /* Out of the way of programs that count on low numbers. */
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 1000);
    real_close(fd);
  }
}

static void put(char kind, uint32_t file, uint64_t offset, const void *bytes, uint32_t length) {
  if (log_fd < 0) return;
  unsigned char head[20] = {(unsigned char)kind};
  memcpy(head + 4, &file, 4);
  memcpy(head + 8, &offset, 8);
  memcpy(head + 16, &length, 4);
  struct iovec parts[2] = {{head, 20}, {(void *)bytes, length}};
  ssize_t done = writev(log_fd, parts, 2);
  if (done != (ssize_t)(20 + length)) abort();
}

/* 0: do it; 1: fail; 2: die. Called with the lock held. */
static int judge(void) {
  count++;
  if (kill_at && count == kill_at) return 2;
  if (fail_at && (count == fail_at || (fail_on && count > fail_at))) return 1;
  return 0;
}

static uint32_t file_number(int fd) { return fd >= 0 && fd < FILES ? file_of[fd] : 0; }
static int ours(const char *path) { return dir_length && !strncmp(path, dir, dir_length); }
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

static ssize_t do_write(int fd, const void *bytes, size_t length, off64_t offset) {
  pthread_mutex_lock(&lock);
  int verdict = judge();
  size_t part = length;
  if (verdict) {
    off64_t end = ((offset < 0 ? 0 : offset) + (off64_t)(length + 1) / 2 + 511) / 512 * 512 - (offset < 0 ? 0 : offset);
    part = (size_t)end < length ? (size_t)end : count % 2 ? length : 0;
  }
  ssize_t done = 0;
  if (part) done = offset < 0 ? real_write(fd, bytes, part) : real_pwrite64(fd, bytes, part, offset);
  if (done > 0) put('w', file_number(fd), offset < 0 ? 0 : offset, bytes, done);
  if (verdict == 2) die();
  pthread_mutex_unlock(&lock);
  if (verdict == 1) { errno = fail_errno; return -1; }
  return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
  return file_number(fd) ? do_write(fd, bytes, length, offset) : real_pwrite64(fd, bytes, length, offset);
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return pwrite64(fd, bytes, length, offset); }
ssize_t write(int fd, const void *bytes, size_t length) {
  return file_number(fd) ? do_write(fd, bytes, length, -1) : real_write(fd, bytes, length);
}

#define OPERATION(kind, file, offset, path, length, call)                     \
  pthread_mutex_lock(&lock);                                                  \
  int verdict = judge(), code = -1;                                           \
  if (verdict == 2) die();                                                    \
  if (verdict == 1 && kind == 't') verdict = 0; /* making room needs none */  \
  if (verdict == 0) { code = call; if (code == 0) put(kind, file, offset, path, length); } \
  pthread_mutex_unlock(&lock);                                                \
  if (verdict == 1) errno = fail_errno == ENOSPC ? EIO : fail_errno;          \
  return code;

int ftruncate64(int fd, off64_t size) {
  uint32_t file = file_number(fd);
  if (!file) return real_ftruncate64(fd, size);
  OPERATION('t', file, size, 0, 0, real_ftruncate64(fd, size))
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int fsync(int fd) {
  uint32_t file = file_number(fd);
  if (!file) return real_fsync(fd);
  OPERATION('s', file, 0, 0, 0, real_fsync(fd))
}
int fdatasync(int fd) {
  uint32_t file = file_number(fd);
  if (!file) return real_fdatasync(fd);
  OPERATION('s', file, 0, 0, 0, real_fdatasync(fd))
}
int unlink(const char *path) {
  if (!ours(path)) return real_unlink(path);
  OPERATION('u', 0, 0, path, strlen(path), real_unlink(path))
}
int unlinkat(int at, const char *path, int flags) {
  if (!ours(path)) return real_unlinkat(at, path, flags);
  OPERATION('u', 0, 0, path, strlen(path), real_unlinkat(at, path, flags))
}
int rename(const char *from, const char *to) {
  if (!ours(to)) return real_rename(from, to);
  OPERATION('r', 0, 0, to, strlen(to), real_rename(from, to))
}

int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  int fd = real_open64(path, flags, mode);
  if (fd >= 0 && fd < FILES) {
    pthread_mutex_lock(&lock);
    file_of[fd] = 0;
    if (ours(path)) {
      file_of[fd] = next_file++;
      put('o', file_of[fd], 0, path, strlen(path));
    }
    pthread_mutex_unlock(&lock);
  }
  return fd;
}
int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return open64(path, flags, mode);
}
int close(int fd) {
  if (fd >= 0 && fd < FILES) file_of[fd] = 0;
  return real_close(fd);
}
