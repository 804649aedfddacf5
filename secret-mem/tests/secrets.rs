//! What callers of the secret types rely on.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{self, Read};

use secret_mem::{Full, ReadError, SecretBuf, SecretBytes, random};

fn buf(bytes: &[u8]) -> SecretBuf {
    let mut buf = SecretBuf::with_capacity(bytes.len());
    buf.extend_from_slice(bytes).unwrap();
    buf
}

#[test]
fn bytes_are_filled_in_place() {
    let mut secret = SecretBytes::<40>::zeroed();
    assert_eq!(secret.expose(), &[0; 40]);
    secret.expose_mut()[39] = 7;
    assert_eq!(secret.expose()[39], 7);
    let filled = SecretBytes::<4>::fill_with(|bytes| {
        *bytes = *b"abcd";
        Ok::<(), ()>(())
    });
    assert_eq!(filled.unwrap().expose(), b"abcd");
    assert_eq!(SecretBytes::<0>::zeroed().expose(), &[0; 0]);
}

#[test]
fn bytes_are_compared_whole() {
    let secret = |at: usize, bit: u8| {
        let mut secret = SecretBytes::<32>::zeroed();
        secret.expose_mut()[at] = bit;
        secret
    };
    assert!(secret(0, 1).ct_eq(&secret(0, 1)));
    for at in 0..32 {
        for bit in 0..8 {
            assert!(!SecretBytes::zeroed().ct_eq(&secret(at, 1 << bit)));
        }
    }
}

#[test]
fn random_secrets_differ_in_every_byte() {
    let secrets: Vec<_> = (0..64).map(|_| SecretBytes::<32>::random().unwrap()).collect();
    for at in 0..32 {
        let first = secrets[0].expose()[at];
        assert!(secrets.iter().any(|secret| secret.expose()[at] != first), "byte {at} is always {first}");
    }
    let mut large = vec![0; 100_000];
    random(&mut large).unwrap();
    let zeros = large.iter().filter(|byte| **byte == 0).count();
    assert!((200..600).contains(&zeros), "{zeros} zeros in 100000 random bytes");
    random(&mut []).unwrap();
}

#[test]
fn buffer_takes_no_more_than_its_capacity() {
    let mut pin = SecretBuf::with_capacity(3);
    assert!(pin.is_empty());
    for byte in b"123" {
        pin.push(*byte).unwrap();
    }
    assert_eq!(pin.push(b'4'), Err(Full { capacity: 3 }));
    assert_eq!((pin.as_slice(), pin.len()), (&b"123"[..], 3));
    assert!(pin.pop() && pin.pop());
    assert_eq!(pin.extend_from_slice(b"456"), Err(Full { capacity: 3 }));
    assert_eq!(pin.as_slice(), b"1");
    pin.extend_from_slice(b"45").unwrap();
    assert_eq!(pin.as_slice(), b"145");
    assert!(pin.pop() && pin.pop() && pin.pop() && !pin.pop());
    assert!(pin.is_empty());
}

#[test]
fn one_newline_is_trimmed() {
    for (before, after) in [
        ("pin", "pin"),
        ("pin\n", "pin"),
        ("pin\r\n", "pin"),
        ("pin\n\n", "pin\n"),
        ("pin\r", "pin\r"),
        ("\n", ""),
        ("", ""),
        (" pin \n", " pin "),
    ] {
        let mut pin = buf(before.as_bytes());
        pin.trim_newline();
        assert_eq!(pin.as_slice(), after.as_bytes(), "{before:?}");
    }
}

/// Hands out a few bytes at a time and is interrupted in between.
struct Slowly<'a>(&'a [u8], bool);

impl Read for Slowly<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = into.len().min(self.0.len()).min(5);
        into[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

#[test]
fn input_is_read_to_its_end_or_refused() {
    let input: Vec<u8> = (0..100).collect();
    for len in 0..=100 {
        let secret = SecretBuf::read_from(Slowly(&input[..len], false), 100).unwrap();
        assert_eq!(secret.as_slice(), &input[..len]);
    }
    for max in 0..100 {
        let refused = SecretBuf::read_from(Slowly(&input, false), max);
        assert!(matches!(refused, Err(ReadError::TooLong { max: said }) if said == max));
    }
    let mut full = SecretBuf::read_from(&input[..], 100).unwrap();
    assert_eq!(full.push(1), Err(Full { capacity: 100 }));
}

#[test]
fn reading_error_is_passed_on() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
    let error = SecretBuf::read_from(Broken, 10).unwrap_err();
    assert!(matches!(&error, ReadError::Io(cause) if cause.kind() == io::ErrorKind::PermissionDenied));
}

#[test]
fn buffer_is_made_in_place() {
    let made = SecretBuf::from_fn(10, |bytes| {
        assert_eq!(bytes, [0; 10]);
        bytes.fill(b'x');
        Ok::<usize, ()>(4)
    });
    let mut made = made.unwrap();
    assert_eq!(made.as_slice(), b"xxxx");
    made.extend_from_slice(b"123456").unwrap();
    assert_eq!(made.as_slice(), b"xxxx123456");
    assert_eq!(SecretBuf::from_fn(10, |_| Err("no")).unwrap_err(), "no");
}

#[test]
fn buffers_are_compared_by_length_and_content() {
    assert!(buf(b"1234").ct_eq(&buf(b"1234")));
    assert!(!buf(b"1234").ct_eq(&buf(b"1235")));
    assert!(!buf(b"1234").ct_eq(&buf(b"123")));
    assert!(buf(b"").ct_eq(&buf(b"")));
}

#[test]
fn nothing_secret_is_shown() {
    assert_eq!(format!("{:?}", SecretBytes::<32>::zeroed()), "SecretBytes<32>(redacted)");
    assert_eq!(format!("{:?}", buf(b"1234")), "SecretBuf(redacted)");
}
