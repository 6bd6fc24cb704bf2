//! Signatures and encryption of messages, with the keys of one session.
//!
//! AES-GMAC, AES-GCM, AES-CMAC and HMAC are AWS-LC's, as everywhere in the agent. AES-CCM, which only servers older than
//! SMB 3.1.1 choose, is the message library's.

use crate::file::backend::{FsError, Problem};
use aws_lc_rs::{
    aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    cmac,
    constant_time::verify_slices_are_equal,
    hmac,
};
use smb2::{
    client::Cipher,
    crypto::{
        encryption::{decrypt_message, encrypt_message},
        kdf::{PreauthHasher, derive_session_keys},
    },
    msg::transform::{SMB2_TRANSFORM_HEADER_FLAG_ENCRYPTED, TransformHeader},
    pack::{Pack as _, WriteCursor},
    types::{Dialect, SessionId},
};
use zeroize::Zeroizing;

/// Where a message carries its signature.
const SIGNATURE: std::ops::Range<usize> = 48..64;
/// What of a transform header is authenticated: all behind its own signature.
const AUTHENTICATED: std::ops::Range<usize> = 20..52;

fn broken(what: &str) -> FsError {
    FsError::new(Problem::Lost, what)
}

/// How messages are signed.
enum Signer {
    Gmac(LessSafeKey),
    Cmac(cmac::Key),
    Hmac(Box<hmac::Key>),
}

impl Signer {
    /// The signature of a message whose signature field is zero.
    fn sign(&self, message: &[u8], id: u64, by_server: bool) -> Result<[u8; 16], FsError> {
        let mut signature = [0; 16];
        let full = match self {
            Self::Gmac(key) => {
                let mut nonce = [0; 12];
                let (counter, role) = nonce.split_at_mut(8);
                counter.copy_from_slice(&id.to_le_bytes());
                role.fill(0);
                if let Some(first) = role.first_mut() {
                    *first = u8::from(by_server);
                }
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(message), &mut []);
                tag.map_err(|_| broken("a message cannot be signed"))?.as_ref().to_vec()
            }
            Self::Cmac(key) => {
                let tag = cmac::sign(key, message).map_err(|_| broken("a message cannot be signed"))?;
                tag.as_ref().to_vec()
            }
            Self::Hmac(key) => hmac::sign(key, message).as_ref().to_vec(),
        };
        // An HMAC is cut to the length of the field.
        signature.copy_from_slice(full.get(..16).ok_or_else(|| broken("a signature is too short"))?);
        Ok(signature)
    }
}

/// How messages are encrypted.
enum Sealer {
    Gcm { ours: LessSafeKey, theirs: LessSafeKey },
    Ccm { cipher: Cipher, ours: Zeroizing<Vec<u8>>, theirs: Zeroizing<Vec<u8>> },
}

/// The keys of a session at work.
pub(super) struct Protection {
    signer: Signer,
    sealer: Option<Sealer>,
    /// Counts the messages that were encrypted: no number may come twice under one key.
    sealed: u64,
}

impl Protection {
    /// Derives the keys.
    pub(super) fn new(
        dialect: Dialect,
        gmac: bool,
        cipher: Option<Cipher>,
        session_key: &[u8],
        exchanged: &PreauthHasher,
    ) -> Result<Self, FsError> {
        let unfit = || broken("the session's keys cannot be used");
        let gcm = |algorithm, key: &[u8]| {
            UnboundKey::new(algorithm, key).map(LessSafeKey::new).map_err(|_| unfit())
        };
        let bound = (dialect == Dialect::Smb3_1_1).then(|| exchanged.value());
        let derived = |bits| derive_session_keys(session_key, dialect, bound, bits);
        if matches!(dialect, Dialect::Smb2_0_2 | Dialect::Smb2_1) {
            let signer = Signer::Hmac(Box::new(hmac::Key::new(hmac::HMAC_SHA256, session_key)));
            return Ok(Self { signer, sealer: None, sealed: 0 });
        }
        let signing_key = Zeroizing::new(derived(128).signing_key);
        let signer = match gmac {
            true => Signer::Gmac(gcm(&AES_128_GCM, &signing_key)?),
            false => Signer::Cmac(cmac::Key::new(cmac::AES_128, &signing_key).map_err(|_| unfit())?),
        };
        let sealer = cipher.map(|cipher| -> Result<Sealer, FsError> {
            let keys = match cipher {
                Cipher::Aes256Gcm | Cipher::Aes256Ccm => derived(256),
                Cipher::Aes128Gcm | Cipher::Aes128Ccm => derived(128),
            };
            let (ours, theirs) = (Zeroizing::new(keys.encryption_key), Zeroizing::new(keys.decryption_key));
            let algorithm = match cipher {
                Cipher::Aes128Gcm => &AES_128_GCM,
                Cipher::Aes256Gcm => &AES_256_GCM,
                Cipher::Aes128Ccm | Cipher::Aes256Ccm => return Ok(Sealer::Ccm { cipher, ours, theirs }),
            };
            Ok(Sealer::Gcm { ours: gcm(algorithm, &ours)?, theirs: gcm(algorithm, &theirs)? })
        });
        Ok(Self { signer, sealer: sealer.transpose()?, sealed: 0 })
    }

