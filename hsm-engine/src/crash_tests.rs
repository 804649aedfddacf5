//! Kills a child process at every step that writes, then looks at what is left.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// Number of the step at which a child of these tests dies.
const DIE_AT: &str = "HSM_ENGINE_TEST_DIE_AT";

/// Called at every step that writes. In a child of these tests, dies without any clean-up at the step it was told.
pub(crate) fn step(_name: &str) {
    static STEPS: AtomicU32 = AtomicU32::new(0);
    let Some(die_at) = std::env::var(DIE_AT).ok().and_then(|n| n.parse::<u32>().ok()) else { return };
    if STEPS.fetch_add(1, Ordering::SeqCst) == die_at {
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
    }
}
