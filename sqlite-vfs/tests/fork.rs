//! A forked child must not use its parent's connection for writing. Alone in its program: a fork copies what other
//! threads hold.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;

#[test]
fn a_forked_child_must_open_anew() {
    let scratch = Scratch::new();
    let db = scratch.open("a.db");
    fill(&db, 10);
    let path = scratch.uri("child.db", "");
    // SAFETY: this program has no other test, so no other thread holds a lock now; the child leaves with _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // Reading is harmless, writing would repeat nonces.
            let error =
                db.execute_batch("PRAGMA cache_size=0; INSERT INTO t(name) VALUES('child')").unwrap_err();
            assert_eq!(reason(&error), 0xDA);
            let own = open(&path).unwrap();
            own.execute_batch("CREATE TABLE t(x); INSERT INTO t VALUES(1)").unwrap();
        }));
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(ok.is_err())) };
    }
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    db.execute_batch("INSERT INTO t(name) VALUES('parent')").unwrap();
    assert_eq!(text(&scratch.open("child.db"), "SELECT x FROM t"), "1");
}
