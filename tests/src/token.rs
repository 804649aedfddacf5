//! PKCS#11 tokens of SoftHSM2 and of our own module, and modules that do what no module should.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{PgRoot, command_output, root};

/// SoftHSM2's library, where Debian puts it.
const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// Whose token it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// SoftHSM2, another vendor's.
    SoftHsm2,
    /// `libtde_pkcs11.so`
    Tde,
}

impl Maker {
    /// Both.
    pub const ALL: [Self; 2] = [Self::SoftHsm2, Self::Tde];

    /// The library.
    pub fn module(self) -> PathBuf {
        match self {
            Self::SoftHsm2 => SOFTHSM.into(),
            Self::Tde => root::build_dir().join("libtde_pkcs11.so"),
        }
    }
}

/// A token in a folder of its own.
pub struct Token {
    dir: PathBuf,
    /// Whose it is.
    pub maker: Maker,
    /// The token's label.
    pub label: String,
    /// The user's PIN, to search for where it must not be.
    pub pin: String,
    /// The file with the PIN.
    pub pin_file: PathBuf,
    /// The environment variable by which the library finds the token, and its value.
    pub environment: (&'static str, String),
}

impl Token {
    /// A token of SoftHSM2 below `dir`, which is made. It has no keys.
    pub fn new(dir: &Path) -> Self {
        Self::of(Maker::SoftHsm2, dir)
    }

    /// A token below `dir`, which is made. It has no keys that PKCS#11 shows.
    pub fn of(maker: Maker, dir: &Path) -> Self {
        match maker {
            Maker::SoftHsm2 => Self::softhsm2(dir),
            Maker::Tde => Self::tde_hsm(dir),
        }
    }

    fn tde_hsm(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let (store, pin_file) = (dir.join("tokens"), dir.join("pin"));
        let mut init = Command::new(root::build_dir().join("tde"));
        init.args(["hsm", "init", "--store"]).arg(&store).arg("--pin-file").arg(&pin_file);
        command_output(init.arg("--officer-pin-file").arg(dir.join("officer-pin")));
        let pin = fs::read_to_string(&pin_file).unwrap().trim().to_owned();
        let environment = ("TDE_PKCS11_HSM", format!("soft:{}", store.display()));
        Self { dir: dir.into(), maker: Maker::Tde, label: "tde".into(), pin, pin_file, environment }
    }

    fn softhsm2(dir: &Path) -> Self {
        let tokens = dir.join("tokens");
        fs::create_dir_all(&tokens).unwrap();
        let conf = dir.join("softhsm2.conf");
        let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
        fs::write(&conf, text).unwrap();
        // Not a number that anything else may contain.
        let pin = format!("pin{:016x}", std::process::id().wrapping_mul(2_654_435_761));
        let pin_file = dir.join("pin");
        fs::write(&pin_file, format!("{pin}\n")).unwrap();
        fs::set_permissions(&pin_file, fs::Permissions::from_mode(0o600)).unwrap();
        let environment = ("SOFTHSM2_CONF", conf.display().to_string());
        let (maker, label) = (Maker::SoftHsm2, "tde test".into());
        let token = Self { dir: dir.into(), maker, label, pin, pin_file, environment };
        let mut init = token.command("softhsm2-util");
        init.args(["--init-token", "--free", "--label", &token.label, "--so-pin", "so-pin-1234"]);
        command_output(init.args(["--pin", &token.pin]));
        token
    }

    /// A token with a master key, all of it owned by the servers' user.
    pub fn for_servers(root: &PgRoot, maker: Maker, dir: &Path) -> Self {
        let token = Self::of(maker, dir);
        command_output(token.tde().args(["hsm", "token", "create-key"]));
        root.own_all(dir);
        token
    }

    /// A command that finds this token.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env(self.environment.0, &self.environment.1).env("LC_ALL", "C");
        command
    }

    /// The `tde` command, configured for this token by the environment.
    pub fn tde(&self) -> Command {
        let mut command = self.command(root::build_dir().join("tde"));
        command.env("TDE_HSM", self.uri("")).env("TDE_PIN_FILE", &self.pin_file);
        command
    }

    /// OpenSC's tool, logged in.
    pub fn pkcs11_tool(&self) -> Command {
        let mut command = self.command("pkcs11-tool");
        command.arg("--module").arg(self.maker.module());
        command.args(["--token-label", &self.label, "--login", "--pin", &self.pin]);
        command
    }

    /// The URI of its key "master"; `more` as in `&x-timeout=5`.
    pub fn uri(&self, more: &str) -> String {
        self.uri_with(&self.maker.module(), more)
    }

    /// The same through another library.
    pub fn uri_with(&self, module: &Path, more: &str) -> String {
        let token = self.label.replace(' ', "%20");
        format!("pkcs11:token={token};object=master?module-path={}{more}", module.display())
    }

    /// Takes the token away, as when an HSM is unplugged.
    pub fn unplug(&self) {
        fs::rename(self.dir.join("tokens"), self.dir.join("unplugged")).unwrap();
        fs::create_dir(self.dir.join("tokens")).unwrap();
        fs::set_permissions(self.dir.join("tokens"), fs::Permissions::from_mode(0o777)).unwrap();
    }

    /// Brings it back.
    pub fn plug_in(&self) {
        fs::remove_dir_all(self.dir.join("tokens")).unwrap();
        fs::rename(self.dir.join("unplugged"), self.dir.join("tokens")).unwrap();
    }

    /// A library that forwards to SoftHSM2 but runs `statement` in `C_Login`, such as `pause();`, while the file `trigger` exists.
    pub fn module_that(&self, name: &str, statement: &str) -> (PathBuf, PathBuf) {
        let (library, trigger) = (self.dir.join(format!("{name}.so")), self.dir.join(format!("{name}.now")));
        let source = self.dir.join(format!("{name}.c"));
        fs::write(&source, MODULE.replace("STATEMENT", statement)).unwrap();
        let mut compile = Command::new("gcc");
        compile.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
        compile.arg(format!("-DREAL=\"{SOFTHSM}\"")).arg(format!("-DTRIGGER=\"{}\"", trigger.display()));
        command_output(compile.arg("-ldl"));
        (library, trigger)
    }
}

/// The 2.40 function list is a version (2 bytes, padded to 8) and pointers in the standard's order: `C_Login` is the 19th,
/// `C_UnwrapKey` the 62nd (pkcs11f.h).
const MODULE: &str = r#"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef unsigned long (*login)(unsigned long, unsigned long, unsigned char *, unsigned long);
static struct { unsigned char version[8]; void *call[68]; } list, *real;
static unsigned long C_Login(unsigned long s, unsigned long u, unsigned char *p, unsigned long n) {
    if (access(TRIGGER, F_OK) == 0) { STATEMENT }
    return ((login)real->call[18])(s, u, p, n);
}
unsigned long C_GetFunctionList(void **out) {
    void *library = dlopen(REAL, RTLD_NOW);
    unsigned long (*get)(void **) = (unsigned long (*)(void **))dlsym(library, "C_GetFunctionList");
    unsigned long result = get((void **)&real);
    memcpy(&list, real, sizeof list);
    list.call[18] = (void *)C_Login;
    *out = &list;
    return result;
}
"#;
