//! Servers and libraries that do not belong together: nothing starts, nothing is written, and the message says why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tde_tests::{Cluster, PgRoot, files};

/// The installed library.
fn library() -> PathBuf {
    let ask = Command::new(PgRoot::get().bin("pg_config")).arg("--pkglibdir").output().unwrap();
    Path::new(String::from_utf8(ask.stdout).unwrap().trim()).join("pg_tde.so")
}

fn filled() -> Cluster {
    let cluster = Cluster::with_tde();
    cluster.encrypted_tablespace("secure");
    cluster.run("CREATE TABLE t TABLESPACE secure AS SELECT i, 'canary-' || i AS secret FROM generate_series(1, 1000) i");
    cluster
}

fn intact(cluster: &mut Cluster) {
    cluster.start();
    assert_eq!(cluster.int("SELECT count(*) FROM t WHERE secret LIKE 'canary-%'"), 1000);
}

/// The server itself compares the version that a library was built for (fmgr.h, `Pg_magic_struct`).
#[test]
fn a_library_built_for_another_major_version() {
    let mut cluster = filled();
    cluster.stop();
    let mut bytes = fs::read(library()).unwrap();
    // The limits of every distribution's build, then the name of the product; the version stands before them.
    let limits: Vec<u8> = [100_i32, 32, 64, 1].into_iter().flat_map(i32::to_le_bytes).collect();
    let magic = [&limits[..], b"PostgreSQL"].concat();
    let found: Vec<usize> =
        bytes.windows(magic.len()).enumerate().filter(|(_, w)| *w == magic).map(|(at, _)| at).collect();
    let [at] = found[..] else { panic!("{} magic blocks", found.len()) };
    let version = i32::from_le_bytes(bytes[at - 4..at].try_into().unwrap());
    assert_eq!(version as u32, cluster.root().major() * 100);
    bytes[at - 4..at].copy_from_slice(&(version - 100).to_le_bytes());
    let other = cluster.dir().join("pg_tde.so");
    fs::write(&other, bytes).unwrap();
    cluster.configure("shared_preload_libraries", other.to_str().unwrap());
    let failure = cluster.try_start().expect_err("a library of another version");
    let said = format!(
        "Server is version {}, library is version {}",
        cluster.root().major(),
        cluster.root().major() - 1
    );
    assert!(failure.log.contains("FATAL") && failure.log.contains(&said), "{}", failure.log);
    cluster.configure("shared_preload_libraries", "pg_tde");
    intact(&mut cluster);
}

/// A server whose storage manager's table is not what the sources of its version say: patched, or of another product.
#[test]
fn a_server_with_another_storage_manager() {
    let mut cluster = filled();
    cluster.stop();
    let mut bytes = fs::read(cluster.root().bin("postgres")).unwrap();
    let elf = Elf::parse(&bytes);
    let [prefetch, writeback] = ["mdprefetch", "mdwriteback"].map(|name| elf.function(&bytes, name));
    let slots: Vec<usize> = elf.addends().filter(|at| word(&bytes, *at) == prefetch).collect();
    assert_eq!(slots.len(), 1, "one table holds mdprefetch");
    bytes[slots[0]..slots[0] + 8].copy_from_slice(&(writeback as u64).to_le_bytes());
    // Beside the programs of the private copy: a server finds its files by where it lies.
    let patched = cluster.root().bin(&format!("postgres-{}", std::process::id()));
    let _ = fs::remove_file(&patched);
    fs::copy(cluster.root().bin("postgres"), &patched).unwrap();
    fs::write(&patched, bytes).unwrap();
    let output = cluster.root().command(&patched).arg("-D").arg(cluster.data()).output();
    fs::remove_file(&patched).unwrap();
    let output = output.unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for said in [
        "FATAL:  pg_tde cannot hook into this server build",
        "found 0 storage manager tables",
        "HINT:  Use an unmodified PostgreSQL",
    ] {
        assert!(log.contains(said), "no {said:?} in:\n{log}");
    }
    intact(&mut cluster);
}

/// After a crash the WAL names the resource manager that is missing.
#[test]
fn a_server_that_must_recover_and_does_not_load_the_library() {
    let mut cluster = filled();
    cluster.crash();
    cluster.configure("shared_preload_libraries", "");
    let failure = cluster.try_start().expect_err("recovery needs the library");
    for said in ["resource manager with ID 158", "shared_preload_libraries"] {
        assert!(failure.log.contains(said), "no {said:?} in:\n{}", failure.log);
    }
    assert!(files::files_with(&cluster.ts_dir().join("secure"), b"canary-").is_empty());
    cluster.configure("shared_preload_libraries", "pg_tde");
    intact(&mut cluster);
}

