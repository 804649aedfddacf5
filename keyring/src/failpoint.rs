//! Places where the crash tests kill the process. Nothing outside tests.

#[cfg(not(test))]
pub(crate) fn hit(_name: &str) {}

/// Kills this process at the place named by `KEYRING_KILL_AT`, the way a power cut or the OOM killer would.
#[cfg(test)]
pub(crate) fn hit(name: &str) {
    if std::env::var("KEYRING_KILL_AT").is_ok_and(|at| at == name) {
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::KILL).expect("kill myself");
    }
}
