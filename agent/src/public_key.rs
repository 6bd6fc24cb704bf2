//! `public-key`: the agent's public key as PEM, which the operator may hand to whoever checks its receipts.

use crate::{exit::Stop, identity::key_path};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use passerelle_protocol::{SigningKey, VerifyingKey};
use std::{fs, path::Path};

/// `SubjectPublicKeyInfo` of an Ed25519 key up to the key itself (RFC 8410 §4).
const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The public key of the agent with this state folder.
///
/// # Errors
/// If it has no key yet, or it cannot be read.
pub fn read(state: &Path) -> Result<VerifyingKey, Stop> {
    let path = key_path(state);
    let failed = |e: &dyn std::fmt::Display| Stop::Failed(format!("{} cannot be read: {e}", path.display()));
    match fs::read(&path) {
        Ok(document) => Ok(SigningKey::from_pkcs8(&document).map_err(|e| failed(&e))?.public().clone()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Stop::Failed("this agent has no key yet: it makes one when it enrols".to_owned()))
        }
        Err(e) => Err(failed(&e)),
    }
}

/// A public key as PEM (`BEGIN PUBLIC KEY`).
pub fn pem(key: &VerifyingKey) -> String {
    let der = [&PREFIX[..], key.bytes()].concat();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_printed_as_it_is_read() {
        let state = tempfile::tempdir().unwrap();
        assert!(read(state.path()).unwrap_err().to_string().contains("no key yet"));
        let (key, document) = SigningKey::generate().unwrap();
        fs::write(key_path(state.path()), document).unwrap();
        let public = read(state.path()).unwrap();
        assert_eq!(&public, key.public());
        assert_eq!(crate::identity::public_key_from_pem(pem(&public).as_bytes()).unwrap(), public);
    }
}
