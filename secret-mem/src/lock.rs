//! Remembers the first failure to protect memory.

use core::sync::atomic::{AtomicU64, Ordering};

/// Memory for keys could not be protected. Keys are stored in it all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LockFailure {
    /// Keys may be written to swap.
    #[error(
        "cannot lock {bytes} bytes of key memory ({}): keys may reach swap; raise RLIMIT_MEMLOCK (ulimit -l, \
         LimitMEMLOCK= in systemd) or encrypt the swap space",
        std::io::Error::from_raw_os_error(*errno)
    )]
    Lock {
        /// Length of the memory that was to be locked.
        bytes: usize,
        /// The system's error number.
        errno: i32,
    },
    /// Keys may be written to core dumps.
    #[error(
        "cannot keep {bytes} bytes of key memory out of core dumps ({}): turn core dumps off (ulimit -c 0, \
         LimitCORE=0 in systemd)",
        std::io::Error::from_raw_os_error(*errno)
    )]
    DontDump {
        /// Length of the memory that was to be left out.
        bytes: usize,
        /// The system's error number.
        errno: i32,
    },
}

/// The first failure: kind (bit 63), error number (bits 48..63), length (bits 0..48). Zero: none so far.
/// One atomic word, so that a fork at any moment leaves it whole.
static FIRST: AtomicU64 = AtomicU64::new(0);

const KIND_DONT_DUMP: u64 = 1 << 63;
const ERRNO_SHIFT: u32 = 48;
const BYTES_MASK: u64 = (1 << ERRNO_SHIFT) - 1;

/// Why memory for keys could not be kept out of swap or core dumps, if that has ever happened in this process
/// (or in its parent before the fork). The first failure is kept.
///
/// Programs warn about it once and go on.
pub fn lock_failure() -> Option<LockFailure> {
    unpack(FIRST.load(Ordering::Relaxed))
}

pub(crate) fn record(failure: LockFailure) {
    // Only the first failure is kept: a later one makes this exchange fail, as it should.
    let _ = FIRST.compare_exchange(0, pack(failure), Ordering::Relaxed, Ordering::Relaxed);
}

fn pack(failure: LockFailure) -> u64 {
    let (kind, bytes, errno) = match failure {
        LockFailure::Lock { bytes, errno } => (0, bytes, errno),
        LockFailure::DontDump { bytes, errno } => (KIND_DONT_DUMP, bytes, errno),
    };
    // Error numbers are below 4096 and address spaces below 2^48 bytes as far as user mappings go; a larger
    // length is only for the message.
    kind | (u64::from(errno.unsigned_abs()) & 0x7fff) << ERRNO_SHIFT | (bytes as u64).min(BYTES_MASK)
}

fn unpack(packed: u64) -> Option<LockFailure> {
    if packed == 0 {
        return None;
    }
    let bytes = (packed & BYTES_MASK) as usize;
    let errno = (packed >> ERRNO_SHIFT & 0x7fff) as i32;
    Some(match packed & KIND_DONT_DUMP {
        0 => LockFailure::Lock { bytes, errno },
        _ => LockFailure::DontDump { bytes, errno },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_keeps_every_field() {
        for failure in [
            LockFailure::Lock { bytes: 16384, errno: 12 },
            LockFailure::DontDump { bytes: 1 << 40, errno: 4095 },
        ] {
            assert_eq!(unpack(pack(failure)), Some(failure));
        }
        assert_eq!(unpack(0), None);
    }

    #[test]
    fn message_says_what_to_do() {
        let text = LockFailure::Lock { bytes: 16384, errno: 12 }.to_string();
        assert!(text.contains("16384 bytes") && text.contains("RLIMIT_MEMLOCK"), "{text}");
    }
}
