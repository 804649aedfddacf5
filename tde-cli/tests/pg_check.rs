//! `tde pg check` on data directories made page by page.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{Bench, Done, flip_byte, tde};
use keyring::{Keyring, NewScope, Owner, ScopeKind, StateChange, TablespaceState, WalPosition};
use page_cipher::CipherId;
use page_cipher::pg::{Fork, PAGE_SIZE, Page, RelationCipher, set_checksum};

const SYSTEM: u64 = 7_312_345_678_901_234_567;
const SPACE: u32 = 16_400;
const DATABASE: u32 = 5;

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 * (crc & 1)))
    })
}

fn plain_page(fill: u8, block: u32) -> Page {
    let mut page = [0; PAGE_SIZE];
    page[..8].copy_from_slice(&0x0001_0000_u64.to_le_bytes());
    page[12..14].copy_from_slice(&28_u16.to_le_bytes());
    page[14..16].copy_from_slice(&4096_u16.to_le_bytes());
    page[16..18].copy_from_slice(&8192_u16.to_le_bytes());
    page[18..20].copy_from_slice(&0x2004_u16.to_le_bytes());
    page[4096..].fill(fill);
    set_checksum(&mut page, block);
    page
}

struct Cluster {
    bench: Bench,
    data: PathBuf,
    relation: PathBuf,
}

impl Cluster {
    /// `pg_default` with plain pages, and a tablespace with pages sealed under a keyring's key.
    fn new() -> Self {
        let bench = Bench::new();
        let data = bench.path("data");
        for folder in ["global", "base/5", "pg_tblspc"] {
            fs::create_dir_all(data.join(folder)).unwrap();
        }
        fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        let mut control = vec![0; 8192];
        control[..8].copy_from_slice(&SYSTEM.to_le_bytes());
        control[8..12].copy_from_slice(&1300_u32.to_le_bytes());
        control[12..16].copy_from_slice(&202_209_061_u32.to_le_bytes());
        control[216..220].copy_from_slice(&8192_u32.to_le_bytes());
        control[220..224].copy_from_slice(&131_072_u32.to_le_bytes());
        control[252] = 1;
        let crc = crc32c(&control[..288]);
        control[288..292].copy_from_slice(&crc.to_le_bytes());
        fs::write(data.join("global/pg_control"), control).unwrap();
        let conf = format!(
            "shared_preload_libraries = 'pg_tde'\npg_tde.hsm = '{}'\npg_tde.pin_command = 'cat {}'\n",
            bench.uri,
            bench.path("pin").display()
        );
        fs::write(data.join("postgresql.conf"), conf).unwrap();
        write_pages(&data.join("base/5/1259"), &[plain_page(1, 0), [0; PAGE_SIZE], plain_page(2, 2)]);
        write_pages(&data.join("global/1262"), &[plain_page(3, 0)]);
        fs::write(data.join("base/5/pg_filenode.map"), "no relation").unwrap();

        let hsm = bench.login();
        let owner = Owner::PgCluster { system_identifier: SYSTEM };
        let keyring = Keyring::create(&data.join("pg_tde"), owner, &hsm).unwrap();
        let kind = ScopeKind::PgTablespace { oid: SPACE, name: "secure".into() };
        let initial = Some(StateChange { from: WalPosition(1 << 24), state: TablespaceState::Encrypted });
        let (_, dek) =
            keyring.add_scope(NewScope { kind, cipher: CipherId::Aes256Hctr2, initial }, &hsm).unwrap();
        let space = bench.path("space");
        let folder = space.join("PG_15_202209061/5");
        fs::create_dir_all(&folder).unwrap();
        symlink(&space, data.join(format!("pg_tblspc/{SPACE}"))).unwrap();
        let cipher = RelationCipher::new(CipherId::Aes256Hctr2, &dek, DATABASE, 16_500).unwrap();
        let seal = |fork, block| {
            let mut page = plain_page(7, block);
            cipher.seal(fork, block, &mut page).unwrap();
            page
        };
        let relation = folder.join("16500");
        write_pages(&relation, &[seal(Fork::Main, 0), [0; PAGE_SIZE], seal(Fork::Main, 2)]);
        write_pages(&folder.join("16500_init"), &[seal(Fork::Init, 0)]);
        // Blocks of a second file are counted on from the first.
        write_pages(&folder.join("16500.1"), &[seal(Fork::Main, 131_072), seal(Fork::Main, 131_073)]);
        Self { bench, data, relation }
    }

    fn check(&self) -> Done {
        self.bench.tde_with_pin(&["pg", "check", "--json", self.data.to_str().unwrap()])
    }

    fn problems(&self) -> Vec<String> {
        let done = self.check();
        assert_eq!(done.code, 1, "{}{}", done.out, done.err);
        let problems = done.json()["problems"].clone();
        serde_json::from_value(problems).unwrap()
    }
}

fn write_pages(path: &Path, pages: &[Page]) {
    fs::write(path, pages.concat()).unwrap();
}

#[test]
fn a_sound_cluster_is_told_page_by_page() {
    let cluster = Cluster::new();
    let done = cluster.check();
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    let report = done.json();
    assert_eq!(report["system_identifier"].as_u64(), Some(SYSTEM));
    assert_eq!((report["checksums"].as_bool(), report["running"].as_bool()), (Some(true), Some(false)));
    let space = &report["tablespaces"][2];
    assert_eq!((space["name"].as_str(), space["state"].as_str()), (Some("secure"), Some("encrypted")));
    let pages = serde_json::json!({ "zero": 1, "plain": 0, "encrypted": 5, "opened": 5, "damaged": 0 });
    assert_eq!((space["content"].as_str(), &space["pages"]), (Some("encrypted"), &pages));
    let default = &report["tablespaces"][0];
    let pages = serde_json::json!({ "zero": 1, "plain": 2, "encrypted": 0, "opened": 0, "damaged": 0 });
    assert_eq!((default["content"].as_str(), &default["pages"]), (Some("plain"), &pages));
    assert!(report["settings"].as_array().unwrap().iter().all(|setting| setting["status"] == "ok"));

    // Looking leaves no trace: the HSM has not heard of this place but from who made the keyring.
    let hsm = cluster.bench.login();
    let id = Keyring::open(&cluster.data.join("pg_tde")).unwrap().generation_id().unwrap();
    use keyring::MasterKey;
    assert_eq!(hsm.generation(&id).unwrap(), Some(2));
}

