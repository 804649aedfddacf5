//! How long it takes to open, find and add a scope among many: `cargo run --release -p keyring --example many_files [COUNT [DIR]]`.
//!
//! Adding is measured through to the disk; on a file system in memory (`DIR` below /dev/shm) without it.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hsm_engine::{Hsm, Initialize, Pin};
use keyring::{Keyring, NewScope, Owner, ScopeKind, SoftHsm};
use page_cipher::CipherId;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let count: u32 = arguments.next().map_or(Ok(10_000), |count| count.parse())?;
    let base = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    let scratch = tempfile::Builder::new().permissions(private).tempdir_in(base)?;
    let (officer_pin, pin) = (Pin::generate()?, Pin::generate()?);
    let hsm = Hsm::initialize_dir(scratch.path().join("hsm"), &Initialize::new(&officer_pin, &pin))?;
    let master = SoftHsm::new(hsm.login("user", &pin)?, "master")?;
    let ring = scratch.path().join("ring");
    let keyring = Keyring::create(&ring, Owner::Files, &master)?;

    println!("{:>8}  {:>10}  {:>10}  {:>10}  {:>10}", "scopes", "add", "open", "find", "unwrap");
    let mut step = 10;
    let mut made = 0;
    while made < count {
        let until = step.min(count);
        let start = Instant::now();
        for number in made..until {
            keyring.add_scope(file(number), &master)?;
        }
        let add = start.elapsed() / (until - made);
        made = until;
        step *= 10;
        let open = time(|| Ok(Keyring::open(&ring)?.unlock(&master)?))?;
        let id = file_id(made / 2);
        let find = time(|| Ok(keyring.find_sqlite_file(&id)?.ok_or("not found")?))?;
        let scope = keyring.find_sqlite_file(&id)?.ok_or("not found")?;
        let newest = scope.active().ok_or("no active key")?.version;
        let unwrap = time(|| Ok(keyring.dek_of(&scope, newest, &master)?))?;
        println!("{made:>8}  {add:>10.1?}  {open:>10.1?}  {find:>10.1?}  {unwrap:>10.1?}");
    }
    Ok(())
}

/// Median of many runs.
fn time<T>(mut run: impl FnMut() -> Result<T, Box<dyn Error>>) -> Result<Duration, Box<dyn Error>> {
    let mut times = Vec::new();
    for _ in 0..101 {
        let start = Instant::now();
        let done = run()?;
        times.push(start.elapsed());
        drop(done);
    }
    times.sort_unstable();
    Ok(times[50])
}

fn file_id(number: u32) -> [u8; 12] {
    let mut id = [0; 12];
    // Spread over the folders, as random ids are.
    id[0] = number as u8;
    id[1..5].copy_from_slice(&number.to_le_bytes());
    id
}

fn file(number: u32) -> NewScope {
    let kind = ScopeKind::SqliteFile { file_id: file_id(number) };
    NewScope { kind, cipher: CipherId::Aes256GcmSiv, initial: None }
}
