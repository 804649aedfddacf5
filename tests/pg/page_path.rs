//! A page of an encrypted tablespace costs no system call and no allocation that the plain server would not make.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tde_tests::{Cluster, Process, Scratch, command_output};

/// Far more than the buffers hold, so that a scan reads every page from its file.
const PAGES: i64 = 4096;
const SPACES: [&str; 2] = ["clear", "secure"];

fn cluster(more: impl FnOnce(&mut Cluster)) -> Cluster {
    let mut cluster = Cluster::builder()
        .conf("shared_buffers", "8MB")
        .conf("autovacuum", "off")
        .conf("max_parallel_workers_per_gather", "0")
        .conf("bgwriter_lru_maxpages", "0")
        .conf("checkpoint_timeout", "1h")
        .conf("max_wal_size", "4GB")
        .create();
    more(&mut cluster);
    cluster.start();
    cluster.run("CREATE EXTENSION pg_tde");
    cluster.plain_tablespace("clear");
    cluster.encrypted_tablespace("secure");
    for space in SPACES {
        // One row a page.
        for statement in [
            format!("CREATE TABLE {space} (i int, filler text) TABLESPACE {space}"),
            format!("ALTER TABLE {space} ALTER filler SET STORAGE PLAIN"),
            format!("INSERT INTO {space} SELECT i, repeat('x', 5000) FROM generate_series(1, {PAGES}) i"),
            format!("VACUUM (FREEZE) {space}"),
        ] {
            cluster.run(&statement);
        }
    }
    // A scan keeps to a few buffers of its own, so what was loaded last would stay in the others.
    cluster.restart();
    cluster
}

/// `strace`, counting the calls of a process.
struct Counting {
    strace: Child,
    output: PathBuf,
    _scratch: Scratch,
}

impl Counting {
    fn attach(process: Process) -> Self {
        let scratch = Scratch::new();
        let output = scratch.path().join("calls");
        let mut command = Command::new("strace");
        command.args(["-c", "-U", "calls,name", "-o"]).arg(&output);
        command.args(["-p", &process.pid.to_string()]).stderr(Stdio::null());
        let strace = command.spawn().unwrap_or_else(|error| panic!("strace: {error}: run 'make setup'"));
        let traced = |pid: i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            !status.contains("TracerPid:\t0\n")
        };
        let begin = Instant::now();
        while !traced(process.pid) {
            assert!(begin.elapsed() < Duration::from_secs(20), "strace does not attach to {}", process.pid);
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { strace, output, _scratch: scratch }
    }

    /// Detaches, and gives the number of calls by name.
    fn finish(mut self) -> BTreeMap<String, i64> {
        Process::find(self.strace.id() as i32).unwrap().signal(Signal::INT);
        self.strace.wait().unwrap();
        let table = fs::read_to_string(&self.output).unwrap();
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
        };
        let calls = table.lines().filter_map(row).map(|(count, name): (i64, String)| (name, count));
        let calls: BTreeMap<_, _> = calls.filter(|(name, _)| name != "total").collect();
        assert!(!calls.is_empty(), "strace counted nothing: {table}");
        calls
    }
}

/// What a few other things (statistics, a signal, the relation cache) may add.
const SLACK: i64 = 40;

fn assert_alike(what: &str, clear: &BTreeMap<String, i64>, secure: &BTreeMap<String, i64>) {
    for name in clear.keys().chain(secure.keys()) {
        let count = |calls: &BTreeMap<String, i64>| calls.get(name).copied().unwrap_or(0);
        let (plain, ours) = (count(clear), count(secure));
        assert!(
            (ours - plain).abs() <= SLACK,
            "{what}: {name}: {plain} plain, {ours} encrypted\n{clear:?}\n{secure:?}"
        );
    }
}

fn calls_of(calls: &BTreeMap<String, i64>, name: &str) -> i64 {
    calls.get(name).copied().unwrap_or(0)
}

