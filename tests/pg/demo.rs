//! `make demo`: it ends with an error as soon as one of its promises does not hold.

use std::path::Path;
use std::process::Command;

use tde_tests::sqlite::Sqlite;
use tde_tests::{command_output, plain_mode};

#[test]
fn the_demo_runs() {
    if plain_mode() {
        return;
    }
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/flights/demo.py");
    let mut command = Command::new("/usr/bin/python3");
    let extension = Sqlite::extension();
    command.arg(demo).env("BUILD", extension.parent().unwrap()).env("NO_COLOR", "1");
    let said = command_output(&mut command);
    assert!(said.matches('✓').count() > 5, "{said}");
}
