//! Who the agent is: its Ed25519 key, which never leaves the state folder, and what the hub said at enrolment.

use crate::{clock, exit::Stop, state::StateDir};
use passerelle_protocol::{
    AgentId, AgentToken, Name, Sha256, SigningKey, VerifyingKey, http::EnrolResponse, limits::TOKEN_LIFE,
};
use serde::{Deserialize, Serialize};

/// The file of the agent's private key in the state folder.
pub const KEY_FILE: &str = "agent-key.pk8";
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
    /// The hub's keys that sign tickets, and jobs unless the operator pins others.
    pub job_keys: Vec<VerifyingKey>,
    /// The hub it enrolled at.
    pub hub: String,
}

impl Enrolled {
    /// What a hub answered.
    pub fn new(response: EnrolResponse, hub: String) -> Self {
        let EnrolResponse { agent, tenant, site, application, audience, job_keys, server_time: _ } = response;
        Self { agent, tenant, site, application, audience, job_keys, hub }
    }
}

/// The enrolled agent.
#[derive(Debug)]
pub struct Identity {
    /// What the hub said.
    pub enrolled: Enrolled,
    key: SigningKey,
}

impl Identity {
    /// Reads the identity; `None` if the agent is not enrolled yet.
    pub fn load(state: &StateDir) -> Result<Option<Self>, Stop> {
        let unreadable = |e: &dyn std::fmt::Display| {
            Stop::Configuration(format!(
                "{} cannot be read: {e}; restore it from a backup, or move it away and enrol anew",
                state.path().join(IDENTITY_FILE).display()
            ))
        };
        let Some(bytes) = state.read(IDENTITY_FILE).map_err(|e| unreadable(&e))? else { return Ok(None) };
        let enrolled: Enrolled = serde_json::from_slice(&bytes).map_err(|e| unreadable(&e))?;
        let Some(key) = read_key(state)? else {
            return Err(Stop::Configuration(format!(
                "{} is missing: the agent's identity is of no use without its key; restore it, or move {IDENTITY_FILE} \
                 away too and enrol anew",
                state.path().join(KEY_FILE).display()
            )));
        };
        Ok(Some(Self { enrolled, key }))
    }

    /// Writes what the hub said at enrolment. The key is there already.
    pub fn save(state: &StateDir, enrolled: Enrolled, key: SigningKey) -> Result<Self, Stop> {
        let bytes = serde_json::to_vec_pretty(&enrolled).map_err(|e| Stop::Bug(e.to_string()))?;
        state
            .write(IDENTITY_FILE, &bytes)
            .map_err(|e| Stop::Configuration(crate::state::unwritable(state.path(), &e)))?;
        Ok(Self { enrolled, key })
    }

    /// The key that signs tokens and receipts.
    pub fn key(&self) -> &SigningKey {
        &self.key
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
        let token = self.key.sign(AgentToken::TYP, &token).map_err(|e| Stop::Bug(e.to_string()))?;
        Ok(format!("Bearer {token}"))
    }
}

/// The agent's key, made if there is none. It is on disk before the hub hears of it: when the answer to the
/// enrolment is lost, the same request can be sent again.
pub fn load_or_make_key(state: &StateDir) -> Result<SigningKey, Stop> {
    if let Some(key) = read_key(state)? {
        return Ok(key);
    }
    let (key, document) = SigningKey::generate().map_err(|e| Stop::Bug(e.to_string()))?;
    state
        .write(KEY_FILE, &document)
        .map_err(|e| Stop::Configuration(crate::state::unwritable(state.path(), &e)))?;
    Ok(key)
}

fn read_key(state: &StateDir) -> Result<Option<SigningKey>, Stop> {
    let unreadable = |e: &dyn std::fmt::Display| {
        Stop::Configuration(format!(
            "{} cannot be read: {e}; restore it from a backup, or move it and {IDENTITY_FILE} away and enrol anew",
            state.path().join(KEY_FILE).display()
        ))
    };
    let Some(document) = state.read(KEY_FILE).map_err(|e| unreadable(&e))? else { return Ok(None) };
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
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    #[test]
    fn the_key_survives_a_lost_answer_and_signs_tokens_that_verify() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(Identity::load(&state).unwrap().is_none());
        let first = load_or_make_key(&state).unwrap();
        let again = load_or_make_key(&state).unwrap();
        assert_eq!(first.public(), again.public());
        let name = |n: &str| n.parse::<Name>().unwrap();
        let enrolled = Enrolled {
            agent: AgentId::new(1, &[7; 10]),
            tenant: name("acme"),
            site: name("paris"),
            application: "hub".into(),
            audience: "https://hub.example.com".into(),
            job_keys: vec![first.public().clone()],
            hub: "https://hub.example.com/".into(),
        };
        Identity::save(&state, enrolled.clone(), first).unwrap();
        let identity = Identity::load(&state).unwrap().unwrap();
        assert_eq!(identity.enrolled, enrolled);
        let bearer = identity.bearer().unwrap();
        let token: AgentToken =
            again.public().verify(AgentToken::TYP, bearer.strip_prefix("Bearer ").unwrap()).unwrap();
        assert_eq!(token.check("https://hub.example.com", clock::unix_seconds()), Ok(()));
        state.remove(KEY_FILE).unwrap();
        assert!(Identity::load(&state).unwrap_err().to_string().contains("agent-key.pk8 is missing"));
    }

    #[test]
    fn a_public_key_is_read_from_pem() {
        let (key, _) = SigningKey::generate().unwrap();
        let mut der = vec![0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        der.extend_from_slice(key.public().bytes());
        let pem =
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(&der));
        assert_eq!(public_key_from_pem(pem.as_bytes()).unwrap(), *key.public());
        assert!(public_key_from_pem(b"nothing").is_err());
        let rsa = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            STANDARD.encode([0x30, 0x00])
        );
        assert_eq!(public_key_from_pem(rsa.as_bytes()).unwrap_err(), "not an Ed25519 public key");
    }
}
