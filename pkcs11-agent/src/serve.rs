//! Requests and answers.

use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cryptoki::object::ObjectHandle;
use keyring::pkcs11::wire::{
    Code, DONE, FAILED, Failure, MAX_FRAME, Reader, SMALL, Selection, VERSION, WireError, Writer,
    frame_length,
};
use secret_mem::{SecretBuf, SecretBytes};
use uuid::Uuid;

use crate::data;
use crate::keys::{self, Line};
use crate::refusal::{Refusal, Result};
use crate::token::Token;

/// Longest explanation, in bytes.
const LONGEST_TEXT: usize = 2_000;

/// What is open, and the keys that were found there.
#[derive(Default)]
struct Served {
    token: Option<Token>,
    line: Option<Line>,
    /// Whose secrecy was checked.
    checked: Vec<ObjectHandle>,
}

/// Answers until the other end is closed.
pub(crate) fn run(mut socket: UnixStream) -> io::Result<()> {
    let mut served = Served::default();
    while let Some(frame) = receive(&mut socket)? {
        let answer = match served.answer(&frame) {
            Ok(answer) => answer.finish(),
            Err(refusal) => failed(&refusal),
        };
        socket.write_all(answer.map_err(io::Error::other)?.as_slice())?;
    }
    if let Some(token) = served.token {
        token.close();
    }
    Ok(())
}

