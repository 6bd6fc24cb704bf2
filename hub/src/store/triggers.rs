//! Triggers: what agents announce, and which agent of a site may run each.
//!
//! A lease is told for a time that the agent counts itself from its receipt; here its end is written ahead, so that renewing
//! it costs a write only now and then. It goes to another agent when it was let go, when its agent was revoked, or when that
//! one is away and its end has passed, with some slack for a message that was long on its way. The lone agent of a site has
//! its leases without end; once it shares the site they end as if it had last been told when it was last heard. Should two
//! agents run a trigger for a moment all the same, nothing happens twice: an event's id is a hash.

use super::{
    Error, agents,
    row::{from_uuid, ms, name, opt_time},
    writer::Tx,
};
use jiff::Timestamp;
use passerelle_protocol::{
    AgentId, CHANGE, Hello, NOTIFICATION, Name, PICKUP, TriggerCursor, TriggerLease, WATCH,
    limits::MAX_TRIGGERS,
};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::{collections::HashMap, time::Duration};

/// How long after its end a lease stays with its agent, at most.
const SLACK: Duration = Duration::from_secs(30);
/// How far ahead an end is written, in times of a lease.
const AHEAD: u32 = 3;
/// How long events are taken for a trigger that is announced no more: its agent may still have some in its spool.
const KEPT: Duration = Duration::from_secs(400 * 24 * 3600);
/// How many bytes of cursors one list of leases carries; the triggers after that go on from their agent's own.
const MAX_CURSORS: usize = 256 * 1024;
/// How many triggers are remembered of an agent, with those that it announces no more.
const MOST: usize = 4 * MAX_TRIGGERS;

/// Notes what an agent announces; it lets go of the rest.
pub(super) fn announced(tx: &Tx<'_>, agent: AgentId, hello: &Hello) -> Result<(), Error> {
    let key = *agent.uuid().as_bytes();
    tx.conn
        .prepare_cached("UPDATE agent_triggers SET current = 0 WHERE agent = ?1 AND current = 1")?
        .execute([key])?;
    let mut upsert = tx.conn.prepare_cached(
        "INSERT INTO agent_triggers (agent, resource, name, kind, announced_at, current) VALUES (?1, ?2, ?3, ?4, ?5, 1) \
         ON CONFLICT (agent, resource, name) DO UPDATE SET kind = excluded.kind, announced_at = excluded.announced_at, \
         current = 1",
    )?;
    // What another kind means is not known here, so nobody may run it.
    let known = |kind: &str| [PICKUP, WATCH, CHANGE].contains(&kind);
    let triggers = hello.triggers.iter().filter(|t| known(t.kind.as_str()));
    let triggers = triggers.map(|t| (t.resource.as_str(), t.name.as_str(), t.kind.as_str()));
    let listeners = hello.listeners.iter().map(|l| (l.name.as_str(), l.name.as_str(), NOTIFICATION));
    for (resource, name, kind) in triggers.chain(listeners) {
        upsert.execute(params![key, resource, name, kind, ms(tx.now)])?;
    }
    let before = tx.now.checked_sub(KEPT).unwrap_or(Timestamp::MIN);
    tx.conn
        .prepare_cached(
            "DELETE FROM agent_triggers WHERE agent = ?1 AND current = 0 AND (announced_at < ?2 OR (resource, name) NOT IN \
             (SELECT resource, name FROM agent_triggers WHERE agent = ?1 ORDER BY announced_at DESC LIMIT ?3))",
        )?
        .execute(params![key, ms(before), i64::try_from(MOST).unwrap_or(i64::MAX)])?;
    tx.conn
        .prepare_cached(
            "DELETE FROM trigger_leases WHERE agent = ?1 AND NOT EXISTS (SELECT 1 FROM agent_triggers a \
             WHERE a.agent = ?1 AND a.resource = trigger_leases.resource AND a.name = trigger_leases.name \
             AND a.current = 1)",
        )?
        .execute([key])?;
    Ok(())
}

/// A trigger that the agent announces, and who has it.
struct Found {
    resource: Name,
    trigger: Name,
    holder: Option<(AgentId, i64, Option<Timestamp>)>,
    cursor: Option<String>,
}

