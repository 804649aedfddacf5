//! In a test program of its own, because it changes the whole process.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

#[test]
fn process_cannot_be_dumped() {
    secret_mem::harden_process().unwrap();
    secret_mem::harden_process().unwrap();
    let core = rustix::process::getrlimit(rustix::process::Resource::Core);
    assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
    let dumpable = rustix::process::dumpable_behavior().unwrap();
    assert_eq!(dumpable, rustix::process::DumpableBehavior::NotDumpable);
}
