//! A master key on a PKCS#11 token of any vendor.
//!
//! ```text
//! Pkcs11Uri    which library, token and key                                      (uri.rs)
//! Pkcs11Hsm    the master key, spoken to through the agent                       (mod.rs)
//! Agent        the process that loads the library; deadlines                     (agent.rs)
//! wire         what the two say to each other; also read by pkcs11-agent         (wire.rs)
//! ```
//! What lies on the token: docs/formats/pkcs11-token.md. Why so: docs/decisions/0013-master-keys-on-pkcs11-tokens.md.

mod agent;
mod uri;
pub mod wire;

use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};

use hsm_engine::Pin;
use secret_mem::{SecretBuf, SecretBytes};
use uuid::Uuid;

pub use agent::{AgentError, AgentOptions, PROGRAM, PROGRAM_VARIABLE, find_program};
pub use uri::{DEFAULT_TIMEOUT, MODULE_VARIABLE, Pkcs11Uri, Pkcs11UriError, SCHEME, WrapMethod};

use agent::Agent;
use wire::{Code, Failure, Reader, Selection, WireError, Writer};

use crate::ids::{GenerationId, InstanceId, KeyringId, MasterKeyId};
use crate::master::{MasterKey, MasterKeyError, WrappedKey};

/// Why a token's master key cannot be used. The kinds that [`MasterKeyError`] keeps apart stay apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Pkcs11Error {
    /// The URI.
    #[error(transparent)]
    Uri(#[from] Pkcs11UriError),
    /// The agent.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The token is not there or does not work.
    #[error("HSM away: {0}")]
    Away(String),
    /// The token said no.
    #[error("the HSM refused: {0}")]
    Refused(String),
    /// The token has no such master key.
    #[error("{0}")]
    NoKey(String),
    /// The library, the token's name, or what the token can do does not fit the settings.
    #[error("{0}")]
    Setting(String),
    /// The version asked for is not there, does not fit, or was destroyed.
    #[error("{0}")]
    Key(String, KeyFailure),
}

/// What is wrong with a version of a master key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFailure {
    /// Not on the token.
    Missing,
    /// It did not wrap this.
    Wrong,
    /// Destroyed on purpose.
    Destroyed,
}

impl Pkcs11Error {
    /// Whether waiting may help.
    pub fn is_away(&self) -> bool {
        match self {
            Self::Away(_) => true,
            Self::Agent(error) => !matches!(error, AgentError::NotFound { .. } | AgentError::Wire(_)),
            _ => false,
        }
    }

    /// Whether the token refused the PIN or the user, until somebody changes either: trying again may lock it.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

impl From<WireError> for Pkcs11Error {
    fn from(error: WireError) -> Self {
        Self::Agent(error.into())
    }
}

/// What a token and its master key are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenStatus {
    /// Label, manufacturer, model, serial number.
    pub token: [String; 4],
    /// The library's description and version.
    pub library: String,
    /// How keys are wrapped.
    pub wrap: String,
    /// Id and label of the master key, if there is one.
    pub key: Option<(MasterKeyId, String)>,
    /// Versions and whether each was destroyed, oldest first.
    pub versions: Vec<(u32, bool)>,
}

/// The master key of a token. The library is loaded by an agent, which is started again if it died; the PIN stays in locked memory
/// for that. A forked child starts an agent of its own.
pub struct Pkcs11Hsm {
    uri: Pkcs11Uri,
    pin: Pin,
    options: AgentOptions,
    agent: Mutex<Option<Agent>>,
    key: Option<MasterKeyId>,
}

impl Pkcs11Hsm {
    /// Starts the agent, logs in and finds the master key.
    ///
    /// # Errors
    /// See [`Pkcs11Error`].
    pub fn open(uri: &Pkcs11Uri, pin: Pin, options: AgentOptions) -> Result<Self, Pkcs11Error> {
        let mut hsm = Self::open_token(uri, pin, options)?;
        hsm.key = Some(hsm.id_of_key()?);
        Ok(hsm)
    }

