//! Which keys of the hub count: those of the enrolment, and what followed them by statements that the key before signed.
//!
//! A key that was followed is *retiring*: what it signed before is still good for as long as it may live, and it never
//! vouches for another key again. So a key that is stolen after its rotation is of no use.

use passerelle_protocol::{
    HubKey, KeyId, VerifyingKey,
    limits::{CLOCK_SKEW, ENVELOPE_LIFE},
};
use serde::{Deserialize, Serialize};

/// The tolerated difference of clocks, in seconds.
const SKEW: i64 = CLOCK_SKEW.as_secs().cast_signed();
/// How long a retiring key counts: an envelope's life, the clocks of both sides, and the time in which a hub takes up a
/// rotation.
const OVERLAP: i64 = ENVELOPE_LIFE.as_secs().cast_signed() + 3 * SKEW;

/// How many retiring keys count. Whoever has the hub's key can name a next one as often as they like.
const MAX_RETIRING: usize = 16;

/// A key that signs no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retiring {
    /// The key.
    pub key: VerifyingKey,
    /// Until when it verifies, in seconds since the Unix epoch.
    pub until: i64,
}

/// The hub's keys, as the state folder holds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubTrust {
    /// Those that sign tickets, and jobs unless the operator pins others.
    #[serde(rename = "job_keys")]
    current: Vec<VerifyingKey>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "retiring_job_keys")]
    retiring: Vec<Retiring>,
}

impl HubTrust {
    /// The keys of the enrolment.
    pub fn new(keys: Vec<VerifyingKey>) -> Self {
        Self { current: keys, retiring: Vec::new() }
    }

    /// The keys that verify at `now`.
    pub fn keys(&self, now: i64) -> Vec<VerifyingKey> {
        let retiring = self.retiring.iter().filter(|retiring| retiring.until >= now);
        self.current.iter().chain(retiring.map(|retiring| &retiring.key)).cloned().collect()
    }

    /// Their names, for the hello.
    pub fn names(&self) -> Vec<KeyId> {
        self.current.iter().map(|key| key.id().clone()).collect()
    }

    /// Follows a statement; the key that is new by it, if it is.
    ///
    /// # Errors
    /// Why it is not believed.
    pub fn follow(&mut self, statement: &str, audience: &str, now: i64) -> Result<Option<KeyId>, String> {
        let (said, signer) = match HubKey::verify(&self.current, statement) {
            Ok(verified) => verified,
            Err(error) => return self.passed_over(statement).ok_or_else(|| error.to_string()),
        };
        if said.aud != audience {
            return Err("it is of another hub".to_owned());
        }
        if self.knows(&said.public_key) {
            return Ok(None);
        }
        self.retiring.retain(|retiring| retiring.until >= now);
        // A clock that runs ahead does not prolong the life of the old key.
        let until = said.iat.min(now.saturating_add(SKEW)).saturating_add(OVERLAP);
        let id = said.public_key.id().clone();
        self.current.retain(|key| *key != signer);
        self.current.insert(0, said.public_key);
        self.retiring.push(Retiring { key: signer, until });
        let past = self.retiring.len().saturating_sub(MAX_RETIRING);
        self.retiring.drain(..past);
        Ok(Some(id))
    }

    /// A statement that was followed before comes again.
    fn passed_over(&self, statement: &str) -> Option<Option<KeyId>> {
        let retiring: Vec<VerifyingKey> = self.retiring.iter().map(|retiring| retiring.key.clone()).collect();
        let (said, _) = HubKey::verify(&retiring, statement).ok()?;
        self.knows(&said.public_key).then_some(None)
    }

