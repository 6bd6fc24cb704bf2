//! Clones: two live processes with one agent's identity, from a copied state folder. The newer fences the older.
//!
//! An agent that reconnects or was started anew fences its own older connection too. It is a clone only if the older
//! connection belongs to another process, and that one answers the refusal: it lives.

use super::{
    Error, Store,
    row::{ms, size, time},
    writer::Tx,
};
use crate::model::{ChangeKind, CloneRecord};
use jiff::{SignedDuration, Timestamp};
use passerelle_protocol::AgentId;
use rusqlite::{Connection, OptionalExtension as _, params};
use std::sync::atomic::Ordering;

/// When a fenced process may come back, in seconds; doubled with each time that the two fence each other.
const FENCED_S: u32 = 30;
/// The longest that it is asked to wait.
const MAX_FENCED_S: u32 = 300;
/// After this long without a clone the waits begin anew.
const QUIET: SignedDuration = SignedDuration::from_hours(1);

/// What was seen of an agent's clones.
pub(super) fn of(conn: &Connection, agent: AgentId) -> Result<Option<CloneRecord>, Error> {
    let sql = "SELECT first_at, last_at, times FROM clones WHERE agent = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        Ok(CloneRecord { first_at: time(row, 0)?, last_at: time(row, 1)?, times: size(row, 2)? })
    };
    Ok(conn.prepare_cached(sql)?.query_row([agent.uuid().as_bytes()], read).optional()?)
}

/// How long a process that is fenced by another one has to wait.
pub(super) fn wait(conn: &Connection, agent: AgentId, now: Timestamp) -> Result<u32, Error> {
    let seen = of(conn, agent)?.filter(|seen| now.duration_since(seen.last_at) < QUIET);
    Ok(seen.map_or(FENCED_S, |seen| FENCED_S.saturating_mul(1 << seen.times.min(4)).min(MAX_FENCED_S)))
}

fn note(tx: &mut Tx<'_>, agent: AgentId) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO clones (agent, first_at, last_at, times) VALUES (?1, ?2, ?2, 1) ON CONFLICT (agent) DO UPDATE \
             SET times = times + 1, last_at = excluded.last_at",
        )?
        .execute(params![agent.uuid().as_bytes(), ms(tx.now)])?;
    if let Some(record) = super::agents::agent(tx.conn, agent)? {
        tx.effects.changes.push((record.tenant, ChangeKind::Agent(agent)));
    }
    Ok(())
}

impl Store {
    /// Notes that another process with this agent's identity was fenced, and lives.
    pub(crate) async fn clone_seen(&self, agent: AgentId) -> Result<(), Error> {
        self.shared().clones.fetch_add(1, Ordering::Relaxed);
        self.write(move |tx| note(tx, agent)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Hub;

    #[tokio::test]
    async fn two_that_fence_each_other_wait_longer_and_longer_and_are_listed() {
        let hub = Hub::new().await;
        let agent = hub.agent().await;
        let mut waits = Vec::new();
        for _ in 0..6 {
            let wait = hub.store.read(move |conn| wait(conn, agent.id, crate::clock::now())).await.unwrap();
            waits.push(wait);
            hub.store.clone_seen(agent.id).await.unwrap();
        }
        assert_eq!(waits, [30, 60, 120, 240, 300, 300]);
        let later = crate::clock::now().checked_add(SignedDuration::from_hours(2)).unwrap();
        assert_eq!(hub.store.read(move |conn| wait(conn, agent.id, later)).await.unwrap(), 30);
        let seen = hub.store.agent(agent.id).await.unwrap().unwrap().clones.unwrap();
        assert_eq!(seen.times, 6);
        assert!(seen.first_at <= seen.last_at);
        assert_eq!(hub.store.stats().clones, 6);
    }
}
