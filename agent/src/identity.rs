//! Who the agent is: its Ed25519 key, which never leaves the state folder, what the hub said at enrolment, and the keys
//! of the hub that count since.
//!
//! `identity.json` names the file of the key, and is what counts: a key file is on disk before `identity.json` names it,
//! and is removed after it does so no more. What a crash leaves in between is a file without a name, which the next start
//! removes.
//!
//! | a change of the agent's own key, cut short after | the next start finds | and |
//! |---|---|---|
//! | the new key's file | the old key; a file without a name | removes the file |
//! | `next_key` names it | the old key, the next one | registers it at the hub, again or for the first time: both are taken |
//! | the hub has registered it | the same | the same |
//! | `key_file` names it | the new key | removes the old key's file |

use crate::{
    clock,
    exit::Stop,
    state::{self, StateDir},
    trust::HubTrust,
};
use jiff::Timestamp;
use passerelle_protocol::{
    AgentId, AgentToken, KeyId, Name, Sha256, SigningKey, VerifyingKey, http::EnrolResponse,
    limits::TOKEN_LIFE,
};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// The key's file, until the key changes.
const KEY_FILE: &str = "agent-key.pk8";
/// How the files of later keys begin, and how all of them end.
const KEY_PREFIX: &str = "agent-key-";
const KEY_SUFFIX: &str = ".pk8";
/// Where the key of a `re-enrol` waits for the hub's answer.
pub const PENDING_FILE: &str = "re-enrol-key.pk8";
const IDENTITY_FILE: &str = "identity.json";

/// What the hub said at enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The agent.
    pub agent: AgentId,
    /// Its tenant.
    pub tenant: Name,
    /// Its site.
    pub site: Name,
    /// `orchestrator` or `hub`.
    pub application: String,
    /// The `aud` of its tokens.
    pub audience: String,
    /// The hub it enrolled at.
    pub hub: String,
}

/// `identity.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    #[serde(flatten)]
    enrolled: Enrolled,
    #[serde(flatten)]
    trust: HubTrust,
    /// The file of the key.
    #[serde(default = "first_key_file")]
    key_file: String,
    /// Since when it is the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_since: Option<Timestamp>,
    /// The file of the key that is to follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_key: Option<String>,
    /// Whether the audit does not tell of it yet: it may have been made by a command.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    untold: bool,
}

fn first_key_file() -> String {
    KEY_FILE.to_owned()
}

/// What changes while the agent runs.
#[derive(Debug)]
struct Current {
    stored: Stored,
    key: Arc<SigningKey>,
    next: Option<Arc<SigningKey>>,
}

/// The enrolled agent.
#[derive(Debug)]
pub struct Identity {
    /// What the hub said.
    pub enrolled: Enrolled,
    current: RwLock<Current>,
}

impl Identity {
    /// Reads the identity; `None` if the agent is not enrolled yet.
    pub fn load(state: &StateDir) -> Result<Option<Self>, Stop> {
        let identity = Self::read_by(state.path(), |name| state.read(name))?;
        if let Some(identity) = &identity {
            sweep(state, &identity.read().stored);
        }
        Ok(identity)
    }

