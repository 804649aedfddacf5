//! The URI of a PKCS#11 token: RFC 7512, and four attributes of our own.
//!
//! ```text
//! pkcs11:token=tde;object=master?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=/etc/tde/pin
//!
//! token, serial, manufacturer, model, slot-id     which token: all that are given must hold
//! object         label (CKA_LABEL) of the master key's versions; "master" if not given
//! id             which of several master keys of that label: 16 bytes, the first of CKA_ID
//! type           secret-key, if given
//! module-path    the vendor's library, absolute; TDE_PKCS11_MODULE if not given
//! pin-source     file with the PIN, where nothing else says where it is
//! x-timeout      seconds that one request may take; 30 if not given
//! x-wrap         auto, encrypt, wrap or ecb: how the token does AES-KW
//! x-generations  token, or none for tokens that hold no data objects
//! ```

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hsm_engine::DEFAULT_KEY;

/// How a URI of this kind begins.
pub const SCHEME: &str = "pkcs11:";
/// The environment variable that names the vendor's library where the URI does not.
pub const MODULE_VARIABLE: &str = "TDE_PKCS11_MODULE";
/// How long one request may take where the URI does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const LONGEST_TIMEOUT: u64 = 3600;

/// How a token wraps with AES-KW. The wrapped bytes are the same in each way (RFC 3394).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WrapMethod {
    /// The first of the others that the token's list of mechanisms has.
    #[default]
    Auto,
    /// `C_Encrypt` and `C_Decrypt` with `CKM_AES_KEY_WRAP`: the data key never is an object of the token.
    Encrypt,
    /// `C_WrapKey` and `C_UnwrapKey` with `CKM_AES_KEY_WRAP`, the data key a short-lived session object.
    Wrap,
    /// `CKM_AES_ECB` for each of the 24 steps of RFC 3394.
    Ecb,
}

impl WrapMethod {
    const NAMES: [(&str, Self); 4] =
        [("auto", Self::Auto), ("encrypt", Self::Encrypt), ("wrap", Self::Wrap), ("ecb", Self::Ecb)];
}

impl fmt::Display for WrapMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, method)| method == self).map_or("auto", |(name, _)| name);
        f.write_str(name)
    }
}

/// A token, the master key on it, and the library that speaks to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pkcs11Uri {
    /// The vendor's library.
    pub module: Option<PathBuf>,
    /// The token's label.
    pub token: Option<String>,
    /// The token's serial number.
    pub serial: Option<String>,
    /// The token's manufacturer.
    pub manufacturer: Option<String>,
    /// The token's model.
    pub model: Option<String>,
    /// The slot's number.
    pub slot: Option<u64>,
    /// The master key's label.
    pub object: String,
    /// The master key's id, where several have that label.
    pub id: Option<[u8; 16]>,
    /// File with the PIN.
    pub pin_source: Option<PathBuf>,
    /// How long one request may take.
    pub timeout: Duration,
    /// How to wrap.
    pub wrap: WrapMethod,
    /// Whether the token keeps the generations of keyrings.
    pub generations: bool,
}

/// What is wrong with a PKCS#11 URI. The URI itself is not repeated: it might hold a PIN.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Pkcs11UriError {
    /// Another scheme.
    #[error("it does not begin with pkcs11:")]
    Scheme,
    /// The PIN itself.
    #[error(
        "pin-value is refused: URIs end up in logs and process lists; use pin-source=FILE or the PIN settings"
    )]
    PinValue,
    /// An attribute that is unknown, or that selects by what this program does not compare.
    #[error(
        "the PKCS#11 URI has the attribute \"{0}\", which is not supported; known are token, serial, manufacturer, model, slot-id, object, id, type, and after the question mark module-path, pin-source, x-timeout, x-wrap, x-generations"
    )]
    Attribute(String),
    /// Given twice.
    #[error("the PKCS#11 URI gives \"{0}\" twice")]
    Twice(String),
    /// A value that cannot be.
    #[error("the PKCS#11 URI's \"{attribute}\" is not usable: {rule}")]
    Value {
        /// The attribute.
        attribute: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// A percent sign without two hex digits.
    #[error(
        "the PKCS#11 URI has a percent sign that no two hex digits follow; write %25 for the sign itself"
    )]
    Percent,
    /// No library named anywhere.
    #[error(
        "no PKCS#11 module is named: add ?module-path=/path/to/vendor.so to the URI, or set TDE_PKCS11_MODULE"
    )]
    NoModule,
}

impl Pkcs11Uri {
    /// The master key labelled "master" on the only token there is.
    pub fn new() -> Self {
        Self {
            module: None,
            token: None,
            serial: None,
            manufacturer: None,
            model: None,
            slot: None,
            object: DEFAULT_KEY.into(),
            id: None,
            pin_source: None,
            timeout: DEFAULT_TIMEOUT,
            wrap: WrapMethod::Auto,
            generations: true,
        }
    }

