//! What this program and its PKCS#11 agent say to each other, over a socket that the agent inherits as standard input.
//! Bytes: docs/formats/pkcs11-agent.md. Both come from one build: another version is refused, not understood.
//!
//! ```text
//! 0  4   length of what follows, little-endian, at most 65536
//! 4  1   code of the request, or of the answer: 0 done, 1 failed
//! 5  ..  fields, in order: numbers little-endian; text and bytes with a 2-byte length before them
//! ```

use secret_mem::{SecretBuf, SecretBytes};

/// Version of these messages; the first field of [`Code::Open`].
pub const VERSION: u16 = 1;
/// Largest frame, without its length.
pub const MAX_FRAME: usize = 65_536;
/// Bytes of a frame before its fields.
pub const HEAD: usize = 5;
/// Room that a request or an answer without lists needs.
pub const SMALL: usize = 8_192;

/// What the agent is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Load the library, find the token, log in. First, and once. Fields: version, module, selection, PIN.
    Open = 1,
    /// The newest version of the master key: a number. Looked up anew.
    Primary = 2,
    /// Make a new version; its number.
    Generate = 3,
    /// Wrap 32 bytes under the newest version; its number and 40 bytes.
    Wrap = 4,
    /// Unwrap 40 bytes under a version; 32 bytes.
    Unwrap = 5,
    /// The value of a counter: 1 and the number, or 0.
    Counter = 6,
    /// Raise a counter.
    Raise = 7,
    /// Forget a counter.
    Forget = 8,
    /// All counters that begin with a text: count, then name and value of each.
    Counters = 9,
    /// Make the first version of a master key that the token does not have yet; its id.
    Create = 10,
    /// What the token is and which versions it has.
    Status = 11,
    /// Destroy a version that is not the newest, and remember that.
    Destroy = 12,
}

impl Code {
    const ALL: [Self; 12] = [
        Self::Open,
        Self::Primary,
        Self::Generate,
        Self::Wrap,
        Self::Unwrap,
        Self::Counter,
        Self::Raise,
        Self::Forget,
        Self::Counters,
        Self::Create,
        Self::Status,
        Self::Destroy,
    ];

    /// The request of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u8 == number)
    }
}

/// First byte of an answer that holds what was asked for.
pub const DONE: u8 = 0;
/// First byte of an answer that holds a [`Failure`] and a text.
pub const FAILED: u8 = 1;

/// How a request failed; each calls for another act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Failure {
    /// The token is not there or does not work.
    Away = 1,
    /// The session is no longer good: a new agent may have better luck.
    Stale = 2,
    /// The token said no: PIN, right, policy.
    Refused = 3,
    /// No such version.
    Missing = 4,
    /// The integrity check of AES-KW failed.
    Wrong = 5,
    /// The version was destroyed on purpose.
    Destroyed = 6,
    /// No master key of that label (or several).
    NoKey = 7,
    /// A setting is wrong: the library, the token's name, what the token can do.
    Setting = 8,
}

impl Failure {
    /// The failure of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        let all = [
            Self::Away,
            Self::Stale,
            Self::Refused,
            Self::Missing,
            Self::Wrong,
            Self::Destroyed,
            Self::NoKey,
            Self::Setting,
        ];
        all.into_iter().find(|failure| *failure as u8 == number)
    }
}

/// A frame is not what this version writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message between tde and its PKCS#11 agent is not understood: {0}; both must come from one build")]
pub struct WireError(pub &'static str);

/// Builds a frame in locked memory.
pub struct Writer(SecretBuf);

impl Writer {
    /// A frame with room for `room` bytes of fields.
    pub fn new(code: u8, room: usize) -> Self {
        let mut buf = SecretBuf::with_capacity(HEAD + room);
        // There is room for the head.
        let _ok = buf.extend_from_slice(&[0, 0, 0, 0, code]);
        Self(buf)
    }

    /// Raw bytes.
    ///
    /// # Errors
    /// No room.
    pub fn raw(mut self, bytes: &[u8]) -> Result<Self, WireError> {
        self.0.extend_from_slice(bytes).map_err(|_| WireError("it is too long"))?;
        Ok(self)
    }

    /// A byte.
    ///
    /// # Errors
    /// No room.
    pub fn u8(self, value: u8) -> Result<Self, WireError> {
        self.raw(&[value])
    }

    /// A number.
    ///
    /// # Errors
    /// No room.
    pub fn u16(self, value: u16) -> Result<Self, WireError> {
        self.raw(&value.to_le_bytes())
    }

    /// A number.
    ///
    /// # Errors
    /// No room.
    pub fn u32(self, value: u32) -> Result<Self, WireError> {
        self.raw(&value.to_le_bytes())
    }

    /// A number.
    ///
    /// # Errors
    /// No room.
    pub fn u64(self, value: u64) -> Result<Self, WireError> {
        self.raw(&value.to_le_bytes())
    }

    /// Bytes with their length.
    ///
    /// # Errors
    /// No room, or 65536 bytes and more.
    pub fn bytes(self, bytes: &[u8]) -> Result<Self, WireError> {
        let len = u16::try_from(bytes.len()).map_err(|_| WireError("a field is too long"))?;
        self.u16(len)?.raw(bytes)
    }

    /// The frame, its length filled in.
    ///
    /// # Errors
    /// Longer than [`MAX_FRAME`].
    pub fn finish(self) -> Result<SecretBuf, WireError> {
        let buf = self.0;
        let len = buf.len() - 4;
        if len > MAX_FRAME {
            return Err(WireError("it is too long"));
        }
        let head = u32::try_from(len).map_err(|_| WireError("it is too long"))?.to_le_bytes();
        SecretBuf::from_fn(buf.len(), |out| {
            out[..4].copy_from_slice(&head);
            out[4..].copy_from_slice(&buf.as_slice()[4..]);
            Ok(out.len())
        })
    }
}

/// Length of the frame that follows.
///
/// # Errors
/// Nothing, or longer than [`MAX_FRAME`].
pub fn frame_length(head: [u8; 4]) -> Result<usize, WireError> {
    let len = u32::from_le_bytes(head) as usize;
    if (1..=MAX_FRAME).contains(&len) { Ok(len) } else { Err(WireError("its length is impossible")) }
}

/// Reads the fields of a frame.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Code and fields of a frame without its length.
    ///
    /// # Errors
    /// An empty frame.
    pub fn new(frame: &'a [u8]) -> Result<(u8, Self), WireError> {
        let (code, rest) = frame.split_first().ok_or(WireError("it is empty"))?;
        Ok((*code, Self(rest)))
    }

    /// That many bytes.
    ///
    /// # Errors
    /// The frame ends before.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(WireError("it ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    /// So many bytes as the array has.
    ///
    /// # Errors
    /// The frame ends before.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N)?);
        Ok(out)
    }

    /// 32 bytes, in locked memory.
    ///
    /// # Errors
    /// The frame ends before.
    pub fn secret(&mut self) -> Result<SecretBytes<32>, WireError> {
        let bytes = self.raw(32)?;
        SecretBytes::fill_with(|out| {
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    /// A byte.
    ///
    /// # Errors
    /// The frame ends before.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    /// A number.
    ///
    /// # Errors
    /// The frame ends before.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// A number.
    ///
    /// # Errors
    /// The frame ends before.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A number.
    ///
    /// # Errors
    /// The frame ends before.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Bytes with their length.
    ///
    /// # Errors
    /// The frame ends before.
    pub fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let len = self.u16()?;
        self.raw(len.into())
    }

    /// Text with its length.
    ///
    /// # Errors
    /// The frame ends before, or it is not UTF-8.
    pub fn text(&mut self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError("a text is not UTF-8"))
    }

    /// Nothing may follow.
    ///
    /// # Errors
    /// Something does.
    pub fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError("something follows it")) }
    }
}

