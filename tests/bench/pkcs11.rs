//! What an HSM's users wait for: token keys through `libtde_pkcs11.so` against SoftHSM2 in the same process and run, with threads, with
//! 100,000 keys, and signatures against the library that computes them.
//!
//! Both stores are on a memory file system. `QUICK=1` makes fewer keys and pairs. Results also go to `target/bench/pkcs11.json`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use hsm_primitives::{Curve, Hash, PrivateKey, RsaPadding};
use tde_tests::figures::{Figure, Quantity, Suite, Table, in_turns, quick};
use tde_tests::{Maker, Token};
use tempfile::TempDir;

const P256: &[u8] = &[0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];
/// The libraries find their tokens by the environment, which a program cannot change for itself.
const CHILD: &str = "TDE_BENCH_TOKENS";

fn main() {
    if let Some(folder) = env::var_os(CHILD) {
        return measure(Path::new(&folder));
    }
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { TempDir::new_in(memory).unwrap() } else { TempDir::new().unwrap() };
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(env::args_os().skip(1)).env(CHILD, dir.path());
    for maker in Maker::ALL {
        let token = Token::of(maker, &dir.path().join(format!("{maker:?}")));
        child.env(token.environment.0, &token.environment.1);
        fs::write(dir.path().join(format!("{maker:?}.pin")), &token.pin).unwrap();
    }
    assert!(child.status().unwrap().success());
}

/// A library with its token, logged in, and token keys.
struct Side {
    library: Pkcs11,
    slot: Slot,
    session: Session,
    keys: Keys,
}

/// Token keys, and a key that one of them wrapped.
struct Keys {
    ours: bool,
    aes: ObjectHandle,
    kek: ObjectHandle,
    wrapped: Vec<u8>,
    ec: ObjectHandle,
    rsa: ObjectHandle,
}

impl Side {
    fn open(maker: Maker, folder: &Path) -> Self {
        let library = Pkcs11::new(maker.module()).unwrap();
        library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let slot = library.get_slots_with_initialized_token().unwrap()[0];
        let session = library.open_rw_session(slot).unwrap();
        let pin = fs::read_to_string(folder.join(format!("{maker:?}.pin"))).unwrap();
        session.login(UserType::User, Some(&AuthPin::new(pin.into()))).unwrap();
        let secret = |more: &[Attribute]| {
            let base = [Attribute::Token(true), Attribute::ValueLen(32.into()), Attribute::Sensitive(true)];
            session.generate_key(&Mechanism::AesKeyGen, &[&base[..], more].concat()).unwrap()
        };
        let aes = secret(&[Attribute::Encrypt(true), Attribute::Decrypt(true)]);
        let kek = secret(&[Attribute::Wrap(true), Attribute::Unwrap(true)]);
        let extractable = [Attribute::ValueLen(32.into()), Attribute::Extractable(true)];
        let taken = session.generate_key(&Mechanism::AesKeyGen, &extractable).unwrap();
        let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, kek, taken).unwrap();
        let private = [Attribute::Token(true), Attribute::Sign(true), Attribute::Sensitive(true)];
        let pair = |mechanism, public: Attribute| {
            let public = [Attribute::Token(true), Attribute::Verify(true), public];
            session.generate_key_pair(&mechanism, &public, &private).unwrap().1
        };
        let ec = pair(Mechanism::EccKeyPairGen, Attribute::EcParams(P256.to_vec()));
        let rsa = pair(Mechanism::RsaPkcsKeyPairGen, Attribute::ModulusBits(2048.into()));
        let keys = Keys { ours: maker == Maker::Tde, aes, kek, wrapped, ec, rsa };
        Self { library, slot, session, keys }
    }

    /// Operations in a second, of `threads` sessions together.
    fn rate(&self, threads: usize, work: impl Fn(&Keys, &Session) + Sync) -> f64 {
        let keys = &self.keys;
        let run = |session: &Session| {
            let begin = Instant::now();
            let mut done = 0_u32;
            while begin.elapsed() < Duration::from_millis(if quick() { 100 } else { 300 }) {
                for _ in 0..20 {
                    work(keys, session);
                }
                done += 20;
            }
            f64::from(done) / begin.elapsed().as_secs_f64()
        };
        if threads == 1 {
            return run(&self.session);
        }
        thread::scope(|scope| {
            let all: Vec<_> = (0..threads)
                .map(|_| {
                    let session = self.library.open_rw_session(self.slot).unwrap();
                    let run = &run;
                    scope.spawn(move || run(&session))
                })
                .collect();
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        })
    }
}

impl Keys {
    fn gcm(&self, session: &Session) {
        // Our HSM makes nonces itself, into the zeros; SoftHSM2 takes the caller's.
        let mut nonce = if self.ours { [0; 12] } else { [7; 12] };
        let gcm = GcmParams::new(&mut nonce, b"", 128.into()).unwrap();
        session.encrypt(&Mechanism::AesGcm(gcm), self.aes, &[5; 64]).unwrap();
    }

    fn unwrap(&self, session: &Session) {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
            Attribute::Encrypt(true),
        ];
        let key = session.unwrap_key(&Mechanism::AesKeyWrap, self.kek, &self.wrapped, &template).unwrap();
        session.destroy_object(key).unwrap();
    }

    fn sign_ec(&self, session: &Session) {
        session.sign(&Mechanism::Ecdsa, self.ec, &[3; 32]).unwrap();
    }

    fn sign_rsa(&self, session: &Session) {
        session.sign(&Mechanism::Sha256RsaPkcs, self.rsa, &[3; 32]).unwrap();
    }
}

