#!/usr/bin/env bash
# Runs SQLite's own test suite twice, on plain SQLite and with every file encrypted, and compares.
#
# The source is Debian's package; its test program (testfixture) is built once, with libtde_sqlite.a linked in and
# `tde` made the default VFS at sqlite3_initialize() when TDE_SUITE=1: both runs are the same program.
# What fails on encrypted files only must stand in sqlite-suite.allow with its reason, and what stands there must fail.
#
# usage: tests/sqlite-suite.sh WORKDIR LIBTDE_SQLITE_A TDE_PROGRAM EXTENT [PATTERN...]
#   short    a choice of files that takes a few minutes; full: veryquick and the slow families
#   pattern  only the files whose names match, for a closer look
#   speedtest1  builds SQLite's benchmark only: WORKDIR/build/speedtest1, encrypted with TDE_SUITE=1
#   concurrency, concurrency-full   instead: mptest (processes), kvtest (blobs) and threadtest3 (threads) on encrypted files
# Results: WORKDIR/{plain,encrypted}/FILE.{log,result}; plain results are kept between runs.
# Exit status: 0 nothing unexpected, 1 differences, 3 the source package cannot be had.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
work=$(cd "$1" && pwd) library=$2 tde=$3 extent=$4
shift 4
jobs=${TDE_SUITE_JOBS:-$(nproc)}
exec 9> "$work/lock"
flock 9

# --- the program -----------------------------------------------------------------------------------------------------
if [ ! -d "$work/package" ]; then
  "$here/sqlite-source.sh" "$work/package" >&2 || { echo "sqlite-suite: SQLite's source package cannot be had" >&2; exit 3; }
fi
edits=$(sha256sum < "$here/sqlite-suite-edits.sh")
if [ "$(cat "$work/source/edits" 2> /dev/null)" != "$edits" ]; then
  rm -rf "$work/source" "$work/build" "$work/plain"
  cp -a "$work/package" "$work/source"
  "$here/sqlite-suite-edits.sh" "$work/source"
  echo "$edits" > "$work/source/edits"
fi
build=$work/build
if [ ! -f "$build/sources" ]; then
  rm -rf "$build"
  mkdir -p "$build/objects"
  cd "$build"
  "$work/source/configure" --with-tcl=/usr/lib/tcl8.6 --disable-readline --enable-fts3 --enable-fts4 --enable-fts5 \
    --enable-rtree --enable-session > configure.log 2>&1
  make -s sqlite3.c sqlite3.h fts5.c > make.log 2>&1
  # The makefile compiles and links in one command; its objects are wanted, to link again with another library.
  make -n testfixture 2>> make.log | sed -e ':a' -e '/\\$/N; s/\\\n//; ta' | grep -- '-o testfixture' | tr -s ' ' '\n' > link.words
  grep -E '^-[DI]' link.words | sed 's/""$//' > flags
  grep -E '\.c$' link.words > sources.new
  mv sources.new sources
fi
cd "$build"
gcc -O1 -Wall -I. -I"$here/../sqlite-vfs/include" -c "$here/sqlite-suite-init.c" -o suite-init.o
libraries=("$library" -lm -lz -ldl -lpthread)

