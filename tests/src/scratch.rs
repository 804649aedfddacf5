//! Scratch folders that go away, unless the test that used them failed.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs, process, thread};

use crate::process::Process;

static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// The folder that holds everything tests write: short, because a socket's path has at most 107 bytes.
pub(crate) fn base() -> PathBuf {
    let uid = rustix::process::getuid().as_raw();
    let dir = env::var_os("TDE_TESTS_DIR")
        .map_or_else(|| format!("/var/tmp/tde-tests-{uid}").into(), PathBuf::from);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir).unwrap();
    let owner = fs::symlink_metadata(&dir).unwrap();
    assert!(owner.is_dir() && owner.uid() == uid, "{} belongs to someone else", dir.display());
    dir
}

/// A folder of this test process, removed on drop; kept when the test panicked.
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// Makes `BASE/PID-N`, world-readable. The first call removes what dead test processes left behind.
    pub fn new() -> Self {
        let base = base();
        SWEEP.call_once(|| sweep(&base));
        let dir = base.join(format!("{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&dir).unwrap();
        Self { dir }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("kept for inspection: {}", self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("could not remove {}: {error}", self.dir.display());
        }
    }
}

/// Stops servers of test processes that are gone, and removes their folders.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.split_once('-').and_then(|(pid, _)| pid.parse::<i32>().ok()) else { continue };
        if Path::new("/proc").join(pid.to_string()).exists() {
            continue;
        }
        for data in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            if let Some(server) = Process::of_data_dir(&data.path()) {
                server.kill_with_children();
            }
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}
