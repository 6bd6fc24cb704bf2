//! What is signed: job envelope and offer ticket (by the hub), agent token and receipt (by the agent).
//!
//! Times are seconds since the Unix epoch (RFC 7519 `NumericDate`, whole seconds).

use crate::{
    AgentId, JobId, JwsError, Name, Sha256, SigningKey, VerifyingKey,
    limits::{CLOCK_SKEW, TOKEN_LIFE},
    message::{Intent, Repeat},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const SKEW: i64 = CLOCK_SKEW.as_secs().cast_signed();

/// Size, digest and media type of a job's payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadDigest {
    /// Size in bytes.
    pub size: u64,
    /// Digest of the content.
    pub sha256: Sha256,
    /// Media type.
    pub media_type: String,
}

/// All that decides a job's effect, signed so that nothing between signer and agent can forge or widen it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// The job.
    pub job: JobId,
    /// The tenant it belongs to.
    pub tenant: Name,
    /// The site it is for.
    pub site: Name,
    /// The resource it acts on.
    pub resource: Name,
    /// The operation.
    pub operation: Name,
    /// The operation's parameters: a JSON object.
    pub params: Value,
    /// The payload, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadDigest>,
    /// An attempt without progress for this many seconds ends.
    pub timeout_s: u32,
    /// The job never starts after this time.
    pub deadline: i64,
    /// How many attempts the job may have.
    pub max_attempts: u32,
    /// Overrides how the operation repeats, towards stricter only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Repeat>,
    /// Jobs of the same key on a resource run in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_key: Option<String>,
    /// Only these agents may act; absent: every agent of the site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<Vec<AgentId>>,
    /// When it was signed.
    pub iat: i64,
    /// Not valid before.
    pub nbf: i64,
    /// Not accepted after. Judged once, when the attempt is accepted.
    pub exp: i64,
}

impl Envelope {
    /// The JWS header's `typ`.
    pub const TYP: &str = "passerelle-job+jws";
    /// The same for a call.
    pub const CALL_TYP: &str = "passerelle-call+jws";

    /// Signs it.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn sign(&self, key: &SigningKey) -> Result<String, JwsError> {
        key.sign(Self::TYP, self)
    }

    /// Signs it as a call.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn sign_call(&self, key: &SigningKey) -> Result<String, JwsError> {
        key.sign(Self::CALL_TYP, self)
    }

    /// Checks the signature against the pinned keys. Audience and times are the caller's next checks.
    ///
    /// # Errors
    /// See [`JwsError`].
    pub fn verify<'k>(
        keys: impl IntoIterator<Item = &'k VerifyingKey>,
        token: &str,
    ) -> Result<Self, JwsError> {
        VerifyingKey::verify_any(keys, Self::TYP, token)
    }

    /// The same for the envelope of a call.
    ///
    /// # Errors
    /// See [`JwsError`].
    pub fn verify_call<'k>(
        keys: impl IntoIterator<Item = &'k VerifyingKey>,
        token: &str,
    ) -> Result<Self, JwsError> {
        VerifyingKey::verify_any(keys, Self::CALL_TYP, token)
    }

    /// When it was issued, in milliseconds since the Unix epoch: the time in its id, if that is of version 7 (RFC 9562) and
    /// lies in the second of `iat`, else that second's beginning.
    #[must_use]
    pub fn issued_ms(&self) -> i64 {
        let id = self.job.uuid();
        let made = i64::try_from(id.as_u128() >> 80).unwrap_or(i64::MAX);
        let precise = id.get_version_num() == 7 && made.div_euclid(1000) == self.iat;
        if precise { made } else { self.iat.saturating_mul(1000) }
    }

    /// Whether it may be accepted at `now`, with the tolerated clock difference.
    #[must_use]
    pub fn is_current(&self, now: i64) -> bool {
        now >= self.nbf.saturating_sub(SKEW) && now <= self.exp.saturating_add(SKEW)
    }
}

/// Whether an attempt must ask before its final effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommitMode {
    /// The attempt never moves to another agent: act at once.
    Free,
    /// Send `Commit` and wait for `CommitGranted`.
    Ask,
}

/// Binds an envelope to one attempt by one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The job of the envelope.
    pub job: JobId,
    /// The attempt, counted from 1; an agent refuses one not higher than the highest it has seen of the job.
    pub attempt: u32,
    /// The agent it is for.
    pub agent: AgentId,
    /// The connection epoch in which it was offered.
    pub epoch: u64,
    /// Whether to ask before the final effect.
    pub commit: CommitMode,
    /// Digest of the envelope's compact text, so that the two cannot be mixed.
    pub envelope: Sha256,
    /// What an earlier attempt of the job was granted, possibly by another agent of the site, and never reported: the agent
    /// finds out whether it happened before it does anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Intent>,
    /// When it was signed.
    pub iat: i64,
    /// Not accepted after.
    pub exp: i64,
}