fn measure(folder: &Path) {
    let pairs = if quick() { 3 } else { 9 };
    let sides = Maker::ALL.map(|maker| Side::open(maker, folder));
    let [_, ours] = &sides;
    let mut tables = vec![peers(&sides, pairs), threads(ours, pairs), library(ours, pairs)];
    tables.push(growth(ours, pairs));
    Suite {
        name: "pkcs11".to_owned(),
        title: "Keys of an HSM through PKCS#11".to_owned(),
        quick: quick(),
        conditions: vec![
            "libtde_pkcs11.so and SoftHSM2 2.6.1 in one process, stores on a memory file system; release build".to_owned(),
            format!("{pairs} pairs each; token keys; an unwrapped key is a session object, destroyed at once"),
        ],
        tables,
    }
    .write();
}

type Work = fn(&Keys, &Session);

fn peers(sides: &[Side; 2], pairs: usize) -> Table {
    let mut table = Table::begin("A token key, one thread", "SoftHSM2", "tde", Quantity::Speed);
    let lines: [(&str, Work, Option<f64>); 4] = [
        ("AES-256-GCM, 64 bytes", Keys::gcm, Some(5.0)),
        ("AES key unwrap, 32 bytes", Keys::unwrap, Some(5.0)),
        ("ECDSA P-256 sign", Keys::sign_ec, None),
        ("RSA-2048 PKCS#1 sign", Keys::sign_rsa, None),
    ];
    for (name, work, aim) in lines {
        let [theirs, ours] = in_turns(pairs, |side| sides[side].rate(1, work));
        table.add(Figure::paired(name, "operations/s", &theirs, &ours).with_aim(aim));
    }
    table
}

/// As many threads as cores against one.
fn threads(ours: &Side, pairs: usize) -> Table {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let title = format!("Threads: {cores} against one");
    let mut table = Table::begin(&title, "1 thread", "all cores", Quantity::Speed);
    let lines: [(&str, Work); 4] = [
        ("AES-256-GCM, 64 bytes", Keys::gcm),
        ("AES key unwrap, 32 bytes", Keys::unwrap),
        ("ECDSA P-256 sign", Keys::sign_ec),
        ("RSA-2048 PKCS#1 sign", Keys::sign_rsa),
    ];
    for (name, work) in lines {
        let [one, many] = in_turns(pairs, |side| ours.rate([1, cores][side], work));
        table.add(Figure::paired(name, "operations/s", &one, &many).with_aim(0.8 * cores as f64));
    }
    table
}

/// Signatures through the module against the library that computes them.
fn library(ours: &Side, pairs: usize) -> Table {
    let mut table =
        Table::begin("Signatures: the module against AWS-LC itself", "library", "module", Quantity::Speed);
    let ec = PrivateKey::generate_ec(Curve::P256).unwrap();
    let rsa = PrivateKey::generate_rsa(2048, &[1, 0, 1]).unwrap();
    let padding = RsaPadding::Pkcs1Hash(Hash::Sha256);
    let [alone, through] = in_turns(pairs, |side| match side {
        0 => ours.rate(1, |_, _| drop(ec.ecdsa_sign(&[3; 32]).unwrap())),
        _ => ours.rate(1, Keys::sign_ec),
    });
    table.add(Figure::paired("ECDSA P-256", "operations/s", &alone, &through).with_aim(0.9));
    let [alone, through] = in_turns(pairs, |side| match side {
        0 => ours.rate(1, |_, _| drop(rsa.rsa_sign(&padding, &Hash::Sha256.digest(&[3; 32])).unwrap())),
        _ => ours.rate(1, Keys::sign_rsa),
    });
    table.add(Figure::paired("RSA-2048 PKCS#1", "operations/s", &alone, &through).with_aim(0.9));
    table
}

/// The same work with few keys in the store and with many; the many stay, so it is measured before and after.
fn growth(ours: &Side, pairs: usize) -> Table {
    let many = if quick() { 2_000 } else { 100_000 };
    let title = format!("Keys in the HSM: {many} against ten");
    let lines: [(&str, Work); 3] = [
        ("AES-256-GCM, 64 bytes", Keys::gcm),
        ("AES key unwrap, 32 bytes", Keys::unwrap),
        ("find a key by its label and sign", |keys, session| {
            let label = [Attribute::Label(b"no 7".to_vec())];
            assert_eq!(session.find_objects(&label).unwrap().len(), 1);
            keys.sign_ec(session);
        }),
    ];
    let make = |number: u32| {
        let template = [
            Attribute::Token(true),
            Attribute::ValueLen(32.into()),
            Attribute::Label(format!("no {number}").into_bytes()),
        ];
        ours.session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
    };
    (0..10).for_each(make);
    let before: Vec<Vec<f64>> =
        lines.iter().map(|(_, work)| (0..pairs).map(|_| ours.rate(1, work)).collect()).collect();
    let begin = Instant::now();
    (10..many).for_each(make);
    println!("{} keys made in {:.1} s", many - 10, begin.elapsed().as_secs_f64());
    let mut table = Table::begin(&title, "ten", "many", Quantity::Speed);
    for ((name, work), before) in lines.iter().zip(before) {
        let after: Vec<f64> = (0..pairs).map(|_| ours.rate(1, work)).collect();
        table.add(Figure::paired(name, "operations/s", &before, &after).with_aim(0.9));
    }
    table
}
