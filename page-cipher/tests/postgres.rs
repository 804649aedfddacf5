//! PostgreSQL's own pages and tools: its checksums are ours, its headers are valid, and it accepts our sealed
//! pages.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::real_pages::PAGES;
use common::{PAGE_CIPHERS, data_key, unhex, without_checksum};
use page_cipher::CipherId;
use page_cipher::pg::*;

fn fork_of(file: &str) -> Fork {
    match file.split_once('_') {
        None => Fork::Main,
        Some((_, "fsm")) => Fork::Fsm,
        Some((_, "vm")) => Fork::Vm,
        Some((_, "init")) => Fork::Init,
        Some((_, other)) => panic!("{file}: unknown fork {other}"),
    }
}

fn assert_written_by_postgres(page: &Page, fork: Fork, block: u32, name: &str) {
    let stored = u16::from_ne_bytes([page[8], page[9]]);
    assert_eq!(checksum(page, block), stored, "checksum of {name} block {block}");
    let mut again = without_checksum(page);
    set_checksum(&mut again, block);
    assert_eq!(again, *page);
    assert!(header_is_valid(page, fork), "header of {name} block {block}: {:x?}", &page[..24]);
}

#[test]
fn checksums_of_real_pages() {
    for real in PAGES {
        let mut page = [0; PAGE_SIZE];
        for (offset, bytes) in real.bytes {
            let bytes = unhex(bytes);
            page[*offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        assert_written_by_postgres(&page, fork_of(real.file), real.block, real.file);
        for wrong in [real.block + 1, !real.block] {
            assert_ne!(checksum(&page, wrong).to_ne_bytes(), page[8..10], "the block number is part of it");
        }
    }
}

/// The `bin` folders of the installed servers.
fn servers() -> Vec<PathBuf> {
    let Ok(versions) = fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    let bins = versions.map(|version| version.unwrap().path().join("bin"));
    bins.filter(|bin| bin.join("initdb").exists()).collect()
}

/// Runs a server program as user `postgres` if this is root, which PostgreSQL refuses.
fn try_run(program: &Path, args: &[&str]) -> Output {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = if is_root {
        let mut runuser = Command::new("runuser");
        runuser.args(["-u", "postgres", "--"]).arg(program);
        runuser
    } else {
        Command::new(program)
    };
    command.args(args).env("LC_ALL", "C").current_dir("/").output().unwrap()
}

fn run(program: &Path, args: &[&str]) -> String {
    let output = try_run(program, args);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{} {args:?}: {text}", program.display());
    text
}

/// A new cluster with data checksums, and the folder that goes away with it.
fn new_cluster(bin: &Path) -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o777)).unwrap();
    let data = scratch.path().join("data");
    run(
        &bin.join("initdb"),
        &["--data-checksums", "--no-sync", "--auth=trust", "-D", data.to_str().unwrap()],
    );
    (scratch, data)
}

/// A relation's file: path, database and relation numbers, fork, pages.
struct RelationFile {
    path: PathBuf,
    db: u32,
    rel: u32,
    fork: Fork,
    pages: Vec<Page>,
}

fn relation_files(data: &Path) -> Vec<RelationFile> {
    let mut folders = vec![(0, data.join("global"))];
    for entry in fs::read_dir(data.join("base")).unwrap() {
        let path = entry.unwrap().path();
        if let Ok(db) = path.file_name().unwrap().to_str().unwrap().parse() {
            folders.push((db, path));
        }
    }
    let mut files = Vec::new();
    for (db, folder) in folders {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let Ok(rel) = name.split('_').next().unwrap().parse() else { continue };
            let fork = fork_of(name);
            let bytes = fs::read(&path).unwrap();
            let (pages, rest) = bytes.as_chunks::<PAGE_SIZE>();
            assert!(rest.is_empty(), "{} is not made of pages", path.display());
            let pages = pages.to_vec();
            files.push(RelationFile { path, db, rel, fork, pages });
        }
    }
    files
}

fn each_page(
    files: &mut [RelationFile],
    id: CipherId,
    mut each: impl FnMut(&RelationCipher, Fork, u32, &mut Page),
) {
    for file in files {
        let cipher = RelationCipher::new(id, &data_key(), file.db, file.rel).unwrap();
        for (block, page) in (0..).zip(&mut file.pages) {
            each(&cipher, file.fork, block, page);
        }
    }
}

fn write(files: &[RelationFile]) {
    for file in files {
        fs::write(&file.path, file.pages.as_flattened()).unwrap();
    }
}

/// Every page of a new cluster has the checksum and a header as this crate expects; sealed in place, all of
/// them pass PostgreSQL's own check of the cluster; opened, they are what they were.
#[test]
fn whole_cluster_sealed_in_place_passes_pg_checksums() {
    let servers = servers();
    if servers.is_empty() {
        eprintln!("SKIPPED: no PostgreSQL server below /usr/lib/postgresql");
    }
    for bin in servers {
        let (_scratch, data) = new_cluster(&bin);
        let data_arg = data.to_str().unwrap();
        let mut files = relation_files(&data);
        let mut plain_pages = 0;
        for file in &files {
            for (block, page) in (0..).zip(&file.pages).filter(|(_, page)| !is_zero(page)) {
                assert_written_by_postgres(page, file.fork, block, &file.path.display().to_string());
                plain_pages += 1;
            }
        }
        assert!(plain_pages > 1000, "only {plain_pages} pages");

        for id in PAGE_CIPHERS {
            each_page(&mut files, id, |cipher, fork, block, page| cipher.seal(fork, block, page).unwrap());
            write(&files);
            let report = run(&bin.join("pg_checksums"), &["--check", "-D", data_arg]);
            println!("{} {id}: {report}", bin.display());
            assert!(report.contains("Bad checksums:  0"), "{report}");
            let checked = report.lines().find_map(|line| line.strip_prefix("Blocks scanned:")).unwrap();
            assert!(checked.trim().parse::<usize>().unwrap() >= plain_pages, "{report}");

            each_page(&mut files, id, |cipher, fork, block, page| {
                cipher.open(fork, block, page).unwrap();
                if !is_zero(page) {
                    set_checksum(page, block);
                }
            });
        }
        write(&files);
        run(&bin.join("pg_checksums"), &["--check", "-D", data_arg]);
    }
}

/// PostgreSQL reports the page that was not sealed for its place, so the check above means something.
#[test]
fn pg_checksums_notices_a_page_in_the_wrong_place() {
    let Some(bin) = servers().pop() else {
        eprintln!("SKIPPED: no PostgreSQL server below /usr/lib/postgresql");
        return;
    };
    let (_scratch, data) = new_cluster(&bin);
    let mut files = relation_files(&data);
    let file = files.iter_mut().find(|file| file.pages.len() > 2 && file.fork == Fork::Main).unwrap();
    let cipher = RelationCipher::new(CipherId::Aes256Hctr2, &data_key(), file.db, file.rel).unwrap();
    cipher.seal(file.fork, 2, &mut file.pages[1]).unwrap();
    write(&files);
    let output = try_run(&bin.join("pg_checksums"), &["--check", "-D", data.to_str().unwrap()]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("Bad checksums:  1"));
}
