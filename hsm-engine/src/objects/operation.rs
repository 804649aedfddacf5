//! Encryption and decryption in parts, and hashing.

use std::fmt;
use std::sync::Arc;

use hsm_primitives::{AEAD_TAG, CBC_BLOCK, CtrStream, Hasher, RsaPadding};
use zeroize::Zeroizing;

use super::mechanism::Use;
use super::object::{Object, ObjectId};
use super::{Error, Hash, Iv, Mechanism, Result, Token};
use crate::pin::Pin;

/// Most data that an operation holds back until its end (authenticated decryption, RSA), in bytes.
pub const MAX_BUFFERED: usize = 16 << 20;

/// An encryption or decryption. It keeps its key, whatever becomes of the object meanwhile.
pub struct Cipher {
    token: Token,
    key: Arc<Object>,
    purpose: Use,
    mode: Mode,
    iv: Option<[u8; 12]>,
    /// Input that is not processed yet.
    pending: Zeroizing<Vec<u8>>,
    /// Whether the key still asks for the PIN. Private keys do all of their work at the end.
    wants_pin: bool,
}

enum Mode {
    Ecb,
    Cbc { iv: [u8; 16], padded: bool },
    Ctr(CtrStream),
    Gcm { aad: Vec<u8> },
    GcmSiv { aad: Vec<u8> },
    Rsa(Mechanism),
}

impl Token {
    /// Begins an encryption.
    ///
    /// # Errors
    /// The mechanism or its parameters do not fit, or the key may not encrypt.
    pub fn encrypt(&self, mechanism: &Mechanism, key: ObjectId) -> Result<Cipher> {
        Cipher::new(self, mechanism, key, Use::Encrypt)
    }

    /// Begins a decryption.
    ///
    /// # Errors
    /// The mechanism or its parameters do not fit, or the key may not decrypt.
    pub fn decrypt(&self, mechanism: &Mechanism, key: ObjectId) -> Result<Cipher> {
        Cipher::new(self, mechanism, key, Use::Decrypt)
    }

    /// Hashes the bytes of a secret key into `digester`.
    ///
    /// # Errors
    /// No secret key, or one that is sensitive or not extractable.
    pub fn digest_key(&self, digester: &mut Digester, key: ObjectId) -> Result<()> {
        let object = self.object(key)?;
        self.require_user("use keys")?;
        if !object.shows_secret() {
            return Err(Error::AttributeSensitive(super::AttributeType::Value));
        }
        digester.0.update(object.ready(self.wrapper())?.secret()?.bytes.as_slice());
        Ok(())
    }
}

impl Cipher {
    fn new(token: &Token, mechanism: &Mechanism, key: ObjectId, purpose: Use) -> Result<Self> {
        let key = token.key_for(key, mechanism, purpose)?;
        Self::with_key(token, mechanism, key, purpose)
    }