    /// Whether the server has agreed on a cipher.
    pub(super) fn can_encrypt(&self) -> bool {
        self.sealer.is_some()
    }

    /// Signs a message of ours.
    pub(super) fn sign(&self, message: &mut [u8], id: u64) -> Result<(), FsError> {
        let signature = self.signer.sign(message, id, false)?;
        message
            .get_mut(SIGNATURE)
            .ok_or_else(|| broken("a message is too short"))?
            .copy_from_slice(&signature);
        Ok(())
    }

    /// Checks the signature of a message of the server's, whatever its flags say.
    pub(super) fn verify(&self, message: &mut [u8], id: u64) -> Result<(), FsError> {
        let field = message.get_mut(SIGNATURE).ok_or_else(|| broken("a message is too short"))?;
        let mut signature = [0; 16];
        signature.copy_from_slice(field);
        field.fill(0);
        let expected = self.signer.sign(message, id, true)?;
        verify_slices_are_equal(&signature, &expected)
            .map_err(|_| broken("the server's message is not signed with the session's key"))
    }

    /// Encrypts what lies behind the room for a transform header, and fills that.
    pub(super) fn seal(&mut self, frame: &mut [u8], session: SessionId) -> Result<(), FsError> {
        let failed = || broken("a message cannot be encrypted");
        let (header, content) = frame.split_at_mut_checked(TransformHeader::SIZE).ok_or_else(failed)?;
        let mut nonce = [0; 16];
        nonce.get_mut(..8).ok_or_else(failed)?.copy_from_slice(&self.sealed.to_le_bytes());
        self.sealed = self.sealed.checked_add(1).ok_or_else(failed)?;
        match self.sealer.as_ref().ok_or_else(failed)? {
            Sealer::Gcm { ours, .. } => {
                let plain = TransformHeader {
                    signature: [0; 16],
                    nonce,
                    original_message_size: u32::try_from(content.len()).map_err(|_| failed())?,
                    flags: SMB2_TRANSFORM_HEADER_FLAG_ENCRYPTED,
                    session_id: session,
                };
                let mut cursor = WriteCursor::with_capacity(TransformHeader::SIZE);
                plain.pack(&mut cursor);
                header.copy_from_slice(cursor.as_bytes());
                let authenticated = Aad::from(header.get(AUTHENTICATED).ok_or_else(failed)?);
                let tag = ours.seal_in_place_separate_tag(gcm_nonce(&nonce)?, authenticated, content);
                let tag = tag.map_err(|_| failed())?;
                header.get_mut(4..20).ok_or_else(failed)?.copy_from_slice(tag.as_ref());
            }
            Sealer::Ccm { cipher, ours, .. } => {
                let sealed = encrypt_message(content, ours, *cipher, &nonce, session.0);
                let (sealed_header, sealed_content) = sealed.map_err(|_| failed())?;
                header.copy_from_slice(&sealed_header);
                content.copy_from_slice(&sealed_content);
            }
        }
        Ok(())
    }

    /// Decrypts what lies behind a transform header.
    pub(super) fn open(&self, frame: &mut [u8]) -> Result<(), FsError> {
        let failed = || broken("the server's message is not encrypted with the session's key");
        let (header, content) = frame.split_at_mut_checked(TransformHeader::SIZE).ok_or_else(failed)?;
        match self.sealer.as_ref().ok_or_else(failed)? {
            Sealer::Gcm { theirs, .. } => {
                let tag = header.get(4..20).ok_or_else(failed)?;
                let nonce = gcm_nonce(header.get(20..36).ok_or_else(failed)?)?;
                let authenticated = Aad::from(header.get(AUTHENTICATED).ok_or_else(failed)?);
                theirs
                    .open_in_place_separate_tag(nonce, authenticated, tag, content)
                    .map(drop)
                    .map_err(|_| failed())
            }
            Sealer::Ccm { cipher, theirs, .. } => {
                let opened = decrypt_message(header, content, theirs, *cipher).map_err(|_| failed())?;
                content.copy_from_slice(&opened);
                Ok(())
            }
        }
    }
}

fn gcm_nonce(field: &[u8]) -> Result<Nonce, FsError> {
    let bytes = field.get(..12).and_then(|bytes| <[u8; 12]>::try_from(bytes).ok());
    bytes.map(Nonce::assume_unique_for_key).ok_or_else(|| broken("a nonce is too short"))
}
