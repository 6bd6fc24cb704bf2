//! The keys of agents and the tokens that they signed.
//!
//! An agent changes its key by itself. The new key is registered beside the old one, and takes its place when it is first
//! used; the old one is then taken for [`OVERLAP`] still, since a request signed with it may be on its way. Keys are kept
//! when they have ended: receipts are verified with them.

use super::{
    Error, Store,
    row::{ms, opt_time, time},
    writer::Tx,
};
use crate::{
    clock,
    model::{AgentKeyRecord, AgentRecord},
};
use passerelle_protocol::{
    AgentId, AgentKey, KeyId, VerifyingKey,
    http::KeyRequest,
    limits::{CLOCK_SKEW, TOKEN_LIFE},
};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::time::Duration;

/// How long an old key is taken after the first use of its successor: the life of a token with the tolerated clocks.
const OVERLAP: Duration = TOKEN_LIFE.saturating_add(CLOCK_SKEW).saturating_add(CLOCK_SKEW);
/// How many keys of an agent are kept: of three years when it changes its key every day.
const MAX_KEYS: i64 = 1000;

/// The keys that an agent ever had, oldest first.
pub(super) fn of(conn: &Connection, agent: AgentId) -> Result<Vec<AgentKeyRecord>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT public_key, added_at, used_at, ends_at FROM agent_keys WHERE agent = ?1 ORDER BY added_at, public_key",
    )?;
    let rows = statement.query_map([agent.uuid().as_bytes()], |row| {
        Ok((row.get::<_, String>(0)?, time(row, 1)?, opt_time(row, 2)?, opt_time(row, 3)?))
    })?;
    let mut keys = Vec::new();
    for row in rows {
        let (public_key, added_at, used_at, ends_at) = row?;
        let public_key = VerifyingKey::try_from(public_key)
            .map_err(|_| Error::Internal(format!("a stored key of the agent {agent} is unusable")))?;
        keys.push(AgentKeyRecord { id: public_key.id().clone(), public_key, added_at, used_at, ends_at });
    }
    Ok(keys)
}

/// Whose key it is.
pub(super) fn owner(conn: &Connection, public_key: &str) -> Result<Option<AgentId>, Error> {
    let sql = "SELECT agent FROM agent_keys WHERE public_key = ?1";
    Ok(conn.prepare_cached(sql)?.query_row([public_key], |row| super::row::from_uuid(row, 0)).optional()?)
}