    /// As `new` for a key whose use was permitted already.
    pub(super) fn with_key(
        token: &Token,
        mechanism: &Mechanism,
        key: Arc<Object>,
        purpose: Use,
    ) -> Result<Self> {
        let ready = key.ready(token.wrapper())?;
        let encrypting = matches!(purpose, Use::Encrypt | Use::Wrap);
        let mut made = None;
        let mut nonce = |iv: &Iv| match (iv, encrypting) {
            (Iv::Generate, true) => {
                let mut fresh = [0; 12];
                secret_mem::random(&mut fresh)?;
                made = Some(fresh);
                Ok(())
            }
            (Iv::Given(given), false) => {
                made = Some(*given);
                Ok(())
            }
            (Iv::Given(_), true) => Err(Error::MechanismParamInvalid("nonces are made by the HSM")),
            (Iv::Generate, false) => Err(Error::MechanismParamInvalid("decryption needs the nonce")),
        };
        let aes = || match key.key_type {
            Some(super::KeyType::Aes) => ready.secret()?.aes(),
            _ => Err(Error::KeyTypeInconsistent),
        };
        let mode = match mechanism {
            Mechanism::AesEcb => aes().map(|_| Mode::Ecb)?,
            Mechanism::AesCbc { iv } => aes().map(|_| Mode::Cbc { iv: *iv, padded: false })?,
            Mechanism::AesCbcPad { iv } => aes().map(|_| Mode::Cbc { iv: *iv, padded: true })?,
            Mechanism::AesCtr { counter, bits } => {
                aes()?;
                let stream = CtrStream::new(*counter, *bits);
                Mode::Ctr(stream.map_err(|_| Error::MechanismParamInvalid("counters have 1 to 128 bits"))?)
            }
            Mechanism::AesGcm { iv, aad } => {
                aes()?;
                nonce(iv)?;
                Mode::Gcm { aad: aad.clone() }
            }
            Mechanism::AesGcmSiv { iv, aad } => {
                aes()?;
                if ready.secret()?.bytes.len() == 24 {
                    return Err(Error::KeySizeRange);
                }
                nonce(iv)?;
                Mode::GcmSiv { aad: aad.clone() }
            }
            Mechanism::RsaPkcs | Mechanism::RsaRaw | Mechanism::RsaOaep { .. } => {
                if key.key_type != Some(super::KeyType::Rsa) {
                    return Err(Error::KeyTypeInconsistent);
                }
                if encrypting { ready.public().map(drop) } else { ready.private().map(drop) }?;
                Mode::Rsa(mechanism.clone())
            }
            _ => return Err(Error::MechanismInvalid),
        };
        let wants_pin = key.flag(super::AttributeType::AlwaysAuthenticate);
        Ok(Self {
            token: token.clone(),
            key,
            purpose,
            mode,
            iv: made,
            pending: Zeroizing::default(),
            wants_pin,
        })
    }

    /// Whether the key asks for the PIN before it decrypts (`CKA_ALWAYS_AUTHENTICATE`).
    pub fn wants_pin(&self) -> bool {
        self.wants_pin
    }

    /// Gives it the PIN. A wrong one counts as in a login.
    ///
    /// # Errors
    /// The PIN is wrong or locked.
    pub fn give_pin(&mut self, pin: &Pin) -> Result<()> {
        self.token.check_pin(pin)?;
        self.wants_pin = false;
        Ok(())
    }

    /// The nonce of authenticated encryption: the one the engine made, which decryption needs.
    pub fn iv(&self) -> Option<&[u8]> {
        self.iv.as_ref().map(|iv| &iv[..])
    }

    /// Length of the output if `input` more bytes are processed and the operation ends, in bytes; at most that for what is padded or
    /// RSA.
    pub fn output_len(&self, input: usize) -> usize {
        let total = self.pending.len() + input;
        match (&self.mode, self.encrypting()) {
            (Mode::Ecb | Mode::Ctr(_) | Mode::Cbc { padded: false, .. }, _) => total,
            (Mode::Cbc { .. }, true) => (total / CBC_BLOCK + 1) * CBC_BLOCK,
            (Mode::Cbc { .. }, false) => total,
            (Mode::Gcm { .. } | Mode::GcmSiv { .. }, true) => total + AEAD_TAG,
            (Mode::Gcm { .. } | Mode::GcmSiv { .. }, false) => total.saturating_sub(AEAD_TAG),
            (Mode::Rsa(_), _) => self.rsa_len(),
        }
    }

    /// Length of the output of [`update`](Self::update) for `input` more bytes.
    pub fn update_len(&self, input: usize) -> usize {
        let total = self.pending.len() + input;
        match &self.mode {
            Mode::Ctr(_) => input,
            Mode::Ecb | Mode::Cbc { .. } => self.whole(total),
            Mode::Gcm { .. } | Mode::GcmSiv { .. } | Mode::Rsa(_) => 0,
        }
    }

    /// Processes more input; the output that is ready. Authenticated modes and RSA give everything at the end: nothing is shown that was
    /// not checked.
    ///
    /// # Errors
    /// More than [`MAX_BUFFERED`] held back; a counter that would come round.
    pub fn update(&mut self, input: &[u8]) -> Result<Vec<u8>> {
        let n = self.update_len(input.len());
        if let Mode::Ctr(stream) = &mut self.mode {
            let mut out = input.to_vec();
            let aes = self.key.ready(self.token.wrapper())?.secret()?.aes()?;
            stream.apply(aes, &mut out)?;
            return Ok(out);
        }
        if n == 0 && self.pending.len() + input.len() > MAX_BUFFERED {
            return Err(Error::DataLenRange);
        }
        self.pending.extend_from_slice(input);
        if n == 0 {
            return Ok(Vec::new());
        }
        let mut out: Vec<u8> = self.pending[..n].to_vec();
        let rest = Zeroizing::new(self.pending[n..].to_vec());
        self.pending = rest;
        self.blocks(&mut out)?;
        Ok(out)
    }