/// A second copy would have its own idea of which keys there are.
#[test]
fn a_second_copy_of_the_library_is_refused() {
    let cluster = filled();
    let copy = cluster.dir().join("pg_tde_copy.so");
    fs::copy(library(), &copy).unwrap();
    for statement in [
        format!("LOAD '{}'", copy.display()),
        format!(
            "CREATE FUNCTION f() RETURNS int AS '{}', 'rotate_master_key_wrapper' LANGUAGE c",
            copy.display()
        ),
    ] {
        let error = cluster.try_run(&statement).expect_err("a second copy");
        assert!(error.text.contains("another copy of pg_tde is active"), "{statement}: {error}");
        assert!(error.text.contains("Restart the server"), "{statement}: {error}");
    }
    assert_eq!(cluster.text("SELECT tde.is_encrypted('t')"), "t");
}

/// An upgrade of the package puts another file under the same name while servers run.
#[test]
fn a_library_that_is_replaced_under_a_running_server_changes_nothing_before_its_restart() {
    let mut cluster = filled();
    let (library, next) = (library(), library().with_extension("so.next"));
    fs::copy(&library, &next).unwrap();
    fs::rename(&next, &library).unwrap();
    let mut session = cluster.connect("postgres");
    session.run("INSERT INTO t SELECT i, 'more-' || i FROM generate_series(1, 1000) i; CHECKPOINT");
    assert_eq!(session.text("SELECT tde.is_encrypted('t')"), "t");
    assert_eq!(session.int("SELECT coalesce(sum(damaged), 0) FROM tde.verify_tablespace('secure')"), 0);
    session.run("LOAD 'pg_tde'");
    session.run("SET max_parallel_workers_per_gather = 2; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0");
    assert_eq!(session.int("SELECT count(*) FROM t"), 2000);
    drop(session);
    cluster.kill_a_backend();
    assert_eq!(cluster.int("SELECT count(*) FROM t"), 2000);
    cluster.restart();
    assert_eq!(cluster.int("SELECT count(*) FROM t"), 2000);
}

/// The few things of an ELF file (64 bits, little-endian; elf(5)) that are needed to change a table of functions.
struct Elf {
    symbols: (usize, usize),
    names: usize,
    relocations: Vec<(usize, usize)>,
}

fn word(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

fn half(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

impl Elf {
    const SYMBOL: usize = 24;
    const RELOCATION: usize = 24;

    fn parse(bytes: &[u8]) -> Self {
        const DYNSYM: usize = 11;
        const RELA: usize = 4;
        assert_eq!(&bytes[..5], b"\x7fELF\x02", "not a 64-bit ELF file");
        let count = usize::from(u16::from_le_bytes([bytes[60], bytes[61]]));
        let header = |index: usize| word(bytes, 40) + index * 64;
        let range = |at: usize| (word(bytes, at + 24), word(bytes, at + 32));
        let of_type = |kind: usize| (0..count).map(header).filter(move |at| half(bytes, at + 4) == kind);
        let symbols = of_type(DYNSYM).next().expect("dynamic symbols");
        let names = word(bytes, header(half(bytes, symbols + 40)) + 24);
        Self { symbols: range(symbols), names, relocations: of_type(RELA).map(range).collect() }
    }

    /// Address of an exported function.
    fn function(&self, bytes: &[u8], name: &str) -> usize {
        let (start, size) = self.symbols;
        let entries = (start..start + size).step_by(Self::SYMBOL);
        let wanted = [name.as_bytes(), b"\0"].concat();
        let is_it = |at: &usize| bytes[self.names + half(bytes, *at)..].starts_with(&wanted);
        word(bytes, entries.into_iter().find(is_it).unwrap_or_else(|| panic!("no {name}")) + 8)
    }

    /// Where the values stand that the dynamic linker puts into data.
    fn addends(&self) -> impl Iterator<Item = usize> {
        self.relocations
            .iter()
            .flat_map(|(start, size)| (*start..start + size).step_by(Self::RELOCATION))
            .map(|at| at + 16)
    }
}