/// All that this agent may run from now on: what it has, for longer, and what is free.
pub(crate) fn refresh(tx: &mut Tx<'_>, agent: AgentId) -> Result<Vec<TriggerLease>, Error> {
    let Some(record) = agents::agent(tx.conn, agent)?.filter(|record| record.revoked_at.is_none()) else {
        return Ok(Vec::new());
    };
    let ttl = tx.shared.registry.lease();
    let lone = agents::is_lone(tx.conn, &record.tenant, &record.site)?;
    let until = if lone { None } else { Some(after(tx.now, ttl.saturating_mul(AHEAD))) };
    extend(tx, agent, ttl, until)?;
    let mut away = HashMap::new();
    let mut leases = Vec::new();
    let mut room = MAX_CURSORS;
    for found in find(tx.conn, agent, &record.tenant, &record.site)? {
        let number = match found.holder {
            Some((holder, number, _)) if holder == agent => number,
            Some((holder, _, end)) if !is_free(tx, holder, end, ttl, &mut away)? => continue,
            Some(_) | None => {
                let number = next_number(tx.conn)?;
                tx.conn
                    .prepare_cached(
                        "INSERT OR REPLACE INTO trigger_leases (tenant, site, resource, name, agent, lease, until) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    )?
                    .execute(params![
                        record.tenant.as_str(),
                        record.site.as_str(),
                        found.resource.as_str(),
                        found.trigger.as_str(),
                        agent.uuid().as_bytes(),
                        number,
                        until.map(ms)
                    ])?;
                tracing::info!(
                    agent_id = %agent, resource = %found.resource, trigger = %found.trigger, lease = number,
                    "Trigger goes to this agent"
                );
                number
            }
        };
        let cursor = found.cursor.filter(|cursor| cursor.len() <= room);
        room -= cursor.as_ref().map_or(0, String::len);
        leases.push(TriggerLease {
            cursor,
            resource: found.resource,
            trigger: found.trigger,
            lease: u64::try_from(number).unwrap_or_default(),
            ttl_s: (!lone).then(|| u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1)),
        });
    }
    Ok(leases)
}

/// An agent's session has ended: it was last told of its leases before, so they are over soon.
pub(super) fn left(tx: &Tx<'_>, agent: AgentId) -> Result<(), Error> {
    let end = after(tx.now, tx.shared.registry.lease());
    tx.conn
        .prepare_cached("UPDATE trigger_leases SET until = ?2 WHERE agent = ?1 AND until > ?2")?
        .execute(params![agent.uuid().as_bytes(), ms(end)])?;
    Ok(())
}

/// The kind that the agent announced a trigger with, now or before.
pub(super) fn kind(
    conn: &Connection,
    agent: AgentId,
    resource: &Name,
    trigger: &Name,
) -> Result<Option<Name>, Error> {
    let sql = "SELECT kind FROM agent_triggers WHERE agent = ?1 AND resource = ?2 AND name = ?3";
    Ok(conn
        .prepare_cached(sql)?
        .query_row(params![agent.uuid().as_bytes(), resource.as_str(), trigger.as_str()], |row| name(row, 0))
        .optional()?)
}

/// Whether the agent has announced any trigger.
pub(crate) fn has_any(conn: &Connection, agent: AgentId) -> Result<bool, Error> {
    Ok(conn
        .prepare_cached("SELECT 1 FROM agent_triggers WHERE agent = ?1")?
        .exists([agent.uuid().as_bytes()])?)
}

/// Stores how far an agent has read a trigger's feed, if it is the one that may run it.
pub(crate) fn advanced(tx: &Tx<'_>, agent: AgentId, told: &TriggerCursor) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "INSERT INTO trigger_cursors (tenant, site, resource, name, cursor, stored_at) \
             SELECT l.tenant, l.site, l.resource, l.name, ?5, ?6 FROM trigger_leases l JOIN agents a ON a.id = l.agent \
             JOIN agent_triggers t ON t.agent = l.agent AND t.resource = l.resource AND t.name = l.name \
             WHERE l.agent = ?1 AND l.resource = ?2 AND l.name = ?3 AND l.lease = ?4 AND t.kind = 'change' \
             AND l.tenant = a.tenant AND l.site = a.site \
             ON CONFLICT (tenant, site, resource, name) DO UPDATE SET cursor = excluded.cursor, \
             stored_at = excluded.stored_at",
        )?
        .execute(params![
            agent.uuid().as_bytes(),
            told.resource.as_str(),
            told.trigger.as_str(),
            i64::try_from(told.lease).unwrap_or(i64::MAX),
            told.cursor,
            ms(tx.now)
        ])?;
    Ok(())
}