    /// Starts the agent and logs in to a token that need not have the master key yet.
    ///
    /// # Errors
    /// See [`Pkcs11Error`].
    pub fn open_token(uri: &Pkcs11Uri, pin: Pin, options: AgentOptions) -> Result<Self, Pkcs11Error> {
        // Missing settings are reported before an agent is looked for.
        uri.module()?;
        let hsm = Self { uri: uri.clone(), pin, options, agent: Mutex::new(None), key: None };
        let mut agent = hsm.agent.lock().unwrap_or_else(PoisonError::into_inner);
        *agent = Some(hsm.connect()?);
        drop(agent);
        Ok(hsm)
    }

    /// Makes the first version of the master key, on a token that has none of this label.
    ///
    /// # Errors
    /// The token has one, or refuses.
    pub fn create_key(&mut self) -> Result<MasterKeyId, Pkcs11Error> {
        let answer = self.ask(Writer::new(Code::Create as u8, 0), false)?;
        let id = MasterKeyId(fields(&answer)?.array()?);
        self.key = Some(id);
        Ok(id)
    }

    /// What the token and the master key are.
    ///
    /// # Errors
    /// See [`Pkcs11Error`].
    pub fn status(&self) -> Result<TokenStatus, Pkcs11Error> {
        let answer = self.ask(Writer::new(Code::Status as u8, 0), true)?;
        let mut reader = fields(&answer)?;
        let mut text = || reader.text().map(str::to_owned);
        let (token, library, wrap) = ([text()?, text()?, text()?, text()?], text()?, text()?);
        let id = reader.bytes()?;
        let key = <[u8; 16]>::try_from(id).ok().map(|id| (MasterKeyId(id), self.uri.object.clone()));
        let mut versions = Vec::new();
        for _ in 0..reader.u32()? {
            versions.push((reader.u32()?, reader.u8()? != 0));
        }
        Ok(TokenStatus { token, library, wrap, key, versions })
    }

    /// Destroys a version of the master key that is not the newest, and leaves a mark that it was done on purpose. What is still
    /// wrapped under it is lost.
    ///
    /// # Errors
    /// See [`Pkcs11Error`].
    pub fn destroy_version(&self, version: u32) -> Result<(), Pkcs11Error> {
        self.ask(Writer::new(Code::Destroy as u8, 4).u32(version)?, false)?;
        Ok(())
    }

    /// Which token and key.
    pub fn uri(&self) -> &Pkcs11Uri {
        &self.uri
    }

    fn id_of_key(&self) -> Result<MasterKeyId, Pkcs11Error> {
        let answer = self.ask(Writer::new(Code::Primary as u8, 0), true)?;
        let mut reader = fields(&answer)?;
        reader.u32()?;
        Ok(MasterKeyId(reader.array()?))
    }

    /// An agent that is logged in.
    fn connect(&self) -> Result<Agent, Pkcs11Error> {
        let mut agent = Agent::start(&self.options)?;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let selection = Selection {
            token: text(&self.uri.token),
            serial: text(&self.uri.serial),
            manufacturer: text(&self.uri.manufacturer),
            model: text(&self.uri.model),
            slot: self.uri.slot,
            label: self.uri.object.clone(),
            id: self.uri.id,
            wrap: self.uri.wrap as u8,
        };
        let module = self.uri.module()?;
        let mut pin = Secret(SecretBuf::with_capacity(self.pin.len()));
        self.pin.reveal(&mut pin).map_err(AgentError::Socket)?;
        let request = Writer::new(Code::Open as u8, wire::SMALL).u16(wire::VERSION)?;
        let request = request.bytes(std::os::unix::ffi::OsStrExt::as_bytes(module.as_os_str()))?;
        let request = selection.write(request)?.bytes(pin.0.as_slice())?.finish()?;
        let answer = agent.call(&request, self.uri.timeout, self.options.cancelled)?;
        fields(&answer)?;
        Ok(agent)
    }

