//! Our PKCS#11 module in other people's command line tools: OpenSC, GnuTLS, OpenSSL, osslsigncode.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tde_tests::{Maker, Scratch, Token, command_output};

/// An HSM in the process, and programs that reach it through `libtde_pkcs11.so`.
pub(crate) struct Desk {
    pub(crate) scratch: Scratch,
    pub(crate) token: Token,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let scratch = Scratch::new();
        let token = Token::of(Maker::Tde, &scratch.path().join("hsm"));
        Self { scratch, token }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// A command that finds the module and the token, in the scratch folder.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = self.token.command(program);
        command.current_dir(self.scratch.path()).env("MODULE", Maker::Tde.module());
        command
    }

    /// OpenSC's tool, logged in.
    pub(crate) fn tool(&self, arguments: &[&str]) -> String {
        command_output(self.token.pkcs11_tool().current_dir(self.scratch.path()).args(arguments))
    }

    /// OpenSC's tool, which must fail.
    fn tool_fails(&self, arguments: &[&str]) -> String {
        let output =
            self.token.pkcs11_tool().current_dir(self.scratch.path()).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "{said}");
        said
    }

    /// OpenSSL's program with the module as its engine.
    pub(crate) fn openssl(&self, arguments: &[&str]) -> String {
        let mut command = self.command("openssl");
        command.env("OPENSSL_CONF", self.engine_conf("")).args(arguments);
        command_output(&mut command)
    }

    /// OpenSSL's program alone.
    fn plain_openssl(&self, arguments: &[&str]) -> String {
        command_output(self.command("openssl").args(arguments))
    }

    /// A public key in DER. (OpenSC 0.23 cannot take out those of curves.)
    fn public_key(&self, id: &str, file: &str) {
        let key = format!("pkcs11:token=tde;id=%{id};type=public");
        let engine = ["pkey", "-engine", "pkcs11", "-inform", "ENGINE", "-pubin", "-in", &key];
        self.openssl(&[&engine[..], &["-pubout", "-outform", "DER", "-out", file]].concat());
    }

    /// OpenSSL's configuration with libp11's engine and more after it.
    pub(crate) fn engine_conf(&self, more: &str) -> PathBuf {
        let file = self.path("openssl.cnf");
        let text = format!(
            "openssl_conf = conf\n[conf]\nengines = engines\n[engines]\npkcs11 = pkcs11\n[pkcs11]\nengine_id = pkcs11\n\
             MODULE_PATH = {}\nPIN = {}\ninit = 0\n[req]\ndistinguished_name = dn\n[dn]\n{more}",
            Maker::Tde.module().display(),
            self.token.pin,
        );
        fs::write(&file, text).unwrap();
        file
    }

    /// A key pair and a certificate that it signed itself; the certificate's file.
    pub(crate) fn self_signed(&self, kind: &str, label: &str, id: &str, name: &str) -> PathBuf {
        self.tool(&["--keypairgen", "--key-type", kind, "--label", label, "--id", id, "--usage-sign"]);
        let file = format!("{label}.pem");
        let key = format!("pkcs11:token=tde;object={label};type=private");
        let subject = format!("/CN={name}");
        self.openssl(&[
            "req", "-new", "-x509", "-engine", "pkcs11", "-keyform", "engine", "-key", &key, "-subj",
            &subject, "-days", "30", "-sha256", "-out", &file,
        ]);
        self.path(&file)
    }
}