/// Adds a key; the first one is in use at once.
pub(super) fn add(tx: &Tx<'_>, agent: AgentId, public_key: &str, in_use: bool) -> Result<(), Error> {
    let used_at = in_use.then_some(ms(tx.now));
    tx.conn
        .prepare_cached(
            "INSERT INTO agent_keys (public_key, agent, added_at, used_at) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![public_key, agent.uuid().as_bytes(), ms(tx.now), used_at])?;
    Ok(())
}

/// A key of the agent was used: those before it come to their end.
fn used(tx: &mut Tx<'_>, agent: AgentId, public_key: &str) -> Result<(), Error> {
    let first = tx
        .conn
        .prepare_cached("UPDATE agent_keys SET used_at = ?2 WHERE public_key = ?1 AND used_at IS NULL")?
        .execute(params![public_key, ms(tx.now)])?;
    if first == 0 {
        return Ok(());
    }
    let end = tx.now.checked_add(OVERLAP).unwrap_or(tx.now);
    tx.conn
        .prepare_cached(
            "UPDATE agent_keys SET ends_at = ?3 WHERE agent = ?1 AND public_key <> ?2 AND ends_at IS NULL",
        )?
        .execute(params![agent.uuid().as_bytes(), public_key, ms(end)])?;
    tracing::info!(agent_id = %agent, "An agent uses its new key");
    tx.effects.forget = true;
    Ok(())
}

impl Store {
    /// The tokens of an agent that were noted as used, and until when: [`Self::note_token`].
    pub(crate) async fn used_tokens(&self, agent: AgentId) -> Result<Vec<(String, i64)>, Error> {
        self.read(move |conn| {
            let mut statement = conn.prepare_cached("SELECT jti, until FROM seen_tokens WHERE agent = ?1")?;
            let rows =
                statement.query_map([agent.uuid().as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Notes that a token of the agent was used, with one of its keys; what was noted is forgotten when the token is out of
    /// date by itself. It outlives any end of the hub: at once if it is `durable`, else with the next transaction, some 20 ms
    /// later at most.
    pub(crate) async fn note_token(
        &self,
        agent: AgentId,
        jti: String,
        until: i64,
        key: VerifyingKey,
        durable: bool,
    ) -> Result<(), Error> {
        let note = move |tx: &mut Tx<'_>| {
            tx.conn
                .prepare_cached("DELETE FROM seen_tokens WHERE until < ?1")?
                .execute([tx.now.as_second()])?;
            tx.conn
                .prepare_cached("INSERT OR IGNORE INTO seen_tokens (agent, jti, until) VALUES (?1, ?2, ?3)")?
                .execute(params![agent.uuid().as_bytes(), jti, until])?;
            used(tx, agent, &String::from(key))
        };
        if durable {
            return self.write(note).await;
        }
        let place = self.place().await?;
        self.order(place, true, note, move |noted| {
            if let Err(error) = noted {
                tracing::warn!(agent_id = %agent, %error, "Could not note a used token: it counts until the hub ends");
            }
        })
    }

    /// Registers the next key of an agent. The same one again is no error.
    ///
    /// # Errors
    /// [`Error::BadRequest`] for a statement that is not the agent's; [`Error::Conflict`] for a key that is another's or
    /// has ended.
    pub(crate) async fn register_key(
        &self,
        agent: &AgentRecord,
        request: KeyRequest,
    ) -> Result<KeyId, Error> {
        let said = self.vouched(agent, &request)?;
        let (agent, id) = (agent.id, said.public_key.id().clone());
        let public_key = String::from(said.public_key);
        self.write(move |tx| register(tx, agent, &public_key)).await?;
        tracing::info!(agent_id = %agent, key = %id, "An agent has registered its next key");
        Ok(id)
    }

    /// The statement, if old and new key signed the same one about this agent.
    fn vouched(&self, agent: &AgentRecord, request: &KeyRequest) -> Result<AgentKey, Error> {
        let wrong = |what: &str, why: &dyn std::fmt::Display| Error::BadRequest(format!("{what}: {why}"));
        let now = clock::now();
        let said = AgentKey::verify(agent.keys_at(now), &request.by_old).map_err(|e| wrong("by_old", &e))?;
        let same = AgentKey::verify([&said.public_key], &request.by_new).map_err(|e| wrong("by_new", &e))?;
        if same != said || said.agent != agent.id {
            return Err(wrong("by_new", &"not the statement of by_old, or of another agent"));
        }
        said.check(self.audience(), now.as_second()).map_err(|e| wrong("by_old", &e))?;
        Ok(said)
    }
}

fn register(tx: &mut Tx<'_>, agent: AgentId, public_key: &str) -> Result<(), Error> {
    let keys = of(tx.conn, agent)?;
    if let Some(known) = keys.iter().find(|key| String::from(key.public_key.clone()) == public_key) {
        return match known.ends_at {
            None => Ok(()),
            Some(_) => Err(Error::Conflict("this key was replaced already: make a new one".to_owned())),
        };
    }
    if owner(tx.conn, public_key)?.is_some() {
        return Err(Error::Conflict("this key is in use already: make a new one".to_owned()));
    }
    if keys.len() as i64 >= MAX_KEYS {
        return Err(Error::Conflict(format!("this agent has had {MAX_KEYS} keys: enrol it again")));
    }
    // One that was registered and never used was lost by the agent, and has signed nothing that counts.
    tx.conn
        .prepare_cached("DELETE FROM agent_keys WHERE agent = ?1 AND used_at IS NULL")?
        .execute(params![agent.uuid().as_bytes()])?;
    tx.effects.forget = true;
    add(tx, agent, public_key, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Hub, Identity};
    use passerelle_protocol::SigningKey;
    use std::sync::Arc;

    fn next() -> SigningKey {
        SigningKey::generate().unwrap().0
    }

    fn statement(hub: &Hub, agent: &Identity, old: &SigningKey, new: &SigningKey) -> KeyRequest {
        let aud = hub.store.audience().to_owned();
        let said = AgentKey::new(agent.id, aud, new.public().clone(), clock::unix());
        KeyRequest { by_old: said.sign(old).unwrap(), by_new: said.sign(new).unwrap() }
    }

    async fn record(hub: &Hub, agent: &Identity) -> Arc<AgentRecord> {
        hub.store.identity(agent.id).await.unwrap().unwrap()
    }

    async fn taken(hub: &Hub, agent: &Identity) -> Vec<KeyId> {
        let record = record(hub, agent).await;
        record.keys_at(clock::now()).map(|key| key.id().clone()).collect()
    }

    async fn use_key(hub: &Hub, agent: &Identity, key: &SigningKey, jti: &str) -> bool {
        let before = hub.store.used_tokens(agent.id).await.unwrap();
        let (jti, until) = (jti.to_owned(), clock::unix() + 120);
        hub.store.note_token(agent.id, jti.clone(), until, key.public().clone(), false).await.unwrap();
        // What comes after it waits for it.
        hub.store.write(|_| Ok(())).await.unwrap();
        !before.iter().any(|(used, _)| *used == jti)
    }

    #[tokio::test]
    async fn both_keys_are_taken_until_the_new_one_is_used_and_all_are_kept() {
        let hub = Hub::new().await;
        let agent = hub.agent().await;
        let new = next();
        let request = statement(&hub, &agent, &agent.key, &new);
        for _ in 0..2 {
            let id = hub.store.register_key(&*record(&hub, &agent).await, request.clone()).await.unwrap();
            assert_eq!(id, *new.public().id());
        }
        assert_eq!(taken(&hub, &agent).await.len(), 2);
        assert!(use_key(&hub, &agent, &agent.key, "1").await);
        assert!(record(&hub, &agent).await.keys.iter().all(|key| key.ends_at.is_none()));
        assert!(use_key(&hub, &agent, &new, "2").await);
        let keys = record(&hub, &agent).await.keys.clone();
        let old = keys.iter().find(|key| key.id == *agent.key.public().id()).unwrap();
        let left = old.ends_at.unwrap().duration_since(clock::now()).as_secs();
        assert!((170..=180).contains(&left), "{left}");
        assert_eq!(keys.iter().filter(|key| key.ends_at.is_none()).count(), 1);
        let late = clock::now().checked_add(Duration::from_secs(181)).unwrap();
        let still: Vec<_> = record(&hub, &agent).await.keys_at(late).map(|key| key.id().clone()).collect();
        assert_eq!(still, [new.public().id().clone()]);
        // The old key was not used again, and does not come back.
        let back = statement(&hub, &agent, &new, &agent.key);
        let refused = hub.store.register_key(&*record(&hub, &agent).await, back).await.unwrap_err();
        assert!(refused.to_string().contains("replaced already"), "{refused}");
    }

    #[tokio::test]
    async fn a_key_that_was_never_used_goes_with_the_next_one() {
        let hub = Hub::new().await;
        let agent = hub.agent().await;
        let keys = [next(), next(), next()];
        for new in &keys {
            let request = statement(&hub, &agent, &agent.key, new);
            hub.store.register_key(&*record(&hub, &agent).await, request).await.unwrap();
        }
        let ids: Vec<KeyId> = record(&hub, &agent).await.keys.iter().map(|key| key.id.clone()).collect();
        assert_eq!(ids, [agent.key.public().id().clone(), keys[2].public().id().clone()]);
        assert!(use_key(&hub, &agent, &keys[2], "1").await);
        assert!(record(&hub, &agent).await.keys[0].ends_at.is_some());
    }

    /// What `enrol` says was replaced, when `by` vouches for the agent that is to follow.
    async fn replaced(hub: &Hub, agent: &Identity, by: &SigningKey) -> Option<AgentId> {
        let new = next();
        let said =
            AgentKey::new(agent.id, hub.store.audience().to_owned(), new.public().clone(), clock::unix());
        let mut request = crate::testing::request(&hub.token("paris", 1).await, &new);
        request.replaces = Some(said.sign(by).unwrap());
        hub.store.enrol(request).await.unwrap().replaced
    }

    #[tokio::test]
    async fn a_retired_key_has_nobody_replaced() {
        let hub = Hub::new().await;
        let agent = hub.agent().await;
        let new = next();
        let request = statement(&hub, &agent, &agent.key, &new);
        hub.store.register_key(&*record(&hub, &agent).await, request).await.unwrap();
        assert!(use_key(&hub, &agent, &new, "1").await);
        let (id, past) = (agent.id, ms(clock::now()) - 1);
        hub.store
            .write(move |tx| {
                let sql = "UPDATE agent_keys SET ends_at = ?2 WHERE agent = ?1 AND ends_at IS NOT NULL";
                Ok(tx.conn.execute(sql, params![id.uuid().as_bytes(), past])?)
            })
            .await
            .unwrap();
        assert_eq!(replaced(&hub, &agent, &agent.key).await, None, "by an old copy");
        assert_eq!(replaced(&hub, &agent, &new).await, Some(agent.id));
    }

    #[tokio::test]
    async fn a_key_that_was_never_used_gives_way() {
        let hub = Hub::new().await;
        let agent = hub.agent().await;
        let (lost, new) = (next(), next());
        for key in [&lost, &new] {
            let request = statement(&hub, &agent, &agent.key, key);
            hub.store.register_key(&*record(&hub, &agent).await, request).await.unwrap();
        }
        let taken = taken(&hub, &agent).await;
        assert!(taken.contains(agent.key.public().id()) && taken.contains(new.public().id()), "{taken:?}");
        assert!(!taken.contains(lost.public().id()), "{taken:?}");
    }

    #[tokio::test]
    async fn a_key_that_is_not_vouched_for_twice_is_refused() {
        let hub = Hub::new().await;
        let (agent, other) = (hub.agent().await, hub.agent().await);
        let (new, stranger) = (next(), next());
        let good = statement(&hub, &agent, &agent.key, &new);
        let by_stranger = statement(&hub, &agent, &stranger, &new);
        let of_another = statement(&hub, &other, &agent.key, &new);
        let elsewhere = AgentKey::new(agent.id, "elsewhere".to_owned(), new.public().clone(), clock::unix());
        let old = AgentKey { iat: clock::unix() - 600, exp: clock::unix() - 540, ..elsewhere.clone() };
        let old = AgentKey { aud: hub.store.audience().to_owned(), ..old };
        let both = |said: &AgentKey| KeyRequest {
            by_old: said.sign(&agent.key).unwrap(),
            by_new: said.sign(&new).unwrap(),
        };
        let mut cases = vec![by_stranger.clone(), of_another, both(&elsewhere), both(&old)];
        // Whoever inspects TLS puts a key of its own into the request.
        cases.push(KeyRequest { by_old: good.by_old.clone(), by_new: by_stranger.by_old });
        cases.push(KeyRequest { by_old: good.by_new.clone(), by_new: good.by_new });
        for request in cases {
            let refused = hub.store.register_key(&*record(&hub, &agent).await, request).await.unwrap_err();
            assert!(matches!(refused, Error::BadRequest(_)), "{refused}");
        }
        let taken_by_other = statement(&hub, &agent, &agent.key, &other.key);
        let refused = hub.store.register_key(&*record(&hub, &agent).await, taken_by_other).await;
        assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
        assert_eq!(taken(&hub, &agent).await, [agent.key.public().id().clone()]);
    }

    #[tokio::test]
    async fn a_used_token_stays_used_over_a_restart() {
        let hub = Hub::new().await;
        let agent = hub.agent().await;
        assert!(use_key(&hub, &agent, &agent.key, "once").await);
        assert!(!use_key(&hub, &agent, &agent.key, "once").await);
        let (ended, key) = (clock::unix() - 1, agent.key.public().clone());
        hub.store.note_token(agent.id, "old".to_owned(), ended, key, true).await.unwrap();
        let hub = hub.restart().await;
        assert!(!use_key(&hub, &agent, &agent.key, "once").await);
        let kept: i64 = hub
            .store
            .read(|conn| Ok(conn.query_row("SELECT count(*) FROM seen_tokens", [], |row| row.get(0))?))
            .await
            .unwrap();
        assert_eq!(kept, 1, "tokens that are out of date are forgotten");
    }
}