    /// Ends the operation; the output that was held back.
    ///
    /// # Errors
    /// [`Error::DataLenRange`], [`Error::EncryptedDataLenRange`], [`Error::EncryptedDataInvalid`], [`Error::PinNeeded`].
    pub fn finish(mut self) -> Result<Vec<u8>> {
        if self.wants_pin {
            return Err(Error::PinNeeded);
        }
        let result = self.end();
        self.token.0.usage.count(self.purpose, result.is_ok());
        result
    }

    fn encrypting(&self) -> bool {
        matches!(self.purpose, Use::Encrypt | Use::Wrap)
    }

    fn len_error(&self) -> Error {
        if self.encrypting() { Error::DataLenRange } else { Error::EncryptedDataLenRange }
    }

    /// How much of `total` bytes can be processed now: whole blocks, of which decryption with padding keeps the last.
    fn whole(&self, total: usize) -> usize {
        let keep = matches!(self.mode, Mode::Cbc { padded: true, .. }) && !self.encrypting();
        let blocks = total / CBC_BLOCK - usize::from(keep && total > 0 && total.is_multiple_of(CBC_BLOCK));
        blocks * CBC_BLOCK
    }

    fn rsa_len(&self) -> usize {
        let ready = self.key.ready(self.token.wrapper());
        let bits = ready.ok().map(|r| match r {
            super::object::Ready::Private(key) => key.bits(),
            super::object::Ready::Public(key) => key.bits(),
            super::object::Ready::Secret(_) => 0,
        });
        bits.unwrap_or(0).div_ceil(8)
    }

    fn blocks(&mut self, data: &mut [u8]) -> Result<()> {
        let encrypting = self.encrypting();
        let aes = self.key.ready(self.token.wrapper())?.secret()?.aes()?;
        match &mut self.mode {
            Mode::Ecb if encrypting => aes.ecb_encrypt(data)?,
            Mode::Ecb => aes.ecb_decrypt(data)?,
            Mode::Cbc { iv, .. } if encrypting => aes.cbc_encrypt(iv, data)?,
            Mode::Cbc { iv, .. } => aes.cbc_decrypt(iv, data)?,
            Mode::Ctr(_) | Mode::Gcm { .. } | Mode::GcmSiv { .. } | Mode::Rsa(_) => {}
        }
        Ok(())
    }

    fn end(&mut self) -> Result<Vec<u8>> {
        match &self.mode {
            Mode::Ctr(_) => Ok(Vec::new()),
            Mode::Ecb | Mode::Cbc { padded: false, .. } => {
                if self.pending.is_empty() {
                    Ok(Vec::new())
                } else {
                    Err(self.len_error())
                }
            }
            Mode::Cbc { .. } => self.end_padded(),
            Mode::Gcm { .. } | Mode::GcmSiv { .. } => self.end_aead(),
            Mode::Rsa(_) => self.end_rsa(),
        }
    }

    fn end_padded(&mut self) -> Result<Vec<u8>> {
        let mut last = std::mem::take(&mut *self.pending);
        if self.encrypting() {
            let pad = CBC_BLOCK - last.len() % CBC_BLOCK;
            last.resize(last.len() + pad, pad as u8);
            self.blocks(&mut last)?;
            return Ok(last);
        }
        if last.len() != CBC_BLOCK {
            return Err(Error::EncryptedDataLenRange);
        }
        self.blocks(&mut last)?;
        // Every byte is looked at, whatever the padding says.
        let pad = last[CBC_BLOCK - 1];
        let mut bad = u8::from(pad == 0) | u8::from(usize::from(pad) > CBC_BLOCK);
        for (i, byte) in last.iter().rev().enumerate() {
            bad |= u8::from(i < usize::from(pad)) & u8::from(*byte != pad);
        }
        if bad != 0 {
            return Err(Error::EncryptedDataInvalid);
        }
        last.truncate(CBC_BLOCK - usize::from(pad));
        Ok(last)
    }

