//! AES-KW (RFC 3394) of 32 bytes in the three ways that tokens offer. The wrapped bytes are the same in each.

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::slot::Slot;
use keyring::pkcs11::wire::Failure;
use secret_mem::SecretBytes;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroize as _;

use crate::refusal::{Refusal, Result};

/// RFC 3394 section 2.2.3.1.
const INITIAL_VALUE: [u8; 8] = [0xA6; 8];
/// 64-bit halves of a data key.
const N: usize = 4;

/// How the token wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Encrypt,
    Wrap,
    Ecb,
}

impl Method {
    /// The one that was asked for (`keyring::pkcs11::WrapMethod`), or the first that the token has.
    pub(crate) fn choose(library: &Pkcs11, slot: Slot, wanted: u8) -> Result<Self> {
        let all = [Self::Encrypt, Self::Wrap, Self::Ecb];
        let offered = |method: &Self| {
            let kind = match method {
                Self::Ecb => MechanismType::AES_ECB,
                Self::Encrypt | Self::Wrap => MechanismType::AES_KEY_WRAP,
            };
            // Tokens say that they do not have a mechanism by an error.
            library.get_mechanism_info(slot, kind).is_ok_and(|info| match method {
                Self::Wrap => info.wrap() && info.unwrap(),
                Self::Encrypt | Self::Ecb => info.encrypt() && info.decrypt(),
            })
        };
        let found = match wanted {
            0 => all.into_iter().find(offered),
            number => all.into_iter().find(|method| *method as u8 + 1 == number).filter(offered),
        };
        found.ok_or_else(|| {
            let text = "the token does not offer AES key wrapping as the URI asks for it (x-wrap): it needs CKM_AES_KEY_WRAP, or CKM_AES_ECB for x-wrap=ecb";
            Refusal::new(Failure::Setting, text)
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "CKM_AES_KEY_WRAP by C_Encrypt",
            Self::Wrap => "CKM_AES_KEY_WRAP by C_WrapKey",
            Self::Ecb => "RFC 3394 over CKM_AES_ECB",
        }
    }

    /// What a master key may be used for: one pair only. With two, whoever has the PIN could unwrap by decrypting.
    pub(crate) fn rights(self) -> [Attribute; 4] {
        let wraps = self == Self::Wrap;
        [
            Attribute::Wrap(wraps),
            Attribute::Unwrap(wraps),
            Attribute::Encrypt(!wraps),
            Attribute::Decrypt(!wraps),
        ]
    }

    pub(crate) fn wrap(
        self,
        session: &Session,
        key: ObjectHandle,
        dek: &SecretBytes<32>,
    ) -> Result<[u8; 40]> {
        let wrapped = match self {
            Self::Encrypt => session.encrypt(&Mechanism::AesKeyWrap, key, dek.expose())?,
            Self::Wrap => {
                let mut template = session_key();
                template.push(Attribute::Value(dek.expose().to_vec()));
                let object = session.create_object(&template);
                wipe(&mut template);
                let object = object?;
                let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, key, object);
                session.destroy_object(object)?;
                wrapped?
            }
            Self::Ecb => {
                return wrap_by_blocks(dek, |block| ecb(session.encrypt(&Mechanism::AesEcb, key, block)?));
            }
        };
        let text = "the token's AES key wrap did not make 40 bytes of 32";
        <[u8; 40]>::try_from(wrapped).map_err(|_| Refusal::new(Failure::Setting, text))
    }

    /// The data key; `None` if the integrity check failed.
    pub(crate) fn unwrap(
        self,
        session: &Session,
        key: ObjectHandle,
        wrapped: &[u8; 40],
    ) -> Result<Option<SecretBytes<32>>> {
        match self {
            Self::Encrypt => match session.decrypt(&Mechanism::AesKeyWrap, key, wrapped) {
                Ok(bytes) => secret(bytes).map(Some),
                Err(error) => self.failed(session, key, error),
            },
            Self::Wrap => match session.unwrap_key(&Mechanism::AesKeyWrap, key, wrapped, &session_key()) {
                Ok(object) => {
                    let value = session.get_attributes(object, &[AttributeType::Value]);
                    session.destroy_object(object)?;
                    match value?.pop() {
                        Some(Attribute::Value(bytes)) => secret(bytes).map(Some),
                        _ => {
                            let text =
                                "the token unwraps a data key but does not give it out; try x-wrap=ecb";
                            Err(Refusal::new(Failure::Setting, text))
                        }
                    }
                }
                Err(error) => self.failed(session, key, error),
            },
            Self::Ecb => {
                unwrap_by_blocks(wrapped, |block| ecb(session.decrypt(&Mechanism::AesEcb, key, block)?))
            }
        }
    }

    /// Wraps and unwraps a random key.
    pub(crate) fn prove(self, session: &Session, key: ObjectHandle) -> Result<()> {
        let random = SecretBytes::random().map_err(|error| Refusal::new(Failure::Away, error.to_string()))?;
        let wrapped = self.wrap(session, key, &random)?;
        match self.unwrap_only(session, key, &wrapped)? {
            Some(same) if same.ct_eq(&random) => Ok(()),
            _ => Err(Refusal::new(Failure::Away, "the token does not unwrap what it has just wrapped")),
        }
    }