testfixture() {
  if [ ! -f objects.stamp ]; then
    # A crashing process must crash below the encryption, as a machine does, and system calls fail there: see
    # sqlite-suite-init.c.
    xargs -a sources -P "$jobs" -I{} sh -c 'gcc -O1 -w $(cat flags) -DSQLITE_EXTRA_INIT=tde_suite_init \
      $(case $1 in
          */test6.c) echo -Dsqlite3_vfs_register=tde_suite_register -Dsqlite3_vfs_find=tde_suite_find ;;
          */test_syscall.c) echo -Dsqlite3_vfs_find=tde_suite_find ;;
        esac) \
      -c "$1" -o "objects/$(basename "$1" .c).o" || exit 255' _ {}
    touch objects.stamp
  fi
  gcc -o testfixture.new objects/*.o suite-init.o -ltcl8.6 "${libraries[@]}"
  mv testfixture.new testfixture
}

# Keys in memory: thousands of databases are made, and their safety is not what is tested here.
make_keys() {
  keys=$(mktemp -d /dev/shm/tde-suite.XXXXXX)
  trap 'rm -rf "$keys"' EXIT
  "$tde" hsm init --store "$keys/hsm" --pin-file "$keys/pin" > /dev/null 2>&1
  export TDE_SUITE=1 TDE_HSM=soft:$keys/hsm TDE_PIN_FILE=$keys/pin TDE_KEYRING=$keys/keyring
  "$tde" keyring create > /dev/null 2>&1
  give "$keys"
}

# --- running ---------------------------------------------------------------------------------------------------------
as_user=()
if [ "$(id -u)" = 0 ]; then
  # Some tests take permissions away from files and expect to be refused.
  as_user=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
fi
give() { [ "$(id -u)" != 0 ] || chown -R nobody:nogroup "$@"; }

# SQLite as it is shipped, without what the suite switches on.
plain_flags=$(grep -vE 'SQLITE_TEST|CRASH_TEST|TCLSH|NO_SYNC|SQLITE_SERVER|SQLITE_CORE|SQLITE_PRIVATE|PAGE_SIZE|CKSUMVFS' flags)
plain_sqlite() {
  [ -f sqlite3-plain.o ] || { gcc -O2 -w $plain_flags -DSQLITE_EXTRA_INIT=tde_suite_init -c sqlite3.c -o new.o && mv new.o sqlite3-plain.o; }
}
if [ "$extent" = speedtest1 ]; then
  plain_sqlite
  gcc -O2 -w $plain_flags -o speedtest1 "$work/source/test/speedtest1.c" sqlite3-plain.o suite-init.o "${libraries[@]}"
  exit 0
fi

is_encrypted() {
  [ "$(head -c 3 "$1")" = TDE ] || { echo "$1 is not encrypted"; exit 1; }
}

concurrency() {
  local dir=$work/concurrency
  plain_sqlite
  if [ ! -f concurrency.stamp ]; then
    gcc -O1 -w $plain_flags -c "$work/source/mptest/mptest.c" -o mptest.o
    gcc -O1 -w $plain_flags -c "$work/source/test/threadtest3.c" -o threadtest3.o
    gcc -O1 -w $plain_flags -c "$work/source/src/test_multiplex.c" -o test_multiplex.o
    gcc -O1 -w $plain_flags -c "$work/source/test/kvtest.c" -o kvtest.o
    touch concurrency.stamp
  fi
  gcc -o mptester mptest.o sqlite3-plain.o suite-init.o "${libraries[@]}"
  gcc -o kvtest kvtest.o sqlite3-plain.o suite-init.o "${libraries[@]}"
  gcc -o threadtest3 threadtest3.o test_multiplex.o sqlite3-plain.o suite-init.o "${libraries[@]}"
  rm -rf "$dir"
  mkdir "$dir"
  give "$dir"
  make_keys
  cd "$dir"
  local modes='DELETE WAL' repeat=1 threads='walthread1 walthread5 cgt_pager_1 dynamic_triggers checkpoint_starvation_1 vacuum1 shared1'
  if [ "$extent" = concurrency-full ]; then modes='DELETE WAL PERSIST TRUNCATE' repeat=5 threads='*'; fi
  for mode in $modes; do
    for script in crash01 multiwrite01; do
      echo "mptest $script, journal_mode=$mode"
      "${as_user[@]}" "$build/mptester" mptest.db "$work/source/mptest/$script.test" --repeat "$repeat" --journalmode "$mode" > "$script.$mode.log" 2>&1 ||
        { tail -20 "$script.$mode.log"; exit 1; }
      grep -E 'errors (out of|in)' "$script.$mode.log" | tail -1
      is_encrypted mptest.db
      rm -f mptest.db*
    done
  done
  # Blobs by the incremental interface, read and overwritten.
  echo "kvtest"
  for mode in DELETE WAL; do
    { "${as_user[@]}" "$build/kvtest" init "kv.$mode.db" --count 500 --size 20000 --variance 12000 &&
      "${as_user[@]}" "$build/kvtest" run "kv.$mode.db" --jmode "$mode" --count 1000 --blob-api --update --random --integrity-check
    } > "kvtest.$mode.log" 2>&1 || { tail -20 "kvtest.$mode.log"; exit 1; }
    grep -q '^integrity-check: ok' "kvtest.$mode.log" || { tail -20 "kvtest.$mode.log"; exit 1; }
  done
  # Each takes the seconds that it has built in; two at a time.
  if [ "$threads" = '*' ]; then
    "${as_user[@]}" "$build/threadtest3" '*' > threads.log 2>&1 || { tail -20 threads.log; exit 1; }
    tail -1 threads.log
  else
    printf '%s\n' $threads | build=$build as_user_words="${as_user[*]}" xargs -P "$jobs" -I{} bash -c '
      mkdir {}; if [ "$(id -u)" = 0 ]; then chown nobody:nogroup {}; fi; cd {}
      if $as_user_words "$build/threadtest3" {} > ../{}.log 2>&1; then tail -1 ../{}.log; else cat ../{}.log; exit 255; fi'
  fi
  # The long form leaves its databases in one folder, the short one has a folder for each test.
  local files
  mapfile -t files < <(find "$dir" -name '*.db')
  [ "${#files[@]}" -gt 2 ] || { echo "no databases are left to look at"; exit 1; }
  for file in "${files[@]}"; do is_encrypted "$file"; done
}
case $extent in concurrency*) concurrency; exit 0 ;; esac
testfixture

run_one() {
  local side=$1 file=$2 begin=$SECONDS code=0 line failed
  local dir=$work/$side/run-$BASHPID log=$work/$side/$file.log
  mkdir -p "$dir"
  give "$dir"
  cd "$dir"
  timeout 1800 "${as_user[@]}" "$build/testfixture" "$work/source/test/permutations.test" veryquick "$file" \
    < /dev/null > "$log" 2>&1 || code=$?
  # The first bytes of the databases that the test left: "SQL" are plain, "TDE" encrypted.
  find . -type f -name '*.db' -size +0 -exec head -qc 3 {} + | grep -aoE 'SQL|TDE' > "$work/$side/$file.databases" || true
  cd /
  rm -rf "$dir"
  line=$(grep -aE '^[0-9]+ errors out of [0-9]+ tests' "$log" | tail -1 || true)
  if [ -n "$line" ]; then
    # A test prints its name again for every time it fails.
    failed=$(sed -n 's/^!Failures on these tests: *//p' "$log" | tr ' ' '\n' | sort -u | tr '\n' ' ')
    set -- $line
    echo "$file $1 $5 $failed" > "$work/$side/$file.result"
  else
    echo "$file 1 0 ended-with-$code" > "$work/$side/$file.result"
  fi
  [ "$side" = plain ] || echo "$((SECONDS - begin)) s: $(cut -c1-200 "$work/$side/$file.result")"
}
export -f run_one give
export work build