    /// The vendor's library, from the URI or from `TDE_PKCS11_MODULE`.
    ///
    /// # Errors
    /// Neither names one by an absolute path.
    pub fn module(&self) -> Result<PathBuf, Pkcs11UriError> {
        if let Some(module) = &self.module {
            return Ok(module.clone());
        }
        match std::env::var_os(MODULE_VARIABLE).filter(|value| !value.is_empty()) {
            Some(path) => absolute("TDE_PKCS11_MODULE", path.into()),
            None => Err(Pkcs11UriError::NoModule),
        }
    }

    fn set(&mut self, name: &str, value: Vec<u8>) -> Result<(), Pkcs11UriError> {
        match name {
            "token" => self.token = Some(text("token", value)?),
            "serial" => self.serial = Some(text("serial", value)?),
            "manufacturer" => self.manufacturer = Some(text("manufacturer", value)?),
            "model" => self.model = Some(text("model", value)?),
            "slot-id" => self.slot = Some(number("slot-id", value)?),
            "object" => self.object = text("object", value)?,
            "id" => {
                let rule = "it has the first 16 bytes of CKA_ID, percent-encoded";
                let id = <[u8; 16]>::try_from(value);
                self.id = Some(id.map_err(|_| Pkcs11UriError::Value { attribute: "id", rule })?);
            }
            "type" if value == b"secret-key" => (),
            "type" => {
                let rule = "a master key is of type secret-key";
                return Err(Pkcs11UriError::Value { attribute: "type", rule });
            }
            _ => return Err(Pkcs11UriError::Attribute(name.into())),
        }
        Ok(())
    }

    fn set_query(&mut self, name: &str, value: Vec<u8>) -> Result<(), Pkcs11UriError> {
        match name {
            "module-path" => self.module = Some(absolute("module-path", path(value))?),
            "pin-source" => {
                let value = value.strip_prefix(b"file:").map_or(value.clone(), <[u8]>::to_vec);
                self.pin_source = Some(absolute("pin-source", path(value))?);
            }
            "pin-value" => return Err(Pkcs11UriError::PinValue),
            "x-timeout" => {
                let seconds = number("x-timeout", value)?;
                if !(1..=LONGEST_TIMEOUT).contains(&seconds) {
                    let rule = "it is 1 to 3600 seconds";
                    return Err(Pkcs11UriError::Value { attribute: "x-timeout", rule });
                }
                self.timeout = Duration::from_secs(seconds);
            }
            "x-wrap" => {
                let known = WrapMethod::NAMES.iter().find(|(name, _)| name.as_bytes() == value);
                let rule = "it is auto, encrypt, wrap or ecb";
                self.wrap = known.ok_or(Pkcs11UriError::Value { attribute: "x-wrap", rule })?.1;
            }
            "x-generations" => {
                self.generations = match value.as_slice() {
                    b"token" => true,
                    b"none" => false,
                    _ => {
                        let rule = "it is token or none";
                        return Err(Pkcs11UriError::Value { attribute: "x-generations", rule });
                    }
                }
            }
            _ => return Err(Pkcs11UriError::Attribute(name.into())),
        }
        Ok(())
    }
}

impl Default for Pkcs11Uri {
    fn default() -> Self {
        Self::new()
    }
}

impl FromStr for Pkcs11Uri {
    type Err = Pkcs11UriError;

    fn from_str(uri: &str) -> Result<Self, Pkcs11UriError> {
        let rest = uri.strip_prefix(SCHEME).ok_or(Pkcs11UriError::Scheme)?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parsed = Self::new();
        let mut seen: Vec<&str> = Vec::new();
        let path = path.split(';').map(|pair| (pair, false));
        for (pair, query) in path.chain(query.split('&').map(|pair| (pair, true))) {
            if pair.is_empty() {
                continue;
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if seen.contains(&name) {
                return Err(Pkcs11UriError::Twice(name.into()));
            }
            seen.push(name);
            let value = decode(value)?;
            if query { parsed.set_query(name, value)? } else { parsed.set(name, value)? }
        }
        Ok(parsed)
    }
}

impl fmt::Display for Pkcs11Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        for (name, value) in [
            ("token", &self.token),
            ("serial", &self.serial),
            ("manufacturer", &self.manufacturer),
            ("model", &self.model),
        ] {
            if let Some(value) = value {
                attribute(f, name, value.as_bytes(), ";")?;
            }
        }
        if let Some(slot) = self.slot {
            write!(f, "slot-id={slot};")?;
        }
        if let Some(id) = self.id {
            f.write_str("id=")?;
            id.iter().try_for_each(|byte| write!(f, "%{byte:02X}"))?;
            f.write_str(";")?;
        }
        attribute(f, "object", self.object.as_bytes(), "")?;
        let mut separator = "?";
        for (name, path) in [("module-path", &self.module), ("pin-source", &self.pin_source)] {
            if let Some(path) = path {
                f.write_str(separator)?;
                attribute(f, name, path.as_os_str().as_bytes(), "")?;
                separator = "&";
            }
        }
        if self.timeout != DEFAULT_TIMEOUT {
            write!(f, "{separator}x-timeout={}", self.timeout.as_secs())?;
            separator = "&";
        }
        if self.wrap != WrapMethod::Auto {
            write!(f, "{separator}x-wrap={}", self.wrap)?;
            separator = "&";
        }
        if !self.generations {
            write!(f, "{separator}x-generations=none")?;
        }
        Ok(())
    }
}

