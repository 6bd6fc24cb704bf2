//! Who calls: the agent's short-lived signed token, on the tunnel's upgrade and on every transfer beside it.
//!
//! Tokens seen are kept in memory until they expire, so one is good for one request. After a restart of the hub a token
//! could be used once more within its life, at most two minutes: it then still needs the TLS connection of somebody who
//! could read it.

use super::Refusal;
use crate::{clock, model::AgentRecord, store::Store};
use http::{HeaderMap, header::AUTHORIZATION};
use passerelle_protocol::{
    AgentId, AgentToken, ApiCode, JwsError, VerifyingKey,
    limits::{CLOCK_SKEW, TOKEN_LIFE},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// How many tokens of one agent may be alive at once.
const MAX_TOKENS: usize = 4096;
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
    fn note(&self, agent: AgentId, jti: String, until: i64, now: i64) -> Replay {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if !tokens.contains_key(&agent) {
            // A good time to let go of agents that have not come for long.
            tokens.retain(|_, seen| seen.values().any(|until| *until >= now));
        }
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

/// Finds the agent behind a request's `Authorization: Bearer`.
pub(super) async fn authenticate(
    store: &Store,
    seen: &Seen,
    headers: &HeaderMap,
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
    let claimed = subject(token).ok_or_else(|| refuse("the agent's token is malformed"))?;
    let agent = store
        .identity(claimed)
        .await
        .map_err(|e| Refusal::from_store(&e))?
        .ok_or_else(|| refuse("this hub does not know the agent: enrol it again"))?;
    let key = VerifyingKey::try_from(agent.public_key.clone())
        .map_err(|_| Refusal::new(500, ApiCode::Internal, "the agent's stored key is unusable"))?;
    let claims: AgentToken = key.verify(AgentToken::TYP, token).map_err(|e| match e {
        JwsError::UnknownKey => refuse("the agent's token is signed with another key than it enrolled with"),
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
    // Past this the token is out of date by itself.
    let until = claims.exp.saturating_add((CLOCK_SKEW + TOKEN_LIFE).as_secs().cast_signed());
    match seen.note(agent.id, claims.jti, until, now) {
        Replay::New => Ok(agent),
        Replay::Repeated => Err(refuse("the agent's token was used before: each request needs a new one")),
        Replay::TooMany => {
            Err(Refusal::new(429, ApiCode::RateLimited, "too many requests of this agent: slow down"))
        }
    }
}

/// Whom an unverified token claims to be of.
fn subject(token: &str) -> Option<AgentId> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    #[derive(serde::Deserialize)]
    struct Claims {
        sub: AgentId,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Claims>(&payload).ok().map(|claims| claims.sub)
}
