//! A tool as a host of redirected calls.

use std::sync::OnceLock;

use page_cipher::xts::Aes256Xts;
use redirect::Host;
use wal_cipher::engine::Failure;
use wal_cipher::file::Errno;
use wal_cipher::handover::WalKeys;
use wal_cipher::header::{HEADER, is_first_page_of};
use wal_cipher::segment::{Found, Policy};
use wal_cipher::table::{Descriptors, Mode, Open};
use wal_cipher::unit::Place;

use crate::tool::{Planned, Tool};

static DESCRIPTORS: Descriptors = Descriptors::new();
static THIS: OnceLock<(Tool, WalKeys)> = OnceLock::new();

/// What this process is from now on.
pub(crate) fn become_tool(tool: Tool, keys: WalKeys) {
    THIS.get_or_init(|| (tool, keys));
}

/// Says something beside what the tool will say of the errno.
pub(crate) fn say(text: &str) {
    eprintln!("tde exec: {text}");
}

/// The cluster's keys and rules, as the tool applies them.
pub(crate) struct ToolPolicy {
    keys: &'static WalKeys,
    /// Write under the oldest version that there is. What is received into an archive may begin before the record that brings a newer one to
    /// a restore with an older keyring.
    oldest: bool,
}

impl Policy for ToolPolicy {
    fn key(&self, version: u32) -> Option<&Aes256Xts> {
        self.keys.key(version)
    }

    fn any_version(&self, visit: &mut dyn FnMut(u32) -> bool) {
        self.keys.any_version(visit);
    }

    fn new_segments(&self) -> Mode {
        match (self.keys.new_segments(), self.keys.oldest()) {
            (Mode::Under(_), Some(version)) if self.oldest => Mode::Under(version),
            (mode, _) => mode,
        }
    }

    fn plain_allowed(&self, position: u64) -> bool {
        self.keys.plain_allowed(position)
    }

    fn system_identifier(&self) -> Option<u64> {
        self.keys.system_identifier()
    }
}

/// The tool that runs here.
pub(crate) struct ThisTool;

impl Host for ThisTool {
    type Policy = ToolPolicy;

    fn descriptors() -> &'static Descriptors {
        &DESCRIPTORS
    }

    fn policy() -> Option<ToolPolicy> {
        let (tool, keys) = THIS.get()?;
        Some(ToolPolicy { keys, oldest: *tool == Tool::Receivewal })
    }

    fn temporary_key() -> Option<&'static Aes256Xts> {
        None
    }

    fn plan(path: &[u8], flags: i32) -> Result<Option<Open>, Errno> {
        let Some((tool, _)) = THIS.get() else { return Ok(None) };
        let append = flags & libc::O_APPEND != 0;
        match tool.plan(path, flags & libc::O_ACCMODE == libc::O_RDONLY) {
            Planned::AsStored => Ok(None),
            Planned::Segment(name) => {
                let place = Place::Segment(name);
                Ok(Some(Open { place, mode: Mode::Undecided, append, staged: false }))
            }
            Planned::Refused(why) => {
                say(&format!("{}: {why}", String::from_utf8_lossy(path)));
                Err(libc::EOPNOTSUPP)
            }
        }
    }

    /// What is begun must be of this cluster, and not in a file where somebody put WAL in clear.
    fn before_write(fd: i32, open: Open, data: &[u8], offset: u64) -> Result<(), Failure> {
        let (Place::Segment(name), Mode::Undecided, 0) = (open.place, open.mode, offset) else {
            return Ok(());
        };
        if data.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        if let Some((_, keys)) = THIS.get()
            && let Some(page) = data.first_chunk::<HEADER>()
            && !is_first_page_of(name, keys.system_identifier(), page)
        {
            say(&format!("segment {name}: this is not WAL of the cluster that the keyring belongs to"));
            return Err(Failure::Errno(libc::EKEYREJECTED));
        }
        match redirect::look::<Self>(fd, name)? {
            Found::Forged => Err(Failure::Forged(name)),
            _ => Ok(()),
        }
    }

    fn failed(failure: Failure) -> Errno {
        match failure {
            Failure::Errno(errno) => errno,
            Failure::Forged(name) => {
                say(&format!(
                    "segment {name} is in clear where write-ahead log in clear is not accepted: it was put there on purpose, or by a \
                     tool that ran without tde exec (see tde pg accept-wal)"
                ));
                libc::EKEYREJECTED
            }
            Failure::NoKey(version) => {
                say(&format!("version {version} of the write-ahead log's key is not in the keyring"));
                libc::ENOKEY
            }
        }
    }
}
