//! The examples run as their first comment says, and whoever loads an extension by its name finds it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tde_tests::sqlite::{Engine, Sqlite};
use tde_tests::{command_output, plain_mode};

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn example(path: &str) -> PathBuf {
    workspace().join("examples").join(path)
}

/// Runs a note-taking program twice, and checks what it printed and what it left on the disk.
fn takes_notes(sqlite: &Sqlite, name: &str, command: impl Fn() -> Command) {
    let file = sqlite.file(name);
    let note = |text: &str| command_output(command().arg(&file).arg(text));
    let first = note("water the plants");
    assert!(first.ends_with("1: water the plants\n"), "{name}: {first}");
    let second = note("feed the cat");
    assert!(second.ends_with("1: water the plants\n2: feed the cat\n"), "{name}: {second}");
    let bytes = fs::read(&file).unwrap();
    assert!(bytes.starts_with(b"TDE"), "{name} is not encrypted");
    let mut worker = sqlite.worker(Engine::Tde);
    worker.open(0, &sqlite.uri(Engine::Tde, name, &[])).unwrap();
    assert_eq!(worker.text("SELECT text FROM note WHERE id = 2"), "feed the cat");
}

#[test]
fn the_c_example_runs_with_the_shared_and_the_static_library() {
    if plain_mode() {
        return;
    }
    let sqlite = Sqlite::new();
    let prefix = sqlite.dir().join("installed");
    let build = Sqlite::extension().parent().unwrap().to_owned();
    command_output(
        Command::new("make")
            .args(["--silent", "--no-print-directory", "install-sqlite-files"])
            .arg(format!("PREFIX={}", prefix.display()))
            .arg(format!("BUILD={}", build.display()))
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .env_remove("DESTDIR")
            .current_dir(workspace()),
    );
    let pkg_config = |what: &[&str]| {
        let mut command = Command::new("pkg-config");
        command.args(what).arg("tde_sqlite").env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
        command_output(&mut command).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let compile = |output: &Path, libraries: &[String]| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-Wall", "-Wextra", "-Werror"]).arg(example("sqlite-c/notes.c")).arg("-o").arg(output);
        command_output(gcc.args(pkg_config(&["--cflags"])).args(libraries));
    };
    let (shared, fixed) = (sqlite.dir().join("shared"), sqlite.dir().join("static"));
    compile(&shared, &pkg_config(&["--libs"]));
    let archive = prefix.join("lib/libtde_sqlite.a").display().to_string();
    compile(&fixed, &[archive, "-lsqlite3".into(), "-lm".into(), "-ldl".into(), "-lpthread".into()]);
    takes_notes(&sqlite, "shared.db", || {
        let mut command = sqlite.command(&shared);
        command.env("LD_LIBRARY_PATH", prefix.join("lib"));
        command
    });
    takes_notes(&sqlite, "static.db", || sqlite.command(&fixed));
    // Without a key nothing is made, and the program can say why.
    let output = sqlite.command(&fixed).env_remove("TDE_PIN_FILE").args(["none.db", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("PIN"), "{said}");
    assert!(!sqlite.file("none.db").exists() || fs::read(sqlite.file("none.db")).unwrap().is_empty());
}

#[test]
fn the_python_example_runs() {
    if plain_mode() {
        return;
    }
    let sqlite = Sqlite::new();
    // Debian's own Python; another one may be built without loadable extensions.
    takes_notes(&sqlite, "python.db", || {
        let mut command = sqlite.command("/usr/bin/python3");
        command.arg(example("sqlite-python/notes.py")).arg(Sqlite::extension().with_extension(""));
        command
    });
}

#[test]
fn the_rust_example_runs() {
    if plain_mode() {
        return;
    }
    let sqlite = Sqlite::new();
    let program = Sqlite::extension().with_file_name("sqlite-rust-example");
    takes_notes(&sqlite, "rust.db", || sqlite.command(&program));
}

/// What `sqlite-runtimes.sh` prints, in words; `None` when the runtime cannot be had, which is said aloud.
fn runtime(kind: &str) -> Option<Vec<String>> {
    let dir = format!("/var/tmp/tde-sqlite-runtimes-{}", rustix::process::getuid().as_raw());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("sqlite-runtimes.sh");
    let output = Command::new(script).args([kind, &dir]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) {
        eprintln!("NOT RUN: the example for {kind}: {said}");
        return None;
    }
    assert!(output.status.success(), "{kind}: {said}");
    Some(String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect())
}

#[test]
fn the_node_example_runs() {
    if plain_mode() {
        return;
    }
    let Some(node) = runtime("node") else { return };
    let sqlite = Sqlite::new();
    takes_notes(&sqlite, "node.db", || {
        let mut command = sqlite.command(&node[0]);
        command.arg(example("sqlite-node/notes.js")).arg(Sqlite::extension().with_extension(""));
        command
    });
}

#[test]
fn the_java_example_runs() {
    if plain_mode() {
        return;
    }
    let Some(options) = runtime("java") else { return };
    let sqlite = Sqlite::new();
    takes_notes(&sqlite, "java.db", || {
        let mut command = sqlite.command("java");
        command.args(&options).arg(example("sqlite-java/Notes.java"));
        command.arg(Sqlite::extension().with_extension(""));
        command
    });
}

/// Each example has a test above, or in `tests/pg`: the flights in `demo.rs`, systemd's units in `maintenance.rs`.
#[test]
fn no_example_is_without_a_test() {
    let mut examples: Vec<_> = fs::read_dir(example(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    examples.sort();
    let tested =
        ["flights", "sqlite-c", "sqlite-java", "sqlite-node", "sqlite-python", "sqlite-rust", "systemd"];
    assert_eq!(examples, tested);
}

#[test]
fn the_shell_loads_the_extension_by_name() {
    if plain_mode() {
        return;
    }
    let sqlite = Sqlite::new();
    // SQLite's naming rule: no entry point, no suffix, no lib prefix looked for.
    let load = format!(".load {}", Sqlite::extension().with_extension("").display());
    let open = format!(".open 'file:{}?vfs=tde'", sqlite.file("shell.db").display());
    let mut command = sqlite.command("/usr/bin/sqlite3");
    command.args([
        "-batch",
        ":memory:",
        &load,
        &open,
        "CREATE TABLE t (x); INSERT INTO t VALUES ('from the shell'); SELECT x FROM t",
    ]);
    assert_eq!(command_output(&mut command).trim(), "from the shell");
    assert!(fs::read(sqlite.file("shell.db")).unwrap().starts_with(b"TDE"));
}
