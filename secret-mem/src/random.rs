//! The operating system's random number generator.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// The operating system gave no random bytes. Nothing that needed them may go on.
#[derive(Debug, thiserror::Error)]
#[error("the system's random number generator (getrandom) failed")]
pub struct RandomError(#[source] std::io::Error);

/// Fills `buf` from the operating system's generator (getrandom(2)), waiting for it to be seeded.
///
/// There is no generator state in the process, so a fork cannot repeat output. On an error the buffer's
/// contents are undefined and must not be used.
pub fn random(buf: &mut [u8]) -> Result<(), RandomError> {
    let mut filled = 0;
    while filled < buf.len() {
        match getrandom(&mut buf[filled..], GetRandomFlags::empty()) {
            Ok(0) => return Err(RandomError(Errno::IO.into())),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(RandomError(errno.into())),
        }
    }
    Ok(())
}
