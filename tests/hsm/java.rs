//! Java programs: keytool, jarsigner and code that signs through SunPKCS11. A part of the soak: a JDK is large.

use std::fs;

use tde_tests::{Maker, command_output};

use crate::tools::Desk;

const PROGRAM: &str = r#"
import java.security.*;
import java.util.Collections;
public class Sign {
    public static void main(String[] args) throws Exception {
        Provider provider = Security.getProvider("SunPKCS11").configure(args[0]);
        Security.addProvider(provider);
        KeyStore store = KeyStore.getInstance("PKCS11", provider);
        store.load(null, System.getenv("PIN").toCharArray());
        for (String alias : Collections.list(store.aliases())) {
            PrivateKey key = (PrivateKey) store.getKey(alias, null);
            String algorithm = key.getAlgorithm().equals("EC") ? "SHA256withECDSA" : "SHA256withRSA";
            Thread[] threads = new Thread[4];
            for (int i = 0; i < threads.length; i++) {
                threads[i] = new Thread(() -> {
                    try {
                        for (int n = 0; n < 50; n++) {
                            Signature signer = Signature.getInstance(algorithm, provider);
                            signer.initSign(key);
                            signer.update("text".getBytes());
                            byte[] signature = signer.sign();
                            // Another provider checks it.
                            Signature verifier = Signature.getInstance(algorithm, key.getAlgorithm().equals("EC") ? "SunEC" : "SunRsaSign");
                            verifier.initVerify(store.getCertificate(alias).getPublicKey());
                            verifier.update("text".getBytes());
                            if (!verifier.verify(signature)) throw new SignatureException("wrong");
                        }
                    } catch (Exception e) {
                        e.printStackTrace();
                        System.exit(1);
                    }
                });
                threads[i].start();
            }
            for (Thread thread : threads) thread.join();
            System.out.println(alias + " " + algorithm + " ok");
        }
        SecureRandom random = SecureRandom.getInstance("PKCS11", provider);
        byte[] bytes = new byte[100];
        random.nextBytes(bytes);
        System.out.println("done");
    }
}
"#;

#[test]
fn java_makes_keys_signs_jars_and_verifies() {
    if !tde_tests::soak() {
        return;
    }
    let desk = Desk::new();
    let conf = format!("name = tde\nlibrary = {}\nslot = 0\n", Maker::Tde.module().display());
    fs::write(desk.path("java.conf"), conf).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let mut command = desk.command(program);
        command_output(command.env("PIN", &desk.token.pin).args(arguments))
    };
    let store = [
        "-keystore",
        "NONE",
        "-storetype",
        "PKCS11",
        "-providerClass",
        "sun.security.pkcs11.SunPKCS11",
        "-providerArg",
        "java.conf",
        "-storepass:env",
        "PIN",
    ];
    for (alias, algorithm, more) in
        [("jar", "RSA", ["-keysize", "2048"]), ("curve", "EC", ["-groupname", "secp256r1"])]
    {
        let generate =
            ["-genkeypair", "-alias", alias, "-keyalg", algorithm, "-dname", "CN=java", "-validity", "30"];
        run("keytool", &[&generate[..], &more, &store].concat());
    }
    let listed = run("keytool", &[&["-list"][..], &store].concat());
    assert!(listed.contains("jar, PrivateKeyEntry") && listed.contains("curve, PrivateKeyEntry"), "{listed}");
    let csr = run("keytool", &[&["-certreq", "-alias", "jar"][..], &store].concat());
    assert!(csr.contains("BEGIN NEW CERTIFICATE REQUEST"), "{csr}");

    fs::write(desk.path("Sign.java"), PROGRAM).unwrap();
    run("jar", &["cf", "program.jar", "Sign.java"]);
    run("jarsigner", &[&store[..], &["program.jar", "jar"]].concat());
    let verified = run("jarsigner", &["-verify", "program.jar"]);
    assert!(verified.contains("jar verified"), "{verified}");
    let signed = run("java", &["Sign.java", "java.conf"]);
    assert!(
        signed.contains("jar SHA256withRSA ok") && signed.contains("curve SHA256withECDSA ok"),
        "{signed}"
    );
    run("keytool", &[&["-delete", "-alias", "curve"][..], &store].concat());
    assert!(!run("keytool", &[&["-list"][..], &store].concat()).contains("curve"));
}