    fn end_aead(&mut self) -> Result<Vec<u8>> {
        let mut data = std::mem::take(&mut *self.pending);
        let nonce = self.iv.ok_or(Error::MechanismParamInvalid("there is no nonce"))?;
        let key = self.key.ready(self.token.wrapper())?.secret()?;
        if self.encrypting() {
            let tag = match &self.mode {
                Mode::Gcm { aad } => key.gcm()?.seal(&nonce, aad, &mut data)?,
                Mode::GcmSiv { aad } => key.gcm_siv()?.seal(&nonce, aad, &mut data)?,
                _ => return Err(Error::MechanismInvalid),
            };
            data.extend_from_slice(&tag);
            return Ok(data);
        }
        let n = data.len().checked_sub(AEAD_TAG).ok_or(Error::EncryptedDataLenRange)?;
        let (text, tag) = data.split_at_mut(n);
        let tag: [u8; AEAD_TAG] = (&*tag).try_into().map_err(|_| Error::EncryptedDataLenRange)?;
        let opened = match &self.mode {
            Mode::Gcm { aad } => key.gcm()?.open(&nonce, aad, text, &tag),
            Mode::GcmSiv { aad } => key.gcm_siv()?.open(&nonce, aad, text, &tag),
            _ => return Err(Error::MechanismInvalid),
        };
        opened.map_err(|_| Error::EncryptedDataInvalid)?;
        data.truncate(n);
        Ok(data)
    }

    fn end_rsa(&mut self) -> Result<Vec<u8>> {
        let Mode::Rsa(mechanism) = &self.mode else { return Err(Error::MechanismInvalid) };
        let padding = rsa_padding(mechanism)?;
        let ready = self.key.ready(self.token.wrapper())?;
        if self.encrypting() {
            let key = ready.public()?;
            // PKCS#11: a shorter number gets zeros in front.
            let mut input = std::mem::take(&mut *self.pending);
            let n = key.bits().div_ceil(8);
            if padding == RsaPadding::Raw && input.len() < n {
                input = [vec![0; n - input.len()], input].concat();
            }
            return key.rsa_encrypt(&padding, &input).map_err(|e| match e {
                hsm_primitives::Error::BadLength => Error::DataLenRange,
                hsm_primitives::Error::Failed => Error::DataInvalid,
                other => other.into(),
            });
        }
        let opened = ready.private()?.rsa_decrypt(&padding, &self.pending).map_err(|e| match e {
            hsm_primitives::Error::BadLength => Error::EncryptedDataLenRange,
            _ => Error::EncryptedDataInvalid,
        })?;
        Ok(opened.as_slice().to_vec())
    }
}

/// Padding of an RSA mechanism that encrypts.
pub(super) fn rsa_padding(mechanism: &Mechanism) -> Result<RsaPadding<'_>> {
    match mechanism {
        Mechanism::RsaPkcs => Ok(RsaPadding::Pkcs1),
        Mechanism::RsaRaw => Ok(RsaPadding::Raw),
        Mechanism::RsaOaep { hash, mgf, label } | Mechanism::RsaAesKeyWrap { hash, mgf, label, .. } => {
            Ok(RsaPadding::Oaep { hash: *hash, mgf: *mgf, label })
        }
        _ => Err(Error::MechanismInvalid),
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher")
            .field("purpose", &self.purpose)
            .field("key", &self.key.id)
            .finish_non_exhaustive()
    }
}

/// Hashing. Needs neither key nor login; SHA-1 too, which is no secret and protects nothing here.
#[derive(Debug, Clone)]
pub struct Digester(Hasher);

impl Digester {
    /// Begins.
    pub fn new(hash: Hash) -> Self {
        Self(Hasher::new(hash))
    }

    /// Takes more.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest.
    pub fn finish(self) -> Vec<u8> {
        self.0.finish()
    }
}