    /// Sends a request to the agent. If that is dead or its session is gone, the next agent gets it, once, if `again`.
    fn ask(&self, request: Writer, again: bool) -> Result<SecretBuf, Pkcs11Error> {
        let request = request.finish()?;
        let mut slot = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|agent| !agent.is_ours()) {
            *slot = None;
        }
        let mut fresh = false;
        loop {
            let mut agent = match slot.take() {
                Some(agent) => agent,
                None => {
                    fresh = true;
                    self.connect()?
                }
            };
            let answer = agent.call(&request, self.uri.timeout, self.options.cancelled);
            let lost = match answer {
                Ok(answer) => match failure(&answer)? {
                    None => {
                        *slot = Some(agent);
                        return Ok(answer);
                    }
                    Some((Failure::Stale, text)) => Pkcs11Error::Away(text),
                    Some((failure, text)) => {
                        *slot = Some(agent);
                        return Err(error_of(failure, text));
                    }
                },
                Err(error @ AgentError::Ended { .. }) => error.into(),
                Err(error) => return Err(error.into()),
            };
            if fresh || !again {
                return Err(lost);
            }
        }
    }

    fn master_error(&self, version: u32) -> impl Fn(Pkcs11Error) -> MasterKeyError {
        let key = self.id();
        move |error| match error {
            Pkcs11Error::Key(_, KeyFailure::Missing) => MasterKeyError::Missing { key, version },
            Pkcs11Error::Key(_, KeyFailure::Wrong) => MasterKeyError::Wrong { key, version },
            Pkcs11Error::Key(_, KeyFailure::Destroyed) => MasterKeyError::Destroyed { key, version },
            error if error.is_away() => MasterKeyError::Away(error.into()),
            error => MasterKeyError::Refused(error.into()),
        }
    }

    /// `None` if generations are kept nowhere.
    fn counter(&self, code: Code, of: &GenerationId) -> Option<Result<Writer, MasterKeyError>> {
        let name = format!("keyring/{}/{}", of.instance, of.keyring);
        let writer = Writer::new(code as u8, wire::SMALL).bytes(name.as_bytes());
        self.uri.generations.then_some(writer.map_err(|error| self.master_error(0)(error.into())))
    }
}

impl MasterKey for Pkcs11Hsm {
    fn id(&self) -> MasterKeyId {
        self.key.unwrap_or(MasterKeyId([0; 16]))
    }

    fn label(&self) -> &str {
        &self.uri.object
    }

    fn primary_version(&self) -> Result<u32, MasterKeyError> {
        let answer = self.ask(Writer::new(Code::Primary as u8, 0), true).map_err(self.master_error(0))?;
        number(&answer).map_err(self.master_error(0))
    }

    fn generate_version(&mut self) -> Result<u32, MasterKeyError> {
        // Not again with another agent: there might be two new versions then.
        let answer = self.ask(Writer::new(Code::Generate as u8, 0), false).map_err(self.master_error(0))?;
        number(&answer).map_err(self.master_error(0))
    }

    fn wrap(&self, key: &SecretBytes<32>) -> Result<WrappedKey, MasterKeyError> {
        let wrap = || -> Result<WrappedKey, Pkcs11Error> {
            let answer = self.ask(Writer::new(Code::Wrap as u8, 32).raw(key.expose())?, true)?;
            let mut reader = fields(&answer)?;
            Ok(WrappedKey { version: reader.u32()?, bytes: reader.array()? })
        };
        wrap().map_err(self.master_error(0))
    }

    fn unwrap(&self, wrapped: &WrappedKey) -> Result<SecretBytes<32>, MasterKeyError> {
        let unwrap = || -> Result<SecretBytes<32>, Pkcs11Error> {
            let request = Writer::new(Code::Unwrap as u8, 44).u32(wrapped.version)?.raw(&wrapped.bytes)?;
            Ok(fields(&self.ask(request, true)?)?.secret()?)
        };
        unwrap().map_err(self.master_error(wrapped.version))
    }

    /// The data key comes from the operating system's generator: few tokens give a key of their own out in clear.
    fn generate_data_key(&self) -> Result<(SecretBytes<32>, WrappedKey), MasterKeyError> {
        let key = SecretBytes::random().map_err(|error| MasterKeyError::Away(error.into()))?;
        let wrapped = self.wrap(&key)?;
        Ok((key, wrapped))
    }

