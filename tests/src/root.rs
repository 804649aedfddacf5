//! The private copy of PostgreSQL.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use rustix::fs::{FlockOperation, flock};

use crate::{command_output, plain_mode, scratch};

/// A copy of the installed PostgreSQL with the built extension and the `tde` command in it.
pub struct PgRoot {
    dir: PathBuf,
    major: u32,
    /// User and group that servers run as: `postgres` when the tests run as root.
    user: Option<(u32, u32)>,
}

impl PgRoot {
    /// The copy of this test process, made or refreshed at the first call.
    pub fn get() -> &'static Self {
        static ROOT: OnceLock<PgRoot> = OnceLock::new();
        ROOT.get_or_init(Self::make)
    }

    fn make() -> Self {
        let base = scratch::base();
        let build = build_dir();
        let pg_config = installed_pg_config();
        let printed = command_output(Command::new(&pg_config).arg("--version"));
        let major = printed.split(|c: char| !c.is_ascii_digit()).find_map(|word| word.parse().ok()).unwrap();
        // One copy for each version and build folder: a bench (release) and a test (dev), or two checkouts, may run side by side.
        let profile = build.file_name().unwrap().to_str().unwrap().to_owned();
        let mut path = DefaultHasher::new();
        build.hash(&mut path);
        let name = format!("root-{major}-{profile}-{:08x}", path.finish() as u32);
        let dir = base.join(&name);
        let lock = fs::File::create(base.join(format!("{name}.lock"))).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();

        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let stamp = dir.join("version");
        let installed = pg_config.with_file_name("postgres");
        let meta = fs::metadata(&installed)
            .unwrap_or_else(|e| panic!("{}: {e}: run 'make setup'", installed.display()));
        let version = format!("{} {}.{}", installed.display(), meta.mtime(), meta.size());
        if fs::read_to_string(&stamp).is_ok_and(|old| old == version) {
            // Fresh already.
        } else {
            let _ = fs::remove_dir_all(&dir);
            command_output(Command::new(workspace.join("tests/pg-root.sh")).arg(&dir).arg(&pg_config));
            fs::write(&stamp, version).unwrap();
        }
        let root = Self { user: server_user(), dir, major };
        if !plain_mode() {
            command_output(
                Command::new("make")
                    .args(["--silent", "--no-print-directory", "install-files"])
                    .arg(format!("PG_CONFIG={}", root.bin("pg_config").display()))
                    .arg(format!("PREFIX={}", root.prefix().display()))
                    .arg(format!("BUILD={}", build.display()))
                    .env_remove("MAKEFLAGS")
                    .env_remove("MAKELEVEL")
                    .current_dir(workspace),
            );
        }
        root
    }

    /// The path of one of PostgreSQL's programs.
    pub fn bin(&self, program: &str) -> PathBuf {
        self.dir.join(format!("usr/lib/postgresql/{}/bin", self.major)).join(program)
    }

    /// The major version of the server under test.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// What `pg_config` of the installation that was copied says, such as `--pkglibdir`.
    pub fn installed(&self, what: &str) -> PathBuf {
        command_output(Command::new(installed_pg_config()).arg(what)).trim().into()
    }

    /// The path of the `tde` command under test.
    pub fn tde(&self) -> PathBuf {
        self.prefix().join("bin/tde")
    }

    fn prefix(&self) -> PathBuf {
        self.dir.join("usr/local")
    }

    /// A command that runs `program` as the servers' user, with a clean environment.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").env("PATH", "/usr/bin:/bin").current_dir("/");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Gives `path` and everything below it to the servers' user.
    pub fn own_all(&self, path: &Path) {
        self.own(path);
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                self.own_all(&entry.unwrap().path());
            }
        }
    }

    /// Gives `path` to the servers' user.
    pub fn own(&self, path: &Path) {
        if let Some((uid, gid)) = self.user {
            chown(path, Some(uid), Some(gid)).unwrap();
        }
    }
}

/// `PG_CONFIG`, or Debian's of major version `PG_MAJOR`, or that of version 15.
fn installed_pg_config() -> PathBuf {
    env::var_os("PG_CONFIG").filter(|path| !path.is_empty()).map_or_else(
        || {
            let major = env::var("PG_MAJOR").unwrap_or_else(|_| "15".to_owned());
            format!("/usr/lib/postgresql/{major}/bin/pg_config").into()
        },
        PathBuf::from,
    )
}

/// The folder with `libpg_tde.so`, `libtde_sqlite.so` and `tde`: the one that this test binary was built into.
pub(crate) fn build_dir() -> PathBuf {
    let exe = env::current_exe().unwrap();
    let dir = exe.parent().unwrap();
    if dir.ends_with("deps") { dir.parent().unwrap().to_owned() } else { dir.to_owned() }
}

/// `postgres`'s user and group when this process is root, which no server may run as.
fn server_user() -> Option<(u32, u32)> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line =
        passwd.lines().find(|l| l.starts_with("postgres:")).expect("a user postgres: run 'make setup'");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}
