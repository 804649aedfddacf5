# Prints the test files of an extent, one a line: full (all of veryquick, and what it leaves out of the families that
# concern a VFS), short, or those whose names match the patterns.
# usage: testfixture sqlite-suite-files.tcl TESTDIR full|short|pattern [PATTERN...]
set suite_dir [lindex $argv 0]
set suite_extent [lindex $argv 1]
set suite_patterns [lrange $argv 2 end]
set argv0 [file join $suite_dir none.test]
set argv [list]
source [file join $suite_dir permutations.test]

# Below the shim or beside it: files, locks, journals, recovery, and faults in all of them.
set families {
  wal*.test journal*.test jrnlmode*.test crash*.test pager*.test vacuum*.test incrvacuum*.test autovacuum*.test
  attach*.test backup*.test mmap*.test savepoint*.test ioerr*.test *_ioerr.test exclusive*.test multiplex*.test
  tempdb*.test tempfault.test temptable*.test lock*.test shared*.test superlock.test io.test avtrans.test sync*.test
  securedel*.test bigfile*.test bigsort.test sort*.test spill*.test stmtjrnl*.test subjournal.test writecrash.test
  corrupt*.test rdonly.test readonly.test rollback*.test memjournal*.test nolock.test pagesize.test zerodamage.test
  delete_db.test symlink*.test uri*.test e_vacuum.test e_walckpt.test e_walhook.test e_walauto.test nockpt.test
  dbpage*.test dbdata.test chunksize.test cksumvfs.test atomic*.test diskfull.test 8_3_names.test snapshot*.test
  thread00*.test cacheflush.test cachespill.test fallocate.test filectrl.test external_reader.test alterfault.test
}
set quick {
  wal.test wal2.test wal5.test wal6.test walmode.test walro.test walbak.test walpersist.test walnoshm.test
  journal1.test journal2.test journal3.test jrnlmode.test jrnlmode2.test jrnlmode3.test crash.test crash2.test crash4.test
  pager1.test pager2.test pager3.test pagesize.test vacuum.test vacuum2.test vacuum5.test vacuum-into.test incrvacuum.test
  attach.test attach2.test attach3.test backup.test backup2.test mmap1.test mmap2.test savepoint.test savepoint2.test
  io.test ioerr.test exclusive.test exclusive2.test temptable.test temptable2.test lock.test lock2.test shared.test
  securedel.test sort.test sort2.test spill.test rollback2.test rdonly.test select1.test insert.test trans.test
  index.test trigger1.test fts3aa.test fts5aa.test rtree1.test dbpage.test walcrash.test diskfull.test
}

proc tails {files} { set all {} ; foreach f $files { lappend all [file tail $f] } ; return $all }
proc matching {files patterns} {
  set found {}
  foreach f $files {
    foreach p $patterns { if {[string match $p $f]} { lappend found $f ; break } }
  }
  return $found
}

array set veryquick $::testspec(veryquick)
set all [tails $::alltests]
switch $suite_extent {
  full    { set chosen [concat [tails $veryquick(-files)] [matching $all $families]] }
  short   { set chosen [matching $all $quick] }
  pattern { set chosen [matching $all $suite_patterns] }
}
foreach file [lsort -unique $chosen] { puts $file }
