//! Agents that are away for longer than is usual. Which ones were told is stored, so that each absence is told once.

use super::{
    Error, Store, agents,
    notices::{NewNotice, tell},
    row::{from_uuid, ms, opt_time, time},
    writer::Tx,
};
use crate::{clock, model::NoticeKind};
use jiff::Timestamp;
use passerelle_protocol::AgentId;
use rusqlite::{OptionalExtension as _, params};
use serde_json::json;
use std::time::Duration;

/// How many are told of in one transaction; the next look finds the rest.
const AT_ONCE: usize = 200;

/// What changed since it was told last.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Absences {
    /// Agents that are away.
    pub away: Vec<AgentId>,
    /// Agents that are back, or of whom nothing is expected any more.
    pub back: Vec<AgentId>,
}

impl Store {
    /// Looks which agents have been away for this long without its having been told, and which that were told are back.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub async fn absences(&self, away: Duration) -> Result<Absences, Error> {
        let shared = self.shared_handle();
        self.read(move |conn| {
            let now = clock::now();
            let mut found = Absences::default();
            let mut statement = conn.prepare_cached(
                "SELECT a.id, a.enrolled_at, a.last_seen_at, b.agent IS NOT NULL, \
                 a.revoked_at IS NOT NULL OR a.replaced_by IS NOT NULL OR t.tier <> 'enterprise' \
                 FROM agents a JOIN tenants t ON t.name = a.tenant LEFT JOIN absences b ON b.agent = a.id",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let agent: AgentId = from_uuid(row, 0)?;
                let (told, ended): (bool, bool) = (row.get(3)?, row.get(4)?);
                let online = shared.registry.online(agent).is_some();
                if told && (online || ended) {
                    found.back.push(agent);
                } else if !told && !online && !ended {
                    // While no hub was up nobody could be heard.
                    let heard = opt_time(row, 2)?.unwrap_or(time(row, 1)?).max(shared.opened_at);
                    if over(heard, away, now) {
                        found.away.push(agent);
                    }
                }
            }
            found.away.truncate(AT_ONCE);
            found.back.truncate(AT_ONCE);
            Ok(found)
        })
        .await
    }

    /// Tells of them.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub async fn tell_absences(&self, found: Absences, away: Duration) -> Result<(), Error> {
        self.write(move |tx| {
            for agent in found.away {
                // It may have come back since.
                if tx.shared.registry.online(agent).is_none() {
                    tell_away(tx, agent, away)?;
                }
            }
            for agent in found.back {
                tell_back(tx, agent)?;
            }
            Ok(())
        })
        .await
    }
}

fn over(heard: Timestamp, away: Duration, now: Timestamp) -> bool {
    heard.checked_add(away).is_ok_and(|end| end <= now)
}

fn tell_away(tx: &mut Tx<'_>, id: AgentId, away: Duration) -> Result<(), Error> {
    let Some(agent) = agents::agent(tx.conn, id)?.filter(|agent| agent.revoked_at.is_none()) else {
        return Ok(());
    };
    let heard = agent.last_seen_at;
    if !over(heard.unwrap_or(agent.enrolled_at), away, tx.now) {
        return Ok(());
    }
    let since = heard.unwrap_or(agent.enrolled_at);
    let new = tx
        .conn
        .prepare_cached("INSERT OR IGNORE INTO absences (agent, since, told_at) VALUES (?1, ?2, ?3)")?
        .execute(params![id.uuid().as_bytes(), ms(since), ms(tx.now)])?;
    if new == 0 {
        return Ok(());
    }
    tracing::warn!(agent_id = %id, "An agent is away");
    let data = json!({
        "Guid": id, "Nom": agent.name, "Site": agent.site, "VuDernierement": heard, "Version": agent.version,
    });
    tell(tx, &NewNotice { tenant: &agent.tenant, kind: NoticeKind::AgentAbsent, line: id.uuid(), data })
}

fn tell_back(tx: &mut Tx<'_>, id: AgentId) -> Result<(), Error> {
    let since: Option<Timestamp> = tx
        .conn
        .prepare_cached("DELETE FROM absences WHERE agent = ?1 RETURNING since")?
        .query_row([id.uuid().as_bytes()], |row| time(row, 0))
        .optional()?;
    let Some(since) = since else { return Ok(()) };
    // One that was revoked meanwhile does not come back: there is nothing to tell.
    let Some(agent) = agents::agent(tx.conn, id)?.filter(|agent| agent.revoked_at.is_none()) else {
        return Ok(());
    };
    if tx.shared.registry.online(id).is_none() {
        return Ok(());
    }
    let data = json!({
        "Guid": id, "Nom": agent.name, "Site": agent.site, "AbsentDepuis": since, "Version": agent.version,
    });
    tell(tx, &NewNotice { tenant: &agent.tenant, kind: NoticeKind::AgentRevenu, line: id.uuid(), data })
}