#[test]
fn without_a_pin_pages_are_told_by_their_form() {
    let cluster = Cluster::new();
    let done = tde(&["pg", "check", "-D", cluster.data.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{}{}", done.out, done.err);
    assert!(done.out.contains("encrypted") && done.out.contains("--pin-file"), "{}", done.out);
    // With a PIN file alone the HSM is the server's.
    let pin = cluster.bench.path("pin");
    let done =
        tde(&["pg", "check", "--json", cluster.data.to_str().unwrap(), "--pin-file", pin.to_str().unwrap()]);
    assert_eq!(done.json()["keyring"]["unlocked"].as_bool(), Some(true), "{}", done.out);
}

#[test]
fn a_flipped_byte_is_named_by_file_and_block() {
    let cluster = Cluster::new();
    flip_byte(&cluster.relation, 2 * PAGE_SIZE + 5000);
    let problems = cluster.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("16500 block 2"), "{problems:?}");
}

#[test]
fn a_page_with_a_right_checksum_in_the_wrong_place_is_found_with_keys_only() {
    let cluster = Cluster::new();
    let mut bytes = fs::read(&cluster.relation).unwrap();
    let (first, last) = bytes.split_at_mut(2 * PAGE_SIZE);
    let page: &mut Page = (&mut first[..PAGE_SIZE]).try_into().unwrap();
    page.copy_from_slice(last);
    set_checksum(page, 0);
    fs::write(&cluster.relation, &bytes).unwrap();
    assert_eq!(tde(&["pg", "check", cluster.data.to_str().unwrap()]).code, 0, "its form is right");
    let problems = cluster.problems();
    assert!(problems[0].contains("16500 block 0") && problems[0].contains("no key"), "{problems:?}");
}

#[test]
fn plain_pages_in_an_encrypted_tablespace_are_a_problem() {
    let cluster = Cluster::new();
    write_pages(&cluster.relation.with_file_name("16501"), &[plain_page(9, 0)]);
    let problems = cluster.problems();
    assert!(problems[0].contains("secure") && problems[0].contains("16501"), "{problems:?}");
    // Told by form alone it is at least mixed.
    let locked = tde(&["pg", "check", "--json", cluster.data.to_str().unwrap()]);
    assert_eq!((locked.code, locked.json()["tablespaces"][2]["content"].as_str()), (1, Some("mixed")));
}

#[test]
fn encrypted_pages_where_none_belong_and_cut_files_are_problems() {
    let cluster = Cluster::new();
    fs::copy(&cluster.relation, cluster.data.join("base/5/16500")).unwrap();
    let problems = cluster.problems();
    assert!(problems[0].contains("pg_default") && problems[0].contains("says it is plain"), "{problems:?}");
    fs::remove_file(cluster.data.join("base/5/16500")).unwrap();
    let mut bytes = fs::read(&cluster.relation).unwrap();
    bytes.truncate(PAGE_SIZE * 2 + 100);
    fs::write(&cluster.relation, bytes).unwrap();
    let problems = cluster.problems();
    assert!(problems[0].contains("block 2") && problems[0].contains("ends within"), "{problems:?}");
}

#[test]
fn missing_settings_and_a_foreign_keyring_are_problems() {
    let cluster = Cluster::new();
    fs::write(cluster.data.join("postgresql.conf"), "full_page_writes = off\n").unwrap();
    let problems = cluster.problems().join("\n");
    for name in ["shared_preload_libraries", "pg_tde.hsm", "pg_tde.pin_command", "full_page_writes"] {
        assert!(problems.contains(name), "{name} in {problems}");
    }
    let other = cluster.bench.path("other-ring");
    let hsm = cluster.bench.login();
    Keyring::create(&other, Owner::PgCluster { system_identifier: 1 }, &hsm).unwrap();
    drop(hsm);
    let done = cluster.bench.tde_with_pin(&[
        "pg",
        "check",
        cluster.data.to_str().unwrap(),
        "--keyring",
        other.to_str().unwrap(),
    ]);
    assert_eq!(done.code, 1);
    assert!(done.out.contains("system identifier 1, not to"), "{}", done.out);
}

#[test]
fn what_is_no_data_directory_is_refused_politely() {
    let bench = Bench::new();
    let nowhere = bench.path("nowhere");
    for path in [nowhere, bench.dir.path().to_path_buf(), bench.path("pin")] {
        let done = tde(&["pg", "check", path.to_str().unwrap()]);
        assert_eq!(done.code, 2);
        assert!(done.err.contains("is not a PostgreSQL data directory"), "{}", done.err);
    }
}

#[test]
fn an_unknown_control_file_is_a_problem_but_pages_are_still_read() {
    let cluster = Cluster::new();
    flip_byte(&cluster.data.join("global/pg_control"), 100);
    let done = cluster.check();
    assert_eq!(done.code, 1);
    let report = done.json();
    assert!(report["problems"][0].as_str().unwrap().contains("pg_control is damaged"), "{}", done.out);
    assert_eq!(report["tablespaces"][2]["pages"]["opened"].as_u64(), Some(5), "{}", done.out);
}
