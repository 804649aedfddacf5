//! GCM-SIV from the crate `aes-gcm-siv`, which picks the processor's instructions itself.

use aes_gcm_siv::aead::array::Array;
use aes_gcm_siv::aead::{AeadInOut, KeyInit};

use super::Message;

pub(super) struct GcmSiv(aes_gcm_siv::Aes256GcmSiv);

impl GcmSiv {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(aes_gcm_siv::Aes256GcmSiv::new(key.into()))
    }

    /// Encrypts `data` in place and returns the tag. The caller has checked the lengths.
    pub(super) fn seal(&self, nonce: &[u8; 12], aad: &[u8], data: &mut [u8]) -> [u8; 16] {
        let sealed = self.0.encrypt_inout_detached(&Array::from(*nonce), aad, data.into());
        sealed.expect("the only error is a length that the caller has ruled out").0
    }

    /// Seals messages one by one.
    pub(super) fn seal_batch(&self, messages: &mut [Message<'_>]) {
        for message in messages {
            message.tag = self.seal(message.nonce, message.aad, message.data);
        }
    }

    /// Decrypts `data` in place. False if the tag is wrong; then the data must be wiped.
    pub(super) fn open(&self, nonce: &[u8; 12], aad: &[u8], data: &mut [u8], tag: &[u8; 16]) -> bool {
        let (nonce, tag) = (Array::from(*nonce), Array::from(*tag));
        self.0.decrypt_inout_detached(&nonce, aad, data.into(), &tag).is_ok()
    }
}