    fn knows(&self, key: &VerifyingKey) -> bool {
        self.current.contains(key) || self.retiring.iter().any(|retiring| retiring.key == *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use passerelle_protocol::SigningKey;

    const NOW: i64 = 1_800_000_000;

    fn key() -> SigningKey {
        SigningKey::generate().unwrap().0
    }

    fn said(by: &SigningKey, next: &SigningKey, aud: &str, iat: i64) -> String {
        HubKey { aud: aud.to_owned(), public_key: next.public().clone(), iat }.sign(by).unwrap()
    }

    fn of(key: &SigningKey) -> KeyId {
        key.public().id().clone()
    }

    #[test]
    fn a_hub_that_names_keys_without_end_fills_nothing() {
        let mut last = key();
        let mut trust = HubTrust::new(vec![last.public().clone()]);
        for _ in 0..3 * MAX_RETIRING {
            let next = key();
            assert_eq!(trust.follow(&said(&last, &next, "hub", NOW), "hub", NOW), Ok(Some(of(&next))));
            last = next;
        }
        assert_eq!((trust.names(), trust.keys(NOW).len()), (vec![of(&last)], 1 + MAX_RETIRING));
    }

    #[test]
    fn a_key_follows_by_the_word_of_the_one_before_and_the_old_one_retires() {
        let (first, second) = (key(), key());
        let mut trust = HubTrust::new(vec![first.public().clone()]);
        let statement = said(&first, &second, "hub", NOW);
        assert_eq!(trust.follow(&statement, "hub", NOW), Ok(Some(of(&second))));
        assert_eq!(trust.names(), [of(&second)]);
        assert_eq!(trust.keys(NOW), [second.public().clone(), first.public().clone()]);
        assert_eq!(trust.keys(NOW + 15 * 60 + 120).len(), 2, "an envelope of the old key may still be valid");
        assert_eq!(trust.keys(NOW + OVERLAP + 1), [second.public().clone()]);
        // The same once more, as after a lost connection.
        assert_eq!(trust.follow(&statement, "hub", NOW), Ok(None));
        assert_eq!(trust.keys(NOW).len(), 2);
        let text = serde_json::to_string(&trust).unwrap();
        assert_eq!(serde_json::from_str::<HubTrust>(&text).unwrap(), trust);
    }

    #[test]
    fn an_agent_that_was_away_follows_the_whole_chain() {
        let (first, second, third) = (key(), key(), key());
        let mut trust = HubTrust::new(vec![first.public().clone()]);
        let long_ago = NOW - 86_400;
        let chain = [said(&first, &second, "hub", long_ago), said(&second, &third, "hub", long_ago + 60)];
        // Not in this order.
        assert!(trust.follow(&chain[1], "hub", NOW).is_err());
        for statement in &chain {
            trust.follow(statement, "hub", NOW).unwrap();
        }
        assert_eq!(trust.keys(NOW), [third.public().clone()], "what the old ones signed is out of date");
    }

    #[test]
    fn nobody_else_names_a_key() {
        let (first, second, stranger) = (key(), key(), key());
        let mut trust = HubTrust::new(vec![first.public().clone()]);
        let before = trust.clone();
        let mut bad = vec![
            said(&stranger, &stranger, "hub", NOW),
            said(&first, &second, "another hub", NOW),
            "x".to_owned(),
            String::new(),
        ];
        let good = said(&first, &second, "hub", NOW);
        let forged = said(&first, &stranger, "hub", NOW);
        let (head, rest) = good.split_once('.').unwrap();
        let (_, signature) = rest.split_once('.').unwrap();
        bad.push(format!("{head}.{}.{signature}", forged.split('.').nth(1).unwrap()));
        for statement in bad {
            assert!(trust.follow(&statement, "hub", NOW).is_err(), "{statement}");
        }
        assert_eq!(trust, before);
        // A retiring key vouches for nobody, though it still verifies.
        trust.follow(&good, "hub", NOW).unwrap();
        let stolen = said(&first, &stranger, "hub", NOW);
        assert!(trust.follow(&stolen, "hub", NOW).is_err());
        assert_eq!(trust.names(), [of(&second)]);
    }

    #[test]
    fn a_statement_from_the_future_does_not_prolong_the_old_key() {
        let (first, second) = (key(), key());
        let mut trust = HubTrust::new(vec![first.public().clone()]);
        trust.follow(&said(&first, &second, "hub", NOW + 86_400), "hub", NOW).unwrap();
        assert_eq!(trust.keys(NOW + OVERLAP + SKEW + 1), [second.public().clone()]);
    }
}