run_side() {
  as_user_words="${as_user[*]}" xargs -r -a "$2" -P "$jobs" -I{} bash -c 'as_user=($as_user_words); run_one "$1" "$2"' _ "$1" {}
}

"$build/testfixture" "$here/sqlite-suite-files.tcl" "$work/source/test" "$extent" "$@" > "$work/files"
echo "sqlite-suite: $(wc -l < "$work/files") files, $jobs at a time, in $work"
mkdir -p "$work/plain"
while read -r file; do [ -f "$work/plain/$file.result" ] || echo "$file"; done < "$work/files" > "$work/files.plain"
run_side plain "$work/files.plain"
[ "$tde" != - ] || exit 0

make_keys
# TDE_SUITE_KEEP=1 goes on where an interrupted run stopped.
[ -n "${TDE_SUITE_KEEP:-}" ] || rm -rf "$work/encrypted"
mkdir -p "$work/encrypted"
while read -r file; do [ -f "$work/encrypted/$file.result" ] || echo "$file"; done < "$work/files" > "$work/files.encrypted"
run_side encrypted "$work/files.encrypted"

# --- comparing -------------------------------------------------------------------------------------------------------
# Lines of the list: FILE CASE-PATTERN[:MOST]... # REASON. A file may stand on several lines. A file that ended early has the
# case ended-with-CODE (124: it hung), one that left cases out fewer-cases. MOST: so many cases may match, 1 if not given; of
# fewer-cases, so many may be missing. A plain database left behind is the case plain-database. ?PATTERN: by chance.
python3 - "$work" "$here/sqlite-suite.allow" <<'PY'
import fnmatch, sys
work, allow_file = sys.argv[1:]
allow = {}
for line in open(allow_file):
    words, _, reason = line.partition('#')
    if words.strip():
        name, *patterns = words.split()
        assert patterns and reason.strip(), f'{allow_file}: no pattern or no reason: {line}'
        for pattern in patterns:
            glob, _, most = pattern.lstrip('?').partition(':')
            allow.setdefault(name, []).append((glob, int(most or 1), not pattern.startswith('?')))
def result(side, name):
    _, errors, tests, *failed = open(f'{work}/{side}/{name}.result').read().split()
    return int(tests), set(failed)
names = open(f'{work}/files').read().split()
cases, new, allowed, unused, encrypted = 0, [], 0, [], 0
for name in names:
    (plain_tests, plain), (tests, ours) = result('plain', name), result('encrypted', name)
    cases += tests
    if not plain_tests:
        new.append(f'{name}: did not end on plain SQLite either, so that nothing is known')
    left = {case: 1 for case in ours - plain}
    if tests < plain_tests:
        left['fewer-cases'] = plain_tests - tests
    databases = open(f'{work}/encrypted/{name}.databases').read().split()
    encrypted += databases.count('TDE')
    if 'SQL' in databases:
        left['plain-database'] = databases.count('SQL')
    for glob, most, must in allow.get(name, []):
        matching = [case for case in left if fnmatch.fnmatchcase(case, glob)]
        number = sum(left.pop(case) for case in matching)
        allowed += number
        if number > most:
            new.append(f'{name}: {number} cases of {glob}, where {most} are allowed')
        if must and not number:
            unused.append(f'{name}: {glob}')
    new += [f'{name}: {case}:{number}' for case, number in sorted(left.items())]
for line in new:
    print('not expected:', line)
for line in unused:
    print('stands in the allow-list but does not fail:', line)
if not encrypted:
    new.append('no encrypted database was left by any test')
print(f'sqlite-suite: {encrypted} databases that the tests left behind were encrypted')
print(f'sqlite-suite: {len(names)} files, {cases} cases; {allowed} differ from plain SQLite as the allow-list says, '
      f'{len(new)} otherwise, {len(unused)} entries of the list do not apply')
sys.exit(1 if new or unused else 0)
PY
