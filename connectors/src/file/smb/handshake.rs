//! The way from a socket to a share: dialect, log-in by NTLMv2, keys, share.
//!
//! A session without a key of its own, as guests and anonymous users get, is refused, so that every message after the
//! log-in is signed, both ways. SMB 3.1.1 binds the keys to all that was said before; earlier dialects do not, so there
//! somebody in between could have talked the two down to one of them, but not read or changed what follows the log-in.

use super::{
    error::from_status,
    protection::Protection,
    wire::{Reply, Wire},
};
use crate::file::backend::{FsError, Problem};
use aws_lc_rs::rand;
use smb2::{
    auth::{NtlmAuthenticator, NtlmCredentials},
    client::Cipher,
    crypto::kdf::PreauthHasher,
    msg::{
        negotiate::{
            CIPHER_AES_128_CCM, CIPHER_AES_128_GCM, CIPHER_AES_256_CCM, CIPHER_AES_256_GCM,
            HASH_ALGORITHM_SHA512, NegotiateContext, NegotiateRequest, NegotiateResponse, SIGNING_AES_CMAC,
            SIGNING_AES_GMAC, SIGNING_HMAC_SHA256,
        },
        session_setup::{SessionSetupRequest, SessionSetupRequestFlags, SessionSetupResponse},
        tree_connect::{ShareType, TreeConnectRequest, TreeConnectRequestFlags, TreeConnectResponse},
    },
    pack::{Guid, Pack},
    types::{
        Command, Dialect, TreeId,
        flags::{Capabilities, SecurityMode, ShareFlags},
        status::NtStatus,
    },
};

/// What the server must take in one message at least.
const LEAST: usize = 4096;
/// More than this is never asked for or sent in one message.
const MOST: usize = 8 * 1024 * 1024;

/// What both sides agreed on.
pub(super) struct Agreed {
    pub(super) dialect: Dialect,
    gmac: bool,
    cipher: Option<Cipher>,
    exchanged: PreauthHasher,
    /// The largest content of a write, a read and anything else.
    pub(super) max_write: usize,
    pub(super) max_read: usize,
    pub(super) max_transact: usize,
}

/// Why there is no session.
pub(super) enum NoSession {
    /// The server refused the account.
    Refused(NtStatus),
    /// The server let the account in as somebody whose messages nobody can sign.
    Guest,
    /// Encryption is demanded, and the server has agreed on no cipher.
    NoCipher,
    /// What the url names is no share with files.
    NotAShare,
    Broken(FsError),
}

impl From<FsError> for NoSession {
    fn from(error: FsError) -> Self {
        Self::Broken(error)
    }
}

fn nonsense(what: &str) -> FsError {
    FsError::new(Problem::Protocol, what)
}

/// One request and its answer, both of which count for the keys.
fn exchange(
    wire: &mut Wire,
    exchanged: &mut PreauthHasher,
    command: Command,
    body: &dyn Pack,
) -> Result<Reply, FsError> {
    let reply = wire.ask(command, body)?;
    exchanged.update(wire.sent());
    if reply.header.command != command {
        return Err(nonsense("an answer to another question"));
    }
    Ok(reply)
}

/// Agrees on dialect, signatures and a cipher.
pub(super) fn negotiate(wire: &mut Wire) -> Result<Agreed, FsError> {
    let mut random = [0; 48];
    rand::fill(&mut random).map_err(|_| FsError::new(Problem::Other, "no random numbers"))?;
    let (salt, guid) = random.split_at(32);
    let mut unique = [0; 8];
    unique.copy_from_slice(guid.get(..8).unwrap_or_default());
    let request = NegotiateRequest {
        security_mode: signing(),
        capabilities: Capabilities::new(Capabilities::LARGE_MTU | Capabilities::ENCRYPTION),
        client_guid: Guid {
            data4: unique,
            data1: u32::from_le_bytes([unique[0], unique[1], unique[2], unique[3]]),
            ..Guid::default()
        },
        dialects: Dialect::ALL.to_vec(),
        negotiate_contexts: vec![
            NegotiateContext::PreauthIntegrity {
                hash_algorithms: vec![HASH_ALGORITHM_SHA512],
                salt: salt.to_vec(),
            },
            NegotiateContext::Encryption {
                ciphers: vec![CIPHER_AES_128_GCM, CIPHER_AES_256_GCM, CIPHER_AES_128_CCM, CIPHER_AES_256_CCM],
            },
            NegotiateContext::Signing {
                algorithms: vec![SIGNING_AES_GMAC, SIGNING_AES_CMAC, SIGNING_HMAC_SHA256],
            },
        ],
    };
    let mut exchanged = PreauthHasher::new();
    let reply = exchange(wire, &mut exchanged, Command::Negotiate, &request)?;
    exchanged.update(reply.message());
    if reply.status != NtStatus::SUCCESS {
        return Err(from_status("agreeing on a dialect", reply.status));
    }
    let answer: NegotiateResponse = reply.read()?;
    let size = |size: u32| (size as usize).min(MOST);
    let (max_write, max_read) = (size(answer.max_write_size), size(answer.max_read_size));
    let max_transact = size(answer.max_transact_size);
    if max_write.min(max_read).min(max_transact) < LEAST {
        return Err(nonsense("the server takes messages of a few bytes only"));
    }
    let mut agreed = Agreed {
        dialect: answer.dialect_revision,
        gmac: false,
        cipher: None,
        exchanged,
        max_write,
        max_read,
        max_transact,
    };
    if matches!(agreed.dialect, Dialect::Smb3_0 | Dialect::Smb3_0_2)
        && answer.capabilities.contains(Capabilities::ENCRYPTION)
    {
        agreed.cipher = Some(Cipher::Aes128Ccm);
    }
    for context in &answer.negotiate_contexts {
        match context {
            NegotiateContext::Signing { algorithms } => agreed.gmac = algorithms == &[SIGNING_AES_GMAC],
            NegotiateContext::Encryption { ciphers } => {
                agreed.cipher = match ciphers.first().copied() {
                    Some(CIPHER_AES_128_GCM) => Some(Cipher::Aes128Gcm),
                    Some(CIPHER_AES_256_GCM) => Some(Cipher::Aes256Gcm),
                    Some(CIPHER_AES_128_CCM) => Some(Cipher::Aes128Ccm),
                    Some(CIPHER_AES_256_CCM) => Some(Cipher::Aes256Ccm),
                    _ => None,
                };
            }
            _ => {}
        }
    }
    wire.set_sizes(answer.capabilities.contains(Capabilities::LARGE_MTU), max_read.max(max_transact));
    Ok(agreed)
}