impl Ticket {
    /// The JWS header's `typ`.
    pub const TYP: &str = "passerelle-ticket+jws";

    /// Signs it.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn sign(&self, key: &SigningKey) -> Result<String, JwsError> {
        key.sign(Self::TYP, self)
    }

    /// Checks the signature against the hub's pinned keys.
    ///
    /// # Errors
    /// See [`JwsError`].
    pub fn verify<'k>(
        keys: impl IntoIterator<Item = &'k VerifyingKey>,
        token: &str,
    ) -> Result<Self, JwsError> {
        VerifyingKey::verify_any(keys, Self::TYP, token)
    }

    /// Whether it may be accepted at `now`, with the tolerated clock difference.
    #[must_use]
    pub fn is_current(&self, now: i64) -> bool {
        now >= self.iat.saturating_sub(SKEW) && now <= self.exp.saturating_add(SKEW)
    }
}

/// The claims of the agent's token on the tunnel's upgrade and on payload requests (RFC 7519).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentToken {
    /// The agent.
    pub sub: AgentId,
    /// The hub's `audience` from enrolment.
    pub aud: String,
    /// When it was made.
    pub iat: i64,
    /// Not taken after; at most 60 s after `iat`.
    pub exp: i64,
    /// Unique; a repeated one is refused.
    pub jti: String,
}

/// Why an agent token with a valid signature was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenRejected {
    /// Made for another hub.
    #[error("the token is for another hub")]
    Audience,
    /// Its life is longer than allowed or negative.
    #[error("the token's life must be 1 to 60 seconds")]
    Life,
    /// Expired, or from the future: the clocks differ. Positive: the agent's clock is ahead of the hub's.
    #[error("the token is out of date: the agent's clock differs from the hub's by about {0} s")]
    Clock(i64),
}

/// Judges what an agent signs for one request: for whom it is, and whether it lives no longer than it may, and now.
pub(crate) fn check_short_lived(
    (aud, audience): (&str, &str),
    (iat, exp): (i64, i64),
    now: i64,
) -> Result<(), TokenRejected> {
    let life = exp.saturating_sub(iat);
    if aud != audience {
        Err(TokenRejected::Audience)
    } else if life <= 0 || life > TOKEN_LIFE.as_secs().cast_signed() {
        Err(TokenRejected::Life)
    } else if now > exp.saturating_add(SKEW) || now < iat.saturating_sub(SKEW) {
        Err(TokenRejected::Clock(iat.saturating_sub(now)))
    } else {
        Ok(())
    }
}

impl AgentToken {
    /// The JWS header's `typ`.
    pub const TYP: &str = "passerelle-agent+jwt";

    /// Judges audience and times at `now`.
    ///
    /// # Errors
    /// See [`TokenRejected`].
    pub fn check(&self, audience: &str, now: i64) -> Result<(), TokenRejected> {
        check_short_lived((&self.aud, audience), (self.iat, self.exp), now)
    }
}

/// The agent's signed statement of a success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// The agent.
    pub agent: AgentId,
    /// The job.
    pub job: JobId,
    /// The attempt.
    pub attempt: u32,
    /// The resource.
    pub resource: Name,
    /// The operation.
    pub operation: Name,
    /// The rule that allowed it, as `resource#n`, counted from 1.
    pub rule: String,
    /// When it took effect.
    pub iat: i64,
    /// The operation's result, or for a large one its digest.
    pub result: Value,
    /// `synced`, or `unsynced` where the target offers no sync; absent where the word has no meaning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
}

impl Receipt {
    /// The JWS header's `typ`.
    pub const TYP: &str = "passerelle-receipt+jws";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_judged_by_audience_life_and_clock() {
        let token = |iat, exp| AgentToken {
            sub: AgentId::new(0, &[1; 10]),
            aud: "hub".to_owned(),
            iat,
            exp,
            jti: "x".to_owned(),
        };
        assert_eq!(token(1000, 1060).check("hub", 1000), Ok(()));
        assert_eq!(token(1000, 1060).check("hub", 940), Ok(()));
        assert_eq!(token(1000, 1060).check("hub", 1120), Ok(()));
        assert_eq!(token(1000, 1060).check("other", 1000), Err(TokenRejected::Audience));
        assert_eq!(token(1000, 1061).check("hub", 1000), Err(TokenRejected::Life));
        assert_eq!(token(1000, 1000).check("hub", 1000), Err(TokenRejected::Life));
        assert_eq!(token(4600, 4660).check("hub", 1000), Err(TokenRejected::Clock(3600)));
        assert_eq!(token(1000, 1060).check("hub", 4600), Err(TokenRejected::Clock(-3600)));
    }
}
