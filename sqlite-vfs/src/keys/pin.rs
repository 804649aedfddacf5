//! Where the PIN of the HSM's user comes from.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hsm_engine::pin_command::{PinCommand, PinCommandError};
use hsm_engine::{Pin, PinError};
use keyring::HsmUri;

/// How long a PIN command may take.
pub const PIN_COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Gives the PIN of the HSM that it is asked for. Called when the process logs in, which happens rarely, from whichever thread
/// needs a key first; it must not open encrypted databases itself.
pub type PinCallback = Arc<dyn Fn(&HsmUri) -> Result<Pin, Box<dyn Error + Send + Sync>> + Send + Sync>;

/// Where a PIN comes from. It is asked for at each login, so that a changed PIN needs no restart.
#[derive(Clone)]
#[non_exhaustive]
pub enum PinSource {
    /// A file that only its owner may read.
    File(PathBuf),
    /// A command line whose first line of output is the PIN; it has [`PIN_COMMAND_TIMEOUT`].
    Command(String),
    /// The program itself.
    Callback(PinCallback),
}

impl PinSource {
    /// Whether both lead to the same PIN, as far as can be told without asking.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(one), Self::File(other)) => one == other,
            (Self::Command(one), Self::Command(other)) => one == other,
            (Self::Callback(one), Self::Callback(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    pub(super) fn ask(&self, hsm: &HsmUri) -> Result<Pin, PinSourceError> {
        match self {
            Self::File(path) => Ok(Pin::from_file(path)?),
            Self::Command(command) => {
                let (setting, timeout) = ("the PIN command", PIN_COMMAND_TIMEOUT);
                // What the program left open to its children is its own affair, as with popen(3).
                let command =
                    PinCommand { setting, command, timeout, cancelled: &|| false, prepare: &|_| () };
                Ok(command.run()?)
            }
            Self::Callback(ask) => ask(hsm).map_err(PinSourceError::Callback),
        }
    }
}

/// A command line may hold a token: it is not shown.
impl fmt::Debug for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Command(_) => f.write_str("Command"),
            Self::Callback(_) => f.write_str("Callback"),
        }
    }
}

/// There is no PIN.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinSourceError {
    /// The file.
    #[error(transparent)]
    File(#[from] PinError),
    /// The command.
    #[error(transparent)]
    Command(#[from] PinCommandError),
    /// The program.
    #[error("the program gave no PIN: {0}")]
    Callback(#[source] Box<dyn Error + Send + Sync>),
}