fn signing() -> SecurityMode {
    SecurityMode::new(SecurityMode::SIGNING_ENABLED | SecurityMode::SIGNING_REQUIRED)
}

/// Logs in; from then on every message is signed, and encrypted if the server or the operator says so.
pub(super) fn log_in(
    wire: &mut Wire,
    agreed: &Agreed,
    credentials: NtlmCredentials,
    encrypt: bool,
) -> Result<(), NoSession> {
    let mut ntlm = NtlmAuthenticator::new(credentials);
    let mut exchanged = agreed.exchanged.clone();
    let first = setup(ntlm.negotiate());
    let reply = exchange(wire, &mut exchanged, Command::SessionSetup, &first)?;
    exchanged.update(reply.message());
    if reply.status != NtStatus::MORE_PROCESSING_REQUIRED {
        return Err(NoSession::Refused(reply.status));
    }
    wire.session = reply.header.session_id;
    let challenge: SessionSetupResponse = reply.read()?;
    let answer = ntlm
        .authenticate(&challenge.security_buffer)
        .map_err(|error| FsError::new(Problem::Protocol, error))?;
    let second = setup(answer);
    let reply = exchange(wire, &mut exchanged, Command::SessionSetup, &second)?;
    if reply.status != NtStatus::SUCCESS {
        return Err(NoSession::Refused(reply.status));
    }
    let granted: SessionSetupResponse = reply.read()?;
    let key = ntlm.session_key().ok_or_else(|| nonsense("the log-in gave no key"))?;
    if granted.session_flags.is_guest() || granted.session_flags.is_null() {
        return Err(NoSession::Guest);
    }
    let protection = Protection::new(agreed.dialect, agreed.gmac, agreed.cipher, key, &exchanged)?;
    // Only who knows the password can sign this one. Of the oldest dialects not all servers do, but then the next.
    let is_new = agreed.dialect >= Dialect::Smb3_0;
    if is_new || reply.header.flags.is_signed() {
        protection.verify(&mut reply.message().to_vec(), reply.header.message_id.0)?;
    }
    wire.protect(protection);
    if (encrypt || granted.session_flags.encrypt_data()) && !wire.encrypt() {
        return Err(NoSession::NoCipher);
    }
    Ok(())
}

fn setup(token: Vec<u8>) -> SessionSetupRequest {
    SessionSetupRequest {
        flags: SessionSetupRequestFlags(0),
        security_mode: signing(),
        capabilities: Capabilities::default(),
        channel: 0,
        previous_session_id: 0,
        security_buffer: token,
    }
}

/// Enters the share; messages are encrypted from then on if it demands that.
pub(super) fn enter(wire: &mut Wire, host: &str, share: &str) -> Result<(), NoSession> {
    let request = TreeConnectRequest {
        flags: TreeConnectRequestFlags::default(),
        path: format!("\\\\{host}\\{share}"),
    };
    let reply = wire.ask(Command::TreeConnect, &request)?;
    if reply.status != NtStatus::SUCCESS {
        return Err(NoSession::Refused(reply.status));
    }
    let entered: TreeConnectResponse = reply.read()?;
    wire.tree = reply.header.tree_id.unwrap_or_else(TreeId::default);
    if entered.share_type != ShareType::Disk {
        return Err(NoSession::NotAShare);
    }
    if entered.share_flags.contains(ShareFlags::ENCRYPT_DATA) && !wire.encrypt() {
        return Err(NoSession::NoCipher);
    }
    Ok(())
}