fn attribute(f: &mut fmt::Formatter<'_>, name: &str, value: &[u8], end: &str) -> fmt::Result {
    write!(f, "{name}=")?;
    for &byte in value {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            write!(f, "{}", char::from(byte))?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    f.write_str(end)
}

fn text(attribute: &'static str, value: Vec<u8>) -> Result<String, Pkcs11UriError> {
    let value = String::from_utf8(value).ok().filter(|value| !value.is_empty());
    value.ok_or(Pkcs11UriError::Value { attribute, rule: "it has no text" })
}

fn number(attribute: &'static str, value: Vec<u8>) -> Result<u64, Pkcs11UriError> {
    let number = text(attribute, value)?.parse();
    number.map_err(|_| Pkcs11UriError::Value { attribute, rule: "it is not a number" })
}

fn path(value: Vec<u8>) -> PathBuf {
    OsString::from_vec(value).into()
}

fn absolute(attribute: &'static str, path: PathBuf) -> Result<PathBuf, Pkcs11UriError> {
    let rule = "it must be an absolute path";
    if Path::is_absolute(&path) { Ok(path) } else { Err(Pkcs11UriError::Value { attribute, rule }) }
}

fn decode(text: &str) -> Result<Vec<u8>, Pkcs11UriError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
        match (digit(), digit()) {
            // Two hex digits make at most 255.
            (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
            _ => return Err(Pkcs11UriError::Percent),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_uri_is_read_and_printed() {
        let text = "pkcs11:token=my%20token;serial=12;manufacturer=ACME;model=v2;slot-id=3;id=%00%01%02%03%04%05%06%07%08%09%0A%0B%0C%0D%0E%0F;object=key%3B1?module-path=/usr/lib/x.so&pin-source=/etc/pin&x-timeout=5&x-wrap=ecb&x-generations=none";
        let uri: Pkcs11Uri = text.parse().unwrap();
        assert_eq!(uri.token.as_deref(), Some("my token"));
        assert_eq!(uri.object, "key;1");
        assert_eq!(uri.id, Some([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]));
        assert_eq!((uri.slot, uri.timeout.as_secs(), uri.wrap), (Some(3), 5, WrapMethod::Ecb));
        assert_eq!((uri.module().unwrap(), uri.generations), ("/usr/lib/x.so".into(), false));
        assert_eq!(uri.pin_source, Some("/etc/pin".into()));
        assert_eq!(uri.to_string(), text);
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let uri: Pkcs11Uri = "pkcs11:type=secret-key?pin-source=file:/p".parse().unwrap();
        assert_eq!(uri, Pkcs11Uri { pin_source: Some("/p".into()), ..Pkcs11Uri::new() });
        assert_eq!("pkcs11:".parse(), Ok(Pkcs11Uri::new()));
        assert_eq!(Pkcs11Uri::new().to_string(), "pkcs11:object=master");
    }

    #[test]
    fn mistakes_are_named_and_a_pin_is_never_repeated() {
        for (uri, part) in [
            ("soft:/x", "pkcs11:"),
            ("pkcs11:token=a?pin-value=98765", "pin-value is refused"),
            ("pkcs11:x=98765", "\"x\""),
            ("pkcs11:token=a?pin-value=98765&y=1", "pin-value is refused"),
            ("pkcs11:token=a;token=b", "twice"),
            ("pkcs11:token=", "\"token\""),
            ("pkcs11:token=%F", "%25"),
            ("pkcs11:id=%01", "16 bytes"),
            ("pkcs11:type=cert", "secret-key"),
            ("pkcs11:slot-id=x", "not a number"),
            ("pkcs11:?module-path=x.so", "absolute"),
            ("pkcs11:?x-timeout=0", "3600"),
            ("pkcs11:?x-wrap=rsa", "ecb"),
            ("pkcs11:?x-generations=x", "none"),
            ("pkcs11:library-version=3", "not supported"),
        ] {
            let error = uri.parse::<Pkcs11Uri>().unwrap_err().to_string();
            assert!(error.contains(part), "{uri}: {error}");
            assert!(!error.contains("98765"), "{error}");
        }
    }
}