fn receive(socket: &mut UnixStream) -> io::Result<Option<SecretBuf>> {
    let mut head = [0; 4];
    match socket.read_exact(&mut head) {
        Ok(()) => (),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let len = frame_length(head).map_err(io::Error::other)?;
    SecretBuf::from_fn(len, |frame| socket.read_exact(frame).map(|()| frame.len())).map(Some)
}

fn failed(refusal: &Refusal) -> Result<SecretBuf, WireError> {
    let mut end = refusal.text.len().min(LONGEST_TEXT);
    while !refusal.text.is_char_boundary(end) {
        end -= 1;
    }
    let writer = Writer::new(FAILED, SMALL).u8(refusal.failure as u8)?;
    writer.bytes(&refusal.text.as_bytes()[..end])?.finish()
}

fn done(room: usize) -> Writer {
    Writer::new(DONE, room)
}

impl Served {
    fn answer(&mut self, frame: &SecretBuf) -> Result<Writer> {
        let (code, mut reader) = Reader::new(frame.as_slice())?;
        let code = Code::from_number(code).ok_or(WireError("a request is unknown"))?;
        match code {
            Code::Open => self.open(reader),
            Code::Primary => {
                reader.end()?;
                self.line = None;
                let (version, _) = self.primary()?;
                let id = self.line()?.id;
                Ok(done(20).u32(version)?.raw(&id)?)
            }
            Code::Generate => {
                reader.end()?;
                self.generate()
            }
            Code::Wrap => {
                let dek = reader.secret()?;
                reader.end()?;
                let (version, key) = self.primary()?;
                let token = self.token()?;
                let wrapped = token.method.wrap(&token.session, key, &dek)?;
                Ok(done(44).u32(version)?.raw(&wrapped)?)
            }
            Code::Unwrap => {
                let (version, wrapped) = (reader.u32()?, reader.array()?);
                reader.end()?;
                Ok(done(32).raw(self.unwrap(version, &wrapped)?.expose())?)
            }
            Code::Create => {
                reader.end()?;
                self.create()
            }
            Code::Status => {
                reader.end()?;
                self.status()
            }
            Code::Destroy => {
                let version = reader.u32()?;
                reader.end()?;
                self.destroy(version)
            }
            Code::Counter | Code::Raise | Code::Forget | Code::Counters => self.counters(code, reader),
        }
    }

    fn open(&mut self, mut reader: Reader<'_>) -> Result<Writer> {
        if reader.u16()? != VERSION {
            return Err(WireError("it is of another version").into());
        }
        let module = Path::new(std::ffi::OsStr::from_bytes(reader.bytes()?));
        let selection = Selection::read(&mut reader)?;
        let pin = reader.bytes()?;
        reader.end()?;
        if self.token.is_some() {
            return Err(WireError("a token is open already").into());
        }
        self.token = Some(Token::open(module, selection, pin)?);
        Ok(done(0))
    }

    fn token(&self) -> Result<&Token> {
        Ok(self.token.as_ref().ok_or(WireError("no token is open"))?)
    }

    /// The versions, looked up if they are not known.
    fn line(&mut self) -> Result<&Line> {
        let line = match self.line.take() {
            Some(line) => line,
            None => Line::find(self.token()?)?,
        };
        Ok(self.line.insert(line))
    }

    fn primary(&mut self) -> Result<(u32, ObjectHandle)> {
        self.line()?;
        let (token, line) = (self.token()?, self.line.as_ref());
        let (version, key) = line.ok_or(WireError("no key was looked up"))?.primary(token)?;
        self.checked.push(key);
        Ok((version, key))
    }

    fn generate(&mut self) -> Result<Writer> {
        self.line = None;
        let line = self.line()?;
        let (id, newest) = (line.id, line.newest());
        let token = self.token()?;
        let gone = data::destroyed(token, id)?.last().copied().unwrap_or(0);
        let full = || Refusal::new(Failure::Refused, "the master key has all versions that there can be");
        let version = newest.max(gone).checked_add(1).ok_or_else(full)?;
        keys::generate(token, id, version)?;
        self.line = None;
        Ok(done(4).u32(version)?)
    }

    fn create(&mut self) -> Result<Writer> {
        let token = self.token()?;
        if let Some(line) = Line::find_if_any(token)? {
            let text = format!(
                "{} already has a master key labelled \"{}\" ({})",
                token.name(),
                token.selection.label,
                Uuid::from_bytes(line.id)
            );
            return Err(Refusal::new(Failure::Refused, text));
        }
        let id = token.selection.id.unwrap_or_else(|| Uuid::new_v4().into_bytes());
        keys::generate(token, id, 1)?;
        // Another program may have made one of the same label under another id.
        self.line = None;
        let id = self.line()?.id;
        Ok(done(16).raw(&id)?)
    }

    fn unwrap(&mut self, version: u32, wrapped: &[u8; 40]) -> Result<SecretBytes<32>> {
        if !self.line()?.versions.contains_key(&version) {
            self.line = None;
        }
        let line = self.line()?;
        let (id, newest) = (line.id, line.newest());
        let keys = line.versions.get(&version).cloned().unwrap_or_default();
        let token = self.token.as_ref().ok_or(WireError("no token is open"))?;
        let label = &token.selection.label;
        if keys.is_empty() && data::destroyed(token, id)?.contains(&version) {
            let text = format!("version {version} of master key \"{label}\" was destroyed");
            return Err(Refusal::new(Failure::Destroyed, text));
        }
        if keys.is_empty() {
            let text = format!(
                "{} has no version {version} of master key \"{label}\", its newest is {newest}",
                token.name()
            );
            return Err(Refusal::new(Failure::Missing, text));
        }
        for key in keys {
            if !self.checked.contains(&key) {
                keys::check_secrecy(token, key, version)?;
                self.checked.push(key);
            }
            if let Some(dek) = token.method.unwrap(&token.session, key, wrapped)? {
                return Ok(dek);
            }
        }
        let text = format!("version {version} of master key \"{label}\" did not wrap this");
        Err(Refusal::new(Failure::Wrong, text))
    }

    fn status(&mut self) -> Result<Writer> {
        self.line = None;
        let token = self.token()?;
        let line = Line::find_if_any(token)?;
        let library = token.library.get_library_info()?;
        let library = format!("{} {}", library.library_description(), library.library_version());
        let info = &token.info;
        let mut writer = done(MAX_FRAME);
        for text in [info.label(), info.manufacturer_id(), info.model(), info.serial_number()] {
            writer = writer.bytes(text.as_bytes())?;
        }
        writer = writer.bytes(library.as_bytes())?.bytes(token.method.name().as_bytes())?;
        let Some(line) = line else { return Ok(writer.bytes(&[])?.u32(0)?) };
        let mut versions: Vec<(u32, u8)> = line.versions.keys().map(|version| (*version, 0)).collect();
        let gone = data::destroyed(token, line.id)?.into_iter();
        versions
            .extend(gone.filter(|version| !line.versions.contains_key(version)).map(|version| (version, 1)));
        versions.sort_unstable();
        let count = u32::try_from(versions.len()).map_err(|_| WireError("there are too many versions"))?;
        writer = writer.bytes(&line.id)?.u32(count)?;
        for (version, destroyed) in versions {
            writer = writer.u32(version)?.u8(destroyed)?;
        }
        Ok(writer)
    }

    fn destroy(&mut self, version: u32) -> Result<Writer> {
        self.line = None;
        let line = self.line()?;
        let (id, newest) = (line.id, line.newest());
        let keys = line.versions.get(&version).cloned().unwrap_or_default();
        let token = self.token()?;
        if version == newest {
            let text =
                format!("version {version} is the newest one, which wraps new keys; make another first");
            return Err(Refusal::new(Failure::Refused, text));
        }
        if keys.is_empty() {
            let text = format!("{} has no version {version} of this master key", token.name());
            return Err(Refusal::new(Failure::Missing, text));
        }
        // The mark first: killed in between, the key is still there and the mark says nothing of it.
        data::mark_destroyed(token, id, version)?;
        for key in keys {
            token.session.destroy_object(key)?;
        }
        self.line = None;
        Ok(done(0))
    }

    fn counters(&mut self, code: Code, mut reader: Reader<'_>) -> Result<Writer> {
        let name = reader.text()?.to_owned();
        let token = self.token()?;
        match code {
            Code::Counter => {
                reader.end()?;
                match data::value(token, &name)? {
                    Some(value) => Ok(done(9).u8(1)?.u64(value)?),
                    None => Ok(done(1).u8(0)?),
                }
            }
            Code::Raise => {
                let value = reader.u64()?;
                reader.end()?;
                data::raise(token, &name, value)?;
                Ok(done(0))
            }
            Code::Forget => {
                reader.end()?;
                data::forget(token, &name)?;
                Ok(done(0))
            }
            _ => {
                reader.end()?;
                let all = data::values(token, &name)?;
                let count = u32::try_from(all.len()).map_err(|_| WireError("there are too many counters"))?;
                let mut writer = done(MAX_FRAME - 1).u32(count)?;
                for (name, value) in all {
                    writer = writer.bytes(name.as_bytes())?.u64(value)?;
                }
                Ok(writer)
            }
        }
    }
}
