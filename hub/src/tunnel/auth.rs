//! Who calls: the agent's short-lived signed token, on the tunnel's upgrade and on every transfer beside it.
//!
//! Tokens seen are kept in memory until they expire, so one is good for one request, and bounded. The store remembers them
//! over a restart: an agent's are read from there when it comes for the first time. The one that opens a tunnel is on the disk
//! before the tunnel opens; nobody waits for that of a transfer, of which there may be hundreds a second.

use super::Refusal;
use crate::{
    clock,
    model::AgentRecord,
    store::{self, Store},
};
use http::{HeaderMap, header::AUTHORIZATION};
use passerelle_protocol::{
    AgentId, AgentToken, ApiCode, JwsError, VerifyingKey,
    limits::{CLOCK_SKEW, TOKEN_LIFE},
};
use serde::de::DeserializeOwned;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// How many tokens of one agent may be alive at once: three minutes of some 360 transfers a second.
const MAX_TOKENS: usize = 65_536;
/// The longest id of a token.
const MAX_JTI: usize = 128;

/// The tokens seen, until they expire.
#[derive(Debug, Default)]
pub(super) struct Seen {
    tokens: Mutex<HashMap<AgentId, HashMap<String, i64>>>,
}

enum Replay {
    New,
    Repeated,
    TooMany,
}

impl Seen {
    fn knows(&self, agent: AgentId) -> bool {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&agent)
    }

    /// What the store remembers of an agent.
    fn remember(&self, agent: AgentId, used: Vec<(String, i64)>, now: i64) {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        // A good time to let go of agents that have not come for long.
        tokens.retain(|_, seen| seen.values().any(|until| *until >= now));
        tokens.entry(agent).or_default().extend(used);
    }

    fn note(&self, agent: AgentId, jti: String, until: i64, now: i64) -> Replay {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = tokens.entry(agent).or_default();
        if seen.contains_key(&jti) {
            return Replay::Repeated;
        }
        if seen.len() >= MAX_TOKENS || seen.len().is_power_of_two() {
            seen.retain(|_, until| *until >= now);
        }
        if seen.len() >= MAX_TOKENS {
            return Replay::TooMany;
        }
        seen.insert(jti, until);
        Replay::New
    }
}

/// What a token is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Tunnel,
    Transfer,
}

/// Finds the agent behind a request's `Authorization: Bearer`.
pub(super) async fn authenticate(
    store: &Store,
    seen: &Seen,
    headers: &HeaderMap,
    purpose: Purpose,
) -> Result<Arc<AgentRecord>, Refusal> {
    let refuse = |detail: &str| Refusal::new(401, ApiCode::Unauthorized, detail);
    let token = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| refuse("an agent's token is needed in Authorization: Bearer"))?;
    // Only to find the key: nothing of it counts before the signature is checked with that key.
    let claimed = claims::<Claimed>(token)
        .map(|claimed| claimed.sub)
        .ok_or_else(|| refuse("the agent's token is malformed"))?;
    let agent = store
        .identity(claimed)
        .await
        .map_err(|e| Refusal::from_store(&e))?
        .ok_or_else(|| refuse("this hub does not know the agent: enrol it again"))?;
    let (key, claims) = verify(&agent, token).map_err(|e| match e {
        JwsError::UnknownKey => refuse(
            "the agent's token is signed with another key than those that it has now: an older copy of its state folder \
             was put back; enrol it again",
        ),
        other => refuse(&format!("the agent's token is not valid: {other}")),
    })?;
    let now = clock::unix();
    claims.check(store.audience(), now).map_err(|e| refuse(&e.to_string()))?;
    if claims.sub != agent.id || claims.jti.is_empty() || claims.jti.len() > MAX_JTI {
        return Err(refuse("the agent's token is malformed"));
    }
    if agent.revoked_at.is_some() {
        let detail = "revoked: this agent's identity was revoked; enrol it again with a new token";
        return Err(Refusal::new(403, ApiCode::Forbidden, detail));
    }
    if !agent.enterprise {
        let detail = "hybrid mode needs the Enterprise tier: have the tenant's tier changed";
        return Err(Refusal::new(403, ApiCode::TierRequired, detail));
    }
    // Past this the token is out of date by itself.
    let until = claims.exp.saturating_add((CLOCK_SKEW + TOKEN_LIFE).as_secs().cast_signed());
    let from_store = |error: store::Error| Refusal::from_store(&error);
    if !seen.knows(agent.id) {
        seen.remember(agent.id, store.used_tokens(agent.id).await.map_err(from_store)?, now);
    }
    match seen.note(agent.id, claims.jti.clone(), until, now) {
        Replay::New => {
            let durable = purpose == Purpose::Tunnel;
            store.note_token(agent.id, claims.jti, until, key, durable).await.map_err(from_store)?;
            Ok(agent)
        }
        Replay::Repeated => Err(refuse("the agent's token was used before: each request needs a new one")),
        Replay::TooMany => {
            Err(Refusal::new(429, ApiCode::RateLimited, "too many requests of this agent: slow down"))
        }
    }
}

/// Verifies a token with the keys that the agent has now; tells which one signed it.
fn verify(agent: &AgentRecord, token: &str) -> Result<(VerifyingKey, AgentToken), JwsError> {
    for key in agent.keys_at(clock::now()) {
        match key.verify(AgentToken::TYP, token) {
            Err(JwsError::UnknownKey) => {}
            done => return done.map(|claims| (key.clone(), claims)),
        }
    }
    Err(JwsError::UnknownKey)
}

/// Whom a token claims to be of.
#[derive(serde::Deserialize)]
struct Claimed {
    sub: AgentId,
}

/// What is in an unverified token: good for finding the key that verifies it, and for nothing else.
pub(crate) fn claims<T: DeserializeOwned>(token: &str) -> Option<T> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&payload).ok()
}