    fn generation(&self, of: &GenerationId) -> Result<Option<u64>, MasterKeyError> {
        let Some(request) = self.counter(Code::Counter, of) else { return Ok(None) };
        let request = request?;
        let read = || -> Result<Option<u64>, Pkcs11Error> {
            let answer = self.ask(request, true)?;
            let mut reader = fields(&answer)?;
            Ok(if reader.u8()? == 0 { None } else { Some(reader.u64()?) })
        };
        read().map_err(self.master_error(0))
    }

    fn raise_generation(&self, of: &GenerationId, generation: u64) -> Result<(), MasterKeyError> {
        let Some(request) = self.counter(Code::Raise, of) else { return Ok(()) };
        let request = request?.u64(generation).map_err(|error| self.master_error(0)(error.into()))?;
        self.ask(request, true).map_err(self.master_error(0))?;
        Ok(())
    }

    fn forget_generation(&self, of: &GenerationId) -> Result<(), MasterKeyError> {
        let Some(request) = self.counter(Code::Forget, of) else { return Ok(()) };
        self.ask(request?, true).map_err(self.master_error(0))?;
        Ok(())
    }

    fn generations_of_instance(&self, at: InstanceId) -> Result<Vec<(KeyringId, u64)>, MasterKeyError> {
        if !self.uri.generations {
            return Ok(Vec::new());
        }
        let prefix = format!("keyring/{at}/");
        let read = || -> Result<Vec<(KeyringId, u64)>, Pkcs11Error> {
            let request = Writer::new(Code::Counters as u8, wire::SMALL).bytes(prefix.as_bytes())?;
            let answer = self.ask(request, true)?;
            let mut reader = fields(&answer)?;
            let mut found = Vec::new();
            for _ in 0..reader.u32()? {
                let (name, value) = (reader.text()?, reader.u64()?);
                let id = name.strip_prefix(&prefix).and_then(|id| Uuid::try_parse(id).ok());
                found.extend(id.map(|id| (KeyringId(id), value)));
            }
            Ok(found)
        };
        read().map_err(self.master_error(0))
    }
}

impl fmt::Debug for Pkcs11Hsm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkcs11Hsm").field("uri", &self.uri.to_string()).finish_non_exhaustive()
    }
}

/// Failure and text of an answer that is one.
fn failure(answer: &SecretBuf) -> Result<Option<(Failure, String)>, WireError> {
    let (code, mut reader) = Reader::new(answer.as_slice())?;
    match code {
        wire::DONE => Ok(None),
        wire::FAILED => {
            let failure = Failure::from_number(reader.u8()?).ok_or(WireError("a failure is unknown"))?;
            Ok(Some((failure, reader.text()?.to_owned())))
        }
        _ => Err(WireError("an answer's code is unknown")),
    }
}

/// Fields of an answer, or its failure.
fn fields(answer: &SecretBuf) -> Result<Reader<'_>, Pkcs11Error> {
    match failure(answer)? {
        Some((failure, text)) => Err(error_of(failure, text)),
        None => Ok(Reader::new(answer.as_slice())?.1),
    }
}

fn number(answer: &SecretBuf) -> Result<u32, Pkcs11Error> {
    Ok(fields(answer)?.u32()?)
}

fn error_of(failure: Failure, text: String) -> Pkcs11Error {
    match failure {
        Failure::Away | Failure::Stale => Pkcs11Error::Away(text),
        Failure::Refused => Pkcs11Error::Refused(text),
        Failure::Missing => Pkcs11Error::Key(text, KeyFailure::Missing),
        Failure::Wrong => Pkcs11Error::Key(text, KeyFailure::Wrong),
        Failure::Destroyed => Pkcs11Error::Key(text, KeyFailure::Destroyed),
        Failure::NoKey => Pkcs11Error::NoKey(text),
        Failure::Setting => Pkcs11Error::Setting(text),
    }
}

/// Takes the PIN from where it is shown.
struct Secret(SecretBuf);

impl io::Write for Secret {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