/// Writes the ends of what the agent has further ahead, those that are near.
fn extend(tx: &Tx<'_>, agent: AgentId, ttl: Duration, until: Option<Timestamp>) -> Result<(), Error> {
    let key = agent.uuid();
    match until {
        None => tx
            .conn
            .prepare_cached("UPDATE trigger_leases SET until = NULL WHERE agent = ?1 AND until IS NOT NULL")?
            .execute([key.as_bytes()])?,
        Some(until) => tx
            .conn
            .prepare_cached(
                "UPDATE trigger_leases SET until = ?2 WHERE agent = ?1 AND (until IS NULL OR until < ?3)",
            )?
            .execute(params![key.as_bytes(), ms(until), ms(after(tx.now, ttl))])?,
    };
    Ok(())
}

fn find(conn: &Connection, agent: AgentId, tenant: &Name, site: &Name) -> Result<Vec<Found>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT t.resource, t.name, l.agent, l.lease, l.until, c.cursor FROM agent_triggers t LEFT JOIN trigger_leases l \
         ON l.tenant = ?2 AND l.site = ?3 AND l.resource = t.resource AND l.name = t.name \
         LEFT JOIN trigger_cursors c \
         ON t.kind = 'change' AND c.tenant = ?2 AND c.site = ?3 AND c.resource = t.resource AND c.name = t.name \
         WHERE t.agent = ?1 AND t.current = 1 AND t.kind <> 'notification' ORDER BY t.resource, t.name",
    )?;
    let rows =
        statement.query_map(params![agent.uuid().as_bytes(), tenant.as_str(), site.as_str()], |row| {
            let number: Option<i64> = row.get(3)?;
            let holder = match number {
                Some(number) => Some((from_uuid(row, 2)?, number, opt_time(row, 4)?)),
                None => None,
            };
            Ok(Found { resource: name(row, 0)?, trigger: name(row, 1)?, holder, cursor: row.get(5)? })
        })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether another agent has to stop by now what it had until `end`. `away`: since when the holders looked at so far are
/// away; nothing for those that are here.
fn is_free(
    tx: &Tx<'_>,
    holder: AgentId,
    end: Option<Timestamp>,
    ttl: Duration,
    away: &mut HashMap<AgentId, Option<Timestamp>>,
) -> Result<bool, Error> {
    let since = match away.get(&holder) {
        Some(since) => *since,
        None => *away.entry(holder).or_insert(away_since(tx, holder)?),
    };
    let Some(since) = since else { return Ok(false) };
    let end = end.unwrap_or_else(|| after(since, ttl));
    Ok(since == Timestamp::MIN || after(end, ttl.min(SLACK)) <= tx.now)
}

/// When an agent that is away was last heard, as far as is known; [`Timestamp::MIN`] for one that was revoked.
fn away_since(tx: &Tx<'_>, agent: AgentId) -> Result<Option<Timestamp>, Error> {
    let record = agents::agent(tx.conn, agent)?.filter(|record| record.revoked_at.is_none());
    let Some(record) = record else { return Ok(Some(Timestamp::MIN)) };
    if tx.shared.registry.online(agent).is_some() {
        return Ok(None);
    }
    // While no hub was up nobody could be heard.
    let opened = tx.shared.opened_at;
    Ok(Some(record.last_seen_at.map_or(opened, |seen| seen.max(opened))))
}

fn next_number(conn: &Connection) -> Result<i64, Error> {
    let sql = "INSERT INTO meta (key, value) VALUES ('trigger_lease', '1') \
               ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1 RETURNING CAST(value AS INTEGER)";
    Ok(conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

fn after(at: Timestamp, time: Duration) -> Timestamp {
    at.checked_add(time).unwrap_or(Timestamp::MAX)
}