#[test]
fn reading_a_page_takes_the_system_calls_of_the_plain_server() {
    let cluster = cluster(|_| ());
    let counted = SPACES.map(|space| {
        let mut sql = cluster.connect("postgres");
        let scan = format!("SELECT count(*) FROM {space}");
        // Catalogs, files and the relation's cipher are there then.
        assert_eq!(sql.int(&scan), PAGES);
        let backend = Process::find(sql.int("SELECT pg_backend_pid()") as i32).unwrap();
        let counting = Counting::attach(backend);
        assert_eq!(sql.int(&scan), PAGES);
        counting.finish()
    });
    let [clear, secure] = &counted;
    assert!(calls_of(clear, "pread64") > PAGES / 2, "the buffers held the table: {clear:?}");
    assert_alike("a scan", clear, secure);
}

#[test]
fn writing_a_page_takes_the_system_calls_of_the_plain_server() {
    let cluster = cluster(|_| ());
    let checkpointer = || {
        let children = cluster.postmaster().children();
        children.into_iter().find(|child| child.title().contains("checkpointer")).unwrap()
    };
    const DIRTY: i64 = 512;
    let counted = SPACES.map(|space| {
        let dirty = |round: i64| {
            cluster.run("CHECKPOINT");
            cluster.run(&format!("UPDATE {space} SET i = -i WHERE i > 0 AND i <= {}", DIRTY * round));
        };
        dirty(1);
        cluster.run("CHECKPOINT");
        dirty(2);
        let counting = Counting::attach(checkpointer());
        cluster.run("CHECKPOINT");
        counting.finish()
    });
    let [clear, secure] = &counted;
    assert!(calls_of(clear, "pwrite64") >= DIRTY, "the checkpoint wrote little: {clear:?}");
    assert_alike("a checkpoint", clear, secure);
}

/// Counts the calls of the allocator in all processes of the server, in a file that they share.
const COUNTER: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <errno.h>
#include <unistd.h>
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
static _Atomic long *count;
__attribute__((constructor)) static void open_count(void) {
    int fd = open(COUNT, O_RDWR | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) count = map;
    if (fd >= 0) close(fd);
}
static void one_more(void) { if (count) atomic_fetch_add(count, 1); }
void *malloc(size_t n) { one_more(); return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { one_more(); return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { one_more(); return __libc_realloc(p, n); }
void *memalign(size_t a, size_t n) { one_more(); return __libc_memalign(a, n); }
void *aligned_alloc(size_t a, size_t n) { one_more(); return __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) {
    one_more();
    void *found = __libc_memalign(a, n);
    if (!found) return ENOMEM;
    *p = found;
    return 0;
}
"#;

fn build_counter(dir: &Path, count: &Path) -> PathBuf {
    let (source, library) = (dir.join("count.c"), dir.join("count.so"));
    fs::write(&source, COUNTER).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-O1", "-fno-builtin", "-o"]).arg(&library).arg(&source);
    command_output(gcc.arg(format!("-DCOUNT=\"{}\"", count.display())));
    library
}

#[test]
fn a_page_takes_no_allocation() {
    let mut file = PathBuf::new();
    let cluster = cluster(|cluster| {
        file = cluster.dir().join("count");
        fs::write(&file, [0; 8]).unwrap();
        let library = build_counter(cluster.dir(), &file);
        cluster.root().own(&file);
        cluster.root().own(&library);
        cluster.environment("LD_PRELOAD", library.to_str().unwrap());
    });
    let allocations = || i64::from_ne_bytes(fs::read(&file).unwrap().try_into().unwrap());
    assert!(allocations() > 1000, "the counter counts");
    let taken = SPACES.map(|space| {
        let mut sql = cluster.connect("postgres");
        let (scan, update) =
            (format!("SELECT count(*) FROM {space}"), format!("UPDATE {space} SET i = i + 1"));
        let mut run = || {
            assert_eq!(sql.int(&scan), PAGES);
            // Reads, and writes out what the buffers cannot hold.
            sql.run(&update);
        };
        run();
        let before = allocations();
        run();
        allocations() - before
    });
    let [clear, secure] = taken;
    // Other processes do this and that meanwhile.
    assert!(
        secure - clear < PAGES / 16,
        "{clear} allocations plain, {secure} encrypted, for {PAGES} pages and more"
    );
}