    /// [`Self::unwrap`] where every error counts as one.
    fn unwrap_only(
        self,
        session: &Session,
        key: ObjectHandle,
        wrapped: &[u8; 40],
    ) -> Result<Option<SecretBytes<32>>> {
        match self {
            Self::Ecb => self.unwrap(session, key, wrapped),
            Self::Encrypt => Ok(Some(secret(session.decrypt(&Mechanism::AesKeyWrap, key, wrapped)?)?)),
            Self::Wrap => {
                let object = session.unwrap_key(&Mechanism::AesKeyWrap, key, wrapped, &session_key())?;
                let value = session.get_attributes(object, &[AttributeType::Value]);
                session.destroy_object(object)?;
                match value?.pop() {
                    Some(Attribute::Value(bytes)) => secret(bytes).map(Some),
                    _ => Ok(None),
                }
            }
        }
    }

    /// A failed integrity check, or a token that fails: several tokens report both by the same code.
    fn failed(self, session: &Session, key: ObjectHandle, error: Error) -> Result<Option<SecretBytes<32>>> {
        use RvError as R;
        let Error::Pkcs11(code, _) = &error else { return Err(error.into()) };
        match code {
            R::WrappedKeyInvalid | R::EncryptedDataInvalid => Ok(None),
            // A token that wraps and unwraps something else with this key is well.
            R::GeneralError | R::FunctionFailed | R::WrappedKeyLenRange | R::EncryptedDataLenRange
                if self.prove(session, key).is_ok() =>
            {
                Ok(None)
            }
            _ => Err(error.into()),
        }
    }
}

/// A data key while it is an object: gone with the session, readable by this process only.
fn session_key() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn wipe(template: &mut [Attribute]) {
    for attribute in template {
        if let Attribute::Value(bytes) = attribute {
            bytes.zeroize();
        }
    }
}

fn secret(mut bytes: Vec<u8>) -> Result<SecretBytes<32>> {
    let text = "the token unwraps to something else than 32 bytes";
    let made = SecretBytes::fill_with(|out: &mut [u8; 32]| {
        if bytes.len() != out.len() {
            return Err(Refusal::new(Failure::Wrong, text));
        }
        out.copy_from_slice(&bytes);
        Ok(())
    });
    bytes.zeroize();
    made
}

fn ecb(bytes: Vec<u8>) -> Result<[u8; 16]> {
    let text = "the token's AES-ECB does not make 16 bytes of 16";
    <[u8; 16]>::try_from(bytes).map_err(|_| Refusal::new(Failure::Setting, text))
}

/// RFC 3394 section 2.2.1 (index based), with the block cipher on the token.
fn wrap_by_blocks(
    dek: &SecretBytes<32>,
    mut encrypt: impl FnMut(&[u8; 16]) -> Result<[u8; 16]>,
) -> Result<[u8; 40]> {
    let mut out = [0; 40];
    out[..8].copy_from_slice(&INITIAL_VALUE);
    out[8..].copy_from_slice(dek.expose());
    let mut block = [0; 16];
    for t in 1..=6 * N {
        let half = 8 * ((t - 1) % N + 1);
        block[..8].copy_from_slice(&out[..8]);
        block[8..].copy_from_slice(&out[half..half + 8]);
        let made = encrypt(&block);
        let mut made = made.inspect_err(|_| out.zeroize())?;
        // At most 24: the counter's last byte.
        made[7] ^= t as u8;
        out[..8].copy_from_slice(&made[..8]);
        out[half..half + 8].copy_from_slice(&made[8..]);
    }
    block.zeroize();
    Ok(out)
}

/// RFC 3394 section 2.2.2 (index based).
fn unwrap_by_blocks(
    wrapped: &[u8; 40],
    mut decrypt: impl FnMut(&[u8; 16]) -> Result<[u8; 16]>,
) -> Result<Option<SecretBytes<32>>> {
    let mut state = *wrapped;
    let mut block = [0; 16];
    for t in (1..=6 * N).rev() {
        let half = 8 * ((t - 1) % N + 1);
        block[..8].copy_from_slice(&state[..8]);
        block[7] ^= t as u8;
        block[8..].copy_from_slice(&state[half..half + 8]);
        let made = decrypt(&block);
        let made = made.inspect_err(|_| state.zeroize())?;
        state[..8].copy_from_slice(&made[..8]);
        state[half..half + 8].copy_from_slice(&made[8..]);
    }
    block.zeroize();
    let right: bool = state[..8].ct_eq(&INITIAL_VALUE).into();
    let dek = SecretBytes::fill_with(|out: &mut [u8; 32]| -> Result<()> {
        out.copy_from_slice(&state[8..]);
        Ok(())
    });
    state.zeroize();
    dek.map(|dek| right.then_some(dek))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes::Aes256;
    use aes::cipher::{Block, BlockCipherDecrypt as _, BlockCipherEncrypt as _, KeyInit as _};
    use aes_kw::KwAes256;

    #[test]
    fn block_by_block_is_what_the_library_does() {
        for seed in 0..50u8 {
            let key = [seed; 32];
            let dek = SecretBytes::<32>::random().unwrap();
            let cipher = Aes256::new(&key.into());
            let encrypt = |block: &[u8; 16]| {
                let mut block = Block::<Aes256>::from(*block);
                cipher.encrypt_block(&mut block);
                Ok(block.into())
            };
            let decrypt = |block: &[u8; 16]| {
                let mut block = Block::<Aes256>::from(*block);
                cipher.decrypt_block(&mut block);
                Ok(block.into())
            };
            let mut expected = [0; 40];
            KwAes256::new(&key.into()).wrap_key(dek.expose(), &mut expected).unwrap();
            let mut wrapped = wrap_by_blocks(&dek, encrypt).unwrap();
            assert_eq!(wrapped, expected);
            assert!(unwrap_by_blocks(&wrapped, decrypt).unwrap().unwrap().ct_eq(&dek));
            wrapped[usize::from(seed) % 40] ^= 1;
            assert!(unwrap_by_blocks(&wrapped, decrypt).unwrap().is_none());
        }
    }
}