    /// The same; the files of the state folder are read by `read`.
    fn read_by(
        state: &Path,
        mut read: impl FnMut(&str) -> std::io::Result<Option<Vec<u8>>>,
    ) -> Result<Option<Self>, Stop> {
        let unreadable = |e: &dyn std::fmt::Display| {
            Stop::Configuration(format!(
                "{} cannot be read: {e}; restore it from a backup, or run `passerelle-agent re-enrol`",
                state.join(IDENTITY_FILE).display()
            ))
        };
        let mut before = None;
        loop {
            let Some(bytes) = read(IDENTITY_FILE).map_err(|e| unreadable(&e))? else { return Ok(None) };
            let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| unreadable(&e))?;
            let Some(key) = key_of(state, &stored.key_file, &mut read)? else {
                // The agent that runs there may have changed its key between the two looks.
                if before.as_ref() != Some(&bytes) {
                    before = Some(bytes);
                    continue;
                }
                return Err(Stop::Configuration(format!(
                    "{} is missing: the agent's identity is of no use without its key; restore it, or run \
                     `passerelle-agent re-enrol`",
                    state.join(&stored.key_file).display()
                )));
            };
            let next = match &stored.next_key {
                Some(file) => key_of(state, file, &mut read)?.map(Arc::new),
                None => None,
            };
            return Ok(Some(Self::of(stored, Arc::new(key), next)));
        }
    }

    fn of(stored: Stored, key: Arc<SigningKey>, next: Option<Arc<SigningKey>>) -> Self {
        let enrolled = stored.enrolled.clone();
        Self { enrolled, current: RwLock::new(Current { stored, key, next }) }
    }

    /// Writes what the hub at `hub` answered to the enrolment of the key in `key_file`.
    pub fn create(
        state: &StateDir,
        answer: EnrolResponse,
        hub: String,
        (key, key_file): (SigningKey, String),
    ) -> Result<Self, Stop> {
        let EnrolResponse { agent, tenant, site, application, audience, job_keys, .. } = answer;
        let enrolled = Enrolled { agent, tenant, site, application, audience, hub };
        let trust = HubTrust::new(job_keys);
        let stored =
            Stored { enrolled, trust, key_file, key_since: Some(clock::now()), next_key: None, untold: true };
        write(state, &stored)?;
        sweep(state, &stored);
        Ok(Self::of(stored, Arc::new(key), None))
    }

    fn read(&self) -> RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Current> {
        self.current.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that signs tokens and receipts.
    pub fn key(&self) -> Arc<SigningKey> {
        Arc::clone(&self.read().key)
    }

    /// All that is stored, without private keys.
    pub fn stored(&self) -> Stored {
        self.read().stored.clone()
    }

    /// Whether the audit does not tell of it yet.
    pub fn is_untold(&self) -> bool {
        self.read().stored.untold
    }

    /// The audit tells of it.
    pub fn told(&self, state: &StateDir) -> Result<(), Stop> {
        let mut current = self.change();
        let stored = Stored { untold: false, ..current.stored.clone() };
        write(state, &stored)?;
        current.stored = stored;
        Ok(())
    }

    /// Since when the key is the key; `None` for one of before this was noted.
    pub fn key_since(&self) -> Option<Timestamp> {
        self.read().stored.key_since
    }

    /// The hub's keys that verify now.
    pub fn hub_keys(&self) -> Vec<VerifyingKey> {
        self.read().stored.trust.keys(clock::unix_seconds())
    }

    /// The names of the hub's keys that the agent goes on from.
    pub fn hub_key_names(&self) -> Vec<KeyId> {
        self.read().stored.trust.names()
    }

    /// Follows the hub's statements about its keys. Those that are new count from here on, also if they cannot be stored:
    /// the hub tells them again at the next connection.
    pub fn follow(&self, state: &StateDir, statements: &[String]) -> Followed {
        let mut current = self.change();
        let mut followed = Followed::default();
        for statement in statements {
            let now = clock::unix_seconds();
            match current.stored.trust.follow(statement, &self.enrolled.audience, now) {
                Ok(new) => followed.taken.extend(new),
                Err(why) => followed.refused.push(why),
            }
        }
        if !followed.taken.is_empty()
            && let Err(error) = write(state, &current.stored)
        {
            followed.unstored = Some(error.to_string());
        }
        followed
    }

    /// The key that is to follow, made and stored if there is none yet.
    pub fn next_key(&self, state: &StateDir) -> Result<Arc<SigningKey>, Stop> {
        let mut current = self.change();
        if let Some(next) = &current.next {
            return Ok(Arc::clone(next));
        }
        let (key, document) = SigningKey::generate().map_err(|e| Stop::Bug(e.to_string()))?;
        let file = key_file(&key);
        store_key(state, &file, &document)?;
        let stored = Stored { next_key: Some(file), ..current.stored.clone() };
        write(state, &stored)?;
        let next = Arc::new(key);
        (current.stored, current.next) = (stored, Some(Arc::clone(&next)));
        Ok(next)
    }

    /// Whether a key is under way.
    pub fn has_next(&self) -> bool {
        self.read().next.is_some()
    }

    /// The hub has registered the next key: it is the key from here on.
    pub fn switch(&self, state: &StateDir) -> Result<(), Stop> {
        let mut current = self.change();
        let Some(next) = current.next.clone() else { return Ok(()) };
        let stored = Stored {
            key_file: key_file(&next),
            key_since: Some(clock::now()),
            next_key: None,
            ..current.stored.clone()
        };
        write(state, &stored)?;
        (current.stored, current.key, current.next) = (stored, next, None);
        sweep(state, &current.stored);
        Ok(())
    }

    /// The hub does not take the next key: another one will be made.
    pub fn drop_next(&self, state: &StateDir) -> Result<(), Stop> {
        let mut current = self.change();
        let stored = Stored { next_key: None, ..current.stored.clone() };
        write(state, &stored)?;
        (current.stored, current.next) = (stored, None);
        sweep(state, &current.stored);
        Ok(())
    }

    /// A fresh `Authorization` value for one request.
    pub fn bearer(&self) -> Result<String, Stop> {
        let now = clock::unix_seconds();
        let token = AgentToken {
            sub: self.enrolled.agent,
            aud: self.enrolled.audience.clone(),
            iat: now,
            exp: now + TOKEN_LIFE.as_secs().cast_signed(),
            jti: uuid::Uuid::now_v7().to_string(),
        };
        let token = self.key().sign(AgentToken::TYP, &token).map_err(|e| Stop::Bug(e.to_string()))?;
        Ok(format!("Bearer {token}"))
    }
}

/// What became of statements about the hub's keys.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Followed {
    /// The keys that are new.
    pub taken: Vec<KeyId>,
    /// Why others are not believed.
    pub refused: Vec<String>,
    /// Why the new ones could not be stored.
    pub unstored: Option<String>,
}

