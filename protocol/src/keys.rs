//! Statements by which keys follow one another: an agent's next key, signed by the old one and by itself, and the hub's
//! next signing key, signed by the one before.
//!
//! Times are seconds since the Unix epoch, as in every signed claim.

use crate::{
    AgentId, JwsError, SigningKey, TokenRejected, VerifyingKey, limits::TOKEN_LIFE, signed::check_short_lived,
};
use serde::{Deserialize, Serialize};

/// An agent names another key of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentKey {
    /// The agent.
    pub agent: AgentId,
    /// The `audience` of its enrolment.
    pub aud: String,
    /// The key that it names.
    pub public_key: VerifyingKey,
    /// When it was signed.
    pub iat: i64,
    /// Not taken after; at most 60 s after `iat`.
    pub exp: i64,
}

impl AgentKey {
    /// The JWS header's `typ`.
    pub const TYP: &str = "passerelle-agent-key+jws";

    /// The statement of this moment.
    #[must_use]
    pub fn new(agent: AgentId, aud: String, public_key: VerifyingKey, now: i64) -> Self {
        Self { agent, aud, public_key, iat: now, exp: now + TOKEN_LIFE.as_secs().cast_signed() }
    }

    /// Signs it: with the key that is known already, or with the one that it names.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn sign(&self, key: &SigningKey) -> Result<String, JwsError> {
        key.sign(Self::TYP, self)
    }

    /// Checks the signature against one of the agent's known keys. Audience and times are the caller's next checks.
    ///
    /// # Errors
    /// See [`JwsError`].
    pub fn verify<'k>(
        keys: impl IntoIterator<Item = &'k VerifyingKey>,
        statement: &str,
    ) -> Result<Self, JwsError> {
        VerifyingKey::verify_any(keys, Self::TYP, statement)
    }

    /// Judges audience and times at `now`.
    ///
    /// # Errors
    /// See [`TokenRejected`].
    pub fn check(&self, audience: &str, now: i64) -> Result<(), TokenRejected> {
        check_short_lived((&self.aud, audience), (self.iat, self.exp), now)
    }
}

/// The hub names its next signing key; signed by the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubKey {
    /// The hub's `audience`.
    pub aud: String,
    /// The key that signs from now on.
    pub public_key: VerifyingKey,
    /// From when on.
    pub iat: i64,
}

impl HubKey {
    /// The JWS header's `typ`.
    pub const TYP: &str = "passerelle-hub-key+jws";

    /// Signs it with the key before.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn sign(&self, key: &SigningKey) -> Result<String, JwsError> {
        key.sign(Self::TYP, self)
    }

    /// Checks the signature against the keys that count now; tells which of them signed. The audience is the caller's
    /// next check.
    ///
    /// # Errors
    /// See [`JwsError`].
    pub fn verify(keys: &[VerifyingKey], statement: &str) -> Result<(Self, VerifyingKey), JwsError> {
        for key in keys {
            match key.verify(Self::TYP, statement) {
                Err(JwsError::UnknownKey) => {}
                done => return done.map(|claims| (claims, key.clone())),
            }
        }
        Err(JwsError::UnknownKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::generate().unwrap().0
    }

    #[test]
    fn a_statement_of_an_agents_key_is_judged_by_signer_audience_and_time() {
        let (old, new, other) = (key(), key(), key());
        let agent = AgentId::new(0, &[1; 10]);
        let said = AgentKey::new(agent, "hub".to_owned(), new.public().clone(), 1000);
        for signer in [&old, &new] {
            let text = said.sign(signer).unwrap();
            assert_eq!(AgentKey::verify([signer.public()], &text), Ok(said.clone()));
            assert_eq!(AgentKey::verify([other.public()], &text), Err(JwsError::UnknownKey));
        }
        assert_eq!(said.check("hub", 1000), Ok(()));
        assert_eq!(said.check("hub", 1120), Ok(()));
        assert_eq!(said.check("other", 1000), Err(TokenRejected::Audience));
        assert_eq!(said.check("hub", 4600), Err(TokenRejected::Clock(-3600)));
        assert_eq!(AgentKey { exp: 2000, ..said.clone() }.check("hub", 1000), Err(TokenRejected::Life));
        assert_eq!(AgentKey { exp: 1000, ..said }.check("hub", 1000), Err(TokenRejected::Life));
    }

    #[test]
    fn a_statement_of_the_hubs_key_tells_who_signed_it() {
        let (first, second, other) = (key(), key(), key());
        let said = HubKey { aud: "hub".to_owned(), public_key: second.public().clone(), iat: 1000 };
        let text = said.sign(&first).unwrap();
        let known = [other.public().clone(), first.public().clone()];
        assert_eq!(HubKey::verify(&known, &text), Ok((said, first.public().clone())));
        assert_eq!(HubKey::verify(&known[..1], &text), Err(JwsError::UnknownKey));
        let token = first.sign(AgentKey::TYP, &1).unwrap();
        assert_eq!(HubKey::verify(&known, &token), Err(JwsError::WrongKind { expected: HubKey::TYP }));
    }
}