#[test]
fn the_tool_of_opensc_finds_no_fault() {
    let desk = Desk::new();
    let uses = ["--usage-sign", "--usage-decrypt", "--usage-wrap"];
    let rsa = ["--keypairgen", "--key-type", "rsa:2048", "--id", "01", "--label", "rsa"];
    desk.tool(&[&rsa[..], &uses[..]].concat());
    desk.tool(&[
        "--keypairgen",
        "--key-type",
        "EC:prime256v1",
        "--id",
        "02",
        "--label",
        "ec",
        "--usage-sign",
    ]);
    desk.tool(&[
        "--keypairgen",
        "--key-type",
        "EC:edwards25519",
        "--id",
        "03",
        "--label",
        "ed",
        "--usage-sign",
    ]);
    let tested = desk.tool(&["--test"]);
    assert!(tested.contains("No errors"), "{tested}");
    let threads = desk.tool(&["--test-threads", "ILGISSLS0", "--test-threads", "ILGISSLS0"]);
    assert!(!threads.contains("rv="), "{threads}");
    let listed = desk.tool(&["--list-objects"]);
    for word in [
        "label:      rsa",
        "label:      ec",
        "label:      ed",
        "never extractable",
        "always sensitive",
        "local",
    ] {
        assert!(listed.contains(word), "{word}: {listed}");
    }
    let mechanisms = desk.tool(&["--list-mechanisms"]);
    for word in ["AES-GCM", "ECDSA-SHA384", "RSA-PKCS-OAEP", "EDDSA", "AES-KEY-WRAP"] {
        assert!(mechanisms.contains(word), "{word}: {mechanisms}");
    }
    // A token that is not logged in shows what is on the label and nothing else.
    let mut public = desk.command("pkcs11-tool");
    let shown = command_output(public.arg("--module").arg(Maker::Tde.module()).args(["-L", "-O"]));
    assert!(shown.contains("login required") && !shown.contains("rsa"), "{shown}");
    desk.tool(&["--delete-object", "--type", "privkey", "--id", "02"]);
    assert!(!desk.tool(&["--list-objects", "--type", "privkey"]).contains("label:      ec"));
}

#[test]
fn signatures_are_what_openssl_verifies() {
    let desk = Desk::new();
    fs::write(desk.path("text"), b"a text to sign").unwrap();
    let cases = [
        ("rsa:2048", "SHA256-RSA-PKCS", "-sha256", &[][..]),
        ("rsa:2048", "SHA512-RSA-PKCS-PSS", "-sha512", &["-sigopt", "rsa_padding_mode:pss"][..]),
        ("EC:secp384r1", "ECDSA-SHA384", "-sha384", &[][..]),
        ("EC:secp521r1", "ECDSA-SHA512", "-sha512", &[][..]),
    ];
    for (n, (kind, mechanism, digest, more)) in cases.into_iter().enumerate() {
        let id = format!("{n:02}");
        desk.tool(&["--keypairgen", "--key-type", kind, "--id", &id, "--usage-sign"]);
        let mut sign = vec!["--sign", "--mechanism", mechanism, "--id", &id, "-i", "text", "-o", "signature"];
        if kind.starts_with("EC") {
            sign.extend(["--signature-format", "openssl"]);
        }
        desk.tool(&sign);
        desk.public_key(&id, "public.der");
        let verify = ["-verify", "public.der", "-keyform", "DER", "-signature", "signature", "text"];
        let verified = desk.plain_openssl(&[&["dgst", digest][..], more, &verify[..]].concat());
        assert!(verified.contains("Verified OK"), "{mechanism}: {verified}");
        if kind.starts_with("rsa") {
            let check = [
                "--verify",
                "--mechanism",
                mechanism,
                "--id",
                &id,
                "-i",
                "text",
                "--signature-file",
                "signature",
            ];
            assert!(desk.tool(&check).contains("Signature is valid"));
            fs::write(desk.path("other"), b"another text").unwrap();
            let check = [
                "--verify",
                "--mechanism",
                mechanism,
                "--id",
                &id,
                "-i",
                "other",
                "--signature-file",
                "signature",
            ];
            assert!(!desk.tool(&check).contains("Signature is valid"));
        }
    }
}

#[test]
fn what_openssl_encrypts_the_module_decrypts() {
    let desk = Desk::new();
    desk.tool(&["--keypairgen", "--key-type", "rsa:2048", "--id", "01", "--usage-decrypt"]);
    desk.tool(&["--read-object", "--type", "pubkey", "--id", "01", "-o", "public.der"]);
    fs::write(desk.path("plain"), b"sixteen byte key").unwrap();
    desk.plain_openssl(&[
        "pkeyutl",
        "-encrypt",
        "-pubin",
        "-keyform",
        "DER",
        "-inkey",
        "public.der",
        "-in",
        "plain",
        "-out",
        "sealed",
        "-pkeyopt",
        "rsa_padding_mode:oaep",
        "-pkeyopt",
        "rsa_oaep_md:sha256",
        "-pkeyopt",
        "rsa_mgf1_md:sha256",
    ]);
    desk.tool(&[
        "--decrypt",
        "--mechanism",
        "RSA-PKCS-OAEP",
        "--hash-algorithm",
        "SHA256",
        "--mgf",
        "MGF1-SHA256",
        "--id",
        "01",
        "-i",
        "sealed",
        "-o",
        "opened",
    ]);
    assert_eq!(fs::read(desk.path("opened")).unwrap(), b"sixteen byte key");

    desk.tool(&["--keygen", "--key-type", "aes:32", "--id", "02", "--label", "aes"]);
    let iv = "000102030405060708090a0b0c0d0e0f";
    for (way, from, to) in [("--encrypt", "plain", "sealed"), ("--decrypt", "sealed", "opened")] {
        desk.tool(&[way, "--mechanism", "AES-CBC-PAD", "--iv", iv, "--id", "02", "-i", from, "-o", to]);
    }
    assert_eq!(fs::read(desk.path("opened")).unwrap(), b"sixteen byte key");
    assert_eq!(fs::read(desk.path("sealed")).unwrap().len(), 32);
}

