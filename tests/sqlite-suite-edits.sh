#!/usr/bin/env bash
# Edits SQLite's test suite, freshly unpacked in SOURCE, so that as much of it as possible says something about encrypted
# files. An edit that finds nothing to change is an error.
# usage: tests/sqlite-suite-edits.sh SOURCE
set -euo pipefail
cd "$1"
edit() {
  local file=$1
  cp "$file" "$file.before"
  sed -i "$2" "$file"
  if cmp -s "$file.before" "$file"; then echo "sqlite-suite-edits: nothing to change in $file" >&2; exit 1; fi
  rm "$file.before"
}

# SQLite's own mark of tests that count pages or poke into them (once for its codec, which is gone).
edit test/tester.tcl '/^proc nonzero_reserved_bytes/,/^}/s/return .*/return [info exists ::env(TDE_SUITE)]/'

# The B-tree test commands hand the pager a connection that is all zeros, where public functions (and so a VFS that asks
# the connection SQLite gave it) crash; it gets the one database that it stands for.
edit src/test3.c '/rc = sqlite3BtreeOpen(sDb.pVfs/,/^ *if( rc!=SQLITE_OK/{
  /^ *if( rc!=SQLITE_OK/i\  sDb.aDb = sDb.aDbStatic; sDb.aDb[0].pBt = pBt; sDb.aDb[0].zDbSName = "main"; sDb.nDb = 1;
}'

# An encrypted database keeps its page size, and one in memory, without the reserve, is not copied over it. Most of these
# files is about something else.
edit test/backup.test 's/{512 1024 2048 4096} {$/[lindex {{512 1024 2048 4096} 1024} [nonzero_reserved_bytes]] {/
  /^foreach nPagePerStep {1 200} {/a\  if {[nonzero_reserved_bytes] \&\& $zSrcFile eq ":memory:" \&\& $zDestFile ne ":memory:" \&\& ![string match *temp* $zOpenScript]} continue'
edit test/backup.test 's/^foreach {writer file} {db test.db db3 test.db db :memory:} {/foreach {writer file} [lindex {{db test.db db3 test.db db :memory:} {db test.db db3 test.db}} [nonzero_reserved_bytes]] {/
  /^  do_test backup-5.$iTest.4.3/,/^  }/s/PRAGMA page_size = 2048;//'
edit test/backup_ioerr.test 's/^foreach iDestPagesize {512 1024 4096} {/foreach iDestPagesize [lindex {{512 1024 4096} 1024} [nonzero_reserved_bytes]] {/'
edit test/crash7.test '/set to_size /a\    if {[nonzero_reserved_bytes]} { set to_size $from_size }'
edit test/pagerfault.test '/^do_test pagerfault-2-pre1/,/^} {}/s/page_size = 1024/page_size = 4096/'
edit test/vacuum3.test '/^do_ioerr_test vacuum3-ioerr-1/,$s/PRAGMA page_size = \(4096\|512\);//'
# Writes a reserve into the header, which is there already.
edit test/pagerfault.test 's/^ *hexio_write test.db \(20    10\|105 03F0\)$/  if {![nonzero_reserved_bytes]} { & }/'
# Beside a main database in memory, faults that need a VFS above the encryption hide it: then SQLite would write plain
# temporary files, and the encrypted database is refused.
edit test/pagerfault.test 's/^do_faultsim_test pagerfault-23 -prep/do_faultsim_test pagerfault-23 -faults {oom-* ioerr-*} -prep/'

# Ten thousand crashing processes take most of an hour.
edit test/walcrash3.test 's/{$i<10000 \&\&/{$i<1000 \&\&/'