/// What [`Code::Open`] selects. A text that is not there is empty, a slot that is not there is `u64::MAX`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The token's label.
    pub token: String,
    /// Its serial number.
    pub serial: String,
    /// Its manufacturer.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
    /// The slot.
    pub slot: Option<u64>,
    /// Label of the master key.
    pub label: String,
    /// Id of the master key.
    pub id: Option<[u8; 16]>,
    /// [`super::WrapMethod`]: 0 auto, 1 encrypt, 2 wrap, 3 ecb.
    pub wrap: u8,
}

impl Selection {
    /// Appends it.
    ///
    /// # Errors
    /// No room.
    pub fn write(&self, mut writer: Writer) -> Result<Writer, WireError> {
        for text in [&self.token, &self.serial, &self.manufacturer, &self.model, &self.label] {
            writer = writer.bytes(text.as_bytes())?;
        }
        let id = self.id.as_ref().map_or(&[][..], |id| &id[..]);
        writer.u64(self.slot.unwrap_or(u64::MAX))?.bytes(id)?.u8(self.wrap)
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is not one.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut text = || reader.text().map(str::to_owned);
        let (token, serial, manufacturer, model, label) = (text()?, text()?, text()?, text()?, text()?);
        let slot = Some(reader.u64()?).filter(|slot| *slot != u64::MAX);
        let id = match reader.bytes()? {
            [] => None,
            id => Some(<[u8; 16]>::try_from(id).map_err(|_| WireError("an id has not 16 bytes"))?),
        };
        Ok(Self { token, serial, manufacturer, model, slot, label, id, wrap: reader.u8()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_request_are_pinned() {
        let frame = Writer::new(Code::Unwrap as u8, 64).u32(7).unwrap().raw(&[9; 40]).unwrap();
        let frame = frame.finish().unwrap();
        let mut expected = vec![45, 0, 0, 0, 5, 7, 0, 0, 0];
        expected.extend([9; 40]);
        assert_eq!(frame.as_slice(), expected);
        assert_eq!(frame_length([45, 0, 0, 0]), Ok(45));
    }

    #[test]
    fn the_selection_comes_back() {
        let selection = Selection {
            token: "t".into(),
            label: "master".into(),
            slot: Some(3),
            id: Some([5; 16]),
            wrap: 2,
            ..Selection::default()
        };
        let frame = selection.write(Writer::new(1, 256)).unwrap().bytes(b"pin").unwrap().finish().unwrap();
        let (code, mut reader) = Reader::new(&frame.as_slice()[4..]).unwrap();
        assert_eq!((code, Selection::read(&mut reader).unwrap()), (1, selection));
        assert_eq!(reader.bytes().unwrap(), b"pin");
        reader.end().unwrap();
    }

    #[test]
    fn cut_and_longer_frames_are_refused() {
        let frame = Selection::default().write(Writer::new(1, 256)).unwrap().finish().unwrap();
        for len in 1..frame.len() - 4 {
            let (_, mut reader) = Reader::new(&frame.as_slice()[4..4 + len]).unwrap();
            assert!(Selection::read(&mut reader).is_err(), "{len}");
        }
        assert!(Reader(b"x").end().is_err());
        assert!(frame_length([0; 4]).is_err() && frame_length([0, 0, 2, 0]).is_err());
        assert!(Writer::new(1, 2).bytes(b"x").is_err());
        assert_eq!(Code::from_number(12), Some(Code::Destroy));
        assert_eq!((Code::from_number(0), Code::from_number(13)), (None, None));
        assert_eq!((Failure::from_number(8), Failure::from_number(9)), (Some(Failure::Setting), None));
    }
}