#[test]
fn keys_are_wrapped_unwrapped_and_derived() {
    let desk = Desk::new();
    desk.tool(&["--keygen", "--key-type", "aes:32", "--id", "01", "--label", "kek", "--usage-wrap"]);
    desk.tool(&["--keygen", "--key-type", "aes:32", "--id", "02", "--label", "dek", "--extractable"]);
    desk.tool(&["--keygen", "--key-type", "aes:32", "--id", "03", "--label", "stays"]);
    let wrap =
        |id| ["--wrap", "--mechanism", "AES-KEY-WRAP", "--id", "01", "--application-id", id, "-o", "wrapped"];
    desk.tool(&wrap("02"));
    assert_eq!(fs::read(desk.path("wrapped")).unwrap().len(), 40);
    desk.tool(&[
        "--unwrap",
        "--mechanism",
        "AES-KEY-WRAP",
        "--id",
        "01",
        "--application-id",
        "04",
        "-i",
        "wrapped",
        "--key-type",
        "AES:",
        "--application-label",
        "again",
        "--extractable",
    ]);
    // The same key: what one seals the other opens.
    fs::write(desk.path("plain"), [7; 32]).unwrap();
    desk.tool(&["--encrypt", "--mechanism", "AES-ECB", "--id", "02", "-i", "plain", "-o", "sealed"]);
    desk.tool(&["--decrypt", "--mechanism", "AES-ECB", "--id", "04", "-i", "sealed", "-o", "opened"]);
    assert_eq!(fs::read(desk.path("opened")).unwrap(), [7; 32]);
    let refused = desk.tool_fails(&wrap("03"));
    assert!(refused.contains("CKR_KEY_UNEXTRACTABLE"), "{refused}");

    // ECDH with the other half in OpenSSL: both sides get the same secret.
    desk.tool(&["--keypairgen", "--key-type", "EC:prime256v1", "--id", "05", "--usage-derive"]);
    desk.public_key("05", "ours.der");
    desk.plain_openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "theirs.pem"]);
    desk.plain_openssl(&["ec", "-in", "theirs.pem", "-pubout", "-outform", "DER", "-out", "theirs.der"]);
    desk.tool(&["--derive", "--mechanism", "ECDH1-DERIVE", "--id", "05", "-i", "theirs.der", "-o", "shared"]);
    desk.plain_openssl(&[
        "pkeyutl",
        "-derive",
        "-inkey",
        "theirs.pem",
        "-peerkey",
        "ours.der",
        "-peerform",
        "DER",
        "-out",
        "expected",
    ]);
    assert_eq!(fs::read(desk.path("shared")).unwrap(), fs::read(desk.path("expected")).unwrap());
}

#[test]
fn random_bytes_come_in_any_number() {
    let desk = Desk::new();
    let mut before = Vec::new();
    for len in ["1", "32", "32", "100000"] {
        desk.tool(&["--generate-random", len, "-o", "random"]);
        let random = fs::read(desk.path("random")).unwrap();
        assert_eq!(random.len().to_string(), len);
        assert_ne!(random, before);
        before = random;
    }
}

