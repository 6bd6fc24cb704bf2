//! Cursors: opaque to the cloud, at most 4 KiB, and authenticated, so that a forged one is refused.
//!
//! A cursor is `base64url(tag ‖ length of the head ‖ head as JSON ‖ tail)`; the tag is the first half of an HMAC-SHA256 over
//! the rest.

use super::params::invalid;
use crate::Failure;
use aws_lc_rs::{constant_time, digest, hmac};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};

/// The longest cursor, in bytes of text.
pub(super) const MAX_CURSOR: usize = 4096;
/// What a head and a tail may take together.
pub(super) const MAX_CONTENT: usize = MAX_CURSOR / 4 * 3 - TAG - 2;
const TAG: usize = 16;

/// What stands for a longer text in a cursor: enough of its digest to tell it from others.
pub(super) fn digest_of(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// The key of a resource's cursors.
pub(super) struct CursorKey(hmac::Key);

impl CursorKey {
    /// Derived from a secret of the resource, its name and its address, so that every agent of the site that has the same
    /// resource takes the cursors of the others.
    pub(super) fn derive(secret: &str, resource: &str, url: &str) -> Self {
        let from = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let key = hmac::sign(&from, format!("passerelle crm cursor 1\n{resource}\n{url}").as_bytes());
        Self(hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()))
    }

    /// Makes a cursor.
    ///
    /// # Errors
    /// `target_protocol` (permanent) if it would be too long: what it holds is the target's.
    pub(super) fn seal(&self, head: &impl Serialize, tail: &[u8]) -> Result<String, Failure> {
        let broken = |cause: String| {
            let message =
                "the target's own cursor, link or id is too long to go on from in a cursor of 4 KiB";
            Failure::permanent(crate::Code::TargetProtocol, message).detail(cause)
        };
        let head = serde_json::to_vec(head).map_err(|e| broken(e.to_string()))?;
        if head.len() + tail.len() > MAX_CONTENT {
            return Err(broken(format!("{} + {} bytes", head.len(), tail.len())));
        }
        let length = u16::try_from(head.len()).map_err(|e| broken(e.to_string()))?;
        let content = [&length.to_be_bytes()[..], &head, tail].concat();
        let tag = hmac::sign(&self.0, &content);
        let tag = tag.as_ref().get(..TAG).unwrap_or_default();
        Ok(URL_SAFE_NO_PAD.encode([tag, &content].concat()))
    }

    /// Opens a cursor.
    ///
    /// # Errors
    /// `invalid_params` (permanent) if it is none of this resource, or was tampered with.
    pub(super) fn open<T: DeserializeOwned>(&self, cursor: &str) -> Result<(T, Vec<u8>), Failure> {
        self.try_open(cursor).ok_or_else(refused)
    }

    fn try_open<T: DeserializeOwned>(&self, cursor: &str) -> Option<(T, Vec<u8>)> {
        if cursor.len() > MAX_CURSOR {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (tag, content) = bytes.split_at_checked(TAG)?;
        let expected = hmac::sign(&self.0, content);
        constant_time::verify_slices_are_equal(tag, expected.as_ref().get(..TAG)?).ok()?;
        let (length, rest) = content.split_at_checked(2)?;
        let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
        let (head, tail) = rest.split_at_checked(length)?;
        Some((serde_json::from_slice(head).ok()?, tail.to_vec()))
    }
}

/// What a caller with a useless cursor is told.
pub(super) fn refused() -> Failure {
    invalid(
        "cursor: none of this resource and request, or made before its credentials changed; begin again without it",
    )
}

#[cfg(test)]
mod tests {
    use super::{CursorKey, MAX_CURSOR};
    use serde_json::{Value, json};

    #[test]
    fn only_an_unchanged_cursor_of_the_same_resource_opens() {
        let key = CursorKey::derive("secret", "crm", "https://crm.intra/");
        let head = json!({ "e": "contact" });
        let cursor = key.seal(&head, b"tail").unwrap();
        assert_eq!(key.open::<Value>(&cursor).unwrap(), (head.clone(), b"tail".to_vec()));
        for other in [
            CursorKey::derive("other", "crm", "https://crm.intra/"),
            CursorKey::derive("secret", "crm2", "https://crm.intra/"),
            CursorKey::derive("secret", "crm", "https://crm2.intra/"),
        ] {
            assert!(other.open::<Value>(&cursor).is_err());
        }
        for index in 0..cursor.len() {
            let mut forged = cursor.clone().into_bytes();
            forged[index] = if forged[index] == b'A' { b'Q' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            assert!(forged == cursor || key.open::<Value>(&forged).is_err(), "byte {index}");
        }
        for nonsense in ["", "x", "äöü", &"A".repeat(5000)] {
            assert!(key.open::<Value>(nonsense).is_err());
        }
        assert_eq!(key.seal(&head, &vec![0; 3100]).unwrap_err().code, crate::Code::TargetProtocol);
        assert!(key.seal(&json!({}), &vec![0; 3000]).unwrap().len() <= MAX_CURSOR);
    }
}
