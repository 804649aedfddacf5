//! A disk fills up in the middle of a job: below the keyring, the tablespace, the WAL.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tde_tests::{Cluster, Scratch, command_output, files};

use crate::filled::{assert_encrypted, fill, state, sums, wait_until};

/// A small file system of its own. Only root can make one.
struct SmallDisk {
    scratch: Scratch,
}

impl SmallDisk {
    fn new(megabytes: u32) -> Self {
        let scratch = Scratch::new();
        let options = format!("size={megabytes}m,mode=777");
        command_output(
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(scratch.path()),
        );
        Self { scratch }
    }

    fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// Makes it larger or smaller.
    fn resize(&self, megabytes: u32) {
        let options = format!("remount,size={megabytes}m");
        command_output(Command::new("mount").args(["-o", &options]).arg(self.path()));
    }

    /// Takes all the space that is left.
    fn fill(&self) -> PathBuf {
        let filler = self.path().join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        let error = std::io::copy(&mut std::io::repeat(1), &mut file).expect_err("the disk is small");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        filler
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn is_root() -> bool {
    let root = rustix::process::getuid().is_root();
    if !root {
        println!("only root can make small file systems: not tried");
    }
    root
}

/// The keyring cannot be changed and the tablespace's disk has no room either: the job fails with a reason, stays where it is, and ends
/// when there is room again.
#[test]
fn a_full_disk_below_the_keyring_and_the_tablespace() {
    if !is_root() {
        return;
    }
    let (keys, pages) = (SmallDisk::new(1), SmallDisk::new(64));
    let mut cluster = Cluster::builder()
        .conf("pg_tde.job_cost_limit", "16")
        .conf("pg_tde.job_cost_delay", "30ms")
        .conf("autovacuum", "off")
        .create();
    cluster.configure("pg_tde.keyring", keys.path().join("keyring").to_str().unwrap());
    cluster.start();
    cluster.run("CREATE EXTENSION pg_tde");
    let dir = pages.path().join("ts");
    fs::create_dir(&dir).unwrap();
    cluster.root().own(&dir);
    // Where the other tests look for it.
    std::os::unix::fs::symlink(&dir, cluster.ts_dir().join("ts")).unwrap();
    cluster.run(&format!("CREATE TABLESPACE ts LOCATION '{}'", dir.display()));
    fill(&mut cluster.connect("postgres"), 3000);
    let before = sums(&mut cluster.connect("postgres"));
    cluster.run("CHECKPOINT");
    let end = |function: &str| if function == "decrypt_tablespace" { "plain" } else { "encrypted" };
    let functions = ["encrypt_tablespace", "rotate_data_key", "decrypt_tablespace"];
    for (number, function) in functions.into_iter().enumerate() {
        let was = state(&cluster);
        let full = keys.fill();
        let error = cluster
            .try_run(&format!("SELECT tde.{function}('ts')"))
            .expect_err("there is no room for the keyring");
        assert!(error.to_string().contains("No space left on device"), "{function}: {error}");
        assert_eq!(state(&cluster), was, "{function}");
        assert_eq!(sums(&mut cluster.connect("postgres")), before, "{function}");
        fs::remove_file(&full).unwrap();

        // It begins, and then there is room nowhere.
        cluster.run(&format!("SELECT tde.{function}('ts')"));
        let (full, also) = (keys.fill(), pages.fill());
        let begin = Instant::now();
        let mark = cluster.log_mark();
        while !cluster.log_from(mark).contains("No space left on device") {
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", cluster.log_since_start());
            thread::sleep(Duration::from_millis(50));
        }
        assert!(state(&cluster).ends_with("ing"), "{function}: {}", state(&cluster));
        assert_eq!(sums(&mut cluster.connect("postgres")), before, "{function}, full");
        if number == 0 {
            cluster.crash();
            cluster.start();
            assert_eq!(sums(&mut cluster.connect("postgres")), before, "{function}, full, after a crash");
        }
        fs::remove_file(&full).unwrap();
        fs::remove_file(&also).unwrap();
        wait_until(&cluster, end(function));
        assert_eq!(sums(&mut cluster.connect("postgres")), before, "{function}, at the end");
        if end(function) == "encrypted" {
            assert_encrypted(&cluster);
        }
        cluster.crash_and_recover();
        assert_eq!(sums(&mut cluster.connect("postgres")), before, "{function}, after a crash");
    }
}

/// The images of a job fill the disk of the WAL: the server ends as PostgreSQL does then, and goes on when there is room.
#[test]
fn a_full_disk_below_the_wal() {
    if !is_root() {
        return;
    }
    let disk = SmallDisk::new(400);
    let mut cluster = Cluster::builder()
        .fsync()
        .conf("max_wal_size", "32MB")
        .conf("wal_level", "replica")
        .conf("autovacuum", "off")
        .create();
    let (wal, moved) = (cluster.data().join("pg_wal"), disk.path().join("wal"));
    command_output(Command::new("cp").arg("-a").arg(&wal).arg(&moved));
    fs::remove_dir_all(&wal).unwrap();
    std::os::unix::fs::symlink(&moved, &wal).unwrap();
    cluster.start();
    cluster.run("CREATE EXTENSION pg_tde");
    cluster.plain_tablespace("ts");
    let mut sql = cluster.connect("postgres");
    fill(&mut sql, 3000);
    sql.run("CREATE TABLE big TABLESPACE ts AS SELECT i, repeat(md5(i::text), 200) AS secret FROM generate_series(1, 6000) i");
    sql.run("ALTER TABLE big ALTER secret SET STORAGE EXTERNAL; UPDATE big SET secret = 'canary' || secret");
    let before = sums(&mut sql);
    let rows = sql.text("SELECT sum(hashtext(secret)) FROM big");
    drop(sql);
    cluster.run("CHECKPOINT");
    cluster.run("CHECKPOINT");
    // A standby that never comes keeps all WAL.
    cluster.run("SELECT pg_create_physical_replication_slot('nobody', true)");
    let used: u64 = files::files_below(disk.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
    disk.resize((used >> 20) as u32 + 10);
    cluster.run("SELECT tde.encrypt_tablespace('ts')");
    cluster.wait_for_end();
    let log = cluster.log_since_start();
    assert!(log.contains("No space left on device"), "{log}");
    // Still full: it does not start, and damages nothing by trying.
    assert!(cluster.try_start().is_err());
    disk.resize(600);
    cluster.start();
    cluster.run("SELECT pg_drop_replication_slot('nobody')");
    wait_until(&cluster, "encrypted");
    for pass in ["at once", "crash"] {
        if pass == "crash" {
            cluster.crash_and_recover();
        }
        assert_eq!(sums(&mut cluster.connect("postgres")), before, "{pass}");
        assert_eq!(cluster.text("SELECT sum(hashtext(secret)) FROM big"), rows, "{pass}");
        assert_encrypted(&cluster);
    }
}
