//! What keys cost: the HSM's operations against the bare primitive, and a keyring as it grows.
//!
//! The HSM and the keyring are on a memory file system: what is measured is the processor's work, not the disk's.
//! `QUICK=1` leaves the largest keyring out. Results also go to `target/bench/keys.json`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use hsm_engine::{Hsm, Initialize, Pin, SoftUri};
use keyring::{HotDeks, Keyring, MasterKey, NewScope, Owner, Scope, ScopeKind, SoftHsm, Unlocked};
use page_cipher::CipherId;
use tde_tests::figures::{Figure, Quantity, Suite, Table, in_turns, quick};
use tempfile::TempDir;

fn main() {
    let sizes: &[u32] = if quick() { &[1_000] } else { &[1_000, 100_000] };
    let pairs = if quick() { 5 } else { 21 };
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() };
    let hsm = software_hsm(&dir.path().join("hsm"));
    let small = Ring::fill(&dir.path().join("ring-1"), &hsm, 1);

    let mut tables = vec![operations(&small, &hsm, pairs)];
    for &size in sizes {
        let large = Ring::fill(&dir.path().join(format!("ring-{size}")), &hsm, size);
        tables.push(growth(&small, &large, &hsm, pairs));
    }
    let mut hsm = hsm;
    tables.push(budget(&dir.path().join("ring-budget"), &mut hsm));
    Suite {
        name: "keys".to_owned(),
        title: "HSM in the process and keyring".to_owned(),
        quick: quick(),
        conditions: vec![
            "HSM and keyring on a memory file system; release build".to_owned(),
            format!("{pairs} pairs each"),
        ],
        tables,
    }
    .write();
}

fn software_hsm(dir: &Path) -> SoftHsm {
    let (officer, user) = (Pin::generate().unwrap(), Pin::generate().unwrap());
    Hsm::initialize_dir(dir, &Initialize::new(&officer, &user)).unwrap();
    let uri: SoftUri = format!("soft:{}", dir.display()).parse().unwrap();
    SoftHsm::open(&uri, &user).unwrap()
}

/// A keyring with a number of scopes.
struct Ring {
    path: std::path::PathBuf,
    unlocked: Unlocked,
    scopes: u32,
    last: Scope,
}

impl Ring {
    fn fill(path: &Path, hsm: &SoftHsm, scopes: u32) -> Self {
        let unlocked = Keyring::create(path, Owner::Files, hsm).unwrap();
        let mut last = None;
        for number in 0..scopes {
            last = Some(unlocked.add_scope(scope(number), hsm).unwrap().0);
        }
        Self { path: path.to_owned(), unlocked, scopes, last: last.unwrap() }
    }
}

fn scope(number: u32) -> NewScope {
    let mut file_id = [0; 12];
    // As random as file ids are, where the folders that records are spread over look.
    file_id[..4].copy_from_slice(&number.wrapping_mul(0x9E37_79B9).to_le_bytes());
    file_id[4..8].copy_from_slice(&number.to_le_bytes());
    NewScope { kind: ScopeKind::SqliteFile { file_id }, cipher: CipherId::Aes256GcmSiv, initial: None }
}

/// Microseconds of one of `times` calls.
fn time(times: u32, mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    for _ in 0..times {
        work();
    }
    begin.elapsed().as_secs_f64() * 1e6 / f64::from(times)
}

fn operations(ring: &Ring, hsm: &SoftHsm, pairs: usize) -> Table {
    let mut table =
        Table::begin("A data key: from the hot LRU, and from the HSM", "HSM", "LRU", Quantity::Time);
    let version = ring.last.active().unwrap().version;
    let (keyring, line) = (ring.last.keyring(), ring.last.line);
    let mut hot = HotDeks::new(NonZeroUsize::new(64).unwrap());
    hot.insert(keyring, line, version, ring.unlocked.dek_of(&ring.last, version, hsm).unwrap());
    let [unwrapped, cached] = in_turns(pairs, |side| match side {
        0 => time(500, || drop(ring.unlocked.dek_of(&ring.last, version, hsm).unwrap())),
        _ => time(100_000, || {
            std::hint::black_box(hot.get(keyring, line, version).unwrap());
        }),
    });
    table.add(Figure::paired("unwrap, against a key that is hot", "us", &unwrapped, &cached).with_aim(0.01));
    table
}

/// A scope more, a scope read, a keyring opened: none may depend on how many there are.
fn growth(small: &Ring, large: &Ring, hsm: &SoftHsm, pairs: usize) -> Table {
    let title = format!("A keyring as it grows: {} scopes against one", large.scopes);
    let mut table = Table::begin(&title, "1 scope", "many", Quantity::Time);
    let rings = [small, large];
    // Numbers that no other call takes: the small one serves several.
    let mut next = (1 << 24) + large.scopes;
    let mut add = |name: &str, work: &mut dyn FnMut(&Ring) -> f64| {
        let [one, many] = in_turns(pairs, |side| work(rings[side]));
        table.add(Figure::paired(name, "us", &one, &many).with_aim(1.5));
    };
    add("open and unlock", &mut |ring| {
        time(20, || drop(Keyring::open(&ring.path).unwrap().unlock(hsm).unwrap()))
    });
    add("find a SQLite file and unwrap its key", &mut |ring| {
        let ScopeKind::SqliteFile { file_id } = ring.last.kind else { unreachable!("all scopes are files") };
        time(50, || {
            let found = ring.unlocked.find_sqlite_file(&file_id).unwrap().unwrap();
            drop(ring.unlocked.dek_of(&found, found.active().unwrap().version, hsm).unwrap());
        })
    });
    add("add a scope", &mut |ring| {
        time(5, || {
            next += 1;
            ring.unlocked.add_scope(scope(next), hsm).unwrap();
        })
    });
    table
}

/// What has a limit in seconds: the master key is rotated while servers wait for keys.
fn budget(path: &Path, hsm: &mut SoftHsm) -> Table {
    const KEYS: u32 = 10_000;
    let mut table = Table::begin("Against a limit", "limit", "measured", Quantity::Time);
    let ring = Ring::fill(path, hsm, KEYS);
    let mut times = Vec::new();
    for _ in 0..3 {
        hsm.generate_version().unwrap();
        let begin = Instant::now();
        let done = ring.unlocked.rewrap_all(hsm, |_| ControlFlow::Continue(())).unwrap();
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
        assert!(done.complete && done.rewrapped == u64::from(KEYS), "{done:?}");
    }
    table.add(
        Figure::paired("master key rotated, 10,000 keys wrapped anew", "ms", &[1000.0; 3], &times)
            .with_aim(1.0),
    );
    table
}
