//! A PKCS#11 token of SoftHSM2, and modules that do what no module should.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{PgRoot, command_output, root};

/// SoftHSM2's library, where Debian puts it.
const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// A token of SoftHSM2 in a folder of its own.
pub struct Token {
    dir: PathBuf,
    /// The token's label.
    pub label: String,
    /// The user's PIN, to search for where it must not be.
    pub pin: String,
    /// The file with the PIN.
    pub pin_file: PathBuf,
    /// `SOFTHSM2_CONF`
    pub conf: PathBuf,
}

impl Token {
    /// A token below `dir`, which is made. It has no keys.
    pub fn new(dir: &Path) -> Self {
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
        let token = Self { dir: dir.into(), label: "tde test".into(), pin, pin_file, conf };
        let mut init = token.command("softhsm2-util");
        init.args(["--init-token", "--free", "--label", &token.label, "--so-pin", "so-pin-1234"]);
        command_output(init.args(["--pin", &token.pin]));
        token
    }

    /// A token with a master key, all of it owned by the servers' user.
    pub fn for_servers(root: &PgRoot, dir: &Path) -> Self {
        let token = Self::new(dir);
        command_output(token.tde().args(["hsm", "token", "create-key"]));
        root.own_all(dir);
        token
    }

    /// A command that finds this token.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env("SOFTHSM2_CONF", &self.conf).env("LC_ALL", "C");
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
        command.args(["--module", SOFTHSM, "--token-label", &self.label, "--login", "--pin", &self.pin]);
        command
    }

    /// The URI of its key "master"; `more` as in `&x-timeout=5`.
    pub fn uri(&self, more: &str) -> String {
        self.uri_with(Path::new(SOFTHSM), more)
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