fn write(state: &StateDir, stored: &Stored) -> Result<(), Stop> {
    let bytes = serde_json::to_vec_pretty(stored).map_err(|e| Stop::Bug(e.to_string()))?;
    state.write(IDENTITY_FILE, &bytes).map_err(|e| Stop::Configuration(state::unwritable(state.path(), &e)))
}

/// The file of a key that is not the first.
pub fn key_file(key: &SigningKey) -> String {
    let name: String = key.public().id().0.chars().take(16).collect();
    format!("{KEY_PREFIX}{name}{KEY_SUFFIX}")
}

/// Stores a private key; it counts when `identity.json` names it.
pub fn store_key(state: &StateDir, file: &str, document: &[u8]) -> Result<(), Stop> {
    state.write(file, document).map_err(|e| Stop::Configuration(state::unwritable(state.path(), &e)))
}

/// Removes key files that have no name (any more), and what a `re-enrol` that was cut off left of the key that is ours now.
fn sweep(state: &StateDir, stored: &Stored) {
    if !state.is_locked() {
        // A running agent may have just made one, and be about to name it.
        return;
    }
    let named = |file: &str| file == stored.key_file || stored.next_key.as_deref() == Some(file);
    // Or it would be the key of the next `re-enrol` too, which no hub takes twice.
    if let Ok(Some(key)) = read_key(state, PENDING_FILE)
        && key_file(&key) == stored.key_file
        && let Err(error) = state.remove(PENDING_FILE)
    {
        tracing::warn!(%error, file = PENDING_FILE, "An old key cannot be removed");
    }
    let Ok(entries) = std::fs::read_dir(state.path()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_key = name == KEY_FILE || (name.starts_with(KEY_PREFIX) && name.ends_with(KEY_SUFFIX));
        if is_key
            && !named(&name)
            && let Err(error) = state.remove(&name)
        {
            tracing::warn!(%error, file = name, "An old key cannot be removed");
        }
    }
}

/// The file of the agent's present key in a state folder, whether an agent runs there or not.
pub fn key_path(state: &Path) -> PathBuf {
    let stored = std::fs::read(state.join(IDENTITY_FILE)).ok();
    let stored = stored.and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
    state.join(stored.map_or_else(first_key_file, |stored| stored.key_file))
}

/// The agent's first key, made if there is none. It is on disk before the hub hears of it: when the answer to the
/// enrolment is lost, the same request can be sent again.
pub fn load_or_make_key(state: &StateDir) -> Result<(SigningKey, String), Stop> {
    load_or_make(state, KEY_FILE)
}

/// The key in this file, made if there is none.
pub fn load_or_make(state: &StateDir, file: &str) -> Result<(SigningKey, String), Stop> {
    if let Some(key) = read_key(state, file)? {
        return Ok((key, file.to_owned()));
    }
    let (key, document) = SigningKey::generate().map_err(|e| Stop::Bug(e.to_string()))?;
    store_key(state, file, &document)?;
    Ok((key, file.to_owned()))
}

fn read_key(state: &StateDir, file: &str) -> Result<Option<SigningKey>, Stop> {
    key_of(state.path(), file, &mut |name| state.read(name))
}

fn key_of(
    state: &Path,
    file: &str,
    read: &mut impl FnMut(&str) -> std::io::Result<Option<Vec<u8>>>,
) -> Result<Option<SigningKey>, Stop> {
    let unreadable = |e: &dyn std::fmt::Display| {
        Stop::Configuration(format!(
            "{} cannot be read: {e}; restore it from a backup, or run `passerelle-agent re-enrol`",
            state.join(file).display()
        ))
    };
    let Some(document) = read(file).map_err(|e| unreadable(&e))? else { return Ok(None) };
    SigningKey::from_pkcs8(&document).map(Some).map_err(|e| unreadable(&e))
}

/// Reads a public key from a PEM document (`BEGIN PUBLIC KEY`, RFC 8410).
pub fn public_key_from_pem(pem: &[u8]) -> Result<VerifyingKey, String> {
    use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};
    // SubjectPublicKeyInfo of an Ed25519 key up to the 32 bytes of the key itself (RFC 8410 §4 and §10.1).
    const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem)
        .map_err(|e| format!("not a public key in PEM (BEGIN PUBLIC KEY): {e}"))?;
    let bytes = der.as_ref().strip_prefix(&PREFIX).and_then(|key| <[u8; 32]>::try_from(key).ok());
    bytes.map(VerifyingKey::from_bytes).ok_or_else(|| "not an Ed25519 public key".to_owned())
}

/// A short name of a set of keys for the log.
pub fn fingerprint(keys: &[VerifyingKey]) -> String {
    let ids: Vec<&str> = keys.iter().map(|k| k.id().0.as_str()).collect();
    Sha256::of(ids.join(",").as_bytes()).to_string().chars().take(16).collect()
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