#[test]
fn pins_are_checked_changed_and_locked_as_users_expect() {
    let desk = Desk::new();
    let tool = |arguments: &[&str]| {
        let mut command = desk.command("pkcs11-tool");
        let output = command.arg("--module").arg(Maker::Tde.module()).args(arguments).output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let (ok, said) = tool(&["--login", "--pin", "wrong-9876543", "--list-objects"]);
    assert!(!ok && said.contains("CKR_PIN_INCORRECT"), "{said}");
    assert!(tool(&["-L"]).1.contains("user PIN count low"));
    let pin = desk.token.pin.clone();
    // As CloudHSM writes it.
    assert!(tool(&["--login", "--pin", &format!("user:{pin}"), "--list-objects"]).0);
    assert!(!tool(&["-L"]).1.contains("user PIN count low"), "a good login clears the count");
    let (ok, said) = tool(&["--login", "--pin", &pin, "--change-pin", "--new-pin", "another-pin-1"]);
    assert!(ok, "{said}");
    assert!(!tool(&["--login", "--pin", &pin, "--list-objects"]).0);
    assert!(tool(&["--login", "--pin", "another-pin-1", "--list-objects"]).0);
    let (ok, said) = tool(&["--login", "--pin", "another-pin-1", "--change-pin", "--new-pin", "user:pin-2"]);
    assert!(!ok && said.contains("CKR_PIN_INVALID"), "it would be read as a name and a PIN: {said}");

    let officer = fs::read_to_string(desk.path("hsm/officer-pin")).unwrap().trim().to_owned();
    for _ in 0..3 {
        tool(&["--login", "--pin", "wrong-1", "--list-objects"]);
    }
    let (ok, said) = tool(&["--login", "--pin", "another-pin-1", "--list-objects"]);
    assert!(!ok && said.contains("CKR_PIN_LOCKED"), "{said}");
    assert!(tool(&["-L"]).1.contains("user PIN locked"));
    // The officer sets a new PIN, and may not use keys.
    let (ok, said) = tool(&[
        "--login",
        "--login-type",
        "so",
        "--so-pin",
        &officer,
        "--init-pin",
        "--new-pin",
        "third-pin",
    ]);
    assert!(ok, "{said}");
    assert!(tool(&["--login", "--pin", "third-pin", "--list-objects"]).0);
    let (ok, said) =
        tool(&["--login", "--login-type", "so", "--so-pin", &officer, "--keygen", "--key-type", "aes:32"]);
    assert!(!ok && said.contains("CKR_USER_NOT_LOGGED_IN"), "{said}");

    fs::rename(desk.path("hsm/tokens"), desk.path("away")).unwrap();
    assert!(tool(&["--list-slots"]).1.contains("empty"));
}

#[test]
fn gnutls_makes_keys_signs_and_stores_certificates() {
    let desk = Desk::new();
    let p11tool = |arguments: &[&str]| {
        let mut command = desk.command("p11tool");
        command.env("GNUTLS_PIN", &desk.token.pin).arg("--provider").arg(Maker::Tde.module()).args(arguments);
        command_output(&mut command)
    };
    assert!(p11tool(&["--list-tokens"]).contains("token=tde"));
    let url = "pkcs11:token=tde;object=gnutls";
    p11tool(&[
        "--batch",
        "--login",
        "--generate-privkey=ecdsa",
        "--curve=secp256r1",
        "--label=gnutls",
        "--outfile=public.pem",
        "pkcs11:token=tde",
    ]);
    p11tool(&[
        "--batch",
        "--login",
        "--generate-privkey=rsa",
        "--bits=2048",
        "--label=gnutls-rsa",
        "--outfile=rsa.pem",
        "pkcs11:token=tde",
    ]);
    for object in ["gnutls", "gnutls-rsa"] {
        let tested = p11tool(&[
            "--batch",
            "--login",
            "--test-sign",
            &format!("pkcs11:token=tde;object={object};type=private"),
        ]);
        assert!(tested.contains("ok"), "{tested}");
    }
    fs::write(desk.path("template"), "cn = gnutls\nexpiration_days = 30\nsigning_key\n").unwrap();
    let mut certtool = desk.command("certtool");
    certtool.env("GNUTLS_PIN", &desk.token.pin).arg("--provider").arg(Maker::Tde.module());
    certtool.args([
        "--generate-self-signed",
        "--template",
        "template",
        "--outfile",
        "cert.pem",
        "--load-privkey",
    ]);
    command_output(certtool.arg(format!("{url};type=private")).arg("--load-pubkey").arg("public.pem"));
    p11tool(&[
        "--batch",
        "--login",
        "--write",
        "--load-certificate=cert.pem",
        "--label=cert",
        "pkcs11:token=tde",
    ]);
    let exported = p11tool(&["--batch", "--login", "--export", "pkcs11:token=tde;object=cert;type=cert"]);
    let certificate = fs::read_to_string(desk.path("cert.pem")).unwrap();
    assert!(exported.contains(certificate.lines().nth(3).unwrap()), "{exported}");
    let listed = p11tool(&["--batch", "--login", "--list-all", "pkcs11:token=tde"]);
    assert!(listed.contains("CKA_NEVER_EXTRACTABLE") || listed.contains("CKA_SENSITIVE"), "{listed}");
    p11tool(&["--batch", "--login", "--delete", "pkcs11:token=tde;object=gnutls"]);
}

/// A certificate authority whose key is in the HSM.
#[test]
fn openssl_signs_and_revokes_certificates() {
    let desk = Desk::new();
    desk.self_signed("EC:prime256v1", "ca", "0a", "test authority");
    let conf = desk.engine_conf(
        "[ca]\ndefault_ca = ours\n[ours]\ndatabase = index.txt\nserial = serial\ncrlnumber = crlnumber\n\
         new_certs_dir = .\ndefault_md = sha256\npolicy = any\ndefault_days = 7\ndefault_crl_days = 7\n\
         [any]\ncommonName = supplied\n",
    );
    fs::write(desk.path("index.txt"), "").unwrap();
    fs::write(desk.path("serial"), "1000\n").unwrap();
    fs::write(desk.path("crlnumber"), "01\n").unwrap();
    let openssl = |arguments: &[&str]| {
        let mut command = desk.command("openssl");
        command.env("OPENSSL_CONF", &conf).args(arguments).output().unwrap()
    };
    let run = |arguments: &[&str]| {
        let output = openssl(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    let key = "pkcs11:token=tde;object=ca;type=private";
    let ca = ["ca", "-batch", "-engine", "pkcs11", "-keyform", "engine", "-keyfile", key, "-cert", "ca.pem"];
    for name in ["good", "bad"] {
        let (request, file) = (format!("{name}.csr"), format!("{name}.pem"));
        run(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "leaf.key",
            "-subj",
            &format!("/CN={name}"),
            "-out",
            &request,
        ]);
        run(&[&ca[..], &["-in", &request, "-out", &file, "-notext"]].concat());
    }
    run(&[&ca[..], &["-revoke", "bad.pem"]].concat());
    run(&[&ca[..], &["-gencrl", "-out", "crl.pem"]].concat());
    let verify = ["verify", "-CAfile", "ca.pem", "-CRLfile", "crl.pem", "-crl_check"];
    run(&[&verify[..], &["good.pem"]].concat());
    let revoked = openssl(&[&verify[..], &["bad.pem"]].concat());
    assert!(String::from_utf8_lossy(&revoked.stderr).contains("revoked"), "{revoked:?}");
}

#[test]
fn osslsigncode_signs_code() {
    let desk = Desk::new();
    let certificate = desk.self_signed("rsa:2048", "code", "0b", "code signing");
    fs::write(desk.path("program.cab"), cabinet(b"a program")).unwrap();
    let mut sign = desk.command("osslsigncode");
    sign.args(["sign", "-pkcs11engine", "/usr/lib/x86_64-linux-gnu/engines-3/pkcs11.so", "-pkcs11module"]);
    sign.arg(Maker::Tde.module()).args([
        "-key",
        "pkcs11:token=tde;object=code;type=private",
        "-pass",
        &desk.token.pin,
    ]);
    sign.arg("-certs").arg(&certificate).args(["-h", "sha256", "-in", "program.cab", "-out", "signed.cab"]);
    command_output(&mut sign);
    let mut verify = desk.command("osslsigncode");
    verify.args(["verify", "-CAfile"]).arg(&certificate).args(["-in", "signed.cab"]);
    let output = verify.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("Signature verification: ok") || said.contains("Number of verified signatures: 1"),
        "{said}"
    );
}

/// A cabinet with one file, not compressed (MS-CAB section 2).
fn cabinet(content: &[u8]) -> Vec<u8> {
    let name = b"program.txt\0";
    let len = content.len() as u16;
    let files = 36 + 8;
    let data = files + 16 + name.len() as u32;
    let total = data + 8 + u32::from(len);
    let mut cab = b"MSCF\0\0\0\0".to_vec();
    for word in [total, 0, files, 0] {
        cab.extend(word.to_le_bytes());
    }
    // Version 1.3, one folder, one file, no flags, set 1, cabinet 0.
    cab.extend([3, 1, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    cab.extend(data.to_le_bytes());
    cab.extend([1, 0, 0, 0]);
    cab.extend(u32::from(len).to_le_bytes());
    cab.extend([0; 4]);
    cab.extend([0, 0, 0x21, 0x5a, 0, 0, 0x20, 0]);
    cab.extend(name);
    cab.extend([0; 4]);
    cab.extend(len.to_le_bytes());
    cab.extend(len.to_le_bytes());
    cab.extend(content);
    cab
}
